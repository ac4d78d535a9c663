//! Subscriptions: not offered for incidents, as in the real service, until the switch invents them.

use lockstep::domain::notice;
use lockstep::domain::rich::{RichKey, RichKeys};
use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident, until};
use crate::receiver::Receiver;
use crate::schema;
use crate::vectors;

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

fn rich_wish(url: &str) -> Value {
    let mut wish = wish(url);
    wish["includeResourceData"] = json!(true);
    wish["encryptionCertificate"] =
        json!(include_str!("../fixtures/vectors/rich-cert-1.encryptionCertificate.txt").trim());
    wish["encryptionCertificateId"] = json!("bridge-cert-1");
    wish
}

#[tokio::test]
async fn a_rich_one_brings_the_resource_sealed_for_its_newest_certificate() {
    let desk = Desk::open().await;
    desk.switch("graphIncidentSubscriptions", "on").await;
    let token = desk.app_token("graph", "subscriber").await;
    let receiver = Receiver::open(|_| (202, String::new())).await;
    let made = desk.graph(&token, Method::POST, "/subscriptions", rich_wish(&receiver.url)).await.expect(201);
    schema::graph("microsoft.graph.subscription", &made);
    assert!(made.get("encryptionCertificate").is_none(), "{made}");
    let id = made["id"].as_str().expect("an id").to_owned();
    let incident_id = desk.incident(incident("Sealed")).await;
    let keys = [1, 2].map(|number| {
        let (certificate, pem) = vectors::pair(number);
        let key = RichKey::from_pem(&format!("bridge-cert-{number}"), certificate, &pem);
        std::sync::Arc::new(key.expect("the vectors are good"))
    });
    let keys = RichKeys::new(keys.into());
    for (number, certificate_id) in [(0, "bridge-cert-1"), (1, "bridge-cert-2")] {
        let post = until("a notification", async || receiver.got().get(number).cloned()).await;
        let body: Value = serde_json::from_slice(&post.body).expect("JSON");
        schema::graph("microsoft.graph.changeNotificationCollection", &body);
        assert_eq!(body["validationTokens"].as_array().map(Vec::len), Some(1));
        assert_eq!(body["value"][0]["encryptedContent"]["encryptionCertificateId"], certificate_id);
        let read = notice::graph(&post.body).expect("it reads");
        let sealed = read.items[0].sealed.as_ref().expect("it is sealed");
        let plain = keys.open(sealed).expect("it opens");
        let plain: Value = serde_json::from_slice(&plain).expect("JSON");
        assert_eq!(plain["id"], incident_id.as_str());
        if number == 0 {
            let change = json!({
                "encryptionCertificate":
                    include_str!("../fixtures/vectors/rich-cert-2.encryptionCertificate.txt").trim(),
                "encryptionCertificateId": "bridge-cert-2",
            });
            desk.graph(&token, Method::PATCH, &format!("/subscriptions/{id}"), change).await.expect(200);
            let order = json!({"severity": "high"});
            let path = format!("/incidents/{incident_id}/engine");
            desk.control(Method::POST, &path, order).await.expect(200);
        }
    }
}

#[tokio::test]
async fn orders_are_refused_as_the_service_does() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "subscriber").await;
    let receiver = Receiver::open(|_| (202, String::new())).await;
    let post = async |body: Value| desk.graph(&token, Method::POST, "/subscriptions", body).await;
    let with = |member: &str, value: Value| {
        let mut wish = rich_wish(&receiver.url);
        wish[member] = value;
        wish
    };
    // The legacy alert is offered, and brings nothing along.
    post(with("resource", json!("security/alerts"))).await.refused(400);
    let mut legacy = wish(&receiver.url);
    legacy["resource"] = json!("security/alerts?$filter=status eq 'New'");
    legacy["expirationDateTime"] = json!("2000-01-01T00:00:00Z");
    let made = post(legacy).await.expect(201);
    let expires = made["expirationDateTime"].as_str().expect("a time");
    let expires = time::OffsetDateTime::parse(expires, &time::format_description::well_known::Rfc3339);
    let ahead = expires.expect("a time") - time::OffsetDateTime::now_utc();
    assert!(ahead > time::Duration::minutes(44) && ahead <= time::Duration::minutes(45), "{ahead}");
    desk.switch("graphIncidentSubscriptions", "on").await;
    post(with("encryptionCertificate", json!("bm90IGEgY2VydGlmaWNhdGU="))).await.refused(400);
    post(with("encryptionCertificateId", json!(""))).await.refused(400);
    post(with("expirationDateTime", json!("2999-01-01T00:00:00Z"))).await.refused(400);
    desk.switch("graphSubscriptionQuota", "1").await;
    let (code, said) = post(rich_wish(&receiver.url)).await.refused(403);
    assert!(code == "Forbidden" && said.contains("The limit of subscriptions"), "{code}: {said}");
    desk.switch("graphSubscriptionQuota", "none").await;
    post(rich_wish(&receiver.url)).await.expect(201);
    // Nobody sees or ends another application's.
    let stranger = desk.app_token("graph", "another").await;
    let id = made["id"].as_str().expect("an id");
    let path = format!("/subscriptions/{id}");
    desk.graph(&stranger, Method::GET, &path, Value::Null).await.refused(404);
    desk.graph(&stranger, Method::DELETE, &path, Value::Null).await.refused(404);
}

