//! The backfill: in order, a few at a time, once; and it goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use lockstep::app::backfill::*;
use lockstep::app::patience::Patience;
use lockstep::domain::failure::Class;
use lockstep::domain::model::*;
use lockstep::domain::policy::Policy;
use lockstep::ports::{Clock, Settlement};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::sweeps::{Stage, at_rest};

const DAY: time::Duration = time::Duration::DAY;

/// A past of so many incidents, one every hour up to now, the lowest id the newest. None has a link.
fn past(incidents: u32) -> Stage {
    let stage = Stage::with(incidents);
    let now = stage.clock.now();
    stage.disk.lock().unwrap().links.clear();
    let mut shelves = stage.shelves.lock().unwrap();
    for (number, incident) in shelves.defender.values_mut().enumerate() {
        incident.created = Some(now - time::Duration::HOUR * (number as i32 + 1));
    }
    drop(shelves);
    stage
}

fn backfiller(stage: &Stage) -> Backfiller {
    let (store, routes) = (stage.store(), stage.routes(Policy::default()));
    Backfiller { store, routes, clock: stage.clock.clone(), options: BackfillOptions::default() }
}

fn filling(stage: &Stage) -> Filling {
    let backfiller = backfiller(stage);
    let route = backfiller.routes.all()[0].clone();
    Filling::new(backfiller, route)
}

async fn order(stage: &Stage, since: OffsetDateTime, newest_first: bool) -> Order {
    let now = stage.clock.now();
    let by = "command".to_owned();
    let order = Order { since, until: now, newest_first, ordered_at: now, by, cancelled: false };
    give(&*stage.store(), "main", &order).await.unwrap();
    order
}

fn link(stage: &Stage, id: &str) {
    let (_, _, link) = at_rest(id.parse::<u32>().unwrap() - 1_000, stage.clock.now());
    stage.disk.lock().unwrap().links.insert(link.key.clone(), link);
}

/// The worker serves what waits, oldest hint first, and makes links. Returns the incidents in its order.
async fn serve(stage: &Stage) -> Vec<String> {
    let store = stage.store();
    let (now, mut served) = (stage.clock.now(), Vec::new());
    let leases = store.lease_jobs(1_000, &[], now, now + DAY).await.unwrap();
    assert!(leases.len() <= 200, "{} wait at a time", leases.len());
    for lease in leases {
        assert_eq!(lease.sources, "backfill");
        store.settle(&lease, Settlement::Done { rest_until: now }, now).await.unwrap();
        link(stage, &lease.subject.native_id);
        served.push(lease.subject.native_id);
    }
    served
}

async fn progress(stage: &Stage) -> Progress {
    status(&*stage.store(), "main").await.unwrap().unwrap().1.unwrap()
}

