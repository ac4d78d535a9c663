//! The way into the queue: commit the hints, then wake a worker. Every door ends here, so the promise "a hint answered
//! with 2xx is on disk" is kept in one place.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::ports::{Clock, Delivery, Hint, Remembered, Store, StoreError};

/// How long a door waits for a commit. Graph counts an answer as slow after three seconds (`graph.md` §13.5): better a
/// 503 in time, which is repeated, than a 202 that comes too late to be heard.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Where hints go. Cloning shares it.
#[derive(Clone)]
pub struct Inbox {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    wake: Arc<Notify>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl Inbox {
    /// `wake` is told once per call that stored something; it keeps one permit, so a worker that was busy meanwhile
    /// looks again at once.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, wake: Arc<Notify>) -> Self {
        Self { store, clock, wake }
    }

    /// What time it is for the doors.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Commits hints, and the delivery's id with them. `Unavailable` when the store takes longer than [`PATIENCE`]: the
    /// commit may still come, which does no harm, since the sender's repetition then stores nothing or the same again.
    pub async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
    ) -> Result<Remembered, StoreError> {
        if hints.is_empty() && delivery.is_none() {
            return Ok(Remembered::New);
        }
        let remembered = in_time(self.store.remember(hints, delivery, self.clock.now())).await?;
        if remembered == Remembered::New {
            self.wake.notify_one();
        }
        Ok(remembered)
    }

    /// Commits a named value, for events that are about no incident (the lifecycle of a subscription).
    pub async fn note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        in_time(self.store.set_value(name, value)).await?;
        self.wake.notify_one();
        Ok(())
    }
}

async fn in_time<T>(commit: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(PATIENCE, commit).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(format!("no commit within {PATIENCE:?}"))),
    }
}
