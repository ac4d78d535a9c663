//! What both sides say of every link, compared: each difference with its cause. Like the sweep it reads lists, and one
//! by one only what they lack. It writes nothing anywhere; `repair` leaves hints for the workers.
//!
//! Whether two values differ is the planner's word: two values are different when two strangers that met with them, on
//! a route where everything flows both ways, would be brought in step, whichever side won. Why they were left so is
//! what the real plan, the rules of the route and the journal say.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;

use crate::app::links::LinkPages;
use crate::app::patience::Patience;
use crate::app::reconcile::{REFUSAL_HOLDS, in_progress_refused, store_failure};
use crate::app::routes::{Route, Routes};
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::mapping as map;
use crate::domain::model::{
    DefenderIncident, DefenderSays, DefenderStatus, LinkKey, SentinelClassification, SentinelIncident,
    SentinelSays, SentinelStatus, Side,
};
use crate::domain::plan::{LinkState, Plan, Snapshot, format_instant, parse_instant, plan, stale};
use crate::domain::policy::{Direction, Field, FieldPolicy, Policy, Winner};
use crate::ports::{Clock, Hint, LinkRecord, Page, Store, StoreError, Subject};

/// Defender's list is asked for a little more than the oldest version that we know.
const MARGIN: time::Duration = time::Duration::minutes(10);
/// No list has this many pages; one that does goes round in circles.
const MOST_PAGES: u32 = 100_000;
/// How many lines of a link's journal are searched for a clash.
const JOURNAL_LINES: usize = 100;
/// How much of a value is shown, in characters.
const MOST_SHOWN: usize = 48;
const NOTHING: &str = "nothing";

/// Why a difference is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A side has changed and its turn has not come, or a write has no proof yet.
    InFlight,
    /// The route's rules leave it so.
    Policy,
    /// Both sides changed it; one gives way.
    Clash,
    /// The link is put aside.
    Parked,
    /// The other side has no word for it.
    Unsaid,
    /// One side has the incident no more.
    Missing,
    /// Nothing explains it.
    Unknown,
}

impl Cause {
    /// As it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::InFlight => "in flight",
            Cause::Policy => "policy",
            Cause::Clash => "clash",
            Cause::Parked => "parked",
            Cause::Unsaid => "unsaid",
            Cause::Missing => "missing",
            Cause::Unknown => "unknown",
        }
    }

    /// Whether the sides differ because they shall: by the route's rules, or for want of a word.
    pub const fn by_design(self) -> bool {
        matches!(self, Cause::Policy | Cause::Unsaid)
    }

    /// Whether another look by a worker may end it.
    pub const fn worth_a_look(self) -> bool {
        matches!(self, Cause::InFlight | Cause::Clash | Cause::Missing | Cause::Unknown)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The Defender incident.
    pub incident: String,
    /// Its twin in Sentinel.
    pub twin: String,
    /// The field's name; `incident` when one side lacks it as a whole.
    pub field: &'static str,
    /// Defender's value, short.
    pub defender: String,
    /// Sentinel's value, short.
    pub sentinel: String,
    /// Why.
    pub cause: Cause,
    /// The cause in one sentence.
    pub why: String,
}

/// How the links of a route stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// The route's name.
    pub route: String,
    /// How many links were compared.
    pub links: usize,
    /// How many of them say the same on both sides, or differ by design alone.
    pub in_step: usize,
    /// Why nothing is written on this route now, if an operator has stopped it.
    pub held: Option<String>,
    /// Every difference, by incident.
    pub differences: Vec<Difference>,
}

impl RouteReport {
    /// Whether anything differs that should not.
    pub fn has_drift(&self) -> bool {
        self.differences.iter().any(|difference| !difference.cause.by_design())
    }

    /// How many differences have this cause.
    pub fn count(&self, cause: Cause) -> usize {
        self.differences.iter().filter(|difference| difference.cause == cause).count()
    }
}

