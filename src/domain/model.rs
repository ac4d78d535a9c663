//! Both sides' incidents in their own words: the members that we understand, typed; everything else is left to the
//! adapters to keep or ignore. Words that we do not know are kept as text and are never fatal: both services add
//! members without notice (`graph.md` §6, `sentinel.md` §2).

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::domain::alert::Alert;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Microsoft Defender XDR, through Graph.
    Defender,
    /// Microsoft Sentinel, through ARM.
    Sentinel,
}

impl Side {
    /// The text form, as in logs, metrics and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Side::Defender => "defender",
            Side::Sentinel => "sentinel",
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Side::Defender => Side::Sentinel,
            Side::Sentinel => Side::Defender,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The identity of a link: never a name from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkKey {
    /// The Defender tenant, in lower case.
    pub tenant_id: String,
    /// Graph's incident id.
    pub incident_id: String,
    /// The workspace's resource id, in lower case, without a slash at the end.
    pub workspace: String,
}

impl fmt::Display for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} -> {}", self.tenant_id, self.incident_id, self.workspace)
    }
}

/// Declares an enumeration of one side: the members we know, in the spelling that goes on the wire, and `Other` for
/// everything else. Reading ignores case (older Graph samples are Pascal case); aliases are read and never written.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $wire:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$member_doc])* $member,)+
            /// A member that this version does not know, as it came.
            Other(String),
        }

        impl $name {
            /// Every member that this version knows.
            pub const KNOWN: &'static [$name] = &[$($name::$member),+];

            /// Reads the wire form, without regard to case.
            pub fn parse(text: &str) -> Self {
                $(if text.eq_ignore_ascii_case($wire) $(|| text.eq_ignore_ascii_case($alias))* { return $name::$member; })+
                $name::Other(text.to_owned())
            }

            /// The wire form.
            pub fn as_str(&self) -> &str {
                match self { $($name::$member => $wire,)+ $name::Other(text) => text }
            }
        }

        impl From<String> for $name { fn from(text: String) -> Self { Self::parse(&text) } }
        impl From<$name> for String { fn from(word: $name) -> Self { word.as_str().to_owned() } }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

pub(crate) use words;

