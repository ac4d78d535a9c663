//! The control listener: a contract that outside tests drive.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident, workspace_id};

#[tokio::test]
async fn the_first_line_tells_where_everything_is() {
    let desk = Desk::open().await;
    let names: Vec<&str> = desk.hello.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "login",
            "graph",
            "arm",
            "ingestion",
            "control",
            "tenantId",
            "subscriptionId",
            "resourceGroup",
            "workspaceName"
        ]
    );
    for service in ["login", "graph", "arm", "ingestion", "control"] {
        let url = url::Url::parse(desk.url(service)).expect("a URL");
        assert!(url.port().is_some_and(|port| port != 0), "{url}");
        assert!(!desk.url(service).ends_with('/'), "{url} would double the slash of a path");
    }
    let reply = desk.call(Method::GET, desk.url("ingestion"), &[], Value::Null).await;
    assert_eq!(reply.status, 404);
    desk.running.stop().await;
}

#[tokio::test]
async fn only_a_loopback_host_is_answered() {
    let desk = Desk::open().await;
    let url = format!("{}/state", desk.url("control"));
    let port = desk.url("control").rsplit(':').next().expect("a port").to_owned();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        ("localhost".to_owned(), 200),
        (format!("attacker.example:{port}"), 403),
        ("127.0.0.1.attacker.example".to_owned(), 403),
        ("localhost.attacker.example".to_owned(), 403),
    ] {
        let reply = desk.call(Method::GET, &url, &[("host", &host)], Value::Null).await;
        assert_eq!(reply.status, status, "{host}: {}", reply.text);
    }
}

#[tokio::test]
async fn incidents_come_and_go_and_are_stamped() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let before = time::OffsetDateTime::now_utc();
    let id =
        desk.incident(json!({"displayName": "Stamped", "createdDateTime": "2020-01-01T00:00:00Z"})).await;
    assert!(!id.is_empty() && id.chars().all(|c| c.is_ascii_digit()), "{id}");
    let path = format!("/security/incidents/{id}");
    let served = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    let created = served["createdDateTime"].as_str().expect("a time");
    let created =
        time::OffsetDateTime::parse(created, &time::format_description::well_known::Rfc3339).expect("a time");
    assert!((before - created).abs() < time::Duration::seconds(20), "{created}");

    let replaced = json!({"id": id, "displayName": "Replaced", "severity": "high"});
    assert_eq!(desk.incident(replaced).await, id);
    let state = desk.state().await;
    let held = state["tenants"][desk.tenant()]["incidents"].as_array().expect("a list");
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(held[0]["displayName"], "Replaced");

    let reply = desk.control(Method::DELETE, &format!("/incidents/{id}"), Value::Null).await;
    assert!(matches!(reply.status, 200 | 204), "{}", reply.text);
    desk.graph(&token, Method::GET, &path, Value::Null).await.refused(404);
    let again = desk.control(Method::DELETE, &format!("/incidents/{id}"), Value::Null).await;
    assert_eq!(again.status, 404);
    assert!(again.json()["error"].is_string(), "{}", again.text);
}

#[tokio::test]
async fn an_alert_may_join_later() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let id = desk.incident(incident("Grows")).await;
    let alert = json!({"title": "Late", "severity": "high", "serviceSource": "microsoftDefenderForEndpoint"});
    let reply = desk.control(Method::POST, &format!("/incidents/{id}/alerts"), alert.clone()).await;
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
    let path = format!("/security/incidents/{id}?$expand=alerts");
    let served = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(served["alerts"][0]["title"], "Late");
    assert_eq!(served["alerts"][0]["incidentId"], id.as_str());
    assert_eq!(desk.control(Method::POST, "/incidents/404404/alerts", alert).await.status, 404);
}

#[tokio::test]
async fn more_tenants_and_workspaces_can_be_made() {
    let desk = Desk::open().await;
    let tenant = "bbbbcccc-1111-dddd-2222-eeee3333ffff";
    let subscription = "12345678-0000-4000-8000-123456789012";
    desk.control(Method::POST, "/tenants", json!({"tenantId": tenant})).await;
    let body = json!({"tenantId": tenant, "subscriptionId": subscription, "resourceGroup": "other-rg",
        "workspaceName": "other-soc"});
    let reply = desk.control(Method::POST, "/workspaces", body).await;
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text);

    let id = workspace_id(subscription, "other-rg", "other-soc");
    let url = format!(
        "{}{id}/providers/Microsoft.SecurityInsights/incidents?api-version=2025-12-01",
        desk.url("arm")
    );
    let token =
        desk.token(json!({"tenantId": tenant, "clientId": "reader", "audience": desk.url("arm")})).await;
    let bearer = format!("Bearer {token}");
    let list = desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.expect(200);
    assert_eq!(list["value"], json!([]));
    let stranger = format!("Bearer {}", desk.app_token("arm", "reader").await);
    let reply = desk.call(Method::GET, &url, &[("authorization", &stranger)], Value::Null).await;
    assert!(matches!(reply.status, 401 | 403), "another tenant's token: {} {}", reply.status, reply.text);

    let state = desk.state().await;
    let workspaces = state["workspaces"].as_object().expect("workspaces");
    assert_eq!(workspaces.len(), 2, "{workspaces:?}");
    assert!(workspaces.values().all(|one| one["incidents"].is_array() && one["comments"].is_object()));
}

