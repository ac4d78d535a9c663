//! One link, once: read both sides, plan, announce, write, agree. It stops at the first thing that goes wrong and says
//! what that was; whoever called it runs it again, and that is always right.
//!
//! What must never be simplified: a read older than one acted on is refused; a write is announced before it is sent
//! and stays announced until it is proved or refused for certain; agreement is stored after the answers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::hung::{HungPlan, Sent};
use crate::app::metrics::Metrics;
use crate::app::native;
use crate::app::ownership::{Candidate, Owner};
use crate::app::routes::Route;
use crate::app::shadow::Shadow;
use crate::app::unmapped;
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::filter::{Filter, Unmatched};
use crate::domain::model::{
    DefenderIncident, DefenderStatus, LinkKey, SentinelIncident, SentinelOwner, SentinelStatus, Side,
};
use crate::domain::owners::{self, Answer, Question};
use crate::domain::plan::{
    Change, Known, Landed, LinkState, Outcome, Plan, Refused, Snapshot, agree, announce, format_instant,
    hash, left_out, parse_instant, plan, stale, take_back,
};
use crate::domain::policy::{Field, LabelRules, Policy, Vanished};
use crate::ports::{Clock, Fence, Held, JournalEntry, LinkRecord, Store, StoreError};
use crate::trace;

/// How long a link's fence lasts from the moment it was taken or prolonged: well over one request's time limit, since
/// it is prolonged immediately before each send.
pub const FENCE_FOR: Duration = Duration::from_secs(45);
/// How many writes a link may take in an hour. People do not edit that often; two programs that disagree do.
pub const MOST_WRITES_AN_HOUR: u64 = 20;
/// More journal lines than so many writes leave behind, with their answers, refusals and clashes.
const LINES_OF_A_SHARE: usize = 400;
/// How often a read that seems to lag, or that finds nothing where something was, is repeated before it is believed:
/// half a minute, with the back-off between the attempts. Replicas lag by seconds.
const DOUBTS: u32 = 5;
/// How often a read that does not show the etag of a hint is repeated before the hint is taken for an old one. Old hints
/// are common (a repeated delivery), and the poller finds what a lagging read hides.
const OLD_HINT_DOUBTS: u32 = 2;
/// How often a read below a Defender hint's version is repeated before the hint is taken for mistaken.
const MOST_STALE_READS: u32 = 6;
/// After this time a link that was put aside is looked at again when a hint comes.
const PARKED_FOR: time::Duration = time::Duration::hours(1);
/// For how long a tenant's refusal of `inProgress` is believed.
pub(crate) const REFUSAL_HOLDS: time::Duration = time::Duration::days(7);
/// The namespace of the ids that we choose for twins.
const TWINS: Uuid = Uuid::from_u128(0x6a1d_7f0e_52c4_4b58_9e0b_7c35_11f2_8ad4);

/// How many passes a run may take: one, and one for each field that a side will not take with the others.
const MOST_ROUNDS: u32 = 16;
/// How many refused values a link may carry.
const MOST_REFUSED: usize = 16;
/// What a new twin can do without.
const OPTIONAL: [Field; 6] =
    [Field::Description, Field::Owner, Field::Tags, Field::Facts, Field::Determination, Field::Verdict];

const TOO_OFTEN: &str = "Written too often";
const GONE: &str = "Gone in";
const FROZEN: &str = "frozen: both sides have been closed for long enough";

/// Why a link is looked at, and how much its job has been through.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The side the hint was about.
    pub side: Side,
    /// The version it named.
    pub version: Option<String>,
    /// The doors it came through, comma separated.
    pub sources: String,
    /// How many hints came in.
    pub hints: i64,
    /// How often the job failed in a row.
    pub attempts: u32,
    /// When its first hint came in.
    pub first_hint_at: OffsetDateTime,
}

impl Cause {
    /// Whether both sides are to be looked at even if the hinted one did not move: the sweep looks for what hints
    /// have missed, a merge is told to a winner that may have been read since, and a job whose sources are no longer
    /// known may have been one of these.
    pub(crate) fn thorough(&self) -> bool {
        self.sources.is_empty()
            || self.sources.split(',').any(|source| matches!(source.trim(), "sweep" | "drift" | "merged"))
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"side": self.side, "sources": self.sources, "version": self.version})
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The hint was old news: nothing was asked, or one version.
    Known,
    /// Both sides were read and are in step.
    InStep,
    /// Something was written, answered and agreed.
    Wrote,
    /// There is nothing to keep in step, or a rule of the route says to leave it: why.
    Nothing(String),
    /// An operator has stopped writes: why.
    Held(String),
    /// The link is put aside: why.
    Parked(String),
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// The answers show that somebody else moved something meanwhile: look again.
    pub again: bool,
    /// Something is to be looked at again at this time, if nobody does so before.
    pub look_at: Option<OffsetDateTime>,
}

impl End {
    /// A short constant, and why, where there is more to say.
    pub(crate) fn told(&self) -> (&'static str, Option<&str>) {
        match self {
            End::Known => ("known", None),
            End::InStep => ("in-step", None),
            End::Wrote => ("written", None),
            End::Nothing(why) => ("nothing", Some(why)),
            End::Held(why) => ("held", Some(why)),
            End::Parked(why) => ("parked", Some(why)),
        }
    }
}

impl Report {
    fn of(end: End) -> Self {
        Self { end, again: false, look_at: None }
    }
}

/// Who wants to see every plan that is about to be carried out, before it is.
pub type Watch = Arc<dyn Fn(&LinkKey, &Plan) + Send + Sync>;

/// Runs links. Holds nothing between two runs.
#[derive(Clone)]
pub struct Reconciler {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who watches, if anybody does.
    pub watch: Option<Watch>,
}

/// What the reads came to.
enum Observed {
    /// The hinted side did not move since both sides agreed.
    Unmoved,
    Both(Box<Snapshot>),
}

/// What belongs to one run.
pub(crate) struct Run<'a> {
    /// The routes that join the link's tenant and workspace.
    pub(crate) pair: &'a [Arc<Route>],
    /// The one that owns the link.
    pub(crate) route: &'a Route,
    pub(crate) key: &'a LinkKey,
    pub(crate) fence: &'a Fence,
    pub(crate) cause: &'a Cause,
    pub(crate) link: LinkRecord,
    pub(crate) state: LinkState,
    /// Whether the state holds something that is not stored yet.
    pub(crate) dirty: bool,
    /// Whether the journal has the hints that led to this run.
    pub(crate) told: bool,
    /// Reads that the journal does not have yet: when, and what was there. A run that decides nothing leaves no line.
    pub(crate) reads: Vec<Read>,
    /// The incident as it was read to find the link's route.
    early: Option<Box<DefenderIncident>>,
    /// Lines for the journal that wait for the next time that something is stored.
    pub(crate) aside: Vec<JournalEntry>,
}

