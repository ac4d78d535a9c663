//! Trouble: refusals, throttling, gateways' pages, cut connections, silence.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::stage::{PATIENCE, Scene, Stage, fresh};
use crate::support::emulator::Call;
use crate::support::{in_step, until};

/// Each spoils one write, or a few, of an incident of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_outlived() {
    let stage = Stage::set(Scene::default()).await;
    let kinds = [
        ("a token that is no longer taken", json!({"kind": "status", "status": 401})),
        ("a server error", json!({"kind": "status", "status": 500})),
        ("unavailable", json!({"kind": "status", "status": 503, "retryAfter": 1})),
        ("unavailable without a word", json!({"kind": "status", "status": 503})),
        ("a gateway's time out", json!({"kind": "status", "status": 504})),
        ("too slow for it", json!({"kind": "status", "status": 408})),
        ("a gateway's page", json!({"kind": "html", "status": 502, "times": 2})),
        ("a gateway's page that calls itself a success", json!({"kind": "html", "status": 200})),
        ("cut before", json!({"kind": "drop-before", "times": 2})),
        ("cut after", json!({"kind": "drop-after"})),
        ("slow", json!({"kind": "delay", "delayMs": 1500})),
        ("somebody was quicker", json!({"kind": "status", "status": 409})),
        ("somebody was quicker, in the other word", json!({"kind": "status", "status": 412})),
    ];
    let mut links = Vec::new();
    for (name, _) in &kinds {
        let to_sentinel = stage.raise(fresh(&format!("To Sentinel: {name}"))).await;
        let to_defender = stage.raise(fresh(&format!("To Defender: {name}"))).await;
        links.push((to_sentinel, to_defender));
    }
    stage.in_step().await;
    for ((to_sentinel, to_defender), (_, kind)) in links.iter().zip(&kinds) {
        let order = |service: &str, method: &str, part: &str| {
            let mut fault = kind.clone();
            (fault["service"], fault["method"], fault["pathContains"]) =
                (json!(service), json!(method), json!(part));
            fault
        };
        let twin = stage.twin_of(to_sentinel).await;
        stage.emulator.fault(order("arm", "PUT", &twin)).await;
        stage.edit_defender(to_sentinel, json!({"severity": "high", "status": "inProgress"})).await;
        let twin = stage.twin_of(to_defender).await;
        stage.emulator.fault(order("graph", "PATCH", &format!("incidents/{to_defender}"))).await;
        stage.edit_sentinel(&twin, json!({"severity": "Low", "status": "Active"})).await;
    }
    for ((to_sentinel, to_defender), (name, _)) in links.iter().zip(&kinds) {
        println!("{name}");
        stage.sentinel_shows(to_sentinel, json!({"severity": "High", "status": "Active"})).await;
        stage.defender_shows(to_defender, json!({"severity": "low", "status": "inProgress"})).await;
    }
    stage.ends().await;
}

pub(crate) async fn sign_in_stumbles() {
    let mut stage = Stage::prepare(Scene::default(), |hello| hello.graph.clone()).await;
    let id = stage.raise(fresh("Waits for a token")).await;
    for kind in [
        json!({"service": "login", "kind": "status", "status": 503}),
        json!({"service": "login", "kind": "html"}),
        json!({"service": "login", "kind": "drop-before"}),
    ] {
        stage.emulator.fault(kind).await;
    }
    stage.service.resume().await;
    stage.twin_of(&id).await;
    stage.ends().await;
}

/// What `/readyz` says of one side of a route. It must answer 200, whatever a side's trouble.
async fn side(stage: &Stage, route: usize, side: &str) -> Value {
    let (status, body) = stage.service.get("/readyz").await;
    assert_eq!(status, 200, "one side's trouble takes nobody off the ingress: {body}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    body["routes"][route][side].clone()
}

async fn gate(stage: &Stage, route: usize, which: &str, expected: &str, patience: Duration) {
    until(&format!("the gate of {which} is {expected}"), patience, || async {
        let side = side(stage, route, which).await;
        if side["gate"] == expected { Ok(()) } else { Err(side.to_string()) }
    })
    .await;
}

fn refused(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.fault.is_some()).count()
}

pub(crate) async fn a_refused_side_is_held() {
    let stage = Stage::set(Scene { places: 2, ..Scene::default() }).await;
    let (here, there) = (stage.places[0].clone(), stage.places[1].clone());
    let (held, _) = stage.linked(fresh("Held")).await;
    let free = stage.emulator.raise(&there, fresh("Free")).await;
    stage.in_step().await;
    let part = format!("/{}/", here.workspace_name);
    let fault = json!({
        "service": "arm", "pathContains": part, "times": 1_000_000, "kind": "status", "status": 403,
    });
    stage.emulator.fault(fault).await;
    stage.emulator.forget_calls().await;
    for severity in ["high", "low", "high"] {
        stage.edit_defender(&held, json!({"severity": severity})).await;
    }
    gate(&stage, 0, "sentinel", "closed", PATIENCE).await;
    assert_eq!(side(&stage, 0, "defender").await["gate"], "open");
    assert_eq!(side(&stage, 1, "sentinel").await["gate"], "open");

    // Meanwhile the neighbour goes on as if nothing were.
    let mut longest = Duration::ZERO;
    for (number, severity) in ["high", "low", "informational", "high"].into_iter().enumerate() {
        let began = Instant::now();
        stage.analysts[1].edit_defender(&free, json!({"severity": severity})).await;
        stage
            .until(&format!("edit {number} next door arrives"), |state| {
                let found = in_step::differences(state, &there);
                if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
            })
            .await;
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(5), "the neighbour waited {longest:?}");
    let asked = refused(&stage.calls().await);
    assert!((1..=6).contains(&asked), "a side that refuses us is asked now and then, not {asked} times");

    stage.emulator.heal().await;
    // A role takes minutes to arrive; half a minute for the first probe is prompt.
    stage.in_step_but(Duration::from_secs(75), |_| false).await;
    gate(&stage, 0, "sentinel", "open", PATIENCE).await;
    stage.ends().await;
}