words! {
    /// Graph `alertSeverity`, on incidents and alerts.
    DefenderSeverity {
        /// Not computed.
        Unknown = "unknown",
        /// Lowest.
        Informational = "informational",
        /// Low.
        Low = "low",
        /// Medium.
        Medium = "medium",
        /// Highest; Defender has no `critical`.
        High = "high",
    }
}
words! {
    /// Graph `incidentStatus`.
    DefenderStatus {
        /// New work.
        Active = "active",
        /// Somebody is on it. The reference does not list it as writable (`graph.md` §8.1).
        InProgress = "inProgress",
        /// Closed.
        Resolved = "resolved",
        /// Merged into another incident; the engine's word, never ours.
        Redirected = "redirected",
        /// Waiting for the customer; only Defender Experts may set it.
        AwaitingAction = "awaitingAction",
    }
}
words! {
    /// Graph `alertClassification`.
    DefenderClassification {
        /// Not set.
        Unknown = "unknown",
        /// A wrong alarm.
        FalsePositive = "falsePositive",
        /// A real attack.
        TruePositive = "truePositive",
        /// Real but expected.
        InformationalExpectedActivity = "informationalExpectedActivity",
    }
}
words! {
    /// Graph `alertDetermination`. The aliases are the older names that texts and old data still use.
    DefenderDetermination {
        /// Not set.
        Unknown = "unknown",
        /// Withdrawn in 2022, still an enum member.
        Apt = "apt",
        /// Malware.
        Malware = "malware",
        /// Withdrawn in 2022, still an enum member.
        SecurityPersonnel = "securityPersonnel",
        /// A test.
        SecurityTesting = "securityTesting",
        /// Unwanted software.
        UnwantedSoftware = "unwantedSoftware",
        /// Other.
        OtherReason = "other",
        /// Multi-stage attack.
        MultiStagedAttack = "multiStagedAttack",
        /// Compromised account.
        CompromisedAccount = "compromisedAccount" | "compromisedUser",
        /// Phishing.
        Phishing = "phishing",
        /// Malicious user activity.
        MaliciousUserActivity = "maliciousUserActivity",
        /// Not malicious.
        NotMalicious = "notMalicious" | "clean",
        /// Not enough data.
        NotEnoughDataToValidate = "notEnoughDataToValidate" | "insufficientData",
        /// Confirmed activity.
        ConfirmedActivity = "confirmedActivity" | "confirmedUserActivity",
        /// Line-of-business application.
        LineOfBusinessApplication = "lineOfBusinessApplication",
    }
}
words! {
    /// Sentinel `IncidentSeverityEnum`.
    SentinelSeverity {
        /// Highest.
        High = "High",
        /// Medium.
        Medium = "Medium",
        /// Low.
        Low = "Low",
        /// Lowest.
        Informational = "Informational",
    }
}
words! {
    /// Sentinel `IncidentStatus`.
    SentinelStatus {
        /// New work.
        New = "New",
        /// Somebody is on it.
        Active = "Active",
        /// Closed, with a classification.
        Closed = "Closed",
    }
}
words! {
    /// Sentinel `IncidentClassification`, meaningful only while Closed.
    SentinelClassification {
        /// Nothing was decided.
        Undetermined = "Undetermined",
        /// A real attack.
        TruePositive = "TruePositive",
        /// Real but expected.
        BenignPositive = "BenignPositive",
        /// A wrong alarm.
        FalsePositive = "FalsePositive",
    }
}
words! {
    /// Sentinel `IncidentClassificationReason`.
    SentinelReason {
        /// With `TruePositive`.
        SuspiciousActivity = "SuspiciousActivity",
        /// With `BenignPositive`.
        SuspiciousButExpected = "SuspiciousButExpected",
        /// With `FalsePositive`.
        IncorrectAlertLogic = "IncorrectAlertLogic",
        /// With `FalsePositive`.
        InaccurateData = "InaccurateData",
    }
}

/// What Defender says about an incident, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefenderSays {
    /// `displayName`.
    pub title: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `severity`.
    pub severity: DefenderSeverity,
    /// `status`.
    pub status: DefenderStatus,
    /// `assignedTo`: free text, usually a user principal name. Empty text is read as `None`.
    pub owner: Option<String>,
    /// `classification`; absent and null are read as `unknown`.
    pub classification: DefenderClassification,
    /// `determination`; absent and null are read as `unknown`.
    pub determination: DefenderDetermination,
    /// `resolvingComment`. Empty text is read as `None`.
    pub resolving_comment: Option<String>,
    /// `customTags`, in the service's order.
    pub tags: Vec<String>,
    /// What the incident's alerts come to; `None` where they were not asked for (lists, answers to a PATCH).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// What nobody edits and Sentinel is told: the alerts in numbers and names, and the service's own tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// How many alerts there are of each severity, most severe first.
    pub alerts: Vec<(DefenderSeverity, u32)>,
    /// Products, in alphabetical order.
    pub products: Vec<String>,
    /// Tactics, in alphabetical order.
    pub tactics: Vec<String>,
    /// Technique ids, in alphabetical order.
    pub techniques: Vec<String>,
    /// Device groups, in alphabetical order.
    pub device_groups: Vec<String>,
    /// The earliest activity of any alert.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub first_activity: Option<OffsetDateTime>,
    /// The latest activity of any alert.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub last_activity: Option<OffsetDateTime>,
    /// `systemTags`, in the service's order.
    #[serde(default)]
    pub system_tags: Vec<String>,
}

impl Facts {
    /// How many alerts there are.
    pub fn total(&self) -> u32 {
        self.alerts.iter().map(|(_, count)| count).sum()
    }
}

