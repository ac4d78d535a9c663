//! Graph's encrypted notifications at the door: the published vectors are taken, and whatever is not whole, not for us or
//! not Graph's is dropped without a trace but a count.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lockstep::app::keyring::Source;
use lockstep::domain::rich::RichKey;
use serde_json::{Value, json};

use super::*;
use crate::vectors;

/// When the vectors are good.
const THEN: i64 = 1_772_037_033;
const ONE: &str = "aaaabbbb-0000-cccc-1111-dddd2222eeee";
const TWO: &str = "bbbbcccc-1111-dddd-2222-eeee3333ffff";
const GENUINE: &str = include_str!("../fixtures/vectors/rich-notification.json");
const TAMPERED: &str = include_str!("../fixtures/vectors/rich-notification-tampered.json");
const MISSING: &str = include_str!("../fixtures/vectors/rich-notification-missing-token.json");
const TOKENS: &str = include_str!("../fixtures/tokens/validation-tokens.json");
const CONFIG: &str = r#"
[server]
public_url = "https://lockstep.example"
[[tenants]]
name = "one"
tenant_id = "aaaabbbb-0000-cccc-1111-dddd2222eeee"
client_id = "8e460676-ae3f-4b1e-8790-ee0fb5d6148f"
client_secret = "hush"
[[tenants.subscriptions]]
resource = "security/alerts"
[[tenants]]
name = "two"
tenant_id = "bbbbcccc-1111-dddd-2222-eeee3333ffff"
client_id = "8e460676-ae3f-4b1e-8790-ee0fb5d6148f"
client_secret = "hush"
[[tenants.subscriptions]]
resource = "security/alerts"
"#;

/// Entra's documents with the keys of the vectors.
#[derive(Default)]
struct Published {
    down: AtomicBool,
    asked: AtomicUsize,
}

#[async_trait]
impl KeySource for Published {
    async fn document(&self, address: &str) -> Result<Vec<u8>, KeyTrouble> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) {
            return Err(KeyTrouble("the key service answered 503".into()));
        }
        let host = "https://login.microsoftonline.com";
        let path = address.strip_prefix(host).unwrap();
        if path.ends_with("/keys") {
            return Ok(include_bytes!("../fixtures/tokens/jwks.json").to_vec());
        }
        let tenant = path.split('/').nth(1).unwrap();
        let (issuer, keys) = match path.contains("/v2.0/") {
            true => (format!("{host}/{tenant}/v2.0"), format!("{host}/{tenant}/discovery/v2.0/keys")),
            false => {
                (format!("https://sts.windows.net/{tenant}/"), format!("{host}/{tenant}/discovery/keys"))
            }
        };
        Ok(json!({"issuer": issuer, "jwks_uri": keys}).to_string().into_bytes())
    }
}

pub(crate) fn vector_key(number: usize) -> Arc<RichKey> {
    let (certificate, pem) = vectors::pair(number);
    Arc::new(RichKey::from_pem(&format!("bridge-cert-{number}"), certificate, &pem).unwrap())
}

fn house() -> (House, Arc<Published>) {
    let keys = Arc::new(Published::default());
    let sources = |numbers: &[usize]| numbers.iter().map(|n| Source::Here(vector_key(*n))).collect();
    let ring = [(ONE.to_owned(), sources(&[1])), (TWO.to_owned(), sources(&[1, 2]))];
    let house = House::build(CONFIG, keys.clone(), Stopped::at(THEN), Keyring::new(ring.into()));
    for (tenant, id, state) in [
        (ONE, "76619225-ff6b-4489-96ca-4ef547e78b22", "state-a"),
        (TWO, "5cfe2387-163c-4006-81bb-1b5e1e060afe", "state-b"),
    ] {
        let record = json!({
            "id": id, "client_state": state, "shape": "", "expires": null, "renew_at": null,
            "certificate": null, "alive": null,
        });
        let name = format!("subscription:{tenant}:security/alerts");
        house.store.values.lock().unwrap().insert(name, record.to_string());
    }
    (house, keys)
}

fn subjects(house: &House) -> Vec<String> {
    house.store.hints.lock().unwrap().iter().map(|hint| hint.subject.to_string()).collect()
}

