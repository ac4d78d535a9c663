//! What `ports::Store` promises, promise by promise. Each case gets a fresh place and opens it as often as it likes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstep::domain::model::{LinkKey, Side};
use lockstep::ports::{
    BACKGROUND_SHARE, Delivery, Fence, Held, Hint, Hold, JobLease, JournalEntry, LinkRecord, Parked,
    QueueStats, Queued, Remembered, Settlement, Store, StoreError, Subject,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::place::Place;

/// Some seconds after an instant that no store can keep in seconds, milliseconds or microseconds.
pub(crate) fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(1_790_000_000_123_456_789).expect("a time")
        + Duration::seconds(seconds)
}

pub(crate) fn subject(scope: &str, id: &str) -> Subject {
    Subject { side: Side::Defender, scope: scope.to_owned(), native_id: id.to_owned() }
}

pub(crate) fn hint_of(scope: &str, id: &str, version: Option<&str>, source: &str) -> Hint {
    Hint { subject: subject(scope, id), version: version.map(str::to_owned), source: source.to_owned() }
}

pub(crate) fn hint(scope: &str, id: &str) -> Hint {
    hint_of(scope, id, None, "poll")
}

async fn tell(store: &Arc<dyn Store>, hint: Hint, now: OffsetDateTime) {
    assert_eq!(store.remember(vec![hint], None, now).await.unwrap(), Remembered::New);
}

async fn lease_one(store: &Arc<dyn Store>, now: OffsetDateTime) -> Option<JobLease> {
    let mut leases = store.lease_jobs(1, &[], now, now + Duration::minutes(1)).await.unwrap();
    assert!(leases.len() <= 1);
    leases.pop()
}

async fn settle(store: &Arc<dyn Store>, lease: &JobLease, settlement: Settlement, now: OffsetDateTime) {
    assert_eq!(store.settle(lease, settlement, now).await.unwrap(), Held::Yes);
}

fn done(now: OffsetDateTime) -> Settlement {
    Settlement::Done { rest_until: now }
}

fn park(reason: &str) -> Settlement {
    Settlement::Park { reason: reason.to_owned() }
}

fn ids(leases: &[JobLease]) -> Vec<String> {
    leases.iter().map(|lease| format!("{}/{}", lease.subject.scope, lease.subject.native_id)).collect()
}

pub(crate) async fn a_hint_becomes_a_job_that_knows_what_the_hint_said(place: Place) {
    let store = place.open().await;
    assert_eq!(lease_one(&store, at(0)).await, None);
    tell(&store, hint_of("t", "7", Some("v1"), "graph-notification"), at(1)).await;
    let lease = lease_one(&store, at(2)).await.unwrap();
    let expected = JobLease {
        subject: subject("t", "7"),
        wanted: lease.wanted,
        version: Some("v1".to_owned()),
        sources: "graph-notification".to_owned(),
        hints: 1,
        served_at: None,
        attempts: 0,
        first_hint_at: at(1),
        token: lease.token,
    };
    assert_eq!(lease, expected);
    assert_eq!(lease_one(&store, at(3)).await, None, "it is in somebody's hands");
    settle(&store, &lease, done(at(3)), at(3)).await;
    assert_eq!(lease_one(&store, at(100)).await, None, "it wants nothing");
    // The same id on the other side is another incident.
    let mut other = hint("t", "7");
    other.subject.side = Side::Sentinel;
    tell(&store, other.clone(), at(100)).await;
    assert_eq!(lease_one(&store, at(100)).await.unwrap().subject, other.subject);
}

pub(crate) async fn many_hints_are_one_job(place: Place) {
    let store = place.open().await;
    let told: Vec<_> = (0..100)
        .map(|second| {
            let store = store.clone();
            tokio::spawn(async move { store.remember(vec![hint("t", "7"); 10], None, at(second)).await })
        })
        .collect();
    for one in told {
        assert_eq!(one.await.unwrap().unwrap(), Remembered::New);
    }
    let leases = store.lease_jobs(10, &[], at(100), at(200)).await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].hints, 1_000);
    settle(&store, &leases[0], done(at(100)), at(100)).await;
    assert_eq!(store.queue_stats().await.unwrap(), QueueStats::default());
}

pub(crate) async fn a_version_stands_only_if_every_hint_named_it(place: Place) {
    let store = place.open().await;
    let (v1, v2) = (Some("v1"), Some("v2"));
    let cases: [(&[Option<&str>], Option<&str>); 7] = [
        (&[v1], v1),
        (&[v1, v1, v1], v1),
        (&[None], None),
        (&[v1, None], None),
        (&[None, v1], None),
        (&[v1, v2], None),
        (&[v1, v2, v2], None),
    ];
    for (number, (versions, expected)) in cases.into_iter().enumerate() {
        for (way, together) in [("one call", true), ("several calls", false)] {
            let id = format!("{number} {way}");
            let hints: Vec<_> = versions.iter().map(|version| hint_of("t", &id, *version, "poll")).collect();
            if together {
                store.remember(hints, None, at(0)).await.unwrap();
            } else {
                for hint in hints {
                    tell(&store, hint, at(0)).await;
                }
            }
            let lease = lease_one(&store, at(1)).await.unwrap();
            assert_eq!(lease.version.as_deref(), expected, "{id}: {versions:?}");
            settle(&store, &lease, done(at(1)), at(1)).await;
        }
    }
}

pub(crate) async fn sources_are_distinct_and_bounded(place: Place) {
    let store = place.open().await;
    for source in ["poll", "sweep", "poll", "oll", "sweep"] {
        tell(&store, hint_of("t", "1", None, source), at(0)).await;
    }
    store
        .remember(
            vec![hint_of("t", "1", None, "sweep"), hint_of("t", "1", None, "door"), hint("t", "1")],
            None,
            at(0),
        )
        .await
        .unwrap();
    assert_eq!(lease_one(&store, at(1)).await.unwrap().sources, "poll,sweep,oll,door");
    for number in 0..60 {
        tell(&store, hint_of("t", "2", None, &format!("door-{number}")), at(0)).await;
    }
    tell(&store, hint_of("t", "3", None, &"é".repeat(300)), at(0)).await;
    for _ in 0..2 {
        let sources = lease_one(&store, at(1)).await.unwrap().sources;
        let count = sources.chars().count();
        assert!((150..=200).contains(&count), "{count}: {sources}");
    }
}

pub(crate) async fn hints_during_a_lease_are_not_lost(place: Place) {
    let store = place.open().await;
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), at(0)).await;
    let first = lease_one(&store, at(1)).await.unwrap();
    tell(&store, hint_of("t", "1", Some("v2"), "playbook"), at(2)).await;
    tell(&store, hint_of("t", "1", Some("v2"), "playbook"), at(3)).await;
    assert_eq!(lease_one(&store, at(4)).await, None, "one worker at a time");
    settle(&store, &first, done(at(4)), at(4)).await;
    let second = lease_one(&store, at(4)).await.expect("the hints that came meanwhile");
    assert_eq!((second.hints, second.first_hint_at), (2, at(2)));
    assert_eq!((second.version.as_deref(), second.sources.as_str()), (Some("v2"), "playbook"));
    assert_eq!(second.wanted, first.wanted + 2);
    settle(&store, &second, done(at(5)), at(5)).await;
    assert_eq!(lease_one(&store, at(6)).await, None);
}

pub(crate) async fn a_hint_ends_the_wait_of_a_row_that_is_to_be_looked_at_again(place: Place) {
    let store = place.open().await;
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), at(0)).await;
    // Nothing comes: it is looked at when it was to be.
    let lease = lease_one(&store, at(1)).await.unwrap();
    settle(&store, &lease, Settlement::Look { at: at(600) }, at(2)).await;
    assert_eq!(lease_one(&store, at(599)).await, None);
    let lease = lease_one(&store, at(600)).await.unwrap();
    assert_eq!((lease.attempts, lease.version.as_deref()), (0, Some("v1")));
    // A hint comes while it waits.
    settle(&store, &lease, Settlement::Look { at: at(1_200) }, at(601)).await;
    tell(&store, hint_of("t", "1", Some("v2"), "poll"), at(700)).await;
    let lease = lease_one(&store, at(700)).await.expect("news does not wait for what is expected later");
    // A hint comes while it is in hand.
    tell(&store, hint_of("t", "1", Some("v3"), "poll"), at(701)).await;
    settle(&store, &lease, Settlement::Look { at: at(1_200) }, at(702)).await;
    let lease = lease_one(&store, at(702)).await.expect("what came meanwhile neither");
    // A wait after a failure is not ended.
    settle(&store, &lease, Settlement::Again { not_before: at(800), counts: true }, at(703)).await;
    tell(&store, hint_of("t", "1", Some("v4"), "poll"), at(704)).await;
    assert_eq!(lease_one(&store, at(704)).await, None);
    assert!(lease_one(&store, at(800)).await.is_some());
}