/// That a side was read, for the journal.
pub(crate) struct Read {
    side: Side,
    at: OffsetDateTime,
    /// Its version, as the side words it; `None` when the incident was not there.
    version: Option<Value>,
}

impl Read {
    fn defender(at: OffsetDateTime, incident: Option<&DefenderIncident>) -> Self {
        let version = incident.map(|incident| json!(format_instant(incident.updated)));
        Self { side: Side::Defender, at, version }
    }

    fn sentinel(at: OffsetDateTime, incident: Option<&SentinelIncident>) -> Self {
        let version = incident
            .map(|incident| json!({"etag": incident.etag, "modified": format_instant(incident.modified)}));
        Self { side: Side::Sentinel, at, version }
    }
}

impl Run<'_> {
    /// Whether a Defender incident of the agreed version shows nothing beside it that is new: comments and alerts need
    /// not move `lastUpdateDateTime` (`graph.md` §7.4).
    fn shows_nothing_new(&self, known: &Known, defender: &DefenderIncident) -> bool {
        let facts = &defender.says.facts;
        (facts.is_none() || *facts == known.defender.facts)
            && !self.state.hung.unfinished
            && self.state.hung.defender_comments == defender.comments.len()
            && self.state.hung.alerts_seen == alerts_hash(defender)
    }
}

/// What the alerts of an incident say, as one number; nothing where they were not asked for.
pub(crate) fn alerts_hash(defender: &DefenderIncident) -> Option<u64> {
    let alerts = defender.alerts.as_ref()?;
    serde_json::to_string(alerts).ok().map(|text| hash(&text))
}

enum Carried {
    Landed(Box<Landed>),
    Held(String),
    Refused(Refusal),
}

/// A side would not take a write, for certain and whatever its version.
struct Refusal {
    side: Side,
    fields: Vec<Field>,
    /// Each field's value as the plan showed it.
    values: Vec<(Field, String)>,
    creating: bool,
    in_progress: bool,
    failure: Failure,
}

impl Refusal {
    /// Whether it speaks of a value: then the others can go without it.
    fn is_of_a_value(&self) -> bool {
        matches!(self.failure.code.as_str(), "status-400" | "status-413" | "status-422")
    }
}

impl Reconciler {
    /// Brings one link in step. `pair` are the routes that join its tenant and workspace; `fence` is the link's, taken by
    /// the caller.
    pub async fn reconcile(
        &self,
        pair: &[Arc<Route>],
        key: &LinkKey,
        fence: &Fence,
        cause: &Cause,
    ) -> Result<Report, Failure> {
        let now = self.clock.now();
        let stored = self.store.link(key).await.map_err(store_failure)?;
        let state = match &stored {
            Some(link) => serde_json::from_str(&link.state).map_err(|error| Failure {
                code: "corrupt-link".into(),
                ..ours(Class::Permanent, format!("the stored state of the link does not read: {error}"))
            })?,
            None => LinkState::default(),
        };
        let named_news = cause.version.as_deref().is_some_and(|version| !state.knows(cause.side, version));
        if let Some(link) = &stored
            && let Some(reason) = still_parked(link, named_news, now)
        {
            return Ok(Report::of(End::Parked(reason)));
        }
        if cause.version.is_some() && !named_news && !cause.thorough() && !state.hung.unfinished {
            return Ok(Report::of(End::Known));
        }
        let candidate = Candidate { key, stored: stored.as_ref(), state: &state, fence, now };
        let (route, early) = match self.owner(pair, &candidate).await? {
            Owner::Route(route, early) => (route, early),
            Owner::Nobody(end) => return Ok(Report::of(end)),
        };
        // Asked again before each write. Here it spares the reads: a stop may last for hours, its jobs come back every
        // few seconds, and they would spend the budget of routes that are not held.
        if let Some(reason) = self.held(route).await? {
            return Ok(Report::of(End::Held(reason)));
        }
        if let Some(why) = state.unlinked.as_ref() {
            return Ok(Report::of(End::Nothing(why.clone())));
        }
        if is_frozen(route, &state, now) {
            return Ok(Report::of(End::Nothing(FROZEN.into())));
        }
        let mut link = stored.unwrap_or_else(|| LinkRecord {
            key: key.clone(),
            route: route.name.clone(),
            sentinel_id: twin_id(key),
            state: String::new(),
            parked: None,
            updated_at: now,
        });
        link.route.clone_from(&route.name);
        let mut state = state;
        if state.known.is_none() && state.intents.is_empty() {
            match native::consult(&*self.store, pair, route, key, now).await? {
                native::Advice::Ours => {}
                native::Advice::Leave(why) => return Ok(Report::of(End::Nothing(why))),
                native::Advice::Adopt(name) => {
                    link.sentinel_id = name;
                    state.adopted = true;
                }
            }
        }
        let mut run = Run {
            pair,
            route,
            key,
            fence,
            cause,
            link,
            state,
            dirty: false,
            told: false,
            reads: Vec::new(),
            early,
            aside: Vec::new(),
        };
        let ended = self.rounds(&mut run).await;
        if let Err(failure) = &ended
            && !run.link.state.is_empty()
        {
            // What was read and sent in vain is told too, once for each kind of trouble.
            let detail = json!({
                "code": failure.code, "why": failure.message, "attempt": run.cause.attempts + 1,
                "cause": run.cause.to_json(), "calls": trace::taken(),
            });
            let line = self.line(&run, "failed", detail);
            if run.cause.attempts == 0 && failure.code != "fence-lost" {
                let parked = run.link.parked.clone();
                // The failure is what counts; a line that could not be stored is not.
                let _ = self.save(&mut run, parked, &[line]).await;
            }
        }
        ended
    }

