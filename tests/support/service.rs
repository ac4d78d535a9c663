//! `lockstep serve` as a process: its configuration, its doors, its death and return.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::emulator::{Hello, Place};
use super::process::{PROGRAM, Process, log_tail, unconfigured};

/// The application that the service signs in as.
pub(crate) const CLIENT_ID: &str = "10c457e9-0000-4000-8000-000000000001";
/// The key of the playbook's signatures, before encoding.
const WEBHOOK_KEY: &[u8; 32] = b"a key that is known to everybody";
/// The shared secret of subscriptions made by hand.
pub(crate) const CLIENT_STATE: &str = "known-to-everybody";
/// How long the service may take until it is ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// `whsec_…`, as the configuration takes it.
pub(crate) fn webhook_secret() -> String {
    format!("whsec_{}", BASE64.encode(WEBHOOK_KEY))
}

/// The key that signs playbook posts.
pub(crate) fn webhook_key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_KEY)
}

/// The value of `webhook-signature` (Standard Webhooks) for a delivery.
pub(crate) fn signature(key: &hmac::Key, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64.encode(context.sign()))
}

/// What a test decides about the configuration. Tenant, workspace and route number `n` are called `tenant-n`,
/// `workspace-n` and `route-n`.
pub(crate) struct Configuration<'a> {
    /// Where login, graph and arm are.
    pub(crate) login: &'a str,
    pub(crate) graph: &'a str,
    pub(crate) arm: &'a str,
    /// Each gives a tenant, a workspace and a route between them.
    pub(crate) places: &'a [Place],
    /// `sqlite://…` or `postgres://…`.
    pub(crate) store: &'a str,
    /// For example `10s`; `None` leaves the product's default.
    pub(crate) defender_every: Option<&'a str>,
    pub(crate) sentinel_every: Option<&'a str>,
    /// More of every route, line by line.
    pub(crate) route: &'a str,
    /// The rules of every route's fields, line by line; empty for the product's own.
    pub(crate) fields: &'a str,
    /// Appended as it stands, in the table `[poll]` until it opens another.
    pub(crate) more: &'a str,
}

impl<'a> Configuration<'a> {
    /// Against an emulator, with the default intervals.
    pub(crate) fn new(hello: &'a Hello, places: &'a [Place], store: &'a str) -> Self {
        let (login, graph, arm) = (&hello.login, &hello.graph, &hello.arm);
        let (defender_every, sentinel_every) = (None, None);
        Self {
            login,
            graph,
            arm,
            places,
            store,
            defender_every,
            sentinel_every,
            route: "",
            fields: "",
            more: "",
        }
    }

    fn text(&self, port: u16) -> String {
        let mut text = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\npublic_url = \"http://127.0.0.1:{port}\"\n\
             limits = {{ requests_per_second = 1000000, burst = 1000000 }}\n[store]\nurl = '{}'\n",
            self.store
        );
        for (number, place) in self.places.iter().enumerate() {
            let Place { tenant_id, subscription_id, resource_group, workspace_name } = place;
            let (login, graph, arm) = (self.login, self.graph, self.arm);
            let secret = webhook_secret();
            write!(
                text,
                "[[tenants]]\nname = \"tenant-{number}\"\ntenant_id = \"{tenant_id}\"\n\
                 client_id = \"{CLIENT_ID}\"\nclient_secret = \"emulator-secret\"\n\
                 graph_client_states = [\"{CLIENT_STATE}\"]\n\
                 login_url = \"{login}\"\ngraph_url = \"{graph}\"\narm_url = \"{arm}\"\n\
                 [[workspaces]]\nname = \"workspace-{number}\"\ntenant = \"tenant-{number}\"\n\
                 subscription_id = \"{subscription_id}\"\nresource_group = \"{resource_group}\"\n\
                 workspace_name = \"{workspace_name}\"\nwebhook_secrets = [\"{secret}\"]\n\
                 [[routes]]\nname = \"route-{number}\"\ntenant = \"tenant-{number}\"\n\
                 workspace = \"workspace-{number}\"\n{}\n",
                self.route
            )
            .expect("a string takes all text");
            if !self.fields.is_empty() {
                writeln!(text, "[routes.fields]\n{}", self.fields).expect("a string takes all text");
            }
        }
        let intervals = [("defender_every", self.defender_every), ("sentinel_every", self.sentinel_every)];
        text.push_str("[poll]\n");
        for (name, every) in intervals {
            if let Some(every) = every {
                writeln!(text, "{name} = \"{every}\"").expect("a string takes all text");
            }
        }
        text.push_str(self.more);
        text
    }
}

/// The service, running or not.
pub(crate) struct Service {
    /// Where it listens: the same address after every restart.
    pub(crate) port: u16,
    config: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    http: reqwest::Client,
}

impl Service {
    /// Writes the configuration into `folder`; starts nothing.
    pub(crate) fn prepare(folder: &Path, configuration: &Configuration<'_>) -> Self {
        let port = free_port();
        let config = folder.join("lockstep.toml");
        std::fs::write(&config, configuration.text(port)).expect("the test's own folder takes a file");
        Self { port, config, log: folder.join("service.log"), process: None, http: super::client() }
    }

