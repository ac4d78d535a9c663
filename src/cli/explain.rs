//! `lockstep explain`: what happened to one incident, and why, or why nothing did. Reads the store, so that it can be
//! asked while the service is down; or asks the running service, which knows more.

use std::process::ExitCode;

use anyhow::{Context, bail};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use super::operate::{self, no_route};
use crate::adapters::clock::SystemClock;
use crate::adapters::transport::{ClientOptions, Transport};
use crate::app::explain::{self, Question};
use crate::config::Config;
use crate::ports::Clock;

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) route: &'a str,
    pub(super) incident: &'a str,
    pub(super) last: usize,
    pub(super) json: bool,
    /// The running service, if it is to be asked.
    pub(super) url: Option<Url>,
}

pub(super) async fn run(config: &Config, asked: Asked<'_>) -> anyhow::Result<ExitCode> {
    let Asked { route, incident, last, json, url } = asked;
    let Some((found, key)) = operate::link_of(config, route, incident) else {
        return Err(no_route(config, route));
    };
    let explained = match url {
        Some(url) => of_service(config, url, route, incident).await?,
        None => {
            let store = operate::open(config).await?;
            let pair = config.routes.iter().filter(|other| config.joins_the_same(other, found));
            let pair: Vec<&str> = pair.map(|other| other.name.as_str()).collect();
            let question = Question { route, policy: &found.policy, key: &key, pair: &pair, most: last };
            explain::explain(&*store, question, None, SystemClock.now()).await?.to_json()
        }
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&explained)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{key}");
    for line in told_all(&explained, last) {
        println!("  {line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The same from the running service.
async fn of_service(config: &Config, mut url: Url, route: &str, incident: &str) -> anyhow::Result<Value> {
    let Some(token) = config.server.api_tokens.first() else {
        bail!("the service answers only to one of api_tokens in [server], and there is none");
    };
    match url.path_segments_mut() {
        Ok(mut path) => {
            path.pop_if_empty().extend(["api", "v1", "routes", route, "incidents", incident, "explain"]);
        }
        Err(()) => bail!("--url is no address of a service"),
    }
    let extra_ca = config.ca_pem.clone().map(String::into_bytes);
    let transport = Transport::new(&ClientOptions { extra_ca, ..ClientOptions::default() })?;
    let request = transport.request(Method::GET, url.clone()).bearer_auth(token.expose_secret());
    let answer = transport.send(request).await.map_err(|why| anyhow::anyhow!("{url}: {why}"))?;
    let body: Value = serde_json::from_slice(&answer.body)
        .with_context(|| format!("{url} answered {} with something else than JSON", answer.status))?;
    if !answer.is_success() {
        bail!("{url} answered {}: {}", answer.status, text(&body["detail"]));
    }
    Ok(body)
}

/// A text as it is; anything else as JSON has it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The explanation in lines for a person.
fn told_all(explained: &Value, last: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    match explained["twin"].as_str() {
        None => lines.push("not linked: the incident was never copied".to_owned()),
        Some(twin) => lines.push(format!("its twin in Sentinel is {twin}")),
    }
    let entries = list(&explained["entries"]);
    for entry in &entries[entries.len().saturating_sub(last)..] {
        lines.extend(told(&text(&entry["at"]), &text(&entry["kind"]), &entry["detail"]));
    }
    let rules = explained["rules"].as_object().cloned().unwrap_or_default();
    let rules: Vec<String> = rules.iter().map(|(field, way)| format!("{field} {}", text(way))).collect();
    if !rules.is_empty() {
        lines.push(format!("fields that do not flow both ways: {}", rules.join(", ")));
    }
    for reason in list(&explained["why_not"]) {
        lines.push(format!("not written: {}", text(&reason["why"])));
    }
    let service = &explained["service"];
    if service["known"] == false {
        lines.push(format!(
            "not known here: closed sides, spent budgets, the last run; ask the running service with --url ({})",
            text(&service["ask"])
        ));
    } else if let Some(run) = service["now"]["last_run"].as_object() {
        let why = run.get("why").map(|why| format!(": {}", text(why))).unwrap_or_default();
        lines.push(format!(
            "the last run, at {}: {}{why} ({} in a row since {})",
            text(&run["at"]),
            text(&run["end"]),
            run["times"],
            text(&run["since"])
        ));
    }
    lines
}

/// A journal entry in lines for a person. What this version does not know is shown as it stands.
fn told(at: &str, kind: &str, detail: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    match kind {
        "hint" => {
            let [side, sources] = ["side", "sources"].map(|name| text(&detail[name]));
            let version = detail["version"].as_str().map(|version| format!(", version {version}"));
            let version = version.unwrap_or_default();
            let attempt = match detail["attempt"].as_u64() {
                Some(attempt) if attempt > 1 => format!(", attempt {attempt}"),
                _ => String::new(),
            };
            lines.push(format!(
                "{at} hint: {side} may have changed ({sources}{version}), {} in all{attempt}",
                detail["hints"]
            ));
        }
        "read" => {
            for read in detail["reads"].as_array().into_iter().flatten() {
                let version = &read["version"];
                let said = match (version.as_str(), version["etag"].as_str()) {
                    (Some(updated), _) => format!("last update {updated}"),
                    (_, Some(etag)) => format!("etag {etag}, last modified {}", text(&version["modified"])),
                    _ => "not there".to_owned(),
                };
                lines.push(format!("{} read: {}, {said}", text(&read["at"]), text(&read["side"])));
            }
        }
        "agreed" => {
            let fields = detail["fields"]
                .as_array()
                .map(|fields| fields.iter().map(text).collect::<Vec<_>>().join(", "));
            let what = fields.map_or("found in step".to_owned(), |fields| {
                format!("moved, and nothing to write: {fields}")
            });
            lines.push(format!("{at} agreed: {what}"));
        }
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
            let would = detail["would"].as_array().into_iter().flatten();
            lines.extend(would.map(|what| format!("    {}", text(what))));
        }
        "overlap" => {
            let also = detail["also"].as_array().into_iter().flatten().map(&text);
            let also = also.collect::<Vec<_>>().join(", ");
            lines.push(format!("{at} matches {also} too, and stays with {}", text(&detail["owner"])));
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
        let [side, operation] = ["side", "operation"].map(|name| text(&call[name]));
        let ids = match call["ids"].as_object() {
            Some(ids) => {
                ids.iter().map(|(name, id)| format!("{name} {}", text(id))).collect::<Vec<_>>().join(", ")
            }
            None => text(&call["ids"]),
        };
        let at = call["at"].as_str().map(|at| format!("{at} ")).unwrap_or_default();
        let status = call["status"].as_u64().map_or("no answer".to_owned(), |status| status.to_string());
        lines.push(format!("    call: {at}{side} {operation} {status} ({ids})"));
    }
    lines
}

/// Each value that changes, in a line.
fn changes(list: &Value) -> Vec<String> {
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
    use serde_json::json;

    #[test]
    fn a_decision_is_told_with_its_hints_reads_and_every_value() {
        let at = "2026-03-04T10:00:00Z";
        let hint = json!({"side": "sentinel", "sources": "playbook,poll", "version": "v2", "hints": 3, "attempt": 2});
        assert_eq!(
            told(at, "hint", &hint),
            [
                "2026-03-04T10:00:00Z hint: sentinel may have changed (playbook,poll, version v2), 3 in all, attempt 2"
            ]
        );
        let reads = json!({"reads": [
            {"at": "t1", "side": "sentinel", "version": {"etag": "e", "modified": "m"}},
            {"at": "t2", "side": "defender", "version": "u"},
            {"at": "t3", "side": "defender", "version": null},
        ]});
        assert_eq!(
            told(at, "read", &reads),
            [
                "t1 read: sentinel, etag e, last modified m",
                "t2 read: defender, last update u",
                "t3 read: defender, not there"
            ]
        );
        let write = json!({
            "side": "defender", "create": false, "cause": {"side": "sentinel", "sources": "playbook"},
            "changes": [{"field": "severity", "before": "low", "after": "high", "rule": "one-sided"}],
        });
        assert_eq!(
            told(at, "write", &write),
            [
                "2026-03-04T10:00:00Z write to defender, because sentinel may have changed (playbook)",
                "    severity: low -> high (one-sided)"
            ]
        );
        // The second call is as the version before wrote it.
        let landed = json!({"calls": [
            {"at": "t", "side": "defender", "operation": "incident-update", "status": 200, "ids": {
                "request-id": "r", "client-request-id": "c",
            }},
            {"side": "sentinel", "operation": "incident-put", "status": null, "ids": "x-ms-client-request-id i"},
        ]});
        assert_eq!(
            told(at, "landed", &landed)[1..],
            [
                "    call: t defender incident-update 200 (request-id r, client-request-id c)",
                "    call: sentinel incident-put no answer (x-ms-client-request-id i)"
            ]
        );
    }

    #[test]
    fn the_store_alone_says_what_it_cannot_know() {
        let alone = json!({
            "twin": null, "entries": [], "rules": {"title": "to-sentinel"},
            "why_not": [{"reason": "held", "why": "the route is held"}],
            "service": {"known": false, "ask": "GET /api/v1/routes/r/incidents/1/explain"},
        });
        let lines = told_all(&alone, 100);
        assert!(lines.contains(&"not written: the route is held".to_owned()), "{lines:?}");
        assert!(
            lines.contains(&"fields that do not flow both ways: title to-sentinel".to_owned()),
            "{lines:?}"
        );
        let last = lines.last().map(String::as_str).unwrap_or_default();
        assert!(last.starts_with("not known here") && last.contains("GET /api/v1/routes/r"), "{last}");
    }
}