    /// Passes until one is through. A pass ends early when a side will not take a value: then the others are tried
    /// without it, and it is set aside by itself.
    async fn rounds(&self, run: &mut Run<'_>) -> Result<Report, Failure> {
        let mut policy = match run.state.adopted {
            true => run.route.policy.beside_native(),
            false => run.route.policy.clone(),
        };
        let mut in_progress: Option<Failure> = None;
        let mut apart: Vec<(Side, Field)> = Vec::new();
        let mut whole: Vec<(Side, Field)> = Vec::new();
        let mut again = false;
        for number in 0..MOST_ROUNDS {
            let refusal = match self.round(run, &policy, number > 0).await? {
                Ok(report) => {
                    if let Some(refused) = in_progress.take() {
                        let value = format_instant(self.clock.now());
                        let name = in_progress_refused(&run.key.tenant_id);
                        self.store.set_value(&name, &value).await.map_err(store_failure)?;
                        let code = refused.code;
                        tracing::warn!(link = %run.key, code, "Graph refuses inProgress in this tenant");
                    }
                    again |= report.again;
                    if matches!(report.end, End::Held(_) | End::Parked(_)) {
                        return Ok(report);
                    }
                    // One field after the other, and at last all that was not refused together.
                    match apart.pop() {
                        Some(next) => {
                            policy.mute = whole.iter().filter(|one| **one != next).copied().collect();
                            continue;
                        }
                        None if policy.mute.is_empty() => return Ok(Report { again, ..report }),
                        None => {
                            policy.mute.clear();
                            continue;
                        }
                    }
                }
                Err(refusal) => refusal,
            };
            if refusal.in_progress && in_progress.is_none() && policy.in_progress_writable {
                // Graph would not take `inProgress`. Read and plan again without it; if that is refused too, the
                // status was not to blame.
                policy.in_progress_writable = false;
                in_progress = Some(refusal.failure);
                continue;
            }
            let Refusal { side, fields, values, creating, failure, .. } = &refusal;
            if !refusal.is_of_a_value() || run.state.refused.len() > MOST_REFUSED {
                return Err(refusal.failure);
            }
            if *creating {
                let bare: Vec<(Side, Field)> = OPTIONAL.iter().map(|field| (*side, *field)).collect();
                if bare.iter().all(|one| policy.mute.contains(one)) {
                    return Err(refusal.failure);
                }
                // Without what a twin can do without; that follows field by field.
                policy.mute = bare.iter().copied().collect();
                continue;
            }
            if let [field] = fields.as_slice() {
                let value = values.iter().find(|(of, _)| of == field).map(|(_, value)| value.clone());
                self.set_aside(run, *side, *field, &value.unwrap_or_default(), failure).await?;
                match apart.pop() {
                    Some(next) => {
                        policy.mute = whole.iter().filter(|one| **one != next).copied().collect();
                    }
                    None => policy.mute.clear(),
                }
                continue;
            }
            if !whole.is_empty() && whole.iter().all(|(of, _)| of == side) {
                // Apart, each was taken or set aside; together they are refused.
                return Err(refusal.failure);
            }
            whole = fields.iter().map(|field| (*side, *field)).collect();
            apart.clone_from(&whole);
            apart.reverse();
            if let Some(first) = apart.pop() {
                policy.mute = whole.iter().filter(|one| **one != first).copied().collect();
            }
        }
        Ok(Report { again: true, ..Report::of(End::Wrote) })
    }

    /// Remembers a value that a side will not take, where a person sees it.
    async fn set_aside(
        &self,
        run: &mut Run<'_>,
        side: Side,
        field: Field,
        value: &str,
        failure: &Failure,
    ) -> Result<(), Failure> {
        let why = failure.message.clone();
        run.state.refused.retain(|old| (old.side, old.field) != (side, field));
        run.state.refused.push(Refused { side, field, value: hash(value), why: why.clone() });
        tracing::warn!(link = %run.key, %side, field = field.as_str(), why, "a value was refused and is put aside");
        let detail = json!({
            "side": side, "field": field.as_str(), "reason": format!("{side} refused it: {why}"),
            "cause": run.cause.to_json(),
        });
        let line = self.line(run, "field-parked", detail);
        self.save(run, None, &[line]).await
    }

    /// One pass. The inner error is a refusal that may be of one value only.
    async fn round(
        &self,
        run: &mut Run<'_>,
        policy: &Policy,
        second: bool,
    ) -> Result<Result<Report, Refusal>, Failure> {
        let mut seen = match self.observe(run, second).await? {
            Observed::Unmoved => return Ok(Ok(Report::of(End::Known))),
            Observed::Both(seen) => *seen,
        };
        self.trust(run, &seen)?;
        self.note_overlaps(run, &mut seen);
        if let Some(report) = self.matching(run, &mut seen, policy).await? {
            if !run.aside.is_empty() {
                let parked = run.link.parked.clone();
                self.save(run, parked, &[]).await?;
            }
            return Ok(Ok(report));
        }
        let mut policy = policy.clone();
        take_up_owner(&mut seen, &policy);
        ask(run.route, &seen, &mut policy).await;
        let (heirs, histories) = self.inheritance(run, &seen, &mut policy).await?;
        let mut planned = self.planned(run, &seen, &policy);
        if writes_in_progress(&planned) && self.in_progress_refused(&run.key.tenant_id).await? {
            policy.in_progress_writable = false;
            planned = self.planned(run, &seen, &policy);
        }
        let early = !second && run.early.is_some();
        if planned.defender.is_some() && (early || self.defender_first(run, second)) {
            // Defender was read before Sentinel, to save a call if it had not moved. It did, and is to be written:
            // read it again, because nothing guards the time between this read and the PATCH.
            seen.defender = run.route.defender.incident(&run.key.incident_id).await?;
            run.reads.push(Read::defender(self.clock.now(), seen.defender.as_ref()));
            self.trust(run, &seen)?;
            planned = self.planned(run, &seen, &policy);
        }
        match &planned.outcome {
            Outcome::Nothing(why) => {
                // A loser that never had a twin has words to leave all the same.
                let why = (*why).to_owned();
                self.forward(run, &mut seen).await?;
                return Ok(Ok(Report::of(End::Nothing(why))));
            }
            Outcome::Vanished(side) if run.cause.attempts < DOUBTS => {
                return Err(retry(
                    *side,
                    "vanished",
                    "the incident is not there, though it was; looking again",
                ));
            }
            Outcome::Vanished(side) => return Ok(Ok(self.vanished(run, *side).await?)),
            Outcome::Both | Outcome::Create => {}
        }
        for unmapped in &planned.unmapped {
            planned.unsaid.push((Field::Owner, format!("{}: {}", unmapped.name, unmapped.why)));
        }
        self.keep_unmapped(run, &seen, &planned).await?;
        if policy.shadow {
            let hung = self.hung(run, &seen, &planned, &policy, &histories).await?;
            return Ok(Ok(self.shadow(run, &planned, &hung).await?));
        }
        self.forward(run, &mut seen).await?;
        let hung = self.hung(run, &seen, &planned, &policy, &histories).await?;
        if planned.is_empty() && hung.is_empty() {
            if run.state.hung.comments != hung.ledger {
                run.state.hung.comments.clone_from(&hung.ledger);
                run.dirty = true;
            }
            return Ok(Ok(self.agree(run, &seen, &planned, Landed::default(), heirs, &hung).await?));
        }
        if let Some(reason) = self.held(run.route).await? {
            return Ok(Ok(Report::of(End::Held(reason))));
        }
        let written = self.written_lately(run.key).await?;
        if written >= MOST_WRITES_AN_HOUR && !planned.is_empty() {
            let reason = format!(
                "{TOO_OFTEN}: {written} writes within an hour. Something else keeps changing it back; find it, then \
                 `lockstep unpark` the incident."
            );
            return Ok(Ok(self.park(run, reason).await?));
        }

        let before = run.state.clone();
        seen.state.unmapped.clone_from(&run.state.unmapped);
        run.state = announce(&seen, &planned);
        let mut lines = self.announcement(run, &before, &planned).await?;
        lines.extend(self.announce_hung(run, &hung));
        if !heirs.is_empty() {
            lines.push(self.line(
                run,
                "merge",
                json!({"inherited_from": heirs, "cause": run.cause.to_json()}),
            ));
        }
        self.save(run, None, &lines).await?;
        if let Some(watch) = &self.watch {
            watch(run.key, &planned);
        }
        let carried = match self.carry_out(run, &before, &planned).await {
            Ok(carried) => carried,
            Err(failure) => {
                self.unsend(run, hung.markers()).await?;
                return Err(failure);
            }
        };
        match carried {
            Carried::Landed(mut landed) => {
                if !heirs.is_empty() {
                    // Before the history, which may take several runs: tags and owner are carried once.
                    run.state.carried.clone_from(&heirs);
                    self.save(run, None, &[]).await?;
                }
                match self.send_hung(run, &hung).await? {
                    Sent::Held(reason) => return Ok(Ok(Report::of(End::Held(reason)))),
                    // What hangs on an incident moves its etag: learn it, so that our own write is no news. A history is:
                    // it goes on to Defender like a comment of anybody's.
                    Sent::All(true) if histories.is_empty() => {
                        landed.after =
                            run.route.sentinel.incident(&run.link.sentinel_id).await.unwrap_or(None);
                    }
                    Sent::All(_) => {}
                }
                if planned.outcome == Outcome::Create {
                    self.inherit_later(run).await?;
                }
                Ok(Ok(self.agree(run, &seen, &planned, *landed, heirs, &hung).await?))
            }
            Carried::Held(reason) => {
                self.unsend(run, hung.markers()).await?;
                Ok(Ok(Report::of(End::Held(reason))))
            }
            Carried::Refused(refusal) => {
                self.unsend(run, hung.markers()).await?;
                Ok(Err(refusal))
            }
        }
    }

