//! What only a server can do to us.

use lockstep::adapters::store;
use sqlx::Executor;

use crate::contract::{at, hint, hint_of};
use crate::place::Place;

const NEEDS: &str = "the server answers";

#[tokio::test]
#[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
async fn postgres_may_close_all_connections() {
    Place::postgres().await.run(closed_connections).await;
}

async fn closed_connections(place: Place) {
    let store = place.open().await;
    store.remember(vec![hint("t", "1")], None, at(0)).await.expect(NEEDS);
    assert_eq!(store.holds().await.expect(NEEDS), []);
    let mut beside = place.beside().await;
    for round in 0..3 {
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        let closed = sqlx::query(all).bind(place.schema()).fetch_all(&mut beside).await.expect(NEEDS);
        assert!(!closed.is_empty());
        store.remember(vec![hint("t", "1")], None, at(round)).await.expect("a new connection");
        store.holds().await.expect("a new connection");
    }
    assert_eq!(store.lease_jobs(1, &[], at(9), at(60)).await.expect(NEEDS)[0].hints, 4);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
async fn postgres_of_a_newer_lockstep_is_left_alone() {
    Place::postgres().await.run(newer).await;
}

async fn newer(place: Place) {
    drop(place.open().await);
    place.beside().await.execute("INSERT INTO lockstep_tables (version) VALUES (9999)").await.expect(NEEDS);
    let Err(error) = store::open(&place.url).await else { panic!("opened") };
    assert!(error.to_string().contains("newer Lockstep"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
async fn postgres_replicas_may_start_together() {
    Place::postgres().await.run(together).await;
}

async fn together(place: Place) {
    let opening: Vec<_> = (0..6)
        .map(|_| {
            let place = place.clone();
            tokio::spawn(async move { place.open().await.ping().await })
        })
        .collect();
    for one in opening {
        one.await.expect("no panic").expect(NEEDS);
    }
}

/// Two replicas that remember the same incidents in opposite order, again and again: never a deadlock that shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
async fn postgres_replicas_do_not_lock_each_other_out() {
    Place::postgres().await.run(crossing).await;
}

async fn crossing(place: Place) {
    let stores = [place.open().await, place.open().await];
    let running: Vec<_> = (0..100)
        .map(|turn: usize| {
            let store = stores[turn % 2].clone();
            let mut hints: Vec<_> =
                (0..20).map(|id| hint_of("t", &id.to_string(), Some(&turn.to_string()), "poll")).collect();
            if turn.is_multiple_of(2) {
                hints.reverse();
            }
            tokio::spawn(async move {
                store.remember(hints, None, at(0)).await?;
                let leases = store.lease_jobs(3, &[], at(1), at(60)).await?;
                for lease in leases {
                    let done = lockstep::ports::Settlement::Done { rest_until: at(0) };
                    store.settle(&lease, done, at(1)).await?;
                }
                store.purge(at(100), at(0)).await
            })
        })
        .collect();
    for one in running {
        one.await.expect("no panic").expect("no deadlock");
    }
}

/// A server that is not there: an error that helps, soon, and without the password.
#[tokio::test]
async fn no_server_is_said_without_the_password() {
    let began = std::time::Instant::now();
    let Err(error) = store::open("postgres://lockstep:hunter2@127.0.0.1:1/lockstep").await else {
        panic!("opened")
    };
    let said = error.to_string();
    assert!(said.contains("refused") && !said.contains("hunter2"), "{said}");
    assert!(began.elapsed() < std::time::Duration::from_secs(8));
}
