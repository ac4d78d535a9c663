//! The past is copied by order, in the background, with nearly all of the calls that Microsoft allows and none beyond.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stage::{SELDOM, Scene, Stage, fresh};
use crate::support::emulator::Call;

/// What a minute's budget allows, three times.
const PAST: usize = 150;

/// An incident that nobody has touched since it came to be, so many days ago.
fn of_the_past(days: i64, title: &str) -> Value {
    let at =
        (OffsetDateTime::now_utc() - time::Duration::days(days)).format(&Rfc3339).expect("a plain instant");
    let mut incident = fresh(title);
    incident["createdDateTime"] = json!(at);
    incident["lastUpdateDateTime"] = json!(at);
    incident
}

fn ordered(stage: &Stage, more: &[&str]) -> String {
    let output = stage.service.command(&[&["backfill", "route-0"], more].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_counted_then_copied_and_what_lies_before_it_is_not() {
    let (defender_every, sentinel_every) = (SELDOM, SELDOM);
    let stage = Stage::set(Scene { defender_every, sentinel_every, ..Scene::default() }).await;
    for number in 0..55 {
        let incident = of_the_past(20 + number, &format!("Of the past, {number}"));
        stage.emulator.raise_in_the_past(&stage.places[0], incident).await;
    }
    let before = of_the_past(120, "Long before");
    let before = stage.emulator.raise_in_the_past(&stage.places[0], before).await;
    let counted = ordered(&stage, &["--since", "100d", "--dry-run"]);
    assert!(counted.contains(": 0 already linked, 0 merged away, "), "{counted}");
    assert!(counted.contains("nothing was ordered"), "{counted}");
    assert!(ordered(&stage, &["--status"]).contains("was ever ordered"));

    ordered(&stage, &["--since", "100d", "--order", "oldest"]);
    let own = format!("{before}:");
    stage
        .until("all but one have twins", |state| {
            let lacking = crate::support::in_step::differences(state, &stage.places[0])
                .into_iter()
                .filter(|difference| difference.ends_with("no twin") && !difference.starts_with(&own))
                .count();
            if lacking == 0 { Ok(()) } else { Err(format!("{lacking} have none")) }
        })
        .await;
    let state = stage.emulator.state().await;
    assert!(state.twin(&stage.places[0], &before).is_none(), "it came to be before");
    let said = ordered(&stage, &["--status"]);
    assert!(said.contains("done") && said.contains("handed over"), "{said}");
    let counted = ordered(&stage, &["--since", "100d", "--dry-run"]);
    assert!(counted.contains(", 0 to be linked"), "{counted}");
}

pub(crate) async fn it_uses_the_budget_and_never_overruns_it() {
    let (defender_every, sentinel_every) = ("10s", "15s");
    let stage = Stage::set(Scene { budgets: true, defender_every, sentinel_every, ..Scene::default() }).await;
    for number in 0..PAST {
        let incident = of_the_past(30, &format!("Of the past, {number}"));
        stage.emulator.raise_in_the_past(&stage.places[0], incident).await;
    }
    // What the start has spent is out of the minute.
    tokio::time::sleep(Duration::from_secs(62)).await;
    stage.emulator.forget_calls().await;
    ordered(&stage, &["--since", "60d"]);
    tokio::time::sleep(Duration::from_secs(122)).await;
    let calls = stage.calls().await;
    let refused: Vec<&Call> = calls.iter().filter(|call| call.status == Some(429)).collect();
    assert!(refused.is_empty(), "the limits were overrun: {refused:?}");
    let graph: Vec<&Call> = calls.iter().filter(|call| call.service == "graph").collect();
    // From its first call on, over two minutes: what comes at the start of a third does not count.
    let first = graph.iter().find(|call| call.path.contains("createdDateTime")).expect("it has begun").at;
    let within = |call: &&&Call| call.at >= first && call.at < first + time::Duration::seconds(120);
    let used = graph.iter().filter(within).count();
    println!("a backfill used {used} of 100 calls in two minutes");
    assert!(used >= 90, "{used} of 100 calls are used");
    let state = stage.emulator.state().await;
    let twins = state.sentinel(&stage.places[0]).len();
    assert!(twins < PAST, "there was enough to do all the time: {twins}");
}
