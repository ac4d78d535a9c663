//! Waiting for a side that says "later": for those who read long lists and are in no hurry.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::failure::{Class, Failure};

/// The longest wait before a side is asked again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);
/// How often in a row a call may stumble.
const MOST_STUMBLES: u32 = 4;

/// How long to wait before a failed call is made again; `None` when that would be in vain. `stumbles` is how often it
/// has failed for no named time in a row.
pub fn pause(failure: &Failure, stumbles: u32) -> Option<Duration> {
    match failure.class {
        Class::Retry { wait: Some(wait) } => Some(wait.clamp(Duration::from_secs(1), LONGEST_WAIT)),
        Class::Retry { wait: None } | Class::Conflict => {
            (stumbles < MOST_STUMBLES).then(|| Duration::from_secs(2 << stumbles))
        }
        Class::Auth | Class::Permanent => None,
    }
}

/// Who hears of each wait: why, and how long.
pub type Told = Arc<dyn Fn(&Failure, Duration) + Send + Sync>;

/// Makes a call until it is answered, or cannot be.
#[derive(Clone)]
pub struct Patience {
    /// Who hears of each wait.
    pub told: Told,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patience")
    }
}

impl Patience {
    /// Tells nobody.
    pub fn silent() -> Self {
        Self { told: Arc::new(|_, _| {}) }
    }

    /// Makes the call.
    pub async fn of<T>(&self, mut call: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut stumbles = 0;
        loop {
            let failure = match call().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(wait) = pause(&failure, stumbles) else { return Err(failure) };
            stumbles += u32::from(!matches!(failure.class, Class::Retry { wait: Some(_) }));
            (self.told)(&failure, wait);
            tokio::time::sleep(wait).await;
        }
    }
}