/// Compares.
#[derive(Clone)]
pub struct Comparison {
    /// Durable state. It is only read.
    pub store: Arc<dyn Store>,
    /// The routes.
    pub routes: Arc<Routes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How to wait for the sides.
    pub patience: Patience,
}

/// A link, without its state: there may be many.
struct Linked {
    sentinel_id: String,
}

impl Comparison {
    /// Compares every link of a route.
    pub async fn compare(&self, route: &Route) -> Result<RouteReport, Failure> {
        let (mut links, mut since) = (HashMap::new(), self.clock.now());
        let mut pages = LinkPages::of_route(&self.store, &self.routes, route);
        while let Some(page) = pages.next().await.map_err(store_failure)? {
            for link in page {
                let known = serde_json::from_str::<LinkState>(&link.state).ok().and_then(|state| state.known);
                since = known.map_or(since, |known| since.min(known.defender_updated));
                links.insert(link.key.incident_id, Linked { sentinel_id: link.sentinel_id });
            }
        }
        let holds = self.store.holds().await.map_err(store_failure)?;
        let held = holds.into_iter().find(|hold| hold.route == "*" || hold.route == route.name);
        let mut report = RouteReport {
            route: route.name.clone(),
            links: links.len(),
            in_step: 0,
            held: held.map(|hold| hold.reason),
            differences: Vec::new(),
        };
        if links.is_empty() {
            return Ok(report);
        }
        let mut policy = route.policy.clone();
        policy.in_progress_writable &= !self.in_progress_refused(&route.tenant_id).await?;

        // Sentinel whole first: its list costs the fewest calls. Of it only the twins are kept.
        let twins: HashSet<&str> = links.values().map(|link| link.sentinel_id.as_str()).collect();
        let mut sentinel = HashMap::new();
        let mut next = Some(None);
        let mut count = 0;
        while let Some(at) = next.take() {
            let at: Option<String> = at;
            let page = self.patience.of(async || route.sentinel.everything(at.as_deref()).await).await?;
            next = following(Side::Sentinel, &page, at, &mut count)?.map(Some);
            let own = page.records.into_iter().filter(|record| twins.contains(record.name.as_str()));
            sentinel.extend(own.map(|record| (record.name.clone(), record)));
        }
        drop(twins);
        let mut next = Some(None);
        let mut count = 0;
        while let Some(at) = next.take() {
            let at: Option<String> = at;
            let from = since - MARGIN;
            let page =
                self.patience.of(async || route.defender.changed_since(from, at.as_deref()).await).await?;
            next = following(Side::Defender, &page, at, &mut count)?.map(Some);
            for record in page.records {
                // One that changes meanwhile comes twice.
                if let Some(link) = links.remove(&record.id) {
                    let (key, twin) = (route.key(&record.id), sentinel.remove(&link.sentinel_id));
                    self.one(route, &policy, key, Some(record), twin, &mut report).await?;
                }
            }
        }
        for (id, link) in links {
            let twin = sentinel.remove(&link.sentinel_id);
            self.one(route, &policy, route.key(&id), None, twin, &mut report).await?;
        }
        report.differences.sort_by(|a, b| by_number(&a.incident).cmp(&by_number(&b.incident)));
        let drifting: BTreeSet<&str> = report
            .differences
            .iter()
            .filter(|difference| !difference.cause.by_design())
            .map(|difference| difference.incident.as_str())
            .collect();
        report.in_step = report.links - drifting.len().min(report.links);
        Ok(report)
    }

