//! What happens to a tenant's incidents without an application's doing: the correlation engine's edits, and those of
//! Microsoft's own connector.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{Kept, Tenant};

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
}
