//! One TOML file and a short list of variables, read into settings that need no further checking. Every problem is
//! reported at once, with its place and its cure; no secret is ever part of a message.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::{Host, Url};
use uuid::Uuid;

use crate::domain::cloud::Cloud;
use crate::domain::comments::CommentPolicy;
use crate::domain::filter::{Filter, Unmatched};
use crate::domain::model::{
    DefenderClassification, DefenderDetermination, DefenderSeverity, DefenderStatus, SentinelReason,
    workspace_id,
};
use crate::domain::network::Network;
use crate::domain::owners::{Fallback, OwnerPolicy};
use crate::domain::policy::{
    AlertMode, Direction, Field, Follow, LabelRules, Native, Policy, TitleTemplate, Vanished, Winner, offered,
};
use crate::domain::rich::{KeyError, RichKey};
use crate::domain::signature::Secret;
use crate::domain::token::GRAPH_CHANGE_TRACKING;

/// The variables that override the file, with what each of them stands for.
pub const VARIABLES: &[(&str, &str)] = &[
    ("LOCKSTEP_CONFIG", "--config: the configuration file"),
    ("LOCKSTEP_LISTEN", "server.listen: the address and port of the HTTP service"),
    ("LOCKSTEP_PUBLIC_URL", "server.public_url: where the senders of notifications reach the service"),
    ("LOCKSTEP_STORE_URL", "store.url: sqlite://FILE or postgres://…"),
    ("LOCKSTEP_LOG", "log.level: a level such as info, or a filter such as lockstep=debug,warn"),
];

