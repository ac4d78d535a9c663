//! What the services send by themselves: playbooks of automation rules (`sentinel.md` §16.1), signed with Standard
//! Webhooks and retried as Logic Apps do, and Graph's change notifications where they are switched on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::world::World;
use super::world::sentinel::playbook_body;
use crate::domain::signature::Secret;

/// A Logic App's HTTP action waits this long (sentinel.md 16.1: 120 s on the consumption plan).
const PATIENCE: Duration = Duration::from_secs(120);
/// The default retry policy: four more tries, exponentially, between 5 and 45 s.
const RETRIES: [f64; 4] = [7.5, 15.0, 30.0, 45.0];
/// How long Graph waits for the echo of a validation token.
const VALIDATION_PATIENCE: Duration = Duration::from_secs(10);
/// Graph's own retries are exponential and unpublished (graph.md 13.5); these are ours.
const GRAPH_RETRIES: [f64; 4] = [1.0, 5.0, 20.0, 60.0];

#[derive(Clone)]
struct Playbook {
    /// The workspace's key.
    workspace: String,
    url: String,
    secret: Secret,
}

/// The registered playbooks, and who sends for them.
pub(crate) struct Playbooks {
    list: Mutex<Vec<Playbook>>,
    http: reqwest::Client,
    stopped: CancellationToken,
}

impl Default for Playbooks {
    fn default() -> Self {
        // The builder fails only where no TLS back end can be made; the default client then says so when it sends.
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .danger_accept_invalid_certs(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap_or_default();
        Self { list: Mutex::default(), http, stopped: CancellationToken::new() }
    }
}

impl Playbooks {
    /// Reads an order of the control listener.
    pub(super) fn register(&self, order: &Value, world: &World) -> Result<Value, String> {
        let text = |name: &str| order[name].as_str().filter(|text| !text.is_empty());
        let named = text("workspace").ok_or("workspace is missing: a name or a resource id")?;
        let lower = named.trim_end_matches('/').to_lowercase();
        let found = world
            .workspaces
            .iter()
            .find(|(key, workspace)| **key == lower || workspace.workspace_name.eq_ignore_ascii_case(named));
        let (key, workspace) = found.ok_or_else(|| format!("workspace: there is none called {named:?}"))?;
        let url = text("url").ok_or("url is missing: where the playbook posts to")?;
        let parsed = url::Url::parse(url).map_err(|error| format!("url is no URL: {error}"))?;
        if !is_loopback(&parsed) {
            return Err("url is not on this machine; the emulator sends nowhere else".to_owned());
        }
        if order["auth"]["kind"] != "hmac" {
            return Err("auth.kind is hmac".to_owned());
        }
        let secret = order["auth"]["secret"].as_str().ok_or("auth.secret is missing: whsec_…")?;
        let secret = Secret::parse(secret).map_err(|why| format!("auth.secret: {why}"))?;
        let playbook = Playbook { workspace: key.clone(), url: url.to_owned(), secret };
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(playbook);
        Ok(json!({"workspace": workspace.resource_id(), "url": url}))
    }

    pub(super) fn stop(&self) {
        self.stopped.cancel();
    }
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Takes what the last operation caused, and sends it from tasks of its own.
pub(super) fn send(shared: &Arc<Shared>) {
    let now = shared.now();
    let mut posts: Vec<(String, Value)> = Vec::new();
    let mut playbooks: Vec<(Playbook, Uuid, Vec<u8>)> = Vec::new();
    {
        let mut world = shared.world();
        let list = shared.playbooks.list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (key, workspace) in &mut world.workspaces {
            let touched = std::mem::take(&mut workspace.touched);
            for playbook in list.iter().filter(|playbook| playbook.workspace == *key) {
                for change in &touched {
                    let id = Uuid::new_v4();
                    let body = playbook_body(workspace, change, &id);
                    playbooks.push((playbook.clone(), id, body.to_string().into_bytes()));
                }
            }
        }
        for tenant in world.tenants.values_mut() {
            for change in std::mem::take(&mut tenant.touched) {
                posts.extend(tenant.notifications(&change, now));
            }
        }
    }
    for (playbook, id, body) in playbooks {
        let id = format!("msg_{}", id.simple());
        let delivery =
            Delivery { url: playbook.url, body, signed: Some((playbook.secret, id)), waits: &RETRIES };
        tokio::spawn(deliver(Arc::clone(shared), delivery));
    }
    for (url, body) in posts {
        let body = body.to_string().into_bytes();
        let delivery = Delivery { url, body, signed: None, waits: &GRAPH_RETRIES };
        tokio::spawn(deliver(Arc::clone(shared), delivery));
    }
}

/// One message, and how long to wait between the tries.
struct Delivery {
    url: String,
    body: Vec<u8>,
    /// The secret and the delivery's id: the same for every try, signed anew, because its timestamp must be fresh.
    signed: Option<(Secret, String)>,
    waits: &'static [f64],
}

/// Tries until it is answered for good.
async fn deliver(shared: Arc<Shared>, delivery: Delivery) {
    for wait in delivery.waits.iter().map(Some).chain([None]) {
        if post(&shared, &delivery).await {
            return;
        }
        let Some(seconds) = wait else { return };
        tokio::select! {
            () = shared.playbooks.stopped.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs_f64(*seconds)) => {}
        }
    }
}

/// Whether the receiver answered for good: a success, or a refusal that no repeat would change.
async fn post(shared: &Shared, delivery: &Delivery) -> bool {
    let Delivery { url, body, signed, .. } = delivery;
    let mut request = shared.playbooks.http.post(url).header("content-type", "application/json");
    if let Some((secret, id)) = signed {
        let timestamp = shared.now().unix_timestamp().to_string();
        let signature = secret.sign(id, &timestamp, body);
        request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
    }
    match request.body(body.clone()).send().await {
        Ok(answer) => !matches!(answer.status().as_u16(), 408 | 429 | 500..=599),
        Err(_) => false,
    }
}

/// The handshake of a subscription (graph.md 13.3).
pub(super) async fn validate(url: &str) -> Result<(), String> {
    let mut url = url::Url::parse(url).map_err(|_| "The notification URL is not a URL.".to_owned())?;
    if !is_loopback(&url) {
        return Err("The emulator reaches this machine only.".to_owned());
    }
    let token = format!("Validation: Testing client application reachability. {} + <&>", Uuid::new_v4());
    url.query_pairs_mut().append_pair("validationToken", &token);
    let http = reqwest::Client::builder().no_proxy().timeout(VALIDATION_PATIENCE).build();
    let http = http.map_err(|error| error.to_string())?;
    let answer = http.post(url).header("content-type", "text/plain; charset=utf-8").send().await;
    let answer = answer.map_err(|_| "The request timed out or was refused.".to_owned())?;
    let plain = answer
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/plain"));
    if answer.status().as_u16() != 200 || !plain {
        return Err("Response must be 200 OK with content type text/plain.".to_owned());
    }
    let body = answer.text().await.unwrap_or_default();
    if body != token {
        return Err("Response must exactly match validationToken query parameter.".to_owned());
    }
    Ok(())
}
