//! What the running process knows beside the store, for people who ask why nothing was written: how the last run of each
//! link ended, and which sides the workers leave alone. Kept in memory: a restart forgets it, and another replica has
//! its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::failure::{Class, Failure};
use crate::domain::model::{LinkKey, Side};
use crate::ports::Scope;

/// For how many links the last run is remembered.
const MOST_LINKS: usize = 20_000;

/// How a link's last run ended. Runs that end alike are told once, with their number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// `known`, `in-step`, `written`, `nothing`, `held`, `parked`, `busy` or `failed`.
    pub end: &'static str,
    /// Why it ended so, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of a failure: its side, its short constant, and what it means for the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<LastError>,
    /// How many runs in a row have ended like this.
    pub times: u64,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// A failure, as far as people are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// Which system.
    pub side: Option<Side>,
    /// `retry`, `conflict`, `auth` or `permanent`.
    pub class: &'static str,
    /// A short constant, as in the metrics.
    pub code: String,
}

impl LastError {
    fn of(failure: &Failure) -> Self {
        let class = match failure.class {
            Class::Retry { .. } => "retry",
            Class::Conflict => "conflict",
            Class::Auth => "auth",
            Class::Permanent => "permanent",
        };
        Self { side: failure.side, class, code: failure.code.clone() }
    }
}

/// A side whose rows the workers do not look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// The failure that said so.
    pub why: String,
}

#[derive(Default)]
struct Inner {
    /// Counts runs: whose number is old is forgotten first.
    turn: u64,
    runs: HashMap<LinkKey, (u64, LastRun)>,
    alone: HashMap<Scope, LeftAlone>,
}

/// The memory. Cloning shares it.
#[derive(Clone, Default)]
pub struct Lately(Arc<Mutex<Inner>>);

impl fmt::Debug for Lately {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lately")
    }
}

impl Lately {
    /// A run ended.
    pub(crate) fn ran(&self, link: &LinkKey, now: OffsetDateTime, end: &'static str, why: Option<&str>) {
        self.note(
            link,
            LastRun { at: now, end, why: why.map(str::to_owned), error: None, times: 1, since: now },
        );
    }

    /// A run failed.
    pub(crate) fn failed(&self, link: &LinkKey, now: OffsetDateTime, failure: &Failure) {
        let (why, error) = (Some(failure.message.clone()), Some(LastError::of(failure)));
        self.note(link, LastRun { at: now, end: "failed", why, error, times: 1, since: now });
    }

    fn note(&self, link: &LinkKey, mut run: LastRun) {
        let mut inner = self.lock();
        inner.turn += 1;
        let turn = inner.turn;
        if let Some((last_turn, last)) = inner.runs.get_mut(link) {
            let code = |run: &LastRun| run.error.as_ref().map(|error| error.code.clone());
            // What failed alike may have said so in other words: request ids differ.
            if last.end == run.end && code(last) == code(&run) && (last.why == run.why || run.error.is_some())
            {
                (run.times, run.since) = (last.times + 1, last.since);
            }
            (*last_turn, *last) = (turn, run);
            return;
        }
        inner.runs.insert(link.clone(), (turn, run));
        if inner.runs.len() > MOST_LINKS {
            inner.runs.retain(|_, (of, _)| *of + MOST_LINKS as u64 / 2 > turn);
        }
    }

    /// How the link's last run in this process ended.
    pub fn last(&self, link: &LinkKey) -> Option<LastRun> {
        self.lock().runs.get(link).map(|(_, run)| run.clone())
    }

    /// A side said that it takes nothing before some time.
    pub(crate) fn leave_alone(&self, scope: Scope, until: OffsetDateTime, why: &str) {
        let mut inner = self.lock();
        let alone = inner.alone.entry(scope).or_insert_with(|| LeftAlone { until, why: why.to_owned() });
        if until >= alone.until {
            *alone = LeftAlone { until, why: why.to_owned() };
        }
    }

    /// Whether a side is left alone at this time.
    pub fn left_alone(&self, side: Side, scope: &str, now: OffsetDateTime) -> Option<LeftAlone> {
        let inner = self.lock();
        inner.alone.get(&(side, scope.to_owned())).filter(|alone| alone.until > now).cloned()
    }

    /// All that are.
    pub(crate) fn all_left_alone(&self, now: OffsetDateTime) -> Vec<Scope> {
        let mut inner = self.lock();
        inner.alone.retain(|_, alone| alone.until > now);
        inner.alone.keys().cloned().collect()
    }

    /// Each fact is whole by itself, whatever panicked between two of them.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn link(id: usize) -> LinkKey {
        LinkKey { tenant_id: "t".into(), incident_id: id.to_string(), workspace: "/w".into() }
    }

    #[test]
    fn runs_that_end_alike_are_one_with_their_number() {
        let (lately, now) = (Lately::default(), datetime!(2026-03-04 10:00 UTC));
        for minute in 0..3 {
            lately.ran(
                &link(1),
                now + time::Duration::minutes(minute),
                "nothing",
                Some("not for this route"),
            );
        }
        let last = lately.last(&link(1)).expect("noted");
        assert_eq!((last.times, last.since, last.at - last.since), (3, now, time::Duration::minutes(2)));
        lately.ran(&link(1), now, "written", None);
        assert_eq!(lately.last(&link(1)).map(|last| last.times), Some(1));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let (lately, now) = (Lately::default(), datetime!(2026-03-04 10:00 UTC));
        for id in 0..=MOST_LINKS {
            lately.ran(&link(id), now, "known", None);
        }
        assert_eq!(lately.last(&link(0)), None);
        assert!(lately.last(&link(MOST_LINKS)).is_some());
        assert!(lately.lock().runs.len() <= MOST_LINKS);
    }
}
