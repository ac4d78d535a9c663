//! `lockstep emulator` as a process, its control listener, and people who work through the real APIs.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::process::Process;

/// The version of the Sentinel API that the analysts' portal speaks.
const API_VERSION: &str = "2025-09-01";
/// How long the emulator may take to say hello.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How often an analyst tries again what was refused or broke off.
const ANALYST_TRIES: u32 = 20;

/// The emulator's first line: where everything is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello {
    pub(crate) login: String,
    pub(crate) graph: String,
    pub(crate) arm: String,
    pub(crate) ingestion: String,
    pub(crate) control: String,
    #[serde(flatten)]
    pub(crate) place: Place,
}

/// One Defender tenant and one Sentinel workspace in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Place {
    pub(crate) tenant_id: String,
    pub(crate) subscription_id: String,
    pub(crate) resource_group: String,
    pub(crate) workspace_name: String,
}

impl Place {
    /// Another place; the same number always gives the same names.
    pub(crate) fn numbered(number: u32) -> Self {
        Self {
            tenant_id: format!("{number:08x}-0000-4000-8000-00000000aaaa"),
            subscription_id: format!("{number:08x}-0000-4000-8000-00000000bbbb"),
            resource_group: format!("group-{number}"),
            workspace_name: format!("workspace-{number}"),
        }
    }

    /// The workspace's resource id.
    pub(crate) fn workspace(&self) -> String {
        let Self { subscription_id, resource_group, workspace_name, .. } = self;
        format!(
            "/subscriptions/{subscription_id}/resourceGroups/{resource_group}/providers/\
             Microsoft.OperationalInsights/workspaces/{workspace_name}"
        )
    }
}

/// One line of `GET /calls`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Call {
    /// When it came.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) app: Option<String>,
    pub(crate) status: Option<u16>,
    /// Which fault struck it.
    pub(crate) fault: Option<String>,
}

impl Call {
    /// A page of a change list: what pollers and sweeps ask for.
    pub(crate) fn is_list(&self) -> bool {
        self.lists("/incidents") || self.is_alert_list()
    }

    /// A page of the list of alerts.
    pub(crate) fn is_alert_list(&self) -> bool {
        self.lists("/alerts_v2")
    }

    fn lists(&self, what: &str) -> bool {
        let path = self.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        self.method == "GET" && path.to_ascii_lowercase().ends_with(what)
    }

    /// Something that changes an incident.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self.service.as_str(), "graph" | "arm") && self.method != "GET"
    }

    /// A call to one of the two systems.
    pub(crate) fn is_incident_api(&self) -> bool {
        matches!(self.service.as_str(), "graph" | "arm")
    }
}

/// All that both sides hold, from `GET /state`.
#[derive(Clone, Debug)]
pub(crate) struct State(pub(crate) Value);

impl State {
    /// Defender's incidents of a tenant, in Graph's form.
    pub(crate) fn defender(&self, place: &Place) -> &[Value] {
        Self::incidents(&self.0["tenants"], &place.tenant_id)
    }

    /// Sentinel's incidents of a workspace, in ARM's form.
    pub(crate) fn sentinel(&self, place: &Place) -> &[Value] {
        Self::incidents(&self.0["workspaces"], &place.workspace())
    }

