//! What the story needs of the emulator: the control listener, and analysts who work through the real APIs.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};

use crate::emulator::Hello;

/// The version of the Sentinel API that the analysts' portal speaks.
const API_VERSION: &str = "2025-09-01";
/// How long the story waits for anything.
const PATIENCE: Duration = Duration::from_secs(45);

/// A person with a browser.
pub(super) struct Analyst {
    /// The user principal name.
    pub(super) upn: &'static str,
}

/// The emulator, from outside.
pub(super) struct Stage {
    http: reqwest::Client,
    /// Where everything is.
    pub(super) hello: Hello,
}

impl Stage {
    pub(super) fn new(hello: Hello) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        Ok(Self { http, hello })
    }

    /// The resource id of the workspace.
    pub(super) fn workspace(&self) -> String {
        let Hello { subscription_id, resource_group, workspace_name, .. } = &self.hello;
        format!(
            "/subscriptions/{subscription_id}/resourceGroups/{resource_group}/providers/\
             Microsoft.OperationalInsights/workspaces/{workspace_name}"
        )
    }

    /// One request to the control listener.
    pub(super) async fn control(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.hello.control);
        self.send(self.http.request(method, url), body).await.with_context(|| format!("control{path}"))
    }

    async fn send(&self, request: reqwest::RequestBuilder, body: Option<Value>) -> anyhow::Result<Value> {
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("answered {status}: {text}");
        }
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    async fn token(&self, who: &Analyst, audience: &str) -> anyhow::Result<String> {
        let order = json!({"tenantId": self.hello.tenant_id, "user": who.upn, "audience": audience});
        let answer = self.control(Method::POST, "/tokens", Some(order)).await?;
        answer["access_token"].as_str().map(str::to_owned).context("no access_token")
    }

    /// All that both sides hold.
    pub(super) async fn state(&self) -> anyhow::Result<Value> {
        self.control(Method::GET, "/state", None).await
    }

    /// Defender's incident.
    pub(super) async fn incident(&self, id: &str) -> anyhow::Result<Option<Value>> {
        let state = self.state().await?;
        let incidents = state["tenants"][&self.hello.tenant_id]["incidents"].as_array();
        Ok(incidents.and_then(|list| list.iter().find(|incident| incident["id"] == id)).cloned())
    }

    /// Every incident of the workspace.
    pub(super) async fn twins(&self) -> anyhow::Result<Vec<Value>> {
        let state = self.state().await?;
        let workspaces = state["workspaces"].as_object().context("no workspaces")?;
        let ours = workspaces.iter().find(|(id, _)| id.eq_ignore_ascii_case(&self.workspace()));
        let incidents = ours.and_then(|(_, workspace)| workspace["incidents"].as_array());
        Ok(incidents.cloned().unwrap_or_default())
    }

    /// An analyst changes a Defender incident.
    pub(super) async fn edit_defender(&self, who: &Analyst, id: &str, patch: Value) -> anyhow::Result<()> {
        let token = self.token(who, &self.hello.graph).await?;
        let url = format!("{}/v1.0/security/incidents/{id}", self.hello.graph);
        self.send(self.http.patch(url).bearer_auth(token), Some(patch)).await.context("Defender's portal")?;
        Ok(())
    }

    /// An analyst changes a Sentinel incident, as the portal does: read, change, write back under the etag.
    pub(super) async fn edit_sentinel(&self, who: &Analyst, name: &str, change: Value) -> anyhow::Result<()> {
        let token = self.token(who, &self.hello.arm).await?;
        let url = format!(
            "{}{}/providers/Microsoft.SecurityInsights/incidents/{name}?api-version={API_VERSION}",
            self.hello.arm,
            self.workspace()
        );
        let mut incident = self.send(self.http.get(&url).bearer_auth(&token), None).await?;
        for (member, value) in change.as_object().context("a change is an object")? {
            incident["properties"][member] = value.clone();
        }
        self.send(self.http.put(&url).bearer_auth(token), Some(incident))
            .await
            .context("Sentinel's portal")?;
        Ok(())
    }

    /// Polls until `reached` says yes; the error says what was waited for.
    pub(super) async fn until<F: Future<Output = anyhow::Result<bool>>>(
        &self,
        what: &str,
        mut reached: impl FnMut() -> F,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            if reached().await? {
                return Ok(start.elapsed());
            }
            if start.elapsed() > PATIENCE {
                bail!("waited {} s in vain: {what}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
