//! Microsoft's own connector between a tenant and a workspace of it: what it carries, what it drops, and that it never
//! answers itself.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, fixture};
use crate::schema;

/// A desk whose first tenant is connected to its first workspace.
async fn connected() -> Desk {
    let desk = Desk::open().await;
    desk.control(Method::POST, "/native", json!({"workspace": desk.workspace()})).await.expect(201);
    desk
}

/// The twin of a Defender incident.
async fn twin(desk: &Desk, token: &str, id: &str) -> Value {
    let query = format!("/incidents?$filter=properties/providerIncidentId%20eq%20'{id}'");
    let page = desk.arm(token, Method::GET, &query, Value::Null).await.expect(200);
    let found = page["value"].as_array().expect("a list");
    assert_eq!(found.len(), 1, "one twin of {id}: {found:#?}");
    schema::arm("Incident", &found[0]);
    found[0].clone()
}

async fn read(desk: &Desk, token: &str, id: &str) -> Value {
    desk.graph(token, Method::GET, &format!("/security/incidents/{id}"), Value::Null).await.expect(200)
}

/// A PUT of the whole twin with some members changed.
async fn edit(desk: &Desk, token: &str, twin: &Value, members: Value) -> Value {
    let mut body = twin.clone();
    for (name, value) in members.as_object().expect("members") {
        body["properties"][name] = value.clone();
    }
    let path = format!("/incidents/{}", twin["name"].as_str().expect("a name"));
    desk.arm(token, Method::PUT, &path, body).await.expect(200)
}

#[tokio::test]
async fn every_incident_has_a_twin_and_its_alerts_and_entities_come_along() {
    let desk = Desk::open().await;
    let (graph, arm) = (desk.app_token("graph", "g").await, desk.app_token("arm", "a").await);
    let mut old = fixture("graph/incident-get-expand-alerts.response.json");
    old["comments"] = json!([{"comment": "before", "createdByDisplayName": "kim@contoso.com"}]);
    old["alerts"][0]["category"] = json!("InitialAccess");
    old["alerts"][0]["mitreTechniques"] = json!(["T1566"]);
    old["alerts"][0]["evidence"].as_array_mut().expect("evidence").push(json!({
        "@odata.type": "#microsoft.graph.security.ipEvidence", "ipAddress": "203.0.113.9"
    }));
    let old = desk.incident(old).await;
    desk.control(Method::POST, "/native", json!({"workspace": desk.workspace()})).await.expect(201);
    let made = twin(&desk, &arm, &old).await;
    let properties = &made["properties"];
    assert_eq!(properties["providerName"], "Microsoft XDR");
    let url = properties["additionalData"]["providerIncidentUrl"].as_str().expect("a link");
    assert!(url.contains(&old) && url.ends_with(&format!("?tid={}", desk.tenant())), "{url}");
    assert_eq!(properties["additionalData"]["alertsCount"], 1);
    assert_eq!(properties["additionalData"]["commentsCount"], 0, "only new comments are carried");
    assert_eq!(properties["additionalData"]["tactics"], json!(["InitialAccess"]));
    assert_eq!(properties["additionalData"]["techniques"], json!(["T1566"]));
    assert_eq!(properties["additionalData"]["alertProductNames"].as_array().map(Vec::len), Some(1));

    let path = format!("/incidents/{}", made["name"].as_str().expect("a name"));
    let alerts = desk.arm(&arm, Method::POST, &format!("{path}/alerts"), Value::Null).await.expect(200);
    schema::arm("IncidentAlertList", &alerts);
    assert_eq!(alerts["value"].as_array().map(Vec::len), Some(1));
    let entities = desk.arm(&arm, Method::POST, &format!("{path}/entities"), Value::Null).await.expect(200);
    schema::arm("IncidentEntitiesResponse", &entities);
    let list = entities["entities"].as_array().expect("entities");
    assert!(
        list.iter().any(|one| one["kind"] == "Ip" && one["properties"]["address"] == "203.0.113.9"),
        "{list:?}"
    );
    // Defender's alerts are Defender's to relate.
    let relation = desk.arm(&arm, Method::GET, &format!("{path}/relations"), Value::Null).await.expect(200);
    let name = relation["value"][0]["name"].as_str().expect("a relation");
    desk.arm(&arm, Method::DELETE, &format!("{path}/relations/{name}"), Value::Null).await.refused(400);

    let new = desk.incident(json!({"displayName": "New", "customTags": ["vip"]})).await;
    let made = twin(&desk, &arm, &new).await;
    assert_eq!(made["properties"]["labels"], json!([{"labelName": "vip", "labelType": "User"}]));
    for number in 0..160 {
        let alert = json!({"title": format!("Alert {number}")});
        desk.control(Method::POST, &format!("/incidents/{new}/alerts"), alert).await.expect(201);
    }
    let made = twin(&desk, &arm, &new).await;
    assert_eq!(made["properties"]["additionalData"]["alertsCount"], 150);
    assert_eq!(read(&desk, &graph, &new).await["lastModifiedBy"], Value::Null, "nothing comes back");
}

