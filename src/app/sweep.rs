//! Looks at every link again, slowly: a lost hint costs time, never data. It reads both sides' lists, whose pages hold
//! many incidents for one call, and compares them with what was agreed; only what differs, was never agreed or is not
//! on the list is hinted, for the workers to read one by one. So links at rest cost no calls but the pages.
//!
//! Every tenant and every workspace is swept by itself: one that is throttled holds up no other. Incidents that never
//! got a link are found by the pollers, which the sweep asks to look further back.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::links::LinkPages;
use crate::app::metrics::Metrics;
use crate::app::poll::look_back_name;
use crate::app::routes::{Route, Routes};
use crate::domain::failure::{Class, Failure};
use crate::domain::model::{DefenderIncident, DefenderSays, LinkKey, SentinelIncident, SentinelSays, Side};
use crate::domain::plan::{Known, LinkState, format_instant, parse_instant};
use crate::ports::{
    Clock, Defender, Fence, Held, Hint, LinkRecord, Scope, Sentinel, Store, StoreError, Subject,
};

/// When an earlier version last swept: it swept everything at once.
const LAST_OF_ALL: &str = "sweep:last";
/// Longer than the longest pause between two pages.
const FENCE_FOR: Duration = Duration::from_secs(15 * 60);
/// The longest wait for a side that asks us to come later, before it is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);
/// The longest pause between two pages: a link to the next page may have its time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a sweep that rests does so before it looks at the clock again.
const LONGEST_REST: Duration = Duration::from_secs(10 * 60);
/// Defender's list is asked for a little more than the oldest version that we know.
const MARGIN: time::Duration = time::Duration::minutes(10);
/// How often in a row a page may fail before the sweep is left to the next time.
const MOST_STUCK: u32 = 3;
/// No list has this many pages; one that does goes round in circles.
const MOST_PAGES: u32 = 100_000;
/// The mark of a link that is told of whatever the list shows.
const ALWAYS: u64 = 0;

/// How the sweep goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepOptions {
    /// From the start of one sweep to the start of the next.
    pub every: Duration,
    /// The pause for each incident of a page: what keeps the sweep from eating the budgets.
    pub pace: Duration,
    /// How far back the pollers are asked to look.
    pub look_back: Duration,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(6 * 60 * 60),
            pace: Duration::from_millis(500),
            look_back: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// A page was compared with what was agreed; there are more.
    Page {
        /// How many incidents were on it.
        records: usize,
        /// How many links were hinted.
        hints: usize,
    },
    /// The list has ended, and what was missing from it is hinted.
    Finished {
        /// How many links were hinted by this step.
        hints: usize,
    },
    /// The side has to be asked again after this time.
    Waiting(Duration),
    /// The side cannot be swept: left to the next time.
    GivenUp(Failure),
    /// The next sweep is not due for this long.
    Resting(Duration),
    /// Another replica sweeps.
    NotOurs,
}

/// The sweep over everything.
#[derive(Clone)]
pub struct Sweeper {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// The routes.
    pub routes: Arc<Routes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// How it goes about it.
    pub options: SweepOptions,
}

/// The system whose list is read.
#[derive(Clone)]
enum Source {
    Defender(Arc<dyn Defender>),
    Sentinel(Arc<dyn Sentinel>),
}

/// The sweep over the links of one tenant or one workspace.
pub struct ScopeSweep {
    sweeper: Sweeper,
    scope: Scope,
    source: Source,
    list: Option<List>,
}

/// A list that is being read.
struct List {
    fence: Fence,
    since: OffsetDateTime,
    /// What the list must still show: by a mark of the incident's name, a mark of its version and words. Marks, because
    /// a scope may have a million links.
    expected: HashMap<u64, u64>,
    next: Option<String>,
    pages: u32,
    stuck: u32,
}

/// A record of either list, as far as the sweep looks at it.
struct Listed {
    side: Side,
    name: String,
    mark: u64,
    at: OffsetDateTime,
    words: u64,
    version: String,
    /// How many comments a Defender incident has: they need not move its time (`graph.md` §7.4).
    comments: usize,
}

impl Sweeper {
    /// One sweep for each tenant and each workspace.
    pub fn scopes(&self) -> Vec<ScopeSweep> {
        let sweep = |scope, source| ScopeSweep { sweeper: self.clone(), scope, source, list: None };
        let tenants = self
            .routes
            .tenants()
            .map(|(id, defender)| sweep((Side::Defender, id.to_owned()), Source::Defender(defender.clone())));
        let workspaces = self
            .routes
            .workspaces()
            .map(|(id, sentinel)| sweep((Side::Sentinel, id.to_owned()), Source::Sentinel(sentinel.clone())));
        tenants.chain(workspaces).collect()
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut sweeps = JoinSet::new();
        for sweep in self.scopes() {
            sweeps.spawn(sweep.run(stop.clone()));
        }
        while sweeps.join_next().await.is_some() {}
    }
}

