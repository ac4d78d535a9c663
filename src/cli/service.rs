//! The service, joined together: adapters behind ports, workers, pollers and the sweep over them, doors in front. The
//! same for `serve` and for the demo.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::adapters::budget::{Limits, Quotas};
use crate::adapters::call::Shared;
use crate::adapters::clock::{FastrandDice, SystemClock};
use crate::adapters::entra::{EntraSettings, TokenSource};
use crate::adapters::graph::{GraphClient, GraphDirectory, GraphSettings, GraphSubscriptions};
use crate::adapters::keys::EntraKeys;
use crate::adapters::sentinel::{DEFAULT_API_VERSION, SentinelClient, SentinelSettings};
use crate::adapters::transport::{ClientOptions, Transport};
use crate::adapters::vault::KeyVault;
use crate::app::backfill::{self, BackfillOptions, Backfiller};
use crate::app::health::{Health, WatchedRoute};
use crate::app::intake::Inbox;
use crate::app::keyring::{Keyring, Source};
use crate::app::metrics::Metrics;
use crate::app::native;
use crate::app::poll::{PollOptions, Poller};
#[cfg(feature = "emulator")]
use crate::app::reconcile::Reconciler;
use crate::app::reconcile::Watch;
use crate::app::routes::{Directories, Route, Routes};
use crate::app::subscriptions::{Board, Book, Manager, Wish};
use crate::app::sweep::{SweepOptions, Sweeper};
use crate::app::tokens::Tokens;
use crate::app::worker::Worker;
use crate::config::{CertificateSource, Config, SubscriptionWish, Tenant};
use crate::domain::token::Authority;
use crate::http::{self, AppState, DoorMetrics, Doors, Phase};
use crate::ports::{Clock, Directory, Store};
use crate::telemetry;

use super::operate;

/// How often what has had its time is forgotten.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// Both systems of every route, as the configuration joins them.
pub(super) struct Sides {
    /// By the tenant's name: each that is the Defender side of a route.
    pub(super) defenders: Vec<(String, Arc<GraphClient>)>,
    /// By the workspace's name: each that is the Sentinel side of a route.
    pub(super) sentinels: Vec<(String, Arc<SentinelClient>)>,
    /// The routes over them.
    pub(super) routes: Arc<Routes>,
    /// By the tenant's name: the subscriptions of each tenant that may have some.
    pub(super) subscriptions: Vec<(String, Arc<GraphSubscriptions>)>,
    /// The certificates of the subscriptions.
    pub(super) keyring: Keyring,
}

