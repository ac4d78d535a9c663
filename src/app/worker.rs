//! One job, once: lease, find the links it is about, reconcile each under its fence, settle. The loop around it only
//! waits. Tests call `step` until it says `Idle`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::app::lately::Lately;
use crate::app::metrics::Metrics;
use crate::app::reconcile::{Cause, End, FENCE_FOR, Reconciler, Report, Watch, fence_name};
use crate::app::routes::{Route, Routes};
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::{LinkKey, Side};
use crate::domain::retry::{self, HELD_DELAY, Verdict};
use crate::ports::{Clock, Dice, Fence, Hint, JobLease, Settlement, Store, StoreError, Subject};
use crate::trace;

/// How long a job is leased. A worker that dies gives its job back after this time.
pub const LEASE_FOR: Duration = Duration::from_secs(55);
/// How long one link may take; well below the lease, and below the fence that is prolonged before each send.
const LINK_TIME: Duration = Duration::from_secs(35);
/// How long all links of one job may take together.
const STEP_TIME: Duration = Duration::from_secs(45);
/// How long a served row rests, so that the hints of a burst gather on it.
const REST: Duration = Duration::from_millis(150);
/// This many hints so soon after the row was served are a burst.
const BURST_HINTS: i64 = 3;
/// A burst is waited out until this long after the row was served.
const BURST_REST: Duration = Duration::from_millis(1_100);
const BURST_WINDOW: Duration = Duration::from_secs(1);
/// When a link that is in somebody else's hands is looked at again.
const BUSY_DELAY: Duration = Duration::from_millis(200);
/// When a job whose scope has its share of the workers is looked at again.
const FULL_DELAY: Duration = Duration::from_secs(1);
/// The longest that a closed side's rows are left out without a look.
const LONGEST_CLOSED: Duration = Duration::from_secs(60);
/// A worker that found nothing does not look again sooner, however many hints come in: they may all be of closed sides.
const IDLE_LEAST: Duration = Duration::from_millis(5);
/// How many more rows are leased at once while they are all about incidents that are nobody's twin: every incident of a
/// workspace has a playbook that tells of it, and most of them may not be ours.
const STRAYS_AT_ONCE: usize = 31;
/// How long a worker leaves a crowd of them alone between two steps: eight workers still settle 5,000 in a second.
const STRAYS_PAUSE: Duration = Duration::from_millis(50);
/// How often an idle worker looks into the queue by itself, at first and at last.
const IDLE_FIRST: Duration = Duration::from_millis(200);
const IDLE_LAST: Duration = Duration::from_secs(1);

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is due.
    Idle,
    /// A job was settled.
    Worked,
    /// A crowd of hints about nobody's twins was settled; there may be more of them.
    Strays,
    /// A job was given back untouched: its tenant or workspace has its share of the workers already.
    Saturated,
}

/// Works on jobs. Shared by all worker loops of a process.
pub struct Worker {
    store: Arc<dyn Store>,
    routes: Arc<Routes>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    metrics: Metrics,
    reconciler: Reconciler,
    workers: usize,
    slots: Arc<Slots>,
    lately: Lately,
    /// Whether the last rows were all about incidents that are nobody's twin.
    strays: AtomicBool,
}

/// The routes that join a link's tenant and workspace: one of them owns it.
type Pair = Vec<Arc<Route>>;

/// What a job's link came to, in the worker's words.
enum Ended {
    Report(Report),
    Failed(Failure),
    Busy,
}

impl Worker {
    /// A worker whose loop runs `workers` times side by side.
    pub fn new(
        store: Arc<dyn Store>,
        routes: Arc<Routes>,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
        metrics: Metrics,
        workers: usize,
        watch: Option<Watch>,
    ) -> Arc<Self> {
        let reconciler =
            Reconciler { store: store.clone(), clock: clock.clone(), metrics: metrics.clone(), watch };
        let slots = Arc::new(Slots { most: (workers / 4).max(1), busy: Mutex::default() });
        let (workers, lately) = (workers.max(1), Lately::default());
        let strays = AtomicBool::new(false);
        Arc::new(Self { store, routes, clock, dice, metrics, reconciler, workers, slots, lately, strays })
    }

