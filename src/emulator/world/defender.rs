//! One tenant's incidents and alerts, as Graph serves them (`graph.md` §4 to §9). Objects are kept as JSON, so that
//! members which nobody here understands survive.

mod engine;
mod subscriptions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

pub use subscriptions::{LIFECYCLE, News, Sealing};

use super::{Answer, Moment, Person, Refusal, Switch};
use crate::emulator::odata::Filter;

/// The behaviours of Graph that the reference leaves uncertain.
pub const SWITCHES: &[Switch] = &[
    Switch {
        name: "inProgress",
        values: &["writable", "refused"],
        meaning: "whether a PATCH may set an incident's status to inProgress (graph.md 8.1)",
    },
    Switch {
        name: "verdictPairs",
        values: &["any", "portal"],
        meaning: "whether a classification with a determination that the portal does not offer is a 400 (graph.md 8.2)",
    },
    Switch {
        name: "commentsTouch",
        values: &["on", "off"],
        meaning: "whether a comment moves the incident's lastUpdateDateTime (graph.md 7.4)",
    },
    Switch {
        name: "alertsTouch",
        values: &["on", "off"],
        meaning: "whether a changed alert moves its incident's lastUpdateDateTime (graph.md 7.4)",
    },
    Switch {
        name: "graphCommentLimit",
        values: &["none", "1000"],
        meaning: "how many characters a comment may have; more is a 400, and no limit is published (graph.md 8.3)",
    },
    Switch {
        name: "graphRetryAfter",
        values: &["seconds", "fraction", "absent"],
        meaning: "the Retry-After header of Graph's 429 (graph.md 11)",
    },
    Switch {
        name: "redirectedWritable",
        values: &["on", "off"],
        meaning: "whether an incident that was merged away takes PATCH and comments (graph.md 9)",
    },
    Switch {
        name: "redirectedTag",
        values: &["systemTags", "customTags"],
        meaning: "which list receives the tag Redirected (graph.md 19)",
    },
    Switch {
        name: "lastModifiedBy",
        values: &["prefixed-id", "prefixed-name", "null"],
        meaning: "what an application's write leaves in lastModifiedBy (graph.md 8.5)",
    },
    Switch {
        name: "enumCase",
        values: &["camel", "pascal"],
        meaning: "how status, classification and determination are spelt in answers (graph.md 6)",
    },
    Switch {
        name: "nextLink",
        values: &["skip", "skiptoken"],
        meaning: "what @odata.nextLink carries (graph.md 7.2)",
    },
    Switch {
        name: "graphPageSize",
        values: &["50", "10", "3"],
        meaning: "how many incidents a page holds without $top (graph.md 7.1)",
    },
    Switch {
        name: "equalTimes",
        values: &["off", "on"],
        meaning: "whether two updates within one second may carry the same lastUpdateDateTime (graph.md 4)",
    },
    Switch {
        name: "resolveCascades",
        values: &["off", "on"],
        meaning: "whether resolving an incident resolves its alerts (graph.md 8.4)",
    },
    Switch {
        name: "graphIncidentSubscriptions",
        values: &["off", "on"],
        meaning: "whether security/incidents and security/alerts_v2 can be subscribed to; the real service offers neither (graph.md 13.1)",
    },
    Switch {
        name: "graphSubscriptionQuota",
        values: &["none", "1", "0"],
        meaning: "how many subscriptions an application may have; no number is published (graph.md 13.2)",
    },
];

/// Where the switch `graphCommentLimit` sets one.
const COMMENT_LIMIT: usize = 1_000;
/// The ceiling on `$top` for incidents.
const TOP_CEILING: usize = 50;

const WRITABLE: [&str; 10] = [
    "assignedTo",
    "classification",
    "determination",
    "status",
    "severity",
    "displayName",
    "description",
    "summary",
    "resolvingComment",
    "customTags",
];
const ALERT_WRITABLE: [&str; 5] =
    ["status", "classification", "determination", "assignedTo", "customDetails"];
const FILTERABLE: [&str; 7] = [
    "lastUpdateDateTime",
    "createdDateTime",
    "status",
    "severity",
    "assignedTo",
    "classification",
    "determination",
];
const ALERT_FILTERABLE: [&str; 8] = [
    "assignedTo",
    "classification",
    "createdDateTime",
    "determination",
    "lastUpdateDateTime",
    "serviceSource",
    "severity",
    "status",
];

const CLASSIFICATIONS: &[&str] =
    &["unknown", "falsePositive", "truePositive", "informationalExpectedActivity"];
const DETERMINATIONS: &[&str] = &[
    "unknown",
    "apt",
    "malware",
    "securityPersonnel",
    "securityTesting",
    "unwantedSoftware",
    "other",
    "multiStagedAttack",
    "compromisedAccount",
    "phishing",
    "maliciousUserActivity",
    "notMalicious",
    "notEnoughDataToValidate",
    "confirmedActivity",
    "lineOfBusinessApplication",
];
const SEVERITIES: &[&str] = &["informational", "low", "medium", "high"];

