//! The alerts of an incident as comments of its twin: Sentinel shows at most 150 alerts, and none that it did not make
//! itself. The text depends on the alerts alone, so that it is written only when one of them changed.

use serde_json::json;

use crate::domain::alert::{Alert, Entity, EntityKind, rank};
use crate::domain::text::{clean, collapse, cut_to_units, escape_html, units};

/// The longest that one alert may be, in UTF-16 units of HTML: what is more is counted.
const ALERT_UNITS: usize = 6_000;
/// The longest name of anything, in characters.
const NAME: usize = 200;

/// The digest, in as many comments as it takes; the last of them says what did not fit. Empty without alerts.
pub fn alert_digest(alerts: &[Alert], web_url: Option<&str>, limit: usize, most_parts: usize) -> Vec<String> {
    let ordered = in_order(alerts);
    if ordered.is_empty() {
        return vec!["<p><b>Alerts of the Defender incident</b>: none any more</p>".to_owned()];
    }
    let head = format!("<p><b>Alerts of the Defender incident</b>: {}</p>", counted(alerts));
    // Room for the part's number and for the sentence at the end.
    let room = limit.saturating_sub(units(&head) + 400);
    let mut parts: Vec<String> = Vec::new();
    let mut shown = 0;
    for alert in &ordered {
        let text = one(alert);
        let filled = parts.len();
        match parts.last_mut() {
            Some(last) if units(last) + units(&text) <= room => last.push_str(&text),
            _ if filled == most_parts => break,
            _ => parts.push(text),
        }
        shown += 1;
    }
    let (count, left) = (parts.len(), ordered.len() - shown);
    for (index, part) in parts.iter_mut().enumerate() {
        let number = if count > 1 { format!("<p>Part {} of {count}</p>", index + 1) } else { String::new() };
        *part = format!("{head}{number}<ul>{part}</ul>");
    }
    if left > 0
        && let Some(last) = parts.last_mut()
    {
        let place = link(web_url, "in Defender").unwrap_or_else(|| "in Defender".to_owned());
        last.push_str(&format!("<p>{left} more alerts are not shown here: they are {place}.</p>"));
    }
    parts
}

fn in_order(alerts: &[Alert]) -> Vec<&Alert> {
    let mut ordered: Vec<&Alert> = alerts.iter().collect();
    ordered.sort_by_key(|alert| (rank(&alert.severity), alert.created, alert.id.clone()));
    ordered.dedup_by(|a, b| a.id == b.id);
    ordered
}

fn counted(alerts: &[Alert]) -> String {
    let facts = crate::domain::alert::facts(alerts, Vec::new());
    let each: Vec<String> = facts.alerts.iter().map(|(severity, n)| format!("{n} {severity}")).collect();
    format!("{} ({})", facts.total(), escape_html(&each.join(", ")))
}

/// One alert as an item of the list.
fn one(alert: &Alert) -> String {
    let title = alert.title.as_deref().unwrap_or("an alert without a title");
    let mut line = format!("<b>{}</b> {}", shown(alert.severity.as_str()), shown(title));
    let when = alert.created.map(|at| at.to_offset(time::UtcOffset::UTC));
    let mut facts: Vec<String> = Vec::new();
    facts.extend(alert.product.as_deref().map(shown));
    facts.extend(when.map(|at| format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())));
    facts.push(format!("status {}", shown(alert.status.as_str())));
    if !alert.tactics.is_empty() {
        facts.push(shown(&alert.tactics.join(", ")));
    }
    if !alert.techniques.is_empty() {
        facts.push(shown(&alert.techniques.join(", ")));
    }
    line.push_str(&format!("<br>{}", facts.join(" · ")));
    if let Some(link) = link(alert.web_url.as_deref(), "Open in Defender") {
        line.push_str(&format!("<br>{link}"));
    }
    let mut kinds: Vec<&EntityKind> = alert.entities.iter().map(|entity| &entity.kind).collect();
    kinds.sort_by_key(|kind| (matches!(kind, EntityKind::Text(_)), kind.as_str().to_owned()));
    kinds.dedup();
    let mut left = 0;
    for kind in kinds {
        let of_kind: Vec<&Entity> = alert.entities.iter().filter(|entity| entity.kind == *kind).collect();
        let mut names = String::new();
        for (index, entity) in of_kind.iter().enumerate() {
            let name = shown(&entity.name);
            if units(&line) + units(&names) + units(&name) > ALERT_UNITS {
                left += of_kind.len() - index;
                break;
            }
            if !names.is_empty() {
                names.push_str(", ");
            }
            names.push_str(&name);
        }
        if !names.is_empty() {
            line.push_str(&format!("<br>{}: {names}", shown(kind.as_str())));
        }
    }
    if left > 0 {
        line.push_str(&format!("<br>and {left} more entities"));
    }
    format!("<li>{line}</li>")
}

