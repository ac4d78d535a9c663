//! One workspace's incidents with their comments, relations and tasks, as Microsoft Sentinel serves them through ARM
//! (`sentinel.md` §1 to §12). The optimistic lock is the `etag` in the body.

mod bookmarks;
mod detections;
mod twins;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::alerts::SecurityAlert;
use super::defender::{format_instant, person};
use super::native::ENGINE;
use super::{Answer, Moment, Person, Refusal, Switch};
use crate::domain::model::workspace_id;
use crate::emulator::odata::{Filter, OrderBy};

/// The behaviours of Sentinel that the reference leaves uncertain.
pub const SWITCHES: &[Switch] = &[
    Switch {
        name: "omittedMembers",
        values: &["cleared", "kept"],
        meaning: "what a PUT does to writable members that it leaves out (sentinel.md 3)",
    },
    Switch {
        name: "missingEtag",
        values: &["unconditional", "conflict"],
        meaning: "what an update without an etag is taken for (sentinel.md 4)",
    },
    Switch {
        name: "ifNoneMatch",
        values: &["ignored", "heeded"],
        meaning: "whether a PUT with the header If-None-Match: * is refused where the incident exists (sentinel.md 4)",
    },
    Switch {
        name: "staleEtag",
        values: &["409", "412"],
        meaning: "the status that refuses an update under an old etag (sentinel.md 4)",
    },
    Switch {
        name: "strictVerdict",
        values: &["off", "on"],
        meaning: "whether Closed without a classification, an invalid pair, or a classification on an open incident is a \
                  400 (sentinel.md 5)",
    },
    Switch {
        name: "sentinelCommentsTouch",
        values: &["on", "off"],
        meaning: "whether a comment moves the incident's lastModifiedTimeUtc (sentinel.md 11)",
    },
    Switch {
        name: "commentEditsTouch",
        values: &["on", "off"],
        meaning: "whether an edit of a comment changes anything of the incident, its etag included, and is told to \
                  playbooks (sentinel.md 4, 8, 16.1)",
    },
    Switch {
        name: "tasksTouch",
        values: &["on", "off"],
        meaning: "whether tasks and relations change the incident's etag (sentinel.md 4)",
    },
    Switch {
        name: "etagQuotes",
        values: &["inner", "none"],
        meaning: "whether an incident's etag holds double quotes (sentinel.md 2)",
    },
    Switch {
        name: "emptyOwner",
        values: &["absent", "empty", "nulls"],
        meaning: "how an incident that nobody owns shows its owner (sentinel.md 6)",
    },
    Switch {
        name: "reopenKeepsVerdict",
        values: &["off", "on"],
        meaning: "whether a classification survives on a reopened incident when a PUT leaves it out (sentinel.md 5)",
    },
    Switch {
        name: "armRetryAfter",
        values: &["seconds", "absent"],
        meaning: "the Retry-After header of ARM's 429 (sentinel.md 13)",
    },
    Switch {
        name: "defenderSwitch",
        values: &["off", "on"],
        meaning: "whether the workspace is onboarded to the Defender portal: relations to alerts are refused \
                  (sentinel.md 9, 18)",
    },
    Switch {
        name: "unknownAlerts",
        values: &["exist", "missing"],
        meaning: "whether any alert can be related, or only one that Defender or a rule has put into the workspace \
                  (sentinel.md 9)",
    },
    Switch {
        name: "onboardedBookmarks",
        values: &["taken", "refused"],
        meaning: "whether an onboarded workspace takes relations to bookmarks: alerts alone are named as refused \
                  (sentinel.md 9, 18)",
    },
    Switch {
        name: "createdProvider",
        values: &["Azure Sentinel", "Microsoft XDR"],
        meaning: "the providerName of an incident that is made by PUT in an onboarded workspace: the first was seen, the \
                  second is documented of all incidents there (sentinel.md 2, 18)",
    },
    Switch {
        name: "labelLimit",
        values: &["none", "50"],
        meaning: "how many characters a label may have; more is a 400, and no limit is published (sentinel.md 7, 12)",
    },
    Switch {
        name: "commentRefused",
        values: &["off", "html"],
        meaning: "whether a comment whose text contains <script is a 400: which markup is taken is not published \
                  (sentinel.md 8)",
    },
    Switch {
        name: "armPageSize",
        values: &["50", "10", "3"],
        meaning: "how many objects a page holds without $top (sentinel.md 11)",
    },
    Switch {
        name: "workspaceGone",
        values: &["ResourceNotFound", "WorkspaceNotFound"],
        meaning: "the code of the 404 for a workspace that is not there (sentinel.md 13)",
    },
];

const TOP_CEILING: usize = 1_000;
const DESCRIPTION_LIMIT: usize = 5_000;
const COMMENT_LIMIT: usize = 30_000;
/// Where the switch `labelLimit` sets one.
const LABEL_LIMIT: usize = 50;
const MOST_COMMENTS: usize = 100;
const MOST_TASKS: usize = 40;
const MOST_ALERTS: usize = 150;
const MOST_BOOKMARKS: usize = 20;

const SEVERITIES: [&str; 4] = ["High", "Medium", "Low", "Informational"];
const STATUSES: [&str; 3] = ["New", "Active", "Closed"];
const CLASSIFICATIONS: [&str; 4] = ["Undetermined", "TruePositive", "BenignPositive", "FalsePositive"];
const REASONS: [&str; 4] =
    ["SuspiciousActivity", "SuspiciousButExpected", "IncorrectAlertLogic", "InaccurateData"];
/// The writable members beside title, severity and status.
const OPTIONAL: [&str; 8] = [
    "description",
    "classification",
    "classificationReason",
    "classificationComment",
    "owner",
    "labels",
    "firstActivityTimeUtc",
    "lastActivityTimeUtc",
];

/// What hangs on an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// `/comments`
    Comment,
    /// `/relations`
    Relation,
    /// `/tasks`
    Task,
}

impl Child {
    /// The path segment.
    pub const fn segment(self) -> &'static str {
        match self {
            Child::Comment => "comments",
            Child::Relation => "relations",
            Child::Task => "tasks",
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Kept {
    now: Value,
    before: Option<Value>,
    comments: BTreeMap<String, Value>,
    relations: BTreeMap<String, Value>,
    tasks: BTreeMap<String, Value>,
    /// The name of the incident that it was merged into.
    merged_into: Option<String>,
}

impl Kept {
    fn children(&self, child: Child) -> &BTreeMap<String, Value> {
        match child {
            Child::Comment => &self.comments,
            Child::Relation => &self.relations,
            Child::Task => &self.tasks,
        }
    }

    fn children_mut(&mut self, child: Child) -> &mut BTreeMap<String, Value> {
        match child {
            Child::Comment => &mut self.comments,
            Child::Relation => &mut self.relations,
            Child::Task => &mut self.tasks,
        }
    }
}

/// A change that playbooks hear of.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    /// The incident as it is after the change, with its comments.
    pub incident: Value,
    /// The incident's comments, oldest first.
    pub comments: Vec<Value>,
    /// The alerts that are related to it.
    pub alerts: Vec<Value>,
    /// The bookmarks that are related to it.
    pub bookmarks: Vec<Value>,
    /// The entities that its alerts carry.
    pub entities: Vec<Value>,
    /// What this change added: `alerts`, `labels`, `comments`, each a list.
    pub added: Value,
    /// Whether it was created by this change.
    pub created: bool,
    /// Who changed it: the display name of a person, or an application's id.
    pub by: String,
    /// Whether that was a person.
    pub by_user: bool,
}

/// A workspace.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The subscription, as it was given.
    pub subscription_id: String,
    /// The resource group, as it was given.
    pub resource_group: String,
    /// The name, as it was given.
    pub workspace_name: String,
    /// The tenant it belongs to, in lower case.
    pub tenant_id: String,
    incidents: BTreeMap<String, Kept>,
    alerts: BTreeMap<String, SecurityAlert>,
    bookmarks: BTreeMap<String, Value>,
    counter: u64,
    writes: u64,
    last_stamp: Option<OffsetDateTime>,
    /// Everybody who was named here with both id and principal name, so that the id alone names them again.
    people: Vec<Person>,
    /// Changes that nobody has taken yet.
    pub touched: Vec<Touched>,
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "BadRequest", message)
}

