//! Both systems as fakes: they hold incidents, move versions, and have faults. They know what the application last
//! read, so that an edit lost in Graph's window can be told from one that was overwritten unseen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep::app::reconcile::twin_id;
use lockstep::domain::failure::{Class, Effect, Failure};
use lockstep::domain::model::*;
use lockstep::domain::plan::LinkState;
use lockstep::ports::{Clock, Defender, Dice, Page, Sentinel};
use time::OffsetDateTime;

use crate::life::{Fuse, VirtualClock};
use crate::store::Disk;
use crate::world::key;

/// How often things go wrong, in parts of one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) dropped: f64,
    pub(crate) answer_lost: f64,
    pub(crate) stale: f64,
    pub(crate) throttled: f64,
    pub(crate) broken: f64,
    pub(crate) list_lags: f64,
}

/// The fields that people edit here, as numbers with one meaning on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Cell {
    Severity,
    Status,
    Owner,
}

pub(crate) const CELLS: [Cell; 3] = [Cell::Severity, Cell::Status, Cell::Owner];
const OWNERS: [Option<&str>; 3] = [None, Some("a@example.org"), Some("b@example.org")];

pub(crate) fn defender_cell(says: &DefenderSays, cell: Cell) -> u8 {
    use DefenderSeverity as V;
    use DefenderStatus as S;
    let at = match cell {
        Cell::Severity => [V::Low, V::Medium, V::High].iter().position(|v| *v == says.severity),
        Cell::Status => [S::Active, S::InProgress, S::Resolved].iter().position(|s| *s == says.status),
        Cell::Owner => OWNERS.iter().position(|o| *o == says.owner.as_deref()),
    };
    at.expect("nobody sets anything else") as u8
}

pub(crate) fn sentinel_cell(says: &SentinelSays, cell: Cell) -> u8 {
    use SentinelSeverity as V;
    use SentinelStatus as S;
    let at = match cell {
        Cell::Severity => [V::Low, V::Medium, V::High].iter().position(|v| *v == says.severity),
        Cell::Status => [S::New, S::Active, S::Closed].iter().position(|s| *s == says.status),
        Cell::Owner => OWNERS.iter().position(|o| *o == says.owner.upn.as_deref()),
    };
    at.expect("nobody sets anything else") as u8
}

pub(crate) fn set_defender(says: &mut DefenderSays, cell: Cell, to: u8) {
    use DefenderSeverity as V;
    use DefenderStatus as S;
    match cell {
        Cell::Severity => says.severity = [V::Low, V::Medium, V::High][to as usize].clone(),
        Cell::Status => says.status = [S::Active, S::InProgress, S::Resolved][to as usize].clone(),
        Cell::Owner => says.owner = OWNERS[to as usize].map(str::to_owned),
    }
}

pub(crate) fn set_sentinel(says: &mut SentinelSays, cell: Cell, to: u8) {
    use SentinelSeverity as V;
    use SentinelStatus as S;
    match cell {
        Cell::Severity => says.severity = [V::Low, V::Medium, V::High][to as usize].clone(),
        Cell::Status => {
            says.status = [S::New, S::Active, S::Closed][to as usize].clone();
            (says.classification, says.reason, says.comment) = (None, None, None);
            if says.status == S::Closed {
                says.classification = Some(SentinelClassification::Undetermined);
            }
        }
        Cell::Owner => {
            says.owner =
                SentinelOwner { upn: OWNERS[to as usize].map(str::to_owned), ..SentinelOwner::default() };
        }
    }
}

struct Kept<T> {
    now: T,
    previous: Option<T>,
    moved: OffsetDateTime,
}

