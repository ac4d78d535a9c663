//! What a failure means, said once. Adapters turn every refusal, timeout and broken answer into one of four words;
//! above them nobody looks at a status code or a message.

use std::fmt;
use std::time::Duration;

use crate::domain::model::Side;

/// The four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The side is in trouble, not the job: wait at least this long, then try again.
    Retry {
        /// What the service asked for (`Retry-After`), if it did.
        wait: Option<Duration>,
    },
    /// Somebody was quicker: read again, plan again.
    Conflict,
    /// Our token or role was refused: hold the side and probe it; the job is innocent.
    Auth,
    /// This request will never be accepted as it is: park it where a person will see it.
    Permanent,
}

impl Class {
    /// The classification of an HTTP answer that is not a success.
    ///
    /// 409 is Sentinel's answer to a stale etag, 412 the generic one (`sentinel.md` §4); 501 is not worth a retry.
    pub fn of_status(status: u16, wait: Option<Duration>) -> Self {
        match status {
            401 | 403 => Class::Auth,
            409 | 412 => Class::Conflict,
            408 | 425 | 429 => Class::Retry { wait },
            501 => Class::Permanent,
            500..=599 => Class::Retry { wait },
            _ => Class::Permanent,
        }
    }
}

/// Whether a refused or unanswered write may have taken effect all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The service answered that it did nothing (4xx, or we never sent it).
    None,
    /// No answer, or a 5xx: it may have landed, or may yet.
    Unknown,
}

/// One failed call, in the words that the worker, the journal and a person need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub class: Class,
    /// Which system.
    pub side: Option<Side>,
    /// A short constant for metrics: `throttled`, `timeout`, `status-400`, `budget`, `stale-read`.
    pub code: String,
    /// One sentence for a person. Never a body, a token or a secret.
    pub message: String,
    /// Whether a write may have landed.
    pub effect: Effect,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(side) => write!(f, "{side}: {} ({})", self.message, self.code),
            None => write!(f, "{} ({})", self.message, self.code),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_word() {
        let wait = Some(Duration::from_secs(7));
        for (status, class) in [
            (400, Class::Permanent),
            (401, Class::Auth),
            (403, Class::Auth),
            (404, Class::Permanent),
            (405, Class::Permanent),
            (408, Class::Retry { wait }),
            (409, Class::Conflict),
            (412, Class::Conflict),
            (413, Class::Permanent),
            (422, Class::Permanent),
            (425, Class::Retry { wait }),
            (429, Class::Retry { wait }),
            (500, Class::Retry { wait }),
            (501, Class::Permanent),
            (502, Class::Retry { wait }),
            (503, Class::Retry { wait }),
            (504, Class::Retry { wait }),
        ] {
            assert_eq!(Class::of_status(status, wait), class, "{status}");
        }
    }
}
