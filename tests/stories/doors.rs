//! The doors: who is believed, what is told twice, and how a notification outruns the poll.

use std::time::Duration;

use aws_lc_rs::hmac;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::stage::{PATIENCE, SELDOM, Scene, Stage, fresh};
use crate::support::service::{self, CLIENT_STATE, signature, webhook_key, webhook_secret};

/// Polls so far apart that whatever arrives came through a door.
async fn without_polls(switches: Value) -> Stage {
    Stage::set(Scene { defender_every: SELDOM, sentinel_every: SELDOM, switches, ..Scene::default() }).await
}

/// Posts a playbook body with a signature by any key, at any age.
async fn forged(stage: &Stage, key: &hmac::Key, age_s: i64, signed: &str, sent: &str) -> StatusCode {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp() - age_s;
    crate::support::client()
        .post(stage.service.url("/notify/sentinel/workspace-0"))
        .header("webhook-id", "msg_forged")
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature(key, "msg_forged", timestamp, signed.as_bytes()))
        .body(sent.to_owned())
        .send()
        .await
        .expect("the door answers")
        .status()
}

/// A second, true story passes through the door; whatever the first message had caused would have come before it.
async fn something_true_passes(stage: &Stage, id: &str, name: &str, severity: (&str, &str), delivery: &str) {
    let written = stage.edit_sentinel(name, json!({"severity": severity.0})).await;
    let body = service::playbook_body(&stage.places[0], "Update", &written);
    assert_eq!(
        stage.service.post_playbook(0, delivery, &body).await.expect("an answer"),
        StatusCode::ACCEPTED
    );
    stage.defender_shows(id, json!({"severity": severity.1})).await;
}