pub(crate) async fn a_failed_job_waits_and_keeps_its_hints(place: Place) {
    let store = place.open().await;
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), at(0)).await;
    for (round, counts) in [(1_u32, true), (2, true), (2, false), (3, true)] {
        let now = at(0) + Duration::hours(i64::from(round)) + Duration::minutes(i64::from(!counts));
        let lease = lease_one(&store, now).await.unwrap();
        assert_eq!(lease.first_hint_at, at(0));
        assert_eq!((lease.version.as_deref(), lease.sources.as_str()), (Some("v1"), "poll"));
        let not_before = now + Duration::seconds(30);
        settle(&store, &lease, Settlement::Again { not_before, counts }, now).await;
        assert_eq!(lease_one(&store, not_before - Duration::nanoseconds(1)).await, None);
        let lease = lease_one(&store, not_before).await.unwrap();
        assert_eq!(lease.attempts, round);
        settle(&store, &lease, Settlement::Again { not_before, counts: false }, not_before).await;
    }
    // A hint does not shorten the wait, and what it says is added.
    let now = at(0) + Duration::hours(9);
    let lease = lease_one(&store, now).await.unwrap();
    tell(&store, hint_of("t", "1", Some("v1"), "sweep"), now).await;
    let not_before = now + Duration::seconds(30);
    settle(&store, &lease, Settlement::Again { not_before, counts: true }, now).await;
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), now).await;
    assert_eq!(lease_one(&store, now + Duration::seconds(1)).await, None);
    let lease = lease_one(&store, not_before).await.unwrap();
    assert_eq!((lease.hints, lease.attempts, lease.first_hint_at), (3, 4, at(0)));
    assert_eq!((lease.version.as_deref(), lease.sources.as_str()), (Some("v1"), "poll,sweep"));
    // Success ends the row of failures.
    settle(&store, &lease, done(not_before), not_before).await;
    tell(&store, hint("t", "1"), not_before).await;
    assert_eq!(lease_one(&store, not_before).await.unwrap().attempts, 0);
}

pub(crate) async fn a_lease_that_runs_out_is_given_to_another(place: Place) {
    let store = place.open().await;
    tell(&store, hint("t", "1"), at(0)).await;
    let lost = store.lease_jobs(1, &[], at(0), at(10)).await.unwrap().pop().unwrap();
    assert_eq!(lease_one(&store, at(10) - Duration::nanoseconds(1)).await, None);
    let taken = lease_one(&store, at(10)).await.unwrap();
    assert_ne!(taken.token, lost.token);
    assert_eq!((taken.wanted, taken.hints, taken.first_hint_at), (lost.wanted, 1, at(0)));
    assert_eq!(taken.attempts, 1, "a step that died counts, or a deadly job would be tried for ever");
    for settlement in [done(at(11)), Settlement::Again { not_before: at(11), counts: true }, park("late")] {
        assert_eq!(store.settle(&lost, settlement, at(11)).await.unwrap(), Held::No);
    }
    let forged = JobLease { token: Uuid::from_u128(1), ..taken.clone() };
    assert_eq!(store.settle(&forged, done(at(11)), at(11)).await.unwrap(), Held::No);
    let elsewhere = JobLease { subject: subject("t", "2"), ..taken.clone() };
    assert_eq!(store.settle(&elsewhere, done(at(11)), at(11)).await.unwrap(), Held::No);
    settle(&store, &taken, done(at(11)), at(11)).await;
    assert_eq!(store.settle(&taken, done(at(11)), at(11)).await.unwrap(), Held::No, "a lease ends once");
    assert_eq!(lease_one(&store, at(1_000)).await, None);
}

/// A worker may settle a job unseen when its version is known: it must speak for all of the hints.
pub(crate) async fn a_broken_off_lease_takes_no_version_for_all(place: Place) {
    let store = place.open().await;
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), at(0)).await;
    lease_one(&store, at(1)).await.unwrap();
    tell(&store, hint_of("t", "1", Some("v0"), "playbook"), at(2)).await;
    let lease = lease_one(&store, at(100)).await.unwrap();
    assert_eq!((lease.version.as_deref(), lease.hints), (None, 2));
    assert_eq!((lease.sources.as_str(), lease.first_hint_at), ("poll,playbook", at(0)));
}

pub(crate) async fn a_served_row_rests(place: Place) {
    let store = place.open().await;
    tell(&store, hint("t", "1"), at(0)).await;
    let lease = lease_one(&store, at(0)).await.unwrap();
    tell(&store, hint("t", "1"), at(1)).await;
    settle(&store, &lease, Settlement::Done { rest_until: at(10) }, at(2)).await;
    for second in 3..8 {
        tell(&store, hint("t", "1"), at(second)).await;
        assert_eq!(lease_one(&store, at(second)).await, None, "it rests");
    }
    let lease = lease_one(&store, at(10)).await.unwrap();
    assert_eq!((lease.hints, lease.served_at, lease.first_hint_at), (6, Some(at(2)), at(1)));
    // Put off, it has still been served then.
    settle(&store, &lease, Settlement::Again { not_before: at(12), counts: false }, at(10)).await;
    let lease = lease_one(&store, at(12)).await.unwrap();
    assert_eq!((lease.hints, lease.served_at, lease.attempts), (6, Some(at(2)), 0));
    settle(&store, &lease, Settlement::Done { rest_until: at(20) }, at(13)).await;
    // A row without rest is due at once.
    assert_eq!(lease_one(&store, at(50)).await, None);
    tell(&store, hint("t", "1"), at(50)).await;
    assert_eq!(lease_one(&store, at(50)).await.unwrap().served_at, Some(at(13)));
}

pub(crate) async fn the_oldest_hint_comes_first(place: Place) {
    let store = place.open().await;
    for (id, second) in [("c", 3), ("a", 2), ("d", 4), ("b", 1)] {
        tell(&store, hint("t", id), at(second)).await;
        tell(&store, hint("t", id), at(second + 10)).await;
    }
    tell(&store, hint("s", "e"), at(0)).await;
    let leases = store.lease_jobs(4, &[], at(20), at(60)).await.unwrap();
    assert_eq!(ids(&leases), ["s/e", "t/b", "t/a", "t/c"]);
    assert_eq!(ids(&store.lease_jobs(4, &[], at(20), at(60)).await.unwrap()), ["t/d"]);
    assert!(store.lease_jobs(0, &[], at(99), at(199)).await.unwrap().is_empty());
}

pub(crate) async fn a_scope_that_is_skipped_waits_and_holds_nobody_up(place: Place) {
    let store = place.open().await;
    for (scope, id) in [("a", "1"), ("a", "2"), ("b", "3")] {
        tell(&store, hint(scope, id), at(1)).await;
    }
    let side = hint("a", "1").subject.side;
    let skip = [(side, "a".to_owned()), (side, "nobody".to_owned())];
    assert_eq!(ids(&store.lease_jobs(9, &skip, at(2), at(60)).await.unwrap()), ["b/3"]);
    assert!(store.lease_jobs(9, &skip, at(2), at(60)).await.unwrap().is_empty());
    let other_side = [(side.other(), "a".to_owned())];
    assert_eq!(ids(&store.lease_jobs(9, &other_side, at(2), at(60)).await.unwrap()), ["a/1", "a/2"]);
}

