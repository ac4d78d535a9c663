//! Random lives: people edit both sides, notifications get lost, doubled and late, calls fail in every way, applications
//! die at any await. Whenever everything has become quiet, all that was promised must hold.
//!
//! `LOCKSTEP_SEEDS=5000` lives more of them, `LOCKSTEP_SEED=42` one. A seed that fails prints its story.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::adapters::store::SqliteStore;
use lockstep::domain::model::Side;
use lockstep::domain::policy::{Direction, Field, FieldPolicy, Winner};
use lockstep::ports::Hold;
use serde_json::json;

use crate::house::{App, Hides, House};
use crate::people::{Deed, Mood};
use crate::plant::{Fatal, Faults};

/// The switches whose values a life may have at random: everything uncertain that concerns what the service does.
const SWITCHES: [&str; 21] = [
    "inProgress",
    "verdictPairs",
    "commentsTouch",
    "alertsTouch",
    "redirectedWritable",
    "redirectedTag",
    "lastModifiedBy",
    "enumCase",
    "nextLink",
    "graphPageSize",
    "equalTimes",
    "resolveCascades",
    "omittedMembers",
    "missingEtag",
    "staleEtag",
    "strictVerdict",
    "sentinelCommentsTouch",
    "tasksTouch",
    "etagQuotes",
    "emptyOwner",
    "armPageSize",
];

/// What a number of lives came to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    lives: u32,
    edits: u32,
    calls: u64,
    writes: u64,
    clashes: u32,
    window: u32,
    late: u32,
    crashes: u32,
    merges: u32,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.lives += other.lives;
        self.edits += other.edits;
        self.calls += other.calls;
        self.writes += other.writes;
        self.clashes += other.clashes;
        self.window += other.window;
        self.late += other.late;
        self.crashes += other.crashes;
        self.merges += other.merges;
    }
}

