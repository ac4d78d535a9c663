//! The rules: what the services hold and how they answer, without HTTP, without a clock of their own. Every operation
//! is told who calls and what time it is, so that a simulation can run years in a second.

pub mod switches;

use serde_json::{Value, json};
use time::OffsetDateTime;

pub use switches::{Switch, Switches};

/// A person of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The object id, a GUID derived from tenant and UPN.
    pub object_id: String,
    /// The user principal name, as it was given.
    pub upn: String,
    /// What the portals show.
    pub display_name: String,
}

/// Who calls, as the token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant that issued the token, in lower case.
    pub tenant_id: String,
    /// The application's client id.
    pub app_id: String,
    /// The object id of the service principal, or of the person.
    pub object_id: String,
    /// The person, when the token is a delegated one.
    pub user: Option<Person>,
}

/// The circumstances of one call.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The service's clock.
    pub now: OffsetDateTime,
    /// Who calls.
    pub caller: &'a Caller,
    /// How the uncertain behaviours are set.
    pub switches: &'a Switches,
}

/// A refusal, as both services word it: an HTTP status, a code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// `error.code`.
    pub code: String,
    /// `error.message`.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// The body that both services send: `{"error": {"code", "message"}}`. Graph's adapter adds its inner error.
    pub fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }
}

/// What an operation answers: the HTTP status and the body (`Value::Null` for none).
pub type Answer = Result<(u16, Value), Refusal>;