/// What both systems hold, and what they saw us do.
#[derive(Default)]
pub(crate) struct Remote {
    defender: BTreeMap<String, Kept<DefenderIncident>>,
    sentinel: BTreeMap<String, Kept<SentinelIncident>>,
    /// What the application was last shown of a Defender incident.
    shown: HashMap<String, DefenderIncident>,
    etags: u64,
    pub(crate) faults: Faults,
    pub(crate) calls: u64,
    pub(crate) writes: u64,
    pub(crate) refuses_in_progress: bool,
    pub(crate) panics: u32,
    /// Sides and scopes whose calls take this long.
    pub(crate) slow: HashMap<String, Duration>,
    /// Until when tokens are refused, by side.
    pub(crate) no_entry: HashMap<Side, OffsetDateTime>,
    /// How many incidents a page of Defender's list has (0: all), and how many pages a minute may be read.
    pub(crate) pages: (usize, usize),
    pages_read: Vec<OffsetDateTime>,
    /// A person's edit that slips in before the next write to the side.
    pub(crate) slip: HashMap<Side, (String, Cell, u8)>,
    /// Edits since the last quiet point: side, incident, cell, value.
    pub(crate) edits: Vec<(Side, String, Cell, u8)>,
    /// What happened at the services, for the reader of a failure.
    pub(crate) told: Vec<(OffsetDateTime, String)>,
    pub(crate) window: BTreeSet<(String, Cell)>,
    pub(crate) window_losses: u32,
    pub(crate) violations: Vec<String>,
    /// Calls under way, by the twin's name: never two of one link.
    under_way: HashMap<String, u32>,
}

/// A call under way.
struct UnderWay {
    remote: Arc<Mutex<Remote>>,
    name: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Ok(mut remote) = self.remote.lock()
            && let Some(count) = remote.under_way.get_mut(&self.name)
        {
            *count -= 1;
        }
    }
}

pub(crate) fn defender_says() -> DefenderSays {
    DefenderSays {
        title: Some("Ransom".into()),
        description: Some("text".into()),
        severity: DefenderSeverity::Low,
        status: DefenderStatus::Active,
        owner: None,
        classification: DefenderClassification::Unknown,
        determination: DefenderDetermination::Unknown,
        resolving_comment: None,
        tags: Vec::new(),
        facts: None,
    }
}

impl Remote {
    fn etag(&mut self) -> String {
        self.etags += 1;
        format!("\"{:04}\"", self.etags)
    }

    pub(crate) fn new_incident(&mut self, id: &str, now: OffsetDateTime) {
        let incident = DefenderIncident {
            id: id.to_owned(),
            says: defender_says(),
            created: Some(now),
            updated: now,
            modified_by: None,
            web_url: None,
            redirect: None,
            comments: Vec::new(),
            alerts: None,
        };
        self.defender.insert(id.to_owned(), Kept { now: incident, previous: None, moved: now });
    }

    pub(crate) fn defender(&self, id: &str) -> &DefenderIncident {
        &self.defender[id].now
    }

    pub(crate) fn twin(&self, name: &str) -> Option<&SentinelIncident> {
        self.sentinel.get(name).map(|kept| &kept.now)
    }

    pub(crate) fn twins(&self) -> usize {
        self.sentinel.len()
    }

    pub(crate) fn delete_twin(&mut self, name: &str) {
        self.sentinel.remove(name);
    }

    fn move_defender(&mut self, id: &str, now: OffsetDateTime, change: impl FnOnce(&mut DefenderSays)) {
        let kept = self.defender.get_mut(id).expect("it exists");
        let mut next = kept.now.clone();
        change(&mut next.says);
        next.updated = now.max(kept.now.updated + time::Duration::milliseconds(1));
        kept.moved = now;
        kept.previous = Some(std::mem::replace(&mut kept.now, next));
    }

    fn move_sentinel(&mut self, name: &str, now: OffsetDateTime, change: impl FnOnce(&mut SentinelIncident)) {
        let etag = self.etag();
        let kept = self.sentinel.get_mut(name).expect("it exists");
        let mut next = kept.now.clone();
        change(&mut next);
        next.etag = etag;
        next.modified = now.max(kept.now.modified + time::Duration::milliseconds(1));
        kept.moved = now;
        kept.previous = Some(std::mem::replace(&mut kept.now, next));
    }

    /// A person edits. False when it changes nothing. `id` is the Defender incident's; `name` its twin's.
    pub(crate) fn edit(
        &mut self,
        side: Side,
        (id, name): (&str, &str),
        cell: Cell,
        to: u8,
        now: OffsetDateTime,
    ) -> bool {
        match side {
            Side::Defender => {
                if defender_cell(&self.defender[id].now.says, cell) == to {
                    return false;
                }
                self.move_defender(id, now, |says| set_defender(says, cell, to));
            }
            Side::Sentinel => {
                let Some(kept) = self.sentinel.get(name) else { return false };
                if sentinel_cell(&kept.now.says, cell) == to {
                    return false;
                }
                self.move_sentinel(name, now, |incident| set_sentinel(&mut incident.says, cell, to));
            }
        }
        self.edits.push((side, id.to_owned(), cell, to));
        self.told.push((now, format!("{id} a person sets {cell:?} to {to} in {side}")));
        true
    }
}