    /// One link. What a list did not show is read by itself.
    async fn one(
        &self,
        route: &Route,
        policy: &Policy,
        key: LinkKey,
        mut defender: Option<DefenderIncident>,
        mut sentinel: Option<SentinelIncident>,
        report: &mut RouteReport,
    ) -> Result<(), Failure> {
        // Now, and not before the lists: a worker may have been there meanwhile.
        let Some(link) = self.store.link(&key).await.map_err(store_failure)? else { return Ok(()) };
        let state = serde_json::from_str::<LinkState>(&link.state).unwrap_or_default();
        let read_sentinel = async || route.sentinel.incident(&link.sentinel_id).await;
        let read_defender = async || route.defender.incident(&key.incident_id).await;
        if sentinel.is_none() {
            sentinel = self.patience.of(read_sentinel).await?;
        }
        if defender.is_none() {
            defender = self.patience.of(read_defender).await?;
        }
        let mut seen = Snapshot { key: key.clone(), state, defender, sentinel };
        // A list that lags behind what was acted on.
        match stale(&seen) {
            Some(Side::Defender) => seen.defender = self.patience.of(read_defender).await?,
            Some(Side::Sentinel) => seen.sentinel = self.patience.of(read_sentinel).await?,
            None => {}
        }
        let mut found = differences(&link, &seen, policy);
        for difference in found.iter_mut().filter(|difference| difference.cause == Cause::Unknown) {
            let lines = self.store.journal(&key, JOURNAL_LINES).await.map_err(store_failure)?;
            let clash = lines
                .iter()
                .rev()
                .find(|line| line.kind == "clash" && line.detail["field"].as_str() == Some(difference.field));
            if let Some(line) = clash {
                let winner = line.detail["winner"].as_str().unwrap_or("one side");
                difference.cause = Cause::Clash;
                difference.why =
                    format!("both sides changed it, and {winner} won at {}", format_instant(line.at));
            }
        }
        report.differences.append(&mut found);
        Ok(())
    }

    async fn in_progress_refused(&self, tenant_id: &str) -> Result<bool, Failure> {
        let since = self.store.value(&in_progress_refused(tenant_id)).await.map_err(store_failure)?;
        let since = since.as_deref().and_then(parse_instant);
        Ok(since.is_some_and(|since| self.clock.now() - since < REFUSAL_HOLDS))
    }

    /// Asks the workers to look at every link that differs and whose difference a look may end. Returns how many.
    pub async fn repair(&self, route: &Route, report: &RouteReport) -> Result<usize, StoreError> {
        let ids: BTreeSet<&str> = report
            .differences
            .iter()
            .filter(|difference| difference.cause.worth_a_look())
            .map(|difference| difference.incident.as_str())
            .collect();
        let hint = |id: &str, source: &str| Hint {
            subject: Subject {
                side: Side::Defender,
                scope: route.tenant_id.clone(),
                native_id: id.to_owned(),
            },
            version: None,
            source: source.to_owned(),
        };
        // In the sweep's name too: then both sides are read, whichever has moved.
        let hints: Vec<Hint> = ids.iter().map(|id| hint(id, "drift")).collect();
        if !hints.is_empty() {
            self.store.remember(hints, None, self.clock.now()).await?;
        }
        Ok(ids.len())
    }
}

/// Where the next page is. Nobody follows a list in circles.
fn following<T>(
    side: Side,
    page: &Page<T>,
    at: Option<String>,
    count: &mut u32,
) -> Result<Option<String>, Failure> {
    *count += 1;
    if (page.next.is_some() && page.next == at) || *count >= MOST_PAGES {
        return Err(Failure {
            class: Class::Permanent,
            side: Some(side),
            code: "endless-list".into(),
            message: "the list does not end".into(),
            effect: Effect::None,
        });
    }
    Ok(page.next.clone())
}

/// Ids are numbers as text.
fn by_number(id: &str) -> (usize, &str) {
    (id.len(), id)
}

