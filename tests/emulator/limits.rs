//! Where the services say no more: limits that are published, and those that can only be guessed.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, incident};

fn message(text: &str) -> Value {
    json!({"properties": {"message": text}})
}

async fn made(desk: &Desk, token: &str, labels: Value) -> crate::desk::Reply {
    let body = json!({"properties": {"title": "t", "severity": "Low", "status": "New", "labels": labels}});
    desk.arm(token, Method::PUT, "/incidents/limits", body).await
}

#[tokio::test]
async fn an_incident_takes_a_hundred_comments_of_thirty_thousand_characters() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    made(&desk, &token, json!([])).await.expect(201);
    for number in 0..101 {
        let path = format!("/incidents/limits/comments/c-{number}");
        let reply = desk.arm(&token, Method::PUT, &path, message("one of many")).await;
        assert_eq!(reply.status, if number < 100 { 201 } else { 400 }, "{}", reply.text);
    }
    // What is there may be rewritten all the same, up to the length.
    let path = "/incidents/limits/comments/c-7";
    desk.arm(&token, Method::PUT, path, message(&"é".repeat(30_000))).await.expect(200);
    desk.arm(&token, Method::PUT, path, message(&"é".repeat(30_001))).await.refused(400);
}

#[tokio::test]
async fn labels_and_comments_are_refused_as_switched() {
    let desk = Desk::open().await;
    let (arm, graph) = (desk.app_token("arm", "writer").await, desk.app_token("graph", "writer").await);
    let id = desk.incident(incident("Talk")).await;
    let long = json!([{"labelName": "x".repeat(51)}]);
    let script = message("look: <SCRIPT>alert(1)</script>");
    let comment = json!({"comment": "x".repeat(1_001)});
    let (in_arm, in_graph) = ("/incidents/limits/comments/c", format!("/security/incidents/{id}/comments"));
    made(&desk, &arm, long.clone()).await.expect(201);
    desk.arm(&arm, Method::PUT, in_arm, script.clone()).await.expect(201);
    desk.graph(&graph, Method::POST, &in_graph, comment.clone()).await.expect(200);

    for (name, value) in [("labelLimit", "50"), ("commentRefused", "html"), ("graphCommentLimit", "1000")] {
        desk.switch(name, value).await;
    }
    made(&desk, &arm, long).await.refused(400);
    desk.arm(&arm, Method::PUT, in_arm, script).await.refused(400);
    desk.graph(&graph, Method::POST, &in_graph, comment).await.refused(400);
    made(&desk, &arm, json!([{"labelName": "x".repeat(50)}])).await.expect(200);
    desk.arm(&arm, Method::PUT, in_arm, message("<b>fine</b>")).await.expect(200);
    desk.graph(&graph, Method::POST, &in_graph, json!({"comment": "x".repeat(1_000)})).await.expect(200);
}
