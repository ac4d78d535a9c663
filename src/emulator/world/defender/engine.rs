//! What happens to a tenant's incidents without an application's doing: the correlation engine's edits, and those of
//! Microsoft's own connector.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::super::Moment;
use super::super::native::{ENGINE, speaker};
use super::{Kept, Query, Tenant, in_service_case};

/// What an edit of the engine leaves in `lastModifiedBy` unless it is told otherwise (graph.md 8.5 knows no value).
const EDITOR: &str = "Microsoft 365 Defender";
/// What no edit changes: other operations do.
const FIXED: [&str; 8] = [
    "id",
    "tenantId",
    "alerts",
    "comments",
    "createdDateTime",
    "lastUpdateDateTime",
    "redirectIncidentId",
    "incidentWebUrl",
];

impl Tenant {
    /// Grows with every change, so that a look that would find nothing new can be left out.
    pub(in crate::emulator::world) fn changes(&self) -> u64 {
        self.stamps
    }

    /// All incidents as they are now.
    pub(in crate::emulator::world) fn incidents(&self) -> impl Iterator<Item = &Value> {
        self.incidents.values().map(|kept| &kept.now)
    }

    /// An incident as it is now.
    pub(in crate::emulator::world) fn incident(&self, id: &str) -> Option<&Value> {
        self.incidents.get(id).map(|kept| &kept.now)
    }

    /// All alerts as they are now.
    pub(in crate::emulator::world) fn alerts(&self) -> impl Iterator<Item = &Value> {
        self.alerts.values().map(|kept| &kept.now)
    }

    /// Changes members of an incident in another's name, whatever they are; the time moves when something really
    /// changed.
    pub(in crate::emulator::world) fn edit(
        &mut self,
        id: &str,
        changes: &Map<String, Value>,
        by: &Value,
        now: OffsetDateTime,
    ) -> bool {
        let Some(known) = self.incidents.get(id).map(|kept| kept.now.clone()) else { return false };
        if changes.iter().all(|(name, value)| known[name] == *value) {
            return false;
        }
        let stamp = self.stamp(now, false);
        let mut next = known.clone();
        for (name, value) in changes {
            next[name.as_str()] = value.clone();
        }
        next["lastUpdateDateTime"] = json!(stamp);
        next["lastModifiedBy"] = by.clone();
        self.incidents.insert(id.to_owned(), Kept { now: next, before: Some(known) });
        self.touched.push(super::Touched { incident: id.to_owned(), change: "updated" });
        true
    }

    /// An edit of the correlation engine's: any member but those that have operations of their own. It moves the time
    /// even when it changes nothing.
    pub fn engine_edit(&mut self, id: &str, body: &Value, now: OffsetDateTime) -> Result<(), String> {
        let members = body.as_object().ok_or("the body is an object of members and values")?;
        if let Some(name) = members.keys().find(|name| FIXED.contains(&name.as_str())) {
            return Err(format!("{name} is not changed by an edit"));
        }
        let stamp = self.stamp(now, false);
        let Some(kept) = self.incidents.get_mut(id) else {
            return Err(format!("there is no incident {id:?}"));
        };
        kept.before = Some(kept.now.clone());
        kept.now["lastModifiedBy"] = json!(EDITOR);
        for (name, value) in members {
            kept.now[name.as_str()] = in_service_case(name, value);
        }
        kept.now["lastUpdateDateTime"] = json!(stamp);
        self.touched.push(super::Touched { incident: id.to_owned(), change: "updated" });
        Ok(())
    }

    /// Takes a merge back: the source is active again and points nowhere. Its alerts stay where they are.
    pub fn unmerge(&mut self, source: &str, now: OffsetDateTime) -> Result<(), String> {
        match self.incidents.get(source) {
            None => return Err(format!("source: there is no incident {source:?}")),
            Some(kept) if kept.now["status"] != "redirected" => {
                return Err(format!("source: incident {source} was not merged into another"));
            }
            Some(_) => {}
        }
        let stamp = self.stamp(now, false);
        self.touch(source, &stamp);
        if let Some(kept) = self.incidents.get_mut(source) {
            kept.now["status"] = json!("active");
            kept.now["redirectIncidentId"] = Value::Null;
            kept.now["lastModifiedBy"] = json!(ENGINE);
            for list in ["systemTags", "customTags"] {
                if let Some(tags) = kept.now[list].as_array_mut() {
                    tags.retain(|tag| tag != "Redirected");
                }
            }
        }
        Ok(())
    }

    /// Whether there is such an alert.
    pub fn has_alert(&self, id: &str) -> bool {
        self.alerts.contains_key(id)
    }

    /// Moves an alert to another incident (graph.md 9); both are touched as by any change of an alert.
    pub fn move_alert(&mut self, id: &str, incident: &str, moment: &Moment<'_>) -> Result<(), String> {
        if !self.incidents.contains_key(incident) {
            return Err(format!("incident: there is no incident {incident:?}"));
        }
        let stamp = self.stamp(moment.now, false);
        let Some(kept) = self.alerts.get_mut(id) else { return Err(format!("there is no alert {id:?}")) };
        kept.before = Some(kept.now.clone());
        let from = kept.now["incidentId"].as_str().unwrap_or_default().to_owned();
        kept.now["incidentId"] = json!(incident);
        kept.now["lastUpdateDateTime"] = json!(stamp);
        if moment.switches.is("alertsTouch", "on") {
            self.touch(&from, &stamp);
            let second = self.stamp(moment.now, false);
            self.touch(incident, &second);
        }
        Ok(())
    }

    /// A comment by somebody whose name is given, as the portal makes it.
    pub fn say(&mut self, id: &str, text: &str, by: &str, moment: &Moment<'_>) -> Result<(), String> {
        let caller = super::super::Caller { user: Some(speaker(by)), ..moment.caller.clone() };
        let moment = Moment { caller: &caller, ..*moment };
        let said = self.comment(false, id, &json!({"comment": text}), &Query::default(), &moment);
        said.map(|_| ()).map_err(|refusal| refusal.message)
    }
}
