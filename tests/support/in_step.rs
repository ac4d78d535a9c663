//! Whether both sides say the same. The table of meanings is written out here a second time, on purpose: a mistake in
//! the product's own mapping must not excuse itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::emulator::{Place, State, names};

/// What keeps a place from being in step; empty when every Defender incident has exactly one twin, every twin one
/// incident, and all fields mean the same. An incident that was merged away may have had a twin; then it is closed.
pub(crate) fn differences(state: &State, place: &Place) -> Vec<String> {
    let twins = state.sentinel(place);
    let mut found = Vec::new();
    let mut live = 0;
    for incident in state.defender(place) {
        let id = incident["id"].as_str().expect("Graph ids are text");
        let own: Vec<&Value> = twins.iter().filter(|twin| names(twin, id)).collect();
        if incident["status"] == "redirected" {
            live += own.len();
            match own.as_slice() {
                [] => {}
                [twin] if twin["properties"]["status"] == "Closed" => {}
                [_] => found.push(format!("{id}: merged away, and its twin is not closed")),
                several => found.push(format!("{id}: merged away, {} twins", several.len())),
            }
            continue;
        }
        live += 1;
        match own.as_slice() {
            [] => found.push(format!("{id}: no twin")),
            [twin] => {
                for difference in between(incident, &twin["properties"]) {
                    found.push(format!("{id}: {difference}"));
                }
            }
            several => found.push(format!("{id}: {} twins", several.len())),
        }
    }
    if twins.len() != live {
        found.push(format!("{live} incidents, {} twins", twins.len()));
    }
    found
}

/// The fields of one link that do not mean the same.
fn between(defender: &Value, sentinel: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |field: &str, same: bool, left: &Value, right: &Value| {
        if !same {
            found.push(format!("{field} {left} / {right}"));
        }
    };
    let (left, right) = (&defender["displayName"], &sentinel["title"]);
    check("title", text(left) == text(right), left, right);
    let (left, right) = (&defender["severity"], &sentinel["severity"]);
    check("severity", text(left).to_lowercase() == text(right).to_lowercase(), left, right);
    let (left, right) = (&defender["status"], &sentinel["status"]);
    let same = matches!(
        (text(left), text(right)),
        ("active", "New") | ("inProgress" | "awaitingAction", "Active") | ("resolved", "Closed")
    );
    check("status", same, left, right);
    let (left, right) = (&defender["assignedTo"], &sentinel["owner"]);
    let owners: Vec<String> = ["userPrincipalName", "email", "assignedTo"]
        .iter()
        .map(|member| text(&right[*member]).to_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    let same = match text(left).to_lowercase() {
        nobody if nobody.is_empty() => owners.is_empty(),
        name => owners.contains(&name),
    };
    check("owner", same, left, right);
    // Sentinel has no verdict while the incident is open.
    if sentinel["status"] == "Closed" {
        let (left, right) = (&defender["classification"], &sentinel["classification"]);
        let same = matches!(
            (text(left), text(right)),
            ("truePositive", "TruePositive")
                | ("falsePositive", "FalsePositive")
                | ("informationalExpectedActivity", "BenignPositive")
                | ("unknown" | "", "Undetermined")
        );
        check("verdict", same, left, right);
        let (left, right) = (&defender["resolvingComment"], &sentinel["classificationComment"]);
        check("verdict comment", text(left) == text(right), left, right);
    }
    let (left, right) = (&defender["customTags"], &sentinel["labels"]);
    check("tags", tags(left) == labels(right), left, right);
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default().trim()
}

fn tags(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().map(|tag| text(tag).to_lowercase()).collect()
}

fn labels(list: &Value) -> BTreeSet<String> {
    let labels = list.as_array().into_iter().flatten();
    let ours = labels.filter(|label| label["labelType"] != "AutoAssigned");
    // The service keeps determinations as labels of its own.
    ours.map(|label| text(&label["labelName"]).to_lowercase())
        .filter(|name| !name.starts_with("determination/"))
        .collect()
}
