//! Owners across directories: what is carried across is in step, and carrying it further changes nothing.

use lockstep::domain::model::{SentinelOwner, Side};
use lockstep::domain::owners::*;
use proptest::prelude::*;

const ID: &str = "2046feea-040d-4a46-9e2b-91c2941bfa70";
const GROUP: &str = "3046feea-040d-4a46-9e2b-91c2941bfa71";
const GUEST: &str = "al_contoso.com#EXT#@fab.onmicrosoft.com";
const NAMES: &[&str] = &[
    "al@contoso.com",
    " AL@Contoso.com ",
    "al@fab.com",
    "bo@fab.com",
    "Bo@contoso.com",
    GUEST,
    "SOC tier 2",
    ID,
    GROUP,
];
const DOMAINS: &[&str] = &["contoso.com", "Fab.com", "other.org"];

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(NAMES).prop_map(str::to_owned)
}

fn domain() -> impl Strategy<Value = String> {
    proptest::sample::select(DOMAINS).prop_map(str::to_owned)
}

fn policy() -> impl Strategy<Value = OwnerPolicy> {
    let fallback = prop_oneof![
        Just(Fallback::AsIs),
        Just(Fallback::Leave),
        name().prop_map(Fallback::Owner),
        Just(Fallback::Label("owner/".to_owned())),
    ];
    let map = proptest::collection::vec((name(), name()), 0..3);
    let rewrite = proptest::collection::vec((domain(), domain()), 0..3);
    (map, rewrite, any::<bool>(), fallback).prop_map(|(map, rewrite, lookup, fallback)| OwnerPolicy {
        map,
        rewrite,
        lookup,
        fallback,
    })
}

fn person(name: &str) -> Person {
    Person {
        object_id: if name == GROUP { GROUP.to_owned() } else { ID.to_owned() },
        upn: name.contains('@').then(|| name.trim().to_lowercase()),
        mail: None,
        display_name: Some("Somebody".to_owned()),
        kind: if name == GROUP { PersonKind::Group } else { PersonKind::User },
    }
}

fn people() -> impl Strategy<Value = People> {
    proptest::collection::vec((any::<bool>(), name(), 0u8..3), 0..12).prop_map(|said| {
        let mut people = People::default();
        for (side, name, what) in said {
            let side = if side { Side::Defender } else { Side::Sentinel };
            let answer = match what {
                0 => Answer::Found(person(&name)),
                1 => Answer::Missing,
                _ => Answer::Unknown,
            };
            people.insert(side, &name, answer);
        }
        people
    })
}

