//! Several routes between one tenant and one workspace.

use serde_json::{Value, json};

use crate::policies::{labels, logged, told};
use crate::stage::{Scene, Stage, fresh};

const REST: &str =
    "[[routes]]\nname = \"rest\"\ntenant = \"tenant-0\"\nworkspace = \"workspace-0\"\nlabels = [\"tier2\"]\n";

fn severe(title: &str) -> Value {
    let mut incident = fresh(title);
    incident["severity"] = json!("high");
    incident
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_route_that_matches_an_incident_has_it_and_keeps_it() {
    let route = "labels = [\"tier1\"]\n[routes.filter]\nseverities = [\"high\"]\n";
    let stage = Stage::set(Scene { route, more: REST, ..Scene::default() }).await;
    logged(&stage, "routes route-0 and rest join the same tenant and workspace").await;
    let check = told(&stage, &["check"]);
    assert!(
        check.contains("routes route-0 and rest join the same tenant") && !check.contains("warn"),
        "{check}"
    );
    let (high, _) = stage.linked(severe("For tier 1")).await;
    let (low, twin) = stage.linked(fresh("For tier 2")).await;
    let of_our_own = |labels: Vec<&str>| -> Vec<String> {
        labels.into_iter().filter(|label| label.starts_with("tier")).map(str::to_owned).collect()
    };
    let labelled = async |stage: &Stage| {
        let state = stage.emulator.state().await;
        let found = |id: &str| of_our_own(labels(state.twin(&stage.places[0], id).expect("it has a twin")));
        (found(&high), found(&low))
    };
    let wanted = (vec!["tier1".to_owned()], vec!["tier2".to_owned()]);
    assert_eq!(labelled(&stage).await, wanted);

    // Both turn into what the other route is for.
    stage.edit_defender(&high, json!({"severity": "low"})).await;
    stage.sentinel_shows(&high, json!({"severity": "Low"})).await;
    stage.edit_defender(&low, json!({"severity": "high"})).await;
    stage.sentinel_shows(&low, json!({"severity": "High"})).await;
    stage.edit_sentinel(&twin, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    stage.defender_shows(&low, json!({"assignedTo": "omar@contoso.com"})).await;
    let tolerated = |difference: &str| difference.contains(": tags ");
    stage.ends_but(tolerated).await;
    assert_eq!(labelled(&stage).await, wanted);
    assert_eq!(stage.emulator.state().await.sentinel(&stage.places[0]).len(), 2, "no double");
    assert_eq!(stage.parked(), [], "nothing is parked");

    for (owner, other, id) in [("route-0", "rest", &high), ("rest", "route-0", &low)] {
        let why = format!("route {owner} between the same tenant and workspace made its twin");
        for command in ["explain", "plan"] {
            assert!(told(&stage, &[command, other, id]).contains(&why), "{command}");
            assert!(!told(&stage, &[command, owner, id]).contains(&why), "{command}");
        }
        let story = told(&stage, &["explain", owner, id]);
        let line = format!("matches {other} too, and stays with {owner}");
        assert_eq!(story.matches(&line).count(), 1, "{story}");
        let drift = told(&stage, &["drift", owner]);
        assert!(drift.contains("1 link"), "{drift}");
    }
    let (_, metrics) = stage.service.get("/metrics").await;
    for name in ["rest", "route-0"] {
        let line = format!("lockstep_overlaps_total{{route=\"{name}\"}} 1");
        assert!(metrics.contains(&line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_can_never_match_is_named_with_its_cure() {
    let stage = Stage::set(Scene { route: "labels = [\"tier1\"]\n", more: REST, ..Scene::default() }).await;
    let warning = "route rest can never match: route route-0 before it";
    let check = told(&stage, &["check"]);
    assert!(check.contains(&format!("warn  {warning}")) && check.contains("put rest first"), "{check}");
    logged(&stage, warning).await;
    let (id, _) = stage.linked(fresh("Everything is the first one's")).await;
    stage.ends_but(|difference| difference.contains(": tags ")).await;
    let state = stage.emulator.state().await;
    let twin = state.twin(&stage.places[0], &id).expect("it was seen");
    assert!(labels(twin).contains(&"tier1") && !labels(twin).contains(&"tier2"), "{:?}", labels(twin));
}