/// A Defender incident as read: what it says, and the facts that we never write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefenderIncident {
    /// Graph's `id`: decimal digits as text.
    pub id: String,
    /// Merged members that people and programs may edit.
    pub says: DefenderSays,
    /// `createdDateTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// `lastUpdateDateTime`: the version, as an instant.
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
    /// `lastModifiedBy`.
    pub modified_by: Option<String>,
    /// `incidentWebUrl`.
    pub web_url: Option<String>,
    /// `redirectIncidentId`: set only when merged away.
    pub redirect: Option<String>,
    /// `comments`, in the service's order.
    #[serde(default)]
    pub comments: Vec<DefenderComment>,
    /// `alerts`; `None` where they were not asked for.
    #[serde(default)]
    pub alerts: Option<Vec<Alert>>,
}

/// A comment of a Defender incident. It has no id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefenderComment {
    /// `comment`.
    pub text: String,
    /// `createdByDisplayName`; older answers say `createdBy`.
    pub author: Option<String>,
    /// `createdDateTime`; older answers say `createdTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub at: Option<OffsetDateTime>,
}

/// A comment of a Sentinel incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentinelComment {
    /// ARM's `name`: the id that its creator chose.
    pub name: String,
    /// `message`: text, HTML or Markdown.
    pub message: String,
    /// The best name that `author` has.
    pub author: Option<String>,
    /// `createdTimeUtc`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// `lastModifiedTimeUtc`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub modified: Option<OffsetDateTime>,
    /// The comment's own etag.
    pub etag: String,
}

/// The members of an alert to send to Graph; what is `None` is not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertPatch {
    /// `status`: `new`, `inProgress` or `resolved`.
    pub status: Option<String>,
    /// `classification` and `determination`.
    pub verdict: Option<(DefenderClassification, DefenderDetermination)>,
    /// `assignedTo`; the inner `None` unassigns.
    #[serde(
        default,
        rename = "assigned_to",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "said"
    )]
    pub owner: Option<Option<String>>,
}

/// A member that is there, even as null, says something.
fn said<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl AlertPatch {
    /// Whether nothing would be sent.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Less what `other` says as well.
    pub fn without(&self, other: &Self) -> Self {
        Self {
            status: self.status.clone().filter(|_| self.status != other.status),
            verdict: self.verdict.clone().filter(|_| self.verdict != other.verdict),
            owner: self.owner.clone().filter(|_| self.owner != other.owner),
        }
    }

    /// With what `newer` says on top.
    pub fn with(&self, newer: &Self) -> Self {
        Self {
            status: newer.status.clone().or_else(|| self.status.clone()),
            verdict: newer.verdict.clone().or_else(|| self.verdict.clone()),
            owner: newer.owner.clone().or_else(|| self.owner.clone()),
        }
    }

    /// Each of its members by itself, with its name.
    pub fn apart(&self) -> Vec<(&'static str, Self)> {
        let none = Self::default;
        let all = [
            ("status", Self { status: self.status.clone(), ..none() }),
            ("verdict", Self { verdict: self.verdict.clone(), ..none() }),
            ("owner", Self { owner: self.owner.clone(), ..none() }),
        ];
        all.into_iter().filter(|(_, patch)| !patch.is_empty()).collect()
    }
}

/// A Sentinel owner. Any member may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SentinelOwner {
    /// `objectId`, a GUID.
    pub object_id: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `userPrincipalName`.
    pub upn: Option<String>,
    /// `assignedTo`: the display name.
    pub name: Option<String>,
    /// `ownerType` is `Group`. Real users come back as `Unknown` (`sentinel.md` §6), so nothing else is read from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub group: bool,
}

/// A Sentinel label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label {
    /// `labelName`.
    pub name: String,
    /// True for `labelType` `AutoAssigned`: set by the system, sent back unchanged, never taken for a tag.
    pub auto: bool,
}

