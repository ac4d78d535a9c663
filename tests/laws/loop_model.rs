//! The loop around the planner, over every reachable state: one link, one field with three values, two sides. The
//! adversary may edit either side (three times in all), serve a read that is one version old, edit between our read
//! and our write, drop the answer to a write, crash us before or after the writes, and run one sweep. The real
//! planner, announcement and agreement are in the loop; only the order of work is told again here, in one function.
//!
//! We look for a write over the only side anyone edited, an edit overwritten without a report (safety), and a quiet
//! world whose two sides differ (progress). Each guard of the design is switched off in turn, to see that the model
//! would notice if it were lost.
//!
//! Graph has no conditional write. An edit that falls between the last read and the PATCH is lost there; such losses
//! are counted apart and must never happen anywhere else.

use std::collections::{HashSet, VecDeque};

use lockstep::domain::model::*;
use lockstep::domain::plan::{self, Landed, LinkState, Rule, Snapshot};
use lockstep::domain::policy::Policy;
use time::Duration;

use crate::worlds::{defender_says, epoch, key, sentinel_says};

const DEFENDER: usize = 0;
const SENTINEL: usize = 1;
const MOST_TROUBLES: u8 = 3;
const SIDES: [usize; 2] = [DEFENDER, SENTINEL];

/// A remote object: its value, its version, and whether a person's edit on it is still unagreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Object {
    value: u8,
    version: u8,
    fresh: bool,
}

#[derive(Clone, Debug)]
struct World {
    now: [Object; 2],
    previous: [Object; 2],
    state: LinkState,
    /// A waiting job and its watermark: the versions a read must have reached.
    job: Option<[u8; 2]>,
    edits: u8,
    edited: [bool; 2],
    sweeps: u8,
    /// Crashes, lost answers and lagging reads so far. Without a bound the versions grow for ever, because Graph takes
    /// a confirming write at any time.
    troubles: u8,
    broken: Option<&'static str>,
    window_losses: u32,
}

