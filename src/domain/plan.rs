//! The planner: what both sides say now, what they last agreed on and what we may have written meanwhile go in; the
//! writes that bring them in step, with the reason for each, come out. Then `agree` says what to remember of it.
//!
//! Change is detected on each side in that side's own words against what that side last said. The two sides are
//! compared through the lossy mapping only to find out that nothing needs copying.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::domain::comments::Ledger;
use crate::domain::mapping as map;
use crate::domain::merge::{Judgement, Names, Pair, contested, judge, merge_names};
use crate::domain::model::{
    AlertPatch, DefenderClassification, DefenderDetermination, DefenderIncident, DefenderPatch, DefenderSays,
    DefenderSeverity, DefenderStatus, Facts, Label, LinkKey, SentinelClassification, SentinelIncident,
    SentinelOwner, SentinelSays, SentinelStatus, SentinelWrite, Side,
};
use crate::domain::owners::{self, Mapped, Unmapped};
use crate::domain::policy::{FIELDS, Field, LabelRules, Policy, Winner, offered};

/// Two modified times closer than this prove no order: two clocks, moved by our own writes too.
const LATEST_MARGIN: Duration = Duration::seconds(5);
/// How many unproved writes are kept per side. More than this means that a side swallows writes for hours; the oldest
/// can no longer be in flight.
const MOST_INTENTS: usize = 8;
/// For how long a create that got no answer may still arrive, by Sentinel's clock. No gateway holds a request for longer.
const LATE_FOR: Duration = Duration::minutes(15);

/// The last state both sides agreed on, each in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What Defender said.
    pub defender: DefenderSays,
    /// What Sentinel said.
    pub sentinel: SentinelSays,
    /// Defender's `lastUpdateDateTime` of it.
    #[serde(with = "time::serde::rfc3339")]
    pub defender_updated: OffsetDateTime,
    /// Sentinel's `lastModifiedTimeUtc` of it.
    #[serde(with = "time::serde::rfc3339")]
    pub sentinel_modified: OffsetDateTime,
    /// Sentinel's etag of it.
    pub sentinel_etag: String,
}

impl Known {
    /// The fields in which a later agreement says something else, on either side.
    pub fn moved(&self, later: &Known, own: &LabelRules) -> Vec<Field> {
        let same = |field: &Field| {
            same_words_defender(own, *field, &self.defender, &later.defender)
                && same_words_sentinel(own, *field, &self.sentinel, &later.sentinel)
        };
        Field::ALL.into_iter().filter(|field| !same(field)).collect()
    }
}

/// A write that was announced and is not proved: it may have landed, or may still land.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Where it went.
    pub side: Side,
    /// The members it was to change.
    pub fields: Vec<Field>,
    /// The tags it was to add or remove: the only ones that can prove it.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// The version of `side` it was computed from (Defender: RFC 3339 instant; Sentinel: etag; empty when creating).
    pub at: String,
    /// What Defender says if it lands.
    pub defender: DefenderSays,
    /// What Sentinel says if it lands.
    pub sentinel: SentinelSays,
}

/// All that is remembered of a link between two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// `None` until both sides have agreed once.
    pub known: Option<Known>,
    /// Unproved writes, oldest first.
    #[serde(default)]
    pub intents: Vec<Intent>,
    /// The newest `lastUpdateDateTime` of Defender that was acted on.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub acted_defender: Option<OffsetDateTime>,
    /// The newest `lastModifiedTimeUtc` of Sentinel that was acted on.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub acted_sentinel: Option<OffsetDateTime>,
    /// Values that a side would not take: not sent again until another is to be sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Since when both sides have been closed.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub closed_since: Option<OffsetDateTime>,
    /// Why nothing is kept in step any more, by policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlinked: Option<String>,
    /// How many twins were made anew after one had vanished.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u32,
    /// The twin is one that Microsoft's connector made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// The twin was closed because its incident no longer matches the route's filter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
    /// The incident that this one was merged into, once it has been told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_into: Option<String>,
    /// Incidents that were merged into this one and whose history has been carried over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherited: Vec<String>,
    /// Those of them whose tags and owner have been written, while their history has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<String>,
    /// Creates of the twin that got no answer and may still arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// What hangs on it: comments, the digest of its alerts.
    #[serde(default, skip_serializing_if = "Hung::is_empty")]
    pub hung: Hung,
    /// The owner who had no counterpart when the owner was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmapped: Option<Unmapped>,
    /// In shadow: the hash of what would have been written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadowed: Option<u64>,
    /// Other routes between the same tenant and workspace that would take the incident too, as far as was reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<String>,
}

/// Creates of a twin that got no answer, while another did: nothing guards them (`sentinel.md` §4), and one that arrives
/// now overwrites the twin with what it once said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// What they say.
    pub says: Vec<SentinelSays>,
    /// The twin's `lastModifiedTimeUtc` when it was first agreed on.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// What is remembered of all that hangs on an incident.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hung {
    /// Which comments were carried, and which are on their way.
    pub comments: Ledger,
    /// How many comments Defender's incident had when it was last looked at.
    pub defender_comments: usize,
    /// The hash of each comment of the alerts' digest.
    pub digest: Vec<u64>,
    /// Bookmarks by id, with the hash of what they say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bookmarks: BTreeMap<String, u64>,
    /// The hash of the alerts that were last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alerts_seen: Option<u64>,
    /// The marks of these alerts, each in the version that was looked at ([`alert_mark`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alert_marks: Vec<u64>,
    /// The alert and its title behind each bookmark.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bookmarked: BTreeMap<String, (String, String)>,
    /// What the alerts are still to be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<AlertPatch>,
    /// What each alert was told of it. None is told the same twice: a read that lags, or a person who has changed it back,
    /// must not make it go on for ever.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub told: BTreeMap<String, AlertPatch>,
    /// What each alert would not take, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alerts_refused: BTreeMap<String, AlertRefused>,
    /// Why no alert can be told anything now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow_waits: Option<String>,
    /// Something is still to be done that no version of either side tells of: the next run looks at both.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
}

impl Hung {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What an alert would not take, for certain and for good: it is not tried again with the same values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertRefused {
    /// The values.
    pub patch: AlertPatch,
    /// What the service said to the last of them.
    pub why: String,
}

/// The mark of an alert in one version.
pub fn alert_mark(id: &str, version: &str) -> u64 {
    hash(&format!("{id}\n{version}"))
}

/// A value that a side refused, for certain and for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Who refused.
    pub side: Side,
    /// What.
    pub field: Field,
    /// The value, in that side's words as a plan shows it, by its hash.
    pub value: u64,
    /// What the service said.
    pub why: String,
}

impl LinkState {
    /// Whether there is a twin, or was one: then the link is the route's that made it. One that was only announced may
    /// never have been made.
    pub fn had_twin(&self) -> bool {
        self.known.is_some()
            || self.acted_sentinel.is_some()
            || self.unlinked.is_some()
            || self.generation > 0
    }

    /// The version that a hint must name to be old news: our own echo, or what we already acted on.
    ///
    /// With an unproved write nothing is old news.
    pub fn knows(&self, side: Side, version: &str) -> bool {
        let Some(known) = self.known.as_ref().filter(|_| self.intents.is_empty()) else { return false };
        match side {
            Side::Sentinel => known.sentinel_etag == version,
            Side::Defender => parse_instant(version).is_some_and(|at| at <= known.defender_updated),
        }
    }
}

/// Both sides now, and what we last knew of them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which link.
    pub key: LinkKey,
    /// What we knew and intended.
    pub state: LinkState,
    /// Defender, `None` when it is not there.
    pub defender: Option<DefenderIncident>,
    /// Sentinel, `None` when it is not there.
    pub sentinel: Option<SentinelIncident>,
}

/// The side whose read is strictly older than one already acted on: a replica that lags. Acting on it would take our
/// own write for somebody's edit and undo it. An equal time proves nothing and is let through.
pub fn stale(seen: &Snapshot) -> Option<Side> {
    let LinkState { acted_defender, acted_sentinel, .. } = &seen.state;
    let older = |at: Option<OffsetDateTime>, acted: &Option<OffsetDateTime>| {
        at.zip(*acted).is_some_and(|(at, acted)| at < acted)
    };
    if older(seen.defender.as_ref().map(|d| d.updated), acted_defender) {
        return Some(Side::Defender);
    }
    older(seen.sentinel.as_ref().map(|s| s.modified), acted_sentinel).then_some(Side::Sentinel)
}

/// Why a value goes where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Only this side changed it.
    OneSided,
    /// Both changed it; the policy names this side.
    PolicyWins,
    /// Both changed it; this side did so provably later.
    Later,
    /// Both changed it; a person's value goes before a program's.
    Person,
    /// Both changed it and no order can be proved: Defender.
    Unproved,
    /// The field goes one way.
    OneWay,
    /// The sides meet for the first time and differ.
    FirstMeeting,
    /// The incident is new on the other side.
    NewTwin,
    /// Sentinel can say a verdict only now that it is closed.
    Closing,
    /// An earlier write of ours got no answer: it is settled by writing again.
    Confirm,
    /// The incident was merged into another in Defender.
    Merged,
    /// An incident that was merged into this one had it.
    Inherited,
    /// The incident no longer matches the route's filter.
    Filter,
    /// A create of ours, given up long ago, has arrived and overwritten the twin: it is taken back.
    LateCreate,
    /// An earlier write of ours got no answer, its side has moved since and shows the old value.
    SetBack,
}

