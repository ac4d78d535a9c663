//! Trouble on order, and budgets: each kind of fault once, at the call it was ordered for.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident};

async fn order(desk: &Desk, fault: Value) -> Value {
    let reply = desk.control(Method::POST, "/faults", fault).await;
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
    let id = reply.json()["id"].clone();
    assert!(!id.is_null());
    id
}

/// A PATCH that may not come back.
async fn rename(desk: &Desk, token: &str, id: &str, name: &str) -> reqwest::Result<u16> {
    let bearer = format!("Bearer {token}");
    let url = format!("{}/v1.0/security/incidents/{id}", desk.url("graph"));
    let headers = [("authorization", bearer.as_str())];
    let reply = desk.try_call(Method::PATCH, &url, &headers, json!({"displayName": name})).await?;
    Ok(reply.status)
}

async fn name_now(desk: &Desk) -> Value {
    desk.state().await["tenants"][desk.tenant()]["incidents"][0]["displayName"].clone()
}

#[tokio::test]
async fn a_status_comes_as_often_as_ordered_where_it_was_ordered() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "tester").await;
    let id = desk.incident(incident("Target")).await;
    let path = format!("/security/incidents/{id}");
    let fault = order(
        &desk,
        json!({"service": "graph", "method": "GET", "pathContains": path, "times": 2, "kind": "status",
            "status": 429, "retryAfter": 3}),
    )
    .await;
    desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
    desk.graph(&token, Method::PATCH, &path, json!({"severity": "low"})).await.expect(200);
    for _ in 0..2 {
        let reply = desk.graph(&token, Method::GET, &path, Value::Null).await;
        reply.refused(429);
        assert_eq!(reply.header("retry-after"), Some("3"));
    }
    desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    let faulty: Vec<Value> = desk.calls().await.into_iter().filter(|call| !call["fault"].is_null()).collect();
    assert_eq!(faulty.len(), 2);
    assert!(faulty.iter().all(|call| call["fault"] == fault && call["status"] == 429), "{faulty:?}");
    assert_eq!(desk.state().await["faults"], json!([]), "spent faults are gone");
}

#[tokio::test]
async fn a_dropped_call_is_cut_before_or_after_the_work() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "tester").await;
    let id = desk.incident(incident("Old name")).await;
    order(&desk, json!({"service": "graph", "method": "PATCH", "kind": "drop-before"})).await;
    let error = rename(&desk, &token, &id, "Never").await.expect_err("nothing comes back");
    assert!(!error.is_timeout(), "{error:?}");
    assert_eq!(name_now(&desk).await, "Old name");

    order(&desk, json!({"service": "graph", "method": "PATCH", "kind": "drop-after"})).await;
    let error = rename(&desk, &token, &id, "New name").await.expect_err("nothing comes back");
    assert!(!error.is_timeout(), "{error:?}");
    assert_eq!(name_now(&desk).await, "New name");

    let dropped: Vec<Value> =
        desk.calls().await.into_iter().filter(|call| call["method"] == "PATCH").collect();
    assert_eq!(dropped.len(), 2, "{dropped:?}");
    assert!(dropped.iter().all(|call| call["status"].is_null() && !call["fault"].is_null()), "{dropped:?}");
    assert_eq!(rename(&desk, &token, &id, "Newest").await.expect("it works again"), 200);
}

#[tokio::test]
async fn a_stale_read_serves_the_version_before_the_last() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "tester").await;
    let id = desk.incident(incident("First")).await;
    rename(&desk, &token, &id, "Second").await.expect("an answer");
    order(&desk, json!({"service": "graph", "kind": "stale-read", "times": 2})).await;
    let path = format!("/security/incidents/{id}");
    let read = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read["displayName"], "First");
    let list = desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
    assert_eq!(list["value"][0]["displayName"], "First");
    let read = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read["displayName"], "Second");
}

