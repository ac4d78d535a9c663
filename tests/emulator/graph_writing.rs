//! Writing to Graph: what may be written, who is named afterwards, comments, merges.

use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::desk::{Desk, fixture, incident};
use crate::schema;

const INCIDENT: &str = "microsoft.graph.security.incident";

fn instant(incident: &Value) -> OffsetDateTime {
    let text = incident["lastUpdateDateTime"].as_str().expect("a time");
    OffsetDateTime::parse(text, &Rfc3339).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(fixture("graph/incident-get.response.json")).await;
    let path = format!("/security/incidents/{id}");
    let before = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);

    let patch = json!({
        "status": "resolved", "classification": "falsePositive", "determination": "notMalicious",
        "resolvingComment": "Checked.", "assignedTo": null, "customTags": ["One", "Two"], "severity": "low",
        "displayName": "Renamed"
    });
    let after = desk.graph(&token, Method::PATCH, &path, patch.clone()).await.expect(200);
    schema::graph(INCIDENT, &after);
    for (name, value) in patch.as_object().expect("an object") {
        assert_eq!(&after[name], value, "{name}");
    }
    for name in ["id", "createdDateTime", "description", "summary", "systemTags", "priorityScore", "comments"]
    {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert!(instant(&after) > instant(&before), "a write moves the time");
    assert!(after["lastModifiedBy"].as_str().is_some_and(|by| by.starts_with("API-App:")), "{after}");

    let again = desk.graph(&token, Method::PATCH, &path, json!({"customTags": ["Three"]})).await.expect(200);
    assert_eq!(again["customTags"], json!(["Three"]), "the list is replaced");
    assert_eq!(again["status"], "resolved");
    assert!(instant(&again) > instant(&after), "two writes have two times");
    let read = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read["lastUpdateDateTime"], again["lastUpdateDateTime"]);
}

#[tokio::test]
async fn an_incident_without_a_name_is_edited_like_any_other() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(json!({"displayName": null, "severity": null, "status": null})).await;
    let path = format!("/security/incidents/{id}");
    let after = desk.graph(&token, Method::PATCH, &path, json!({"severity": "low"})).await.expect(200);
    assert_eq!((&after["severity"], &after["displayName"]), (&json!("low"), &Value::Null));
    for name in [json!(""), Value::Null] {
        desk.graph(&token, Method::PATCH, &path, json!({"displayName": name})).await.refused(400);
    }
}

#[tokio::test]
async fn enum_values_of_the_published_sample_are_taken_without_regard_to_case() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(incident("Case")).await;
    let patch = json!({"classification": "TruePositive", "determination": "MultiStagedAttack", "customTags": ["Demo"]});
    let path = format!("/security/incidents/{id}");
    let after = desk.graph(&token, Method::PATCH, &path, patch).await.expect(200);
    assert_eq!(after["classification"], "truePositive");
    assert_eq!(after["determination"], "multiStagedAttack");
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_and_changes_nothing() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(incident("Guarded")).await;
    let path = format!("/security/incidents/{id}");
    let before = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    for patch in [
        json!({"status": "redirected"}),
        json!({"status": "awaitingAction"}),
        json!({"status": "gone"}),
        json!({"severity": "critical"}),
        json!({"classification": "sort of"}),
        json!({"customTags": "one"}),
        json!({"assignedTo": 7}),
        json!(["status"]),
    ] {
        desk.graph(&token, Method::PATCH, &path, patch.clone()).await.refused(400);
    }
    let after = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(after, before);
    desk.graph(&token, Method::PATCH, "/security/incidents/99999", json!({"severity": "low"}))
        .await
        .refused(404);
}

#[tokio::test]
async fn a_person_is_named_for_what_a_person_did() {
    let desk = Desk::open().await;
    let id = desk.incident(incident("By hand")).await;
    let path = format!("/security/incidents/{id}");
    let kim = desk.user_token("graph", "kim@contoso.com").await;
    let after = desk.graph(&kim, Method::PATCH, &path, json!({"severity": "high"})).await.expect(200);
    assert_eq!(after["lastModifiedBy"], "kim@contoso.com");

    let app = desk.app_token("graph", "writer").await;
    let said = async |token: &str, text: &str| {
        let body = json!({"@odata.type": "microsoft.graph.security.alertComment", "comment": text});
        desk.graph(token, Method::POST, &format!("{path}/comments"), body).await.expect(200)
    };
    said(&kim, "Looking at it").await;
    let all = said(&app, "Copied").await;
    schema::graph("microsoft.graph.security.alertCommentCollectionResponse", &all);
    let all = all["value"].as_array().expect("all comments").clone();
    let texts: Vec<&str> = all.iter().filter_map(|one| one["comment"].as_str()).collect();
    assert_eq!(texts, ["Looking at it", "Copied"], "the answer holds all comments, oldest first");
    assert!(all[0]["createdByDisplayName"].as_str().is_some_and(|name| name.to_lowercase().contains("kim")));
    assert!(all[1]["createdByDisplayName"].is_string());
    assert!(all.iter().all(|one| one["createdDateTime"].is_string()), "{all:?}");
    let read = desk.graph(&app, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read["comments"].as_array(), Some(&all));
}

