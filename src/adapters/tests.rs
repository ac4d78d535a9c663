//! Both clients against a small server on loopback that answers as told and remembers what it was asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response};
use secrecy::SecretString;
use serde_json::{Value, json};
use time::macros::datetime;
use tokio::net::TcpListener;
use url::Url;

use super::budget::{Limits, Quotas};
use super::call::Shared;
use super::call::testing::{FixedClock, Notes};
use super::entra::{EntraSettings, TokenSource};
use super::graph::{GraphClient, GraphSettings, GraphSubscriptions};
use super::sentinel::{DEFAULT_API_VERSION, SentinelClient, SentinelSettings};
use super::transport::{ClientOptions, Transport};
use super::vault::KeyVault;
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::{
    DefenderClassification, DefenderDetermination, DefenderPatch, DefenderSeverity, DefenderStatus, Label,
    SentinelClassification, SentinelOwner, SentinelReason, SentinelSays, SentinelSeverity, SentinelStatus,
    SentinelWrite,
};
use crate::ports::{Defender, Sentinel, SubscriptionChange, SubscriptionOrder, Subscriptions, Vault};

const SECRET: &str = "p&ss word+%";
const TENANT: &str = "aaaabbbb-0000-cccc-1111-dddd2222eeee";

#[derive(Clone, Debug)]
struct Asked {
    method: String,
    target: String,
    headers: HeaderMap,
    body: String,
}

impl Asked {
    fn is_token(&self) -> bool {
        self.target.ends_with("/oauth2/v2.0/token")
    }

    fn is_probe(&self) -> bool {
        self.target.ends_with("$top=1")
    }
}

#[derive(Clone, Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
}

impl Reply {
    fn json(status: u16, body: &Value) -> Self {
        Self::raw(status, "application/json", body.to_string())
    }

    fn raw(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Self { status, headers, body: body.into(), delay: Duration::ZERO }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Script = Box<dyn Fn(&Asked) -> Option<Reply> + Send>;

/// The far side, and both clients in front of it.
struct Stage {
    url: Url,
    asked: Arc<Mutex<Vec<Asked>>>,
    script: Arc<Mutex<Script>>,
    notes: Arc<Notes>,
    clock: Arc<FixedClock>,
    graph: GraphClient,
    sentinel: SentinelClient,
}

impl Stage {
    async fn new() -> Self {
        Self::with(ClientOptions::default()).await
    }

    async fn with(options: ClientOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let asked = Arc::new(Mutex::new(Vec::<Asked>::new()));
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_: &Asked| None)));
        let (remember, play) = (Arc::clone(&asked), Arc::clone(&script));
        let tokens = Arc::new(AtomicUsize::new(0));
        let app = axum::Router::new().fallback(move |request: Request| {
            let (remember, play, tokens) = (Arc::clone(&remember), Arc::clone(&play), Arc::clone(&tokens));
            async move { answer(request, &remember, &play, &tokens).await }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let notes = Arc::new(Notes::default());
        let clock = Arc::new(FixedClock::default());
        let (graph, sentinel) = clients(&url, options, &notes, &clock);
        Self { url, asked, script, notes, clock, graph, sentinel }
    }

    fn play(&self, script: impl Fn(&Asked) -> Option<Reply> + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// What was asked since the last look, token requests aside.
    fn calls(&self) -> Vec<Asked> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.retain(|call| !call.is_token());
        asked
    }
}

async fn answer(
    request: Request,
    remember: &Mutex<Vec<Asked>>,
    play: &Mutex<Script>,
    tokens: &AtomicUsize,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let asked = Asked {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().unwrap().to_string(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    remember.lock().unwrap().push(asked.clone());
    let told = play.lock().unwrap()(&asked);
    let reply = told.unwrap_or_else(|| {
        if asked.is_token() {
            let token = format!("token-{}", tokens.fetch_add(1, Ordering::Relaxed) + 1);
            Reply::json(200, &json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token}))
        } else {
            Reply::json(200, &json!({"value": []}))
        }
    });
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(reply.body)).unwrap()
}

fn clients(
    url: &Url,
    options: ClientOptions,
    notes: &Arc<Notes>,
    clock: &Arc<FixedClock>,
) -> (GraphClient, SentinelClient) {
    let transport = Transport::new(&options).unwrap();
    let shared = Shared {
        transport: transport.clone(),
        clock: clock.clone(),
        observer: notes.clone(),
        quotas: Arc::new(Quotas::new(Limits::default())),
    };
    let entra = EntraSettings {
        login_url: url.clone(),
        tenant_id: TENANT.to_owned(),
        client_id: "an-app".to_owned(),
        client_secret: SecretString::from(SECRET.to_owned()),
    };
    let tokens = TokenSource::new(entra, transport, clock.clone());
    let graph = GraphSettings {
        alerts: false,
        graph_url: url.clone(),
        scope: "https://graph.microsoft.com/.default".to_owned(),
        tenant_id: TENANT.to_owned(),
    };
    let sentinel = SentinelSettings {
        arm_url: url.clone(),
        scope: "https://management.azure.com/.default".to_owned(),
        subscription_id: "d0cfe6b2-9ac0-4464-9919-dccaee2e48c0".to_owned(),
        resource_group: "my Rg(1)".to_owned(),
        workspace_name: "myWorkspace".to_owned(),
        api_version: DEFAULT_API_VERSION.to_owned(),
    };
    let graph = GraphClient::new(graph, Arc::clone(&tokens), shared.clone());
    (graph, SentinelClient::new(sentinel, tokens, shared))
}