/// Whether the service has asked about something.
async fn asked(stage: &Stage, id: &str) -> bool {
    stage.calls().await.iter().any(|call| call.path.contains(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_right_signature_is_believed_and_a_delivery_counts_once() {
    let stage = without_polls(json!({})).await;
    let (id, name) = stage.linked_by_notification(fresh("Spoken of falsely")).await;
    let (other, other_name) = stage.linked_by_notification(fresh("Spoken of truly")).await;
    stage.in_step().await;
    let written = stage.edit_sentinel(&name, json!({"severity": "High"})).await;
    let body = service::playbook_body(&stage.places[0], "Update", &written).to_string();
    let stranger = hmac::Key::new(hmac::HMAC_SHA256, b"a key that nobody else has at all");
    stage.emulator.forget_calls().await;
    for (what, status) in [
        ("another's key", forged(&stage, &stranger, 0, &body, &body).await),
        ("another body", forged(&stage, &webhook_key(), 0, "{}", &body).await),
        ("six minutes ago", forged(&stage, &webhook_key(), 360, &body, &body).await),
    ] {
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
    }
    let unsigned = crate::support::client().post(stage.service.url("/notify/sentinel/workspace-0"));
    let unsigned = unsigned.body(body.clone()).send().await.expect("the door answers");
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
    something_true_passes(&stage, &other, &other_name, ("High", "high"), "msg_1").await;
    assert!(!asked(&stage, &name).await, "a forged message caused a call");

    // The same message, truly signed.
    let body: Value = serde_json::from_str(&body).expect("it was made of JSON");
    assert_eq!(
        stage.service.post_playbook(0, "msg_2", &body).await.expect("an answer"),
        StatusCode::ACCEPTED
    );
    stage.defender_shows(&id, json!({"severity": "high"})).await;

    // A delivery that is repeated is answered alike and stores nothing, even if it were to say something new.
    let written = stage.edit_sentinel(&name, json!({"severity": "Low"})).await;
    let body = service::playbook_body(&stage.places[0], "Update", &written);
    stage.emulator.forget_calls().await;
    assert_eq!(
        stage.service.post_playbook(0, "msg_2", &body).await.expect("an answer"),
        StatusCode::ACCEPTED
    );
    something_true_passes(&stage, &other, &other_name, ("Low", "low"), "msg_3").await;
    assert!(!asked(&stage, &name).await, "a repeated delivery was taken for a new one");
    assert_eq!(
        stage.service.post_playbook(0, "msg_4", &body).await.expect("an answer"),
        StatusCode::ACCEPTED
    );
    stage.defender_shows(&id, json!({"severity": "low"})).await;

    let elsewhere = crate::support::client().post(stage.service.url("/notify/sentinel/nobodys"));
    assert_eq!(elsewhere.body("{}").send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graph_is_believed_by_its_client_state() {
    let stage = without_polls(json!({})).await;
    let (id, _) = stage.linked_by_notification(fresh("Spoken of falsely")).await;
    let (other, _) = stage.linked_by_notification(fresh("Spoken of truly")).await;
    stage.in_step().await;
    for id in [&id, &other] {
        stage.edit_defender(id, json!({"severity": "high"})).await;
    }
    stage.emulator.forget_calls().await;
    let mut wrong = service::graph_body(&stage.places[0], &id);
    for state in [json!("guessed"), json!(null), json!(format!("{CLIENT_STATE} "))] {
        wrong["value"][0]["clientState"] = state;
        assert_eq!(stage.service.post_graph(&wrong).await.expect("an answer"), StatusCode::ACCEPTED);
    }
    let mut stranger = service::graph_body(&stage.places[0], &id);
    stranger["value"][0]["tenantId"] = json!(uuid::Uuid::nil());
    assert_eq!(stage.service.post_graph(&stranger).await.expect("an answer"), StatusCode::ACCEPTED);
    stage.tell_graph(&other).await;
    stage.sentinel_shows(&other, json!({"severity": "High"})).await;
    assert!(!asked(&stage, &format!("incidents/{id}")).await, "a stranger's message caused a call");

    // One right item among wrong ones is enough.
    let mut mixed = wrong.clone();
    let right = service::graph_body(&stage.places[0], &id)["value"][0].clone();
    mixed["value"].as_array_mut().expect("a list of items").push(right);
    assert_eq!(stage.service.post_graph(&mixed).await.expect("an answer"), StatusCode::ACCEPTED);
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;

    let http = crate::support::client();
    let url = stage.service.url("/notify/graph?validationToken=Validation%3A%20a%2Bb%20%3C%26%3E");
    let answer = http.post(url).send().await.expect("the door answers");
    let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
    assert!(answer.status() == StatusCode::OK && kind.starts_with("text/plain"), "{answer:?}");
    assert_eq!(answer.text().await.expect("text"), "Validation: a+b <&>");
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_and_playbooks_outrun_the_poll() {
    let stage = without_polls(json!({"graphIncidentSubscriptions": "on"})).await;
    let expires = OffsetDateTime::now_utc() + time::Duration::days(1);
    let expires = expires.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let wish = json!({
        "changeType": "created,updated", "resource": "security/incidents", "clientState": CLIENT_STATE,
        "notificationUrl": stage.service.url("/notify/graph"),
        "lifecycleNotificationUrl": stage.service.url("/notify/graph/lifecycle"),
        "expirationDateTime": expires,
    });
    // The handshake is part of it.
    stage.analysts[0].graph(Method::POST, "/subscriptions", wish).await.expect("the subscription is made");
    let playbook = json!({
        "workspace": stage.places[0].workspace(), "url": stage.service.url("/notify/sentinel/workspace-0"),
        "auth": {"kind": "hmac", "secret": webhook_secret()},
    });
    stage.emulator.control(Method::POST, "/playbooks", Some(playbook)).await;

    let (id, name) = stage.linked(fresh("Told at once")).await;
    stage.in_step().await;
    let prompt = Duration::from_secs(5);
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    let (_, took) = stage
        .until_within("the notification brings the edit", PATIENCE, |state| {
            let twin = state.twin(&stage.places[0], &id).ok_or("no twin")?;
            let severity = &twin["properties"]["severity"];
            if severity == "High" { Ok(()) } else { Err(severity.to_string()) }
        })
        .await;
    assert!(took < prompt, "{took:?}");
    stage.in_step().await;
    stage.edit_sentinel(&name, json!({"status": "Active"})).await;
    let (_, took) = stage
        .until_within("the playbook brings the edit", PATIENCE, |state| {
            let incident = state.incident(&stage.places[0], &id).ok_or("no incident")?;
            if incident["status"] == "inProgress" { Ok(()) } else { Err(incident["status"].to_string()) }
        })
        .await;
    assert!(took < prompt, "{took:?}");
    stage.ends().await;
}