    /// Writes the configuration and starts; returns when `/readyz` answers 200.
    pub(crate) async fn start(folder: &Path, configuration: &Configuration<'_>) -> Self {
        let mut service = Self::prepare(folder, configuration);
        service.resume().await;
        service
    }

    /// Starts it (again) on the same store, port and configuration; returns how long `/readyz` took to answer 200.
    pub(crate) async fn resume(&mut self) -> Duration {
        let began = Instant::now();
        let config = self.config.to_str().expect("the test chose the folder's name");
        self.process = Some(Process::start(&["serve", "--config", config], &self.log));
        let url = self.url("/readyz");
        let mut last = String::new();
        while began.elapsed() < START_PATIENCE {
            match self.http.get(&url).send().await {
                Ok(answer) if answer.status() == StatusCode::OK => return began.elapsed(),
                Ok(answer) => last = answer.status().to_string(),
                Err(error) => last = error.to_string(),
            }
            if !self.process.as_mut().is_some_and(Process::is_running) {
                panic!("the service ended while starting. Log:\n{}", log_tail(&self.log));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("not ready after {START_PATIENCE:?}: {last}. Log:\n{}", log_tail(&self.log));
    }

    /// An address of the service.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Where its configuration is.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Its process id, while it runs.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the test started it").id()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM; whether it ended with exit code 0.
    pub(crate) fn terminate(&mut self, patience: Duration) -> bool {
        self.process.take().expect("the test started it").terminate(patience)
    }

    /// The last lines of its log, over all its lives.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Another command of the program on the same configuration, to its end: `parked`, `hold --all` and so on.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).arg("--config").arg(&self.config);
        unconfigured(&mut command).output().expect("the program can be started")
    }

    /// GET, as text; the status is the caller's to judge.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.http.get(self.url(path)).send().await.expect("the service answers");
        (answer.status(), answer.text().await.expect("the answer is text"))
    }

    /// GET of the API, with a bearer token, as JSON.
    pub(crate) async fn ask(&self, path: &str, token: &str) -> (StatusCode, Value) {
        let answer = self.http.get(self.url(path)).bearer_auth(token).send().await;
        let answer = answer.expect("the service answers");
        (answer.status(), answer.json().await.expect("the answer is JSON"))
    }

    /// One signed playbook post about an incident of workspace number `number`. `Err`: no answer came.
    pub(crate) async fn post_playbook(
        &self,
        number: usize,
        id: &str,
        body: &Value,
    ) -> reqwest::Result<StatusCode> {
        let url = self.url(&format!("/notify/sentinel/workspace-{number}"));
        post_playbook(&self.http, &url, id, body).await
    }

    /// One Graph notification. `Err`: no answer came.
    pub(crate) async fn post_graph(&self, body: &Value) -> reqwest::Result<StatusCode> {
        let answer = self.http.post(self.url("/notify/graph")).json(body).send().await?;
        Ok(answer.status())
    }
}

/// One signed playbook post; the delivery's id is the sender's choice, the timestamp is now.
pub(crate) async fn post_playbook(
    http: &reqwest::Client,
    url: &str,
    id: &str,
    body: &Value,
) -> reqwest::Result<StatusCode> {
    let body = body.to_string();
    let timestamp = OffsetDateTime::now_utc().unix_timestamp();
    let answer = http
        .post(url)
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature(&webhook_key(), id, timestamp, body.as_bytes()))
        .body(body)
        .send()
        .await?;
    Ok(answer.status())
}

/// What a playbook posts about an incident (as ARM shows it), in the form of the incident trigger.
pub(crate) fn playbook_body(place: &Place, event: &str, incident: &Value) -> Value {
    json!({
        "eventUniqueId": uuid::Uuid::new_v4(),
        "objectSchemaType": "Incident",
        "objectEventType": event,
        "workspaceInfo": {
            "SubscriptionId": place.subscription_id,
            "ResourceGroupName": place.resource_group,
            "WorkspaceName": place.workspace_name,
        },
        "workspaceId": "c8c99641-985d-4e4e-8e91-fb3466cd0e5b",
        "object": incident,
    })
}

/// What Graph would post about an incident, if it had subscriptions on incidents.
pub(crate) fn graph_body(place: &Place, incident_id: &str) -> Value {
    json!({"value": [{
        "id": uuid::Uuid::new_v4(),
        "subscriptionId": "7f105c7d-2dc5-4530-97cd-4e7ae6534c07",
        "subscriptionExpirationDateTime": "2030-01-01T00:00:00Z",
        "clientState": CLIENT_STATE,
        "changeType": "updated",
        "resource": format!("security/incidents/{incident_id}"),
        "tenantId": place.tenant_id,
        "resourceData": {
            "@odata.type": "#microsoft.graph.security.incident",
            "@odata.id": format!("security/incidents/{incident_id}"),
            "id": incident_id,
        },
    }]})
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}
