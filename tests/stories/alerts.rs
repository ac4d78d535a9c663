//! Alerts: those that change or move by themselves, those that are made to follow their incident, and bookmarks.

use reqwest::Method;
use serde_json::{Value, json};

use crate::stage::{Scene, Stage, fresh, side_by_side};
use crate::support::emulator::State;
use crate::support::until;

/// Where alerts move no incident's time, and are polled so that a story need not wait.
const SILENT: &str = "alerts_every = \"300ms\"\n";

/// An incident with alerts of these ids and severities.
fn with_alerts(title: &str, alerts: &[(&str, &str)]) -> Value {
    let mut incident = fresh(title);
    let alerts = alerts.iter().map(|(id, severity)| {
        json!({
            "id": id, "title": format!("Alert {id}"), "severity": severity,
            "evidence": [{"@odata.type": "#microsoft.graph.security.ipEvidence", "ipAddress": "203.0.113.9"}],
        })
    });
    incident["alerts"] = alerts.collect();
    incident
}

/// The digest of the alerts in a twin's comments, and what does not hold of it.
fn digest(state: &State, stage: &Stage, name: &str, expected: &[&str]) -> Result<(), String> {
    let comments = state.comments(&stage.places[0], name).iter();
    let texts: Vec<&str> = comments.filter_map(|comment| comment["properties"]["message"].as_str()).collect();
    let found = texts.iter().find(|text| text.contains("Alerts of the Defender incident"));
    let text = found.ok_or_else(|| format!("no digest in {texts:?}"))?;
    let lacks: Vec<&&str> = expected.iter().filter(|part| !text.contains(**part)).collect();
    if lacks.is_empty() { Ok(()) } else { Err(format!("{lacks:?} is not in {text}")) }
}

async fn digest_shows(stage: &Stage, name: &str, expected: &[&str]) {
    let what = format!("the digest of {name} shows {expected:?}");
    stage.until(&what, |state| digest(state, stage, name, expected)).await;
}