fn invalid(what: &str) -> Refusal {
    bad(format!("Invalid data model.\n[: Invalid Properties for incident: {what}]"))
}

fn missing(what: &str, name: &str) -> Refusal {
    Refusal::new(404, "NotFound", format!("{what} '{name}' does not exist."))
}

fn key(name: &str) -> String {
    name.to_lowercase()
}

impl Workspace {
    /// An empty workspace.
    pub fn new(tenant_id: &str, subscription_id: &str, resource_group: &str, workspace_name: &str) -> Self {
        Self {
            subscription_id: subscription_id.to_owned(),
            resource_group: resource_group.to_owned(),
            workspace_name: workspace_name.to_owned(),
            tenant_id: tenant_id.to_lowercase(),
            incidents: BTreeMap::new(),
            alerts: BTreeMap::new(),
            bookmarks: BTreeMap::new(),
            counter: 0,
            writes: 0,
            last_stamp: None,
            people: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// The key under which the world keeps it.
    pub fn key(&self) -> String {
        workspace_id(&self.subscription_id, &self.resource_group, &self.workspace_name)
    }

    /// The resource id as ARM writes it.
    pub fn resource_id(&self) -> String {
        let Self { subscription_id, resource_group, workspace_name, .. } = self;
        format!(
            "/subscriptions/{subscription_id}/resourceGroups/{resource_group}/providers/\
             Microsoft.OperationalInsights/workspaces/{workspace_name}"
        )
    }

    fn incident_id(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.SecurityInsights/Incidents/{name}", self.resource_id())
    }

    /// A time stamp with up to seven fraction digits, later than every one before.
    fn stamp(&mut self, now: OffsetDateTime) -> String {
        let step = time::Duration::nanoseconds(100);
        let at = self.last_stamp.map_or(now, |last| now.max(last + step));
        self.last_stamp = Some(at);
        format_instant(at)
    }

    fn etag(&mut self, moment: &Moment<'_>) -> String {
        self.writes += 1;
        let seconds = moment.now.unix_timestamp() & 0xffff_ffff;
        let tag = format!("{:08x}-0000-2000-0000-{seconds:08x}0000", self.writes);
        if moment.switches.is("etagQuotes", "none") { tag } else { format!("\"{tag}\"") }
    }

    /// Everything, for `GET /state`.
    pub fn describe(&self) -> Value {
        let incidents: Vec<&Value> = self.incidents.values().map(|kept| &kept.now).collect();
        let of = |child: Child| {
            let all = self.incidents.values().filter(|kept| !kept.children(child).is_empty());
            let named = all.map(|kept| {
                let name = kept.now["name"].as_str().unwrap_or_default().to_owned();
                (name, Value::Array(ordered(kept.children(child))))
            });
            Value::Object(named.collect())
        };
        json!({
            "incidents": incidents,
            "comments": of(Child::Comment),
            "relations": of(Child::Relation),
            "tasks": of(Child::Task),
            "alerts": self.alerts.values().map(|alert| &alert.entity).collect::<Vec<_>>(),
            "bookmarks": self.bookmarks.values().collect::<Vec<_>>(),
        })
    }

    fn kept(&self, name: &str) -> Result<&Kept, Refusal> {
        self.incidents.get(&key(name)).ok_or_else(|| missing("Incident", name))
    }

    // ---- incidents -----------------------------------------------------------------------------------------------

    /// `GET /incidents/{name}`
    pub fn get_incident(&self, name: &str, stale: bool, moment: &Moment<'_>) -> Answer {
        let kept = self.kept(name)?;
        let seen = if stale { kept.before.as_ref().unwrap_or(&kept.now) } else { &kept.now };
        Ok((200, shown(seen, moment)))
    }

    /// `GET /incidents`. `link` makes the next link of a token.
    pub fn list_incidents(
        &self,
        options: &[(String, String)],
        stale: bool,
        link: &dyn Fn(&str) -> String,
        moment: &Moment<'_>,
    ) -> Answer {
        let all = self.incidents.values();
        let all = all.map(|kept| if stale { kept.before.as_ref().unwrap_or(&kept.now) } else { &kept.now });
        let all: Vec<Value> = all.map(|value| shown(value, moment)).collect();
        // Newest first is how the observed page stands.
        list(all, options, "properties/incidentNumber desc", page_size(moment), link)
    }

    /// `PUT /incidents/{name}`: creates, or replaces under the etag.
    pub fn put_incident(&mut self, name: &str, body: &Value, moment: &Moment<'_>) -> Answer {
        if name.is_empty() || name.len() > 260 {
            return Err(bad("The incident id is empty or too long."));
        }
        let existing = self.incidents.get(&key(name)).cloned();
        let properties = body["properties"].as_object().ok_or_else(|| invalid("'properties' is required"))?;
        if let Some(kept) = &existing {
            check_etag(&kept.now, body, moment)?;
        }
        let mut next = checked(properties, existing.as_ref().map(|kept| &kept.now), moment)?;
        if let Some(user) = &moment.caller.user {
            self.meet(user);
        }
        self.fill_owner(&mut next);
        let stamp = self.stamp(moment.now);
        let created = existing.is_none();
        let (number, created_at) = match &existing {
            Some(kept) => (
                kept.now["properties"]["incidentNumber"].clone(),
                kept.now["properties"]["createdTimeUtc"].clone(),
            ),
            None => {
                self.counter += 1;
                (json!(self.counter), json!(stamp))
            }
        };
        let id = self.incident_id(name);
        next.insert("lastModifiedTimeUtc".into(), json!(stamp));
        next.insert("createdTimeUtc".into(), created_at);
        next.insert("incidentNumber".into(), number.clone());
        let (provider, provider_id) = match &existing {
            Some(kept) => (
                kept.now["properties"]["providerName"].clone(),
                kept.now["properties"]["providerIncidentId"].clone(),
            ),
            None if moment.switches.is("defenderSwitch", "on")
                && moment.switches.is("createdProvider", "Microsoft XDR") =>
            {
                // A number of Defender's, which nobody shall take for the workspace's.
                (json!("Microsoft XDR"), json!((900_000 + self.counter).to_string()))
            }
            None => (json!("Azure Sentinel"), json!(number.to_string())),
        };
        next.insert("providerName".into(), provider);
        next.insert("providerIncidentId".into(), provider_id);
        let url = format!("https://portal.azure.com/#asset/Microsoft_Azure_Security_Insights/Incident{id}");
        next.insert("incidentUrl".into(), json!(url));
        let counted = existing.clone().unwrap_or_default();
        let name = existing.as_ref().and_then(|kept| kept.now["name"].as_str()).unwrap_or(name).to_owned();
        let now = json!({
            "id": id,
            "name": name,
            "etag": self.etag(moment),
            "type": "Microsoft.SecurityInsights/Incidents",
            "properties": next,
        });
        let before = existing.map(|kept| kept.now);
        self.incidents.insert(key(&name), Kept { now, before, ..counted });
        self.count(&name);
        self.tell(&name, created, &[], moment);
        Ok((if created { 201 } else { 200 }, shown(&self.kept(&name)?.now, moment)))
    }

    /// Whether there is an incident of this name.
    pub fn has(&self, name: &str) -> bool {
        self.incidents.contains_key(&key(name))
    }

    /// `DELETE /incidents/{name}`
    pub fn delete_incident(&mut self, name: &str) -> Answer {
        Ok((if self.incidents.remove(&key(name)).is_some() { 200 } else { 204 }, Value::Null))
    }

    /// Everybody who was named here.
    pub fn people(&self) -> impl Iterator<Item = &Person> {
        self.people.iter()
    }

    /// Whoever has this name or this id from now on.
    pub fn introduce(&mut self, person: &Person) {
        self.part_with(person);
        self.people.push(person.clone());
    }

    /// Somebody whom the directory does not know any more.
    pub fn part_with(&mut self, person: &Person) {
        self.people.retain(|met| {
            !met.upn.eq_ignore_ascii_case(&person.upn)
                && !met.object_id.eq_ignore_ascii_case(&person.object_id)
        });
    }

    fn meet(&mut self, person: &Person) {
        if !self.people.contains(person) {
            self.people.push(person.clone());
        }
    }

    /// Owner members that follow from the one that was given, as the directory has them.
    fn fill_owner(&mut self, next: &mut Map<String, Value>) {
        let Some(Value::Object(owner)) = next.get_mut("owner") else { return };
        let text = |name: &str| owner.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(named) = self.named(text("objectId"), text("userPrincipalName").or(text("email"))) else {
            return;
        };
        self.meet(&named);
        let Person { object_id, upn, display_name } = named;
        for (name, value) in [
            ("objectId", &object_id),
            ("email", &upn),
            ("userPrincipalName", &upn),
            ("assignedTo", &display_name),
        ] {
            if owner.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                owner.insert(name.to_owned(), json!(value));
            }
        }
        if owner.get("ownerType") != Some(&json!("Group")) {
            owner.insert("ownerType".into(), json!("Unknown"));
        }
    }

    /// Whom the directory knows by this id, or by this principal name.
    fn named(&self, id: Option<&str>, upn: Option<&str>) -> Option<Person> {
        let named = match (id, upn) {
            (Some(id), upn) => {
                let met = self.people.iter().find(|met| met.object_id.eq_ignore_ascii_case(id)).cloned();
                met.unwrap_or_else(|| {
                    // An id alone is somebody whom only the directory knows.
                    let made =
                        format!("user-{}@contoso.com", id.chars().take(8).collect::<String>().to_lowercase());
                    Person { object_id: id.to_owned(), ..person(&self.tenant_id, upn.unwrap_or(&made)) }
                })
            }
            (None, Some(upn)) => {
                let met = self.people.iter().find(|met| met.upn.eq_ignore_ascii_case(upn)).cloned();
                met.unwrap_or_else(|| person(&self.tenant_id, upn))
            }
            (None, None) => return None,
        };
        Some(named)
    }

    fn tell(&mut self, name: &str, created: bool, added: &[(Child, &Value)], moment: &Moment<'_>) {
        let Some(kept) = self.incidents.get(&key(name)) else { return };
        let (by, by_user) = match &moment.caller.user {
            Some(person) => (person.display_name.clone(), true),
            None => (moment.caller.app_id.clone(), false),
        };
        let labels =
            |incident: &Value| incident["properties"]["labels"].as_array().cloned().unwrap_or_default();
        let known = kept.before.as_ref().map(labels).unwrap_or_default();
        let new_labels: Vec<Value> = labels(&kept.now)
            .into_iter()
            .filter(|label| !known.iter().any(|old| old["labelName"] == label["labelName"]))
            .collect();
        let (alerts, bookmarks, entities) = (self.alerts(kept), self.bookmarks_of(kept), self.entities(kept));
        let (mut new_alerts, mut new_comments) = (Vec::new(), Vec::new());
        for (child, value) in added {
            match child {
                Child::Comment => new_comments.push((*value).clone()),
                Child::Relation => {
                    let related = &value["properties"]["relatedResourceName"];
                    new_alerts.extend(alerts.iter().filter(|alert| alert["name"] == *related).cloned());
                }
                Child::Task => {}
            }
        }
        let touched = Touched {
            incident: kept.now.clone(),
            comments: ordered(&kept.comments),
            alerts,
            bookmarks,
            entities,
            added: json!({"alerts": new_alerts, "labels": new_labels, "comments": new_comments}),
            created,
            by,
            by_user,
        };
        self.touched.push(touched);
    }

    /// Fills the members that follow from what hangs on an incident.
    fn count(&mut self, name: &str) {
        let Some(kept) = self.incidents.get(&key(name)) else { return };
        let mut additional = json!({
            "alertsCount": related(kept, "entities").count(),
            "bookmarksCount": related(kept, "bookmarks").count(),
            "commentsCount": kept.comments.len(),
            "alertProductNames": [],
            "tactics": [],
            "techniques": [],
        });
        let mut rules = Vec::new();
        for alert in self.known_alerts(kept) {
            let properties = &alert.entity["properties"];
            add(&mut additional["alertProductNames"], &properties["productName"]);
            for name in ["tactics", "techniques"] {
                for one in properties[name].as_array().into_iter().flatten() {
                    add(&mut additional[name], one);
                }
            }
            if let Some(rule) = alert.rule.as_ref().filter(|rule| !rules.contains(*rule)) {
                rules.push(rule.clone());
            }
        }
        let properties = &kept.now["properties"];
        if properties["providerName"] == "Microsoft XDR" {
            let id = properties["providerIncidentId"].as_str().unwrap_or_default();
            let url =
                format!("https://security.microsoft.com/incident2/{id}/overview?tid={}", self.tenant_id);
            additional["providerIncidentUrl"] = json!(url);
        }
        // What the preview versions alone show; see `shown_under` of the listener.
        let target = kept.merged_into.as_ref().and_then(|name| self.incidents.get(&key(name)));
        if let Some(target) = target {
            let properties = &target.now["properties"];
            additional["mergedIncidentNumber"] = json!(properties["incidentNumber"].to_string());
            additional["mergedIncidentUrl"] = properties["incidentUrl"].clone();
        }
        let Some(kept) = self.incidents.get_mut(&key(name)) else { return };
        kept.now["properties"]["additionalData"] = additional;
        kept.now["properties"]["relatedAnalyticRuleIds"] = json!(rules);
    }

    /// The alerts of an incident of which more than the name is known.
    fn known_alerts(&self, kept: &Kept) -> Vec<&SecurityAlert> {
        let named = related(kept, "entities").map(|properties| {
            self.alerts.get(&key(properties["relatedResourceName"].as_str().unwrap_or_default()))
        });
        named.flatten().collect()
    }

    fn alerts(&self, kept: &Kept) -> Vec<Value> {
        let alert = |properties: &Value| {
            let name = properties["relatedResourceName"].as_str().unwrap_or_default();
            if let Some(known) = self.alerts.get(&key(name)) {
                return known.entity.clone();
            }
            json!({
                "id": properties["relatedResourceId"], "name": name,
                "type": "Microsoft.SecurityInsights/Entities", "kind": "SecurityAlert",
                "properties": {"systemAlertId": name, "friendlyName": name, "alertDisplayName": name},
            })
        };
        related(kept, "entities").map(alert).collect()
    }

    fn entities(&self, kept: &Kept) -> Vec<Value> {
        let mut entities: Vec<Value> = Vec::new();
        let of_alerts = self.known_alerts(kept).into_iter().flat_map(|alert| alert.entities.clone());
        for entity in of_alerts.chain(self.mapped_entities(kept)) {
            if !entities.iter().any(|known| known["name"] == entity["name"]) {
                entities.push(entity);
            }
        }
        entities
    }

    /// An incident changed in what hangs on it.
    fn bump(&mut self, name: &str, tag: bool, time: bool, moment: &Moment<'_>) {
        let etag = self.etag(moment);
        let stamp = self.stamp(moment.now);
        let Some(kept) = self.incidents.get_mut(&key(name)) else { return };
        kept.before = Some(kept.now.clone());
        self.count(name);
        let Some(kept) = self.incidents.get_mut(&key(name)) else { return };
        if tag {
            kept.now["etag"] = json!(etag);
        }
        if time {
            kept.now["properties"]["lastModifiedTimeUtc"] = json!(stamp);
        }
    }

    // ---- comments, relations, tasks ------------------------------------------------------------------------------

    /// `GET /incidents/{name}/{children}`
    pub fn list_children(
        &self,
        name: &str,
        child: Child,
        options: &[(String, String)],
        link: &dyn Fn(&str) -> String,
        moment: &Moment<'_>,
    ) -> Answer {
        let all = ordered(self.kept(name)?.children(child));
        list(all, options, "properties/createdTimeUtc", page_size(moment), link)
    }

    /// `GET /incidents/{name}/{children}/{id}`
    pub fn get_child(&self, name: &str, child: Child, id: &str) -> Answer {
        let found = self.kept(name)?.children(child).get(&key(id));
        found.map(|value| (200, value.clone())).ok_or_else(|| missing("Resource", id))
    }

    /// `PUT /incidents/{name}/{children}/{id}`
    pub fn put_child(
        &mut self,
        name: &str,
        child: Child,
        id: &str,
        body: &Value,
        moment: &Moment<'_>,
    ) -> Answer {
        let kept = self.kept(name)?.clone();
        let known = kept.children(child).get(&key(id));
        let given = &body["properties"];
        let properties = match child {
            Child::Comment => check_comment(given, known, &kept, moment)?,
            Child::Task => check_task(given, known, &kept)?,
            Child::Relation => self.check_relation(given, id, name, &kept, moment)?,
        };
        let stamp = self.stamp(moment.now);
        let client = self.client(moment);
        let created = known.map_or(json!(stamp), |known| known["properties"]["createdTimeUtc"].clone());
        let mut full = properties;
        match child {
            Child::Comment => {
                let author = known.map_or(client, |known| known["properties"]["author"].clone());
                full.insert("createdTimeUtc".into(), created);
                full.insert("lastModifiedTimeUtc".into(), json!(stamp));
                full.insert("author".into(), author);
            }
            Child::Task => {
                let by = known.map_or(client.clone(), |known| known["properties"]["createdBy"].clone());
                full.insert("createdTimeUtc".into(), created);
                full.insert("lastModifiedTimeUtc".into(), json!(stamp));
                full.insert("createdBy".into(), by);
                full.insert("lastModifiedBy".into(), client);
            }
            Child::Relation => {}
        }
        let segment = child.segment();
        let id = known.and_then(|known| known["name"].as_str()).unwrap_or(id);
        let own = self.etag(moment);
        let value = json!({
            "id": format!("{}/{segment}/{id}", self.incident_id(kept.now["name"].as_str().unwrap_or(name))),
            "name": id,
            "etag": own.trim_matches('"'),
            "type": format!("Microsoft.SecurityInsights/Incidents/{segment}"),
            "properties": full,
        });
        let edited = known.is_some();
        let status = if edited { 200 } else { 201 };
        if let Some(kept) = self.incidents.get_mut(&key(name)) {
            kept.children_mut(child).insert(key(id), value.clone());
        }
        if edited && child == Child::Comment && moment.switches.is("commentEditsTouch", "off") {
            return Ok((status, value));
        }
        self.child_changed(name, child, moment);
        // Tasks are not among what automation rules see (sentinel.md 16.1).
        if child != Child::Task {
            self.tell(name, false, &[(child, &value)], moment);
        }
        Ok((status, value))
    }

    /// `DELETE /incidents/{name}/{children}/{id}`
    pub fn delete_child(&mut self, name: &str, child: Child, id: &str, moment: &Moment<'_>) -> Answer {
        let kept = self.kept(name)?;
        let properties = kept.relations.get(&key(id)).map(|relation| &relation["properties"]);
        if let Some(properties) = properties.filter(|_| child == Child::Relation) {
            let of_alert = properties["relatedResourceKind"] == "SecurityAlert";
            let related = key(properties["relatedResourceName"].as_str().unwrap_or_default());
            let defenders = kept.now["properties"]["providerName"] == "Microsoft XDR"
                && self.alerts.get(&related).is_some_and(|alert| alert.from_defender);
            if of_alert && (defenders || moment.switches.is("defenderSwitch", "on")) {
                return Err(bad(
                    "Failed to delete relation. Microsoft Defender XDR alerts cannot be removed from Microsoft Defender \
                     XDR incidents.",
                ));
            }
        }
        let gone =
            self.incidents.get_mut(&key(name)).and_then(|kept| kept.children_mut(child).remove(&key(id)));
        if gone.is_none() {
            return Ok((204, Value::Null));
        }
        self.child_changed(name, child, moment);
        Ok((200, Value::Null))
    }

    fn child_changed(&mut self, name: &str, child: Child, moment: &Moment<'_>) {
        match child {
            Child::Comment => {
                self.bump(name, true, moment.switches.is("sentinelCommentsTouch", "on"), moment);
            }
            Child::Task | Child::Relation => {
                self.bump(name, moment.switches.is("tasksTouch", "on"), false, moment);
            }
        }
    }

    /// The caller as `ClientInfo`: a person, or an application with neither mail nor principal name (sentinel.md 8).
    fn client(&self, moment: &Moment<'_>) -> Value {
        match &moment.caller.user {
            Some(person) => json!({
                "objectId": person.object_id, "email": person.upn, "name": person.display_name,
                "userPrincipalName": person.upn,
            }),
            None => json!({"objectId": moment.caller.object_id, "name": moment.caller.app_id}),
        }
    }

    fn check_relation(
        &self,
        given: &Value,
        id: &str,
        name: &str,
        kept: &Kept,
        moment: &Moment<'_>,
    ) -> Result<Map<String, Value>, Refusal> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !(3..=63).contains(&id.len()) || !id.chars().all(allowed) {
            return Err(bad(format!("The relation name '{id}' does not match ^[a-zA-Z0-9-]{{3,63}}$.")));
        }
        let Some(target) = given["relatedResourceId"].as_str().filter(|text| !text.is_empty()) else {
            return Err(bad("Failed to create relation. 'relatedResourceId' is required."));
        };
        let lower = target.to_lowercase();
        if !lower.starts_with(&format!("{}/", self.key())) {
            return Err(bad(
                "Failed to create relation. Related resource and incident should belong to the same workspace.",
            ));
        }
        let mut segments = target.rsplit('/');
        let related_name = segments.next().unwrap_or_default();
        let kind = segments.next().unwrap_or_default().to_lowercase();
        let related_type = match kind.as_str() {
            "entities" => "Microsoft.SecurityInsights/entities",
            "bookmarks" => "Microsoft.SecurityInsights/bookmarks",
            _ => {
                return Err(bad(format!(
                    "Failed to create relation. '{target}' is neither alert nor bookmark."
                )));
            }
        };
        let alert = self.alerts.get(&key(related_name));
        let defenders = kept.now["properties"]["providerName"] == "Microsoft XDR"
            && alert.is_some_and(|alert| alert.from_defender);
        if kind == "entities" && (defenders || moment.switches.is("defenderSwitch", "on")) {
            return Err(bad(
                "Failed to create relation. Microsoft Defender XDR alerts cannot be added to Microsoft Defender XDR \
                 incidents.",
            ));
        }
        if kind == "entities" && alert.is_none() && moment.switches.is("unknownAlerts", "missing") {
            let message = format!("Resource '{related_name}' does not exist.");
            return Err(Refusal::new(404, "NotFound", message));
        }
        if kind == "bookmarks" {
            if moment.switches.is("defenderSwitch", "on")
                && moment.switches.is("onboardedBookmarks", "refused")
            {
                return Err(bad(
                    "Failed to create relation. The workspace is managed in Microsoft Defender XDR.",
                ));
            }
            if !self.bookmarks.contains_key(&key(related_name)) {
                let message = format!("Resource '{related_name}' does not exist.");
                return Err(Refusal::new(404, "NotFound", message));
            }
        }
        let same = |value: &Value| {
            value["properties"]["relatedResourceId"]
                .as_str()
                .is_some_and(|known| known.to_lowercase() == lower)
        };
        if let Some(known) = kept.relations.get(&key(id)) {
            if known["properties"]["relatedResourceType"] != related_type {
                return Err(bad(format!(
                    "Failed to create relation. Different relation type with name {id} already exists in incident {name}."
                )));
            }
            if !same(known) {
                let other = known["properties"]["relatedResourceName"].as_str().unwrap_or_default();
                return Err(Refusal::new(
                    409,
                    "Conflict",
                    format!(
                        "Failed to create relation. Relation with name {id} already exists in incident {name} to different alert {other}."
                    ),
                ));
            }
        } else if kept.relations.values().any(same) {
            let what = if kind == "entities" { "Alert" } else { "Bookmark" };
            return Err(bad(format!(
                "Failed to create relation. {what} {related_name} already exists in incident {name}."
            )));
        }
        let most = if kind == "entities" { MOST_ALERTS } else { MOST_BOOKMARKS };
        let count = kept
            .relations
            .values()
            .filter(|r| r["properties"]["relatedResourceType"] == related_type)
            .count();
        if count >= most && !kept.relations.contains_key(&key(id)) {
            return Err(bad(format!(
                "Failed to create relation. The incident has {most} of them, the maximum."
            )));
        }
        let mut full = Map::new();
        full.insert("relatedResourceId".into(), json!(target));
        full.insert("relatedResourceName".into(), json!(related_name));
        full.insert("relatedResourceType".into(), json!(related_type));
        if kind == "entities" {
            full.insert("relatedResourceKind".into(), json!("SecurityAlert"));
        }
        Ok(full)
    }

