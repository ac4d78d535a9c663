//! The bench on which tokens are tried: a clock that is set by hand, chance that is none, and a key service in memory
//! that counts what it is asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use lockstep::app::tokens::Tokens;
use lockstep::domain::cloud::Cloud;
use lockstep::domain::token::{Authority, TokenRules};
use lockstep::ports::{Clock, Dice, KeySource, KeyTrouble};
use serde_json::{Value, json};
use time::OffsetDateTime;

pub(crate) const LOGIN: &str = "https://login.microsoftonline.com";
/// The first tenant of the vectors.
pub(crate) const TENANT: &str = "aaaabbbb-0000-cccc-1111-dddd2222eeee";
/// The second.
pub(crate) const OTHER_TENANT: &str = "bbbbcccc-1111-dddd-2222-eeee3333ffff";
/// Ours, in the vectors.
pub(crate) const AUDIENCE: &str = "8e460676-ae3f-4b1e-8790-ee0fb5d6148f";
/// The ids of the vectors' two keys.
pub(crate) const KIDS: [&str; 2] = ["rh7Zcx57SkAp57h_Uc4GQJQeESE", "GwlLld310z6nUI9gHB1c2H2YURQ"];

pub(crate) fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/tokens/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn json_fixture(name: &str) -> Value {
    serde_json::from_str(&fixture(name)).expect("a fixture is JSON")
}

/// A clock that stands still until it is set.
#[derive(Debug)]
pub(crate) struct HandClock(Mutex<OffsetDateTime>);

impl HandClock {
    pub(crate) fn at(unix: i64) -> Arc<Self> {
        let now = OffsetDateTime::from_unix_timestamp(unix).expect("a date");
        Arc::new(Self(Mutex::new(now)))
    }

    pub(crate) fn advance(&self, by: time::Duration) {
        *self.0.lock().expect("no panic under the lock") += by;
    }
}

impl Clock for HandClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().expect("no panic under the lock")
    }
}

/// Always the same side up: jitter in the middle.
#[derive(Debug)]
pub(crate) struct FixedDice;

impl Dice for FixedDice {
    fn roll(&self) -> f64 {
        0.5
    }
}

/// What the key service does when it is asked.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    /// Answers with this key document.
    Serves(String),
    /// Fails.
    Down,
    /// Answers with this key document, late.
    Slow(String, Duration),
    /// Sends the asker to keys elsewhere.
    Elsewhere(String),
    /// The discovery document is another issuer's.
    OtherIssuer(String),
}

/// A key service in memory.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) mood: Mutex<Mood>,
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) running: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
}

impl Service {
    pub(crate) fn serving(keys: &str) -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(Mood::Serves(fixture(keys))),
            asked: Mutex::default(),
            running: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        })
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no panic under the lock") = mood;
    }

    /// How often the discovery document was asked for since the last look: once for each fetch.
    pub(crate) fn fetches(&self) -> usize {
        let asked = std::mem::take(&mut *self.asked.lock().expect("no panic under the lock"));
        asked.iter().filter(|address| address.ends_with("openid-configuration")).count()
    }
}

#[async_trait::async_trait]
impl KeySource for Service {
    async fn document(&self, address: &str) -> Result<Vec<u8>, KeyTrouble> {
        self.asked.lock().expect("no panic under the lock").push(address.to_owned());
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(running, Ordering::SeqCst);
        let mood = self.mood.lock().expect("no panic under the lock").clone();
        if let Mood::Slow(_, delay) = &mood {
            tokio::time::sleep(*delay).await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        let path = address.strip_prefix(LOGIN).ok_or_else(|| KeyTrouble(format!("asked {address}")))?;
        let tenant = path.split('/').nth(1).unwrap_or_default();
        let (issuer, keys) = match path.contains("/v2.0") {
            true => (format!("{LOGIN}/{tenant}/v2.0"), format!("{LOGIN}/{tenant}/discovery/v2.0/keys")),
            false => {
                (format!("https://sts.windows.net/{tenant}/"), format!("{LOGIN}/{tenant}/discovery/keys"))
            }
        };
        let discovery = path.ends_with("/.well-known/openid-configuration");
        let document = match (discovery, mood) {
            (_, Mood::Down) => return Err(KeyTrouble("the key service answered 503".to_owned())),
            (true, Mood::Elsewhere(keys)) => json!({"issuer": issuer, "jwks_uri": keys}).to_string(),
            (true, Mood::OtherIssuer(issuer)) => json!({"issuer": issuer, "jwks_uri": keys}).to_string(),
            (true, _) => json!({"issuer": issuer, "jwks_uri": keys}).to_string(),
            (false, Mood::Serves(keys) | Mood::Slow(keys, _)) => keys,
            (false, Mood::Elsewhere(_) | Mood::OtherIssuer(_)) => fixture("jwks.json"),
        };
        Ok(document.into_bytes())
    }
}

/// A verifier for the vectors' two tenants.
pub(crate) fn tokens(service: &Arc<Service>, clock: &Arc<HandClock>) -> Tokens {
    let authorities = [TENANT, OTHER_TENANT].map(|tenant| Authority::new(Cloud::Global, LOGIN, tenant));
    let (source, clock) = (Arc::clone(service) as Arc<dyn KeySource>, Arc::clone(clock) as Arc<dyn Clock>);
    Tokens::new(authorities, source, clock, Arc::new(FixedDice))
}

pub(crate) fn graph_rules() -> TokenRules {
    TokenRules::graph([TENANT, OTHER_TENANT], [AUDIENCE])
}

/// Signs claims with one of the vectors' keys, under any key id.
pub(crate) fn sign(number: usize, kid: &str, claims: &Value) -> String {
    let der = fixture(&format!("entra-signing-key-{}.pkcs8.der.base64.txt", number + 1));
    let der = STANDARD.decode(der.split_whitespace().collect::<String>()).expect("base64");
    let begin = "-----BEGIN PRIVATE KEY-----";
    let pem = format!("{begin}\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a key");
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, &key).expect("a token")
}

/// The claims of a genuine notification of Graph.
pub(crate) fn graph_claims(now: i64) -> Value {
    json!({
        "aud": AUDIENCE, "iss": format!("https://sts.windows.net/{TENANT}/"), "tid": TENANT, "ver": "1.0",
        "appid": "0bf30f3b-4a52-48df-9a82-234910c4a086", "iat": now - 60, "nbf": now - 60, "exp": now + 200_000,
    })
}
