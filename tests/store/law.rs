//! The law: through any life of the queue, a store answers as a few lines over a map do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lockstep::ports::{BACKGROUND_SHARE, Held, Hint, JobLease, QueueStats, Settlement, Store, Subject};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use time::{Duration, OffsetDateTime};

use crate::contract::{at, hint_of, subject};
use crate::place::Place;

/// One thing that is done to a store. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Deed {
    Remember(Vec<(u8, u8)>),
    Lease { most: usize, seconds: i64 },
    Done { lease: usize, rest: i64 },
    Again { lease: usize, wait: i64, counts: bool },
    Look { lease: usize, wait: i64 },
    Park { lease: usize },
    Unpark(u8),
    Pass(i64),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => prop::collection::vec((0..6_u8, 0..4_u8), 1..4).prop_map(Deed::Remember),
        3 => (0..4_usize, 1..20_i64).prop_map(|(most, seconds)| Deed::Lease { most, seconds }),
        3 => (0..8_usize, 0..10_i64).prop_map(|(lease, rest)| Deed::Done { lease, rest }),
        1 => (0..8_usize, 0..10_i64, any::<bool>())
            .prop_map(|(lease, wait, counts)| Deed::Again { lease, wait, counts }),
        1 => (0..8_usize, 0..10_i64).prop_map(|(lease, wait)| Deed::Look { lease, wait }),
        1 => (0..8_usize).prop_map(|lease| Deed::Park { lease }),
        1 => (0..6_u8).prop_map(Deed::Unpark),
        2 => prop_oneof![0..12_i64, Just(3_700_i64)].prop_map(Deed::Pass),
    ]
}

/// Six incidents in three scopes.
fn about(number: u8) -> Subject {
    subject(["a", "b", "c"][usize::from(number % 3)], &number.to_string())
}

fn hint(subject: u8, version: u8) -> Hint {
    let versions = [None, Some("v1"), Some("v2"), Some("v3")];
    let (about, source) = (about(subject), ["poll", "sweep", "door", "poll"][usize::from(version)]);
    hint_of(&about.scope, &about.native_id, versions[usize::from(version)], source)
}

/// What is kept of a hint: its version, when it came, and whether it is live.
type Told = (Option<String>, OffsetDateTime, bool);

#[derive(Default)]
struct Row {
    hints: Vec<Told>,
    sources: BTreeSet<String>,
    late: Vec<Told>,
    late_sources: BTreeSet<String>,
    lease: Option<uuid::Uuid>,
    ready_at: Option<OffsetDateTime>,
    served_at: Option<OffsetDateTime>,
    attempts: u32,
    /// It only waits to be looked at again.
    wakes: bool,
    /// A person unparked it, and it was not served since.
    asked_for: bool,
    parked: Option<(OffsetDateTime, Option<String>)>,
}

impl Row {
    fn is_waiting(&self) -> bool {
        self.parked.is_none() && !(self.hints.is_empty() && self.late.is_empty())
    }

    fn is_live(&self) -> bool {
        self.asked_for || self.hints.iter().chain(&self.late).any(|hint| hint.2)
    }

    /// When the first hint that it has yet to serve came in.
    fn first(&self) -> Option<OffsetDateTime> {
        self.hints.iter().chain(&self.late).map(|hint| hint.1).next()
    }

    /// The one version that all named.
    fn version(&self) -> Option<String> {
        let first = self.hints.first()?.0.clone();
        first.filter(|first| self.hints.iter().all(|hint| hint.0.as_ref() == Some(first)))
    }

    fn remember(&mut self, hint: Hint, now: OffsetDateTime) {
        if let Some((since, with)) = &self.parked {
            let news = match &hint.version {
                None => now - *since > Duration::hours(1),
                version => version != with,
            };
            if news {
                self.parked = None;
            }
            self.attempts = 0;
            self.ready_at = Some(now);
        } else if self.wakes {
            self.ready_at = Some(self.ready_at.map_or(now, |at| at.min(now)));
        } else if self.hints.is_empty() && self.late.is_empty() {
            self.ready_at = Some(self.ready_at.map_or(now, |rest| rest.max(now)));
        }
        // What comes during a lease is kept apart, for it outlives a success; else both come to the same.
        let live = !hint.background();
        self.late.push((hint.version, now, live));
        self.late_sources.insert(hint.source);
    }