impl World {
    fn print(&self) -> String {
        let World { now, previous, state, job, edits, edited, sweeps, troubles, broken, window_losses: _ } =
            self;
        let state = serde_json::to_string(state).expect("plain data");
        format!("{now:?}{previous:?}{state}{job:?}{edits}{edited:?}{sweeps}{troubles}{broken:?}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Guard {
    None,
    SentinelEtag,
    MonotonicReads,
    Watermark,
    AgreeLast,
    KeepJob,
    DirtySet,
    Intent,
    Confirm,
}

#[derive(Clone, Copy, Debug)]
struct Nature {
    echo: bool,
    sweep_repairs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    No,
    BeforeWrites,
    AfterWrites,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    stale: [bool; 2],
    race: Option<(usize, u8)>,
    lose_answer: bool,
    crash: Crash,
}

fn defender(object: Object) -> DefenderIncident {
    let severity = [DefenderSeverity::Low, DefenderSeverity::Medium, DefenderSeverity::High];
    DefenderIncident {
        id: "29".into(),
        says: DefenderSays { severity: severity[object.value as usize].clone(), ..defender_says() },
        created: None,
        updated: epoch() + Duration::minutes(object.version.into()),
        modified_by: None,
        web_url: None,
        redirect: None,
        comments: Vec::new(),
        alerts: None,
    }
}

fn sentinel(object: Object) -> SentinelIncident {
    let severity = [SentinelSeverity::Low, SentinelSeverity::Medium, SentinelSeverity::High];
    SentinelIncident {
        name: "twin".into(),
        etag: format!("e{}", object.version),
        says: SentinelSays { severity: severity[object.value as usize].clone(), ..sentinel_says() },
        modified: epoch() + Duration::minutes(object.version.into()),
        provider: None,
        provider_incident_id: None,
        url: None,
        provider_url: None,
        comments_count: None,
    }
}

fn edit(world: &mut World, without: Guard, side: usize, value: u8, job_running: bool) {
    if world.now[side].value == value {
        return;
    }
    world.previous[side] = world.now[side];
    world.now[side] = Object { value, version: world.now[side].version + 1, fresh: true };
    world.edits += 1;
    world.edited[side] = true;
    if job_running && without == Guard::DirtySet {
        return;
    }
    world.job = Some(SIDES.map(|i| world.now[i].version));
}

fn snapshot(world: &World, seen: [Object; 2]) -> Snapshot {
    Snapshot {
        key: key(),
        state: world.state.clone(),
        defender: Some(defender(seen[DEFENDER])),
        sentinel: Some(sentinel(seen[SENTINEL])),
    }
}

fn run(mut world: World, without: Guard, nature: Nature, how: Run) -> World {
    let policy = Policy::default();
    if how.stale != [false; 2] || how.lose_answer || how.crash != Crash::No {
        world.troubles += 1;
    }
    let Some(watermark) = world.job.take() else { return world };
    let requeue = |mut world: World| {
        if without != Guard::KeepJob && world.job.is_none() {
            world.job = Some(watermark);
        }
        world
    };

    // Observe.
    let seen = SIDES.map(|i| if how.stale[i] { world.previous[i] } else { world.now[i] });
    if let Some((side, value)) = how.race {
        edit(&mut world, without, side, value, true);
    }
    if without != Guard::Watermark && SIDES.iter().any(|&i| seen[i].version < watermark[i]) {
        return requeue(world);
    }
    let mut snap = snapshot(&world, seen);
    if without != Guard::MonotonicReads && plan::stale(&snap).is_some() {
        return requeue(world);
    }
    if without == Guard::Confirm {
        // Without confirmation a read settles an unproved write: one that does not show did not land.
        let now = (defender(seen[DEFENDER]).says, sentinel(seen[SENTINEL]).says);
        snap.state.intents.retain(|intent| match intent.side {
            Side::Defender => intent.defender == now.0,
            Side::Sentinel => intent.sentinel == now.1,
        });
    }

    // Plan.
    let plan = plan::plan(&snap, &policy);
    // A value that was set back behind a lost answer looks like a write that was lost: said, to be on the safe side.
    let reported = plan.clashes.iter().any(|clash| clash.rule != Rule::SetBack);
    if reported && world.edited != [true, true] {
        world.broken = Some("one-sided editing was called a clash");
    }
    let value_of = |text: &str| ["low", "medium", "high"].iter().position(|v| text.eq_ignore_ascii_case(v));
    let goals: [Option<u8>; 2] = [
        plan.defender.as_ref().map(|patch| {
            let severity = patch.severity.clone().expect("the only field");
            value_of(severity.as_str()).expect("one of three") as u8
        }),
        plan.sentinel
            .as_ref()
            .map(|write| value_of(write.says.severity.as_str()).expect("one of three") as u8),
    ];

    // Announce.
    let before = world.state.clone();
    if without == Guard::AgreeLast
        && let Some(intended) = plan.intents.last()
        && let Some(known) = &mut world.state.known
    {
        known.defender = intended.defender.clone();
        known.sentinel = intended.sentinel.clone();
    }
    if without != Guard::Intent && !plan.is_empty() {
        world.state = plan::announce(&snap, &plan);
        if without == Guard::AgreeLast {
            world.state.known = before.known.clone().map(|mut known| {
                let intended = plan.intents.last().expect("a write is announced");
                known.defender = intended.defender.clone();
                known.sentinel = intended.sentinel.clone();
                known
            });
            world.state.intents.clear();
        }
    }
    let announced = world.state.clone();
    if how.crash == Crash::BeforeWrites {
        return requeue(world);
    }

    // Write.
    let mut landed = Landed::default();
    for i in [SENTINEL, DEFENDER] {
        let Some(goal) = goals[i] else { continue };
        let moved_meanwhile = world.now[i].version != seen[i].version;
        if i == SENTINEL && without != Guard::SentinelEtag && moved_meanwhile {
            if without != Guard::Intent {
                world.state = plan::take_back(&before, &announced, &plan, Side::Sentinel);
            }
            return requeue(world);
        }
        if world.now[i].value != goal {
            // Graph's window: the edit came after our read, and Graph takes no condition. Nothing can be done.
            let window =
                i == DEFENDER && moved_meanwhile && how.race.is_some_and(|(side, _)| side == DEFENDER);
            if window && world.now[i].fresh {
                world.window_losses += 1;
            }
            if !window && world.edited == SIDES.map(|j| j == i) {
                world.broken = Some("we wrote over the only side anyone edited");
            }
            let known = before.known.as_ref().map(|known| {
                let text = [known.defender.severity.as_str(), known.sentinel.severity.as_str()][i].to_owned();
                value_of(&text).expect("one of three") as u8
            });
            // A person who sets exactly what we announced cannot be told from our own write landing.
            let ours = before.intents.iter().any(|intent| match intent.side {
                Side::Defender => {
                    i == DEFENDER
                        && value_of(intent.defender.severity.as_str()) == Some(world.now[i].value.into())
                }
                Side::Sentinel => {
                    i == SENTINEL
                        && value_of(intent.sentinel.severity.as_str()) == Some(world.now[i].value.into())
                }
            });
            if !window && !ours && world.now[i].fresh && Some(world.now[i].value) != known && !reported {
                world.broken = Some("an edit was overwritten silently");
            }
        }
        world.previous[i] = world.now[i];
        world.now[i] = Object { value: goal, version: world.now[i].version + 1, fresh: false };
        match i {
            DEFENDER => landed.defender = Some(defender(world.now[i])),
            _ => landed.sentinel = Some(sentinel(world.now[i])),
        }
        if nature.echo {
            world.job = Some(SIDES.map(|j| world.now[j].version));
        }
        if how.lose_answer {
            return requeue(world);
        }
    }
    if how.crash == Crash::AfterWrites {
        return requeue(world);
    }

    // Agree.
    let again = if without == Guard::AgreeLast {
        false
    } else {
        let (state, again) = plan::agree(&snap, &plan, &landed).expect("all writes were answered");
        world.state = state;
        again
    };
    for i in SIDES {
        let acted = if goals[i].is_some() { world.now[i].version } else { seen[i].version };
        if acted == world.now[i].version {
            world.now[i].fresh = false;
        }
    }
    if again { requeue(world) } else { world }
}

/// Somebody edits a side to a value, or the job runs.
type Next = (Option<(usize, u8)>, Option<Run>);

fn steps(world: &World) -> Vec<Next> {
    let edits: Vec<(usize, u8)> = if world.edits < 3 {
        SIDES.iter().flat_map(|&s| (0..3).map(move |v| (s, v))).collect()
    } else {
        Vec::new()
    };
    let mut ops: Vec<_> = edits.iter().map(|&e| (Some(e), None)).collect();
    if world.job.is_none() {
        if world.sweeps < 1 {
            ops.push((None, None));
        }
        return ops;
    }
    for first in [false, true] {
        for second in [false, true] {
            for lose_answer in [false, true] {
                for crash in [Crash::No, Crash::BeforeWrites, Crash::AfterWrites] {
                    let trouble = first || second || lose_answer || crash != Crash::No;
                    if trouble && world.troubles >= MOST_TROUBLES {
                        continue;
                    }
                    for race in edits.iter().copied().map(Some).chain([None]) {
                        ops.push((None, Some(Run { stale: [first, second], race, lose_answer, crash })));
                    }
                }
            }
        }
    }
    ops
}

/// What the exploration came to, with the shortest story of a failure.
struct Explored {
    failure: Option<String>,
    states: usize,
    window_losses: u32,
}

fn explore(without: Guard, nature: Nature) -> Explored {
    let object = Object { value: 0, version: 1, fresh: false };
    let mut start = World {
        now: [object; 2],
        previous: [object; 2],
        state: LinkState::default(),
        job: None,
        edits: 0,
        edited: [false; 2],
        sweeps: 0,
        troubles: 0,
        broken: None,
        window_losses: 0,
    };
    let snap = snapshot(&start, start.now);
    let nothing = plan::plan(&snap, &Policy::default());
    start.state = plan::agree(&snap, &nothing, &Landed::default()).expect("nothing to write").0;

    let mut reached = HashSet::from([start.print()]);
    let mut queue = VecDeque::from([(start, Vec::new())]);
    let mut window_losses = 0;
    while let Some((world, story)) = queue.pop_front() {
        let over = |failure: &str, states| Explored {
            failure: Some(format!("{failure}\n{}\n{world:?}", story.join("\n"))),
            states,
            window_losses,
        };
        if let Some(why) = world.broken {
            return over(why, reached.len());
        }
        if world.job.is_none() && world.now[0].value != world.now[1].value {
            if !nature.sweep_repairs {
                return over("quiet, yet the two sides differ", reached.len());
            }
            let mut healed = world.clone();
            for _ in 0..3 {
                healed.job = healed.job.or(Some([0, 0]));
                let calm = Run { stale: [false; 2], race: None, lose_answer: false, crash: Crash::No };
                healed = run(healed, without, nature, calm);
            }
            if healed.broken.is_some() || healed.now[0].value != healed.now[1].value {
                return over("a clean sweep does not repair it", reached.len());
            }
        }
        for op in steps(&world) {
            let mut next = match op {
                (Some((side, value)), _) => {
                    let mut next = world.clone();
                    edit(&mut next, without, side, value, false);
                    next
                }
                (None, None) => World { job: Some([0, 0]), sweeps: world.sweeps + 1, ..world.clone() },
                (None, Some(how)) => run(world.clone(), without, nature, how),
            };
            window_losses += std::mem::take(&mut next.window_losses);
            if reached.insert(next.print()) {
                let mut story: Vec<String> = story.clone();
                story.push(format!("{op:?}"));
                queue.push_back((next, story));
            }
        }
    }
    Explored { failure: None, states: reached.len(), window_losses }
}

const ECHOING: Nature = Nature { echo: true, sweep_repairs: false };
const SWEPT: Nature = Nature { echo: true, sweep_repairs: true };
const SILENT: Nature = Nature { echo: false, sweep_repairs: true };

#[test]
fn the_loop_holds_in_every_reachable_state() {
    let explored = explore(Guard::None, ECHOING);
    assert!(explored.failure.is_none(), "{}", explored.failure.unwrap_or_default());
    assert!(explored.states > 1_000, "the model got small: {} states", explored.states);
    assert!(explored.window_losses > 0, "Graph's window is no longer exercised");
}

#[test]
fn the_loop_holds_where_the_systems_are_silent_about_our_own_writes() {
    let explored = explore(Guard::None, SILENT);
    assert!(explored.failure.is_none(), "{}", explored.failure.unwrap_or_default());
}

#[test]
fn each_guard_is_missed_when_it_is_gone() {
    for (guard, nature) in [
        (Guard::SentinelEtag, SWEPT),
        (Guard::MonotonicReads, SWEPT),
        (Guard::AgreeLast, SWEPT),
        (Guard::Intent, SWEPT),
        (Guard::Confirm, SILENT),
        (Guard::Watermark, ECHOING),
        (Guard::KeepJob, ECHOING),
        (Guard::DirtySet, ECHOING),
    ] {
        let explored = explore(guard, nature);
        assert!(explored.failure.is_some(), "the model does not notice that {guard:?} is gone");
    }
}