/// What only callers who ask for unknown enumeration members are shown (graph.md 6), by member name.
const GATED: &[(&str, &[&str])] = &[
    ("status", &["awaitingAction"]),
    (
        "serviceSource",
        &[
            "microsoftDefenderForCloud",
            "microsoftSentinel",
            "microsoftInsiderRiskManagement",
            "microsoftThreatIntelligence",
            "microsoftSecurityForAI",
        ],
    ),
    (
        "detectionSource",
        &[
            "microsoftDefenderForCloud",
            "microsoftDefenderForIoT",
            "microsoftDefenderForServers",
            "microsoftDefenderForStorage",
            "microsoftDefenderForDNS",
            "microsoftDefenderForDatabases",
            "microsoftDefenderForContainers",
            "microsoftDefenderForNetwork",
            "microsoftDefenderForAppService",
            "microsoftDefenderForKeyVault",
            "microsoftDefenderForResourceManager",
            "microsoftDefenderForApiManagement",
            "nrtAlerts",
            "scheduledAlerts",
            "microsoftDefenderThreatIntelligenceAnalytics",
            "builtInMl",
            "microsoftInsiderRiskManagement",
            "microsoftThreatIntelligence",
            "microsoftDefenderForAIServices",
            "securityCopilot",
            "microsoftSentinel",
        ],
    ),
    (
        "remediationStatus",
        &["active", "pendingApproval", "declined", "unremediated", "running", "partiallyRemediated"],
    ),
];

/// An object and what it was before its last change.
#[derive(Clone, Debug)]
struct Kept {
    now: Value,
    before: Option<Value>,
}

impl Kept {
    fn seen(&self, stale: bool) -> &Value {
        if stale { self.before.as_ref().unwrap_or(&self.now) } else { &self.now }
    }
}

/// A change that subscribers may hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Which incident, or alert.
    pub incident: String,
    /// `created` or `updated`.
    pub change: &'static str,
}

/// The query options of one request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Names (lower case) and values.
    pub options: Vec<(String, String)>,
    /// Where the emulator serves, for next links.
    pub base: String,
    /// `Prefer: include-unknown-enum-members`.
    pub unknown_members: bool,
    /// Answer as the objects were before their last change.
    pub stale: bool,
}

impl Query {
    fn get(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its id, in lower case.
    pub id: String,
    incidents: BTreeMap<String, Kept>,
    alerts: BTreeMap<String, Kept>,
    subscriptions: BTreeMap<String, Value>,
    /// Those whose authorisation is awaited: what changes meanwhile is lost.
    paused: BTreeSet<String>,
    next_id: u64,
    stamps: u64,
    last_stamp: Option<OffsetDateTime>,
    /// Changes that nobody has taken yet.
    pub touched: Vec<Touched>,
    /// The same of alerts, while anybody has a subscription.
    pub touched_alerts: Vec<Touched>,
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "BadRequest", message)
}

fn incident_missing(id: &str) -> Refusal {
    Refusal::new(404, "NotFound", format!("Incident {id} was not found."))
}

fn alert_missing(id: &str) -> Refusal {
    Refusal::new(404, "NotFound", format!("Alert {id} was not found."))
}

/// An instant with at most this many fraction digits, none of them a trailing zero.
pub fn format_instant(at: OffsetDateTime) -> String {
    let hundreds = at.nanosecond() / 100;
    let at = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    let whole = at.format(&Rfc3339).unwrap_or_default();
    let whole = whole.trim_end_matches('Z');
    if hundreds == 0 {
        return format!("{whole}Z");
    }
    format!("{whole}.{}Z", format!("{hundreds:07}").trim_end_matches('0'))
}

/// The person behind a user principal name. Everybody exists, with an id derived from tenant and name.
pub fn person(tenant_id: &str, upn: &str) -> Person {
    let id =
        Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("person:{tenant_id}:{}", upn.to_lowercase()).as_bytes());
    let local = upn.split('@').next().unwrap_or(upn);
    let display_name = local
        .split(['.', '-', '_'])
        .filter(|part| !part.is_empty())
        .map(|part| {
            let mut chars = part.chars();
            chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
        })
        .collect::<Vec<String>>()
        .join(" ");
    Person { object_id: id.to_string(), upn: upn.to_owned(), display_name }
}