    /// What this worker remembers for people who ask.
    pub fn lately(&self) -> Lately {
        self.lately.clone()
    }

    /// Serves at most one job.
    pub async fn step(self: &Arc<Self>) -> Result<Step, StoreError> {
        let now = self.clock.now();
        let skip = self.lately.all_left_alone(now);
        // The store is fair between scopes, so among one more row than there are full scopes is one that can run, if
        // there is any.
        let strays = if self.strays.swap(false, Ordering::Relaxed) { STRAYS_AT_ONCE } else { 0 };
        let most = 1 + self.slots.full() + strays;
        let leases = self.store.lease_jobs(most, &skip, now, now + LEASE_FOR).await?;
        if leases.is_empty() {
            return Ok(Step::Idle);
        }
        let leased = leases.len();
        let mut chosen = None;
        let mut settled = false;
        let mut ignored = Vec::new();
        for lease in leases {
            if chosen.is_some() {
                self.settle(&lease, self.again(Duration::ZERO, false), "given-back").await?;
                continue;
            }
            if let Some(served_at) = lease.served_at
                && lease.hints >= BURST_HINTS
                && now - served_at < BURST_WINDOW
            {
                let not_before = served_at + BURST_REST;
                self.settle(&lease, Settlement::Again { not_before, counts: false }, "burst").await?;
                settled = true;
                continue;
            }
            let links = self.links(&lease).await?;
            if links.is_empty() {
                ignored.push(lease);
                continue;
            }
            match self.slot(&links) {
                Some(slot) => chosen = Some((lease, links, slot)),
                None => self.settle(&lease, self.again(FULL_DELAY, false), "saturated").await?,
            }
        }
        if !ignored.is_empty() {
            // Where there are only strays, there may be a crowd of them: take more the next time.
            self.strays.store(ignored.len() == leased, Ordering::Relaxed);
            settled = true;
            // Side by side, so that they share a commit.
            let mut settling = JoinSet::new();
            for lease in ignored {
                let this = self.clone();
                settling.spawn(async move { this.settle(&lease, this.done(), "ignored").await });
            }
            while let Some(ended) = settling.join_next().await {
                // Nothing in it panics or is aborted; what was not settled comes back with its lease.
                ended.unwrap_or(Ok(()))?;
            }
        }
        match chosen {
            Some((lease, links, _slot)) => {
                self.serve(&lease, links).await?;
                Ok(Step::Worked)
            }
            None if self.strays.load(Ordering::Relaxed) && leased > 1 => Ok(Step::Strays),
            None if settled => Ok(Step::Worked),
            None => Ok(Step::Saturated),
        }
    }

    async fn serve(&self, lease: &JobLease, links: Vec<(Pair, LinkKey)>) -> Result<(), StoreError> {
        let cause = Cause {
            side: lease.subject.side,
            version: lease.version.clone(),
            sources: lease.sources.clone(),
            hints: lease.hints,
            attempts: lease.attempts,
            first_hint_at: lease.first_hint_at,
        };
        if let Some(alert) = lease.subject.alert() {
            return self.ask_for_incident(lease, alert, &links).await;
        }
        let several = links.len() > 1;
        let step_ends = self.clock.now() + STEP_TIME;
        let mut ended = Vec::new();
        for (pair, key) in links {
            if self.clock.now() + LINK_TIME > step_ends {
                // The rest has its turn after those that now turn out to be in step.
                ended.push(Ended::Busy);
                break;
            }
            ended.push(self.work_on(pair, key, &cause, several).await?);
        }
        let (settlement, outcome) = self.sum_up(lease, ended);
        self.settle(lease, settlement, outcome).await
    }

