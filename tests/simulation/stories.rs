//! A few stories that the random lives do not tell: what a change costs, bursts, slow neighbours, refusals, parking.

use std::sync::Arc;
use std::time::Duration;

use lockstep::adapters::store::SqliteStore;
use lockstep::app::poll::poller_name;
use lockstep::app::reconcile::twin_id;
use lockstep::domain::model::{DefenderStatus, Side};
use lockstep::domain::plan::{Intent, LinkState, format_instant};
use lockstep::domain::policy::Field;
use lockstep::ports::{Hint, Hold, Settlement, Subject};
use serde_json::{Value, json};

use crate::house::{App, House};
use crate::plant::TENANT;

impl House {
    pub(crate) fn incident(&self, id: &str) {
        self.incident_of(id, None);
    }

    fn incident_of(&self, id: &str, at: Option<time::OffsetDateTime>) {
        let mut incident = json!({"id": id, "severity": "low"});
        if let Some(at) = at {
            for name in ["createdDateTime", "lastUpdateDateTime"] {
                incident[name] = json!(format_instant(at));
            }
        }
        self.shared.with(|plant, now| plant.engine_puts(self.at(), &incident, now));
    }

    fn defender_edit(&self, id: &str, members: Value) {
        let at = self.at();
        let done = self
            .shared
            .with(|plant, now| plant.person_in_defender(at, ("ann@contoso.com", id), &members, now));
        assert!(done, "Defender takes {members}");
    }

    fn sentinel_edit(&self, id: &str, name: &str, value: &str) {
        let at = self.at();
        let edit = |properties: &mut serde_json::Map<String, Value>| {
            properties.insert(name.to_owned(), json!(value));
        };
        let done =
            self.shared.with(|plant, now| plant.person_in_sentinel(at, ("bo@contoso.com", id), edit, now));
        assert!(done, "Sentinel takes {value}");
    }

    fn set_severity(&self, side: Side, id: &str, to: &str) {
        match side {
            Side::Defender => self.defender_edit(id, json!({"severity": to.to_lowercase()})),
            Side::Sentinel => self.sentinel_edit(id, "severity", to),
        }
    }

    fn shows_severity(&self, id: &str, word: &str) {
        let (now, name) = (self.now(), twin_id(&self.key(id)));
        let mut plant = self.shared.plant.lock().unwrap();
        let defender = plant.defender_now(self.at().0, id, now).expect("it is there").says.severity;
        let sentinel = plant.sentinel_now(self.at().1, &name, now).expect("a twin").says.severity;
        assert_eq!(
            [defender.to_string(), sentinel.to_string().to_lowercase()],
            [word, word].map(str::to_lowercase)
        );
    }

    fn twins(&self) -> usize {
        self.shared.plant.lock().unwrap().names(self.at().1).len()
    }

    fn calls(&self) -> u64 {
        self.shared.plant.lock().unwrap().calls
    }

    fn switch(&self, name: &str, value: &str) {
        self.shared.with(|plant, _| plant.world.switches.set(name, value).expect("a value of its own"));
    }

    fn slows(&self, scope: &str, latency: Duration) {
        self.shared.with(|plant, _| plant.slow.insert(scope.to_owned(), latency));
    }

    /// A hint about an incident as it is now, with its version or without.
    pub(crate) fn hint(&self, side: Side, id: &str, versioned: bool) -> Hint {
        let (now, name) = (self.now(), twin_id(&self.key(id)));
        let mut plant = self.shared.plant.lock().unwrap();
        let (tenant, place) = self.at();
        let (scope, native_id, version) = match side {
            Side::Defender => {
                let incident = plant.defender_now(tenant, id, now);
                (tenant, id.to_owned(), incident.map(|incident| format_instant(incident.updated)))
            }
            Side::Sentinel => {
                let etag = plant.sentinel_now(place, &name, now).map(|incident| incident.etag);
                (place, name, etag)
            }
        };
        let version = version.filter(|_| versioned);
        Hint { subject: Subject { side, scope: scope.to_owned(), native_id }, version, source: "test".into() }
    }

    pub(crate) async fn send(&self, side: Side, id: &str, versioned: bool) {
        self.shared.remember(self.hint(side, id, versioned)).await;
    }
}

async fn linked() -> (House, App) {
    linked_on(None).await
}

async fn linked_on(file: Option<&str>) -> (House, App) {
    let mut house = House::new(1);
    if let Some(path) = file {
        house.file = Some(Arc::new(SqliteStore::open(path).await.unwrap()));
    }
    house.incident("29");
    let app = house.start(i64::MAX);
    house.quiet().await.unwrap();
    (house, app)
}

