//! A world: both systems, a disk, and an application that can be killed and started again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep::adapters::store::SqliteStore;
use lockstep::app::health::Health;
use lockstep::app::metrics::Metrics;
use lockstep::app::poll::{PollOptions, Poller};
use lockstep::app::reconcile::twin_id;
use lockstep::app::routes::{Route, Routes};
use lockstep::app::sweep::{SweepOptions, Sweeper};
use lockstep::app::worker::Worker;
use lockstep::domain::model::{LinkKey, Side};
use lockstep::domain::plan::{self, LinkState, Snapshot, format_instant};
use lockstep::domain::policy::Policy;
use lockstep::ports::{Clock, Hint, Parked, Store, Subject};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::file::File;
use crate::life::{Fuse, VirtualClock};
use crate::sides::{CELLS, Cell, Plug, Shared, defender_cell, sentinel_cell};
use crate::store::Memory;

pub(crate) const TENANT: &str = "tenant";
pub(crate) const WORKSPACE: &str = "/subscriptions/s/workspaces/w";

pub(crate) fn key(id: &str) -> LinkKey {
    LinkKey { tenant_id: TENANT.into(), incident_id: id.into(), workspace: WORKSPACE.into() }
}

/// A running application. Dropping it is `kill -9`.
pub(crate) struct App {
    pub(crate) worker: Arc<Worker>,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<AbortOnDropHandle<()>>,
}

pub(crate) struct World {
    pub(crate) shared: Shared,
    pub(crate) routes: Vec<(&'static str, &'static str, &'static str)>,
    pub(crate) polls: bool,
    pub(crate) workers: usize,
    /// How far the first poll looks back, if not as far as usual.
    pub(crate) backfill: Option<Duration>,
    /// The real store, if this world has one.
    pub(crate) file: Option<Arc<SqliteStore>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let shared = Shared {
            remote: Arc::default(),
            disk: Arc::default(),
            clock: Arc::new(VirtualClock::new()),
            rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        };
        Self {
            shared,
            routes: vec![("main", TENANT, WORKSPACE)],
            polls: true,
            workers: 3,
            backfill: None,
            file: None,
        }
    }

