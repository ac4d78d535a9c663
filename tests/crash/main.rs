//! Kills the real service with SIGKILL at random moments, while people edit on both sides, senders deliver signed
//! notifications and both systems lose answers; brings it back on the same store each time; and then asks what must be
//! true: every delivery that was answered 202 was served, each incident has exactly one twin, both sides say the same,
//! nothing is parked, and nobody writes any more.
//!
//! Half of the kills come blindly, half within moments of a hint, when a worker is between its steps. A job that dies
//! with its worker is served again when its lease has run out, which is what the last wait is long for.
//!
//! The seed decides the script. What the machine adds (which step the kill meets) differs from run to run: that is the
//! point. A failure prints the seed and what is out of step.

#![cfg(feature = "emulator")]

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use support::emulator::{Analyst, Emulator, Place};
use support::postgres::{Database, VARIABLE};
use support::service::{self, CLIENT_ID, Configuration, Service};
use support::{in_step, until};

const SEED: u64 = 20_260_304;
/// Several places, so that the request budget of one tenant does not slow the script down.
const PLACES: u32 = 5;
const INCIDENTS_PER_PLACE: usize = 4;
const KILLS: usize = 13;
/// Between two edits: with five places that is about twenty edits a minute for each, and fewer than the twenty writes
/// per link and hour at which the loop breaker would stop a link.
const EDIT_EVERY_MS: std::ops::Range<u64> = 200..600;
/// Between return and next death.
const LIFE_MS: std::ops::Range<u64> = 300..3_000;
/// Longer than the lease that a killed worker leaves behind, and than the request budgets take to refill.
const PATIENCE: Duration = Duration::from_secs(150);
/// How soon after a hint the aimed kills come.
const AIMED_MS: std::ops::Range<u64> = 0..80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or two: scripts/test runs it"]
async fn kill_9_loses_nothing_and_doubles_nothing_on_sqlite() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder takes a folder");
    let store = format!("sqlite://{}", folder.path().join("lockstep.db").display());
    survive(folder.path(), &store, SEED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
async fn kill_9_loses_nothing_and_doubles_nothing_on_postgres() {
    let database = Database::create().await.unwrap_or_else(|| panic!("{VARIABLE} names no server"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder takes a folder");
    survive(folder.path(), &database.url, SEED + 1).await;
    database.drop_now().await;
}

/// One link under test.
#[derive(Clone)]
struct Subject {
    place: usize,
    incident: String,
}

async fn survive(folder: &Path, store: &str, seed: u64) {
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let emulator = Arc::new(Emulator::start(folder, seed));
    let places = emulator.places(PLACES).await;
    let mut analysts = Vec::new();
    let mut subjects = Vec::new();
    for (number, place) in places.iter().enumerate() {
        analysts.push(emulator.analyst(place, "wendy@contoso.com").await);
        for _ in 0..INCIDENTS_PER_PLACE {
            let title = format!("Incident {} of {number}", subjects.len());
            let incident = emulator.raise(place, fresh(&title)).await;
            subjects.push(Subject { place: number, incident });
        }
    }
    let mut configuration = Configuration::new(&emulator.hello, &places, store);
    (configuration.defender_every, configuration.sentinel_every) = (Some("2s"), Some("2s"));
    let mut service = Service::prepare(folder, &configuration);
    service.resume().await;

    let senders = Senders::new(&service, dice.u64(..));
    let over = Arc::new(AtomicBool::new(false));
    let script = tokio::spawn(people(
        emulator.clone(),
        places.clone(),
        analysts,
        subjects.clone(),
        senders.clone(),
        over.clone(),
        dice.fork(),
    ));
    let deaths = Instant::now();
    for kill in 0..KILLS {
        // Meant to be blind: nothing that the service shows decides when.
        tokio::time::sleep(Duration::from_millis(dice.u64(LIFE_MS))).await;
        if kill % 3 == 0 {
            emulator.fault(trouble(&mut dice)).await;
        }
        if kill % 2 == 0 {
            senders.next_answer().await;
            tokio::time::sleep(Duration::from_millis(dice.u64(AIMED_MS))).await;
        }
        service.kill();
        // Sometimes it is back at once, sometimes people and senders meet a closed door.
        if dice.bool() {
            tokio::time::sleep(Duration::from_millis(dice.u64(50..400))).await;
        }
        service.resume().await;
    }
    over.store(true, Ordering::SeqCst);
    let silent = script.await.expect("the script runs to its end");
    emulator.heal().await;
    senders.all_answered().await;
    println!(
        "{KILLS} kills in {:.1} s, {} deliveries answered 202",
        deaths.elapsed().as_secs_f64(),
        senders.inner.accepted.load(Ordering::SeqCst)
    );

    agree(&emulator, &places, &service).await;
    // An agreement on nothing would prove nothing.
    let state = emulator.state().await;
    for place in &places {
        assert!(state.defender(place).len() >= INCIDENTS_PER_PLACE);
    }
    // These are older than any watermark and were named by one notification each, so nothing but that notification
    // can have brought them here.
    assert!(silent.len() >= 5, "the script was too short: {} silent incidents", silent.len());
    for Subject { place, incident } in &silent {
        let twin = state.twin(&places[*place], incident);
        assert!(twin.is_some(), "the hint on {incident} was answered 202 and never served");
    }
    nothing_is_parked(&service);
    quiet(&emulator, &places, &service).await;
    // Being quiet must not have cost the agreement.
    agree(&emulator, &places, &service).await;
}

/// An incident as Defender raises it.
fn fresh(title: &str) -> Value {
    json!({
        "displayName": title, "severity": "medium", "status": "active", "classification": "unknown",
        "determination": "unknown", "customTags": ["first"], "description": "Something was seen.",
    })
}

/// Lost answers and slow ones. The service and the people meet them alike.
fn trouble(dice: &mut fastrand::Rng) -> Value {
    let (service, method) = *dice
        .choice(&[("graph", "PATCH"), ("arm", "PUT"), ("graph", "GET"), ("arm", "GET")])
        .expect("not empty");
    let kind = if dice.bool() { "drop-after" } else { "delay" };
    json!({"service": service, "method": method, "times": dice.u64(1..4), "kind": kind, "delayMs": 700})
}

/// Edits on both sides until `over`, each Sentinel edit told by a playbook post. Returns the silent incidents: raised
/// with old times, so that no poll can find them, and told once.
async fn people(
    emulator: Arc<Emulator>,
    places: Vec<Place>,
    analysts: Vec<Analyst>,
    subjects: Vec<Subject>,
    senders: Senders,
    over: Arc<AtomicBool>,
    mut dice: fastrand::Rng,
) -> Vec<Subject> {
    let mut silent = Vec::new();
    let mut turn = 0_usize;
    while !over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(dice.u64(EDIT_EVERY_MS))).await;
        turn += 1;
        if turn.is_multiple_of(8) {
            let place = dice.usize(..places.len());
            let mut old = fresh(&format!("Silent {}", silent.len()));
            old["createdDateTime"] = json!("2026-03-01T08:00:00.5233333Z");
            old["lastUpdateDateTime"] = json!("2026-03-01T08:00:00.5233333Z");
            let incident = emulator.raise_in_the_past(&places[place], old).await;
            senders.graph(&service::graph_body(&places[place], &incident));
            silent.push(Subject { place, incident });
            continue;
        }
        let subject = &subjects[turn % subjects.len()];
        let (place, analyst) = (&places[subject.place], &analysts[subject.place]);
        let twin = emulator.state().await.twin(place, &subject.incident).cloned();
        let both = dice.u8(..6) == 0;
        if let Some(twin) = twin
            && (both || dice.bool())
        {
            let name = twin["name"].as_str().expect("ARM names its incidents");
            let written = analyst.edit_sentinel(name, sentinel_edit(&mut dice, turn)).await;
            senders.playbook(subject.place, &service::playbook_body(place, "Update", &written));
            if !both {
                continue;
            }
        }
        analyst.edit_defender(&subject.incident, defender_edit(&mut dice, turn)).await;
    }
    silent
}

fn defender_edit(dice: &mut fastrand::Rng, turn: usize) -> Value {
    match dice.u8(..6) {
        0 => json!({"severity": dice.choice(["low", "medium", "high", "informational"])}),
        1 => {
            json!({"assignedTo": dice.choice([json!("omar@contoso.com"), json!("wendy@contoso.com"), Value::Null])})
        }
        2 => json!({"customTags": ["first", format!("d{turn}")]}),
        3 => json!({"displayName": format!("Renamed {turn}")}),
        4 => json!({
            "status": "resolved", "classification": "truePositive", "determination": "malware",
            "resolvingComment": format!("cleaned in turn {turn}"),
        }),
        _ => json!({"status": dice.choice(["active", "inProgress"])}),
    }
}

fn sentinel_edit(dice: &mut fastrand::Rng, turn: usize) -> Value {
    match dice.u8(..5) {
        0 => json!({"severity": dice.choice(["Low", "Medium", "High", "Informational"])}),
        1 => {
            let owner = dice.choice(["omar@contoso.com", "wendy@contoso.com"]);
            json!({"owner": {"userPrincipalName": owner}})
        }
        2 => json!({"labels": [{"labelName": "first"}, {"labelName": format!("s{turn}")}]}),
        3 => json!({
            "status": "Closed", "classification": "FalsePositive", "classificationReason": "IncorrectAlertLogic",
            "classificationComment": format!("a test, turn {turn}"),
        }),
        _ => json!({
            "status": dice.choice(["New", "Active"]), "classification": null, "classificationReason": null,
            "classificationComment": null,
        }),
    }
}

/// Senders that deliver as Logic Apps and Graph do: again and again, with the same delivery id, until they are told
/// 2xx. Afterwards they never speak of it again.
#[derive(Clone)]
struct Senders {
    inner: Arc<Sending>,
}

struct Sending {
    http: reqwest::Client,
    base: String,
    run: u64,
    begun: AtomicU64,
    accepted: AtomicU64,
}

impl Senders {
    fn new(service: &Service, run: u64) -> Self {
        let (http, base) = (support::client(), service.url(""));
        let (begun, accepted) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { inner: Arc::new(Sending { http, base, run, begun, accepted }) }
    }

    fn playbook(&self, place: usize, body: &Value) {
        let sending = self.inner.clone();
        let number = sending.begun.fetch_add(1, Ordering::SeqCst);
        let (id, body) = (format!("msg_{}_{number}", sending.run), body.clone());
        let url = format!("{}/notify/sentinel/workspace-{place}", sending.base);
        tokio::spawn(async move {
            loop {
                let answer = service::post_playbook(&sending.http, &url, &id, &body).await;
                if sending.is_done(answer).await {
                    return;
                }
            }
        });
    }

    fn graph(&self, body: &Value) {
        let (sending, body) = (self.inner.clone(), body.clone());
        sending.begun.fetch_add(1, Ordering::SeqCst);
        let url = format!("{}/notify/graph", sending.base);
        tokio::spawn(async move {
            loop {
                let answer = sending.http.post(&url).json(&body).send().await;
                if sending.is_done(answer.map(|answer| answer.status())).await {
                    return;
                }
            }
        });
    }

    /// Waits for the next delivery to be answered 202, which is when its worker begins.
    async fn next_answer(&self) {
        let before = self.inner.accepted.load(Ordering::SeqCst);
        until("people go on editing", PATIENCE, || async {
            let accepted = self.inner.accepted.load(Ordering::SeqCst);
            if accepted > before { Ok(()) } else { Err(format!("{accepted} answered")) }
        })
        .await;
    }

    async fn all_answered(&self) {
        until("every delivery is answered 202", PATIENCE, || async {
            let begun = self.inner.begun.load(Ordering::SeqCst);
            let accepted = self.inner.accepted.load(Ordering::SeqCst);
            if begun == accepted { Ok(()) } else { Err(format!("{accepted} of {begun}")) }
        })
        .await;
    }
}

impl Sending {
    async fn is_done(&self, answer: reqwest::Result<StatusCode>) -> bool {
        match answer {
            Ok(StatusCode::ACCEPTED) => {
                self.accepted.fetch_add(1, Ordering::SeqCst);
                true
            }
            // The store was not open yet, or the service died before or after the commit: the sender cannot know.
            Ok(StatusCode::SERVICE_UNAVAILABLE) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                false
            }
            // Counted by `all_answered`, which then says how many are missing.
            Ok(other) => {
                eprintln!("a genuine delivery was answered {other}");
                true
            }
        }
    }
}