pub(crate) async fn scopes_take_turns(place: Place) {
    let store = place.open().await;
    for number in 0..30 {
        tell(&store, hint("flood", &format!("{number:02}")), at(number)).await;
    }
    tell(&store, hint("quiet", "1"), at(100)).await;
    tell(&store, hint("quiet", "2"), at(101)).await;
    tell(&store, hint("other", "1"), at(102)).await;
    // In one call.
    let leases = store.lease_jobs(4, &[], at(200), at(900)).await.unwrap();
    assert_eq!(ids(&leases), ["flood/00", "quiet/1", "other/1", "flood/01"]);
    // And from call to call, for workers lease one job at a time.
    tell(&store, hint("other", "2"), at(201)).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.extend(ids(&store.lease_jobs(1, &[], at(202), at(900)).await.unwrap()));
    }
    assert_eq!(order, ["quiet/2", "other/2", "flood/02", "flood/03", "flood/04"]);
}

fn quiet(scope: &str, id: &str, source: &str) -> Hint {
    hint_of(scope, id, None, source)
}

pub(crate) async fn the_background_waits_for_live_work(place: Place) {
    let store = place.open().await;
    for number in 0..6 {
        let source = if number % 2 == 0 { "backfill" } else { "sweep" };
        tell(&store, quiet("a", &format!("old {number}"), source), at(number)).await;
    }
    tell(&store, quiet("c", "old", "sweep"), at(10)).await;
    for (scope, id) in [("a", "1"), ("b", "1"), ("b", "2")] {
        tell(&store, hint(scope, id), at(100)).await;
    }
    // A source that only looks like one of them is live.
    tell(&store, quiet("a", "2", "backfills"), at(101)).await;
    let leases = store.lease_jobs(6, &[], at(200), at(900)).await.unwrap();
    assert_eq!(ids(&leases), ["a/1", "b/1", "a/2", "b/2", "a/old 0", "c/old"]);
    // The rest of the backlog, one by one, and between two of them what comes in.
    let mut order = Vec::new();
    for second in 0..4 {
        if second == 1 {
            tell(&store, hint("a", "3"), at(201)).await;
        }
        order.extend(ids(&store.lease_jobs(1, &[], at(202), at(900)).await.unwrap()));
    }
    assert_eq!(order, ["a/old 1", "a/3", "a/old 2", "a/old 3"]);
    let skip = [(Side::Defender, "a".to_owned())];
    assert_eq!(store.lease_jobs(9, &skip, at(202), at(900)).await.unwrap(), [], "skipped, live or not");
    assert_eq!(ids(&store.lease_jobs(9, &[], at(202), at(900)).await.unwrap()), ["a/old 4", "a/old 5"]);
}

pub(crate) async fn a_flood_of_live_work_leaves_the_background_a_share(place: Place) {
    let store = place.open().await;
    for number in 0..3 {
        tell(&store, quiet("a", &format!("old {number}"), "sweep"), at(number)).await;
    }
    // Whenever one is leased, the next has come in.
    let mut order = Vec::new();
    for number in 0..2 * BACKGROUND_SHARE {
        tell(&store, hint("a", &format!("{number}")), at(100)).await;
        order.extend(ids(&store.lease_jobs(1, &[], at(200), at(900)).await.unwrap()));
    }
    let served = |order: &[String]| order.iter().filter(|id| id.starts_with("a/old")).count();
    assert_eq!(order[BACKGROUND_SHARE - 1], "a/old 0", "{order:?}");
    assert_eq!((order.len(), served(&order)), (2 * BACKGROUND_SHARE, 2), "{order:?}");
    // And where many are leased at once, no row twice.
    for number in 0..2 * BACKGROUND_SHARE {
        tell(&store, hint("b", &format!("{number}")), at(100)).await;
    }
    let mut order = ids(&store.lease_jobs(BACKGROUND_SHARE, &[], at(200), at(900)).await.unwrap());
    assert_eq!((order.len(), served(&order)), (BACKGROUND_SHARE, 1), "{order:?}");
    order.extend(ids(&store.lease_jobs(99, &[], at(200), at(900)).await.unwrap()));
    let distinct: std::collections::BTreeSet<&String> = order.iter().collect();
    assert_eq!(distinct.len(), order.len(), "{order:?}");
    assert_eq!(store.lease_jobs(99, &[], at(200), at(900)).await.unwrap(), []);
}

pub(crate) async fn a_live_hint_wakes_a_background_row(place: Place) {
    let store = place.open().await;
    let first =
        async |now| lease_one(&store, now).await.map(|lease| (lease.subject.native_id.clone(), lease));
    let tell_both = async |sources: &[&str], now| {
        tell(&store, quiet("t", "first", "sweep"), now).await;
        for source in sources {
            tell(&store, quiet("t", "second", source), now + Duration::seconds(1)).await;
        }
    };
    let serve_all = async |now| {
        for lease in store.lease_jobs(9, &[], now, now + Duration::seconds(1)).await.unwrap() {
            settle(&store, &lease, done(now), now).await;
        }
    };
    // One live hint among others is enough, whenever it comes.
    for (round, sources) in [["poll", "sweep"], ["sweep", "poll"]].into_iter().enumerate() {
        let now = at(round as i64 * 100);
        tell_both(&sources, now).await;
        assert_eq!(first(now + Duration::seconds(2)).await.unwrap().0, "second", "{sources:?}");
        serve_all(now + Duration::seconds(90)).await;
    }
    // In one call too, and it is forgotten once it is served.
    let both = vec![quiet("t", "second", "sweep"), hint("t", "second")];
    tell(&store, quiet("t", "first", "sweep"), at(300)).await;
    store.remember(both, None, at(301)).await.unwrap();
    let (id, lease) = first(at(302)).await.unwrap();
    assert_eq!(id, "second");
    tell(&store, quiet("t", "second", "backfill"), at(303)).await;
    settle(&store, &lease, done(at(304)), at(304)).await;
    assert_eq!(first(at(305)).await.unwrap().0, "first", "what came meanwhile came from the background");
    serve_all(at(390)).await;
    // A failure forgets nothing.
    tell_both(&["poll"], at(400)).await;
    let lease = first(at(402)).await.unwrap().1;
    tell(&store, quiet("t", "second", "sweep"), at(403)).await;
    settle(&store, &lease, Settlement::Again { not_before: at(404), counts: true }, at(403)).await;
    assert_eq!(first(at(405)).await.unwrap().0, "second");
    serve_all(at(490)).await;
    // A hint that comes during a lease is as live afterwards.
    tell(&store, quiet("t", "second", "sweep"), at(500)).await;
    let lease = first(at(500)).await.unwrap().1;
    tell(&store, hint("t", "second"), at(502)).await;
    settle(&store, &lease, done(at(503)), at(503)).await;
    tell(&store, quiet("t", "first", "sweep"), at(501)).await;
    assert_eq!(first(at(504)).await.unwrap().0, "second");
    serve_all(at(590)).await;
    // Whom a person unparks, a person waits for.
    tell(&store, quiet("t", "second", "sweep"), at(600)).await;
    let lease = first(at(600)).await.unwrap().1;
    settle(&store, &lease, park("so"), at(600)).await;
    tell(&store, quiet("t", "first", "sweep"), at(600)).await;
    assert!(store.unpark(&subject("t", "second"), at(601)).await.unwrap());
    assert_eq!(first(at(602)).await.unwrap().0, "second");
}

pub(crate) async fn thousands_of_scopes_in_the_background_hold_nobody_up(place: Place) {
    let store = place.open().await;
    let hints: Vec<_> = (0..1_200).map(|scope| quiet(&format!("t{scope}"), "1", "backfill")).collect();
    for some in hints.chunks(400) {
        store.remember(some.to_vec(), None, at(0)).await.unwrap();
    }
    let mut seen = HashSet::new();
    for round in 0..40 {
        // The last scope in their order, again and again.
        tell(&store, hint("z", &round.to_string()), at(1)).await;
        let leases = store.lease_jobs(31, &[], at(2), at(900)).await.unwrap();
        // After those that the background is owed.
        let live = format!("z/{round}");
        assert_eq!(ids(&leases).iter().position(|id| *id == live), Some(31 / BACKGROUND_SHARE));
        seen.extend(ids(&leases).into_iter().filter(|id| *id != live));
    }
    assert_eq!(seen.len(), 1_200, "and all of them have their turn");
}