fn owner() -> impl Strategy<Value = SentinelOwner> {
    let maybe = || proptest::option::of(name());
    (proptest::option::of(proptest::sample::select(&[ID, GROUP][..])), maybe(), maybe(), maybe()).prop_map(
        |(id, upn, email, name)| SentinelOwner {
            object_id: id.map(str::to_owned),
            upn,
            email,
            name,
            group: false,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Defender's owner, carried to Sentinel, is in step; and so is what comes back from there.
    #[test]
    fn what_is_carried_to_sentinel_is_in_step(d in proptest::option::of(name()), people in people(), policy in policy()) {
        let there = to_sentinel(d.as_deref(), &people, &policy);
        if let Some(s) = there.value() {
            prop_assert!(same(d.as_deref(), s, &people, &policy), "{d:?} {s:?}");
            if let Some(back) = to_defender(s, &people, &policy).value() {
                prop_assert!(same(back.as_deref(), s, &people, &policy), "{back:?} {s:?}");
            }
        }
    }

    /// And the other way.
    #[test]
    fn what_is_carried_to_defender_is_in_step(s in owner(), people in people(), policy in policy()) {
        if let Some(d) = to_defender(&s, &people, &policy).value() {
            prop_assert!(same(d.as_deref(), &s, &people, &policy), "{d:?} {s:?}");
        }
    }

    /// Nobody is nobody, everywhere.
    #[test]
    fn nobody_stays_nobody(people in people(), policy in policy()) {
        let nobody = SentinelOwner::default();
        prop_assert_eq!(to_sentinel(Some("  "), &people, &policy), Mapped::To(nobody.clone()));
        prop_assert_eq!(to_defender(&nobody, &people, &policy), Mapped::To(None));
        prop_assert!(same(None, &nobody, &people, &policy));
    }

    /// Where nobody is asked, nothing is asked; and an owner without rules comes back letter for letter.
    #[test]
    fn without_rules_a_name_comes_back(d in name()) {
        let (people, policy) = (People::default(), OwnerPolicy::default());
        let Mapped::To(s) = to_sentinel(Some(&d), &people, &policy) else { panic!("as it is") };
        prop_assert!(questions(Some(&d), &s, &policy).is_empty());
        if s.object_id.is_none() {
            prop_assert_eq!(to_defender(&s, &people, &policy), Mapped::To(Some(d.trim().to_owned())));
        }
    }
}

fn rules(map: &[(&str, &str)], rewrite: &[(&str, &str)], lookup: bool, fallback: Fallback) -> OwnerPolicy {
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    OwnerPolicy { map: own(map), rewrite: own(rewrite), lookup, fallback }
}

fn upn(name: &str) -> SentinelOwner {
    SentinelOwner { upn: Some(name.to_owned()), ..SentinelOwner::default() }
}

#[test]
fn rules_apply_in_order_and_both_ways() {
    let nobody_asked = People::default();
    let policy = rules(
        &[("Alice@contoso.com", "al@fab.com"), ("alice@contoso.com", "second@fab.com")],
        &[("contoso.com", "fab.com")],
        false,
        Fallback::Leave,
    );
    assert_eq!(
        to_sentinel(Some(" ALICE@contoso.com"), &nobody_asked, &policy),
        Mapped::To(upn("al@fab.com"))
    );
    assert_eq!(to_sentinel(Some("Bob@CONTOSO.com"), &nobody_asked, &policy), Mapped::To(upn("Bob@fab.com")));
    let back = |name: &str| to_defender(&upn(name), &nobody_asked, &policy);
    assert_eq!(back("AL@fab.com"), Mapped::To(Some("Alice@contoso.com".to_owned())));
    assert_eq!(back("Bob@fab.com"), Mapped::To(Some("Bob@contoso.com".to_owned())));
    // A guest of a third tenant's is known by the address at home.
    assert_eq!(
        back("carol_fab.com#EXT#@third.onmicrosoft.com"),
        Mapped::To(Some("carol@contoso.com".to_owned()))
    );
    let Mapped::Leave(left) = to_sentinel(Some("zed@else.org"), &nobody_asked, &policy) else { panic!() };
    assert_eq!((left.side, left.name.as_str()), (Side::Defender, "zed@else.org"));
    assert!(same(Some("bob@contoso.com"), &upn("BOB@fab.com"), &nobody_asked, &policy));
    assert!(!same(Some("bob@contoso.com"), &upn("al@fab.com"), &nobody_asked, &policy));
    assert!(!same(Some("bob@contoso.com"), &SentinelOwner::default(), &nobody_asked, &policy));
}

#[test]
fn directories_name_the_person_in_full_and_the_missing_fall_back() {
    let policy = rules(&[], &[("contoso.com", "fab.com")], true, Fallback::Label("owner/".to_owned()));
    let asked = questions(
        Some("al@contoso.com"),
        &SentinelOwner { object_id: Some(ID.to_owned()), ..SentinelOwner::default() },
        &policy,
    );
    let question = |name: &str| Question { directory: Side::Sentinel, name: name.to_owned() };
    assert_eq!(asked, [question("al@fab.com"), question(ID)]);

    let mut people = People::default();
    people.insert(Side::Sentinel, "AL@fab.com", Answer::Found(person("al@fab.com")));
    people.insert(Side::Sentinel, "zed@fab.com", Answer::Missing);
    people.insert(Side::Sentinel, ID, Answer::Missing);
    people.insert(Side::Sentinel, GROUP, Answer::Found(person(GROUP)));
    let Mapped::To(full) = to_sentinel(Some("al@contoso.com"), &people, &policy) else { panic!() };
    assert_eq!((full.object_id.as_deref(), full.upn.as_deref()), (Some(ID), Some("al@fab.com")));
    let Mapped::Instead { value, label, .. } = to_sentinel(Some("zed@contoso.com"), &people, &policy) else {
        panic!()
    };
    assert_eq!((value, label.as_deref()), (SentinelOwner::default(), Some("owner/zed@contoso.com")));
    // Nobody could be asked about: that proves nothing, and the name goes.
    assert_eq!(to_sentinel(Some("new@contoso.com"), &people, &policy), Mapped::To(upn("new@fab.com")));

    let only = |id: &str| SentinelOwner { object_id: Some(id.to_owned()), ..SentinelOwner::default() };
    let Mapped::Leave(gone) = to_defender(&only(ID), &people, &policy) else { panic!() };
    assert_eq!((gone.name.as_str(), gone.why), (ID, Why::Deleted));
    let as_is = OwnerPolicy { fallback: Fallback::AsIs, ..policy.clone() };
    assert_eq!(to_defender(&only(GROUP), &people, &as_is).value(), Some(&Some("Somebody".to_owned())));
    let group = to_sentinel(Some(GROUP), &people, &policy);
    assert!(group.value().is_some_and(|owner| owner.group), "a group goes as a group: {group:?}");
}
