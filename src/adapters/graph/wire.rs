//! Graph's JSON, read generously and written sparingly.

use serde_json::{Map, Value, json};

use crate::adapters::lenient::{self, Unreadable};
use crate::domain::alert;
use crate::domain::model::{
    AlertPatch, DefenderClassification, DefenderComment, DefenderDetermination, DefenderIncident,
    DefenderPatch, DefenderSays, DefenderSeverity, DefenderStatus,
};
use crate::ports::{AlertNews, Page};

/// One incident, as GET and PATCH answer it.
pub(super) fn incident(body: &[u8]) -> Result<DefenderIncident, Unreadable> {
    let object = lenient::object(&lenient::text_of(body)).map_err(Unreadable::Garbled)?;
    read(&object).map_err(Unreadable::Lacking)
}

/// A page of the list. What cannot be read is named, and the rest goes on.
pub(super) fn page(body: &[u8]) -> Result<Page<DefenderIncident>, Unreadable> {
    let raw = lenient::page(body, "@odata.nextLink").map_err(Unreadable::Garbled)?;
    let mut page =
        Page { records: Vec::with_capacity(raw.records.len()), next: raw.next, unreadable: Vec::new() };
    for (position, record) in raw.records.iter().enumerate() {
        match lenient::object(record.get()) {
            Err(why) => page.unreadable.push((format!("#{position}"), why)),
            Ok(object) => match read(&object) {
                Ok(incident) => page.records.push(incident),
                Err(why) => {
                    let id = lenient::text(&object, "id").unwrap_or_else(|| format!("#{position}"));
                    page.unreadable.push((id, why));
                }
            },
        }
    }
    Ok(page)
}

/// A page of the list of alerts: of each only what a poll wants to know.
pub(super) fn alerts_page(body: &[u8]) -> Result<Page<AlertNews>, Unreadable> {
    let raw = lenient::page(body, "@odata.nextLink").map_err(Unreadable::Garbled)?;
    let mut page = Page { records: Vec::new(), next: raw.next, unreadable: Vec::new() };
    for (position, record) in raw.records.iter().enumerate() {
        let read = lenient::object(record.get()).and_then(|object| {
            Ok(AlertNews {
                id: lenient::text(&object, "id").ok_or("no id")?,
                incident_id: lenient::text(&object, "incidentId"),
                updated: lenient::instant(&object, "lastUpdateDateTime").ok_or("no lastUpdateDateTime")?,
            })
        });
        match read {
            Ok(alert) => page.records.push(alert),
            Err(why) => page.unreadable.push((format!("#{position}"), why)),
        }
    }
    Ok(page)
}

/// Without an id or an instant there is nothing to go by. Everything else may be missing, null or of another type:
/// a status or severity that says nothing is kept as a word that says nothing, which is never copied.
fn read(object: &Map<String, Value>) -> Result<DefenderIncident, String> {
    let word = |member: &str| lenient::text(object, member).unwrap_or_default();
    let verdict = |member: &str| lenient::text(object, member).unwrap_or_else(|| "unknown".to_owned());
    // An alert that cannot be read costs that alert.
    let alerts = object
        .get("alerts")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|value| alert::alert(value).ok()).collect::<Vec<alert::Alert>>());
    let facts = alerts.as_ref().map(|alerts| alert::facts(alerts, lenient::texts(object, "systemTags")));
    Ok(DefenderIncident {
        id: lenient::text(object, "id").ok_or("no id")?,
        says: DefenderSays {
            title: lenient::text(object, "displayName"),
            description: lenient::text(object, "description"),
            severity: DefenderSeverity::parse(&word("severity")),
            status: DefenderStatus::parse(&word("status")),
            owner: lenient::text(object, "assignedTo"),
            classification: DefenderClassification::parse(&verdict("classification")),
            determination: DefenderDetermination::parse(&verdict("determination")),
            resolving_comment: lenient::text(object, "resolvingComment"),
            tags: lenient::texts(object, "customTags"),
            facts,
        },
        created: lenient::instant(object, "createdDateTime"),
        updated: lenient::instant(object, "lastUpdateDateTime").ok_or("no lastUpdateDateTime")?,
        modified_by: lenient::text(object, "lastModifiedBy"),
        web_url: lenient::text(object, "incidentWebUrl"),
        redirect: lenient::text(object, "redirectIncidentId"),
        comments: comments(object.get("comments")),
        alerts,
    })
}

/// The answer to a comment: `value` is all comments (`graph.md` §8.3); an answer with one object is taken too.
pub(super) fn commented(body: &[u8]) -> Result<Vec<DefenderComment>, Unreadable> {
    let object = lenient::object(&lenient::text_of(body)).map_err(Unreadable::Garbled)?;
    match object.get("value") {
        Some(list @ Value::Array(_)) => Ok(comments(Some(list))),
        Some(one @ Value::Object(_)) => Ok(comment(one).into_iter().collect()),
        _ => Ok(comment(&Value::Object(object)).into_iter().collect()),
    }
}

fn comments(list: Option<&Value>) -> Vec<DefenderComment> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(comment).collect()
}

/// The members have two names each: the metadata's and that of the samples of 2021 to 2024 (`graph.md` §4).
fn comment(value: &Value) -> Option<DefenderComment> {
    let object = value.as_object()?;
    let either = |new: &str, old: &str| lenient::text(object, new).or_else(|| lenient::text(object, old));
    Some(DefenderComment {
        text: lenient::text(object, "comment")?,
        author: either("createdByDisplayName", "createdBy"),
        at: lenient::instant(object, "createdDateTime").or_else(|| lenient::instant(object, "createdTime")),
    })
}

/// The body of a new comment.
pub(super) fn new_comment(text: &str) -> Vec<u8> {
    json!({"@odata.type": "microsoft.graph.security.alertComment", "comment": text}).to_string().into_bytes()
}

/// The body of an alert's PATCH.
pub(super) fn alert_patch(patch: &AlertPatch) -> Vec<u8> {
    let AlertPatch { status, verdict, owner } = patch;
    let mut body = Map::new();
    if let Some(status) = status {
        body.insert("status".to_owned(), json!(status));
    }
    if let Some((classification, determination)) = verdict {
        body.insert("classification".to_owned(), json!(classification.as_str()));
        body.insert("determination".to_owned(), json!(determination.as_str()));
    }
    if let Some(owner) = owner {
        body.insert("assignedTo".to_owned(), json!(owner));
    }
    Value::Object(body).to_string().into_bytes()
}

/// The body of a PATCH: the members that the patch names, and no others.
pub(super) fn patch(patch: &DefenderPatch) -> Vec<u8> {
    // No `..`: a new member stops here until somebody thinks.
    let DefenderPatch { title, description, severity, status, owner, verdict, resolving_comment, tags } =
        patch;
    let mut body = Map::new();
    let mut say = |member: &str, value: Value| body.insert(member.to_owned(), value);
    if let Some(title) = title {
        say("displayName", json!(title));
    }
    if let Some(description) = description {
        say("description", json!(description));
    }
    if let Some(severity) = severity {
        say("severity", json!(severity.as_str()));
    }
    if let Some(status) = status {
        say("status", json!(status.as_str()));
    }
    if let Some(owner) = owner {
        say("assignedTo", json!(owner));
    }
    if let Some((classification, determination)) = verdict {
        say("classification", json!(classification.as_str()));
        say("determination", json!(determination.as_str()));
    }
    if let Some(comment) = resolving_comment {
        say("resolvingComment", json!(comment));
    }
    if let Some(tags) = tags {
        say("customTags", json!(tags));
    }
    Value::Object(body).to_string().into_bytes()
}