/// One life.
struct Life {
    rng: fastrand::Rng,
    house: House,
    apps: Vec<App>,
    mood: Mood,
    /// How many applications share the disk.
    replicas: usize,
    /// Whether calls fail and applications die.
    faulty: bool,
    /// Whether what is started now may die.
    faulty_fuses: bool,
    ids: Vec<String>,
    hides: Hides,
    tally: Tally,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut house = House::new(seed);
        let switched = rng.u8(..4) > 0;
        let now = house.now();
        let (tenant, _) = (house.at().0.to_owned(), ());
        let hides = house.shared.with(|plant, _| {
            if switched {
                let known = plant.world.switches.describe();
                for name in SWITCHES {
                    let values = known[name]["values"].as_array().expect("a switch has values");
                    let value = values[rng.usize(..values.len())].as_str().expect("a word").to_owned();
                    plant.world.switches.set(name, &value).expect("its own value");
                }
                if rng.bool() {
                    plant.world.switches.set("equalTimes", "off").expect("its own value");
                }
            }
            if rng.bool() {
                plant.subscribe(&tenant, now);
            }
            plant.playbooks_tell = rng.bool();
            plant.tell(now, format!("switches: {}", described(&plant.world.switches.describe())));
            let is = |name, value| plant.world.switches.is(name, value);
            let all = is("equalTimes", "on");
            plant.truth.equal_times = all;
            Hides {
                defender: all || is("commentsTouch", "off"),
                sentinel: all || is("sentinelCommentsTouch", "off"),
            }
        });
        let mut told = Vec::new();
        for field in [Field::Severity, Field::Status, Field::Owner, Field::Verdict, Field::Tags] {
            let mut rule = FieldPolicy { direction: Direction::Both, wins: Winner::Latest };
            rule.wins = [Winner::Latest, Winner::Latest, Winner::Defender, Winner::Sentinel][rng.usize(..4)];
            if rng.u8(..16) == 0 {
                let ways = [Direction::ToSentinel, Direction::ToDefender, Direction::Off];
                rule.direction = ways[rng.usize(..3)];
                house.shared.with(|plant, _| plant.truth.one_way.insert(field));
            }
            told.push(format!("{} {:?} {:?}", field.as_str(), rule.direction, rule.wins));
            house.policy.set(field, rule);
        }
        house.shared.with(|plant, now| plant.tell(now, format!("policy: {}", told.join(", "))));
        let replicas = if rng.u8(..4) == 0 { 2 } else { 1 };
        house.replicas = replicas > 1;
        let faulty = rng.u8(..4) > 0;
        let mood = [Mood::Ordinary, Mood::Ordinary, Mood::Quarrel, Mood::Talk][rng.usize(..4)];
        house.shared.with(|plant, now| plant.tell(now, format!("mood: {mood:?}")));
        let tally = Tally { lives: 1, ..Tally::default() };
        Self {
            rng,
            house,
            apps: Vec::new(),
            mood,
            replicas,
            faulty,
            faulty_fuses: true,
            ids: Vec::new(),
            hides,
            tally,
        }
    }

    fn fuse(&mut self) -> i64 {
        if self.faulty && self.faulty_fuses && self.rng.u8(..10) < 7 {
            self.rng.i64(5..300)
        } else {
            i64::MAX
        }
    }

    /// Starts what is missing, once the dead are gone for good: aborting takes a few turns.
    async fn start(&mut self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        while self.apps.len() < self.replicas {
            let fuse = self.fuse();
            self.apps.push(self.house.start(fuse));
        }
    }

    /// Puts new applications in the place of those that died.
    async fn bury(&mut self) {
        let before = self.apps.len();
        self.apps.retain(|app| !app.fuse.is_dead());
        let died = before - self.apps.len();
        self.tally.crashes += u32::try_from(died).expect("few");
        if died > 0 {
            self.house.shared.with(|plant, now| plant.tell(now, format!("! {died} killed, started again")));
        }
        self.start().await;
    }

    fn open_incident(&mut self) {
        let id = (100 + self.ids.len()).to_string();
        let severity = ["low", "medium", "high", "informational"][self.rng.usize(..4)];
        let incident = json!({
            "id": id, "displayName": format!("Incident {id}"), "description": "text", "severity": severity,
        });
        let at = self.house.at();
        self.house.shared.with(|plant, now| plant.engine_puts(at, &incident, now));
        self.ids.push(id);
    }

    fn disturb(&mut self) {
        let mut p = |most: f64| self.rng.f64() * most;
        let mut faults = Faults { lost: p(0.5), doubled: p(0.5), ..Faults::default() };
        if self.faulty {
            faults = Faults {
                dropped: p(0.1),
                answer_lost: p(0.2),
                late: p(0.1),
                stale: p(0.3),
                throttled: p(0.05),
                broken: p(0.1),
                list_lags: p(0.5),
                ..faults
            };
        }
        faults.delay = [100, 2_000, 20_000][self.rng.usize(..3)];
        self.house.shared.with(|plant, now| {
            plant.tell(now, format!("faults: {faults:?}"));
            plant.faults = faults;
        });
    }

    /// Merges are for those who talk, and now and then for others.
    fn merges(&mut self) -> bool {
        self.mood == Mood::Talk || self.rng.bool()
    }

    async fn act(&mut self) {
        let at = (self.house.at().0.to_owned(), self.house.at().1.to_owned());
        let shared = self.house.shared.clone();
        let side = if self.rng.bool() { Side::Defender } else { Side::Sentinel };
        match self.rng.u8(..24) {
            0 if self.faulty => {
                shared.with(|plant, now| {
                    plant.tell(now, format!("! {side} refuses our token for a while"));
                    plant.barred.insert(side, now + time::Duration::seconds(20));
                });
            }
            1..3 => {
                // Slips in before the application's next write to that side.
                let deed = Deed::choose(&mut self.rng, &self.ids, self.mood);
                shared.with(|plant, now| {
                    plant.tell(now, format!("! waits for the next write: {deed:?}"));
                    let side = deed.side();
                    plant.slip.insert(
                        side,
                        Box::new(move |plant, now| {
                            deed.done(plant, (&at.0, &at.1), now);
                        }),
                    );
                });
            }
            3 => {
                // An operator, through another process on the same disk.
                let (other, since) = (self.house.door(), self.house.now());
                if self.rng.bool() {
                    let hold = Hold { route: "*".to_owned(), since, reason: "a drill".into() };
                    other.hold(&hold).await.unwrap();
                } else {
                    other.release("*").await.unwrap();
                }
            }
            4 => self.house.sweep().await,
            5 | 8 if self.ids.len() > 1 && self.tally.merges == 0 && self.merges() => {
                let from = self.rng.usize(..self.ids.len());
                let into = (from + 1) % self.ids.len();
                let (from, into) = (self.ids[from].clone(), self.ids[into].clone());
                let merged = shared.with(|plant, now| plant.merge((&at.0, &at.1), &from, &into, now));
                self.tally.merges += u32::from(merged);
            }
            6 if self.mood != Mood::Quarrel => self.open_incident(),
            9 | 10 if self.faulty => {
                let fatal = if self.rng.bool() { Fatal::Landed } else { Fatal::UnderWay };
                shared.with(|plant, now| {
                    plant.tell(
                        now,
                        format!("! waits for the next write to {side}, to kill its sender: {fatal:?}"),
                    );
                    plant.fatal.insert(side, fatal);
                });
            }
            7 if self.faulty && self.replicas > 1 => {
                self.house.shared.with(|plant, now| plant.tell(now, "! a replica is killed".into()));
                drop(self.apps.remove(0));
                self.tally.crashes += 1;
                self.start().await;
            }
            _ => {
                let deed = Deed::choose(&mut self.rng, &self.ids, self.mood);
                // Somebody clicks twice: two comments with the same words at the same time.
                let twice = matches!(deed, Deed::CommentInDefender { .. }) && self.rng.u8(..8) == 0;
                for deed in std::iter::repeat_n(deed, 1 + usize::from(twice)) {
                    shared.with(|plant, now| deed.done(plant, (&at.0, &at.1), now));
                }
            }
        }
    }

    async fn live(&mut self) -> Result<(), String> {
        for _epoch in 0..2 {
            let more = match self.mood {
                Mood::Ordinary => 1 + usize::from(self.rng.bool()),
                // One bone of contention.
                Mood::Quarrel => usize::from(self.ids.is_empty()),
                Mood::Talk => 2 - self.ids.len().min(2),
            };
            for _ in 0..more {
                self.open_incident();
            }
            self.disturb();
            self.start().await;
            for _ in 0..6 + self.rng.usize(..12) {
                let pauses = if self.mood == Mood::Quarrel { 4 } else { 5 };
                let pause = [5, 80, 400, 3_000, 20_000][self.rng.usize(..pauses)];
                tokio::time::sleep(Duration::from_millis(pause)).await;
                self.bury().await;
                self.act().await;
            }
            self.house.shared.with(|plant, now| {
                plant.tell(now, "! the troubles end".into());
                plant.faults = Faults::default();
                plant.barred.clear();
                plant.slip.clear();
                plant.fatal.clear();
            });
            self.house.door().release("*").await.unwrap();
            // A new start looks at the lists with fresh eyes; the old one must find its way as well.
            let renew = self.rng.u8(..3) == 0;
            self.apps.retain(|app| app.fuse.mend() && !renew);
            self.faulty_fuses = false;
            self.start().await;
            self.faulty_fuses = true;
            self.house.quiet().await?;
            self.house.check_what_shows(self.hides)?;
            if self.hides.defender || self.hides.sentinel || self.house.leaves_to_the_sweep() {
                self.house.sweep().await;
                self.house.quiet().await?;
            }
            self.house.check().await?;
            if self.rng.u8(..3) == 0 {
                let writes = self.house.writes();
                self.house.sweep().await;
                self.house.quiet().await?;
                if self.house.writes() != writes {
                    return Err("an echo: something was written though nobody edits".to_owned());
                }
            }
            self.apps.clear();
            // The loop breaker counts by the hour.
            tokio::time::advance(Duration::from_secs(3_700)).await;
        }
        Ok(())
    }
}