    fn incidents<'a>(owners: &'a Value, id: &str) -> &'a [Value] {
        let owners = owners.as_object().expect("the state is an object of owners");
        let owner = owners.iter().find(|(owner, _)| owner.eq_ignore_ascii_case(id));
        // A place that the state does not know would be in step for nothing.
        let (_, owner) = owner.unwrap_or_else(|| panic!("the state does not know {id}"));
        owner["incidents"].as_array().map_or(&[], Vec::as_slice)
    }

    /// One alert of a tenant, in Graph's form.
    pub(crate) fn alert(&self, place: &Place, id: &str) -> Option<&Value> {
        let tenants = self.0["tenants"].as_object().expect("the state is an object of owners");
        let (_, tenant) = tenants.iter().find(|(tenant, _)| tenant.eq_ignore_ascii_case(&place.tenant_id))?;
        tenant["alerts"].as_array()?.iter().find(|alert| alert["id"] == id)
    }

    /// The bookmarks that are related to one Sentinel incident, in ARM's form.
    pub(crate) fn bookmarks(&self, place: &Place, name: &str) -> Vec<&Value> {
        let workspaces = self.0["workspaces"].as_object().expect("the state is an object of owners");
        let owner = workspaces.iter().find(|(owner, _)| owner.eq_ignore_ascii_case(&place.workspace()));
        let Some((_, owner)) = owner else { return Vec::new() };
        let relations = owner["relations"][name].as_array().into_iter().flatten();
        let related: Vec<&Value> = relations.map(|one| &one["properties"]["relatedResourceName"]).collect();
        let all = owner["bookmarks"].as_array().into_iter().flatten();
        all.filter(|bookmark| related.contains(&&bookmark["name"])).collect()
    }

    /// The comments of one Sentinel incident, in ARM's form.
    pub(crate) fn comments(&self, place: &Place, name: &str) -> &[Value] {
        let workspaces = self.0["workspaces"].as_object().expect("the state is an object of owners");
        let owner = workspaces.iter().find(|(owner, _)| owner.eq_ignore_ascii_case(&place.workspace()));
        owner.and_then(|(_, owner)| owner["comments"][name].as_array()).map_or(&[], Vec::as_slice)
    }

    /// One Defender incident.
    pub(crate) fn incident(&self, place: &Place, id: &str) -> Option<&Value> {
        self.defender(place).iter().find(|incident| incident["id"] == id)
    }

    /// The twin of a Defender incident: the Sentinel incident whose description names it. `None` when there is none
    /// yet; more than one is what [`super::in_step`] reports.
    pub(crate) fn twin(&self, place: &Place, id: &str) -> Option<&Value> {
        self.sentinel(place).iter().find(|twin| names(twin, id))
    }
}

/// Whether a Sentinel incident says that it stands for this Defender incident.
pub(crate) fn names(twin: &Value, id: &str) -> bool {
    let description = twin["properties"]["description"].as_str().unwrap_or_default();
    let line = format!("Defender incident {id}");
    description.lines().any(|found| found.trim() == line)
}

/// The running emulator.
pub(crate) struct Emulator {
    /// Where everything is.
    pub(crate) hello: Hello,
    process: Process,
    http: reqwest::Client,
}

impl Emulator {
    /// Starts it on free ports. `folder` takes its log.
    pub(crate) fn start(folder: &Path, seed: u64) -> Self {
        Self::launch(folder, seed, None)
    }

    /// The same with every listener on TLS; the authority's certificate is `ca.pem` in `folder`.
    pub(crate) fn start_on_tls(folder: &Path, seed: u64) -> Self {
        Self::launch(folder, seed, Some(folder))
    }