    fn planned(&self, run: &Run<'_>, seen: &Snapshot, policy: &Policy) -> Plan {
        let filtered = seen.defender.as_ref().and_then(|incident| policy.filter.refuses(&incident.says));
        match filtered {
            Some(why) if run.state.left_out => {
                left_out(seen, &why, policy).unwrap_or_else(|| plan(seen, policy))
            }
            _ => plan(seen, policy),
        }
    }

    /// Heeds the route's filter. The answer ends the run.
    async fn matching(
        &self,
        run: &mut Run<'_>,
        seen: &mut Snapshot,
        policy: &Policy,
    ) -> Result<Option<Report>, Failure> {
        let Some(incident) = &seen.defender else { return Ok(None) };
        let merged = incident.says.status == DefenderStatus::Redirected;
        let Some(why) = policy.filter.refuses(&incident.says).filter(|_| !merged) else {
            if run.state.left_out {
                // It matches again: as if both met for the first time, so that Defender's state is the one that holds.
                run.state.left_out = false;
                run.state.known = None;
                seen.state = run.state.clone();
            }
            return Ok(None);
        };
        let linked = seen.sentinel.is_some() || seen.state.known.is_some();
        let nothing = |why: String| Ok(Some(Report::of(End::Nothing(why))));
        match policy.filter.otherwise {
            _ if !linked => nothing(format!("not for this route: {why}")),
            Unmatched::Keep => Ok(None),
            Unmatched::Leave => {
                nothing(format!("left as it is, because it is no longer for this route: {why}"))
            }
            Unmatched::Close => {
                let closed = seen.sentinel.as_ref().is_some_and(|s| s.says.status == SentinelStatus::Closed);
                let known_closed = run.state.intents.is_empty()
                    && run.state.known.as_ref().is_some_and(|k| k.sentinel.status == SentinelStatus::Closed);
                // Whoever opened it again in Sentinel has their reason.
                if closed || (run.state.left_out && known_closed) {
                    return nothing(format!(
                        "closed and left, because it is no longer for this route: {why}"
                    ));
                }
                run.state.left_out = true;
                seen.state = run.state.clone();
                Ok(None)
            }
        }
    }

    /// An incident is gone for good on one side: what the route's policy says.
    async fn vanished(&self, run: &mut Run<'_>, side: Side) -> Result<Report, Failure> {
        let reason = format!("{GONE} {side}: both sides had the incident, and {side} has it no more.");
        match (run.route.policy.vanished, side) {
            (Vanished::Park, _) | (Vanished::Recreate, Side::Defender) => {
                self.park(run, format!("{reason} Nothing is recreated.")).await
            }
            (Vanished::Unlink, _) => {
                let why = format!("{reason} The route unlinks such incidents.");
                tracing::warn!(link = %run.key, reason = why, "unlinked");
                run.state.unlinked = Some(why.clone());
                let line = self.line(run, "vanished", json!({"reason": why, "cause": run.cause.to_json()}));
                self.save(run, None, &[line]).await?;
                Ok(Report::of(End::Nothing(why)))
            }
            (Vanished::Recreate, Side::Sentinel) => {
                let generation = run.state.generation + 1;
                run.link.sentinel_id = twin_id_again(run.key, generation);
                run.state =
                    LinkState { generation, inherited: run.state.inherited.clone(), ..LinkState::default() };
                let detail = json!({
                    "reason": format!("{reason} The route makes such twins again."),
                    "twin": run.link.sentinel_id, "cause": run.cause.to_json(),
                });
                tracing::warn!(link = %run.key, "the twin is gone in Sentinel and is made again");
                let line = self.line(run, "vanished", detail);
                self.save(run, None, &[line]).await?;
                Ok(Report { again: true, ..Report::of(End::Wrote) })
            }
        }
    }

    /// In shadow: everything but the writes, which go to a wrapper that takes none. What would have been written is
    /// journalled once.
    async fn shadow(&self, run: &mut Run<'_>, planned: &Plan, hung: &HungPlan) -> Result<Report, Failure> {
        let shadow = Shadow::of(run.route);
        if let Some(write) = &planned.sentinel {
            shadow.takes(shadow.sentinel.put(&run.link.sentinel_id, write).await)?;
        }
        if let Some(patch) = &planned.defender {
            shadow.takes(shadow.defender.update(&run.key.incident_id, patch).await)?;
        }
        hung.send_to(&shadow, &run.link.sentinel_id, &run.key.incident_id).await?;
        let would = shadow.would();
        let end = match would.is_empty() {
            true => End::InStep,
            false => End::Nothing("in shadow: nothing is written".to_owned()),
        };
        let now = Some(hash(&format!("{planned}\n{would:?}"))).filter(|_| !would.is_empty());
        if run.state.shadowed != now {
            run.state.shadowed = now;
            let detail = json!({
                "create": planned.outcome == Outcome::Create, "changes": planned.changes,
                "clashes": planned.clashes, "would": would, "cause": run.cause.to_json(),
            });
            let line = self.line(run, "shadow", detail);
            self.save(run, None, &[line]).await?;
        }
        Ok(Report::of(end))
    }

