//! Alerts and their evidence: every published example goes through, nothing vanishes, and the digest is harmless.

use std::path::Path;

use lockstep::domain::alert::{self, Alert, EntityKind};
use lockstep::domain::digest::{alert_digest, bookmark, bookmarked};
use lockstep::domain::model::{AlertPatch, DefenderClassification, DefenderDetermination, DefenderSeverity};
use lockstep::domain::text::units;
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/graph").join(name);
    serde_json::from_slice(&std::fs::read(&path).expect("a fixture")).expect("JSON")
}

fn kinds(evidence: &Value) -> Vec<EntityKind> {
    alert::entities(&json!([evidence])).into_iter().map(|entity| entity.kind).collect()
}

/// The table of `sentinel.md` §20: what the first entity of each type is. Where Sentinel has no kind, it is text.
const TABLE: [(&str, Option<EntityKind>); 48] = [
    ("activeDirectoryDomainEvidence", None),
    ("aiAgentEvidence", None),
    ("amazonResourceEvidence", None),
    ("analyzedMessageEvidence", Some(EntityKind::MailMessage)),
    ("azureResourceEvidence", Some(EntityKind::AzureResource)),
    ("blobContainerEvidence", Some(EntityKind::AzureResource)),
    ("blobEvidence", None),
    ("cloudApplicationEvidence", Some(EntityKind::CloudApplication)),
    ("cloudLogonRequestEvidence", None),
    ("cloudLogonSessionEvidence", None),
    ("containerEvidence", None),
    ("containerImageEvidence", None),
    ("containerRegistryEvidence", None),
    ("deviceEvidence", Some(EntityKind::Host)),
    ("dnsEvidence", Some(EntityKind::DnsResolution)),
    ("fileEvidence", Some(EntityKind::File)),
    ("fileHashEvidence", Some(EntityKind::FileHash)),
    ("gitHubOrganizationEvidence", None),
    ("gitHubRepoEvidence", None),
    ("gitHubUserEvidence", None),
    ("googleCloudResourceEvidence", None),
    ("hostLogonSessionEvidence", Some(EntityKind::Host)),
    ("ioTDeviceEvidence", Some(EntityKind::IoTDevice)),
    ("ipEvidence", Some(EntityKind::Ip)),
    ("kubernetesClusterEvidence", None),
    ("kubernetesControllerEvidence", None),
    ("kubernetesNamespaceEvidence", None),
    ("kubernetesPodEvidence", None),
    ("kubernetesSecretEvidence", None),
    ("kubernetesServiceAccountEvidence", None),
    ("kubernetesServiceEvidence", None),
    ("mailboxConfigurationEvidence", None),
    ("mailboxEvidence", Some(EntityKind::Mailbox)),
    ("mailClusterEvidence", Some(EntityKind::MailCluster)),
    ("malwareEvidence", Some(EntityKind::Malware)),
    ("networkConnectionEvidence", Some(EntityKind::Ip)),
    ("nicEvidence", Some(EntityKind::Ip)),
    ("oauthApplicationEvidence", Some(EntityKind::CloudApplication)),
    ("processEvidence", Some(EntityKind::Process)),
    ("registryKeyEvidence", Some(EntityKind::RegistryKey)),
    ("registryValueEvidence", Some(EntityKind::RegistryValue)),
    ("sasTokenEvidence", None),
    ("securityGroupEvidence", Some(EntityKind::SecurityGroup)),
    ("servicePrincipalEvidence", Some(EntityKind::CloudApplication)),
    ("submissionMailEvidence", Some(EntityKind::SubmissionMail)),
    ("teamsMessageEvidence", None),
    ("urlEvidence", Some(EntityKind::Url)),
    ("userEvidence", Some(EntityKind::Account)),
];

#[test]
fn every_type_of_evidence_becomes_what_the_table_says_or_text() {
    let all = fixture("alert-all-evidence-types.response.json");
    let evidence = all["evidence"].as_array().expect("a list");
    for (kind, wanted) in TABLE {
        let one =
            evidence.iter().find(|one| one["@odata.type"] == format!("#microsoft.graph.security.{kind}"));
        let found = kinds(one.unwrap_or_else(|| panic!("{kind} is among the published types")));
        match wanted {
            Some(wanted) => assert!(found.contains(&wanted), "{kind}: {found:?}"),
            None => {
                assert!(found.iter().any(|kind| matches!(kind, EntityKind::Text(_))), "{kind}: {found:?}");
            }
        }
    }
    assert_eq!(evidence.len(), TABLE.len(), "the published list has grown");
}

#[test]
fn nothing_vanishes_and_nothing_fails() {
    let nulls = fixture("alert-all-evidence-types-nulls.response.json");
    for one in nulls["evidence"].as_array().expect("a list") {
        assert!(!kinds(one).is_empty(), "{one} is named at least");
    }
    let unknown = fixture("alert-unknown-evidence-type.response.json");
    assert!(!alert::alert(&unknown).expect("it has an id").entities.is_empty());
    for odd in [
        json!({}),
        json!("text"),
        json!(7),
        json!({"@odata.type": 5}),
        json!({"@odata.type": "#x.y.newEvidence"}),
    ] {
        assert!(!kinds(&odd).is_empty(), "{odd}");
    }
    assert!(kinds(&Value::Null).is_empty());
}

