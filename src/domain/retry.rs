//! What to do with a job that failed. A table, not a loop: the worker asks once and settles.

use std::time::Duration;

use crate::domain::failure::Class;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after this long.
    Again {
        /// From now.
        delay: Duration,
        /// Whether it counts as one of the job's attempts.
        counts: bool,
    },
    /// Put it aside; a person must look.
    Park,
}

/// How many failures in a row a job may have before it is put aside. With the back-off below that is about two hours.
pub const MOST_ATTEMPTS: u32 = 14;
/// The first back-off; it doubles up to [`LONGEST_BACKOFF`].
pub const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest back-off between two attempts.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);
/// How soon a job is tried again after a conflict: the other writer is done, we only need to read again.
pub const CONFLICT_DELAY: Duration = Duration::from_millis(200);
/// How many conflicts in a row are tried again quickly before they are treated like trouble of the side.
pub const QUICK_CONFLICTS: u32 = 5;
/// How soon a job of a held side is looked at again. The side's probe lifts the hold, not the job.
pub const HELD_DELAY: Duration = Duration::from_secs(15);

/// Decides. `attempts` is how many failures the job already has; `roll` is from 0 (included) to 1 (excluded) and
/// spreads the back-off between half and the whole of it. A wait that the service asked for is never shortened.
pub fn decide(class: Class, attempts: u32, roll: f64) -> Verdict {
    match class {
        Class::Permanent => Verdict::Park,
        Class::Auth => Verdict::Again { delay: HELD_DELAY, counts: false },
        Class::Conflict if attempts < QUICK_CONFLICTS => {
            Verdict::Again { delay: CONFLICT_DELAY.mul_f64(0.5 + roll), counts: true }
        }
        Class::Conflict | Class::Retry { wait: None } if attempts >= MOST_ATTEMPTS => Verdict::Park,
        Class::Conflict | Class::Retry { wait: None } => {
            Verdict::Again { delay: backoff(attempts, roll), counts: true }
        }
        // The service said how long: it is alive and knows us, so the job keeps its attempts. A little is added so
        // that not everything that waited comes back in the same instant.
        Class::Retry { wait: Some(wait) } => {
            Verdict::Again { delay: wait + Duration::from_millis((roll * 500.0) as u64), counts: false }
        }
    }
}

fn backoff(attempts: u32, roll: f64) -> Duration {
    let whole = FIRST_BACKOFF.saturating_mul(1u32.checked_shl(attempts.min(20)).unwrap_or(u32::MAX));
    whole.min(LONGEST_BACKOFF).mul_f64(0.5 + roll / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_asked_for_is_never_shortened_and_costs_no_attempt() {
        for attempts in [0, 5, 100] {
            for roll in [0.0, 0.5, 0.99] {
                let wait = Duration::from_secs(37);
                let Verdict::Again { delay, counts } =
                    decide(Class::Retry { wait: Some(wait) }, attempts, roll)
                else {
                    panic!("parked a throttled job");
                };
                assert!(delay >= wait && !counts);
            }
        }
    }

    #[test]
    fn backoff_grows_to_a_ceiling_and_ends() {
        let mut last = Duration::ZERO;
        for attempts in 0..MOST_ATTEMPTS {
            let Verdict::Again { delay, counts } = decide(Class::Retry { wait: None }, attempts, 0.5) else {
                panic!("parked too early")
            };
            assert!(counts && delay >= last && delay <= LONGEST_BACKOFF);
            last = delay;
        }
        assert_eq!(decide(Class::Retry { wait: None }, MOST_ATTEMPTS, 0.5), Verdict::Park);
        assert_eq!(decide(Class::Conflict, MOST_ATTEMPTS, 0.5), Verdict::Park);
    }

    #[test]
    fn a_refused_token_never_costs_the_job_an_attempt() {
        assert_eq!(decide(Class::Auth, 99, 0.0), Verdict::Again { delay: HELD_DELAY, counts: false });
        assert_eq!(decide(Class::Permanent, 0, 0.0), Verdict::Park);
    }
}