/// What `lockstep explain` says of an incident of the first route.
fn explained(stage: &Stage, id: &str) -> String {
    let output = stage.service.command(&["explain", "route-0", id]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A person changes an alert in Defender's portal.
async fn edit_alert(stage: &Stage, id: &str, patch: Value) {
    let path = format!("/security/alerts_v2/{id}");
    stage.analysts[0].graph(Method::PATCH, &path, patch).await.expect("Graph takes it");
}

/// Waits until every one of these alerts shows these members.
async fn alerts_show(stage: &Stage, ids: &[String], expected: Value) {
    stage
        .until(&format!("{} alerts show {expected}", ids.len()), |state| {
            let mut wrong = Vec::new();
            for id in ids {
                let alert = state.alert(&stage.places[0], id).ok_or("no such alert")?;
                let members = expected.as_object().expect("an object");
                if members.iter().any(|(name, value)| alert[name] != *value) {
                    wrong.push(format!("{id}: {} {}", alert["status"], alert["classification"]));
                }
            }
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(format!("{} do not: {}", wrong.len(), wrong.join(", ")))
            }
        })
        .await;
}

/// How many PATCHes of alerts the service sent.
async fn told(stage: &Stage) -> usize {
    let calls = stage.calls().await;
    calls.iter().filter(|call| call.method == "PATCH" && call.path.contains("/alerts_v2/")).count()
}

// ---- alerts that change by themselves ----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_changes_by_itself_is_seen_and_at_rest_costs_its_list_alone() {
    let switches = json!({"alertsTouch": "off"});
    let stage = Stage::set(Scene { switches, poll: SILENT, ..Scene::default() }).await;
    let (id, name) = stage.linked(with_alerts("Silent", &[("da-1", "high")])).await;
    digest_shows(&stage, &name, &["1 (1 high)", "status new"]).await;
    stage.ends().await;
    let time = async || {
        let state = stage.emulator.state().await;
        state.incident(&stage.places[0], &id).expect("it is there")["lastUpdateDateTime"].clone()
    };
    let before = time().await;
    edit_alert(&stage, "da-1", json!({"status": "resolved"})).await;
    digest_shows(&stage, &name, &["1 (1 high)", "status resolved"]).await;
    let second = json!({"id": "da-2", "title": "Joined in silence", "severity": "low"});
    stage.emulator.alert(&stage.places[0], &id, second).await;
    digest_shows(&stage, &name, &["2 (1 high, 1 low)", "Joined in silence"]).await;
    assert_eq!(time().await, before, "the incident's time tells of nothing");
    stage.ends().await;

    stage.emulator.forget_calls().await;
    until("the alerts are polled a few times", crate::stage::PATIENCE, || async {
        let polls = stage.calls().await.iter().filter(|call| call.is_alert_list()).count();
        if polls >= 5 { Ok(()) } else { Err(format!("{polls} polls")) }
    })
    .await;
    let calls = stage.calls().await;
    let others: Vec<_> = calls.iter().filter(|call| !call.is_list()).collect();
    assert!(others.is_empty(), "what was seen is known: {others:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_asks_for_alerts_that_no_route_shows() {
    let scene = Scene { route: "alerts = \"off\"\n", poll: SILENT, ..Scene::default() };
    let stage = Stage::set(scene).await;
    stage.linked(with_alerts("Unseen", &[("da-1", "high")])).await;
    stage.ends().await;
    let asked = stage.emulator.calls().await.iter().filter(|call| call.path.contains("alerts_v2")).count();
    assert_eq!(asked, 0);
}

/// An alert leaves one incident for another; `touch` says whether their times move with it.
async fn moves(touch: &'static str) {
    let switches = json!({"alertsTouch": touch});
    let stage = Stage::set(Scene { switches, poll: SILENT, ..Scene::default() }).await;
    let place = &stage.places[0];
    let (_, from) = stage.linked(with_alerts("From", &[("da-1", "high"), ("da-2", "low")])).await;
    let (to, heir) = stage.linked(with_alerts("To", &[("da-3", "medium")])).await;
    digest_shows(&stage, &from, &["2 (1 high, 1 low)", "Alert da-1"]).await;
    digest_shows(&stage, &heir, &["1 (1 medium)"]).await;
    stage.ends().await;
    // Where nothing but the list of alerts tells of it, it must have been there once.
    until("the alerts were polled", crate::stage::PATIENCE, || async {
        let polls = stage.calls().await.iter().filter(|call| call.is_alert_list()).count();
        if polls > 1 { Ok(()) } else { Err(format!("{polls} polls")) }
    })
    .await;
    stage.emulator.move_alert(place, "da-1", &to).await;
    digest_shows(&stage, &heir, &["2 (1 high, 1 medium)", "Alert da-1"]).await;
    digest_shows(&stage, &from, &["1 (1 low)"]).await;
    stage.emulator.move_alert(place, "da-2", &to).await;
    digest_shows(&stage, &from, &["none any more"]).await;
    digest_shows(&stage, &heir, &["3 (1 high, 1 medium, 1 low)"]).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let twin = state.twin(place, &to).expect("it is there");
    let description = twin["properties"]["description"].as_str().unwrap_or_default();
    let counted = "Alerts: 3 (1 high, 1 medium, 1 low)";
    assert!(description.lines().any(|line| line == counted), "{description}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_moves_leaves_one_digest_for_the_other() {
    side_by_side(vec![("times move", Box::pin(moves("on"))), ("times do not move", Box::pin(moves("off")))])
        .await;
}

/// Only the loser's time moves, and alerts are not polled: the winner is read again because of the un-merge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmerge_reads_both_incidents_again() {
    let switches = json!({"alertsTouch": "off"});
    let stage = Stage::set(Scene { switches, poll: "alerts_every = \"0s\"\n", ..Scene::default() }).await;
    let place = &stage.places[0];
    let (winner, heir) = stage.linked(with_alerts("Winner", &[("da-w", "high")])).await;
    let (loser, twin) = stage.linked(with_alerts("Loser", &[("da-l", "low")])).await;
    digest_shows(&stage, &heir, &["1 (1 high)"]).await;
    digest_shows(&stage, &twin, &["1 (1 low)"]).await;
    stage.ends().await;
    stage.emulator.merge(place, &loser, &winner).await;
    stage.sentinel_shows(&loser, json!({"status": "Closed"})).await;
    digest_shows(&stage, &heir, &["2 (1 high, 1 low)", "Alert da-l"]).await;
    stage.ends().await;

    stage.emulator.move_alert(place, "da-l", &loser).await;
    stage.emulator.unmerge(place, &loser).await;
    stage.sentinel_shows(&loser, json!({"status": "New"})).await;
    digest_shows(&stage, &heir, &["1 (1 high)"]).await;
    digest_shows(&stage, &twin, &["1 (1 low)", "Alert da-l"]).await;
    stage.ends().await;
    let asked = stage.emulator.calls().await.iter().filter(|call| call.is_alert_list()).count();
    assert_eq!(asked, 0, "alerts_every = \"0s\" asks for no list");
}

/// Comments have no list of their own. Where they move no time either, the sweep finds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_that_moves_no_time_is_found_by_the_sweep() {
    let switches = json!({"commentsTouch": "off"});
    let stage = Stage::set(Scene { switches, poll: "sweep_every = \"2s\"\n", ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Talked about in silence")).await;
    stage.ends().await;
    stage.emulator.say(&stage.places[0], &id, "Omar Salah", "Nobody was told of this.").await;
    stage
        .until("Sentinel has the comment", |state| {
            let comments = state.comments(&stage.places[0], &name);
            let texts: Vec<String> =
                comments.iter().map(|one| one["properties"]["message"].to_string()).collect();
            let found = texts.iter().filter(|text| text.contains("Nobody was told of this.")).count();
            if found == 1 { Ok(()) } else { Err(format!("{texts:?}")) }
        })
        .await;
    stage.ends().await;
}

// ---- alerts that follow their incident -----------------------------------------------------------------------------

fn closed(classification: &str, reason: &str) -> Value {
    json!({
        "status": "Closed", "classification": classification, "classificationReason": reason,
        "classificationComment": "seen to",
    })
}

fn reopened() -> Value {
    json!({
        "status": "Active", "classification": null, "classificationReason": null, "classificationComment": null,
    })
}

fn many(count: usize) -> (Value, Vec<String>) {
    let ids: Vec<String> = (0..count).map(|number| format!("da-{number:02}")).collect();
    let alerts: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "medium")).collect();
    let mut incident = with_alerts("With many alerts", &alerts);
    incident["assignedTo"] = json!("omar@contoso.com");
    (incident, ids)
}