    fn merge(&mut self) {
        self.hints.append(&mut self.late);
        self.sources.append(&mut self.late_sources);
    }
}

#[derive(Default)]
struct Model {
    rows: BTreeMap<Subject, Row>,
    /// Of live rows and of background rows, by scope.
    turns: HashMap<(bool, String), u64>,
    turn: u64,
    /// Live rows leased since the background had its share.
    since: usize,
}

/// What a lease must say, save for its token and the value of its counter.
type Expected = (Subject, Option<String>, BTreeSet<String>, i64, Option<OffsetDateTime>, u32, OffsetDateTime);

impl Model {
    /// The rows of one kind that are due, in the order in which they are leased.
    fn in_turns(&self, live: bool, now: OffsetDateTime) -> Vec<Subject> {
        let mut scopes: BTreeMap<String, Vec<Subject>> = BTreeMap::new();
        for (subject, row) in &self.rows {
            if row.is_waiting() && row.is_live() == live && row.ready_at.is_some_and(|ready| ready <= now) {
                scopes.entry(subject.scope.clone()).or_default().push(subject.clone());
            }
        }
        let mut scopes: Vec<_> = scopes.into_iter().collect();
        for (_, subjects) in &mut scopes {
            subjects.sort_by_key(|subject| (self.rows[subject].ready_at, subject.native_id.clone()));
        }
        scopes.sort_by_key(|(scope, subjects)| {
            let turn = self.turns.get(&(live, scope.clone())).copied().unwrap_or(0);
            (turn, self.rows[&subjects[0]].first(), scope.clone())
        });
        let deepest = scopes.iter().map(|(_, subjects)| subjects.len()).max().unwrap_or(0);
        let round = |round| scopes.iter().filter_map(move |(_, all)| all.get(round).cloned());
        (0..deepest).flat_map(round).collect()
    }

    fn lease(&mut self, most: usize, now: OffsetDateTime) -> Vec<Expected> {
        let (live, background) = (self.in_turns(true, now), self.in_turns(false, now));
        let owed = ((self.since + most) / BACKGROUND_SHARE).min(most);
        let (mut chosen, rest) = (background.clone(), background.get(owed..).unwrap_or_default().to_vec());
        chosen.truncate(owed);
        chosen.extend(live.iter().cloned().chain(rest));
        chosen.truncate(most);
        let of_live = chosen.iter().filter(|subject| live.contains(subject)).count();
        if !chosen.is_empty() {
            self.since = if owed > 0 || of_live < chosen.len() { 0 } else { self.since + of_live };
        }
        chosen
            .into_iter()
            .map(|subject| {
                self.turn += 1;
                let row = self.rows.get_mut(&subject).expect("just found");
                self.turns.insert((row.is_live(), subject.scope.clone()), self.turn);
                row.attempts += u32::from(row.lease.is_some());
                let first = row.first().expect("it waits");
                row.merge();
                row.wakes = false;
                (
                    subject,
                    row.version(),
                    row.sources.clone(),
                    row.hints.len() as i64,
                    row.served_at,
                    row.attempts,
                    first,
                )
            })
            .collect()
    }

    fn settle(&mut self, lease: &JobLease, settlement: &Settlement, now: OffsetDateTime) -> Held {
        let Some(row) = self.rows.get_mut(&lease.subject).filter(|row| row.lease == Some(lease.token)) else {
            return Held::No;
        };
        row.lease = None;
        match settlement {
            Settlement::Done { rest_until } => {
                row.hints.clear();
                row.sources.clear();
                row.asked_for = false;
                (row.attempts, row.served_at, row.ready_at) = (0, Some(now), Some(*rest_until));
            }
            Settlement::Again { not_before, counts } => {
                row.attempts += u32::from(*counts);
                row.ready_at = Some(*not_before);
            }
            Settlement::Look { at } => {
                (row.attempts, row.served_at, row.wakes) = (0, Some(now), true);
                row.ready_at = Some(if row.late.is_empty() { *at } else { now.min(*at) });
            }
            Settlement::Park { .. } => {
                let with = row.version();
                row.ready_at = Some(now);
                if row.late.iter().any(|late| late.0.is_some() && late.0 != with) {
                    row.attempts = 0;
                } else {
                    row.parked = Some((now, with));
                }
            }
        }
        Held::Yes
    }

