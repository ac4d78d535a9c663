//! Bookmarks of a workspace: resources of their own, shown as entities by the incidents that they are related to
//! (`sentinel.md` §9, §20). Their own paths are not in the stored specification; the members are those of the entity.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::alerts::entity;
use super::{Answer, Child, Kept, Moment, Refusal, Workspace, bad, key, list, missing, page_size, related};

/// What a PUT may set beside the required members; the last three in preview versions.
const OPTIONAL: [&str; 9] = [
    "queryResult",
    "notes",
    "labels",
    "eventTime",
    "queryStartTime",
    "queryEndTime",
    "entityMappings",
    "tactics",
    "techniques",
];

impl Workspace {
    /// `GET /bookmarks`
    pub fn list_bookmarks(
        &self,
        options: &[(String, String)],
        link: &dyn Fn(&str) -> String,
        moment: &Moment<'_>,
    ) -> Answer {
        let all = self.bookmarks.values().map(|bookmark| self.with_incident(bookmark)).collect();
        list(all, options, "properties/created desc", page_size(moment), link)
    }

    /// `GET /bookmarks/{name}`
    pub fn get_bookmark(&self, name: &str) -> Answer {
        let found = self.bookmarks.get(&key(name)).ok_or_else(|| missing("Bookmark", name))?;
        Ok((200, self.with_incident(found)))
    }

    /// `PUT /bookmarks/{name}`
    pub fn put_bookmark(&mut self, name: &str, body: &Value, moment: &Moment<'_>) -> Answer {
        if name.is_empty() || name.len() > 260 {
            return Err(bad("The bookmark id is empty or too long."));
        }
        let known = self.bookmarks.get(&key(name)).cloned();
        if let (Some(known), Some(etag)) = (&known, body["etag"].as_str())
            && known["etag"] != etag
        {
            let message = format!("Newer version of resource '{name}' exists. Data was not saved");
            return Err(Refusal::new(409, "Conflict", message));
        }
        let given = &body["properties"];
        let wrong =
            |what: &str| bad(format!("Invalid data model.\n[: Invalid Properties for bookmark: {what}]"));
        let mut properties = Map::new();
        for name in ["displayName", "query"] {
            let text = given[name].as_str().filter(|text| !text.is_empty());
            let text = text.ok_or_else(|| wrong(&format!("'{name}' is required")))?;
            properties.insert(name.to_owned(), json!(text));
        }
        for name in OPTIONAL {
            let value = &given[name];
            let fits = match name {
                "labels" | "tactics" | "techniques" => {
                    value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
                }
                "entityMappings" => value.is_array(),
                "queryResult" | "notes" => value.is_string(),
                _ => value.as_str().is_some_and(|text| OffsetDateTime::parse(text, &Rfc3339).is_ok()),
            };
            if !value.is_null() && !fits {
                return Err(wrong(&format!("'{name}' has an invalid value")));
            }
            if fits {
                properties.insert(name.to_owned(), value.clone());
            }
        }
        properties.entry("labels").or_insert(json!([]));
        let by = match &moment.caller.user {
            Some(person) => {
                json!({"objectId": person.object_id, "email": person.upn, "name": person.display_name})
            }
            None => json!({"objectId": moment.caller.object_id, "name": moment.caller.app_id}),
        };
        let stamp = json!(self.stamp(moment.now));
        let made = |name: &str, fresh: &Value| {
            known.as_ref().map_or_else(|| fresh.clone(), |known| known["properties"][name].clone())
        };
        for (name, value) in [
            ("created", made("created", &stamp)),
            ("createdBy", made("createdBy", &by)),
            ("updated", stamp.clone()),
            ("updatedBy", by.clone()),
        ] {
            properties.insert(name.to_owned(), value);
        }
        let name = known.as_ref().and_then(|known| known["name"].as_str()).unwrap_or(name).to_owned();
        let bookmark = json!({
            "id": format!("{}/bookmarks/{name}", self.provider()), "name": name, "etag": self.etag(moment),
            "type": "Microsoft.SecurityInsights/bookmarks", "properties": properties,
        });
        let status = if known.is_some() { 200 } else { 201 };
        self.bookmarks.insert(key(&name), bookmark.clone());
        Ok((status, self.with_incident(&bookmark)))
    }

