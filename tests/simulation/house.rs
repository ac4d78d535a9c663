//! A house: both systems, a disk, and applications on it that can be killed and started again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep::adapters::budget::Limits;
use lockstep::adapters::pace::Pace;
use lockstep::adapters::store::SqliteStore;
use lockstep::app::health::Health;
use lockstep::app::metrics::Metrics;
use lockstep::app::poll::{PollOptions, Poller};
use lockstep::app::reconcile::twin_id;
use lockstep::app::routes::{Route, Routes};
use lockstep::app::sweep::{SweepOptions, Sweeper};
use lockstep::app::worker::Worker;
use lockstep::domain::filter::Filter;
use lockstep::domain::model::{LinkKey, Side};
use lockstep::domain::plan::{self, LinkState, Snapshot};
use lockstep::domain::policy::{Direction, Field, Policy};
use lockstep::ports::{Clock, Hint, Parked, Store, Subject};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::file::File;
use crate::life::Fuse;
use crate::plant::{Plug, Shared, TENANT, key, workspace};
use crate::store::Memory;

/// A running application. Dropping it is `kill -9`.
pub(crate) struct App {
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<AbortOnDropHandle<()>>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) worker: Arc<Worker>,
    _wake: Arc<Notify>,
}

/// A route's name, its tenant, and its workspace's resource id.
pub(crate) type Way = (&'static str, String, String);

/// Whether comments of a side need not show in what the polls see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hides {
    pub(crate) defender: bool,
    pub(crate) sentinel: bool,
}

pub(crate) struct House {
    pub(crate) shared: Shared,
    pub(crate) ways: Vec<Way>,
    pub(crate) policy: Policy,
    /// Which incidents a route is for, by its name, where it is not for all.
    pub(crate) filters: BTreeMap<&'static str, Filter>,
    pub(crate) polls: bool,
    pub(crate) workers: usize,
    /// Several applications on one disk: none may take what another has left for its own.
    pub(crate) replicas: bool,
    /// How far the first poll looks back, if not as far as usual.
    pub(crate) backfill: Option<Duration>,
    /// The real store, if this house has one.
    pub(crate) file: Option<Arc<SqliteStore>>,
    pub(crate) started: u32,
}

