//! Pollers: one per Defender tenant, one per workspace. Graph has no push for incidents, so this is where most hints
//! come from. A step drains every page since the watermark, stores a hint for each record whose version nobody knows,
//! and only then moves the watermark. What breaks off for want of budget goes on at the page where it broke off: a list
//! that is longer than the budget of a minute would otherwise never come to its end.
//!
//! A look far back (the first start, the sweep) is a list of its own, read a few pages at a time after each poll, so
//! that news does not wait behind a week of old incidents.
//!
//! Alerts have a list of their own, polled more seldom and only for tenants whose alerts somebody wants to see: one that
//! changes, or moves to another incident, need not move the time of an incident (`graph.md` §7.4). What comes of it is a
//! hint about the incident; of an alert that moved, one about each. Where an alert was last seen is stored.
//!
//! Each poll looks back a little further than the watermark, because a change list may lag; records seen in that
//! overlap before are remembered in memory, so that they fill neither the queue nor the budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::app::health::Health;
use crate::app::metrics::Metrics;
use crate::app::native::{self, NativeTwin};
use crate::app::reconcile::store_failure;
use crate::app::routes::Routes;
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::{DefenderIncident, SentinelIncident, Side};
use crate::domain::plan::{LinkState, alert_mark, format_instant, parse_instant};
use crate::domain::retry::HELD_DELAY;
use crate::ports::{
    AlertNews, Clock, Defender, Fence, Held, Hint, LinkRecord, Page, Sentinel, Store, Subject, alerts_scope,
};

/// How long a poller's fence lasts; prolonged with every page.
const FENCE_FOR: Duration = Duration::from_secs(30);
/// A version that is still news this long after it was told is told again: a read that lagged may have settled its job.
const TELL_AGAIN: time::Duration = time::Duration::seconds(30);
/// The same for an alert: a hint about it costs a read of its incident, and most incidents were read meanwhile.
const TELL_OF_ALERT_AGAIN: time::Duration = time::Duration::minutes(2);
/// For how long it is remembered where an alert was, after it was last seen to change.
const HOME_FOR: time::Duration = time::Duration::days(90);
/// How often that memory is renewed for an alert that goes on changing.
const HOME_RENEWED: time::Duration = time::Duration::days(7);
/// How many of these memories are looked through after each poll.
const HOMES_AT_ONCE: usize = 200;
/// The watermark stays this far behind the start of the poll: two clocks.
const MARGIN: Duration = Duration::from_secs(5);
/// After this many empty polls in a row the interval stretches.
const EMPTY_POLLS: u32 = 10;
/// The longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// No change list has this many pages; one that does goes round in circles.
const MOST_PAGES: u32 = 10_000;
/// How many pages of a look far back are read after each poll.
const LOOK_BACK_PAGES: u32 = 3;
/// How often a page may fail before its list is begun anew: the link to it may have had its time.
const MOST_STUCK: u32 = 3;
/// A longer id is neither service's, and fits into no key.
const LONGEST_ID: usize = 512;

/// How a poller goes about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PollOptions {
    /// From one poll to the next.
    pub interval: Duration,
    /// How far each poll looks back behind the watermark.
    pub overlap: Duration,
    /// How far the first poll looks back. A new deployment copies what changed within it.
    pub backfill: Duration,
    /// How many times the interval an idle poller may wait; 1 keeps it steady.
    pub stretch: f64,
}

impl PollOptions {
    /// Defender: incidents show in the list late at times, so the overlap is wide.
    pub const DEFENDER: Self = Self {
        interval: Duration::from_secs(5),
        overlap: Duration::from_secs(5 * 60),
        backfill: Duration::from_secs(7 * 24 * 60 * 60),
        stretch: 3.0,
    };
    /// Alerts: a second chance for what the incidents' list does not tell of.
    pub const ALERTS: Self = Self { interval: Duration::from_secs(60), ..Self::DEFENDER };
    /// Sentinel.
    pub const SENTINEL: Self = Self { overlap: Duration::from_secs(2 * 60), ..Self::DEFENDER };
}