/// What the fakes share with the world.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) remote: Arc<Mutex<Remote>>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) rng: Arc<Mutex<fastrand::Rng>>,
}

impl Shared {
    pub(crate) fn chance(&self, p: f64) -> bool {
        p > 0.0 && self.rng.lock().unwrap().f64() < p
    }

    pub(crate) fn below(&self, most: usize) -> usize {
        self.rng.lock().unwrap().usize(..most)
    }
}

impl Dice for Shared {
    fn roll(&self) -> f64 {
        self.rng.lock().unwrap().f64()
    }
}

/// One side as one application sees it.
pub(crate) struct Plug {
    pub(crate) shared: Shared,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) side: Side,
    pub(crate) scope: String,
}

fn failure(side: Side, class: Class, code: &str, effect: Effect) -> Failure {
    Failure { class, side: Some(side), code: code.to_owned(), message: code.to_owned(), effect }
}

impl Plug {
    /// Counts the call, and the ones beside it.
    fn begin(&self, name: String) -> UnderWay {
        let mut remote = self.shared.remote.lock().unwrap();
        remote.calls += 1;
        let count = remote.under_way.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            remote.violations.push(format!("two workers are on {name} at once"));
        }
        UnderWay { remote: self.shared.remote.clone(), name }
    }

    /// What every call goes through before it reaches the service.
    async fn arrive(&self) -> Result<(), Failure> {
        self.fuse.pass().await;
        let slow = self.shared.remote.lock().unwrap().slow.get(&self.scope).copied();
        let millis = 10 + self.shared.below(90) as u64;
        tokio::time::sleep(slow.unwrap_or(Duration::from_millis(millis))).await;
        let (faults, barred) = {
            let mut remote = self.shared.remote.lock().unwrap();
            if remote.panics > 0 {
                remote.panics -= 1;
                drop(remote);
                panic!("planted");
            }
            let until = remote.no_entry.get(&self.side).copied();
            (remote.faults, until.is_some_and(|until| until > self.shared.clock.now()))
        };
        if barred {
            return Err(failure(self.side, Class::Auth, "status-403", Effect::None));
        }
        if self.shared.chance(faults.dropped) {
            return Err(failure(self.side, Class::Retry { wait: None }, "timeout", Effect::Unknown));
        }
        if self.shared.chance(faults.throttled) {
            let wait = Some(Duration::from_secs(2));
            return Err(failure(self.side, Class::Retry { wait }, "throttled", Effect::None));
        }
        if self.shared.chance(faults.broken) {
            return Err(failure(self.side, Class::Retry { wait: None }, "status-503", Effect::Unknown));
        }
        Ok(())
    }

    /// The answer's way back.
    async fn answer<T>(&self, answer: T) -> Result<T, Failure> {
        self.fuse.pass().await;
        let lost = self.shared.remote.lock().unwrap().faults.answer_lost;
        if self.shared.chance(lost) {
            return Err(failure(self.side, Class::Retry { wait: None }, "timeout", Effect::Unknown));
        }
        Ok(answer)
    }

    fn lags(&self, moved: OffsetDateTime, p: f64) -> bool {
        self.shared.clock.now() - moved < time::Duration::seconds(10) && self.shared.chance(p)
    }

    fn slip_in(&self) {
        let now = self.shared.clock.now();
        let mut remote = self.shared.remote.lock().unwrap();
        if let Some((id, cell, to)) = remote.slip.remove(&self.side) {
            let name = self.shared.name_of(&id);
            remote.edit(self.side, (&id, &name), cell, to, now);
        }
    }

    /// A write changed a cell on this side. Was that cell's value one that nobody had seen?
    fn watch(&self, remote: &mut Remote, name_or_id: &str, cell: Cell, before: u8, after: u8, seen: bool) {
        let disk = self.shared.disk.lock().unwrap();
        let Some(link) = disk.links.values().find(|link| match self.side {
            Side::Defender => link.key.incident_id == name_or_id,
            Side::Sentinel => link.sentinel_id == name_or_id,
        }) else {
            remote.violations.push(format!("{name_or_id} was written without a stored link"));
            return;
        };
        let id = link.key.incident_id.clone();
        if self.side == Side::Defender && !seen {
            remote.window.insert((id, cell));
            remote.window_losses += 1;
            return;
        }
        let state: LinkState = serde_json::from_str(&link.state).unwrap();
        let ours = |d: &DefenderSays, s: &SentinelSays| match self.side {
            Side::Defender => defender_cell(d, cell) == before,
            Side::Sentinel => sentinel_cell(s, cell) == before,
        };
        let agreed = state.known.as_ref().is_some_and(|known| ours(&known.defender, &known.sentinel));
        let intended = state.intents.iter().any(|intent| ours(&intent.defender, &intent.sentinel));
        let field = match cell {
            Cell::Severity => "severity",
            Cell::Status => "status",
            Cell::Owner => "owner",
        };
        let clashed = disk
            .journal
            .iter()
            .rev()
            .any(|line| line.link == link.key && line.kind == "clash" && line.detail["field"] == field);
        if !agreed && !intended && !clashed {
            let side = self.side;
            remote.violations.push(format!("{side} {id}: {field} {before} -> {after} overwritten silently"));
        }
    }
}

