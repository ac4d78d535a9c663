//! What is known about a side that does not let us in, so that nobody asks it in vain.
//!
//! Two things can close the way. A *throttle*: the service said "later", to everybody who counts against the same
//! limit; asking earlier only renews the wait. A *refusal*: our token or role was turned down, for one scope; jobs
//! keep their attempts, and now and then one call is let through to see whether somebody has mended it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::model::Side;
use crate::ports::{ApiObserver, Clock};

/// Role changes take up to ten minutes to arrive: ask soon, then less often.
const FIRST_PROBE: Duration = Duration::from_secs(30);
const LAST_PROBE: Duration = Duration::from_secs(300);

/// "Later", for everybody on the same limit.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<Throttled>,
}

#[derive(Debug, Default)]
struct Throttled {
    until: Option<Instant>,
    /// Refusals without a word about when, in a row.
    strikes: u32,
}

impl Throttle {
    /// Until when, while it holds.
    pub(crate) fn until(&self) -> Option<Instant> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.until.filter(|until| *until > Instant::now())
    }

    /// The service said "later": when, or `None` if it did not say. Returns the wait that now holds.
    pub(crate) fn close(&self, wait: Option<Duration>, first_guess: Duration) -> Duration {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = wait.map(|wait| wait.max(Duration::from_millis(100))).unwrap_or_else(|| {
            // Of many calls in flight together only the first counts as a refusal.
            if state.until.is_none_or(|until| until <= now) {
                state.strikes = (state.strikes + 1).min(8);
            }
            (first_guess * (1 << state.strikes.saturating_sub(1))).min(Duration::from_secs(120))
        });
        let until = state.until.map_or(now + wait, |until| until.max(now + wait));
        state.until = Some(until);
        until - now
    }

    /// A call was served.
    pub(crate) fn calm(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).strikes = 0;
    }
}

/// What a refusal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Everything.
    All,
    /// Writes: reading is allowed.
    Writes,
}

#[derive(Debug)]
struct Refused {
    why: String,
    probe_at: Instant,
    every: Duration,
    probing: bool,
}

#[derive(Debug, Default)]
struct State {
    all: Option<Refused>,
    writes: Option<Refused>,
    /// Until when the service asked everybody on our limit to wait.
    throttled: Option<Instant>,
    reported: Option<(String, Instant)>,
}

impl State {
    fn slot(&mut self, reach: Reach) -> &mut Option<Refused> {
        match reach {
            Reach::All => &mut self.all,
            Reach::Writes => &mut self.writes,
        }
    }
}

/// Refusals of one scope.
pub(crate) struct Gate {
    side: Side,
    scope: String,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn ApiObserver>,
    state: Mutex<State>,
}

/// Permission to call. Dropped without a word (a cancelled call), it gives the probe back.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    probes: Vec<Reach>,
}

/// The way is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shut {
    pub(crate) why: String,
}

impl Gate {
    pub(crate) fn new(
        side: Side,
        scope: String,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn ApiObserver>,
    ) -> Self {
        Self { side, scope, clock, observer, state: Mutex::default() }
    }

    /// May a call be made now? At most one at a time while the gate is closed and a probe is due.
    pub(crate) fn enter(&self, write: bool) -> Result<Pass<'_>, Shut> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let reaches: &[Reach] = if write { &[Reach::All, Reach::Writes] } else { &[Reach::All] };
        for reach in reaches {
            if let Some(refused) = state.slot(*reach)
                && (refused.probing || now < refused.probe_at)
            {
                return Err(Shut { why: refused.why.clone() });
            }
        }
        let mut probes = Vec::new();
        for reach in reaches {
            if let Some(refused) = state.slot(*reach) {
                refused.probing = true;
                probes.push(*reach);
            }
        }
        Ok(Pass { gate: self, probes })
    }

    /// Our token or role was turned down.
    pub(crate) fn refuse(&self, reach: Reach, why: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = state.slot(reach);
        let now = Instant::now();
        match slot {
            // Calls that were already under way when it closed say nothing new.
            Some(refused) if !refused.probing && now < refused.probe_at => {}
            _ => {
                let every = slot.as_ref().map_or(FIRST_PROBE, |refused| (refused.every * 2).min(LAST_PROBE));
                *slot = Some(Refused { why: why.to_owned(), probe_at: now + every, every, probing: false });
            }
        }
        self.report(state);
    }

    /// Why nothing may be called now, if so.
    pub(crate) fn shut(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.all.as_ref().map(|refused| refused.why.clone())
    }

    /// The service let us in, which for writes only a write proves.
    fn open(&self, reaches: &[Reach]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for reach in reaches {
            *state.slot(*reach) = None;
        }
        self.report(state);
    }

    /// Tells the observer of a throttle that holds until then, or of none. The throttle itself is shared
    /// with other scopes and knows no observer.
    pub(crate) fn throttled(&self, until: Option<Instant>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if until != state.throttled {
            state.throttled = until;
            self.report(state);
        }
    }

    fn report(&self, mut state: MutexGuard<'_, State>) {
        let refusal = |refused: &Refused| (refused.why.clone(), refused.probe_at);
        let closed = (state.all.as_ref().map(refusal))
            .or(state.throttled.map(|until| ("the service asked us to wait".to_owned(), until)))
            .or(state.writes.as_ref().map(refusal));
        if closed == state.reported {
            return;
        }
        state.reported.clone_from(&closed);
        let now = Instant::now();
        let at = |until: Instant| {
            let ahead = time::Duration::try_from(until.saturating_duration_since(now)).unwrap_or_default();
            self.clock.now() + ahead
        };
        // The observer is told under the lock, or two changes could reach it in the wrong order. It must be quick.
        let closed = closed.as_ref().map(|(why, until)| (why.as_str(), at(*until)));
        self.observer.gate(self.side, &self.scope, closed);
    }
}

