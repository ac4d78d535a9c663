//! Microsoft's own connector (`native-connector.md` §1, `sentinel.md` §5, §18): every incident of a tenant has a twin in
//! one workspace of that tenant, and their fields follow each other both ways.
//!
//! What the sources leave open is decided so: a clash goes to Defender; a determination survives while its
//! classification does, else it becomes `unknown`; comments that are there when a twin is made are not carried; a twin
//! that somebody deletes is not made again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::alerts::{SecurityAlert, from_defender};
use super::defender::{Tenant, person};
use super::sentinel::Workspace;
use super::{Caller, Moment, Person, Switch, Switches, World};

/// In whose name the connector and the correlation engine write.
pub const ENGINE: &str = "Microsoft Defender XDR";
/// In whose name Defender says what came from Sentinel.
const FROM_SENTINEL: &str = "Microsoft Sentinel";
/// Sentinel's limit on a description.
const DESCRIPTION_LIMIT: usize = 5_000;
/// The tag of a merged incident, which is the service's own.
const REDIRECTED: &str = "Redirected";
/// What follows the other side, each compared in its own side's words.
const FIELDS: [&str; 6] = ["title", "description", "severity", "owner", "verdict", "activity"];

/// How Microsoft's connector is switched.
pub const SWITCHES: &[Switch] = &[Switch {
    name: "nativeDelay",
    values: &["none", "held"],
    meaning: "when Microsoft's own connector carries a change: at once, or only with POST /native/flush \
              (native-connector.md 1.8)",
}];

/// One tenant connected to one workspace.
#[derive(Clone, Debug, Default)]
pub struct Native {
    tenant_id: String,
    on: bool,
    pairs: BTreeMap<String, Pair>,
    /// How often each side had changed when nothing was left to do.
    settled: Option<(u64, u64)>,
}

/// A Defender incident and its twin, with what each side last said.
#[derive(Clone, Debug)]
struct Pair {
    twin: String,
    defender: Value,
    sentinel: Value,
    defender_tags: Vec<String>,
    sentinel_tags: Vec<String>,
    /// How many of Defender's comments were seen; they are never removed.
    comments: usize,
    /// The names of Sentinel's comments that were seen.
    seen: BTreeSet<String>,
}

impl World {
    /// Connects a tenant to a workspace (its key), which must be its own and the only one.
    pub fn connect_native(&mut self, workspace: &str, tenant_id: &str) -> Result<(), String> {
        let Some(found) = self.workspaces.get(workspace) else {
            return Err(format!("workspace: there is none with the id {workspace:?}"));
        };
        if found.tenant_id != tenant_id {
            return Err(format!("workspace: it belongs to tenant {}, not to {tenant_id}", found.tenant_id));
        }
        let other = self
            .native
            .iter()
            .find(|(key, native)| native.on && native.tenant_id == tenant_id && *key != workspace);
        if let Some((other, _)) = other {
            return Err(format!("workspace: the tenant is connected to {other}, and to one only"));
        }
        let native = self.native.entry(workspace.to_owned()).or_default();
        tenant_id.clone_into(&mut native.tenant_id);
        native.on = true;
        native.settled = None;
        Ok(())
    }

    /// Ends a connection; the twins stay. Whether there was one.
    pub fn disconnect_native(&mut self, workspace: &str) -> bool {
        self.native.get_mut(workspace).is_some_and(|native| std::mem::take(&mut native.on))
    }

    /// Lets Microsoft's connector carry what changed, unless it is held. Call after every change.
    pub fn settle_native(&mut self, now: OffsetDateTime) {
        if self.switches.is("nativeDelay", "none") {
            self.flush_native(now);
        }
    }

    /// Lets Microsoft's connector carry what changed, held or not.
    pub fn flush_native(&mut self, now: OffsetDateTime) {
        let World { native, tenants, workspaces, switches, .. } = self;
        for (key, native) in native.iter_mut().filter(|(_, native)| native.on) {
            if let (Some(tenant), Some(workspace)) =
                (tenants.get_mut(&native.tenant_id), workspaces.get_mut(key))
            {
                native.settle(tenant, workspace, switches, now);
            }
        }
    }

    /// The connections, for `GET /state`.
    pub(super) fn describe_native(&self) -> Value {
        let described = self.native.iter().map(|(key, native)| {
            let twins: Map<String, Value> =
                native.pairs.iter().map(|(id, pair)| (id.clone(), json!(pair.twin))).collect();
            json!({"workspace": key, "tenantId": native.tenant_id, "on": native.on, "twins": twins})
        });
        described.collect()
    }
}