async fn counted(house: &House, outcome: &str) -> u64 {
    let line = format!(r#"lockstep_notifications_total{{door="graph",outcome="{outcome}"}} "#);
    let metrics = house.get("/metrics").await.body;
    metrics.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

fn first_only(body: &str) -> Value {
    let mut body: Value = serde_json::from_str(body).unwrap();
    body["value"].as_array_mut().unwrap().truncate(1);
    body["validationTokens"].as_array_mut().unwrap().truncate(1);
    body
}

#[tokio::test]
async fn the_published_vectors_are_taken() {
    let (house, keys) = house();
    assert_eq!(house.graph("/notify/graph", GENUINE).await.status, StatusCode::ACCEPTED);
    let all = [format!("defender:{ONE}:alert:alert-1"), format!("defender:{TWO}:alert:alert-2")];
    assert_eq!(subjects(&house), all);
    assert_eq!(counted(&house, "accepted").await, 2);
    // Both kinds come at both addresses, in any mixture, and the keys are fetched once.
    let asked = keys.asked.load(Ordering::Relaxed);
    let mut mixed: Value = serde_json::from_str(GENUINE).unwrap();
    let plain = json!({
        "subscriptionId": "76619225-ff6b-4489-96ca-4ef547e78b22", "tenantId": ONE, "clientState": "state-a",
        "resource": "security/incidents/7",
    });
    let mut event = plain.clone();
    event["lifecycleEvent"] = "missed".into();
    mixed["value"].as_array_mut().unwrap().extend([plain, event]);
    let answer = house.graph("/notify/graph/lifecycle", &mixed.to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(subjects(&house).len(), 5);
    assert!(subjects(&house).contains(&format!("defender:{ONE}:7")));
    assert_eq!(keys.asked.load(Ordering::Relaxed), asked);
    let values = house.store.values.lock().unwrap().clone();
    assert!(values.keys().any(|name| name.ends_with(":missed")), "{values:?}");
}

#[cfg(feature = "emulator")]
#[tokio::test]
async fn an_alert_that_names_its_incident_is_a_hint_about_the_incident() {
    // What is sealed here is made by the test: the vectors name no incident.
    let sealed = lockstep::emulator::seal::seal(
        include_str!("../fixtures/vectors/rich-cert-1.encryptionCertificate.txt").trim(),
        "bridge-cert-1",
        br#"{"id":"alert-1","incidentId":"4711"}"#,
    )
    .unwrap();
    let mut body = first_only(GENUINE);
    body["value"][0]["encryptedContent"] = sealed;
    let (house, _) = house();
    assert_eq!(house.graph("/notify/graph", &body.to_string()).await.status, StatusCode::ACCEPTED);
    assert_eq!(subjects(&house), [format!("defender:{ONE}:4711")]);
}

#[tokio::test]
async fn what_is_not_whole_or_not_graphs_is_dropped_and_counted() {
    let tokens: Value = serde_json::from_str(TOKENS).unwrap();
    let genuine = first_only(GENUINE);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = genuine.clone();
        change(&mut body);
        body
    };
    let sealed =
        |change: &'static dyn Fn(&mut Value)| with(&|body| change(&mut body["value"][0]["encryptedContent"]));
    let mut forged = vec![
        ("tampered data", serde_json::from_str(TAMPERED).unwrap(), "unopened"),
        (
            "no tokens",
            with(&|body| drop(body.as_object_mut().unwrap().remove("validationTokens"))),
            "no-token",
        ),
        ("empty tokens", with(&|body| body["validationTokens"] = json!([])), "no-token"),
        ("tokens that are none", with(&|body| body["validationTokens"] = json!([7, null, {}])), "no-token"),
        (
            "the other tenant's token",
            with(&|body| {
                let both: Value = serde_json::from_str(GENUINE).unwrap();
                body["validationTokens"] = json!([both["validationTokens"][1]]);
            }),
            "no-token",
        ),
        (
            "wrong clientState",
            with(&|body| body["value"][0]["clientState"] = "state-b".into()),
            "client-state",
        ),
        (
            "another subscription's state",
            with(&|body| body["value"][0]["subscriptionId"] = "5cfe2387-163c-4006-81bb-1b5e1e060afe".into()),
            "client-state",
        ),
        (
            "wrong certificate",
            sealed(&|c| c["encryptionCertificateId"] = "bridge-cert-9".into()),
            "unknown-certificate",
        ),
        (
            "nothing sealed",
            with(&|body| body["value"][0]["encryptedContent"] = json!({})),
            "unknown-certificate",
        ),
        ("wrong signature", sealed(&|c| c["dataSignature"] = "A".repeat(43).add_pad()), "unopened"),
        ("wrong key", sealed(&|c| c["dataKey"] = "A".repeat(342).add_pads()), "unopened"),
        ("no data", sealed(&|c| c["data"] = "".into()), "unopened"),
    ];
    for token in tokens["tokens"].as_array().unwrap() {
        if token["expect"] != "accept" {
            let body = with(&|body| body["validationTokens"] = json!([token["token"]]));
            let name = token["name"].as_str().unwrap();
            forged.push((name, body, "token-"));
        }
    }
    assert!(forged.len() > 20);
    for (name, body, reason) in forged {
        let (house, _) = house();
        let before = house.stored();
        let (heard, guard) = listen();
        let answer = house.graph("/notify/graph", &body.to_string()).await;
        drop(guard);
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::ACCEPTED, ""), "{name}");
        assert_eq!(house.stored(), before, "{name}");
        let metrics = house.get("/metrics").await.body;
        let line = format!(r#"door="graph",outcome="{reason}"#);
        assert!(metrics.contains(&line), "{name}: {line} in {metrics}");
        assert!(!metrics.contains(r#"outcome="accepted""#), "{name}");
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        for secret in ["state-a", "eyJ", "cGn87oJ1", "alert-1", "kDP7RhFF"] {
            assert!(!heard.contains(secret), "{name}: {heard}");
        }
    }
}

trait Pads {
    fn add_pad(self) -> Value;
    fn add_pads(self) -> Value;
}

impl Pads for String {
    fn add_pad(self) -> Value {
        format!("{self}=").into()
    }
    fn add_pads(self) -> Value {
        format!("{self}==").into()
    }
}

#[tokio::test]
async fn an_item_without_a_token_takes_no_other_with_it() {
    let (house, _) = house();
    assert_eq!(house.graph("/notify/graph", MISSING).await.status, StatusCode::ACCEPTED);
    assert_eq!(subjects(&house), [format!("defender:{ONE}:alert:alert-1")]);
    assert_eq!(counted(&house, "no-token").await, 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_key_service_is_down_graph_keeps_its_copy() {
    let (house, keys) = house();
    keys.down.store(true, Ordering::Relaxed);
    let before = house.stored();
    let answer = house.graph("/notify/graph", GENUINE).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(house.stored(), before, "nothing of a POST that is to come again");
    // What needs no key is taken all the same.
    let plain = json!({"value": [{
        "subscriptionId": "76619225-ff6b-4489-96ca-4ef547e78b22", "tenantId": ONE, "clientState": "state-a",
        "resource": "security/incidents/7",
    }]});
    assert_eq!(house.graph("/notify/graph", &plain.to_string()).await.status, StatusCode::ACCEPTED);
    assert_eq!(subjects(&house), [format!("defender:{ONE}:7")]);
}

#[tokio::test(start_paused = true)]
async fn a_guesser_makes_the_door_look_into_the_store_once_a_second_and_a_new_state_counts_at_once() {
    let (house, _) = house();
    let item = |state: &str| {
        let item = json!({
            "subscriptionId": "s", "tenantId": ONE, "clientState": state, "resource": "security/incidents/8",
        });
        json!({"value": vec![item; 50]}).to_string()
    };
    house.graph("/notify/graph", &item("a-guess")).await;
    assert!(subjects(&house).is_empty());
    // One that is being made has no id yet: its state alone must be enough.
    let record = json!({
        "id": null, "client_state": "fresh", "shape": "", "expires": null, "renew_at": null,
        "certificate": null, "alive": null,
    });
    let name = format!("subscription:{ONE}:security/incidents");
    house.store.values.lock().unwrap().insert(name, record.to_string());
    house.graph("/notify/graph", &item("fresh")).await;
    assert!(subjects(&house).is_empty(), "the store was asked again within a second");
    tokio::time::advance(Duration::from_secs(1)).await;
    house.graph("/notify/graph", &item("fresh")).await;
    assert_eq!(subjects(&house), [format!("defender:{ONE}:8")]);
}