fn fixture(path: &str) -> Value {
    let path = format!("{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))).unwrap()
}

const INCIDENTS: &str = "/subscriptions/d0cfe6b2-9ac0-4464-9919-dccaee2e48c0/resourceGroups/my%20Rg%281%29/providers\
                         /Microsoft.OperationalInsights/workspaces/myWorkspace/providers\
                         /Microsoft.SecurityInsights/incidents";

fn a_write() -> SentinelWrite {
    SentinelWrite {
        etag: Some("\"0300bf09-0000-0000-0000-5c37296e0000\"".to_owned()),
        says: SentinelSays {
            title: "My incident".to_owned(),
            description: None,
            severity: SentinelSeverity::High,
            status: SentinelStatus::Closed,
            owner: SentinelOwner { object_id: Some("2046feea".to_owned()), ..SentinelOwner::default() },
            classification: Some(SentinelClassification::FalsePositive),
            reason: Some(SentinelReason::Other("NewReason".to_owned())),
            comment: None,
            labels: vec![
                Label { name: "mine".to_owned(), auto: false },
                Label { name: "Redirected".to_owned(), auto: true },
            ],
            first_activity: Some("2019-01-01T13:00:30Z".to_owned()),
            last_activity: None,
        },
        clears: false,
    }
}

fn a_patch() -> DefenderPatch {
    DefenderPatch { status: Some(DefenderStatus::Resolved), ..DefenderPatch::default() }
}

#[tokio::test]
async fn graph_is_asked_exactly_this() {
    let stage = Stage::new().await;
    let incident = fixture("graph/incident-update.response.json");
    stage.play(move |asked| {
        (asked.target == "/v1.0/security/incidents/29").then(|| Reply::json(200, &incident))
    });
    let read = stage.graph.incident("29").await.unwrap().expect("it is there");
    assert_eq!(read.updated, datetime!(2026-02-25 16:29:33.1 UTC));
    assert_eq!(read.says.determination, DefenderDetermination::MultiStagedAttack);
    stage.graph.changed_since(datetime!(2026-02-25 16:29:33.1 UTC), None).await.unwrap();
    let patch = DefenderPatch {
        description: Some(None),
        severity: Some(DefenderSeverity::Other("extreme".to_owned())),
        owner: Some(None),
        verdict: Some((DefenderClassification::TruePositive, DefenderDetermination::Malware)),
        tags: Some(vec!["a".to_owned()]),
        ..a_patch()
    };
    stage.graph.update("29", &patch).await.unwrap();
    let (from, to) = (datetime!(2026-01-01 0:00 UTC), datetime!(2026-02-01 0:00 UTC));
    stage.graph.created_between(from, to, None).await.unwrap();

    let asked = std::mem::take(&mut *stage.asked.lock().unwrap());
    assert_eq!(asked[0].target, format!("/{TENANT}/oauth2/v2.0/token"));
    let form: Vec<_> = url::form_urlencoded::parse(asked[0].body.as_bytes()).into_owned().collect();
    for (name, value) in [
        ("client_id", "an-app"),
        ("client_secret", SECRET),
        ("grant_type", "client_credentials"),
        ("scope", "https://graph.microsoft.com/.default"),
    ] {
        assert!(form.contains(&(name.to_owned(), value.to_owned())), "{name} in {form:?}");
    }
    let calls: Vec<_> = asked[1..].iter().map(|call| (call.method.as_str(), call.target.as_str())).collect();
    assert_eq!(
        calls,
        [
            ("GET", "/v1.0/security/incidents/29"),
            (
                "GET",
                "/v1.0/security/incidents?$filter=lastUpdateDateTime%20ge%202026-02-25T16:29:33.1000000Z&$top=50"
            ),
            ("PATCH", "/v1.0/security/incidents/29"),
            (
                "GET",
                "/v1.0/security/incidents?$filter=createdDateTime%20ge%202026-01-01T00:00:00.0000000Z%20and%20\
                 createdDateTime%20lt%202026-02-01T00:00:00.0000000Z&$top=50"
            ),
        ]
    );
    for call in &asked[1..] {
        assert_eq!(call.headers["prefer"], "include-unknown-enum-members");
        assert_eq!(call.headers["authorization"], "Bearer token-1");
        assert!(call.headers["client-request-id"].to_str().unwrap().parse::<uuid::Uuid>().is_ok());
    }
    assert_eq!(asked[3].headers["content-type"], "application/json");
    assert_eq!(
        serde_json::from_str::<Value>(&asked[3].body).unwrap(),
        json!({
            "description": null, "severity": "extreme", "status": "resolved", "assignedTo": null,
            "classification": "truePositive", "determination": "malware", "customTags": ["a"],
        })
    );
    assert_eq!(
        stage.notes.calls(),
        ["incident-get 200", "incident-list 200", "incident-update 200", "incident-list 200"]
    );
    assert_eq!(stage.notes.tokens(), ["ok"]);
}

#[tokio::test]
async fn resource_manager_is_asked_exactly_this() {
    let stage = Stage::new().await;
    let answered = fixture("sentinel/Incidents_CreateOrUpdate.json")["responses"]["201"]["body"].clone();
    stage.play(move |asked| asked.target.contains("/incidents/73e").then(|| Reply::json(201, &answered)));
    stage.sentinel.changed_since(datetime!(2026-03-04 10:00:00 UTC), None).await.unwrap();
    let landed = stage.sentinel.put("73e01a99", &a_write()).await.unwrap();
    assert_eq!(landed.etag, "\"0300bf09-0000-0000-0000-5c37296e0001\"");
    let create = SentinelWrite {
        etag: None,
        says: SentinelSays {
            owner: SentinelOwner::default(),
            classification: None,
            reason: None,
            labels: Vec::new(),
            first_activity: None,
            ..a_write().says
        },
        clears: false,
    };
    stage.sentinel.put("73e01a99", &create).await.unwrap();
    let unassign = SentinelWrite {
        says: SentinelSays { owner: SentinelOwner::default(), ..a_write().says },
        ..a_write()
    };
    stage.sentinel.put("73e01a99", &unassign).await.unwrap();
    // A verdict without a reason where there was one: the service may keep what is left out.
    let undetermined = SentinelWrite {
        says: SentinelSays {
            classification: Some(SentinelClassification::Undetermined),
            reason: None,
            ..a_write().says
        },
        clears: true,
        ..a_write()
    };
    stage.sentinel.put("73e01a99", &undetermined).await.unwrap();

    let calls = stage.calls();
    let only_new: Vec<bool> = calls[1..].iter().map(|c| c.headers.contains_key("if-none-match")).collect();
    assert_eq!(only_new, [false, true, false, false]);
    let cleared = serde_json::from_str::<Value>(&calls[4].body).unwrap()["properties"].clone();
    assert_eq!(
        (&cleared["classification"], cleared.get("classificationReason"), &cleared["classificationComment"]),
        (&json!("Undetermined"), Some(&Value::Null), &json!(""))
    );
    assert_eq!(
        calls[0].target,
        format!(
            "{INCIDENTS}?api-version=2025-09-01&$filter=properties/lastModifiedTimeUtc%20ge%20\
             2026-03-04T10:00:00.0000000Z&$orderby=properties/lastModifiedTimeUtc%20asc&$top=200"
        )
    );
    assert_eq!(calls[1].method, "PUT");
    assert_eq!(calls[1].target, format!("{INCIDENTS}/73e01a99?api-version=2025-09-01"));
    assert!(calls[1].headers.contains_key("x-ms-client-request-id"));
    assert_eq!(
        serde_json::from_str::<Value>(&calls[1].body).unwrap(),
        json!({
            "etag": "\"0300bf09-0000-0000-0000-5c37296e0000\"",
            "properties": {
                "title": "My incident", "description": "", "severity": "High", "status": "Closed",
                "owner": {"objectId": "2046feea"}, "classification": "FalsePositive",
                "classificationReason": "NewReason", "classificationComment": "",
                "labels": [{"labelName": "mine"}, {"labelName": "Redirected", "labelType": "AutoAssigned"}],
                "firstActivityTimeUtc": "2019-01-01T13:00:30Z",
            }
        })
    );
    assert_eq!(
        serde_json::from_str::<Value>(&calls[2].body).unwrap(),
        json!({"properties": {"title": "My incident", "severity": "High", "status": "Closed", "labels": []}})
    );
    assert_eq!(
        serde_json::from_str::<Value>(&calls[3].body).unwrap()["properties"]["owner"],
        json!({"objectId": null, "email": null, "userPrincipalName": null, "assignedTo": null})
    );
}

#[tokio::test]
async fn documented_and_observed_answers_are_read() {
    let stage = Stage::new().await;
    let since = datetime!(2026-02-25 0:00 UTC);
    let own = stage.url.as_str().trim_end_matches('/').to_owned();
    let mut first = fixture("graph/incident-list-page-1.response.json");
    let next = first["@odata.nextLink"].as_str().unwrap().replace("https://graph.microsoft.com", &own);
    first["@odata.nextLink"] = json!(next);
    let second = fixture("graph/incident-list-page-2.response.json");
    stage.play(move |asked| match asked.target.as_str() {
        target if target.contains("$skip=2") => Some(Reply::json(200, &second)),
        target if target.contains("incidents?") => Some(Reply::json(200, &first)),
        _ => None,
    });
    let page = stage.graph.changed_since(since, None).await.unwrap();
    assert_eq!(page.records.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["41", "40"]);
    let last = stage.graph.changed_since(since, page.next.as_deref()).await.unwrap();
    assert_eq!((last.records.len(), last.next, last.unreadable), (1, None, Vec::new()));
    let asked = stage.calls();
    assert_eq!(
        asked[1].target,
        "/v1.0/security/incidents?$count=true&$filter=lastUpdateDateTime+ge+2026-02-25T00%3a00%3a00Z&$top=2&$skip=2",
        "the link is followed unchanged"
    );

    for (name, status) in [
        ("awaiting-action", DefenderStatus::AwaitingAction),
        ("new-minimal", DefenderStatus::Active),
        ("redirected", DefenderStatus::Redirected),
    ] {
        let incident = fixture(&format!("graph/incident-{name}.response.json"));
        let redirect = incident["redirectIncidentId"].as_str().map(str::to_owned);
        stage.play(move |asked| (!asked.is_token()).then(|| Reply::json(200, &incident)));
        let read = stage.graph.incident("1").await.unwrap().expect(name);
        assert_eq!((read.says.status, read.redirect), (status, redirect), "{name}");
    }

    let older = fixture("graph/incident-list-older-text.response.json");
    stage.play(move |asked| asked.target.contains("incidents?").then(|| Reply::json(200, &older)));
    let page = stage.graph.changed_since(since, None).await.unwrap();
    assert_eq!(page.records[0].says.classification, DefenderClassification::TruePositive, "Pascal case");
    assert_eq!(page.records[0].says.status, DefenderStatus::Active);

    let observed_page = || fixture("sentinel/observed-incidents-list-page.json")["body"].clone();
    let observed = observed_page();
    stage.play(move |asked| asked.target.contains("incidents?").then(|| Reply::json(200, &observed)));
    let page = stage.sentinel.changed_since(since, None).await.unwrap();
    assert_eq!((page.records.len(), page.unreadable.len()), (3, 0));
    assert_eq!(page.records[0].etag, "\"9c00a482-0000-2000-0000-6897fba00000\"");
    assert_eq!(page.records[0].modified, datetime!(2025-08-10 1:53:36.5416527 UTC));
    assert!(page.records[1].says.labels.iter().any(|label| label.auto && label.name == "Redirected"));
    assert_eq!(page.records[2].provider.as_deref(), Some("Microsoft XDR"));

    // A list that ends with a full page may have been cut there.
    let mut full = observed_page();
    let record = full["value"][0].clone();
    let modified = |second: usize| format!("2025-08-10T01:{:02}:{:02}Z", second / 60, second % 60);
    let records = (0..1_000).map(|number| {
        let mut record = record.clone();
        record["properties"]["lastModifiedTimeUtc"] = json!(modified(number));
        record
    });
    full["value"] = records.collect();
    full.as_object_mut().unwrap().remove("nextLink");
    stage.play(move |asked| asked.target.contains("incidents?").then(|| Reply::json(200, &full)));
    let page = stage.sentinel.everything(None).await.unwrap();
    stage.sentinel.everything(page.next.as_deref()).await.unwrap();
    let asked: Vec<String> = stage.calls().into_iter().rev().take(2).map(|call| call.target).collect();
    let order = "$orderby=properties/lastModifiedTimeUtc%20asc&$top=1000";
    assert_eq!(asked[1], format!("{INCIDENTS}?api-version=2025-09-01&{order}"));
    let filter = "$filter=properties/lastModifiedTimeUtc%20ge%202025-08-10T01:16:39.0000000Z";
    assert_eq!(asked[0], format!("{INCIDENTS}?api-version=2025-09-01&{filter}&{order}"));
}

#[tokio::test]
async fn one_odd_record_costs_only_itself() {
    let stage = Stage::new().await;
    let since = datetime!(2026-02-25 0:00 UTC);
    let page = concat!(
        r#"{"value":[null,"#,
        r#"{"id":"1","lastUpdateDateTime":"2026-02-25T16:29:33Z","displayName":"a\ud800b","customTags":["x",null,7,{}],"#,
        r#""status":"vanishing","severity":null,"assignedTo":{"odd":1},"description":5,"classification":null},"#,
        r#"{"id":"2","lastUpdateDateTime":"soon"},{"lastUpdateDateTime":"2026-02-25T16:29:33Z"},"#,
        r#"{"id":3,"lastUpdateDateTime":"2026-02-25T16:29:33Z","status":7}]}"#
    );
    stage.play(move |asked| {
        asked.target.contains("incidents?").then(|| Reply::raw(200, "application/json", page))
    });
    let read = stage.graph.changed_since(since, None).await.unwrap();
    let ids: Vec<_> = read.unreadable.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["#0", "2", "#3"]);
    let [one, three] = &read.records[..] else { panic!("{:?}", read.records) };
    assert_eq!(one.says.title.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(one.says.tags, ["x", "7"]);
    assert_eq!(one.says.status, DefenderStatus::Other("vanishing".to_owned()));
    assert_eq!((&one.says.owner, one.says.description.as_deref()), (&None, Some("5")));
    assert_eq!(three.id, "3");

    let page = concat!(
        r#"{"value":[{"name":"a","etag":"e","properties":{"title":"\udfff","severity":"Extreme","status":"New","#,
        r#""lastModifiedTimeUtc":"2026-02-25T16:29:33Z","owner":"nobody","labels":[{"labelName":"l"},3],"#,
        r#""classificationComment":"","classification":null}},"#,
        r#"{"name":"b","properties":{}},{"id":"/x/incidents/c","etag":"e","properties":[]}],"nextLink":""}"#
    );
    stage.play(move |asked| {
        asked.target.contains("incidents?").then(|| Reply::raw(200, "application/json", page))
    });
    let read = stage.sentinel.changed_since(since, None).await.unwrap();
    let ids: Vec<_> = read.unreadable.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!((ids, read.next), (vec!["b", "c"], None));
    assert_eq!(read.records[0].says.severity, SentinelSeverity::Other("Extreme".to_owned()));
    assert_eq!(read.records[0].says.owner, SentinelOwner::default());
    assert_eq!(read.records[0].says.comment, None);
}

#[tokio::test]
async fn odd_ids_stay_within_their_segment() {
    let stage = Stage::new().await;
    stage.play(|asked| {
        (!asked.is_token())
            .then(|| Reply::json(404, &json!({"error": {"code": "NotFound", "message": "no"}})))
    });
    for id in ["a/../../users", "4\n1", "x?$top=1#y", "%2e%2e"] {
        assert_eq!(stage.graph.incident(id).await, Ok(None), "{id}");
        assert_eq!(stage.sentinel.incident(id).await, Ok(None), "{id}");
    }
    let targets: Vec<_> = stage.calls().into_iter().map(|call| call.target).step_by(2).collect();
    assert_eq!(targets[0], "/v1.0/security/incidents/a%2F..%2F..%2Fusers");
    assert_eq!(targets[1], "/v1.0/security/incidents/4%0A1");
    assert_eq!(targets[2], "/v1.0/security/incidents/x%3F%24top%3D1%23y");
    assert_eq!(targets[3], "/v1.0/security/incidents/%252e%252e");
    for id in ["", ".", ".."] {
        let failure = stage.graph.incident(id).await.expect_err("no path holds it");
        assert_eq!((failure.class, failure.code.as_str()), (Class::Permanent, "odd-id"));
    }
    assert!(stage.calls().is_empty());
}

#[tokio::test]
async fn a_link_to_elsewhere_gets_no_token() {
    let stage = Stage::new().await;
    let since = datetime!(2026-02-25 0:00 UTC);
    let port = stage.url.port().unwrap();
    for link in [
        "https://graph.microsoft.com.evil.example/v1.0/security/incidents?$skip=2".to_owned(),
        format!("http://localhost:{port}/v1.0/security/incidents"),
        format!("http://127.0.0.1:{}/v1.0/security/incidents", port ^ 1),
        format!("https://127.0.0.1:{port}/v1.0/security/incidents"),
        format!("http://user@127.0.0.1:{port}/v1.0/security/incidents"),
        "/v1.0/security/incidents?$skip=2".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        for failure in [
            stage.graph.changed_since(since, Some(&link)).await.expect_err(&link),
            stage.sentinel.changed_since(since, Some(&link)).await.expect_err(&link),
        ] {
            assert_eq!((failure.class, failure.code.as_str()), (Class::Permanent, "foreign-link"), "{link}");
        }
    }
    assert!(stage.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn every_answer_has_its_word_and_its_effect() {
    let retry = Class::Retry { wait: None };
    for (status, class, effect) in [
        (400, Class::Permanent, Effect::None),
        (302, retry, Effect::Unknown),
        (404, Class::Permanent, Effect::None),
        (408, retry, Effect::Unknown),
        (409, Class::Conflict, Effect::None),
        (412, Class::Conflict, Effect::None),
        (500, retry, Effect::Unknown),
        (501, Class::Permanent, Effect::None),
        (502, retry, Effect::Unknown),
        (504, retry, Effect::Unknown),
        (429, Class::Retry { wait: Some(Duration::from_secs(5)) }, Effect::None),
        (503, Class::Retry { wait: Some(Duration::from_secs(1)) }, Effect::Unknown),
    ] {
        let stage = Stage::new().await;
        stage.play(move |asked| {
            let body = json!({"error": {"code": "NotFound", "message": "line\r\n\u{1}two"}});
            (!asked.is_token()).then(|| Reply::json(status, &body).header("request-id", "r-1"))
        });
        let write = stage.graph.update("1", &a_patch()).await.expect_err("refused");
        assert_eq!((write.class, write.effect), (class, effect), "{status}: {write}");
        if status != 302 && status != 404 {
            assert!(write.message.contains("NotFound: line two (request-id r-1)"), "{write}");
        }
        let stage = Stage::new().await;
        stage.play(move |asked| {
            (!asked.is_token()).then(|| Reply::json(status, &json!({"error": {"code": "NotFound"}})))
        });
        match stage.graph.incident("1").await {
            Ok(None) => assert_eq!(status, 404),
            Ok(Some(_)) => panic!("{status}"),
            Err(read) => assert_eq!((read.class, read.effect), (class, Effect::None), "{status}: {read}"),
        }
    }
}

#[tokio::test]
async fn documented_errors_of_resource_manager_are_understood() {
    for case in fixture("sentinel/arm-errors.json")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap().to_owned();
        let stage = Stage::new().await;
        let case = case.clone();
        stage.play(move |asked| {
            if asked.is_token() {
                return None;
            }
            let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
            let body = case["body"].as_str().map_or_else(|| case["body"].to_string(), str::to_owned);
            let kind = if body.starts_with('<') { "text/html" } else { "application/json" };
            let reply = Reply::raw(status, kind, body);
            Some(match case["headers"]["Retry-After"].as_str() {
                Some(wait) => reply.header("retry-after", wait),
                None => reply,
            })
        });
        let read = stage.sentinel.incident("x").await;
        let word = match &read {
            Ok(None) => "absent",
            Ok(Some(_)) => "there",
            Err(Failure { class: Class::Retry { .. }, .. }) => "retry",
            Err(Failure { class: Class::Conflict, .. }) => "conflict",
            Err(Failure { class: Class::Auth, .. }) => "auth",
            Err(Failure { class: Class::Permanent, .. }) => "permanent",
        };
        let expected = match name.as_str() {
            "missing-token" | "expired-token" | "wrong-audience" | "wrong-tenant" | "forbidden" => "auth",
            "subscription-not-found" | "resource-group-not-found" | "workspace-not-found" => "auth",
            "incident-not-found" | "alert-not-found" => "absent",
            "etag-conflict" | "relation-name-conflict" | "precondition-failed" => "conflict",
            "internal-error" | "bad-gateway" | "unavailable" | "gateway-timeout" => "retry",
            throttled if throttled.contains("throttled") => "retry",
            _ => "permanent",
        };
        assert_eq!(word, expected, "{name}: {read:?}");
        if expected == "auth" {
            stage.calls();
            let held = stage.sentinel.put("y", &a_write()).await.expect_err("the gate is closed");
            assert_eq!((held.class, stage.calls().len()), (Class::Auth, 0), "{name}");
        }
        if name == "workspace-not-found" {
            assert!(read.unwrap_err().message.contains("workspace_name"));
        }
    }
}

#[tokio::test]
async fn documented_errors_of_graph_are_understood() {
    let retry = Class::Retry { wait: None };
    for (name, class) in [
        ("400-top-too-large-incidents", Class::Permanent),
        ("401-token-expired", Class::Auth),
        ("403-missing-role-incidents", Class::Auth),
        ("404-incident", Class::Permanent),
        ("429-throttled-fractional", Class::Retry { wait: Some(Duration::from_millis(2128)) }),
        ("429-without-retry-after", Class::Retry { wait: Some(Duration::from_secs(5)) }),
        ("500-internal", retry),
        ("lower-case-innererror", Class::Permanent),
    ] {
        let stage = Stage::new().await;
        let case = fixture(&format!("graph/errors/{name}.json"));
        stage.play(move |asked| {
            let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
            let reply = Reply::json(status, &case["body"]);
            let told = case["headers"]["Retry-After"].as_str();
            let reply = told.into_iter().fold(reply, |reply, wait| reply.header("retry-after", wait));
            (!asked.is_token()).then_some(reply)
        });
        let failure = stage.graph.update("1", &a_patch()).await.expect_err(name);
        assert_eq!(failure.class, class, "{name}: {failure}");
    }
}

#[tokio::test]
async fn a_record_without_its_essentials_is_parked_when_read_and_in_doubt_when_written() {
    let stage = Stage::new().await;
    stage.play(|asked| (!asked.is_token()).then(|| Reply::json(200, &json!({"id": "1", "name": "1"}))));
    let read = stage.graph.incident("1").await.expect_err("no lastUpdateDateTime");
    assert_eq!((read.class, read.effect), (Class::Permanent, Effect::None), "{read}");
    let write = stage.sentinel.put("1", &a_write()).await.expect_err("no etag");
    assert_eq!((write.class, write.effect), (Class::Retry { wait: None }, Effect::Unknown), "{write}");
}

#[tokio::test]
async fn a_missing_twin_and_a_missing_workspace_are_told_apart_by_the_list() {
    let stage = Stage::new().await;
    let not_found = |code: &str| Reply::json(404, &json!({"error": {"code": code, "message": "gone"}}));
    stage.play(move |asked| (!asked.is_token() && !asked.is_probe()).then(|| not_found("ResourceNotFound")));
    assert_eq!(stage.sentinel.incident("x").await, Ok(None), "the list is there, so it is the incident");
    stage.play(|asked| {
        (!asked.is_token() && !asked.is_probe()).then(|| Reply::raw(404, "text/html", "<html>gone</html>"))
    });
    for failure in [
        stage.sentinel.incident("x").await.expect_err("a gateway does not know"),
        stage.graph.incident("x").await.expect_err("a gateway does not know"),
    ] {
        assert_eq!((failure.class, failure.code.as_str()), (Class::Retry { wait: None }, "gateway"));
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let stage = Stage::new().await;
    stage.graph.changed_since(datetime!(2026-02-25 0:00 UTC), None).await.unwrap();
    let expired = fixture("graph/errors/401-token-expired.json")["body"].clone();
    stage.play(move |asked| {
        (asked.headers.get("authorization").is_some_and(|bearer| bearer == "Bearer token-1"))
            .then(|| Reply::json(401, &expired))
    });
    stage.calls();
    age_tokens().await;
    let (one, two) = tokio::join!(stage.graph.incident("1"), stage.graph.incident("2"));
    let codes =
        [one, two].map(|read| read.expect_err("an empty page is no incident, but it was served").code);
    assert_eq!(codes, ["unreadable", "unreadable"]);
    let asked = std::mem::take(&mut *stage.asked.lock().unwrap());
    assert_eq!(asked.iter().filter(|asked| asked.is_token()).count(), 1, "one fetch for both");
    assert_eq!(asked.len(), 1 + 4, "each call is repeated once");
    assert!(stage.notes.gates().is_empty());
}

#[tokio::test]
async fn a_young_token_that_is_refused_is_not_fetched_again() {
    let stage = Stage::new().await;
    stage.play(|asked| (!asked.is_token()).then(|| Reply::json(401, &json!({"error": {"code": "No"}}))));
    assert_eq!(stage.graph.incident("1").await.expect_err("refused").class, Class::Auth);
    let asked = stage.asked.lock().unwrap().clone();
    assert_eq!(asked.iter().filter(|asked| asked.is_token()).count(), 1);
    assert_eq!(asked.len(), 3, "the token, the call, and a look at the list");
}

/// Lets a fetched token grow old enough to be worth replacing.
async fn age_tokens() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_refused_side_is_left_alone_and_probed() {
    let stage = Stage::new().await;
    let forbidden = fixture("graph/errors/403-missing-role-incidents.json")["body"].clone();
    stage.play(move |asked| (!asked.is_token()).then(|| Reply::json(403, &forbidden)));
    let failure = stage.graph.incident("1").await.expect_err("no role");
    assert_eq!((failure.class, failure.code.as_str()), (Class::Auth, "refused"));
    assert!(failure.message.contains("SecurityIncident.ReadWrite.All"), "{failure}");
    assert_eq!(stage.calls().len(), 2, "the call and a look at the list");
    for _ in 0..3 {
        let held = stage.graph.incident("2").await.expect_err("closed");
        assert_eq!((held.class, held.code.as_str()), (Class::Auth, "held"));
    }
    assert!(stage.calls().is_empty());
    stage.play(|_| None);
    age_tokens().await;
    stage.graph.changed_since(datetime!(2026-02-25 0:00 UTC), None).await.unwrap();
    assert_eq!(stage.notes.gates().len(), 2);
    assert_eq!(stage.notes.gates()[1], "open");
}

#[tokio::test]
async fn one_forbidden_incident_does_not_close_the_side() {
    let stage = Stage::new().await;
    stage.play(|asked| {
        let body = json!({"error": {"code": "Forbidden", "message": "Not this one."}});
        asked.target.contains("/incidents/13").then(|| Reply::json(403, &body))
    });
    for failure in [
        stage.graph.incident("13").await.expect_err("forbidden"),
        stage.graph.update("13", &a_patch()).await.expect_err("forbidden"),
    ] {
        assert_eq!((failure.class, failure.code.as_str()), (Class::Permanent, "forbidden"), "{failure}");
    }
    assert!(stage.notes.gates().is_empty());
}

#[tokio::test]
async fn a_401_that_the_list_does_not_confirm_is_a_stumble() {
    let stage = Stage::new().await;
    stage
        .play(|asked| (asked.method == "PATCH").then(|| Reply::json(401, &json!({"error": {"code": "No"}}))));
    let failure = stage.graph.update("13", &a_patch()).await.expect_err("refused");
    assert_eq!(failure.class, Class::Retry { wait: None }, "{failure}");
    assert!(stage.notes.gates().is_empty());
}

#[tokio::test]
async fn a_role_that_may_only_read_holds_writes_and_lets_reads_go_on() {
    let stage = Stage::new().await;
    stage.play(|asked| {
        let body = json!({"error": {"code": "AuthorizationFailed", "message": "incidents/write"}});
        (asked.method == "PUT").then(|| Reply::json(403, &body))
    });
    let failure = stage.sentinel.put("x", &a_write()).await.expect_err("reader");
    assert_eq!(failure.class, Class::Auth);
    stage.calls();
    assert_eq!(stage.sentinel.put("x", &a_write()).await.expect_err("held").code, "held");
    assert!(stage.calls().is_empty());
    assert!(stage.sentinel.check().await.is_ok(), "reads go on");
    assert_eq!(stage.notes.gates().len(), 1);
}

#[tokio::test]
async fn a_throttled_side_waits_as_told() {
    let stage = Stage::new().await;
    let throttled = fixture("graph/errors/429-throttled-fractional.json");
    stage.play(move |asked| {
        (!asked.is_token()).then(|| Reply::json(429, &throttled["body"]).header("retry-after", "2.128"))
    });
    let failure = stage.graph.update("1", &a_patch()).await.expect_err("throttled");
    assert_eq!(failure.class, Class::Retry { wait: Some(Duration::from_millis(2128)) });
    stage.play(|_| None);
    stage.calls();
    let later = stage.graph.check().await.expect_err("for the whole side");
    assert!(matches!(later.class, Class::Retry { wait: Some(wait) } if wait <= Duration::from_millis(2128)));
    assert_eq!((later.code.as_str(), stage.calls().len()), ("throttled", 0));
    assert!(stage.sentinel.check().await.is_ok(), "the other side is not concerned");
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(2200)).await;
    tokio::time::resume();
    assert!(stage.graph.check().await.is_ok());
    assert_eq!(stage.notes.gates(), ["closed: the service asked us to wait", "open"]);
}

#[tokio::test]
async fn broken_answers_leave_a_write_in_doubt_and_a_refused_connection_does_not() {
    let options =
        ClientOptions { timeout: Duration::from_millis(150), most_bytes: 1000, ..ClientOptions::default() };
    let stage = Stage::with(options.clone()).await;
    let slow = Reply { delay: Duration::from_secs(30), ..Reply::json(200, &json!({})) };
    for (reply, code, class) in [
        (slow, "timeout", Class::Retry { wait: None }),
        (Reply::raw(200, "application/json", "{\"id\":"), "unreadable", Class::Retry { wait: None }),
        (Reply::raw(200, "text/html", "<html>sign in</html>"), "gateway", Class::Retry { wait: None }),
        (Reply::raw(200, "application/json", " \n<html>"), "gateway", Class::Retry { wait: None }),
        (Reply::raw(200, "application/json", vec![b' '; 2000]), "too-large", Class::Retry { wait: None }),
    ] {
        stage.play(move |asked| (!asked.is_token()).then(|| reply.clone()));
        let write = stage.graph.update("1", &a_patch()).await.expect_err(code);
        assert_eq!((write.code.as_str(), write.class, write.effect), (code, class, Effect::Unknown));
        let read = stage.graph.incident("1").await.expect_err(code);
        assert_eq!((read.code.as_str(), read.effect), (code, Effect::None));
        assert_eq!(read.class, if code == "too-large" { Class::Permanent } else { class });
    }
    // The token is in hand; now nobody listens at Graph's address.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (graph, _) = clients_apart(&stage, &format!("http://{nobody}"), options.clone());
    let failure = graph.update("1", &a_patch()).await.expect_err("refused");
    assert_eq!((failure.code.as_str(), failure.effect), ("connect", Effect::None));
    // Somebody listens, and hangs up.
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (graph, _) = clients_apart(&stage, &format!("http://{}", rude.local_addr().unwrap()), options);
    tokio::spawn(async move {
        while let Ok((stream, _)) = rude.accept().await {
            let mut seen = [0; 16];
            let _ = stream.readable().await;
            let _ = stream.try_read(&mut seen);
        }
    });
    let failure = graph.update("1", &a_patch()).await.expect_err("cut");
    assert_eq!((failure.code.as_str(), failure.effect), ("cut", Effect::Unknown));
}

/// Clients whose tokens come from the stage and whose services are elsewhere.
fn clients_apart(stage: &Stage, elsewhere: &str, options: ClientOptions) -> (GraphClient, Arc<TokenSource>) {
    let transport = Transport::new(&options).unwrap();
    let entra = EntraSettings {
        login_url: stage.url.clone(),
        tenant_id: TENANT.to_owned(),
        client_id: "an-app".to_owned(),
        client_secret: SecretString::from(SECRET.to_owned()),
    };
    let tokens = TokenSource::new(entra, transport.clone(), stage.clock.clone());
    let shared = Shared {
        transport,
        clock: stage.clock.clone(),
        observer: stage.notes.clone(),
        quotas: Arc::new(Quotas::new(Limits::default())),
    };
    let graph = GraphSettings {
        alerts: false,
        graph_url: Url::parse(elsewhere).unwrap(),
        scope: "https://graph.microsoft.com/.default".to_owned(),
        tenant_id: TENANT.to_owned(),
    };
    (GraphClient::new(graph, Arc::clone(&tokens), shared), tokens)
}

#[tokio::test]
async fn a_token_is_fetched_once_and_renewed_while_the_old_one_serves() {
    let stage = Stage::new().await;
    let checks =
        tokio::join!(stage.graph.check(), stage.graph.check(), stage.sentinel.check(), stage.graph.check());
    assert!(checks.0.is_ok() && checks.1.is_ok() && checks.2.is_ok() && checks.3.is_ok(), "{checks:?}");
    let tokens = || stage.asked.lock().unwrap().iter().filter(|asked| asked.is_token()).count();
    assert_eq!(tokens(), 2, "one per scope");
    // Ten minutes before its end it is renewed behind the scenes; Entra is down, and nobody notices but the observer.
    *stage.clock.0.lock().unwrap() += time::Duration::minutes(55);
    stage.play(|asked| asked.is_token().then(|| Reply::raw(503, "text/html", "<html>")));
    stage.graph.check().await.unwrap();
    let told = || stage.notes.tokens();
    for _ in 0..100 {
        if told().len() > 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        stage.graph.check().await.unwrap();
    }
    assert_eq!(told(), ["ok", "ok", "failed: Entra ID answered 503 to the token request"]);
    // Past its end there is none.
    *stage.clock.0.lock().unwrap() += time::Duration::minutes(10);
    let failure = stage.graph.check().await.expect_err("no token");
    assert_eq!((failure.class, failure.code.as_str()), (Class::Retry { wait: None }, "token-status"));
}

#[tokio::test]
async fn entras_refusals_name_their_cure_and_never_the_secret() {
    for (status, body, words) in [
        (
            401,
            json!({"error": "invalid_client", "error_codes": [7000215], "error_description": format!("AADSTS7000215: Invalid client secret provided {SECRET}")}),
            "AADSTS7000215, invalid_client): the client secret is wrong",
        ),
        (
            400,
            json!({"error": "invalid_request", "error_codes": [90002], "error_description": "AADSTS90002: Tenant not found."}),
            "check tenant_id and cloud",
        ),
        (
            400,
            json!({"error": "unauthorized_client", "error_description": "AADSTS700016: Application not found"}),
            "AADSTS700016, unauthorized_client): the application is unknown",
        ),
        (
            400,
            fixture("graph/token-error.response.json")["body"].clone(),
            "AADSTS70011, invalid_scope): the scope is unknown",
        ),
        (401, json!({"error": "invalid_client"}), "(invalid_client): check client_id and client_secret"),
        (404, json!("not found"), "check login_url"),
    ] {
        let stage = Stage::new().await;
        stage.play(move |asked| asked.is_token().then(|| Reply::json(status, &body)));
        let failure = stage.sentinel.incident("x").await.expect_err(words);
        assert_eq!((failure.class, failure.code.as_str()), (Class::Auth, "token-refused"), "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert!(!failure.message.contains(SECRET) && !format!("{:?}", stage.notes.lines).contains(SECRET));
        assert_eq!(stage.sentinel.incident("x").await.expect_err("held").code, "held");
        assert_eq!(stage.notes.gates().len(), 1);
    }
    let stage = Stage::new().await;
    stage.play(|asked| asked.is_token().then(|| Reply::json(429, &json!({})).header("retry-after", "7")));
    let failure = stage.sentinel.incident("x").await.expect_err("throttled");
    assert_eq!(failure.class, Class::Retry { wait: Some(Duration::from_secs(7)) });
    stage.sentinel.incident("x").await.expect_err("not asked again so soon");
    assert_eq!(stage.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_proxy_carries_what_is_not_on_loopback() {
    let stage = Stage::new().await;
    let proxy = stage.url.to_string();
    let variable = move |name: &str| (name == "http_proxy").then(|| proxy.clone());
    let transport = Transport::build(&ClientOptions::default(), variable).unwrap();
    for url in ["http://graph.example.invalid/far".to_owned(), format!("{}near", stage.url)] {
        transport.send(transport.request(reqwest::Method::GET, Url::parse(&url).unwrap())).await.unwrap();
    }
    let hosts: Vec<_> = stage.calls().into_iter().map(|call| call.headers["host"].clone()).collect();
    assert_eq!(hosts, ["graph.example.invalid".to_owned(), stage.url.authority().to_owned()]);
    let dead = |name: &str| (name == "ALL_PROXY").then(|| "http://127.0.0.1:9".to_owned());
    let transport = Transport::build(&ClientOptions::default(), dead).unwrap();
    transport.send(transport.request(reqwest::Method::GET, stage.url.clone())).await.unwrap();
}

/// A private root, as a proxy or the emulator has one, is trusted when it is named and only then.
#[cfg(feature = "emulator")]
#[tokio::test]
async fn a_private_root_is_trusted_when_named() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (pem, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    let tls = axum_server::tls_rustls::RustlsConfig::from_pem(pem.clone(), key).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let there = format!("https://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(|| async { axum::Json(json!({"value": []})) });
    tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(app.into_make_service()));
    let stage = Stage::new().await;
    let (stranger, _) = clients_apart(&stage, &there, ClientOptions::default());
    let failure = stranger.check().await.expect_err("nobody vouches for it");
    assert_eq!((failure.code.as_str(), failure.effect), ("connect", Effect::None), "{failure}");
    let (friend, _) =
        clients_apart(&stage, &there, ClientOptions { extra_ca: Some(pem), ..ClientOptions::default() });
    friend.check().await.unwrap();
}

fn subscriptions_of(stage: &Stage) -> (GraphSubscriptions, KeyVault) {
    let transport = Transport::new(&ClientOptions::default()).unwrap();
    let entra = EntraSettings {
        login_url: stage.url.clone(),
        tenant_id: TENANT.to_owned(),
        client_id: "an-app".to_owned(),
        client_secret: SecretString::from(SECRET.to_owned()),
    };
    let tokens = TokenSource::new(entra, transport.clone(), stage.clock.clone());
    let shared = Shared {
        transport: transport.clone(),
        clock: stage.clock.clone(),
        observer: stage.notes.clone(),
        quotas: Arc::new(Quotas::new(Limits::default())),
    };
    let graph = GraphSettings {
        alerts: false,
        graph_url: stage.url.clone(),
        scope: "https://graph.microsoft.com/.default".to_owned(),
        tenant_id: TENANT.to_owned(),
    };
    let scope = "https://vault.azure.net/.default".to_owned();
    let vault = KeyVault::new(stage.url.clone(), scope, tokens.clone(), transport, stage.clock.clone());
    (GraphSubscriptions::new(graph, tokens, shared), vault)
}

fn an_order() -> SubscriptionOrder {
    SubscriptionOrder {
        resource: "security/incidents".into(),
        change_types: "created,updated".into(),
        notification_url: "https://lockstep.example/notify/graph".into(),
        lifecycle_url: "https://lockstep.example/notify/graph/lifecycle".into(),
        expires: datetime!(2026-03-06 10:22:15 UTC),
        client_state: SecretString::from("a-secret-state".to_owned()),
        certificate: None,
    }
}

#[tokio::test]
async fn what_graph_says_to_a_subscription_closes_no_gate() {
    let stage = Stage::new().await;
    let (subscriptions, _) = subscriptions_of(&stage);
    for (file, class, code) in [
        ("400-subscription-validation-failed", Class::Permanent, "status-400"),
        ("403-subscription-quota", Class::Auth, "status-403"),
        ("409-duplicate-subscription", Class::Conflict, "status-409"),
        ("500-internal", Class::Retry { wait: None }, "status-500"),
    ] {
        let wrapped = fixture(&format!("graph/errors/{file}.json"));
        let status = u16::try_from(wrapped["status"].as_u64().unwrap()).unwrap();
        stage.play(move |asked| {
            (asked.target.contains("subscriptions")).then(|| Reply::json(status, &wrapped["body"]))
        });
        let failure = subscriptions.create(&an_order()).await.expect_err(file);
        assert_eq!((failure.class, failure.code.as_str()), (class, code), "{failure}");
        assert!(!failure.message.contains("a-secret-state"), "{failure}");
        assert!(stage.graph.check().await.is_ok(), "incidents are read all the same");
    }
    assert!(stage.notes.gates().is_empty(), "{:?}", stage.notes.gates());
    // Gone is an answer.
    let wrapped = fixture("graph/errors/404-subscription.json");
    stage.play(move |asked| {
        asked.target.contains("subscriptions").then(|| Reply::json(404, &wrapped["body"]))
    });
    assert_eq!(subscriptions.change("an-id", &SubscriptionChange::default()).await, Ok(None));
    assert_eq!(subscriptions.reauthorize("an-id").await, Ok(false));
    assert_eq!(subscriptions.end("an-id").await, Ok(()));
    let odd = subscriptions.end("..").await.expect_err("no path");
    assert_eq!(odd.class, Class::Permanent);
    // A list of several pages, of which the next is only followed to where the first came from.
    let first = stage.url.join("/v1.0/subscriptions?$skiptoken=2").unwrap();
    stage.play(move |asked| {
        let one = |id: &str| json!({"id": id, "expirationDateTime": "2026-03-06T10:22:15Z"});
        let page = match asked.target.as_str() {
            "/v1.0/subscriptions" => {
                json!({"value": [one("1"), {"odd": true}], "@odata.nextLink": first.as_str()})
            }
            target if target.ends_with("=2") => json!({
                "value": [one("2")], "@odata.nextLink": "https://elsewhere.example/",
            }),
            _ => return None,
        };
        Some(Reply::json(200, &page))
    });
    let failure = subscriptions.list().await.expect_err("it leads elsewhere");
    assert_eq!(failure.code, "foreign-link");
}

#[tokio::test]
async fn a_vault_is_asked_by_its_own_token_and_its_refusal_names_the_cure() {
    let stage = Stage::new().await;
    let (_, vault) = subscriptions_of(&stage);
    stage.play(|asked| {
        asked.target.starts_with("/secrets/").then(|| {
            let id = "https://v.vault.azure.net/secrets/rich/4387e9f3d6e14c459867679a90fd0f79";
            Reply::json(200, &json!({"value": "the secret", "id": id, "attributes": {"enabled": true}}))
        })
    });
    let found = vault.secret("rich", None).await.unwrap().unwrap();
    assert_eq!(found.version, "4387e9f3d6e14c459867679a90fd0f79");
    assert!(!format!("{found:?}").contains("the secret"));
    vault.secret("rich", Some("an-old/one")).await.unwrap();
    let asked: Vec<String> = stage.calls().into_iter().map(|asked| asked.target).collect();
    assert_eq!(asked, ["/secrets/rich?api-version=7.4", "/secrets/rich/an-old%2Fone?api-version=7.4"]);
    for (status, class) in [(403, Class::Auth), (500, Class::Retry { wait: None })] {
        stage.play(move |asked| {
            asked.target.starts_with("/secrets/").then(|| Reply::json(status, &json!({})))
        });
        let failure = vault.secret("rich", None).await.expect_err("refused");
        assert_eq!(failure.class, class);
        assert_eq!(failure.message.contains("Key Vault Secrets User"), status == 403, "{failure}");
    }
    stage.play(|asked| asked.target.starts_with("/secrets/").then(|| Reply::json(404, &json!({}))));
    assert!(vault.secret("rich", None).await.unwrap().is_none());
    stage.play(|asked| asked.target.starts_with("/secrets/").then(|| Reply::json(200, &json!({"value": 7}))));
    assert_eq!(vault.secret("rich", None).await.expect_err("no secret").code, "unreadable");
}
