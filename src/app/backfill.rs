//! Copies what was there before: an order for a route names a span of time, and every incident that came to be in it
//! and has no twin is hinted, a few at a time, so that the queue never fills up with the past and live changes go
//! first.
//!
//! Graph's list has no order and no place to go on from. So the span is cut into windows of time, as long as it takes
//! to hold some hundred incidents: a window is read whole, put in order and told; only then is its edge stored, and a
//! restart goes on there. A window that is told twice costs nothing: what has a twin is left out, and what still waits
//! is one row.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::patience::{self, Patience};
use crate::app::reconcile::store_failure;
use crate::app::routes::{Route, Routes};
use crate::domain::failure::{Class, Failure};
use crate::domain::model::{DefenderIncident, DefenderStatus, Side};
use crate::domain::plan::{LinkState, format_instant};
use crate::ports::{Clock, Fence, Held, Hint, LinkRecord, Store, StoreError, Subject};

/// Told whenever an order is given or taken back, so that nobody has to look at all of them all the time.
const CHANGED: &str = "backfill-changed";
/// Longer than the longest wait for a side.
const FENCE_FOR: Duration = Duration::from_secs(15 * 60);
/// How often the orders are looked at although none was told of: another replica may have died.
const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);
/// After this time an incident that was told of, and has no twin yet, is taken for one that gets none.
const GIVEN_UP: time::Duration = time::Duration::hours(2);
/// The first window. They grow and shrink with what is in them.
const FIRST_SPAN: time::Duration = time::Duration::hours(12);
const LEAST_SPAN: time::Duration = time::Duration::minutes(10);
const MOST_SPAN: time::Duration = time::Duration::days(30);
/// Fewer incidents than this, and the next window is longer; more than that, and it is shorter.
const FEW: usize = 100;
const MANY: usize = 500;
/// No window has this many pages; a list that does goes round in circles.
const MOST_PAGES: u32 = 20_000;
/// From one line of progress in the log to the next.
const TELL_EVERY: time::Duration = time::Duration::minutes(1);

/// How the backfill goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackfillOptions {
    /// How many hints of the past may wait at a time.
    pub most_waiting: usize,
    /// How often the queue is looked at while it is full.
    pub look: Duration,
    /// How often new orders are looked for.
    pub orders: Duration,
}

impl Default for BackfillOptions {
    fn default() -> Self {
        Self { most_waiting: 200, look: Duration::from_secs(2), orders: Duration::from_secs(3) }
    }
}

/// What is to be copied, by the time at which incidents came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// From then on.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Before then.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// The newest first; else the oldest.
    pub newest_first: bool,
    /// When it was ordered. No two orders of a route have the same time.
    #[serde(with = "time::serde::rfc3339")]
    pub ordered_at: OffsetDateTime,
    /// Who ordered it: `configuration` or `command`.
    pub by: String,
    /// Taken back.
    #[serde(default)]
    pub cancelled: bool,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Under way.
    Running,
    /// Everything is told; the last of it may still wait in the queue.
    Done,
    /// It broke off, and will not go on by itself.
    Failed,
}

/// How far an order is, in numbers. They count the windows that are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The order's `ordered_at`.
    #[serde(with = "time::serde::rfc3339")]
    pub order: OffsetDateTime,
    /// How far.
    pub phase: Phase,
    /// The edge of what is told: before it (oldest first) or after it (newest first).
    #[serde(with = "time::serde::rfc3339")]
    pub position: OffsetDateTime,
    /// Incidents that were seen.
    pub incidents: u64,
    /// Those that had a twin.
    pub linked: u64,
    /// Those that had been merged away and get none.
    pub merged: u64,
    /// Those that were handed to the workers.
    pub told: u64,
    /// Pages of the list that were read.
    pub pages: u64,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub began: OffsetDateTime,
    /// When this was stored.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why it does not go on, in one sentence.
    #[serde(default)]
    pub note: Option<String>,
}

impl Progress {
    fn new(order: &Order, now: OffsetDateTime) -> Self {
        let position = if order.newest_first { order.until } else { order.since };
        Self {
            order: order.ordered_at,
            phase: Phase::Running,
            position,
            incidents: 0,
            linked: 0,
            merged: 0,
            told: 0,
            pages: 0,
            began: now,
            at: now,
            note: None,
        }
    }
}

/// The name of the stored order of a route.
pub fn order_name(route: &str) -> String {
    format!("backfill:{route}")
}

/// The name of the stored progress of a route's order.
pub fn progress_name(route: &str) -> String {
    format!("backfill-progress:{route}")
}