    /// `DELETE /bookmarks/{name}`: its relations go with it.
    pub fn delete_bookmark(&mut self, name: &str, moment: &Moment<'_>) -> Answer {
        if self.bookmarks.remove(&key(name)).is_none() {
            return Ok((204, Value::Null));
        }
        let to_it = |relation: &Value| {
            let properties = &relation["properties"];
            properties["relatedResourceType"].as_str().is_some_and(|kind| kind.ends_with("bookmarks"))
                && properties["relatedResourceName"].as_str().is_some_and(|known| key(known) == key(name))
        };
        let mut lost = Vec::new();
        for (incident, kept) in &mut self.incidents {
            let before = kept.relations.len();
            kept.relations.retain(|_, relation| !to_it(relation));
            if kept.relations.len() < before {
                lost.push(incident.clone());
            }
        }
        for incident in lost {
            self.child_changed(&incident, Child::Relation, moment);
        }
        Ok((200, Value::Null))
    }

    /// A bookmark with the incident that it is related to.
    fn with_incident(&self, bookmark: &Value) -> Value {
        let mut bookmark = bookmark.clone();
        let own = bookmark["name"].as_str().map(key).unwrap_or_default();
        let found = self.incidents.values().find_map(|kept| {
            let relation = kept.relations.values().find(|relation| {
                let properties = &relation["properties"];
                properties["relatedResourceType"] == "Microsoft.SecurityInsights/bookmarks"
                    && properties["relatedResourceName"].as_str().is_some_and(|name| key(name) == own)
            })?;
            Some((kept, relation["name"].clone()))
        });
        if let Some((kept, relation)) = found {
            let incident = &kept.now;
            bookmark["properties"]["incidentInfo"] = json!({
                "incidentId": incident["name"], "severity": incident["properties"]["severity"],
                "title": incident["properties"]["title"], "relationName": relation,
            });
        }
        bookmark
    }

    fn known_bookmarks<'w>(&'w self, kept: &'w Kept) -> impl Iterator<Item = &'w Value> {
        related(kept, "bookmarks").filter_map(|properties| {
            self.bookmarks.get(&key(properties["relatedResourceName"].as_str().unwrap_or_default()))
        })
    }

    /// The bookmarks of an incident as entities.
    pub(super) fn bookmarks_of(&self, kept: &Kept) -> Vec<Value> {
        let shown = self.known_bookmarks(kept).map(|bookmark| {
            let mut properties = bookmark["properties"].clone();
            properties["friendlyName"] = properties["displayName"].clone();
            properties["additionalData"] = json!({"ETag": bookmark["etag"], "EntityId": bookmark["name"]});
            json!({
                "id": bookmark["id"], "name": bookmark["name"], "type": "Microsoft.SecurityInsights/Entities",
                "kind": "Bookmark", "properties": properties,
            })
        });
        shown.collect()
    }

    /// The entities that an incident's bookmarks map.
    pub(super) fn mapped_entities(&self, kept: &Kept) -> Vec<Value> {
        let provider = self.provider();
        let mappings = self
            .known_bookmarks(kept)
            .flat_map(|bookmark| bookmark["properties"]["entityMappings"].as_array().into_iter().flatten());
        mappings.filter_map(|mapping| mapped(&provider, mapping)).collect()
    }
}

/// `{entityType, fieldMappings: [{identifier, value}]}` as an entity.
fn mapped(provider: &str, mapping: &Value) -> Option<Value> {
    let kind = mapping["entityType"].as_str()?;
    let mut members = Map::new();
    for field in mapping["fieldMappings"].as_array()? {
        let (identifier, value) = (field["identifier"].as_str()?, field["value"].as_str()?);
        let name = match (kind, identifier) {
            ("Account", "Name" | "FullName") => "accountName".to_owned(),
            ("Account", "UPNSuffix") => "upnSuffix".to_owned(),
            ("Account", "NTDomain") => "ntDomain".to_owned(),
            ("File", "Name") => "fileName".to_owned(),
            ("FileHash", "Value") => "hashValue".to_owned(),
            _ => {
                let mut chars = identifier.chars();
                chars.next()?.to_lowercase().chain(chars).collect()
            }
        };
        members.insert(name, json!(value));
    }
    let friendly = members.values().next()?.as_str()?.to_owned();
    Some(entity(provider, kind, &friendly, &members))
}