    /// The link's writes within the last hour. Somebody who let it go on after it was put aside for them has seen
    /// those: it has its whole share again.
    async fn written_lately(&self, key: &LinkKey) -> Result<u64, Failure> {
        let an_hour_ago = self.clock.now() - time::Duration::hours(1);
        let count = async |since| self.store.journal_count(key, "write", since).await.map_err(store_failure);
        let written = count(an_hour_ago).await?;
        if written < MOST_WRITES_AN_HOUR {
            return Ok(written);
        }
        let recent = self.store.journal(key, LINES_OF_A_SHARE).await.map_err(store_failure)?;
        let put_aside = recent.iter().rev().find(|line| {
            line.kind == "park"
                && line.detail["reason"].as_str().is_some_and(|why| why.starts_with(TOO_OFTEN))
        });
        match put_aside {
            Some(line) => count(line.at.max(an_hour_ago)).await,
            None => Ok(written),
        }
    }

    /// What would be written to bring one incident in step, and why. Reads both sides; writes nothing anywhere.
    pub async fn look(&self, route: &Route, key: &LinkKey) -> Result<Plan, Failure> {
        let stored = self.store.link(key).await.map_err(store_failure)?;
        let (sentinel_id, state) = match stored {
            Some(link) => {
                let state = serde_json::from_str(&link.state).map_err(|error| Failure {
                    code: "corrupt-link".into(),
                    ..ours(Class::Permanent, format!("the stored state of the link does not read: {error}"))
                })?;
                (link.sentinel_id, state)
            }
            None => (twin_id(key), LinkState::default()),
        };
        let mut policy = match state.adopted {
            true => route.policy.beside_native(),
            false => route.policy.clone(),
        };
        policy.in_progress_writable &= !self.in_progress_refused(&key.tenant_id).await?;
        let sentinel = route.sentinel.incident(&sentinel_id).await?;
        let defender = route.defender.incident(&key.incident_id).await?;
        let seen = Snapshot { key: key.clone(), state, defender, sentinel };
        ask(route, &seen, &mut policy).await;
        Ok(plan(&seen, &policy))
    }

    /// Why the route leaves an incident alone altogether, whatever its plan says. Asks Defender for what its filter
    /// wants to know; writes nothing anywhere.
    pub async fn left_alone(
        &self,
        pair: &[Arc<Route>],
        route: &Route,
        key: &LinkKey,
    ) -> Result<Option<String>, Failure> {
        let now = self.clock.now();
        let stored = self.store.link(key).await.map_err(store_failure)?;
        let state: LinkState =
            stored.as_ref().and_then(|link| serde_json::from_str(&link.state).ok()).unwrap_or_default();
        if state.unlinked.is_some() {
            return Ok(state.unlinked);
        }
        if let Some(why) = self.of_another(pair, route, stored.as_ref(), &state, key).await? {
            return Ok(Some(why));
        }
        if is_frozen(route, &state, now) {
            return Ok(Some(FROZEN.to_owned()));
        }
        if state.known.is_none()
            && state.intents.is_empty()
            && let native::Advice::Leave(why) = native::advice(&*self.store, route, key, now).await?
        {
            return Ok(Some(why));
        }
        let filter = &route.policy.filter;
        if *filter == Filter::default() || (state.known.is_some() && filter.otherwise == Unmatched::Keep) {
            return Ok(None);
        }
        let incident = route.defender.incident(&key.incident_id).await?;
        let live = incident.filter(|incident| incident.says.status != DefenderStatus::Redirected);
        let why = live.and_then(|incident| filter.refuses(&incident.says));
        Ok(why.map(|why| format!("it is not for this route: {why}")))
    }

    fn defender_first(&self, run: &Run<'_>, second: bool) -> bool {
        !second
            && run.cause.side == Side::Defender
            && run.cause.version.is_none()
            && !run.cause.thorough()
            && !run.state.hung.unfinished
            && run.state.known.is_some()
            && run.state.intents.is_empty()
    }

    /// Reads Sentinel, then Defender: Graph as late as possible. Where both sides agreed and only the hinted one can
    /// have moved, one call is enough to find out that it did not.
    async fn observe(&self, run: &mut Run<'_>, second: bool) -> Result<Observed, Failure> {
        let mut reads = Vec::new();
        let observed = self.observed(run, second, &mut reads).await;
        run.reads.append(&mut reads);
        observed
    }

    async fn observed(
        &self,
        run: &Run<'_>,
        second: bool,
        reads: &mut Vec<Read>,
    ) -> Result<Observed, Failure> {
        let Run { route, key, cause, link, state, .. } = run;
        let whole = second || cause.thorough() || state.hung.unfinished;
        let agreed = state.known.as_ref().filter(|_| state.intents.is_empty() && !whole);
        let mut early = run.early.as_deref().filter(|_| !second).cloned().map(Some);
        if let Some(Some(defender)) = &early {
            reads.push(Read::defender(self.clock.now(), Some(defender)));
        }
        if early.is_none() && self.defender_first(run, second) {
            let defender = route.defender.incident(&key.incident_id).await?;
            reads.push(Read::defender(self.clock.now(), defender.as_ref()));
            if let (Some(known), Some(defender)) = (agreed, &defender)
                && known.defender_updated == defender.updated
                && run.shows_nothing_new(known, defender)
            {
                return Ok(Observed::Unmoved);
            }
            early = Some(defender);
        }
        let sentinel = route.sentinel.incident(&link.sentinel_id).await?;
        reads.push(Read::sentinel(self.clock.now(), sentinel.as_ref()));
        if let (Side::Sentinel, Some(known), Some(sentinel)) = (cause.side, agreed, &sentinel)
            && known.sentinel_etag == sentinel.etag
        {
            // The hint named a version that is not the agreed one: an old hint, or a read that lags. Etags have no
            // order, so time must tell.
            if cause.version.is_some() && cause.attempts < OLD_HINT_DOUBTS {
                return Err(retry(
                    Side::Sentinel,
                    "stale-read",
                    "the read does not show what the hint named",
                ));
            }
            return Ok(Observed::Unmoved);
        }
        let defender = match early {
            Some(defender) => defender,
            None => {
                let defender = route.defender.incident(&key.incident_id).await?;
                reads.push(Read::defender(self.clock.now(), defender.as_ref()));
                defender
            }
        };
        let snapshot = Snapshot { key: (*key).clone(), state: state.clone(), defender, sentinel };
        Ok(Observed::Both(Box::new(snapshot)))
    }

