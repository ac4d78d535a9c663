//! What the API and the commands tell of an incident, and of owners without a counterpart.

use std::process::Output;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Scene, Stage, fresh};
use crate::support::until;

const TOKEN: &str = "a-token-for-the-tools-of-people";

/// A stage whose API is open.
async fn open(scene: Scene<'_>) -> Stage {
    let mut stage = Stage::prepare(scene, |hello| hello.graph.clone()).await;
    reconfigure(&stage, "[store]", &format!("api_tokens = [\"{TOKEN}\"]\n[store]"));
    stage.service.resume().await;
    stage
}

fn reconfigure(stage: &Stage, from: &str, to: &str) {
    let path = stage.service.config();
    let text = std::fs::read_to_string(path).expect("the stage has written it");
    assert!(text.contains(from), "{from}: {text}");
    std::fs::write(path, text.replace(from, to)).expect("it is ours");
}

fn said(output: &Output) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

fn reasons(answer: &Value) -> Vec<&str> {
    let list = answer["why_not"].as_array().expect("a list");
    list.iter().filter_map(|one| one["reason"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_is_explained_from_its_hints_to_the_request_ids() {
    let stage = open(Scene::default()).await;
    let (id, _) = stage.linked(fresh("To be explained")).await;
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;
    stage.ends().await;
    let path = format!("/api/v1/routes/route-0/incidents/{id}/explain");
    assert_eq!(stage.service.ask(&path, "somebody-elses-token").await.0, StatusCode::UNAUTHORIZED);
    let (status, answer) = stage.service.ask(&path, TOKEN).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((reasons(&answer), &answer["queue"]), (vec![], &json!([])), "nothing stands in the way");
    let entries = answer["entries"].as_array().expect("a list");
    let change = entries.iter().rposition(|entry| entry["kind"] == "write").expect("the change was written");
    let [hint, read, write, landed] = &entries[change - 2..=change + 1] else { panic!("{entries:?}") };
    assert_eq!((&hint["kind"], &hint["detail"]["sources"]), (&json!("hint"), &json!("poll")), "{hint}");
    assert_eq!((&read["kind"], &landed["kind"]), (&json!("read"), &json!("landed")));
    assert_eq!(write["detail"]["changes"][0]["after"], "High");
    let calls = landed["detail"]["calls"].as_array().expect("a list");
    let of = |side: &str, operation: &str| {
        let found = calls.iter().find(|call| call["side"] == side && call["operation"] == operation);
        found.unwrap_or_else(|| panic!("no {operation} to {side}: {calls:?}"))
    };
    for (side, operation, names) in [
        ("defender", "incident-get", ["request-id", "client-request-id"]),
        ("sentinel", "incident-put", ["x-ms-request-id", "x-ms-correlation-request-id"]),
    ] {
        let call = of(side, operation);
        assert!(call["at"].is_string(), "{call}");
        for name in names {
            assert!(call["ids"][name].as_str().is_some_and(|id| !id.is_empty()), "no {name}: {call}");
        }
    }
    let body = answer.to_string();
    assert!(!body.contains("displayName") && !body.contains("properties"), "no payload is kept: {body}");
    assert!(hint.to_string().len() + read.to_string().len() < 700, "{hint} {read}");

    // While the route is held: what waits, and why.
    said(&stage.service.command(&["hold", "route-0", "--reason", "a drill"]));
    stage.edit_defender(&id, json!({"severity": "low"})).await;
    let (answer, _) = until("the hint waits", PATIENCE, || async {
        let (_, answer) = stage.service.ask(&path, TOKEN).await;
        let held =
            answer["service"]["now"]["last_run"]["end"] == "held" && reasons(&answer) == ["held", "waiting"];
        if held { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    let row = &answer["queue"][0];
    assert_eq!(
        (&row["side"], &row["sources"], &row["attempts"]),
        (&json!("defender"), &json!("poll"), &json!(0))
    );
    assert_eq!(answer["service"]["now"]["sentinel"]["gate"], "open");

    let alone = said(&stage.service.command(&["explain", "route-0", &id]));
    assert!(alone.contains("not written: the route is held") && alone.contains("a drill"), "{alone}");
    assert!(alone.contains("not known here") && alone.contains(&path), "{alone}");
    let url = stage.service.url("/");
    let asked = said(&stage.service.command(&["explain", "route-0", &id, "--url", &url]));
    assert!(asked.contains("the last run, at ") && !asked.contains("not known here"), "{asked}");
    said(&stage.service.command(&["release", "route-0"]));
    stage.sentinel_shows(&id, json!({"severity": "Low"})).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_without_a_counterpart_are_listed_until_they_are_mapped() {
    let more = "[routes.owners]\nfallback = \"leave\"\n";
    let mut stage = open(Scene { more, ..Scene::default() }).await;
    let mut ids = Vec::new();
    for number in 0..2 {
        let mut incident = fresh(&format!("Whose {number}?"));
        incident["assignedTo"] = json!("ghost@contoso.com");
        ids.push(stage.linked(incident).await.0);
    }
    let tolerated = |difference: &str| difference.contains("owner");
    stage.ends_but(tolerated).await;
    let told = said(&stage.service.command(&["owners"]));
    for part in [
        "ghost@contoso.com of defender, route route-0: is named by neither",
        "2 incident(s)",
        "map = { \"ghost@contoso.com\" = ",
        "1 owner(s) without a counterpart",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let listed = async |stage: &Stage, path: &str| {
        let (status, answer) = stage.service.ask(path, TOKEN).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["owners"].as_array().expect("a list").clone()
    };
    let of_route = listed(&stage, "/api/v1/routes/route-0/owners").await;
    assert_eq!(of_route, listed(&stage, "/api/v1/owners").await);
    assert_eq!((&of_route[0]["incidents"], &of_route[0]["reason"]), (&json!(2), &json!("no-rule")));
    let (_, metrics) = stage.service.get("/metrics").await;
    assert!(metrics.contains("lockstep_unmapped_owners_total{side=\"defender\"} 2"), "{metrics}");

    // The line is written, the service starts again; each incident follows when it is looked at again.
    let map = "fallback = \"leave\"\nmap = { \"ghost@contoso.com\" = \"omar@contoso.com\" }";
    reconfigure(&stage, "fallback = \"leave\"", map);
    assert!(stage.service.terminate(Duration::from_secs(10)), "{}", stage.service.log_tail());
    stage.service.resume().await;
    assert!(said(&stage.service.command(&["owners"])).contains("mapped by now"));
    for id in &ids {
        stage.edit_defender(id, json!({"severity": "high"})).await;
        let owner = json!({"severity": "High", "owner": {"userPrincipalName": "omar@contoso.com"}});
        stage.sentinel_shows(id, owner).await;
    }
    stage.ends_but(tolerated).await;
    assert_eq!(listed(&stage, "/api/v1/owners").await, Vec::<Value>::new());
    assert!(said(&stage.service.command(&["owners", "--json"])).trim() == "[]");
}