/// What a poll came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Polled {
    /// The change list was read to its end.
    Drained {
        /// How many hints were stored.
        hints: usize,
        /// How many pages were read.
        pages: u32,
    },
    /// Another replica polls this one.
    NotOurs,
    /// It broke off. The watermark stays.
    Failed(Failure),
}

/// The system that is polled.
#[derive(Clone)]
pub enum Source {
    /// A tenant's Defender.
    Defender(Arc<dyn Defender>),
    /// The alerts of a tenant's Defender.
    Alerts(Arc<dyn Defender>),
    /// A workspace's Sentinel.
    Sentinel(Arc<dyn Sentinel>),
}

/// A list that is being read.
#[derive(Clone, Debug)]
struct Reading {
    since: OffsetDateTime,
    started: OffsetDateTime,
    next: Option<String>,
    pages: u32,
    /// How often in a row the page at `next` has failed.
    stuck: u32,
}

impl Reading {
    fn new(since: OffsetDateTime, started: OffsetDateTime) -> Self {
        Self { since, started, next: None, pages: 0, stuck: 0 }
    }

    /// What is left to read after a failure, if it is worth going on with.
    fn resumed(mut self, failure: &Failure) -> Option<Self> {
        match failure.class {
            Class::Retry { wait: Some(_) } | Class::Auth => {}
            Class::Retry { wait: None } | Class::Conflict => self.stuck += 1,
            Class::Permanent => return None,
        }
        (self.next.is_some() && self.stuck < MOST_STUCK).then_some(self)
    }
}

/// How far a reading came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    ToTheEnd,
    /// The pages that it was allowed are read, or the process stops.
    Paused,
    /// Another replica has the poller now, and reads the list again.
    Lost,
}

/// What a step has done so far.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    hints: usize,
    pages: u32,
}

/// One poller.
pub struct Poller {
    store: Arc<dyn Store>,
    routes: Arc<Routes>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    health: Arc<Health>,
    options: PollOptions,
    source: Source,
    scope: String,
    pace: Pace,
    stop: CancellationToken,
    /// The poll that broke off.
    broken_off: Option<Reading>,
    /// The look far back that is under way.
    looking_back: Option<Reading>,
    /// What was seen within the overlap: id to version, when that version came to be, and when it was last told.
    seen: HashMap<String, (String, OffsetDateTime, OffsetDateTime)>,
    /// Where the memories of alerts are looked through next.
    homes: Option<String>,
}

/// One record of either change list.
struct Changed {
    id: String,
    version: String,
    at: OffsetDateTime,
    /// Made by Microsoft's own connector.
    native: Option<NativeTwin>,
    /// Of an alert: its incident.
    incident: Option<String>,
}

impl From<AlertNews> for Changed {
    fn from(alert: AlertNews) -> Self {
        let AlertNews { id, incident_id: incident, updated: at } = alert;
        Self { id, version: format_instant(at), at, native: None, incident }
    }
}

/// Where an alert was when it was last seen.
struct Home {
    incident: String,
    at: OffsetDateTime,
    /// Where it was before, if that incident has been told only once.
    former: Option<String>,
}

impl Home {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (incident, at) = (lines.next()?.to_owned(), parse_instant(lines.next()?)?);
        Some(Self { incident, at, former: lines.next().map(str::to_owned) })
    }

    fn text(&self) -> String {
        let former = self.former.as_ref().map(|former| format!("\n{former}")).unwrap_or_default();
        format!("{}\n{}{former}", self.incident, format_instant(self.at))
    }
}

impl From<DefenderIncident> for Changed {
    fn from(incident: DefenderIncident) -> Self {
        Self {
            version: format_instant(incident.updated),
            at: incident.updated,
            id: incident.id,
            native: None,
            incident: None,
        }
    }
}

impl From<SentinelIncident> for Changed {
    fn from(incident: SentinelIncident) -> Self {
        let native = NativeTwin::of(&incident);
        Self { version: incident.etag, at: incident.modified, id: incident.name, native, incident: None }
    }
}