/// The clouds under their names.
const CLOUDS: &[(&str, Cloud)] = &[
    ("global", Cloud::Global),
    ("us-gov-high", Cloud::UsGovHigh),
    ("us-dod", Cloud::UsDod),
    ("china", Cloud::China),
];

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[store] url`: it may carry a password.
    pub store_url: SecretString,
    /// `[[tenants]]`
    pub tenants: Vec<Tenant>,
    /// `[[workspaces]]`
    pub workspaces: Vec<Workspace>,
    /// `[[routes]]`
    pub routes: Vec<Route>,
    /// `[poll]`
    pub poll: Poll,
    /// `[limits]`
    pub limits: Limits,
    /// `[journal] keep`: for how long the journal is kept.
    pub journal_keep: Duration,
    /// `[log]`
    pub log: Log,
    /// The text of `[http] ca_file`: certificates (PEM) to trust besides the built-in ones.
    pub ca_pem: Option<String>,
}

/// Where the service listens.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address and port.
    pub listen: SocketAddr,
    /// Where senders reach it.
    pub public_url: Option<Url>,
    /// What opens the API; none keeps it shut.
    pub api_tokens: Vec<SecretString>,
    /// Whether it ends TLS itself.
    pub tls: Option<Tls>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Which addresses may knock, by door (one of [`DOORS`]); a door that is missing is open to all.
    pub allow: BTreeMap<&'static str, Vec<Network>>,
    /// What senders may ask of it.
    pub limits: ServerLimits,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            api_tokens: Vec::new(),
            tls: None,
            trusted_proxies: Vec::new(),
            allow: BTreeMap::new(),
            limits: ServerLimits::default(),
        }
    }
}

/// The doors that `[server.allow]` can list addresses for.
pub const DOORS: &[&str] = &["graph", "sentinel", "action_group", "event_grid", "defender_stream", "api"];

/// `[server.tls]`: the service ends TLS itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and its chain (PEM).
    pub certificate_file: PathBuf,
    /// The private key (PEM).
    pub key_file: PathBuf,
    /// The authorities (PEM) of the senders' certificates: mutual TLS.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a sender without a certificate is refused; else only a wrong one is.
    pub client_required: bool,
}

/// `[server.limits]`: what senders may ask of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Requests of one source.
    pub requests_per_second: u32,
    /// How many of them may come at once.
    pub burst: u32,
    /// How many notifications are handled at once.
    pub at_once: u32,
    /// How much of all their bodies is held in memory.
    pub body_mib: u32,
    /// How many connections there may be.
    pub connections: u32,
    /// How many of them one source may have.
    pub connections_per_source: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            requests_per_second: 1_000,
            burst: 4_000,
            at_once: 512,
            body_mib: 64,
            connections: 1_000,
            connections_per_source: 500,
        }
    }
}

/// An Entra tenant and our registration in it.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The name by which workspaces and routes call it.
    pub name: String,
    /// The directory id, in lower case.
    pub tenant_id: String,
    /// The application (client) id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: SecretString,
    /// The `clientState` of Graph subscriptions.
    pub graph_client_states: Vec<SecretString>,
    /// The subscriptions to Graph's change notifications that are kept for it.
    pub subscriptions: Vec<SubscriptionWish>,
    /// The certificates that Graph encrypts resources for: the newest is the last.
    pub certificates: Vec<CertificateSource>,
    /// The application that signs the tokens of Graph's encrypted notifications.
    pub graph_publisher_id: String,
    /// Its cloud.
    pub cloud: Cloud,
    /// The token host: the cloud's, unless overridden. So are the next two.
    pub login_url: Url,
    /// The Graph host.
    pub graph_url: Url,
    /// The Azure Resource Manager host.
    pub arm_url: Url,
    /// The host of Log Analytics ingestion, where it is overridden.
    pub ingestion_url: Option<Url>,
}

/// A subscription to change notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionWish {
    /// The path that is watched, without a slash at its beginning.
    pub resource: String,
    /// `created`, `updated` or `deleted`, in this order.
    pub change_types: Vec<&'static str>,
    /// How long each life of it is to be.
    pub lifetime: Duration,
    /// Whether the resource is to come along, encrypted.
    pub rich: bool,
}

/// Where a certificate for encrypted notifications comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// From files, read already.
    Files(Arc<RichKey>),
    /// From Azure Key Vault.
    Vault {
        /// What its id in Graph begins with.
        id: String,
        /// The vault.
        vault_url: Url,
        /// The secret that holds certificate and key.
        secret: String,
    },
}

/// What a subscription may watch for.
const CHANGE_TYPES: [&str; 3] = ["created", "updated", "deleted"];

/// A Sentinel workspace.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The name by which routes and the notification path call it.
    pub name: String,
    /// The tenant (by name) whose registration reads and writes it.
    pub tenant: String,
    /// The Azure subscription, in lower case.
    pub subscription_id: String,
    /// The resource group.
    pub resource_group: String,
    /// The Log Analytics workspace.
    pub workspace_name: String,
    /// The secrets that its playbooks sign with; several while they are rotated.
    pub webhook_secrets: Vec<SecretString>,
}

impl Workspace {
    /// The resource id, in lower case: the scope of everything that is stored about the workspace.
    pub fn resource_id(&self) -> String {
        workspace_id(&self.subscription_id, &self.resource_group, &self.workspace_name)
    }
}

/// One Defender tenant to one workspace.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name, for people.
    pub name: String,
    /// The Defender tenant, by name.
    pub tenant: String,
    /// The workspace, by name.
    pub workspace: String,
    /// The rules per field.
    pub policy: Policy,
    /// What of the past is copied when the route is first connected.
    pub backfill: Option<Backfill>,
}

/// An order to copy what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backfill {
    /// From when on incidents came to be.
    pub since: Since,
    /// The newest first; else the oldest.
    pub newest_first: bool,
}

/// A point in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// An instant, or the start of a day (UTC).
    At(OffsetDateTime),
    /// So long ago.
    Ago(Duration),
}

impl Since {
    /// Reads `2026-01-31`, `2026-01-31T12:00:00Z` or `30d`.
    pub fn parse(text: &str) -> Option<Self> {
        let at = match text.contains('T') {
            true => OffsetDateTime::parse(text, &Rfc3339).ok(),
            false => {
                let day = format_description!("[year]-[month]-[day]");
                Date::parse(text, day).ok().map(|day| day.midnight().assume_utc())
            }
        };
        at.map(Since::At).or_else(|| parse_duration(text).map(Since::Ago))
    }

    /// When that is.
    pub fn instant(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Since::At(at) => at,
            Since::Ago(ago) => now - ago,
        }
    }
}

/// The words for the order of a backfill: whether the newest go first.
pub const BACKFILL_ORDERS: &[(&str, bool)] = &[("newest", true), ("oldest", false)];

/// How often the sides are looked at unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Defender's change list.
    pub defender_every: Duration,
    /// Sentinel's change list.
    pub sentinel_every: Duration,
    /// Defender's list of alerts, for tenants whose alerts are shown in Sentinel; zero: never.
    pub alerts_every: Duration,
    /// Everything.
    pub sweep_every: Duration,
    /// How far a poll looks back behind its watermark.
    pub overlap: Duration,
    /// How far the first poll looks back.
    pub backfill: Duration,
    /// The longest interval that a quiet tenant or workspace is stretched to; zero, the default, stretches nothing.
    pub stretch: Duration,
}

/// Budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many incidents are worked on at once.
    pub workers: u32,
    /// Calls to Graph's incidents, per tenant and minute.
    pub defender_per_minute: u32,
    /// Calls to Graph's incidents, per tenant and hour.
    pub defender_per_hour: u32,
    /// Reads from Azure Resource Manager, per subscription and second.
    pub sentinel_reads_per_second: u32,
    /// Writes to Azure Resource Manager, per subscription and second.
    pub sentinel_writes_per_second: u32,
}

/// Two routes between the same tenant and workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap<'c> {
    /// The route that comes first.
    pub first: &'c str,
    /// The other.
    pub second: &'c str,
    /// Whether the first takes everything that the second asks for.
    pub never: bool,
}

impl fmt::Display for Overlap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, never } = self;
        match never {
            true => write!(
                f,
                "route {second} can never match: route {first} before it joins the same tenant and workspace and takes \
                 everything that {second} asks for; put {second} first, give {first} a filter, or remove {second}"
            ),
            false => write!(
                f,
                "routes {first} and {second} join the same tenant and workspace: an incident that both match is {first}'s"
            ),
        }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form.
    pub format: LogFormat,
    /// A level, or a filter.
    pub level: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, from 1, where the file has the culprit.
    pub place: Option<(usize, usize)>,
    /// The key's path, or the variable's name; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

/// Everything that is wrong, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file, as it was named.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { place, key, message }) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}", self.file)?;
            if let Some((line, column)) = place {
                write!(f, ":{line}:{column}")?;
            }
            let colon = if key.is_empty() { "" } else { ": " };
            write!(f, ": {key}{colon}{message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads a file that the configuration names.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

impl Config {
    /// Reads the file. Relative paths in it are relative to its folder.
    pub fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors {
            file: file.clone(),
            problems: vec![Problem {
                place: None,
                key: String::new(),
                message: format!(
                    "cannot be read: {error}. Name the file with --config; deploy/lockstep.sample.toml is a complete one"
                ),
            }],
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let read_file = |named: &Path| std::fs::read_to_string(folder.join(named));
        let mut config =
            Self::parse(&text, env, &read_file).map_err(|errors| ConfigErrors { file, ..errors })?;
        if !env.contains_key("LOCKSTEP_STORE_URL") {
            config.store_url = beside(folder, config.store_url.expose_secret()).into();
        }
        if let Some(Tls { certificate_file, key_file, client_ca_file, client_required: _ }) =
            &mut config.server.tls
        {
            for file in
                [Some(certificate_file), Some(key_file), client_ca_file.as_mut()].into_iter().flatten()
            {
                *file = folder.join(&*file);
            }
        }
        Ok(config)
    }

    /// Reads a text, which errors call `lockstep.toml`.
    pub fn parse(
        text: &str,
        env: &BTreeMap<String, String>,
        read_file: ReadFile<'_>,
    ) -> Result<Self, ConfigErrors> {
        let mut reader = Reader { text, env, read_file, problems: Vec::new() };
        // A syntax error's own display would quote the line, which may hold a secret: take the sentence alone.
        let config = match DeTable::parse(text) {
            Ok(root) => reader.config(root.get_ref()),
            Err(error) => {
                reader.problem("", error.span(), error.message().trim().replace('\n', "; "));
                None
            }
        };
        reader.problems.sort_by_key(|problem| problem.place.unwrap_or_default());
        match config {
            Some(config) if reader.problems.is_empty() => Ok(config),
            _ => Err(ConfigErrors { file: "lockstep.toml".to_owned(), problems: reader.problems }),
        }
    }

    /// The tenant of this name.
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name == name)
    }

    /// Whether two routes lead from the same tenant to the same workspace, whatever these are called.
    pub fn joins_the_same(&self, one: &Route, other: &Route) -> bool {
        let pair = |route: &Route| {
            Some((&self.tenant(&route.tenant)?.tenant_id, self.workspace(&route.workspace)?.resource_id()))
        };
        pair(one).is_some_and(|one| pair(other).is_some_and(|other| one == other))
    }

    /// The pairs of routes between the same tenant and workspace, each in the order of the file.
    pub fn overlaps(&self) -> Vec<Overlap<'_>> {
        let mut overlaps = Vec::new();
        for (at, second) in self.routes.iter().enumerate() {
            for first in self.routes[..at].iter().filter(|first| self.joins_the_same(first, second)) {
                let never = first.policy.filter.covers(&second.policy.filter);
                overlaps.push(Overlap { first: &first.name, second: &second.name, never });
            }
        }
        overlaps
    }

    /// The workspace of this name.
    pub fn workspace(&self, name: &str) -> Option<&Workspace> {
        self.workspaces.iter().find(|workspace| workspace.name == name)
    }
}

/// A store's URL, its file taken from the configuration's folder: `lockstep hold`, typed in another folder, must find
/// the file that the service has open, and not stop the writes of an empty one that it made there.
fn beside(folder: &Path, url: &str) -> String {
    match url.strip_prefix("sqlite://") {
        Some(file) if !file.is_empty() => format!("sqlite://{}", folder.join(file).display()),
        _ => url.to_owned(),
    }
}

/// A table with the path that leads to it.
#[derive(Clone)]
struct Node<'t> {
    path: String,
    span: Range<usize>,
    table: Option<&'t DeTable<'t>>,
}

impl<'t> Node<'t> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn span_of(&self, key: &str) -> Range<usize> {
        self.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }
}

/// Collects problems while it reads, and reads on.
struct Reader<'a> {
    text: &'a str,
    env: &'a BTreeMap<String, String>,
    read_file: ReadFile<'a>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        let root = Node { path: String::new(), span: 0..0, table: Some(root) };
        self.known(
            &root,
            &[
                "server",
                "store",
                "tenants",
                "workspaces",
                "routes",
                "poll",
                "limits",
                "journal",
                "log",
                "http",
            ],
        );
        let server = self.server(&root);
        let store = self.table(&root, "store");
        self.known(&store, &["url"]);
        let store_url =
            self.overridden(&store, "url", "LOCKSTEP_STORE_URL").unwrap_or("sqlite://lockstep.db".into());
        if !["sqlite://", "postgres://", "postgresql://"].iter().any(|scheme| store_url.starts_with(scheme)) {
            self.wrong(&store, "url", "must begin with `sqlite://` or `postgres://`");
        }
        let tenants: Vec<_> = self.tables(&root, "tenants").iter().map(|node| self.tenant(node)).collect();
        let workspaces: Vec<_> =
            self.tables(&root, "workspaces").iter().map(|node| self.workspace(node)).collect();
        let route_nodes = self.tables(&root, "routes");
        let routes: Vec<_> = route_nodes.iter().map(|node| self.route(node)).collect();
        self.references(&root, server.as_ref(), &tenants, &workspaces, &routes);
        let poll = self.poll(&root);
        let limits = self.limits(&root);
        let journal = self.table(&root, "journal");
        self.known(&journal, &["keep"]);
        let day = Duration::from_secs(86_400);
        let journal_keep = self.duration(&journal, "keep", 90 * day, day, 3_650 * day);
        let log = self.log(&root);
        let http = self.table(&root, "http");
        self.known(&http, &["ca_file"]);
        let ca_pem = self.text(&http, "ca_file").and_then(|path| self.file(&http, "ca_file", &path));
        if ca_pem.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            self.wrong(&http, "ca_file", "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
        }
        Some(Config {
            server: server?,
            store_url: store_url.into(),
            tenants: tenants.into_iter().collect::<Option<_>>()?,
            workspaces: workspaces.into_iter().collect::<Option<_>>()?,
            routes: routes.into_iter().collect::<Option<_>>()?,
            poll,
            limits,
            journal_keep,
            log,
            ca_pem,
        })
    }

    fn server(&mut self, root: &Node<'_>) -> Option<Server> {
        let node = self.table(root, "server");
        self.known(
            &node,
            &[
                "listen",
                "public_url",
                "api_tokens",
                "api_tokens_file",
                "tls",
                "trusted_proxies",
                "allow",
                "limits",
            ],
        );
        let listen = self.overridden(&node, "listen", "LOCKSTEP_LISTEN").unwrap_or("127.0.0.1:8080".into());
        let listen = listen.parse();
        if listen.is_err() {
            self.wrong(&node, "listen", "must be an address and a port, such as 127.0.0.1:8080 or [::]:8080");
        }
        let public_url = self.overridden(&node, "public_url", "LOCKSTEP_PUBLIC_URL");
        let public_url = public_url.and_then(|text| self.web(&node, "public_url", &text));
        let api_tokens = self.secrets(&node, "api_tokens");
        if api_tokens.iter().any(|token| token.expose_secret().len() < 16) {
            self.wrong(
                &node,
                "api_tokens",
                "each must have 16 characters or more: make one with `openssl rand -hex 32`",
            );
        }
        let tls = node.get("tls").is_some().then(|| self.tls(&node));
        let trusted_proxies = self.networks(&node, "trusted_proxies");
        let lists = self.table(&node, "allow");
        self.known(&lists, DOORS);
        let mut allow = BTreeMap::new();
        for door in DOORS.iter().filter(|door| lists.get(door).is_some()) {
            let networks = self.networks(&lists, door);
            if networks.is_empty() {
                self.wrong(
                    &lists,
                    door,
                    "lets nobody in: name networks, or leave the key out to let everybody in",
                );
            }
            allow.insert(*door, networks);
        }
        let limits = self.server_limits(&node);
        Some(Server {
            listen: listen.ok()?,
            public_url,
            api_tokens,
            tls: tls.flatten(),
            trusted_proxies,
            allow,
            limits,
        })
    }

    fn tls(&mut self, server: &Node<'_>) -> Option<Tls> {
        let node = self.table(server, "tls");
        self.known(&node, &["certificate_file", "key_file", "client_ca_file", "client_certificates"]);
        let mut pem = |key: &str, needed: bool, wanted: &str| {
            let path = if needed { self.required(&node, key) } else { self.text(&node, key) }?;
            let text = self.file(&node, key, &path)?;
            if !text.contains(wanted) {
                self.wrong(&node, key, &format!("holds no `{wanted}`: it must be in PEM form"));
            }
            Some(PathBuf::from(path))
        };
        let certificate_file = pem("certificate_file", true, "-----BEGIN CERTIFICATE-----");
        let key_file = pem("key_file", true, "PRIVATE KEY-----");
        let client_ca_file = pem("client_ca_file", false, "-----BEGIN CERTIFICATE-----");
        let words = [("required", true), ("optional", false)];
        let client_required = self.word(&node, "client_certificates", &words, true);
        if node.get("client_certificates").is_some() && node.get("client_ca_file").is_none() {
            let message = "needs `client_ca_file`: the authorities of the senders' certificates";
            self.wrong(&node, "client_certificates", message);
        }
        Some(Tls {
            certificate_file: certificate_file?,
            key_file: key_file?,
            client_ca_file,
            client_required,
        })
    }

    fn server_limits(&mut self, server: &Node<'_>) -> ServerLimits {
        let node = self.table(server, "limits");
        self.known(
            &node,
            &["requests_per_second", "burst", "at_once", "body_mib", "connections", "connections_per_source"],
        );
        let usual = ServerLimits::default();
        let limits = ServerLimits {
            requests_per_second: self.number(
                &node,
                "requests_per_second",
                usual.requests_per_second,
                1_000_000,
            ),
            burst: self.number(&node, "burst", usual.burst, 1_000_000),
            at_once: self.number(&node, "at_once", usual.at_once, 100_000),
            body_mib: self.number(&node, "body_mib", usual.body_mib, 65_536),
            connections: self.number(&node, "connections", usual.connections, 1_000_000),
            connections_per_source: self.number(
                &node,
                "connections_per_source",
                usual.connections_per_source,
                1_000_000,
            ),
        };
        // The largest body has to fit.
        if limits.body_mib < 4 {
            self.wrong(&node, "body_mib", "must be 4 or more: one body may have 4 MiB");
        }
        limits
    }

    /// A list of networks; none where the key is missing.
    fn networks(&mut self, node: &Node<'_>, key: &str) -> Vec<Network> {
        let mut networks = Vec::new();
        for text in self.texts(node, key) {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(error) => {
                    let message = format!("`{text}` {error}; write 10.0.0.0/8, 2001:db8::/32 or one address");
                    self.wrong(node, key, &message);
                }
            }
        }
        networks
    }

    fn tenant(&mut self, node: &Node<'_>) -> Option<Tenant> {
        self.known(
            node,
            &[
                "name",
                "tenant_id",
                "client_id",
                "client_secret",
                "client_secret_file",
                "graph_client_states",
                "graph_client_states_file",
                "graph_publisher_id",
                "subscriptions",
                "certificates",
                "cloud",
                "login_url",
                "graph_url",
                "arm_url",
                "ingestion_url",
            ],
        );
        let name = self.name(node);
        let tenant_id = self.guid(node, "tenant_id");
        let client_id = self.required(node, "client_id");
        let client_secret = self.secret(node, "client_secret");
        let states = self.secrets(node, "graph_client_states");
        for state in &states {
            // Graph takes 128 (`graph.md` §13.2); anybody may try, so it must not be guessable either.
            if !(16..=128).contains(&state.expose_secret().len()) {
                self.wrong(node, "graph_client_states", "each must have 16 to 128 characters");
                break;
            }
        }
        let cloud = self.word(node, "cloud", CLOUDS, Cloud::Global);
        let certificates: Vec<_> =
            self.tables(node, "certificates").iter().filter_map(|node| self.certificate(node)).collect();
        let subscription_nodes = self.tables(node, "subscriptions");
        let mut subscriptions: Vec<SubscriptionWish> = Vec::new();
        for node in &subscription_nodes {
            let Some(wish) = self.subscription(node) else { continue };
            if subscriptions.iter().any(|other| other.resource.eq_ignore_ascii_case(&wish.resource)) {
                self.wrong(node, "resource", "is watched by an entry above: keep one of them");
            }
            if wish.rich && certificates.is_empty() {
                let cure = "needs a certificate: add a [[tenants.certificates]] to this tenant";
                self.wrong(node, "rich", cure);
            }
            subscriptions.push(wish);
        }
        let publisher = match node.get("graph_publisher_id") {
            Some(_) => self.guid(node, "graph_publisher_id"),
            None => Some(GRAPH_CHANGE_TRACKING.to_owned()),
        };
        let mut url = |key: &str, default: Option<&str>| {
            let text = self.text(node, key).or(default.map(str::to_owned))?;
            self.web(node, key, &text)
        };
        let login_url = url("login_url", Some(cloud.login_url()));
        let graph_url = url("graph_url", Some(cloud.graph_url()));
        let arm_url = url("arm_url", Some(cloud.arm_url()));
        let ingestion_url = url("ingestion_url", None);
        Some(Tenant {
            name: name?,
            tenant_id: tenant_id?,
            client_id: client_id?,
            client_secret: client_secret?,
            graph_client_states: states,
            subscriptions,
            certificates,
            graph_publisher_id: publisher?,
            cloud,
            login_url: login_url?,
            graph_url: graph_url?,
            arm_url: arm_url?,
            ingestion_url,
        })
    }

    fn subscription(&mut self, node: &Node<'_>) -> Option<SubscriptionWish> {
        self.known(node, &["resource", "change_types", "lifetime", "rich"]);
        let resource = self.required(node, "resource");
        let resource = resource.map(|path| path.trim_start_matches('/').to_owned());
        if resource.as_ref().is_some_and(|path| path.is_empty() || path.contains("://") || path.len() > 512) {
            self.wrong(node, "resource", "must be a path without a host, such as security/incidents");
        }
        let named = self.texts(node, "change_types");
        if let Some(word) = named.iter().find(|word| !CHANGE_TYPES.contains(&word.as_str())) {
            self.wrong(node, "change_types", &format!("`{word}` is none of {}", CHANGE_TYPES.join(", ")));
        }
        let change_types: Vec<&'static str> = match named.is_empty() {
            true => vec!["created", "updated"],
            false => {
                CHANGE_TYPES.into_iter().filter(|word| named.iter().any(|named| named == word)).collect()
            }
        };
        let minute = Duration::from_secs(60);
        // Graph raises less to the least and refuses more than the most (`graph.md` §13.2).
        let lifetime = self.duration(node, "lifetime", 2880 * minute, 45 * minute, 43_200 * minute);
        let rich = self.flag(node, "rich", false);
        Some(SubscriptionWish { resource: resource?, change_types, lifetime, rich })
    }

    fn certificate(&mut self, node: &Node<'_>) -> Option<CertificateSource> {
        self.known(node, &["id", "certificate_file", "key_file", "vault_url", "secret"]);
        let id = self.required(node, "id")?;
        if node.get("vault_url").is_some() {
            for file in ["certificate_file", "key_file"] {
                if node.get(file).is_some() {
                    self.wrong(node, file, "and `vault_url` exclude each other");
                }
            }
            // The version is appended to it.
            if !(1..=90).contains(&id.len()) {
                self.wrong(node, "id", "must have 1 to 90 characters");
            }
            let vault_url = self.text(node, "vault_url").and_then(|text| self.web(node, "vault_url", &text));
            let secret = self.segment(node, "secret");
            return Some(CertificateSource::Vault { id, vault_url: vault_url?, secret: secret? });
        }
        let path = self.required(node, "certificate_file");
        let certificate = path.and_then(|path| self.file(node, "certificate_file", &path));
        let path = self.required(node, "key_file");
        let key = path.and_then(|path| self.file(node, "key_file", &path));
        match RichKey::from_pem(&id, &certificate?, &key?) {
            Ok(key) => Some(CertificateSource::Files(Arc::new(key))),
            Err(error) => {
                let at = match error {
                    KeyError::Id => "id",
                    KeyError::NoCertificate => "certificate_file",
                    KeyError::NoKey | KeyError::Size | KeyError::Mismatch => "key_file",
                };
                self.wrong(node, at, &error.to_string());
                None
            }
        }
    }

    fn workspace(&mut self, node: &Node<'_>) -> Option<Workspace> {
        self.known(
            node,
            &[
                "name",
                "tenant",
                "subscription_id",
                "resource_group",
                "workspace_name",
                "webhook_secrets",
                "webhook_secrets_file",
            ],
        );
        let name = self.name(node);
        let tenant = self.required(node, "tenant");
        let subscription_id = self.guid(node, "subscription_id");
        let resource_group = self.segment(node, "resource_group");
        let workspace_name = self.segment(node, "workspace_name");
        let webhook_secrets = self.secrets(node, "webhook_secrets");
        for secret in &webhook_secrets {
            if let Err(error) = Secret::parse(secret.expose_secret()) {
                let cure = "make one with: echo whsec_$(openssl rand -base64 32)";
                self.wrong(node, "webhook_secrets", &format!("one of them {error}; {cure}"));
                break;
            }
        }
        Some(Workspace {
            name: name?,
            tenant: tenant?,
            subscription_id: subscription_id?,
            resource_group: resource_group?,
            workspace_name: workspace_name?,
            webhook_secrets,
        })
    }

    fn route(&mut self, node: &Node<'_>) -> Option<Route> {
        self.known(
            node,
            &[
                "name",
                "tenant",
                "workspace",
                "fields",
                "filter",
                "labels",
                "title",
                "determination_label",
                "system_tags_label",
                "determinations",
                "native_connector",
                "vanished",
                "freeze_after_close",
                "shadow",
                "alerts",
                "alert_updates",
                "backfill",
                "comments",
                "owners",
            ],
        );
        let name = self.name(node);
        let tenant = self.required(node, "tenant");
        let workspace = self.required(node, "workspace");
        let fields = self.table(node, "fields");
        // The other three go with the verdict, or are nobody's to decide.
        let unruled = [Field::Comment, Field::Determination];
        let ruled = || Field::ALL.into_iter().filter(|field| !unruled.contains(field));
        self.known(&fields, &ruled().map(Field::as_str).collect::<Vec<_>>());
        let mut policy = Policy::default();
        for field in ruled() {
            let rule = self.table(&fields, field.as_str());
            self.known(&rule, &["direction", "wins"]);
            let mut policy_of = policy.of(field);
            policy_of.direction = self.word(&rule, "direction", DIRECTIONS, policy_of.direction);
            policy_of.wins = self.word(&rule, "wins", WINNERS, policy_of.wins);
            if field == Field::Facts && policy_of.direction.to_defender() {
                self.wrong(
                    &rule,
                    "direction",
                    "must be `to-sentinel` or `off`: nothing of it can be written there",
                );
            }
            policy.set(field, policy_of);
        }
        policy.filter = self.filter(node);
        policy.labels = self.label_rules(node);
        if let Some(template) = self.text(node, "title") {
            match template.split_once("{title}") {
                Some((before, after)) if !after.contains("{title}") => {
                    policy.title = TitleTemplate { before: before.to_owned(), after: after.to_owned() };
                }
                _ => self.wrong(node, "title", "must hold `{title}` once, such as \"[Contoso] {title}\""),
            }
        }
        policy.determinations = self.determinations(node);
        policy.comments = self.comments(node);
        policy.owners = self.owners(node);
        if let Fallback::Label(prefix) = &policy.owners.fallback {
            policy.labels.owner = Some(prefix.clone());
        }
        policy.native = self.word(node, "native_connector", NATIVES, policy.native);
        policy.vanished = self.word(node, "vanished", VANISHED, policy.vanished);
        policy.alerts = self.word(node, "alerts", ALERT_MODES, policy.alerts);
        policy.follow = self.word(node, "alert_updates", FOLLOWS, policy.follow);
        policy.shadow = self.flag(node, "shadow", false);
        if node.get("freeze_after_close").is_some() {
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(10 * 365 * 24 * 60 * 60));
            let wait = self.duration(node, "freeze_after_close", least, least, most);
            policy.freeze_after = time::Duration::try_from(wait).ok();
        }
        let backfill = node.get("backfill").is_some().then(|| self.backfill(node));
        Some(Route {
            name: name?,
            tenant: tenant?,
            workspace: workspace?,
            policy,
            backfill: backfill.flatten(),
        })
    }

    fn backfill(&mut self, route: &Node<'_>) -> Option<Backfill> {
        let node = self.table(route, "backfill");
        self.known(&node, &["since", "order"]);
        let newest_first = self.word(&node, "order", BACKFILL_ORDERS, true);
        let text = self.required(&node, "since")?;
        let since = Since::parse(&text);
        if since.is_none() {
            self.wrong(
                &node,
                "since",
                "must be a date such as \"2026-01-31\", or a time ago such as \"30d\"",
            );
        }
        Some(Backfill { since: since?, newest_first })
    }

    /// Which incidents a route is for.
    fn filter(&mut self, node: &Node<'_>) -> Filter {
        let node = self.table(node, "filter");
        self.known(
            &node,
            &["severities", "statuses", "products", "tags", "titles", "device_groups", "otherwise"],
        );
        let severities = self.texts(&node, "severities");
        let severities: Vec<_> = severities.iter().map(|word| DefenderSeverity::parse(word)).collect();
        let statuses = self.texts(&node, "statuses");
        let statuses: Vec<_> = statuses.iter().map(|word| DefenderStatus::parse(word)).collect();
        if let Some(word) = severities.iter().find(|word| !DefenderSeverity::KNOWN.contains(word)) {
            let known: Vec<&str> = DefenderSeverity::KNOWN.iter().map(DefenderSeverity::as_str).collect();
            self.wrong(&node, "severities", &format!("`{word}` is none of {}", known.join(", ")));
        }
        if let Some(word) = statuses.iter().find(|word| !DefenderStatus::KNOWN.contains(word)) {
            let known: Vec<&str> = DefenderStatus::KNOWN.iter().map(DefenderStatus::as_str).collect();
            self.wrong(&node, "statuses", &format!("`{word}` is none of {}", known.join(", ")));
        }
        Filter {
            severities,
            statuses,
            products: self.texts(&node, "products"),
            tags: self.texts(&node, "tags"),
            titles: self.texts(&node, "titles"),
            device_groups: self.texts(&node, "device_groups"),
            otherwise: self.word(&node, "otherwise", UNMATCHED, Unmatched::Keep),
        }
    }

    /// The labels that a route writes for purposes of its own. An empty prefix switches one off.
    fn label_rules(&mut self, node: &Node<'_>) -> LabelRules {
        let mut rules = LabelRules { route: self.texts(node, "labels"), ..LabelRules::default() };
        if let Some(prefix) = self.text(node, "determination_label") {
            rules.determination = Some(prefix).filter(|prefix| !prefix.trim().is_empty());
        }
        if let Some(prefix) = self.text(node, "system_tags_label") {
            rules.system = Some(prefix).filter(|prefix| !prefix.trim().is_empty());
        }
        if let (Some(one), Some(other)) = (&rules.determination, &rules.system)
            && (one.to_lowercase().starts_with(&other.to_lowercase())
                || other.to_lowercase().starts_with(&one.to_lowercase()))
        {
            self.wrong(node, "system_tags_label", "must differ from `determination_label` at its beginning");
        }
        rules
    }

    /// How comments are carried.
    fn comments(&mut self, node: &Node<'_>) -> CommentPolicy {
        let node = self.table(node, "comments");
        self.known(&node, &["direction", "edits", "edits_after_close", "ignore", "defender_limit"]);
        let day = Duration::from_secs(86_400);
        let edits_after_close =
            self.duration(&node, "edits_after_close", 7 * day, Duration::ZERO, 3_650 * day);
        let direction = self.word(&node, "direction", DIRECTIONS, Direction::Both);
        CommentPolicy {
            to_sentinel: direction.to_sentinel(),
            to_defender: direction.to_defender(),
            edits: self.word(&node, "edits", &[("notice", true), ("ignore", false)], true),
            // Ten years fit.
            edits_after_close: time::Duration::try_from(edits_after_close).unwrap_or(time::Duration::MAX),
            ignore: self.texts(&node, "ignore"),
            defender_limit: self.number(&node, "defender_limit", 30_000, 1_000_000).max(500) as usize,
            ..CommentPolicy::default()
        }
    }

    /// How owners are carried.
    fn owners(&mut self, node: &Node<'_>) -> OwnerPolicy {
        let node = self.table(node, "owners");
        self.known(&node, &["map", "domains", "lookup", "fallback", "fallback_owner", "fallback_label"]);
        let pairs = |reader: &mut Self, key: &str| {
            let table = reader.table(&node, key);
            let entries: Vec<String> = table
                .table
                .into_iter()
                .flat_map(|t| t.iter().map(|(name, _)| name.get_ref().to_string()))
                .collect();
            let mut pairs = Vec::new();
            for name in entries {
                if let Some(other) = reader.text(&table, &name) {
                    pairs.push((name, other));
                }
            }
            pairs
        };
        let (map, rewrite) = (pairs(self, "map"), pairs(self, "domains"));
        if let Some((one, other)) =
            rewrite.iter().find(|(one, other)| one.contains('@') || other.contains('@'))
        {
            self.wrong(&node, "domains", &format!("takes domains without an @, not {one} = {other}"));
        }
        let lookup = self.flag(&node, "lookup", false);
        let owner = self.text(&node, "fallback_owner");
        let label = self.text(&node, "fallback_label").unwrap_or_else(|| "owner/".to_owned());
        let words = [("as-is", 0), ("leave", 1), ("owner", 2), ("label", 3)];
        let fallback = match (self.word(&node, "fallback", &words, 0), owner) {
            (1, _) => Fallback::Leave,
            (2, Some(owner)) => Fallback::Owner(owner),
            (2, None) => {
                self.wrong(
                    &node,
                    "fallback_owner",
                    "is missing: who takes the incidents of people without a counterpart",
                );
                Fallback::AsIs
            }
            (3, _) => Fallback::Label(label),
            _ => Fallback::AsIs,
        };
        OwnerPolicy { map, rewrite, lookup, fallback }
    }

    /// The determination for each of Sentinel's reasons, where the default is not wanted.
    fn determinations(&mut self, node: &Node<'_>) -> BTreeMap<SentinelReason, DefenderDetermination> {
        let table = self.table(node, "determinations");
        let reasons: Vec<&str> = SentinelReason::KNOWN.iter().map(SentinelReason::as_str).collect();
        self.known(&table, &reasons);
        let mut wishes = BTreeMap::new();
        for reason in SentinelReason::KNOWN {
            let Some(word) = self.text(&table, reason.as_str()) else { continue };
            let classification = match reason {
                SentinelReason::SuspiciousActivity => DefenderClassification::TruePositive,
                SentinelReason::SuspiciousButExpected => {
                    DefenderClassification::InformationalExpectedActivity
                }
                _ => DefenderClassification::FalsePositive,
            };
            let wish = DefenderDetermination::parse(&word);
            if offered(&classification, &wish) {
                wishes.insert(reason.clone(), wish);
            } else {
                let suits: Vec<&str> = DefenderDetermination::KNOWN
                    .iter()
                    .filter(|word| offered(&classification, word))
                    .map(DefenderDetermination::as_str)
                    .collect();
                let message = format!("with {classification} Defender takes {}", suits.join(", "));
                self.wrong(&table, reason.as_str(), &message);
            }
        }
        wishes
    }

    /// What only shows when all tables are read: names that are taken, and names that lead nowhere.
    fn references(
        &mut self,
        root: &Node<'_>,
        server: Option<&Server>,
        tenants: &[Option<Tenant>],
        workspaces: &[Option<Workspace>],
        routes: &[Option<Route>],
    ) {
        let nodes = |reader: &mut Self, key| reader.quiet_tables(root, key);
        let (tenant_nodes, workspace_nodes, route_nodes) =
            (nodes(self, "tenants"), nodes(self, "workspaces"), nodes(self, "routes"));
        let names = |nodes: &[Node<'_>]| -> Vec<String> {
            nodes.iter().filter_map(|node| Some(node.get("name")?.get_ref().as_str()?.to_owned())).collect()
        };
        let (tenant_names, workspace_names) = (names(&tenant_nodes), names(&workspace_nodes));
        for nodes in [&tenant_nodes, &workspace_nodes, &route_nodes] {
            let mut taken = BTreeSet::new();
            for node in nodes {
                let name = node.get("name").and_then(|value| value.get_ref().as_str());
                if let Some(name) = name.filter(|name| !taken.insert(*name)) {
                    self.wrong(node, "name", &format!("`{name}` is taken: give each its own name"));
                }
            }
        }
        for (node, workspace) in workspace_nodes.iter().zip(workspaces).filter_map(both) {
            self.refers(node, "tenant", &workspace.tenant, &tenant_names);
        }
        let mut subscribed = BTreeSet::new();
        for (node, tenant) in tenant_nodes.iter().zip(tenants).filter_map(both) {
            if tenant.subscriptions.is_empty() {
                continue;
            }
            if !subscribed.insert(&tenant.tenant_id) {
                let message = "another entry of this tenant has subscriptions: keep them all in one";
                self.wrong(node, "subscriptions", message);
            }
            let host = server.as_ref().and_then(|server| server.public_url.as_ref());
            let reachable = host.is_some_and(|url| url.scheme() == "https" || is_local(url));
            if server.is_some() && !reachable {
                let message = "needs server.public_url, an https address that Graph can reach";
                self.wrong(node, "subscriptions", message);
            }
        }
        let mut resources = BTreeSet::new();
        for (node, workspace) in workspace_nodes.iter().zip(workspaces).filter_map(both) {
            if !resources.insert(workspace.resource_id()) {
                let message =
                    "is the workspace of an entry above: keep one of them, and let both routes name it";
                self.wrong(node, "workspace_name", message);
            }
        }
        for (node, route) in route_nodes.iter().zip(routes).filter_map(both) {
            self.refers(node, "tenant", &route.tenant, &tenant_names);
            self.refers(node, "workspace", &route.workspace, &workspace_names);
            let tenant = tenants.iter().flatten().find(|tenant| tenant.name == route.tenant);
            if tenant.is_some_and(|tenant| tenant.cloud == Cloud::China) {
                let message =
                    "is in the cloud `china`, where Graph has no incidents: it can only hold workspaces";
                self.wrong(node, "tenant", &format!("`{}` {message}", route.tenant));
            }
        }
    }

    fn poll(&mut self, root: &Node<'_>) -> Poll {
        let node = self.table(root, "poll");
        self.known(
            &node,
            &[
                "defender_every",
                "sentinel_every",
                "alerts_every",
                "sweep_every",
                "overlap",
                "backfill",
                "stretch",
            ],
        );
        const SECOND: Duration = Duration::from_secs(1);
        const DAY: Duration = Duration::from_secs(86_400);
        let tenth = Duration::from_millis(100);
        let mut span = |key, default, least, most| self.duration(&node, key, default, least, most);
        Poll {
            defender_every: span("defender_every", 10 * SECOND, tenth, DAY),
            sentinel_every: span("sentinel_every", 15 * SECOND, tenth, DAY),
            alerts_every: span("alerts_every", 60 * SECOND, Duration::ZERO, DAY),
            sweep_every: span("sweep_every", DAY / 4, SECOND, 30 * DAY),
            overlap: span("overlap", 300 * SECOND, Duration::ZERO, DAY),
            backfill: span("backfill", 7 * DAY, Duration::ZERO, 180 * DAY),
            stretch: span("stretch", Duration::ZERO, Duration::ZERO, DAY),
        }
    }

    fn limits(&mut self, root: &Node<'_>) -> Limits {
        let node = self.table(root, "limits");
        self.known(
            &node,
            &[
                "workers",
                "defender_per_minute",
                "defender_per_hour",
                "sentinel_reads_per_second",
                "sentinel_writes_per_second",
            ],
        );
        let mut number = |key, default, most| self.number(&node, key, default, most);
        Limits {
            workers: number("workers", 8, 256),
            defender_per_minute: number("defender_per_minute", 50, 10_000),
            defender_per_hour: number("defender_per_hour", 1_500, 100_000),
            sentinel_reads_per_second: number("sentinel_reads_per_second", 25, 1_000),
            sentinel_writes_per_second: number("sentinel_writes_per_second", 10, 1_000),
        }
    }

    fn log(&mut self, root: &Node<'_>) -> Log {
        let node = self.table(root, "log");
        self.known(&node, &["format", "level"]);
        let format = self.word(
            &node,
            "format",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            LogFormat::Text,
        );
        let level = self.overridden(&node, "level", "LOCKSTEP_LOG").unwrap_or("info".into());
        if tracing_subscriber::EnvFilter::try_new(&level).is_err() {
            self.wrong(
                &node,
                "level",
                "must be error, warn, info, debug, trace or a filter such as lockstep=debug,warn",
            );
        }
        Log { format, level }
    }

    // What follows reads one value each.

    fn problem(&mut self, key: &str, span: Option<Range<usize>>, message: String) {
        let place = span.map(|span| {
            let before = &self.text[..self.text.floor_char_boundary(span.start)];
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        });
        self.problems.push(Problem { place, key: key.to_owned(), message });
    }

    /// Reports a key's value, or its table where the key is missing, or the variable that overrides it.
    fn wrong(&mut self, node: &Node<'_>, key: &str, message: &str) {
        let variable = match (node.path.as_str(), key) {
            ("server", "listen") => "LOCKSTEP_LISTEN",
            ("server", "public_url") => "LOCKSTEP_PUBLIC_URL",
            ("store", "url") => "LOCKSTEP_STORE_URL",
            ("log", "level") => "LOCKSTEP_LOG",
            _ => "",
        };
        if self.env.contains_key(variable) {
            return self.problem(variable, None, message.to_owned());
        }
        // A list or a file may stand for a key of the same beginning.
        let file = format!("{key}_file");
        let key = if node.get(key).is_none() && node.get(&file).is_some() { &file } else { key };
        let span = node.span_of(key);
        self.problem(&node.key(key), (span != (0..0)).then_some(span), message.to_owned());
    }

    fn known(&mut self, node: &Node<'_>, known: &[&str]) {
        for (key, _) in node.table.into_iter().flatten() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let close = known
                .iter()
                .map(|name| (strsim::damerau_levenshtein(key.get_ref(), name), name))
                .min()
                .filter(|(distance, name)| *distance <= 2.max(name.len() / 3));
            let hint = match close {
                Some((_, name)) => format!("did you mean `{name}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.problem(&node.key(key.get_ref()), Some(key.span()), format!("unknown key; {hint}"));
        }
    }

    fn table<'t>(&mut self, node: &Node<'t>, key: &str) -> Node<'t> {
        let value = node.get(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.mistyped(node, key, "a table", value.get_ref());
        }
        Node { path: node.key(key), span: value.map_or(node.span.clone(), Spanned::span), table }
    }

    fn tables<'t>(&mut self, node: &Node<'t>, key: &str) -> Vec<Node<'t>> {
        if let Some(value) = node.get(key) {
            let items = value.get_ref().as_array();
            if !items.is_some_and(|items| items.iter().all(|item| item.get_ref().is_table())) {
                self.mistyped(
                    node,
                    key,
                    &format!("a list of tables, each under `[[{key}]]`"),
                    value.get_ref(),
                );
            }
        }
        self.quiet_tables(node, key)
    }

    fn quiet_tables<'t>(&self, node: &Node<'t>, key: &str) -> Vec<Node<'t>> {
        let items = node.get(key).and_then(|value| value.get_ref().as_array());
        let tables = items.into_iter().flat_map(|items| items.iter().enumerate());
        tables
            .filter_map(|(index, item)| {
                let table = Some(item.get_ref().as_table()?);
                Some(Node { path: format!("{}[{index}]", node.key(key)), span: item.span(), table })
            })
            .collect()
    }

    fn mistyped(&mut self, node: &Node<'_>, key: &str, wanted: &str, found: &DeValue<'_>) {
        let message = format!("must be {wanted}, not {}", a(found.type_str()));
        self.problem(&node.key(key), Some(node.span_of(key)), message);
    }

    fn text(&mut self, node: &Node<'_>, key: &str) -> Option<String> {
        let value = node.get(key)?.get_ref();
        match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.mistyped(node, key, "text in quotes", value);
                None
            }
        }
    }

    fn overridden(&mut self, node: &Node<'_>, key: &str, variable: &str) -> Option<String> {
        let in_file = self.text(node, key);
        self.env.get(variable).cloned().or(in_file)
    }

    fn required(&mut self, node: &Node<'_>, key: &str) -> Option<String> {
        if node.get(key).is_none() {
            self.problem(&node.key(key), Some(node.span.clone()), "is missing".to_owned());
            return None;
        }
        let text = self.text(node, key)?;
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            self.wrong(node, key, "must not be empty, nor hold control characters");
            return None;
        }
        Some(text)
    }

    /// Names stand in paths and in metrics.
    fn name(&mut self, node: &Node<'_>) -> Option<String> {
        let name = self.required(node, "name")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.len() > 64 || !name.bytes().all(plain) {
            self.wrong(
                node,
                "name",
                "may have up to 64 letters, digits, `-`, `_` and `.`: it stands in addresses",
            );
            return None;
        }
        Some(name)
    }

    fn segment(&mut self, node: &Node<'_>, key: &str) -> Option<String> {
        let text = self.required(node, key)?;
        if text.contains(['/', '?', '#', '%', '\\']) {
            self.wrong(node, key, "is a name, not a path: take the part after the last slash");
            return None;
        }
        Some(text)
    }

    fn guid(&mut self, node: &Node<'_>, key: &str) -> Option<String> {
        let text = self.required(node, key)?;
        match Uuid::try_parse(&text) {
            Ok(guid) if text.len() == 36 => Some(guid.to_string()),
            _ => {
                self.wrong(node, key, "must be a GUID, such as 84bd8158-6d4d-4958-8b9f-9d6445542f95");
                None
            }
        }
    }

    fn web(&mut self, node: &Node<'_>, key: &str, text: &str) -> Option<Url> {
        let Ok(url) = Url::parse(text) else {
            self.wrong(node, key, "must be a URL, such as https://lockstep.example.com");
            return None;
        };
        let loopback = is_local(&url);
        let message = match url.scheme() {
            _ if !url.username().is_empty() || url.password().is_some() => {
                "must not hold a user or a password"
            }
            _ if url.query().is_some() || url.fragment().is_some() => "must end before `?` and `#`",
            "https" => return Some(url),
            "http" if loopback => return Some(url),
            "http" => "must begin with `https://`: plain HTTP is for loopback addresses only",
            _ => "must begin with `https://`",
        };
        self.wrong(node, key, message);
        None
    }

    fn word<T: Copy>(&mut self, node: &Node<'_>, key: &str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(node, key) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                self.wrong(node, key, &format!("must be one of: {}", list.join(", ")));
                default
            }
        }
    }

    fn duration(
        &mut self,
        node: &Node<'_>,
        key: &str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        let Some(text) = self.text(node, key) else { return default };
        match parse_duration(&text) {
            Some(duration) if (least..=most).contains(&duration) => return duration,
            Some(_) => self.wrong(node, key, &format!("must be between {least:?} and {}s", most.as_secs())),
            None => {
                self.wrong(node, key, "must be a whole number and a unit: ms, s, m, h or d, such as \"10s\"")
            }
        }
        default
    }

    fn flag(&mut self, node: &Node<'_>, key: &str, default: bool) -> bool {
        let Some(value) = node.get(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.mistyped(node, key, "true or false", value.get_ref());
            default
        })
    }

    /// A list of texts; none where the key is missing.
    fn texts(&mut self, node: &Node<'_>, key: &str) -> Vec<String> {
        let Some(value) = node.get(key) else { return Vec::new() };
        let texts = value.get_ref().as_array().and_then(|items| {
            items.iter().map(|item| Some(item.get_ref().as_str()?.to_owned())).collect::<Option<Vec<_>>>()
        });
        if texts.is_none() {
            self.mistyped(node, key, "a list of texts, such as [\"high\"]", value.get_ref());
        }
        let texts = texts.unwrap_or_default();
        if texts.iter().any(|text| text.trim().is_empty()) {
            self.wrong(node, key, "holds an empty text: leave it out");
        }
        texts
    }

    fn number(&mut self, node: &Node<'_>, key: &str, default: u32, most: u32) -> u32 {
        let Some(value) = node.get(key) else { return default };
        let Some(integer) = value.get_ref().as_integer() else {
            self.mistyped(node, key, "a whole number", value.get_ref());
            return default;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if (1..=most).contains(&number) => number,
            _ => {
                self.wrong(node, key, &format!("must be between 1 and {most}"));
                default
            }
        }
    }

    fn file(&mut self, node: &Node<'_>, key: &str, path: &str) -> Option<String> {
        match (self.read_file)(Path::new(path)) {
            Ok(text) => Some(text),
            Err(error) => {
                self.wrong(node, key, &format!("`{path}` cannot be read: {error}"));
                None
            }
        }
    }

    /// The text of `key`, or that of the file which `key_file` names; at most one of them may be given.
    fn value_or_file<T>(
        &mut self,
        node: &Node<'_>,
        key: &str,
        value: impl FnOnce(&mut Self) -> Option<T>,
        from_file: impl FnOnce(&str) -> T,
    ) -> Option<T> {
        let file_key = format!("{key}_file");
        match (node.get(key).is_some(), node.get(&file_key).is_some()) {
            (true, true) => {
                self.wrong(node, &file_key, &format!("stands beside `{key}`: keep one of the two"));
                None
            }
            (true, false) => value(self),
            (false, true) => {
                let path = self.text(node, &file_key)?;
                self.file(node, &file_key, &path).map(|text| from_file(&text))
            }
            (false, false) => None,
        }
    }

    fn secret(&mut self, node: &Node<'_>, key: &str) -> Option<SecretString> {
        if node.get(key).is_none() && node.get(&format!("{key}_file")).is_none() {
            let message = format!("is missing: give `{key}`, or `{key}_file` with a path");
            self.problem(&node.key(key), Some(node.span.clone()), message);
        }
        let secret = self.value_or_file(
            node,
            key,
            |reader| reader.text(node, key),
            |text| text.trim_end().to_owned(),
        )?;
        if secret.trim().is_empty() {
            self.wrong(node, key, "is empty");
            return None;
        }
        Some(secret.into())
    }

    /// A list, or a file with one secret per line.
    fn secrets(&mut self, node: &Node<'_>, key: &str) -> Vec<SecretString> {
        let list = self.value_or_file(
            node,
            key,
            |reader| {
                let value = node.get(key)?.get_ref();
                let texts = value.as_array().and_then(|items| {
                    items
                        .iter()
                        .map(|item| Some(item.get_ref().as_str()?.to_owned()))
                        .collect::<Option<Vec<_>>>()
                });
                if texts.is_none() {
                    reader.mistyped(node, key, "a list of texts, such as [\"…\"]", value);
                }
                texts
            },
            |text| text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect(),
        );
        let Some(list) = list else { return Vec::new() };
        if list.is_empty() {
            self.wrong(node, key, "holds no secret: add one, or leave the key out");
        }
        list.into_iter().map(SecretString::from).collect()
    }

    fn refers(&mut self, node: &Node<'_>, key: &str, name: &str, names: &[String]) {
        if !names.iter().any(|known| known == name) {
            let known = if names.is_empty() { "none is configured".into() } else { names.join(", ") };
            self.wrong(node, key, &format!("there is no {key} called `{name}`; known: {known}"));
        }
    }
}