impl Tenant {
    /// An empty tenant.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_lowercase(),
            incidents: BTreeMap::new(),
            alerts: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            paused: BTreeSet::new(),
            next_id: 100,
            stamps: 0,
            last_stamp: None,
            touched: Vec::new(),
            touched_alerts: Vec::new(),
        }
    }

    /// A time stamp: of varying precision, rounded up to it, and later than every one before.
    fn stamp(&mut self, now: OffsetDateTime, equal_times: bool) -> String {
        // Fraction digits that captures show: mostly seven, now and then fewer.
        const DIGITS: [u32; 8] = [7, 7, 6, 7, 3, 7, 7, 2];
        self.stamps += 1;
        if equal_times
            && let Some(last) = self.last_stamp
            && now - last < Duration::from_secs(1)
        {
            return format_instant(last);
        }
        let digits = DIGITS[usize::try_from(self.stamps % 8).unwrap_or(0)];
        let unit = 10_i128.pow(9 - digits);
        let mut at = now.unix_timestamp_nanos();
        if let Some(last) = self.last_stamp {
            at = at.max(last.unix_timestamp_nanos() + 100);
        }
        let rounded = (at + unit - 1).div_euclid(unit) * unit;
        let at = OffsetDateTime::from_unix_timestamp_nanos(rounded).unwrap_or(now);
        self.last_stamp = Some(at);
        format_instant(at)
    }

    // ---- control -------------------------------------------------------------------------------------------------

    /// Puts an incident there, as the correlation engine would; replaces one of the same id. Returns the id.
    pub fn put_incident(
        &mut self,
        incident: &Value,
        keep_times: bool,
        now: OffsetDateTime,
    ) -> Result<String, String> {
        let Value::Object(given) = incident else { return Err("an incident is a JSON object".to_owned()) };
        let id = match given.get("id") {
            None | Some(Value::Null) => {
                while self.incidents.contains_key(&self.next_id.to_string()) {
                    self.next_id += 1;
                }
                self.next_id.to_string()
            }
            Some(Value::String(id)) if !id.is_empty() => id.clone(),
            Some(_) => return Err("id is a text that is not empty; leave it out to get one".to_owned()),
        };
        let alerts = match given.get("alerts") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list.clone(),
            Some(_) => return Err("alerts is a list of alerts".to_owned()),
        };
        for name in ["createdDateTime", "lastUpdateDateTime"] {
            if keep_times
                && let Some(value) = given.get(name)
                && value.as_str().is_none_or(|text| OffsetDateTime::parse(text, &Rfc3339).is_err())
            {
                return Err(format!("{name} is an ISO 8601 instant such as 2026-02-25T16:29:33.1Z"));
            }
        }
        let before = self.incidents.get(&id).map(|kept| kept.now.clone());
        let mut full = Map::new();
        let tenant = &self.id;
        let defaults = json!({
            "id": id,
            "tenantId": tenant,
            "status": "active",
            "incidentWebUrl": format!("https://security.microsoft.com/incident2/{id}/overview?tid={tenant}"),
            "redirectIncidentId": null,
            "displayName": format!("Incident {id}"),
            "createdDateTime": null,
            "lastUpdateDateTime": null,
            "assignedTo": null,
            "classification": "unknown",
            "determination": "unknown",
            "severity": "medium",
            "customTags": [],
            "systemTags": [],
            "description": null,
            "lastModifiedBy": null,
            "resolvingComment": null,
            "summary": null,
            "priorityScore": null,
            "comments": [],
        });
        if let Value::Object(defaults) = defaults {
            full.extend(defaults);
        }
        for (name, value) in given {
            if name != "alerts" && name != "@odata.context" && name != "id" && name != "tenantId" {
                full.insert(name.clone(), in_service_case(name, value));
            }
        }
        let stamp = self.stamp(now, false);
        for name in ["createdDateTime", "lastUpdateDateTime"] {
            let created_before = before.as_ref().map(|before| before["createdDateTime"].clone());
            if !keep_times || full[name].is_null() {
                let value = match created_before {
                    Some(created) if name == "createdDateTime" => created,
                    _ => json!(stamp),
                };
                full.insert(name.to_owned(), value);
            }
        }
        let change = if before.is_some() { "updated" } else { "created" };
        self.incidents.insert(id.clone(), Kept { now: Value::Object(full), before });
        self.touched.push(Touched { incident: id.clone(), change });
        for alert in &alerts {
            self.put_alert(&id, alert, keep_times, now)?;
        }
        Ok(id)
    }

    /// Lets an alert join an incident whose time does not move with it. Returns the alert's id.
    pub fn put_alert_silently(
        &mut self,
        incident: &str,
        alert: &Value,
        now: OffsetDateTime,
    ) -> Result<String, String> {
        let mut alert = alert.clone();
        if let Some(members) = alert.as_object_mut() {
            members.retain(|name, _| !["createdDateTime", "lastUpdateDateTime"].contains(&name.as_str()));
        }
        self.put_alert(incident, &alert, true, now)
    }

    /// Lets an alert join an incident. Returns the alert's id.
    pub fn put_alert(
        &mut self,
        incident: &str,
        alert: &Value,
        keep_times: bool,
        now: OffsetDateTime,
    ) -> Result<String, String> {
        let Value::Object(given) = alert else { return Err("an alert is a JSON object".to_owned()) };
        let id = match given.get("id").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => {
                let seed = format!("alert:{}:{incident}:{}", self.id, self.alerts.len());
                format!("da{}_1", Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).simple())
            }
        };
        let stamp = self.stamp(now, false);
        let mut full = Map::new();
        let defaults = json!({
            "id": id, "providerAlertId": id.get(2..).unwrap_or(&id), "tenantId": self.id, "status": "new",
            "severity": "medium", "classification": null, "determination": null, "assignedTo": null,
            "serviceSource": "microsoftDefenderForEndpoint", "detectionSource": "microsoftDefenderForEndpoint",
            "title": "Suspicious activity", "description": null, "category": "SuspiciousActivity",
            "createdDateTime": stamp, "lastUpdateDateTime": stamp, "firstActivityDateTime": stamp,
            "lastActivityDateTime": stamp, "resolvedDateTime": null, "evidence": [], "comments": [],
            "mitreTechniques": [], "systemTags": [],
        });
        if let Value::Object(defaults) = defaults {
            full.extend(defaults);
        }
        for (name, value) in given {
            let stamped = ["createdDateTime", "lastUpdateDateTime"].contains(&name.as_str());
            if name != "@odata.context" && name != "id" && name != "tenantId" && (!stamped || keep_times) {
                full.insert(name.clone(), value.clone());
            }
        }
        full.insert("incidentId".to_owned(), json!(incident));
        let before = self.alerts.get(&id).map(|kept| kept.now.clone());
        self.touch_alert(&id, if before.is_some() { "updated" } else { "created" });
        self.alerts.insert(id.clone(), Kept { now: Value::Object(full), before });
        if !keep_times {
            self.touch(incident, &stamp);
        }
        Ok(id)
    }

    fn touch_alert(&mut self, alert: &str, change: &'static str) {
        if !self.subscriptions.is_empty() {
            self.touched_alerts.push(Touched { incident: alert.to_owned(), change });
        }
    }

    fn touch(&mut self, incident: &str, stamp: &str) {
        if let Some(kept) = self.incidents.get_mut(incident) {
            kept.before = Some(kept.now.clone());
            kept.now["lastUpdateDateTime"] = json!(stamp);
            self.touched.push(Touched { incident: incident.to_owned(), change: "updated" });
        }
    }

    /// Whether there is such an incident.
    pub fn has_incident(&self, id: &str) -> bool {
        self.incidents.contains_key(id)
    }

    /// Forgets an incident and its alerts, as retention does.
    pub fn delete_incident(&mut self, id: &str) -> bool {
        self.alerts.retain(|_, kept| kept.now["incidentId"] != id);
        self.incidents.remove(id).is_some()
    }

    /// Merges one incident into another, as the correlation engine does (graph.md 9): alerts and tags move, comments
    /// do not.
    pub fn merge(&mut self, source: &str, target: &str, moment: &Moment<'_>) -> Result<(), String> {
        if source == target {
            return Err("source and target are the same incident".to_owned());
        }
        for (name, id) in [("source", source), ("target", target)] {
            if !self.incidents.contains_key(id) {
                return Err(format!("{name}: there is no incident {id:?}"));
            }
        }
        let stamp = self.stamp(moment.now, false);
        let tags: Vec<Value> =
            self.incidents[source].now["customTags"].as_array().cloned().unwrap_or_default();
        let tags: Vec<Value> = tags.into_iter().filter(|tag| tag != "Redirected").collect();
        for kept in self.alerts.values_mut().filter(|kept| kept.now["incidentId"] == source) {
            kept.before = Some(kept.now.clone());
            kept.now["incidentId"] = json!(target);
            kept.now["lastUpdateDateTime"] = json!(stamp);
        }
        self.touch(source, &stamp);
        let second = self.stamp(moment.now, false);
        self.touch(target, &second);
        let list =
            if moment.switches.is("redirectedTag", "customTags") { "customTags" } else { "systemTags" };
        if let Some(kept) = self.incidents.get_mut(source) {
            kept.now["status"] = json!("redirected");
            kept.now["redirectIncidentId"] = json!(target);
            kept.now["lastModifiedBy"] = json!(super::native::ENGINE);
            if let Some(list) = kept.now[list].as_array_mut()
                && !list.contains(&json!("Redirected"))
            {
                list.push(json!("Redirected"));
            }
        }
        if let Some(list) =
            self.incidents.get_mut(target).and_then(|kept| kept.now["customTags"].as_array_mut())
        {
            for tag in tags {
                if !list.contains(&tag) {
                    list.push(tag);
                }
            }
        }
        Ok(())
    }

    /// Everything, for `GET /state`.
    pub fn describe(&self) -> Value {
        let all =
            |kept: &BTreeMap<String, Kept>| kept.values().map(|kept| kept.now.clone()).collect::<Vec<_>>();
        json!({
            "incidents": all(&self.incidents),
            "alerts": all(&self.alerts),
            "subscriptions": self.subscriptions.values().collect::<Vec<_>>(),
        })
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    /// `GET /security/incidents`
    pub fn list_incidents(&self, query: &Query, moment: &Moment<'_>) -> Answer {
        let mut expand = false;
        for (name, value) in &query.options {
            match name.as_str() {
                "$filter" | "$top" | "$skip" | "$skiptoken" | "$count" => {}
                "$expand" if value.eq_ignore_ascii_case("alerts") => expand = true,
                "$expand" => {
                    return Err(bad(format!(
                        "Could not find a property named '{value}' on type 'microsoft.graph.security.incident'."
                    )));
                }
                name if name.starts_with('$') => {
                    return Err(bad(format!(
                        "The query option '{name}' is not supported on this collection."
                    )));
                }
                _ => {}
            }
        }
        let default: usize = ["50", "10", "3"]
            .into_iter()
            .find(|size| moment.switches.is("graphPageSize", size))
            .and_then(|size| size.parse().ok())
            .unwrap_or(TOP_CEILING);
        let top = match query.get("$top") {
            None => default,
            Some(text) => {
                let top: usize = text
                    .parse()
                    .map_err(|_| bad(format!("Invalid value '{text}' for $top query option found.")))?;
                if top > TOP_CEILING {
                    return Err(bad(format!(
                        "The query specified in the URI is not valid. The limit of '50' for Top query has been \
                         exceeded. The value from the incoming request is '{top}'."
                    )));
                }
                top.max(1)
            }
        };
        let mut page = self.page(&self.incidents, "security/incidents", &FILTERABLE, top, query, moment)?;
        if expand && let Some(list) = page["value"].as_array_mut() {
            for incident in list {
                self.expand(incident, query);
            }
        }
        Ok((200, shown(page, query, moment)))
    }

    /// `GET /security/alerts_v2`
    pub fn list_alerts(&self, query: &Query, moment: &Moment<'_>) -> Answer {
        for (name, _) in &query.options {
            let known = ["$filter", "$top", "$skip", "$skiptoken", "$count", "$orderby"];
            if name.starts_with('$') && !known.contains(&name.as_str()) {
                return Err(bad(format!("The query option '{name}' is not supported on this collection.")));
            }
        }
        let top = query.get("$top").map_or(Ok(100), str::parse::<usize>);
        let top = top.map_err(|_| bad("Invalid value for $top query option found."))?.clamp(1, 2_000);
        let page = self.page(&self.alerts, "security/alerts_v2", &ALERT_FILTERABLE, top, query, moment)?;
        Ok((200, shown(page, query, moment)))
    }

    fn page(
        &self,
        all: &BTreeMap<String, Kept>,
        collection: &str,
        filterable: &[&str],
        top: usize,
        query: &Query,
        moment: &Moment<'_>,
    ) -> Result<Value, Refusal> {
        let filter = query
            .get("$filter")
            .map(|text| Filter::parse(text).map_err(|why| bad(format!("Invalid filter clause: {why}"))))
            .transpose()?;
        for path in filter.iter().flat_map(Filter::paths) {
            if !filterable.iter().any(|name| name.eq_ignore_ascii_case(&path)) {
                let kind = if collection.ends_with("incidents") { "incident" } else { "alert" };
                return Err(bad(format!(
                    "Invalid filter clause: Could not find a property named '{path}' on type \
                     'microsoft.graph.security.{kind}'."
                )));
            }
        }
        let skip = match (query.get("$skiptoken"), query.get("$skip")) {
            (Some(token), _) => token.strip_prefix("s-").unwrap_or(token).parse::<usize>(),
            (None, Some(skip)) => skip.parse(),
            (None, None) => Ok(0),
        };
        let skip = skip.map_err(|_| bad("Invalid value for $skip query option found."))?;
        let mut found: Vec<&Value> = all
            .values()
            .map(|kept| kept.seen(query.stale))
            .filter(|value| filter.as_ref().is_none_or(|filter| filter.matches(value)))
            .collect();
        // "The most recent at the top" is all that is said (graph.md 7.3): recent by update here, then by id.
        found.sort_by(|a, b| {
            let time = |value: &Value| {
                OffsetDateTime::parse(value["lastUpdateDateTime"].as_str().unwrap_or_default(), &Rfc3339).ok()
            };
            time(b).cmp(&time(a)).then_with(|| a["id"].as_str().cmp(&b["id"].as_str()))
        });
        let total = found.len();
        let value: Vec<Value> = found.into_iter().skip(skip).take(top).cloned().collect();
        let mut page = json!({
            "@odata.context": format!("{}/v1.0/$metadata#{collection}", query.base),
        });
        if query.get("$count").is_some_and(|count| count.eq_ignore_ascii_case("true")) {
            page["@odata.count"] = json!(total);
        }
        if skip + value.len() < total {
            let mut link = url::form_urlencoded::Serializer::new(String::new());
            for (name, value) in &query.options {
                if name != "$skip" && name != "$skiptoken" {
                    link.append_pair(name, value);
                }
            }
            if moment.switches.is("nextLink", "skiptoken") {
                link.append_pair("$skiptoken", &format!("s-{}", skip + value.len()));
            } else {
                link.append_pair("$skip", &(skip + value.len()).to_string());
            }
            let (base, options) = (&query.base, link.finish());
            page["@odata.nextLink"] = json!(format!("{base}/v1.0/{collection}?{options}"));
        }
        page["value"] = Value::Array(value);
        Ok(page)
    }

    fn expand(&self, incident: &mut Value, query: &Query) {
        let alerts = self.alerts.values().map(|kept| kept.seen(query.stale));
        let own: Vec<Value> = alerts.filter(|alert| alert["incidentId"] == incident["id"]).cloned().collect();
        incident["alerts"] = Value::Array(own);
    }

    /// `GET /security/incidents/{id}`
    pub fn get_incident(&self, id: &str, query: &Query, moment: &Moment<'_>) -> Answer {
        let kept = self.incidents.get(id).ok_or_else(|| incident_missing(id))?;
        let mut incident = kept.seen(query.stale).clone();
        if query.get("$expand").is_some_and(|what| what.eq_ignore_ascii_case("alerts")) {
            self.expand(&mut incident, query);
        }
        Ok((200, shown(entity(&incident, "security/incidents", query), query, moment)))
    }

    /// `GET /security/alerts_v2/{id}`
    pub fn get_alert(&self, id: &str, query: &Query, moment: &Moment<'_>) -> Answer {
        let kept = self.alerts.get(id).ok_or_else(|| alert_missing(id))?;
        Ok((200, shown(entity(kept.seen(query.stale), "security/alerts_v2", query), query, moment)))
    }

    // ---- writing -------------------------------------------------------------------------------------------------

    fn author(&self, moment: &Moment<'_>) -> Value {
        match &moment.caller.user {
            Some(person) => json!(person.upn),
            None if moment.switches.is("lastModifiedBy", "null") => Value::Null,
            None if moment.switches.is("lastModifiedBy", "prefixed-name") => json!("API-App:Lockstep"),
            None => json!(format!("API-App:{}", moment.caller.app_id)),
        }
    }

    /// `PATCH /security/incidents/{id}`: the last writer wins.
    pub fn patch_incident(&mut self, id: &str, body: &Value, query: &Query, moment: &Moment<'_>) -> Answer {
        let kept = self.incidents.get(id).ok_or_else(|| incident_missing(id))?;
        if kept.now["status"] == "redirected" && moment.switches.is("redirectedWritable", "off") {
            return Err(bad(format!(
                "Incident {id} was merged into another incident and cannot be updated."
            )));
        }
        let changes = checked(body, &WRITABLE, "incident")?;
        let mut next = kept.now.clone();
        for (name, value) in &changes {
            let value = match name.as_str() {
                "classification" => word(name, value, CLASSIFICATIONS)?,
                "determination" => word(name, value, DETERMINATIONS)?,
                "severity" => word(name, value, SEVERITIES)?,
                "status" => {
                    let status = word(name, value, &["active", "resolved", "inProgress"])?;
                    if status == "inProgress" && moment.switches.is("inProgress", "refused") {
                        return Err(bad("The status 'inProgress' is not supported for update."));
                    }
                    status
                }
                "customTags" => {
                    let list = value.as_array().filter(|list| list.iter().all(Value::is_string));
                    json!(list.ok_or_else(|| bad("customTags is a collection of strings."))?)
                }
                _ if value.is_null() || value.is_string() => value.clone(),
                _ => return Err(bad(format!("Cannot convert the value of '{name}' to Edm.String."))),
            };
            next[name.as_str()] = value;
        }
        // One that never had a name may be edited all the same.
        let named = changes.iter().any(|(name, _)| name == "displayName");
        if named && (next["displayName"].is_null() || next["displayName"] == "") {
            return Err(bad("displayName cannot be empty."));
        }
        check_pair(&next, moment)?;
        let resolved = next["status"] == "resolved" && kept.now["status"] != "resolved";
        let stamp = self.stamp(moment.now, moment.switches.is("equalTimes", "on"));
        next["lastUpdateDateTime"] = json!(stamp);
        next["lastModifiedBy"] = self.author(moment);
        let before = self.incidents.get(id).map(|kept| kept.now.clone());
        self.incidents.insert(id.to_owned(), Kept { now: next.clone(), before });
        self.touched.push(Touched { incident: id.to_owned(), change: "updated" });
        if resolved && moment.switches.is("resolveCascades", "on") {
            for kept in self.alerts.values_mut().filter(|kept| kept.now["incidentId"] == id) {
                kept.before = Some(kept.now.clone());
                kept.now["status"] = json!("resolved");
                kept.now["resolvedDateTime"] = json!(stamp);
            }
        }
        Ok((200, shown(entity(&next, "security/incidents", query), query, moment)))
    }

    /// `PATCH /security/alerts_v2/{id}`
    pub fn patch_alert(&mut self, id: &str, body: &Value, query: &Query, moment: &Moment<'_>) -> Answer {
        let before = self.alerts.get(id).ok_or_else(|| alert_missing(id))?.now.clone();
        let changes = checked(body, &ALERT_WRITABLE, "alert")?;
        let mut next = before.clone();
        for (name, value) in &changes {
            next[name.as_str()] = match name.as_str() {
                "classification" => word(name, value, CLASSIFICATIONS)?,
                "determination" => word(name, value, DETERMINATIONS)?,
                "status" => word(name, value, &["new", "inProgress", "resolved"])?,
                _ => value.clone(),
            };
        }
        check_pair(&next, moment)?;
        let stamp = self.stamp(moment.now, moment.switches.is("equalTimes", "on"));
        next["lastUpdateDateTime"] = json!(stamp);
        if next["status"] == "resolved" && before["status"] != "resolved" {
            next["resolvedDateTime"] = json!(stamp);
        }
        self.touch_alert(id, "updated");
        self.alerts.insert(id.to_owned(), Kept { now: next.clone(), before: Some(before) });
        if moment.switches.is("alertsTouch", "on")
            && let Some(incident) = next["incidentId"].as_str()
        {
            self.touch(incident, &stamp);
        }
        Ok((200, shown(entity(&next, "security/alerts_v2", query), query, moment)))
    }

    /// `POST /security/incidents/{id}/comments` (or an alert's): appended, and all of them answered.
    pub fn comment(
        &mut self,
        alert: bool,
        id: &str,
        body: &Value,
        query: &Query,
        moment: &Moment<'_>,
    ) -> Answer {
        let Some(text) = body["comment"].as_str().filter(|text| !text.trim().is_empty()) else {
            return Err(bad("The comment cannot be empty."));
        };
        if moment.switches.is("graphCommentLimit", "1000") && text.encode_utf16().count() > COMMENT_LIMIT {
            return Err(bad("The comment is longer than 1000 characters."));
        }
        let by = match (&moment.caller.user, self.author(moment)) {
            (Some(person), _) => person.upn.clone(),
            (None, Value::String(author)) => author.trim_start_matches("API-App:").to_owned(),
            (None, _) => moment.caller.app_id.clone(),
        };
        let stamp = self.stamp(moment.now, moment.switches.is("equalTimes", "on"));
        let comment = json!({"comment": text, "createdByDisplayName": by, "createdDateTime": stamp});
        let (kept, path) = if alert {
            (self.alerts.get_mut(id).ok_or_else(|| alert_missing(id))?, "security/alerts_v2")
        } else {
            (self.incidents.get_mut(id).ok_or_else(|| incident_missing(id))?, "security/incidents")
        };
        if kept.now["status"] == "redirected" && moment.switches.is("redirectedWritable", "off") {
            return Err(bad(format!(
                "Incident {id} was merged into another incident and cannot be updated."
            )));
        }
        kept.before = Some(kept.now.clone());
        if !kept.now["comments"].is_array() {
            kept.now["comments"] = json!([]);
        }
        if let Some(list) = kept.now["comments"].as_array_mut() {
            list.push(comment);
        }
        let comments = kept.now["comments"].clone();
        if moment.switches.is("commentsTouch", "on") {
            kept.now["lastUpdateDateTime"] = json!(stamp);
            if !alert {
                self.touched.push(Touched { incident: id.to_owned(), change: "updated" });
            }
        }
        let context = format!("{}/v1.0/$metadata#{path}('{id}')/comments", query.base);
        Ok((200, json!({"@odata.context": context, "value": comments})))
    }
}