impl Rule {
    /// As in the journal and in printed plans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::OneSided => "only this side changed it",
            Rule::PolicyWins => "both changed it, the policy decides",
            Rule::Later => "both changed it, this side later",
            Rule::Person => "both changed it, a person's value goes before a program's",
            Rule::Unproved => "both changed it, no order can be proved, Defender wins",
            Rule::OneWay => "both changed it, the field goes one way",
            Rule::FirstMeeting => "the sides meet for the first time and differ",
            Rule::NewTwin => "new in Sentinel",
            Rule::Closing => "Sentinel can say it now that it is closed",
            Rule::Confirm => "an earlier write got no answer and is settled by writing again",
            Rule::Merged => "merged into another incident in Defender",
            Rule::Inherited => "an incident that was merged into this one had it",
            Rule::Filter => "the incident no longer matches the route's filter",
            Rule::LateCreate => "an early create of ours arrived late and is taken back",
            Rule::SetBack => {
                "an earlier write got no answer: it was lost, or somebody set the old value back"
            }
        }
    }
}

/// One value that is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub side: Side,
    /// What.
    pub field: Field,
    /// What that side says now.
    pub before: String,
    /// What it is to say.
    pub after: String,
    /// Why.
    pub rule: Rule,
}

/// Both sides changed the same field to different values: a result, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clash {
    /// What.
    pub field: Field,
    /// Whose value stays.
    pub winner: Side,
    /// The winner's value, in its own words.
    pub kept: String,
    /// The other side's value, in its own words.
    pub lost: String,
    /// Why.
    pub rule: Rule,
}

/// What a plan comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides are there.
    Both,
    /// The incident has no twin yet.
    Create,
    /// There is nothing to do: the incident does not exist, or was merged away before it had a twin.
    Nothing(&'static str),
    /// One side had it and has it no more: reported, never repaired by guess.
    Vanished(Side),
}

/// The writes that would bring both sides in step, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it comes to.
    pub outcome: Outcome,
    /// Every value that is to change, in field order.
    pub changes: Vec<Change>,
    /// Every value that loses.
    pub clashes: Vec<Clash>,
    /// Values that moved and cannot be said on the other side.
    pub unsaid: Vec<(Field, String)>,
    /// The PUT, if any.
    pub sentinel: Option<SentinelWrite>,
    /// The PATCH, if any.
    pub defender: Option<DefenderPatch>,
    /// Sentinel is written first, because its write is conditional and a refusal costs nothing; but Defender is where
    /// the PUT takes back words (a verdict, on reopening) that the PATCH carries over: a crash between the two must
    /// not lose them.
    pub defender_first: bool,
    /// What to announce before writing.
    pub intents: Vec<Intent>,
    /// Values that should be written and are not, because the side has refused them, because the field is mute in this
    /// round, or because the incident is merged away. What both sides knew of them stays known, so that they come up again.
    pub withheld: Vec<(Side, Field)>,
    /// Which labels are our own.
    pub labels: LabelRules,
    /// Owners who moved and have no counterpart.
    pub unmapped: Vec<Unmapped>,
}

impl Plan {
    fn bare(outcome: Outcome) -> Self {
        Self {
            outcome,
            changes: Vec::new(),
            clashes: Vec::new(),
            unsaid: Vec::new(),
            sentinel: None,
            defender: None,
            defender_first: false,
            intents: Vec::new(),
            withheld: Vec::new(),
            labels: LabelRules::default(),
            unmapped: Vec::new(),
        }
    }

    /// Whether anything is to be written.
    pub fn is_empty(&self) -> bool {
        self.sentinel.is_none() && self.defender.is_none()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Vanished(side) => {
                return write!(f, "the incident is gone in {side}: nothing is written");
            }
            Outcome::Nothing(why) => return write!(f, "nothing to do: {why}"),
            Outcome::Create => writeln!(f, "create the twin in Sentinel")?,
            Outcome::Both if self.is_empty() && self.unsaid.is_empty() && self.clashes.is_empty() => {
                return write!(f, "in step: nothing to write");
            }
            Outcome::Both => {}
        }
        for Change { side, field, before, after, rule } in &self.changes {
            let (before, after) = (short(before), short(after));
            writeln!(f, "{side}: {} {before} -> {after} ({})", field.as_str(), rule.as_str())?;
        }
        for Clash { field, winner, kept, lost, rule } in &self.clashes {
            writeln!(
                f,
                "clash: {} {} in {} gives way to {} in {winner} ({})",
                field.as_str(),
                short(lost),
                winner.other(),
                short(kept),
                rule.as_str()
            )?;
        }
        for (field, why) in &self.unsaid {
            writeln!(f, "left alone: {} ({why})", field.as_str())?;
        }
        Ok(())
    }
}

// ---- planning ----------------------------------------------------------------------------------------------------

/// Decides. Pure: the same snapshot and policy give the same plan.
pub fn plan(seen: &Snapshot, policy: &Policy) -> Plan {
    let met = seen.state.known.is_some();
    match (&seen.defender, &seen.sentinel) {
        (None, _) if met => Plan::bare(Outcome::Vanished(Side::Defender)),
        (None, _) => Plan::bare(Outcome::Nothing("Defender has no such incident")),
        (Some(_), None) if met => Plan::bare(Outcome::Vanished(Side::Sentinel)),
        (Some(incident), None) if incident.says.status == DefenderStatus::Redirected => {
            Plan::bare(Outcome::Nothing("it was merged into another incident before it had a twin"))
        }
        (Some(incident), None) => create(incident, policy),
        (Some(defender), Some(sentinel)) => both(&with_created(seen), defender, sentinel, policy),
    }
}

/// A twin that is there proves that a create of ours has landed, whatever it shows by now: somebody may have edited it
/// before we heard of it, and that is their move, not a first meeting. Of several creates the oldest is taken, so that
/// what Defender said since counts as moved; a newer one that landed shows its own values.
fn with_created(seen: &Snapshot) -> Cow<'_, Snapshot> {
    let create = |intent: &&Intent| intent.side == Side::Sentinel && intent.at.is_empty();
    let LinkState { known, intents, acted_defender, acted_sentinel, .. } = &seen.state;
    match intents.iter().find(create) {
        Some(create) if known.is_none() => {
            let known = Known {
                defender: create.defender.clone(),
                sentinel: create.sentinel.clone(),
                defender_updated: acted_defender.unwrap_or(OffsetDateTime::UNIX_EPOCH),
                sentinel_modified: acted_sentinel.unwrap_or(OffsetDateTime::UNIX_EPOCH),
                sentinel_etag: String::new(),
            };
            let state = LinkState { known: Some(known), ..seen.state.clone() };
            Cow::Owned(Snapshot { state, ..seen.clone() })
        }
        _ => Cow::Borrowed(seen),
    }
}

fn create(incident: &DefenderIncident, policy: &Policy) -> Plan {
    let mut says = map::new_twin(incident, policy);
    let mut plan = Plan::bare(Outcome::Create);
    let owner = owners::to_sentinel(incident.says.owner.as_deref(), &policy.people, &policy.owners);
    says.owner = owner.value().cloned().unwrap_or_default();
    plan.unmapped.extend(owner.unmapped().cloned());
    if let Mapped::Instead { label: Some(name), .. } = owner {
        says.labels.push(Label { name, auto: false });
    }
    let says = allowed(says, incident, policy);
    plan.labels = policy.labels.clone();
    plan.withheld = policy.mute.iter().filter(|(side, _)| *side == Side::Sentinel).copied().collect();
    let shown = Shown::of(&incident.says, &says, policy);
    for field in Field::ALL {
        let after = shown.sentinel(field);
        if after != NOTHING {
            let before = NOTHING.to_owned();
            plan.changes.push(Change { side: Side::Sentinel, field, before, after, rule: Rule::NewTwin });
        }
    }
    plan.intents.push(Intent {
        side: Side::Sentinel,
        fields: Field::ALL.to_vec(),
        names: map::sentinel_tags(&says, &policy.labels),
        at: String::new(),
        defender: incident.says.clone(),
        sentinel: says.clone(),
    });
    plan.sentinel = Some(SentinelWrite { etag: None, says, clears: false });
    plan
}

/// A new twin without the fields that do not flow to Sentinel. Title and severity stay: every incident has them.
fn allowed(mut says: SentinelSays, incident: &DefenderIncident, policy: &Policy) -> SentinelSays {
    let flows =
        |field| policy.of(field).direction.to_sentinel() && !policy.mute.contains(&(Side::Sentinel, field));
    if !flows(Field::Facts) {
        let bare = DefenderSays { facts: None, ..incident.says.clone() };
        map::tell_facts(&incident.id, incident.web_url.as_deref(), &bare, policy, &mut says);
        (says.first_activity, says.last_activity) = (None, None);
    }
    if !flows(Field::Description) {
        says.description = map::description_joined(None, says.description.as_deref());
    }
    if !flows(Field::Owner) {
        says.owner = SentinelOwner::default();
        says.labels.retain(|label| !policy.labels.is_owner(&label.name));
    }
    if !flows(Field::Tags) {
        says.labels.retain(|label| policy.labels.own(&label.name));
    }
    if !flows(Field::Determination) {
        map::set_determination(&mut says.labels, None, &policy.labels);
    }
    if !flows(Field::Verdict) && says.status == SentinelStatus::Closed {
        says.classification = Some(SentinelClassification::Undetermined);
        (says.reason, says.comment) = (None, None);
    }
    if !flows(Field::Status) {
        says.status = SentinelStatus::New;
        (says.classification, says.reason, says.comment) = (None, None, None);
    }
    says
}

/// One scalar field's decision: what each side should say, if that is not what it says.
struct Decision<D, S> {
    sentinel: Option<S>,
    defender: Option<D>,
    rule: Rule,
}