impl ScopeSweep {
    fn name(&self, what: &str) -> String {
        format!("sweep:{what}{}:{}", self.scope.0, self.scope.1)
    }

    /// Reads one page and tells the workers what differs, if a sweep is due or under way.
    pub async fn step(&mut self) -> Result<Swept, StoreError> {
        let now = self.sweeper.clock.now();
        if let Some(list) = &self.list {
            let held = self.sweeper.store.extend_fence(&list.fence, now, now + FENCE_FOR).await?;
            if held == Held::No {
                self.list = None;
                return Ok(Swept::NotOurs);
            }
        } else {
            if let Some(rest) = self.rest(now).await? {
                return Ok(Swept::Resting(rest));
            }
            let name = self.name("");
            let Some(fence) = self.sweeper.store.take_fence(&name, now, now + FENCE_FOR).await? else {
                return Ok(Swept::NotOurs);
            };
            // Another replica may have ended its sweep between the two.
            let begun = match self.rest(now).await {
                Ok(Some(rest)) => Err(Ok(Swept::Resting(rest))),
                Ok(None) => self.begin(fence.clone(), now).await.map_err(Err),
                Err(error) => Err(Err(error)),
            };
            match begun {
                Ok(list) => self.list = Some(list),
                Err(ended) => {
                    self.sweeper.store.release_fence(&fence).await?;
                    return ended;
                }
            }
        }
        self.page().await
    }

    /// How long until a sweep is due. One that was begun and did not end, in whatever process, is due.
    async fn rest(&self, now: OffsetDateTime) -> Result<Option<Duration>, StoreError> {
        let store = &self.sweeper.store;
        if store.value(&self.name("begun:")).await?.is_some_and(|begun| !begun.is_empty()) {
            return Ok(None);
        }
        let last = match store.value(&self.name("last:")).await? {
            Some(last) => Some(last),
            None => store.value(LAST_OF_ALL).await?,
        };
        let due = last.as_deref().and_then(parse_instant).map(|last| last + self.sweeper.options.every);
        Ok(due.filter(|due| *due > now).map(|due| (due - now).try_into().unwrap_or_default()))
    }

    /// Notes what the list has to show. What was never agreed, or may be in flight, is hinted at once.
    async fn begin(&self, fence: Fence, now: OffsetDateTime) -> Result<List, StoreError> {
        let Sweeper { store, options, .. } = &self.sweeper;
        store.set_value(&self.name("begun:"), &format_instant(now)).await?;
        if self.scope.0 == Side::Defender {
            let since = format_instant(now - options.look_back);
            store.set_value(&look_back_name(Side::Defender, &self.scope.1), &since).await?;
        }
        // From the start of this sweep: one that takes long does not push the next one away.
        store.set_value(&self.name("last:"), &format_instant(now)).await?;
        let (mut expected, mut since) = (HashMap::new(), now);
        let mut pages = LinkPages::of_scope(store, &self.sweeper.routes, &self.scope);
        while let Some(links) = pages.next().await? {
            let mut told = Vec::new();
            for link in links {
                let state = serde_json::from_str::<LinkState>(&link.state).unwrap_or_default();
                let known = state.known.filter(|_| state.intents.is_empty());
                match (self.scope.0, known) {
                    // What is put aside waits for its reason to end: whoever shows the incident may be tried again.
                    (Side::Sentinel, _) if link.parked.is_some() => {}
                    (Side::Sentinel, None) => {}
                    (Side::Sentinel, Some(known)) => {
                        let words = sentinel_words(&known.sentinel);
                        // A twin of several links: whatever it shows, look at each.
                        let marked =
                            expected.insert(mark(&link.sentinel_id), both(&known.sentinel_etag, words));
                        if marked.is_some() {
                            expected.insert(mark(&link.sentinel_id), ALWAYS);
                        }
                    }
                    (Side::Defender, None) => told.push(link.key),
                    (Side::Defender, Some(known)) => {
                        since = since.min(known.defender_updated);
                        let words = mark(&(defender_words(&known.defender), state.hung.defender_comments));
                        let words = both(&format_instant(known.defender_updated), words);
                        let words = if link.parked.is_some() { ALWAYS } else { words };
                        expected.insert(mark(&link.key), words);
                    }
                }
            }
            self.tell(told).await?;
        }
        self.sweeper.metrics.swept(expected.len() as u64);
        Ok(List { fence, since: since - MARGIN, expected, next: None, pages: 0, stuck: 0 })
    }