pub(crate) async fn thousands_of_scopes_all_have_their_turn(place: Place) {
    let store = place.open().await;
    let hints: Vec<_> = (0..1_200)
        .flat_map(|scope| (0..2).map(move |id| hint(&format!("t{scope}"), &id.to_string())))
        .collect();
    for some in hints.chunks(400) {
        store.remember(some.to_vec(), None, at(0)).await.unwrap();
    }
    let mut seen = HashSet::new();
    let mut rows = 0;
    for _ in 0..80 {
        let leases = store.lease_jobs(50, &[], at(1), at(900)).await.unwrap();
        rows += leases.len();
        seen.extend(leases.into_iter().map(|lease| lease.subject.scope));
        if rows <= 1_000 {
            assert_eq!(seen.len(), rows, "nobody gets a second row while another waits for its first");
        }
    }
    assert_eq!((seen.len(), rows), (1_200, 2_400));
}

async fn parked_with(store: &Arc<dyn Store>, id: &str, version: Option<&str>) {
    tell(store, hint_of("t", id, version, "poll"), at(0)).await;
    let lease = lease_one(store, at(1)).await.unwrap();
    settle(store, &lease, Settlement::Again { not_before: at(2), counts: true }, at(1)).await;
    let lease = lease_one(store, at(2)).await.unwrap();
    assert_eq!(lease.attempts, 1);
    settle(store, &lease, park("no such thing"), at(3)).await;
    assert_eq!(lease_one(store, at(4)).await, None);
}

pub(crate) async fn a_parked_row_waits_for_news(place: Place) {
    let store = place.open().await;
    let hour = Duration::hours(1);
    let (v1, v2) = (Some("v1"), Some("v2"));
    type Version = Option<&'static str>;
    // Parked with, the hints, how long after, and whether that is news.
    let cases: [(Version, &[Version], Duration, bool); 9] = [
        (v1, &[v1], Duration::ZERO, false),
        (v1, &[v1], hour * 5, false),
        (v1, &[v2], Duration::ZERO, true),
        (v1, &[None], hour, false),
        (v1, &[None], hour + Duration::nanoseconds(1), true),
        (v1, &[v1, v2], Duration::ZERO, true),
        (v1, &[v2, v1], Duration::ZERO, true),
        (None, &[None], Duration::ZERO, false),
        (None, &[v1], Duration::ZERO, true),
    ];
    for (number, (parked, told, later, news)) in cases.into_iter().enumerate() {
        let id = number.to_string();
        parked_with(&store, &id, parked).await;
        let expected =
            Parked { subject: subject("t", &id), reason: "no such thing".to_owned(), since: at(3) };
        assert_eq!(store.parked(10).await.unwrap(), [expected]);
        let now = at(3) + later;
        let hints = told.iter().map(|version| hint_of("t", &id, *version, "poll")).collect();
        store.remember(hints, None, now).await.unwrap();
        let lease = lease_one(&store, now).await;
        assert_eq!(lease.is_some(), news, "case {number}: {parked:?}, then {told:?} after {later}");
        if lease.is_none() {
            // What was said meanwhile counts once the row runs again.
            assert!(store.unpark(&subject("t", &id), now).await.unwrap());
        }
        let lease = match lease {
            Some(lease) => lease,
            None => lease_one(&store, now).await.unwrap(),
        };
        assert_eq!((lease.hints, lease.attempts), (1 + told.len() as i64, 0), "case {number}");
        assert_eq!(store.parked(10).await.unwrap(), []);
        settle(&store, &lease, done(now), now).await;
    }
}

pub(crate) async fn news_that_came_while_the_job_ran_is_news(place: Place) {
    let store = place.open().await;
    for (id, during, runs) in [("1", Some("v2"), true), ("2", Some("v1"), false), ("3", None, false)] {
        tell(&store, hint_of("t", id, Some("v1"), "poll"), at(0)).await;
        let lease = lease_one(&store, at(1)).await.unwrap();
        tell(&store, hint_of("t", id, during, "poll"), at(2)).await;
        settle(&store, &lease, park("no such thing"), at(3)).await;
        let again = lease_one(&store, at(3)).await;
        assert_eq!(again.is_some(), runs, "{during:?}");
        assert_eq!(store.parked(10).await.unwrap().is_empty(), runs);
        match again {
            Some(lease) => settle(&store, &lease, done(at(4)), at(4)).await,
            None => assert!(store.unpark(&subject("t", id), at(4)).await.unwrap()),
        }
        if let Some(lease) = lease_one(&store, at(4)).await {
            settle(&store, &lease, done(at(4)), at(4)).await;
        }
    }
}

pub(crate) async fn a_person_unparks_a_row_and_its_link(place: Place) {
    let store = place.open().await;
    assert!(!store.unpark(&subject("t", "1"), at(0)).await.unwrap());
    parked_with(&store, "1", Some("v1")).await;
    parked_with(&store, "2", Some("v1")).await;
    assert!(store.unpark(&subject("t", "1"), at(9)).await.unwrap());
    assert!(!store.unpark(&subject("t", "1"), at(9)).await.unwrap());
    let lease = lease_one(&store, at(9)).await.unwrap();
    assert_eq!((lease.subject.native_id.as_str(), lease.attempts), ("1", 0));
    settle(&store, &lease, done(at(9)), at(9)).await;
    // A link that is put aside, while its row is served: it is looked at again.
    for (side, scope, id) in [(Side::Defender, "t", "1"), (Side::Sentinel, "w", "twin 1")] {
        let parked = LinkRecord { parked: Some("too many writes".to_owned()), ..link("t", "1", "w") };
        save(&store, &parked).await;
        assert!(store.parked(10).await.unwrap().iter().any(|one| one.reason == "too many writes"));
        let subject = Subject { side, scope: scope.to_owned(), native_id: id.to_owned() };
        assert!(store.unpark(&subject, at(10)).await.unwrap());
        assert_eq!(store.link(&parked.key).await.unwrap().unwrap().parked, None);
        let lease = lease_one(&store, at(10)).await.expect("a job for it");
        assert_eq!(lease.subject, subject);
        settle(&store, &lease, done(at(10)), at(10)).await;
    }
    assert_eq!(ids_of(&store.parked(10).await.unwrap()), ["2"], "the other one is still there");
}

/// The rows of both sides and two links of one incident are all put aside: one entry, with every reason once.
pub(crate) async fn what_is_parked_of_one_incident_is_one_entry(place: Place) {
    let store = place.open().await;
    let twin = Subject { side: Side::Sentinel, scope: "w".to_owned(), native_id: "twin 1".to_owned() };
    let aside = |subject: &Subject, reason: &'static str, second: i64| {
        let (store, subject) = (store.clone(), subject.clone());
        async move {
            let hint = Hint { subject, version: None, source: "poll".to_owned() };
            tell(&store, hint, at(second)).await;
            let lease = lease_one(&store, at(second)).await.unwrap();
            settle(&store, &lease, park(reason), at(second)).await;
        }
    };
    let parked_link = |workspace: &str, reason: &str| LinkRecord {
        parked: Some(reason.to_owned()),
        ..link("t", "1", workspace)
    };
    save(&store, &parked_link("w", "gone")).await;
    save(&store, &link("t", "9", "w")).await;
    let entry = |subject: &Subject, reason: &str, since: i64| Parked {
        subject: subject.clone(),
        reason: reason.to_owned(),
        since: at(since),
    };
    let incident = subject("t", "1");
    assert_eq!(store.parked(10).await.unwrap(), [entry(&incident, "gone", 5)], "the link alone");

    aside(&twin, "gone", 6).await;
    assert_eq!(store.parked(10).await.unwrap(), [entry(&incident, "gone", 6)], "one reason, said twice");
    assert_eq!(store.queue_stats().await.unwrap().parked, 1);

    save(&store, &parked_link("v", "also gone")).await;
    aside(&incident, "refused", 7).await;
    aside(&subject("t", "2"), "another", 8).await;
    let all = entry(&incident, "refused; and: gone; and: also gone", 7);
    assert_eq!(store.parked(10).await.unwrap(), [entry(&subject("t", "2"), "another", 8), all]);
    assert_eq!(store.parked(1).await.unwrap().len(), 1);
    assert_eq!(store.queue_stats().await.unwrap().parked, 2, "counted as they are listed");

    // All of it is tried again, and nothing else; by the twin's name what is the twin's.
    for (known_by, still) in [(&incident, ["2"].as_slice()), (&twin, &["2", "1"])] {
        assert!(store.unpark(known_by, at(9)).await.unwrap());
        let mut left = store.parked(10).await.unwrap();
        left.sort_by_key(|one| std::cmp::Reverse(one.subject.native_id.clone()));
        assert_eq!(ids_of(&left), still, "{known_by}");
        for workspace in ["w", "v"] {
            save(&store, &parked_link(workspace, "gone")).await;
        }
        while let Some(lease) = lease_one(&store, at(9)).await {
            settle(&store, &lease, park("again"), at(9)).await;
        }
    }
    // A twin's row alone has its own name.
    assert!(store.unpark(&incident, at(9)).await.unwrap());
    aside(&twin, "odd", 10).await;
    assert_eq!(store.parked(1).await.unwrap(), [entry(&twin, "odd", 10)]);
}

