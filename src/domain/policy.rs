//! What a route wants for each field: which way changes flow and who wins when both sides moved.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::domain::comments::CommentPolicy;
use crate::domain::filter::Filter;
use crate::domain::model::{DefenderClassification, DefenderDetermination, SentinelReason, Side};
use crate::domain::owners::{OwnerPolicy, People};

/// The members that Lockstep keeps in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    /// `displayName` and `title`.
    Title,
    /// `description` on both sides.
    Description,
    /// `severity` on both sides.
    Severity,
    /// `status` on both sides.
    Status,
    /// `assignedTo` and `owner`.
    Owner,
    /// Classification with determination, and classification with reason.
    Verdict,
    /// `resolvingComment` and `classificationComment`. Ruled by the policy of [`Field::Verdict`].
    Comment,
    /// `customTags` and `labels`.
    Tags,
    /// Defender's determination and the label that keeps it in Sentinel. Ruled by the policy of [`Field::Verdict`].
    Determination,
    /// What nobody edits and Sentinel is told: our block in the description, activity times, labels of our own.
    Facts,
}

/// How many fields there are.
pub const FIELDS: usize = 10;

impl Field {
    /// Every field, in the order in which plans are printed.
    pub const ALL: [Field; FIELDS] = [
        Field::Title,
        Field::Description,
        Field::Severity,
        Field::Status,
        Field::Owner,
        Field::Verdict,
        Field::Comment,
        Field::Tags,
        Field::Determination,
        Field::Facts,
    ];

    /// The name, as in the configuration, the journal and printed plans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Field::Title => "title",
            Field::Description => "description",
            Field::Severity => "severity",
            Field::Status => "status",
            Field::Owner => "owner",
            Field::Verdict => "verdict",
            Field::Comment => "verdict comment",
            Field::Tags => "tags",
            Field::Determination => "determination",
            Field::Facts => "facts",
        }
    }

    /// The policy that a route gives this field when its configuration says nothing: everything flows both ways, but
    /// title and description only to Sentinel, because Defender's engine writes them.
    pub const fn default_policy(self) -> FieldPolicy {
        let direction = match self {
            Field::Title | Field::Description | Field::Facts => Direction::ToSentinel,
            _ => Direction::Both,
        };
        FieldPolicy { direction, wins: Winner::Latest }
    }
}

/// Which way changes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Either side's change goes to the other.
    Both,
    /// Only Defender's changes are copied. A change in Sentinel stays where it is until Defender changes the field.
    ToSentinel,
    /// Only Sentinel's changes are copied.
    ToDefender,
    /// Neither.
    Off,
}

impl Direction {
    /// Whether Defender's changes are copied.
    pub const fn to_sentinel(self) -> bool {
        matches!(self, Direction::Both | Direction::ToSentinel)
    }

    /// Whether Sentinel's changes are copied.
    pub const fn to_defender(self) -> bool {
        matches!(self, Direction::Both | Direction::ToDefender)
    }
}

/// Who wins a clash. A direction of one way decides it before this does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Winner {
    /// The side whose modified time is later, when that can be proved; else Defender. See `plan::latest`.
    Latest,
    /// Defender.
    Defender,
    /// Sentinel.
    Sentinel,
    /// A person, as against a program: Sentinel when Defender's last change was a program's (`lastModifiedBy` begins with
    /// `API-App:` or names nobody), else Defender. Sentinel's REST form does not say who edited, so its edits are taken
    /// for a person's there; and `lastModifiedBy` is of the incident, not of the field.
    Human,
}

/// One field's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldPolicy {
    /// Which way changes flow.
    pub direction: Direction,
    /// Who wins a clash.
    pub wins: Winner,
}

/// The labels that Lockstep writes in Sentinel for purposes of its own. They are never taken for tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRules {
    /// What stands before a determination, for example `determination/`; `None` keeps no determinations as labels.
    pub determination: Option<String>,
    /// What stands before a copy of one of Defender's system tags; `None` copies none.
    pub system: Option<String>,
    /// What stands before the name of an owner who does not exist in the workspace's directory.
    pub owner: Option<String>,
    /// Labels that every twin of the route gets.
    pub route: Vec<String>,
}

/// Set by Defender's engine on both sides when an incident is merged away, and by us on its twin.
pub const REDIRECTED: &str = "Redirected";

impl Default for LabelRules {
    fn default() -> Self {
        Self {
            determination: Some("determination/".to_owned()),
            system: None,
            owner: None,
            route: Vec::new(),
        }
    }
}

