//! What is told of a link: the history in its order, why nothing is written or not yet, and whose owners have no
//! counterpart.

use std::time::Duration;

use lockstep::app::explain::{self, Explanation, Live, Question};
use lockstep::app::health::{Health, WatchedRoute};
use lockstep::app::reconcile::twin_id;
use lockstep::app::unmapped;
use lockstep::domain::filter::Filter;
use lockstep::domain::model::{DefenderSeverity, Side};
use lockstep::domain::owners::Fallback;
use lockstep::ports::{ApiObserver, Hold, JournalEntry, Spent};

use serde_json::{Value, json};

use crate::house::{App, House};

const ANN: &str = "ann@contoso.com";

/// A house that is told of changes by hand alone.
fn quiet_house() -> House {
    let mut house = House::new(1);
    house.polls = false;
    house
}

fn health(house: &House) -> Health {
    let (tenant, place) = house.at();
    Health::new(vec![WatchedRoute {
        name: "main".into(),
        tenant_id: tenant.to_owned(),
        workspace: place.to_owned(),
    }])
}

fn edits_defender(house: &House, id: &str, members: &Value) {
    assert!(house.shared.with(|plant, now| plant.person_in_defender(house.at(), (ANN, id), members, now)));
}

fn edits_severity(house: &House, side: Side, id: &str, to: &str) {
    match side {
        Side::Defender => edits_defender(house, id, &json!({"severity": to.to_lowercase()})),
        Side::Sentinel => assert!(house.shared.with(|plant, now| {
            let edit = |twin: &mut serde_json::Map<String, Value>| {
                twin.insert("severity".into(), json!(to));
            };
            plant.person_in_sentinel(house.at(), (ANN, id), edit, now)
        })),
    }
}

async fn explained(house: &House, live: Option<(&App, &Health)>) -> Explanation {
    let key = house.key("29");
    let question = Question { route: "main", policy: &house.policy, key: &key, pair: &["main"], most: 100 };
    let lately = live.map(|(app, _)| app.worker.lately());
    let live = live.zip(lately.as_ref());
    let live = live.map(|((app, health), lately)| Live { health, routes: &app.routes, lately });
    explain::explain(&*house.door(), question, live, house.now()).await.unwrap()
}

fn reasons(explanation: &Explanation) -> Vec<&'static str> {
    explanation.why_not.iter().map(|one| one.reason).collect()
}