pub(crate) async fn a_row_is_shown_as_it_waits(place: Place) {
    let store = place.open().await;
    let one = subject("t", "1");
    assert_eq!(store.queued(&one).await.unwrap(), None);
    tell(&store, hint_of("t", "1", Some("v1"), "poll"), at(1)).await;
    let waiting = Queued {
        subject: one.clone(),
        hints: 1,
        since: Some(at(1)),
        sources: "poll".to_owned(),
        version: Some("v1".to_owned()),
        attempts: 0,
        next: at(1),
        leased: false,
        background: false,
        parked: None,
    };
    assert_eq!(store.queued(&one).await.unwrap().as_ref(), Some(&waiting));

    let lease = lease_one(&store, at(2)).await.unwrap();
    tell(&store, hint_of("t", "1", Some("v2"), "playbook"), at(3)).await;
    let in_hand = Queued {
        hints: 2,
        sources: "poll,playbook".to_owned(),
        version: None,
        next: at(62),
        leased: true,
        ..waiting.clone()
    };
    assert_eq!(store.queued(&one).await.unwrap().as_ref(), Some(&in_hand));

    settle(&store, &lease, Settlement::Again { not_before: at(90), counts: true }, at(4)).await;
    let later = Queued { attempts: 1, next: at(90), leased: false, ..in_hand };
    assert_eq!(store.queued(&one).await.unwrap().as_ref(), Some(&later), "with all that it is to serve");

    let lease = lease_one(&store, at(90)).await.unwrap();
    settle(&store, &lease, park("no such thing"), at(91)).await;
    let row = store.queued(&one).await.unwrap().unwrap();
    assert_eq!(row.parked, Some(("no such thing".to_owned(), at(91))));

    tell(&store, hint_of("t", "2", None, "sweep"), at(92)).await;
    let row = store.queued(&subject("t", "2")).await.unwrap().unwrap();
    assert!(row.background && row.since == Some(at(92)));
    let lease = lease_one(&store, at(92)).await.unwrap();
    settle(&store, &lease, done(at(92)), at(92)).await;
    let served = store.queued(&subject("t", "2")).await.unwrap().unwrap();
    assert_eq!((served.hints, served.since), (0, None));
}

fn ids_of(parked: &[Parked]) -> Vec<&str> {
    parked.iter().map(|one| one.subject.native_id.as_str()).collect()
}

fn delivery(id: &str, keep_until: OffsetDateTime) -> Option<Delivery> {
    Some(Delivery { door: "playbook:soc".to_owned(), id: id.to_owned(), keep_until })
}

pub(crate) async fn a_repeated_delivery_stores_nothing(place: Place) {
    let store = place.open().await;
    let hints = || vec![hint("t", "1"), hint("t", "2")];
    assert_eq!(store.remember(hints(), delivery("m1", at(600)), at(0)).await.unwrap(), Remembered::New);
    for second in [0, 1, 599] {
        let again = store.remember(vec![hint("t", "3")], delivery("m1", at(900)), at(second)).await.unwrap();
        assert_eq!(again, Remembered::Repeated);
    }
    assert_eq!(store.queue_stats().await.unwrap().waiting, 2);
    // Another id, and the same id at another door, are others; a delivery may be about nothing.
    assert_eq!(store.remember(hints(), delivery("m2", at(600)), at(0)).await.unwrap(), Remembered::New);
    let mut elsewhere = delivery("m1", at(600)).unwrap();
    elsewhere.door = "playbook:other".to_owned();
    assert_eq!(store.remember(vec![], Some(elsewhere), at(0)).await.unwrap(), Remembered::New);
    // Past its time it may come again as a new one.
    store.purge(at(700), at(0)).await.unwrap();
    assert_eq!(store.remember(hints(), delivery("m1", at(900)), at(700)).await.unwrap(), Remembered::New);
    assert_eq!(store.lease_jobs(9, &[], at(700), at(800)).await.unwrap()[0].hints, 3);
}

pub(crate) async fn a_delivery_repeated_at_the_same_time_is_stored_once(place: Place) {
    let stores = [place.open().await, place.open().await];
    let sent: Vec<_> = (0..400)
        .map(|number: usize| {
            let store = stores[number % 2].clone();
            let id = number / 2 % 20;
            tokio::spawn(async move {
                let hints = vec![hint("t", &id.to_string())];
                store.remember(hints, delivery(&id.to_string(), at(600)), at(0)).await.unwrap()
            })
        })
        .collect();
    let mut new = 0;
    for one in sent {
        new += usize::from(one.await.unwrap() == Remembered::New);
    }
    assert_eq!(new, 20);
    let leases = stores[0].lease_jobs(100, &[], at(1), at(60)).await.unwrap();
    assert_eq!(leases.len(), 20);
    assert!(leases.iter().all(|lease| lease.hints == 1));
}

