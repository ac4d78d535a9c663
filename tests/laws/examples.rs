//! Every published example of an incident, an alert, its evidence, a comment, a relation or a refusal goes through: it
//! is read, it crosses, and what was made of it rests. A file that no rule here knows fails, so none is passed over.

use std::path::{Path, PathBuf};

use lockstep::adapters::graph::codec as graph;
use lockstep::adapters::sentinel::codec as sentinel;
use lockstep::domain::alert;
use lockstep::domain::digest::alert_digest;
use lockstep::domain::failure::Class;
use lockstep::domain::model::{DefenderIncident, SentinelIncident};
use lockstep::domain::plan::{Outcome, plan};
use lockstep::domain::policy::Policy;
use serde_json::{Value, json};

use crate::worlds::World;

fn files(folder: &str) -> Vec<(String, Value)> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|why| panic!("{}: {why}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let value = serde_json::from_slice(&std::fs::read(&path).expect("a file"));
            (name, value.unwrap_or_else(|why| panic!("{}: {why}", path.display())))
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

/// The incident gets a twin, the twin rests, and all that its alerts say fits into comments.
fn crosses(name: &str, incident: DefenderIncident) {
    let policy = Policy::default();
    let merged = incident.redirect.is_some();
    if let Some(alerts) = &incident.alerts {
        let parts = alert_digest(alerts, incident.web_url.as_deref(), 29_000, 8);
        assert_eq!(parts.is_empty(), alerts.is_empty(), "{name}");
    }
    let mut world = World::new(incident.says.clone(), None);
    world.defender = incident;
    let first = world.plan(&policy);
    if merged {
        assert!(matches!(first.outcome, Outcome::Nothing(_)), "{name}: {first}");
        return;
    }
    assert_eq!(first.outcome, Outcome::Create, "{name}: {first}");
    world.carry_out(&first, 4);
    let second = world.plan(&policy);
    assert!(second.is_empty() && second.clashes.is_empty(), "{name}: {second}");

    // The twin as it goes over the wire says what was meant.
    let write = first.sentinel.expect("a twin is written");
    let sent: Value = serde_json::from_slice(&sentinel::put(&write)).expect("JSON");
    let mut properties = sent["properties"].clone();
    properties["createdTimeUtc"] = json!("2026-02-25T10:00:00Z");
    properties["lastModifiedTimeUtc"] = json!("2026-02-25T10:00:00Z");
    let answer = json!({"id": "/x/twin", "name": "twin", "etag": "\"e\"", "properties": properties});
    let twin = sentinel::incident(answer.to_string().as_bytes()).expect("an incident");
    assert_eq!(twin.says, write.says, "{name}");
}

/// Against an incident of Defender that never met it: whatever is planned rests once it is carried out.
fn meets(name: &str, incident: &SentinelIncident) {
    let policy = Policy::default();
    let mut world = World::new(crate::worlds::defender_says(), Some(incident.says.clone()));
    let first = world.plan(&policy);
    assert_eq!(first.outcome, Outcome::Both, "{name}: {first}");
    world.carry_out(&first, 4);
    let second = world.plan(&policy);
    assert!(second.is_empty() && second.clashes.is_empty(), "{name}: {second}");
    assert_eq!(second, plan(&world.seen(), &policy), "planning is a function");
}

fn each(value: &Value) -> Vec<&Value> {
    value["value"].as_array().map_or_else(|| vec![value], |list| list.iter().collect())
}

#[test]
fn every_published_body_of_graph_goes_through() {
    let mut crossed = 0;
    for (name, value) in files("graph") {
        let body = value.to_string();
        let kind = name.strip_suffix(".json").expect("chosen by it");
        match kind.split_once('.').unwrap_or((kind, "response")) {
            ("incident-comment-create" | "alert-comment-create", "response") => {
                let comments =
                    graph::commented(body.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
                assert_eq!(comments.len(), each(&value).len(), "{name}");
                assert!(comments.iter().all(|comment| comment.author.is_some() && comment.at.is_some()));
            }
            // What clients send is the emulator's to take (`tests/emulator`).
            (_, "request") => assert!(value.is_object(), "{name}"),
            // Told apart by the identity's own library.
            ("token-error", _) => assert!(value["body"]["error"].is_string(), "{name}"),
            (list, _) if list.starts_with("incident-list") => {
                let page = graph::page(body.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
                assert_eq!(page.records.len(), each(&value).len(), "{name}");
                crossed += page.records.len();
                page.records.into_iter().for_each(|incident| crosses(&name, incident));
            }
            (one, _) if one.starts_with("incident-") => {
                crosses(
                    &name,
                    graph::incident(body.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}")),
                );
                crossed += 1;
            }
            (one, _) if one.starts_with("alert-") => {
                for alert in each(&value) {
                    let alert = alert::alert(alert).unwrap_or_else(|why| panic!("{name}: {why}"));
                    assert!(!alert_digest(&[alert], None, 29_000, 8).is_empty(), "{name}");
                }
            }
            _ => panic!("no rule says what {name} is"),
        }
    }
    assert!(crossed >= 10, "{crossed}");
    for (name, evidence) in files("graph/evidence") {
        assert!(!alert::entities(&json!([evidence])).is_empty(), "{name} is named at least");
    }
}

#[test]
fn every_published_body_of_sentinel_goes_through() {
    let mut met = 0;
    for (name, value) in files("sentinel") {
        let bodies: Vec<&Value> = match value["responses"].as_object() {
            Some(responses) => responses.values().map(|response| &response["body"]).collect(),
            None => vec![&value["body"]],
        };
        match name.as_str() {
            // A schema and a table of refusals have tests of their own.
            "playbook-incident-trigger.schema.json" | "arm-errors.json" => {}
            "IncidentComments_List.json" => {
                let (comments, _) = sentinel::comments(bodies[0].to_string().as_bytes()).expect("a page");
                assert_eq!(comments.len(), each(bodies[0]).len());
            }
            _ if name.starts_with("IncidentComments_") => {
                for body in bodies {
                    sentinel::comment(body.to_string().as_bytes())
                        .unwrap_or_else(|why| panic!("{name}: {why}"));
                }
            }
            _ if name.ends_with("List.json") || name.contains("list-page") => {
                let page = sentinel::page(bodies[0].to_string().as_bytes()).expect("a page");
                assert_eq!(page.records.len(), each(bodies[0]).len());
                met += page.records.len();
                page.records.iter().for_each(|incident| meets(&name, incident));
            }
            _ if name.starts_with("Incidents_") => {
                for body in bodies {
                    let one = sentinel::incident(body.to_string().as_bytes());
                    meets(&name, &one.unwrap_or_else(|why| panic!("{name}: {why}")));
                    met += 1;
                }
            }
            _ => panic!("no rule says what {name} is"),
        }
    }
    assert!(met >= 5, "{met}");
}

#[test]
fn every_published_refusal_has_a_class() {
    for (name, value) in files("graph/errors") {
        let status = u16::try_from(value["status"].as_u64().expect("a status")).expect("small");
        let class = Class::of_status(status, None);
        let expected = match &name[..3] {
            "401" | "403" => Class::Auth,
            "409" => Class::Conflict,
            "429" | "500" | "503" | "504" => Class::Retry { wait: None },
            _ => Class::Permanent,
        };
        assert_eq!(class, expected, "{name}");
    }
}