    /// A hint about an alert: passes it on to the alert's incident. Where that cannot be had for good, the pollers find
    /// the incident without us.
    async fn ask_for_incident(
        &self,
        lease: &JobLease,
        alert: &str,
        links: &[(Pair, LinkKey)],
    ) -> Result<(), StoreError> {
        let route = links.first().and_then(|(pair, _)| pair.first());
        let Some(route) = route else { return self.settle(lease, self.done(), "ignored").await };
        let asked = tokio::time::timeout(LINK_TIME, route.defender.incident_of_alert(alert)).await;
        match asked {
            Ok(Ok(Some(native_id))) => {
                let subject = Subject { native_id, ..lease.subject.clone() };
                let hint = Hint { subject, version: None, source: lease.sources.clone() };
                self.store.remember(vec![hint], None, self.clock.now()).await?;
                self.settle(lease, self.done(), "passed-on").await
            }
            Ok(Ok(None)) => self.settle(lease, self.done(), "nothing").await,
            Ok(Err(failure)) => {
                self.metrics.failure(failure.side, &failure.code);
                match failure.class {
                    Class::Auth | Class::Permanent => self.settle(lease, self.done(), "nothing").await,
                    class => match retry::decide(class, lease.attempts, self.dice.roll()) {
                        Verdict::Park => self.settle(lease, self.done(), "nothing").await,
                        Verdict::Again { delay, counts } => {
                            self.settle(lease, self.again(delay, counts), "retry").await
                        }
                    },
                }
            }
            Err(_) => self.settle(lease, self.again(HELD_DELAY, true), "retry").await,
        }
    }

    /// The links that a hint is about. A Sentinel incident that is nobody's twin has none.
    async fn links(&self, lease: &JobLease) -> Result<Vec<(Pair, LinkKey)>, StoreError> {
        let subject = &lease.subject;
        let keys: Vec<LinkKey> = match subject.side {
            Side::Defender => self.routes.keys_of(&subject.scope, &subject.native_id).collect(),
            Side::Sentinel => {
                let links = self.store.links_of_twin(&subject.scope, &subject.native_id).await?;
                links.into_iter().map(|link| link.key).collect()
            }
        };
        let joined = keys.into_iter().map(|key| (self.routes.of_pair(&key).to_vec(), key));
        Ok(joined.filter(|(pair, _)| !pair.is_empty()).collect())
    }

    /// A place for each tenant and workspace that the links touch. One that every route uses needs none.
    fn slot(&self, links: &[(Pair, LinkKey)]) -> Option<Slot> {
        let mut scopes: Vec<&str> =
            links.iter().flat_map(|(_, key)| [key.tenant_id.as_str(), &key.workspace]).collect();
        scopes.retain(|scope| !self.routes.all_use(scope));
        scopes.sort_unstable();
        scopes.dedup();
        Slot::take(&self.slots, &scopes)
    }

    /// Reconciles one link under its fence. A panic or a timeout ends the link's run, not the worker.
    async fn work_on(
        &self,
        pair: Pair,
        key: LinkKey,
        cause: &Cause,
        several: bool,
    ) -> Result<Ended, StoreError> {
        let now = self.clock.now();
        let Some(fence) = self.store.take_fence(&fence_name(&key), now, now + FENCE_FOR).await? else {
            self.lately.ran(&key, now, "busy", Some("the link is in another worker's hands"));
            return Ok(Ended::Busy);
        };
        let ended = match self.run_one(pair, &key, &fence, cause).await {
            Ok(report) => {
                let (end, why) = report.end.told();
                self.lately.ran(&key, self.clock.now(), end, why);
                Ended::Report(report)
            }
            Err(failure) => {
                self.metrics.failure(failure.side, &failure.code);
                self.lately.failed(&key, self.clock.now(), &failure);
                self.leave_alone(&failure, &key);
                if failure.class == Class::Permanent {
                    self.reconciler.give_up(&key, &fence, cause, &failure.to_string(), several).await?;
                }
                Ended::Failed(failure)
            }
        };
        self.store.release_fence(&fence).await?;
        Ok(ended)
    }