fn described(switches: &serde_json::Value) -> String {
    let all = switches.as_object().into_iter().flatten();
    let set = all.filter(|(_, switch)| switch["value"] != switch["values"][0]);
    set.map(|(name, switch)| format!("{name}={}", switch["value"])).collect::<Vec<_>>().join(" ")
}

/// Lives one life; the error has its story.
fn one(seed: u64, file: Option<&str>) -> Result<Tally, String> {
    told(seed, file).0
}

/// The same with its story, however it ended.
fn told(seed: u64, file: Option<&str>) -> (Result<Tally, String>, String) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut life = Life::new(seed);
        if let Some(path) = file {
            life.house.file = Some(Arc::new(SqliteStore::open(path).await.unwrap()));
        }
        let ended = life.live().await;
        let plant = life.house.shared.plant.lock().unwrap();
        let mut tally = life.tally;
        (tally.edits, tally.calls, tally.writes) =
            (plant.truth.edited, plant.calls + plant.polls, plant.writes);
        (tally.clashes, tally.window, tally.late) =
            (plant.truth.clashes, plant.truth.window, plant.truth.late);
        drop(plant);
        let again = format!("LOCKSTEP_SEED={seed} cargo test --test simulation seeds");
        let story = life.house.story();
        (ended.map(|()| tally).map_err(|why| format!("{story}\nseed {seed}: {why}\nagain: {again}")), story)
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How many tests share the lives, so that they run side by side.
const SHARES: u64 = 10;
/// How many failures a share tells.
const MOST_FAILURES: usize = 3;
/// How many lives there are in an ordinary run.
const LIVES: u64 = 500;