    /// Refuses reads that lag behind what was acted on, or behind what the hint named.
    fn trust(&self, run: &Run<'_>, seen: &Snapshot) -> Result<(), Failure> {
        if let Some(side) = stale(seen) {
            return Err(retry(side, "stale-read", "the read is older than one already acted on"));
        }
        let named = run.cause.version.as_deref().filter(|_| run.cause.side == Side::Defender);
        if let (Some(named), Some(defender)) = (named.and_then(parse_instant), &seen.defender)
            && defender.updated < named
            && run.cause.attempts < MOST_STALE_READS
        {
            return Err(retry(Side::Defender, "stale-read", "the read is older than what the hint named"));
        }
        Ok(())
    }

    /// Sends what was announced. Immediately before each send the fence and the operators' stops are looked at.
    async fn carry_out(
        &self,
        run: &mut Run<'_>,
        before: &LinkState,
        planned: &Plan,
    ) -> Result<Carried, Failure> {
        let mut landed = Landed::default();
        let order = match planned.defender_first {
            true => [Side::Defender, Side::Sentinel],
            false => [Side::Sentinel, Side::Defender],
        };
        for side in order {
            let wanted = match side {
                Side::Sentinel => planned.sentinel.is_some(),
                Side::Defender => planned.defender.is_some(),
            };
            if !wanted {
                continue;
            }
            if let Some(reason) = self.still_ours(run).await? {
                return Ok(Carried::Held(reason));
            }
            let sent = match (side, &planned.sentinel, &planned.defender) {
                (Side::Sentinel, Some(write), _) => run
                    .route
                    .sentinel
                    .put(&run.link.sentinel_id, write)
                    .await
                    .map(|answer| landed.sentinel = Some(answer)),
                (Side::Defender, _, Some(patch)) => run
                    .route
                    .defender
                    .update(&run.key.incident_id, patch)
                    .await
                    .map(|answer| landed.defender = Some(answer)),
                _ => Ok(()),
            };
            match sent {
                Ok(()) => self.metrics.write(side),
                Err(failure) => return self.refused(run, before, planned, side, failure).await,
            }
        }
        Ok(Carried::Landed(Box::new(landed)))
    }

    /// A write failed. A certain refusal takes its announcement back; anything else leaves it standing, because it
    /// may have landed, or may yet. So does a side that is throttled or closed: the next attempt is the same write,
    /// and must not look like another one to the journal and the loop breaker.
    async fn refused(
        &self,
        run: &mut Run<'_>,
        before: &LinkState,
        planned: &Plan,
        side: Side,
        failure: Failure,
    ) -> Result<Carried, Failure> {
        let certain = failure.effect == Effect::None;
        if !(certain && matches!(failure.class, Class::Permanent | Class::Conflict)) {
            return Err(failure);
        }
        run.state = take_back(before, &run.state, planned, side);
        let detail = json!({
            "side": side, "code": failure.code, "why": failure.message, "calls": trace::taken(),
        });
        let line = self.line(run, "refused", detail);
        self.save(run, None, &[line]).await?;
        if side == Side::Defender && self.merged_meanwhile(run, &failure).await? {
            return Err(merged());
        }
        let in_progress =
            side == Side::Defender && failure.code == "status-400" && writes_in_progress(planned);
        if failure.class == Class::Conflict {
            return Err(failure);
        }
        let written = planned.intents.iter().find(|intent| intent.side == side);
        let values = planned.changes.iter().filter(|change| change.side == side);
        Ok(Carried::Refused(Refusal {
            side,
            fields: written.map(|intent| intent.fields.clone()).unwrap_or_default(),
            values: values.map(|change| (change.field, change.after.clone())).collect(),
            creating: planned.outcome == Outcome::Create,
            in_progress,
            failure,
        }))
    }

    /// Whether Defender refuses a write because the incident was merged into another since it was read: then no value is
    /// to blame, and the next look sees the redirect.
    pub(crate) async fn merged_meanwhile(&self, run: &Run<'_>, failure: &Failure) -> Result<bool, Failure> {
        if failure.code != "status-400" {
            return Ok(false);
        }
        let now = run.route.defender.incident(&run.key.incident_id).await?;
        Ok(now.is_some_and(|incident| incident.says.status == DefenderStatus::Redirected))
    }

    /// Stores the agreement, now that every write was answered.
    async fn agree(
        &self,
        run: &mut Run<'_>,
        seen: &Snapshot,
        planned: &Plan,
        landed: Landed,
        heirs: Vec<String>,
        hung: &HungPlan,
    ) -> Result<Report, Failure> {
        let Some((mut state, again)) = agree(seen, planned, &landed) else {
            return Err(ours(Class::Retry { wait: None }, "a write has no answer".to_owned()));
        };
        // A comment that slipped in before our PATCH hides behind its version, and only its answer shows it.
        let comments = |incident: &Option<DefenderIncident>| incident.as_ref().map(|i| i.comments.len());
        let again =
            again || comments(&landed.defender).is_some_and(|now| Some(now) > comments(&seen.defender));
        // So does one in Sentinel behind the version that our own comments have moved: there are more than we added.
        let count = |incident: &Option<SentinelIncident>| incident.as_ref().and_then(|i| i.comments_count);
        let ours = hung.adds(seen.state.hung.digest.len());
        let again = again
            || count(&landed.after)
                .zip(count(&seen.sentinel))
                .is_some_and(|(after, before)| after > before.saturating_add(ours));
        if again && let Some(known) = &mut state.known {
            // What is remembered is not what the answered versions show. No hint and no read may take those versions
            // for old news.
            known.sentinel_etag.clear();
            if let Some(defender) = &seen.defender {
                known.defender_updated = defender.updated - time::Duration::microseconds(1);
            }
        }
        state.refused.retain(|refused| planned.withheld.contains(&(refused.side, refused.field)));
        let both_closed = state.known.as_ref().is_some_and(|known| {
            known.sentinel.status == SentinelStatus::Closed
                && matches!(known.defender.status, DefenderStatus::Resolved | DefenderStatus::Redirected)
        });
        state.closed_since = both_closed.then(|| run.state.closed_since.unwrap_or_else(|| self.clock.now()));
        (state.left_out, state.merged_into) = (run.state.left_out, run.state.merged_into.clone());
        state.unmapped.clone_from(&run.state.unmapped);
        state.overlaps.clone_from(&run.state.overlaps);
        state.inherited.extend(heirs);
        state.carried.clear();
        state.hung = self.settle_hung(run, seen, hung);
        let look_at = self.look_again(&state.hung, hung);
        let waits = state.hung.follow_waits.is_some();
        let goes_on = hung.tells_history() || (hung.goes_on() && !waits);
        let again = again || goes_on || look_at.is_some_and(|at| at <= self.clock.now());
        let wrote = !planned.is_empty() || !hung.is_empty();
        let mut lines = Vec::new();
        if wrote {
            for clash in &planned.clashes {
                self.metrics.clash(clash.field.as_str());
            }
            let detail = json!({
                "defender": landed.defender.as_ref().map(|d| format_instant(d.updated)),
                "sentinel": landed.sentinel.as_ref().map(|s| &s.etag),
                "moved_meanwhile": again,
                "calls": trace::taken(),
            });
            lines.push(self.line(run, "landed", detail));
        } else {
            lines.extend(self.unsaid(run, planned).await?);
            lines.extend(self.found_equal(run, &state, &planned.labels));
            if state == run.state && lines.is_empty() && run.link.parked.is_none() && !run.dirty {
                return Ok(Report { look_at, ..Report::of(End::InStep) });
            }
        }
        run.state = state;
        run.dirty = false;
        self.save(run, None, &lines).await?;
        if wrote {
            let took = self.clock.now() - run.cause.first_hint_at;
            self.metrics.propagated(took.try_into().unwrap_or_default());
            tracing::info!(link = %run.key, fields = planned.changes.len(), "in step after a write");
        }
        let end = if wrote { End::Wrote } else { End::InStep };
        Ok(Report { end, again, look_at })
    }

