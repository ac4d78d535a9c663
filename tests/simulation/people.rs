//! What people and engines do, by chance: every field on both sides, comments, alerts, merges.

use lockstep::app::reconcile::twin_id;
use lockstep::domain::model::Side;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::plant::{Plant, key};

const PEOPLE: [&str; 3] = ["ann@contoso.com", "bo.li@contoso.com", "cy@fabrikam.com"];
const TAGS: [&str; 4] = ["vip", "Phish Run", "crown-jewels", "späte Schicht"];
const PAIRS: [(&str, &str); 8] = [
    ("unknown", "unknown"),
    ("truePositive", "malware"),
    ("truePositive", "phishing"),
    ("truePositive", "other"),
    ("falsePositive", "notMalicious"),
    ("falsePositive", "notEnoughDataToValidate"),
    ("informationalExpectedActivity", "securityTesting"),
    ("informationalExpectedActivity", "confirmedActivity"),
];
const VERDICTS: [(&str, &str); 5] = [
    ("Undetermined", ""),
    ("TruePositive", "SuspiciousActivity"),
    ("BenignPositive", "SuspiciousButExpected"),
    ("FalsePositive", "IncorrectAlertLogic"),
    ("FalsePositive", "InaccurateData"),
];

/// What people are up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Everything there is.
    Ordinary,
    /// Both sides edit the same few fields at the same time.
    Quarrel,
    /// Mostly comments.
    Talk,
}

