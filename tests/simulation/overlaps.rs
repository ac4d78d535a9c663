//! Two routes between one tenant and one workspace: the first that matches an incident has it, keeps it however it
//! changes, and nobody ever makes a second twin.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep::domain::filter::Filter;
use lockstep::domain::model::DefenderSeverity;
use lockstep::domain::plan::LinkState;
use lockstep::ports::Hold;
use serde_json::json;

use crate::house::House;
use crate::people::{Deed, Mood};
use crate::plant::{Faults, TENANT};

fn house(seed: u64) -> House {
    let mut house = House::with(seed, &[("high", TENANT, "soc"), ("rest", TENANT, "soc")]);
    let severities = vec![DefenderSeverity::High];
    house.filters.insert("high", Filter { severities, ..Filter::default() });
    house
}

fn raise(house: &House, id: &str, severity: &str) {
    let incident = json!({"id": id, "displayName": id, "description": "text", "severity": severity});
    house.shared.with(|plant, now| plant.engine_puts(house.at(), &incident, now));
}

fn severity(house: &House, id: &str, severity: &str) {
    let members = json!({"severity": severity});
    house
        .shared
        .with(|plant, now| plant.person_in_defender(house.at(), ("ann@contoso.com", id), &members, now));
}

/// The route of each link that has a twin.
fn owners(house: &House) -> BTreeMap<String, String> {
    let disk = house.shared.disk.lock().unwrap();
    let made = disk
        .links
        .values()
        .filter(|link| serde_json::from_str::<LinkState>(&link.state).is_ok_and(|state| state.had_twin()));
    made.map(|link| (link.key.incident_id.clone(), link.route.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_that_matches_makes_the_twin_in_three_calls_and_keeps_it() {
    let mut house = house(1);
    let app = house.start(i64::MAX);
    let named = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(id, route)| ((*id).to_owned(), (*route).to_owned())).collect()
    };
    raise(&house, "1", "high");
    house.quiet().await.unwrap();
    raise(&house, "2", "low");
    house.quiet().await.unwrap();
    let made = named(&[("1", "high"), ("2", "rest")]);
    assert_eq!(owners(&house), made);
    let told = |what: &str| house.story().matches(what).count();
    let reads = ["  GET defender 1 (", "  GET defender 2 (", "  write sentinel 1:", "  write sentinel 2:"];
    assert_eq!(reads.map(told), [1, 1, 1, 1], "{}", house.story());

    // Each comes to look like one of the other's, and back again.
    for (one, other) in [("low", "high"), ("high", "low"), ("medium", "high")] {
        severity(&house, "1", one);
        severity(&house, "2", other);
        house.quiet().await.unwrap();
        house.check().await.unwrap();
        assert_eq!(owners(&house), made);
    }
    // The route without a filter would have taken the first from the start. Each of the two is told of once.
    let disk = house.shared.disk.lock().unwrap();
    let lines = disk.journal.iter().filter(|line| line.kind == "overlap");
    let lines: Vec<_> =
        lines.map(|line| (line.link.incident_id.as_str(), line.detail["also"].to_string())).collect();
    let first = lines.iter().filter(|(id, also)| *id == "1" && also == "[\"rest\"]").count();
    assert_eq!(first, 1, "{lines:?}");
    drop(disk);
    drop(app);
}

#[tokio::test(start_paused = true)]
async fn a_held_route_holds_up_its_own_incidents_and_costs_next_to_nothing() {
    let mut house = house(2);
    let hold = Hold { route: "high".into(), since: house.now(), reason: "a drill".into() };
    house.door().hold(&hold).await.unwrap();
    for number in 0..4 {
        raise(&house, &format!("1{number}"), "high");
        raise(&house, &format!("2{number}"), "low");
    }
    let _app = house.start(i64::MAX);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let made = owners(&house);
    assert_eq!(made.len(), 4, "{made:?}");
    assert!(made.iter().all(|(id, route)| id.starts_with('2') && route == "rest"), "{made:?}");
    let reads = house.story().matches("  GET defender 1").count();
    assert!(reads <= 4 * 14, "{reads} reads in an hour");
    // One of those that wait comes to match the other route.
    severity(&house, "13", "low");
    tokio::time::sleep(Duration::from_secs(360)).await;
    assert_eq!(owners(&house).get("13").map(String::as_str), Some("rest"));
    house.door().release("high").await.unwrap();
    house.quiet().await.unwrap();
    assert_eq!(owners(&house).len(), 8);
    house.check().await.unwrap();
}

/// Half an hour of edits, lost answers, late requests and crashes.
async fn life(seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut house = house(seed);
    let mut ids: Vec<String> = Vec::new();
    let mut known = BTreeMap::new();
    let mut keeps = |house: &House| {
        for (id, route) in owners(house) {
            let before = known.entry(id.clone()).or_insert_with(|| route.clone());
            if *before != route {
                return Err(format!("{id} went from {before} to {route}"));
            }
        }
        Ok(())
    };
    house.shared.with(|plant, _| {
        plant.faults = Faults {
            dropped: 0.1,
            answer_lost: 0.2,
            late: 0.1,
            stale: 0.2,
            list_lags: 0.3,
            ..Faults::default()
        };
    });
    let mut app = house.start(rng.i64(5..120));
    for _ in 0..25 {
        if ids.len() < 4 && rng.bool() {
            let id = (100 + ids.len()).to_string();
            raise(&house, &id, ["low", "high"][rng.usize(..2)]);
            ids.push(id);
        } else if !ids.is_empty() {
            let at = (house.at().0.to_owned(), house.at().1.to_owned());
            let deed = match rng.bool() {
                true => Deed::choose(&mut rng, &ids, Mood::Ordinary),
                false => {
                    let severity = ["low", "high"][rng.usize(..2)];
                    let id = ids[rng.usize(..ids.len())].clone();
                    Deed::Engine { id, members: json!({ "severity": severity }) }
                }
            };
            house.shared.with(|plant, now| deed.done(plant, (&at.0, &at.1), now));
        }
        tokio::time::sleep(Duration::from_millis([20, 200, 2_000, 20_000][rng.usize(..4)])).await;
        keeps(&house)?;
        if app.fuse.is_dead() {
            drop(app);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            app = house.start(rng.i64(5..200));
        }
    }
    house.shared.with(|plant, _| plant.faults = Faults::default());
    if !app.fuse.mend() {
        drop(app);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        app = house.start(i64::MAX);
    }
    house.quiet().await?;
    house.sweep().await;
    house.quiet().await?;
    keeps(&house)?;
    let checked = house.check().await;
    drop(app);
    checked.map_err(|why| format!("{}\n{why}", house.story()))
}

#[test]
fn whatever_happens_there_is_one_twin_and_one_owner() {
    let lives = std::env::var("LOCKSTEP_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    for seed in 0..lives {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        if let Err(why) = runtime.block_on(life(seed)) {
            panic!("seed {seed}: {why}");
        }
    }
}
