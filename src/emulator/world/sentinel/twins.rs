//! The incidents that Microsoft's own connector keeps in a workspace: written without etag, in Defender's name.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::super::alerts::{SecurityAlert, guid};
use super::{Child, Kept, MOST_ALERTS, MOST_COMMENTS, Moment, Workspace, key, ordered};

impl Workspace {
    /// Grows with every change, so that a look that would find nothing new can be left out.
    pub(in crate::emulator::world) fn changes(&self) -> u64 {
        self.writes
    }

    /// An incident as it is now.
    pub(in crate::emulator::world) fn incident(&self, name: &str) -> Option<&Value> {
        self.incidents.get(&key(name)).map(|kept| &kept.now)
    }

    /// An incident's comments, oldest first.
    pub(in crate::emulator::world) fn comments(&self, name: &str) -> Vec<Value> {
        self.incidents.get(&key(name)).map(|kept| ordered(&kept.comments)).unwrap_or_default()
    }

    /// The id under which this workspace keeps what is Sentinel's.
    pub(in crate::emulator::world) fn provider(&self) -> String {
        format!("{}/providers/Microsoft.SecurityInsights", self.resource_id())
    }

    /// Makes the twin of a Defender incident, and answers its name.
    pub(in crate::emulator::world) fn make_twin(
        &mut self,
        incident: &str,
        created: &Value,
        members: Map<String, Value>,
        alerts: Vec<SecurityAlert>,
        moment: &Moment<'_>,
    ) -> String {
        let name = guid(&format!("twin:{}:{incident}:{}", self.key(), self.writes));
        self.counter += 1;
        let id = self.incident_id(&name);
        let url = format!("https://portal.azure.com/#asset/Microsoft_Azure_Security_Insights/Incident{id}");
        let mut properties = members;
        self.fill_owner(&mut properties);
        properties.retain(|_, value| !value.is_null());
        properties.entry("labels").or_insert(json!([]));
        for (name, value) in [
            ("createdTimeUtc", created.clone()),
            ("lastModifiedTimeUtc", json!(self.stamp(moment.now))),
            ("incidentNumber", json!(self.counter)),
            ("incidentUrl", json!(url)),
            ("providerName", json!("Microsoft XDR")),
            ("providerIncidentId", json!(incident)),
        ] {
            properties.insert(name.to_owned(), value);
        }
        let now = json!({
            "id": id, "name": name, "etag": self.etag(moment), "type": "Microsoft.SecurityInsights/Incidents",
            "properties": properties,
        });
        self.incidents.insert(key(&name), Kept { now, ..Kept::default() });
        self.relate(&name, alerts);
        self.count(&name);
        self.tell(&name, true, &[], moment);
        name
    }

    /// Changes a twin: these members (null removes one), these alerts, and where it was merged to. The etag changes
    /// when something really did.
    pub(in crate::emulator::world) fn update_twin(
        &mut self,
        name: &str,
        members: Map<String, Value>,
        alerts: Vec<SecurityAlert>,
        merged_into: Option<&str>,
        moment: &Moment<'_>,
    ) {
        let Some(before) = self.incident(name).cloned() else { return };
        let mut properties = before["properties"].as_object().cloned().unwrap_or_default();
        for (name, value) in members {
            properties.insert(name, value);
        }
        self.fill_owner(&mut properties);
        properties.retain(|_, value| !value.is_null());
        let added = self.relate(name, alerts);
        if let Some(kept) = self.incidents.get_mut(&key(name)) {
            kept.now["properties"] = Value::Object(properties);
            kept.merged_into = merged_into.map(str::to_owned);
        }
        self.count(name);
        if self.incident(name) == Some(&before) {
            return;
        }
        let (etag, stamp) = (self.etag(moment), self.stamp(moment.now));
        if let Some(kept) = self.incidents.get_mut(&key(name)) {
            kept.now["etag"] = json!(etag);
            kept.now["properties"]["lastModifiedTimeUtc"] = json!(stamp);
            kept.before = Some(before);
        }
        let added: Vec<(Child, &Value)> = added.iter().map(|relation| (Child::Relation, relation)).collect();
        self.tell(name, false, &added, moment);
    }

    /// A comment in another's name, under an id of its own. None when there is no room for it.
    pub(in crate::emulator::world) fn comment_twin(
        &mut self,
        name: &str,
        by: &str,
        message: &str,
        moment: &Moment<'_>,
    ) -> Option<String> {
        let kept = self.incidents.get(&key(name))?;
        if kept.comments.len() >= MOST_COMMENTS || message.is_empty() {
            return None;
        }
        let own = self.incident_id(kept.now["name"].as_str().unwrap_or(name));
        let id = guid(&format!("comment:{own}:{}", self.writes));
        let author = if by.contains('@') {
            let person = self.named(None, Some(by))?;
            let name = person.display_name;
            json!({"objectId": person.object_id, "email": by, "name": name, "userPrincipalName": by})
        } else {
            json!({"name": by})
        };
        let stamp = self.stamp(moment.now);
        let etag = self.etag(moment);
        let comment = json!({
            "id": format!("{own}/comments/{id}"), "name": id, "etag": etag.trim_matches('"'),
            "type": "Microsoft.SecurityInsights/Incidents/comments",
            "properties": {
                "message": message, "createdTimeUtc": stamp, "lastModifiedTimeUtc": stamp, "author": author,
            },
        });
        self.incidents.get_mut(&key(name))?.comments.insert(key(&id), comment.clone());
        self.child_changed(name, Child::Comment, moment);
        self.tell(name, false, &[(Child::Comment, &comment)], moment);
        Some(id)
    }

    /// Relates these alerts of Defender's and no others, up to the limit. Answers the new relations.
    fn relate(&mut self, name: &str, alerts: Vec<SecurityAlert>) -> Vec<Value> {
        let own = match self.incident(name) {
            Some(incident) => self.incident_id(incident["name"].as_str().unwrap_or(name)),
            None => return Vec::new(),
        };
        let Self { incidents, alerts: known, .. } = self;
        let Some(kept) = incidents.get_mut(&key(name)) else { return Vec::new() };
        let wanted: Vec<SecurityAlert> = alerts.into_iter().take(MOST_ALERTS).collect();
        kept.relations.retain(|_, relation| {
            let related = key(relation["properties"]["relatedResourceName"].as_str().unwrap_or_default());
            let native = known.get(&related).is_some_and(|alert| alert.from_defender);
            !native || wanted.iter().any(|alert| key(alert.name()) == related)
        });
        let mut added = Vec::new();
        for alert in wanted {
            let id = alert.name().to_owned();
            kept.relations.entry(key(&id)).or_insert_with(|| {
                let relation = json!({
                    "id": format!("{own}/relations/{id}"), "name": id, "etag": Uuid::nil(),
                    "type": "Microsoft.SecurityInsights/Incidents/relations",
                    "properties": {
                        "relatedResourceId": alert.entity["id"], "relatedResourceName": id,
                        "relatedResourceType": "Microsoft.SecurityInsights/entities",
                        "relatedResourceKind": "SecurityAlert",
                    },
                });
                added.push(relation.clone());
                relation
            });
            known.insert(key(&id), alert);
        }
        added
    }
}