    /// Heeds what a failure says of its side as a whole: throttled, out of budget, or refusing us. However many of its
    /// incidents wait, none is looked at before it takes something again.
    fn leave_alone(&self, failure: &Failure, key: &LinkKey) {
        let wait = match failure.class {
            Class::Retry { wait: Some(wait) } => wait,
            Class::Auth => HELD_DELAY,
            Class::Retry { wait: None } | Class::Conflict | Class::Permanent => return,
        };
        let (tenant, workspace) =
            ((Side::Defender, key.tenant_id.clone()), (Side::Sentinel, key.workspace.clone()));
        // Where all routes of a side end at the closed one, nothing of it can be served either.
        let scopes = match failure.side {
            Some(Side::Defender) if self.routes.joins_only(&workspace, &key.tenant_id) => {
                vec![tenant, workspace]
            }
            Some(Side::Sentinel) if self.routes.joins_only(&tenant, &key.workspace) => {
                vec![workspace, tenant]
            }
            Some(Side::Defender) => vec![tenant],
            Some(Side::Sentinel) => vec![workspace],
            None => return,
        };
        // A side that asks for hours is asked again by the pollers; the queue looks once in a while too.
        let until = self.clock.now() + wait.min(LONGEST_CLOSED);
        for scope in scopes {
            self.lately.leave_alone(scope, until, &failure.to_string());
        }
    }

