//! What a route may ask for beyond its fields: life beside Microsoft's own connector, filters, labels and titles,
//! freezing, shadow, who wins, what becomes of vanished incidents, and comments where routes cross.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, SELDOM, Scene, Stage, fresh, side_by_side};
use crate::support::emulator::{Call, Place, State, names};
use crate::support::until;

/// What a command of the service prints, which must succeed.
pub(crate) fn told(stage: &Stage, arguments: &[&str]) -> String {
    let output = stage.service.command(arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Waits until the service's log holds a text.
pub(crate) async fn logged(stage: &Stage, text: &str) {
    until(&format!("the log says {text:?}"), PATIENCE, || async {
        let log = stage.service.log_tail();
        if log.contains(text) { Ok(()) } else { Err(log) }
    })
    .await;
}

/// The service's writes since the calls were last forgotten.
async fn writes(stage: &Stage) -> Vec<Call> {
    let mut calls = stage.calls().await;
    calls.retain(Call::is_write);
    calls
}

/// Switches Microsoft's own connector on for the first place.
async fn connect(stage: &Stage) {
    let order = json!({"workspace": stage.places[0].workspace()});
    stage.emulator.control(Method::POST, "/native", Some(order)).await;
}

/// Defender's engine edits an incident of the first place.
async fn engine(stage: &Stage, id: &str, edit: Value) {
    let path = format!("/incidents/{id}/engine?tenant={}", stage.places[0].tenant_id);
    stage.emulator.control(Method::POST, &path, Some(edit)).await;
}

/// All Sentinel incidents that stand for a Defender incident, whoever made them.
fn twins<'s>(state: &'s State, place: &Place, id: &str) -> Vec<&'s Value> {
    let all = state.sentinel(place).iter();
    all.filter(|twin| {
        let properties = &twin["properties"];
        let native = properties["providerName"] == "Microsoft XDR" && properties["providerIncidentId"] == id;
        native || names(twin, id)
    })
    .collect()
}

fn native_twin<'s>(state: &'s State, place: &Place, id: &str) -> Result<&'s Value, String> {
    match twins(state, place, id).as_slice() {
        [twin] if twin["properties"]["providerName"] == "Microsoft XDR" => Ok(twin),
        found => Err(format!("{} twins", found.len())),
    }
}

/// The names of a twin's labels.
pub(crate) fn labels(twin: &Value) -> Vec<&str> {
    let labels = twin["properties"]["labels"].as_array().into_iter().flatten();
    labels.filter_map(|label| label["labelName"].as_str()).collect()
}

/// The comments of a Sentinel incident.
fn heard<'s>(state: &'s State, place: &Place, name: &str) -> Vec<&'s str> {
    let workspaces = state.0["workspaces"].as_object().expect("the state is an object of owners");
    let wanted = place.workspace();
    let (_, workspace) =
        workspaces.iter().find(|(key, _)| key.eq_ignore_ascii_case(&wanted)).expect("the place is known");
    let comments = workspace["comments"].as_object().into_iter().flatten();
    let of_it = comments.filter(|(incident, _)| incident.eq_ignore_ascii_case(name));
    let all = of_it.flat_map(|(_, comments)| comments.as_array().into_iter().flatten());
    all.filter_map(|comment| comment["properties"]["message"].as_str()).collect()
}

/// The comments of a Defender incident.
fn said<'s>(state: &'s State, place: &Place, id: &str) -> Vec<&'s str> {
    let incident = state.incident(place, id).expect("it is there");
    incident["comments"].as_array().into_iter().flatten().filter_map(|one| one["comment"].as_str()).collect()
}

/// An incident with all that the connector drops: a determination, an alert, a comment older than the connector.
fn eventful(title: &str) -> Value {
    let mut incident = fresh(title);
    incident["classification"] = json!("truePositive");
    incident["determination"] = json!("malware");
    incident["alerts"] = json!([{"title": "Malware was found", "severity": "high"}]);
    incident["comments"] = json!([{
        "comment": "Seen on the gateway in January", "createdByDisplayName": "omar@contoso.com",
        "createdDateTime": "2026-01-05T08:00:00Z",
    }]);
    incident
}

