//! Alerts that a workspace has of its own, as analytics rules make them: the API cannot write any, and relates what is
//! there (`sentinel.md` §9).

use serde_json::{Map, Value, json};

use super::super::alerts::{SecurityAlert, entity, guid};
use super::{Answer, Child, Moment, Workspace, key, missing};

const MEMBERS: [&str; 10] = [
    "systemAlertId",
    "alertDisplayName",
    "description",
    "severity",
    "status",
    "productName",
    "tactics",
    "techniques",
    "analyticRuleId",
    "entities",
];

impl Workspace {
    /// Puts an alert there, or a newer version of it; incidents that have it follow. Answers its id.
    pub fn put_alert(&mut self, order: &Value, moment: &Moment<'_>) -> Result<String, String> {
        let given = order.as_object().ok_or("an alert is a JSON object")?;
        if let Some(name) =
            given.keys().find(|name| !MEMBERS.contains(&name.as_str()) && *name != "workspace")
        {
            return Err(format!("an alert has no member {name:?}; it has {}", MEMBERS.join(", ")));
        }
        let text = |name: &str| match given.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str())),
            Some(_) => Err(format!("{name} is a text that is not empty")),
        };
        let texts = |name: &str| match given.get(name) {
            None | Some(Value::Null) => Ok(json!([])),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => Ok(json!(list)),
            Some(_) => Err(format!("{name} is a list of texts")),
        };
        let provider = self.provider();
        self.writes += 1;
        let name = match text("systemAlertId")? {
            Some(id) => id.to_owned(),
            None => guid(&format!("detection:{}:{}", self.key(), self.writes)),
        };
        let title = text("alertDisplayName")?.unwrap_or("Suspicious activity");
        let stamp = self.stamp(moment.now);
        let mut properties = json!({
            "systemAlertId": name, "alertDisplayName": title, "friendlyName": title,
            "severity": text("severity")?.unwrap_or("Medium"), "status": text("status")?.unwrap_or("New"),
            "productName": text("productName")?.unwrap_or("Azure Sentinel"), "vendorName": "Microsoft",
            "tactics": texts("tactics")?, "techniques": texts("techniques")?, "confidenceLevel": "Unknown",
            "timeGenerated": stamp, "startTimeUtc": stamp, "endTimeUtc": stamp,
        });
        if let Some(description) = text("description")? {
            properties["description"] = json!(description);
        }
        let rule = text("analyticRuleId")?.map(|rule| match rule.starts_with('/') {
            true => rule.to_owned(),
            false => format!("{provider}/alertRules/{rule}"),
        });
        let mut entities = Vec::new();
        for one in given.get("entities").and_then(Value::as_array).into_iter().flatten() {
            let (Some(kind), Some(members)) = (one["kind"].as_str(), one["properties"].as_object()) else {
                return Err("entities is a list of objects with kind and properties".to_owned());
            };
            let friendly = members.values().find_map(Value::as_str).unwrap_or(kind);
            entities.push(entity(&provider, kind, friendly, &Map::clone(members)));
        }
        let entity = json!({
            "id": format!("{provider}/Entities/{name}"), "name": name,
            "type": "Microsoft.SecurityInsights/Entities", "kind": "SecurityAlert", "properties": properties,
        });
        let alert = SecurityAlert { entity, entities, rule, from_defender: false };
        self.alerts.insert(key(&name), alert);
        let to_it = |relation: &Value| {
            relation["properties"]["relatedResourceName"]
                .as_str()
                .is_some_and(|known| key(known) == key(&name))
        };
        let having = self.incidents.iter().filter(|(_, kept)| kept.relations.values().any(to_it));
        let having: Vec<String> = having.map(|(incident, _)| incident.clone()).collect();
        for incident in having {
            self.child_changed(&incident, Child::Relation, moment);
        }
        Ok(name)
    }

    /// `GET /entities/{id}`: an alert, or what an alert carries.
    pub fn get_entity(&self, name: &str) -> Answer {
        let of_alert = self.alerts.get(&key(name)).map(|alert| &alert.entity);
        let carried = || {
            let mut all = self.alerts.values().flat_map(|alert| &alert.entities);
            all.find(|entity| entity["name"].as_str().is_some_and(|known| key(known) == key(name)))
        };
        let found = of_alert.or_else(carried).ok_or_else(|| missing("Entity", name))?;
        Ok((200, found.clone()))
    }
}