/// More than a run tells: the others follow by themselves, each told once; and a person's word is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_five_alerts_follow_when_the_incident_is_resolved() {
    let stage =
        Stage::set(Scene { route: "alert_updates = \"on-resolve\"\n", poll: SILENT, ..Scene::default() })
            .await;
    let (incident, ids) = many(45);
    let (id, name) = stage.linked(incident).await;
    stage.edit_sentinel(&name, json!({"status": "Active", "severity": "High"})).await;
    stage.defender_shows(&id, json!({"status": "inProgress", "severity": "high"})).await;
    stage.ends().await;
    alerts_show(&stage, &ids, json!({"status": "new", "assignedTo": null})).await;

    stage.emulator.forget_calls().await;
    stage.edit_sentinel(&name, closed("TruePositive", "SuspiciousActivity")).await;
    let resolved = json!({
        "status": "resolved", "classification": "truePositive", "assignedTo": "omar@contoso.com",
    });
    alerts_show(&stage, &ids, resolved.clone()).await;
    assert_eq!(told(&stage).await, 45, "each is told once");
    stage.ends().await;
    digest_shows(&stage, &name, &["45 (45 medium)", "status resolved"]).await;

    // Opening the incident again is no matter of the alerts' here, and what a person opens stays open.
    stage.edit_sentinel(&name, reopened()).await;
    stage.defender_shows(&id, json!({"status": "inProgress"})).await;
    edit_alert(&stage, "da-07", json!({"status": "inProgress"})).await;
    stage.ends().await;
    alerts_show(&stage, &["da-07".to_owned()], json!({"status": "inProgress"})).await;
    let others: Vec<String> = ids.iter().filter(|id| *id != "da-07").cloned().collect();
    alerts_show(&stage, &others, resolved.clone()).await;
    // Until it is closed again.
    stage.edit_sentinel(&name, closed("TruePositive", "SuspiciousActivity")).await;
    alerts_show(&stage, &ids, resolved).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_refuses_for_good_is_put_aside_and_the_others_go_on() {
    let stage =
        Stage::set(Scene { route: "alert_updates = \"on-resolve\"\n", poll: SILENT, ..Scene::default() })
            .await;
    let (incident, ids) = many(24);
    let (id, name) = stage.linked(incident).await;
    stage.ends().await;
    let refusal = json!({
        "service": "graph", "method": "PATCH", "pathContains": "/alerts_v2/da-03", "bodyContains": "\"status\"",
        "kind": "status", "status": 400, "times": 1_000,
    });
    stage.emulator.fault(refusal).await;
    stage.emulator.forget_calls().await;
    stage.edit_sentinel(&name, closed("TruePositive", "SuspiciousActivity")).await;
    let (stubborn, others): (Vec<String>, Vec<String>) = ids.iter().cloned().partition(|id| id == "da-03");
    alerts_show(&stage, &others, json!({"status": "resolved", "classification": "truePositive"})).await;
    // What it does take, it is given.
    alerts_show(
        &stage,
        &stubborn,
        json!({"status": "new", "classification": "truePositive", "assignedTo": "omar@contoso.com"}),
    )
    .await;
    stage.in_step().await;
    stage.quiet().await;
    let first = explained(&stage, &id);
    assert!(first.contains("put aside: status of alert da-03"), "{first}");
    assert!(first.contains("not written: alert da-03 does not follow in status"), "{first}");

    // The same value is not tried again, another one is.
    stage.edit_sentinel(&name, reopened()).await;
    stage.defender_shows(&id, json!({"status": "inProgress"})).await;
    stage.quiet().await;
    stage.emulator.forget_calls().await;
    stage.edit_sentinel(&name, closed("FalsePositive", "InaccurateData")).await;
    alerts_show(&stage, &others, json!({"classification": "falsePositive"})).await;
    alerts_show(&stage, &stubborn, json!({"status": "new", "classification": "falsePositive"})).await;
    stage.in_step().await;
    let calls = stage.calls().await;
    let struck: Vec<_> = calls.iter().filter(|call| call.fault.is_some()).collect();
    assert!(struck.is_empty(), "what was refused is not sent again: {struck:?}");
    stage.emulator.heal().await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_follow_always_where_the_route_says_so() {
    let stage =
        Stage::set(Scene { route: "alert_updates = \"always\"\n", poll: SILENT, ..Scene::default() }).await;
    let (incident, ids) = many(3);
    let (id, name) = stage.linked(incident).await;
    stage.ends().await;
    let nobody = json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null});
    let mut wendy = nobody.clone();
    wendy["userPrincipalName"] = json!("wendy@contoso.com");
    stage.edit_sentinel(&name, json!({"owner": wendy, "status": "Active"})).await;
    alerts_show(&stage, &ids, json!({"assignedTo": "wendy@contoso.com", "status": "inProgress"})).await;
    stage.ends().await;
    stage.edit_sentinel(&name, json!({"owner": nobody})).await;
    alerts_show(&stage, &ids, json!({"assignedTo": null, "status": "inProgress"})).await;
    stage.ends().await;
    stage.edit_sentinel(&name, closed("BenignPositive", "SuspiciousButExpected")).await;
    let verdict = json!({"status": "resolved", "classification": "informationalExpectedActivity"});
    alerts_show(&stage, &ids, verdict).await;
    stage.ends().await;
    stage.edit_sentinel(&name, reopened()).await;
    stage.defender_shows(&id, json!({"status": "inProgress"})).await;
    alerts_show(&stage, &ids, json!({"status": "inProgress"})).await;
    stage.ends().await;
}