/// A stage with Microsoft's connector at work before the service starts.
async fn beside_native(route: &str) -> (Stage, String) {
    let mut stage = Stage::prepare(Scene { route, ..Scene::default() }, |hello| hello.graph.clone()).await;
    connect(&stage).await;
    let id = stage.raise(eventful("There before")).await;
    stage.emulator.forget_calls().await;
    stage.service.resume().await;
    (stage, id)
}

/// Under `refuse` and `skip` nothing of ours comes to be, and it is said.
async fn nothing_beside_native(route: &str, word: &str) {
    let (mut stage, first) = beside_native(route).await;
    let second = stage.raise(eventful("There after")).await;
    logged(&stage, "Microsoft's own connector serves this tenant and workspace").await;
    stage.edit_defender(&first, json!({"severity": "high"})).await;
    stage
        .until("the connector carries the edit", |state| {
            let twin = native_twin(state, &stage.places[0], &first)?;
            if twin["properties"]["severity"] == "High" { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    // `quiet` begins to count anew, so this comes first.
    assert!(writes(&stage).await.is_empty(), "{:?}", writes(&stage).await);
    stage.quiet().await;
    let state = stage.emulator.state().await;
    for id in [&first, &second] {
        native_twin(&state, &stage.places[0], id).expect("the connector's twin is the only one");
    }
    let plan = told(&stage, &["plan", "route-0", &second]);
    assert!(plan.contains(word) && plan.contains("own connector"), "{plan}");
    let check = told(&stage, &["check", "--connect"]);
    assert!(check.contains(word) && check.contains("own connector"), "{check}");
    assert_eq!(check.contains("warn  route route-0: Microsoft's own connector"), word == "refuse", "{check}");
    // Every start says it again, although nothing is found out a second time.
    assert!(stage.service.terminate(Duration::from_secs(10)), "{}", stage.service.log_tail());
    stage.service.resume().await;
    logged(&stage, &format!("native_connector is `{word}`: nothing is created")).await;
    assert_eq!(stage.parked(), [], "nothing is parked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_the_native_connector_nothing_is_created_unless_asked_for() {
    side_by_side(vec![
        ("refuse is the default", Box::pin(nothing_beside_native("", "refuse"))),
        ("skip", Box::pin(nothing_beside_native("native_connector = \"skip\"", "skip"))),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_twin_is_adopted_and_given_what_the_connector_drops() {
    let (stage, first) = beside_native("native_connector = \"adopt\"").await;
    let second = stage.raise(eventful("There after")).await;
    let place = &stage.places[0];
    for id in [&first, &second] {
        stage
            .until("the twin has what the connector drops", |state| {
                let twin = native_twin(state, place, id)?;
                let comments = heard(state, place, twin["name"].as_str().unwrap_or_default());
                let once = |text: &str| comments.iter().filter(|said| said.contains(text)).count() == 1;
                let (old, alerts) = (once("Seen on the gateway in January"), once("Malware was found"));
                let label = labels(twin).contains(&"determination/malware");
                if old && alerts && label { Ok(()) } else { Err(format!("{:?} {comments:?}", labels(twin))) }
            })
            .await;
    }
    stage.quiet().await;

    // The connector goes on both ways, and what it carries is not written a second time.
    let state = stage.emulator.state().await;
    let name = native_twin(&state, place, &first).expect("it was seen above")["name"].clone();
    let name = name.as_str().expect("ARM names its incidents");
    stage.emulator.forget_calls().await;
    stage.edit_defender(&first, json!({"severity": "high", "displayName": "Renamed"})).await;
    stage.edit_sentinel(name, json!({"status": "Active"})).await;
    let path = format!("/incidents/{first}/comments?tenant={}", place.tenant_id);
    let words = json!({"comment": "A new one from Defender", "by": "omar@contoso.com"});
    stage.emulator.control(Method::POST, &path, Some(words)).await;
    stage.analysts[0].say_in_sentinel(name, "A new one from Sentinel").await;
    stage.quiet().await;
    let carried = |state: &State| -> Result<(), String> {
        let twin = native_twin(state, place, &first)?;
        let incident = state.incident(place, &first).ok_or("gone")?;
        let properties = &twin["properties"];
        let fields = [&properties["severity"], &properties["title"], &incident["status"]];
        if fields != [&json!("High"), &json!("Renamed"), &json!("inProgress")] {
            return Err(format!("{fields:?}"));
        }
        let (there, here) = (heard(state, place, name), said(state, place, &first));
        for text in ["A new one from Defender", "A new one from Sentinel"] {
            let times = |all: &[&str]| all.iter().filter(|one| one.contains(text)).count();
            if (times(&there), times(&here)) != (1, 1) {
                return Err(format!("{text}: {there:?} {here:?}"));
            }
        }
        Ok(())
    };
    carried(&stage.emulator.state().await).expect("what the connector carried");

    // What the connector has not carried yet is not for us to carry.
    stage.emulator.switch(json!({"nativeDelay": "held"})).await;
    stage.edit_defender(&first, json!({"severity": "low", "assignedTo": "omar@contoso.com"})).await;
    stage.quiet().await;
    let severity =
        |state: &State| native_twin(state, place, &first).map(|t| t["properties"]["severity"].clone());
    assert_eq!(severity(&stage.emulator.state().await), Ok(json!("High")), "it is the connector's to carry");
    stage.emulator.switch(json!({"nativeDelay": "none"})).await;
    stage.emulator.control(Method::POST, "/native/flush", None).await;
    assert_eq!(severity(&stage.emulator.state().await), Ok(json!("Low")), "the connector carries it");
    stage.edit_defender(&first, json!({"severity": "high"})).await;

    // The determination is ours to carry.
    stage.edit_defender(&first, json!({"classification": "truePositive", "determination": "phishing"})).await;
    stage
        .until("the label follows", |state| {
            let found = labels(native_twin(state, place, &first)?).join(", ");
            let now = found.contains("determination/phishing") && !found.contains("determination/malware");
            if now { Ok(()) } else { Err(found) }
        })
        .await;
    stage.quiet().await;
    let state = stage.emulator.state().await;
    carried(&state).expect("and it stays so");
    native_twin(&state, place, &second).expect("the connector's twin is the only one");
    assert_eq!(state.sentinel(place).len(), 2, "no double");
    assert_eq!(stage.parked(), [], "nothing is parked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_native_connector_switched_on_later_is_reported_and_not_fought() {
    let stage = Stage::set(Scene::default()).await;
    let (first, name) = stage.linked(fresh("Ours first")).await;
    let (_, _) = stage.linked(fresh("Ours as well")).await;
    stage.in_step().await;
    stage.emulator.forget_calls().await;
    connect(&stage).await;
    until("the doubles are counted", PATIENCE, || async {
        let (_, metrics) = stage.service.get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with("lockstep_native_doubles_total"));
        let line = line.unwrap_or("no such metric").to_owned();
        if line.ends_with(" 2") { Ok(()) } else { Err(line) }
    })
    .await;
    logged(&stage, "has made a twin beside ours").await;
    assert!(writes(&stage).await.is_empty(), "finding them out takes no write");

    // Three records of one incident: an edit on any of them reaches the others once.
    stage.edit_defender(&first, json!({"severity": "high"})).await;
    stage.sentinel_shows(&first, json!({"severity": "High"})).await;
    stage.quiet().await;
    stage.emulator.forget_calls().await;
    stage.edit_sentinel(&name, json!({"severity": "Low"})).await;
    stage.defender_shows(&first, json!({"severity": "low"})).await;
    stage
        .until("both twins say so", |state| {
            let found: Vec<&Value> =
                twins(state, &stage.places[0], &first).iter().map(|t| &t["properties"]["severity"]).collect();
            if found == ["Low", "Low"] { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    assert!(writes(&stage).await.len() <= 2, "{:?}", writes(&stage).await);
    stage.quiet().await;
    // Nothing new is created beside the connector's.
    let third = stage.raise(fresh("After the connector")).await;
    stage.quiet().await;
    native_twin(&stage.emulator.state().await, &stage.places[0], &third).expect("only the connector's");
    assert_eq!(stage.parked(), [], "nothing is parked");
}

/// An incident that matches, stops matching, and matches again.
async fn stops_matching(otherwise: &'static str) {
    let route = format!("[routes.filter]\nseverities = [\"high\"]\notherwise = \"{otherwise}\"\n");
    let stage = Stage::set(Scene { route: &route, ..Scene::default() }).await;
    let other = stage.raise(fresh("Not severe enough")).await;
    let mut severe = fresh("Severe");
    severe["severity"] = json!("high");
    let (id, name) = stage.linked(severe).await;
    stage.edit_defender(&id, json!({"severity": "medium"})).await;
    let closed = json!({
        "status": "Closed", "classification": "Undetermined",
        "classificationComment": "Left the route's filter: its severity is medium.",
    });
    match otherwise {
        "keep" => stage.sentinel_shows(&id, json!({"severity": "Medium", "status": "New"})).await,
        "close" => stage.sentinel_shows(&id, closed.clone()).await,
        _ => {}
    }
    stage.quiet().await;
    // What people do meanwhile crosses under `keep` alone.
    stage.edit_sentinel(&name, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    if otherwise == "keep" {
        stage.defender_shows(&id, json!({"assignedTo": "omar@contoso.com"})).await;
    }
    stage.quiet().await;
    let state = stage.emulator.state().await;
    let incident = state.incident(&stage.places[0], &id).expect("it is there");
    assert_eq!(incident["status"], "active", "closing its twin is nobody's verdict");
    if otherwise != "keep" {
        assert_eq!(incident["assignedTo"], json!(null));
    }
    if otherwise == "leave" {
        stage.sentinel_shows(&id, json!({"severity": "High", "status": "New"})).await;
    }
    if otherwise == "close" {
        stage.sentinel_shows(&id, closed).await;
    }
    assert!(twins(&state, &stage.places[0], &other).is_empty(), "it never matched");
    let plan = told(&stage, &["plan", "route-0", &other]);
    assert!(plan.contains("its severity is medium"), "{plan}");
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.sentinel_shows(&id, json!({"severity": "High", "status": "New"})).await;
    let lacking = format!("{other}: no twin");
    stage.ends_but(|found| found == lacking || found == "2 incidents, 1 twins").await;
    assert_eq!(stage.parked(), [], "nothing is parked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_that_stops_matching_is_kept_left_or_closed() {
    side_by_side(vec![
        ("keep", Box::pin(stops_matching("keep"))),
        ("leave", Box::pin(stops_matching("leave"))),
        ("close", Box::pin(stops_matching("close"))),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_matches_as_soon_as_an_alert_of_the_product_joins() {
    let route = "[routes.filter]\nproducts = [\"Microsoft Defender for Endpoint\"]\n";
    let stage = Stage::set(Scene { route, ..Scene::default() }).await;
    let mut identity = fresh("Of another product");
    identity["alerts"] =
        json!([{"title": "A ticket was forged", "serviceSource": "microsoftDefenderForIdentity"}]);
    let mut endpoint = fresh("Of the product");
    endpoint["alerts"] =
        json!([{"title": "A process was injected", "serviceSource": "microsoftDefenderForEndpoint"}]);
    let late = stage.raise(identity).await;
    stage.linked(endpoint).await;
    stage.quiet().await;
    assert!(twins(&stage.emulator.state().await, &stage.places[0], &late).is_empty(), "it does not match");
    let path = format!("/incidents/{late}/alerts?tenant={}", stage.places[0].tenant_id);
    let alert = json!({"title": "A process was injected", "serviceSource": "microsoftDefenderForEndpoint"});
    stage.emulator.control(Method::POST, &path, Some(alert)).await;
    stage.twin_of(&late).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routes_label_and_title_are_on_every_twin_and_never_in_defender() {
    let route = "labels = [\"tier1\"]\ntitle = \"[Contoso] {title}\"";
    let fields = "title = { direction = \"both\" }\n";
    let stage = Stage::set(Scene { route, fields, ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Framed")).await;
    let (other, _) = stage.linked(fresh("Framed too")).await;
    stage.sentinel_shows(&id, json!({"title": "[Contoso] Framed"})).await;
    stage.sentinel_shows(&other, json!({"title": "[Contoso] Framed too"})).await;

    stage.edit_sentinel(&name, json!({"title": "[Contoso] Renamed"})).await;
    stage.defender_shows(&id, json!({"displayName": "Renamed"})).await;
    stage.edit_defender(&id, json!({"displayName": "Renamed again"})).await;
    stage.sentinel_shows(&id, json!({"title": "[Contoso] Renamed again"})).await;
    // What does not follow the template says nothing about the incident's title.
    stage.edit_sentinel(&name, json!({"title": "Bare"})).await;
    stage.quiet().await;
    stage.defender_shows(&id, json!({"displayName": "Renamed again"})).await;

    let list = json!([{"labelName": "first"}, {"labelName": "TIER1"}, {"labelName": "second"}]);
    stage.edit_sentinel(&name, json!({"labels": list})).await;
    stage.defender_shows(&id, json!({"customTags": ["first", "second"]})).await;
    let tolerated = |found: &str| found.contains(": title ") || found.contains(": tags ");
    stage.ends_but(tolerated).await;
    assert_eq!(stage.parked(), [], "nothing is parked");
    let state = stage.emulator.state().await;
    for id in [&id, &other] {
        let twin = state.twin(&stage.places[0], id).expect("it was seen above");
        assert!(labels(twin).iter().any(|label| label.eq_ignore_ascii_case("tier1")), "{:?}", labels(twin));
        let tags = state.incident(&stage.places[0], id).expect("it is there")["customTags"].to_string();
        assert!(!tags.to_lowercase().contains("tier1"), "{tags}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_tags_are_labels_while_they_last_and_never_tags() {
    let route = "system_tags_label = \"defender/\"";
    let stage = Stage::set(Scene { route, ..Scene::default() }).await;
    let mut incident = fresh("Watched by experts");
    incident["systemTags"] = json!(["Defender Experts", "Attack Disruption"]);
    let (id, name) = stage.linked(incident).await;
    let shows = async |expected: [&'static str; 2]| {
        stage
            .until(&format!("the labels are {expected:?}"), |state| {
                let twin = state.twin(&stage.places[0], &id).ok_or("no twin")?;
                let mut found = labels(twin);
                found.retain(|label| label.starts_with("defender/"));
                found.sort_unstable();
                let expected: Vec<&str> = expected.into_iter().filter(|label| !label.is_empty()).collect();
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
    };
    shows(["defender/Attack Disruption", "defender/Defender Experts"]).await;
    engine(&stage, &id, json!({"systemTags": ["Defender Experts"]})).await;
    shows(["defender/Defender Experts", ""]).await;
    let list =
        json!([{"labelName": "first"}, {"labelName": "defender/Defender Experts"}, {"labelName": "second"}]);
    stage.edit_sentinel(&name, json!({"labels": list})).await;
    stage.defender_shows(&id, json!({"customTags": ["first", "second"]})).await;
    engine(&stage, &id, json!({"systemTags": []})).await;
    shows(["", ""]).await;
    stage.ends().await;
    stage.defender_shows(&id, json!({"customTags": ["first", "second"], "systemTags": []})).await;
}

/// One incident deleted in Sentinel and one in Defender, under a route's `vanished`.
async fn vanished(policy: &'static str) {
    let route = format!("vanished = \"{policy}\"");
    let stage = Stage::set(Scene { route: &route, ..Scene::default() }).await;
    let place = &stage.places[0];
    let (no_twin, deleted) = stage.linked(fresh("Deleted in Sentinel")).await;
    let (gone, orphan) = stage.linked(fresh("Deleted in Defender")).await;
    stage.in_step().await;
    stage.analysts[0].delete_sentinel(&deleted).await;
    let path = format!("/incidents/{gone}?tenant={}", place.tenant_id);
    stage.emulator.control(Method::DELETE, &path, None).await;
    stage.edit_defender(&no_twin, json!({"severity": "high"})).await;
    stage.edit_sentinel(&orphan, json!({"severity": "High"})).await;

    let expected: &[&str] = match policy {
        "park" => &["defender", "sentinel"],
        "recreate" => &["defender"],
        _ => &[],
    };
    until("each is dealt with", 3 * PATIENCE, || async {
        let parked = stage.parked();
        // A link that a Sentinel hint led to is listed by both its names.
        let sides: BTreeSet<&str> =
            parked.iter().filter_map(|(_, why)| why.split_once("Gone in ")?.1.split(':').next()).collect();
        if !sides.iter().eq(expected) {
            return Err(format!("{policy}: {parked:?}\n{}", stage.service.log_tail()));
        }
        for id in [&no_twin, &gone] {
            let explained = told(&stage, &["explain", "route-0", id]);
            if !explained.contains("Gone in") {
                return Err(format!("{policy}: {explained}\n{}", stage.service.log_tail()));
            }
        }
        Ok(())
    })
    .await;
    if policy == "recreate" {
        stage.sentinel_shows(&no_twin, json!({"severity": "High"})).await;
    }
    stage.quiet().await;
    // And no edit of what is left brings anything back.
    stage.edit_defender(&no_twin, json!({"severity": "low"})).await;
    stage.edit_sentinel(&orphan, json!({"severity": "Low"})).await;
    if policy == "recreate" {
        stage.sentinel_shows(&no_twin, json!({"severity": "Low"})).await;
    }
    stage.quiet().await;
    let state = stage.emulator.state().await;
    let found: Vec<&Value> = state.sentinel(place).iter().map(|twin| &twin["name"]).collect();
    assert!(found.contains(&&json!(orphan)) && !found.contains(&&json!(deleted)), "{policy}: {found:?}");
    assert_eq!(found.len(), if policy == "recreate" { 2 } else { 1 }, "{policy}: {found:?}");
    assert!(state.incident(place, &gone).is_none(), "{policy}: nothing is made in Defender");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a vanished incident is looked for over half a minute: scripts/test runs it"]
async fn what_vanished_is_parked_unlinked_or_made_again() {
    side_by_side(vec![
        ("park", Box::pin(vanished("park"))),
        ("unlink", Box::pin(vanished("unlink"))),
        ("recreate", Box::pin(vanished("recreate"))),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_closed_long_enough_is_frozen() {
    let stage = Stage::set(Scene { route: "freeze_after_close = \"1s\"", ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Closed for good")).await;
    let verdict = json!({
        "status": "resolved", "classification": "truePositive", "determination": "malware",
        "resolvingComment": "cleaned",
    });
    stage.edit_defender(&id, verdict).await;
    stage.sentinel_shows(&id, json!({"status": "Closed", "classification": "TruePositive"})).await;
    until("it is frozen", PATIENCE, || async {
        let plan = told(&stage, &["plan", "route-0", &id]);
        if plan.contains("frozen") { Ok(()) } else { Err(plan) }
    })
    .await;
    stage.quiet().await;
    stage.edit_defender(&id, json!({"severity": "high", "status": "active"})).await;
    stage.quiet().await;
    stage.edit_sentinel(&name, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    stage.quiet().await;
    stage.sentinel_shows(&id, json!({"severity": "Medium", "status": "Closed"})).await;
    stage.defender_shows(&id, json!({"severity": "high", "status": "active", "assignedTo": null})).await;
    assert_eq!(stage.parked(), [], "nothing is parked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_shadow_nothing_is_written_and_everything_is_told() {
    let scene = Scene { route: "shadow = true", ..Scene::default() };
    let mut stage = Stage::prepare(scene, |hello| hello.graph.clone()).await;
    stage.emulator.forget_calls().await;
    stage.service.resume().await;
    let id = stage.raise(eventful("Only in thought")).await;
    let explained = async |what: &'static str| {
        until(&format!("explain tells of {what}"), PATIENCE, || async {
            let told = told(&stage, &["explain", "route-0", &id]);
            if told.contains("shadow") && told.contains(what) { Ok(()) } else { Err(told) }
        })
        .await;
    };
    explained("Only in thought").await;
    stage.edit_defender(&id, json!({"displayName": "Thought over"})).await;
    explained("Thought over").await;
    assert!(writes(&stage).await.is_empty(), "{:?}", writes(&stage).await);
    stage.quiet().await;
    let state = stage.emulator.state().await;
    assert!(state.sentinel(&stage.places[0]).is_empty(), "no twin");
    let lines = told(&stage, &["explain", "route-0", &id]);
    assert_eq!(lines.matches("in shadow, this would be written").count(), 2, "each is told once: {lines}");
    assert_eq!(stage.parked(), [], "nothing is parked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_wins_over_a_program() {
    let fields = "severity = { wins = \"human\" }\n";
    let scene = Scene { defender_every: SELDOM, sentinel_every: SELDOM, fields, ..Scene::default() };
    let stage = Stage::set(scene).await;
    let (id, name) = stage.linked_by_notification(fresh("Disputed")).await;
    stage.in_step().await;
    let program = stage.emulator.program(&stage.places[0], "9d3e0f6a-0000-4000-8000-000000000003").await;

    program.edit_defender(&id, json!({"severity": "high"})).await;
    stage.edit_sentinel(&name, json!({"severity": "Low"})).await;
    stage.tell_graph(&id).await;
    stage.defender_shows(&id, json!({"severity": "low"})).await;
    stage.in_step().await;

    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.edit_sentinel(&name, json!({"severity": "Informational"})).await;
    stage.tell_graph(&id).await;
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;
    stage.defender_shows(&id, json!({"severity": "high"})).await;
    stage.ends().await;
    let explained = told(&stage, &["explain", "route-0", &id]);
    assert_eq!(explained.matches("clash: severity").count(), 2, "{explained}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_comment_is_once_at_every_end_of_crossing_routes() {
    let more = "[[routes]]\nname = \"crossed\"\ntenant = \"tenant-1\"\nworkspace = \"workspace-0\"\n";
    let stage = Stage::set(Scene { places: 2, more, ..Scene::default() }).await;
    let (zero, one) = (stage.places[0].clone(), stage.places[1].clone());
    for (number, place) in stage.places.iter().enumerate() {
        let mut incident = fresh(&format!("Of tenant {number}"));
        incident["id"] = json!("7");
        stage.emulator.raise(place, incident).await;
    }
    let twin = |state: &State, workspace: &Place, tenant: usize| -> Result<String, String> {
        let title = format!("Of tenant {tenant}");
        let found =
            state.sentinel(workspace).iter().find(|twin| twin["properties"]["title"] == title.as_str());
        let name = found.and_then(|twin| twin["name"].as_str()).ok_or("no twin")?;
        Ok(name.to_owned())
    };
    // The twin of tenant 0; both twins of tenant 1.
    let (names, _) = stage
        .until("all three twins are there", |state| {
            Ok((twin(state, &zero, 0)?, twin(state, &zero, 1)?, twin(state, &one, 1)?))
        })
        .await;
    for (place, text) in [(&zero, "Defender of tenant 0"), (&one, "Defender of tenant 1")] {
        let path = format!("/incidents/7/comments?tenant={}", place.tenant_id);
        let words = json!({"comment": text, "by": "omar@contoso.com"});
        stage.emulator.control(Method::POST, &path, Some(words)).await;
    }
    stage.analysts[0].say_in_sentinel(&names.0, "Sentinel to tenant 0").await;
    stage.analysts[0].say_in_sentinel(&names.1, "Shared Sentinel to tenant 1").await;
    stage.analysts[1].say_in_sentinel(&names.2, "Own Sentinel to tenant 1").await;
    let everywhere = |state: &State| -> Result<(), String> {
        let ends = [
            (0, said(state, &zero, "7")),
            (1, said(state, &one, "7")),
            (0, heard(state, &zero, &names.0)),
            (1, heard(state, &zero, &names.1)),
            (1, heard(state, &one, &names.2)),
        ];
        let texts = [
            (0, "Defender of tenant 0"),
            (1, "Defender of tenant 1"),
            (0, "Sentinel to tenant 0"),
            (1, "Shared Sentinel to tenant 1"),
            (1, "Own Sentinel to tenant 1"),
        ];
        for (of, comments) in &ends {
            for (tenant, text) in texts {
                let times = comments.iter().filter(|comment| comment.contains(text)).count();
                if times != usize::from(*of == tenant) {
                    return Err(format!("{text:?} is {times} times among {comments:?}"));
                }
            }
        }
        Ok(())
    };
    stage.until("each comment is where it belongs, once", everywhere).await;
    stage.quiet().await;
    everywhere(&stage.emulator.state().await).expect("and it stays so");
    assert_eq!(stage.parked(), [], "nothing is parked");
}