    pub(crate) fn now(&self) -> time::OffsetDateTime {
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
    pub(crate) fn start(&self, fuse: i64) -> App {
        self.shared.disk.lock().unwrap().restart();
        let fuse = Arc::new(Fuse::new(fuse));
        let store = self.store(fuse.clone());
        let plug = |side, scope: &str| {
            Arc::new(Plug { shared: self.shared.clone(), fuse: fuse.clone(), side, scope: scope.to_owned() })
        };
        let routes = self.routes.iter().map(|(name, tenant_id, workspace)| Route {
            name: (*name).to_owned(),
            tenant_id: (*tenant_id).to_owned(),
            workspace: (*workspace).to_owned(),
            home: "elsewhere".into(),
            directories: lockstep::app::routes::Directories::default(),
            policy: Policy::default(),
            defender: plug(Side::Defender, tenant_id),
            sentinel: plug(Side::Sentinel, workspace),
        });
        let routes = Arc::new(Routes::new(routes.collect()).expect("distinct"));
        let clock: Arc<dyn Clock> = self.shared.clock.clone();
        let metrics = Metrics::default();
        let worker = Worker::new(
            store.clone(),
            routes.clone(),
            clock.clone(),
            Arc::new(self.shared.clone()),
            metrics.clone(),
            self.workers,
            None,
        );
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let mut tasks = vec![spawn(worker.clone().run(wake.clone(), stop.clone()))];
        if self.polls {
            let health = Arc::new(Health::new(Vec::new()));
            let options = [PollOptions::DEFENDER, PollOptions::SENTINEL]
                .map(|usual| PollOptions { backfill: self.backfill.unwrap_or(usual.backfill), ..usual });
            let options = options.into();
            for poller in Poller::all(&store, &routes, &clock, &metrics, &health, options) {
                tasks.push(spawn(poller.run(wake.clone(), stop.clone())));
            }
            let sweeper =
                Sweeper { store: store.clone(), routes, clock, metrics, options: SweepOptions::default() };
            tasks.push(spawn(sweeper.run(stop.clone())));
        }
        App { worker, fuse, store, wake, stop, tasks }
    }

    pub(crate) fn incident(&self, id: &str) {
        self.shared.remote.lock().unwrap().new_incident(id, self.now());
    }

    pub(crate) fn edit(&self, side: Side, id: &str, cell: Cell, to: u8) -> bool {
        let name = twin_id(&key(id));
        self.shared.remote.lock().unwrap().edit(side, (id, &name), cell, to, self.now())
    }

    /// A hint about an incident as it is now, with its version or without.
    pub(crate) fn hint(&self, side: Side, id: &str, versioned: bool) -> Hint {
        let remote = self.shared.remote.lock().unwrap();
        let (scope, native_id, version) = match side {
            Side::Defender => (TENANT, id.to_owned(), Some(format_instant(remote.defender(id).updated))),
            Side::Sentinel => {
                let name = twin_id(&key(id));
                let etag = remote.twin(&name).map(|twin| twin.etag.clone());
                (WORKSPACE, name, etag)
            }
        };
        let version = version.filter(|_| versioned);
        Hint { subject: Subject { side, scope: scope.to_owned(), native_id }, version, source: "test".into() }
    }

    pub(crate) async fn send(&self, app: &App, side: Side, id: &str, versioned: bool) {
        let hint = self.hint(side, id, versioned);
        app.store.remember(vec![hint], None, self.now()).await.unwrap();
        app.wake.notify_one();
    }

    pub(crate) fn writes(&self) -> u64 {
        self.shared.remote.lock().unwrap().writes
    }

    pub(crate) fn calls(&self) -> u64 {
        self.shared.remote.lock().unwrap().calls
    }

    async fn waiting(&self) -> i64 {
        self.door().queue_stats().await.unwrap().waiting
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

    /// What people did since the last quiet point, and the journal.
    pub(crate) fn story(&self) -> String {
        let (remote, disk) = (self.shared.remote.lock().unwrap(), self.shared.disk.lock().unwrap());
        let edits = remote.told.iter().map(|(at, what)| (*at, what.clone()));
        let lines = disk
            .journal
            .iter()
            .map(|line| (line.at, format!("  {} {} {}", line.link.incident_id, line.kind, line.detail)));
        let mut all: Vec<_> = edits.chain(lines).collect();
        all.sort();
        all.into_iter()
            .map(|(at, what)| {
                format!(
                    "{:02}:{:02}:{:02}.{:03} {what}\n",
                    at.hour(),
                    at.minute(),
                    at.second(),
                    at.millisecond()
                )
            })
            .collect()
    }

    /// Everything that must hold once the world is quiet. `before` is what each cell said at the last quiet point.
    pub(crate) async fn check(&self, ids: &[String], before: &[[u8; 3]]) -> Result<Vec<[u8; 3]>, String> {
        if let Some(Parked { subject, reason, .. }) = self.door().parked(1).await.unwrap().first() {
            return Err(format!("{subject} is parked: {reason}"));
        }
        let mut remote = self.shared.remote.lock().unwrap();
        if let Some(violation) = remote.violations.first() {
            return Err(violation.clone());
        }
        if remote.twins() != ids.len() {
            return Err(format!("{} twins of {} incidents", remote.twins(), ids.len()));
        }
        let mut after = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let defender = remote.defender(id).clone();
            let Some(sentinel) = remote.twin(&twin_id(&key(id))).cloned() else {
                return Err(format!("{id} has no twin of its name"));
            };
            let seen = Snapshot {
                key: key(id),
                state: LinkState::default(),
                defender: Some(defender.clone()),
                sentinel: Some(sentinel.clone()),
            };
            let differs = plan::plan(&seen, &Policy::default());
            if !differs.is_empty() {
                return Err(format!("{id} is quiet, yet:\n{differs}"));
            }
            let mut cells = [0; 3];
            for cell in CELLS {
                let is = defender_cell(&defender.says, cell);
                if is != sentinel_cell(&sentinel.says, cell) {
                    return Err(format!("{id}: {cell:?} differs"));
                }
                cells[cell as usize] = is;
                let last = |side| {
                    let of =
                        |edit: &&(Side, String, Cell, u8)| edit.0 == side && edit.1 == *id && edit.2 == cell;
                    remote.edits.iter().rev().find(of).map(|edit| edit.3)
                };
                let may: Vec<u8> = match (last(Side::Defender), last(Side::Sentinel)) {
                    (None, None) => vec![before.get(at).map_or(0, |cells| cells[cell as usize])],
                    (Some(d), Some(s)) => vec![d, s],
                    (one, other) => one.or(other).into_iter().collect(),
                };
                if !may.contains(&is) && !remote.window.contains(&(id.clone(), cell)) {
                    return Err(format!("{id}: {cell:?} is {is}, but people said {may:?}: an edit is lost"));
                }
            }
            after.push(cells);
        }
        remote.edits.clear();
        remote.window.clear();
        Ok(after)
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
