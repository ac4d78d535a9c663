//! Alerts of a workspace's own: what an incident says of them once they are related to it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, Reply};
use crate::schema;

async fn relate(desk: &Desk, token: &str, alert: &str) -> Reply {
    let id = format!("{}/providers/Microsoft.SecurityInsights/entities/{alert}", desk.workspace());
    let body = json!({"properties": {"relatedResourceId": id}});
    desk.arm(token, Method::PUT, &format!("/incidents/seen/relations/{alert}"), body).await
}

#[tokio::test]
async fn an_incident_tells_of_its_alerts() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let body = json!({"properties": {"title": "t", "severity": "Low", "status": "New"}});
    desk.arm(&token, Method::PUT, "/incidents/seen", body).await.expect(201);
    for (id, product, tactics, rule) in [
        ("alert-1", "Azure Sentinel", json!(["Persistence"]), json!("rule-1")),
        ("alert-2", "Some Firewall", json!(["Persistence", "Impact"]), Value::Null),
    ] {
        let alert = json!({
            "workspace": desk.url("workspaceName"), "systemAlertId": id, "productName": product, "tactics": tactics,
            "techniques": ["T1098"], "analyticRuleId": rule,
            "entities": [{"kind": "Ip", "properties": {"address": "203.0.113.9"}}],
        });
        desk.control(Method::POST, "/sentinel/alerts", alert).await.expect(201);
        relate(&desk, &token, id).await.expect(201);
    }
    let incident = desk.arm(&token, Method::GET, "/incidents/seen", Value::Null).await.expect(200);
    schema::arm("Incident", &incident);
    let additional = &incident["properties"]["additionalData"];
    assert_eq!(additional["alertsCount"], 2);
    assert_eq!(additional["alertProductNames"], json!(["Azure Sentinel", "Some Firewall"]));
    assert_eq!(
        (&additional["tactics"], &additional["techniques"]),
        (&json!(["Persistence", "Impact"]), &json!(["T1098"]))
    );
    let rules = incident["properties"]["relatedAnalyticRuleIds"].as_array().expect("rules");
    assert!(
        rules.len() == 1 && rules[0].as_str().is_some_and(|rule| rule.ends_with("/alertRules/rule-1")),
        "{rules:?}"
    );
    let entities = desk.arm(&token, Method::POST, "/incidents/seen/entities", Value::Null).await.expect(200);
    schema::arm("IncidentEntitiesResponse", &entities);
    assert_eq!(entities["metaData"], json!([{"entityKind": "Ip", "count": 1}]), "one address, seen twice");
    let alerts = desk.arm(&token, Method::POST, "/incidents/seen/alerts", Value::Null).await.expect(200);
    schema::arm("IncidentAlertList", &alerts);

    // An update leaves them as they are.
    let after = desk.arm(&token, Method::PUT, "/incidents/seen", incident.clone()).await.expect(200);
    assert_eq!(after["properties"]["additionalData"], *additional);
    assert_eq!(
        after["properties"]["relatedAnalyticRuleIds"],
        incident["properties"]["relatedAnalyticRuleIds"]
    );

    let name = entities["entities"][0]["name"].as_str().expect("a name");
    desk.arm(&token, Method::GET, &format!("/entities/{name}"), Value::Null).await.refused(405);
    let id = entities["entities"][0]["id"].as_str().expect("an id");
    let url = format!("{}{id}?api-version=2025-10-01-preview", desk.url("arm"));
    let bearer = format!("Bearer {token}");
    let one = desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.expect(200);
    assert_eq!(one["properties"]["address"], "203.0.113.9");
}

#[tokio::test]
async fn an_alert_that_is_not_there_is_related_as_switched() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let body = json!({"properties": {"title": "t", "severity": "Low", "status": "New"}});
    desk.arm(&token, Method::PUT, "/incidents/seen", body).await.expect(201);
    relate(&desk, &token, "unheard-of").await.expect(201);
    desk.switch("unknownAlerts", "missing").await;
    let (_, message) = relate(&desk, &token, "unheard-of-2").await.refused(404);
    assert_eq!(message, "Resource 'unheard-of-2' does not exist.");
    let wrong = json!({"workspace": desk.workspace(), "title": "no such member"});
    assert_eq!(desk.control(Method::POST, "/sentinel/alerts", wrong).await.status, 400);
    let lost = json!({"workspace": "nowhere"});
    assert_eq!(desk.control(Method::POST, "/sentinel/alerts", lost).await.status, 404);
}
