//! The doors: who may knock, what is taken in, what is answered. A notification is a hint, and nothing is fetched or
//! written while a sender waits.

mod api;
mod edge;
pub mod error;
mod graph;
mod health;
mod listen;
pub mod openapi;
mod rate;
mod router;
mod sentinel;
pub mod tls;
mod turn;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use secrecy::{ExposeSecret, SecretString};

pub use edge::Front;
pub use listen::serve;
pub use router::router;

use crate::app::health::Health;
use crate::app::intake::Inbox;
use crate::app::keyring::Keyring;
use crate::app::lately::Lately;
use crate::app::routes::Routes;
use crate::app::subscriptions::{Board, Book};
use crate::app::tokens::Tokens;
use crate::config::Config;
use crate::domain::policy::Policy;
use crate::domain::signature::{Secret, SecretError};
use crate::domain::token::TokenRules;
use crate::ports::Store;

/// The largest body that a notification may have.
pub const MOST_BODY_BYTES: usize = 4 << 20;

/// Whether the service wants traffic. Cloning shares it; it begins with starting up.
#[derive(Clone, Debug, Default)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    const RUNNING: u8 = 1;
    const STOPPING: u8 = 2;

    /// Start-up has ended.
    pub fn running(&self) {
        self.0.store(Self::RUNNING, Ordering::Relaxed);
    }

    /// Shutdown has begun.
    pub fn stopping(&self) {
        self.0.store(Self::STOPPING, Ordering::Relaxed);
    }

    fn word(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            Self::RUNNING => "running",
            Self::STOPPING => "stopping",
            _ => "starting",
        }
    }
}

/// A workspace whose playbooks may knock.
#[derive(Clone, Debug)]
pub struct WorkspaceDoor {
    /// The workspace's resource id, in lower case.
    pub resource_id: String,
    /// Its Azure subscription.
    pub subscription_id: String,
    /// Its resource group.
    pub resource_group: String,
    /// Its name in Azure.
    pub workspace_name: String,
    /// What its playbooks sign with.
    pub secrets: Vec<Secret>,
}

/// Who may knock.
#[derive(Clone, Default)]
pub struct Doors {
    /// By the workspace's configured name.
    pub workspaces: HashMap<String, WorkspaceDoor>,
    /// The client states of Graph subscriptions, by tenant id in lower case.
    pub client_states: HashMap<String, Vec<SecretString>>,
    /// The tenants, in lower case, whose subscriptions are kept by us: their states are in the store.
    pub subscribed: HashSet<String>,
    /// What the tokens of encrypted notifications have to be, by tenant id in lower case.
    pub validation: HashMap<String, TokenRules>,
    /// What opens the API; none keeps it shut.
    pub api_tokens: Vec<SecretString>,
    /// Tenant, workspace and rules of each route, by its name.
    pub routes: HashMap<String, (String, String, Policy)>,
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doors").field("workspaces", &self.workspaces).finish_non_exhaustive()
    }
}

impl Doors {
    /// The doors of a configuration, which has tried the secrets already.
    pub fn new(config: &Config) -> Result<Self, SecretError> {
        let mut doors = Self::default();
        for workspace in &config.workspaces {
            let secrets =
                workspace.webhook_secrets.iter().map(|secret| Secret::parse(secret.expose_secret()));
            let door = WorkspaceDoor {
                resource_id: workspace.resource_id(),
                subscription_id: workspace.subscription_id.clone(),
                resource_group: workspace.resource_group.clone(),
                workspace_name: workspace.workspace_name.clone(),
                secrets: secrets.collect::<Result<_, _>>()?,
            };
            doors.workspaces.insert(workspace.name.clone(), door);
        }
        doors.api_tokens.clone_from(&config.server.api_tokens);
        for route in &config.routes {
            if let (Some(tenant), Some(workspace)) =
                (config.tenant(&route.tenant), config.workspace(&route.workspace))
            {
                let place = (tenant.tenant_id.clone(), workspace.resource_id(), route.policy.clone());
                doors.routes.insert(route.name.clone(), place);
            }
        }
        for tenant in &config.tenants {
            let states = doors.client_states.entry(tenant.tenant_id.clone()).or_default();
            states.extend(tenant.graph_client_states.iter().cloned());
            if !tenant.subscriptions.is_empty() {
                doors.subscribed.insert(tenant.tenant_id.clone());
            }
            let id = &tenant.tenant_id;
            let rules = doors.validation.entry(id.clone()).or_insert_with(|| {
                let audiences: [&str; 0] = [];
                TokenRules { app_ids: BTreeSet::new(), ..TokenRules::graph([id], audiences) }
            });
            rules.audiences.insert(tenant.client_id.clone());
            rules.app_ids.insert(tenant.graph_publisher_id.clone());
        }
        Ok(doors)
    }
}

/// Notifications by door and by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoticeLabels {
    /// `graph`, `graph-lifecycle`, `sentinel` and so on; `none` for an unknown address or a connection, `any` where
    /// the door does not matter.
    pub door: &'static str,
    /// `accepted`, `repeated`, `handshake`, or why it was refused.
    pub outcome: &'static str,
}

/// What the doors count. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct DoorMetrics {
    notices: Family<NoticeLabels, Counter>,
}

impl DoorMetrics {
    /// Names the family in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lockstep_notifications",
            "Notifications (Graph: their items), by door and outcome",
            self.notices.clone(),
        );
    }

    fn count(&self, door: &'static str, outcome: &'static str) {
        self.notices.get_or_create(&NoticeLabels { door, outcome }).inc();
    }
}

/// What the handlers need, shared by all of them.
#[derive(Clone)]
pub struct AppState {
    /// Who may knock.
    pub doors: Arc<Doors>,
    /// Where hints go.
    pub inbox: Inbox,
    /// For readiness and the state of the queue.
    pub store: Arc<dyn Store>,
    /// Who proves the senders' tokens.
    pub tokens: Tokens,
    /// The states of the subscriptions that are kept by us.
    pub book: Book,
    /// How these subscriptions are.
    pub board: Board,
    /// What encrypted notifications are opened with.
    pub keyring: Keyring,
    /// What is known of the sides.
    pub health: Arc<Health>,
    /// For the budgets of the sides.
    pub routes: Arc<Routes>,
    /// How the last runs ended.
    pub lately: Lately,
    /// What `/metrics` shows; `metrics` is to be registered in it.
    pub registry: Arc<Registry>,
    /// What the doors count.
    pub metrics: DoorMetrics,
    /// Whether the service wants traffic.
    pub phase: Phase,
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("phase", &self.phase).finish_non_exhaustive()
    }
}
