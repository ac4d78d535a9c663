//! The doors from outside: what is taken in, what is refused and with which answer, and that nothing refused is stored
//! and nothing secret is logged.
#![allow(clippy::unwrap_used)] // Helpers of tests; clippy only knows the test functions themselves.

mod edge;
mod openapi;
mod rich;
mod subscriptions;
#[path = "../support/vectors.rs"]
mod vectors;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use lockstep::app::health::{Health, WatchedRoute};
use lockstep::app::intake::Inbox;
use lockstep::app::keyring::Keyring;
use lockstep::app::lately::Lately;
use lockstep::app::subscriptions::{Board, Book};
use lockstep::app::tokens::Tokens;
use lockstep::config::Config;
use lockstep::domain::model::{LinkKey, Side};
use lockstep::domain::signature::Secret;
use lockstep::domain::token::Authority;
use lockstep::http::{AppState, DoorMetrics, Doors, Front, MOST_BODY_BYTES, Phase, router};
use lockstep::ports::*;
use lockstep::telemetry;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tower::ServiceExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use uuid::Uuid;

const NOW: i64 = 1_772_620_264;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const STATE: &str = "secretClientValue-of-contoso";
const TENANT: &str = "84bd8158-6d4d-4958-8b9f-9d6445542f95";
const UPDATED: &str = include_str!("../fixtures/notices/playbook-incident-trigger.updated.json");
const CREATED: &str = include_str!("../fixtures/notices/playbook-incident-trigger.created.json");

const CONFIG: &str = r#"
[[tenants]]
name = "contoso"
tenant_id = "84BD8158-6d4d-4958-8b9f-9d6445542f95"
client_id = "app"
client_secret = "hush"
graph_client_states = ["another-state-of-contoso", "secretClientValue-of-contoso"]
[[workspaces]]
name = "soc"
tenant = "contoso"
subscription_id = "d0cfe6b2-9ac0-4464-9919-dccaee2e48c0"
resource_group = "myRg"
workspace_name = "myWorkspace"
webhook_secrets = ["whsec_AAECAwQFBgcICQoLDA0ODw==", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
"#;

/// A store that remembers what it was given, and has a will to fail.
#[derive(Default)]
struct Memory {
    hints: Mutex<Vec<Hint>>,
    deliveries: Mutex<Vec<Delivery>>,
    values: Mutex<BTreeMap<String, String>>,
    fences: Mutex<BTreeMap<String, (Uuid, OffsetDateTime)>>,
    mood: Mutex<Mood>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Full,
    Stuck,
    Panics,
}

impl Memory {
    async fn feel(&self) -> Result<(), StoreError> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => Ok(()),
            Mood::Full => Err(StoreError::Unavailable("the disk is full".into())),
            Mood::Stuck => std::future::pending().await,
            Mood::Panics => panic!("a planted defect"),
        }
    }
}

fn elsewhere<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("doors do not ask for this".into()))
}