    /// `POST /incidents/{name}/alerts`, `/bookmarks`, `/entities`: what is related, as far as it is known here.
    pub fn related(&self, name: &str, what: &str) -> Answer {
        let kept = self.kept(name)?;
        Ok((
            200,
            match what {
                "alerts" => json!({"value": self.alerts(kept)}),
                "bookmarks" => json!({"value": self.bookmarks_of(kept)}),
                _ => {
                    let entities = self.entities(kept);
                    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
                    for entity in &entities {
                        *counts.entry(entity["kind"].as_str().unwrap_or_default()).or_default() += 1;
                    }
                    let counts: Vec<Value> = counts
                        .iter()
                        .map(|(kind, count)| json!({"entityKind": kind, "count": count}))
                        .collect();
                    json!({"entities": entities, "metaData": counts})
                }
            },
        ))
    }
}

/// The properties of the relations to `entities` or to `bookmarks`.
fn related<'k>(kept: &'k Kept, kind: &'k str) -> impl Iterator<Item = &'k Value> {
    kept.relations.values().map(|relation| &relation["properties"]).filter(move |properties| {
        properties["relatedResourceType"].as_str().is_some_and(|known| known.ends_with(kind))
    })
}

/// Adds to a list what is not in it.
fn add(list: &mut Value, one: &Value) {
    if let Some(list) = list.as_array_mut()
        && !one.is_null()
        && !list.contains(one)
    {
        list.push(one.clone());
    }
}

