//! Budgets: the published limits are never overrun, and a change costs few calls.

use std::time::Duration;

use serde_json::json;

use crate::stage::{PATIENCE, SELDOM, Scene, Stage, fresh};
use crate::support::emulator::Call;
use crate::support::{service, until};

/// More than a minute's budget of one tenant, less than two.
const AT_ONCE: usize = 60;
/// How many workers the product starts by itself.
const WORKERS: usize = 8;

/// What is not a page of a change list.
fn on_incidents(calls: &[Call]) -> usize {
    calls.iter().filter(|call| !call.is_list()).count()
}

pub(crate) async fn a_flood_overruns_no_limit() {
    let (defender_every, sentinel_every) = ("5s", "5s");
    let stage = Stage::set(Scene { budgets: true, defender_every, sentinel_every, ..Scene::default() }).await;
    stage.linked(fresh("Before the flood")).await;
    stage.emulator.forget_calls().await;
    for number in 0..AT_ONCE {
        stage.raise(fresh(&format!("Of a flood, {number}"))).await;
    }
    stage.in_step_but(Duration::from_secs(150), |_| false).await;
    let calls = stage.calls().await;
    stage.ends().await;
    let refused: Vec<&Call> = calls.iter().filter(|call| call.status == Some(429)).collect();
    assert!(refused.is_empty(), "the limits were overrun: {refused:?}");
    // A worker that finds Graph's budget spent has asked Sentinel in vain: one call each while the minute turns.
    let (in_vain, spent) = (2 * WORKERS, on_incidents(&calls));
    assert!(spent <= 3 * AT_ONCE + in_vain, "{spent} calls for {AT_ONCE} incidents");
}

pub(crate) async fn a_change_costs_three_calls() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Economy")).await;
    stage.ends().await;
    let defender =
        [json!({"severity": "high"}), json!({"status": "inProgress", "assignedTo": "omar@contoso.com"})];
    let sentinel = [
        json!({"severity": "Low"}),
        json!({
            "status": "Closed", "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
        }),
    ];
    for (edit, twin_edit) in defender.into_iter().zip(sentinel) {
        for (from_defender, edit) in [(true, edit), (false, twin_edit)] {
            // `quiet` forgets the calls that come before its last look.
            stage.quiet().await;
            stage.emulator.forget_calls().await;
            match from_defender {
                true => stage.edit_defender(&id, edit.clone()).await,
                false => stage.edit_sentinel(&name, edit.clone()).await,
            };
            stage.in_step().await;
            // The echo comes with the next polls.
            until("both pollers come round twice", PATIENCE, || async {
                let calls = stage.calls().await;
                let last = calls.iter().rposition(Call::is_write).ok_or("nothing is written yet")?;
                let rounds = |side: &str| {
                    calls[last..].iter().filter(|call| call.service == side && call.is_list()).count()
                };
                if rounds("graph").min(rounds("arm")) >= 2 { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            let calls = stage.calls().await;
            let spent = on_incidents(&calls);
            assert!(spent <= 3, "{edit} cost {spent} calls: {calls:?}");
        }
    }
    stage.ends().await;
}

/// Notifications are hints: a hundred of them are one look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_notifications_cost_at_most_four_calls() {
    let (defender_every, sentinel_every) = (SELDOM, SELDOM);
    let stage = Stage::set(Scene { defender_every, sentinel_every, ..Scene::default() }).await;
    let (id, name) = stage.linked_by_notification(fresh("Told a hundred times")).await;
    for from_defender in [false, true] {
        stage.in_step().await;
        let began = std::time::Instant::now();
        let mut tellers = tokio::task::JoinSet::new();
        let http = crate::support::client();
        let told = match from_defender {
            true => {
                stage.edit_defender(&id, json!({"severity": "low"})).await;
                service::graph_body(&stage.places[0], &id)
            }
            false => {
                let written = stage.edit_sentinel(&name, json!({"severity": "High"})).await;
                service::playbook_body(&stage.places[0], "Update", &written)
            }
        };
        stage.emulator.forget_calls().await;
        for number in 0..100 {
            let (http, body) = (http.clone(), told.clone());
            let url = stage.service.url(if from_defender {
                "/notify/graph"
            } else {
                "/notify/sentinel/workspace-0"
            });
            tellers.spawn(async move {
                let answer = match from_defender {
                    true => http.post(url).json(&body).send().await.map(|answer| answer.status()),
                    false => service::post_playbook(&http, &url, &format!("msg_{number}"), &body).await,
                };
                assert_eq!(answer.expect("an answer"), 202);
            });
        }
        tellers.join_all().await;
        println!("a hundred deliveries took {:?}", began.elapsed());
        stage.in_step().await;
        // Served to the end: the queue is empty, and what it took has been asked.
        until("the queue is empty", PATIENCE, || async {
            let (_, metrics) = stage.service.get("/metrics").await;
            let waiting = metrics.lines().find(|line| line.starts_with("lockstep_queue_waiting "));
            if waiting == Some("lockstep_queue_waiting 0") { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
        let calls = stage.calls().await;
        assert!(on_incidents(&calls) <= 4, "a hundred hints cost {} calls: {calls:?}", on_incidents(&calls));
    }
    stage.ends().await;
}