#[async_trait]
impl Store for Memory {
    async fn remember(
        &self,
        hints: Vec<Hint>,
        delivery: Option<Delivery>,
        _: OffsetDateTime,
    ) -> Result<Remembered, StoreError> {
        self.feel().await?;
        if let Some(delivery) = delivery {
            let mut deliveries = self.deliveries.lock().unwrap();
            if deliveries.iter().any(|known| (&known.door, &known.id) == (&delivery.door, &delivery.id)) {
                return Ok(Remembered::Repeated);
            }
            deliveries.push(delivery);
        }
        self.hints.lock().unwrap().extend(hints);
        Ok(Remembered::New)
    }
    async fn set_value(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.feel().await?;
        self.values.lock().unwrap().insert(name.into(), value.into());
        Ok(())
    }
    async fn values(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        self.feel().await?;
        let values = self.values.lock().unwrap();
        let wanted = values
            .iter()
            .filter(|(name, _)| name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after));
        Ok(wanted.take(most).map(|(name, value)| (name.clone(), value.clone())).collect())
    }
    async fn remove_value(&self, name: &str) -> Result<(), StoreError> {
        self.feel().await?;
        self.values.lock().unwrap().remove(name);
        Ok(())
    }
    async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        self.feel().await?;
        let oldest = OffsetDateTime::from_unix_timestamp(NOW - 7).ok();
        let oldest_background = OffsetDateTime::from_unix_timestamp(NOW - 700).ok();
        Ok(QueueStats { waiting: 3, background: 2, parked: 1, oldest, oldest_background })
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.feel().await
    }
    async fn lease_jobs(
        &self,
        _: usize,
        _: &[Scope],
        _: OffsetDateTime,
        _: OffsetDateTime,
    ) -> Result<Vec<JobLease>, StoreError> {
        elsewhere()
    }
    async fn settle(&self, _: &JobLease, _: Settlement, _: OffsetDateTime) -> Result<Held, StoreError> {
        elsewhere()
    }
    async fn take_fence(
        &self,
        name: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Option<Fence>, StoreError> {
        self.feel().await?;
        let mut fences = self.fences.lock().unwrap();
        if fences.get(name).is_some_and(|(_, until)| *until > now) {
            return Ok(None);
        }
        let token = Uuid::new_v4();
        fences.insert(name.to_owned(), (token, until));
        Ok(Some(Fence { name: name.to_owned(), token }))
    }
    async fn extend_fence(
        &self,
        fence: &Fence,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        self.feel().await?;
        match self.fences.lock().unwrap().get_mut(&fence.name) {
            Some(held) if held.0 == fence.token && held.1 > now => {
                held.1 = until;
                Ok(Held::Yes)
            }
            _ => Ok(Held::No),
        }
    }
    async fn release_fence(&self, fence: &Fence) -> Result<(), StoreError> {
        let mut fences = self.fences.lock().unwrap();
        if fences.get(&fence.name).is_some_and(|(token, _)| *token == fence.token) {
            fences.remove(&fence.name);
        }
        Ok(())
    }
    async fn link(&self, _: &LinkKey) -> Result<Option<LinkRecord>, StoreError> {
        elsewhere()
    }
    async fn links_of_twin(&self, _: &str, _: &str) -> Result<Vec<LinkRecord>, StoreError> {
        elsewhere()
    }
    async fn save_link(
        &self,
        _: &LinkRecord,
        _: &[JournalEntry],
        _: &Fence,
        _: OffsetDateTime,
    ) -> Result<Held, StoreError> {
        elsewhere()
    }
    async fn links(
        &self,
        _: Option<&str>,
        _: Option<&LinkKey>,
        _: usize,
    ) -> Result<Vec<LinkRecord>, StoreError> {
        elsewhere()
    }
    async fn journal_count(&self, _: &LinkKey, _: &str, _: OffsetDateTime) -> Result<u64, StoreError> {
        elsewhere()
    }
    async fn journal(&self, _: &LinkKey, _: usize) -> Result<Vec<JournalEntry>, StoreError> {
        elsewhere()
    }
    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.feel().await?;
        Ok(self.values.lock().unwrap().get(name).cloned())
    }
    async fn hold(&self, _: &Hold) -> Result<(), StoreError> {
        elsewhere()
    }
    async fn release(&self, _: &str) -> Result<u64, StoreError> {
        elsewhere()
    }
    async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        elsewhere()
    }
    async fn queued(&self, _: &Subject) -> Result<Option<Queued>, StoreError> {
        elsewhere()
    }
    async fn parked(&self, _: usize) -> Result<Vec<Parked>, StoreError> {
        elsewhere()
    }
    async fn unpark(&self, _: &Subject, _: OffsetDateTime) -> Result<bool, StoreError> {
        elsewhere()
    }
    async fn purge(&self, _: OffsetDateTime, _: OffsetDateTime) -> Result<(), StoreError> {
        elsewhere()
    }
}

/// A clock that stands where it was set.
struct Stopped(Mutex<OffsetDateTime>);

impl Stopped {
    fn at(seconds: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(OffsetDateTime::from_unix_timestamp(seconds).unwrap())))
    }
}