impl LabelRules {
    /// Whether a label of this name is one of ours.
    pub fn own(&self, name: &str) -> bool {
        self.is_determination(name) || self.is_owner(name) || self.is_fact(name)
    }

    /// Whether it names an owner who does not exist in the workspace's directory.
    pub fn is_owner(&self, name: &str) -> bool {
        begins(name, self.owner.as_deref())
    }

    /// Whether it keeps a determination.
    pub fn is_determination(&self, name: &str) -> bool {
        begins(name, self.determination.as_deref())
    }

    /// Whether it is one that nobody edits.
    pub fn is_fact(&self, name: &str) -> bool {
        let name = name.trim();
        name.eq_ignore_ascii_case(REDIRECTED)
            || begins(name, self.system.as_deref())
            || self.route.iter().any(|label| label.to_lowercase() == name.to_lowercase())
    }
}

fn begins(name: &str, prefix: Option<&str>) -> bool {
    let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) else { return false };
    let (name, prefix) = (name.trim().to_lowercase(), prefix.to_lowercase());
    name.len() > prefix.len() && name.starts_with(&prefix)
}

/// How a twin's title is made of the incident's: what stands before and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TitleTemplate {
    /// Before the title.
    pub before: String,
    /// After it.
    pub after: String,
}

impl TitleTemplate {
    /// The twin's title.
    pub fn wrap(&self, title: &str) -> String {
        format!("{}{title}{}", self.before, self.after)
    }

    /// The incident's title in a twin's; `None` where the twin's does not follow the template.
    pub fn unwrap<'t>(&self, title: &'t str) -> Option<&'t str> {
        title.strip_prefix(&*self.before)?.strip_suffix(&*self.after)
    }
}

/// What to do where Microsoft's own connector already brings the tenant's incidents into the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Native {
    /// Create nothing for the pair, and say so.
    #[default]
    Refuse,
    /// Leave the connector's twins alone and create none beside them.
    Skip,
    /// Link to the connector's twin and fill in only what the connector drops.
    Adopt,
}

/// What to do about a link whose incident is gone on one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vanished {
    /// Put the link aside with a reason, where a person sees it.
    #[default]
    Park,
    /// Note it, and keep the other side's incident as it is for ever.
    Unlink,
    /// Make the twin again, under a new id. Defender's incidents cannot be made: there it is as `Park`.
    Recreate,
}

/// How alerts are shown in Sentinel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlertMode {
    /// Not at all: they are not even read.
    Off,
    /// As a digest comment that is rewritten as alerts join or change.
    #[default]
    Digest,
    /// As bookmarks with entity mappings, and the digest.
    Bookmarks,
}

/// Whether an incident's alerts follow it in Defender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// They are left alone.
    #[default]
    Off,
    /// Status, owner and verdict of the incident are set on them when Lockstep resolves it.
    OnResolve,
    /// Whenever Lockstep changes one of these.
    Always,
}

/// What an incident that was merged into another leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Also {
    /// Tags that it had.
    pub tags: Vec<String>,
    /// Its owner, in Defender's words, for a winner that has none.
    pub owner: Option<String>,
}

/// A route's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// By the position of the field in [`Field::ALL`].
    fields: [FieldPolicy; FIELDS],
    /// Whether Graph takes `inProgress` in a PATCH. The reference page does not list it (`graph.md` §8.1), so the
    /// answer is learnt per tenant; while it is refused, `active` stands for both.
    pub in_progress_writable: bool,
    /// Labels of our own.
    pub labels: LabelRules,
    /// How titles are made.
    pub title: TitleTemplate,
    /// The determination to set for a Sentinel reason, where the configuration has its own wish.
    pub determinations: BTreeMap<SentinelReason, DefenderDetermination>,
    /// Fields that are not to be written in this round, whatever they say.
    pub mute: BTreeSet<(Side, Field)>,
    /// Which incidents the route is for.
    pub filter: Filter,
    /// Beside Microsoft's own connector.
    pub native: Native,
    /// When an incident is gone.
    pub vanished: Vanished,
    /// How long after both sides were closed a link is still written to.
    pub freeze_after: Option<time::Duration>,
    /// Everything but the writes.
    pub shadow: bool,
    /// How alerts are shown.
    pub alerts: AlertMode,
    /// Whether alerts follow.
    pub follow: Follow,
    /// How comments are carried.
    pub comments: CommentPolicy,
    /// How owners are carried.
    pub owners: OwnerPolicy,
    /// What the directories said about the owners at hand.
    pub people: People,
    /// The twin is Microsoft's connector's: classification and closing are its business, see [`Policy::beside_native`].
    pub native_twin: bool,
    /// What this round brings besides: the tags and the owner of an incident that was merged into this one.
    pub also: Also,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            fields: Field::ALL.map(Field::default_policy),
            in_progress_writable: true,
            labels: LabelRules::default(),
            title: TitleTemplate::default(),
            determinations: BTreeMap::new(),
            mute: BTreeSet::new(),
            filter: Filter::default(),
            native: Native::default(),
            vanished: Vanished::default(),
            freeze_after: None,
            shadow: false,
            alerts: AlertMode::default(),
            follow: Follow::default(),
            comments: CommentPolicy::default(),
            owners: OwnerPolicy::default(),
            people: People::default(),
            native_twin: false,
            also: Also::default(),
        }
    }
}

