//! Beside Microsoft's own connector, in time that leaps: comments that it carried long ago, and comments that it carries
//! only after we gave up waiting for it.

use std::time::Duration;

use lockstep::domain::policy::Native;
use lockstep::emulator::world::defender::person;
use lockstep::emulator::world::sentinel::Child;
use lockstep::emulator::world::{Caller, Moment};
use serde_json::{Value, json};

use crate::house::House;

const ID: &str = "41";
const MINUTE: Duration = Duration::from_secs(60);

fn caller(house: &House, name: &str) -> Caller {
    let who = person(house.at().0, name);
    Caller {
        tenant_id: house.at().0.to_owned(),
        app_id: "portal".to_owned(),
        object_id: who.object_id.clone(),
        user: Some(who),
    }
}

/// The name of the connector's twin.
fn twin(house: &House) -> String {
    let plant = house.shared.plant.lock().unwrap();
    let state = plant.world.workspaces[house.at().1].describe();
    let mut all = state["incidents"].as_array().into_iter().flatten();
    let native = all.find(|incident| incident["properties"]["providerIncidentId"] == ID);
    native.expect("the connector made it")["name"].as_str().unwrap().to_owned()
}

fn say_in_defender(house: &House, text: &str) {
    house.shared.with(|plant, now| plant.comment_in_defender(house.at(), ("ann@contoso.com", ID, text), now));
}

fn say_in_sentinel(house: &House, id: &str, text: &str) {
    let (caller, name) = (caller(house, "bo.li@contoso.com"), twin(house));
    house.shared.with(|plant, now| {
        let moment = Moment { now, caller: &caller, switches: &plant.world.switches.clone() };
        let place = plant.world.workspaces.get_mut(house.at().1).unwrap();
        let body = json!({"properties": {"message": text}});
        place.put_child(&name, Child::Comment, id, &body, &moment).unwrap();
    });
}

/// The comments that hold a text: in Defender, in Sentinel.
fn heard(house: &House, text: &str) -> [usize; 2] {
    let name = twin(house);
    let plant = house.shared.plant.lock().unwrap();
    let defender = plant.world.tenants[house.at().0].describe();
    let sentinel = plant.world.workspaces[house.at().1].describe();
    let mut incidents = defender["incidents"].as_array().into_iter().flatten();
    let incident = incidents.find(|incident| incident["id"] == ID).unwrap();
    let holding = |list: &Value, member: fn(&Value) -> &Value| {
        let all = list.as_array().into_iter().flatten();
        all.filter(|one| member(one).as_str().is_some_and(|said| said.contains(text))).count()
    };
    [
        holding(&incident["comments"], |one| &one["comment"]),
        holding(&sentinel["comments"][name.as_str()], |one| &one["properties"]["message"]),
    ]
}

fn delayed(house: &House, how: &str) {
    house.shared.with(|plant, _| plant.world.switches.set("nativeDelay", how).unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_the_connector_carries_is_carried_once_however_late_it_comes() {
    let mut house = House::new(3);
    house.policy.native = Native::Adopt;
    let (tenant, place) = (house.at().0.to_owned(), house.at().1.to_owned());
    house.shared.with(|plant, now| {
        plant.world.connect_native(&place, &tenant).unwrap();
        let incident = json!({"id": ID, "displayName": "Beside", "severity": "medium"});
        plant.engine_puts((&tenant, &place), &incident, now);
    });
    say_in_defender(&house, "an old word from Defender");
    say_in_sentinel(&house, "c1", "an old word from Sentinel");
    let old = ["an old word from Defender", "an old word from Sentinel"];
    house.shared.with(|_, _| {});
    assert_eq!(old.map(|text| heard(&house, text)), [[1, 1], [1, 1]], "the connector carried them");

    // We come long after: what is on both sides is there already.
    tokio::time::sleep(40 * MINUTE).await;
    let app = house.start(i64::MAX);
    house.quiet().await.unwrap();
    tokio::time::sleep(40 * MINUTE).await;
    house.quiet().await.unwrap();
    assert_eq!(old.map(|text| heard(&house, text)), [[1, 1], [1, 1]], "{}", house.story());

    // The connector lags. For a quarter of an hour new ones are left to it, then carried.
    delayed(&house, "held");
    say_in_defender(&house, "a new word from Defender");
    say_in_sentinel(&house, "c2", "a new word from Sentinel");
    let new = ["a new word from Defender", "a new word from Sentinel"];
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(new.map(|text| heard(&house, text)), [[1, 0], [0, 1]], "{}", house.story());
    tokio::time::sleep(20 * MINUTE).await;
    house.quiet().await.unwrap();
    assert_eq!(new.map(|text| heard(&house, text)), [[1, 1], [1, 1]], "{}", house.story());

    // It comes after all and brings each a second time, ours too: nobody can stop it, and we must not answer.
    let writes = house.writes();
    delayed(&house, "none");
    house.shared.with(|_, _| {});
    let brought = new.map(|text| heard(&house, text));
    for _ in 0..3 {
        tokio::time::sleep(40 * MINUTE).await;
        house.sweep().await;
        house.quiet().await.unwrap();
    }
    assert_eq!(new.map(|text| heard(&house, text)), brought, "{}", house.story());
    assert_eq!(house.writes(), writes, "{}", house.story());

    // A restart changes nothing, and new words are the connector's again.
    drop(app);
    let _app = house.start(i64::MAX);
    say_in_defender(&house, "the last word from Defender");
    say_in_sentinel(&house, "c3", "the last word from Sentinel");
    let last = ["the last word from Defender", "the last word from Sentinel"];
    for _ in 0..2 {
        tokio::time::sleep(40 * MINUTE).await;
        house.sweep().await;
        house.quiet().await.unwrap();
    }
    assert_eq!(last.map(|text| heard(&house, text)), [[1, 1], [1, 1]], "{}", house.story());
    assert_eq!(old.map(|text| heard(&house, text)), [[1, 1], [1, 1]], "{}", house.story());
    assert_eq!(house.writes(), writes, "{}", house.story());
    let names = house.shared.plant.lock().unwrap().names(&place);
    assert_eq!(names.len(), 1, "no double");
}
