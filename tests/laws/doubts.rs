//! What no read can settle: requests that arrive after they were given up, and values that somebody set back before their
//! answer was heard of.

use lockstep::domain::model::*;
use lockstep::domain::plan::{Rule, parse_instant};
use lockstep::domain::policy::{Field, Policy};
use time::Duration;

use crate::worlds::*;

/// An incident whose first create got no answer and is still on its way; the second made the twin.
fn created_twice() -> (World, SentinelSays) {
    let policy = Policy::default();
    let mut world = World::new(defender_says(), None);
    let create = world.plan(&policy);
    let given_up = create.sentinel.clone().expect("a create").says;
    world.carry_out(&create, 1);
    let create = world.plan(&policy);
    world.carry_out(&create, 4);
    (world, given_up)
}

/// Somebody edits the twin, and Defender follows.
fn edited(world: &mut World, edit: impl FnOnce(&mut SentinelSays)) {
    let mut says = world.sentinel.clone().expect("a twin").says;
    edit(&mut says);
    world.put(says);
    let plan = world.plan(&Policy::default());
    world.carry_out(&plan, 4);
}

#[test]
fn a_create_that_arrives_late_is_taken_back() {
    let policy = Policy::default();
    let edits: [fn(&mut SentinelSays); 4] = [
        |says| says.severity = SentinelSeverity::High,
        |says| {
            says.status = SentinelStatus::Closed;
            says.classification = Some(SentinelClassification::FalsePositive);
            says.reason = Some(SentinelReason::IncorrectAlertLogic);
        },
        |says| says.labels.push(Label { name: "vip".into(), auto: false }),
        |says| says.owner.upn = Some("ann@contoso.com".into()),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        for defender_moves in [false, true] {
            for crash_after in [4, 1, 2] {
                let (mut world, given_up) = created_twice();
                edited(&mut world, edit);
                let agreed = (world.defender.says.clone(), world.sentinel.clone().expect("a twin").says);
                world.put(given_up.clone());
                if defender_moves {
                    let says = DefenderSays { title: Some("Renamed".into()), ..agreed.0.clone() };
                    world.edit_defender(says);
                }
                let plan = world.plan(&policy);
                assert!(plan.defender.is_none(), "edit {number}: the early words reach Defender: {plan}");
                assert!(plan.changes.iter().any(|change| change.rule == Rule::LateCreate), "{plan}");
                assert!(plan.clashes.iter().all(|clash| clash.rule == Rule::LateCreate), "{plan}");
                assert!(!plan.clashes.is_empty(), "what is overwritten is told: {plan}");
                // Its answer may be lost, or it may never be sent.
                world.carry_out(&plan, crash_after);
                world.settle(&policy);
                let title = if defender_moves { "Renamed" } else { "Ransom" };
                let expected = SentinelSays { title: title.into(), ..agreed.1 };
                assert_eq!(world.sentinel.clone().expect("a twin").says, expected, "edit {number}");
                let defender = DefenderSays { title: Some(title.into()), ..agreed.0 };
                assert_eq!(world.defender.says, defender, "edit {number}");
                if crash_after == 2 {
                    continue;
                }
                // It has arrived: whoever says the same from now on means it.
                let mut person = given_up;
                person.title = title.into();
                world.put(person.clone());
                world.settle(&policy);
                assert_eq!(world.sentinel.clone().expect("a twin").says, person, "edit {number}");
            }
        }
    }
}

#[test]
fn nobody_is_taken_for_a_late_create_without_need() {
    let policy = Policy::default();
    // Every create was answered.
    let mut world = World::new(defender_says(), None);
    let create = world.plan(&policy);
    let says = create.sentinel.clone().expect("a create").says;
    world.carry_out(&create, 4);
    edited(&mut world, |says| says.severity = SentinelSeverity::High);
    world.put(says);
    assert_eq!(world.plan(&policy).defender.expect("a person's edit").severity, Some(DefenderSeverity::Low));
    // Later than any request can be.
    let (mut world, given_up) = created_twice();
    edited(&mut world, |says| says.severity = SentinelSeverity::High);
    world.ticks += 60;
    world.put(given_up.clone());
    assert!(world.plan(&policy).defender.is_some(), "an hour later it is a person's edit");
    // One word more than the create said.
    let (mut world, mut given_up) = created_twice();
    edited(&mut world, |says| says.severity = SentinelSeverity::High);
    given_up.status = SentinelStatus::Active;
    world.put(given_up);
    assert!(world.plan(&policy).defender.is_some());
}

/// A write whose answer is lost lands, and then somebody sets the old value back.
#[test]
fn a_value_set_back_behind_a_lost_answer_is_in_the_journal() {
    let policy = Policy::default();
    let mut met = World::new(defender_says(), Some(sentinel_says()));
    met.settle(&policy);
    // Towards Sentinel.
    let mut world = met.clone();
    world.edit_defender(DefenderSays { severity: DefenderSeverity::High, ..defender_says() });
    let plan = world.plan(&policy);
    world.carry_out(&plan, 2);
    assert_eq!(world.sentinel.clone().expect("a twin").says.severity, SentinelSeverity::High);
    let says = world.sentinel.clone().expect("a twin").says;
    world.put(SentinelSays { severity: SentinelSeverity::Low, ..says });
    let plan = world.plan(&policy);
    let [clash] = plan.clashes.as_slice() else { panic!("no clash: {plan}") };
    assert_eq!((clash.field, clash.winner, clash.rule), (Field::Severity, Side::Defender, Rule::SetBack));
    assert_eq!((clash.kept.as_str(), clash.lost.as_str()), ("high", "Low"));
    // Towards Defender.
    let mut world = met.clone();
    world.put(SentinelSays {
        severity: SentinelSeverity::High,
        ..world.sentinel.clone().expect("a twin").says
    });
    let plan = world.plan(&policy);
    world.carry_out(&plan, 3);
    world.edit_defender(DefenderSays { severity: DefenderSeverity::Low, ..world.defender.says.clone() });
    let plan = world.plan(&policy);
    let [clash] = plan.clashes.as_slice() else { panic!("no clash: {plan}") };
    assert_eq!((clash.field, clash.winner, clash.rule), (Field::Severity, Side::Sentinel, Rule::SetBack));
    // And a read that only lags, or a write that was never sent, is none.
    for sent in [1, 3] {
        let mut world = met.clone();
        world.put(SentinelSays {
            severity: SentinelSeverity::High,
            ..world.sentinel.clone().expect("a twin").says
        });
        let before = world.defender.clone();
        let plan = world.plan(&policy);
        world.carry_out(&plan, sent);
        world.defender = before;
        let plan = world.plan(&policy);
        assert!(plan.clashes.is_empty() && plan.defender.is_some(), "{plan}");
        let at = parse_instant(&plan.intents[0].at).expect("an instant");
        assert!(at - world.defender.updated < Duration::SECOND);
    }
}