    async fn page(&mut self) -> Result<Swept, StoreError> {
        let Some(list) = &mut self.list else { return Ok(Swept::NotOurs) };
        if list.expected.is_empty() {
            return self.finish().await;
        }
        let at = list.next.as_deref();
        let read = match &self.source {
            Source::Defender(defender) => defender.changed_since(list.since, at).await.map(|page| {
                let records: Vec<Listed> = page.records.into_iter().map(Listed::from).collect();
                (records, page.next, page.unreadable)
            }),
            Source::Sentinel(sentinel) => sentinel.everything(at).await.map(|page| {
                let records: Vec<Listed> = page.records.into_iter().map(Listed::from).collect();
                (records, page.next, page.unreadable)
            }),
        };
        let (records, next, unreadable) = match read {
            Ok(read) => read,
            Err(failure) => return self.broken(failure).await,
        };
        list.pages += 1;
        if (next.is_some() && next == list.next) || list.pages >= MOST_PAGES {
            let message =
                "the list does not end: a page leads back to itself, or it has more pages than any".into();
            let effect = crate::domain::failure::Effect::None;
            let (class, side) = (Class::Permanent, Some(self.scope.0));
            return self.broken(Failure { class, side, code: "endless-list".into(), message, effect }).await;
        }
        (list.next, list.stuck) = (next, 0);
        let mut suspects = Vec::new();
        let routes = self.sweeper.routes.of_tenant(&self.scope.1);
        let count = records.len();
        for record in records {
            let mut differs = false;
            for mark in marks(self.scope.0, &record.name, routes) {
                let known = list.expected.remove(&mark);
                differs |= known.is_some_and(|known| known == ALWAYS || known != record.mark);
            }
            if differs {
                suspects.push(record);
            }
        }
        // The pollers tell of what cannot be read; it is not missing.
        for (name, _) in &unreadable {
            for mark in marks(self.scope.0, name, routes) {
                list.expected.remove(&mark);
            }
        }
        let more = list.next.is_some();
        let mut differing = Vec::new();
        for record in suspects {
            differing.extend(self.differing(&record).await?);
        }
        let hints = differing.len();
        self.tell(differing).await?;
        if more {
            return Ok(Swept::Page { records: count, hints });
        }
        match self.finish().await? {
            Swept::Finished { hints: missing } => Ok(Swept::Finished { hints: hints + missing }),
            other => Ok(other),
        }
    }

    /// The links for which a record is news, by what is stored of them now: a worker may have been there meanwhile.
    async fn differing(&self, record: &Listed) -> Result<Vec<LinkKey>, StoreError> {
        let (store, routes) = (&self.sweeper.store, &self.sweeper.routes);
        let links = match self.scope.0 {
            Side::Sentinel => store.links_of_twin(&self.scope.1, &record.name).await?,
            Side::Defender => {
                let mut links = Vec::new();
                for route in routes.of_tenant(&self.scope.1) {
                    links.extend(store.link(&route.key(&record.name)).await?);
                }
                links
            }
        };
        let news = |link: &LinkRecord| {
            let state = serde_json::from_str::<LinkState>(&link.state).unwrap_or_default();
            link.parked.is_some()
                || record.comments > state.hung.defender_comments
                || state.known.filter(|_| state.intents.is_empty()).is_none_or(|known| record.is_news(&known))
        };
        Ok(links
            .into_iter()
            .filter(|link| routes.of_link(&link.key).is_some() && news(link))
            .map(|link| link.key)
            .collect())
    }

    /// Hints what the list did not show. What is put aside and not there is known to be gone.
    async fn finish(&mut self) -> Result<Swept, StoreError> {
        let Some(list) = &self.list else { return Ok(Swept::NotOurs) };
        let mut hints = 0;
        if !list.expected.is_empty() {
            let side = self.scope.0;
            let mut pages = LinkPages::of_scope(&self.sweeper.store, &self.sweeper.routes, &self.scope);
            while let Some(mut links) = pages.next().await? {
                links.retain(|link| {
                    let name = match side {
                        Side::Defender => mark(&link.key),
                        Side::Sentinel => mark(&link.sentinel_id),
                    };
                    link.parked.is_none() && list.expected.contains_key(&name)
                });
                hints += links.len();
                self.tell(links.into_iter().map(|link| link.key).collect()).await?;
            }
        }
        self.end().await?;
        Ok(Swept::Finished { hints })
    }

    async fn end(&mut self) -> Result<(), StoreError> {
        self.sweeper.store.set_value(&self.name("begun:"), "").await?;
        match self.list.take() {
            Some(list) => self.sweeper.store.release_fence(&list.fence).await,
            None => Ok(()),
        }
    }

