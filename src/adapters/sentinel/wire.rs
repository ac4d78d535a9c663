//! Sentinel's JSON, read generously and written whole: what a PUT leaves out may be cleared.

use serde_json::{Map, Value, json};

use crate::adapters::lenient::{self, Unreadable};
use crate::domain::digest::Bookmark;
use crate::domain::model::{
    Label, SentinelClassification, SentinelComment, SentinelIncident, SentinelOwner, SentinelReason,
    SentinelSays, SentinelSeverity, SentinelStatus, SentinelWrite,
};
use crate::ports::Page;

/// One incident, as GET and PUT answer it.
pub(super) fn incident(body: &[u8]) -> Result<SentinelIncident, Unreadable> {
    let object = lenient::object(&lenient::text_of(body)).map_err(Unreadable::Garbled)?;
    read(&object).map_err(Unreadable::Lacking)
}

/// A page of the list. What cannot be read is named, and the rest goes on.
pub(super) fn page(body: &[u8]) -> Result<Page<SentinelIncident>, Unreadable> {
    let raw = lenient::page(body, "nextLink").map_err(Unreadable::Garbled)?;
    let mut page =
        Page { records: Vec::with_capacity(raw.records.len()), next: raw.next, unreadable: Vec::new() };
    for (position, record) in raw.records.iter().enumerate() {
        match lenient::object(record.get()) {
            Err(why) => page.unreadable.push((format!("#{position}"), why)),
            Ok(object) => match read(&object) {
                Ok(incident) => page.records.push(incident),
                Err(why) => {
                    page.unreadable.push((name_of(&object).unwrap_or_else(|| format!("#{position}")), why))
                }
            },
        }
    }
    Ok(page)
}

/// A page of an incident's comments. One without a name or a text is left out: nothing can be made of it.
pub(super) fn comments(body: &[u8]) -> Result<(Vec<SentinelComment>, Option<String>), Unreadable> {
    let raw = lenient::page(body, "nextLink").map_err(Unreadable::Garbled)?;
    let read = |text: &str| comment(&lenient::object(text).ok()?);
    Ok((raw.records.iter().filter_map(|record| read(record.get())).collect(), raw.next))
}

/// One comment, as PUT answers it.
pub(super) fn one_comment(body: &[u8]) -> Result<SentinelComment, Unreadable> {
    let object = lenient::object(&lenient::text_of(body)).map_err(Unreadable::Garbled)?;
    comment(&object).ok_or_else(|| Unreadable::Lacking("no name or no message".to_owned()))
}

fn comment(object: &Map<String, Value>) -> Option<SentinelComment> {
    let properties = object.get("properties")?.as_object()?;
    let author = properties.get("author").and_then(Value::as_object);
    let names = ["userPrincipalName", "email", "name", "objectId"];
    Some(SentinelComment {
        name: name_of(object)?,
        message: lenient::text(properties, "message")?,
        author: author.and_then(|author| names.iter().find_map(|name| lenient::text(author, name))),
        created: lenient::instant(properties, "createdTimeUtc"),
        modified: lenient::instant(properties, "lastModifiedTimeUtc"),
        etag: lenient::text(object, "etag").unwrap_or_default(),
    })
}

/// The body of a bookmark's PUT.
pub(super) fn put_bookmark(bookmark: &Bookmark, mapped: bool) -> Vec<u8> {
    let Bookmark { display_name, query, query_result, notes, labels, event_time, mappings } = bookmark;
    let mappings = mappings.iter().map(|(kind, facts)| {
        let fields =
            facts.iter().map(|(identifier, value)| json!({"identifier": identifier, "value": value}));
        json!({"entityType": kind, "fieldMappings": fields.collect::<Vec<_>>()})
    });
    let mut properties = json!({
        "displayName": display_name, "query": query, "queryResult": query_result, "labels": labels,
    });
    if mapped {
        properties["entityMappings"] = mappings.collect();
    }
    if !notes.is_empty() {
        properties["notes"] = json!(notes);
    }
    if let Some(at) = event_time {
        properties["eventTime"] = json!(at);
    }
    json!({"properties": properties}).to_string().into_bytes()
}

/// The body of a relation's PUT.
pub(super) fn put_relation(related: &str) -> Vec<u8> {
    json!({"properties": {"relatedResourceId": related}}).to_string().into_bytes()
}

/// The body of a comment's PUT.
pub(super) fn put_comment(message: &str) -> Vec<u8> {
    json!({"properties": {"message": message}}).to_string().into_bytes()
}

fn name_of(object: &Map<String, Value>) -> Option<String> {
    lenient::text(object, "name").or_else(|| {
        lenient::text(object, "id")?.rsplit('/').next().map(str::to_owned).filter(|name| !name.is_empty())
    })
}