    /// What moved on the sides and needed no write: both say the same by themselves, or a rule lets it be.
    fn found_equal(&self, run: &Run<'_>, state: &LinkState, own: &LabelRules) -> Option<JournalEntry> {
        let now = state.known.as_ref()?;
        let moved = run.state.known.as_ref().map(|known| known.moved(now, own));
        if moved.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let fields = moved.map(|fields| fields.iter().map(|field| field.as_str()).collect::<Vec<_>>());
        Some(self.line(run, "agreed", json!({"fields": fields})))
    }

    /// Keeps the report of owners without a counterpart. Only a look at an owner who moved tells anything new.
    async fn keep_unmapped(&self, run: &mut Run<'_>, seen: &Snapshot, planned: &Plan) -> Result<(), Failure> {
        let found = planned.unmapped.first();
        if owner_is_settled(seen) || run.state.unmapped.as_ref() == found {
            return Ok(());
        }
        let (store, now) = (&*self.store, self.clock.now());
        unmapped::keep(store, &run.route.name, run.key, found, now).await.map_err(store_failure)?;
        if let Some(found) = found {
            self.metrics.owner_unmapped(found.side);
        }
        run.state.unmapped = found.cloned();
        run.dirty = true;
        Ok(())
    }

    async fn park(&self, run: &mut Run<'_>, reason: String) -> Result<Report, Failure> {
        tracing::warn!(link = %run.key, reason, "link put aside");
        let line = self.line(run, "park", json!({"reason": reason, "cause": run.cause.to_json()}));
        self.save(run, Some(reason.clone()), &[line]).await?;
        Ok(Report::of(End::Parked(reason)))
    }

    /// Journals a refusal that only a person can settle. With `aside`, the link is put aside as well: where several
    /// links hang on one queue row, the row must go on serving the others.
    pub async fn give_up(
        &self,
        key: &LinkKey,
        fence: &Fence,
        cause: &Cause,
        reason: &str,
        aside: bool,
    ) -> Result<(), StoreError> {
        let Some(mut link) = self.store.link(key).await? else { return Ok(()) };
        let now = self.clock.now();
        link.parked = aside.then(|| reason.to_owned());
        link.updated_at = now;
        let detail = json!({"reason": reason, "cause": cause.to_json()});
        let line = JournalEntry { at: now, link: key.clone(), kind: "park".into(), detail };
        self.store.save_link(&link, &[line], fence, now).await?;
        Ok(())
    }

    pub(crate) async fn save(
        &self,
        run: &mut Run<'_>,
        parked: Option<String>,
        lines: &[JournalEntry],
    ) -> Result<(), Failure> {
        let now = self.clock.now();
        run.link.state = serde_json::to_string(&run.state)
            .map_err(|error| ours(Class::Permanent, format!("the link's state cannot be stored: {error}")))?;
        run.link.parked = parked;
        run.link.updated_at = now;
        let aside = std::mem::take(&mut run.aside);
        let all: Vec<JournalEntry> = aside.iter().chain(lines).cloned().collect();
        let lines = &*match &*all {
            [] => Vec::new(),
            lines => self.with_its_story(run, lines),
        };
        match self.store.save_link(&run.link, lines, run.fence, now).await.map_err(store_failure)? {
            Held::Yes => {
                for name in aside.iter().flat_map(|line| line.detail["also"].as_array()).flatten() {
                    self.metrics.overlap(name.as_str().unwrap_or_default());
                }
                Ok(())
            }
            Held::No => Err(fence_lost()),
        }
    }

    /// The lines of a decision, behind the hints and the reads that led to it.
    fn with_its_story(&self, run: &mut Run<'_>, lines: &[JournalEntry]) -> Vec<JournalEntry> {
        let mut story = Vec::with_capacity(lines.len() + 2);
        if !run.told {
            run.told = true;
            let cause = run.cause;
            let detail = json!({
                "side": cause.side, "sources": cause.sources, "version": cause.version, "hints": cause.hints,
                "attempt": cause.attempts + 1,
            });
            story.push(JournalEntry { at: cause.first_hint_at, ..self.line(run, "hint", detail) });
        }
        let reads = std::mem::take(&mut run.reads);
        if let Some(last) = reads.last() {
            let at = last.at;
            let reads: Vec<Value> = reads
                .into_iter()
                .map(
                    |read| json!({"at": format_instant(read.at), "side": read.side, "version": read.version}),
                )
                .collect();
            story.push(JournalEntry { at, ..self.line(run, "read", json!({"reads": reads})) });
        }
        story.extend_from_slice(lines);
        story
    }

    pub(crate) fn line(&self, run: &Run<'_>, kind: &str, detail: Value) -> JournalEntry {
        JournalEntry { at: self.clock.now(), link: run.key.clone(), kind: kind.to_owned(), detail }
    }

