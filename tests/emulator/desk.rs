//! A running emulator and the few words that the tests speak to it.

use std::time::Duration;

use lockstep::emulator::{self, Args, Running};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response};
use serde_json::{Value, json};

/// The stable API version that the Sentinel calls name.
pub(crate) const API_VERSION: &str = "2025-12-01";

/// A running emulator.
pub(crate) struct Desk {
    pub(crate) running: Running,
    pub(crate) hello: Value,
    pub(crate) http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) async fn read(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("the body arrives whole") }
    }

    /// The body as JSON; an empty one is null.
    pub(crate) fn json(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// `error.code` and `error.message` of a refusal.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16) -> (String, String) {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        let text = |name: &str| body["error"][name].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
        (text("code"), text("message"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Desk {
    /// A fresh emulator on free ports. Its budgets do not get into the way unless a test is about them.
    pub(crate) async fn open() -> Self {
        let desk = Self::with_budgets().await;
        desk.control(Method::PUT, "/switches", json!({"budgets": "off"})).await.expect(200);
        desk
    }

    /// A fresh emulator that counts requests as the services do.
    pub(crate) async fn with_budgets() -> Self {
        Self::start(Args { seed: Some(7), ..Args::default() }, reqwest::Client::builder()).await
    }

    pub(crate) async fn start(args: Args, client: reqwest::ClientBuilder) -> Self {
        let running = emulator::start(&args).await.expect("the emulator starts");
        let hello = serde_json::to_value(&running.hello).expect("the hello line is JSON");
        let http = client
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        Self { running, hello, http }
    }

    pub(crate) fn url(&self, service: &str) -> &str {
        self.hello[service].as_str().unwrap_or_else(|| panic!("{service} has no address: {}", self.hello))
    }

    pub(crate) fn tenant(&self) -> &str {
        self.url("tenantId")
    }

    /// The resource id of the first workspace.
    pub(crate) fn workspace(&self) -> String {
        workspace_id(self.url("subscriptionId"), self.url("resourceGroup"), self.url("workspaceName"))
    }

    /// A call that may fail to come back.
    pub(crate) async fn try_call(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> reqwest::Result<Reply> {
        let mut request = self.http.request(method, url);
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request = request.header(name, HeaderValue::from_str(value).expect("a header value"));
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        Ok(Reply::read(request.send().await?).await)
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Reply {
        let what = format!("{method} {url}");
        self.try_call(method, url, headers, body).await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
    }

    /// A call of the control listener.
    pub(crate) async fn control(&self, method: Method, path: &str, body: Value) -> Reply {
        self.call(method, &format!("{}{path}", self.url("control")), &[], body).await
    }

    /// Sets one switch.
    pub(crate) async fn switch(&self, name: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        self.control(Method::PUT, "/switches", json!({name: value})).await.expect(200);
    }

    /// Puts an incident into the first tenant and tells its id.
    pub(crate) async fn incident(&self, incident: Value) -> String {
        let body = self.control(Method::POST, "/incidents", incident).await.expect(201);
        body["id"].as_str().expect("an id").to_owned()
    }

    /// A token of the first tenant for an application.
    pub(crate) async fn app_token(&self, service: &str, app: &str) -> String {
        self.token(json!({"tenantId": self.tenant(), "clientId": app, "audience": self.url(service)})).await
    }

    /// A token of the first tenant for a person.
    pub(crate) async fn user_token(&self, service: &str, upn: &str) -> String {
        self.token(json!({"tenantId": self.tenant(), "user": upn, "audience": self.url(service)})).await
    }

    pub(crate) async fn token(&self, wish: Value) -> String {
        let reply = self.control(Method::POST, "/tokens", wish).await;
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
        reply.json()["access_token"].as_str().expect("a token").to_owned()
    }

    /// A call of Graph. Unknown enum members are asked for, as the service does.
    pub(crate) async fn graph(&self, token: &str, method: Method, path: &str, body: Value) -> Reply {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("prefer", "include-unknown-enum-members")];
        self.call(method, &format!("{}/v1.0{path}", self.url("graph")), &headers, body).await
    }

    /// A call of Sentinel in the first workspace; `path` begins behind the provider.
    pub(crate) async fn arm(&self, token: &str, method: Method, path: &str, body: Value) -> Reply {
        let bearer = format!("Bearer {token}");
        let mark = if path.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights{path}{mark}api-version={API_VERSION}",
            self.url("arm"),
            self.workspace()
        );
        self.call(method, &url, &[("authorization", bearer.as_str())], body).await
    }

    /// What the emulator holds.
    pub(crate) async fn state(&self) -> Value {
        self.control(Method::GET, "/state", Value::Null).await.expect(200)
    }

    /// The calls that the services have seen.
    pub(crate) async fn calls(&self) -> Vec<Value> {
        let body = self.control(Method::GET, "/calls", Value::Null).await.expect(200);
        body["calls"].as_array().expect("a list of calls").clone()
    }
}

/// The resource id of a workspace.
pub(crate) fn workspace_id(subscription: &str, group: &str, name: &str) -> String {
    format!(
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.OperationalInsights/workspaces/{name}"
    )
}

/// A small incident.
pub(crate) fn incident(name: &str) -> Value {
    json!({"displayName": name, "severity": "medium", "status": "active"})
}

/// A fixture of `tests/fixtures`.
pub(crate) fn fixture(path: &str) -> Value {
    let path = format!("{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Waits until something has come about, with a bound.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