/// Without a name, an etag and an instant an update could not be guarded; title, severity and status are what the
/// service requires of a PUT, and an incident without them could not be written back.
fn read(object: &Map<String, Value>) -> Result<SentinelIncident, String> {
    let Some(Value::Object(properties)) = object.get("properties") else {
        return Err("no properties".to_owned());
    };
    let needed = |member: &str| lenient::text(properties, member).ok_or_else(|| format!("no {member}"));
    let owner = properties.get("owner").and_then(Value::as_object);
    let of_owner = |member: &str| owner.and_then(|owner| lenient::text(owner, member));
    let additional = properties.get("additionalData").and_then(Value::as_object);
    Ok(SentinelIncident {
        name: name_of(object).ok_or("no name")?,
        etag: lenient::text(object, "etag").ok_or("no etag")?,
        says: SentinelSays {
            title: needed("title")?,
            description: lenient::text(properties, "description"),
            severity: SentinelSeverity::parse(&needed("severity")?),
            status: SentinelStatus::parse(&needed("status")?),
            owner: SentinelOwner {
                object_id: of_owner("objectId"),
                email: of_owner("email"),
                upn: of_owner("userPrincipalName"),
                name: of_owner("assignedTo"),
                group: of_owner("ownerType").is_some_and(|kind| kind.eq_ignore_ascii_case("Group")),
            },
            classification: lenient::text(properties, "classification")
                .map(|word| SentinelClassification::parse(&word)),
            reason: lenient::text(properties, "classificationReason")
                .map(|word| SentinelReason::parse(&word)),
            comment: lenient::text(properties, "classificationComment"),
            labels: labels(properties),
            first_activity: lenient::text(properties, "firstActivityTimeUtc"),
            last_activity: lenient::text(properties, "lastActivityTimeUtc"),
        },
        modified: lenient::instant(properties, "lastModifiedTimeUtc").ok_or("no lastModifiedTimeUtc")?,
        provider: lenient::text(properties, "providerName"),
        provider_incident_id: lenient::text(properties, "providerIncidentId"),
        url: lenient::text(properties, "incidentUrl"),
        provider_url: additional.and_then(|data| lenient::text(data, "providerIncidentUrl")),
        comments_count: additional
            .and_then(|data| data.get("commentsCount")?.as_u64())
            .and_then(|count| u32::try_from(count).ok()),
    })
}

fn labels(properties: &Map<String, Value>) -> Vec<Label> {
    let Some(Value::Array(labels)) = properties.get("labels") else { return Vec::new() };
    labels
        .iter()
        .filter_map(|label| {
            let label = label.as_object()?;
            let auto = lenient::text(label, "labelType")
                .is_some_and(|kind| kind.eq_ignore_ascii_case("AutoAssigned"));
            Some(Label { name: lenient::text(label, "labelName")?, auto })
        })
        .collect()
}

/// The body of a PUT.
///
/// Whether a left-out member is cleared or kept is not documented, so nothing that has a value is left out, and text
/// that was cleared is sent empty on an update. A missing classification or reason is left out where there was none
/// before, and null where there was one: a service that keeps what is left out would else keep the reason of an earlier
/// verdict, and might refuse it beside the new one.
pub(super) fn put(write: &SentinelWrite) -> Vec<u8> {
    // No `..`: a new member stops here until somebody thinks.
    let SentinelWrite { etag, says, clears } = write;
    let SentinelSays {
        title,
        description,
        severity,
        status,
        owner,
        classification,
        reason,
        comment,
        labels,
        first_activity,
        last_activity,
    } = says;
    let updating = etag.is_some();
    let mut properties = Map::new();
    let mut say = |member: &str, value: Value| properties.insert(member.to_owned(), value);
    say("title", json!(title));
    if updating || description.is_some() {
        say("description", json!(description.as_deref().unwrap_or_default()));
    }
    say("severity", json!(severity.as_str()));
    say("status", json!(status.as_str()));
    if updating || *owner != SentinelOwner::default() {
        say("owner", owner_of(owner));
    }
    if *clears || classification.is_some() {
        say("classification", json!(classification.as_ref().map(SentinelClassification::as_str)));
    }
    if *clears || reason.is_some() {
        say("classificationReason", json!(reason.as_ref().map(SentinelReason::as_str)));
    }
    if comment.is_some() || (updating && classification.is_some()) {
        say("classificationComment", json!(comment.as_deref().unwrap_or_default()));
    } else if *clears {
        say("classificationComment", Value::Null);
    }
    say("labels", labels.iter().map(label_of).collect());
    if let Some(at) = first_activity {
        say("firstActivityTimeUtc", json!(at));
    }
    if let Some(at) = last_activity {
        say("lastActivityTimeUtc", json!(at));
    }
    let mut body = Map::new();
    if let Some(etag) = etag {
        body.insert("etag".to_owned(), json!(etag));
    }
    body.insert("properties".to_owned(), Value::Object(properties));
    Value::Object(body).to_string().into_bytes()
}

/// The members that are there; nulls for nobody.
fn owner_of(owner: &SentinelOwner) -> Value {
    let SentinelOwner { object_id, email, upn, name, group } = owner;
    let members =
        [("objectId", object_id), ("email", email), ("userPrincipalName", upn), ("assignedTo", name)];
    let nobody = members.iter().all(|(_, value)| value.is_none());
    members
        .into_iter()
        .filter(|(_, value)| nobody || value.is_some())
        .map(|(member, value)| (member.to_owned(), json!(value)))
        .chain(group.then(|| ("ownerType".to_owned(), json!("Group"))))
        .collect()
}

fn label_of(label: &Label) -> Value {
    // `labelType` is the service's to set, except that a system label must come back as it was.
    if label.auto {
        json!({"labelName": label.name, "labelType": "AutoAssigned"})
    } else {
        json!({"labelName": label.name})
    }
}