/// How much a page holds when nobody asks for more or less.
fn page_size(moment: &Moment<'_>) -> usize {
    let size = ["50", "10", "3"].into_iter().find(|size| moment.switches.is("armPageSize", size));
    size.and_then(|size| size.parse().ok()).unwrap_or(50)
}

/// Children in the order in which they were made.
fn ordered(children: &BTreeMap<String, Value>) -> Vec<Value> {
    let mut list: Vec<Value> = children.values().cloned().collect();
    list.sort_by(|a, b| {
        let time = |v: &Value| {
            let text = v["properties"]["createdTimeUtc"].as_str().unwrap_or_default();
            OffsetDateTime::parse(text, &Rfc3339).ok()
        };
        time(a).cmp(&time(b)).then_with(|| a["name"].as_str().cmp(&b["name"].as_str()))
    });
    list
}

fn check_etag(now: &Value, body: &Value, moment: &Moment<'_>) -> Result<(), Refusal> {
    let current = now["etag"].as_str().unwrap_or_default();
    let conflict = || {
        if moment.switches.is("staleEtag", "412") {
            let message = "The condition specified using HTTP conditional header(s) is not met.";
            return Refusal::new(412, "PreconditionFailed", message);
        }
        let name = now["name"].as_str().unwrap_or_default();
        let message = format!("Newer version of resource '{name}' exists. Data was not saved");
        Refusal::new(409, "Conflict", message)
    };
    match body["etag"].as_str() {
        Some(etag) if etag == current => Ok(()),
        // A wildcard is not known to work; it is taken for what it is, another etag.
        Some(_) => Err(conflict()),
        None if moment.switches.is("missingEtag", "conflict") => Err(conflict()),
        None => Ok(()),
    }
}

