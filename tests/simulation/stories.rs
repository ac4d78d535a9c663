//! A few stories that the random worlds do not tell: what a change costs, bursts, slow neighbours, refusals, parking.

use std::sync::Arc;
use std::time::Duration;

use lockstep::adapters::store::SqliteStore;
use lockstep::app::poll::poller_name;
use lockstep::app::reconcile::twin_id;
use lockstep::domain::model::{DefenderStatus, Side};
use lockstep::domain::plan::format_instant;
use lockstep::ports::{Hold, Settlement};

use crate::sides::Cell;
use crate::world::{World, key};

async fn linked() -> (World, crate::world::App) {
    linked_on(None).await
}

async fn linked_on(file: Option<&str>) -> (World, crate::world::App) {
    let mut world = World::new(1);
    if let Some(path) = file {
        world.file = Some(Arc::new(SqliteStore::open(path).await.unwrap()));
    }
    world.incident("29");
    let app = world.start(i64::MAX);
    world.quiet().await.unwrap();
    (world, app)
}

fn severity(world: &World, id: &str) -> [u8; 2] {
    let remote = world.shared.remote.lock().unwrap();
    let twin = remote.twin(&twin_id(&key(id))).expect("a twin");
    [
        crate::sides::defender_cell(&remote.defender(id).says, Cell::Severity),
        crate::sides::sentinel_cell(&twin.says, Cell::Severity),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_change_costs_three_calls_with_its_echo() {
    let (world, app) = linked().await;
    assert_eq!(world.calls(), 3, "the twin");
    for (side, to, versioned) in
        [(Side::Defender, 1, true), (Side::Sentinel, 2, true), (Side::Sentinel, 1, false)]
    {
        let calls = world.calls();
        assert!(world.edit(side, "29", Cell::Severity, to));
        world.send(&app, side, "29", versioned).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(severity(&world, "29"), [to, to]);
        // The other side's notification of our own write, and then the polls.
        world.send(&app, side.other(), "29", true).await;
        world.quiet().await.unwrap();
        assert_eq!(world.calls() - calls, 3, "{side}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_hints_in_a_second_cost_four_calls() {
    for side in [Side::Defender, Side::Sentinel] {
        let folder = tempfile::tempdir().unwrap();
        let (world, app) = linked_on(folder.path().join("lockstep.db").to_str()).await;
        let calls = world.calls();
        world.edit(side, "29", Cell::Severity, 2);
        for _ in 0..100 {
            world.send(&app, side, "29", false).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.quiet().await.unwrap();
        assert_eq!(severity(&world, "29"), [2, 2]);
        let spent = world.calls() - calls;
        assert!(spent <= 4, "{side}: {spent} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_tenant_does_not_slow_another() {
    let mut world = World::new(1);
    world.routes = vec![
        ("main", crate::world::TENANT, crate::world::WORKSPACE),
        ("slow", "slow", "/subscriptions/s/workspaces/slow"),
    ];
    world.polls = false;
    world.workers = 4;
    for id in 0..40 {
        world.incident(&(1_000 + id).to_string());
    }
    world.incident("29");
    world.shared.remote.lock().unwrap().slow.insert("slow".into(), Duration::from_secs(15));
    let app = world.start(i64::MAX);
    let hints = (0..40).map(|id| {
        let mut hint = world.hint(Side::Defender, &(1_000 + id).to_string(), true);
        hint.subject.scope = "slow".into();
        hint
    });
    app.store.remember(hints.collect(), None, world.now()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.send(&app, Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(severity(&world, "29"), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_in_progress_is_learnt_once() {
    let (world, app) = linked().await;
    world.shared.remote.lock().unwrap().refuses_in_progress = true;
    world.edit(Side::Sentinel, "29", Cell::Status, 1);
    world.send(&app, Side::Sentinel, "29", true).await;
    world.quiet().await.unwrap();
    assert!(world.shared.disk.lock().unwrap().rows.values().all(|row| row.parked.is_none()));
    assert_eq!(world.shared.remote.lock().unwrap().defender("29").says.status, DefenderStatus::Active);
    assert!(world.shared.disk.lock().unwrap().values.contains_key("in-progress-refused:tenant"));

    let calls = world.calls();
    world.edit(Side::Sentinel, "29", Cell::Status, 0);
    world.send(&app, Side::Sentinel, "29", true).await;
    world.quiet().await.unwrap();
    world.edit(Side::Sentinel, "29", Cell::Status, 1);
    world.send(&app, Side::Sentinel, "29", true).await;
    world.quiet().await.unwrap();
    assert!(world.calls() - calls <= 4, "nobody asks Graph again");
}

#[tokio::test(start_paused = true)]
async fn what_vanished_is_parked_and_never_recreated() {
    let (world, app) = linked().await;
    let name = twin_id(&key("29"));
    world.shared.remote.lock().unwrap().delete_twin(&name);
    world.edit(Side::Defender, "29", Cell::Severity, 2);
    world.send(&app, Side::Defender, "29", true).await;
    world.quiet().await.unwrap();
    assert_eq!(world.shared.remote.lock().unwrap().twins(), 0);
    let disk = world.shared.disk.lock().unwrap();
    assert!(disk.links[&key("29")].parked.as_ref().is_some_and(|why| why.contains("sentinel")));
    assert!(disk.rows.values().any(|row| row.parked.is_some()), "a person sees it in the queue");
    assert_eq!(disk.journal.iter().filter(|line| line.kind == "park").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_programs_that_disagree_are_stopped() {
    let (world, app) = linked().await;
    for round in 0..60 {
        world.edit(Side::Sentinel, "29", Cell::Severity, 1 + round % 2);
        world.send(&app, Side::Sentinel, "29", true).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let disk = world.shared.disk.lock().unwrap();
    assert!(disk.links[&key("29")].parked.is_some());
    assert_eq!(disk.journal.iter().filter(|line| line.kind == "write").count(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_attempt() {
    let (world, app) = linked().await;
    world.shared.remote.lock().unwrap().panics = 1;
    world.edit(Side::Defender, "29", Cell::Severity, 2);
    world.send(&app, Side::Defender, "29", true).await;
    world.quiet().await.unwrap();
    assert_eq!(severity(&world, "29"), [2, 2]);
    let _ = app.worker.step().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_the_step_and_takes_no_other() {
    let (world, app) = linked().await;
    world.incident("30");
    world.shared.remote.lock().unwrap().slow.insert(crate::world::TENANT.into(), Duration::from_secs(4));
    world.edit(Side::Defender, "29", Cell::Severity, 2);
    world.send(&app, Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.stop.cancel();
    world.send(&app, Side::Defender, "30", true).await;
    for task in app.tasks {
        task.await.unwrap();
    }
    assert_eq!(severity(&world, "29"), [2, 2]);
    assert_eq!(world.shared.remote.lock().unwrap().twins(), 1, "the second job is for the next start");
}

#[tokio::test(start_paused = true)]
async fn a_hold_stops_writes_until_it_is_lifted() {
    let (world, app) = linked().await;
    let hold = Hold { route: "main".into(), since: world.now(), reason: "maintenance".into() };
    app.store.hold(&hold).await.unwrap();
    let (writes, calls) = (world.writes(), world.calls());
    world.edit(Side::Defender, "29", Cell::Severity, 2);
    world.send(&app, Side::Defender, "29", true).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.writes(), writes);
    assert_eq!(world.calls(), calls, "nothing is read for what may not be written");
    app.store.release("main").await.unwrap();
    world.quiet().await.unwrap();
    assert_eq!(severity(&world, "29"), [2, 2]);
}

/// A week's backlog, and one that gathered while the service was down, of 80 pages where 20 may be read in a minute.
#[tokio::test(start_paused = true)]
async fn a_list_longer_than_a_minutes_budget_comes_to_its_end() {
    for down_for in [None, Some(time::Duration::hours(4))] {
        let world = World::new(1);
        let at = world.now() - down_for.unwrap_or(time::Duration::days(3)) + time::Duration::MINUTE;
        {
            let mut remote = world.shared.remote.lock().unwrap();
            remote.pages = (2, 20);
            (0..160).for_each(|id| remote.new_incident(&id.to_string(), at));
        }
        if let Some(down_for) = down_for {
            let name = poller_name(Side::Defender, crate::world::TENANT);
            world.door().set_value(&name, &format_instant(world.now() - down_for)).await.unwrap();
            // Not by the sweep's look back.
            world.door().set_value("sweep:last", &format_instant(world.now())).await.unwrap();
        }
        let app = world.start(i64::MAX);
        tokio::time::sleep(Duration::from_secs(60 * 20)).await;
        assert_eq!(world.shared.remote.lock().unwrap().twins(), 160, "{down_for:?}");
        drop(app);
    }
}

/// What is told again by the sweep has the version it was parked with: nothing has changed but the reason.
#[tokio::test(start_paused = true)]
async fn an_incident_that_was_put_aside_in_an_outage_is_tried_again_by_the_sweep() {
    let world = World::new(1);
    world.incident("29");
    let store = world.door();
    store.remember(vec![world.hint(Side::Defender, "29", true)], None, world.now()).await.unwrap();
    let until = world.now() + Duration::from_secs(90);
    let lease = store.lease_jobs(1, &[], world.now(), until).await.unwrap().remove(0);
    let park = Settlement::Park { reason: "Sentinel cannot be reached".into() };
    store.settle(&lease, park, world.now()).await.unwrap();
    let app = world.start(i64::MAX);
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    assert_eq!(world.shared.remote.lock().unwrap().twins(), 0, "parked");
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(world.shared.remote.lock().unwrap().twins(), 1, "swept");
    drop(app);
}

#[tokio::test(start_paused = true)]
async fn what_lies_before_the_backfill_is_never_copied() {
    let mut world = World::new(1);
    world.backfill = Some(Duration::from_secs(3600));
    let at = world.now();
    for (id, age) in [("28", time::Duration::hours(2)), ("29", time::Duration::minutes(50))] {
        world.shared.remote.lock().unwrap().new_incident(id, at - age);
    }
    let app = world.start(i64::MAX);
    tokio::time::sleep(Duration::from_secs(13 * 3600)).await;
    assert_eq!(world.shared.remote.lock().unwrap().twins(), 1, "two sweeps later");
    drop(app);
}