#[tokio::test]
async fn its_own_life_is_told_and_what_changes_unauthorised_is_lost() {
    let desk = Desk::open().await;
    desk.switch("graphIncidentSubscriptions", "on").await;
    let token = desk.app_token("graph", "subscriber").await;
    let receiver = Receiver::open(|_| (202, String::new())).await;
    let made = desk.graph(&token, Method::POST, "/subscriptions", wish(&receiver.url)).await.expect(201);
    let id = made["id"].as_str().expect("an id").to_owned();
    let happens = async |event: &str| {
        let path = format!("/subscriptions/{id}/lifecycle");
        desk.control(Method::POST, &path, json!({"event": event})).await
    };
    assert_eq!(happens("something").await.status, 400);
    happens("reauthorizationRequired").await.expect(200);
    let post = until("the news", async || receiver.got().first().cloned()).await;
    let body: Value = serde_json::from_slice(&post.body).expect("JSON");
    schema::graph("microsoft.graph.changeNotificationCollection", &body);
    let item = &body["value"][0];
    assert_eq!(item["lifecycleEvent"], "reauthorizationRequired");
    assert_eq!(item["clientState"], "a-shared-secret");
    assert!(item.get("changeType").is_none() && item.get("resource").is_none(), "{item}");
    desk.incident(incident("Lost")).await;
    let reauthorize = format!("/subscriptions/{id}/reauthorize");
    assert_eq!(desk.graph(&token, Method::POST, &reauthorize, Value::Null).await.status, 204);
    let heard = desk.incident(incident("Heard")).await;
    let post = until("the next change", async || receiver.got().get(1).cloned()).await;
    let body: Value = serde_json::from_slice(&post.body).expect("JSON");
    assert_eq!(body["value"][0]["resourceData"]["id"], heard.as_str());
    happens("subscriptionRemoved").await.expect(200);
    desk.graph(&token, Method::POST, &reauthorize, Value::Null).await.refused(404);
}

#[tokio::test]
async fn a_vault_keeps_every_version_for_those_who_may_read_it() {
    let desk = Desk::open().await;
    let mut versions = Vec::new();
    for value in ["first", "second"] {
        let put = desk.control(Method::PUT, "/vault/rich", json!({"value": value})).await.expect(201);
        versions.push(put["version"].as_str().expect("a version").to_owned());
    }
    let wish = json!({"audience": "https://vault.azure.net/.default", "clientId": "reader"});
    let token = desk.token(wish).await;
    let get = async |path: String, token: &str| {
        let url = format!("{}/secrets/{path}?api-version=7.4", desk.url("ingestion"));
        let answer = desk.http.get(url).bearer_auth(token).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap_or_default())
    };
    let (status, newest) = get("rich".to_owned(), &token).await;
    assert!(status == 200 && newest["value"] == "second", "{newest}");
    assert!(newest["id"].as_str().is_some_and(|id| id.ends_with(&versions[1])), "{newest}");
    let (_, older) = get(format!("rich/{}", versions[0]), &token).await;
    assert_eq!(older["value"], "first");
    assert_eq!(get("nothing".to_owned(), &token).await.0, 404);
    assert_eq!(get("rich".to_owned(), "no-token").await.0, 401);
}
