//! What an application lives by: time that leaps from event to event, and a fuse that ends it at a chosen await.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use lockstep::ports::Clock;
use time::OffsetDateTime;

/// Follows tokio's paused time.
pub(crate) struct VirtualClock {
    start: tokio::time::Instant,
}

impl VirtualClock {
    pub(crate) fn new() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000) + self.start.elapsed()
    }
}

/// Blows at a chosen port call: from then on nothing that this application asks is ever answered.
pub(crate) struct Fuse {
    left: AtomicI64,
    dead: AtomicBool,
}

impl Fuse {
    pub(crate) fn new(calls: i64) -> Self {
        Self { left: AtomicI64::new(calls), dead: AtomicBool::new(false) }
    }

    /// Lets a living application live on. False when it is dead.
    pub(crate) fn mend(&self) -> bool {
        self.left.store(i64::MAX, Ordering::SeqCst);
        !self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Ends the application here and now.
    pub(crate) async fn blow(&self) {
        self.dead.store(true, Ordering::SeqCst);
        std::future::pending::<()>().await;
    }

    pub(crate) async fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.dead.store(true, Ordering::SeqCst);
        }
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}
