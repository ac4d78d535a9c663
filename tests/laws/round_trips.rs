//! What one side can say, the other repeats, and back again it is the same; what it cannot say is left alone.

use lockstep::domain::mapping as map;
use lockstep::domain::model::*;
use lockstep::domain::policy::{LabelRules, Policy};
use proptest::prelude::*;

#[test]
fn every_severity_that_has_a_counterpart_comes_back() {
    for severity in DefenderSeverity::KNOWN {
        if let Some(there) = map::severity_to_sentinel(severity) {
            assert_eq!(map::severity_to_defender(&there).as_ref(), Some(severity));
        }
    }
    for severity in SentinelSeverity::KNOWN {
        let there = map::severity_to_defender(severity).expect("all four exist in Defender");
        assert_eq!(map::severity_to_sentinel(&there).as_ref(), Some(severity));
    }
    assert_eq!(map::severity_to_sentinel(&DefenderSeverity::parse("critical")), None);
}

#[test]
fn every_status_means_the_same_after_the_crossing() {
    for in_progress_writable in [true, false] {
        let mut policy = Policy::default();
        policy.in_progress_writable = in_progress_writable;
        for status in SentinelStatus::KNOWN {
            let there = map::status_to_defender(status, &policy).expect("known");
            assert!(map::status_same(&there, status, &policy), "{status} {there}");
        }
        for status in DefenderStatus::KNOWN {
            let there = map::status_to_sentinel(status).expect("known");
            assert!(map::status_same(status, &there, &policy));
        }
    }
}

#[test]
fn every_verdict_that_we_write_is_a_pair_that_the_portal_offers() {
    let policy = Policy::default();
    let offered: &[(&str, &[&str])] = &[
        (
            "truePositive",
            &[
                "multiStagedAttack",
                "maliciousUserActivity",
                "compromisedAccount",
                "malware",
                "phishing",
                "unwantedSoftware",
                "other",
            ],
        ),
        (
            "informationalExpectedActivity",
            &["securityTesting", "lineOfBusinessApplication", "confirmedActivity", "other"],
        ),
        ("falsePositive", &["notMalicious", "notEnoughDataToValidate", "other"]),
        ("unknown", &["unknown"]),
    ];
    for classification in SentinelClassification::KNOWN {
        for reason in SentinelReason::KNOWN.iter().cloned().map(Some).chain([None]) {
            let said = (classification.clone(), reason);
            let (class, determination) = map::verdict_to_defender(&said, &policy).expect("known");
            let pair = offered.iter().find(|(name, _)| *name == class.as_str()).expect("offered");
            assert!(pair.1.contains(&determination.as_str()), "{class}/{determination}");
            assert!(map::verdict_same(&(class, determination), &said));
        }
    }
    for classification in DefenderClassification::KNOWN {
        for determination in DefenderDetermination::KNOWN {
            let (class, reason) =
                map::verdict_to_sentinel(&(classification.clone(), determination.clone())).expect("known");
            assert!(map::valid_pair(&class, reason.as_ref()), "{class} {reason:?}");
        }
    }
}

#[test]
fn words_are_read_in_any_case_and_old_names_in_the_new() {
    assert_eq!(DefenderClassification::parse("TruePositive"), DefenderClassification::TruePositive);
    assert_eq!(DefenderDetermination::parse("clean"), DefenderDetermination::NotMalicious);
    assert_eq!(DefenderDetermination::parse("CompromisedUser").as_str(), "compromisedAccount");
    assert_eq!(DefenderStatus::parse("Active").as_str(), "active");
    assert_eq!(SentinelStatus::parse("closed").as_str(), "Closed");
    assert_eq!(DefenderStatus::parse("brandNew").as_str(), "brandNew", "an unknown word is kept as it came");
}

proptest! {
    /// Whatever people type: the block goes in and comes out, the limit holds, and cut text is never copied back.
    #[test]
    fn a_description_survives_the_block(text in "\\PC{0,200}", long in 0usize..7000) {
        let text = format!("{text}{}", "é".repeat(long));
        let mut incident = crate::worlds::World::new(crate::worlds::defender_says(), None).defender;
        incident.says.description = Some(text.clone());
        incident.web_url = Some("https://security.microsoft.com/incident2/29".into());
        let alerts = vec![(DefenderSeverity::High, 150)];
        let products = vec!["Microsoft Defender for Endpoint --- end ---".to_owned(); 200];
        incident.says.facts = Some(Facts { alerts, products, ..Facts::default() });
        let whole = map::new_twin(&incident, &Policy::default()).description.expect("our block at least");
        prop_assert!(whole.encode_utf16().count() <= map::DESCRIPTION_LIMIT);
        let own = map::description_without_block(Some(&whole));
        let fits = map::description_that_fits(Some(&text));
        prop_assert_eq!(&own, &fits);
        let cut = fits != map::plain_option(Some(&text));
        prop_assert_eq!(map::description_to_defender(own.as_deref()).is_none(), cut);
    }

    /// Spelling and order of what stays are kept, automatic labels are never touched.
    #[test]
    fn labels_keep_their_spelling(tags in proptest::collection::vec("[a-cA-C]{1,2}", 0..5), labels in proptest::collection::vec(("[a-cA-C]{1,2}", any::<bool>()), 0..5)) {
        let mut d = crate::worlds::defender_says();
        d.tags = tags;
        let mut s = crate::worlds::sentinel_says();
        s.labels = labels.into_iter().map(|(name, auto)| Label { name, auto }).collect();
        let rules = LabelRules::default();
        let mut goal = map::defender_tags(&d, &rules);
        let after = map::labels_for_sentinel(&goal, &s.labels, &d, &rules);
        let auto = |labels: &[Label]| labels.iter().filter(|l| l.auto).cloned().collect::<Vec<_>>();
        prop_assert_eq!(auto(&after), auto(&s.labels));
        let s2 = SentinelSays { labels: after, ..s.clone() };
        // A tag that the system has set as an automatic label is there already.
        let user = map::sentinel_tags(&s2, &rules);
        goal.retain(|name| user.contains(name) || !s.labels.iter().any(|l| l.auto && l.name.to_lowercase() == *name));
        prop_assert_eq!(user, goal);
        for label in s2.labels.iter().filter(|l| !l.auto) {
            prop_assert!(s.labels.contains(label) || d.tags.contains(&label.name), "invented {:?}", label);
        }
    }
}