impl Shared {
    pub(crate) fn name_of(&self, id: &str) -> String {
        let disk = self.disk.lock().unwrap();
        let link = disk.links.values().find(|link| link.key.incident_id == id);
        link.map_or_else(String::new, |link| link.sentinel_id.clone())
    }
}

#[async_trait]
impl Defender for Plug {
    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure> {
        let _call = self.begin(twin_id(&key(id)));
        self.arrive().await?;
        let now = self.shared.clock.now();
        let answer = {
            let mut remote = self.shared.remote.lock().unwrap();
            let stale = remote.faults.stale;
            let answer = remote.defender.get(id).map(|kept| match &kept.previous {
                Some(previous) if self.lags(kept.moved, stale) => previous.clone(),
                _ => kept.now.clone(),
            });
            if let Some(answer) = &answer {
                let cells = CELLS.map(|cell| defender_cell(&answer.says, cell));
                let lags = answer.updated != remote.defender[id].now.updated;
                remote.told.push((now, format!("{id} GET {cells:?}{}", if lags { " (lags)" } else { "" })));
                remote.shown.insert(id.to_owned(), answer.clone());
            }
            answer
        };
        self.answer(answer).await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        self.arrive().await?;
        let (records, next) = {
            let mut remote = self.shared.remote.lock().unwrap();
            let now = self.shared.clock.now();
            let (size, a_minute) = remote.pages;
            remote.pages_read.retain(|at| now - *at < time::Duration::MINUTE);
            if size > 0 && remote.pages_read.len() >= a_minute {
                let wait = Some(Duration::from_secs(30));
                return Err(failure(self.side, Class::Retry { wait }, "budget", Effect::None));
            }
            remote.pages_read.push(now);
            let shows = |kept: &&Kept<DefenderIncident>| {
                kept.now.updated >= since && !self.lags(kept.moved, remote.faults.list_lags)
            };
            let all: Vec<_> = remote.defender.values().filter(shows).map(|kept| kept.now.clone()).collect();
            let from = next.map_or(0, |next| next.parse().unwrap());
            let until = if size > 0 { (from + size).min(all.len()) } else { all.len() };
            (all[from..until].to_vec(), (until < all.len()).then(|| until.to_string()))
        };
        self.answer(Page { records, next, unreadable: Vec::new() }).await
    }

    async fn update(&self, id: &str, patch: &DefenderPatch) -> Result<DefenderIncident, Failure> {
        let _call = self.begin(twin_id(&key(id)));
        self.arrive().await?;
        self.slip_in();
        let answer = {
            let mut remote = self.shared.remote.lock().unwrap();
            if remote.refuses_in_progress && patch.status == Some(DefenderStatus::InProgress) {
                return Err(failure(self.side, Class::Permanent, "status-400", Effect::None));
            }
            remote.writes += 1;
            let before = remote.defender[id].now.says.clone();
            let now = self.shared.clock.now();
            remote.told.push((now, format!("{id} PATCH lands: {}", serde_json::to_string(patch).unwrap())));
            let patch = patch.clone();
            remote.move_defender(id, now, |says| {
                if let Some(title) = patch.title {
                    says.title = Some(title);
                }
                if let Some(description) = patch.description {
                    says.description = description;
                }
                if let Some(severity) = patch.severity {
                    says.severity = severity;
                }
                if let Some(status) = patch.status {
                    says.status = status;
                }
                if let Some(owner) = patch.owner {
                    says.owner = owner;
                }
                if let Some((classification, determination)) = patch.verdict {
                    (says.classification, says.determination) = (classification, determination);
                }
                if let Some(comment) = patch.resolving_comment {
                    says.resolving_comment = comment;
                }
                if let Some(tags) = patch.tags {
                    says.tags = tags;
                }
            });
            let after = remote.defender[id].now.clone();
            let shown = remote.shown.get(id).map(|shown| shown.says.clone());
            for cell in CELLS {
                let (was, is) = (defender_cell(&before, cell), defender_cell(&after.says, cell));
                let seen = shown.as_ref().is_some_and(|says| defender_cell(says, cell) == was);
                if was != is {
                    self.watch(&mut remote, id, cell, was, is, seen);
                }
            }
            after
        };
        self.answer(answer).await
    }