impl Sides {
    /// Builds the clients. Nothing is called yet.
    pub(super) fn new(config: &Config, health: &Arc<Health>) -> anyhow::Result<Self> {
        let extra_ca = config.ca_pem.clone().map(String::into_bytes);
        let transport = Transport::new(&ClientOptions { extra_ca, ..ClientOptions::default() })?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let limits = Limits {
            graph_per_minute: config.limits.defender_per_minute,
            graph_per_hour: config.limits.defender_per_hour,
            arm_reads_per_second: config.limits.sentinel_reads_per_second,
            arm_writes_per_second: config.limits.sentinel_writes_per_second,
            ..Limits::default()
        };
        let shared = Shared {
            transport: transport.clone(),
            clock: clock.clone(),
            observer: health.clone(),
            quotas: Arc::new(Quotas::new(limits)),
        };
        let tokens: Vec<(&str, Arc<TokenSource>)> = config
            .tenants
            .iter()
            .map(|tenant| {
                let settings = EntraSettings {
                    login_url: tenant.login_url.clone(),
                    tenant_id: tenant.tenant_id.clone(),
                    client_id: tenant.client_id.clone(),
                    client_secret: tenant.client_secret.clone(),
                };
                (tenant.name.as_str(), TokenSource::new(settings, transport.clone(), clock.clone()))
            })
            .collect();
        let source = |name: &str| {
            let found = tokens.iter().find(|(known, _)| *known == name);
            found.map(|(_, source)| source.clone()).ok_or_else(|| anyhow!("no tenant is called {name:?}"))
        };
        let tenant = |name: &str| -> anyhow::Result<&Tenant> {
            config.tenant(name).with_context(|| format!("no tenant is called {name:?}"))
        };
        let mut sides = Self {
            defenders: Vec::new(),
            sentinels: Vec::new(),
            routes: Arc::default(),
            subscriptions: Vec::new(),
            keyring: Keyring::default(),
        };
        let mut certificates: HashMap<String, Vec<Source>> = HashMap::new();
        for of in &config.tenants {
            let settings = GraphSettings {
                graph_url: of.graph_url.clone(),
                scope: of.cloud.graph_scope().to_owned(),
                tenant_id: of.tenant_id.clone(),
                alerts: false,
            };
            let client = GraphSubscriptions::new(settings, source(&of.name)?, shared.clone());
            sides.subscriptions.push((of.name.clone(), Arc::new(client)));
            for certificate in &of.certificates {
                let from = match certificate {
                    CertificateSource::Files(key) => Source::Here(key.clone()),
                    CertificateSource::Vault { id, vault_url, secret } => Source::Vault {
                        id: id.clone(),
                        vault: Arc::new(KeyVault::new(
                            vault_url.clone(),
                            of.cloud.vault_scope().to_owned(),
                            source(&of.name)?,
                            transport.clone(),
                            clock.clone(),
                        )),
                        secret: secret.clone(),
                    },
                };
                certificates.entry(of.tenant_id.clone()).or_default().push(from);
            }
        }
        sides.keyring = Keyring::new(certificates);
        let mut routes = Vec::new();
        let mut people: HashMap<String, Arc<dyn Directory>> = HashMap::new();
        for route in &config.routes {
            let defending = tenant(&route.tenant)?;
            if !sides.defenders.iter().any(|(name, _)| *name == route.tenant) {
                let settings = GraphSettings {
                    graph_url: defending.graph_url.clone(),
                    scope: defending.cloud.graph_scope().to_owned(),
                    tenant_id: defending.tenant_id.clone(),
                    alerts: config
                        .routes
                        .iter()
                        .any(|other| other.tenant == route.tenant && other.policy.wants_alerts()),
                };
                let client = Arc::new(GraphClient::new(settings, source(&route.tenant)?, shared.clone()));
                sides.defenders.push((route.tenant.clone(), client));
            }
            let workspace = config
                .workspace(&route.workspace)
                .with_context(|| format!("no workspace is called {:?}", route.workspace))?;
            if !sides.sentinels.iter().any(|(name, _)| *name == route.workspace) {
                let owner = tenant(&workspace.tenant)?;
                let settings = SentinelSettings {
                    arm_url: owner.arm_url.clone(),
                    scope: owner.cloud.arm_scope().to_owned(),
                    subscription_id: workspace.subscription_id.clone(),
                    resource_group: workspace.resource_group.clone(),
                    workspace_name: workspace.workspace_name.clone(),
                    api_version: DEFAULT_API_VERSION.to_owned(),
                };
                let client =
                    Arc::new(SentinelClient::new(settings, source(&workspace.tenant)?, shared.clone()));
                sides.sentinels.push((route.workspace.clone(), client));
            }
            let defender = sides.defenders.iter().find(|(name, _)| *name == route.tenant);
            let sentinel = sides.sentinels.iter().find(|(name, _)| *name == route.workspace);
            let mut directory = |name: &str| -> anyhow::Result<Option<Arc<dyn Directory>>> {
                if !route.policy.owners.lookup {
                    return Ok(None);
                }
                let of = tenant(name)?;
                let known = people.entry(of.tenant_id.clone());
                let made = match known {
                    Entry::Occupied(known) => known.get().clone(),
                    Entry::Vacant(place) => {
                        let settings = GraphSettings {
                            graph_url: of.graph_url.clone(),
                            scope: of.cloud.graph_scope().to_owned(),
                            tenant_id: of.tenant_id.clone(),
                            alerts: false,
                        };
                        let made: Arc<dyn Directory> =
                            Arc::new(GraphDirectory::new(settings, source(name)?, shared.clone()));
                        place.insert(made).clone()
                    }
                };
                Ok(Some(made))
            };
            let directories =
                Directories { defender: directory(&route.tenant)?, sentinel: directory(&workspace.tenant)? };
            // Both were put there by the lines above.
            if let (Some((_, defender)), Some((_, sentinel))) = (defender, sentinel) {
                routes.push(Route {
                    name: route.name.clone(),
                    tenant_id: defending.tenant_id.clone(),
                    workspace: workspace.resource_id(),
                    home: tenant(&workspace.tenant)?.tenant_id.clone(),
                    policy: route.policy.clone(),
                    defender: defender.clone(),
                    sentinel: sentinel.clone(),
                    directories,
                });
            }
        }
        sides.routes = Arc::new(Routes::new(routes).map_err(|why| anyhow!(why))?);
        Ok(sides)
    }
}

