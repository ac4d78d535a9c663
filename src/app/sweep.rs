//! Looks at every link again, slowly: a lost hint costs time, never data. It reads both sides' lists, whose pages hold
//! many incidents for one call, and compares them with what was agreed; only what differs, was never agreed or is not
//! on the list is hinted, for the workers to read one by one. So links at rest cost no calls but the pages.
//!
//! Every tenant and every workspace is swept by itself: one that is throttled holds up no other. Incidents that never
//! got a link are found by the pollers, which the sweep asks to look further back.
//!
//! An edited comment may move nothing that a list shows. So the sweep of a workspace ends with a look at the comments of
//! the links that an edit would concern: one call each, and none for the others.
//!
//! The place is stored after each page, with what the list has shown so far: a restart goes on there.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::links::LinkPages;
use crate::app::metrics::Metrics;
use crate::app::poll::look_back_name;
use crate::app::routes::Routes;
use crate::domain::comments;
use crate::domain::failure::{Class, Failure};
use crate::domain::model::{DefenderIncident, DefenderSays, LinkKey, SentinelIncident, SentinelSays, Side};
use crate::domain::plan::{Known, LinkState, format_instant, hash, parse_instant};
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
/// How old a stored place may be: the link to the next page has its time.
const PLACE_HOLDS: time::Duration = time::Duration::hours(12);
/// How many marks are stored with the place before they are put away: it is written with every page.
const MARKS_AT_ONCE: usize = 1_000;
/// How many links' comments are looked at between two notes of the place.
const LOOKS_AT_ONCE: u32 = 20;

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