    async fn comment(&self, _: &str, _: &str) -> Result<Vec<DefenderComment>, Failure> {
        unreachable!("nobody comments here")
    }

    async fn update_alert(&self, _: &str, _: &AlertPatch) -> Result<(), Failure> {
        unreachable!("there are no alerts here")
    }
}

#[async_trait]
impl Sentinel for Plug {
    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure> {
        let _call = self.begin(name.to_owned());
        self.arrive().await?;
        let answer = {
            let remote = self.shared.remote.lock().unwrap();
            let stale = remote.faults.stale;
            remote.sentinel.get(name).and_then(|kept| match &kept.previous {
                // Even the first version may not show yet.
                previous if self.lags(kept.moved, stale) => previous.clone(),
                _ => Some(kept.now.clone()),
            })
        };
        self.answer(answer).await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        _next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure> {
        self.arrive().await?;
        let records = {
            let remote = self.shared.remote.lock().unwrap();
            let shows = |kept: &&Kept<SentinelIncident>| {
                kept.now.modified >= since && !self.lags(kept.moved, remote.faults.list_lags)
            };
            remote.sentinel.values().filter(shows).map(|kept| kept.now.clone()).collect()
        };
        self.answer(Page { records, next: None, unreadable: Vec::new() }).await
    }

    async fn put(&self, name: &str, write: &SentinelWrite) -> Result<SentinelIncident, Failure> {
        let _call = self.begin(name.to_owned());
        self.arrive().await?;
        self.slip_in();
        let answer = {
            let mut remote = self.shared.remote.lock().unwrap();
            let now = self.shared.clock.now();
            let before = remote.sentinel.get(name).map(|kept| kept.now.clone());
            if before.as_ref().map(|incident| incident.etag.clone()) != write.etag {
                return Err(failure(self.side, Class::Conflict, "status-409", Effect::None));
            }
            remote.writes += 1;
            remote
                .told
                .push((now, format!("{name} PUT lands: {:?}", CELLS.map(|c| sentinel_cell(&write.says, c)))));
            match before {
                None => {
                    let incident = SentinelIncident {
                        name: name.to_owned(),
                        etag: remote.etag(),
                        says: write.says.clone(),
                        modified: now,
                        provider: Some("Azure Sentinel".into()),
                        provider_incident_id: Some("1".into()),
                        url: None,
                        provider_url: None,
                        comments_count: None,
                    };
                    let kept = Kept { now: incident, previous: None, moved: now };
                    remote.sentinel.insert(name.to_owned(), kept);
                }
                Some(before) => {
                    remote.move_sentinel(name, now, |incident| incident.says = write.says.clone());
                    for cell in CELLS {
                        let (was, is) = (sentinel_cell(&before.says, cell), sentinel_cell(&write.says, cell));
                        if was != is {
                            self.watch(&mut remote, name, cell, was, is, true);
                        }
                    }
                }
            }
            remote.sentinel[name].now.clone()
        };
        self.answer(answer).await
    }

    async fn comments(&self, _: &str) -> Result<Vec<SentinelComment>, Failure> {
        Ok(Vec::new())
    }

    async fn put_comment(&self, _: &str, _: &str, _: &str) -> Result<SentinelComment, Failure> {
        unreachable!("nobody comments here")
    }

    async fn put_bookmark(
        &self,
        _: &str,
        _: &str,
        _: &lockstep::domain::digest::Bookmark,
    ) -> Result<(), Failure> {
        unreachable!("no route here makes bookmarks")
    }
}