const DIRECTIONS: &[(&str, Direction)] = &[
    ("both", Direction::Both),
    ("to-sentinel", Direction::ToSentinel),
    ("to-defender", Direction::ToDefender),
    ("off", Direction::Off),
];

const WINNERS: &[(&str, Winner)] = &[
    ("latest", Winner::Latest),
    ("defender", Winner::Defender),
    ("sentinel", Winner::Sentinel),
    ("human", Winner::Human),
];

const NATIVES: &[(&str, Native)] =
    &[("refuse", Native::Refuse), ("skip", Native::Skip), ("adopt", Native::Adopt)];

const VANISHED: &[(&str, Vanished)] =
    &[("park", Vanished::Park), ("unlink", Vanished::Unlink), ("recreate", Vanished::Recreate)];

const ALERT_MODES: &[(&str, AlertMode)] =
    &[("off", AlertMode::Off), ("digest", AlertMode::Digest), ("bookmarks", AlertMode::Bookmarks)];

const FOLLOWS: &[(&str, Follow)] =
    &[("off", Follow::Off), ("on-resolve", Follow::OnResolve), ("always", Follow::Always)];

const UNMATCHED: &[(&str, Unmatched)] =
    &[("keep", Unmatched::Keep), ("leave", Unmatched::Leave), ("close", Unmatched::Close)];

