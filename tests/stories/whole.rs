//! What belongs to an incident beside its fields: comments, alerts, what a merge leaves behind, people of another
//! directory, determinations; and values that a side will not take.

use serde_json::{Value, json};

use crate::stage::{PATIENCE, Scene, Stage, fresh};
use crate::support::emulator::State;
use crate::support::until;

/// The texts of a Defender incident's comments.
fn said(state: &State, stage: &Stage, id: &str) -> Vec<String> {
    let incident = state.incident(&stage.places[0], id);
    let comments = incident.and_then(|incident| incident["comments"].as_array());
    let comments = comments.map_or(&[] as &[Value], Vec::as_slice);
    comments.iter().map(|comment| comment["comment"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The names and texts of a Sentinel incident's comments.
fn written(state: &State, stage: &Stage, name: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let comments = state.comments(&stage.places[0], name).iter();
    comments.map(|comment| (text(&comment["name"]), text(&comment["properties"]["message"]))).collect()
}

/// Waits until so many comments stand in Defender and in Sentinel.
async fn comments_are(stage: &Stage, id: &str, name: &str, defender: usize, sentinel: usize) {
    stage
        .until(&format!("{id} has {defender} and {sentinel} comments"), |state| {
            let (there, here) = (said(state, stage, id), written(state, stage, name));
            if (there.len(), here.len()) == (defender, sentinel) {
                Ok(())
            } else {
                Err(format!("in Defender {there:?}, in Sentinel {here:?}"))
            }
        })
        .await;
}

/// In how many of these texts a part stands.
fn times<'t>(texts: impl IntoIterator<Item = &'t String>, part: &str) -> usize {
    texts.into_iter().map(|text| text.matches(part).count()).sum()
}

/// The names of a twin's labels.
fn labels(twin: &Value) -> Vec<&str> {
    let labels = twin["properties"]["labels"].as_array().into_iter().flatten();
    labels.filter_map(|label| label["labelName"].as_str()).collect()
}

/// What `lockstep explain` says of an incident of the first route.
fn explained(stage: &Stage, id: &str) -> String {
    let output = stage.service.command(&["explain", "route-0", id]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_crosses_exactly_once_and_equal_ones_stay_two() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Talked about")).await;
    stage.in_step().await;
    stage.emulator.forget_calls().await;
    for _ in 0..2 {
        stage.emulator.say(&stage.places[0], &id, "Omar Salah", "Is <b>this</b> & that ours?").await;
    }
    for comment in ["one", "two"] {
        stage.analysts[0].comment_sentinel(&name, comment, "<p>It <b>is</b> R&amp;D's.</p>").await;
    }
    comments_are(&stage, &id, &name, 4, 4).await;
    let calls = stage.calls().await;
    let wrote = |service: &str| {
        let of = |call: &&crate::support::emulator::Call| call.service == service && call.is_write();
        calls.iter().filter(of).filter(|call| call.path.contains("/comments")).count()
    };
    assert_eq!((wrote("graph"), wrote("arm")), (2, 2), "{calls:?}");
    stage.ends().await;
    comments_are(&stage, &id, &name, 4, 4).await;

    let state = stage.emulator.state().await;
    let copies: Vec<String> = written(&state, &stage, &name).into_iter().map(|(_, text)| text).collect();
    let copies: Vec<&String> = copies.iter().filter(|text| text.contains("in Defender, 20")).collect();
    assert_eq!(copies.len(), 2, "they say when");
    for copy in &copies {
        assert!(copy.contains("Is &lt;b&gt;this&lt;/b&gt; &amp; that ours?"), "text is escaped: {copy}");
        assert!(copy.contains("Omar Salah"), "it says who: {copy}");
    }
    let posts = said(&state, &stage, &id);
    let posts: Vec<&String> = posts.iter().filter(|text| text.contains("[ls:")).collect();
    assert_eq!(posts.len(), 2);
    assert_ne!(posts[0], posts[1], "each has a marker of its own");
    for post in posts {
        assert!(post.contains("R&D's.") && !post.contains('<'), "Defender shows plain text: {post}");
        assert!(post.to_lowercase().contains("wendy"), "it says who: {post}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_comment_gives_one_notice() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Corrected")).await;
    let wendy = &stage.analysts[0];
    wendy.comment_sentinel(&name, "one", "It is malware.").await;
    comments_are(&stage, &id, &name, 1, 1).await;
    stage.ends().await;
    wendy.comment_sentinel(&name, "one", "It is a false alarm.").await;
    comments_are(&stage, &id, &name, 2, 1).await;
    stage.ends().await;
    // The incident's next change is not taken for another edit of the comment.
    stage.edit_sentinel(&name, json!({"severity": "Low"})).await;
    stage.defender_shows(&id, json!({"severity": "low"})).await;
    stage.ends().await;
    comments_are(&stage, &id, &name, 2, 1).await;
    let state = stage.emulator.state().await;
    let said = said(&state, &stage, &id);
    assert!(said[0].contains("It is malware.") && said[1].contains("It is a false alarm."), "{said:?}");
    assert!(said[1].to_lowercase().contains("edited"), "it says what it is: {said:?}");
}

/// The edit moves nothing of the incident: only the sweep can find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_of_a_comment_that_moves_nothing_is_found_by_the_sweep() {
    let switches = json!({"commentEditsTouch": "off"});
    let stage = Stage::set(Scene { switches, poll: "sweep_every = \"2s\"\n", ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("Corrected in silence")).await;
    let (_, quiet) = stage.linked(fresh("Nobody said anything")).await;
    let wendy = &stage.analysts[0];
    wendy.comment_sentinel(&name, "one", "It is malware.").await;
    comments_are(&stage, &id, &name, 1, 1).await;
    wendy.comment_sentinel(&name, "one", "It is a false alarm.").await;
    comments_are(&stage, &id, &name, 2, 1).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let said = said(&state, &stage, &id);
    assert!(said[1].contains("edited a comment") && said[1].contains("It is a false alarm."), "{said:?}");
    stage.emulator.forget_calls().await;
    until("the next sweeps look at its comments", PATIENCE, || async {
        let calls = stage.calls().await;
        let of = |name: &str| calls.iter().filter(|call| call.path.contains(name)).count();
        assert_eq!(of(&quiet), 0, "only what was carried is looked at: {calls:?}");
        if of(&name) > 1 { Ok(()) } else { Err(format!("{calls:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_whose_answer_is_lost_is_not_written_twice() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Lost answers")).await;
    stage.in_step().await;
    for (service, method) in [("graph", "POST"), ("arm", "PUT")] {
        let fault = json!({
            "service": service, "method": method, "pathContains": "/comments", "kind": "drop-after",
        });
        stage.emulator.fault(fault).await;
    }
    stage.emulator.say(&stage.places[0], &id, "Omar Salah", "From Defender.").await;
    stage
        .until("Sentinel has it", |state| {
            let here = written(state, &stage, &name);
            if here.len() == 1 { Ok(()) } else { Err(format!("{here:?}")) }
        })
        .await;
    stage.analysts[0].comment_sentinel(&name, "one", "From Sentinel.").await;
    comments_are(&stage, &id, &name, 2, 2).await;
    stage.ends().await;
    comments_are(&stage, &id, &name, 2, 2).await;
}

/// Nobody answered and nothing landed: two reads half a minute apart prove it.
pub(crate) async fn a_comment_that_never_arrived_is_sent_again() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Lost on the way")).await;
    stage.in_step().await;
    let fault = json!({
        "service": "graph", "method": "POST", "pathContains": "/comments", "kind": "drop-before",
    });
    stage.emulator.fault(fault).await;
    stage.analysts[0].comment_sentinel(&name, "one", "From Sentinel.").await;
    stage
        .until_within("Defender has it", 3 * PATIENCE, |state| {
            let there = said(state, &stage, &id);
            if there.len() == 1 { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
    stage.ends().await;
    comments_are(&stage, &id, &name, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_comment_stops_no_other() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Not to be said")).await;
    stage.in_step().await;
    let refused = |service: &str, method: &str| {
        json!({
            "service": service, "method": method, "pathContains": "/comments", "kind": "status", "status": 400,
        })
    };
    stage.emulator.fault(refused("graph", "POST")).await;
    stage.analysts[0].comment_sentinel(&name, "one", "This is refused.").await;
    stage
        .until("the fault has struck", |state| {
            if state.0["faults"] == json!([]) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    stage.analysts[0].comment_sentinel(&name, "two", "This is taken.").await;
    comments_are(&stage, &id, &name, 1, 2).await;
    stage.emulator.fault(refused("arm", "PUT")).await;
    stage.emulator.say(&stage.places[0], &id, "Omar Salah", "This is refused.").await;
    stage
        .until("the fault has struck", |state| {
            if state.0["faults"] == json!([]) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    stage.emulator.say(&stage.places[0], &id, "Omar Salah", "This is taken.").await;
    comments_are(&stage, &id, &name, 3, 3).await;
    // A field still crosses, and what was refused is not tried again.
    stage.edit_defender(&id, json!({"severity": "high"})).await;
    stage.sentinel_shows(&id, json!({"severity": "High"})).await;
    stage.ends().await;
    comments_are(&stage, &id, &name, 3, 3).await;
    let told = explained(&stage, &id);
    assert_eq!(told.matches("put aside: comment").count(), 2, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_hundred_comments_are_never_used_up() {
    const MANY: usize = 120;
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Much talked about")).await;
    stage.in_step().await;
    for number in 0..MANY {
        let text = format!("This is number {number}.");
        stage.emulator.say(&stage.places[0], &id, "Omar Salah", &text).await;
    }
    stage
        .until("Sentinel has them all", |state| {
            let texts: Vec<String> =
                written(state, &stage, &name).into_iter().map(|(_, text)| text).collect();
            let lacking: Vec<usize> =
                (0..MANY).filter(|n| times(&texts, &format!("This is number {n}.")) == 0).collect();
            if lacking.is_empty() { Ok(()) } else { Err(format!("{} there, not {lacking:?}", texts.len())) }
        })
        .await;
    // There is room for people.
    stage.analysts[0].comment_sentinel(&name, "one", "And so say I.").await;
    stage
        .until("Defender has the analyst's", |state| {
            let count = said(state, &stage, &id).len();
            if count == MANY + 1 { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let texts: Vec<String> = written(&state, &stage, &name).into_iter().map(|(_, text)| text).collect();
    assert!(texts.len() <= 90, "{} comments", texts.len());
    for number in 0..MANY {
        assert_eq!(times(&texts, &format!("This is number {number}.")), 1, "number {number}");
    }
    assert_eq!(times(&texts, "Further comments in Defender"), 1, "one digest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_are_one_comment_that_is_rewritten() {
    let fixture = include_str!("../fixtures/graph/alert-all-evidence-types.response.json");
    let mut alert: Value = serde_json::from_str(fixture).expect("the fixture is JSON");
    alert.as_object_mut().expect("an object").remove("incidentId");
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Alarming")).await;
    stage.emulator.alert(&stage.places[0], &id, alert).await;
    let digest = async |what: &str| {
        let (found, _) = stage
            .until(&format!("the digest shows {what}"), |state| {
                let here = written(state, &stage, &name);
                let [(comment, text)] = here.as_slice() else { return Err(format!("{here:?}")) };
                let right = text.contains(&format!("Alerts of the Defender incident</b>: {what}"));
                let twin = state.twin(&stage.places[0], &id).ok_or("no twin")?;
                let description = twin["properties"]["description"].as_str().unwrap_or_default();
                if !right || !description.lines().any(|line| line == format!("Alerts: {what}")) {
                    return Err(format!("{text}\n{description}"));
                }
                Ok((comment.clone(), text.clone()))
            })
            .await;
        found
    };
    let (comment, text) = digest("1 (1 medium)").await;
    assert!(text.contains("One alert with every evidence type"), "{text}");
    for kind in ["Host: ", "Account: ", "Ip: ", "File: ", "Url: "] {
        assert!(text.to_lowercase().contains(&format!("<br>{}", kind.to_lowercase())), "no {kind}: {text}");
    }
    stage.ends().await;
    let second = json!({"title": "A <second> alert", "severity": "high"});
    stage.emulator.alert(&stage.places[0], &id, second).await;
    let (same, text) = digest("2 (1 high, 1 medium)").await;
    assert_eq!(same, comment, "it is rewritten");
    assert!(text.contains("A &lt;second&gt; alert"), "{text}");
    stage.ends().await;
    let state = stage.emulator.state().await;
    assert_eq!(said(&state, &stage, &id).len(), 0, "the digest does not go back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_carries_everything_over_once() {
    let stage = Stage::set(Scene::default()).await;
    let place = &stage.places[0];
    let (winner, heir) = stage.linked(fresh("Winner")).await;
    let mut loser = fresh("Loser");
    loser["customTags"] = json!(["from the loser"]);
    loser["assignedTo"] = json!("omar@contoso.com");
    let (loser, twin) = stage.linked(loser).await;
    for number in 0..10 {
        stage.emulator.say(place, &loser, "Omar Salah", &format!("Omar's remark {number}.")).await;
        let text = format!("Wendy's remark {number}.");
        stage.analysts[0].comment_sentinel(&twin, &format!("w{number}"), &text).await;
    }
    comments_are(&stage, &loser, &twin, 20, 20).await;
    stage.ends().await;

    stage.emulator.forget_calls().await;
    stage.emulator.merge(place, &loser, &winner).await;
    let pointer = format!("Merged in Defender into incident {winner}.");
    let closed = json!({
        "status": "Closed", "classification": "Undetermined", "classificationComment": pointer,
    });
    stage.sentinel_shows(&loser, closed).await;
    stage.sentinel_shows(&winner, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    stage.defender_shows(&winner, json!({"assignedTo": "omar@contoso.com"})).await;
    let carried = |state: &State| {
        let here: Vec<String> = written(state, &stage, &heir).into_iter().map(|(_, text)| text).collect();
        let there = said(state, &stage, &winner);
        for number in 0..10 {
            for who in ["Omar's", "Wendy's"] {
                let remark = format!("{who} remark {number}.");
                // Apostrophes may be escaped in HTML.
                let tail = format!("remark {number}.");
                let (in_sentinel, in_defender) = (times(&here, &tail), times(&there, &remark));
                if (in_sentinel, in_defender) != (2, 1) {
                    return Err(format!("{remark} {in_sentinel} {in_defender}: {here:?} {there:?}"));
                }
            }
        }
        let tags = labels(state.twin(place, &winner).ok_or("no twin")?).join(",");
        if tags.contains("from the loser") { Ok(()) } else { Err(tags) }
    };
    stage.until("both sides of the winner have it all, once", carried).await;
    let calls: Vec<_> = stage.calls().await.into_iter().filter(|call| !call.is_list()).collect();
    assert!(calls.len() <= 30, "{} calls: {calls:?}", calls.len());
    stage.ends().await;
    let state = stage.emulator.state().await;
    carried(&state).expect("nothing was carried twice");
    let closed = state.twin(place, &loser).expect("it is kept");
    assert!(labels(closed).contains(&"Redirected"), "{closed}");
    let merged = state.incident(place, &loser).expect("it is kept");
    assert_eq!((&merged["status"], &merged["classification"]), (&json!("redirected"), &json!("unknown")));
    let open = state.incident(place, &winner).expect("it is there");
    assert_eq!((&open["status"], &open["classification"]), (&json!("active"), &json!("unknown")));

    stage.emulator.unmerge(place, &loser).await;
    stage.sentinel_shows(&loser, json!({"status": "New", "classification": null})).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    carried(&state).expect("nothing was carried twice");
    assert!(!labels(state.twin(place, &loser).expect("it is there")).contains(&"Redirected"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_value_stops_no_other() {
    let stage = Stage::set(Scene::default()).await;
    let long = "a tag that is longer than anybody likes it to be";
    // Refused together, the severity is taken alone, the tags are not.
    let refuse = async |service: &str, method: &str| {
        for kind in ["status", "delay", "status"] {
            let fault = json!({
                "service": service, "method": method, "pathContains": "/incidents/", "kind": kind, "status": 400,
                "delayMs": 0,
            });
            stage.emulator.fault(fault).await;
        }
    };
    let (one, name) = stage.linked(fresh("Refused in Defender")).await;
    let (two, _) = stage.linked(fresh("Refused in Sentinel")).await;
    stage.ends().await;

    // Faults strike the service and not the analyst, who uses the other side.
    refuse("graph", "PATCH").await;
    let tagged = json!([{"labelName": "first"}, {"labelName": long}]);
    stage.edit_sentinel(&name, json!({"severity": "High", "labels": tagged})).await;
    stage.defender_shows(&one, json!({"severity": "high", "customTags": ["first"]})).await;
    stage.ends_but(|difference| difference.contains("tags")).await;
    assert!(explained(&stage, &one).contains("put aside: tags"), "{}", explained(&stage, &one));

    refuse("arm", "PUT").await;
    stage.edit_defender(&two, json!({"severity": "high", "customTags": ["first", long]})).await;
    stage.sentinel_shows(&two, json!({"severity": "High"})).await;
    stage.ends_but(|difference| difference.contains("tags")).await;
    let told = explained(&stage, &two);
    assert!(told.contains("put aside: tags") && told.contains("tags"), "{told}");

    // Another value is tried again.
    stage.edit_defender(&two, json!({"customTags": ["first", "short"]})).await;
    stage.edit_sentinel(&name, json!({"labels": [{"labelName": "first"}, {"labelName": "short"}]})).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_mapped_in_both_directions() {
    let more = "[routes.owners.map]\n\"omar@contoso.com\" = \"o.salah@partner.example\"\n\
                [routes.owners.domains]\n\"contoso.com\" = \"fabrikam.com\"\n";
    let stage = Stage::set(Scene { more, ..Scene::default() }).await;
    let mut incident = fresh("Owned");
    incident["assignedTo"] = json!("omar@contoso.com");
    let (id, name) = stage.linked(incident).await;
    let owned = |upn: &str| json!({"owner": {"userPrincipalName": upn}});
    stage.sentinel_shows(&id, owned("o.salah@partner.example")).await;
    stage.edit_defender(&id, json!({"assignedTo": "jane@contoso.com"})).await;
    stage.sentinel_shows(&id, owned("jane@fabrikam.com")).await;
    let nobody = json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null});
    let change = async |upn: &str| {
        let mut owner = nobody.clone();
        owner["userPrincipalName"] = json!(upn);
        stage.edit_sentinel(&name, json!({"owner": owner})).await;
    };
    change("o.salah@partner.example").await;
    stage.defender_shows(&id, json!({"assignedTo": "omar@contoso.com"})).await;
    change("li@fabrikam.com").await;
    stage.defender_shows(&id, json!({"assignedTo": "li@contoso.com"})).await;
    // The judge of all stories knows no map.
    stage.ends_but(|difference| difference.contains("owner")).await;
    stage.sentinel_shows(&id, owned("li@fabrikam.com")).await;
    stage.defender_shows(&id, json!({"assignedTo": "li@contoso.com"})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_is_not_in_the_directory_becomes_a_label() {
    let more = "[routes.owners]\nlookup = true\nfallback = \"label\"\n";
    let switches = json!({"unknownPeople": "missing"});
    let stage = Stage::set(Scene { more, switches, ..Scene::default() }).await;
    let person = json!({"upn": "omar@contoso.com"});
    stage.emulator.control(reqwest::Method::POST, "/people", Some(person)).await;
    let mut incident = fresh("Whose?");
    incident["assignedTo"] = json!("ghost@contoso.com");
    let (id, name) = stage.linked(incident).await;
    let labelled = async |label: bool| {
        stage
            .until(&format!("a label for the owner: {label}"), |state| {
                let twin = state.twin(&stage.places[0], &id).ok_or("no twin")?;
                let found = labels(twin);
                if found.contains(&"owner/ghost@contoso.com") == label {
                    Ok(())
                } else {
                    Err(found.join(", "))
                }
            })
            .await;
    };
    labelled(true).await;
    let tolerated = |difference: &str| difference.contains("owner");
    stage.ends_but(tolerated).await;
    let nobody = json!({"owner": {"userPrincipalName": null, "assignedTo": null}});
    stage.sentinel_shows(&id, nobody).await;
    stage.defender_shows(&id, json!({"assignedTo": "ghost@contoso.com", "customTags": ["first"]})).await;
    let told = explained(&stage, &id);
    assert!(told.contains("ghost@contoso.com: is not in the directory"), "{told}");
    // Another change takes nobody's incident away.
    stage.edit_sentinel(&name, json!({"severity": "High"})).await;
    stage.defender_shows(&id, json!({"severity": "high", "assignedTo": "ghost@contoso.com"})).await;
    stage.edit_defender(&id, json!({"assignedTo": "omar@contoso.com"})).await;
    stage.sentinel_shows(&id, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    labelled(false).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn determinations_are_labels_in_sentinel() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("Determined")).await;
    let shut = json!({
        "status": "Closed", "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
        "classificationComment": "seen",
    });
    stage.edit_sentinel(&name, shut).await;
    stage.defender_shows(&id, json!({"status": "resolved", "classification": "truePositive"})).await;
    stage.ends().await;
    let phishing = json!([{"labelName": "first"}, {"labelName": "determination/phishing"}]);
    stage.edit_sentinel(&name, json!({"labels": phishing})).await;
    stage.defender_shows(&id, json!({"classification": "truePositive", "determination": "phishing"})).await;
    stage.ends().await;

    stage.edit_defender(&id, json!({"determination": "malware"})).await;
    let labelled = |state: &State| {
        let twin = state.twin(&stage.places[0], &id).ok_or("no twin")?;
        let found = labels(twin);
        if found == ["first", "determination/malware"] { Ok(()) } else { Err(found.join(", ")) }
    };
    stage.until("the label follows", labelled).await;
    stage.ends().await;
    stage.edit_sentinel(&name, json!({"severity": "High"})).await;
    let kept = json!({"severity": "high", "classification": "truePositive", "determination": "malware"});
    stage.defender_shows(&id, kept.clone()).await;
    stage.ends().await;
    stage.defender_shows(&id, kept).await;
    labelled(&stage.emulator.state().await).expect("the label survives");
}