async fn agree(emulator: &Emulator, places: &[Place], service: &Service) {
    until("both sides say the same", PATIENCE, || async {
        let state = emulator.state().await;
        let found: Vec<String> =
            places.iter().flat_map(|place| in_step::differences(&state, place)).collect();
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{}\nThe service says:\n{}", found.join("\n"), service.log_tail()))
        }
    })
    .await;
}

fn nothing_is_parked(service: &Service) {
    let output = service.command(&["parked"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim() == "0 parked", "parked rows: {said}");
}

/// Both pollers of every place come round twice, and nobody has written anything.
async fn quiet(emulator: &Emulator, places: &[Place], service: &Service) {
    // What was begun when the sides became equal may still end: wait for a stretch without writes before judging.
    let start = Instant::now();
    loop {
        emulator.forget_calls().await;
        until("the pollers come round twice", PATIENCE, || async {
            let calls = emulator.calls_of(CLIENT_ID).await;
            let rounds =
                |side: &str| calls.iter().filter(|call| call.service == side && call.is_list()).count();
            let (graph, arm) = (rounds("graph"), rounds("arm"));
            if graph.min(arm) >= 2 * places.len() { Ok(()) } else { Err(format!("{graph} and {arm} polls")) }
        })
        .await;
        let calls = emulator.calls_of(CLIENT_ID).await;
        let writes: Vec<_> = calls.iter().filter(|call| call.is_write()).collect();
        if writes.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "it goes on writing although both sides are equal: {writes:?}\n{}",
            service.log_tail()
        );
    }
}

