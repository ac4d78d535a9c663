//! `lockstep explain`: what happened to one incident, and why, from the journal. Asks neither side.

use std::process::ExitCode;

use serde_json::Value;

use super::operate::{self, no_route};
use crate::adapters::clock::SystemClock;
use crate::app::explain;
use crate::config::Config;
use crate::ports::{Clock, JournalEntry};

pub(super) async fn run(
    config: &Config,
    route: &str,
    incident: &str,
    lines: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let Some((found, key)) = operate::link_of(config, route, incident) else {
        return Err(no_route(config, route));
    };
    let store = operate::open(config).await?;
    let now = SystemClock.now();
    let explained = explain::explain(&*store, route, &found.policy, key, lines, now).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&explained.to_json())?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", explained.key);
    match &explained.link {
        None => println!("  not linked: the incident was never copied"),
        Some(link) => println!("  its twin in Sentinel is {}", link.sentinel_id),
    }
    for entry in &explained.entries {
        for line in told(entry) {
            println!("  {line}");
        }
    }
    for reason in &explained.why_not {
        println!("  not written: {reason}");
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
            lines.extend(changes(&detail["changes"]));
        }
        "clash" => {
            let [field, winner, kept, lost, rule] =
                ["field", "winner", "kept", "lost", "rule"].map(|name| text(&detail[name]));
            lines.push(format!("{at} clash: {field} {lost} gave way to {kept} of {winner} ({rule})"));
        }
        "park" => lines.push(format!("{at} put aside: {}", text(&detail["reason"]))),
        "field-parked" => {
            lines.push(format!("{at} put aside: {}, {}", text(&detail["field"]), text(&detail["reason"])));
        }
        "landed" => lines.push(format!("{at} answered, and agreed on")),
        "refused" | "failed" => {
            lines.push(format!("{at} {kind}: {} ({})", text(&detail["why"]), text(&detail["code"])));
        }
        "shadow" => {
            lines.push(format!("{at} in shadow, this would be written:"));
            lines.extend(changes(&detail["changes"]));
        }
        "vanished" => lines.push(format!("{at} {}", text(&detail["reason"]))),
        "comment" if detail["note"].is_string() => {
            lines.push(format!("{at} comments: {}", text(&detail["note"])))
        }
        "comment" => {
            let [side, source, why] = ["side", "source", "why"].map(|name| text(&detail[name]));
            lines.push(format!("{at} comment to {side} ({source}): {why}"));
        }
        "alerts" => lines.push(format!("{at} the digest of the alerts is written to sentinel")),
        "unsaid" => {
            lines.push(format!("{at} left alone: {} ({})", text(&detail["field"]), text(&detail["why"])))
        }
        _ => lines.push(format!("{at} {kind}: {detail}")),
    }
    for call in detail["calls"].as_array().into_iter().flatten() {
        let [side, operation, ids] = ["side", "operation", "ids"].map(|name| text(&call[name]));
        let status = call["status"].as_u64().map_or("no answer".to_owned(), |status| status.to_string());
        lines.push(format!("    call: {side} {operation} {status} ({ids})"));
    }
    lines
}

/// Each value that changes, in a line.
fn changes(list: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let lines = list.as_array().into_iter().flatten().map(|change| {
        let [field, before, after, rule] =
            ["field", "before", "after", "rule"].map(|name| text(&change[name]));
        format!("    {field}: {before} -> {after} ({rule})")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::LinkKey;
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