/// The role for alerts is one of its own: without it the incident is kept in step all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_role_for_alerts_incidents_go_on() {
    let stage =
        Stage::set(Scene { route: "alert_updates = \"on-resolve\"\n", poll: SILENT, ..Scene::default() })
            .await;
    let fault = json!({
        "service": "graph", "pathContains": "/alerts_v2", "kind": "status", "status": 403, "times": 1_000,
    });
    stage.emulator.fault(fault).await;
    let (incident, ids) = many(2);
    let (id, name) = stage.linked(incident).await;
    stage.edit_sentinel(&name, closed("TruePositive", "SuspiciousActivity")).await;
    stage.defender_shows(&id, json!({"status": "resolved", "classification": "truePositive"})).await;
    stage.in_step().await;
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;
    until("it is said", crate::stage::PATIENCE, || async {
        let told = explained(&stage, &id);
        if told.contains("alerts do not follow for now") { Ok(()) } else { Err(told) }
    })
    .await;
    let (_, ready) = stage.service.get("/readyz").await;
    assert!(ready.contains("SecurityAlert.Read.All") && ready.contains("\"gate\":\"open\""), "{ready}");
    alerts_show(&stage, &ids, json!({"status": "new"})).await;
    assert_eq!(stage.parked(), [], "nothing is parked");
}

