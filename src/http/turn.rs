//! One request's turn at a door: how much of its body is held in memory, and when the body had come. Doors read bodies
//! deep inside; what they tell the frame around them goes through here, not through every signature between.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::error::Refused;

/// How long a notification waits for its place among those that are handled at once. With what follows it stays well
/// under the three seconds after which Graph takes an answer for slow (`graph.md` §13.5).
const PLACE_TIME: Duration = Duration::from_millis(250);

tokio::task_local! {
    /// The turn that runs now.
    pub(super) static TURN: Turn;
}

/// The bytes of all bodies that are held at once.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What is known of a request while it is handled. Ending it gives its bytes back.
#[derive(Debug, Default)]
pub(super) struct Turn {
    budget: RefCell<Option<Arc<Budget>>>,
    held: Cell<usize>,
    body_is_here: Cell<bool>,
}

impl Turn {
    /// Bodies of this turn count against a budget.
    pub(super) fn charge(budget: &Arc<Budget>) {
        let _ = TURN.try_with(|turn| turn.budget.replace(Some(budget.clone())));
    }

    /// Asks for room for so many more bytes.
    pub(super) fn hold(bytes: usize) -> Result<(), Refused> {
        // Outside of a turn nothing is counted: that is a test of a reader alone.
        TURN.try_with(|turn| match &*turn.budget.borrow() {
            Some(budget) if !budget.take(bytes) => Err(Refused::BUSY),
            Some(_) => {
                turn.held.set(turn.held.get() + bytes);
                Ok(())
            }
            None => Ok(()),
        })
        .unwrap_or(Ok(()))
    }

    /// The sender has done its part: from now on, it waits for us.
    pub(super) fn body_is_here() {
        let _ = TURN.try_with(|turn| turn.body_is_here.set(true));
    }

    /// Whether the sender has done its part.
    pub(super) fn waits_for_us() -> bool {
        TURN.try_with(|turn| turn.body_is_here.get()).unwrap_or(false)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.get_mut() {
            budget.give_back(self.held.get());
        }
    }
}

/// Places for notifications that are handled at once, and for a few that wait for one.
pub(super) struct Room {
    places: Semaphore,
    waiting: AtomicUsize,
    most_waiting: usize,
}

impl Room {
    /// As many may wait as may be inside.
    pub(super) fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), waiting: AtomicUsize::new(0), most_waiting: places }
    }

    /// A place, now or soon.
    pub(super) async fn enter(&self) -> Result<SemaphorePermit<'_>, Refused> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let _waits = Waits::among(&self.waiting, self.most_waiting).ok_or(Refused::BUSY)?;
        match timeout(PLACE_TIME, self.places.acquire()).await {
            // Never closed: acquiring does not fail.
            Ok(Ok(place)) => Ok(place),
            _ => Err(Refused::BUSY),
        }
    }
}

struct Waits<'r>(&'r AtomicUsize);

impl<'r> Waits<'r> {
    fn among(waiting: &'r AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |count| (count < most).then_some(count + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self(waiting))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_given_back_when_the_turn_ends() {
        let budget = Budget::new(10);
        TURN.scope(Turn::default(), async {
            Turn::charge(&budget);
            assert_eq!(Turn::hold(6), Ok(()));
            assert_eq!(Turn::hold(5), Err(Refused::BUSY));
            assert_eq!(Turn::hold(4), Ok(()));
        })
        .await;
        assert_eq!(budget.left.load(Ordering::Relaxed), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn few_wait_for_a_place_and_none_for_long() {
        let room = Room::new(1);
        let inside = room.enter().await.unwrap();
        let (first, second) = tokio::join!(room.enter(), room.enter());
        assert!(
            matches!((first, second), (Err(Refused::BUSY), Err(Refused::BUSY))),
            "the place was never free"
        );
        let (next, _) = tokio::join!(room.enter(), async { drop(inside) });
        assert!(next.is_ok(), "a place that becomes free is taken");
        assert_eq!(room.waiting.load(Ordering::Relaxed), 0);
    }
}
