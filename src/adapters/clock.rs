//! The system's clock and a generator of chance, for programs that are not tests.

use time::OffsetDateTime;

use crate::ports::{Clock, Dice};

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// `fastrand`'s per-thread generator: good for jitter, not for secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct FastrandDice;

impl Dice for FastrandDice {
    fn roll(&self) -> f64 {
        fastrand::f64()
    }
}