#[tokio::test]
async fn fields_follow_each_other_both_ways_through_the_lossy_table() {
    let desk = connected().await;
    let (graph, arm) = (desk.app_token("graph", "g").await, desk.app_token("arm", "a").await);
    let id = desk.incident(json!({"displayName": "First", "severity": "low"})).await;
    let path = format!("/security/incidents/{id}");
    let patch = json!({
        "displayName": "Second", "severity": "high", "description": "what", "assignedTo": "kim@contoso.com",
        "status": "resolved", "classification": "falsePositive", "determination": "notMalicious",
        "customTags": ["a", "b"], "resolvingComment": "stays here",
    });
    desk.graph(&graph, Method::PATCH, &path, patch).await.expect(200);
    let made = twin(&desk, &arm, &id).await;
    let properties = &made["properties"];
    assert_eq!((&properties["title"], &properties["severity"]), (&json!("Second"), &json!("High")));
    assert_eq!(properties["description"], "what");
    assert_eq!(properties["owner"]["userPrincipalName"], "kim@contoso.com");
    assert!(properties["owner"]["objectId"].is_string());
    assert_eq!(properties["status"], "Closed");
    assert_eq!(properties["classification"], "FalsePositive");
    assert_eq!(properties["classificationReason"], "InaccurateData");
    assert_eq!(properties["classificationComment"], Value::Null, "no comment of the verdict");

    let owner =
        json!({"userPrincipalName": "lee@contoso.com", "objectId": null, "email": null, "assignedTo": null});
    let members = json!({
        "title": "Third", "status": "Closed", "classification": "TruePositive",
        "classificationReason": "SuspiciousActivity", "owner": owner, "severity": "Medium",
        "labels": [{"labelName": "b"}, {"labelName": "c"}],
    });
    let edited = edit(&desk, &arm, &made, members).await;
    let told = read(&desk, &graph, &id).await;
    assert_eq!((&told["displayName"], &told["severity"]), (&json!("Third"), &json!("medium")));
    assert_eq!(told["assignedTo"], "lee@contoso.com");
    assert_eq!(
        (&told["classification"], &told["determination"]),
        (&json!("truePositive"), &json!("unknown"))
    );
    assert_eq!(told["customTags"], json!(["b", "c"]));
    // Its own writes are no news to it.
    assert_eq!(twin(&desk, &arm, &id).await["etag"], edited["etag"]);
    let at_rest = desk.state().await;
    desk.control(Method::POST, "/native/flush", Value::Null).await.expect(204);
    assert_eq!(desk.state().await["workspaces"], at_rest["workspaces"]);
    assert_eq!(desk.state().await["tenants"], at_rest["tenants"]);

    edit(
        &desk,
        &arm,
        &edited,
        json!({"status": "Active", "classification": null, "classificationReason": null}),
    )
    .await;
    assert_eq!(read(&desk, &graph, &id).await["status"], "inProgress");
    desk.graph(&graph, Method::PATCH, &path, json!({"status": "active", "assignedTo": null}))
        .await
        .expect(200);
    let reopened = twin(&desk, &arm, &id).await;
    assert_eq!(reopened["properties"]["status"], "New");
    assert!(reopened["properties"].get("owner").is_none(), "{reopened}");
}

