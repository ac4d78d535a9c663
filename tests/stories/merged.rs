//! Merged incidents: the loser's twin is closed with a pointer, which is nobody's verdict.

use serde_json::json;

use crate::stage::{SELDOM, Scene, Stage, fresh};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_losers_twin_is_closed_with_a_pointer_and_is_no_verdict() {
    let stage = Stage::set(Scene::default()).await;
    let (winner, _) = stage.linked(fresh("Winner")).await;
    let mut loser = fresh("Loser");
    loser["customTags"] = json!(["first", "from the loser"]);
    let (loser, twin) = stage.linked(loser).await;
    stage.in_step().await;

    stage.emulator.merge(&stage.places[0], &loser, &winner).await;
    let pointer = format!("Merged in Defender into incident {winner}.");
    let expected = json!({
        "status": "Closed", "classification": "Undetermined", "classificationComment": pointer,
    });
    stage.sentinel_shows(&loser, expected).await;
    // Tags move with the merge, and the winner's twin shows them.
    stage
        .until("the winner's twin has the loser's tag", |state| {
            let labels =
                state.twin(&stage.places[0], &winner).map(|twin| twin["properties"]["labels"].to_string());
            labels.filter(|labels| labels.contains("from the loser")).map(drop).ok_or_else(|| "no".to_owned())
        })
        .await;
    stage.ends().await;

    // An edit of what is closed for good goes nowhere, and the winner stays open.
    stage.edit_sentinel(&twin, json!({"severity": "High"})).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let loser = state.incident(&stage.places[0], &loser).expect("it is kept");
    assert_eq!((&loser["status"], &loser["classification"]), (&json!("redirected"), &json!("unknown")));
    assert_eq!(loser["severity"], "medium", "a merged incident is not written to");
    let winner = state.incident(&stage.places[0], &winner).expect("it is there");
    assert_eq!((&winner["status"], &winner["classification"]), (&json!("active"), &json!("unknown")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_merged_before_it_had_a_twin_gets_none() {
    let stage = Stage::set(Scene { defender_every: SELDOM, ..Scene::default() }).await;
    // The first poll is over, and nothing else finds them.
    let (first, _) = stage.linked_by_notification(fresh("Found")).await;
    let (loser, winner) = (stage.raise(fresh("Loser")).await, stage.raise(fresh("Winner")).await);
    stage.emulator.merge(&stage.places[0], &loser, &winner).await;
    for id in [&loser, &winner] {
        stage.tell_graph(id).await;
    }
    stage.twin_of(&winner).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    assert!(state.twin(&stage.places[0], &loser).is_none() && state.twin(&stage.places[0], &first).is_some());
}