// ---- bookmarks -----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_twenty_most_severe_alerts_are_bookmarks_with_entities() {
    let stage =
        Stage::set(Scene { route: "alerts = \"bookmarks\"\n", poll: SILENT, ..Scene::default() }).await;
    let place = &stage.places[0];
    let named: Vec<(String, &str)> = (0..18)
        .map(|number| (format!("da-{number:02}"), if number % 3 == 0 { "informational" } else { "low" }))
        .chain((18..23).map(|number| (format!("da-{number:02}"), "high")))
        .collect();
    let list: Vec<(&str, &str)> = named.iter().map(|(id, severity)| (id.as_str(), *severity)).collect();
    let (id, name) = stage.linked(with_alerts("Bookmarked", &list)).await;
    let (other, heir) = stage.linked(with_alerts("Another", &[])).await;
    let titles = |state: &State, name: &str| {
        let bookmarks = state.bookmarks(place, name);
        let title = |one: &&Value| one["properties"]["displayName"].as_str().unwrap_or_default().to_owned();
        let mut titles: Vec<String> = bookmarks.iter().map(title).collect();
        titles.sort();
        titles
    };
    stage
        .until("there are twenty bookmarks", |state| {
            let found = titles(state, &name);
            if found.len() == 20 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    digest_shows(&stage, &name, &["23 (5 high, 12 low, 6 informational)"]).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let found = titles(&state, &name);
    for (alert, severity) in &named {
        let there = found.contains(&format!("Alert {alert}"));
        assert!(there || *severity == "informational", "{alert} is {severity}: {found:?}");
    }
    for bookmark in state.bookmarks(place, &name) {
        let mappings = &bookmark["properties"]["entityMappings"];
        assert_eq!(mappings[0]["entityType"], "IP", "{bookmark}");
        assert!(mappings.to_string().contains("203.0.113.9"), "{mappings}");
    }

    // One that joins when there is no room is in the digest alone.
    let late = json!({"id": "da-late", "title": "Too late", "severity": "high"});
    stage.emulator.alert(place, &id, late).await;
    digest_shows(&stage, &name, &["24 (6 high, 12 low, 6 informational)", "Too late"]).await;
    stage.ends().await;
    assert_eq!(titles(&stage.emulator.state().await, &name), found);

    // One that leaves: its bookmark says so and gives up its entities, and the other incident has one of its own.
    stage.emulator.move_alert(place, "da-20", &other).await;
    stage
        .until("the bookmark says where its alert went", |state| {
            let (here, there) = (titles(state, &name), titles(state, &heir));
            let gone = here.iter().any(|title| title == "No longer in this incident: Alert da-20");
            if gone && here.len() == 20 && there == ["Alert da-20"] {
                Ok(())
            } else {
                Err(format!("{here:?} {there:?}"))
            }
        })
        .await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let bookmarks = state.bookmarks(place, &name);
    let title = |one: &&&Value| one["properties"]["displayName"].as_str().unwrap_or_default().to_owned();
    let left = bookmarks.iter().find(|one| title(one).starts_with("No longer"));
    let mappings = &left.expect("it was seen above")["properties"]["entityMappings"];
    assert!(mappings.as_array().is_none_or(Vec::is_empty), "{mappings}");
    // It comes back.
    stage.emulator.move_alert(place, "da-20", &id).await;
    stage
        .until("the bookmark is what it was", |state| {
            let (here, there) = (titles(state, &name), titles(state, &heir));
            if here == found && there == ["No longer in this incident: Alert da-20"] {
                Ok(())
            } else {
                Err(format!("{here:?} {there:?}"))
            }
        })
        .await;
    stage.ends().await;
}

/// A workspace that takes no bookmarks: the digest is there, and it is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_bookmark_is_put_aside_and_the_digest_stands() {
    let stage = Stage::set(Scene { route: "alerts = \"bookmarks\"\n", ..Scene::default() }).await;
    let fault = json!({
        "service": "arm", "method": "PUT", "pathContains": "/bookmarks/", "kind": "status", "status": 400,
        "times": 1_000,
    });
    stage.emulator.fault(fault).await;
    let (id, name) = stage.linked(with_alerts("Unmarked", &[("da-1", "high")])).await;
    digest_shows(&stage, &name, &["1 (1 high)"]).await;
    stage.in_step().await;
    stage.quiet().await;
    let told = explained(&stage, &id);
    assert!(told.contains("put aside: the bookmark of alert da-1"), "{told}");
    stage.emulator.heal().await;
    stage.ends().await;
}