impl Clock for Stopped {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

/// Chance that is always in the middle.
struct Even;

impl Dice for Even {
    fn roll(&self) -> f64 {
        0.5
    }
}

/// A key service that nobody is to ask.
struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn document(&self, _: &str) -> Result<Vec<u8>, KeyTrouble> {
        Err(KeyTrouble("nobody asks".into()))
    }
}

struct House {
    store: Arc<Memory>,
    phase: Phase,
    state: AppState,
    config: Config,
    router: axum::Router,
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: String,
}

impl House {
    fn new() -> Self {
        Self::build(CONFIG, Arc::new(NoKeys), Stopped::at(NOW), Keyring::default())
    }

    fn build(text: &str, keys: Arc<dyn KeySource>, clock: Arc<Stopped>, keyring: Keyring) -> Self {
        let config =
            Config::parse(text, &BTreeMap::new(), &|_| Err(std::io::ErrorKind::NotFound.into())).unwrap();
        let authorities = config
            .tenants
            .iter()
            .map(|tenant| Authority::new(tenant.cloud, tenant.login_url.as_str(), &tenant.tenant_id));
        let tokens = Tokens::new(authorities, keys, clock.clone(), Arc::new(Even));
        let store = Arc::new(Memory::default());
        let health = Health::new(vec![WatchedRoute {
            name: "contoso-soc".into(),
            tenant_id: TENANT.into(),
            workspace: config.workspaces.first().map(|one| one.resource_id()).unwrap_or_default(),
        }]);
        health.token(Side::Defender, TENANT, Err("Entra refused the client secret"));
        let (mut registry, metrics, phase) =
            (telemetry::registry(), DoorMetrics::default(), Phase::default());
        metrics.register(&mut registry);
        health.register(&mut registry);
        phase.running();
        let state = AppState {
            doors: Arc::new(Doors::new(&config).unwrap()),
            inbox: Inbox::new(store.clone(), clock, Arc::new(Notify::new())),
            store: store.clone(),
            tokens,
            book: Book::new(store.clone()),
            board: Board::default(),
            keyring,
            health: Arc::new(health),
            routes: Arc::default(),
            lately: Lately::default(),
            registry: Arc::new(registry),
            metrics,
            phase: phase.clone(),
        };
        Self { store, phase, router: router(state.clone()), state, config }
    }