/// What Sentinel says about an incident, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentinelSays {
    /// `title`.
    pub title: String,
    /// `description`, whole, our own block included.
    pub description: Option<String>,
    /// `severity`.
    pub severity: SentinelSeverity,
    /// `status`.
    pub status: SentinelStatus,
    /// `owner`; all members missing means nobody.
    pub owner: SentinelOwner,
    /// `classification`.
    pub classification: Option<SentinelClassification>,
    /// `classificationReason`.
    pub reason: Option<SentinelReason>,
    /// `classificationComment`. Empty text is read as `None`.
    pub comment: Option<String>,
    /// `labels`, in the service's order.
    pub labels: Vec<Label>,
    /// `firstActivityTimeUtc` as it came: writable, so it must be sent back.
    #[serde(default)]
    pub first_activity: Option<String>,
    /// `lastActivityTimeUtc` as it came: writable, so it must be sent back.
    #[serde(default)]
    pub last_activity: Option<String>,
}

/// A Sentinel incident as read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentinelIncident {
    /// ARM's `name`: the id that the creator chose.
    pub name: String,
    /// The etag, opaque, inner quotes included where there are any.
    pub etag: String,
    /// Merged members that people and programs may edit.
    pub says: SentinelSays,
    /// `lastModifiedTimeUtc`.
    #[serde(with = "time::serde::rfc3339")]
    pub modified: OffsetDateTime,
    /// `providerName`: `Azure Sentinel` or `Microsoft XDR`.
    pub provider: Option<String>,
    /// `providerIncidentId`: for `Microsoft XDR`, Graph's incident id.
    pub provider_incident_id: Option<String>,
    /// `incidentUrl`.
    pub url: Option<String>,
    /// `additionalData.providerIncidentUrl`: names the tenant of the incident that Microsoft's connector copied.
    pub provider_url: Option<String>,
    /// `additionalData.commentsCount`.
    pub comments_count: Option<u32>,
}

/// The members to send to Graph; what is `None` is not sent. Inner `None` clears.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefenderPatch {
    /// `displayName`.
    pub title: Option<String>,
    /// `description`; the inner `None` is sent as null.
    pub description: Option<Option<String>>,
    /// `severity`.
    pub severity: Option<DefenderSeverity>,
    /// `status`.
    pub status: Option<DefenderStatus>,
    /// `assignedTo`; the inner `None` unassigns.
    pub owner: Option<Option<String>>,
    /// `classification` and `determination`, always together (`graph.md` §8.2).
    pub verdict: Option<(DefenderClassification, DefenderDetermination)>,
    /// `resolvingComment`; the inner `None` is sent as null.
    pub resolving_comment: Option<Option<String>>,
    /// `customTags`: the whole list, since a PATCH replaces it.
    pub tags: Option<Vec<String>>,
}

/// A whole Sentinel incident to PUT: every writable member, because the service may clear what is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentinelWrite {
    /// The etag of the read it was computed from; `None` only when creating.
    pub etag: Option<String>,
    /// The members.
    pub says: SentinelSays,
    /// Whether the read has something of a verdict (a classification, a reason, a comment) that `says` lacks. Then it is
    /// taken away explicitly, because the service may keep what is left out.
    #[serde(default)]
    pub clears: bool,
}

impl SentinelWrite {
    /// Replaces what was read.
    pub fn over(read: &SentinelIncident, says: SentinelSays) -> Self {
        let gone = [
            read.says.classification.is_some() && says.classification.is_none(),
            read.says.reason.is_some() && says.reason.is_none(),
            read.says.comment.is_some() && says.comment.is_none(),
        ];
        Self { etag: Some(read.etag.clone()), says, clears: gone.contains(&true) }
    }
}

/// The identity of a workspace: its ARM resource id in lower case, without a slash at the end. ARM compares ids without
/// case (`sentinel.md` §2), and keys are compared as they stand.
pub fn workspace_id(subscription_id: &str, resource_group: &str, workspace_name: &str) -> String {
    format!(
        "/subscriptions/{subscription_id}/resourceGroups/{resource_group}/providers/\
         Microsoft.OperationalInsights/workspaces/{workspace_name}"
    )
    .to_lowercase()
}
