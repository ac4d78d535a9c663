//! Laws of the planner. Each is tried on every pair of starting states and every pair of later states.

use lockstep::domain::mapping as map;
use lockstep::domain::model::*;
use lockstep::domain::plan::{Outcome, Plan, plan};
use lockstep::domain::policy::{Direction, Field, FieldPolicy, Policy, Winner};

use crate::worlds::*;

fn both_ways() -> Policy {
    let mut policy = Policy::default();
    for field in [Field::Title, Field::Description] {
        policy.set(field, FieldPolicy { direction: Direction::Both, wins: Winner::Latest });
    }
    policy
}

fn policies() -> Vec<Policy> {
    let mut list = vec![Policy::default(), both_ways()];
    for direction in [Direction::Both, Direction::ToSentinel, Direction::ToDefender, Direction::Off] {
        for wins in [Winner::Defender, Winner::Sentinel] {
            let mut policy = Policy::default();
            for field in Field::ALL.into_iter().filter(|f| *f != Field::Comment) {
                policy.set(field, FieldPolicy { direction, wins });
            }
            list.push(policy);
        }
    }
    let mut shy = both_ways();
    shy.in_progress_writable = false;
    list.push(shy);
    list
}

/// Runs `law` on every world: both sides met in one state and agreed, then each side went to another state.
///
/// There are some four million of them. Every `step`-th is tried with `LOCKSTEP_LAWS=thorough`, as the test script
/// does; the everyday run takes a seventh of those. The steps are primes, so that every value meets every other.
fn every_world(step: usize, mut law: impl FnMut(World, &Policy)) {
    let thorough = std::env::var("LOCKSTEP_LAWS").is_ok_and(|laws| laws == "thorough");
    let step = if thorough { step } else { 7 * step };
    for policy in policies() {
        let groups = [(defender_cases(), sentinel_cases()), (defender_scalars(), sentinel_scalars())];
        for (defenders, sentinels) in &groups {
            for (i, first_d) in defenders.iter().enumerate() {
                for (j, first_s) in sentinels.iter().enumerate() {
                    let mut met = World::new(first_d.clone(), Some(first_s.clone()));
                    met.settle(&policy);
                    for (k, d) in defenders.iter().enumerate() {
                        for (l, s) in sentinels.iter().enumerate() {
                            if (i + 3 * j + 5 * k + 7 * l) % step == 0 {
                                let mut world = met.clone();
                                // Half of the worlds see Defender move first, so that `latest` decides both ways.
                                if (k + l) % 2 == 0 {
                                    world.edit_defender(d.clone());
                                    world.put(s.clone());
                                } else {
                                    world.put(s.clone());
                                    world.edit_defender(d.clone());
                                }
                                law(world, &policy);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Same words on both sides, but for versions.
fn words(world: &World) -> (DefenderSays, Option<SentinelSays>) {
    (world.defender.says.clone(), world.sentinel.as_ref().map(|incident| incident.says.clone()))
}

#[test]
fn planning_twice_plans_nothing() {
    every_world(19, |mut world, policy| {
        let first = world.plan(policy);
        world.carry_out(&first, 4);
        let second = world.plan(policy);
        assert!(second.is_empty(), "after\n{first}\nit still wants\n{second}");
        assert!(second.clashes.is_empty(), "a settled world has no clash: {second}");
    });
}

#[test]
fn a_crash_after_any_step_ends_in_the_same_place() {
    every_world(29, |world, policy| {
        let first = world.plan(policy);
        let mut smooth = world.clone();
        smooth.carry_out(&first, 4);
        for steps in 0..4 {
            let mut crashed = world.clone();
            crashed.carry_out(&first, steps);
            crashed.settle(policy);
            assert_eq!(words(&crashed), words(&smooth), "crash after {steps} steps of\n{first}");
        }
    });
}

#[test]
fn a_one_sided_edit_is_copied_and_is_never_a_clash() {
    let policy = both_ways();
    for (defenders, sentinels) in
        [(defender_cases(), sentinel_cases()), (defender_scalars(), sentinel_scalars())]
    {
        for first_d in &defenders {
            for first_s in &sentinels {
                let mut met = World::new(first_d.clone(), Some(first_s.clone()));
                met.settle(&policy);
                for d in &defenders {
                    let mut world = met.clone();
                    world.edit_defender(d.clone());
                    let plan = world.plan(&policy);
                    assert!(plan.clashes.is_empty(), "{plan}");
                    assert!(plan.defender.is_none(), "our own edit bounced back: {plan}");
                    world.carry_out(&plan, 4);
                    assert_in_step(&world, &policy, &plan);
                }
                for s in &sentinels {
                    let mut world = met.clone();
                    world.put(s.clone());
                    let plan = world.plan(&policy);
                    assert!(plan.clashes.is_empty(), "{plan}");
                    world.carry_out(&plan, 4);
                    assert_in_step(&world, &policy, &plan);
                    let now = &world.sentinel.as_ref().expect("there").says;
                    assert_eq!(now.title, s.title, "the edited side keeps its own words");
                    assert_eq!(now.severity, s.severity);
                    assert_eq!(now.status, s.status);
                    assert_eq!(now.owner, s.owner);
                }
            }
        }
    }
}

fn assert_in_step(world: &World, policy: &Policy, plan: &Plan) {
    let d = &world.defender.says;
    let s = &world.sentinel.as_ref().expect("there").says;
    assert_eq!(d.title.as_deref(), Some(s.title.as_str()), "{plan}");
    assert_eq!(d.description, map::description_without_block(s.description.as_deref()), "{plan}");
    assert_eq!(map::severity_to_sentinel(&d.severity).as_ref(), Some(&s.severity), "{plan}");
    assert!(map::status_same(&d.status, &s.status, policy), "{plan}");
    assert!(map::owner_same(d.owner.as_deref(), &s.owner), "{plan}");
    assert_eq!(map::defender_tags(d, &policy.labels), map::sentinel_tags(s, &policy.labels), "{plan}");
    if s.status == SentinelStatus::Closed {
        let verdict = (d.classification.clone(), d.determination.clone());
        let said = (s.classification.clone().expect("closed"), s.reason.clone());
        assert!(map::verdict_same(&verdict, &said), "{verdict:?} against {said:?} after\n{plan}");
        assert!(map::valid_pair(&said.0, said.1.as_ref()), "{said:?} is no pair");
    }
}

#[test]
fn a_value_that_moved_and_is_overwritten_is_reported_as_a_clash() {
    every_world(13, |world, policy| {
        let known = world.state.known.clone().expect("they met");
        let plan = world.plan(policy);
        for change in &plan.changes {
            let (d, s) = (&world.defender.says, &world.sentinel.as_ref().expect("there").says);
            let moved = match (change.side, change.field) {
                (Side::Sentinel, Field::Title) => s.title != known.sentinel.title,
                (Side::Defender, Field::Title) => d.title != known.defender.title,
                (Side::Sentinel, Field::Severity) => s.severity != known.sentinel.severity,
                (Side::Defender, Field::Severity) => d.severity != known.defender.severity,
                (Side::Sentinel, Field::Status) => s.status != known.sentinel.status,
                (Side::Defender, Field::Status) => d.status != known.defender.status,
                (Side::Sentinel, Field::Owner) => {
                    map::owner_key(&s.owner) != map::owner_key(&known.sentinel.owner)
                }
                (Side::Defender, Field::Owner) => d.owner != known.defender.owner,
                (Side::Sentinel, Field::Description) => {
                    map::description_without_block(s.description.as_deref())
                        != map::description_without_block(known.sentinel.description.as_deref())
                }
                (Side::Defender, Field::Description) => d.description != known.defender.description,
                (Side::Defender, Field::Verdict) => {
                    (&d.classification, &d.determination)
                        != (&known.defender.classification, &known.defender.determination)
                }
                (Side::Defender, Field::Comment) => d.resolving_comment != known.defender.resolving_comment,
                // While it stays closed, Sentinel's verdict and comment are values like any other. A comment that was
                // never there, and an Undetermined that came with closing, say nothing that could be lost.
                (Side::Sentinel, Field::Verdict) => {
                    s.classification != known.sentinel.classification
                        && s.classification != Some(SentinelClassification::Undetermined)
                }
                (Side::Sentinel, Field::Comment) => {
                    s.comment.is_some() && s.comment != known.sentinel.comment
                }
                (_, Field::Tags) => false, // member by member: see the law of the sets
                (Side::Sentinel, Field::Determination) => {
                    let label = |s: &SentinelSays| map::determination_label(&s.labels, &policy.labels);
                    label(s).is_some() && label(s) != label(&known.sentinel)
                }
                (Side::Defender, Field::Determination) | (_, Field::Facts) => false,
            };
            let reopened = plan.sentinel.as_ref().is_some_and(|w| w.says.status != SentinelStatus::Closed);
            let carried = plan.defender.as_ref().is_some_and(|p| match change.field {
                Field::Verdict => p.verdict.is_some(),
                Field::Comment => p.resolving_comment.is_some(),
                _ => false,
            }) || (change.field == Field::Verdict
                && s.classification.clone().is_some_and(|c| {
                    map::verdict_same(
                        &(d.classification.clone(), d.determination.clone()),
                        &(c, s.reason.clone()),
                    )
                }))
                || (change.field == Field::Comment && d.resolving_comment == s.comment);
            let one_way = !policy.of(change.field).direction.to_defender()
                || !policy.of(change.field).direction.to_sentinel();
            if moved && !(reopened && (carried || one_way) && change.side == Side::Sentinel) {
                let reported = plan
                    .clashes
                    .iter()
                    .any(|clash| clash.field == change.field && clash.winner == change.side.other());
                assert!(reported, "{:?} of {} was overwritten silently:\n{plan}", change.field, change.side);
            }
        }
    });
}

#[test]
fn an_edit_between_our_read_and_the_answer_is_seen_and_copied() {
    let policy = both_ways();
    let mut raced = 0;
    for s in sentinel_scalars() {
        for d in defender_scalars() {
            let mut world = World::new(defender_scalars()[0].clone(), Some(sentinel_scalars()[0].clone()));
            world.settle(&policy);
            world.put(s.clone());
            let plan = world.plan(&policy);
            let Some(patch) = plan.defender.clone() else { continue };
            // The members that our PATCH does not name: Graph keeps what the other writer put there.
            let mut edit = world.defender.says.clone();
            if patch.title.is_none() {
                edit.title = d.title.clone();
            }
            if patch.description.is_none() {
                edit.description = d.description.clone();
            }
            if patch.severity.is_none() {
                edit.severity = d.severity.clone();
            }
            if patch.owner.is_none() {
                edit.owner = d.owner.clone();
            }
            if patch.tags.is_none() {
                edit.tags = d.tags.clone();
            }
            let moved = edit != world.defender.says;
            raced += u32::from(moved);
            assert_eq!(world.carry_out_raced(&plan, edit.clone()), moved, "the answer shows it:\n{plan}");
            let next = world.plan(&policy);
            assert!(next.clashes.is_empty(), "one writer per member is no clash:\n{next}");
            assert!(next.defender.is_none(), "the other writer's edit was taken back:\n{next}");
            world.settle(&policy);
            assert_in_step(&world, &policy, &next);
            if patch.severity.is_none() {
                assert_eq!(world.defender.says.severity, edit.severity);
            }
            if patch.owner.is_none() {
                assert_eq!(world.defender.says.owner, edit.owner);
            }
        }
    }
    assert!(raced > 200, "only {raced} races");
}

#[test]
fn a_new_twin_says_all_that_it_can_and_then_rests() {
    let policy = both_ways();
    for d in defender_cases().into_iter().chain(defender_scalars()) {
        let mut world = World::new(d, None);
        let plan = world.plan(&policy);
        assert_eq!(plan.outcome, Outcome::Create);
        world.carry_out(&plan, 4);
        assert_in_step(&world, &policy, &plan);
        let next = world.plan(&policy);
        assert!(next.is_empty(), "{next}");
    }
}

#[test]
fn a_twin_whose_creation_was_never_answered_is_recognised() {
    let policy = both_ways();
    for d in defender_cases() {
        for later in defender_cases() {
            let mut world = World::new(d.clone(), None);
            let plan = world.plan(&policy);
            world.carry_out(&plan, 2); // the twin is there, nobody told us
            world.edit_defender(later.clone());
            let plan = world.plan(&policy);
            assert_eq!(plan.outcome, Outcome::Both);
            assert!(plan.clashes.is_empty(), "our own twin was taken for somebody's edit:\n{plan}");
            assert!(plan.defender.is_none(), "{plan}");
            world.carry_out(&plan, 4);
            assert_in_step(&world, &policy, &plan);
        }
    }
}

#[test]
fn what_vanished_is_never_recreated() {
    let policy = both_ways();
    let mut world = World::new(defender_says(), Some(sentinel_says()));
    world.settle(&policy);
    let mut gone = world.seen();
    gone.sentinel = None;
    assert_eq!(plan(&gone, &policy).outcome, Outcome::Vanished(Side::Sentinel));
    assert!(plan(&gone, &policy).is_empty());
    let mut gone = world.seen();
    gone.defender = None;
    assert_eq!(plan(&gone, &policy).outcome, Outcome::Vanished(Side::Defender));
    assert!(plan(&gone, &policy).is_empty());
}

#[test]
fn a_merged_incident_closes_its_twin_without_a_verdict_and_takes_nothing_back() {
    let policy = both_ways();
    for s in sentinel_cases() {
        let mut world = World::new(defender_says(), Some(sentinel_says()));
        world.settle(&policy);
        world.put(s.clone());
        world.edit_defender(DefenderSays { status: DefenderStatus::Redirected, ..defender_says() });
        world.defender.redirect = Some("12".into());
        let plan = world.plan(&policy);
        assert!(plan.defender.is_none(), "{plan}");
        world.carry_out(&plan, 4);
        let now = &world.sentinel.as_ref().expect("there").says;
        assert_eq!(now.status, SentinelStatus::Closed);
        if s.status != SentinelStatus::Closed {
            assert_eq!(now.classification, Some(SentinelClassification::Undetermined));
            assert_eq!(now.comment.as_deref(), Some("Merged in Defender into incident 12."));
        }
        assert!(world.plan(&policy).is_empty());
    }
    let mut never_met =
        World::new(DefenderSays { status: DefenderStatus::Redirected, ..defender_says() }, None);
    never_met.defender.redirect = Some("12".into());
    assert!(matches!(never_met.plan(&policy).outcome, Outcome::Nothing(_)));
}

#[test]
fn undetermined_that_came_with_closing_never_clears_a_verdict() {
    let policy = both_ways();
    let verdict = (DefenderClassification::TruePositive, DefenderDetermination::Malware);
    let mut world = World::new(
        DefenderSays {
            classification: verdict.0.clone(),
            determination: verdict.1.clone(),
            ..defender_says()
        },
        Some(sentinel_says()),
    );
    world.settle(&policy);
    world.put(SentinelSays {
        status: SentinelStatus::Closed,
        classification: Some(SentinelClassification::Undetermined),
        ..world.sentinel.clone().expect("there").says
    });
    world.settle(&policy);
    assert_eq!(world.defender.says.status, DefenderStatus::Resolved);
    assert_eq!(world.defender.says.classification, verdict.0);
    assert_eq!(world.defender.says.determination, verdict.1, "the finer word stays");
    let twin = world.sentinel.clone().expect("there").says;
    assert_eq!(twin.classification, Some(SentinelClassification::TruePositive), "and Sentinel learns it");
}

#[test]
fn a_crash_between_the_two_writes_of_a_reopening_loses_no_verdict() {
    let policy = both_ways();
    let mut met = World::new(defender_cases()[14].clone(), Some(sentinel_says()));
    met.settle(&policy);
    let mut says = met.sentinel.clone().expect("there").says;
    assert_eq!(says.status, SentinelStatus::Closed);
    says.classification = Some(SentinelClassification::FalsePositive);
    says.reason = Some(SentinelReason::InaccurateData);
    says.comment = Some("seen it".into());
    met.put(says);
    met.edit_defender(DefenderSays { status: DefenderStatus::Active, ..met.defender.says.clone() });
    for steps in 0..4 {
        let mut world = met.clone();
        let plan = world.plan(&policy);
        world.carry_out(&plan, steps);
        world.settle(&policy);
        assert_eq!(world.sentinel.as_ref().expect("there").says.status, SentinelStatus::New);
        assert_eq!(world.defender.says.classification, DefenderClassification::FalsePositive, "{steps}");
        assert_eq!(world.defender.says.resolving_comment.as_deref(), Some("seen it"), "{steps}");
    }
}

#[test]
fn clearing_a_verdict_on_a_closed_incident_is_an_edit() {
    let policy = both_ways();
    let mut world = World::new(defender_cases()[14].clone(), Some(sentinel_says()));
    assert_eq!(world.defender.says.status, DefenderStatus::Resolved);
    assert_eq!(world.defender.says.classification, DefenderClassification::TruePositive);
    world.settle(&policy);
    let mut says = world.sentinel.clone().expect("there").says;
    assert_eq!(says.classification, Some(SentinelClassification::TruePositive));
    says.classification = Some(SentinelClassification::Undetermined);
    says.reason = None;
    world.put(says);
    world.settle(&policy);
    assert_eq!(world.defender.says.classification, DefenderClassification::Unknown);
}

/// Every field that may be left out, alone and with the others.
#[test]
fn a_new_twin_says_nothing_that_does_not_flow_and_then_rests() {
    let left_out = [Field::Description, Field::Status, Field::Owner, Field::Verdict, Field::Tags];
    for defender in defender_cases() {
        for mask in 0..1 << left_out.len() {
            for direction in [Direction::Off, Direction::ToDefender] {
                let mut policy = both_ways();
                for (at, field) in left_out.into_iter().enumerate() {
                    if mask & (1 << at) != 0 {
                        policy.set(field, FieldPolicy { direction, wins: Winner::Latest });
                    }
                }
                let mut world = World::new(defender.clone(), None);
                let plan = world.plan(&policy);
                if plan.is_empty() {
                    continue;
                }
                let before = world.defender.says.clone();
                world.settle(&policy);
                assert_eq!(
                    world.defender.says, before,
                    "the new twin's silence was taken for an edit: {plan}"
                );
                let s = world.sentinel.as_ref().expect("created").says.clone();
                let off = |field| !policy.of(field).direction.to_sentinel();
                let own = map::description_without_block(s.description.as_deref());
                assert!(!off(Field::Description) || own.is_none(), "{plan}");
                assert!(!off(Field::Owner) || s.owner == SentinelOwner::default(), "{plan}");
                assert!(!off(Field::Tags) || s.labels.iter().all(|l| policy.labels.own(&l.name)), "{plan}");
                assert!(!off(Field::Status) || s.status == SentinelStatus::New, "{plan}");
                let unsaid = matches!(s.classification, None | Some(SentinelClassification::Undetermined));
                assert!(!off(Field::Verdict) || (unsaid && s.comment.is_none()), "{plan}");
            }
        }
    }
}