fn changed<T: Into<Changed>>(page: Page<T>) -> Page<Changed> {
    let records = page.records.into_iter().map(Into::into).collect();
    Page { records, next: page.next, unreadable: page.unreadable }
}

/// The name of the stored value that asks a poller to look back once to this instant. The sweep sets it.
pub fn look_back_name(side: Side, scope: &str) -> String {
    format!("look-back:{side}:{scope}")
}

/// The name of a poller's watermark and of its fence.
pub fn poller_name(side: Side, scope: &str) -> String {
    format!("poll:{side}:{scope}")
}

/// What the name of every memory of where a tenant's alerts are begins with.
fn homes_name(tenant_id: &str) -> String {
    format!("alert-home:{tenant_id}:")
}

impl Poller {
    /// Every poller of alerts: one for each tenant whose alerts a route shows.
    pub fn of_alerts(
        store: &Arc<dyn Store>,
        routes: &Arc<Routes>,
        clock: &Arc<dyn Clock>,
        metrics: &Metrics,
        health: &Arc<Health>,
        options: PollOptions,
    ) -> Vec<Self> {
        let wanted = |id: &str| routes.of_tenant(id).iter().any(|route| route.policy.shows_alerts());
        let mut pollers = Self::all(store, routes, clock, metrics, health, (options, options));
        pollers.retain(|poller| poller.side() == Side::Defender && wanted(&poller.scope));
        for poller in &mut pollers {
            if let Source::Defender(defender) = &poller.source {
                poller.source = Source::Alerts(defender.clone());
            }
        }
        pollers
    }

    /// Every poller of incidents of a deployment.
    pub fn all(
        store: &Arc<dyn Store>,
        routes: &Arc<Routes>,
        clock: &Arc<dyn Clock>,
        metrics: &Metrics,
        health: &Arc<Health>,
        (defender, sentinel): (PollOptions, PollOptions),
    ) -> Vec<Self> {
        let poller = |scope: &str, source: Source, options: PollOptions| Self {
            store: store.clone(),
            routes: routes.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
            options,
            source,
            scope: scope.to_owned(),
            pace: Pace::default(),
            stop: CancellationToken::new(),
            broken_off: None,
            looking_back: None,
            seen: HashMap::new(),
            homes: None,
        };
        let tenants = routes.tenants().map(|(id, side)| poller(id, Source::Defender(side.clone()), defender));
        let workspaces =
            routes.workspaces().map(|(id, side)| poller(id, Source::Sentinel(side.clone()), sentinel));
        tenants.chain(workspaces).collect()
    }

    fn side(&self) -> Side {
        match self.source {
            Source::Defender(_) | Source::Alerts(_) => Side::Defender,
            Source::Sentinel(_) => Side::Sentinel,
        }
    }