    /// The journal lines of a plan that is about to be carried out. A write that is only repeated has its line.
    async fn announcement(
        &self,
        run: &Run<'_>,
        before: &LinkState,
        planned: &Plan,
    ) -> Result<Vec<JournalEntry>, Failure> {
        let mut lines = Vec::new();
        for intent in planned.intents.iter().filter(|intent| !before.intents.contains(intent)) {
            let changes: Vec<&Change> = planned.changes.iter().filter(|c| c.side == intent.side).collect();
            let detail = json!({
                "side": intent.side,
                "create": planned.outcome == Outcome::Create,
                "changes": changes,
                "cause": run.cause.to_json(),
            });
            lines.push(self.line(run, "write", detail));
        }
        for clash in &planned.clashes {
            lines.push(self.line(run, "clash", json!(clash)));
        }
        lines.extend(self.unsaid(run, planned).await?);
        Ok(lines)
    }

    /// What could not be said on the other side, unless the journal says so already.
    async fn unsaid(&self, run: &Run<'_>, planned: &Plan) -> Result<Vec<JournalEntry>, Failure> {
        if planned.unsaid.is_empty() {
            return Ok(Vec::new());
        }
        let recent = self.store.journal(run.key, 100).await.map_err(store_failure)?;
        let lines = planned
            .unsaid
            .iter()
            .map(|(field, why)| self.line(run, "unsaid", json!({"field": field.as_str(), "why": why})));
        Ok(lines
            .filter(|line| !recent.iter().any(|old| old.kind == line.kind && old.detail == line.detail))
            .collect())
    }

    pub(crate) async fn held(&self, route: &Route) -> Result<Option<String>, Failure> {
        let holds = self.store.holds().await.map_err(store_failure)?;
        Ok(holds
            .into_iter()
            .find(|hold| hold.route == "*" || hold.route == route.name)
            .map(|hold| hold.reason))
    }

    async fn in_progress_refused(&self, tenant_id: &str) -> Result<bool, Failure> {
        let value = self.store.value(&in_progress_refused(tenant_id)).await.map_err(store_failure)?;
        let since = value.as_deref().and_then(parse_instant);
        Ok(since.is_some_and(|since| self.clock.now() - since < REFUSAL_HOLDS))
    }
}

/// Whether both sides have the owners whom they were agreed to have.
fn owner_is_settled(seen: &Snapshot) -> bool {
    let defender = seen.defender.as_ref().and_then(|d| d.says.owner.as_ref());
    let sentinel = seen.sentinel.as_ref().map(|s| s.says.owner.clone()).unwrap_or_default();
    seen.state
        .known
        .as_ref()
        .is_some_and(|known| known.defender.owner.as_ref() == defender && known.sentinel.owner == sentinel)
}

/// An owner who had no counterpart, and whom the route's rules name by now, is news.
fn take_up_owner(seen: &mut Snapshot, policy: &Policy) {
    let Some(owner) = seen.state.unmapped.clone().filter(|owner| owner.is_ruled(&policy.owners)) else {
        return;
    };
    if !owner_is_settled(seen) {
        return;
    }
    if let Some(known) = &mut seen.state.known {
        match owner.side {
            Side::Defender => known.defender.owner = None,
            Side::Sentinel => known.sentinel.owner = SentinelOwner::default(),
        }
    }
}

/// Asks the directories about owners who moved, where the route may: then the plan knows them. What a directory will not
/// say is no reason to stop.
async fn ask(route: &Route, seen: &Snapshot, policy: &mut Policy) {
    if owner_is_settled(seen) {
        return;
    }
    let defender = seen.defender.as_ref().and_then(|d| d.says.owner.clone());
    let sentinel = seen.sentinel.as_ref().map(|s| s.says.owner.clone()).unwrap_or_default();
    for Question { directory, name } in owners::questions(defender.as_deref(), &sentinel, &policy.owners) {
        let Some(asked) = route.directories.of(directory) else { continue };
        let answer = match asked.person(&name).await {
            Ok(Some(person)) => Answer::Found(person),
            Ok(None) => Answer::Missing,
            Err(_) => Answer::Unknown,
        };
        policy.people.insert(directory, &name, answer);
    }
}

/// The ARM name of an incident's twin: the same for the same incident, so that a repeated create is the same create.
pub fn twin_id(key: &LinkKey) -> String {
    twin_id_again(key, 0)
}

/// `generation` counts the twins that were made anew after one had vanished: an id that was deleted is not used again.
fn twin_id_again(key: &LinkKey, generation: u32) -> String {
    let LinkKey { tenant_id, incident_id, workspace } = key;
    let again = if generation == 0 { String::new() } else { format!("\n{generation}") };
    Uuid::new_v5(&TWINS, format!("{tenant_id}\n{incident_id}\n{workspace}{again}").as_bytes()).to_string()
}

/// The name of the fence that keeps everybody else from a link.
pub fn fence_name(key: &LinkKey) -> String {
    format!("link:{}/{}/{}", key.tenant_id, key.incident_id, key.workspace)
}

pub(crate) fn in_progress_refused(tenant_id: &str) -> String {
    format!("in-progress-refused:{tenant_id}")
}

fn writes_in_progress(planned: &Plan) -> bool {
    planned.defender.as_ref().is_some_and(|patch| patch.status == Some(DefenderStatus::InProgress))
}

/// Why a link is still put aside. A loop is for a person to end; everything else is looked at again after a while, and
/// a refused write as soon as somebody changes the incident.
fn still_parked(link: &LinkRecord, named_news: bool, now: OffsetDateTime) -> Option<String> {
    let reason = link.parked.as_ref()?;
    let ended = !reason.starts_with(TOO_OFTEN)
        && (now - link.updated_at > PARKED_FOR || (named_news && !reason.starts_with(GONE)));
    (!ended).then(|| reason.clone())
}

/// Whether both sides have been closed for so long that the route leaves them alone.
fn is_frozen(route: &Route, state: &LinkState, now: OffsetDateTime) -> bool {
    let closed = (route.policy.freeze_after, state.closed_since);
    matches!(closed, (Some(after), Some(since)) if now - since > after)
}

fn ours(class: Class, message: String) -> Failure {
    Failure { class, side: None, code: "internal".into(), message, effect: Effect::None }
}

pub(crate) fn retry(side: Side, code: &str, message: &str) -> Failure {
    Failure {
        class: Class::Retry { wait: None },
        side: Some(side),
        code: code.to_owned(),
        message: message.to_owned(),
        effect: Effect::None,
    }
}

pub(crate) fn merged() -> Failure {
    let message = "the incident was merged into another since it was read; looking again";
    Failure { class: Class::Conflict, ..retry(Side::Defender, "merged", message) }
}

pub(crate) fn fence_lost() -> Failure {
    Failure {
        code: "fence-lost".into(),
        ..ours(Class::Conflict, "somebody else has taken the link over".to_owned())
    }
}

pub(crate) fn store_failure(error: StoreError) -> Failure {
    let class = match &error {
        StoreError::Unavailable(_) => Class::Retry { wait: None },
        StoreError::Corrupt(_) => Class::Permanent,
    };
    Failure { code: "store".into(), ..ours(class, error.to_string()) }
}