/// The writable members of a PUT, checked.
fn checked(
    given: &Map<String, Value>,
    existing: Option<&Value>,
    moment: &Moment<'_>,
) -> Result<Map<String, Value>, Refusal> {
    let mut next = Map::new();
    let word = |name: &str, known: &[&str]| -> Result<Value, Refusal> {
        let text = given.get(name).and_then(Value::as_str).unwrap_or_default();
        known
            .iter()
            .find(|word| word.eq_ignore_ascii_case(text))
            .map(|word| json!(word))
            .ok_or_else(|| invalid(&format!("'{name}' has an invalid value '{text}'")))
    };
    let title = given.get("title").and_then(Value::as_str).map(str::trim).filter(|title| !title.is_empty());
    next.insert("title".into(), json!(title.ok_or_else(|| invalid("'title' is required"))?));
    next.insert("severity".into(), word("severity", &SEVERITIES)?);
    let status = word("status", &STATUSES)?;
    let closed = status == "Closed";
    next.insert("status".into(), status);
    for name in OPTIONAL {
        let value = match given.get(name) {
            // Left out, or sent as null: an absent member is not shown.
            None if moment.switches.is("omittedMembers", "kept") => {
                let verdict = name.starts_with("classification");
                let lost = verdict && !closed && moment.switches.is("reopenKeepsVerdict", "off");
                match existing.map(|now| &now["properties"][name]) {
                    Some(value) if !value.is_null() && !lost => value.clone(),
                    _ => continue,
                }
            }
            None | Some(Value::Null) => continue,
            Some(value) => value.clone(),
        };
        let value = match name {
            "classification" if given.contains_key(name) => word(name, &CLASSIFICATIONS)?,
            "classificationReason" if given.contains_key(name) => word(name, &REASONS)?,
            // Kept as it was.
            "classification" | "classificationReason" => value,
            "owner" => {
                let owner = value.as_object().ok_or_else(|| invalid("'owner' is not an object"))?;
                Value::Object(
                    owner
                        .iter()
                        .filter(|(_, value)| !value.is_null())
                        .map(|(n, v)| (n.clone(), v.clone()))
                        .collect(),
                )
            }
            "labels" => labels(&value, existing, moment)?,
            "firstActivityTimeUtc" | "lastActivityTimeUtc" => {
                let at = value.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
                json!(format_instant(at.ok_or_else(|| invalid(&format!("'{name}' is no date")))?))
            }
            _ => {
                let text = value.as_str().ok_or_else(|| invalid(&format!("'{name}' is not a text")))?;
                if name == "description" && text.encode_utf16().count() > DESCRIPTION_LIMIT {
                    return Err(invalid("'description' is longer than 5000 characters"));
                }
                if name == "description" && text.is_empty() {
                    continue;
                }
                value
            }
        };
        next.insert(name.into(), value);
    }
    if moment.switches.is("strictVerdict", "on") {
        check_verdict(&next, closed)?;
    }
    next.entry("labels").or_insert(json!([]));
    Ok(next)
}

/// The combinations that the portal offers (sentinel.md 5).
fn check_verdict(next: &Map<String, Value>, closed: bool) -> Result<(), Refusal> {
    let text = |name: &str| next.get(name).and_then(Value::as_str);
    match (closed, text("classification"), text("classificationReason")) {
        (false, None, None)
        | (true, Some("Undetermined"), None)
        | (true, Some("TruePositive"), Some("SuspiciousActivity"))
        | (true, Some("BenignPositive"), Some("SuspiciousButExpected"))
        | (true, Some("FalsePositive"), Some("IncorrectAlertLogic" | "InaccurateData")) => Ok(()),
        (true, None, _) => Err(invalid("'classification' is required when the status is Closed")),
        (false, ..) => Err(invalid("'classification' is allowed only when the status is Closed")),
        _ => Err(invalid("'classificationReason' does not go with 'classification'")),
    }
}