fn entity(value: &Value, collection: &str, query: &Query) -> Value {
    let mut full = Map::new();
    let context = format!("{}/v1.0/$metadata#{collection}/$entity", query.base);
    full.insert("@odata.context".to_owned(), json!(context));
    if let Value::Object(members) = value {
        full.extend(members.clone());
    }
    Value::Object(full)
}

/// The members of a PATCH body, each of them writable. Annotations are ignored.
fn checked(body: &Value, writable: &[&str], kind: &str) -> Result<Vec<(String, Value)>, Refusal> {
    let Value::Object(members) = body else { return Err(bad("The body is not a JSON object.")) };
    let mut changes = Vec::new();
    for (name, value) in members {
        if name.starts_with('@') {
            continue;
        }
        if !writable.contains(&name.as_str()) {
            return Err(bad(format!(
                "The property '{name}' of microsoft.graph.security.{kind} cannot be updated."
            )));
        }
        changes.push((name.clone(), value.clone()));
    }
    if changes.is_empty() {
        return Err(bad("The body holds nothing to update."));
    }
    Ok(changes)
}

/// A word of an enumeration, in any case, spelt as the service spells it.
fn word(name: &str, value: &Value, known: &[&str]) -> Result<Value, Refusal> {
    let text = value.as_str().unwrap_or_default();
    known
        .iter()
        .find(|word| word.eq_ignore_ascii_case(text))
        .map(|word| json!(word))
        .ok_or_else(|| bad(format!("Invalid value '{text}' for property '{name}'.")))
}

