//! What operators order: stop and go, a look without a write, what was put aside, a check before the start.

use std::process::Output;
use std::time::Duration;

use serde_json::json;

use crate::stage::{PATIENCE, SELDOM, Scene, Stage, fresh};
use crate::support::emulator::Place;
use crate::support::service::{Configuration, Service};
use crate::support::until;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub(crate) async fn hold_and_release() {
    let mut stage = Stage::set(Scene::default()).await;
    let (to_sentinel, _) = stage.linked(fresh("Changed in Defender")).await;
    let (to_defender, twin) = stage.linked(fresh("Changed in Sentinel")).await;
    stage.ends().await;
    let held = stage.service.command(&["hold", "--all", "--reason", "a change of rules"]);
    assert!(held.status.success(), "{}", said(&held));

    stage.emulator.forget_calls().await;
    stage.edit_defender(&to_sentinel, json!({"severity": "high"})).await;
    stage.edit_sentinel(&twin, json!({"severity": "Low"})).await;
    stage.raise(fresh("New meanwhile")).await;
    // Each was found, and waits.
    until("all three wait", PATIENCE, || async {
        let (_, metrics) = stage.service.get("/metrics").await;
        let waiting = metrics.lines().find(|line| line.starts_with("lockstep_queue_waiting "));
        if waiting == Some("lockstep_queue_waiting 3") { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    let nothing_is_written = async |stage: &Stage| {
        let writes = stage.calls().await.into_iter().filter(crate::support::emulator::Call::is_write);
        assert_eq!(writes.count(), 0, "writes are held");
    };
    nothing_is_written(&stage).await;
    stage.quiet().await;

    assert!(stage.service.terminate(Duration::from_secs(10)), "{}", stage.service.log_tail());
    stage.emulator.forget_calls().await;
    stage.service.resume().await;
    stage.quiet().await;
    nothing_is_written(&stage).await;
    let plan = stage.service.command(&["plan", "route-0", &to_sentinel]);
    assert!(said(&plan).contains("a change of rules"), "a plan says that it is held: {}", said(&plan));

    let released = stage.service.command(&["release", "--all"]);
    assert!(released.status.success(), "{}", said(&released));
    stage.sentinel_shows(&to_sentinel, json!({"severity": "High"})).await;
    stage.defender_shows(&to_defender, json!({"severity": "low"})).await;
    stage.ends().await;
}

/// Two programs that disagree, one on each side: each puts back what the other has changed.
pub(crate) async fn another_program() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Contested")).await;
    let (calm, _) = stage.linked(fresh("Not contested")).await;
    let place = &stage.places[0];
    let flip = async || {
        let state = stage.emulator.state().await;
        let twin = state.twin(place, &id).map(|twin| twin["properties"]["severity"].clone());
        if twin == Some(json!("High")) {
            stage.edit_defender(&id, json!({"severity": "low"})).await;
        } else if state.incident(place, &id).is_some_and(|incident| incident["severity"] == "low") {
            stage.edit_sentinel(&name, json!({"severity": "High"})).await;
        }
    };
    stage.edit_defender(&id, json!({"severity": "low"})).await;
    let (row, _) = until("the link is put aside", Duration::from_secs(90), || async {
        for _ in 0..5 {
            flip().await;
        }
        stage.parked().into_iter().next().ok_or_else(|| stage.service.log_tail())
    })
    .await;
    let (subject, why) = row;
    assert!(why.contains("Written too often: 20 writes within an hour"), "{why}");
    assert!(subject.contains(&id) || subject.contains(&name), "{subject}");

    // It is left alone whatever is told, and nothing else is.
    stage.edit_defender(&id, json!({"severity": "informational"})).await;
    stage.edit_defender(&calm, json!({"severity": "high"})).await;
    stage.sentinel_shows(&calm, json!({"severity": "High"})).await;
    let own = format!("{id}:");
    stage.ends_but(|difference| difference.starts_with(&own)).await;
    let parked = stage.parked();
    assert!(parked.iter().any(|(known, _)| *known == subject), "{parked:?}");

    // The programs are stopped; somebody lets the link go on.
    for (subject, _) in &parked {
        let output = stage.service.command(&["unpark", subject]);
        assert!(output.status.success(), "{}", said(&output));
    }
    stage.ends().await;
    // It has its share of writes again.
    stage.edit_defender(&id, json!({"severity": "medium"})).await;
    stage.sentinel_shows(&id, json!({"severity": "Medium"})).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_printed_and_nothing_is_written() {
    let stage =
        Stage::set(Scene { defender_every: SELDOM, sentinel_every: SELDOM, ..Scene::default() }).await;
    let (id, _) = stage.linked_by_notification(fresh("Planned")).await;
    stage.in_step().await;
    let plan = |id: &str| {
        let output = stage.service.command(&["plan", "route-0", id]);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    assert!(plan(&id).contains("in step: nothing to write"), "{}", plan(&id));
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    let new = stage.raise(fresh("Not yet copied")).await;
    stage.emulator.forget_calls().await;
    let (changed, created, absent) = (plan(&id), plan(&new), plan("4711"));
    assert!(changed.contains("severity") && changed.contains("only this side changed it"), "{changed}");
    assert!(
        created.contains("create the twin in Sentinel") && created.contains("Not yet copied"),
        "{created}"
    );
    assert!(absent.contains("Defender has no such incident"), "{absent}");
    let calls = stage.calls().await;
    assert!(
        !calls.is_empty() && calls.iter().all(|call| call.method == "GET"),
        "a plan only reads: {calls:?}"
    );
    let wrong = stage.service.command(&["plan", "route-9", &id]);
    assert!(!wrong.status.success() && said(&wrong).contains("route-0"), "{}", said(&wrong));

    for id in [&id, &new] {
        stage.tell_graph(id).await;
    }
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_says_what_is_wrong_and_what_to_do() {
    let stage = Stage::set(Scene::default()).await;
    let output = stage.service.command(&["check", "--connect"]);
    let right = said(&output);
    assert!(output.status.success(), "{right}");
    for line in ["ok    store", "ok    tenant tenant-0, Defender", "ok    workspace workspace-0, Sentinel"] {
        assert!(right.contains(line), "{right}");
    }
    let checked = |name: &str, spoil: &dyn Fn(String) -> String, places: &[Place]| {
        let folder = stage.folder().join(name);
        std::fs::create_dir(&folder).expect("the test's own folder takes a folder");
        let store = format!("sqlite://{}", folder.join("lockstep.db").display());
        let service = Service::prepare(&folder, &Configuration::new(&stage.emulator.hello, places, &store));
        let text = std::fs::read_to_string(service.config()).expect("it was just written");
        let spoilt = spoil(text.clone());
        assert_ne!(spoilt, text, "{name} is spoilt");
        std::fs::write(service.config(), spoilt).expect("it is ours");
        let output = service.command(&["check", "--connect"]);
        assert!(!output.status.success(), "{name}: {}", said(&output));
        said(&output)
    };
    let line = |text: &str, start: &str| -> String {
        let found = text.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no line starts with {start:?}: {text}")).to_owned()
    };

    let wrong = checked("secret", &|text| text.replace("emulator-secret", "of-yesterday"), &stage.places);
    let found = line(&wrong, "FAIL  tenant tenant-0, Defender");
    assert!(found.contains("AADSTS7000215") || found.contains("client_secret"), "{found}");
    assert!(!wrong.contains("of-yesterday"), "secrets are not printed: {wrong}");
    line(&wrong, "FAIL  workspace workspace-0, Sentinel");

    let name = format!("workspace_name = \"{}\"", stage.places[0].workspace_name);
    let wrong = checked("name", &|text| text.replace(&name, "workspace_name = \"elsewhere\""), &stage.places);
    line(&wrong, "ok    tenant tenant-0, Defender");
    let found = line(&wrong, "FAIL  workspace workspace-0, Sentinel");
    assert!(found.contains("check subscription_id, resource_group and workspace_name"), "{found}");

    let nobody = format!("http://127.0.0.1:{}", crate::support::service::free_port());
    let wrong = checked("host", &|text| text.replace(&stage.emulator.hello.arm, &nobody), &stage.places);
    line(&wrong, "ok    tenant tenant-0, Defender");
    let found = line(&wrong, "FAIL  workspace workspace-0, Sentinel");
    assert!(found.contains("cannot be reached"), "{found}");
    stage.ends().await;
}