fn kinds(entries: &[JournalEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.kind.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_told_with_its_hints_and_reads_and_silence_leaves_no_line() {
    let mut house = quiet_house();
    house.incident("29");
    let _app = house.start(i64::MAX);
    house.send(Side::Defender, "29", true).await;
    house.quiet().await.unwrap();
    assert_eq!(kinds(&explained(&house, None).await.entries), ["hint", "read", "write", "landed"]);

    edits_severity(&house, Side::Sentinel, "29", "High");
    let told_at = house.now();
    let hint = house.hint(Side::Sentinel, "29", true);
    let version = hint.version.clone();
    house.send(Side::Sentinel, "29", true).await;
    house.quiet().await.unwrap();
    let after = explained(&house, None).await.entries;
    let [hint, read, write, landed] = &after[4..] else { panic!("{:?}", kinds(&after)) };
    assert_eq!([&hint.kind, &read.kind, &write.kind, &landed.kind], ["hint", "read", "write", "landed"]);
    assert_eq!((hint.at, &hint.detail["sources"]), (told_at, &"test".into()));
    assert_eq!(
        (hint.detail["side"].as_str(), hint.detail["version"].as_str()),
        (Some("sentinel"), version.as_deref())
    );
    let sides = read.detail["reads"].as_array().unwrap();
    assert_eq!(sides[0]["side"], "sentinel");
    assert_eq!(sides[0]["version"]["etag"].as_str(), version.as_deref());
    assert!(sides[1]["side"] == "defender" && sides[1]["version"].is_string(), "{sides:?}");
    assert!(after.windows(2).all(|pair| pair[0].at <= pair[1].at), "in the order of time");

    // Echoes, repeated and versionless hints, on both sides: nothing is decided.
    for side in [Side::Defender, Side::Sentinel] {
        for versioned in [true, false, true] {
            house.send(side, "29", versioned).await;
            house.quiet().await.unwrap();
        }
    }
    assert_eq!(explained(&house, None).await.entries.len(), after.len());

    // Both sides come to say the same by themselves: that is decided, and costs no write.
    edits_severity(&house, Side::Defender, "29", "Medium");
    edits_severity(&house, Side::Sentinel, "29", "Medium");
    house.send(Side::Defender, "29", true).await;
    house.quiet().await.unwrap();
    let entries = explained(&house, None).await.entries;
    assert_eq!(kinds(&entries[after.len()..]), ["hint", "read", "agreed"]);
    assert_eq!(entries.last().unwrap().detail["fields"], json!(["severity"]));
}

#[tokio::test(start_paused = true)]
async fn why_not_yet_is_answered() {
    let mut house = quiet_house();
    house.incident("29");
    let health = health(&house);
    let app = house.start(i64::MAX);
    assert_eq!(reasons(&explained(&house, None).await), ["not-linked"]);

    // A route that is held: the row waits, with what it waits for.
    let hold = Hold { route: "main".into(), since: house.now(), reason: "a change of rules (by ada)".into() };
    house.door().hold(&hold).await.unwrap();
    house.send(Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = explained(&house, Some((&app, &health))).await;
    assert_eq!(reasons(&told), ["held", "waiting", "not-linked"]);
    assert!(told.why_not[0].why.contains("a change of rules (by ada)"), "{:?}", told.why_not);
    let row = &told.queue[0];
    assert_eq!((row.hints, row.sources.as_str(), row.attempts), (1, "test", 0));
    assert!(row.next > house.now(), "{row:?}");
    let last = told.service.as_ref().unwrap().last_run.as_ref().unwrap();
    assert_eq!((last.end, last.why.as_deref()), ("held", Some("a change of rules (by ada)")));
    house.door().release("main").await.unwrap();
    house.quiet().await.unwrap();

    // A side in trouble: attempts, the next one, the class of the error.
    house.shared.with(|plant, _| plant.faults.broken = 1.0);
    edits_severity(&house, Side::Defender, "29", "High");
    house.send(Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let told = explained(&house, Some((&app, &health))).await;
    assert!(told.queue[0].attempts > 1, "{:?}", told.queue);
    let error = told.service.as_ref().and_then(|service| service.last_run.as_ref()?.error.clone()).unwrap();
    assert_eq!(error.class, "retry");
    let waiting = told.why_not.iter().find(|one| one.reason == "waiting").unwrap();
    let tried = format!("after {} failed attempt(s)", told.queue[0].attempts);
    assert!(waiting.why.contains(&tried) && waiting.why.contains(&error.code), "{}", waiting.why);
    // The store alone knows the first failure of the kind, and says nothing of the process.
    let alone = explained(&house, None).await;
    assert!(alone.service.is_none() && alone.to_json()["service"]["known"] == false);
    assert!(alone.why_not.iter().any(|one| one.why.contains("the last error")), "{:?}", alone.why_not);

    // What only the process knows: a closed side, a spent budget.
    health.gate(Side::Sentinel, house.at().1, Some(("no role", house.now() + Duration::from_secs(30))));
    let spent = Spent { reads: None, writes: Some(Duration::from_secs(61)) };
    house.shared.with(|plant, _| plant.spent = spent);
    let told = explained(&house, Some((&app, &health))).await;
    let of = |reason: &str| told.why_not.iter().find(|one| one.reason == reason).map(|one| one.why.as_str());
    let closed = of("closed").unwrap();
    assert!(closed.starts_with("sentinel is closed until ") && closed.ends_with("no role"), "{closed}");
    let at = lockstep::domain::plan::format_instant(house.now() + Duration::from_secs(61));
    let budget = of("budget").unwrap();
    assert!(budget.contains(&format!("the next write can be made at {at}")), "{budget}");
    let service = &told.to_json()["service"]["now"];
    assert_eq!(service["defender"]["budget_write_wait_ms"], 61_000);
    assert_eq!(service["sentinel"]["gate"], "closed");
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_the_filter_leaves_out_is_told_by_the_process_that_looked() {
    let mut house = quiet_house();
    let filter = Filter { severities: vec![DefenderSeverity::High], ..Filter::default() };
    house.filters.insert("main", filter.clone());
    house.policy.filter = filter;
    house.incident("29");
    let app = house.start(i64::MAX);
    for _ in 0..3 {
        house.send(Side::Defender, "29", true).await;
        house.quiet().await.unwrap();
    }
    let told = explained(&house, Some((&app, &health(&house)))).await;
    assert_eq!(reasons(&told), ["not-linked"]);
    let why = &told.why_not[0].why;
    assert!(why.contains("3 time(s)") && why.contains("not for this route: its severity is low"), "{why}");
    assert!(explained(&house, None).await.why_not[0].why.contains("`lockstep plan`"));
}

#[tokio::test(start_paused = true)]
async fn an_owner_without_a_counterpart_is_reported_until_a_rule_names_them() {
    let mut house = quiet_house();
    house.policy.owners.fallback = Fallback::Leave;
    let report = async |house: &House| {
        unmapped::report(&*house.door(), Some("main"), |_| Some(&house.policy)).await.unwrap()
    };
    for id in ["29", "30"] {
        house.incident(id);
        edits_defender(&house, id, &json!({"assignedTo": "a@example.org"}));
    }
    let app = house.start(i64::MAX);
    let began = house.now();
    for id in ["29", "30", "30"] {
        house.send(Side::Defender, id, true).await;
        house.quiet().await.unwrap();
    }
    let lines = report(&house).await;
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((line.side, line.owner.as_str(), line.incidents), (Side::Defender, "a@example.org", 2));
    assert_eq!(
        (line.reason, line.examples.as_slice()),
        ("no-rule", ["29".to_owned(), "30".to_owned()].as_slice())
    );
    assert!(line.first_seen >= began && line.last_seen > line.first_seen);
    assert_eq!(line.cure.as_deref(), Some("map = { \"a@example.org\" = \"WHO THAT IS IN SENTINEL\" }"));
    assert!(reasons(&explained(&house, None).await).contains(&"owner"));

    // Another owner without a counterpart takes the place; nobody at all ends it.
    edits_defender(&house, "30", &json!({"assignedTo": "b@example.org"}));
    house.send(Side::Defender, "30", true).await;
    house.quiet().await.unwrap();
    let names: Vec<_> = report(&house).await.into_iter().map(|line| (line.owner, line.incidents)).collect();
    assert_eq!(names, [("a@example.org".to_owned(), 1), ("b@example.org".to_owned(), 1)]);
    edits_defender(&house, "30", &json!({"assignedTo": null}));
    house.send(Side::Defender, "30", true).await;
    house.quiet().await.unwrap();
    assert_eq!(report(&house).await.len(), 1);

    // The cure is written into the configuration, the service starts again, somebody asks it to look.
    drop(app);
    house.policy.owners.map.push(("a@example.org".into(), "a@example.org".into()));
    assert!(report(&house).await[0].mapped_now);
    let _app = house.start(i64::MAX);
    let mut hint = house.hint(Side::Defender, "29", false);
    hint.source = "drift".into();
    house.shared.remember(hint).await;
    house.quiet().await.unwrap();
    assert_eq!(report(&house).await, []);
    let name = twin_id(&house.key("29"));
    let twin = house.shared.with(|plant, now| plant.sentinel_now(house.at().1, &name, now)).unwrap();
    assert_eq!(twin.says.owner.upn.as_deref(), Some("a@example.org"), "and the owner has crossed");
}
