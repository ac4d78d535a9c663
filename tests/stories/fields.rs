//! Every field crosses: on creation, and each alone from either side.

use serde_json::{Value, json};

use crate::stage::{Scene, Stage, fresh};
use crate::support::emulator::names;

fn verdict(classification: &str, determination: &str, comment: &str) -> Value {
    json!({
        "status": "resolved", "classification": classification, "determination": determination,
        "resolvingComment": comment,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_crosses_on_creation() {
    let stage = Stage::set(Scene::default()).await;
    let open = json!({
        "displayName": "Multi-stage incident on one endpoint", "description": "Line one\nLine two – ümlaut",
        "severity": "high", "status": "inProgress", "assignedTo": "omar@contoso.com",
        "customTags": ["Ransomware", "tier 1"], "classification": "truePositive", "determination": "malware",
    });
    let mut closed = fresh("Closed before it was copied");
    closed["assignedTo"] = json!("Nobody in particular");
    for (member, value) in
        verdict("falsePositive", "notMalicious", "a scanner").as_object().expect("an object")
    {
        closed[member] = value.clone();
    }
    let (open, closed) = (stage.raise(open).await, stage.raise(closed).await);
    stage
        .sentinel_shows(
            &open,
            json!({
                "title": "Multi-stage incident on one endpoint", "severity": "High", "status": "Active",
                "owner": {"userPrincipalName": "omar@contoso.com"}, "classification": null,
            }),
        )
        .await;
    stage
        .sentinel_shows(
            &closed,
            json!({
                "status": "Closed", "classification": "FalsePositive", "classificationReason": "InaccurateData",
                "classificationComment": "a scanner", "owner": {"assignedTo": "Nobody in particular"},
                "severity": "Medium",
            }),
        )
        .await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let twin = state.twin(&stage.places[0], &open).expect("it was seen above");
    let description = twin["properties"]["description"].as_str().unwrap_or_default();
    assert!(description.starts_with("Line one\nLine two – ümlaut\n"), "{description}");
    assert!(
        description.contains("https://security.microsoft.com/"),
        "it leads back to Defender: {description}"
    );
    let labels: Vec<&Value> = twin["properties"]["labels"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|label| &label["labelName"])
        .collect();
    assert_eq!(labels, ["Ransomware", "tier 1", "determination/malware"]);
}

/// From which side an edit comes.
enum From {
    Defender,
    Sentinel,
}

/// One edit of one incident: what it is like before, who changes what, and what the other side shows then.
struct Edit {
    name: &'static str,
    before: Value,
    from: From,
    edit: Value,
    other: Value,
}

fn edit(name: &'static str, before: Value, from: From, edit: Value, other: Value) -> Edit {
    Edit { name, before, from, edit, other }
}

fn edits() -> Vec<Edit> {
    use From::{Defender, Sentinel};
    let nothing = || json!({});
    let closed = || verdict("truePositive", "malware", "cleaned");
    let owned = || json!({"assignedTo": "omar@contoso.com"});
    let nobody = json!({"objectId": null, "email": null, "assignedTo": null, "userPrincipalName": null});
    let reopened = json!({
        "status": "Active", "classification": null, "classificationReason": null, "classificationComment": null,
    });
    let shut = json!({
        "status": "Closed", "classification": "BenignPositive", "classificationReason": "SuspiciousButExpected",
        "classificationComment": "a drill",
    });
    vec![
        edit("title", nothing(), Defender, json!({"displayName": "Renamed"}), json!({"title": "Renamed"})),
        edit("severity up", nothing(), Defender, json!({"severity": "high"}), json!({"severity": "High"})),
        edit(
            "severity down",
            nothing(),
            Sentinel,
            json!({"severity": "Informational"}),
            json!({
                "severity": "informational"
            }),
        ),
        edit("taken on", nothing(), Defender, json!({"status": "inProgress"}), json!({"status": "Active"})),
        edit("taken on", nothing(), Sentinel, json!({"status": "Active"}), json!({"status": "inProgress"})),
        edit(
            "assigned",
            nothing(),
            Defender,
            owned(),
            json!({"owner": {"userPrincipalName": "omar@contoso.com"}}),
        ),
        edit(
            "assigned",
            nothing(),
            Sentinel,
            json!({"owner": {"userPrincipalName": "omar@contoso.com"}}),
            owned(),
        ),
        edit(
            "reassigned",
            owned(),
            Sentinel,
            json!({"owner": {"userPrincipalName": "wendy@contoso.com"}}),
            json!({
                "assignedTo": "wendy@contoso.com"
            }),
        ),
        edit(
            "unassigned",
            owned(),
            Defender,
            json!({"assignedTo": null}),
            json!({
                "owner": {"userPrincipalName": null, "assignedTo": null}
            }),
        ),
        edit("unassigned", owned(), Sentinel, json!({"owner": nobody}), json!({"assignedTo": null})),
        edit("tag added", nothing(), Defender, json!({"customTags": ["first", "second"]}), nothing()),
        edit(
            "tag added",
            nothing(),
            Sentinel,
            json!({
                "labels": [{"labelName": "first"}, {"labelName": "second"}]
            }),
            json!({"customTags": ["first", "second"]}),
        ),
        edit("tag removed", nothing(), Defender, json!({"customTags": []}), json!({"labels": []})),
        edit("tag removed", nothing(), Sentinel, json!({"labels": []}), json!({"customTags": []})),
        edit(
            "closed",
            nothing(),
            Defender,
            closed(),
            json!({
                "status": "Closed", "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
                "classificationComment": "cleaned",
            }),
        ),
        edit(
            "closed",
            nothing(),
            Sentinel,
            shut,
            json!({
                "status": "resolved", "classification": "informationalExpectedActivity", "resolvingComment": "a drill",
            }),
        ),
        edit(
            "closed without a word",
            nothing(),
            Sentinel,
            json!({
                "status": "Closed", "classification": "Undetermined"
            }),
            json!({"status": "resolved", "classification": "unknown"}),
        ),
        edit("reopened", closed(), Defender, json!({"status": "active"}), json!({"status": "New"})),
        // What Defender found stays: an open incident in Sentinel has no verdict, which says nothing.
        edit(
            "reopened",
            closed(),
            Sentinel,
            reopened,
            json!({
                "status": "inProgress", "classification": "truePositive", "determination": "malware",
            }),
        ),
        edit(
            "verdict alone",
            closed(),
            Defender,
            json!({
                "classification": "falsePositive", "determination": "notMalicious"
            }),
            json!({"status": "Closed", "classification": "FalsePositive"}),
        ),
        edit(
            "verdict alone",
            closed(),
            Sentinel,
            json!({
                "classification": "FalsePositive", "classificationReason": "IncorrectAlertLogic"
            }),
            json!({"status": "resolved", "classification": "falsePositive", "resolvingComment": "cleaned"}),
        ),
        edit(
            "comment alone",
            closed(),
            Defender,
            json!({"resolvingComment": "cleaned twice"}),
            json!({
                "classificationComment": "cleaned twice", "classificationReason": "SuspiciousActivity",
            }),
        ),
        edit(
            "comment alone",
            closed(),
            Sentinel,
            json!({"classificationComment": "cleaned by hand"}),
            json!({
                "resolvingComment": "cleaned by hand", "determination": "malware",
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_field_alone_crosses_from_either_side() {
    let stage = Stage::set(Scene::default()).await;
    let edits = edits();
    let mut links = Vec::new();
    for (number, Edit { name, before, .. }) in edits.iter().enumerate() {
        let mut incident = fresh(&format!("{number}: {name}"));
        for (member, value) in before.as_object().expect("an object") {
            incident[member] = value.clone();
        }
        links.push(stage.raise(incident).await);
    }
    stage.in_step().await;
    for (id, Edit { from, edit, .. }) in links.iter().zip(&edits) {
        match from {
            From::Defender => stage.edit_defender(id, edit.clone()).await,
            From::Sentinel => {
                let name = stage.twin_of(id).await;
                stage.edit_sentinel(&name, edit.clone()).await
            }
        };
    }
    for (id, Edit { from, other, name, .. }) in links.iter().zip(&edits) {
        println!("{id}: {name}");
        match from {
            From::Defender => stage.sentinel_shows(id, other.clone()).await,
            From::Sentinel => stage.defender_shows(id, other.clone()).await,
        }
    }
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn title_and_description_go_to_sentinel_only() {
    let stage = Stage::set(Scene::default()).await;
    let (id, name) = stage.linked(fresh("As Defender calls it")).await;
    stage.edit_sentinel(&name, json!({"title": "As Sentinel calls it"})).await;
    // Something that crosses proves that the title was looked at, too.
    stage.edit_sentinel(&name, json!({"severity": "High"})).await;
    stage.defender_shows(&id, json!({"severity": "high", "displayName": "As Defender calls it"})).await;
    stage.ends_but(|difference| difference.contains("title")).await;
    stage.sentinel_shows(&id, json!({"title": "As Sentinel calls it"})).await;

    stage
        .edit_defender(&id, json!({"displayName": "As Defender calls it now", "description": "Anew."}))
        .await;
    stage.sentinel_shows(&id, json!({"title": "As Defender calls it now"})).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let twin = state.twin(&stage.places[0], &id).expect("the twin is named by its description");
    assert!(
        twin["properties"]["description"].as_str().is_some_and(|text| text.starts_with("Anew.\n")),
        "{twin}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn title_and_description_go_both_ways_where_the_route_says_so() {
    let fields =
        "title = { direction = \"both\" }\ndescription = { direction = \"both\", wins = \"sentinel\" }\n";
    let stage = Stage::set(Scene { fields, ..Scene::default() }).await;
    let (id, name) = stage.linked(fresh("As Defender calls it")).await;
    stage.edit_sentinel(&name, json!({"title": "As Sentinel calls it"})).await;
    stage.defender_shows(&id, json!({"displayName": "As Sentinel calls it"})).await;

    let state = stage.emulator.state().await;
    let twin = state.twin(&stage.places[0], &id).expect("the twin is there");
    let description = twin["properties"]["description"].as_str().expect("it has one");
    let changed = description.replace("What happened", "What an analyst found");
    assert_ne!(changed, description);
    stage.edit_sentinel(&name, json!({"description": changed})).await;
    // Without our own block.
    stage.defender_shows(&id, json!({"description": "What an analyst found: As Defender calls it"})).await;
    stage.edit_defender(&id, json!({"displayName": "And back", "description": "Both."})).await;
    stage.sentinel_shows(&id, json!({"title": "And back"})).await;
    stage.ends().await;
    let state = stage.emulator.state().await;
    let twin = state.twin(&stage.places[0], &id).expect("the block came back with the description");
    assert!(names(twin, &id));
}

/// Sentinel has one word where Defender has many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_finer_verdict_survives_an_edit_on_the_coarser_side() {
    let stage = Stage::set(Scene::default()).await;
    let verdicts = [
        ("truePositive", "malware"),
        ("truePositive", "apt"),
        ("truePositive", "multiStagedAttack"),
        ("truePositive", "maliciousUserActivity"),
        ("truePositive", "compromisedAccount"),
        ("truePositive", "phishing"),
        ("truePositive", "unwantedSoftware"),
        ("truePositive", "other"),
        ("falsePositive", "notMalicious"),
        ("falsePositive", "notEnoughDataToValidate"),
        ("falsePositive", "other"),
        ("informationalExpectedActivity", "securityTesting"),
        ("informationalExpectedActivity", "securityPersonnel"),
        ("informationalExpectedActivity", "confirmedActivity"),
        ("informationalExpectedActivity", "lineOfBusinessApplication"),
        ("informationalExpectedActivity", "other"),
        ("unknown", "unknown"),
    ];
    let mut links = Vec::new();
    for (classification, determination) in verdicts {
        let mut incident = fresh(&format!("{classification} {determination}"));
        for (member, value) in
            verdict(classification, determination, "at first").as_object().expect("an object")
        {
            incident[member] = value.clone();
        }
        links.push((stage.raise(incident).await, classification, determination));
    }
    // The only case where Sentinel is finer.
    let illogical = stage.raise(fresh("A rule that is wrong")).await;
    stage.in_step().await;
    let name = stage.twin_of(&illogical).await;
    let closing = json!({
        "status": "Closed", "classification": "FalsePositive", "classificationReason": "IncorrectAlertLogic",
        "classificationComment": "wrong threshold",
    });
    stage.edit_sentinel(&name, closing).await;
    for (id, ..) in &links {
        let name = stage.twin_of(id).await;
        stage.edit_sentinel(&name, json!({"classificationComment": "at last"})).await;
    }
    for (id, classification, determination) in &links {
        let expected = json!({
            "classification": classification, "determination": determination, "resolvingComment": "at last",
            "status": "resolved",
        });
        stage.defender_shows(id, expected).await;
    }
    stage.defender_shows(&illogical, json!({"status": "resolved", "classification": "falsePositive"})).await;
    stage.in_step().await;
    let edit = json!({"resolvingComment": "threshold mended", "severity": "low"});
    stage.edit_defender(&illogical, edit).await;
    let expected = json!({
        "severity": "Low", "classificationComment": "threshold mended", "classification": "FalsePositive",
        "classificationReason": "IncorrectAlertLogic",
    });
    stage.sentinel_shows(&illogical, expected).await;
    stage.ends().await;
}
