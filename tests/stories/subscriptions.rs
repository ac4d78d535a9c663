//! Subscriptions that the service keeps by itself, with resources that come along encrypted: what is genuine outruns the
//! poll, what is forged causes nothing, and what is lost is made again.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::stage::{SELDOM, Scene, Stage, fresh};
use crate::support::until;

const CERTIFICATE: &str = include_str!("../fixtures/vectors/rich-cert-1.pem");
const KEY: &str = include_str!("../fixtures/vectors/rich-key-1.pkcs8.der.base64.txt");
const MORE: &str = r#"
[[tenants.certificates]]
id = "story"
vault_url = "{ingestion}"
secret = "lockstep-rich"
[[tenants.subscriptions]]
resource = "security/incidents"
lifetime = "2h"
rich = true
"#;
/// Longer than the manager's own pause between two looks.
const LOOKS: Duration = Duration::from_secs(60);

/// The one subscription, as the emulator has it.
async fn subscription(stage: &Stage) -> Option<Value> {
    let state = stage.emulator.control(Method::GET, "/state", None).await;
    let all = state["tenants"][&stage.places[0].tenant_id]["subscriptions"].as_array()?.clone();
    assert!(all.len() <= 1, "{all:?}");
    all.into_iter().next()
}

/// Waits for a subscription other than `before`. Returns its id.
async fn subscribed(stage: &Stage, before: &str) -> String {
    until("there is a subscription", LOOKS, || async {
        let found = subscription(stage).await.ok_or("none")?;
        let id = found["id"].as_str().unwrap_or_default().to_owned();
        let (_, ready) = stage.service.get("/readyz").await;
        match id != before && ready.contains(r#""state":"active""#) {
            true => Ok(id),
            false => Err(ready),
        }
    })
    .await
    .0
}

async fn crosses(stage: &Stage, id: &str, severity: &str, shown: &str) {
    stage.edit_defender(id, json!({"severity": severity})).await;
    stage.sentinel_shows(id, json!({"severity": shown})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_subscription_outruns_the_poll_and_takes_nothing_forged() {
    let scene = Scene {
        defender_every: SELDOM,
        sentinel_every: SELDOM,
        switches: json!({"graphIncidentSubscriptions": "on"}),
        more: MORE,
        ..Scene::default()
    };
    let mut stage = Stage::prepare(scene, |hello| hello.graph.clone()).await;
    let pem = format!("{CERTIFICATE}\n-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n");
    stage.emulator.control(Method::PUT, "/vault/lockstep-rich", Some(json!({"value": pem}))).await;
    stage.service.resume().await;
    let first = subscribed(&stage, "").await;
    let kept = subscription(&stage).await.expect("it is there");
    assert_eq!(kept["includeResourceData"], true);
    let state = kept["clientState"].as_str().expect("a state").to_owned();

    let (id, _) = stage.linked(fresh("Told with its resource")).await;
    let (other, _) = stage.linked(fresh("Told truly")).await;
    stage.in_step().await;
    crosses(&stage, &id, "high", "High").await;

    // Forged in every way: each is answered as the genuine one, and causes nothing.
    let variants = stage.emulator.control(Method::GET, "/notifications", None).await;
    let tokens = stage.emulator.control(Method::GET, "/tokens/variants", None).await;
    let names = variants.as_object().expect("names").keys().cloned();
    let tokens = tokens.as_object().expect("names").keys().map(|name| format!("token:{name}"));
    // A rollover takes the good keys along; it has its turn below. Graph's own application has no role to lack.
    let others = ["genuine", "token:genuine", "token:retired-key", "token:wrong-role", "token:no-role"];
    let forged: Vec<String> = names.chain(tokens).filter(|name| !others.contains(&name.as_str())).collect();
    assert!(forged.len() > 40, "{forged:?}");
    stage.in_step().await;
    stage.emulator.forget_calls().await;
    for variant in &forged {
        let order = json!({"subscription": first, "id": id, "variant": variant});
        let sent = stage.emulator.control(Method::POST, "/notifications", Some(order)).await;
        assert_eq!(sent["status"], 202, "{variant}");
    }
    crosses(&stage, &other, "high", "High").await;
    let calls = stage.calls().await;
    let asked: Vec<&str> = calls
        .iter()
        .map(|call| call.path.as_str())
        .filter(|path| path.contains(&format!("incidents/{id}")))
        .collect();
    assert!(asked.is_empty(), "a forged notification caused a call: {asked:?}");
    assert!(!stage.service.log_tail().contains(&state), "the clientState is in the log");

    // A restart finds its subscription again.
    stage.service.kill();
    stage.service.resume().await;
    assert_eq!(subscribed(&stage, "").await, first);
    crosses(&stage, &id, "low", "Low").await;

    // Removed by Graph: another takes over, with another state.
    let path = format!("/subscriptions/{first}/lifecycle");
    stage.emulator.control(Method::POST, &path, Some(json!({"event": "subscriptionRemoved"}))).await;
    let second = subscribed(&stage, &first).await;
    assert_ne!(subscription(&stage).await.expect("it is there")["clientState"], state.as_str());
    crosses(&stage, &id, "medium", "Medium").await;

    let said = stage.service.command(&["subscriptions"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success() && text.contains("active   tenant-0: security/incidents"), "{text}");
    assert!(text.contains("encrypted for story/"), "{text}");

    // Nobody can tell whether a token is good while the key service is down: Graph is to keep its copy.
    stage.service.kill();
    stage.emulator.control(Method::PUT, "/keys", Some(json!({"service": "down"}))).await;
    stage.service.resume().await;
    let order = json!({"subscription": second, "id": id});
    let sent = stage.emulator.control(Method::POST, "/notifications", Some(order)).await;
    assert_eq!(sent["status"], 503);
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_is_told_brings_its_incident() {
    let scene = Scene {
        defender_every: SELDOM,
        sentinel_every: SELDOM,
        // An alert that joins moves no incident's time: nobody but the alert itself tells of it.
        switches: json!({"graphIncidentSubscriptions": "on", "alertsTouch": "off"}),
        poll: "alerts_every = \"1h\"\n",
        more: "\n[[tenants.subscriptions]]\nresource = \"security/alerts_v2\"\n",
        ..Scene::default()
    };
    let stage = Stage::set(scene).await;
    subscribed(&stage, "").await;
    let (id, _) = stage.linked_by_notification(fresh("With an alert to come")).await;
    stage.in_step().await;
    stage.emulator.forget_calls().await;
    stage.emulator.alert(&stage.places[0], &id, json!({"id": "da-told", "title": "Told"})).await;
    let path = format!("/security/incidents/{id}");
    until("the alert's incident is read", LOOKS, || async {
        let calls = stage.calls().await;
        let alert = calls.iter().any(|call| call.path.ends_with("/security/alerts_v2/da-told"));
        let incident = calls.iter().any(|call| call.path.contains(&path));
        if alert && incident { Ok(()) } else { Err(format!("alert {alert}, incident {incident}")) }
    })
    .await;
    stage.ends().await;
}