/// The frame that all scalar fields share.
struct Cell<'a, D, S> {
    field: Field,
    known: Option<Pair<D, S>>,
    now: Pair<D, S>,
    same: &'a dyn Fn(&D, &S) -> bool,
    to_sentinel: &'a dyn Fn(&D) -> Option<S>,
    to_defender: &'a dyn Fn(&S) -> Option<D>,
}

struct Planner<'a> {
    policy: &'a Policy,
    latest: Option<Side>,
    /// The side whose last change was a person's, as far as that can be told.
    person: Side,
    merged: bool,
    shown: Shown,
    plan: Plan,
}

impl Planner<'_> {
    /// Judges one field and books its clash or its silence. The caller turns the decision into writes.
    fn decide<D: Clone + Eq, S: Clone + Eq>(&mut self, cell: Cell<'_, D, S>) -> Decision<D, S> {
        let Cell { field, known, now, same, to_sentinel, to_defender } = cell;
        let rule = self.policy.of(field);
        let flows_to_sentinel = rule.direction.to_sentinel() || self.merged;
        let flows_to_defender = rule.direction.to_defender() && !self.merged;
        let judgement = match &known {
            Some(known) => judge(known, &now, same),
            None if same(&now.defender, &now.sentinel) => Judgement::Settled,
            None => Judgement::Clash,
        };
        let (winner, why) = match judgement {
            Judgement::Settled => return Decision { sentinel: None, defender: None, rule: Rule::OneSided },
            Judgement::DefenderMoved if flows_to_sentinel => (Side::Defender, Rule::OneSided),
            Judgement::SentinelMoved if flows_to_defender => (Side::Sentinel, Rule::OneSided),
            Judgement::DefenderMoved | Judgement::SentinelMoved => {
                if self.merged && rule.direction.to_defender() && to_defender(&now.sentinel).is_some() {
                    // It comes up again if the incident comes out of the merge.
                    self.plan.withheld.push((Side::Defender, field));
                }
                return Decision { sentinel: None, defender: None, rule: Rule::OneWay };
            }
            Judgement::Clash => match (flows_to_sentinel, flows_to_defender) {
                (false, false) => return Decision { sentinel: None, defender: None, rule: Rule::OneWay },
                (true, false) => (Side::Defender, Rule::OneWay),
                (false, true) => (Side::Sentinel, Rule::OneWay),
                (true, true) => match (rule.wins, self.latest) {
                    (Winner::Defender, _) => (Side::Defender, Rule::PolicyWins),
                    (Winner::Sentinel, _) => (Side::Sentinel, Rule::PolicyWins),
                    (Winner::Human, _) => (self.person, Rule::Person),
                    (Winner::Latest, Some(side)) => (side, Rule::Later),
                    (Winner::Latest, None) => (Side::Defender, Rule::Unproved),
                },
            },
        };
        let why = match (&known, self.merged) {
            (_, true) => Rule::Merged,
            (None, _) => Rule::FirstMeeting,
            _ => why,
        };
        let decision = match winner {
            Side::Defender => Decision { sentinel: to_sentinel(&now.defender), defender: None, rule: why },
            Side::Sentinel => Decision { sentinel: None, defender: to_defender(&now.sentinel), rule: why },
        };
        if decision.sentinel.is_none() && decision.defender.is_none() {
            self.plan.unsaid.push((field, format!("{} has no word for it", winner.other())));
        } else if judgement == Judgement::Clash {
            let (kept, lost) = match winner {
                Side::Defender => (self.shown.defender(field), self.shown.sentinel(field)),
                Side::Sentinel => (self.shown.sentinel(field), self.shown.defender(field)),
            };
            self.plan.clashes.push(Clash { field, winner, kept, lost, rule: why });
        }
        decision
    }
}