impl Pass<'_> {
    /// Whether a refusal is being tested with this call.
    pub(crate) fn is_probe(&self) -> bool {
        !self.probes.is_empty()
    }

    /// The service let this call in.
    pub(crate) fn passed(mut self) {
        let probes = std::mem::take(&mut self.probes);
        if !probes.is_empty() {
            self.gate.open(&probes);
        }
    }

    /// The service lets us read, though it refused this call.
    pub(crate) fn passed_to_read(&mut self) {
        if self.probes.contains(&Reach::All) {
            self.probes.retain(|reach| *reach != Reach::All);
            self.gate.open(&[Reach::All]);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probes.is_empty() {
            return;
        }
        let mut state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        for reach in &self.probes {
            if let Some(refused) = state.slot(*reach)
                && refused.probing
            {
                // Nothing was learnt; the next in line may try, but not at once.
                refused.probing = false;
                refused.probe_at = Instant::now() + Duration::from_secs(5);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::call::testing::{FixedClock, Notes};

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_probed_by_one_call_at_growing_intervals() {
        let notes = Arc::new(Notes::default());
        let gate = Gate::new(Side::Sentinel, "w".into(), Arc::new(FixedClock::default()), notes.clone());
        gate.enter(true).unwrap_or_else(|_| panic!("open at first")).passed();
        assert!(notes.gates().is_empty(), "nothing changed");
        gate.refuse(Reach::All, "no role");
        gate.refuse(Reach::All, "no role, says a straggler");
        for wait in [30, 60, 120, 240, 300, 300] {
            assert_eq!(gate.enter(false).err(), Some(Shut { why: "no role".into() }));
            tokio::time::advance(Duration::from_secs(wait - 1)).await;
            assert!(gate.enter(false).is_err(), "{wait}");
            tokio::time::advance(Duration::from_secs(1)).await;
            let probe = gate.enter(false).unwrap_or_else(|_| panic!("a probe is due after {wait}"));
            assert!(probe.is_probe() && gate.enter(false).is_err(), "one at a time");
            gate.refuse(Reach::All, "no role");
        }
        tokio::time::advance(Duration::from_secs(300)).await;
        drop(gate.enter(false));
        tokio::time::advance(Duration::from_secs(5)).await;
        gate.enter(false).unwrap_or_else(|_| panic!("a cancelled probe is given back")).passed();
        assert!(gate.enter(true).is_ok_and(|pass| !pass.is_probe()));
        assert_eq!(notes.gates().first().map(String::as_str), Some("closed: no role"));
        assert_eq!(notes.gates().last().map(String::as_str), Some("open"));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_writes_leave_reads_alone() {
        let gate = Gate::new(
            Side::Defender,
            "t".into(),
            Arc::new(FixedClock::default()),
            Arc::new(Notes::default()),
        );
        gate.refuse(Reach::Writes, "read only");
        assert!(gate.enter(false).is_ok() && gate.enter(true).is_err());
        tokio::time::advance(Duration::from_secs(30)).await;
        gate.enter(true).unwrap_or_else(|_| panic!("due")).passed();
        assert!(gate.enter(true).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttle_holds_as_told_and_guesses_growing_waits_when_not_told() {
        let throttle = Throttle::default();
        assert_eq!(throttle.close(Some(Duration::from_secs(12)), Duration::from_secs(5)).as_secs(), 12);
        assert_eq!(throttle.close(Some(Duration::from_secs(2)), Duration::from_secs(5)).as_secs(), 12);
        assert_eq!(throttle.until(), Some(Instant::now() + Duration::from_secs(12)));
        for guess in [5, 10, 20] {
            tokio::time::advance(Duration::from_secs(60)).await;
            assert_eq!(throttle.until(), None);
            assert_eq!(throttle.close(None, Duration::from_secs(5)), Duration::from_secs(guess));
            assert_eq!(throttle.close(None, Duration::from_secs(5)), Duration::from_secs(guess), "in flight");
        }
        throttle.calm();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(throttle.close(None, Duration::from_secs(5)), Duration::from_secs(5));
    }
}