/// What the readiness page watches.
pub(super) fn watched(config: &Config) -> Arc<Health> {
    let routes = config.routes.iter().filter_map(|route| {
        Some(WatchedRoute {
            name: route.name.clone(),
            tenant_id: config.tenant(&route.tenant)?.tenant_id.clone(),
            workspace: config.workspace(&route.workspace)?.resource_id(),
        })
    });
    Arc::new(Health::new(routes.collect()))
}

/// Where Graph finds a door. Nowhere without a public address.
fn door_url(config: &Config, path: &str) -> String {
    let base = config.server.public_url.as_ref();
    base.map(|base| format!("{}/{path}", base.as_str().trim_end_matches('/'))).unwrap_or_default()
}

/// What the configuration asks for, in the manager's words.
pub(super) fn wishes(tenant: &Tenant) -> Vec<Wish> {
    let wish = |wish: &SubscriptionWish| Wish {
        resource: wish.resource.clone(),
        change_types: wish.change_types.join(","),
        // At most thirty days, as the configuration has checked.
        lifetime: time::Duration::try_from(wish.lifetime).unwrap_or(time::Duration::DAY),
        rich: wish.rich,
    };
    tenant.subscriptions.iter().map(wish).collect()
}

/// A running service.
pub(super) struct Service {
    /// Where its doors are.
    pub(super) address: SocketAddr,
    /// Its state.
    pub(super) store: Arc<dyn Store>,
    #[cfg(feature = "emulator")]
    looker: (Arc<Routes>, Reconciler),
    phase: Phase,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Service {
    /// Starts everything and returns when the doors are open.
    pub(super) async fn start(config: &Config, watch: Option<Watch>) -> anyhow::Result<Self> {
        let store = operate::open(config).await?;
        let listener = TcpListener::bind(config.server.listen).await.with_context(|| {
            format!("server.listen: cannot listen on {}; is something else there?", config.server.listen)
        })?;
        let address = listener.local_addr()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let health = watched(config);
        let Sides { routes, subscriptions, keyring, .. } = Sides::new(config, &health)?;
        native::report(&*store, &routes, clock.now()).await?;
        let (metrics, door_metrics) = (Metrics::default(), DoorMetrics::default());
        let mut registry: Registry = telemetry::registry();
        health.register(&mut registry);
        metrics.register(&mut registry);
        door_metrics.register(&mut registry);
        let board = Board::default();
        board.register(&mut registry);
        let extra_ca = config.ca_pem.clone().map(String::into_bytes);
        let tokens = Tokens::new(
            config
                .tenants
                .iter()
                .map(|tenant| Authority::new(tenant.cloud, tenant.login_url.as_str(), &tenant.tenant_id)),
            Arc::new(EntraKeys::new(&ClientOptions { extra_ca, ..ClientOptions::default() })?),
            clock.clone(),
            Arc::new(FastrandDice),
        );
        let wake = Arc::new(Notify::new());
        let phase = Phase::default();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let workers = usize::try_from(config.limits.workers).unwrap_or(usize::MAX);
        let worker = Worker::new(
            store.clone(),
            routes.clone(),
            clock.clone(),
            Arc::new(FastrandDice),
            metrics.clone(),
            workers,
            watch.clone(),
        );
        let state = AppState {
            doors: Arc::new(Doors::new(config)?),
            inbox: Inbox::new(store.clone(), clock.clone(), wake.clone()),
            store: store.clone(),
            tokens: tokens.clone(),
            book: Book::new(store.clone()),
            board: board.clone(),
            keyring: keyring.clone(),
            health: health.clone(),
            routes: routes.clone(),
            lately: worker.lately(),
            registry: Arc::new(registry),
            metrics: door_metrics,
            phase: phase.clone(),
        };
        tasks.spawn(worker.run(wake.clone(), stop.clone()));
        let options = |interval: Duration| PollOptions {
            interval,
            overlap: config.poll.overlap,
            backfill: config.poll.backfill,
            stretch: (config.poll.stretch.as_secs_f64() / interval.as_secs_f64()).max(1.0),
        };
        let intervals = (options(config.poll.defender_every), options(config.poll.sentinel_every));
        for poller in Poller::all(&store, &routes, &clock, &metrics, &health, intervals) {
            tasks.spawn(poller.run(wake.clone(), stop.clone()));
        }
        let every = config.poll.alerts_every;
        if !every.is_zero() {
            // The look back learns where alerts are, in case they move: the latest are enough.
            let backfill = config.poll.backfill.min(PollOptions::ALERTS.backfill);
            let options = PollOptions { backfill, ..options(every) };
            for poller in Poller::of_alerts(&store, &routes, &clock, &metrics, &health, options) {
                tasks.spawn(poller.run(wake.clone(), stop.clone()));
            }
        }
        tasks.spawn(tokens.run(stop.clone()));
        tasks.spawn(keyring.clone().run(store.clone(), stop.clone()));
        for (name, side) in subscriptions {
            let Some(tenant) = config.tenant(&name) else { continue };
            let stored = crate::app::subscriptions::records(&*store, &tenant.tenant_id).await?;
            let wanted = !tenant.subscriptions.is_empty() || !tenant.graph_client_states.is_empty();
            // What was wished once, and is not any more, is still to be ended, by whoever made it.
            let elsewhere = config
                .tenants
                .iter()
                .any(|other| other.tenant_id == tenant.tenant_id && !other.subscriptions.is_empty());
            if !wanted && (stored.is_empty() || elsewhere) || (tenant.subscriptions.is_empty() && elsewhere) {
                continue;
            }
            let manager = Manager {
                store: store.clone(),
                clock: clock.clone(),
                dice: Arc::new(FastrandDice),
                side,
                tenant_id: tenant.tenant_id.clone(),
                notification_url: door_url(config, "notify/graph"),
                lifecycle_url: door_url(config, "notify/graph/lifecycle"),
                wishes: wishes(tenant),
                keyring: keyring.clone(),
                board: board.clone(),
            };
            tasks.spawn(manager.run(stop.clone()));
        }
        let sweeper = Sweeper {
            store: store.clone(),
            routes: routes.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            options: SweepOptions { every: config.poll.sweep_every, ..SweepOptions::default() },
        };
        tasks.spawn(sweeper.run(stop.clone()));
        order_backfills(config, &*store, clock.now()).await?;
        let backfiller = Backfiller {
            store: store.clone(),
            routes: routes.clone(),
            clock: clock.clone(),
            options: BackfillOptions::default(),
        };
        tasks.spawn(backfiller.run(wake.clone(), stop.clone()));
        tasks.spawn(purge(store.clone(), clock.clone(), config.journal_keep, stop.clone()));
        #[cfg(feature = "emulator")]
        let looker = (routes, Reconciler { store: store.clone(), clock, metrics, watch });
        phase.running();
        let front = http::Front::new(state, &config.server).map_err(|why| anyhow!("server.tls: {why}"))?;
        let serving = http::serve(listener, front, stop.clone());
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                error!("the doors have closed: {error}");
            }
        });
        Ok(Self {
            address,
            store,
            #[cfg(feature = "emulator")]
            looker,
            phase,
            stop,
            tasks,
        })
    }

    /// What would be written now for a link, and why.
    #[cfg(feature = "emulator")]
    pub(super) async fn look(
        &self,
        key: &crate::domain::model::LinkKey,
    ) -> anyhow::Result<crate::domain::plan::Plan> {
        let (routes, reconciler) = &self.looker;
        let link = self.store.link(key).await?.context("there is no such link")?;
        let route = routes.of_link(&link).context("the link belongs to no route")?;
        Ok(reconciler.look(route, key).await?)
    }

    /// Takes no more work, finishes what is under way, and ends.
    pub(super) async fn stop(mut self) {
        self.phase.stopping();
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                error!("a part of the service ended badly: {error}");
            }
        }
    }

    /// Waits until a part of the service ends by itself, which it should not.
    pub(super) async fn broken(&mut self) {
        match self.tasks.join_next().await {
            Some(Err(error)) => error!("a part of the service ended badly: {error}"),
            _ => error!("a part of the service has ended"),
        }
    }
}

/// Orders, once for each route, the backfill that its configuration asks for.
async fn order_backfills(
    config: &Config,
    store: &dyn Store,
    now: time::OffsetDateTime,
) -> anyhow::Result<()> {
    for route in &config.routes {
        let Some(wanted) = route.backfill else { continue };
        let order = backfill::Order {
            since: wanted.since.instant(now),
            until: now,
            newest_first: wanted.newest_first,
            ordered_at: now,
            by: "configuration".to_owned(),
            cancelled: false,
        };
        if backfill::give_once(store, &route.name, &order).await? {
            info!(route = route.name, since = %order.since, "a backfill is ordered by the configuration");
        }
    }
    Ok(())
}

async fn purge(store: Arc<dyn Store>, clock: Arc<dyn Clock>, keep: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PURGE_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let now = clock.now();
        if let Err(error) = store.purge(now, now - keep).await {
            warn!("old entries could not be forgotten, trying again later: {error}");
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    info!("stopping: no more work is taken, what is under way is finished");
    Ok(())
}
