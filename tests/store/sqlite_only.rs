//! What only a file can suffer.

use std::time::{Duration, Instant};

use lockstep::adapters::store::{self, sqlite_version};
use lockstep::ports::StoreError;
use rusqlite::Connection;

use crate::contract::{at, hint};
use crate::place::Place;

#[test]
fn the_built_in_sqlite_is_past_the_wal_reset_bug() {
    let version: Vec<u32> = sqlite_version().split('.').map(|part| part.parse().expect("a number")).collect();
    assert!(version >= vec![3, 51, 3], "{version:?}");
}

#[tokio::test]
async fn commits_survive_power_loss() {
    let place = Place::sqlite();
    let _store = place.open().await;
    // The journal mode is the file's; `synchronous=FULL` is the connection's and shows in no file.
    let mode: String = Connection::open(place.file())
        .and_then(|connection| connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)))
        .expect("a readable file");
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let url = format!("sqlite://{}", Place::sqlite().file().with_file_name("none/lockstep.db").display());
    let Err(error) = store::open(&url).await else { panic!("opened") };
    assert!(error.to_string().contains("/none does not exist"), "{error}");
}

#[tokio::test]
async fn a_file_of_a_newer_lockstep_is_left_alone() {
    let place = Place::sqlite();
    drop(place.open().await);
    Connection::open(place.file()).unwrap().pragma_update(None, "user_version", 9_999).unwrap();
    let Err(error) = store::open(&place.url).await else { panic!("opened") };
    assert!(error.to_string().contains("newer Lockstep"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let place = Place::sqlite();
    std::fs::write(place.file(), "no database at all, ".repeat(1_000)).unwrap();
    let Err(error) = store::open(&place.url).await else { panic!("opened") };
    assert!(error.to_string().contains("not a database"), "{error}");
}

/// Another process in the middle of a long write: the doors hear of it in time to answer 503, reading goes on, and
/// all is well when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_is_unavailable_in_time_and_recovers() {
    let place = Place::sqlite();
    let store = place.open().await;
    let other = Connection::open(place.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    let waiting: Vec<_> = (0..600)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(
                async move { store.remember(vec![hint("t", &number.to_string())], None, at(0)).await },
            )
        })
        .collect();
    assert_eq!(store.holds().await.unwrap(), []);
    for one in waiting {
        assert!(matches!(one.await.unwrap(), Err(StoreError::Unavailable(_))));
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    other.execute_batch("ROLLBACK").unwrap();
    // What was in the middle of waiting may have been stored: it may be asked again. Nothing else was.
    store.remember(vec![hint("t", "after")], None, at(0)).await.unwrap();
    assert!((1..300).contains(&store.queue_stats().await.unwrap().waiting));
}

/// Under tokio's paused clock time jumps to the next timer when nothing runs: a commit under way must count as running.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_run_away_from_a_commit() {
    let store = Place::sqlite().open().await;
    for number in 0..50 {
        store.remember(vec![hint("t", &number.to_string())], None, at(0)).await.unwrap();
    }
}

/// A million links, and a scrape every few seconds: what is put aside is found without reading them all.
#[tokio::test]
async fn parked_links_are_counted_by_an_index() {
    let place = Place::sqlite();
    drop(place.open().await);
    let plan: String = Connection::open(place.file())
        .unwrap()
        .query_row("EXPLAIN QUERY PLAN SELECT count(*) FROM links WHERE parked IS NOT NULL", [], |row| {
            row.get(3)
        })
        .unwrap();
    assert!(plan.contains("links_parked"), "{plan}");
}