fn share(number_of_it: u64) {
    let seeds: Vec<u64> = match (number("LOCKSTEP_SEED"), number("LOCKSTEP_SEEDS")) {
        (Some(seed), _) if number_of_it == 0 => vec![seed],
        (Some(_), _) => return,
        (None, lives) => {
            let first = number("LOCKSTEP_FIRST_SEED").unwrap_or(0);
            let lives = lives.unwrap_or(LIVES);
            (first..first + lives).filter(|seed| seed % SHARES == number_of_it).collect()
        }
    };
    let started = Instant::now();
    let (mut sum, mut failed) = (Tally::default(), Vec::new());
    for seed in seeds {
        match one(seed, None) {
            Ok(tally) => sum.add(tally),
            Err(why) => {
                println!("{why}");
                failed.push(seed);
                if failed.len() == MOST_FAILURES {
                    println!("the lives after {seed} were not lived");
                    break;
                }
            }
        }
    }
    let took = started.elapsed();
    let an_hour = f64::from(sum.lives) * 3_600.0 / took.as_secs_f64().max(0.001);
    println!("{sum:?} in {took:.1?}: {an_hour:.0} an hour on one core");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}

#[test]
fn a_seed_tells_one_story() {
    for seed in 0..12 {
        let stories = [told(seed, None).1, told(seed, None).1];
        let differ = stories[0].lines().zip(stories[1].lines()).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
    }
}

#[test]
fn so_do_some_on_the_real_store() {
    for seed in 10_000..10_005 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstep.db");
        if let Err(why) = one(seed, path.to_str()) {
            panic!("on the real store: {why}");
        }
    }
}

macro_rules! shares {
    ($($name:ident = $number:expr),+ $(,)?) => { $(#[test] fn $name() { share($number); })+ };
}

shares!(
    lives_0 = 0,
    lives_1 = 1,
    lives_2 = 2,
    lives_3 = 3,
    lives_4 = 4,
    lives_5 = 5,
    lives_6 = 6,
    lives_7 = 7,
    lives_8 = 8,
    lives_9 = 9,
);