#[tokio::test]
async fn new_comments_go_over_as_they_are_and_once() {
    let desk = connected().await;
    let id = desk.incident(json!({"displayName": "Talk"})).await;
    let (graph, arm) = (
        desk.user_token("graph", "kim@contoso.com").await,
        desk.user_token("arm", "ann.lee@contoso.com").await,
    );
    let path = format!("/security/incidents/{id}/comments");
    desk.graph(&graph, Method::POST, &path, json!({"comment": "<b>from</b> Defender"})).await.expect(200);
    let made = twin(&desk, &arm, &id).await;
    let comments = format!("/incidents/{}/comments", made["name"].as_str().expect("a name"));
    let list = desk.arm(&arm, Method::GET, &comments, Value::Null).await.expect(200);
    schema::arm("IncidentCommentList", &list);
    assert_eq!(list["value"][0]["properties"]["message"], "<b>from</b> Defender");
    assert_eq!(list["value"][0]["properties"]["author"]["userPrincipalName"], "kim@contoso.com");
    for message in ["from Sentinel", "edited"] {
        let body = json!({"properties": {"message": message}});
        desk.arm(&arm, Method::PUT, &format!("{comments}/mine"), body).await;
    }
    let said = read(&desk, &graph, &id).await;
    let said: Vec<(&str, &str)> = said["comments"]
        .as_array()
        .expect("comments")
        .iter()
        .map(|one| {
            (one["comment"].as_str().unwrap_or(""), one["createdByDisplayName"].as_str().unwrap_or(""))
        })
        .collect();
    assert_eq!(said, [("<b>from</b> Defender", "kim@contoso.com"), ("from Sentinel", "Ann Lee")]);
    let list = desk.arm(&arm, Method::GET, &comments, Value::Null).await.expect(200);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_merge_closes_the_twin_and_says_where_it_went() {
    let desk = connected().await;
    let arm = desk.app_token("arm", "a").await;
    let source =
        desk.incident(json!({"displayName": "Source", "customTags": ["x"], "alerts": [{"id": "da1"}]})).await;
    let target = desk.incident(json!({"displayName": "Target"})).await;
    desk.control(Method::POST, "/merge", json!({"source": source, "target": target})).await.expect(200);
    let lost = twin(&desk, &arm, &source).await;
    let properties = &lost["properties"];
    assert_eq!(
        (&properties["status"], &properties["classification"]),
        (&json!("Closed"), &json!("Undetermined"))
    );
    let labels = properties["labels"].as_array().expect("labels");
    assert!(labels.contains(&json!({"labelName": "Redirected", "labelType": "AutoAssigned"})), "{labels:?}");
    assert_eq!(properties["additionalData"]["alertsCount"], 0);
    assert!(properties["additionalData"].get("mergedIncidentNumber").is_none(), "a preview member");
    let kept = twin(&desk, &arm, &target).await;
    assert_eq!(kept["properties"]["additionalData"]["alertsCount"], 1);
    assert_eq!(kept["properties"]["labels"], json!([{"labelName": "x", "labelType": "User"}]));
    let url =
        format!("{}{}?api-version=2025-10-01-preview", desk.url("arm"), lost["id"].as_str().expect("an id"));
    let bearer = format!("Bearer {arm}");
    let told = desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.expect(200);
    let number = kept["properties"]["incidentNumber"].to_string();
    assert_eq!(told["properties"]["additionalData"]["mergedIncidentNumber"], number);
}

#[tokio::test]
async fn what_is_held_flows_when_it_is_let_go() {
    let desk = connected().await;
    let (graph, arm) = (desk.app_token("graph", "g").await, desk.app_token("arm", "a").await);
    desk.switch("nativeDelay", "held").await;
    let id = desk.incident(json!({"displayName": "Late"})).await;
    let list = desk.arm(&arm, Method::GET, "/incidents", Value::Null).await.expect(200);
    assert_eq!(list["value"], json!([]));
    desk.control(Method::POST, "/native/flush", Value::Null).await.expect(204);
    let made = twin(&desk, &arm, &id).await;
    edit(&desk, &arm, &made, json!({"severity": "High"})).await;
    assert_eq!(read(&desk, &graph, &id).await["severity"], "medium");
    desk.switch("nativeDelay", "none").await;
    assert_eq!(read(&desk, &graph, &id).await["severity"], "high");

    let reply = desk.control(Method::DELETE, "/native", json!({"workspace": desk.workspace()})).await;
    assert_eq!(reply.status, 204);
    let path = format!("/security/incidents/{id}");
    desk.graph(&graph, Method::PATCH, &path, json!({"severity": "low"})).await.expect(200);
    assert_eq!(twin(&desk, &arm, &id).await["properties"]["severity"], "High");
}

#[tokio::test]
async fn only_a_workspace_of_the_same_tenant_is_connected() {
    let desk = Desk::open().await;
    let other = "bbbbcccc-1111-4ddd-8222-eeee3333ffff";
    desk.control(Method::POST, "/tenants", json!({"tenantId": other})).await.expect(201);
    let order = json!({"workspace": desk.workspace(), "tenantId": other});
    assert_eq!(desk.control(Method::POST, "/native", order).await.status, 400);
    let order = json!({"workspace": "/subscriptions/none"});
    assert_eq!(desk.control(Method::POST, "/native", order).await.status, 404);
    assert_eq!(
        desk.control(Method::DELETE, "/native", json!({"workspace": desk.workspace()})).await.status,
        404
    );
}