/// A route's last order, and how far it is, if it was begun.
pub async fn status(store: &dyn Store, route: &str) -> Result<Option<(Order, Option<Progress>)>, StoreError> {
    let read = |text: Option<String>| text.filter(|text| !text.is_empty());
    let Some(text) = read(store.value(&order_name(route)).await?) else { return Ok(None) };
    let order: Order =
        serde_json::from_str(&text).map_err(|error| StoreError::Corrupt(format!("a backfill: {error}")))?;
    let progress = read(store.value(&progress_name(route)).await?);
    let progress = progress.and_then(|text| serde_json::from_str::<Progress>(&text).ok());
    Ok(Some((order.clone(), progress.filter(|progress| progress.order == order.ordered_at))))
}

/// Whether an order is yet to be carried out, or on its way.
pub fn is_active(order: &Order, progress: Option<&Progress>) -> bool {
    !order.cancelled && progress.is_none_or(|progress| progress.phase == Phase::Running)
}

/// Gives an order. The running service takes it up within seconds.
pub async fn give(store: &dyn Store, route: &str, order: &Order) -> Result<(), StoreError> {
    let text = serde_json::to_string(order).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    store.set_value(&order_name(route), &text).await?;
    store.set_value(CHANGED, &format!("{route} {}", format_instant(order.ordered_at))).await
}

/// Gives an order if the route never had one.
pub async fn give_once(store: &dyn Store, route: &str, order: &Order) -> Result<bool, StoreError> {
    if store.value(&order_name(route)).await?.is_some() {
        return Ok(false);
    }
    give(store, route, order).await.map(|()| true)
}