/// Every difference of one link, with its cause as far as both sides, the stored state and the rules tell it.
pub fn differences(link: &LinkRecord, seen: &Snapshot, policy: &Policy) -> Vec<Difference> {
    let difference = |field, defender, sentinel, (cause, why): (Cause, String)| Difference {
        incident: link.key.incident_id.clone(),
        twin: link.sentinel_id.clone(),
        field,
        defender,
        sentinel,
        cause,
        why,
    };
    let parked = link.parked.as_ref().map(|reason| (Cause::Parked, reason.clone()));
    let (d, s) = match (&seen.defender, &seen.sentinel) {
        (Some(defender), Some(sentinel)) => (defender, sentinel),
        (None, None) => return Vec::new(),
        (Some(defender), None)
            if seen.state.known.is_none() && defender.says.status == DefenderStatus::Redirected =>
        {
            // Merged away before it had a twin: it gets none.
            return Vec::new();
        }
        (defender, _) => {
            let there = |yes| if yes { "there" } else { "not there" }.to_owned();
            let gone = if defender.is_none() { Side::Defender } else { Side::Sentinel };
            let why = match seen.state.known {
                Some(_) => (Cause::Missing, format!("both sides had it, and {gone} has it no more")),
                None => (Cause::InFlight, "its twin is being made".to_owned()),
            };
            let (defender, sentinel) = (there(gone != Side::Defender), there(gone != Side::Sentinel));
            return vec![difference("incident", defender, sentinel, parked.unwrap_or(why))];
        }
    };
    let apart = [Winner::Defender, Winner::Sentinel].map(|winner| strangers(seen, policy, winner));
    let planned = plan(seen, policy);
    let fields = Field::ALL.into_iter().filter(|field| apart.iter().all(|plan| touches(plan, *field)));
    fields
        .map(|field| {
            let cause = parked.clone().unwrap_or_else(|| cause(field, &planned, seen, policy, (d, s)));
            let (defender, sentinel) = (of_defender(field, &d.says), of_sentinel(field, &s.says));
            difference(field.as_str(), short(&defender), short(&sentinel), cause)
        })
        .collect()
}

/// What would be written if the two had never met, and everything flowed both ways.
fn strangers(seen: &Snapshot, policy: &Policy, winner: Winner) -> Plan {
    let mut open = policy.clone();
    for field in Field::ALL {
        open.set(field, FieldPolicy { direction: Direction::Both, wins: winner });
    }
    plan(&Snapshot { state: LinkState::default(), ..seen.clone() }, &open)
}

fn touches(plan: &Plan, field: Field) -> bool {
    plan.changes.iter().any(|change| change.field == field)
        || plan.unsaid.iter().any(|(unsaid, _)| *unsaid == field)
}

fn cause(
    field: Field,
    planned: &Plan,
    seen: &Snapshot,
    policy: &Policy,
    (defender, sentinel): (&DefenderIncident, &SentinelIncident),
) -> (Cause, String) {
    if let Some(clash) = planned.clashes.iter().find(|clash| clash.field == field) {
        let winner = clash.winner;
        return (Cause::Clash, format!("both sides changed it; {winner} wins at the next look"));
    }
    let in_flight = in_flight(seen, defender, sentinel);
    if planned.changes.iter().any(|change| change.field == field) {
        return in_flight.unwrap_or_else(|| {
            (Cause::Unknown, "nothing has a new version, and yet it is to be written".to_owned())
        });
    }
    if let Some((_, why)) = planned.unsaid.iter().find(|(unsaid, _)| *unsaid == field) {
        return (Cause::Unsaid, why.clone());
    }
    match policy.of(field).direction {
        Direction::Both => {}
        Direction::Off => return (Cause::Policy, "the field is not kept in step".to_owned()),
        Direction::ToSentinel => return (Cause::Policy, "the field goes to Sentinel only".to_owned()),
        Direction::ToDefender => return (Cause::Policy, "the field goes to Defender only".to_owned()),
    }
    let says_verdict = sentinel.says.status == SentinelStatus::Closed
        && sentinel.says.classification.as_ref().is_some_and(|c| *c != SentinelClassification::Undetermined);
    if matches!(field, Field::Verdict | Field::Comment) && !says_verdict {
        return (Cause::Unsaid, "Sentinel says no verdict, which takes none away".to_owned());
    }
    if let Some(in_flight) = in_flight {
        return in_flight;
    }
    // Programs that replace the list of labels drop it unknowingly, so its going is nobody's choice.
    if field == Field::Determination
        && map::determination_label(&sentinel.says.labels, &policy.labels).is_none()
    {
        let why = "its label was removed in Sentinel, which chooses no other; the next change of the verdict sets one";
        return (Cause::Policy, why.to_owned());
    }
    (Cause::Unknown, "both sides were agreed on as they are".to_owned())
}

