//! What a route wants for each field: which way changes flow and who wins when both sides moved.

use serde::{Deserialize, Serialize};

use crate::domain::model::{DefenderClassification, DefenderDetermination, SentinelReason};

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
}

impl Field {
    /// Every field, in the order in which plans are printed.
    pub const ALL: [Field; 8] = [
        Field::Title,
        Field::Description,
        Field::Severity,
        Field::Status,
        Field::Owner,
        Field::Verdict,
        Field::Comment,
        Field::Tags,
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
        }
    }

    /// The policy that a route gives this field when its configuration says nothing: everything flows both ways, but
    /// title and description only to Sentinel, because Defender's engine writes them.
    pub const fn default_policy(self) -> FieldPolicy {
        let direction = match self {
            Field::Title | Field::Description => Direction::ToSentinel,
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

/// A route's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// By the position of the field in [`Field::ALL`].
    fields: [FieldPolicy; 8],
    /// Whether Graph takes `inProgress` in a PATCH. The reference page does not list it (`graph.md` §8.1), so the
    /// answer is learnt per tenant; while it is refused, `active` stands for both.
    pub in_progress_writable: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { fields: Field::ALL.map(Field::default_policy), in_progress_writable: true }
    }
}

impl Policy {
    /// The rule of a field.
    pub fn of(&self, field: Field) -> FieldPolicy {
        let field = if field == Field::Comment { Field::Verdict } else { field };
        self.fields[field as usize]
    }

    /// Sets the rule of a field.
    pub fn set(&mut self, field: Field, rule: FieldPolicy) {
        self.fields[field as usize] = rule;
    }

    /// The determination to set when Sentinel's verdict changes Defender's classification: Sentinel cannot name one.
    /// Only pairs that the portal offers (`graph.md` §8.2).
    pub fn determination(
        &self,
        classification: &DefenderClassification,
        reason: Option<&SentinelReason>,
    ) -> DefenderDetermination {
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