    /// The same behind its edge.
    fn front(&self) -> Front {
        Front::new(self.state.clone(), &self.config.server).unwrap()
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn graph(&self, path: &str, body: &str) -> Answer {
        self.ask(Request::post(path).body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn playbook(&self, id: &str, body: &str) -> Answer {
        self.ask(Post::new(id, body).request()).await
    }

    fn stored(&self) -> usize {
        let count = self.store.hints.lock().unwrap().len() + self.store.values.lock().unwrap().len();
        count + self.store.deliveries.lock().unwrap().len()
    }
}

/// A genuine playbook post, to be spoilt.
struct Post {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Post {
    fn at(id: &str, body: &str, sent: i64) -> Self {
        let sent = sent.to_string();
        let signature = Secret::parse(SECRET).unwrap().sign(id, &sent, body.as_bytes());
        let headers = vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", sent),
            ("webhook-signature", signature),
        ];
        Self { path: "/notify/sentinel/soc".into(), headers, body: body.into() }
    }

    fn new(id: &str, body: &str) -> Self {
        Self::at(id, body, NOW)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.iter_mut().find(|(key, _)| *key == name).unwrap().1 = value.into();
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| *key != name);
        self
    }

    fn request(self) -> Request<Body> {
        let mut request = Request::post(self.path);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Body::from(self.body)).unwrap()
    }
}

/// Log lines of this thread, while the guard lives.
fn listen() -> (Arc<Mutex<Vec<u8>>>, impl Drop) {
    struct Ear(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Ear {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = heard.clone();
    let lines = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE);
    (heard, lines.with_writer(move || Ear(ear.clone())).finish().set_default())
}

#[tokio::test]
async fn a_signed_playbook_is_stored_once() {
    let house = House::new();
    for id in ["one", "one", "two"] {
        assert_eq!(house.playbook(id, UPDATED).await.status, StatusCode::ACCEPTED);
    }
    assert_eq!(house.playbook("three", CREATED).await.status, StatusCode::ACCEPTED);
    let hints = house.store.hints.lock().unwrap().clone();
    assert_eq!(hints.len(), 3, "the repeated id stored nothing");
    assert_eq!(hints[0].subject.native_id, "5f3c7a1e-1b52-4c0f-9c55-0d6c3c1d2a10");
    assert_eq!(hints[0].version.as_deref(), Some("\"9c00b991-0000-2000-0000-69a7f6210000\""));
    assert_eq!(
        hints[0].subject.scope,
        "/subscriptions/d0cfe6b2-9ac0-4464-9919-dccaee2e48c0/resourcegroups/myrg/providers/\
         microsoft.operationalinsights/workspaces/myworkspace"
    );
    let kept = house.store.deliveries.lock().unwrap()[0].keep_until;
    assert_eq!(kept.unix_timestamp(), NOW + 600, "twice the tolerance");
}

#[tokio::test]
async fn a_forged_playbook_leaves_a_line_and_nothing_else() {
    let other = Secret::parse("whsec_CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC").unwrap();
    let stranger = other.sign("id", &NOW.to_string(), UPDATED.as_bytes());
    let changed = Post { body: UPDATED.replacen("High", "Low", 1), ..Post::new("id", UPDATED) };
    let forged = [
        ("no id", Post::new("id", UPDATED).without("webhook-id")),
        ("no timestamp", Post::new("id", UPDATED).without("webhook-timestamp")),
        ("no signature", Post::new("id", UPDATED).without("webhook-signature")),
        ("another id", Post::new("id", UPDATED).with("webhook-id", "id2")),
        ("another time", Post::new("id", UPDATED).with("webhook-timestamp", &(NOW - 1).to_string())),
        ("another body", changed),
        ("another secret", Post::new("id", UPDATED).with("webhook-signature", &stranger)),
        ("too old", Post::at("id", UPDATED, NOW - 301)),
        ("too new", Post::at("id", UPDATED, NOW + 301)),
        ("not JSON and wrong", Post::new("id", "{").with("webhook-signature", &stranger)),
        ("too long an id", Post::new(&"i".repeat(257), UPDATED)),
    ];
    for (name, post) in forged {
        let house = House::new();
        let (heard, guard) = listen();
        let answer = house.ask(post.request()).await;
        drop(guard);
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(house.stored(), 0, "{name}");
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        assert_eq!(heard.matches("notification refused").count(), 1, "{name}: {heard}");
        for secret in ["MfKQ9r8", "v1,", "Suspicious sign-in", "5f3c7a1e"] {
            assert!(!heard.contains(secret) && !answer.body.contains(secret), "{name}: {heard}");
        }
        let metrics = house.get("/metrics").await.body;
        let counted = r#"lockstep_notifications_total{door="sentinel",outcome="signature"} 1"#;
        assert!(metrics.contains(counted), "{name}: {metrics}");
    }
}

#[tokio::test]
async fn what_a_right_sender_gets_wrong_is_told_or_ignored_but_never_stored() {
    let deep = format!(r#"{{"object":{{"name":"x"}},"x":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let elsewhere = UPDATED.replace("myWorkspace", "theirs");
    let surrogate = r#"{"object":{"name":"\ud800"}}"#;
    let nameless = UPDATED.replace("\"name\"", "\"nom\"").replace("\"id\"", "\"no\"");
    let large = " ".repeat(MOST_BODY_BYTES + 1);
    let cases = [
        ("not JSON", "{", StatusCode::BAD_REQUEST),
        ("a list", "[]", StatusCode::BAD_REQUEST),
        ("too deep", &deep, StatusCode::BAD_REQUEST),
        ("too large", &large, StatusCode::PAYLOAD_TOO_LARGE),
        ("another workspace", &elsewhere, StatusCode::ACCEPTED),
        ("half a surrogate pair", surrogate, StatusCode::ACCEPTED),
        ("no incident", &nameless, StatusCode::ACCEPTED),
        ("nothing in it", "{}", StatusCode::ACCEPTED),
    ];
    for (name, body, status) in cases {
        let house = House::new();
        assert_eq!(house.playbook("id", body).await.status, status, "{name}");
        assert_eq!(house.stored(), 0, "{name}");
    }
    let house = House::new();
    let post = Post { path: "/notify/sentinel/nobody".into(), ..Post::new("id", UPDATED) };
    assert_eq!(house.ask(post.request()).await.status, StatusCode::NOT_FOUND);
    assert_eq!(house.stored(), 0);
}

#[tokio::test]
async fn graph_items_are_believed_one_by_one() {
    let item = |tenant: &str, state: &str, id: &str| {
        format!(r#"{{"tenantId":"{tenant}","clientState":"{state}","resource":"security/incidents/{id}"}}"#)
    };
    let items = [
        item(TENANT, STATE, "1"),
        item(&TENANT.to_uppercase(), "another-state-of-contoso", "2"),
        item(TENANT, "wrong", "3"),
        item("aaaabbbb-0000-cccc-1111-dddd2222eeee", STATE, "4"),
        item(TENANT, STATE, r"\ud800"),
        item(TENANT, STATE, "1"),
        "7".to_owned(),
        format!(r#"{{"tenantId":"{TENANT}","resource":"security/incidents/5"}}"#),
        format!(
            r#"{{"tenantId":"{TENANT}","clientState":"{STATE}","resource":"users/6","resourceData":{{"id":"6"}}}}"#
        ),
    ];
    let house = House::new();
    let (heard, guard) = listen();
    let answer = house.graph("/notify/graph", &format!(r#"{{"value":[{}]}}"#, items.join(","))).await;
    drop(guard);
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::ACCEPTED, ""));
    let ids: Vec<_> = house.store.hints.lock().unwrap().iter().map(|hint| hint.subject.to_string()).collect();
    assert_eq!(ids, [format!("defender:{TENANT}:1"), format!("defender:{TENANT}:2")]);
    assert!(!String::from_utf8(heard.lock().unwrap().clone()).unwrap().contains(STATE));
    let metrics = house.get("/metrics").await.body;
    for (outcome, count) in
        [("accepted", 3), ("client-state", 2), ("unknown-tenant", 3), ("other-resource", 1)]
    {
        let line = format!(r#"lockstep_notifications_total{{door="graph",outcome="{outcome}"}} {count}"#);
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn published_notifications_of_strangers_are_answered_and_dropped() {
    for body in [
        include_str!("../fixtures/notices/notification-basic.json"),
        include_str!("../fixtures/notices/notification-batch-mixed-subscriptions.json"),
        include_str!("../fixtures/notices/notification-rich-two-tenants.json"),
        include_str!("../fixtures/notices/lifecycle-missed.json"),
    ] {
        let house = House::new();
        assert_eq!(house.graph("/notify/graph", body).await.status, StatusCode::ACCEPTED);
        assert_eq!(house.stored(), 0, "{body}");
    }
    let house = House::new();
    for (body, status) in [("{", 400), ("{}", 400), ("[]", 400), (r#"{"value":[]}"#, 202)] {
        assert_eq!(house.graph("/notify/graph", body).await.status, status, "{body}");
    }
    let large = " ".repeat(MOST_BODY_BYTES + 1);
    assert_eq!(house.graph("/notify/graph", &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn lifecycle_events_are_kept_for_later() {
    let body = include_str!("../fixtures/notices/lifecycle-mixed-batch.json")
        .replace("aaaabbbb-0000-cccc-1111-dddd2222eeee", TENANT)
        .replace("state-a", STATE)
        .replace("state-b", STATE);
    let house = House::new();
    assert_eq!(house.graph("/notify/graph/lifecycle", &body).await.status, StatusCode::ACCEPTED);
    let names: Vec<_> = house.store.values.lock().unwrap().keys().cloned().collect();
    assert_eq!(
        names,
        [
            format!("lifecycle:{TENANT}:11aa11aa-bb22-cc33-dd44-ee55ee55ee55:reauthorizationRequired"),
            format!("lifecycle:{TENANT}:22bb22bb-cc33-dd44-ee55-ff66ff66ff66:missed"),
        ]
    );
}

#[tokio::test]
async fn the_handshake_returns_the_decoded_token_and_nothing_else() {
    let house = House::new();
    for path in ["/notify/graph", "/notify/graph/lifecycle"] {
        for (query, token) in [
            ("validationToken=Validation%3a+Testing+client", "Validation: Testing client"),
            ("a=b&validationToken=%3Cscript%3E%26%C3%A9", "<script>&é"),
        ] {
            let answer = house.graph(&format!("{path}?{query}"), "").await;
            assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, token));
            assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
        }
        let long = format!("{path}?validationToken={}", "x".repeat(4097));
        for path in [&long, &format!("{path}?validationToken=")] {
            assert_eq!(house.graph(path, "").await.status, StatusCode::BAD_REQUEST);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_is_a_503_in_time_and_unready_but_alive() {
    let graph = format!(
        r#"{{"value":[{{"tenantId":"{TENANT}","clientState":"{STATE}","resource":"security/incidents/1"}}]}}"#
    );
    let house = House::new();
    for mood in [Mood::Full, Mood::Stuck] {
        *house.store.mood.lock().unwrap() = mood;
        let began = tokio::time::Instant::now();
        assert_eq!(house.playbook("id", UPDATED).await.status, StatusCode::SERVICE_UNAVAILABLE);
        let answer = house.graph("/notify/graph", &graph).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers.contains_key("retry-after"));
        assert!(began.elapsed() < Duration::from_secs(6), "each within three seconds");
        assert_eq!(house.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(house.get("/healthz").await.status, StatusCode::OK);
        assert!(house.get("/metrics").await.body.contains("lockstep_store_up 0"));
    }
    *house.store.mood.lock().unwrap() = Mood::Panics;
    assert_eq!(house.playbook("id", UPDATED).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    *house.store.mood.lock().unwrap() = Mood::Well;
    assert_eq!(house.playbook("id", UPDATED).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn probes_and_metrics_tell_what_is_known() {
    let house = House::new();
    let alive: serde_json::Value = serde_json::from_str(&house.get("/healthz").await.body).unwrap();
    assert_eq!(alive["version"], telemetry::VERSION);
    let answer = house.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::OK, "one tenant's trouble takes nobody off the ingress");
    let ready: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(ready["routes"][0]["defender"]["error"], "Entra refused the client secret");
    let metrics = house.get("/metrics").await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.body.contains("lockstep_queue_oldest_age_seconds 7\n"), "{}", metrics.body);
    let background = "lockstep_queue_background_oldest_age_seconds 700\n";
    assert!(metrics.body.contains(background), "{}", metrics.body);
    assert!(metrics.body.ends_with("# EOF\n") && metrics.body.matches("# EOF").count() == 1);
    house.phase.stopping();
    assert_eq!(house.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn every_answer_has_an_id_and_every_refusal_a_document() {
    let house = House::new();
    for (id, kept) in [("abc-1.2_3", true), ("a b", false), ("", false), (&"x".repeat(129), false)] {
        let request = Request::get("/healthz").header("x-request-id", id).body(Body::empty()).unwrap();
        let given = house.ask(request).await.headers["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(given == id, kept, "{given}");
        assert!(kept || given.len() == 32, "{given}");
    }
    for (answer, status) in [(house.get("/nowhere").await, 404), (house.get("/notify/graph").await, 405)] {
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
}

#[tokio::test]
async fn serving_ends_when_it_is_told_to_and_answers_first() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let (house, shutdown) = (House::new(), tokio_util::sync::CancellationToken::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(lockstep::http::serve(listener, house.front(), shutdown.clone()));
    let mut sender = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /notify/graph HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\nexpect: 100-continue\r\n\r\n";
    sender.write_all(head.as_bytes()).await.unwrap();
    // The service asks for the body: the request is in its hands when it is told to stop.
    let mut asked = [0; 25];
    sender.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    shutdown.cancel();
    sender.write_all(br#"{"value":[]}"#).await.unwrap();
    let mut answer = String::new();
    sender.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap().unwrap();
}