/// One edit, chosen but not yet made, so that it can also be made later.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Defender { who: &'static str, id: String, members: Value },
    Sentinel { who: &'static str, id: String, edit: Edit },
    TagInDefender { who: &'static str, id: String, tag: &'static str, add: bool },
    CommentInDefender { who: &'static str, id: String, text: String },
    CommentInSentinel { who: &'static str, id: String, comment: String, text: String },
    Engine { id: String, members: Value },
    Alert { id: String, severity: &'static str, title: String },
}

#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Member(&'static str, Value),
    Open(&'static str),
    Close { classification: &'static str, reason: &'static str, comment: Option<String> },
    Owner(Option<&'static str>),
    Label { name: &'static str, add: bool },
}

fn one_of<T: Copy>(rng: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

fn text(rng: &mut fastrand::Rng, what: &str) -> String {
    format!("{what} {:08x}", rng.u32(..))
}

impl Deed {
    pub(crate) fn side(&self) -> Side {
        match self {
            Deed::Sentinel { .. } | Deed::CommentInSentinel { .. } => Side::Sentinel,
            _ => Side::Defender,
        }
    }

    /// Something that somebody does to one of these incidents.
    pub(crate) fn choose(rng: &mut fastrand::Rng, ids: &[String], mood: Mood) -> Self {
        let (who, id) = (one_of(rng, &PEOPLE), ids[rng.usize(..ids.len())].clone());
        // Those who quarrel take back what they did, again and again.
        let choices = if mood == Mood::Quarrel { 2 } else { 4 };
        let deed = match mood {
            Mood::Ordinary => rng.u8(..100),
            Mood::Quarrel => rng.u8(..68),
            Mood::Talk => [rng.u8(68..91), rng.u8(..100)][usize::from(rng.u8(..4) == 0)],
        };
        match deed {
            0..34 => Self::in_defender(rng, who, id, choices),
            34..68 => {
                let edit = match rng.u8(..12) {
                    0..3 => Edit::Member(
                        "severity",
                        json!(one_of(rng, &["High", "Medium", "Low", "Informational"][..choices])),
                    ),
                    3..5 => Edit::Open(one_of(rng, &["New", "Active"])),
                    5..7 => {
                        let (classification, reason) = one_of(rng, &VERDICTS);
                        let comment = rng.bool().then(|| text(rng, "closed because"));
                        Edit::Close { classification, reason, comment }
                    }
                    7..9 => {
                        let nobody = rng.u8(..3) == 0;
                        Edit::Owner(if nobody { None } else { Some(one_of(rng, &PEOPLE[..choices.min(3)])) })
                    }
                    9..11 => Edit::Label { name: one_of(rng, &TAGS[..choices]), add: rng.u8(..3) > 0 },
                    _ => Edit::Member("title", json!(text(rng, "Case"))),
                };
                Deed::Sentinel { who, id, edit }
            }
            // Now and then the same words of the same person: two comments all the same.
            68..79 => {
                let text = if rng.u8(..5) == 0 { format!("me too, {id}") } else { text(rng, "seen") };
                Deed::CommentInDefender { who, id, text }
            }
            79..91 => {
                let comment = format!("c{}", rng.u8(..3));
                Deed::CommentInSentinel { who, id, comment, text: text(rng, "noted") }
            }
            91..95 => {
                let members = match rng.u8(..3) {
                    0 => json!({"displayName": text(rng, "Multi-stage incident")}),
                    1 => json!({"severity": one_of(rng, &["low", "medium", "high"])}),
                    _ => json!({"description": text(rng, "The engine found")}),
                };
                Deed::Engine { id, members }
            }
            _ => {
                let severity = one_of(rng, &["low", "medium", "high"]);
                Deed::Alert { id, severity, title: text(rng, "Odd sign-in") }
            }
        }
    }

    fn in_defender(rng: &mut fastrand::Rng, who: &'static str, id: String, choices: usize) -> Self {
        let members = match rng.u8(..12) {
            0..3 => json!({"severity": one_of(rng, &["high", "medium", "low", "informational"][..choices])}),
            3..5 => json!({"status": one_of(rng, &["active", "inProgress"])}),
            5..7 => {
                let (classification, determination) = one_of(rng, &PAIRS);
                let mut members = json!({
                    "status": "resolved", "classification": classification, "determination": determination,
                });
                if rng.bool() {
                    members["resolvingComment"] = json!(text(rng, "resolved as"));
                }
                members
            }
            7 => {
                let (classification, determination) = one_of(rng, &PAIRS);
                json!({"classification": classification, "determination": determination})
            }
            8 => {
                let nobody = rng.u8(..3) == 0;
                json!({"assignedTo": if nobody { Value::Null } else { json!(one_of(rng, &PEOPLE[..choices.min(3)])) }})
            }
            9..11 => {
                return Deed::TagInDefender {
                    who,
                    id,
                    tag: one_of(rng, &TAGS[..choices]),
                    add: rng.u8(..3) > 0,
                };
            }
            _ => json!({"displayName": text(rng, "Incident")}),
        };
        Deed::Defender { who, id, members }
    }

    /// Makes the edit now. False when it was refused or changes nothing.
    pub(crate) fn done(self, plant: &mut Plant, at: (&str, &str), now: OffsetDateTime) -> bool {
        match self {
            Deed::Defender { who, id, members } => plant.person_in_defender(at, (who, &id), &members, now),
            Deed::TagInDefender { who, id, tag, add } => {
                let Ok((_, body)) = plant.defender(at.0, &id, false, now) else { return false };
                let mut tags: Vec<Value> = body["customTags"].as_array().cloned().unwrap_or_default();
                tags.retain(|known| !known.as_str().is_some_and(|known| known.eq_ignore_ascii_case(tag)));
                if add {
                    tags.push(json!(tag));
                }
                plant.person_in_defender(at, (who, &id), &json!({"customTags": tags}), now)
            }
            Deed::Sentinel { who, id, edit } => {
                plant.person_in_sentinel(at, (who, &id), |properties| edit.apply(properties), now)
            }
            Deed::CommentInDefender { who, id, text } => {
                plant.comment_in_defender(at, (who, &id, &text), now)
            }
            Deed::CommentInSentinel { who, id, comment, text } => {
                // Only its author may edit a comment, so everybody has ids of their own.
                let comment = format!("{}-{comment}-{}", who.len(), twin_id(&key(at.0, &id, at.1)));
                plant.comment_in_sentinel(at, (who, &id), (&comment, &text), now)
            }
            Deed::Engine { id, members } => {
                plant.engine_edits(at, &id, &members, now);
                true
            }
            Deed::Alert { id, severity, title } => {
                plant.alert_joins(at, &id, &json!({"severity": severity, "title": title}), now);
                true
            }
        }
    }
}

impl Edit {
    /// As the portal does it: reads everything, changes something, sends everything back.
    fn apply(self, properties: &mut Map<String, Value>) {
        match self {
            Edit::Member(name, value) => {
                properties.insert(name.to_owned(), value);
            }
            Edit::Open(status) => {
                properties.insert("status".to_owned(), json!(status));
                for name in ["classification", "classificationReason", "classificationComment"] {
                    properties.remove(name);
                }
            }
            Edit::Close { classification, reason, comment } => {
                properties.insert("status".to_owned(), json!("Closed"));
                properties.insert("classification".to_owned(), json!(classification));
                if reason.is_empty() {
                    properties.remove("classificationReason");
                } else {
                    properties.insert("classificationReason".to_owned(), json!(reason));
                }
                properties.insert("classificationComment".to_owned(), json!(comment.unwrap_or_default()));
            }
            Edit::Owner(None) => {
                let nobody =
                    json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null});
                properties.insert("owner".to_owned(), nobody);
            }
            Edit::Owner(Some(who)) => {
                properties.insert("owner".to_owned(), json!({"userPrincipalName": who}));
            }
            Edit::Label { name, add } => {
                let labels = properties.entry("labels").or_insert_with(|| json!([]));
                let Some(list) = labels.as_array_mut() else { return };
                list.retain(|label| {
                    !label["labelName"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name))
                });
                if add {
                    list.push(json!({"labelName": name}));
                }
            }
        }
    }
}