/// Older texts spell enumerations in Pascal case; the service does not. What is no known word stays as it is.
fn in_service_case(name: &str, value: &Value) -> Value {
    const STATUSES: &[&str] = &["active", "resolved", "inProgress", "redirected", "awaitingAction"];
    let known = match name {
        "status" => STATUSES,
        "classification" => CLASSIFICATIONS,
        "determination" => DETERMINATIONS,
        "severity" => SEVERITIES,
        _ => return value.clone(),
    };
    word(name, value, known).unwrap_or_else(|_| value.clone())
}

/// The pairs that the portal offers (graph.md 8.2).
fn check_pair(next: &Value, moment: &Moment<'_>) -> Result<(), Refusal> {
    if moment.switches.is("verdictPairs", "any") {
        return Ok(());
    }
    let determination = next["determination"].as_str().unwrap_or("unknown");
    let classification = next["classification"].as_str().unwrap_or("unknown");
    let offered: &[&str] = match classification {
        "truePositive" => &[
            "unknown",
            "multiStagedAttack",
            "maliciousUserActivity",
            "compromisedAccount",
            "malware",
            "phishing",
            "unwantedSoftware",
            "other",
        ],
        "informationalExpectedActivity" => {
            &["unknown", "securityTesting", "lineOfBusinessApplication", "confirmedActivity", "other"]
        }
        "falsePositive" => &["unknown", "notMalicious", "notEnoughDataToValidate", "other"],
        _ => &["unknown"],
    };
    if offered.contains(&determination) {
        return Ok(());
    }
    Err(bad(format!("Determination '{determination}' is not valid for classification '{classification}'.")))
}