/// What is under way on a link, if anything is.
fn in_flight(
    seen: &Snapshot,
    defender: &DefenderIncident,
    sentinel: &SentinelIncident,
) -> Option<(Cause, String)> {
    let since = |side, at: OffsetDateTime| {
        (Cause::InFlight, format!("{side} changed at {}, and its turn has not come", format_instant(at)))
    };
    if !seen.state.intents.is_empty() {
        return Some((Cause::InFlight, "a write is not proved yet".to_owned()));
    }
    if seen.state.known.is_none() {
        return Some((Cause::InFlight, "both sides have not met yet".to_owned()));
    }
    if !seen.state.knows(Side::Defender, &format_instant(defender.updated)) {
        return Some(since(Side::Defender, defender.updated));
    }
    (!seen.state.knows(Side::Sentinel, &sentinel.etag)).then(|| since(Side::Sentinel, sentinel.modified))
}

fn of_defender(field: Field, says: &DefenderSays) -> String {
    match field {
        Field::Title => text(says.title.as_deref()),
        Field::Description => text(says.description.as_deref()),
        Field::Severity => says.severity.to_string(),
        Field::Status => says.status.to_string(),
        Field::Owner => says.owner.clone().unwrap_or_else(|| NOTHING.to_owned()),
        Field::Verdict => format!("{}/{}", says.classification, says.determination),
        Field::Comment => text(says.resolving_comment.as_deref()),
        Field::Tags => list(says.tags.iter().map(String::as_str)),
        Field::Determination => says.determination.to_string(),
        Field::Facts => {
            says.facts.as_ref().map_or(NOTHING.to_owned(), |facts| format!("{} alerts", facts.total()))
        }
    }
}

fn of_sentinel(field: Field, says: &SentinelSays) -> String {
    let closed = says.status == SentinelStatus::Closed;
    match field {
        Field::Title => text(Some(&says.title)),
        Field::Description => text(says.description.as_deref()),
        Field::Severity => says.severity.to_string(),
        Field::Status => says.status.to_string(),
        Field::Owner => {
            let owner = &says.owner;
            let names = [&owner.upn, &owner.email, &owner.name, &owner.object_id];
            names.into_iter().flatten().next().cloned().unwrap_or_else(|| NOTHING.to_owned())
        }
        Field::Verdict => match (&says.classification, &says.reason) {
            (Some(class), Some(reason)) if closed => format!("{class}/{reason}"),
            (Some(class), None) if closed => class.to_string(),
            _ => NOTHING.to_owned(),
        },
        Field::Comment => text(says.comment.as_deref().filter(|_| closed)),
        Field::Tags | Field::Determination => {
            list(says.labels.iter().filter(|label| !label.auto).map(|label| label.name.as_str()))
        }
        Field::Facts => {
            text(says.description.as_deref().and_then(|text| text.lines().find(|l| l.starts_with("Alerts:"))))
        }
    }
}

fn text(text: Option<&str>) -> String {
    text.map_or_else(|| NOTHING.to_owned(), |text| format!("{text:?}"))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { NOTHING.to_owned() } else { format!("[{}]", names.join(", ")) }
}

/// A value as it stands in a column.
fn short(value: &str) -> String {
    let plain: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if plain.chars().count() <= MOST_SHOWN {
        return plain;
    }
    let mut cut: String = plain.chars().take(MOST_SHOWN - 1).collect();
    cut.push('…');
    cut
}