// ---- values that a side will not take ------------------------------------------------------------------------------

/// The value of a field is refused as long as it is what it is: explained, and no other field waits for it.
async fn refused(service: &'static str, word: &'static str, field: &'static str) {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Half refused")).await;
    stage.ends().await;
    let method = if service == "graph" { "PATCH" } else { "PUT" };
    let fault = json!({
        "service": service, "method": method, "pathContains": "/incidents/", "bodyContains": word,
        "kind": "status", "status": 400, "times": 1_000,
    });
    let long = "a label that is longer than any limit that anybody has published";
    let labels = json!([{"labelName": "first"}, {"labelName": long}]);
    match service {
        "graph" => {
            let mut edit = closed("TruePositive", "SuspiciousActivity");
            edit["severity"] = json!("High");
            edit["labels"] = labels;
            // The analyst is in Sentinel, so the fault strikes the service alone.
            stage.emulator.fault(fault).await;
            stage.edit_sentinel(&name, edit).await;
            let mut expected =
                json!({"status": "resolved", "severity": "high", "resolvingComment": "seen to"});
            match field {
                "verdict" => expected["customTags"] = json!(["first", long]),
                _ => expected["classification"] = json!("truePositive"),
            }
            stage.defender_shows(&id, expected).await;
        }
        _ => {
            let edit = json!({
                "status": "resolved", "classification": "truePositive", "determination": "malware",
                "severity": "high", "customTags": ["first", long], "resolvingComment": "seen to",
            });
            stage.emulator.fault(fault).await;
            stage.edit_defender(&id, edit).await;
            let mut expected = json!({"severity": "High"});
            if field == "tags" {
                expected["status"] = json!("Closed");
                expected["classification"] = json!("TruePositive");
            }
            stage.sentinel_shows(&id, expected).await;
        }
    }
    stage.quiet().await;
    let told = explained(&stage, &id);
    assert!(told.contains(&format!("put aside: {field}")), "{told}");
    assert!(told.contains(&format!("not written: {field} was refused by")), "{told}");
    assert_eq!(stage.parked(), [], "one value parks no incident");
    // It is refused no longer, and something moves it: everything is in step.
    stage.emulator.heal().await;
    match field {
        "tags" => {
            stage.edit_defender(&id, json!({"customTags": ["first", "short"]})).await;
            stage
                .edit_sentinel(&name, json!({"labels": [{"labelName": "first"}, {"labelName": "short"}]}))
                .await;
        }
        _ => {
            let edit = json!({"classification": "falsePositive", "determination": "notMalicious"});
            stage.edit_defender(&id, edit).await;
        }
    }
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_or_a_label_that_one_side_refuses_waits_alone() {
    side_by_side(vec![
        ("a verdict in Defender", Box::pin(refused("graph", "\"classification\"", "verdict"))),
        ("a verdict in Sentinel", Box::pin(refused("arm", "\"TruePositive\"", "verdict"))),
        ("a tag in Defender", Box::pin(refused("graph", "a label that is longer", "tags"))),
        ("a label in Sentinel", Box::pin(refused("arm", "a label that is longer", "tags"))),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_beyond_the_workspaces_limit_waits_alone() {
    let switches = json!({"labelLimit": "50"});
    let stage = Stage::set(Scene { switches, ..Scene::default() }).await;
    let mut incident = fresh("Born with it");
    let long = "b".repeat(60);
    incident["customTags"] = json!(["first", long]);
    incident["severity"] = json!("high");
    // One that is refused from the start still gets its twin.
    let (id, name) = stage.linked(incident).await;
    stage.sentinel_shows(&id, json!({"severity": "High", "status": "New"})).await;
    stage.edit_sentinel(&name, json!({"severity": "Low"})).await;
    stage.defender_shows(&id, json!({"severity": "low", "customTags": ["first", long]})).await;
    stage.ends_but(|difference| difference.contains("tags")).await;
    let told = explained(&stage, &id);
    assert!(told.contains("not written: tags was refused by sentinel"), "{told}");
    assert_eq!(stage.parked(), [], "nothing is parked");
    stage.edit_defender(&id, json!({"customTags": ["first", "short"]})).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_beyond_defenders_limit_waits_alone() {
    let switches = json!({"graphCommentLimit": "1000"});
    let stage = Stage::set(Scene { switches, ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Wordy")).await;
    stage.ends().await;
    let wendy = &stage.analysts[0];
    wendy.comment_sentinel(&name, "one", &format!("<p>{}</p>", "many words ".repeat(300))).await;
    wendy.comment_sentinel(&name, "two", "<p>Few words.</p>").await;
    stage.edit_sentinel(&name, json!({"severity": "High"})).await;
    stage.defender_shows(&id, json!({"severity": "high"})).await;
    stage
        .until("the short comment is there", |state| {
            let comments =
                state.incident(&stage.places[0], &id).ok_or("no incident")?["comments"].to_string();
            if comments.contains("Few words.") { Ok(()) } else { Err(comments) }
        })
        .await;
    stage.ends().await;
    let told = explained(&stage, &id);
    assert!(told.contains("put aside: comment") && told.contains("longer than 1000"), "{told}");
    assert!(told.contains("not written: a comment was refused"), "{told}");
}

/// Sentinel knows the owner by an object id alone, and nobody may be asked whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_cannot_be_mapped_stops_no_other_field() {
    let more = "[routes.owners]\nfallback = \"leave\"\n[routes.owners.domains]\n\"contoso.com\" = \"fabrikam.com\"\n";
    let stage = Stage::set(Scene { more, ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Whose?")).await;
    stage.ends().await;
    let stranger = json!({
        "objectId": null, "email": null, "assignedTo": null, "userPrincipalName": "eve@elsewhere.example",
    });
    stage.edit_sentinel(&name, json!({"owner": stranger, "severity": "High", "status": "Active"})).await;
    stage.defender_shows(&id, json!({"severity": "high", "status": "inProgress", "assignedTo": null})).await;
    stage.ends_but(|difference| difference.contains("owner")).await;
    let told = explained(&stage, &id);
    assert!(told.contains("left alone: owner") && told.contains("eve@elsewhere.example"), "{told}");
    assert_eq!(stage.parked(), [], "nothing is parked");
    let mut jane = stranger;
    jane["userPrincipalName"] = json!("jane@fabrikam.com");
    stage.edit_sentinel(&name, json!({"owner": jane})).await;
    stage.defender_shows(&id, json!({"assignedTo": "jane@contoso.com"})).await;
}