    fn launch(folder: &Path, seed: u64, tls: Option<&Path>) -> Self {
        let mut arguments = vec!["emulator".to_owned(), "--seed".to_owned(), seed.to_string()];
        for listener in ["login", "graph", "arm", "ingestion", "control"] {
            arguments.extend([format!("--{listener}-port"), "0".to_owned()]);
        }
        if let Some(tls) = tls {
            arguments.extend(["--tls".to_owned(), tls.display().to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = folder.join("emulator.log");
        let (process, line) = Process::start_and_listen(&arguments, &log, START_PATIENCE);
        let hello = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the emulator's first line is no hello ({error}): {line}"));
        let http = match tls {
            None => super::client(),
            Some(tls) => {
                super::client_trusting(&std::fs::read(tls.join("ca.pem")).expect("it writes its authority"))
            }
        };
        Self { hello, process, http }
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The first place, and as many more as are missing to `count`.
    pub(crate) async fn places(&self, count: u32) -> Vec<Place> {
        let mut places = vec![self.hello.place.clone()];
        for number in 1..count {
            let place = Place::numbered(number);
            self.control(Method::POST, "/tenants", Some(json!({"tenantId": place.tenant_id}))).await;
            let order = json!({
                "tenantId": place.tenant_id, "subscriptionId": place.subscription_id,
                "resourceGroup": place.resource_group, "workspaceName": place.workspace_name,
            });
            self.control(Method::POST, "/workspaces", Some(order)).await;
            places.push(place);
        }
        places
    }

    /// One request to the control listener; anything but 2xx is a panic.
    pub(crate) async fn control(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.hello.control));
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => panic!("control {method} {path}: {error}. Log:\n{}", self.process.log_tail()),
        };
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        assert!(status.is_success(), "control {method} {path} answered {status}: {text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("control speaks JSON") }
    }

    /// Defender's engine raises (or replaces) an incident, stamped now.
    pub(crate) async fn raise(&self, place: &Place, incident: Value) -> String {
        self.raise_at(place, incident, "").await
    }

    /// The same with the incident's own times: older than every watermark, no poll finds it.
    pub(crate) async fn raise_in_the_past(&self, place: &Place, incident: Value) -> String {
        self.raise_at(place, incident, "&keepTimes=true").await
    }

    /// Defender's engine merges one incident into another.
    pub(crate) async fn merge(&self, place: &Place, source: &str, target: &str) {
        let path = format!("/merge?tenant={}", place.tenant_id);
        self.control(Method::POST, &path, Some(json!({"source": source, "target": target}))).await;
    }

    /// Defender's engine takes such a merge back.
    pub(crate) async fn unmerge(&self, place: &Place, source: &str) {
        let path = format!("/unmerge?tenant={}", place.tenant_id);
        self.control(Method::POST, &path, Some(json!({"source": source}))).await;
    }

    /// Somebody leaves a comment in Defender's portal.
    pub(crate) async fn say(&self, place: &Place, id: &str, by: &str, text: &str) {
        let path = format!("/incidents/{id}/comments?tenant={}", place.tenant_id);
        self.control(Method::POST, &path, Some(json!({"comment": text, "by": by}))).await;
    }

    /// Defender's engine moves an alert to another incident.
    pub(crate) async fn move_alert(&self, place: &Place, alert: &str, incident: &str) {
        let path = format!("/alerts/{alert}/move?tenant={}", place.tenant_id);
        self.control(Method::POST, &path, Some(json!({"incident": incident}))).await;
    }

    /// An alert joins a Defender incident.
    pub(crate) async fn alert(&self, place: &Place, id: &str, alert: Value) {
        let path = format!("/incidents/{id}/alerts?tenant={}", place.tenant_id);
        self.control(Method::POST, &path, Some(alert)).await;
    }

    async fn raise_at(&self, place: &Place, incident: Value, more: &str) -> String {
        let path = format!("/incidents?tenant={}{more}", place.tenant_id);
        let answer = self.control(Method::POST, &path, Some(incident)).await;
        answer["id"].as_str().expect("the answer names the id").to_owned()
    }

    /// Breaks the next matching calls.
    pub(crate) async fn fault(&self, fault: Value) {
        self.control(Method::POST, "/faults", Some(fault)).await;
    }

    /// Sets switches by name.
    pub(crate) async fn switch(&self, switches: Value) {
        self.control(Method::PUT, "/switches", Some(switches)).await;
    }

    /// Ends all trouble.
    pub(crate) async fn heal(&self) {
        self.control(Method::DELETE, "/faults", None).await;
    }

    /// All calls since the last [`Emulator::forget_calls`].
    pub(crate) async fn calls(&self) -> Vec<Call> {
        let answer = self.control(Method::GET, "/calls", None).await;
        Vec::deserialize(&answer["calls"]).expect("calls have the documented members")
    }

    /// Those of one application to Graph and ARM.
    pub(crate) async fn calls_of(&self, app: &str) -> Vec<Call> {
        let mut calls = self.calls().await;
        calls.retain(|call| call.is_incident_api() && call.app.as_deref() == Some(app));
        calls
    }

    /// Empties the list of calls.
    pub(crate) async fn forget_calls(&self) {
        self.control(Method::DELETE, "/calls", None).await;
    }

    /// All that both sides hold.
    pub(crate) async fn state(&self) -> State {
        State(self.control(Method::GET, "/state", None).await)
    }

    /// A person with a browser, signed in to both portals of a place.
    pub(crate) async fn analyst(&self, place: &Place, upn: &str) -> Analyst {
        let graph_token = self.token(place, upn, &self.hello.graph).await;
        let arm_token = self.token(place, upn, &self.hello.arm).await;
        let Hello { graph, arm, .. } = self.hello.clone();
        Analyst { place: place.clone(), graph, arm, graph_token, arm_token, http: self.http.clone() }
    }

    /// Another program than the service, signed in to both sides of a place.
    pub(crate) async fn program(&self, place: &Place, client_id: &str) -> Analyst {
        let graph_token = self.token_of(place, "clientId", client_id, &self.hello.graph).await;
        let arm_token = self.token_of(place, "clientId", client_id, &self.hello.arm).await;
        let Hello { graph, arm, .. } = self.hello.clone();
        Analyst { place: place.clone(), graph, arm, graph_token, arm_token, http: self.http.clone() }
    }

    async fn token(&self, place: &Place, upn: &str, audience: &str) -> String {
        self.token_of(place, "user", upn, audience).await
    }

    async fn token_of(&self, place: &Place, kind: &str, name: &str, audience: &str) -> String {
        let order = json!({"tenantId": place.tenant_id, kind: name, "audience": audience});
        let answer = self.control(Method::POST, "/tokens", Some(order)).await;
        answer["access_token"].as_str().expect("the answer holds the token").to_owned()
    }
}

/// A person with a browser. Tries again what broke off or was refused for the moment, as people do: every edit sets
/// whole values, so doing it twice is doing it once.
#[derive(Clone)]
pub(crate) struct Analyst {
    pub(crate) place: Place,
    graph: String,
    arm: String,
    graph_token: String,
    arm_token: String,
    http: reqwest::Client,
}

impl Analyst {
    /// Any request to Graph, once.
    pub(crate) async fn graph(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let url = format!("{}/v1.0{path}", self.graph);
        self.send(method, &url, &self.graph_token, Some(&body)).await
    }

    /// Writes (or rewrites) a comment on a Sentinel incident; the id is the writer's choice.
    pub(crate) async fn comment_sentinel(&self, name: &str, id: &str, html: &str) {
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights/incidents/{name}/comments/{id}?api-version={API_VERSION}",
            self.arm,
            self.place.workspace()
        );
        let body = json!({"properties": {"message": html}});
        let written = self.send(Method::PUT, &url, &self.arm_token, Some(&body)).await;
        written.unwrap_or_else(|problem| panic!("an analyst could not comment on {name}: {problem}"));
    }

    /// Changes a Defender incident; returns it as Graph answered.
    pub(crate) async fn edit_defender(&self, id: &str, patch: Value) -> Value {
        let url = format!("{}/v1.0/security/incidents/{id}", self.graph);
        let mut last = String::new();
        for _ in 0..ANALYST_TRIES {
            match self.send(Method::PATCH, &url, &self.graph_token, Some(&patch)).await {
                Ok(incident) => return incident,
                Err(problem) => last = problem,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("an analyst could not change Defender incident {id}: {last}")
    }

    /// Changes a Sentinel incident as the portal does: read, change members, write back under the etag. Returns it as
    /// ARM answered.
    pub(crate) async fn edit_sentinel(&self, name: &str, change: Value) -> Value {
        let change = change.as_object().expect("a change is an object of properties");
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights/incidents/{name}?api-version={API_VERSION}",
            self.arm,
            self.place.workspace()
        );
        let mut last = String::new();
        for _ in 0..ANALYST_TRIES {
            let written = async {
                let mut incident = self.send(Method::GET, &url, &self.arm_token, None).await?;
                for (member, value) in change {
                    incident["properties"][member] = value.clone();
                }
                self.send(Method::PUT, &url, &self.arm_token, Some(&incident)).await
            };
            match written.await {
                Ok(incident) => return incident,
                Err(problem) => last = problem,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("an analyst could not change Sentinel incident {name}: {last}")
    }

    /// Leaves a comment on a Sentinel incident.
    pub(crate) async fn say_in_sentinel(&self, name: &str, text: &str) {
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights/incidents/{name}/comments/{}?api-version={API_VERSION}",
            self.arm,
            self.place.workspace(),
            uuid::Uuid::new_v4()
        );
        let body = json!({"properties": {"message": text}});
        self.send(Method::PUT, &url, &self.arm_token, Some(&body))
            .await
            .expect("the workspace takes a comment");
    }

    /// Deletes a Sentinel incident.
    pub(crate) async fn delete_sentinel(&self, name: &str) {
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights/incidents/{name}?api-version={API_VERSION}",
            self.arm,
            self.place.workspace()
        );
        let answer = self.http.delete(&url).bearer_auth(&self.arm_token).send().await;
        let status = answer.expect("ARM answers").status();
        assert!(status.is_success(), "DELETE {name} answered {status}");
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        token: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        let mut request = self.http.request(method, url).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status: StatusCode = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }
}
