//! What the sides say is compared while the service runs, and mended by its workers alone.

use serde_json::{Value, json};

use crate::stage::{SELDOM, Scene, Stage, fresh};
use crate::support::emulator::Call;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_listed_with_its_cause_and_repaired_by_the_service() {
    let (defender_every, sentinel_every) = (SELDOM, SELDOM);
    // Two changes of Defender may carry one time.
    let switches = json!({"equalTimes": "on"});
    let scene = Scene { defender_every, sentinel_every, switches, ..Scene::default() };
    let stage = Stage::set(scene).await;
    let (moved, _) = stage.linked_by_notification(fresh("Moved in Defender")).await;
    let (other, twin) = stage.linked_by_notification(fresh("Moved in Sentinel")).await;
    let (titled, title_twin) = stage.linked_by_notification(fresh("Renamed in Sentinel")).await;
    stage.in_step().await;
    let drift = |more: &[&str]| {
        let output = stage.service.command(&[&["drift", "route-0"], more].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let also = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said, also)
    };
    let (code, said, also) = drift(&[]);
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "route route-0: 3 link(s), 3 in step; no difference\n"),
        "{also}"
    );

    // Nobody is told of these.
    stage.edit_defender(&moved, json!({"severity": "high"})).await;
    stage.edit_sentinel(&twin, json!({"status": "Active"})).await;
    stage.edit_sentinel(&title_twin, json!({"title": "Another name"})).await;
    stage.emulator.forget_calls().await;
    let (code, said, also) = drift(&["--json"]);
    assert_eq!(code, Some(2), "{said}{also}");
    let calls = stage.calls().await;
    assert_eq!(calls.len(), 2, "a list of each side: {calls:?}");
    let reports: Value = serde_json::from_str(&said).expect("JSON, and nothing else on standard output");
    let found: Vec<Vec<&str>> = reports[0]["differences"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|d| {
            ["incident", "field", "defender", "sentinel", "cause"].map(|m| d[m].as_str().expect(m)).into()
        })
        .collect();
    let expected = [
        [&moved, "severity", "high", "Medium", "in-flight"],
        [&other, "status", "active", "Active", "in-flight"],
        [&titled, "title", "\"Renamed in Sentinel\"", "\"Another name\"", "policy"],
    ];
    assert_eq!(found, expected.map(Vec::from));

    let (code, said, also) = drift(&["--repair"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("3 link(s), 1 in step; 2 in flight, 1 policy"), "{said}");
    assert!(also.contains("asked to look at 2 link(s)"), "{also}");
    stage.sentinel_shows(&moved, json!({"severity": "High"})).await;
    stage.defender_shows(&other, json!({"status": "inProgress"})).await;
    stage.in_step_but(crate::stage::PATIENCE, |difference| difference.contains("title")).await;
    let (code, said, _) = drift(&[]);
    assert_eq!(code, Some(0), "what the rules leave is no drift: {said}");
    assert!(said.contains("Another name") && said.contains("goes to Sentinel only"), "{said}");
    let writes = stage.calls().await.into_iter().filter(Call::is_write).count();
    assert_eq!(writes, 2, "one for each that was mended");

    let output = stage.service.command(&["drift", "route-9"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("route-0"));
}