    /// A page could not be read. A side that names a time, or does not let us in, is asked again; else the sweep is
    /// left to the next time after a few attempts.
    async fn broken(&mut self, failure: Failure) -> Result<Swept, StoreError> {
        let Some(list) = &mut self.list else { return Ok(Swept::NotOurs) };
        match failure.class {
            Class::Retry { wait: Some(wait) } => {
                Ok(Swept::Waiting(wait.clamp(Duration::from_secs(1), LONGEST_WAIT)))
            }
            Class::Auth => Ok(Swept::Waiting(LONGEST_PAUSE)),
            Class::Retry { wait: None } | Class::Conflict if list.stuck + 1 < MOST_STUCK => {
                list.stuck += 1;
                Ok(Swept::Waiting(Duration::from_secs(10) * list.stuck))
            }
            Class::Retry { wait: None } | Class::Conflict | Class::Permanent => {
                tracing::warn!(side = %self.scope.0, scope = self.scope.1, %failure, "the sweep is left to the next time");
                self.end().await?;
                Ok(Swept::GivenUp(failure))
            }
        }
    }

    /// Hints links. It is the incident in Defender that is named, so that one row serves what both sweeps find.
    async fn tell(&self, links: Vec<LinkKey>) -> Result<(), StoreError> {
        let hints: Vec<Hint> = links
            .into_iter()
            .map(|key| Hint {
                subject: Subject { side: Side::Defender, scope: key.tenant_id, native_id: key.incident_id },
                version: None,
                source: "sweep".into(),
            })
            .collect();
        if hints.is_empty() {
            return Ok(());
        }
        self.sweeper.metrics.sweep_told(hints.len() as u64);
        self.sweeper.store.remember(hints, None, self.sweeper.clock.now()).await.map(|_| ())
    }

    /// Sweeps until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let pace = self.sweeper.options.pace;
        while !stop.is_cancelled() {
            let pause = match self.step().await {
                Ok(Swept::Page { records, .. }) => {
                    pace.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
                }
                Ok(Swept::Finished { .. } | Swept::GivenUp(_)) => Duration::from_secs(1),
                Ok(Swept::Resting(pause)) => pause.min(LONGEST_REST),
                Ok(Swept::Waiting(pause)) => pause,
                Ok(Swept::NotOurs) => LONGEST_PAUSE,
                Err(error) => {
                    tracing::warn!(%error, side = %self.scope.0, scope = self.scope.1, "the sweep cannot go on; trying again");
                    Duration::from_secs(10)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        // Another replica need not wait for the fence to run out. It stays due.
        if let Some(list) = self.list.take() {
            let _ = self.sweeper.store.release_fence(&list.fence).await;
        }
    }
}

impl From<DefenderIncident> for Listed {
    fn from(incident: DefenderIncident) -> Self {
        let (version, words) = (format_instant(incident.updated), defender_words(&incident.says));
        let comments = incident.comments.len();
        let (side, mark) = (Side::Defender, both(&version, mark(&(words, comments))));
        Self { side, mark, at: incident.updated, words, version, name: incident.id, comments }
    }
}

impl From<SentinelIncident> for Listed {
    fn from(incident: SentinelIncident) -> Self {
        let (version, words) = (incident.etag, sentinel_words(&incident.says));
        let (side, mark) = (Side::Sentinel, both(&version, words));
        Self { side, mark, at: incident.modified, words, version, name: incident.name, comments: 0 }
    }
}

impl Listed {
    /// Whether somebody must look at it. A list that shows less than what was agreed lags, and proves nothing; one
    /// that shows other words under the agreed version proves a change: two may carry the same time.
    fn is_news(&self, known: &Known) -> bool {
        let (at, version, words) = match self.side {
            Side::Sentinel => {
                (known.sentinel_modified, known.sentinel_etag.clone(), sentinel_words(&known.sentinel))
            }
            Side::Defender => {
                let version = format_instant(known.defender_updated);
                (known.defender_updated, version, defender_words(&known.defender))
            }
        };
        self.at >= at && (self.version != version || self.words != words)
    }
}

/// The marks under which an incident of a list may be expected.
fn marks(side: Side, name: &str, routes: &[Arc<Route>]) -> Vec<u64> {
    match side {
        Side::Defender => routes.iter().map(|route| mark(&route.key(name))).collect(),
        Side::Sentinel => vec![mark(name)],
    }
}

fn mark<T: Hash + ?Sized>(name: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

fn both(version: &str, words: u64) -> u64 {
    mark(&(version, words)).max(1)
}

/// All that people and programs may change of a Defender incident.
fn defender_words(says: &DefenderSays) -> u64 {
    let verdict = (&says.classification, &says.determination, &says.resolving_comment);
    mark(&(&says.title, &says.description, &says.severity, &says.status, &says.owner, verdict, &says.tags))
}

/// All that people and programs may change of a Sentinel incident.
fn sentinel_words(says: &SentinelSays) -> u64 {
    let verdict = (&says.classification, &says.reason, &says.comment);
    mark(&(&says.title, &says.description, &says.severity, &says.status, &says.owner, verdict, &says.labels))
}