impl Policy {
    /// Whether alerts themselves are shown in Sentinel.
    pub fn shows_alerts(&self) -> bool {
        self.alerts != AlertMode::Off
    }

    /// Whether incidents are to be read with their alerts.
    pub fn wants_alerts(&self) -> bool {
        self.alerts != AlertMode::Off
            || self.follow != Follow::Off
            || self.of(Field::Facts).direction.to_sentinel()
            || !self.filter.products.is_empty()
            || !self.filter.device_groups.is_empty()
    }

    /// The same rules for a twin that Microsoft's connector made and keeps in step: only what it drops is left to us.
    pub fn beside_native(&self) -> Self {
        let mut policy = self.clone();
        for field in Field::ALL {
            let FieldPolicy { direction, wins } = policy.of(field);
            let direction = match field {
                // The connector's table loses determinations; only their label is ours, and what it says back.
                Field::Verdict | Field::Comment | Field::Determination | Field::Facts => direction,
                _ => Direction::Off,
            };
            policy.fields[field as usize] = FieldPolicy { direction, wins };
        }
        policy.native_twin = true;
        policy
    }

    /// The rule of a field.
    pub fn of(&self, field: Field) -> FieldPolicy {
        let field = match field {
            Field::Comment | Field::Determination => Field::Verdict,
            field => field,
        };
        self.fields[field as usize]
    }

    /// Sets the rule of a field.
    pub fn set(&mut self, field: Field, rule: FieldPolicy) {
        self.fields[field as usize] = rule;
    }

    /// The determination to set when Sentinel's verdict changes Defender's classification and no label names one.
    /// Only pairs that the portal offers (`graph.md` §8.2); a wish that makes another pair is not heard.
    pub fn determination(
        &self,
        classification: &DefenderClassification,
        reason: Option<&SentinelReason>,
    ) -> DefenderDetermination {
        if let Some(wish) = reason.and_then(|reason| self.determinations.get(reason))
            && offered(classification, wish)
        {
            return wish.clone();
        }
        match (classification, reason) {
            (DefenderClassification::FalsePositive, Some(SentinelReason::InaccurateData)) => {
                DefenderDetermination::NotEnoughDataToValidate
            }
            (DefenderClassification::FalsePositive, _) => DefenderDetermination::NotMalicious,
            (DefenderClassification::InformationalExpectedActivity, _) => {
                DefenderDetermination::ConfirmedActivity
            }
            (DefenderClassification::TruePositive, _) => DefenderDetermination::OtherReason,
            _ => DefenderDetermination::Unknown,
        }
    }
}

/// Whether Defender's portal offers this pair (`graph.md` §8.2): what it does not offer may be refused.
pub fn offered(classification: &DefenderClassification, determination: &DefenderDetermination) -> bool {
    use DefenderDetermination as D;
    match classification {
        DefenderClassification::TruePositive => matches!(
            determination,
            D::MultiStagedAttack
                | D::MaliciousUserActivity
                | D::CompromisedAccount
                | D::Malware
                | D::Phishing
                | D::UnwantedSoftware
                | D::OtherReason
        ),
        DefenderClassification::InformationalExpectedActivity => matches!(
            determination,
            D::SecurityTesting | D::LineOfBusinessApplication | D::ConfirmedActivity | D::OtherReason
        ),
        DefenderClassification::FalsePositive => {
            matches!(determination, D::NotMalicious | D::NotEnoughDataToValidate | D::OtherReason)
        }
        DefenderClassification::Unknown => *determination == D::Unknown,
        DefenderClassification::Other(_) => false,
    }
}