/// Takes an order back. What was told already is still served. False when none was under way.
pub async fn cancel(store: &dyn Store, route: &str, now: OffsetDateTime) -> Result<bool, StoreError> {
    match status(store, route).await? {
        Some((order, progress)) if is_active(&order, progress.as_ref()) => {
            let order = Order { cancelled: true, ..order };
            let text =
                serde_json::to_string(&order).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            store.set_value(&order_name(route), &text).await?;
            store.set_value(CHANGED, &format!("{route} cancelled {}", format_instant(now))).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What an order would come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Incidents by month (`2026-01`) and status.
    pub months: BTreeMap<String, BTreeMap<String, u64>>,
    /// All of them.
    pub incidents: u64,
    /// Those that have a twin.
    pub linked: u64,
    /// Those that were merged away and get none.
    pub merged: u64,
    /// Those that would get a twin.
    pub to_link: u64,
    /// Records that could not be read.
    pub unreadable: u64,
    /// Pages of the list.
    pub pages: u64,
}

/// What becomes of an incident of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Linked,
    Merged,
    ToLink,
}

fn created(incident: &DefenderIncident) -> OffsetDateTime {
    incident.created.unwrap_or(incident.updated)
}

fn has_met(link: &LinkRecord) -> bool {
    serde_json::from_str::<LinkState>(&link.state).is_ok_and(|state| state.known.is_some())
}

/// Carries orders out.
#[derive(Clone)]
pub struct Backfiller {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// The routes.
    pub routes: Arc<Routes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How it goes about it.
    pub options: BackfillOptions,
}

impl Backfiller {
    async fn fate(&self, route: &Route, incident: &DefenderIncident) -> Result<Fate, StoreError> {
        let link = self.store.link(&route.key(&incident.id)).await?;
        Ok(match link {
            Some(link) if has_met(&link) => Fate::Linked,
            _ if incident.says.status == DefenderStatus::Redirected => Fate::Merged,
            _ => Fate::ToLink,
        })
    }

    /// Reads the list and counts. Nothing is ordered.
    pub async fn survey(
        &self,
        route: &Route,
        since: OffsetDateTime,
        until: OffsetDateTime,
        patience: &Patience,
    ) -> Result<Survey, Failure> {
        let (mut survey, mut seen, mut at) = (Survey::default(), HashSet::new(), None);
        loop {
            let list = async || route.defender.created_between(since, until, at.as_deref()).await;
            let page = patience.of(list).await?;
            survey.pages += 1;
            survey.unreadable += page.unreadable.len() as u64;
            for incident in &page.records {
                if !seen.insert(incident.id.clone()) {
                    continue;
                }
                let created = created(incident);
                let month = format!("{:04}-{:02}", created.year(), u8::from(created.month()));
                let status = incident.says.status.as_str().to_owned();
                *survey.months.entry(month).or_default().entry(status).or_default() += 1;
                survey.incidents += 1;
                match self.fate(route, incident).await.map_err(store_failure)? {
                    Fate::Linked => survey.linked += 1,
                    Fate::Merged => survey.merged += 1,
                    Fate::ToLink => survey.to_link += 1,
                }
            }
            if page.next.is_none() || page.next == at {
                return Ok(survey);
            }
            at = page.next;
        }
    }

    /// Carries out every order, until `stop`.
    pub async fn run(self, wake: Arc<Notify>, stop: CancellationToken) {
        let mut running: HashSet<String> = HashSet::new();
        let mut fillings: JoinSet<String> = JoinSet::new();
        let (mut mark, mut looked) = (None, None);
        while !stop.is_cancelled() {
            while let Some(ended) = fillings.try_join_next() {
                if let Ok(route) = ended {
                    running.remove(&route);
                    // It may have been ordered anew meanwhile.
                    looked = None;
                }
            }
            match self.store.value(CHANGED).await {
                Ok(now_mark) => {
                    let now = self.clock.now();
                    if looked.is_none_or(|at| now - at > LOOK_AGAIN) || now_mark != mark {
                        match self.active(&running).await {
                            Ok(routes) => {
                                (mark, looked) = (now_mark, Some(now));
                                for route in routes {
                                    running.insert(route.name.clone());
                                    let filling = Filling::new(self.clone(), route);
                                    fillings.spawn(filling.run(wake.clone(), stop.clone()));
                                }
                            }
                            Err(error) => tracing::warn!(%error, "the orders of backfills cannot be read"),
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "the orders of backfills cannot be read"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.options.orders) => {}
                () = stop.cancelled() => {}
            }
        }
        while fillings.join_next().await.is_some() {}
    }

    async fn active(&self, running: &HashSet<String>) -> Result<Vec<Arc<Route>>, StoreError> {
        let mut active = Vec::new();
        for route in self.routes.all().iter().filter(|route| !running.contains(&route.name)) {
            if let Some((order, progress)) = status(&*self.store, &route.name).await?
                && is_active(&order, progress.as_ref())
            {
                active.push(route.clone());
            }
        }
        Ok(active)
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// A page of the window's list was read.
    Page,
    /// So many incidents were handed to the workers.
    Told(usize),
    /// As many as may wait do.
    Full,
    /// The side has to be asked again after this time.
    Waiting(Duration),
    /// All is told.
    Done,
    /// There is no order, it was taken back, or it has ended.
    NoOrder,
    /// It cannot go on.
    Failed(Failure),
    /// Another replica carries it out.
    NotOurs,
}

/// A window of time, being read and told.
struct Window {
    from: OffsetDateTime,
    to: OffsetDateTime,
    next: Option<String>,
    whole: bool,
    pages: u32,
    /// What is to be told, and when it came to be; the next one last.
    found: Vec<(OffsetDateTime, String)>,
    seen: HashSet<String>,
    linked: u64,
    merged: u64,
    told: u64,
}

/// An order under way.
struct UnderWay {
    fence: Fence,
    order: Order,
    progress: Progress,
}

/// The backfill of one route.
pub struct Filling {
    backfiller: Backfiller,
    route: Arc<Route>,
    under_way: Option<UnderWay>,
    span: time::Duration,
    window: Option<Window>,
    /// What was handed to the workers, oldest first, while it may still wait.
    waiting: VecDeque<(String, OffsetDateTime)>,
    stumbles: u32,
    logged: Option<OffsetDateTime>,
}

impl Filling {
    /// Nothing is done yet.
    pub fn new(backfiller: Backfiller, route: Arc<Route>) -> Self {
        Self {
            backfiller,
            route,
            under_way: None,
            span: FIRST_SPAN,
            window: None,
            waiting: VecDeque::new(),
            stumbles: 0,
            logged: None,
        }
    }

    fn store(&self) -> &dyn Store {
        &*self.backfiller.store
    }

    /// Reads a page, or hands some incidents to the workers.
    pub async fn step(&mut self) -> Result<Filled, StoreError> {
        let now = self.backfiller.clock.now();
        match &self.under_way {
            None => {
                let name = order_name(&self.route.name);
                let Some(fence) = self.store().take_fence(&name, now, now + FENCE_FOR).await? else {
                    return Ok(Filled::NotOurs);
                };
                match status(self.store(), &self.route.name).await {
                    Ok(Some((order, progress))) if is_active(&order, progress.as_ref()) => {
                        let progress = progress.unwrap_or_else(|| Progress::new(&order, now));
                        (self.window, self.span) = (None, FIRST_SPAN);
                        self.under_way = Some(UnderWay { fence, order, progress });
                    }
                    other => {
                        self.store().release_fence(&fence).await?;
                        return other.map(|_| Filled::NoOrder);
                    }
                }
            }
            Some(UnderWay { fence, order, .. }) => {
                if self.store().extend_fence(fence, now, now + FENCE_FOR).await? == Held::No {
                    self.under_way = None;
                    return Ok(Filled::NotOurs);
                }
                let now_ordered = status(self.store(), &self.route.name).await?;
                if now_ordered.is_none_or(|(stored, _)| stored != *order) {
                    // Taken back, or another was given: what comes next begins with that.
                    self.leave().await?;
                    return Ok(Filled::NoOrder);
                }
            }
        }
        match &self.window {
            Some(window) if window.whole => self.hand_over(now).await,
            Some(_) => self.read().await,
            None => match self.next_window() {
                true => self.read().await,
                false => {
                    self.end(Phase::Done, None).await?;
                    Ok(Filled::Done)
                }
            },
        }
    }

    /// Opens the next window. False after the last.
    fn next_window(&mut self) -> bool {
        let Some(UnderWay { order, progress, .. }) = &self.under_way else { return false };
        let at = progress.position;
        let (from, to) = match order.newest_first {
            false => (at, (at + self.span).min(order.until)),
            true => ((at - self.span).max(order.since), at),
        };
        if from >= to {
            return false;
        }
        self.window = Some(Window {
            from,
            to,
            next: None,
            whole: false,
            pages: 0,
            found: Vec::new(),
            seen: HashSet::new(),
            linked: 0,
            merged: 0,
            told: 0,
        });
        true
    }

    async fn read(&mut self) -> Result<Filled, StoreError> {
        let (Some(window), Some(under_way)) = (&mut self.window, &self.under_way) else {
            return Ok(Filled::NoOrder);
        };
        let page = self.route.defender.created_between(window.from, window.to, window.next.as_deref()).await;
        let page = match page {
            Ok(page) => page,
            Err(failure) => return self.broken(failure).await,
        };
        self.stumbles = 0;
        window.pages += 1;
        for (id, why) in &page.unreadable {
            tracing::warn!(route = self.route.name, id, why, "an incident of the past cannot be read");
        }
        for incident in &page.records {
            // What changes meanwhile moves on the list, and may come twice.
            if !window.seen.insert(incident.id.clone()) {
                continue;
            }
            match self.backfiller.fate(&self.route, incident).await? {
                Fate::Linked => window.linked += 1,
                Fate::Merged => window.merged += 1,
                Fate::ToLink => window.found.push((created(incident), incident.id.clone())),
            }
        }
        let circles = page.next.is_some() && page.next == window.next || window.pages >= MOST_PAGES;
        if page.next.is_some() && !circles {
            window.next = page.next;
            return Ok(Filled::Page);
        }
        if circles {
            tracing::warn!(route = self.route.name, "a list does not end; the backfill goes on after it");
        }
        window.whole = true;
        window.found.sort();
        if !under_way.order.newest_first {
            window.found.reverse();
        }
        let count = window.seen.len();
        if count < FEW {
            self.span = MOST_SPAN.min(self.span * 2_i32);
        } else if count > MANY {
            self.span = LEAST_SPAN.max(self.span / 2_i32);
        }
        if window.found.is_empty() {
            self.close_window().await?;
        }
        Ok(Filled::Page)
    }

    /// Hands over as many as may wait.
    async fn hand_over(&mut self, now: OffsetDateTime) -> Result<Filled, StoreError> {
        let room = self.room(now).await?;
        let Some(window) = &mut self.window else { return Ok(Filled::NoOrder) };
        if room == 0 {
            return Ok(Filled::Full);
        }
        let some = window.found.split_off(window.found.len().saturating_sub(room));
        let mut hints = Vec::new();
        for (_, id) in some.iter().rev() {
            hints.push(Hint {
                subject: Subject {
                    side: Side::Defender,
                    scope: self.route.tenant_id.clone(),
                    native_id: id.clone(),
                },
                version: None,
                source: "backfill".into(),
            });
        }
        let count = hints.len();
        if let Err(error) = self.backfiller.store.remember(hints, None, now).await {
            window.found.extend(some);
            return Err(error);
        }
        window.told += count as u64;
        let done = window.found.is_empty();
        self.waiting.extend(some.into_iter().rev().map(|(_, id)| (id, now)));
        if done {
            self.close_window().await?;
        }
        Ok(Filled::Told(count))
    }

    /// How many more may be handed over. The queue's own count is enough while it is low; when it is not, others may
    /// be to blame, and what of ours has no twin yet is counted one by one.
    async fn room(&mut self, now: OffsetDateTime) -> Result<usize, StoreError> {
        let most = self.backfiller.options.most_waiting;
        let waiting = usize::try_from(self.store().queue_stats().await?.waiting).unwrap_or(0);
        if waiting < most {
            return Ok(most - waiting);
        }
        let mut still = VecDeque::new();
        while let Some((id, told)) = self.waiting.pop_front() {
            let link = self.store().link(&self.route.key(&id)).await?;
            let served = link.is_some_and(|link| link.parked.is_some() || has_met(&link));
            if !served && now - told < GIVEN_UP {
                still.push_back((id, told));
            }
        }
        self.waiting = still;
        Ok(most.saturating_sub(self.waiting.len()))
    }

    /// The window is told: from now on it is not read again.
    async fn close_window(&mut self) -> Result<(), StoreError> {
        let now = self.backfiller.clock.now();
        let (Some(window), Some(UnderWay { order, progress, .. })) = (&self.window, &self.under_way) else {
            return Ok(());
        };
        let next = Progress {
            position: if order.newest_first { window.from } else { window.to },
            incidents: progress.incidents + window.seen.len() as u64,
            linked: progress.linked + window.linked,
            merged: progress.merged + window.merged,
            told: progress.told + window.told,
            pages: progress.pages + u64::from(window.pages),
            at: now,
            ..progress.clone()
        };
        if self.logged.is_none_or(|at| now - at >= TELL_EVERY) {
            self.logged = Some(now);
            tracing::info!(
                route = self.route.name,
                at = format_instant(next.position),
                incidents = next.incidents,
                linked = next.linked,
                told = next.told,
                "the backfill goes on"
            );
        }
        self.save(next).await?;
        self.window = None;
        Ok(())
    }

    async fn save(&mut self, progress: Progress) -> Result<(), StoreError> {
        let text =
            serde_json::to_string(&progress).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.store().set_value(&progress_name(&self.route.name), &text).await?;
        if let Some(under_way) = &mut self.under_way {
            under_way.progress = progress;
        }
        Ok(())
    }

    async fn end(&mut self, phase: Phase, note: Option<String>) -> Result<(), StoreError> {
        if let Some(UnderWay { progress, .. }) = &self.under_way {
            let ended = Progress { phase, note, at: self.backfiller.clock.now(), ..progress.clone() };
            let Progress { incidents, linked, told, .. } = ended;
            tracing::info!(
                route = self.route.name,
                ?phase,
                incidents,
                linked,
                told,
                "the backfill has ended"
            );
            self.save(ended).await?;
        }
        self.leave().await
    }

    async fn leave(&mut self) -> Result<(), StoreError> {
        self.window = None;
        match self.under_way.take() {
            Some(under_way) => self.store().release_fence(&under_way.fence).await,
            None => Ok(()),
        }
    }

    /// A page could not be read. Nobody has to wait for it, so only what will never be served ends the order.
    async fn broken(&mut self, failure: Failure) -> Result<Filled, StoreError> {
        if failure.class == Class::Auth {
            return Ok(Filled::Waiting(Duration::from_secs(60)));
        }
        if failure.class == Class::Permanent {
            tracing::warn!(route = self.route.name, %failure, "the backfill cannot go on");
            self.end(Phase::Failed, Some(failure.to_string())).await?;
            return Ok(Filled::Failed(failure));
        }
        let wait = patience::pause(&failure, self.stumbles).unwrap_or(patience::LONGEST_WAIT);
        self.stumbles = (self.stumbles + 1).min(10);
        Ok(Filled::Waiting(wait))
    }

    /// Carries the route's order out. Returns the route's name when there is nothing left to do.
    async fn run(mut self, wake: Arc<Notify>, stop: CancellationToken) -> String {
        while !stop.is_cancelled() {
            let pause = match self.step().await {
                Ok(Filled::Page) => continue,
                Ok(Filled::Told(_)) => {
                    wake.notify_one();
                    continue;
                }
                Ok(Filled::Full) => self.backfiller.options.look,
                Ok(Filled::Waiting(wait)) => wait,
                Ok(Filled::NotOurs) => Duration::from_secs(60),
                Ok(Filled::Done | Filled::NoOrder | Filled::Failed(_)) => break,
                Err(error) => {
                    tracing::warn!(%error, route = self.route.name, "the backfill cannot go on; trying again");
                    Duration::from_secs(10)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        // Another replica need not wait for the fence to run out.
        let _ = self.leave().await;
        self.route.name.clone()
    }
}