/// `labelType` is the service's: a label that was AutoAssigned stays so while it is sent back.
fn labels(value: &Value, existing: Option<&Value>, moment: &Moment<'_>) -> Result<Value, Refusal> {
    let list = value.as_array().ok_or_else(|| invalid("'labels' is not a list"))?;
    let auto = |name: &str| {
        existing.and_then(|now| now["properties"]["labels"].as_array()).is_some_and(|known| {
            known.iter().any(|label| label["labelType"] == "AutoAssigned" && label["labelName"] == name)
        })
    };
    let mut labels: Vec<Value> = Vec::new();
    for label in list {
        let name = label["labelName"].as_str().map(str::trim).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| invalid("'labelName' is required"))?;
        if moment.switches.is("labelLimit", "50") && name.encode_utf16().count() > LABEL_LIMIT {
            return Err(invalid("'labelName' is longer than 50 characters"));
        }
        let kind = if auto(name) { "AutoAssigned" } else { "User" };
        if !labels.iter().any(|label| label["labelName"] == name) {
            labels.push(json!({"labelName": name, "labelType": kind}));
        }
    }
    Ok(Value::Array(labels))
}

fn check_comment(
    given: &Value,
    known: Option<&Value>,
    kept: &Kept,
    moment: &Moment<'_>,
) -> Result<Map<String, Value>, Refusal> {
    let message = given["message"].as_str().filter(|message| !message.is_empty());
    let message = message.ok_or_else(|| bad("Invalid data model.\n[: 'message' is required]"))?;
    if message.encode_utf16().count() > COMMENT_LIMIT {
        return Err(bad("Invalid data model.\n[: 'message' is longer than 30000 characters]"));
    }
    if moment.switches.is("commentRefused", "html") && message.to_lowercase().contains("<script") {
        return Err(bad("Invalid data model.\n[: 'message' contains markup that is not allowed]"));
    }
    if known.is_none() && kept.comments.len() >= MOST_COMMENTS {
        return Err(bad("The incident has 100 comments, the maximum."));
    }
    // Only the author may edit (sentinel.md 8).
    let author = match &moment.caller.user {
        Some(person) => &person.object_id,
        None => &moment.caller.object_id,
    };
    if known.is_some_and(|known| known["properties"]["author"]["objectId"] != **author) {
        return Err(Refusal::new(403, "AuthorizationFailed", "Only the author of a comment can change it."));
    }
    let mut full = Map::new();
    full.insert("message".into(), json!(message));
    Ok(full)
}

fn check_task(given: &Value, known: Option<&Value>, kept: &Kept) -> Result<Map<String, Value>, Refusal> {
    let title = given["title"].as_str().filter(|title| !title.is_empty());
    let title = title.ok_or_else(|| bad("Invalid data model.\n[: 'title' is required]"))?;
    let status = given["status"].as_str().filter(|status| ["New", "Completed"].contains(status));
    let status = status.ok_or_else(|| bad("Invalid data model.\n[: 'status' is New or Completed]"))?;
    if known.is_none() && kept.tasks.len() >= MOST_TASKS {
        return Err(bad("The incident has 40 tasks, the maximum."));
    }
    let mut full = Map::new();
    full.insert("title".into(), json!(title));
    full.insert("status".into(), json!(status));
    if let Some(description) = given["description"].as_str() {
        full.insert("description".into(), json!(description));
    }
    Ok(full)
}

fn nobody() -> Value {
    json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null})
}

/// An incident as it is answered: an owner that is nobody has several forms.
fn shown(value: &Value, moment: &Moment<'_>) -> Value {
    let mut value = value.clone();
    let unowned = value["properties"]["owner"].as_object().is_none_or(Map::is_empty);
    if unowned && let Some(properties) = value["properties"].as_object_mut() {
        if moment.switches.is("emptyOwner", "absent") {
            properties.remove("owner");
        } else if moment.switches.is("emptyOwner", "empty") {
            properties.insert("owner".into(), json!({}));
        } else {
            properties.insert("owner".into(), nobody());
        }
    }
    value
}

/// Filter, order, page. A continuation remembers the object that was served last and goes on behind it: an object that
/// changes its place meanwhile comes again (sentinel.md 11), and none is left out. Counting would leave some out.
fn list(
    mut all: Vec<Value>,
    options: &[(String, String)],
    default_order: &str,
    default_size: usize,
    link: &dyn Fn(&str) -> String,
) -> Answer {
    let sent = |name: &str| options.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let token = match sent("$skiptoken") {
        None => None,
        Some(text) => Some(read_token(&text).ok_or_else(|| bad("The skip token is invalid."))?),
    };
    // The links that were seen carry the token alone, so it holds the other options too.
    let option = |name: &str| match &token {
        Some(token) => token[name].as_str().map(str::to_owned),
        None => sent(name),
    };
    let (filter, order, top) = (option("$filter"), option("$orderby"), option("$top"));
    if let Some(text) = &filter {
        let filter = Filter::parse(text).map_err(|why| bad(format!("Invalid OData filter: {why}")))?;
        all.retain(|value| filter.matches(value));
    }
    let by = OrderBy::parse(order.as_deref().unwrap_or(default_order))
        .map_err(|why| bad(format!("Invalid OData order: {why}")))?;
    let compare =
        |a: &Value, b: &Value| by.compare(a, b).then_with(|| a["name"].as_str().cmp(&b["name"].as_str()));
    let size = match &top {
        None => default_size,
        Some(text) => match text.parse::<usize>() {
            Ok(top) if (1..=TOP_CEILING).contains(&top) => top,
            _ => return Err(bad(format!("'$top' is a number from 1 to {TOP_CEILING}, not '{text}'."))),
        },
    };
    all.sort_by(compare);
    if let Some(token) = &token {
        all.retain(|value| compare(value, &token["last"]).is_gt());
    }
    let more = all.len() > size;
    all.truncate(size);
    let next = all.last().filter(|_| more).map(|last| {
        let mut token = json!({"last": place(last, &by)});
        for (name, value) in [("$filter", filter), ("$orderby", order), ("$top", top)] {
            if let Some(value) = value {
                token[name] = json!(value);
            }
        }
        link(&write_token(&token))
    });
    let mut page = json!({"value": all});
    if let Some(next) = next {
        page["nextLink"] = json!(next);
    }
    Ok((200, page))
}

/// As much of an object as says where it stands in this order.
fn place(object: &Value, by: &OrderBy) -> Value {
    let mut place = json!({"name": object["name"]});
    for path in by.paths() {
        let (mut from, mut to) = (object, &mut place);
        for name in path.split('/') {
            from = from
                .as_object()
                .and_then(|members| members.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)))
                .map_or(&Value::Null, |(_, value)| value);
            if !to.is_object() {
                *to = json!({});
            }
            to = &mut to[name];
        }
        *to = from.clone();
    }
    place
}

/// Opaque to clients; they must follow links as they are.
fn write_token(token: &Value) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE.encode(token.to_string())
}

fn read_token(token: &str) -> Option<Value> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE.decode(token).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
}