fn both<'n, 't, T>((node, value): (&'n Node<'t>, &'n Option<T>)) -> Option<(&'n Node<'t>, &'n T)> {
    Some((node, value.as_ref()?))
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn a(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[tenants]]
name = "contoso"
tenant_id = "84BD8158-6d4d-4958-8b9f-9d6445542f95"
client_id = "11111111-1111-1111-1111-111111111111"
client_secret_file = "secret"
[[workspaces]]
name = "soc"
tenant = "contoso"
subscription_id = "d0cfe6b2-9ac0-4464-9919-dccaee2e48c0"
resource_group = "Rg"
workspace_name = "Ws"
webhook_secrets_file = "hooks"
[[routes]]
name = "contoso-soc"
tenant = "contoso"
workspace = "soc"
[routes.fields]
title = { direction = "both", wins = "defender" }
severity = { wins = "sentinel" }
[poll]
defender_every = "250ms"
sweep_every = "1d"
"#;

    fn parse(text: &str) -> Result<Config, ConfigErrors> {
        parse_with(text, &BTreeMap::new())
    }

    fn parse_with(text: &str, env: &BTreeMap<String, String>) -> Result<Config, ConfigErrors> {
        Config::parse(text, env, &|path| match path.to_str() {
            Some("secret") => Ok("hush-hush\n".into()),
            Some("hooks") => Ok("whsec_AAECAwQFBgcICQoLDA0ODw==\n\nwhsec_AAECAwQFBgcICQoLDA0ODw\n".into()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
        })
    }

    #[test]
    fn subscriptions_are_read_and_what_they_need_is_asked_for() {
        let reachable = "[server]\npublic_url = \"https://lockstep.example\"\n";
        let with = |head: &str, more: &str| {
            let at = GOOD.find("[[workspaces]]").unwrap();
            parse(&format!("{head}{}{more}\n{}", &GOOD[..at], &GOOD[at..]))
        };
        let one = "[[tenants.subscriptions]]\nresource = \"/security/incidents\"\n";
        let config = with(reachable, one).unwrap();
        let wish = &config.tenants[0].subscriptions[0];
        assert_eq!((wish.resource.as_str(), wish.rich), ("security/incidents", false));
        assert_eq!(wish.change_types, ["created", "updated"]);
        assert_eq!(wish.lifetime, Duration::from_secs(172_800));
        let vault = "[[tenants.certificates]]\nid = \"v\"\nvault_url = \"https://v.vault.azure.net\"\n\
                     secret = \"rich\"\n";
        let rich = format!("{one}rich = true\nchange_types = [\"updated\", \"created\"]\n{vault}");
        let config = with(reachable, &rich).unwrap();
        assert!(matches!(config.tenants[0].certificates[0], CertificateSource::Vault { .. }));
        assert_eq!(config.tenants[0].subscriptions[0].change_types, ["created", "updated"]);
        for (head, more, said) in [
            ("", one.to_owned(), "subscriptions: needs server.public_url"),
            (reachable, format!("{one}rich = true\n"), "rich: needs a certificate"),
            (reachable, format!("{one}{one}"), "subscriptions[1].resource: is watched by an entry above"),
            (reachable, format!("{one}change_types = [\"gone\"]\n"), "`gone` is none of created"),
            (reachable, format!("{one}lifetime = \"31d\"\n"), "subscriptions[0].lifetime:"),
            (reachable, one.replace("/security", "https://security"), "must be a path without a host"),
            (reachable, format!("{one}colour = 1\n"), "unknown key"),
            (
                reachable,
                "[[tenants.certificates]]\nid = \"f\"\ncertificate_file = \"hooks\"\nkey_file = \"secret\"\n"
                    .to_owned(),
                "certificates[0].certificate_file: holds no certificate",
            ),
        ] {
            let errors = with(head, &more).unwrap_err().to_string();
            assert!(errors.contains(said), "{said}: {errors}");
            assert!(!errors.contains("hush"), "{errors}");
        }
    }

    #[test]
    fn a_good_file_is_read_whole() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.tenants[0].tenant_id, "84bd8158-6d4d-4958-8b9f-9d6445542f95");
        assert_eq!(config.tenants[0].client_secret.expose_secret(), "hush-hush");
        assert_eq!(config.tenants[0].graph_url.as_str(), "https://graph.microsoft.com/");
        assert_eq!(config.workspaces[0].webhook_secrets.len(), 2);
        let policy = &config.routes[0].policy;
        assert_eq!(policy.of(Field::Title).direction, Direction::Both);
        assert_eq!(policy.of(Field::Severity).wins, Winner::Sentinel);
        assert_eq!(policy.of(Field::Severity).direction, Direction::Both);
        assert_eq!(config.poll.defender_every, Duration::from_millis(250));
        assert_eq!(config.poll.sentinel_every, Duration::from_secs(15));
        assert!(!format!("{config:?}").contains("hush"), "secrets are not printed");
        let env = BTreeMap::from([("LOCKSTEP_LISTEN".to_owned(), "[::]:9".to_owned())]);
        assert_eq!(parse_with(GOOD, &env).unwrap().server.listen.port(), 9);
        let env = BTreeMap::from([("LOCKSTEP_LISTEN".to_owned(), "here".to_owned())]);
        let errors = parse_with(GOOD, &env).unwrap_err().to_string();
        assert!(errors.starts_with("lockstep.toml: LOCKSTEP_LISTEN: must be an address"), "{errors}");
    }

    #[test]
    fn the_store_is_found_from_any_folder() {
        for (folder, url, found) in [
            ("/etc/lockstep", "sqlite://lockstep.db", "sqlite:///etc/lockstep/lockstep.db"),
            ("/etc/lockstep", "sqlite:///var/lib/lockstep.db", "sqlite:///var/lib/lockstep.db"),
            ("", "sqlite://lockstep.db", "sqlite://lockstep.db"),
            ("/etc", "postgres://u:p@h/d", "postgres://u:p@h/d"),
        ] {
            assert_eq!(beside(Path::new(folder), url), found);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lockstep.toml");
        let good = GOOD.replace("client_secret_file = \"secret\"", "client_secret = \"hush\"");
        std::fs::write(&file, good.replace("webhook_secrets_file = \"hooks\"\n", "")).unwrap();
        let config = Config::load(&file, &BTreeMap::new()).unwrap();
        let beside = format!("sqlite://{}", folder.path().join("lockstep.db").display());
        assert_eq!(config.store_url.expose_secret(), beside);
        let env = BTreeMap::from([("LOCKSTEP_STORE_URL".to_owned(), "sqlite://here.db".to_owned())]);
        assert_eq!(Config::load(&file, &env).unwrap().store_url.expose_secret(), "sqlite://here.db");
    }

    #[test]
    fn each_mistake_has_its_place_and_its_cure() {
        let cases = [
            (
                "client_id",
                "client_ld",
                "lockstep.toml:5:1: tenants[0].client_ld: unknown key; did you mean `client_id`?",
            ),
            (
                "wins = \"sentinel\"",
                "win = \"sentinel\"",
                "lockstep.toml:20:14: routes[0].fields.severity.win: unknown key; did you mean `wins`?",
            ),
            (
                "severity =",
                "severty =",
                "lockstep.toml:20:1: routes[0].fields.severty: unknown key; did you mean `severity`?",
            ),
            ("[poll]", "[pol]", "lockstep.toml:21:2: pol: unknown key; did you mean `poll`?"),
            (
                "84BD8158",
                "84BD",
                "lockstep.toml:4:13: tenants[0].tenant_id: must be a GUID, such as 84bd8158-6d4d-4958-8b9f-9d6445542f95",
            ),
            (
                "\"250ms\"",
                "10",
                "lockstep.toml:22:18: poll.defender_every: must be text in quotes, not an integer",
            ),
            (
                "\"250ms\"",
                "\"ten\"",
                "lockstep.toml:22:18: poll.defender_every: must be a whole number and a unit: ms, s, m, h or d, such as \"10s\"",
            ),
            (
                "\"250ms\"",
                "\"1ms\"",
                "lockstep.toml:22:18: poll.defender_every: must be between 100ms and 86400s",
            ),
            (
                "tenant = \"contoso\"\nsub",
                "tenant = \"fabrikam\"\nsub",
                "lockstep.toml:9:10: workspaces[0].tenant: there is no tenant called `fabrikam`; known: contoso",
            ),
            (
                "workspace = \"soc\"",
                "workspace = \"sec\"",
                "lockstep.toml:17:13: routes[0].workspace: there is no workspace called `sec`; known: soc",
            ),
            (
                "\"secret\"",
                "\"gone\"",
                "lockstep.toml:6:22: tenants[0].client_secret_file: `gone` cannot be read: no such file",
            ),
            (
                "client_secret_file = \"secret\"",
                "client_secret = \"\"",
                "lockstep.toml:6:17: tenants[0].client_secret: is empty",
            ),
            (
                "webhook_secrets_file = \"hooks\"",
                "webhook_secrets = [\"whsec_AAEC\"]",
                "lockstep.toml:13:19: workspaces[0].webhook_secrets: one of them has fewer than 16 bytes; make one with: echo whsec_$(openssl rand -base64 32)",
            ),
            (
                "client_secret_file",
                "graph_url = \"http://graph.example\"\nclient_secret_file",
                "lockstep.toml:6:13: tenants[0].graph_url: must begin with `https://`: plain HTTP is for loopback addresses only",
            ),
            (
                "client_secret_file",
                "client_secret = \"hush\"\nclient_secret_file",
                "lockstep.toml:7:22: tenants[0].client_secret_file: stands beside `client_secret`: keep one of the two",
            ),
            (
                "client_secret_file",
                "cloud = \"china\"\nclient_secret_file",
                "lockstep.toml:17:10: routes[0].tenant: `contoso` is in the cloud `china`, where Graph has no incidents: it can only hold workspaces",
            ),
            (
                "direction = \"both\"",
                "direction = \"up\"",
                "lockstep.toml:19:23: routes[0].fields.title.direction: must be one of: both, to-sentinel, to-defender, off",
            ),
            (
                "[poll]",
                "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\n[poll]",
                "lockstep.toml:22:19: server.trusted_proxies: `10.0.0.1/8` has bits set behind its prefix; write 10.0.0.0/8, 2001:db8::/32 or one address",
            ),
            (
                "[poll]",
                "[server.allow]\ngraph = []\n[poll]",
                "lockstep.toml:22:9: server.allow.graph: lets nobody in: name networks, or leave the key out to let everybody in",
            ),
            (
                "[poll]",
                "[server.tls]\ncertificate_file = \"secret\"\nclient_certificates = \"optional\"\n[poll]",
                "lockstep.toml:22:20: server.tls.certificate_file: holds no `-----BEGIN CERTIFICATE-----`: it must be in PEM form",
            ),
            (
                "[poll]",
                "[server.tls]\ncertificate_file = \"secret\"\nclient_certificates = \"optional\"\n[poll]",
                "lockstep.toml:23:23: server.tls.client_certificates: needs `client_ca_file`: the authorities of the senders' certificates",
            ),
            (
                "[poll]",
                "[server.limits]\nbody_mib = 3\n[poll]",
                "lockstep.toml:22:12: server.limits.body_mib: must be 4 or more: one body may have 4 MiB",
            ),
            ("resource_group = \"Rg\"\n", "", "lockstep.toml:7:1: workspaces[0].resource_group: is missing"),
        ];
        for (from, to, wanted) in cases {
            let errors = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(errors.to_string().lines().any(|line| line == wanted), "wanted {wanted}\ngot {errors}");
        }
    }

    #[test]
    fn a_backfill_names_a_point_in_the_past() {
        let with =
            |table: &str| parse(&GOOD.replacen("[poll]", &format!("[routes.backfill]\n{table}\n[poll]"), 1));
        let read = |table: &str| with(table).map(|config| config.routes[0].backfill);
        let since = Since::Ago(30 * Duration::from_secs(86_400));
        assert_eq!(read("since = \"30d\""), Ok(Some(Backfill { since, newest_first: true })));
        let since = Since::At(time::macros::datetime!(2026-01-31 0:00 UTC));
        let oldest = read("since = \"2026-01-31\"\norder = \"oldest\"");
        assert_eq!(oldest, Ok(Some(Backfill { since, newest_first: false })));
        for wrong in ["since = \"last week\"", "order = \"newest\"", "since = \"30d\"\nuntil = \"1d\""] {
            assert!(with(wrong).unwrap_err().to_string().contains("routes[0].backfill"), "{wrong}");
        }
        assert_eq!(parse(GOOD).unwrap().routes[0].backfill, None);
    }

    #[test]
    fn all_problems_come_at_once_in_the_order_of_the_file() {
        let text = GOOD.replace("84BD", "x").replace("\"Rg\"", "7").replace("\"1d\"", "\"1y\"");
        let doubled =
            format!("{text}[[routes]]\nname = \"contoso-soc\"\ntenant = \"contoso\"\nworkspace = \"soc\"\n");
        let errors = parse(&doubled).unwrap_err();
        let keys: Vec<_> = errors.problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            ["tenants[0].tenant_id", "workspaces[0].resource_group", "poll.sweep_every", "routes[1].name",]
        );
        let syntax = parse("[store]\nurl = \"postgres://u:hush@h\n").unwrap_err().to_string();
        assert!(syntax.starts_with("lockstep.toml:2:") && !syntax.contains("hush"), "{syntax}");
    }

    #[test]
    fn two_routes_between_the_same_two_are_told_apart_by_their_filters() {
        let second = |name: &str, filter: &str| {
            format!("[[routes]]\nname = \"{name}\"\ntenant = \"contoso\"\nworkspace = \"soc\"\n{filter}\n")
        };
        let high = "[routes.filter]\nseverities = [\"high\"]";
        // The first of GOOD has no filter: whatever comes after it gets nothing.
        let config = parse(&format!("{GOOD}{}", second("high", high))).unwrap();
        let [overlap] = config.overlaps()[..] else { panic!("{:?}", config.overlaps()) };
        assert!(overlap.never);
        let said = overlap.to_string();
        assert!(said.starts_with("route high can never match: route contoso-soc before it"), "{said}");
        let config = parse(&format!("{GOOD}{}{}", second("high", high), second("rest", ""))).unwrap();
        let overlaps = config.overlaps();
        let never: Vec<_> = overlaps.iter().map(|o| (o.first, o.second, o.never)).collect();
        assert_eq!(
            never,
            [("contoso-soc", "high", true), ("contoso-soc", "rest", true), ("high", "rest", false)]
        );
    }
}
