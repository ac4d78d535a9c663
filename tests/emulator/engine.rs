//! What Defender does by itself: its engine renames, merges, unmerges and moves alerts, and people comment in its portal.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident};
use crate::schema;

async fn read(desk: &Desk, token: &str, id: &str) -> Value {
    let path = format!("/security/incidents/{id}?$expand=alerts");
    let incident = desk.graph(token, Method::GET, &path, Value::Null).await.expect(200);
    schema::graph("microsoft.graph.security.incident", &incident);
    incident
}

#[tokio::test]
async fn the_engine_changes_what_no_application_may_and_the_time_moves() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let id = desk.incident(incident("Calm")).await;
    let before = read(&desk, &token, &id).await;
    let path = format!("/incidents/{id}/engine");
    let edit = json!({
        "displayName": "Multi-stage", "severity": "High", "systemTags": ["Defender Experts"], "priorityScore": 90
    });
    desk.control(Method::POST, &path, edit).await.expect(200);
    let after = read(&desk, &token, &id).await;
    assert_eq!((&after["displayName"], &after["severity"]), (&json!("Multi-stage"), &json!("high")));
    assert_eq!((&after["systemTags"], &after["priorityScore"]), (&json!(["Defender Experts"]), &json!(90)));
    assert_eq!(after["lastModifiedBy"], "Microsoft 365 Defender");
    assert_ne!(after["lastUpdateDateTime"], before["lastUpdateDateTime"]);
    desk.control(Method::POST, &path, json!({"lastModifiedBy": null})).await.expect(200);
    let again = read(&desk, &token, &id).await;
    assert_eq!(again["lastModifiedBy"], Value::Null);
    assert_ne!(again["lastUpdateDateTime"], after["lastUpdateDateTime"]);
    assert_eq!(desk.control(Method::POST, &path, json!({"id": "7"})).await.status, 400);
    assert_eq!(desk.control(Method::POST, "/incidents/404404/engine", json!({})).await.status, 404);
}

#[tokio::test]
async fn merges_may_chain_and_be_taken_back_but_not_bite_themselves() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(desk.incident(json!({"displayName": name, "alerts": [{"id": format!("da-{name}")}]})).await);
    }
    let merge = async |source: &str, target: &str| {
        desk.control(Method::POST, "/merge", json!({"source": source, "target": target})).await.status
    };
    assert_eq!(merge(&ids[0], &ids[0]).await, 400);
    assert_eq!(merge(&ids[0], &ids[1]).await, 200);
    assert_eq!(merge(&ids[1], &ids[2]).await, 200);
    assert_eq!(read(&desk, &token, &ids[0]).await["redirectIncidentId"], ids[1].as_str());
    assert_eq!(read(&desk, &token, &ids[1]).await["redirectIncidentId"], ids[2].as_str());
    assert_eq!(read(&desk, &token, &ids[2]).await["alerts"].as_array().map(Vec::len), Some(3));

    desk.control(Method::POST, "/unmerge", json!({"source": ids[0]})).await.expect(200);
    let back = read(&desk, &token, &ids[0]).await;
    assert_eq!((&back["status"], &back["redirectIncidentId"]), (&json!("active"), &Value::Null));
    assert!(!format!("{}{}", back["systemTags"], back["customTags"]).contains("Redirected"), "{back}");
    assert_eq!(desk.control(Method::POST, "/unmerge", json!({"source": ids[0]})).await.status, 400);
    assert_eq!(desk.control(Method::POST, "/unmerge", json!({"source": "404404"})).await.status, 404);
}

#[tokio::test]
async fn a_moved_alert_touches_both_incidents_where_alerts_do() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let from = desk.incident(json!({"displayName": "From", "alerts": [{"id": "da-moves"}]})).await;
    let to = desk.incident(incident("To")).await;
    let times = async || {
        let (from, to) = (read(&desk, &token, &from).await, read(&desk, &token, &to).await);
        [from["lastUpdateDateTime"].clone(), to["lastUpdateDateTime"].clone()]
    };
    let before = times().await;
    desk.control(Method::POST, "/alerts/da-moves/move", json!({"incident": to})).await.expect(200);
    let after = times().await;
    assert!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    let path = "/security/alerts_v2/da-moves";
    let alert = desk.graph(&token, Method::GET, path, Value::Null).await.expect(200);
    assert_eq!(alert["incidentId"], to.as_str());
    desk.switch("alertsTouch", "off").await;
    desk.control(Method::POST, "/alerts/da-moves/move", json!({"incident": from})).await.expect(200);
    assert_eq!(times().await, after);
    assert_eq!(read(&desk, &token, &from).await["alerts"].as_array().map(Vec::len), Some(1));
    for (path, incident) in [("/alerts/none/move", from.as_str()), ("/alerts/da-moves/move", "404404")] {
        assert_eq!(desk.control(Method::POST, path, json!({"incident": incident})).await.status, 404);
    }
}

#[tokio::test]
async fn people_comment_under_any_name() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let id = desk.incident(incident("Talk")).await;
    let path = format!("/incidents/{id}/comments");
    desk.control(Method::POST, &path, json!({"comment": "Seen", "by": "Kim O'Hara"})).await.expect(201);
    let comments = read(&desk, &token, &id).await["comments"].clone();
    assert_eq!(comments[0]["createdByDisplayName"], "Kim O'Hara");
    assert_eq!(comments[0]["comment"], "Seen");
    assert_eq!(desk.control(Method::POST, &path, json!({"comment": "Seen"})).await.status, 400);
}

/// A twin of Microsoft's connector opens again, and alerts go where Defender put them.
#[tokio::test]
async fn the_native_twin_follows_the_engine() {
    let desk = Desk::open().await;
    desk.control(Method::POST, "/native", json!({"workspace": desk.workspace()})).await.expect(201);
    let source = desk.incident(json!({"displayName": "Source", "alerts": [{"id": "da-s"}]})).await;
    let target = desk.incident(json!({"displayName": "Target"})).await;
    desk.control(Method::POST, "/merge", json!({"source": source, "target": target})).await.expect(200);
    desk.control(Method::POST, "/unmerge", json!({"source": source})).await.expect(200);
    desk.control(Method::POST, "/alerts/da-s/move", json!({"incident": source})).await.expect(200);
    let path = format!("/incidents/{target}/engine");
    desk.control(Method::POST, &path, json!({"severity": "high"})).await.expect(200);
    let state = desk.state().await;
    let all = state["workspaces"].as_object().and_then(|all| all.values().next()).expect("one").clone();
    let twin = |id: &str| {
        let all = all["incidents"].as_array().expect("incidents");
        let found = all.iter().find(|one| one["properties"]["providerIncidentId"] == id).expect("a twin");
        found["properties"].clone()
    };
    let (source, target) = (twin(&source), twin(&target));
    assert_eq!((&source["status"], &source["labels"]), (&json!("New"), &json!([])));
    assert_eq!(source["additionalData"]["alertsCount"], 1);
    assert!(source["additionalData"].get("mergedIncidentNumber").is_none());
    assert_eq!((&target["severity"], &target["additionalData"]["alertsCount"]), (&json!("High"), &json!(0)));
}
