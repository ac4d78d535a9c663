//! Playbooks: what a workspace posts when an incident of it changes, signed, and repeated until it is taken.

use lockstep::domain::signature::{Secret, verify};
use lockstep::emulator::Args;
use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, until};
use crate::receiver::Receiver;
use crate::schema;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn properties(title: &str) -> Value {
    json!({"properties": {"title": title, "severity": "Medium", "status": "New"}})
}

/// An emulator whose playbooks wait milliseconds where Logic Apps wait seconds.
async fn impatient() -> Desk {
    let args = Args { playbook_wait_ms: Some(2), ..Args::default() };
    Desk::start(args, reqwest::Client::builder()).await
}

async fn register(desk: &Desk, workspace: &str, url: &str) {
    let body = json!({"workspace": workspace, "url": url, "auth": {"kind": "hmac", "secret": SECRET}});
    let reply = desk.control(Method::POST, "/playbooks", body).await;
    assert!(matches!(reply.status, 200 | 201 | 204), "{}", reply.text);
}

#[tokio::test]
async fn each_change_is_posted_under_a_signature_that_holds() {
    let desk = Desk::open().await;
    let receiver = Receiver::open(|_| (202, String::new())).await;
    register(&desk, desk.url("workspaceName"), &receiver.url).await;
    let token = desk.app_token("arm", "writer").await;
    let made = desk.arm(&token, Method::PUT, "/incidents/watched", properties("Once")).await.expect(201);
    let mut update = made.clone();
    update["properties"]["status"] = json!("Active");
    desk.arm(&token, Method::PUT, "/incidents/watched", update).await.expect(200);

    let got = until("two posts", async || {
        let got = receiver.got();
        (got.len() >= 2).then_some(got)
    })
    .await;
    let secrets = [Secret::parse(SECRET).expect("a secret")];
    let now = time::OffsetDateTime::now_utc();
    for post in &got {
        let header = |name: &str| post.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (id, at, signatures) =
            (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        assert!(verify(&secrets, id, at, signatures, &post.body, now).is_ok(), "{:?}", post.headers);
        let body: Value = serde_json::from_slice(&post.body).expect("JSON");
        schema::playbook(&body);
        assert_eq!(body["object"]["name"], "watched");
        assert_eq!(body["workspaceInfo"]["WorkspaceName"], desk.url("workspaceName"));
    }
    let mut events: Vec<String> = got
        .iter()
        .map(|post| serde_json::from_slice::<Value>(&post.body).expect("JSON")["objectEventType"].to_string())
        .collect();
    events.sort();
    assert_eq!(events, ["\"Create\"", "\"Update\""]);
}

#[tokio::test]
async fn a_refused_post_comes_again_under_the_same_id() {
    let desk = impatient().await;
    let receiver = Receiver::open(|seen| (if seen == 0 { 503 } else { 202 }, String::new())).await;
    register(&desk, &desk.workspace(), &receiver.url).await;
    let token = desk.app_token("arm", "writer").await;
    desk.arm(&token, Method::PUT, "/incidents/stubborn", properties("Again")).await.expect(201);
    let got = until("the second try", async || {
        let got = receiver.got();
        (got.len() >= 2).then_some(got)
    })
    .await;
    assert_eq!(got[0].headers.get("webhook-id"), got[1].headers.get("webhook-id"));
    assert_eq!(got[0].body, got[1].body);
}

#[tokio::test]
async fn a_sender_repeats_four_times_and_not_at_all_when_told_no() {
    let desk = impatient().await;
    let token = desk.app_token("arm", "writer").await;
    let down = Receiver::open(|_| (500, String::new())).await;
    register(&desk, &desk.workspace(), &down.url).await;
    let forbidding = Receiver::open(|_| (401, String::new())).await;
    register(&desk, &desk.workspace(), &forbidding.url).await;
    // Nobody listens at a port that was just given back.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    register(&desk, &desk.workspace(), &format!("http://{free}/")).await;
    desk.arm(&token, Method::PUT, "/incidents/unheard", properties("Unheard")).await.expect(201);
    let deliveries = until("the ends of three deliveries", async || {
        let state = desk.state().await;
        let deliveries = state["deliveries"].as_array().expect("a list").clone();
        (deliveries.len() == 3 && deliveries.iter().all(|one| one["running"] == false)).then_some(deliveries)
    })
    .await;
    let tries: Vec<&Value> = deliveries.iter().map(|delivery| &delivery["tries"]).collect();
    assert_eq!(
        tries,
        [&json!([500, 500, 500, 500, 500]), &json!([401]), &json!([null, null, null, null, null])]
    );
}

#[tokio::test]
async fn nothing_is_posted_beyond_this_machine() {
    let desk = Desk::open().await;
    for url in
        ["http://example.com/", "http://10.0.0.1/", "http://127.0.0.1.example.com/", "ftp://127.0.0.1/", "x"]
    {
        let body =
            json!({"workspace": desk.workspace(), "url": url, "auth": {"kind": "hmac", "secret": SECRET}});
        let reply = desk.control(Method::POST, "/playbooks", body).await;
        assert_eq!(reply.status, 400, "{url} {}", reply.text);
    }
}

#[tokio::test]
async fn an_unknown_workspace_is_refused() {
    let desk = Desk::open().await;
    let body = json!({"workspace": "nowhere", "url": "http://127.0.0.1:9/", "auth": {"kind": "hmac", "secret": SECRET}});
    let reply = desk.control(Method::POST, "/playbooks", body).await;
    assert!(matches!(reply.status, 400 | 404), "{} {}", reply.status, reply.text);
}