impl Native {
    fn settle(
        &mut self,
        tenant: &mut Tenant,
        workspace: &mut Workspace,
        switches: &Switches,
        now: OffsetDateTime,
    ) {
        if self.settled == Some((tenant.changes(), workspace.changes())) {
            return;
        }
        let caller = Caller {
            tenant_id: tenant.id.clone(),
            app_id: ENGINE.to_owned(),
            object_id: String::new(),
            user: None,
        };
        let moment = Moment { now, caller: &caller, switches };
        let mut incidents: Vec<Value> = tenant.incidents().cloned().collect();
        incidents.sort_by_key(|incident| (instant(&incident["createdDateTime"]), text(&incident["id"])));
        let provider = workspace.provider();
        let mut alerts: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for alert in tenant.alerts() {
            alerts.entry(text(&alert["incidentId"])).or_default().push(alert);
        }
        let mut carried: BTreeMap<String, (Vec<SecurityAlert>, Value)> = BTreeMap::new();
        for (incident, mut list) in alerts {
            list.sort_by_key(|alert| (instant(&alert["createdDateTime"]), text(&alert["id"])));
            let made = list.iter().map(|alert| from_defender(&provider, alert)).collect();
            carried.insert(incident, (made, activity(&list)));
        }
        let mut work = Vec::new();
        for incident in incidents {
            let id = text(&incident["id"]);
            let (alerts, times) = carried.remove(&id).unwrap_or_else(|| (Vec::new(), activity(&[])));
            let words = defender_words(&incident, &times);
            if !self.pairs.contains_key(&id) {
                let pair = Pair::begin(&incident, &words, &alerts, workspace, &moment);
                self.pairs.insert(id.clone(), pair);
            }
            work.push((id, incident, words, alerts));
        }
        let twins: BTreeMap<String, String> =
            self.pairs.iter().map(|(id, pair)| (id.clone(), pair.twin.clone())).collect();
        for (id, incident, words, alerts) in work {
            let target = twins.get(&text(&incident["redirectIncidentId"]));
            if let Some(pair) = self.pairs.get_mut(&id) {
                let target = target.map(String::as_str);
                pair.follow(&incident, &words, alerts, target, tenant, workspace, &moment);
            }
        }
        self.settled = Some((tenant.changes(), workspace.changes()));
    }
}

impl Pair {
    /// Makes the twin of an incident.
    fn begin(
        incident: &Value,
        words: &Value,
        alerts: &[SecurityAlert],
        workspace: &mut Workspace,
        moment: &Moment<'_>,
    ) -> Self {
        let mut members = Map::new();
        for field in FIELDS {
            to_sentinel(field, incident, words, &mut members);
        }
        members.entry("severity").or_insert(json!("Medium"));
        let tags = defender_tags(incident);
        members.insert("labels".into(), labels(&[], &tags, redirected(incident)));
        let id = text(&incident["id"]);
        let twin = workspace.make_twin(&id, &incident["createdDateTime"], members, alerts.to_vec(), moment);
        let made = workspace.incident(&twin).cloned().unwrap_or_default();
        Self {
            defender: words.clone(),
            sentinel: sentinel_words(&made),
            sentinel_tags: sentinel_tags(&made),
            defender_tags: tags,
            comments: incident["comments"].as_array().map_or(0, Vec::len),
            seen: BTreeSet::new(),
            twin,
        }
    }

    /// Carries what either side changed since it last spoke.
    #[expect(clippy::too_many_arguments, reason = "both sides, and what was read of them once for all pairs")]
    fn follow(
        &mut self,
        incident: &Value,
        words: &Value,
        alerts: Vec<SecurityAlert>,
        target: Option<&str>,
        tenant: &mut Tenant,
        workspace: &mut Workspace,
        moment: &Moment<'_>,
    ) {
        let id = text(&incident["id"]);
        let Some(twin) = workspace.incident(&self.twin).cloned() else { return };
        let gone = redirected(incident);
        let said = sentinel_words(&twin);
        let (mut there, mut here) = (Map::new(), Map::new());
        for field in FIELDS {
            if words[field] != self.defender[field] {
                to_sentinel(field, incident, words, &mut there);
            } else if said[field] != self.sentinel[field] && !gone {
                to_defender(field, incident, &twin, &mut here);
            }
        }
        let (ours, theirs) = (defender_tags(incident), sentinel_tags(&twin));
        let merged = |own: &[String], other: &[String], known: &[String], own_known: &[String]| {
            let has = |list: &[String], tag: &String| list.iter().any(|one| one.eq_ignore_ascii_case(tag));
            let mut next: Vec<String> = own
                .iter()
                .filter(|tag| has(other, tag) || !has(known, tag) || !has(own_known, tag))
                .cloned()
                .collect();
            for tag in other {
                if !has(known, tag) && !has(&next, tag) {
                    next.push(tag.clone());
                }
            }
            next
        };
        let next_labels = merged(&theirs, &ours, &self.defender_tags, &self.sentinel_tags);
        let known = twin["properties"]["labels"].as_array().cloned().unwrap_or_default();
        let marked = known.iter().any(|label| label["labelName"] == REDIRECTED);
        if next_labels != theirs || marked != gone {
            there.insert("labels".into(), labels(&known, &next_labels, gone));
        }
        if !gone {
            let mut next_tags = merged(&ours, &theirs, &self.sentinel_tags, &self.defender_tags);
            if next_tags != ours {
                let all = incident["customTags"].as_array().into_iter().flatten().map(text);
                next_tags.extend(all.filter(|tag| tag.eq_ignore_ascii_case(REDIRECTED)));
                here.insert("customTags".into(), json!(next_tags));
            }
        }
        workspace.update_twin(&self.twin, there, alerts, target, moment);
        tenant.edit(&id, &here, &json!(FROM_SENTINEL), moment.now);
        self.talk(&id, gone, tenant, workspace, moment);
        let Some(twin) = workspace.incident(&self.twin) else { return };
        self.sentinel = sentinel_words(twin);
        self.sentinel_tags = sentinel_tags(twin);
        if let Some(incident) = tenant.incident(&id) {
            self.defender_tags = defender_tags(incident);
            self.defender = defender_words(incident, &words["activity"]);
        }
    }

