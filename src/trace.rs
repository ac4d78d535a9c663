//! Which calls one run made, for the journal: with the services' request ids a person can ask Microsoft about each. The
//! run collects, the adapters note; between them lies every port, so this travels with the task and not in arguments.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::model::Side;

/// One call as the journal keeps it: no address, no body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TracedCall {
    /// When it was sent.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Which system.
    pub side: Side,
    /// What was asked, in a short constant such as `incident-get`.
    pub operation: &'static str,
    /// The answer's status; `None` when there was no answer.
    pub status: Option<u16>,
    /// The request ids by the names of their headers: Graph's `request-id` and `client-request-id`, ARM's
    /// `x-ms-request-id` and `x-ms-correlation-request-id`, and the one that we sent.
    pub ids: BTreeMap<&'static str, String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

tokio::task_local! {
    static CALLS: RefCell<Vec<TracedCall>>;
}

/// More calls than one run makes.
const MOST: usize = 200;

/// Runs something and collects the calls that it makes.
pub async fn collect<T>(work: impl Future<Output = T>) -> T {
    CALLS.scope(RefCell::default(), work).await
}

/// Takes what was collected so far. Empty outside [`collect`].
pub fn taken() -> Vec<TracedCall> {
    CALLS.try_with(|calls| calls.take()).unwrap_or_default()
}

/// Notes a call. Outside [`collect`] nobody asks for it.
pub fn note(call: TracedCall) {
    let _ = CALLS.try_with(|calls| {
        let mut calls = calls.borrow_mut();
        if calls.len() < MOST {
            calls.push(call);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_collected_by_the_run_that_makes_them() {
        let call = |status| TracedCall {
            at: OffsetDateTime::UNIX_EPOCH,
            side: Side::Defender,
            operation: "incident-get",
            status,
            ids: BTreeMap::from([("request-id", "4711".to_owned())]),
            took_ms: 1,
        };
        note(call(None));
        let collected = collect(async {
            note(call(Some(200)));
            tokio::task::yield_now().await;
            note(call(Some(409)));
            taken()
        });
        let other = collect(async {
            tokio::task::yield_now().await;
            taken()
        });
        let (collected, other) = tokio::join!(collected, other);
        assert_eq!(collected.iter().map(|call| call.status).collect::<Vec<_>>(), [Some(200), Some(409)]);
        assert!(other.is_empty());
        let kept = serde_json::to_value(&collected[0]).expect("plain values");
        assert_eq!(kept["ids"]["request-id"], "4711");
        assert_eq!(kept["at"], "1970-01-01T00:00:00Z");
    }
}
