//! The process: asked to end while it works, and on TLS from end to end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::stage::{Scene, Stage, fresh};

/// "Within seconds": what is under way is finished, and nothing else.
const FAREWELL: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_told_to_end_ends_well_and_goes_on_later() {
    let mut stage = Stage::set(Scene::default()).await;
    let mut links = Vec::new();
    for number in 0..12 {
        links.push(stage.raise(fresh(&format!("Under way, {number}"))).await);
    }
    for round in 0..3 {
        // Wait for the first writes of this round, not for the last.
        stage.emulator.forget_calls().await;
        let severity = ["high", "low", "informational"][round];
        for id in &links {
            stage.edit_defender(id, json!({"severity": severity})).await;
        }
        // Slow answers keep work under way when the signal comes.
        let fault = json!({"service": "arm", "method": "PUT", "kind": "delay", "delayMs": 700, "times": 2});
        stage.emulator.fault(fault).await;
        crate::support::until("it writes", Duration::from_secs(30), || async {
            let writes = stage.calls().await.iter().filter(|call| call.is_write()).count();
            if writes > 0 { Ok(()) } else { Err("no write yet".to_owned()) }
        })
        .await;
        let began = Instant::now();
        assert!(stage.service.terminate(FAREWELL), "the exit code is 0\n{}", stage.service.log_tail());
        println!("it ended in {:?}", began.elapsed());
        stage.emulator.heal().await;
        stage.service.resume().await;
        stage.in_step().await;
    }
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_over_tls_with_an_authority_of_ones_own() {
    let stage = Stage::set(Scene { tls: true, ..Scene::default() }).await;
    assert!(stage.emulator.hello.graph.starts_with("https://"), "{:?}", stage.emulator.hello);
    let (id, name) = stage.linked(fresh("Over TLS")).await;
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;
    stage.in_step().await;
    let closing = json!({
        "status": "Closed", "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
        "classificationComment": "over TLS",
    });
    stage.edit_sentinel(&name, closing).await;
    stage.defender_shows(&id, json!({"status": "resolved", "resolvingComment": "over TLS"})).await;
    let check = stage.service.command(&["check", "--connect"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    stage.ends().await;
}