impl House {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, &[("main", TENANT, "soc")])
    }

    /// Routes: name, tenant, and the workspace's name.
    pub(crate) fn with(seed: u64, ways: &[(&'static str, &str, &str)]) -> Self {
        let pairs: Vec<(&str, &str)> = ways.iter().map(|(_, tenant, place)| (*tenant, *place)).collect();
        let ways = ways.iter().map(|(name, tenant, place)| (*name, (*tenant).to_owned(), workspace(place)));
        Self {
            shared: Shared::new(seed, &pairs),
            ways: ways.collect(),
            policy: Policy::default(),
            filters: BTreeMap::new(),
            polls: true,
            workers: 3,
            replicas: false,
            backfill: None,
            file: None,
            started: 0,
        }
    }

    /// The first route's tenant and workspace.
    pub(crate) fn at(&self) -> (&str, &str) {
        (&self.ways[0].1, &self.ways[0].2)
    }

    pub(crate) fn key(&self, id: &str) -> LinkKey {
        key(self.at().0, id, self.at().1)
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        self.shared.clock.now()
    }

    fn store(&self, fuse: Arc<Fuse>) -> Arc<dyn Store> {
        let disk = self.shared.disk.clone();
        match &self.file {
            Some(inner) => Arc::new(File { inner: inner.clone(), mirror: disk, fuse }),
            None => Arc::new(Memory { disk, fuse }),
        }
    }

    /// The store as another process sees it.
    pub(crate) fn door(&self) -> Arc<dyn Store> {
        self.store(Arc::new(Fuse::new(i64::MAX)))
    }

    /// Starts an application that dies at its `fuse`-th port call.
    pub(crate) fn start(&mut self, fuse: i64) -> App {
        if !self.replicas {
            self.shared.disk.lock().unwrap().restart();
        }
        self.started += 1;
        let app = self.started;
        let fuse = Arc::new(Fuse::new(fuse));
        let store = self.store(fuse.clone());
        let routes = self.ways.iter().map(|(name, tenant_id, place)| {
            let plug = |side, scope: &str, other: &str, pace: Pace| {
                Arc::new(Plug {
                    shared: self.shared.clone(),
                    fuse: fuse.clone(),
                    pace: Arc::new(pace),
                    app,
                    side,
                    scope: scope.to_owned(),
                    other: other.to_owned(),
                })
            };
            let mut policy = self.policy.clone();
            policy.filter = self.filters.get(name).cloned().unwrap_or_default();
            Route {
                name: (*name).to_owned(),
                tenant_id: tenant_id.clone(),
                workspace: place.clone(),
                home: "elsewhere".into(),
                directories: lockstep::app::routes::Directories::default(),
                policy,
                defender: plug(Side::Defender, tenant_id, place, Pace::graph(Limits::default())),
                sentinel: plug(Side::Sentinel, place, tenant_id, Pace::arm(Limits::default())),
            }
        });
        let routes = Arc::new(Routes::new(routes.collect()).expect("distinct"));
        let clock: Arc<dyn Clock> = self.shared.clock.clone();
        let metrics = Metrics::default();
        let dice = Arc::new(self.shared.clone());
        let worker = Worker::new(
            store.clone(),
            routes.clone(),
            clock.clone(),
            dice,
            metrics.clone(),
            self.workers,
            None,
        );
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        self.shared.wakes.lock().unwrap().push(Arc::downgrade(&wake));
        let mut tasks = vec![spawn(worker.clone().run(wake.clone(), stop.clone()))];
        if self.polls {
            let health = Arc::new(Health::new(Vec::new()));
            let options = [PollOptions::DEFENDER, PollOptions::SENTINEL]
                .map(|usual| PollOptions { backfill: self.backfill.unwrap_or(usual.backfill), ..usual });
            let options = options.into();
            for poller in Poller::all(&store, &routes, &clock, &metrics, &health, options) {
                tasks.push(spawn(poller.run(wake.clone(), stop.clone())));
            }
            let sweeper = Sweeper {
                store: store.clone(),
                routes: routes.clone(),
                clock,
                metrics,
                options: SweepOptions::default(),
            };
            tasks.push(spawn(sweeper.run(stop.clone())));
        }
        App { fuse, stop, tasks, routes, worker, _wake: wake }
    }

    /// The sweep's hints, now: every link is looked at thoroughly.
    pub(crate) async fn sweep(&self) {
        let links: Vec<LinkKey> = self.shared.disk.lock().unwrap().links.keys().cloned().collect();
        for link in links {
            let subject =
                Subject { side: Side::Defender, scope: link.tenant_id, native_id: link.incident_id };
            let hint = Hint { subject, version: None, source: "sweep".into() };
            self.door().remember(vec![hint], None, self.now()).await.unwrap();
        }
    }

    /// Waits until the queue is empty and stays so over several polls.
    pub(crate) async fn quiet(&self) -> Result<(), String> {
        let mut calm = 0;
        for _ in 0..4_000 {
            let writes = self.writes();
            tokio::time::sleep(Duration::from_secs(5)).await;
            calm = if self.waiting().await == 0 && self.writes() == writes { calm + 1 } else { 0 };
            // Longer than the fences of an application that was killed.
            if calm == 16 {
                return Ok(());
            }
        }
        Err(format!("never quiet; {} waiting", self.waiting().await))
    }

    async fn waiting(&self) -> i64 {
        self.door().queue_stats().await.unwrap().waiting
    }

    pub(crate) fn writes(&self) -> u64 {
        self.shared.plant.lock().unwrap().writes
    }

    /// Everything that happened, in order: what people did, every call, every line of the journal.
    pub(crate) fn story(&self) -> String {
        let (plant, disk) = (self.shared.plant.lock().unwrap(), self.shared.disk.lock().unwrap());
        let lines = disk
            .journal
            .iter()
            .map(|line| (line.at, format!("    {} {} {}", line.link.incident_id, line.kind, line.detail)));
        let mut all: Vec<_> = plant.story().into_iter().chain(lines).collect();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter()
            .map(|(at, what)| {
                let (hour, minute, second, milli) = (at.hour(), at.minute(), at.second(), at.millisecond());
                format!("{hour:02}:{minute:02}:{second:02}.{milli:03} {what}\n")
            })
            .collect()
    }

    /// What must hold without any sweep: comments that nobody edited and that moved what the polls see are on both sides.
    pub(crate) fn check_what_shows(&self, hides: Hides) -> Result<(), String> {
        let at = self.at();
        let plant = self.shared.plant.lock().unwrap();
        for id in plant.ids(at.0).iter().filter(|id| !plant.truth.was_merged(id)) {
            plant.sayings.heard_at_once(id, &plant.heard(at, id), hides)?;
        }
        Ok(())
    }

    /// Whether something may be left that no version tells of: an edited comment beside another, an alert behind a write
    /// of our own, and what was said on an incident while it was merged away.
    pub(crate) fn leaves_to_the_sweep(&self) -> bool {
        let tenant = self.at().0;
        let plant = self.shared.plant.lock().unwrap();
        let back = |id: &String| plant.truth.was_merged(id) && !plant.merged(tenant, id);
        plant.sayings.edited() || plant.behind || plant.ids(tenant).iter().any(back)
    }

    /// Everything that must hold once the house is quiet.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let parked = self.door().parked(100).await.unwrap();
        if let Some(Parked { subject, reason, .. }) = parked.first() {
            return Err(format!("{subject} is parked: {reason}"));
        }
        let now = self.now();
        let (tenant, place) = self.at();
        let mut plant = self.shared.plant.lock().unwrap();
        if let Some(violation) = plant.truth.violations.first() {
            return Err(violation.clone());
        }
        let disk = self.shared.disk.lock().unwrap();
        if let Some(link) = disk.links.values().find(|link| link.parked.is_some()) {
            return Err(format!("{} is put aside: {:?}", link.key, link.parked));
        }
        let mut policy = self.policy.clone();
        policy.in_progress_writable &= !plant.one_open();
        let mut names = plant.names(place);
        for id in plant.ids(tenant) {
            let name = twin_id(&self.key(&id));
            let twins = names.len();
            names.retain(|other| *other != name);
            let defender = plant.defender_now(tenant, &id, now);
            let face = plant.defender_face(tenant, &id, now).expect("it is there");
            let Some(twin) = plant.sentinel_face(place, &name, now) else {
                if face.merged {
                    continue;
                }
                return Err(format!("{id} has no twin"));
            };
            if twins != names.len() + 1 {
                return Err(format!("{id} has several twins"));
            }
            let state = match disk.links.get(&self.key(&id)) {
                Some(link) => serde_json::from_str::<LinkState>(&link.state).expect("it reads"),
                None => return Err(format!("{id} has no link")),
            };
            if let Some(intent) = state.intents.first() {
                return Err(format!("{id} is quiet with an open intent: {intent:?}"));
            }
            let sentinel = plant.sentinel_now(place, &name, now);
            let differs = plan::plan(&Snapshot { key: self.key(&id), state, defender, sentinel }, &policy);
            if !differs.is_empty() {
                return Err(format!("{id} is quiet, yet:\n{differs}"));
            }
            let both = |field| policy.of(field).direction == Direction::Both;
            plant.truth.rest(&id, (&face, &twin), both, &disk)?;
            let heard = plant.heard((tenant, place), &id);
            if face.merged {
                if !twin.labelled_redirected && both(Field::Status) {
                    return Err(format!("{id} was merged away, and its twin has no label that says so"));
                }
                continue;
            }
            let merged: Vec<String> =
                plant.ids(tenant).into_iter().filter(|id| plant.merged(tenant, id)).collect();
            plant.sayings.heard(&id, &heard, |from| merged.iter().any(|id| id == from))?;
            for title in plant.alert_titles(tenant, &id) {
                let found = heard.sentinel.iter().filter(|comment| comment.contains(&title)).count();
                if found != 1 {
                    return Err(format!("{id}: the alert {title:?} is in {found} comments in Sentinel"));
                }
            }
        }
        if let Some(name) = names.first() {
            return Err(format!("{name} is nobody's twin"));
        }
        plant.truth.settle();
        Ok(())
    }
}

pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
