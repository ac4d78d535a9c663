//! Every token that the emulator can make, against the real key adapter: the genuine ones are let in, and each forgery
//! is refused for its own reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep::adapters::clock::{FastrandDice, SystemClock};
use lockstep::adapters::keys::EntraKeys;
use lockstep::adapters::transport::ClientOptions;
use lockstep::app::tokens::{TokenRefusal, Tokens};
use lockstep::domain::cloud::Cloud;
use lockstep::domain::token::{
    ACTION_GROUPS_ROLE, Authority, EVENT_GRID_ROLE, Refused, Standing, TokenRules,
};
use lockstep::emulator::forge::{Sender, VARIANTS};
use lockstep::emulator::{self, Args, Running};
use reqwest::Method;
use serde_json::{Value, json};

const AUDIENCE: &str = "api://lockstep-door";

struct Stage {
    running: Running,
    http: reqwest::Client,
}

impl Stage {
    async fn new() -> Self {
        let running = emulator::start(&Args { seed: Some(4), ..Args::default() }).await.expect("it starts");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { running, http }
    }

    fn tokens(&self) -> Tokens {
        let hello = &self.running.hello;
        let authority = Authority::new(Cloud::Global, &hello.login, &hello.tenant_id);
        let source = EntraKeys::new(&ClientOptions::default()).expect("a client");
        Tokens::new([authority], Arc::new(source), Arc::new(SystemClock), Arc::new(FastrandDice))
    }

    async fn control(&self, method: Method, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.running.hello.control);
        let answer = self.http.request(method, url).json(&body).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_success(), "{path} {status}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    async fn mint(&self, order: Value) -> String {
        let answer = self.control(Method::POST, "/tokens/mint", order).await;
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    async fn genuine(&self) -> String {
        self.mint(json!({"sender": "graph", "audience": AUDIENCE})).await
    }

    fn rules(&self, sender: Sender) -> TokenRules {
        let tenant = [self.running.hello.tenant_id.as_str()];
        match sender {
            Sender::Graph => TokenRules::graph(tenant, [AUDIENCE]),
            Sender::Playbook => TokenRules::playbook(tenant, [AUDIENCE], Standing::role("Bridge.Ingest")),
            Sender::ActionGroup => TokenRules::action_groups(tenant, [AUDIENCE], ACTION_GROUPS_ROLE),
            Sender::EventGrid => TokenRules::event_grid(tenant, [AUDIENCE], EVENT_GRID_ROLE),
        }
    }

    /// How often the key documents were asked for.
    async fn key_calls(&self) -> usize {
        let calls = self.control(Method::GET, "/calls", Value::Null).await;
        let calls = calls["calls"].as_array().expect("a list");
        calls.iter().filter(|call| call["path"].as_str().is_some_and(|path| path.ends_with("keys"))).count()
    }
}

/// Why each is refused.
fn verdicts() -> BTreeMap<&'static str, Refused> {
    [
        (Refused::Audience, &["wrong-audience", "two-audiences"][..]),
        (Refused::Tenant, &["wrong-tenant"]),
        (Refused::Issuer, &["issuer-of-other-tenant", "issuer-not-entra", "issuer-of-other-version"]),
        (Refused::Version, &["unknown-version"]),
        (Refused::Application, &["wrong-publisher"]),
        (Refused::Claims, &["no-publisher", "publisher-of-other-version"]),
        (Refused::Claims, &["no-expiry", "dates-as-text", "dates-beyond-time"]),
        (Refused::Standing, &["wrong-role", "no-role"]),
        (Refused::Delegated, &["person"]),
        (Refused::Expired, &["expired"]),
        (Refused::NotYetValid, &["not-yet-valid"]),
        (Refused::Algorithm, &["alg-none", "alg-none-signed", "alg-lower-case", "hs256-public-key"]),
        (Refused::Algorithm, &["rs512", "ps256"]),
        (Refused::UnknownKey, &["unknown-kid", "retired-key"]),
        (Refused::KeyId, &["no-kid", "kid-path", "kid-url", "kid-giant"]),
        (Refused::Signature, &["stranger-key", "tampered-claims", "tampered-header", "tampered-signature"]),
        (Refused::Signature, &["cut-signature"]),
        (Refused::OwnKey, &["own-key", "key-address"]),
        (Refused::Type, &["wrong-typ"]),
        (Refused::Critical, &["critical"]),
        (Refused::Duplicate, &["duplicate-claim", "duplicate-header", "duplicate-deep"]),
        (Refused::TooLong, &["giant"]),
        (Refused::Malformed, &["padded", "two-parts", "four-parts", "encrypted", "not-json", "empty"]),
    ]
    .into_iter()
    .flat_map(|(refused, names)| names.iter().map(move |name| (*name, refused)))
    .collect()
}