pub(crate) async fn a_refused_tenant_is_held() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Held")).await;
    stage.in_step().await;
    let fault = json!({"service": "graph", "times": 1_000_000, "kind": "status", "status": 403});
    stage.emulator.fault(fault).await;
    stage.emulator.forget_calls().await;
    stage.edit_sentinel(&name, json!({"severity": "High", "status": "Active"})).await;
    gate(&stage, 0, "defender", "closed", PATIENCE).await;
    // Sentinel's poller goes on, and Graph is left alone.
    until("the other side is polled on", PATIENCE, || async {
        let polls = stage.calls().await.iter().filter(|call| call.service == "arm" && call.is_list()).count();
        if polls >= 20 { Ok(()) } else { Err(format!("{polls} polls")) }
    })
    .await;
    let asked = refused(&stage.calls().await);
    assert!((1..=6).contains(&asked), "a side that refuses us is asked now and then, not {asked} times");
    stage.emulator.heal().await;
    stage.in_step_but(Duration::from_secs(75), |_| false).await;
    stage.defender_shows(&id, json!({"severity": "high", "status": "inProgress"})).await;
    stage.ends().await;
}

/// One 429 closes the whole side for as long as was said, or for a few seconds.
pub(crate) async fn throttled(
    service: &'static str,
    method: &'static str,
    retry_after: Option<u64>,
    wait_s: f64,
) {
    let stage = Stage::set(Scene::default()).await;
    let (first, first_twin) = stage.linked(fresh("Throttled")).await;
    let (second, second_twin) = stage.linked(fresh("Beside it")).await;
    stage.in_step().await;
    stage.emulator.forget_calls().await;
    let fault = json!({
        "service": service, "method": method, "kind": "status", "status": 429, "retryAfter": retry_after,
    });
    stage.emulator.fault(fault).await;
    if service == "graph" {
        stage.edit_sentinel(&first_twin, json!({"severity": "High"})).await;
        stage.edit_sentinel(&second_twin, json!({"severity": "High"})).await;
        stage.defender_shows(&first, json!({"severity": "high"})).await;
        stage.defender_shows(&second, json!({"severity": "high"})).await;
    } else {
        stage.edit_defender(&first, json!({"severity": "high"})).await;
        stage.edit_defender(&second, json!({"severity": "high"})).await;
        stage.sentinel_shows(&first, json!({"severity": "High"})).await;
        stage.sentinel_shows(&second, json!({"severity": "High"})).await;
    }
    let calls = stage.calls().await;
    let struck = calls.iter().position(|call| call.status == Some(429)).expect("the fault struck");
    // Calls that were on their way when the answer came are not to blame.
    let told = calls[struck].at + time::Duration::milliseconds(300);
    let next = calls[struck + 1..].iter().find(|call| call.service == service && call.at > told);
    let next = next.expect("the edits arrived after it");
    let waited = (next.at - calls[struck].at).as_seconds_f64();
    assert!(waited >= wait_s, "{service} was asked again after {waited} s, not {wait_s}: {next:?}");
    let again = calls.iter().filter(|call| call.status == Some(429)).count();
    assert_eq!(again, 1, "nobody hammers");
    stage.ends().await;
}

/// Longer than we wait for any answer. Whether the write lands at last is not known when it is tried again.
pub(crate) async fn silence() {
    let stage = Stage::set(Scene::default()).await;
    let (to_defender, twin) = stage.linked(fresh("Silence from Graph")).await;
    let (to_sentinel, other_twin) = stage.linked(fresh("Silence from ARM")).await;
    stage.in_step().await;
    for (service, method, part) in [("graph", "PATCH", &to_defender), ("arm", "PUT", &other_twin)] {
        let fault = json!({
            "service": service, "method": method, "pathContains": part, "kind": "delay", "delayMs": 24_000,
        });
        stage.emulator.fault(fault).await;
    }
    stage.edit_defender(&to_sentinel, json!({"severity": "high"})).await;
    stage.edit_sentinel(&twin, json!({"severity": "High"})).await;
    stage.in_step_but(Duration::from_secs(60), |_| false).await;
    stage.defender_shows(&to_defender, json!({"severity": "high"})).await;
    stage.sentinel_shows(&to_sentinel, json!({"severity": "High"})).await;
    stage.ends().await;
}