#[tokio::test]
async fn html_and_delay_are_what_they_say() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "tester").await;
    order(&desk, json!({"service": "graph", "kind": "html"})).await;
    let reply = desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await;
    assert_eq!(reply.status, 502);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    assert!(reply.text.to_lowercase().contains("<html"), "{}", reply.text);

    order(&desk, json!({"service": "graph", "kind": "delay", "delayMs": 300})).await;
    let begun = Instant::now();
    desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
    assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn every_service_can_be_troubled() {
    let desk = Desk::open().await;
    let arm = desk.app_token("arm", "tester").await;
    for service in ["login", "graph", "arm", "ingestion"] {
        order(&desk, json!({"service": service, "kind": "status", "status": 503})).await;
    }
    let login = format!("{}/{}/.well-known/openid-configuration", desk.url("login"), desk.tenant());
    assert_eq!(desk.call(Method::GET, &login, &[], Value::Null).await.status, 503);
    desk.graph("x", Method::GET, "/security/incidents", Value::Null).await.refused(503);
    desk.arm(&arm, Method::GET, "/incidents", Value::Null).await.refused(503);
    assert_eq!(desk.call(Method::POST, desk.url("ingestion"), &[], json!([])).await.status, 503);
    assert_eq!(desk.state().await["faults"], json!([]));
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused_and_orders_can_be_withdrawn() {
    let desk = Desk::open().await;
    for bad in [
        json!({"service": "graph", "kind": "status", "times": 0}),
        json!({"service": "graph", "kind": "status", "times": -1}),
        json!({"service": "graph", "kind": "status", "status": 42}),
        json!({"service": "graph", "kind": "explode"}),
        json!({"kind": "status"}),
    ] {
        let reply = desk.control(Method::POST, "/faults", bad.clone()).await;
        assert_eq!(reply.status, 400, "{bad}: {}", reply.text);
        assert!(reply.json()["error"].is_string(), "{}", reply.text);
    }
    let token = desk.app_token("graph", "tester").await;
    order(&desk, json!({"service": "graph", "kind": "status", "status": 500, "times": 9})).await;
    assert_eq!(desk.state().await["faults"].as_array().map(Vec::len), Some(1));
    desk.control(Method::DELETE, "/faults", Value::Null).await;
    desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
}

#[tokio::test]
async fn the_first_fault_that_fits_wins() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "tester").await;
    order(&desk, json!({"service": "graph", "kind": "status", "status": 500})).await;
    order(&desk, json!({"service": "graph", "kind": "status", "status": 503})).await;
    for status in [500, 503] {
        desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.refused(status);
    }
    desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
}

#[tokio::test]
async fn incidents_may_be_asked_for_fifty_times_a_minute_by_each_application() {
    let desk = Desk::with_budgets().await;
    let (one, two) = (desk.app_token("graph", "one").await, desk.app_token("graph", "two").await);
    let mut granted = 0;
    let refused = loop {
        let reply = desk.graph(&one, Method::GET, "/security/incidents", Value::Null).await;
        if reply.status == 429 {
            break reply;
        }
        assert_eq!(reply.status, 200, "{}", reply.text);
        granted += 1;
        assert!(granted < 200, "nobody counts");
    };
    assert!(granted >= 50, "{granted}");
    refused.refused(429);
    let wait: f64 = refused.header("retry-after").expect("a Retry-After").parse().expect("seconds");
    assert!(wait > 0.0 && wait <= 60.0, "{wait}");
    desk.graph(&two, Method::GET, "/security/incidents", Value::Null).await.expect(200);
}

#[tokio::test]
async fn arm_tells_what_is_left_and_refuses_a_burst() {
    let desk = Desk::with_budgets().await;
    let token = desk.app_token("arm", "one").await;
    let reply = desk.arm(&token, Method::GET, "/incidents", Value::Null).await;
    let left: u32 = reply
        .header("x-ms-ratelimit-remaining-subscription-reads")
        .expect("the quota header")
        .parse()
        .expect("a number");
    assert!((240..250).contains(&left), "{left}");

    let mut refused = 0;
    let mut replies = tokio::task::JoinSet::new();
    let url = format!(
        "{}{}/providers/Microsoft.SecurityInsights/incidents?api-version=2025-12-01",
        desk.url("arm"),
        desk.workspace()
    );
    for _ in 0..600 {
        let request = desk.http.get(&url).bearer_auth(&token).send();
        replies.spawn(request);
    }
    while let Some(reply) = replies.join_next().await {
        let reply = reply.expect("no panic").expect("an answer");
        if reply.status() == 429 {
            assert!(reply.headers().contains_key("retry-after"));
            refused += 1;
        }
    }
    assert!(refused > 0, "600 reads at once find 250 tokens");
}