#[test]
fn every_published_alert_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/graph");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&std::fs::read(&path).expect("a file")) else {
            continue;
        };
        let mut alerts = vec![&value];
        alerts.extend(value["value"].as_array().into_iter().flatten());
        let inner: Vec<&Value> =
            alerts.iter().flat_map(|one| one["alerts"].as_array().into_iter().flatten()).collect();
        for one in alerts.into_iter().chain(inner).filter(|one| one["evidence"].is_array()) {
            let alert = alert::alert(one).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
            assert_eq!(alert.entities.is_empty(), one["evidence"].as_array().is_none_or(Vec::is_empty));
            read += 1;
        }
    }
    assert!(read >= 5, "{read} alerts are among the examples");
}

fn an_alert(number: usize, title: &str, names: usize) -> Alert {
    let severities = ["low", "high", "medium", "informational"];
    let evidence: Vec<Value> = (0..names)
        .map(|n| json!({"@odata.type": "#microsoft.graph.security.urlEvidence", "url": format!("https://{n}.test/{title}")}))
        .collect();
    alert::alert(&json!({
        "id": format!("da{number}"), "title": title, "severity": severities[number % 4], "status": "new",
        "createdDateTime": format!("2026-11-25T10:{:02}:00Z", number % 60), "productName": title,
        "alertWebUrl": format!("https://security.microsoft.com/alerts/da{number}?tid=\"><script>"), "evidence": evidence,
        "category": "Execution", "mitreTechniques": ["T1059"],
    }))
    .expect("it has an id")
}

#[test]
fn a_thousand_alerts_are_shown_or_counted() {
    let alerts: Vec<Alert> =
        (0..1_000).map(|n| an_alert(n, "Suspicious PowerShell command line", 8)).collect();
    let parts = alert_digest(&alerts, Some("https://security.microsoft.com/incident2/1"), 29_000, 8);
    assert_eq!(parts.len(), 8);
    assert!(parts.iter().all(|part| units(part) <= 29_000));
    let shown: usize = parts.iter().map(|part| part.matches("<li>").count()).sum();
    let last = parts.last().expect("a part");
    assert!(last.contains(&format!("{} more alerts are not shown here", 1_000 - shown)), "{shown} are shown");
    assert!(
        parts[0].contains("1000 (250 high, 250 medium, 250 low, 250 informational)"),
        "{}",
        &parts[0][..200]
    );
    assert!(parts[0].find("<b>high</b>") < parts[0].find("<b>medium</b>").or(Some(usize::MAX)));
    let marked = bookmarked(&alerts, 20);
    assert!(marked.len() == 20 && marked.iter().all(|alert| alert.severity == DefenderSeverity::High));
}

proptest! {
    /// Whatever an alert holds: no part is too long, no markup but ours is in it, and its order does not matter.
    #[test]
    fn a_digest_is_bounded_harmless_and_the_same_in_any_order(
        titles in proptest::collection::vec("(\\PC|[<>&\"'\n]){0,40}", 1..30),
        names in 0usize..60,
    ) {
        let alerts: Vec<Alert> = titles.iter().enumerate().map(|(n, title)| an_alert(n, title, names)).collect();
        let parts = alert_digest(&alerts, Some("javascript:alert(1)"), 8_000, 3);
        let mut turned = alerts.clone();
        turned.reverse();
        prop_assert_eq!(&parts, &alert_digest(&turned, Some("javascript:alert(1)"), 8_000, 3));
        for part in &parts {
            prop_assert!(units(part) <= 8_000);
            let mut rest = part.as_str();
            while let Some(at) = rest.find('<') {
                rest = &rest[at + 1..];
                let tag = rest.split('>').next().unwrap_or_default();
                let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphabetic).collect();
                prop_assert!(["p", "b", "br", "ul", "li", "a", "i"].contains(&name.as_str()), "<{}>", tag);
                prop_assert!(tag.matches('"').count() % 2 == 0, "<{}>", tag);
            }
        }
        let marked = bookmark(&alerts[0]);
        prop_assert!(marked.query.matches('"').count() == 2 && serde_json::from_str::<Value>(&marked.query_result).is_ok());
    }

    /// Any JSON at all is read or refused, and never fatal.
    #[test]
    fn any_evidence_is_read(kind in 0usize..48, member in "[a-zA-Z]{1,16}", number in any::<i64>(), text in "\\PC{0,20}") {
        let odata = format!("#microsoft.graph.security.{}", TABLE[kind].0);
        for value in [json!(number), json!(text), json!([text]), json!({"ipAddress": text}), json!([{"x": [text]}])] {
            let one = json!({"@odata.type": odata, member.clone(): value, "userAccount": value, "fileDetails": value});
            prop_assert!(!kinds(&one).is_empty());
        }
    }
}

/// What alerts are still to be told is stored between two runs, and "nobody" is not "nothing said".
#[test]
fn a_stored_patch_of_an_alert_says_the_same_again() {
    let said = [
        AlertPatch::default(),
        AlertPatch { owner: Some(None), ..AlertPatch::default() },
        AlertPatch {
            status: Some("resolved".into()),
            owner: Some(Some("omar@contoso.com".into())),
            verdict: Some((DefenderClassification::TruePositive, DefenderDetermination::Phishing)),
        },
    ];
    for patch in said {
        let text = serde_json::to_string(&patch).unwrap();
        assert_eq!(serde_json::from_str::<AlertPatch>(&text).unwrap(), patch, "{text}");
        let pieces = patch.apart();
        let whole = pieces.iter().fold(AlertPatch::default(), |whole, (_, piece)| whole.with(piece));
        assert_eq!(whole, patch);
        assert!(patch.without(&patch).is_empty());
    }
}