    fn stats(&self) -> QueueStats {
        let waiting = || self.rows.values().filter(|row| row.is_waiting());
        let of = |live| waiting().filter(move |row| row.is_live() == live);
        let oldest =
            |live| of(live).flat_map(|row| row.hints.iter().chain(&row.late)).map(|hint| hint.1).min();
        QueueStats {
            waiting: waiting().count() as i64,
            background: of(false).count() as i64,
            parked: self.rows.values().filter(|row| row.parked.is_some()).count() as i64,
            oldest: oldest(true),
            oldest_background: oldest(false),
        }
    }
}

async fn live(store: Arc<dyn Store>, deeds: &[Deed]) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    let mut leases: Vec<JobLease> = Vec::new();
    let mut now = at(0);
    for deed in deeds {
        match deed {
            Deed::Pass(seconds) => now += Duration::seconds(*seconds),
            Deed::Remember(hints) => {
                let hints: Vec<Hint> =
                    hints.iter().map(|(subject, version)| hint(*subject, *version)).collect();
                for hint in &hints {
                    model.rows.entry(hint.subject.clone()).or_default().remember(hint.clone(), now);
                }
                store.remember(hints, None, now).await.expect("it works");
            }
            Deed::Lease { most, seconds } => {
                let until = now + Duration::seconds(*seconds);
                let expected = model.lease(*most, now);
                let got = store.lease_jobs(*most, &[], now, until).await.expect("it works");
                let told: Vec<Expected> = got
                    .iter()
                    .map(|lease| {
                        (
                            lease.subject.clone(),
                            lease.version.clone(),
                            lease.sources.split(',').map(str::to_owned).collect(),
                            lease.hints,
                            lease.served_at,
                            lease.attempts,
                            lease.first_hint_at,
                        )
                    })
                    .collect();
                prop_assert_eq!(told, expected);
                for lease in &got {
                    let row = model.rows.get_mut(&lease.subject).expect("expected");
                    (row.lease, row.ready_at) = (Some(lease.token), Some(until));
                }
                leases.extend(got);
            }
            Deed::Done { lease, .. }
            | Deed::Again { lease, .. }
            | Deed::Look { lease, .. }
            | Deed::Park { lease } => {
                // The newest first, and often one that is settled or lost by now.
                let Some(lease) = leases.iter().rev().nth(*lease).cloned() else { continue };
                let settlement = match deed {
                    Deed::Done { rest, .. } => {
                        Settlement::Done { rest_until: now + Duration::seconds(*rest) }
                    }
                    Deed::Again { wait, counts, .. } => {
                        Settlement::Again { not_before: now + Duration::seconds(*wait), counts: *counts }
                    }
                    Deed::Look { wait, .. } => Settlement::Look { at: now + Duration::seconds(*wait) },
                    _ => Settlement::Park { reason: "so".to_owned() },
                };
                let expected = model.settle(&lease, &settlement, now);
                prop_assert_eq!(store.settle(&lease, settlement, now).await.expect("it works"), expected);
            }
            Deed::Unpark(number) => {
                let subject = about(*number);
                let row = model.rows.get_mut(&subject).filter(|row| row.parked.is_some());
                let was_parked = row.is_some();
                if let Some(row) = row {
                    (row.parked, row.attempts, row.ready_at) = (None, 0, Some(now));
                    row.asked_for = true;
                }
                prop_assert_eq!(store.unpark(&subject, now).await.expect("it works"), was_parked);
            }
        }
        prop_assert_eq!(store.queue_stats().await.expect("it works"), model.stats(), "after {:?}", deed);
    }
    Ok(())
}

pub(crate) async fn a_random_life_goes_as_the_model_says(place: Place) {
    // From a fixed seed, so that a run that fails here fails everywhere.
    let config = Config { cases: 40, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let runtime = tokio::runtime::Handle::current();
    let lives = prop::collection::vec(deed(), 1..80);
    tokio::task::spawn_blocking(move || {
        let outcome = runner.run(&lives, |deeds| {
            runtime.block_on(async {
                // A place of its own for each life.
                let place = place.another().await;
                let outcome = live(place.open().await, &deeds).await;
                place.forget().await;
                outcome
            })
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    })
    .await
    .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
}