/// Makes the sweep of one tenant or workspace due at its next look at the clock.
pub async fn order(store: &dyn Store, side: Side, scope: &str) -> Result<(), StoreError> {
    store.set_value(&format!("sweep:last:{side}:{scope}"), &format_instant(OffsetDateTime::UNIX_EPOCH)).await
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
    /// The comments of a link were compared with what was carried; there may be more links.
    Comments {
        /// How many links were hinted by this step.
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
    begun: OffsetDateTime,
    /// Nothing was read yet since the place was taken from the store.
    resumed: bool,
    /// What the list has shown since marks were last put away.
    shown: Vec<u64>,
    /// How often marks were put away.
    chunks: u32,
    /// The looks at comments, once the list has ended.
    looks: Option<Looks>,
}

/// The links of a workspace, looked at for edited comments one by one.
struct Looks {
    pages: LinkPages,
    waiting: VecDeque<LinkRecord>,
    /// The last link that was looked at.
    after: Option<LinkKey>,
    unsaved: u32,
}

/// How far a sweep came, as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    /// When it began: as in the value that says so.
    begun: String,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    next: Option<String>,
    pages: u32,
    chunks: u32,
    /// Sixteen digits for each mark.
    shown: String,
    /// The list has ended: only comments are left to look at, after this link.
    #[serde(default)]
    looks: Option<Option<LinkKey>>,
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

    /// Whether an edit of a comment in Sentinel would concern somebody: comments were carried to Defender, edits are to
    /// be told there, and the incident is open, or was closed not long ago.
    fn watches_comments(&self, link: &LinkRecord, now: OffsetDateTime) -> bool {
        let Some(route) = self.routes.of_link(link).filter(|_| link.parked.is_none()) else { return false };
        let (policy, rules) = (&route.policy, &route.policy.comments);
        if !rules.edits || !rules.to_defender || policy.shadow {
            return false;
        }
        let Ok(state) = serde_json::from_str::<LinkState>(&link.state) else { return false };
        let closed_for = state.closed_since.map(|since| now - since);
        let too_long = |most: time::Duration| closed_for.is_some_and(|closed| closed > most);
        state.known.is_some()
            && state.unlinked.is_none()
            && state.merged_into.is_none()
            && !state.left_out
            && !too_long(rules.edits_after_close)
            && !policy.freeze_after.is_some_and(too_long)
            && state.hung.comments.has_told()
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut sweeps = JoinSet::new();
        for sweep in self.scopes() {
            sweeps.spawn(sweep.run(stop.clone()));
        }
        while sweeps.join_next().await.is_some() {}
        // Without a route there is nothing to sweep; ending early would look like a part that broke.
        stop.cancelled().await;
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
                Ok(None) => self.open(fence.clone(), now).await.map_err(Err),
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
        match self.list.as_ref().is_some_and(|list| list.looks.is_some()) {
            true => self.look(0).await,
            false => self.page().await,
        }
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

    /// Goes on where the last sweep was interrupted, or begins one.
    async fn open(&self, fence: Fence, now: OffsetDateTime) -> Result<List, StoreError> {
        let store = &self.sweeper.store;
        let begun = store.value(&self.name("begun:")).await?.unwrap_or_default();
        let place = store.value(&self.name("place:")).await?;
        let place = place.and_then(|text| serde_json::from_str::<Place>(&text).ok());
        let place = place.filter(|place| place.begun == begun && now - place.at < PLACE_HOLDS);
        match place.zip(parse_instant(&begun)) {
            Some((place, begun)) => self.resume(fence, place, begun).await,
            None => self.begin(fence, now).await,
        }
    }

    /// Notes what the list has to show. What was never agreed, or may be in flight, is hinted at once.
    async fn begin(&self, fence: Fence, now: OffsetDateTime) -> Result<List, StoreError> {
        let Sweeper { store, options, .. } = &self.sweeper;
        self.forget_place().await?;
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
                self.expect(link, &mut expected, &mut since, &mut told);
            }
            self.tell(told).await?;
        }
        self.sweeper.metrics.swept(expected.len() as u64);
        let list = List {
            fence,
            since: since - MARGIN,
            expected,
            next: None,
            pages: 0,
            stuck: 0,
            begun: now,
            resumed: false,
            shown: Vec::new(),
            chunks: 0,
            looks: None,
        };
        self.keep_place(&list).await?;
        Ok(list)
    }

    /// Takes up a sweep at its place. What was stored since it began was read by a worker since then; it need not be
    /// shown, and what is new may be on a page that was read before.
    async fn resume(&self, fence: Fence, place: Place, begun: OffsetDateTime) -> Result<List, StoreError> {
        let Sweeper { store, routes, .. } = &self.sweeper;
        let mut list = List {
            fence,
            since: place.since,
            expected: HashMap::new(),
            next: place.next,
            pages: place.pages,
            stuck: 0,
            begun,
            resumed: true,
            shown: unpack(&place.shown),
            chunks: place.chunks,
            looks: None,
        };
        if let Some(after) = place.looks {
            list.looks = Some(self.looks(after));
            return Ok(list);
        }
        let mut pages = LinkPages::of_scope(store, routes, &self.scope);
        let (mut since, mut told) = (begun, Vec::new());
        while let Some(links) = pages.next().await? {
            for link in links.into_iter().filter(|link| link.updated_at < begun) {
                self.expect(link, &mut list.expected, &mut since, &mut told);
            }
            // What was never agreed was told of when the sweep began.
            told.clear();
        }
        let mut shown = list.shown.clone();
        let prefix = self.name("shown:") + ":";
        let mut after: Option<String> = None;
        loop {
            let chunks = store.values(&prefix, after.as_deref(), 100).await?;
            let Some((last, _)) = chunks.last() else { break };
            after = Some(last.clone());
            shown.extend(chunks.iter().flat_map(|(_, marks)| unpack(marks)));
        }
        for mark in shown {
            list.expected.remove(&mark);
        }
        tracing::info!(
            side = %self.scope.0, scope = self.scope.1, pages = list.pages, left = list.expected.len(),
            "the sweep goes on where it was interrupted"
        );
        Ok(list)
    }

    /// What the list has to show of one link, or that it is to be told of at once.
    fn expect(
        &self,
        link: LinkRecord,
        expected: &mut HashMap<u64, u64>,
        since: &mut OffsetDateTime,
        told: &mut Vec<LinkKey>,
    ) {
        let state = serde_json::from_str::<LinkState>(&link.state).unwrap_or_default();
        let known = state.known.filter(|_| state.intents.is_empty());
        match (self.scope.0, known) {
            // What is put aside waits for its reason to end: whoever shows the incident may be tried again.
            (Side::Sentinel, _) if link.parked.is_some() => {}
            (Side::Sentinel, None) => {}
            (Side::Sentinel, Some(known)) => {
                let words = sentinel_words(&known.sentinel);
                // A twin of several links: whatever it shows, look at each.
                let name = hash(&link.sentinel_id);
                if expected.insert(name, both(&known.sentinel_etag, words)).is_some() {
                    expected.insert(name, ALWAYS);
                }
            }
            (Side::Defender, None) => told.push(link.key),
            (Side::Defender, Some(known)) => {
                *since = (*since).min(known.defender_updated);
                let words = mark(&(defender_words(&known.defender), state.hung.defender_comments));
                let words = both(&format_instant(known.defender_updated), words);
                let words = if link.parked.is_some() { ALWAYS } else { words };
                expected.insert(of_key(&link.key), words);
            }
        }
    }

    async fn keep_place(&self, list: &List) -> Result<(), StoreError> {
        let place = Place {
            begun: format_instant(list.begun),
            at: self.sweeper.clock.now(),
            since: list.since,
            next: list.next.clone(),
            pages: list.pages,
            chunks: list.chunks,
            shown: pack(&list.shown),
            looks: list.looks.as_ref().map(|looks| looks.after.clone()),
        };
        let text = serde_json::to_string(&place).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.sweeper.store.set_value(&self.name("place:"), &text).await
    }

    async fn forget_place(&self) -> Result<(), StoreError> {
        let store = &self.sweeper.store;
        store.remove_value(&self.name("place:")).await?;
        loop {
            let chunks = store.values(&(self.name("shown:") + ":"), None, 100).await?;
            if chunks.is_empty() {
                return Ok(());
            }
            for (name, _) in chunks {
                store.remove_value(&name).await?;
            }
        }
    }

    async fn page(&mut self) -> Result<Swept, StoreError> {
        let names = self.name("shown:");
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
        (list.next, list.stuck, list.resumed) = (next, 0, false);
        let mut suspects = Vec::new();
        let routes = &self.sweeper.routes;
        let count = records.len();
        for record in records {
            let mut differs = false;
            for mark in marks(&self.scope, &record.name, routes) {
                let known = list.expected.remove(&mark);
                if known.is_some() {
                    list.shown.push(mark);
                }
                differs |= known.is_some_and(|known| known == ALWAYS || known != record.mark);
            }
            if differs {
                suspects.push(record);
            }
        }
        // The pollers tell of what cannot be read; it is not missing.
        for (name, _) in &unreadable {
            for mark in marks(&self.scope, name, routes) {
                if list.expected.remove(&mark).is_some() {
                    list.shown.push(mark);
                }
            }
        }
        let put_away = (list.shown.len() >= MARKS_AT_ONCE).then(|| {
            list.chunks += 1;
            (format!("{names}:{:08}", list.chunks), pack(&std::mem::take(&mut list.shown)))
        });
        let more = list.next.is_some();
        let mut differing = Vec::new();
        for record in suspects {
            differing.extend(self.differing(&record).await?);
        }
        let hints = differing.len();
        self.tell(differing).await?;
        if more {
            // Told first: a crash in between tells it again.
            if let Some((name, marks)) = put_away {
                self.sweeper.store.set_value(&name, &marks).await?;
            }
            if let Some(list) = &self.list {
                self.keep_place(list).await?;
            }
            return Ok(Swept::Page { records: count, hints });
        }
        match self.finish().await? {
            Swept::Finished { hints: missing } => Ok(Swept::Finished { hints: hints + missing }),
            Swept::Comments { hints: missing } => Ok(Swept::Comments { hints: hints + missing }),
            other => Ok(other),
        }
    }

    fn looks(&self, after: Option<LinkKey>) -> Looks {
        let Sweeper { store, routes, .. } = &self.sweeper;
        let mut pages = LinkPages::of_scope(store, routes, &self.scope);
        if let Some(after) = &after {
            pages.go_on(after.clone());
        }
        Looks { pages, waiting: VecDeque::new(), after, unsaved: 0 }
    }

    /// Looks at the comments of the next link that an edit would concern, if there is one. `before` were hinted already
    /// in this step.
    async fn look(&mut self, before: usize) -> Result<Swept, StoreError> {
        let Source::Sentinel(sentinel) = self.source.clone() else {
            self.end().await?;
            return Ok(Swept::Finished { hints: before });
        };
        let now = self.sweeper.clock.now();
        let link = loop {
            let Some(looks) = self.list.as_mut().and_then(|list| list.looks.as_mut()) else {
                return Ok(Swept::NotOurs);
            };
            match looks.waiting.front() {
                Some(link) if self.sweeper.watches_comments(link, now) => break link.key.clone(),
                Some(_) => drop(looks.waiting.pop_front()),
                None => match looks.pages.next().await? {
                    Some(links) => looks.waiting.extend(links),
                    None => {
                        self.end().await?;
                        return Ok(Swept::Finished { hints: before });
                    }
                },
            }
        };
        // As it is stored now: a worker may have been there meanwhile.
        let stored = self.sweeper.store.link(&link).await?;
        let mut hints = before;
        if let Some(stored) = stored.filter(|stored| self.sweeper.watches_comments(stored, now)) {
            match sentinel.comments(&stored.sentinel_id).await {
                Ok(listed) => {
                    let state = serde_json::from_str::<LinkState>(&stored.state).unwrap_or_default();
                    if comments::shows_news(&state.hung.comments, &listed) {
                        self.tell(vec![stored.key]).await?;
                        hints += 1;
                    }
                    if let Some(list) = &mut self.list {
                        (list.stuck, list.resumed) = (0, false);
                    }
                }
                Err(failure) => {
                    let stuck = self.list.as_ref().map_or(0, |list| list.stuck);
                    let one_alone = match failure.class {
                        Class::Permanent => true,
                        Class::Retry { wait: None } | Class::Conflict => stuck + 1 >= MOST_STUCK,
                        Class::Retry { wait: Some(_) } | Class::Auth => false,
                    };
                    if !one_alone {
                        return self.broken(failure).await;
                    }
                    // One that cannot be read holds up no other.
                    tracing::warn!(link = %link, %failure, "comments cannot be looked at; the sweep goes on");
                }
            }
        }
        if let Some(list) = &mut self.list
            && let Some(looks) = &mut list.looks
        {
            list.stuck = 0;
            looks.waiting.pop_front();
            looks.after = Some(link);
            looks.unsaved += 1;
            if looks.unsaved >= LOOKS_AT_ONCE {
                looks.unsaved = 0;
                if let Some(list) = &self.list {
                    self.keep_place(list).await?;
                }
            }
        }
        Ok(Swept::Comments { hints })
    }

    /// The links for which a record is news, by what is stored of them now: a worker may have been there meanwhile.
    async fn differing(&self, record: &Listed) -> Result<Vec<LinkKey>, StoreError> {
        let (store, routes) = (&self.sweeper.store, &self.sweeper.routes);
        let links = match self.scope.0 {
            Side::Sentinel => store.links_of_twin(&self.scope.1, &record.name).await?,
            Side::Defender => {
                let mut links = Vec::new();
                for key in routes.keys_of(&self.scope.1, &record.name) {
                    links.extend(store.link(&key).await?);
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
            .filter(|link| routes.of_link(link).is_some() && news(link))
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
                        Side::Defender => of_key(&link.key),
                        Side::Sentinel => hash(&link.sentinel_id),
                    };
                    link.parked.is_none() && list.expected.contains_key(&name)
                });
                hints += links.len();
                self.tell(links.into_iter().map(|link| link.key).collect()).await?;
            }
        }
        let looks = self.looks(None);
        if let Some(list) = &mut self.list {
            list.looks = Some(looks);
        }
        if self.scope.0 == Side::Sentinel
            && let Some(list) = &self.list
        {
            self.keep_place(list).await?;
        }
        self.look(hints).await
    }

    async fn end(&mut self) -> Result<(), StoreError> {
        self.sweeper.store.set_value(&self.name("begun:"), "").await?;
        self.forget_place().await?;
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
            Class::Retry { wait: None } | Class::Conflict | Class::Permanent if list.resumed => {
                // The stored link to the next page has had its time, perhaps: from the start.
                tracing::info!(side = %self.scope.0, scope = self.scope.1, %failure, "the sweep begins again");
                self.forget_place().await?;
                if let Some(list) = self.list.take() {
                    self.sweeper.store.release_fence(&list.fence).await?;
                }
                Ok(Swept::Waiting(Duration::from_secs(1)))
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
                Ok(Swept::Comments { .. }) => pace,
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

/// The marks under which an incident of a list may be expected. They are stored, so they must not depend on the build.
fn marks((side, scope): &Scope, name: &str, routes: &Routes) -> Vec<u64> {
    match side {
        Side::Defender => routes.keys_of(scope, name).map(|key| of_key(&key)).collect(),
        Side::Sentinel => vec![hash(name)],
    }
}

fn of_key(key: &LinkKey) -> u64 {
    hash(&key.to_string())
}

fn pack(marks: &[u64]) -> String {
    marks.iter().map(|mark| format!("{mark:016x}")).collect()
}

fn unpack(text: &str) -> Vec<u64> {
    let digits = text.as_bytes().chunks_exact(16).filter_map(|digits| std::str::from_utf8(digits).ok());
    digits.filter_map(|digits| u64::from_str_radix(digits, 16).ok()).collect()
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