/// The body that an automation rule's playbook posts (`sentinel.md` §16.1).
pub fn playbook_body(workspace: &Workspace, touched: &Touched, event_id: &Uuid) -> Value {
    let Touched { incident, comments, alerts, bookmarks, entities, added, created, by, by_user } = touched;
    let mut object = incident.clone();
    if let Some(properties) = object["properties"].as_object_mut() {
        properties.insert("alerts".into(), json!(alerts));
        properties.insert("bookmarks".into(), json!(bookmarks));
        properties.insert("relatedEntities".into(), json!(entities));
        properties.insert("comments".into(), json!(comments));
        properties.entry("description").or_insert(json!(""));
        // Nobody is an object of nulls here, whatever the answers of the API have (sentinel.md 6).
        if properties.get("owner").and_then(Value::as_object).is_none_or(Map::is_empty) {
            properties.insert("owner".into(), nobody());
        }
    }
    let mut body = json!({
        "eventUniqueId": event_id,
        "objectSchemaType": "Incident",
        "objectEventType": if *created { "Create" } else { "Update" },
        "workspaceInfo": {
            "SubscriptionId": workspace.subscription_id,
            "ResourceGroupName": workspace.resource_group,
            "WorkspaceName": workspace.workspace_name,
        },
        "workspaceId": Uuid::new_v5(&Uuid::NAMESPACE_URL, workspace.key().as_bytes()),
        "object": object,
    });
    if !created {
        let source = match by_user {
            true => "User",
            false if by == ENGINE => "Microsoft 365 Defender",
            false => "Application",
        };
        body["incidentUpdates"] = json!({
            "updatedBy": {"source": source, "name": by},
            "updatedTime": incident["properties"]["lastModifiedTimeUtc"],
            "alerts": added["alerts"],
            "labels": added["labels"],
            "comments": added["comments"],
            "tactics": [],
        });
    }
    body
}

#[cfg(test)]
mod tests {
    use super::super::{Caller, Switches};
    use super::*;

    const EPOCH: OffsetDateTime = time::macros::datetime!(2026-03-01 08:00 UTC);

    fn app() -> Caller {
        Caller { tenant_id: "t".into(), app_id: "app".into(), object_id: "o".into(), user: None }
    }

    fn plain() -> Value {
        json!({"properties": {"title": " Phish ", "severity": "high", "status": "New"}})
    }

    fn workspace() -> Workspace {
        Workspace::new("t", "S", "Rg", "Ws")
    }

