//! The rules: what the services hold and how they answer, without HTTP, without a clock of their own. Every operation
//! is told who calls and what time it is, so that a simulation can run years in a second.

mod alerts;
pub mod budget;
pub mod defender;
pub mod directory;
pub mod faults;
pub mod native;
pub mod sentinel;
pub mod switches;
pub mod vault;

use std::collections::BTreeMap;

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

/// How the behaviours that concern no single service are switched.
const SWITCHES: &[Switch] = &[Switch {
    name: "budgets",
    values: &["on", "off"],
    meaning: "whether the published request budgets are enforced (graph.md 11, sentinel.md 13)",
}];

/// Both services' state, and how they are disturbed.
#[derive(Debug)]
pub struct World {
    /// By tenant id in lower case.
    pub tenants: BTreeMap<String, defender::Tenant>,
    /// By resource id in lower case.
    pub workspaces: BTreeMap<String, sentinel::Workspace>,
    /// How the uncertain behaviours are set.
    pub switches: Switches,
    /// Trouble on order.
    pub faults: faults::Faults,
    /// What callers have used up.
    pub budgets: budget::Budgets,
    /// What Microsoft's own connector connects, by the workspace's key.
    pub native: BTreeMap<String, native::Native>,
    /// The people and groups of all tenants.
    pub directory: directory::Directory,
    /// The secrets of the one vault there is.
    pub vault: vault::Vault,
}

impl Default for World {
    fn default() -> Self {
        Self {
            tenants: BTreeMap::new(),
            workspaces: BTreeMap::new(),
            switches: Switches::new(&[
                SWITCHES,
                defender::SWITCHES,
                sentinel::SWITCHES,
                native::SWITCHES,
                directory::SWITCHES,
            ]),
            faults: faults::Faults::default(),
            budgets: budget::Budgets::default(),
            native: BTreeMap::new(),
            directory: directory::Directory::default(),
            vault: vault::Vault::default(),
        }
    }
}

impl World {
    /// Both sides and the faults that are left, for `GET /state`.
    pub fn describe(&self) -> Value {
        let tenants = self.tenants.iter().map(|(id, tenant)| (id.clone(), tenant.describe()));
        let workspaces = self.workspaces.values().map(|w| (w.resource_id(), w.describe()));
        json!({
            "tenants": Value::Object(tenants.collect()),
            "workspaces": Value::Object(workspaces.collect()),
            "native": self.describe_native(),
            "directory": self.directory.describe(),
            "faults": self.faults.left().iter().map(faults::Fault::describe).collect::<Vec<_>>(),
        })
    }
}
