//! `lockstep explain`: what happened to one incident, and why, from the journal. Asks neither side.

use std::process::ExitCode;

use serde_json::Value;

use super::operate::{self, no_route};
use crate::config::Config;
use crate::domain::model::LinkKey;
use crate::ports::JournalEntry;

pub(super) async fn run(
    config: &Config,
    route: &str,
    incident: &str,
    lines: usize,
) -> anyhow::Result<ExitCode> {
    let found = config.routes.iter().find(|known| known.name == route);
    let names =
        found.and_then(|route| Some((config.tenant(&route.tenant)?, config.workspace(&route.workspace)?)));
    let Some((tenant, workspace)) = names else { return Err(no_route(config, route)) };
    let key = LinkKey {
        tenant_id: tenant.tenant_id.clone(),
        incident_id: incident.to_owned(),
        workspace: workspace.resource_id(),
    };
    let store = operate::open(config).await?;
    println!("{key}");
    match store.link(&key).await? {
        None => println!("  not linked: the incident was never copied"),
        Some(link) => {
            println!("  its twin in Sentinel is {}", link.sentinel_id);
            if let Some(reason) = link.parked {
                println!("  put aside: {reason}");
            }
        }
    }
    for entry in store.journal(&key, lines).await? {
        for line in told(&entry) {
            println!("  {line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A journal entry in lines for a person. What this version does not know is shown as it stands.
fn told(entry: &JournalEntry) -> Vec<String> {
    let JournalEntry { at, kind, detail, .. } = entry;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let at = at.replace_nanosecond(0).unwrap_or(*at);
    let mut lines = Vec::new();
    match kind.as_str() {
        "write" => {
            let cause = &detail["cause"];
            let how = if detail["create"] == true { "create in" } else { "write to" };
            let (side, from, sources) =
                (text(&detail["side"]), text(&cause["side"]), text(&cause["sources"]));
            lines.push(format!("{at} {how} {side}, because {from} may have changed ({sources})"));
            for change in detail["changes"].as_array().into_iter().flatten() {
                let [field, before, after, rule] =
                    ["field", "before", "after", "rule"].map(|name| text(&change[name]));
                lines.push(format!("    {field}: {before} -> {after} ({rule})"));
            }
        }
        "clash" => {
            let [field, winner, kept, lost, rule] =
                ["field", "winner", "kept", "lost", "rule"].map(|name| text(&detail[name]));
            lines.push(format!("{at} clash: {field} {lost} gave way to {kept} of {winner} ({rule})"));
        }
        "park" => lines.push(format!("{at} put aside: {}", text(&detail["reason"]))),
        _ => lines.push(format!("{at} {kind}: {detail}")),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use time::OffsetDateTime;

    #[test]
    fn a_write_is_told_with_its_cause_and_every_value() {
        let link = LinkKey { tenant_id: "t".into(), incident_id: "1".into(), workspace: "/w".into() };
        let detail = json!({
            "side": "defender", "create": false, "cause": {"side": "sentinel", "sources": "playbook"},
            "changes": [{"field": "severity", "before": "low", "after": "high", "rule": "one-sided"}],
        });
        let entry = JournalEntry { at: OffsetDateTime::UNIX_EPOCH, link, kind: "write".into(), detail };
        let lines = told(&entry);
        assert_eq!(
            lines[0],
            "1970-01-01 0:00:00.0 +00:00:00 write to defender, because sentinel may have changed (playbook)"
        );
        assert_eq!(lines[1], "    severity: low -> high (one-sided)");
    }
}
