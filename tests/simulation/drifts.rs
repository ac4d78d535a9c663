//! The drift report: each difference with its cause, at the cost of two lists.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep::app::drift::{Cause, Comparison, RouteReport};
use lockstep::app::patience::Patience;
use lockstep::app::reconcile::twin_id;
use lockstep::domain::failure::Class;
use lockstep::domain::model::*;
use lockstep::domain::plan::Intent;
use lockstep::domain::policy::{Direction, Field, FieldPolicy, Policy, Winner};
use lockstep::ports::{Clock, Hold, JournalEntry};

use crate::sweeps::{Stage, key};

fn comparison(stage: &Stage, policy: Policy) -> Comparison {
    Comparison {
        store: stage.store(),
        routes: stage.routes(policy),
        clock: stage.clock.clone(),
        patience: Patience::silent(),
    }
}

async fn compared(stage: &Stage, policy: Policy) -> RouteReport {
    let comparison = comparison(stage, policy);
    let route = comparison.routes.all()[0].clone();
    comparison.compare(&route).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn links_in_step_show_no_drift_for_the_price_of_the_lists() {
    let stage = Stage::with(1_010);
    let report = compared(&stage, Policy::default()).await;
    assert_eq!((report.links, report.in_step, report.differences.as_slice()), (1_010, 1_010, [].as_slice()));
    assert!(!report.has_drift());
    let shelves = stage.shelves.lock().unwrap();
    assert_eq!((shelves.lists, shelves.gets), ([21, 2], 0));
}

#[tokio::test(start_paused = true)]
async fn every_difference_is_told_with_its_cause() {
    let stage = Stage::with(60);
    let second = time::Duration::SECOND;
    let high = |defender: &mut DefenderIncident| defender.says.severity = DefenderSeverity::High;
    let low_known = |id: &str| {
        // Agreed on as they are: the agreement knows what both sides show.
        let (defender, sentinel) = {
            let shelves = stage.shelves.lock().unwrap();
            (shelves.defender[id].clone(), shelves.sentinel[&twin_id(&key(id))].clone())
        };
        stage.change_link(id, |_, state| {
            let known = state.known.as_mut().unwrap();
            known.defender = defender.says;
            known.defender_updated = defender.updated;
            known.sentinel = sentinel.says;
            known.sentinel_etag = sentinel.etag;
        });
    };
    // A change in Defender that nobody has come to, and one in Sentinel.
    stage.change("1000", |defender, _| {
        high(defender);
        defender.updated += second;
    });
    stage.change("1001", |_, sentinel| {
        sentinel.says.status = SentinelStatus::Active;
        (sentinel.etag, sentinel.modified) = ("\"new\"".into(), sentinel.modified + second);
    });
    // A write without a proof.
    stage.change("1002", |defender, _| high(defender));
    stage.change_link("1002", |_, state| {
        let known = state.known.as_ref().unwrap();
        let mut intent = Intent {
            side: Side::Defender,
            fields: vec![Field::Severity],
            names: Default::default(),
            at: "2020-01-01T00:00:00Z".into(),
            defender: known.defender.clone(),
            sentinel: known.sentinel.clone(),
        };
        intent.defender.severity = DefenderSeverity::Medium;
        state.intents.push(intent);
    });
    // Another title in Sentinel: titles go one way.
    stage.change("1003", |_, sentinel| sentinel.says.title = "Renamed".into());
    low_known("1003");
    // Both sides changed it.
    stage.change("1004", |defender, sentinel| {
        high(defender);
        sentinel.says.severity = SentinelSeverity::Medium;
        defender.updated += second;
        (sentinel.etag, sentinel.modified) = ("\"new\"".into(), sentinel.modified + second);
    });
    // Put aside.
    stage.change("1005", |defender, _| high(defender));
    stage.change_link("1005", |link, _| link.parked = Some("refused".into()));
    // Sentinel has no word for it.
    stage.change("1006", |defender, _| {
        defender.says.severity = DefenderSeverity::Unknown;
        defender.updated += second;
    });
    // Gone.
    stage.shelves.lock().unwrap().sentinel.remove(&twin_id(&key("1007")));
    stage.shelves.lock().unwrap().defender.remove("1008");
    // Agreed on as they are, and nothing says why; and so after a clash.
    for id in ["1009", "1010"] {
        stage.change(id, |defender, _| defender.says.owner = Some("a@example.org".into()));
        low_known(id);
    }
    let line = JournalEntry {
        at: stage.clock.now(),
        link: key("1010"),
        kind: "clash".into(),
        detail: serde_json::json!({"field": "owner", "winner": "sentinel"}),
    };
    stage.disk.lock().unwrap().journal.push(line);
    // A verdict that Sentinel does not say.
    stage.change("1011", |defender, sentinel| {
        defender.says.status = DefenderStatus::Resolved;
        defender.says.classification = DefenderClassification::TruePositive;
        defender.says.determination = DefenderDetermination::OtherReason;
        sentinel.says.status = SentinelStatus::Closed;
        sentinel.says.classification = Some(SentinelClassification::Undetermined);
    });
    low_known("1011");
    // A determination whose label an analyst took off.
    stage.change("1012", |defender, _| {
        defender.says.classification = DefenderClassification::TruePositive;
        defender.says.determination = DefenderDetermination::Phishing;
    });
    low_known("1012");
    stage
        .store()
        .hold(&Hold { route: "*".into(), since: stage.clock.now(), reason: "a test".into() })
        .await
        .unwrap();

    let report = compared(&stage, Policy::default()).await;
    let found: BTreeMap<&str, (&str, &str, &str, Cause)> = report
        .differences
        .iter()
        .map(|d| (d.incident.as_str(), (d.field, d.defender.as_str(), d.sentinel.as_str(), d.cause)))
        .collect();
    let expected = [
        ("1000", ("severity", "high", "Low", Cause::InFlight)),
        ("1001", ("status", "active", "Active", Cause::InFlight)),
        ("1002", ("severity", "high", "Low", Cause::InFlight)),
        ("1003", ("title", "\"Ransom\"", "\"Renamed\"", Cause::Policy)),
        ("1004", ("severity", "high", "Medium", Cause::Clash)),
        ("1005", ("severity", "high", "Low", Cause::Parked)),
        ("1006", ("severity", "unknown", "Low", Cause::Unsaid)),
        ("1007", ("incident", "there", "not there", Cause::Missing)),
        ("1008", ("incident", "not there", "there", Cause::Missing)),
        ("1009", ("owner", "a@example.org", "nothing", Cause::Unknown)),
        ("1010", ("owner", "a@example.org", "nothing", Cause::Clash)),
        ("1011", ("verdict", "truePositive/other", "nothing", Cause::Unsaid)),
        ("1012", ("determination", "phishing", "nothing", Cause::Policy)),
    ];
    let mut expected: BTreeMap<_, _> = expected.into();
    // What Sentinel says without a reason is shown as it stands.
    expected.insert("1011", ("verdict", "truePositive/other", "Undetermined", Cause::Unsaid));
    assert_eq!(found, expected);
    assert_eq!(report.differences.len(), expected.len(), "{:?}", report.differences);
    assert_eq!((report.links, report.in_step, report.held.as_deref()), (60, 60 - 9, Some("a test")));
    assert_eq!(stage.shelves.lock().unwrap().gets, 2, "one by one only what is missing");

    let comparison = comparison(&stage, Policy::default());
    let route = comparison.routes.all()[0].clone();
    assert_eq!(comparison.repair(&route, &report).await.unwrap(), 8);
    let told = ["1000", "1001", "1002", "1004", "1007", "1008", "1009", "1010"];
    assert_eq!(stage.hinted(), told.map(str::to_owned).into());
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_off_differs_by_policy_alone() {
    let stage = Stage::with(1);
    stage.change("1000", |_, sentinel| {
        sentinel.says.owner.upn = Some("b@example.org".into());
        sentinel.etag = "\"new\"".into();
    });
    let mut policy = Policy::default();
    policy.set(Field::Owner, FieldPolicy { direction: Direction::Off, wins: Winner::Latest });
    let report = compared(&stage, policy).await;
    assert_eq!(report.differences.len(), 1);
    assert_eq!(report.differences[0].cause, Cause::Policy);
    assert!(!report.has_drift() && report.in_step == 1);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_says_later_is_waited_for_and_one_that_refuses_is_told() {
    let stage = Stage::with(60);
    let wait = Some(Duration::from_secs(90));
    stage.shelves.lock().unwrap().trouble = vec![Class::Retry { wait: None }, Class::Retry { wait }];
    let before = stage.clock.now();
    assert_eq!(compared(&stage, Policy::default()).await.in_step, 60);
    assert!(stage.clock.now() - before >= Duration::from_secs(92));
    stage.shelves.lock().unwrap().trouble = vec![Class::Auth];
    let comparison = comparison(&stage, Policy::default());
    let route = comparison.routes.all()[0].clone();
    assert_eq!(comparison.compare(&route).await.unwrap_err().class, Class::Auth);
}