#[tokio::test(start_paused = true)]
async fn a_change_costs_three_calls_with_its_echo() {
    let (house, _app) = linked().await;
    assert_eq!(house.calls(), 3, "the twin");
    for (side, to, versioned) in
        [(Side::Defender, "Medium", true), (Side::Sentinel, "High", true), (Side::Sentinel, "Medium", false)]
    {
        let calls = house.calls();
        house.set_severity(side, "29", to);
        house.send(side, "29", versioned).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        house.shows_severity("29", to);
        // The other side's notification of our own write, and then the polls.
        house.send(side.other(), "29", true).await;
        house.quiet().await.unwrap();
        assert_eq!(house.calls() - calls, 3, "{side}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_hints_in_a_second_cost_four_calls() {
    for side in [Side::Defender, Side::Sentinel] {
        let folder = tempfile::tempdir().unwrap();
        let (house, _app) = linked_on(folder.path().join("lockstep.db").to_str()).await;
        let calls = house.calls();
        house.set_severity(side, "29", "High");
        for _ in 0..100 {
            house.send(side, "29", false).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        house.quiet().await.unwrap();
        house.shows_severity("29", "High");
        let spent = house.calls() - calls;
        assert!(spent <= 4, "{side}: {spent} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_tenant_does_not_slow_another() {
    let mut house = House::with(1, &[("main", TENANT, "soc"), ("slow", "slow", "slow")]);
    (house.polls, house.workers) = (false, 4);
    let (tenant, place) = (house.ways[1].1.clone(), house.ways[1].2.clone());
    for id in 1_000..1_040 {
        let incident = json!({"id": id.to_string()});
        house.shared.with(|plant, now| plant.engine_puts((&tenant, &place), &incident, now));
    }
    house.incident("29");
    house.slows(&tenant, Duration::from_secs(15));
    let _app = house.start(i64::MAX);
    for id in 1_000..1_040 {
        let mut hint = house.hint(Side::Defender, &id.to_string(), false);
        hint.subject.scope.clone_from(&tenant);
        house.shared.remember(hint).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    house.send(Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    house.shows_severity("29", "Low");
}

/// What has announced it may be gone with its job, and where nothing of either side's moved, no version tells of it.
#[tokio::test(start_paused = true)]
async fn a_version_that_is_known_is_no_old_news_while_a_write_is_unproved() {
    let (house, _app) = linked().await;
    {
        let mut disk = house.shared.disk.lock().unwrap();
        let link = disk.links.get_mut(&house.key("29")).unwrap();
        let mut state: LinkState = serde_json::from_str(&link.state).unwrap();
        let known = state.known.clone().unwrap();
        state.intents.push(Intent {
            side: Side::Defender,
            fields: vec![Field::Severity],
            names: Default::default(),
            at: format_instant(known.defender_updated),
            defender: known.defender,
            sentinel: known.sentinel,
        });
        link.state = serde_json::to_string(&state).unwrap();
    }
    let writes = house.writes();
    house.send(Side::Defender, "29", true).await;
    house.quiet().await.unwrap();
    assert_eq!(house.writes() - writes, 1, "a write settles it");
    house.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_in_progress_is_learnt_once() {
    let (house, _app) = linked().await;
    house.switch("inProgress", "refused");
    house.sentinel_edit("29", "status", "Active");
    house.send(Side::Sentinel, "29", true).await;
    house.quiet().await.unwrap();
    assert!(house.door().parked(1).await.unwrap().is_empty());
    let status =
        house.shared.plant.lock().unwrap().defender_now(TENANT, "29", house.now()).unwrap().says.status;
    assert_eq!(status, DefenderStatus::Active);
    let name = format!("in-progress-refused:{TENANT}");
    assert!(house.door().value(&name).await.unwrap().is_some());

    let writes = house.writes();
    for status in ["New", "Active"] {
        house.sentinel_edit("29", "status", status);
        house.send(Side::Sentinel, "29", true).await;
        house.quiet().await.unwrap();
    }
    assert_eq!(house.writes(), writes, "nobody asks Graph again");
}

#[tokio::test(start_paused = true)]
async fn what_vanished_is_parked_and_never_recreated() {
    let (house, _app) = linked().await;
    let name = twin_id(&house.key("29"));
    let place = house.at().1.to_owned();
    house.shared.with(|plant, _| {
        plant.world.workspaces.get_mut(&place).unwrap().delete_incident(&name).unwrap();
    });
    house.set_severity(Side::Defender, "29", "High");
    house.send(Side::Defender, "29", true).await;
    house.quiet().await.unwrap();
    assert_eq!(house.twins(), 0);
    let disk = house.shared.disk.lock().unwrap();
    assert!(disk.links[&house.key("29")].parked.as_ref().is_some_and(|why| why.contains("sentinel")));
    assert!(disk.rows.values().any(|row| row.parked.is_some()), "a person sees it in the queue");
    assert_eq!(disk.journal.iter().filter(|line| line.kind == "park").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_programs_that_disagree_are_stopped() {
    let (house, _app) = linked().await;
    for round in 0..60 {
        house.set_severity(Side::Sentinel, "29", ["Medium", "High"][round % 2]);
        house.send(Side::Sentinel, "29", true).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let disk = house.shared.disk.lock().unwrap();
    assert!(disk.links[&house.key("29")].parked.is_some());
    assert_eq!(disk.journal.iter().filter(|line| line.kind == "write").count(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_attempt() {
    let (house, _app) = linked().await;
    house.shared.with(|plant, _| plant.panics = 1);
    house.set_severity(Side::Defender, "29", "High");
    house.send(Side::Defender, "29", true).await;
    house.quiet().await.unwrap();
    house.shows_severity("29", "High");
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_the_step_and_takes_no_other() {
    let (house, app) = linked().await;
    house.incident("30");
    house.slows(TENANT, Duration::from_secs(4));
    house.set_severity(Side::Defender, "29", "High");
    house.send(Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.stop.cancel();
    house.send(Side::Defender, "30", true).await;
    for task in app.tasks {
        task.await.unwrap();
    }
    house.shows_severity("29", "High");
    assert_eq!(house.twins(), 1, "the second job is for the next start");
}

#[tokio::test(start_paused = true)]
async fn a_hold_stops_writes_until_it_is_lifted() {
    let (house, _app) = linked().await;
    let hold = Hold { route: "main".into(), since: house.now(), reason: "maintenance".into() };
    house.door().hold(&hold).await.unwrap();
    let (writes, calls) = (house.writes(), house.calls());
    house.set_severity(Side::Defender, "29", "High");
    house.send(Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(house.writes(), writes);
    assert_eq!(house.calls(), calls, "nothing is read for what may not be written");
    house.door().release("main").await.unwrap();
    house.quiet().await.unwrap();
    house.shows_severity("29", "High");
}

/// A week's backlog, and one that gathered while the service was down, of more pages than may be read in a minute.
#[tokio::test(start_paused = true)]
async fn a_list_longer_than_a_minutes_budget_comes_to_its_end() {
    for down_for in [None, Some(time::Duration::hours(4))] {
        let mut house = House::new(1);
        let at = house.now() - down_for.unwrap_or(time::Duration::days(3)) + time::Duration::MINUTE;
        house.shared.with(|plant, _| plant.page = 2);
        (0..120).for_each(|id| house.incident_of(&id.to_string(), Some(at)));
        if let Some(down_for) = down_for {
            let name = poller_name(Side::Defender, TENANT);
            house.door().set_value(&name, &format_instant(house.now() - down_for)).await.unwrap();
            // Not by the sweep's look back.
            house.door().set_value("sweep:last", &format_instant(house.now())).await.unwrap();
        }
        let _app = house.start(i64::MAX);
        tokio::time::sleep(Duration::from_secs(60 * 20)).await;
        assert_eq!(house.twins(), 120, "{down_for:?}");
    }
}

/// What is told again by the sweep has the version it was parked with: nothing has changed but the reason.
#[tokio::test(start_paused = true)]
async fn an_incident_that_was_put_aside_in_an_outage_is_tried_again_by_the_sweep() {
    let mut house = House::new(1);
    house.incident("29");
    let store = house.door();
    house.send(Side::Defender, "29", true).await;
    let until = house.now() + Duration::from_secs(90);
    let lease = store.lease_jobs(1, &[], house.now(), until).await.unwrap().remove(0);
    let park = Settlement::Park { reason: "Sentinel cannot be reached".into() };
    store.settle(&lease, park, house.now()).await.unwrap();
    let _app = house.start(i64::MAX);
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    assert_eq!(house.twins(), 0, "parked");
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(house.twins(), 1, "swept");
}

#[tokio::test(start_paused = true)]
async fn what_lies_before_the_backfill_is_never_copied() {
    let mut house = House::new(1);
    house.backfill = Some(Duration::from_secs(3600));
    for (id, age) in [("28", time::Duration::hours(2)), ("29", time::Duration::minutes(50))] {
        house.incident_of(id, Some(house.now() - age));
    }
    let _app = house.start(i64::MAX);
    tokio::time::sleep(Duration::from_secs(13 * 3600)).await;
    assert_eq!(house.twins(), 1, "two sweeps later");
}