/// Somebody else's text, on one line, not too long, and harmless as HTML.
fn shown(text: &str) -> String {
    let text = collapse(&clean(text));
    let cut = cut_to_units(&text, NAME);
    let mark = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{mark}", escape_html(cut))
}

/// A link, if the address is a web address.
fn link(url: Option<&str>, label: &str) -> Option<String> {
    let url = url::Url::parse(url?).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let url = url.as_str();
    (units(url) <= 1_000).then(|| {
        format!("<a href=\"{}\" target=\"_blank\">{label}</a>", escape_html(url).replace('"', "%22"))
    })
}

/// A bookmark for one alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// `displayName`.
    pub display_name: String,
    /// `query`: required, and leads to the alert in the workspace where its rows are.
    pub query: String,
    /// `queryResult`: the alert as one row, in JSON.
    pub query_result: String,
    /// `notes`.
    pub notes: String,
    /// `labels`.
    pub labels: Vec<String>,
    /// `eventTime`, as RFC 3339.
    pub event_time: Option<String>,
    /// `entityMappings`: a type, and pairs of identifier and value.
    pub mappings: Vec<(String, Vec<(String, String)>)>,
}

/// The most entities that one bookmark carries.
const MOST_MAPPINGS: usize = 10;

/// The bookmark of an alert.
pub fn bookmark(alert: &Alert) -> Bookmark {
    let title = alert.title.as_deref().unwrap_or("an alert without a title");
    let name = collapse(&clean(title));
    let row = json!({
        "AlertId": alert.id, "Title": title, "Severity": alert.severity.as_str(), "Status": alert.status.as_str(),
        "Product": alert.product, "Tactics": alert.tactics, "Techniques": alert.techniques, "Link": alert.web_url,
        "Entities": alert.entities.iter().map(|e| json!({"Type": e.kind.as_str(), "Name": e.name})).collect::<Vec<_>>(),
    });
    let mappings = alert.entities.iter().filter(|entity| !matches!(entity.kind, EntityKind::Text(_)));
    Bookmark {
        display_name: cut_to_units(&name, NAME).to_owned(),
        query: query_of(&alert.id),
        query_result: row.to_string(),
        notes: alert.web_url.clone().unwrap_or_default(),
        labels: alert.tactics.clone(),
        event_time: alert
            .created
            .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()),
        mappings: mappings
            .take(MOST_MAPPINGS)
            .map(|entity| (entity.kind.as_str().to_owned(), entity.facts.clone()))
            .collect(),
    }
}

/// What becomes of a bookmark whose alert has left the incident: deleting takes a right that we do not ask for, so it says
/// what happened, and gives its entities up.
pub fn departed(alert_id: &str, title: &str) -> Bookmark {
    let name = collapse(&clean(&format!("No longer in this incident: {title}")));
    Bookmark {
        display_name: cut_to_units(&name, NAME).to_owned(),
        query: query_of(alert_id),
        query_result: json!({"AlertId": alert_id, "Title": title}).to_string(),
        notes: "Defender has moved this alert to another incident.".to_owned(),
        labels: Vec::new(),
        event_time: None,
        mappings: Vec::new(),
    }
}

/// Where the rows of an alert are. A quote in the id would end the text in the query.
fn query_of(alert_id: &str) -> String {
    let id: String = alert_id.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    format!("SecurityAlert | where VendorOriginalId == \"{id}\"")
}

/// The alerts that get a bookmark: the most severe first.
pub fn bookmarked(alerts: &[Alert], most: usize) -> Vec<&Alert> {
    in_order(alerts).into_iter().take(most).collect()
}