/// As this caller is shown it: words it did not ask for hidden, spelling as switched.
fn shown(mut value: Value, query: &Query, moment: &Moment<'_>) -> Value {
    let pascal = moment.switches.is("enumCase", "pascal");
    if !query.unknown_members || pascal {
        spell(&mut value, query.unknown_members, pascal);
    }
    value
}

fn spell(value: &mut Value, unknown_members: bool, pascal: bool) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| spell(value, unknown_members, pascal)),
        Value::Object(members) => {
            for (name, value) in members.iter_mut() {
                let Value::String(text) = value else {
                    spell(value, unknown_members, pascal);
                    continue;
                };
                let gated =
                    GATED.iter().any(|(member, words)| member == name && words.contains(&text.as_str()));
                if gated && !unknown_members {
                    *text = "unknownFutureValue".to_owned();
                }
                if pascal
                    && ["status", "classification", "determination", "severity"].contains(&name.as_str())
                {
                    let mut chars = text.chars();
                    *text = chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect());
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Caller, Switches};
    use super::*;

    const EPOCH: OffsetDateTime = time::macros::datetime!(2026-03-01 08:00 UTC);

    fn caller(user: Option<&str>) -> Caller {
        Caller {
            tenant_id: "t".into(),
            app_id: "app".into(),
            object_id: "o".into(),
            user: user.map(|upn| person("t", upn)),
        }
    }

    fn query(options: &[(&str, &str)]) -> Query {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Query { options, base: "http://graph".into(), unknown_members: true, stale: false }
    }

    #[test]
    fn times_only_grow_whatever_their_precision() {
        let mut tenant = Tenant::new("T");
        let mut last = None;
        for step in 0..200_u64 {
            let now = EPOCH + Duration::from_nanos(step * 137);
            let stamp = tenant.stamp(now, false);
            let at = OffsetDateTime::parse(&stamp, &Rfc3339).expect("an instant");
            assert!(last < Some(at), "{stamp} after {last:?}");
            assert!(at >= now);
            last = Some(at);
        }
        assert_eq!(format_instant(EPOCH), "2026-03-01T08:00:00Z");
        assert_eq!(format_instant(EPOCH + Duration::from_millis(100)), "2026-03-01T08:00:00.1Z");
    }

    #[test]
    fn pages_follow_each_other_and_the_ceiling_is_fifty() {
        let switches = Switches::new(&[SWITCHES]);
        let caller = caller(None);
        let moment = Moment { now: EPOCH, caller: &caller, switches: &switches };
        let mut tenant = Tenant::new("t");
        for number in 0..120 {
            let incident =
                json!({"id": number.to_string(), "severity": if number % 2 == 0 { "high" } else { "low" }});
            tenant.put_incident(&incident, false, EPOCH).expect("good");
        }
        let mut options = vec![
            ("$top".to_owned(), "50".to_owned()),
            ("$filter".to_owned(), "severity eq 'high'".to_owned()),
        ];
        let mut seen = Vec::new();
        loop {
            let (_, page) = tenant
                .list_incidents(&Query { options: options.clone(), ..query(&[]) }, &moment)
                .expect("a page");
            seen.extend(page["value"].as_array().expect("list").iter().map(|i| i["id"].clone()));
            let Some(link) = page["@odata.nextLink"].as_str() else { break };
            let link = url::Url::parse(link).expect("absolute");
            options = link.query_pairs().map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
        }
        assert_eq!(seen.len(), 60);
        let refused = tenant.list_incidents(&query(&[("$top", "1000")]), &moment).expect_err("too many");
        assert!(refused.message.contains("The limit of '50' for Top query has been exceeded"));
        for option in [("$orderby", "id"), ("$select", "id"), ("$filter", "foo eq 1"), ("$expand", "owner")] {
            assert_eq!(tenant.list_incidents(&query(&[option]), &moment).expect_err("refused").status, 400);
        }
    }

    #[test]
    fn a_patch_replaces_lists_clears_by_null_and_says_who() {
        let mut switches = Switches::new(&[SWITCHES]);
        let (app, ann) = (caller(None), caller(Some("ann@contoso.com")));
        let mut tenant = Tenant::new("t");
        tenant
            .put_incident(&json!({"id": "1", "customTags": ["a"], "assignedTo": "x"}), false, EPOCH)
            .expect("good");
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let body = json!({"customTags": ["b"], "assignedTo": null, "status": "InProgress"});
        let (_, after) = tenant.patch_incident("1", &body, &query(&[]), &moment).expect("taken");
        assert_eq!((&after["customTags"], &after["assignedTo"]), (&json!(["b"]), &Value::Null));
        assert_eq!(
            (&after["status"], &after["lastModifiedBy"]),
            (&json!("inProgress"), &json!("API-App:app"))
        );
        let moment = Moment { caller: &ann, ..moment };
        let (_, after) =
            tenant.patch_incident("1", &json!({"severity": "low"}), &query(&[]), &moment).expect("taken");
        assert_eq!(after["lastModifiedBy"], "ann@contoso.com");
        for body in [
            json!({"status": "redirected"}),
            json!({"status": "awaitingAction"}),
            json!({"comments": []}),
            json!({"severity": "critical"}),
            json!({}),
            json!({"customTags": [1]}),
        ] {
            assert_eq!(
                tenant.patch_incident("1", &body, &query(&[]), &moment).expect_err("refused").status,
                400,
                "{body}"
            );
        }
        switches.set("inProgress", "refused").expect("known");
        switches.set("verdictPairs", "portal").expect("known");
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        for body in [
            json!({"status": "inProgress"}),
            json!({"classification": "falsePositive", "determination": "phishing"}),
        ] {
            assert_eq!(
                tenant.patch_incident("1", &body, &query(&[]), &moment).expect_err("refused").status,
                400
            );
        }
    }

    #[test]
    fn a_merge_moves_alerts_and_tags_and_leaves_comments() {
        let switches = Switches::new(&[SWITCHES]);
        let app = caller(None);
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut tenant = Tenant::new("t");
        let source = json!({"id": "1", "customTags": ["a"], "alerts": [{"id": "da1"}]});
        tenant.put_incident(&source, false, EPOCH).expect("good");
        tenant.put_incident(&json!({"id": "2"}), false, EPOCH).expect("good");
        tenant.comment(false, "1", &json!({"comment": "mine"}), &query(&[]), &moment).expect("taken");
        tenant.merge("1", "2", &moment).expect("merged");
        let (_, source) = tenant.get_incident("1", &query(&[]), &moment).expect("still readable");
        assert_eq!((&source["status"], &source["redirectIncidentId"]), (&json!("redirected"), &json!("2")));
        let (_, target) = tenant.get_incident("2", &query(&[("$expand", "alerts")]), &moment).expect("there");
        assert_eq!(target["alerts"][0]["id"], "da1");
        assert_eq!((&target["customTags"], &target["comments"]), (&json!(["a"]), &json!([])));
        assert!(tenant.merge("1", "3", &moment).is_err());
    }

    #[test]
    fn words_that_nobody_asked_for_are_hidden() {
        let switches = Switches::new(&[SWITCHES]);
        let app = caller(None);
        let moment = Moment { now: EPOCH, caller: &app, switches: &switches };
        let mut tenant = Tenant::new("t");
        tenant.put_incident(&json!({"id": "1", "status": "awaitingAction"}), false, EPOCH).expect("good");
        let (_, told) = tenant.get_incident("1", &query(&[]), &moment).expect("there");
        assert_eq!(told["status"], "awaitingAction");
        let plain = Query { unknown_members: false, ..query(&[]) };
        let (_, hidden) = tenant.get_incident("1", &plain, &moment).expect("there");
        assert_eq!(hidden["status"], "unknownFutureValue");
    }
}