    async fn run_one(
        &self,
        pair: Pair,
        key: &LinkKey,
        fence: &Fence,
        cause: &Cause,
    ) -> Result<Report, Failure> {
        let (this, link, held, why) = (self.reconciler.clone(), key.clone(), fence.clone(), cause.clone());
        let run = trace::collect(async move { this.reconcile(&pair, &link, &held, &why).await });
        let task = AbortOnDropHandle::new(tokio::spawn(run));
        let unfinished = |code: &str, message: &str| Failure {
            class: Class::Retry { wait: None },
            side: None,
            code: code.to_owned(),
            message: message.to_owned(),
            effect: Effect::Unknown,
        };
        match tokio::time::timeout(LINK_TIME, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                self.metrics.panicked();
                tracing::error!(link = %key, "a step panicked; the job is tried again");
                Err(unfinished("panic", "a defect of Lockstep stopped the run"))
            }
            Err(_) => Err(unfinished("timeout", "the run took too long")),
        }
    }

    /// The settlement of a job whose links ended like this. What must be tried again goes before what may rest.
    fn sum_up(&self, lease: &JobLease, ended: Vec<Ended>) -> (Settlement, &'static str) {
        let mut again: Option<(Duration, bool, &'static str)> = None;
        let mut wait = |delay: Duration, counts: bool, outcome| {
            again = Some(match again {
                Some((longest, counted, first)) => (longest.max(delay), counted || counts, first),
                None => (delay, counts, outcome),
            });
        };
        let (mut parked, mut resting) = (None, None);
        let mut look: Option<time::OffsetDateTime> = None;
        for one in ended {
            match one {
                Ended::Busy => wait(BUSY_DELAY, false, "busy"),
                Ended::Report(Report { again: true, .. }) => wait(BUSY_DELAY, false, "written"),
                Ended::Report(Report { end, look_at, .. }) => match end {
                    End::Held(_) => wait(HELD_DELAY, false, "held"),
                    End::Parked(reason) => parked = Some(reason),
                    _ if look_at.is_some() => look = look.into_iter().chain(look_at).min(),
                    End::Wrote => resting = Some("written"),
                    End::InStep => resting = resting.or(Some("in-step")),
                    End::Known => resting = resting.or(Some("known")),
                    End::Nothing(_) => resting = resting.or(Some("nothing")),
                },
                Ended::Failed(failure) => {
                    match retry::decide(failure.class, lease.attempts, self.dice.roll()) {
                        Verdict::Park => {
                            tracing::warn!(subject = %lease.subject, %failure, "put aside");
                            parked = Some(failure.to_string());
                        }
                        Verdict::Again { delay, counts } => {
                            tracing::info!(subject = %lease.subject, %failure, ?delay, "to be tried again");
                            wait(delay, counts, "retry");
                        }
                    }
                }
            }
        }
        if let (None, Some(at)) = (&again, look) {
            return (Settlement::Look { at }, "looked-at-again");
        }
        match (again, resting, parked) {
            (Some((delay, counts, outcome)), _, _) => (self.again(delay, counts), outcome),
            (None, None, Some(reason)) => (Settlement::Park { reason }, "parked"),
            (None, resting, _) => (self.done(), resting.unwrap_or("nothing")),
        }
    }

    fn done(&self) -> Settlement {
        Settlement::Done { rest_until: self.clock.now() + REST }
    }

    fn again(&self, delay: Duration, counts: bool) -> Settlement {
        Settlement::Again { not_before: self.clock.now() + delay, counts }
    }

    async fn settle(
        &self,
        lease: &JobLease,
        settlement: Settlement,
        outcome: &'static str,
    ) -> Result<(), StoreError> {
        self.metrics.job(outcome);
        // A lease that somebody else holds by now is theirs to settle.
        self.store.settle(lease, settlement, self.clock.now()).await?;
        Ok(())
    }

    /// Runs all workers until `stop`. Each finishes the step it is in.
    pub async fn run(self: Arc<Self>, wake: Arc<Notify>, stop: CancellationToken) {
        let mut loops = JoinSet::new();
        for _ in 0..self.workers {
            loops.spawn(self.clone().work(wake.clone(), stop.clone()));
        }
        loops.join_all().await;
    }

    async fn work(self: Arc<Self>, wake: Arc<Notify>, stop: CancellationToken) {
        let mut idle = IDLE_FIRST;
        let mut was_idle = true;
        while !stop.is_cancelled() {
            // A step has its own time limit, so a stop never waits for longer than that.
            let this = self.clone();
            let pause = match AbortOnDropHandle::new(tokio::spawn(async move { this.step().await })).await {
                Ok(Ok(Step::Worked)) => {
                    if was_idle {
                        // Where one job was, there may be more: wake the next worker.
                        wake.notify_one();
                    }
                    (was_idle, idle) = (false, IDLE_FIRST);
                    continue;
                }
                Ok(Ok(Step::Strays)) => {
                    // Nobody waits for these, but senders wait at the doors, for the same writer.
                    tokio::time::sleep(STRAYS_PAUSE).await;
                    continue;
                }
                Ok(Ok(Step::Saturated)) => BUSY_DELAY,
                Ok(Ok(Step::Idle)) => {
                    let pause = idle;
                    idle = idle.mul_f64(1.5).min(IDLE_LAST);
                    pause
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the queue cannot be worked on; trying again");
                    IDLE_LAST
                }
                Err(_) => {
                    self.metrics.panicked();
                    tracing::error!("a worker panicked between two links; its job comes back with its lease");
                    IDLE_LAST
                }
            };
            was_idle = true;
            tokio::select! {
                () = async { tokio::time::sleep(IDLE_LEAST).await; wake.notified().await } => idle = IDLE_FIRST,
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// How many workers each tenant and workspace occupies: a slow or throttled one must not have them all.
struct Slots {
    most: usize,
    busy: Mutex<HashMap<String, usize>>,
}

impl Slots {
    /// How many scopes have their share of the workers.
    fn full(&self) -> usize {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.values().filter(|count| **count >= self.most).count()
    }
}

/// A place in every scope it was taken for, given back when dropped.
struct Slot {
    slots: Arc<Slots>,
    scopes: Vec<String>,
}

impl Slot {
    fn take(slots: &Arc<Slots>, scopes: &[&str]) -> Option<Self> {
        let mut busy = slots.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if scopes.iter().any(|scope| busy.get(*scope).is_some_and(|count| *count >= slots.most)) {
            return None;
        }
        for scope in scopes {
            *busy.entry((*scope).to_owned()).or_default() += 1;
        }
        drop(busy);
        Some(Self { slots: slots.clone(), scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut busy = self.slots.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for scope in &self.scopes {
            if let Some(count) = busy.get_mut(scope) {
                *count -= 1;
                if *count == 0 {
                    busy.remove(scope);
                }
            }
        }
    }
}