fn both(seen: &Snapshot, defender: &DefenderIncident, sentinel: &SentinelIncident, policy: &Policy) -> Plan {
    let own = &policy.labels;
    let overwritten = before_late_create(seen, own, sentinel);
    let (d, s) = (&defender.says, overwritten.as_ref().unwrap_or(&sentinel.says));
    let mut goal_d = d.clone();
    let mut goal_s = s.clone();
    let mut rules: [Option<(Side, Rule)>; FIELDS] = [None; FIELDS];
    let mut planner = Planner {
        policy,
        latest: latest(seen.state.known.as_ref(), defender.updated, sentinel.modified),
        person: person(defender),
        merged: d.status == DefenderStatus::Redirected,
        shown: Shown::of(d, s, policy),
        plan: Plan::bare(Outcome::Both),
    };
    planner.plan.labels = policy.labels.clone();
    let base = |field| Base::of(&seen.state, own, field, d, s);
    let web_url = defender.web_url.as_deref();

    // Title.
    let decision = planner.decide(Cell {
        field: Field::Title,
        known: base(Field::Title).map(|d, s| (d.title.clone(), s.title.clone())),
        now: Pair { defender: d.title.clone(), sentinel: s.title.clone() },
        same: &|d, s| map::title_to_sentinel(d.as_deref(), policy).is_none_or(|title| title == map::plain(s)),
        to_sentinel: &|d| map::title_to_sentinel(d.as_deref(), policy),
        to_defender: &|s| map::title_to_defender(s, policy).map(Some),
    });
    if let Some(title) = decision.sentinel {
        goal_s.title = title;
        rules[Field::Title as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some(Some(title)) = decision.defender {
        goal_d.title = Some(title);
        rules[Field::Title as usize] = Some((Side::Defender, decision.rule));
    }

    // Description, without our own block.
    let text = |s: &SentinelSays| map::description_without_block(s.description.as_deref());
    let decision = planner.decide(Cell {
        field: Field::Description,
        known: base(Field::Description).map(|d, s| (d.description.clone(), text(s))),
        now: Pair { defender: d.description.clone(), sentinel: text(s) },
        same: &|d, s| map::description_that_fits(d.as_deref()) == *s,
        to_sentinel: &|d| Some(map::description_that_fits(d.as_deref())),
        to_defender: &|s| map::description_to_defender(s.as_deref()),
    });
    if let Some(text) = decision.sentinel {
        goal_s.description = map::description_joined(text.as_deref(), s.description.as_deref());
        rules[Field::Description as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some(text) = decision.defender {
        goal_d.description = text;
        rules[Field::Description as usize] = Some((Side::Defender, decision.rule));
    }

    // Severity.
    let decision = planner.decide(Cell {
        field: Field::Severity,
        known: base(Field::Severity).map(|d, s| (d.severity.clone(), s.severity.clone())),
        now: Pair { defender: d.severity.clone(), sentinel: s.severity.clone() },
        same: &|d, s| map::severity_to_sentinel(d).as_ref() == Some(s),
        to_sentinel: &map::severity_to_sentinel,
        to_defender: &map::severity_to_defender,
    });
    if let Some(severity) = decision.sentinel {
        goal_s.severity = severity;
        rules[Field::Severity as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some(severity) = decision.defender {
        goal_d.severity = severity;
        rules[Field::Severity as usize] = Some((Side::Defender, decision.rule));
    }

    // Status.
    let decision = planner.decide(Cell {
        field: Field::Status,
        known: base(Field::Status).map(|d, s| (d.status.clone(), s.status.clone())),
        now: Pair { defender: d.status.clone(), sentinel: s.status.clone() },
        same: &|d, s| map::status_same(d, s, policy),
        to_sentinel: &map::status_to_sentinel,
        to_defender: &|s| map::status_to_defender(s, policy),
    });
    if let Some(status) = decision.sentinel {
        goal_s.status = status;
        rules[Field::Status as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some(status) = decision.defender {
        goal_d.status = status;
        rules[Field::Status as usize] = Some((Side::Defender, decision.rule));
    }

    // Owner.
    let (people, owners) = (&policy.people, &policy.owners);
    let for_sentinel = owners::to_sentinel(d.owner.as_deref(), people, owners);
    let for_defender = owners::to_defender(&s.owner, people, owners);
    let decision = planner.decide(Cell {
        field: Field::Owner,
        known: base(Field::Owner).map(|d, s| (d.owner.clone(), map::owner_key(&s.owner))),
        now: Pair { defender: d.owner.clone(), sentinel: map::owner_key(&s.owner) },
        same: &|d, _| owners::same(d.as_deref(), &s.owner, people, owners),
        to_sentinel: &|_| for_sentinel.value().map(map::owner_key),
        to_defender: &|_| for_defender.value().cloned(),
    });
    let moved = base(Field::Owner).map(|d, s| (d.owner.clone(), map::owner_key(&s.owner)));
    let unmapped = match moved {
        Some(known) if known.defender == d.owner && known.sentinel == map::owner_key(&s.owner) => None,
        Some(known) if known.defender == d.owner => for_defender.unmapped(),
        _ if owners::same(d.owner.as_deref(), &s.owner, people, owners) => None,
        _ => for_sentinel.unmapped(),
    };
    planner.plan.unmapped.extend(unmapped.cloned());
    if decision.sentinel.is_none()
        && decision.defender.is_none()
        && let Some(owner) = &policy.also.owner
        && d.owner.is_none()
        && map::owner_key(&s.owner).is_none()
    {
        // Nobody has it, and somebody had the incident that was merged into it.
        goal_d.owner = Some(owner.clone());
        if let Some(owner) = owners::to_sentinel(Some(owner), people, owners).value() {
            goal_s.owner = owner.clone();
        }
        rules[Field::Owner as usize] = Some((Side::Defender, Rule::Inherited));
    }
    if decision.sentinel.is_some()
        && let Some(owner) = for_sentinel.value()
    {
        goal_s.owner = owner.clone();
        goal_s.labels.retain(|label| label.auto || !own.is_owner(&label.name));
        if let Mapped::Instead { label: Some(name), .. } = &for_sentinel {
            goal_s.labels.push(Label { name: name.clone(), auto: false });
        }
        rules[Field::Owner as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some(owner) = decision.defender {
        goal_d.owner = owner;
        rules[Field::Owner as usize] = Some((Side::Defender, decision.rule));
    }

    verdict(&mut planner, seen, (d, s), (&mut goal_d, &mut goal_s), &mut rules, defender.redirect.as_deref());

    // Tags.
    let rule = policy.of(Field::Tags).direction;
    let (to_sentinel, to_defender) = (rule.to_sentinel(), rule.to_defender() && !planner.merged);
    let now = Pair { defender: map::defender_tags(d, own), sentinel: map::sentinel_tags(s, own) };
    let known = known_names(&seen.state, own, &now);
    let mut goal = merge_names(known.as_ref(), &now, to_sentinel, to_defender);
    if planner.merged
        && rule.to_defender()
        && merge_names(known.as_ref(), &now, to_sentinel, true).defender != now.defender
    {
        planner.plan.withheld.push((Side::Defender, Field::Tags));
    }
    for name in &policy.also.tags {
        goal.sentinel.insert(name.to_lowercase());
        if to_defender {
            goal.defender.insert(name.to_lowercase());
        }
    }
    let contested = known.as_ref().map(|known| contested(known, &now)).unwrap_or_default();
    for (winner, goal, now) in
        [(Side::Defender, &goal.sentinel, &now.sentinel), (Side::Sentinel, &goal.defender, &now.defender)]
    {
        if goal.symmetric_difference(now).any(|name| contested.contains(name)) {
            let (kept, lost) =
                (planner.shown.on(winner, Field::Tags), planner.shown.on(winner.other(), Field::Tags));
            let rule = match (planner.merged, to_sentinel && to_defender) {
                (true, _) => Rule::Merged,
                (false, true) => Rule::PolicyWins,
                (false, false) => Rule::OneWay,
            };
            planner.plan.clashes.push(Clash { field: Field::Tags, winner, kept, lost, rule });
        }
    }
    let why = if known.is_some() { Rule::OneSided } else { Rule::FirstMeeting };
    if goal.sentinel != now.sentinel {
        goal_s.labels = map::labels_for_sentinel(&goal.sentinel, &goal_s.labels, d, own);
        rules[Field::Tags as usize] = Some((Side::Sentinel, why));
    }
    if goal.defender != now.defender {
        goal_d.tags = map::tags_for_defender(&goal.defender, d, s, own);
    }

    determination(&mut planner, seen, (d, s), (&mut goal_d, &mut goal_s), &mut rules);

    // What nobody edits.
    let told = |d: &DefenderSays| map::facts_to_sentinel(&defender.id, web_url, d, policy);
    let decision = planner.decide(Cell {
        field: Field::Facts,
        known: base(Field::Facts).map(|d, s| (told(d), map::facts_in_sentinel(s, own))),
        now: Pair { defender: told(d), sentinel: map::facts_in_sentinel(s, own) },
        same: &|d, s| map::facts_same(d.as_ref(), s),
        to_sentinel: &|d| d.clone(),
        to_defender: &|_| None,
    });
    if decision.sentinel.is_some() {
        map::tell_facts(&defender.id, web_url, d, policy, &mut goal_s);
        rules[Field::Facts as usize] = Some((Side::Sentinel, decision.rule));
    }

    // What a side would not take, or what is not to be tried in this round.
    let goal = Shown::of(&goal_d, &goal_s, policy);
    for side in [Side::Sentinel, Side::Defender] {
        for field in Field::ALL {
            let moves = match side {
                Side::Sentinel => !same_words_sentinel(own, field, s, &goal_s),
                Side::Defender => !same_words_defender(own, field, d, &goal_d),
            };
            if !moves {
                continue;
            }
            let value = hash(&goal.on(side, field));
            let refused =
                seen.state.refused.iter().find(|r| (r.side, r.field, r.value) == (side, field, value));
            if let Some(refused) = refused {
                planner.plan.unsaid.push((field, format!("{side} refused it: {}", refused.why)));
            } else if !policy.mute.contains(&(side, field)) {
                continue;
            }
            planner.plan.withheld.push((side, field));
            match side {
                Side::Sentinel => copy_sentinel(own, field, s, &mut goal_s),
                Side::Defender => copy_defender(field, d, &mut goal_d),
            }
            if (side, field) == (Side::Sentinel, Field::Status) && s.status != SentinelStatus::Closed {
                // What belongs to the closing waits with it: an open twin has no verdict, but the PUT would carry one.
                for with in [Field::Verdict, Field::Comment] {
                    let before = goal_s.clone();
                    copy_sentinel(own, with, s, &mut goal_s);
                    if before != goal_s {
                        planner.plan.withheld.push((side, with));
                    }
                }
            }
        }
    }
    // The tags that are written may be fewer than what was decided.
    let goal =
        Pair { defender: map::defender_tags(&goal_d, own), sentinel: map::sentinel_tags(&goal_s, own) };

    // Writes, and the reason for each value in them.
    let after = Shown::of(&goal_d, &goal_s, policy);
    let Planner { mut plan, shown: agreed, .. } = planner;
    // From here on it counts what Sentinel shows, even if it is not to be believed.
    let s = &sentinel.says;
    let shown = Shown::of(d, s, policy);
    let taken_back =
        |field| overwritten.as_ref().is_some_and(|before| !same_words_sentinel(own, field, s, before));
    for field in Field::ALL.into_iter().filter(|field| taken_back(*field)) {
        // Nobody can tell it from a person who has set everything back by hand.
        let (kept, lost) = (agreed.defender(field), shown.sentinel(field));
        plan.clashes.push(Clash { field, winner: Side::Defender, kept, lost, rule: Rule::LateCreate });
    }
    for field in Field::ALL {
        for side in [Side::Sentinel, Side::Defender] {
            let (before, after) = (shown.on(side, field), after.on(side, field));
            if before == after {
                continue;
            }
            let rule = match rules[field as usize] {
                Some((decided, rule)) if decided == side => rule,
                _ if side == Side::Sentinel && taken_back(field) => Rule::LateCreate,
                _ => why_else(field, why, goal_s.status == SentinelStatus::Closed),
            };
            plan.changes.push(Change { side, field, before, after, rule });
        }
    }
    let moves = |same: &dyn Fn(Field) -> bool| Field::ALL.into_iter().filter(|f| !same(*f)).collect();
    let mut sentinel_fields: Vec<Field> = moves(&|field| same_words_sentinel(own, field, s, &goal_s));
    let mut defender_fields: Vec<Field> = moves(&|field| same_words_defender(own, field, d, &goal_d));
    for (side, fields) in [(Side::Sentinel, &sentinel_fields), (Side::Defender, &defender_fields)] {
        let version = match side {
            Side::Defender => format_instant(defender.updated),
            Side::Sentinel => sentinel.etag.clone(),
        };
        for &field in
            fields.iter().filter(|field| set_back(&seen.state, own, **field, side, &version, (d, s)))
        {
            if !plan.clashes.iter().any(|clash| clash.field == field) {
                let winner = side.other();
                let (kept, lost) = (shown.on(winner, field), shown.on(side, field));
                plan.clashes.push(Clash { field, winner, kept, lost, rule: Rule::SetBack });
            }
        }
    }

    // An unproved write may still be in flight, or hide behind a read that lags: another write settles it, not a read.
    // Sentinel refuses a late one once its etag has moved on, so there only one at the version we see is open. Graph
    // takes anything at any time, so there only a newer version that shows the newest of them is proof.
    for (index, intent) in seen.state.intents.iter().enumerate() {
        let fields = match intent.side {
            Side::Sentinel if intent.at != sentinel.etag => continue,
            // What was merged away takes none of our words, and its status is not ours to say.
            Side::Defender if d.status == DefenderStatus::Redirected => continue,
            Side::Sentinel => &mut sentinel_fields,
            Side::Defender => &mut defender_fields,
        };
        for &field in &intent.fields {
            let newer = seen.state.intents[index + 1..]
                .iter()
                .any(|later| later.side == intent.side && later.fields.contains(&field));
            let moved_on = intent.at != format_instant(defender.updated);
            let shown = moved_on && same_words_defender(own, field, d, &intent.defender);
            let proved = intent.side == Side::Defender && (newer || shown);
            let withheld = plan.withheld.contains(&(intent.side, field));
            if !proved && !withheld && !fields.contains(&field) {
                fields.push(field);
                let value = after.on(intent.side, field);
                let (before, after) = (value.clone(), value);
                plan.changes.push(Change { side: intent.side, field, before, after, rule: Rule::Confirm });
            }
        }
    }

    if !sentinel_fields.is_empty() {
        make_closed_valid(&mut goal_s);
    }
    if !sentinel_fields.is_empty() {
        plan.intents.push(Intent {
            side: Side::Sentinel,
            fields: sentinel_fields,
            names: map::sentinel_tags(s, own).symmetric_difference(&goal.sentinel).cloned().collect(),
            at: sentinel.etag.clone(),
            defender: goal_d.clone(),
            sentinel: goal_s.clone(),
        });
        plan.sentinel = Some(SentinelWrite::over(sentinel, goal_s.clone()));
    }
    plan.defender_first = s.status == SentinelStatus::Closed
        && plan.sentinel.as_ref().is_some_and(|w| w.says.status != s.status);
    if !defender_fields.is_empty() {
        plan.defender = Some(patch(&goal_d, &defender_fields));
        plan.intents.push(Intent {
            side: Side::Defender,
            fields: defender_fields,
            names: map::defender_tags(d, own).symmetric_difference(&goal.defender).cloned().collect(),
            at: format_instant(defender.updated),
            defender: goal_d,
            sentinel: goal_s,
        });
    }
    plan
}

/// What Sentinel said before an early create of ours arrived late, if that is what it looks like: the twin shows in every
/// field what that create said, and we know of newer words that both sides agreed on.
fn before_late_create(
    seen: &Snapshot,
    own: &LabelRules,
    sentinel: &SentinelIncident,
) -> Option<SentinelSays> {
    let (known, late) = (seen.state.known.as_ref()?, seen.state.late.as_ref()?);
    let shows = |says: &SentinelSays| {
        Field::ALL.into_iter().all(|field| same_words_sentinel(own, field, &sentinel.says, says))
    };
    let overwritten = sentinel.etag != known.sentinel_etag
        && sentinel.modified - late.since < LATE_FOR
        && late.says.iter().any(shows)
        && !shows(&known.sentinel);
    overwritten.then(|| known.sentinel.clone())
}

/// Whether a value that is to be overwritten may be somebody's who set it back: an earlier write of ours got no answer,
/// its side has moved since, and shows what it showed before. If that write was lost nothing was set back; the reads
/// cannot tell, and the journal shall rather have a clash too many.
fn set_back(
    state: &LinkState,
    own: &LabelRules,
    field: Field,
    side: Side,
    version: &str,
    (d, s): (&DefenderSays, &SentinelSays),
) -> bool {
    let Some(known) = state.known.as_ref().filter(|_| field != Field::Facts) else { return false };
    let shows = |defender: &DefenderSays, sentinel: &SentinelSays| match side {
        Side::Defender => same_words_defender(own, field, d, defender),
        Side::Sentinel => same_words_sentinel(own, field, s, sentinel),
    };
    let mut doubt = false;
    for intent in state.intents.iter().filter(|i| i.side == side && i.fields.contains(&field)) {
        if shows(&intent.defender, &intent.sentinel) {
            // We have meant it ourselves since.
            doubt = false;
        } else if intent.at != version {
            doubt = true;
        }
    }
    doubt && shows(&known.defender, &known.sentinel)
}

/// The rule of a change that no scalar decision booked: tags, or a verdict that went along with the status.
fn why_else(field: Field, tags: Rule, closed: bool) -> Rule {
    match field {
        Field::Tags => tags,
        Field::Verdict | Field::Comment if closed => Rule::Closing,
        _ => Rule::OneSided,
    }
}

/// Classification and comment, which Sentinel can only say while Closed.
///
/// Unsaid, or an `Undetermined` that came with closing, never clears a Defender verdict. When the incident comes to be
/// closed and Sentinel says nothing, it is filled in from Defender.
fn verdict(
    planner: &mut Planner<'_>,
    seen: &Snapshot,
    (d, s): (&DefenderSays, &SentinelSays),
    (goal_d, goal_s): (&mut DefenderSays, &mut SentinelSays),
    rules: &mut [Option<(Side, Rule)>; FIELDS],
    redirect: Option<&str>,
) {
    let closing = goal_s.status == SentinelStatus::Closed;
    if planner.policy.native_twin {
        return;
    }
    if planner.merged {
        // The loser's "Closed" is no verdict; it carries a pointer, and what was said before stays.
        if closing && s.status != SentinelStatus::Closed {
            goal_s.classification = Some(SentinelClassification::Undetermined);
            goal_s.reason = None;
            goal_s.comment = Some(match redirect {
                Some(id) => format!("Merged in Defender into incident {id}."),
                None => "Merged in Defender into another incident.".to_owned(),
            });
            return;
        }
        // Nothing of it is written now. What moved comes up again if the incident comes out of the merge.
        let own = &planner.policy.labels;
        let Some(known) = &seen.state.known else { return };
        for field in [Field::Verdict, Field::Comment] {
            let direction = planner.policy.of(Field::Verdict).direction;
            let moved = direction.to_sentinel() && !same_words_defender(own, field, d, &known.defender)
                || direction.to_defender() && !same_words_sentinel(own, field, s, &known.sentinel);
            if moved {
                planner.plan.withheld.push((Side::Defender, field));
            }
        }
        return;
    }
    let flows_to_sentinel = planner.policy.of(Field::Verdict).direction.to_sentinel();
    let policy = planner.policy;
    let d_verdict = (d.classification.clone(), d.determination.clone());
    let base = Base::of(&seen.state, &policy.labels, Field::Verdict, d, s);
    let s_verdict = said_verdict(s, base.sentinel());
    match &s_verdict {
        Some(said) => {
            let decision = planner.decide(Cell {
                field: Field::Verdict,
                known: base
                    .map(|d, s| ((d.classification.clone(), d.determination.clone()), Some(raw_verdict(s)))),
                now: Pair { defender: d_verdict.clone(), sentinel: Some(said.clone()) },
                same: &|d, s| s.as_ref().is_some_and(|s| map::verdict_same(d, s)),
                to_sentinel: &|d| map::verdict_to_sentinel(d).map(Some),
                to_defender: &|s| s.as_ref().and_then(|s| map::verdict_to_defender(s, policy)),
            });
            if let Some(Some((classification, reason))) = decision.sentinel.filter(|_| closing) {
                goal_s.classification = Some(classification);
                goal_s.reason = reason;
                rules[Field::Verdict as usize] = Some((Side::Sentinel, decision.rule));
            }
            if let Some((classification, determination)) = decision.defender {
                goal_d.classification = classification;
                goal_d.determination = determination;
                rules[Field::Verdict as usize] = Some((Side::Defender, decision.rule));
            }
        }
        None if !closing => {}
        None => {
            let filled = map::verdict_to_sentinel(&d_verdict).filter(|_| flows_to_sentinel);
            // What it shows goes before what was last proved: an announced write may have closed it, and somebody has
            // opened it again since.
            let now_closing = s.status != SentinelStatus::Closed
                || base.sentinel().is_none_or(|known| known.status != SentinelStatus::Closed);
            let defender_moved = base.defender().is_none_or(|k| {
                (&k.classification, &k.determination) != (&d.classification, &d.determination)
            });
            if now_closing || defender_moved {
                let (classification, reason) = filled.unwrap_or((SentinelClassification::Undetermined, None));
                if s.status != SentinelStatus::Closed
                    || (d.classification != DefenderClassification::Unknown && flows_to_sentinel)
                {
                    goal_s.classification = Some(classification);
                    goal_s.reason = reason;
                }
            }
        }
    }

    let base = Base::of(&seen.state, &policy.labels, Field::Comment, d, s);
    let d_comment = map::plain_option(d.resolving_comment.as_deref());
    let s_comment =
        if s.status == SentinelStatus::Closed { map::plain_option(s.comment.as_deref()) } else { None };
    let was_closed = base.sentinel().is_some_and(|s| s.status == SentinelStatus::Closed);
    let cleared = s_comment.is_none()
        && s.status == SentinelStatus::Closed
        && was_closed
        && base.sentinel().is_some_and(|s| map::plain_option(s.comment.as_deref()).is_some());
    if s_comment.is_some() || cleared {
        let closed_comment = |s: &SentinelSays| match s.status {
            SentinelStatus::Closed => map::plain_option(s.comment.as_deref()),
            _ => None,
        };
        let decision = planner.decide(Cell {
            field: Field::Comment,
            known: base.map(|d, s| (map::plain_option(d.resolving_comment.as_deref()), closed_comment(s))),
            now: Pair { defender: d_comment, sentinel: s_comment },
            same: &|d, s| d == s,
            to_sentinel: &|d| Some(d.clone()),
            to_defender: &|s| Some(s.clone()),
        });
        if let Some(comment) = decision.sentinel.filter(|_| closing) {
            goal_s.comment = comment;
            rules[Field::Comment as usize] = Some((Side::Sentinel, decision.rule));
        }
        if let Some(comment) = decision.defender {
            goal_d.resolving_comment = comment;
            rules[Field::Comment as usize] = Some((Side::Defender, decision.rule));
        }
    } else if flows_to_sentinel && closing {
        let defender_moved =
            base.defender().is_none_or(|k| map::plain_option(k.resolving_comment.as_deref()) != d_comment);
        if s.status != SentinelStatus::Closed || !was_closed || defender_moved {
            goal_s.comment = d_comment;
        }
    }
    if !closing && s.status == SentinelStatus::Closed {
        // Reopened by Defender. What Sentinel said has been merged above; while open it says nothing.
        goal_s.classification = None;
        goal_s.reason = None;
        goal_s.comment = None;
    }
}

/// The determination, which Sentinel can say only as a label. The label is an analyst's choice when it was set or
/// changed; a label that is gone is no choice, because programs that replace the list drop it unknowingly.
fn determination(
    planner: &mut Planner<'_>,
    seen: &Snapshot,
    (d, s): (&DefenderSays, &SentinelSays),
    (goal_d, goal_s): (&mut DefenderSays, &mut SentinelSays),
    rules: &mut [Option<(Side, Rule)>; FIELDS],
) {
    let policy = planner.policy;
    let own = &policy.labels;
    if own.determination.is_none() {
        return;
    }
    let label = map::determination_label(&s.labels, own);
    if planner.merged {
        let known = seen.state.known.as_ref();
        let moved =
            known.is_some_and(|known| !same_words_sentinel(own, Field::Determination, s, &known.sentinel));
        if moved && label.is_some() && policy.of(Field::Determination).direction.to_defender() {
            planner.plan.withheld.push((Side::Defender, Field::Determination));
        }
        return;
    }
    let base = Base::of(&seen.state, own, Field::Determination, d, s);
    let known_closed =
        base.sentinel().filter(|s| s.status == SentinelStatus::Closed).map(|s| s.reason.clone());
    let known = base.map(|d, s| {
        let verdict = (d.classification.clone(), d.determination.clone());
        (verdict, map::determination_label(&s.labels, own))
    });
    let reason = match goal_s.status {
        SentinelStatus::Closed => goal_s.reason.clone(),
        _ => map::verdict_to_sentinel(&(goal_d.classification.clone(), goal_d.determination.clone()))
            .and_then(|(_, reason)| reason),
    };
    let chosen = |label: &str, classification: &DefenderClassification| {
        Some(DefenderDetermination::parse(label)).filter(|word| offered(classification, word))
    };
    if rules[Field::Verdict as usize].is_some_and(|(side, _)| side == Side::Defender) {
        // Sentinel's verdict goes to Defender: a label that suits it is the finer word.
        if let Some(word) = label.as_deref().and_then(|label| chosen(label, &goal_d.classification)) {
            goal_d.determination = word;
            return;
        }
        let verdict = (goal_d.classification.clone(), goal_d.determination.clone());
        let word = map::determination_to_sentinel(&verdict, reason.as_ref(), policy);
        // A label that was gone, or never there, for the same word stays so, as below.
        let unmoved = label.is_none()
            && known.as_ref().is_some_and(|known| {
                let open = || map::verdict_to_sentinel(&known.defender).and_then(|(_, reason)| reason);
                let reason = known_closed.unwrap_or_else(open);
                map::determination_to_sentinel(&known.defender, reason.as_ref(), policy) == word
            });
        if policy.of(Field::Determination).direction.to_sentinel() && label != word && !unmoved {
            map::set_determination(&mut goal_s.labels, word.as_deref(), own);
            rules[Field::Determination as usize] = Some((Side::Sentinel, Rule::OneSided));
        }
        return;
    }
    let verdict = (goal_d.classification.clone(), goal_d.determination.clone());
    let classification = verdict.0.clone();
    let wanted =
        |verdict: &map::DefenderVerdict| map::determination_to_sentinel(verdict, reason.as_ref(), policy);
    // A label that is gone did not move, unless Defender's word moved too.
    let now = match &known {
        Some(known) if label.is_none() => known.sentinel.clone(),
        _ => label.clone(),
    };
    let decision = planner.decide(Cell {
        field: Field::Determination,
        known,
        now: Pair { defender: verdict, sentinel: now },
        same: &|d, label| match label {
            Some(label) => DefenderDetermination::parse(label) == d.1,
            None => wanted(d).is_none(),
        },
        to_sentinel: &|d| Some(wanted(d)),
        to_defender: &|label| {
            let word = chosen(label.as_deref()?, &classification)?;
            Some((classification.clone(), word))
        },
    });
    if let Some(word) = decision.sentinel
        && word != label
    {
        map::set_determination(&mut goal_s.labels, word.as_deref(), own);
        rules[Field::Determination as usize] = Some((Side::Sentinel, decision.rule));
    }
    if let Some((_, word)) = decision.defender {
        goal_d.determination = word;
        rules[Field::Verdict as usize] = Some((Side::Defender, decision.rule));
    }
}

fn raw_verdict(s: &SentinelSays) -> map::SentinelVerdict {
    match (&s.status, &s.classification) {
        (SentinelStatus::Closed, Some(classification)) => (classification.clone(), s.reason.clone()),
        _ => (SentinelClassification::Undetermined, None),
    }
}

/// Sentinel's verdict, if it says one. `Undetermined` counts only where a closed incident said something else before.
fn said_verdict(s: &SentinelSays, known: Option<&SentinelSays>) -> Option<map::SentinelVerdict> {
    if s.status != SentinelStatus::Closed {
        return None;
    }
    let verdict = (s.classification.clone()?, s.reason.clone());
    if verdict.0 != SentinelClassification::Undetermined {
        return Some(verdict);
    }
    let said_before = known.is_some_and(|known| {
        known.status == SentinelStatus::Closed
            && known.classification.as_ref().is_some_and(|c| *c != SentinelClassification::Undetermined)
    });
    said_before.then_some(verdict)
}

/// A closed incident always goes out with a valid pair: a service in a strict mood refuses anything else.
fn make_closed_valid(says: &mut SentinelSays) {
    if says.status != SentinelStatus::Closed {
        return;
    }
    let classification = says.classification.get_or_insert(SentinelClassification::Undetermined).clone();
    if !map::valid_pair(&classification, says.reason.as_ref()) {
        says.reason = map::default_reason(&classification);
    }
}

/// Who moved later, if that can be proved: both modified times exceed the agreed ones, and lie far enough apart.
fn latest(known: Option<&Known>, defender: OffsetDateTime, sentinel: OffsetDateTime) -> Option<Side> {
    let known = known?;
    let both_newer = defender > known.defender_updated && sentinel > known.sentinel_modified;
    match defender - sentinel {
        _ if !both_newer => None,
        gap if gap.abs() <= LATEST_MARGIN => None,
        gap if gap.is_negative() => Some(Side::Sentinel),
        _ => Some(Side::Defender),
    }
}

/// Whose last change was a person's. Graph marks a program's with `API-App:` (`graph.md` §8.5) and its engine's with
/// nothing or its product's name; Sentinel's REST form says nothing, and its edits are taken for a person's.
fn person(defender: &DefenderIncident) -> Side {
    match defender.modified_by.as_deref() {
        Some(by) if by.contains('@') && !by.to_lowercase().starts_with("api-app:") => Side::Defender,
        _ => Side::Sentinel,
    }
}

/// A stable hash of a value as it is shown (FNV-1a): kept in the store instead of the value.
pub fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What both sides last agreed on for one field: the stored agreement, or the newest unproved write that `now` proves
/// to have landed, because its side shows exactly what it would have put there.
enum Base<'a> {
    None,
    Known(&'a DefenderSays, &'a SentinelSays),
}

impl<'a> Base<'a> {
    fn of(state: &'a LinkState, own: &LabelRules, field: Field, d: &DefenderSays, s: &SentinelSays) -> Self {
        let mut base = match &state.known {
            Some(known) => Base::Known(&known.defender, &known.sentinel),
            None => Base::None,
        };
        for intent in state.intents.iter().filter(|intent| intent.fields.contains(&field)) {
            let shows = match intent.side {
                Side::Defender => same_words_defender(own, field, d, &intent.defender),
                Side::Sentinel => same_words_sentinel(own, field, s, &intent.sentinel),
            };
            let differs = match (&base, intent.side) {
                (Base::None, _) => true,
                (Base::Known(known, _), Side::Defender) => !same_words_defender(own, field, d, known),
                (Base::Known(_, known), Side::Sentinel) => !same_words_sentinel(own, field, s, known),
            };
            if shows && differs {
                base = Base::Known(&intent.defender, &intent.sentinel);
            }
        }
        base
    }

    fn map<D, S>(self, view: impl Fn(&DefenderSays, &SentinelSays) -> (D, S)) -> Option<Pair<D, S>> {
        match self {
            Base::None => None,
            Base::Known(d, s) => {
                let (defender, sentinel) = view(d, s);
                Some(Pair { defender, sentinel })
            }
        }
    }

    fn sentinel(&self) -> Option<&'a SentinelSays> {
        match self {
            Base::None => None,
            Base::Known(_, s) => Some(s),
        }
    }

    fn defender(&self) -> Option<&'a DefenderSays> {
        match self {
            Base::None => None,
            Base::Known(d, _) => Some(d),
        }
    }
}

/// The same proof for tags, member by member: a set that somebody added to meanwhile still proves the rest.
fn known_names(state: &LinkState, own: &LabelRules, now: &Pair<Names, Names>) -> Option<Pair<Names, Names>> {
    let view = |d: &DefenderSays, s: &SentinelSays| Pair {
        defender: map::defender_tags(d, own),
        sentinel: map::sentinel_tags(s, own),
    };
    let mut known = state.known.as_ref().map(|known| view(&known.defender, &known.sentinel));
    for intent in state.intents.iter().filter(|intent| intent.fields.contains(&Field::Tags)) {
        let then = view(&intent.defender, &intent.sentinel);
        let Some(base) = &mut known else {
            // A twin that we were creating: it shows our tags, or it was never written.
            if then.sentinel.is_subset(&now.sentinel) {
                known = Some(then);
            }
            continue;
        };
        for name in &intent.names {
            let (shown, meant, agreed) = match intent.side {
                Side::Defender => {
                    (now.defender.contains(name), then.defender.contains(name), base.defender.contains(name))
                }
                Side::Sentinel => {
                    (now.sentinel.contains(name), then.sentinel.contains(name), base.sentinel.contains(name))
                }
            };
            if shown == meant && shown != agreed {
                put(&mut base.defender, name, then.defender.contains(name));
                put(&mut base.sentinel, name, then.sentinel.contains(name));
            }
        }
    }
    known
}

fn put(names: &mut Names, name: &str, present: bool) {
    if present {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}

/// Whether two Defender states say the same in one field, in Defender's own words.
fn same_words_defender(own: &LabelRules, field: Field, a: &DefenderSays, b: &DefenderSays) -> bool {
    match field {
        Field::Title => a.title == b.title,
        Field::Description => a.description == b.description,
        Field::Severity => a.severity == b.severity,
        Field::Status => a.status == b.status,
        Field::Owner => a.owner == b.owner,
        Field::Verdict => a.classification == b.classification && a.determination == b.determination,
        Field::Comment => {
            map::plain_option(a.resolving_comment.as_deref())
                == map::plain_option(b.resolving_comment.as_deref())
        }
        Field::Tags => map::defender_tags(a, own) == map::defender_tags(b, own),
        // Written with the verdict.
        Field::Determination => true,
        // Nobody writes it there. Not asked for is not moved.
        Field::Facts => a.facts.is_none() || b.facts.is_none() || a.facts == b.facts,
    }
}

/// Whether two Sentinel states say the same in one field, in Sentinel's own words.
fn same_words_sentinel(own: &LabelRules, field: Field, a: &SentinelSays, b: &SentinelSays) -> bool {
    match field {
        Field::Title => map::plain(&a.title) == map::plain(&b.title),
        Field::Description => {
            map::description_without_block(a.description.as_deref())
                == map::description_without_block(b.description.as_deref())
        }
        Field::Severity => a.severity == b.severity,
        Field::Status => a.status == b.status,
        Field::Owner => {
            let label = |says: &SentinelSays| {
                says.labels
                    .iter()
                    .filter(|l| own.is_owner(&l.name))
                    .map(|l| l.name.clone())
                    .collect::<Vec<_>>()
            };
            map::owner_key(&a.owner) == map::owner_key(&b.owner) && label(a) == label(b)
        }
        // An open incident says nothing; a closed one may say that nothing was determined. That is not the same.
        Field::Verdict => closed(a) == closed(b) && raw_verdict(a) == raw_verdict(b),
        Field::Comment => {
            closed(a) == closed(b)
                && map::plain_option(a.comment.as_deref()) == map::plain_option(b.comment.as_deref())
        }
        Field::Tags => map::sentinel_tags(a, own) == map::sentinel_tags(b, own),
        Field::Determination => {
            map::determination_label(&a.labels, own) == map::determination_label(&b.labels, own)
        }
        Field::Facts => map::facts_in_sentinel(a, own) == map::facts_in_sentinel(b, own),
    }
}

fn closed(says: &SentinelSays) -> bool {
    says.status == SentinelStatus::Closed
}

/// Only the members that change.
fn patch(goal: &DefenderSays, fields: &[Field]) -> DefenderPatch {
    let mut patch = DefenderPatch::default();
    for field in fields {
        match field {
            Field::Title => patch.title = goal.title.clone(),
            Field::Description => patch.description = Some(goal.description.clone()),
            Field::Severity => patch.severity = Some(goal.severity.clone()),
            Field::Status => patch.status = Some(goal.status.clone()),
            Field::Owner => patch.owner = Some(goal.owner.clone()),
            Field::Verdict => patch.verdict = Some((goal.classification.clone(), goal.determination.clone())),
            Field::Comment => patch.resolving_comment = Some(goal.resolving_comment.clone()),
            Field::Tags => patch.tags = Some(goal.tags.clone()),
            Field::Determination | Field::Facts => {}
        }
    }
    patch
}

// ---- agreeing ----------------------------------------------------------------------------------------------------

/// What the carried-out writes answered. `None`: not written, or not answered.
#[derive(Clone, Debug, Default)]
pub struct Landed {
    /// Sentinel's answer to the PUT.
    pub sentinel: Option<SentinelIncident>,
    /// Graph's answer to the PATCH.
    pub defender: Option<DefenderIncident>,
    /// The twin as it was read after everything that hangs on it had been written.
    pub after: Option<SentinelIncident>,
}

/// What to remember after all writes of a plan have landed, and whether the answers show that somebody else moved
/// something meanwhile, so that the link needs another look.
///
/// The *answer* for the members we wrote, the *read* for all others: then a change that slipped in between the read and
/// the answer is seen as that side's move the next time.
pub fn agree(seen: &Snapshot, plan: &Plan, landed: &Landed) -> Option<(LinkState, bool)> {
    let defender = seen.defender.as_ref()?;
    let written = |side| plan.intents.iter().find(|intent| intent.side == side);
    let own = &plan.labels;
    let mut again = false;

    let mut d_says = defender.says.clone();
    let mut d_updated = defender.updated;
    if let Some(intent) = written(Side::Defender) {
        let answer = landed.defender.as_ref()?;
        d_updated = answer.updated;
        for field in Field::ALL {
            if intent.fields.contains(&field) {
                if same_words_defender(own, field, &answer.says, &intent.defender) {
                    copy_defender(field, &answer.says, &mut d_says);
                } else {
                    // Somebody wrote it in the same instant: keep what we meant, so that it shows as their move.
                    copy_defender(field, &intent.defender, &mut d_says);
                    again = true;
                }
            } else {
                again |= !same_words_defender(own, field, &answer.says, &defender.says);
            }
        }
    }

    let (s_says, s_modified, s_etag) = match (&seen.sentinel, written(Side::Sentinel)) {
        (None, _) => {
            let answer = landed.sentinel.as_ref()?;
            (answer.says.clone(), answer.modified, answer.etag.clone())
        }
        (Some(sentinel), None) => (sentinel.says.clone(), sentinel.modified, sentinel.etag.clone()),
        (Some(sentinel), Some(intent)) => {
            let answer = landed.sentinel.as_ref()?;
            let mut says = sentinel.says.clone();
            for field in Field::ALL {
                if intent.fields.contains(&field) {
                    copy_sentinel(own, field, &answer.says, &mut says);
                } else {
                    again |= !same_words_sentinel(own, field, &answer.says, &sentinel.says);
                }
            }
            (says, answer.modified, answer.etag.clone())
        }
    };
    let (mut s_modified, mut s_etag) = (s_modified, s_etag);
    if let Some(after) = &landed.after
        && after.modified >= s_modified
    {
        let answered = landed.sentinel.as_ref().or(seen.sentinel.as_ref());
        let moved = |field: &Field| {
            answered.is_some_and(|then| !same_words_sentinel(own, *field, &after.says, &then.says))
        };
        if Field::ALL.iter().any(moved) {
            again = true;
        } else {
            (s_modified, s_etag) = (after.modified, after.etag.clone());
        }
    }
    let (acted_defender, acted_sentinel) = (Some(d_updated), Some(s_modified));
    let (mut d_says, mut s_says) = (d_says, s_says);
    if let Some(before) = &seen.state.known {
        if d_says.facts.is_none() {
            d_says.facts.clone_from(&before.defender.facts);
        }
        // What is withheld was not agreed on: it moved, and comes up again.
        for &(_, field) in &plan.withheld {
            let tags = (d_says.tags.clone(), s_says.labels.clone());
            copy_defender(field, &before.defender, &mut d_says);
            copy_sentinel(own, field, &before.sentinel, &mut s_says);
            if field == Field::Tags {
                agree_on_shared_tags(own, tags, (&mut d_says.tags, &mut s_says.labels));
            }
        }
    } else if seen.sentinel.is_none() {
        // A twin that was made without them: Defender's values are news to it.
        for &(_, field) in &plan.withheld {
            copy_defender(field, &silent(), &mut d_says);
        }
    }
    let known = Known {
        defender: d_says,
        sentinel: s_says,
        defender_updated: d_updated,
        sentinel_modified: s_modified,
        sentinel_etag: s_etag,
    };
    let late = late_creates(seen, own, s_modified, written(Side::Sentinel).is_some());
    let state = seen.state.clone();
    Some((
        LinkState { known: Some(known), intents: Vec::new(), acted_defender, acted_sentinel, late, ..state },
        again,
    ))
}

/// The creates that may still arrive once both sides have agreed: those that had got no answer before this run, for a
/// while. One that has just been taken back has arrived.
fn late_creates(seen: &Snapshot, own: &LabelRules, modified: OffsetDateTime, wrote: bool) -> Option<Late> {
    let create = |intent: &&Intent| intent.side == Side::Sentinel && intent.at.is_empty();
    let says: Vec<SentinelSays> =
        seen.state.intents.iter().filter(create).map(|intent| intent.sentinel.clone()).collect();
    if !says.is_empty() {
        return Some(Late { says, since: modified });
    }
    let arrived = |sentinel: &SentinelIncident| wrote && before_late_create(seen, own, sentinel).is_some();
    let late = seen.state.late.clone()?;
    (modified - late.since < LATE_FOR && !seen.sentinel.as_ref().is_some_and(arrived)).then_some(late)
}

/// Of tags that are withheld as a whole, those that both sides have by now, or have no more, are agreed on all the same.
fn agree_on_shared_tags(
    own: &LabelRules,
    (d_now, s_now): (Vec<String>, Vec<Label>),
    (d_known, s_known): (&mut Vec<String>, &mut Vec<Label>),
) {
    let name = |text: &str| text.trim().to_lowercase();
    let on_defender: Names = d_now.iter().map(|tag| name(tag)).collect();
    let on_sentinel: Names =
        s_now.iter().filter(|label| !label.auto).map(|label| name(&label.name)).collect();
    let differs = |tag: &str| on_defender.contains(&name(tag)) != on_sentinel.contains(&name(tag));
    d_known.retain(|tag| differs(tag));
    d_known.extend(d_now.into_iter().filter(|tag| !differs(tag)));
    let stays = |label: &Label| label.auto || own.own(&label.name) || differs(&label.name);
    s_known.retain(stays);
    s_known.extend(s_now.into_iter().filter(|label| !stays(label)));
}

/// A Defender incident that says nothing.
fn silent() -> DefenderSays {
    DefenderSays {
        title: None,
        description: None,
        severity: DefenderSeverity::Other(String::new()),
        status: DefenderStatus::Other(String::new()),
        owner: None,
        classification: DefenderClassification::Unknown,
        determination: DefenderDetermination::Unknown,
        resolving_comment: None,
        tags: Vec::new(),
        facts: Some(Facts::default()),
    }
}

/// The PUT that closes a twin whose incident is no longer for the route.
pub fn left_out(seen: &Snapshot, why: &str, policy: &Policy) -> Option<Plan> {
    let (defender, sentinel) = (seen.defender.as_ref()?, seen.sentinel.as_ref()?);
    if sentinel.says.status == SentinelStatus::Closed {
        return None;
    }
    let mut goal = sentinel.says.clone();
    goal.status = SentinelStatus::Closed;
    goal.classification = Some(SentinelClassification::Undetermined);
    goal.reason = None;
    goal.comment = Some(format!("Left the route's filter: {why}."));
    let mut plan = Plan::bare(Outcome::Both);
    plan.labels = policy.labels.clone();
    let (before, after) =
        (Shown::of(&defender.says, &sentinel.says, policy), Shown::of(&defender.says, &goal, policy));
    let fields = [Field::Status, Field::Verdict, Field::Comment];
    for field in fields {
        let (before, after) = (before.sentinel(field), after.sentinel(field));
        if before != after {
            plan.changes.push(Change { side: Side::Sentinel, field, before, after, rule: Rule::Filter });
        }
    }
    plan.intents.push(Intent {
        side: Side::Sentinel,
        fields: fields.to_vec(),
        names: Names::new(),
        at: sentinel.etag.clone(),
        defender: defender.says.clone(),
        sentinel: goal.clone(),
    });
    plan.sentinel = Some(SentinelWrite::over(sentinel, goal));
    Some(plan)
}

/// The state to store before writing: what was unproved stays on record beside its successors.
pub fn announce(seen: &Snapshot, plan: &Plan) -> LinkState {
    let mut next = seen.state.clone();
    next.acted_defender = next.acted_defender.max(seen.defender.as_ref().map(|d| d.updated));
    next.acted_sentinel = next.acted_sentinel.max(seen.sentinel.as_ref().map(|s| s.modified));
    for intent in &plan.intents {
        if !next.intents.contains(intent) {
            next.intents.push(intent.clone());
        }
    }
    for side in [Side::Defender, Side::Sentinel] {
        while next.intents.iter().filter(|intent| intent.side == side).count() > MOST_INTENTS {
            let oldest = next.intents.iter().position(|intent| intent.side == side);
            oldest.map(|at| next.intents.remove(at));
        }
    }
    next
}

/// The state to store when one side refused its write for certain: that announcement is taken back, unless an equal
/// one was unproved before.
pub fn take_back(before: &LinkState, announced: &LinkState, plan: &Plan, side: Side) -> LinkState {
    let refused: Vec<&Intent> = plan.intents.iter().filter(|intent| intent.side == side).collect();
    LinkState {
        intents: announced
            .intents
            .iter()
            .filter(|intent| before.intents.contains(intent) || !refused.contains(intent))
            .cloned()
            .collect(),
        ..announced.clone()
    }
}

fn copy_defender(field: Field, from: &DefenderSays, to: &mut DefenderSays) {
    match field {
        Field::Title => to.title.clone_from(&from.title),
        Field::Description => to.description.clone_from(&from.description),
        Field::Severity => to.severity.clone_from(&from.severity),
        Field::Status => to.status.clone_from(&from.status),
        Field::Owner => to.owner.clone_from(&from.owner),
        Field::Verdict => {
            to.classification.clone_from(&from.classification);
            to.determination.clone_from(&from.determination);
        }
        Field::Comment => to.resolving_comment.clone_from(&from.resolving_comment),
        Field::Tags => to.tags.clone_from(&from.tags),
        Field::Determination => {}
        Field::Facts => to.facts.clone_from(&from.facts),
    }
}

fn copy_sentinel(own: &LabelRules, field: Field, from: &SentinelSays, to: &mut SentinelSays) {
    match field {
        Field::Title => to.title.clone_from(&from.title),
        Field::Description => {
            let text = from.description.as_deref();
            to.description = map::description_joined(text, to.description.as_deref());
        }
        Field::Severity => to.severity.clone_from(&from.severity),
        Field::Status => to.status.clone_from(&from.status),
        Field::Owner => {
            to.owner.clone_from(&from.owner);
            copy_labels(&|name| own.is_owner(name), from, to);
        }
        Field::Verdict => {
            to.classification.clone_from(&from.classification);
            to.reason.clone_from(&from.reason);
        }
        Field::Comment => to.comment.clone_from(&from.comment),
        Field::Tags => copy_labels(&|name| !own.own(name), from, to),
        Field::Determination => copy_labels(&|name| own.is_determination(name), from, to),
        Field::Facts => {
            let text = to.description.take();
            to.description = map::description_joined(text.as_deref(), from.description.as_deref());
            to.first_activity.clone_from(&from.first_activity);
            to.last_activity.clone_from(&from.last_activity);
            copy_labels(&|name| own.is_fact(name), from, to);
        }
    }
}

/// Takes the labels of one kind from another list, and keeps all others.
fn copy_labels(kind: &dyn Fn(&str) -> bool, from: &SentinelSays, to: &mut SentinelSays) {
    to.labels.retain(|label| !kind(&label.name));
    to.labels.extend(from.labels.iter().filter(|label| kind(&label.name)).cloned());
}

/// An instant as a version: RFC 3339 with all its digits.
pub fn format_instant(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| at.unix_timestamp_nanos().to_string())
}

/// Reads what [`format_instant`] wrote, or what a service sent.
pub fn parse_instant(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

// ---- showing -----------------------------------------------------------------------------------------------------

const NOTHING: &str = "nothing";
/// How much of a value a printed plan shows, in characters.
const MOST_SHOWN: usize = 80;

/// Every field of both sides as a person reads it.
struct Shown {
    defender: [String; FIELDS],
    sentinel: [String; FIELDS],
}

impl Shown {
    fn of(d: &DefenderSays, s: &SentinelSays, policy: &Policy) -> Self {
        let own = &policy.labels;
        let closed = s.status == SentinelStatus::Closed;
        let person = [&s.owner.upn, &s.owner.email, &s.owner.name, &s.owner.object_id];
        let owner = person.into_iter().find_map(|m| map::plain_option(m.as_deref()));
        Self {
            defender: Field::ALL.map(|field| match field {
                Field::Title => quoted(d.title.as_deref()),
                Field::Description => quoted(d.description.as_deref()),
                Field::Severity => worded(&d.severity),
                Field::Status => worded(&d.status),
                Field::Owner => d.owner.clone().unwrap_or_else(|| NOTHING.to_owned()),
                Field::Verdict => format!("{}/{}", d.classification, d.determination),
                Field::Comment => quoted(d.resolving_comment.as_deref()),
                Field::Tags => listed(&d.tags),
                Field::Determination => worded(&d.determination),
                Field::Facts => d.facts.as_ref().map_or(NOTHING.to_owned(), facts),
            }),
            sentinel: Field::ALL.map(|field| match field {
                Field::Title => quoted(Some(&s.title)),
                Field::Description => {
                    quoted(map::description_without_block(s.description.as_deref()).as_deref())
                }
                Field::Severity => s.severity.to_string(),
                Field::Status => s.status.to_string(),
                Field::Owner => owner.clone().unwrap_or_else(|| NOTHING.to_owned()),
                Field::Verdict => match (&s.classification, &s.reason) {
                    (Some(class), Some(reason)) if closed => format!("{class}/{reason}"),
                    (Some(class), None) if closed => class.to_string(),
                    _ => NOTHING.to_owned(),
                },
                Field::Comment => quoted(s.comment.as_deref().filter(|_| closed)),
                Field::Tags => {
                    let tags = s.labels.iter().filter(|label| !label.auto && !own.own(&label.name));
                    listed(&tags.map(|label| label.name.clone()).collect::<Vec<_>>())
                }
                Field::Determination => {
                    map::determination_label(&s.labels, own).unwrap_or_else(|| NOTHING.to_owned())
                }
                Field::Facts => map::facts_in_sentinel(s, own).to_string(),
            }),
        }
    }

    fn on(&self, side: Side, field: Field) -> String {
        match side {
            Side::Defender => self.defender(field),
            Side::Sentinel => self.sentinel(field),
        }
    }

    fn defender(&self, field: Field) -> String {
        self.defender[field as usize].clone()
    }

    fn sentinel(&self, field: Field) -> String {
        self.sentinel[field as usize].clone()
    }
}

fn facts(facts: &Facts) -> String {
    match facts.total() {
        0 => NOTHING.to_owned(),
        1 => "1 alert".to_owned(),
        n => format!("{n} alerts"),
    }
}

/// A value as it stands in a printed line; the journal keeps it whole.
fn short(value: &str) -> String {
    if value.chars().count() <= MOST_SHOWN {
        return value.to_owned();
    }
    let mut text: String = value.chars().take(MOST_SHOWN - 1).collect();
    text.push('…');
    text
}

/// A word of an enumeration; a null has none.
fn worded(word: &impl fmt::Display) -> String {
    let word = word.to_string();
    if word.is_empty() { NOTHING.to_owned() } else { word }
}

fn quoted(text: Option<&str>) -> String {
    match map::plain_option(text) {
        None => NOTHING.to_owned(),
        Some(text) => format!("{text:?}"),
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { NOTHING.to_owned() } else { format!("[{}]", names.join(", ")) }
}