/// Senders write to a ledger and then tell the store; workers note what the ledger says when they serve. In the end
/// every entry was served by a lease that came after it, and every hint was counted once.
pub(crate) async fn no_wake_up_is_lost(place: Place) {
    const SUBJECTS: usize = 5;
    let stores = [place.open().await, place.open().await];
    let ledger: Arc<Vec<AtomicU64>> = Arc::new((0..SUBJECTS).map(|_| AtomicU64::new(0)).collect());
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..SUBJECTS).map(|_| AtomicU64::new(0)).collect());
    let served = Arc::new(AtomicU64::new(0));
    let senders: Vec<_> = (0..20_usize)
        .map(|sender| {
            let (store, ledger) = (stores[sender % 2].clone(), ledger.clone());
            tokio::spawn(async move {
                for turn in 0..20 {
                    let about = (sender + turn) % SUBJECTS;
                    ledger[about].fetch_add(1, Ordering::SeqCst);
                    tell(&store, hint("t", &about.to_string()), at(0)).await;
                }
            })
        })
        .collect();
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4_usize)
        .map(|worker| {
            let (store, ledger, seen) = (stores[worker % 2].clone(), ledger.clone(), seen.clone());
            let (served, over) = (served.clone(), over.clone());
            tokio::spawn(async move {
                loop {
                    // Before the look: an empty queue after the end of the senders is empty for good.
                    let last = over.load(Ordering::SeqCst);
                    let leases = store.lease_jobs(2, &[], at(1), at(600)).await.unwrap();
                    if leases.is_empty() {
                        if last && store.queue_stats().await.unwrap().waiting == 0 {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    for lease in leases {
                        let about: usize = lease.subject.native_id.parse().unwrap();
                        seen[about].fetch_max(ledger[about].load(Ordering::SeqCst), Ordering::SeqCst);
                        served.fetch_add(lease.hints.unsigned_abs(), Ordering::SeqCst);
                        settle(&store, &lease, done(at(1)), at(1)).await;
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    for about in 0..SUBJECTS {
        assert_eq!(seen[about].load(Ordering::SeqCst), ledger[about].load(Ordering::SeqCst), "{about}");
    }
    assert_eq!(served.load(Ordering::SeqCst), 400);
}

pub(crate) async fn nobody_gets_a_row_that_another_holds(place: Place) {
    let stores = [place.open().await, place.open().await];
    let hints = (0..200).map(|id| hint(&format!("t{}", id % 3), &id.to_string())).collect();
    stores[0].remember(hints, None, at(0)).await.unwrap();
    let workers: Vec<_> = (0..8_usize)
        .map(|worker| {
            let store = stores[worker % 2].clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                // Another may hold all that one looks at, so that an empty answer is not yet the end.
                while store.queue_stats().await.unwrap().waiting > 0 {
                    let leases = store.lease_jobs(3, &[], at(1), at(600)).await.unwrap();
                    for lease in &leases {
                        settle(&store, lease, done(at(1)), at(1)).await;
                    }
                    mine.extend(ids(&leases));
                }
                mine
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    assert_eq!(all.len(), 200);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 200);
}

pub(crate) async fn a_fence_has_one_holder(place: Place) {
    let store = place.open().await;
    let first = store.take_fence("link:1", at(0), at(10)).await.unwrap().expect("free");
    assert_eq!(store.take_fence("link:1", at(5), at(50)).await.unwrap(), None);
    assert!(store.take_fence("link:2", at(5), at(50)).await.unwrap().is_some());
    assert_eq!(store.extend_fence(&first, at(9), at(20)).await.unwrap(), Held::Yes);
    assert_eq!(store.take_fence("link:1", at(15), at(50)).await.unwrap(), None);
    // Run out, it is nobody's, and then another's.
    assert_eq!(store.extend_fence(&first, at(20), at(30)).await.unwrap(), Held::No);
    let second = store.take_fence("link:1", at(20), at(30)).await.unwrap().expect("run out");
    assert_eq!(store.extend_fence(&first, at(21), at(90)).await.unwrap(), Held::No);
    store.release_fence(&first).await.unwrap();
    assert_eq!(
        store.take_fence("link:1", at(25), at(50)).await.unwrap(),
        None,
        "not the first one's to give"
    );
    store.release_fence(&second).await.unwrap();
    store.release_fence(&second).await.unwrap();
    // Of many at once, one.
    let stores = [store, place.open().await];
    let takers: Vec<_> = (0..20_usize)
        .map(|taker| {
            let store = stores[taker % 2].clone();
            tokio::spawn(async move { store.take_fence("link:1", at(40), at(50)).await.unwrap() })
        })
        .collect();
    let mut taken = 0;
    for taker in takers {
        taken += usize::from(taker.await.unwrap().is_some());
    }
    assert_eq!(taken, 1);
}

fn key(tenant: &str, incident: &str, workspace: &str) -> LinkKey {
    LinkKey {
        tenant_id: tenant.to_owned(),
        incident_id: incident.to_owned(),
        workspace: workspace.to_owned(),
    }
}

fn link(tenant: &str, incident: &str, workspace: &str) -> LinkRecord {
    LinkRecord {
        key: key(tenant, incident, workspace),
        route: "soc".to_owned(),
        sentinel_id: format!("twin {incident}"),
        state: r#"{"known": null}"#.to_owned(),
        parked: None,
        updated_at: at(5),
    }
}

fn line(link: &LinkKey, second: i64, kind: &str) -> JournalEntry {
    let detail = serde_json::json!({ "second": second, "a": [1, null, "é\u{0}"] });
    JournalEntry { at: at(second), link: link.clone(), kind: kind.to_owned(), detail }
}

async fn save(store: &Arc<dyn Store>, link: &LinkRecord) {
    let fence = store.take_fence("test", at(0), at(60)).await.unwrap().expect("free");
    assert_eq!(store.save_link(link, &[], &fence, at(0)).await.unwrap(), Held::Yes);
    store.release_fence(&fence).await.unwrap();
}

pub(crate) async fn a_link_is_saved_under_its_fence_only(place: Place) {
    let store = place.open().await;
    let mut link = link("t", "1", "w");
    assert_eq!(store.link(&link.key).await.unwrap(), None);
    let fence = store.take_fence("link:1", at(0), at(10)).await.unwrap().unwrap();
    let lines = [line(&link.key, 1, "write"), line(&link.key, 2, "note")];
    assert_eq!(store.save_link(&link, &lines, &fence, at(1)).await.unwrap(), Held::Yes);
    assert_eq!(store.link(&link.key).await.unwrap().as_ref(), Some(&link));
    let kept = link.clone();
    (link.state, link.parked) = ("{}".to_owned(), Some("asked for".to_owned()));
    link.updated_at = at(6);
    let forged = Fence { token: Uuid::from_u128(1), ..fence.clone() };
    let other = Fence { name: "link:2".to_owned(), ..fence.clone() };
    for (foreign, now) in [(&forged, 1), (&other, 1), (&fence, 10)] {
        assert_eq!(store.save_link(&link, &lines, foreign, at(now)).await.unwrap(), Held::No);
    }
    assert_eq!(store.link(&link.key).await.unwrap(), Some(kept));
    assert_eq!(store.journal(&link.key, 10).await.unwrap(), lines);
    // Ours again, it is replaced as a whole.
    let fence = store.take_fence("link:1", at(10), at(20)).await.unwrap().unwrap();
    assert_eq!(store.save_link(&link, &[], &fence, at(11)).await.unwrap(), Held::Yes);
    assert_eq!(store.link(&link.key).await.unwrap(), Some(link));
}

pub(crate) async fn links_are_paged_in_key_order(place: Place) {
    let store = place.open().await;
    let mut all = Vec::new();
    // An order by bytes: no language's rules, in which "é" and "E" would come elsewhere.
    for tenant in ["E", "a", "b", "é"] {
        for incident in ["1", "10", "2", "a/b", "a\u{0}b", "a\u{1}b"] {
            for workspace in ["w", "w2"] {
                let mut link = link(tenant, incident, workspace);
                link.route = if workspace == "w" { "soc" } else { "other" }.to_owned();
                all.push(link);
            }
        }
    }
    let fence = store.take_fence("test", at(0), at(60)).await.unwrap().unwrap();
    for link in all.iter().rev() {
        assert_eq!(store.save_link(link, &[], &fence, at(0)).await.unwrap(), Held::Yes);
    }
    all.sort_by(|one, other| one.key.cmp(&other.key));
    for route in [None, Some("soc"), Some("nobody's")] {
        let mut paged: Vec<LinkRecord> = Vec::new();
        loop {
            let after = paged.last().map(|link| link.key.clone());
            let page = store.links(route, after.as_ref(), 5).await.unwrap();
            assert!(page.len() <= 5);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        let of_route = all.iter().filter(|link| route.is_none_or(|route| link.route == route));
        assert_eq!(paged, of_route.cloned().collect::<Vec<_>>());
    }
    assert_eq!(store.links(None, Some(&key("é", "zz", "")), 5).await.unwrap(), []);
}

pub(crate) async fn links_are_found_by_their_twin(place: Place) {
    let store = place.open().await;
    for (tenant, workspace) in [("t2", "w"), ("t1", "w"), ("t1", "w2")] {
        save(&store, &link(tenant, "1", workspace)).await;
    }
    save(&store, &link("t1", "2", "w")).await;
    let found = store.links_of_twin("w", "twin 1").await.unwrap();
    assert_eq!(found, [link("t1", "1", "w"), link("t2", "1", "w")]);
    assert_eq!(store.links_of_twin("w", "twin 3").await.unwrap(), []);
}

pub(crate) async fn the_journal_keeps_its_order(place: Place) {
    let store = place.open().await;
    let (one, two) = (link("t", "1", "w"), link("t", "2", "w"));
    let fence = store.take_fence("test", at(0), at(60)).await.unwrap().unwrap();
    let mut lines = Vec::new();
    for second in 0..6 {
        let kind = if second % 2 == 0 { "write" } else { "note" };
        let new = [line(&one.key, second, kind), line(&one.key, second, kind), line(&two.key, second, kind)];
        store.save_link(&one, &new, &fence, at(second)).await.unwrap();
        lines.extend_from_slice(&new[..2]);
    }
    assert_eq!(store.journal(&one.key, 100).await.unwrap(), lines);
    assert_eq!(store.journal(&one.key, 3).await.unwrap(), lines[9..], "the newest, oldest first");
    assert_eq!(store.journal(&two.key, 100).await.unwrap().len(), 6);
    assert_eq!(store.journal(&key("t", "3", "w"), 3).await.unwrap(), []);
    for (kind, since, count) in
        [("write", 0, 6), ("write", 2, 4), ("write", 3, 2), ("note", 0, 6), ("park", 0, 0)]
    {
        assert_eq!(store.journal_count(&one.key, kind, at(since)).await.unwrap(), count, "{kind} {since}");
    }
}

pub(crate) async fn values_are_kept(place: Place) {
    let store = place.open().await;
    assert_eq!(store.value("poll:t").await.unwrap(), None);
    for value in ["2026-11-25T00:00:00Z", "", "a\u{0}b\u{1}", "2"] {
        store.set_value("poll:t", value).await.unwrap();
        store.set_value("poll:u", "other").await.unwrap();
        assert_eq!(store.value("poll:t").await.unwrap().as_deref(), Some(value));
    }
}

pub(crate) async fn values_are_found_by_the_beginning_of_their_name(place: Place) {
    let store = place.open().await;
    let mut names = [
        "people",
        "people:",
        "people:%",
        "people:A",
        "people:_",
        "people:a",
        "people:a\u{0}",
        "people:a\u{0}b",
        "people:a\u{1}",
        "people:a\u{1}\u{2}",
        "people:a%b",
        "people:a_b",
        "people:aXb",
        "people:b",
        "people:é",
        "people:\u{ffff}",
        "people:\u{10ffff}",
        "people:𝔘",
        "people;",
        "PEOPLE:a",
        "peoplf",
        "",
    ];
    for name in names {
        store.set_value(name, &format!("of {name}")).await.unwrap();
    }
    names.sort_unstable();
    let prefixes =
        ["", "people:", "people:a", "people:a%", "people:a_", "people:a\u{0}", "people:a\u{1}", "é", "P"];
    let of = |prefix: &str| -> Vec<(String, String)> {
        let found = names.iter().filter(|name| name.starts_with(prefix));
        found.map(|name| ((*name).to_owned(), format!("of {name}"))).collect()
    };
    for prefix in prefixes {
        assert_eq!(store.values(prefix, None, 100).await.unwrap(), of(prefix), "{prefix:?}");
        let mut paged: Vec<(String, String)> = Vec::new();
        loop {
            let after = paged.last().map(|(name, _)| name.clone());
            let page = store.values(prefix, after.as_deref(), 2).await.unwrap();
            assert!(page.len() <= 2);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, of(prefix), "{prefix:?}");
    }
    assert_eq!(store.values("people:", Some("a"), 100).await.unwrap(), of("people:"), "from before them all");
    assert_eq!(store.values("people:", Some("z"), 100).await.unwrap(), []);
    assert_eq!(store.values("people:", None, 0).await.unwrap(), []);
    store.remove_value("people:a").await.unwrap();
    store.remove_value("people:a").await.unwrap();
    assert_eq!(store.value("people:a").await.unwrap(), None);
    let left: Vec<_> = of("people:").into_iter().filter(|(name, _)| name != "people:a").collect();
    assert_eq!(store.values("people:", None, 100).await.unwrap(), left, "it alone is gone");
}

fn hold(route: &str, second: i64, reason: &str) -> Hold {
    Hold { route: route.to_owned(), since: at(second), reason: reason.to_owned() }
}

pub(crate) async fn a_hold_keeps_its_first_instant(place: Place) {
    let store = place.open().await;
    assert_eq!(store.holds().await.unwrap(), []);
    store.hold(&hold("soc", 1, "drill")).await.unwrap();
    store.hold(&hold("soc", 2, "drill")).await.unwrap();
    store.hold(&hold("*", 3, "all of it")).await.unwrap();
    assert_eq!(store.holds().await.unwrap(), [hold("*", 3, "all of it"), hold("soc", 1, "drill")]);
    assert_eq!(store.release("other").await.unwrap(), 0);
    assert_eq!(store.release("soc").await.unwrap(), 1);
    assert_eq!(store.release("soc").await.unwrap(), 0);
    store.hold(&hold("soc", 4, "again")).await.unwrap();
    store.hold(&hold("other", 5, "too")).await.unwrap();
    assert_eq!(store.release("*").await.unwrap(), 3, "the star lifts every stop");
    assert_eq!(store.holds().await.unwrap(), []);
}

/// `lockstep hold` is another process beside the service.
pub(crate) async fn holds_are_seen_across_processes(place: Place) {
    let (service, command) = (place.open().await, place.open().await);
    assert_eq!(service.holds().await.unwrap(), []);
    command.hold(&hold("soc", 1, "drill")).await.unwrap();
    assert_eq!(service.holds().await.unwrap(), [hold("soc", 1, "drill")]);
    assert_eq!(command.release("*").await.unwrap(), 1);
    assert_eq!(service.holds().await.unwrap(), []);
}

pub(crate) async fn purging_forgets_what_is_past_and_nothing_else(place: Place) {
    let store = place.open().await;
    store.remember(vec![hint("t", "served")], delivery("past", at(10)), at(0)).await.unwrap();
    let served = lease_one(&store, at(0)).await.unwrap();
    settle(&store, &served, Settlement::Done { rest_until: at(5) }, at(1)).await;
    store.remember(vec![hint("t", "resting")], delivery("kept", at(100_000)), at(0)).await.unwrap();
    let resting = lease_one(&store, at(0)).await.unwrap();
    settle(&store, &resting, Settlement::Done { rest_until: at(90_000) }, at(1)).await;
    parked_with(&store, "parked", Some("v1")).await;
    tell(&store, hint("t", "leased"), at(0)).await;
    let leased = store.lease_jobs(1, &[], at(5), at(90_000)).await.unwrap().pop().unwrap();
    tell(&store, hint("t", "waiting"), at(0)).await;
    let link = link("t", "1", "w");
    let fence = store.take_fence("link:1", at(0), at(90_000)).await.unwrap().unwrap();
    let lines: Vec<_> = (0..10).map(|second| line(&link.key, second, "write")).collect();
    store.save_link(&link, &lines, &fence, at(0)).await.unwrap();
    store.hold(&hold("soc", 1, "drill")).await.unwrap();
    store.set_value("poll:t", "1").await.unwrap();

    store.purge(at(50_000), at(4)).await.unwrap();
    store.purge(at(50_000), at(4)).await.unwrap();

    assert_eq!(store.journal(&link.key, 100).await.unwrap(), lines[4..]);
    assert_eq!(store.remember(vec![], delivery("kept", at(0)), at(1)).await.unwrap(), Remembered::Repeated);
    assert_eq!(store.remember(vec![], delivery("past", at(0)), at(1)).await.unwrap(), Remembered::New);
    assert_eq!(store.link(&link.key).await.unwrap(), Some(link));
    assert_eq!(store.extend_fence(&fence, at(50_000), at(60_000)).await.unwrap(), Held::Yes);
    assert_eq!(store.holds().await.unwrap().len(), 1);
    assert_eq!(store.value("poll:t").await.unwrap().as_deref(), Some("1"));
    settle(&store, &leased, done(at(50_000)), at(50_000)).await;
    assert_eq!(ids_of(&store.parked(10).await.unwrap()), ["parked"]);
    let waiting = lease_one(&store, at(50_000)).await.unwrap();
    assert_eq!(waiting.subject.native_id, "waiting");
    settle(&store, &waiting, done(at(50_000)), at(50_000)).await;
    // The one rests still; the other is as new.
    tell(&store, hint("t", "resting"), at(50_000)).await;
    assert_eq!(lease_one(&store, at(50_000)).await, None);
    tell(&store, hint("t", "served"), at(50_000)).await;
    assert_eq!(lease_one(&store, at(50_000)).await.unwrap().served_at, None);
}

pub(crate) async fn all_is_there_after_a_restart(place: Place) {
    let link = link("t", "1", "w");
    let (lease, fence) = {
        let store = place.open().await;
        parked_with(&store, "parked", Some("v1")).await;
        tell(&store, hint_of("t", "leased", Some("v1"), "poll"), at(0)).await;
        let lease = lease_one(&store, at(0)).await.unwrap();
        store.remember(vec![hint("t", "waiting")], delivery("m1", at(600)), at(1)).await.unwrap();
        let fence = store.take_fence("link:1", at(0), at(600)).await.unwrap().unwrap();
        store.save_link(&link, &[line(&link.key, 1, "write")], &fence, at(0)).await.unwrap();
        store.hold(&hold("*", 1, "drill")).await.unwrap();
        store.set_value("poll:t", "1").await.unwrap();
        (lease, fence)
    };
    let store = place.open().await;
    assert_eq!(
        store.queue_stats().await.unwrap(),
        QueueStats { waiting: 2, parked: 1, oldest: Some(at(0)), ..QueueStats::default() }
    );
    assert_eq!(lease_one(&store, at(2)).await.unwrap().subject.native_id, "waiting");
    settle(&store, &lease, done(at(2)), at(2)).await;
    let again = store.remember(vec![hint("t", "9")], delivery("m1", at(600)), at(2)).await.unwrap();
    assert_eq!(again, Remembered::Repeated);
    assert_eq!(store.take_fence("link:1", at(2), at(9)).await.unwrap(), None);
    assert_eq!(store.extend_fence(&fence, at(2), at(900)).await.unwrap(), Held::Yes);
    assert_eq!(store.link(&link.key).await.unwrap(), Some(link.clone()));
    assert_eq!(store.journal(&link.key, 9).await.unwrap(), [line(&link.key, 1, "write")]);
    assert_eq!(store.holds().await.unwrap(), [hold("*", 1, "drill")]);
    assert_eq!(store.value("poll:t").await.unwrap().as_deref(), Some("1"));
}

pub(crate) async fn odd_text_comes_back_as_it_was(place: Place) {
    let store = place.open().await;
    let long = "x".repeat(1_000);
    let words = [
        "a/b//..",
        "\u{0}",
        "a\u{0}b",
        "a\u{1}b",
        "\u{1}\u{1}\u{0}\u{2}",
        "\t\r\n\u{7f}\u{85}\u{2028}",
        "𝔘𝔫𝔦 \u{200d}\u{202e}\u{feff}\u{fffd}\u{10ffff}",
        "e\u{301}",
        "é",
        "'; DROP TABLE jobs; --",
        "%_\\x00$1?1",
        "",
        &long,
    ];
    for word in words {
        let told = hint_of(word, word, Some(word), "poll");
        store.remember(vec![told.clone()], delivery(word, at(600)), at(0)).await.unwrap();
        let repeated = store.remember(vec![told.clone()], delivery(word, at(600)), at(0)).await.unwrap();
        assert_eq!(repeated, Remembered::Repeated, "{word:?}");
        let lease = lease_one(&store, at(1)).await.unwrap();
        assert_eq!((&lease.subject, lease.version.as_deref()), (&told.subject, Some(word)));
        settle(&store, &lease, park(word), at(1)).await;
        let parked = Parked { subject: told.subject.clone(), reason: word.to_owned(), since: at(1) };
        assert_eq!(store.parked(1).await.unwrap(), [parked]);
        assert!(store.unpark(&told.subject, at(1)).await.unwrap());
        let lease = lease_one(&store, at(1)).await.unwrap();
        settle(&store, &lease, done(at(1)), at(1)).await;

        let mut link = link(word, word, word);
        (link.route, link.sentinel_id) = (word.to_owned(), word.to_owned());
        (link.state, link.parked) = (word.to_owned(), Some(word.to_owned()));
        let fence = store.take_fence(word, at(0), at(60)).await.unwrap().unwrap();
        let lines = [line(&link.key, 1, word)];
        assert_eq!(store.save_link(&link, &lines, &fence, at(0)).await.unwrap(), Held::Yes);
        assert_eq!(store.link(&link.key).await.unwrap().as_ref(), Some(&link));
        assert_eq!(store.links_of_twin(word, word).await.unwrap(), std::slice::from_ref(&link));
        assert_eq!(
            store.links(Some(word), None, 5).await.unwrap(),
            if word.is_empty() { vec![] } else { vec![link.clone()] }
        );
        assert_eq!(store.journal(&link.key, 5).await.unwrap(), lines);
        assert_eq!(store.journal_count(&link.key, word, at(0)).await.unwrap(), 1);
        store.set_value(word, word).await.unwrap();
        assert_eq!(store.value(word).await.unwrap().as_deref(), Some(word));
        store.hold(&hold(word, 1, word)).await.unwrap();
        assert_eq!(store.holds().await.unwrap(), [hold(word, 1, word)]);
        assert_eq!(store.release(word).await.unwrap(), 1);
        assert!(store.unpark(&told.subject, at(1)).await.unwrap(), "its link was parked");
        let lease = lease_one(&store, at(1)).await.unwrap();
        settle(&store, &lease, done(at(1)), at(1)).await;
    }
}

pub(crate) async fn a_refused_command_does_not_hurt_its_neighbours(place: Place) {
    let store = place.open().await;
    place.refuse("bad").await;
    let told: Vec<_> = (0..60)
        .map(|number: usize| {
            let store = store.clone();
            let (id, refused) = match number {
                0 | 30 => (pseudo_random_text(number, 9_000), true),
                10 | 20 | 40 | 50 => ("bad".to_owned(), true),
                _ => (number.to_string(), false),
            };
            tokio::spawn(async move {
                let hints = vec![hint("t", &format!("before {number}")), hint("t", &id)];
                let outcome = store.remember(hints, delivery(&number.to_string(), at(600)), at(0)).await;
                (number, refused, outcome)
            })
        })
        .collect();
    let mut again = Vec::new();
    for one in told {
        match one.await.unwrap() {
            (number, true, outcome) => {
                assert!(matches!(outcome, Err(StoreError::Corrupt(_))), "{outcome:?}");
                again.push(number);
            }
            (_, false, outcome) => assert_eq!(outcome.unwrap(), Remembered::New),
        }
    }
    assert_eq!(store.queue_stats().await.unwrap().waiting, 108, "nothing of the refused was stored");
    for number in again {
        let outcome = store.remember(vec![], delivery(&number.to_string(), at(600)), at(0)).await.unwrap();
        assert_eq!(outcome, Remembered::New, "nor its delivery");
    }
    // Delivery ids are only compared: they may be of any length.
    let long = pseudo_random_text(7, 9_000);
    for expected in [Remembered::New, Remembered::Repeated] {
        assert_eq!(store.remember(vec![], delivery(&long, at(600)), at(0)).await.unwrap(), expected);
    }
}

/// Text that no index can compress.
fn pseudo_random_text(seed: usize, length: usize) -> String {
    let mut dice = fastrand::Rng::with_seed(seed as u64);
    std::iter::repeat_with(|| dice.alphanumeric()).take(length).collect()
}

pub(crate) async fn the_queue_is_counted(place: Place) {
    let store = place.open().await;
    assert_eq!(store.queue_stats().await.unwrap(), QueueStats::default());
    parked_with(&store, "parked", Some("v1")).await;
    assert_eq!(
        store.queue_stats().await.unwrap(),
        QueueStats { waiting: 0, parked: 1, oldest: None, ..QueueStats::default() }
    );
    for (id, second) in [("1", 7), ("2", 5), ("3", 6)] {
        tell(&store, hint("t", id), at(second)).await;
    }
    assert_eq!(
        store.queue_stats().await.unwrap(),
        QueueStats { waiting: 3, parked: 1, oldest: Some(at(5)), ..QueueStats::default() }
    );
    let lease = lease_one(&store, at(8)).await.unwrap();
    assert_eq!(lease.subject.native_id, "2");
    let stats = store.queue_stats().await.unwrap();
    assert_eq!(
        stats,
        QueueStats { waiting: 3, parked: 1, oldest: Some(at(5)), ..QueueStats::default() },
        "leased is not served"
    );
    settle(&store, &lease, Settlement::Again { not_before: at(90), counts: true }, at(9)).await;
    assert_eq!(store.queue_stats().await.unwrap(), stats, "nor is tried");
    let lease = lease_one(&store, at(9)).await.unwrap();
    settle(&store, &lease, done(at(9)), at(9)).await;
    let stats = QueueStats { waiting: 2, parked: 1, oldest: Some(at(5)), ..QueueStats::default() };
    assert_eq!(store.queue_stats().await.unwrap(), stats);
    // What nobody waits for is counted apart: a sweep that waits is no lag.
    tell(&store, quiet("t", "quiet", "sweep"), at(1)).await;
    tell(&store, quiet("t", "1", "sweep"), at(10)).await;
    let stats = QueueStats { waiting: 3, background: 1, oldest_background: Some(at(1)), ..stats };
    assert_eq!(store.queue_stats().await.unwrap(), stats);
}

pub(crate) async fn a_ping_commits(place: Place) {
    let store = place.open().await;
    for _ in 0..3 {
        store.ping().await.unwrap();
    }
    assert_eq!(store.queue_stats().await.unwrap(), QueueStats::default());
}