/// The judge of all this must itself be able to say no.
#[test]
fn every_kind_of_difference_is_seen() {
    let place = Place::numbered(1);
    let incident = json!({
        "id": "1", "displayName": "A", "severity": "high", "status": "resolved", "assignedTo": "Omar@contoso.com",
        "classification": "truePositive", "determination": "malware", "resolvingComment": "done", "customTags": ["x"],
    });
    let twin = json!({"name": "t", "properties": {
        "title": "A", "severity": "High", "status": "Closed", "owner": {"userPrincipalName": "omar@contoso.com"},
        "classification": "TruePositive", "classificationReason": "SuspiciousActivity",
        "classificationComment": "done", "labels": [{"labelName": "X", "labelType": "User"}],
        "description": "Seen.\n\n--- Lockstep ---\nDefender incident 1\n--- end ---",
    }});
    let judged = |twins: &[Value]| {
        let state = json!({
            "tenants": {&place.tenant_id: {"incidents": [incident]}},
            "workspaces": {place.workspace().to_lowercase(): {"incidents": twins}},
        });
        in_step::differences(&support::emulator::State(state), &place)
    };
    assert_eq!(judged(std::slice::from_ref(&twin)), Vec::<String>::new());
    for (member, other) in [
        ("title", json!("B")),
        ("severity", json!("Low")),
        ("status", json!("Active")),
        ("owner", json!({})),
        ("classification", json!("FalsePositive")),
        ("classificationComment", json!("not done")),
        ("labels", json!([])),
        ("description", json!("Defender incident 11")),
    ] {
        let mut changed = twin.clone();
        changed["properties"][member] = other;
        assert!(!judged(&[changed]).is_empty(), "{member} may differ unseen");
    }
    assert!(!judged(&[]).is_empty() && !judged(&[twin.clone(), twin.clone()]).is_empty());

    // Merged away: no twin at all, or one that is closed.
    let mut open = twin.clone();
    open["properties"]["status"] = json!("Active");
    let merged = |twins: &[Value]| {
        let state = json!({
            "tenants": {&place.tenant_id: {"incidents": [{"id": "1", "status": "redirected"}]}},
            "workspaces": {place.workspace().to_lowercase(): {"incidents": twins}},
        });
        in_step::differences(&support::emulator::State(state), &place).is_empty()
    };
    assert!(merged(&[]) && merged(std::slice::from_ref(&twin)));
    assert!(!merged(&[open]) && !merged(&[twin.clone(), twin]));
}