    /// Carries new comments, author and text as they are. Edits are not noticed.
    fn talk(
        &mut self,
        id: &str,
        gone: bool,
        tenant: &mut Tenant,
        workspace: &mut Workspace,
        moment: &Moment<'_>,
    ) {
        let heard = workspace.comments(&self.twin);
        let said = tenant.incident(id).and_then(|incident| incident["comments"].as_array().cloned());
        let said = said.unwrap_or_default();
        for comment in said.get(self.comments..).unwrap_or_default() {
            let by = [&comment["createdByDisplayName"], &comment["createdBy"]];
            let by = by.into_iter().find_map(Value::as_str).unwrap_or(ENGINE);
            let message = text(&comment["comment"]);
            if let Some(name) = workspace.comment_twin(&self.twin, by, &message, moment) {
                self.seen.insert(name);
            }
        }
        for comment in heard {
            if !self.seen.insert(text(&comment["name"])) || gone {
                continue;
            }
            let author = &comment["properties"]["author"];
            let by = [&author["name"], &author["userPrincipalName"]].into_iter().find_map(Value::as_str);
            // What Defender refuses is lost: the connector does not say so either.
            let message = text(&comment["properties"]["message"]);
            let _ = tenant.say(id, &message, by.unwrap_or(FROM_SENTINEL), moment);
        }
        let said = tenant.incident(id).and_then(|incident| incident["comments"].as_array().map(Vec::len));
        self.comments = said.unwrap_or(0);
    }
}