    #[test]
    fn created_then_replaced_under_the_etag_only() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut workspace = workspace();
        let (status, first) = workspace.put_incident("A-1", &plain(), &moment).expect("created");
        assert_eq!((status, &first["properties"]["title"]), (201, &json!("Phish")));
        assert!(first["id"].as_str().expect("id").ends_with("/Incidents/A-1"));
        let mut update = plain();
        update["etag"] = first["etag"].clone();
        update["properties"]["description"] = json!("text");
        let (status, second) =
            workspace.put_incident("a-1", &update, &moment).expect("updated, without case");
        assert_eq!((status, &second["name"]), (200, &json!("A-1")));
        assert_ne!(first["etag"], second["etag"]);
        let refused = workspace.put_incident("a-1", &update, &moment).expect_err("stale");
        assert_eq!((refused.status, refused.code.as_str()), (409, "Conflict"));
        assert!(refused.message.starts_with("Newer version of resource 'A-1' exists."));
        update["etag"] = second["etag"].clone();
        update["properties"].as_object_mut().expect("object").remove("description");
        let (_, third) = workspace.put_incident("a-1", &update, &moment).expect("updated");
        assert!(third["properties"].get("description").is_none(), "what is left out is cleared");
        assert_eq!(workspace.delete_incident("A-1").expect("deleted").0, 200);
        assert_eq!(workspace.delete_incident("A-1").expect("gone").0, 204);
    }

    #[test]
    fn each_uncertain_behaviour_can_be_switched() {
        let app = app();
        let mut switches = Switches::new(&[SWITCHES]);
        let mut workspace = workspace();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut body = plain();
        body["properties"]["description"] = json!("text");
        workspace.put_incident("1", &body, &moment).expect("created");
        workspace.put_incident("1", &plain(), &moment).expect("no etag is no condition");
        for (name, value) in [
            ("missingEtag", "conflict"),
            ("staleEtag", "412"),
            ("omittedMembers", "kept"),
            ("strictVerdict", "on"),
        ] {
            switches.set(name, value).expect("known");
        }
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        assert_eq!(workspace.put_incident("1", &plain(), &moment).expect_err("no etag").status, 412);
        let (_, now) = workspace.get_incident("1", false, &moment).expect("there");
        let mut body = plain();
        body["etag"] = now["etag"].clone();
        body["properties"]["status"] = json!("Closed");
        assert_eq!(workspace.put_incident("1", &body, &moment).expect_err("no verdict").status, 400);
        body["properties"]["classification"] = json!("FalsePositive");
        body["properties"]["classificationReason"] = json!("SuspiciousActivity");
        assert_eq!(workspace.put_incident("1", &body, &moment).expect_err("no pair").status, 400);
        body["properties"]["classificationReason"] = json!("InaccurateData");
        assert_eq!(workspace.put_incident("1", &body, &moment).expect("a pair").0, 200);
    }

    #[test]
    fn lists_are_filtered_ordered_and_paged() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let mut workspace = workspace();
        for number in 0..7_u64 {
            let moment = Moment {
                now: EPOCH + std::time::Duration::from_secs(number),
                caller: &app,
                switches: &switches,
            };
            workspace.put_incident(&format!("n{number}"), &plain(), &moment).expect("created");
        }
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut options = vec![
            ("$filter".to_owned(), "properties/lastModifiedTimeUtc ge 2026-03-01T08:00:02Z".to_owned()),
            ("$orderby".to_owned(), "properties/lastModifiedTimeUtc asc".to_owned()),
            ("$top".to_owned(), "2".to_owned()),
        ];
        let mut seen = Vec::new();
        loop {
            let (_, page) =
                workspace.list_incidents(&options, false, &str::to_owned, &moment).expect("a page");
            seen.extend(page["value"].as_array().expect("list").iter().map(|i| i["name"].clone()));
            let Some(token) = page["nextLink"].as_str() else { break };
            options.retain(|(name, _)| name != "$skiptoken");
            options.push(("$skiptoken".to_owned(), token.to_owned()));
        }
        assert_eq!(seen, ["n2", "n3", "n4", "n5", "n6"]);
        let too_many = [("$top".to_owned(), "1001".to_owned())];
        assert_eq!(
            workspace.list_incidents(&too_many, false, &str::to_owned, &moment).expect_err("no").status,
            400
        );
    }

    #[test]
    fn what_changes_its_place_between_two_pages_hides_nothing() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut workspace = workspace();
        for name in ["a", "b", "c", "d"] {
            workspace.put_incident(name, &plain(), &moment).expect("created");
        }
        let options = [
            ("$orderby".to_owned(), "properties/lastModifiedTimeUtc asc".to_owned()),
            ("$top".to_owned(), "2".to_owned()),
        ];
        let names = |page: &Value| -> Vec<String> {
            let list = page["value"].as_array().expect("a list");
            list.iter().map(|incident| incident["name"].as_str().expect("a name").to_owned()).collect()
        };
        let (_, first) = workspace.list_incidents(&options, false, &str::to_owned, &moment).expect("a page");
        assert_eq!(names(&first), ["a", "b"]);
        workspace.put_incident("a", &plain(), &moment).expect("moved to the end");
        // The token alone goes on with the same order and size.
        let token = first["nextLink"].as_str().expect("more").to_owned();
        let options = [("$skiptoken".to_owned(), token)];
        let (_, second) = workspace.list_incidents(&options, false, &str::to_owned, &moment).expect("a page");
        assert_eq!(names(&second), ["c", "d"]);
        assert!(second["nextLink"].is_string(), "a comes again");
        let (_, all) = workspace.list_incidents(&[], false, &str::to_owned, &moment).expect("a page");
        assert_eq!(names(&all), ["d", "c", "b", "a"], "newest number first");
        let broken = [("$skiptoken".to_owned(), "bm9uc2Vuc2U=".to_owned())];
        assert!(workspace.list_incidents(&broken, false, &str::to_owned, &moment).is_err());
    }

    #[test]
    fn comments_move_the_incident_and_belong_to_their_author() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut workspace = workspace();
        let (_, before) = workspace.put_incident("1", &plain(), &moment).expect("created");
        let comment = json!({"properties": {"message": "Hello"}});
        let (status, made) = workspace.put_child("1", Child::Comment, "c", &comment, &moment).expect("made");
        assert_eq!((status, &made["properties"]["author"]["name"]), (201, &json!("app")));
        let (_, after) = workspace.get_incident("1", false, &moment).expect("there");
        assert_ne!(before["etag"], after["etag"]);
        assert_eq!(after["properties"]["additionalData"]["commentsCount"], 1);
        let ann = Caller { user: Some(person("t", "ann@contoso.com")), ..app.clone() };
        let other = Moment { caller: &ann, ..moment };
        assert_eq!(
            workspace.put_child("1", Child::Comment, "c", &comment, &other).expect_err("not hers").status,
            403
        );
        let long = json!({"properties": {"message": "x".repeat(30_001)}});
        assert_eq!(
            workspace.put_child("1", Child::Comment, "d", &long, &moment).expect_err("long").status,
            400
        );
        assert_eq!(
            workspace.put_child("2", Child::Comment, "c", &comment, &moment).expect_err("gone").status,
            404
        );
    }

    #[test]
    fn an_owner_is_filled_from_what_is_given() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut workspace = workspace();
        let mut body = plain();
        body["properties"]["owner"] = json!({"userPrincipalName": "john.doe@contoso.com", "objectId": null});
        let (_, made) = workspace.put_incident("1", &body, &moment).expect("created");
        assert_eq!(made["properties"]["owner"]["assignedTo"], "John Doe");
        body["etag"] = made["etag"].clone();
        body["properties"]["owner"] = json!({"userPrincipalName": null, "objectId": null});
        let (_, nobody) = workspace.put_incident("1", &body, &moment).expect("updated");
        assert_eq!(nobody["properties"]["owner"]["objectId"], Value::Null);
        assert!(nobody["properties"].get("owner").is_none(), "{nobody}");
        // The id of somebody who was named before is enough.
        body["etag"] = nobody["etag"].clone();
        body["properties"]["owner"] = json!({"objectId": made["properties"]["owner"]["objectId"]});
        let (_, again) = workspace.put_incident("1", &body, &moment).expect("updated");
        assert_eq!(again["properties"]["owner"], made["properties"]["owner"]);
        // As in the published example: an id that nobody has heard of is completed too.
        body["etag"] = again["etag"].clone();
        body["properties"]["owner"] = json!({"objectId": "2046feea-040d-4a46-9e2b-91c2941bfa70"});
        let (_, other) = workspace.put_incident("1", &body, &moment).expect("updated");
        for name in ["email", "userPrincipalName", "assignedTo"] {
            assert!(other["properties"]["owner"][name].is_string(), "{name}");
        }
    }

    #[test]
    fn playbooks_hear_of_creates_updates_comments_and_alerts_only() {
        let switches = Switches::new(&[SWITCHES]);
        let ann = Caller { user: Some(person("t", "ann.lee@contoso.com")), ..app() };
        let moment = Moment { now: EPOCH, caller: &ann, switches: &switches };
        let mut workspace = workspace();
        workspace.put_incident("1", &plain(), &moment).expect("created");
        let mut labelled = plain();
        labelled["properties"]["labels"] = json!([{"labelName": "vip"}]);
        workspace.put_incident("1", &labelled, &moment).expect("updated");
        let comment = json!({"properties": {"message": "Hello"}});
        workspace.put_child("1", Child::Comment, "c", &comment, &moment).expect("made");
        let base = workspace.resource_id();
        let alert = format!("{base}/providers/Microsoft.SecurityInsights/entities/a1");
        let alert = json!({"properties": {"relatedResourceId": alert}});
        workspace.put_child("1", Child::Relation, "rel-1", &alert, &moment).expect("made");
        let task = json!({"properties": {"title": "Call", "status": "New"}});
        workspace.put_child("1", Child::Task, "t", &task, &moment).expect("made");
        workspace.delete_child("1", Child::Comment, "c", &moment).expect("deleted");
        workspace.delete_incident("1").expect("deleted");

        let touched = std::mem::take(&mut workspace.touched);
        let bodies: Vec<Value> =
            touched.iter().map(|touched| playbook_body(&workspace, touched, &Uuid::nil())).collect();
        let events: Vec<&Value> = bodies.iter().map(|body| &body["objectEventType"]).collect();
        assert_eq!(events, ["Create", "Update", "Update", "Update"]);
        assert!(bodies[0].get("incidentUpdates").is_none());
        assert_eq!(bodies[0]["object"]["properties"]["owner"], nobody());
        assert_eq!(bodies[1]["incidentUpdates"]["updatedBy"], json!({"source": "User", "name": "Ann Lee"}));
        assert_eq!(bodies[1]["incidentUpdates"]["labels"][0]["labelName"], "vip");
        assert_eq!(bodies[2]["incidentUpdates"]["comments"][0]["name"], "c");
        assert_eq!(bodies[2]["incidentUpdates"]["labels"], json!([]), "only what is new");
        assert_eq!(bodies[3]["incidentUpdates"]["alerts"][0]["name"], "a1");
        assert_eq!(bodies[3]["object"]["properties"]["additionalData"]["alertsCount"], 1);
    }

    #[test]
    fn an_onboarded_workspace_refuses_relations_and_may_name_defender_as_provider() {
        let mut switches = Switches::new(&[SWITCHES]);
        switches.set("defenderSwitch", "on").expect("known");
        let app = app();
        let mut workspace = workspace();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let (_, seen) = workspace.put_incident("1", &plain(), &moment).expect("created");
        assert_eq!(seen["properties"]["providerName"], "Azure Sentinel");
        assert_eq!(
            workspace.put_child("1", Child::Relation, "rel", &json!({}), &moment).expect_err("no").status,
            400
        );
        switches.set("createdProvider", "Microsoft XDR").expect("known");
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        workspace.put_incident("2", &plain(), &moment).expect("created");
        let (_, seen) = workspace.put_incident("2", &plain(), &moment).expect("updated");
        let properties = &seen["properties"];
        assert_eq!(properties["providerName"], "Microsoft XDR");
        let id = properties["providerIncidentId"].as_str().expect("an id");
        assert_ne!(id, properties["incidentNumber"].to_string());
        let url = properties["additionalData"]["providerIncidentUrl"].as_str().expect("a link");
        assert!(url.contains(id), "{url}");
    }

    #[test]
    fn relations_follow_the_documented_refusals() {
        let switches = Switches::new(&[SWITCHES]);
        let app = app();
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut workspace = workspace();
        workspace.put_incident("1", &plain(), &moment).expect("created");
        let to = |workspace: &Workspace, id: &str| {
            let base = workspace.resource_id();
            json!({"properties": {"relatedResourceId": format!("{base}/providers/Microsoft.SecurityInsights/entities/{id}")}})
        };
        let alert = to(&workspace, "a1");
        let other = to(&workspace, "a2");
        assert_eq!(workspace.put_child("1", Child::Relation, "rel-1", &alert, &moment).expect("made").0, 201);
        assert_eq!(workspace.put_child("1", Child::Relation, "rel-1", &alert, &moment).expect("same").0, 200);
        let twice = workspace.put_child("1", Child::Relation, "rel-2", &alert, &moment).expect_err("twice");
        assert!(twice.status == 400 && twice.message.contains("already exists in incident"));
        assert_eq!(
            workspace.put_child("1", Child::Relation, "rel-1", &other, &moment).expect_err("other").status,
            409
        );
        assert_eq!(
            workspace.put_child("1", Child::Relation, "x", &other, &moment).expect_err("name").status,
            400
        );
        let foreign = json!({"properties": {"relatedResourceId": "/subscriptions/x/entities/a"}});
        assert_eq!(
            workspace.put_child("1", Child::Relation, "rel-3", &foreign, &moment).expect_err("where").status,
            400
        );
    }
}
