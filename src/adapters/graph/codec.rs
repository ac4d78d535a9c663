//! Graph's JSON without HTTP: what a simulation needs to speak to the services' rules in this very dialect.

use super::wire;
use crate::domain::model::{DefenderComment, DefenderIncident, DefenderPatch};
use crate::ports::Page;

/// One incident, as GET and PATCH answer it. The error is a sentence.
pub fn incident(body: &[u8]) -> Result<DefenderIncident, String> {
    wire::incident(body).map_err(|why| format!("{why:?}"))
}

/// A page of the list. The error is a sentence.
pub fn page(body: &[u8]) -> Result<Page<DefenderIncident>, String> {
    wire::page(body).map_err(|why| format!("{why:?}"))
}

/// The body of a PATCH.
pub fn patch(patch: &DefenderPatch) -> Vec<u8> {
    wire::patch(patch)
}

/// The answer to a comment: all comments. The error is a sentence.
pub fn commented(body: &[u8]) -> Result<Vec<DefenderComment>, String> {
    wire::commented(body).map_err(|why| format!("{why:?}"))
}

/// The body of a new comment.
pub fn new_comment(text: &str) -> Vec<u8> {
    wire::new_comment(text)
}