/// Somebody of whom only a name is known.
pub(super) fn speaker(name: &str) -> Person {
    person("", name)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn instant(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

fn redirected(incident: &Value) -> bool {
    incident["status"] == "redirected"
}

/// The first and the last activity of alerts.
fn activity(alerts: &[&Value]) -> Value {
    let all = |name: &str| {
        let name = name.to_owned();
        alerts.iter().map(move |alert| alert[&name].clone()).filter(|value| instant(value).is_some())
    };
    let first = all("firstActivityDateTime").min_by_key(instant);
    let last = all("lastActivityDateTime").max_by_key(instant);
    json!([first, last])
}

fn defender_words(incident: &Value, activity: &Value) -> Value {
    json!({
        "title": incident["displayName"], "description": incident["description"],
        "severity": incident["severity"], "owner": incident["assignedTo"], "activity": activity,
        "verdict": [incident["status"], incident["classification"], incident["determination"]],
    })
}

fn sentinel_words(twin: &Value) -> Value {
    let properties = &twin["properties"];
    json!({
        "title": properties["title"], "description": properties["description"],
        "severity": properties["severity"], "owner": owner(twin), "activity": null,
        "verdict": [properties["status"], properties["classification"], properties["classificationReason"]],
    })
}

/// The owner's name as Defender is told it.
fn owner(twin: &Value) -> Value {
    let owner = &twin["properties"]["owner"];
    let names = [&owner["userPrincipalName"], &owner["email"], &owner["assignedTo"]];
    let name = names.into_iter().find(|name| name.as_str().is_some_and(|name| !name.is_empty()));
    name.cloned().unwrap_or(Value::Null)
}

fn defender_tags(incident: &Value) -> Vec<String> {
    let tags = incident["customTags"].as_array().into_iter().flatten().map(text);
    tags.filter(|tag| !tag.eq_ignore_ascii_case(REDIRECTED)).collect()
}

fn sentinel_tags(twin: &Value) -> Vec<String> {
    let labels = twin["properties"]["labels"].as_array().into_iter().flatten();
    let tags = labels.filter(|label| label["labelType"] != "AutoAssigned");
    tags.map(|label| text(&label["labelName"])).filter(|tag| !tag.eq_ignore_ascii_case(REDIRECTED)).collect()
}

/// The labels of a twin with these tags: what the system assigned stays, apart from the mark of a merge.
fn labels(known: &[Value], tags: &[String], redirected: bool) -> Value {
    let assigned = known.iter().filter(|label| {
        label["labelType"] == "AutoAssigned" && (redirected || label["labelName"] != REDIRECTED)
    });
    let mut labels: Vec<Value> = assigned.cloned().collect();
    if redirected && !labels.iter().any(|label| label["labelName"] == REDIRECTED) {
        labels.push(json!({"labelName": REDIRECTED, "labelType": "AutoAssigned"}));
    }
    labels.extend(tags.iter().map(|tag| json!({"labelName": tag, "labelType": "User"})));
    Value::Array(labels)
}

/// A field of Defender's in Sentinel's words; null removes a member.
fn to_sentinel(field: &str, incident: &Value, words: &Value, members: &mut Map<String, Value>) {
    let mut set = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    match field {
        "title" => {
            let title = incident["displayName"].as_str().map(str::trim).filter(|title| !title.is_empty());
            set(
                "title",
                json!(title.map_or_else(|| format!("Incident {}", text(&incident["id"])), str::to_owned)),
            );
        }
        "description" => {
            let mut units = 0;
            let cut = incident["description"].as_str().filter(|text| !text.is_empty()).map(|text| {
                let fits = |c: &char| {
                    units += c.len_utf16();
                    units <= DESCRIPTION_LIMIT
                };
                text.chars().take_while(fits).collect::<String>()
            });
            set("description", json!(cut));
        }
        "severity" => match incident["severity"].as_str() {
            Some("informational") => set("severity", json!("Informational")),
            Some("low") => set("severity", json!("Low")),
            Some("medium") => set("severity", json!("Medium")),
            Some("high") => set("severity", json!("High")),
            _ => {}
        },
        "owner" => match incident["assignedTo"].as_str().filter(|name| !name.is_empty()) {
            Some(upn) if upn.contains('@') => set("owner", json!({"userPrincipalName": upn})),
            Some(name) => set("owner", json!({"assignedTo": name, "ownerType": "Unknown"})),
            None => set("owner", Value::Null),
        },
        "activity" => {
            let created = &incident["createdDateTime"];
            let [first, last] = [0, 1].map(|at| {
                let value = &words["activity"][at];
                if value.is_null() { created.clone() } else { value.clone() }
            });
            set("firstActivityTimeUtc", first);
            set("lastActivityTimeUtc", last);
        }
        _ => {
            let status = match incident["status"].as_str() {
                Some("inProgress" | "awaitingAction") => "Active",
                Some("resolved" | "redirected") => "Closed",
                _ => "New",
            };
            set("status", json!(status));
            let (classification, reason) = match incident["classification"].as_str() {
                _ if status != "Closed" => (Value::Null, Value::Null),
                _ if redirected(incident) => (json!("Undetermined"), Value::Null),
                Some("truePositive") => (json!("TruePositive"), json!("SuspiciousActivity")),
                Some("falsePositive") => (json!("FalsePositive"), json!("InaccurateData")),
                Some("informationalExpectedActivity") => {
                    (json!("BenignPositive"), json!("SuspiciousButExpected"))
                }
                _ => (json!("Undetermined"), Value::Null),
            };
            set("classification", classification);
            set("classificationReason", reason);
            if redirected(incident) {
                set("classificationComment", json!(""));
            } else if status != "Closed" {
                set("classificationComment", Value::Null);
            }
        }
    }
}

/// A field of Sentinel's in Defender's words.
fn to_defender(field: &str, incident: &Value, twin: &Value, members: &mut Map<String, Value>) {
    let properties = &twin["properties"];
    let mut set = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    match field {
        "title" => set("displayName", properties["title"].clone()),
        "description" => set("description", properties["description"].clone()),
        "severity" => set("severity", json!(text(&properties["severity"]).to_lowercase())),
        "owner" => set("assignedTo", owner(twin)),
        "verdict" => {
            let status = match properties["status"].as_str() {
                Some("Active") => "inProgress",
                Some("Closed") => "resolved",
                _ => "active",
            };
            set("status", json!(status));
            if status != "resolved" {
                return;
            }
            let classification = match properties["classification"].as_str() {
                Some("TruePositive") => "truePositive",
                Some("FalsePositive") => "falsePositive",
                Some("BenignPositive") => "informationalExpectedActivity",
                _ => "unknown",
            };
            if incident["classification"] != classification {
                set("classification", json!(classification));
                set("determination", json!("unknown"));
            }
        }
        _ => {}
    }
}