#[tokio::test]
async fn an_alert_takes_its_own_members_and_comments() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let body = fixture("graph/incident-get-expand-alerts.response.json");
    let alert = body["alerts"][0]["id"].as_str().expect("an id").to_owned();
    desk.incident(body).await;
    let path = format!("/security/alerts_v2/{alert}");
    let patch = json!({"status": "inProgress", "assignedTo": "kim@contoso.com", "classification": "truePositive",
        "determination": "malware", "customDetails": {"ticket": "7"}});
    let after = desk.graph(&token, Method::PATCH, &path, patch.clone()).await.expect(200);
    schema::graph("microsoft.graph.security.alert", &after);
    for name in ["status", "assignedTo", "classification", "determination"] {
        assert_eq!(after[name], patch[name], "{name}");
    }
    assert_eq!(after["customDetails"]["ticket"], "7");
    desk.graph(&token, Method::PATCH, &path, json!({"severity": "high"})).await.refused(400);
    let all = desk
        .graph(&token, Method::POST, &format!("{path}/comments"), json!({"comment": "On the alert"}))
        .await
        .expect(200);
    assert!(
        all["value"]
            .as_array()
            .is_some_and(|all| all.last().is_some_and(|one| one["comment"] == "On the alert")),
        "{all}"
    );
}

#[tokio::test]
async fn a_merge_leaves_a_pointer_and_takes_the_alerts_along() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let mut source = fixture("graph/incident-get-expand-alerts.response.json");
    source["customTags"] = json!(["Moves"]);
    let source = desk.incident(source).await;
    let target = desk.incident(incident("Stays")).await;
    let before = desk
        .graph(&token, Method::GET, &format!("/security/incidents/{target}"), Value::Null)
        .await
        .expect(200);
    let reply = desk.control(Method::POST, "/merge", json!({"source": source, "target": target})).await;
    assert!(matches!(reply.status, 200 | 204), "{}", reply.text);

    let read = async |id: &str| {
        let path = format!("/security/incidents/{id}?$expand=alerts");
        desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200)
    };
    let gone = read(&source).await;
    schema::graph(INCIDENT, &gone);
    assert_eq!(gone["status"], "redirected");
    assert_eq!(gone["redirectIncidentId"], target.as_str());
    assert_eq!(gone["alerts"], json!([]));
    let tags = format!("{}{}", gone["customTags"], gone["systemTags"]);
    assert!(tags.contains("Redirected"), "{tags}");
    let winner = read(&target).await;
    schema::graph(INCIDENT, &winner);
    assert_eq!(winner["alerts"].as_array().map(Vec::len), Some(1));
    assert_eq!(winner["alerts"][0]["incidentId"], target.as_str());
    assert!(winner["customTags"].as_array().is_some_and(|tags| tags.contains(&json!("Moves"))), "{winner}");
    assert!(instant(&winner) > instant(&before), "the winner has moved");

    let reply = desk.control(Method::POST, "/merge", json!({"source": "nowhere", "target": target})).await;
    assert_eq!(reply.status, 404, "{}", reply.text);
}

#[tokio::test]
async fn a_person_is_found_by_name_and_by_id() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let kim = desk.graph(&token, Method::GET, "/users/kim@contoso.com", Value::Null).await.expect(200);
    assert_eq!(kim["userPrincipalName"], "kim@contoso.com");
    let id = kim["id"].as_str().expect("an id").to_owned();
    let same = desk.graph(&token, Method::GET, &format!("/users/{id}"), Value::Null).await.expect(200);
    assert_eq!(same["userPrincipalName"], kim["userPrincipalName"]);
    assert_eq!(same["displayName"], kim["displayName"]);
    let nobody = "00000000-0000-4000-8000-00000000dead";
    desk.graph(&token, Method::GET, &format!("/users/{nobody}"), Value::Null).await.refused(404);
}

#[tokio::test]
async fn equal_times_when_switched_on_never_run_backwards() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(incident("Fast")).await;
    desk.switch("equalTimes", "on").await;
    let path = format!("/security/incidents/{id}");
    let mut before = instant(&desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200));
    let mut equal = 0;
    for n in 0..5 {
        let patch = json!({"displayName": format!("Fast {n}")});
        let now = instant(&desk.graph(&token, Method::PATCH, &path, patch).await.expect(200));
        assert!(now >= before, "{now} after {before}");
        equal += u32::from(now == before);
        before = now;
    }
    assert!(equal > 0, "five writes within moments all have times of their own");
}

/// The requests of the published pages, as they stand: their enum values in Pascal case among them.
#[tokio::test]
async fn every_published_request_about_an_incident_or_an_alert_is_taken() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "writer").await;
    let id = desk.incident(fixture("graph/incident-get-expand-alerts.response.json")).await;
    let path = format!("/security/incidents/{id}");
    let expanded = desk.graph(&token, Method::GET, &format!("{path}?$expand=alerts"), Value::Null).await;
    let alert = expanded.expect(200)["alerts"][0]["id"].as_str().expect("an alert").to_owned();
    let alert = format!("/security/alerts_v2/{alert}");
    for (name, method, path) in [
        ("incident-update", Method::PATCH, path.clone()),
        ("incident-resolve", Method::PATCH, path.clone()),
        ("incident-reopen-and-unassign", Method::PATCH, path.clone()),
        ("incident-comment-create", Method::POST, format!("{path}/comments")),
        ("alert-update", Method::PATCH, alert.clone()),
        ("alert-comment-create", Method::POST, format!("{alert}/comments")),
    ] {
        let reply = desk.graph(&token, method, &path, fixture(&format!("graph/{name}.request.json"))).await;
        assert!((200..300).contains(&reply.status), "{name}: {} {}", reply.status, reply.text);
    }
}