#[tokio::test]
async fn every_forgery_is_refused_for_its_own_reason() {
    let stage = Stage::new().await;
    let tokens = stage.tokens();
    // A rollover first: the keys that are fetched are those after it.
    stage.mint(json!({"audience": AUDIENCE, "variant": "retired-key"})).await;
    let verdicts = verdicts();
    let known: Vec<&str> = VARIANTS[1..].iter().map(|variant| variant.name).collect();
    assert_eq!(verdicts.len(), known.len(), "each variant has one verdict");
    let mut made = 0;
    for (name, sender) in Sender::ALL {
        let rules = stage.rules(sender);
        for version in ["1.0", "2.0"] {
            let order = |variant: &str| json!({"sender": name, "version": version, "audience": AUDIENCE, "variant": variant});
            let genuine = stage.mint(order("genuine")).await;
            for _ in 0..2 {
                let verified = tokens.verify(&genuine, &rules).await;
                let verified = verified.unwrap_or_else(|refusal| panic!("{name} {version}: {refusal}"));
                assert_eq!(verified.tenant, stage.running.hello.tenant_id);
                assert!(verified.object_id.is_some());
            }
            for variant in &known {
                let verdict = match (*variant, sender) {
                    // Graph's publisher is known by its id, which nobody else has: it needs no role.
                    ("wrong-role" | "no-role", Sender::Graph) => continue,
                    // Any application may be a playbook's, if it has the role.
                    ("wrong-publisher", Sender::Playbook) => Refused::Standing,
                    (variant, _) => {
                        *verdicts.get(variant).unwrap_or_else(|| panic!("{variant} has no verdict"))
                    }
                };
                let token = stage.running.mint(&order(variant)).expect("a token");
                assert_eq!(
                    tokens.verify(&token, &rules).await,
                    Err(TokenRefusal::Refused(verdict)),
                    "{name} {version} {variant}"
                );
                made += 1;
            }
        }
    }
    assert!(made > 350, "{made}");
    // All of this asked for each version's keys once.
    assert_eq!(stage.key_calls().await, 2);
}

#[tokio::test]
async fn the_key_service_can_fail_in_every_way_that_matters() {
    let stage = Stage::new().await;
    let rules = stage.rules(Sender::Graph);
    let token = stage.genuine().await;
    for service in ["down", "keys-down", "garbage", "empty", "giant", "other-host"] {
        stage.control(Method::PUT, "/keys", json!({"service": service})).await;
        let tokens = stage.tokens();
        assert_eq!(tokens.verify(&token, &rules).await, Err(TokenRefusal::KeysUnavailable), "{service}");
        let sets = tokens.key_sets();
        let why = sets[0].failing.as_deref().unwrap_or_default();
        assert!(!why.is_empty() && !why.contains(&token), "{service}: {why:?}");
    }
    // Nobody is there at all.
    let hello = &stage.running.hello;
    let authority = Authority::new(Cloud::Global, "http://127.0.0.1:1", &hello.tenant_id);
    let mut order = json!({"sender": "graph", "audience": AUDIENCE, "version": "2.0"});
    order["claims"] = json!({"iss": authority.issuer(lockstep::domain::token::Version::V2)});
    let source = EntraKeys::new(&ClientOptions::default()).expect("a client");
    let tokens = Tokens::new([authority], Arc::new(source), Arc::new(SystemClock), Arc::new(FastrandDice));
    let token = stage.mint(order).await;
    assert_eq!(tokens.verify(&token, &rules).await, Err(TokenRefusal::KeysUnavailable));
}

#[tokio::test]
async fn a_rollover_reaches_the_key_document() {
    let stage = Stage::new().await;
    let rules = stage.rules(Sender::Graph);
    let old = stage.genuine().await;
    let state = stage.control(Method::POST, "/keys/rollover", json!({})).await;
    assert_eq!(state["published"].as_array().map(Vec::len), Some(2), "{state}");
    let new = stage.genuine().await;
    let tokens = stage.tokens();
    assert!(tokens.verify(&old, &rules).await.is_ok());
    assert!(tokens.verify(&new, &rules).await.is_ok());
    let state = stage.control(Method::POST, "/keys/rollover", json!({"keepOld": false})).await;
    assert_eq!(state["published"].as_array().map(Vec::len), Some(1), "{state}");
    let tokens = stage.tokens();
    assert_eq!(tokens.verify(&new, &rules).await, Err(TokenRefusal::Refused(Refused::UnknownKey)));
    assert!(tokens.verify(&stage.genuine().await, &rules).await.is_ok());
    // The services themselves know every key that there was.
    let variants = stage.control(Method::GET, "/tokens/variants", Value::Null).await;
    assert_eq!(variants.as_object().map(serde_json::Map::len), Some(VARIANTS.len()));
}
