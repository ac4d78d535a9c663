//! Subscriptions: not offered for incidents, as in the real service, until the switch invents them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident, until};
use crate::receiver::Receiver;

fn wish(url: &str) -> Value {
    let expires = time::OffsetDateTime::now_utc() + time::Duration::days(1);
    let expires = expires.format(&time::format_description::well_known::Rfc3339).expect("a time");
    json!({
        "changeType": "created,updated", "notificationUrl": url, "lifecycleNotificationUrl": url,
        "resource": "security/incidents", "expirationDateTime": expires, "clientState": "a-shared-secret"
    })
}

#[tokio::test]
async fn the_real_service_offers_none_for_incidents() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "subscriber").await;
    let receiver = Receiver::open(|_| (202, String::new())).await;
    desk.graph(&token, Method::POST, "/subscriptions", wish(&receiver.url)).await.refused(400);
    let list = desk.graph(&token, Method::GET, "/subscriptions", Value::Null).await.expect(200);
    assert_eq!(list["value"], json!([]));
}

#[tokio::test]
async fn with_the_switch_on_changes_are_told_to_a_proven_url() {
    let desk = Desk::open().await;
    desk.switch("graphIncidentSubscriptions", "on").await;
    let token = desk.app_token("graph", "subscriber").await;
    let receiver = Receiver::open(|seen| (if seen == 0 { 503 } else { 202 }, String::new())).await;
    let made = desk.graph(&token, Method::POST, "/subscriptions", wish(&receiver.url)).await.expect(201);
    let id = made["id"].as_str().expect("an id").to_owned();
    let path = format!("/subscriptions/{id}");
    let read = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read["clientState"], Value::Null, "the secret is not read back");
    assert_eq!(read["notificationUrl"], receiver.url.as_str());
    desk.graph(&token, Method::POST, "/subscriptions", wish(&receiver.url)).await.refused(409);

    let incident_id = desk.incident(incident("Told")).await;
    let post =
        until("a notification that is taken on the second try", async || receiver.got().get(1).cloned())
            .await;
    assert_eq!(post.query, "");
    let body: Value = serde_json::from_slice(&post.body).expect("JSON");
    let item = &body["value"][0];
    assert_eq!(item["clientState"], "a-shared-secret");
    assert_eq!(item["subscriptionId"], id.as_str());
    assert_eq!(item["tenantId"], desk.tenant());
    assert_eq!(item["changeType"], "created");
    assert!(item["resource"].as_str().is_some_and(|resource| resource.contains(&incident_id)), "{item}");
    assert_eq!(item["resourceData"]["id"], incident_id.as_str());

    let later = wish("")["expirationDateTime"].clone();
    desk.graph(&token, Method::PATCH, &path, json!({"expirationDateTime": later})).await.expect(200);
    assert_eq!(desk.graph(&token, Method::DELETE, &path, Value::Null).await.status, 204);
    desk.graph(&token, Method::GET, &path, Value::Null).await.refused(404);
}

#[tokio::test]
async fn a_url_that_does_not_repeat_the_token_is_refused() {
    let desk = Desk::open().await;
    desk.switch("graphIncidentSubscriptions", "on").await;
    let token = desk.app_token("graph", "subscriber").await;
    let wrong = axum::Router::new().route("/hook", axum::routing::post(|| async { "something else" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, wrong).await });
    let (code, _) = desk.graph(&token, Method::POST, "/subscriptions", wish(&url)).await.refused(400);
    assert_eq!(code, "ValidationError");
}