    /// What stored names call the list that is polled.
    fn kind(&self) -> &'static str {
        match self.source {
            Source::Alerts(_) => "alerts",
            Source::Defender(_) | Source::Sentinel(_) => self.side().as_str(),
        }
    }

    /// The name of the stored instant before which this poller never looks.
    fn first_name(&self) -> String {
        format!("poll-first:{}:{}", self.kind(), self.scope)
    }

    fn look_back_name(&self) -> String {
        match self.source {
            Source::Alerts(_) => format!("look-back:alerts:{}", self.scope),
            Source::Defender(_) | Source::Sentinel(_) => look_back_name(self.side(), &self.scope),
        }
    }

    /// Under what name health knows this list: alerts are apart, since their trouble stops no incident.
    fn watched_scope(&self) -> String {
        match self.source {
            Source::Alerts(_) => alerts_scope(&self.scope),
            Source::Defender(_) | Source::Sentinel(_) => self.scope.clone(),
        }
    }

    /// Polls once.
    pub async fn step(&mut self) -> Polled {
        let (side, now) = (self.side(), self.clock.now());
        let name = match self.source {
            Source::Alerts(_) => format!("poll:alerts:{}", self.scope),
            Source::Defender(_) | Source::Sentinel(_) => poller_name(side, &self.scope),
        };
        let fence = match self.store.take_fence(&name, now, now + FENCE_FOR).await {
            Ok(Some(fence)) => fence,
            Ok(None) => return Polled::NotOurs,
            Err(error) => return self.failed(store_failure(error)),
        };
        let drained = self.drain(&fence).await;
        // A fence that cannot be given back runs out by itself.
        let _ = self.store.release_fence(&fence).await;
        match drained {
            Ok(Tally { hints, pages }) => {
                self.metrics.poll(side, if hints == 0 { "empty" } else { "changed" });
                self.health.polled(side, &self.watched_scope(), Ok(()), self.clock.now());
                Polled::Drained { hints, pages }
            }
            Err(failure) => self.failed(failure),
        }
    }

    fn failed(&self, failure: Failure) -> Polled {
        self.metrics.poll(self.side(), "failed");
        tracing::warn!(list = self.kind(), scope = self.scope, %failure, "poll broke off");
        let scope = self.watched_scope();
        self.health.polled(self.side(), &scope, Err(&failure.to_string()), self.clock.now());
        Polled::Failed(failure)
    }

    async fn drain(&mut self, fence: &Fence) -> Result<Tally, Failure> {
        let started = self.clock.now();
        let mut tally = Tally::default();
        let stored = self.store.value(&fence.name).await.map_err(store_failure)?;
        let look_back_name = self.look_back_name();
        let mut asked = self.store.value(&look_back_name).await.map_err(store_failure)?;
        let watermark = match stored.as_deref().and_then(parse_instant) {
            Some(watermark) => watermark,
            None => {
                // Stored before there is a watermark: a crash in between asks for it again.
                let backfill = format_instant(started - self.options.backfill);
                for name in [&self.first_name(), &look_back_name] {
                    self.store.set_value(name, &backfill).await.map_err(store_failure)?;
                }
                asked = Some(backfill);
                started
            }
        };
        let since = watermark - self.options.overlap;
        let mut poll = self.broken_off.take().unwrap_or_else(|| Reading::new(since, started));
        match self.read_on(&mut poll, MOST_PAGES, since, fence, &mut tally).await {
            Ok(Came::ToTheEnd) => {}
            Ok(Came::Paused | Came::Lost) => return Ok(tally),
            Err(failure) => {
                self.broken_off = poll.resumed(&failure);
                return Err(failure);
            }
        }
        let reached = poll.started - MARGIN;
        if stored.is_none() || watermark < reached {
            self.store.set_value(&fence.name, &format_instant(reached)).await.map_err(store_failure)?;
        }
        if let Some(look_back) = asked.as_deref().and_then(parse_instant) {
            // What lies before the first start is nobody's business, however far the sweep would look.
            let first = self.store.value(&self.first_name()).await.map_err(store_failure)?;
            let look_back =
                first.as_deref().and_then(parse_instant).map_or(look_back, |first| first.max(look_back));
            self.look_back(look_back, since, fence, &mut tally).await?;
        }
        let forget = reached - self.options.overlap;
        self.seen.retain(|_, (_, at, _)| *at >= forget);
        if matches!(self.source, Source::Alerts(_)) {
            self.forget_homes().await?;
        }
        Ok(tally)
    }

    /// Goes on with a look far back, for a few pages. `polled` is where the polls begin.
    async fn look_back(
        &mut self,
        asked: OffsetDateTime,
        polled: OffsetDateTime,
        fence: &Fence,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let mut reading = self.looking_back.take().unwrap_or_else(|| Reading::new(asked, self.clock.now()));
        let came = match asked < polled {
            true => self.read_on(&mut reading, LOOK_BACK_PAGES, polled, fence, tally).await,
            false => Ok(Came::ToTheEnd),
        };
        match came {
            Ok(Came::ToTheEnd) => {
                // A request that came meanwhile would be lost here; the next sweep asks again.
                let name = self.look_back_name();
                self.store.set_value(&name, "").await.map_err(store_failure)
            }
            Ok(Came::Paused) => {
                self.looking_back = Some(reading);
                Ok(())
            }
            Ok(Came::Lost) => Ok(()),
            Err(failure) => {
                let spent = failure.code == "budget";
                self.looking_back = reading.resumed(&failure);
                // The poll itself went well, and a spent budget is nobody's fault.
                if spent { Ok(()) } else { Err(failure) }
            }
        }
    }

    /// Reads a list from where it was left, at most so many pages of it.
    async fn read_on(
        &mut self,
        reading: &mut Reading,
        most: u32,
        polled: OffsetDateTime,
        fence: &Fence,
        tally: &mut Tally,
    ) -> Result<Came, Failure> {
        let circle = |side, why: &str| Failure {
            class: Class::Permanent,
            side: Some(side),
            code: "endless-list".to_owned(),
            message: format!("the change list does not end: {why}"),
            effect: Effect::None,
        };
        for _ in 0..most {
            let (since, at) = (reading.since, reading.next.as_deref());
            let page = match &self.source {
                Source::Defender(defender) => changed(defender.changed_since(since, at).await?),
                Source::Alerts(defender) => changed(defender.alerts_changed_since(since, at).await?),
                Source::Sentinel(sentinel) => changed(sentinel.changed_since(since, at).await?),
            };
            if page.next.is_some() && page.next == reading.next {
                return Err(circle(self.side(), "a page names itself as the next"));
            }
            reading.pages += 1;
            tally.pages += 1;
            tally.hints += self.take_in(page.records, page.unreadable, polled).await?;
            (reading.next, reading.stuck) = (page.next, 0);
            if reading.next.is_none() {
                return Ok(Came::ToTheEnd);
            }
            if reading.pages >= MOST_PAGES {
                return Err(circle(self.side(), "it has more pages than any"));
            }
            if self.stop.is_cancelled() {
                return Ok(Came::Paused);
            }
            let now = self.clock.now();
            match self.store.extend_fence(fence, now, now + FENCE_FOR).await.map_err(store_failure)? {
                Held::Yes => {}
                Held::No => return Ok(Came::Lost),
            }
        }
        Ok(Came::Paused)
    }

    /// Stores the hints of one page. What is remembered as seen is on disk. What last changed before `polled` was told
    /// of when it did: a hint that names no version then, so that a row which was put aside since is tried again.
    async fn take_in(
        &mut self,
        records: Vec<Changed>,
        mut unreadable: Vec<(String, String)>,
        polled: OffsetDateTime,
    ) -> Result<usize, Failure> {
        let side = self.side();
        let now = self.clock.now();
        let (mut hints, mut fresh, mut homes) = (Vec::new(), Vec::new(), Vec::new());
        let of_alerts = matches!(self.source, Source::Alerts(_));
        let tell_again = if of_alerts { TELL_OF_ALERT_AGAIN } else { TELL_AGAIN };
        let hint = |native_id: &str, version: Option<String>, source: &str| Hint {
            subject: Subject { side, scope: self.scope.clone(), native_id: native_id.to_owned() },
            version,
            source: source.to_owned(),
        };
        for Changed { id, version, at, native, incident } in records {
            if id.len() > LONGEST_ID {
                // One that no key holds must not keep the page from being stored.
                let start = id.chars().take(40).filter(|c| !c.is_control()).collect::<String>();
                unreadable.push((format!("#{start}"), format!("an id of {} bytes", id.len())));
                continue;
            }
            let told_lately = |seen: &(String, OffsetDateTime, OffsetDateTime)| {
                seen.0 == version && now - seen.2 < tell_again
            };
            if self.seen.get(&id).is_some_and(told_lately) {
                continue;
            }
            if of_alerts {
                let Some(incident) = incident.filter(|incident| incident.len() <= LONGEST_ID) else {
                    fresh.push((id, (version, at, now)));
                    continue;
                };
                let before = self.home(&id).await?;
                let former = match &before {
                    Some(home) if home.incident != incident => Some(home.incident.clone()),
                    _ => None,
                };
                let once_more = before.as_ref().and_then(|home| home.former.clone());
                let moved = former.is_some();
                // The look far back only learns where alerts are: the poll of incidents tells of what changed then.
                let seen = self.seen.get(&id).is_some_and(|seen| seen.0 == version);
                if moved || (at >= polled && self.alert_is_news(&id, &incident, &version, seen).await?) {
                    hints.push(hint(&incident, None, "alerts"));
                }
                // Told twice, because the first read may lag, and nothing else tells of it.
                for left in former.iter().chain(&once_more).filter(|left| **left != incident) {
                    hints.push(hint(left, None, "alerts"));
                }
                if moved || once_more.is_some() || before.is_none_or(|home| now - home.at > HOME_RENEWED) {
                    homes.push((id.clone(), Home { incident, at: now, former }));
                }
                fresh.push((id, (version, at, now)));
                continue;
            }
            if let Some(twin) = &native {
                let doubles = native::found(&*self.store, &self.routes, &self.scope, twin, now);
                self.metrics.doubles(doubles.await.map_err(store_failure)? as u64);
            }
            if self.news(&id, &version).await? {
                hints.push(hint(&id, Some(version.clone()).filter(|_| at >= polled), "poll"));
            }
            fresh.push((id, (version, at, now)));
        }
        for (id, why) in unreadable {
            let mark = format!("unreadable: {why}");
            if self.seen.get(&id).is_some_and(|(seen, ..)| *seen == mark) {
                continue;
            }
            self.metrics.unreadable(side);
            tracing::warn!(%side, scope = self.scope, id, why, "a record of the change list cannot be read");
            // Its job reads it alone, cannot either, and is put aside where a person sees it.
            if !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                hints.push(hint(&id, None, "poll-unreadable"));
            }
            fresh.push((id, (mark, now, now)));
        }
        let count = hints.len();
        if count > 0 {
            self.store.remember(hints, None, now).await.map_err(store_failure)?;
        }
        // Only now: a crash in between tells of the move again.
        for (alert, home) in homes {
            let name = format!("{}{alert}", homes_name(&self.scope));
            self.store.set_value(&name, &home.text()).await.map_err(store_failure)?;
        }
        self.seen.extend(fresh);
        Ok(count)
    }

    async fn home(&self, alert: &str) -> Result<Option<Home>, Failure> {
        let name = format!("{}{alert}", homes_name(&self.scope));
        let value = self.store.value(&name).await.map_err(store_failure)?;
        Ok(value.as_deref().and_then(Home::parse))
    }

    /// Forgets where alerts were that have not changed for long, a few after each poll.
    async fn forget_homes(&mut self) -> Result<(), Failure> {
        let prefix = homes_name(&self.scope);
        let after = self.homes.take();
        let values =
            self.store.values(&prefix, after.as_deref(), HOMES_AT_ONCE).await.map_err(store_failure)?;
        if values.len() == HOMES_AT_ONCE {
            self.homes = values.last().map(|(name, _)| name.clone());
        }
        let long_ago = self.clock.now() - HOME_FOR;
        for (name, value) in values {
            if Home::parse(&value).is_none_or(|home| home.at < long_ago) {
                self.store.remove_value(&name).await.map_err(store_failure)?;
            }
        }
        Ok(())
    }

    /// Whether a route that shows alerts has not looked at this version of one. Of an incident without a link it is told
    /// once: the route's filter may wait for just this alert.
    async fn alert_is_news(
        &self,
        id: &str,
        incident: &str,
        version: &str,
        seen: bool,
    ) -> Result<bool, Failure> {
        let mark = alert_mark(id, version);
        for route in self.routes.of_tenant(&self.scope).iter().filter(|route| route.policy.shows_alerts()) {
            let link = self.store.link(&route.key(incident)).await.map_err(store_failure)?;
            let looked_at = match link {
                Some(link) => serde_json::from_str::<LinkState>(&link.state)
                    .is_ok_and(|state| state.hung.alert_marks.contains(&mark)),
                None => seen,
            };
            if !looked_at {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether somebody must look at this version.
    async fn news(&self, id: &str, version: &str) -> Result<bool, Failure> {
        let knows = |link: &LinkRecord, side| {
            serde_json::from_str::<LinkState>(&link.state).is_ok_and(|state| state.knows(side, version))
        };
        match self.side() {
            Side::Defender => {
                for key in self.routes.keys_of(&self.scope, id) {
                    let link = self.store.link(&key).await.map_err(store_failure)?;
                    if !link.is_some_and(|link| knows(&link, Side::Defender)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            // What is nobody's twin is nobody's business.
            Side::Sentinel => {
                let links = self.store.links_of_twin(&self.scope, id).await.map_err(store_failure)?;
                Ok(links.iter().any(|link| !knows(link, Side::Sentinel)))
            }
        }
    }

    /// Polls until `stop`.
    pub async fn run(mut self, wake: Arc<tokio::sync::Notify>, stop: CancellationToken) {
        self.stop = stop.clone();
        while !stop.is_cancelled() {
            let polled = self.step().await;
            if matches!(polled, Polled::Drained { hints: 1.., .. }) {
                wake.notify_one();
            }
            let pause = self.pace.after(&polled, &self.options);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// How long to wait for the next poll.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    empty: u32,
    failed: u32,
}

impl Pace {
    fn after(&mut self, polled: &Polled, options: &PollOptions) -> Duration {
        let interval = options.interval;
        match polled {
            Polled::NotOurs => interval,
            Polled::Drained { hints, .. } => {
                self.failed = 0;
                self.empty = if *hints > 0 { 0 } else { self.empty + 1 };
                let steps = self.empty.saturating_sub(EMPTY_POLLS - 1).min(16);
                interval.mul_f64(1.5_f64.powi(steps.cast_signed()).min(options.stretch.max(1.0)))
            }
            Polled::Failed(failure) => {
                self.failed = (self.failed + 1).min(10);
                let backoff = interval.saturating_mul(1 << self.failed).min(LONGEST_PAUSE.max(interval));
                match failure.class {
                    Class::Retry { wait: Some(wait) } => wait.max(interval),
                    Class::Auth => HELD_DELAY.max(interval),
                    Class::Conflict => interval,
                    Class::Retry { wait: None } => backoff,
                    Class::Permanent => LONGEST_PAUSE.max(interval),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(hints: usize) -> Polled {
        Polled::Drained { hints, pages: 1 }
    }

    #[test]
    fn an_idle_poller_stretches_to_its_limit_and_is_back_at_once() {
        let options = PollOptions { interval: Duration::from_secs(4), ..PollOptions::DEFENDER };
        let mut pace = Pace::default();
        for _ in 1..EMPTY_POLLS {
            assert_eq!(pace.after(&drained(0), &options), Duration::from_secs(4));
        }
        assert_eq!(pace.after(&drained(0), &options), Duration::from_secs(6));
        assert_eq!(pace.after(&drained(0), &options), Duration::from_secs(9));
        assert_eq!(pace.after(&drained(0), &options), Duration::from_secs(12));
        assert_eq!(pace.after(&drained(0), &options), Duration::from_secs(12));
        assert_eq!(pace.after(&drained(1), &options), Duration::from_secs(4));
        let steady = PollOptions { stretch: 1.0, ..options };
        for _ in 0..30 {
            assert_eq!(pace.after(&drained(0), &steady), Duration::from_secs(4));
        }
    }

    #[test]
    fn a_service_that_says_how_long_is_obeyed() {
        let failed = |class| {
            let (side, code, message) = (Some(Side::Defender), "throttled".to_owned(), String::new());
            let effect = crate::domain::failure::Effect::None;
            Polled::Failed(Failure { class, side, code, message, effect })
        };
        let options = PollOptions::DEFENDER;
        let mut pace = Pace::default();
        let wait = Some(Duration::from_secs(300));
        assert_eq!(pace.after(&failed(Class::Retry { wait }), &options), Duration::from_secs(300));
        for _ in 0..50 {
            assert!(pace.after(&failed(Class::Retry { wait: None }), &options) <= LONGEST_PAUSE);
        }
        assert_eq!(pace.after(&failed(Class::Auth), &options), HELD_DELAY);
    }
}