#[tokio::test]
async fn switches_say_what_they_decide_and_take_words_and_booleans() {
    let desk = Desk::open().await;
    let all = desk.control(Method::GET, "/switches", Value::Null).await.expect(200);
    let all = all.get("switches").unwrap_or(&all).clone();
    let names: Vec<&String> = all.as_object().expect("switches by name").keys().collect();
    assert!(names.len() >= 12, "{names:?}");
    for (name, switch) in all.as_object().expect("switches by name") {
        assert!(switch["meaning"].as_str().is_some_and(|text| text.len() > 10), "{name}");
        let values = switch["values"].as_array().expect("values");
        assert!(values.contains(&switch["value"]), "{name}: {switch}");
    }
    for value in [json!(true), json!("off"), json!("on"), json!(false)] {
        desk.switch("graphIncidentSubscriptions", value).await;
    }
    for bad in [json!({"noSuchSwitch": "on"}), json!({"graphIncidentSubscriptions": "perhaps"}), json!([])] {
        let reply = desk.control(Method::PUT, "/switches", bad.clone()).await;
        assert_eq!(reply.status, 400, "{bad}: {}", reply.text);
        assert!(reply.json()["error"].is_string(), "{}", reply.text);
    }
}

#[tokio::test]
async fn every_switch_can_be_set_to_every_value_it_names() {
    let desk = Desk::open().await;
    let all = desk.control(Method::GET, "/switches", Value::Null).await.expect(200);
    let all = all.get("switches").unwrap_or(&all).clone();
    for (name, switch) in all.as_object().expect("switches by name") {
        for value in switch["values"].as_array().expect("values") {
            desk.switch(name, value.clone()).await;
            let now = desk.control(Method::GET, "/switches", Value::Null).await.expect(200);
            let now = now.get("switches").unwrap_or(&now);
            assert_eq!(&now[name]["value"], value, "{name}");
        }
    }
}

#[tokio::test]
async fn calls_tell_who_asked_what_and_how_it_ended() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "11112222-bbbb-3333-cccc-4444dddd5555").await;
    desk.control(Method::DELETE, "/calls", Value::Null).await;
    desk.graph(&token, Method::GET, "/security/incidents/1?$expand=alerts", Value::Null).await.refused(404);
    let calls = desk.calls().await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    let call = &calls[0];
    assert_eq!(call["service"], "graph");
    assert_eq!(call["method"], "GET");
    assert!(
        call["path"].as_str().is_some_and(|path| path.starts_with("/v1.0/security/incidents/1")),
        "{call}"
    );
    assert_eq!(call["app"], "11112222-bbbb-3333-cccc-4444dddd5555");
    assert_eq!(call["status"], 404);
    assert_eq!(call["fault"], Value::Null);
    assert!(call["at"].is_string(), "{call}");
    desk.control(Method::DELETE, "/calls", Value::Null).await;
    assert_eq!(desk.calls().await, Vec::<Value>::new());
}

#[tokio::test]
async fn nonsense_is_answered_with_a_sentence() {
    let desk = Desk::open().await;
    for (method, path, body, status) in [
        (Method::POST, "/incidents", json!("text"), 400),
        (Method::POST, "/incidents?tenant=unknown", incident("Lost"), 404),
        (Method::POST, "/merge", json!({"source": "1"}), 400),
        (Method::POST, "/tenants", json!({}), 400),
        (Method::POST, "/workspaces", json!({"tenantId": desk.tenant()}), 400),
        (Method::POST, "/playbooks", json!({"workspace": "x"}), 400),
        (Method::POST, "/faults", json!({"service": "mail", "kind": "status"}), 400),
        (Method::GET, "/nothing", Value::Null, 404),
    ] {
        let reply = desk.control(method.clone(), path, body.clone()).await;
        let matches = reply.status == status || (status == 404 && reply.status == 400);
        assert!(matches, "{method} {path} {body}: {} {}", reply.status, reply.text);
        let words =
            reply.json()["error"].as_str().unwrap_or_else(|| panic!("{path}: {}", reply.text)).to_owned();
        assert!(words.contains(' '), "{words}");
    }
    let broken = desk
        .http
        .post(format!("{}/incidents", desk.url("control")))
        .header("content-type", "application/json")
        .body("{")
        .send()
        .await
        .expect("an answer");
    assert_eq!(broken.status().as_u16(), 400);
}

/// Real incidents have been seen with half a surrogate pair in the title.
#[tokio::test]
async fn half_a_surrogate_pair_is_kept_and_served() {
    let desk = Desk::open().await;
    let url = format!("{}/incidents", desk.url("control"));
    let body = r#"{"id": "29", "displayName": "odd \ud800 title"}"#;
    let made = reqwest::Client::new().post(url).body(body).send().await.expect("an answer");
    assert_eq!(made.status(), 201);
    let token = desk.app_token("graph", "reader").await;
    for path in ["/security/incidents/29", "/security/incidents"] {
        let reply = desk.graph(&token, Method::GET, path, Value::Null).await;
        assert!(reply.text.contains(r"odd \ud800 title"), "{}", reply.text);
    }
}
