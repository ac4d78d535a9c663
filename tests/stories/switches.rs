//! What the references leave uncertain: the service must be right whichever way it is. One whole story under each
//! value of each switch that is not the default. (`budgets` apart: off is what every short story here plays under.)

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::stage::{PATIENCE, Scene, Stage, folder, fresh};
use crate::support::emulator::Emulator;

/// How many stages stand at once: two processes each.
const AT_ONCE: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_ends_well_under_every_switch() {
    let described = {
        let folder = folder();
        let emulator = Emulator::start(folder.path(), 1);
        emulator.control(Method::GET, "/switches", None).await
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = Vec::new();
    for (switch, about) in described.as_object().expect("names, values and meanings") {
        for value in about["values"].as_array().expect("each has values") {
            if *value == about["value"] || switch == "budgets" {
                continue;
            }
            let (switch, value) = (switch.clone(), value.as_str().expect("values are text").to_owned());
            let (name, room) = (format!("{switch} = {value}"), room.clone());
            let story = tokio::spawn(async move {
                let _place = room.acquire().await;
                story(&switch, &value).await;
            });
            running.push((name, story));
        }
    }
    assert!(running.len() >= 25, "the emulator knows many uncertainties, not {}", running.len());
    let mut failed = Vec::new();
    for (name, story) in running {
        if story.await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "the story failed under {failed:?}");
}

async fn story(switch: &str, value: &str) {
    let (switches, name) = (json!({switch: value}), format!("{switch} = {value}"));
    // Where two changes may carry one time, a change list cannot tell the second: only the sweep finds it.
    let poll = if switch == "equalTimes" { "sweep_every = \"2s\"\n" } else { "" };
    let stage = Stage::set(Scene { switches, poll, ..Scene::default() }).await;
    // Where Graph does not take `inProgress`, `active` also stands for Sentinel's Active.
    let refused = (switch, value) == ("inProgress", "refused");
    let in_progress = if refused { "active" } else { "inProgress" };
    let tolerated = move |difference: &str| refused && difference.ends_with("status \"active\" / \"Active\"");

    // More of them than a small page holds.
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(stage.raise(fresh(&format!("{name}, {number}"))).await);
    }
    stage.in_step_but(PATIENCE, tolerated).await;
    let mut twins = Vec::new();
    for id in &ids {
        twins.push(stage.twin_of(id).await);
    }

    // Closed in Sentinel, reopened in Defender, taken on in Sentinel.
    let closing = json!({
        "status": "Closed", "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
        "classificationComment": "seen to",
    });
    stage.edit_sentinel(&twins[0], closing).await;
    let closed =
        json!({"status": "resolved", "classification": "truePositive", "resolvingComment": "seen to"});
    stage.defender_shows(&ids[0], closed).await;
    stage.edit_defender(&ids[0], json!({"status": "active"})).await;
    stage.sentinel_shows(&ids[0], json!({"status": "New"})).await;
    stage.in_step_but(PATIENCE, tolerated).await;
    stage.edit_sentinel(&twins[0], json!({"status": "Active"})).await;
    stage.defender_shows(&ids[0], json!({"status": in_progress, "classification": "truePositive"})).await;

    // Assigned in Defender, given up in Sentinel.
    stage.edit_defender(&ids[1], json!({"assignedTo": "omar@contoso.com"})).await;
    stage.sentinel_shows(&ids[1], json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    stage.in_step_but(PATIENCE, tolerated).await;
    let nobody = json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null});
    stage.edit_sentinel(&twins[1], json!({"owner": nobody})).await;
    stage.defender_shows(&ids[1], json!({"assignedTo": null})).await;

    // Both at once: one severity wins, and both tags stay.
    let labels = json!([{"labelName": "first"}, {"labelName": "from Sentinel"}]);
    tokio::join!(
        stage.edit_defender(&ids[2], json!({"severity": "high", "customTags": ["first", "from Defender"]})),
        stage.edit_sentinel(&twins[2], json!({"severity": "Low", "labels": labels})),
    );
    stage.in_step_but(PATIENCE, tolerated).await;
    let state = stage.emulator.state().await;
    let tags = &state.incident(&stage.places[0], &ids[2]).expect("it is there")["customTags"];
    assert_eq!(tags.as_array().map(Vec::len), Some(3), "{name}: {tags}");

    // Lost answers, and reads that lag.
    let fault = |service: &str, method: &str, part: &str, kind: &str| json!({"service": service, "method": method, "pathContains": part, "kind": kind});
    stage.emulator.fault(fault("arm", "PUT", &twins[3], "drop-after")).await;
    stage.edit_defender(&ids[3], json!({"severity": "high"})).await;
    stage.sentinel_shows(&ids[3], json!({"severity": "High"})).await;
    // It landed unheard. Until it is settled, another edit of the field in Sentinel would be a clash.
    stage.quiet().await;
    stage.emulator.fault(fault("graph", "PATCH", &ids[3], "drop-after")).await;
    stage.edit_sentinel(&twins[3], json!({"severity": "Low"})).await;
    stage.defender_shows(&ids[3], json!({"severity": "low"})).await;
    stage.emulator.fault(fault("graph", "GET", &format!("incidents/{}", ids[4]), "stale-read")).await;
    stage.emulator.fault(fault("arm", "GET", &twins[4], "stale-read")).await;
    stage.edit_defender(&ids[4], json!({"severity": "high"})).await;
    stage.sentinel_shows(&ids[4], json!({"severity": "High"})).await;
    stage.in_step_but(PATIENCE, tolerated).await;

    stage.emulator.merge(&stage.places[0], &ids[1], &ids[2]).await;
    stage.sentinel_shows(&ids[1], json!({"status": "Closed", "classification": "Undetermined"})).await;
    stage.ends_but(tolerated).await;
    assert_eq!(stage.parked(), [], "{name}: nothing is parked");
    let expected: &[Value] = &[json!("high"), json!("low")];
    let state = stage.emulator.state().await;
    let severity = &state.incident(&stage.places[0], &ids[2]).expect("it is there")["severity"];
    assert!(expected.contains(severity), "{name}: a severity that nobody chose: {severity}");
}

/// A verdict without a reason after one that had it, and none at all: both have to take back what the service would keep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_taken_back_where_what_is_left_out_is_kept_and_pairs_are_strict() {
    let switches = json!({"omittedMembers": "kept", "strictVerdict": "on", "reopenKeepsVerdict": "on"});
    let stage = Stage::set(Scene { switches, ..Scene::default() }).await;
    let (id, _) = stage.linked(fresh("Judged")).await;
    stage
        .edit_defender(
            &id,
            json!({"status": "resolved", "classification": "truePositive", "determination": "malware"}),
        )
        .await;
    stage
        .sentinel_shows(
            &id,
            json!({"classification": "TruePositive", "classificationReason": "SuspiciousActivity"}),
        )
        .await;
    stage.edit_defender(&id, json!({"classification": "unknown", "determination": "unknown"})).await;
    stage.sentinel_shows(&id, json!({"status": "Closed", "classification": "Undetermined"})).await;
    stage.edit_defender(&id, json!({"status": "active"})).await;
    stage.sentinel_shows(&id, json!({"status": "New"})).await;
    stage.ends().await;
    let refused: Vec<_> = stage.calls().await.into_iter().filter(|call| call.status == Some(400)).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