/// Steps until it is full or ended.
async fn fill(filling: &mut Filling) -> Filled {
    loop {
        match filling.step().await.unwrap() {
            Filled::Page | Filled::Told(_) => {}
            other => return other,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_past_is_copied_in_order_a_few_at_a_time_and_once() {
    for newest_first in [true, false] {
        let stage = past(600);
        let now = stage.clock.now();
        {
            let mut shelves = stage.shelves.lock().unwrap();
            shelves.defender.get_mut("1003").unwrap().says.status = DefenderStatus::Redirected;
        }
        // One has a twin already.
        link(&stage, "1004");
        order(&stage, now - time::Duration::HOUR * 500, newest_first).await;
        let mut filling = filling(&stage);
        let mut served = Vec::new();
        while fill(&mut filling).await == Filled::Full {
            // Nothing more while nobody serves.
            assert_eq!(filling.step().await.unwrap(), Filled::Full);
            served.extend(serve(&stage).await);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        served.extend(serve(&stage).await);
        let wanted: Vec<String> =
            (1_000..1_500).filter(|id| ![1_003, 1_004].contains(id)).map(|id| id.to_string()).collect();
        let (mut sorted, mut late) = (served.clone(), 0);
        sorted.sort();
        assert_eq!(sorted, wanted, "each once, and none from before the span");
        // The hints of one batch have one time; between batches the order is kept.
        let newest = |id: &String| id.parse::<i32>().unwrap();
        for pair in served.chunks(200).collect::<Vec<_>>().windows(2) {
            let (first, then) = (pair[0].iter().map(newest), pair[1].iter().map(newest));
            late += u32::from(match newest_first {
                true => first.max() > then.min(),
                false => first.min() < then.max(),
            });
        }
        assert_eq!(late, 0, "newest first: {newest_first}");
        let Progress { phase, incidents, linked, merged, told, pages, .. } = progress(&stage).await;
        assert_eq!((phase, incidents, linked, merged, told), (Phase::Done, 500, 1, 1, 498));
        assert!(pages < 30, "{pages} pages for 500 incidents");
        assert_eq!(filling.step().await.unwrap(), Filled::NoOrder);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_at_the_last_window_and_a_second_replica_waits() {
    let stage = past(600);
    order(&stage, stage.clock.now() - time::Duration::HOUR * 600, true).await;
    let mut first = filling(&stage);
    assert_eq!(fill(&mut first).await, Filled::Full);
    let before = progress(&stage).await;
    assert!(before.told > 0 && before.told < 200);
    assert_eq!(filling(&stage).step().await.unwrap(), Filled::NotOurs);
    drop(first);
    // Its fence runs out.
    tokio::time::sleep(Duration::from_secs(16 * 60)).await;
    serve(&stage).await;
    let pages = stage.shelves.lock().unwrap().lists[0];
    let mut second = filling(&stage);
    while fill(&mut second).await == Filled::Full {
        serve(&stage).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let after = progress(&stage).await;
    assert_eq!((after.phase, after.incidents, after.linked + after.told), (Phase::Done, 600, 600));
    assert!(after.began == before.began && after.linked < 200, "it did not begin again: {after:?}");
    assert!(stage.shelves.lock().unwrap().lists[0] - pages < 25);
}

#[tokio::test(start_paused = true)]
async fn orders_are_taken_up_by_the_running_service_once_and_can_be_taken_back() {
    let stage = past(600);
    let stop = CancellationToken::new();
    let running = backfiller(&stage).run(Arc::new(Notify::new()), stop.clone());
    let running = AbortOnDropHandle::new(tokio::spawn(running));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let store = stage.store();
    assert!(!cancel(&*store, "main", stage.clock.now()).await.unwrap(), "there is none");
    let since = stage.clock.now() - time::Duration::HOUR * 900;
    let given = order(&stage, since, false).await;
    assert!(!give_once(&*store, "main", &given).await.unwrap(), "the configuration orders once");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(serve(&stage).await.len(), 200);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cancel(&*store, "main", stage.clock.now()).await.unwrap());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(serve(&stage).await.len(), 200, "what was in the queue");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(serve(&stage).await.len(), 0, "and nothing more");
    // Another order begins anew, and finds what has twins.
    order(&stage, since, true).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        serve(&stage).await;
    }
    let done = progress(&stage).await;
    assert_eq!((done.phase, done.linked, done.told), (Phase::Done, 400, 200));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_side_in_trouble_is_waited_for_and_a_refusal_ends_the_order() {
    let stage = past(100);
    order(&stage, stage.clock.now() - DAY * 30, true).await;
    let wait = Duration::from_secs(61);
    stage.shelves.lock().unwrap().trouble =
        vec![Class::Permanent, Class::Retry { wait: None }, Class::Auth, Class::Retry { wait: Some(wait) }];
    let mut filling = filling(&stage);
    assert_eq!(filling.step().await.unwrap(), Filled::Waiting(wait));
    assert_eq!(filling.step().await.unwrap(), Filled::Waiting(Duration::from_secs(60)));
    assert!(matches!(filling.step().await.unwrap(), Filled::Waiting(_)));
    assert!(matches!(filling.step().await.unwrap(), Filled::Failed(_)));
    assert_eq!((progress(&stage).await.phase, progress(&stage).await.told), (Phase::Failed, 0));
    assert_eq!(filling.step().await.unwrap(), Filled::NoOrder, "until it is ordered again");
    tokio::time::sleep(Duration::from_secs(1)).await;
    order(&stage, stage.clock.now() - DAY * 30, true).await;
    assert_eq!(fill(&mut filling).await, Filled::Done);
    assert_eq!(progress(&stage).await.told, 100);
}

#[tokio::test(start_paused = true)]
async fn a_survey_counts_and_orders_nothing() {
    let stage = past(120);
    stage.shelves.lock().unwrap().defender.get_mut("1003").unwrap().says.status = DefenderStatus::Redirected;
    link(&stage, "1004");
    let backfiller = backfiller(&stage);
    let (now, route) = (stage.clock.now(), backfiller.routes.all()[0].clone());
    let since = now - time::Duration::HOUR * 110;
    let survey = backfiller.survey(&route, since, now, &Patience::silent()).await.unwrap();
    assert_eq!((survey.incidents, survey.linked, survey.merged, survey.to_link), (110, 1, 1, 108));
    assert_eq!(survey.pages, 3);
    assert_eq!(survey.months.values().flat_map(|month| month.values()).sum::<u64>(), 110);
    assert!(stage.hinted().is_empty());
}
