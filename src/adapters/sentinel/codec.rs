//! Sentinel's JSON without HTTP: what a simulation needs to speak to the services' rules in this very dialect.

use super::wire;
use crate::domain::model::{SentinelComment, SentinelIncident, SentinelWrite};
use crate::ports::Page;

/// One incident, as GET and PUT answer it. The error is a sentence.
pub fn incident(body: &[u8]) -> Result<SentinelIncident, String> {
    wire::incident(body).map_err(|why| format!("{why:?}"))
}

/// A page of the list. The error is a sentence.
pub fn page(body: &[u8]) -> Result<Page<SentinelIncident>, String> {
    wire::page(body).map_err(|why| format!("{why:?}"))
}

/// The body of a PUT.
pub fn put(write: &SentinelWrite) -> Vec<u8> {
    wire::put(write)
}

/// A page of an incident's comments, and the link to the next. The error is a sentence.
pub fn comments(body: &[u8]) -> Result<(Vec<SentinelComment>, Option<String>), String> {
    wire::comments(body).map_err(|why| format!("{why:?}"))
}

/// One comment, as PUT answers it. The error is a sentence.
pub fn comment(body: &[u8]) -> Result<SentinelComment, String> {
    wire::one_comment(body).map_err(|why| format!("{why:?}"))
}

/// The body of a comment's PUT.
pub fn put_comment(message: &str) -> Vec<u8> {
    wire::put_comment(message)
}
