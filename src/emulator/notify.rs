//! What the services send by themselves: playbooks of automation rules (`sentinel.md` §16.1), signed with Standard
//! Webhooks and retried as Logic Apps do, and Graph's change notifications where they are switched on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::forge::{self, Mint, Sender};
use super::seal;
use super::world::World;
use super::world::defender::{News, Sealing};
use super::world::sentinel::playbook_body;
use crate::domain::signature::Secret;

/// A Logic App's HTTP action waits this long (sentinel.md 16.1: 120 s on the consumption plan).
const PATIENCE: Duration = Duration::from_secs(120);
/// The unit of Logic Apps' default retry policy, and its waits in units: four more tries, exponentially, and none more
/// than 45 s apart.
const UNIT: Duration = Duration::from_millis(7_500);
const RETRIES: [f64; 4] = [1.0, 2.0, 4.0, 6.0];
/// Older deliveries than this many are forgotten.
const MOST_DELIVERIES: usize = 1_000;
/// How long Graph waits for the echo of a validation token.
const VALIDATION_PATIENCE: Duration = Duration::from_secs(10);
/// Graph's own retries are exponential and unpublished (graph.md 13.5); these are ours.
const GRAPH_RETRIES: [f64; 4] = [1.0, 5.0, 20.0, 60.0];
/// How long Graph waits for the first answer, and for those to its repetitions (graph.md 13.5).
const GRAPH_DEADLINES: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];

#[derive(Clone)]
struct Playbook {
    /// The workspace's key.
    workspace: String,
    url: String,
    secret: Secret,
}

/// What became of one message.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    webhook_id: String,
    url: String,
    incident: String,
    /// The status of each try; none where the connection failed.
    tries: Vec<Option<u16>>,
    /// Whether another try is to come.
    running: bool,
}

/// The registered playbooks, and who sends for them.
pub(crate) struct Playbooks {
    list: Mutex<Vec<Playbook>>,
    sent: Mutex<VecDeque<Sent>>,
    unit: Duration,
    http: reqwest::Client,
    stopped: CancellationToken,
}

impl Playbooks {
    /// None registered. The waits between two tries are multiples of the unit, by default that of Logic Apps.
    pub(super) fn new(unit: Option<Duration>) -> Self {
        // The builder fails only where no TLS back end can be made; the default client then says so when it sends.
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .danger_accept_invalid_certs(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap_or_default();
        Self {
            list: Mutex::default(),
            sent: Mutex::default(),
            unit: unit.unwrap_or(UNIT),
            http,
            stopped: CancellationToken::new(),
        }
    }

    fn sent(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest deliveries, oldest first, for `GET /state`.
    pub(super) fn deliveries(&self) -> Value {
        json!(*self.sent())
    }

    fn begin(&self, one: Sent) {
        let mut sent = self.sent();
        if sent.len() >= MOST_DELIVERIES {
            sent.pop_front();
        }
        sent.push_back(one);
    }

    fn note(&self, webhook_id: &str, status: Option<u16>, running: bool) {
        let mut sent = self.sent();
        if let Some(sent) = sent.iter_mut().rev().find(|sent| sent.webhook_id == webhook_id) {
            sent.tries.push(status);
            sent.running = running;
        }
    }

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
    if !matches!(url.scheme(), "http" | "https") {
        return false;
    }
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
    let mut news: Vec<(String, News)> = Vec::new();
    let mut playbooks: Vec<(Playbook, Uuid, String, Vec<u8>)> = Vec::new();
    {
        let mut world = shared.world();
        world.settle_native(now);
        let list = shared.playbooks.list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (key, workspace) in &mut world.workspaces {
            let touched = std::mem::take(&mut workspace.touched);
            for playbook in list.iter().filter(|playbook| playbook.workspace == *key) {
                for change in &touched {
                    let id = Uuid::new_v4();
                    let body = playbook_body(workspace, change, &id);
                    let incident = body["object"]["name"].as_str().unwrap_or_default().to_owned();
                    playbooks.push((
                        playbook.clone(),
                        id,
                        incident,
                        super::halves::show(body.to_string()).into_bytes(),
                    ));
                }
            }
        }
        for (id, tenant) in &mut world.tenants {
            news.extend(tenant.take_news(now).into_iter().map(|news| (id.clone(), news)));
        }
    }
    for (playbook, id, incident, body) in playbooks {
        let id = format!("msg_{}", id.simple());
        let (webhook_id, url) = (id.clone(), playbook.url.clone());
        shared.playbooks.begin(Sent { webhook_id, url, incident, tries: Vec::new(), running: true });
        let waits = RETRIES.map(|units| shared.playbooks.unit.mul_f64(units));
        let (url, secret) = (playbook.url, Some(playbook.secret));
        let delivery = Delivery { url, body, id, secret, deadlines: [PATIENCE; 2], waits };
        tokio::spawn(deliver(Arc::clone(shared), delivery));
    }
    for (tenant_id, news) in news {
        send_news(shared, &tenant_id, news);
    }
}

/// Sends one notification of Graph's from a task of its own.
pub(super) fn send_news(shared: &Arc<Shared>, tenant_id: &str, news: News) {
    let (url, incident) = (news.url.clone(), news.item["resourceData"]["id"].as_str().map(str::to_owned));
    let body = match graph_body(shared, tenant_id, news, "genuine") {
        Ok(body) => super::halves::show(body.to_string()).into_bytes(),
        Err(why) => {
            tracing::warn!("a notification cannot be made: {why}");
            return;
        }
    };
    let id = format!("graph_{}", Uuid::new_v4().simple());
    shared.playbooks.begin(Sent {
        webhook_id: id.clone(),
        url: url.clone(),
        incident: incident.unwrap_or_default(),
        tries: Vec::new(),
        running: true,
    });
    let waits = GRAPH_RETRIES.map(Duration::from_secs_f64);
    let delivery = Delivery { url, body, id, secret: None, deadlines: GRAPH_DEADLINES, waits };
    tokio::spawn(deliver(Arc::clone(shared), delivery));
}

/// The ways in which an encrypted notification can be wrong that are no matter of its token.
pub(super) const FORGERIES: &[(&str, &str)] = &[
    ("genuine", "as Graph sends it"),
    ("wrong-client-state", "clientState is a guess"),
    ("no-token", "validationTokens is missing"),
    ("tampered-data", "one bit of the encrypted data was changed"),
    ("tampered-signature", "one bit of the signature over the data was changed"),
    ("tampered-key", "one bit of the encrypted key was changed"),
    ("wrong-certificate", "names the right certificate, and is sealed for a stranger's"),
    ("unknown-certificate", "names a certificate that the receiver never had"),
    ("wrong-padding", "sealed and signed right, with bytes for a padding that are none"),
];

/// The body of one notification: its resource sealed, and a token of Graph's with it. A variant of the token has
/// `token:` before its name.
fn graph_body(shared: &Shared, tenant_id: &str, news: News, variant: &str) -> Result<Value, String> {
    let News { mut item, sealed, .. } = news;
    if variant == "wrong-client-state" {
        item["clientState"] = json!("a-guess-of-somebody");
    }
    let Some(Sealing { resource, certificate, certificate_id, app_id }) = sealed else {
        return Ok(json!({"value": [item]}));
    };
    let resource = resource.to_string();
    let mut content = match variant {
        "wrong-certificate" => seal::seal_for_stranger(&certificate_id, resource.as_bytes()),
        "wrong-padding" => seal::seal_unpadded(&certificate, &certificate_id, resource.as_bytes()),
        _ => seal::seal(&certificate, &certificate_id, resource.as_bytes()),
    }?;
    let tampered = match variant {
        "tampered-data" => Some("data"),
        "tampered-signature" => Some("dataSignature"),
        "tampered-key" => Some("dataKey"),
        _ => None,
    };
    if let Some(name) = tampered {
        content[name] = seal::tampered(content[name].as_str().unwrap_or_default()).into();
    }
    if variant == "unknown-certificate" {
        content["encryptionCertificateId"] = json!("a-certificate-of-nobody");
    }
    item["encryptedContent"] = content;
    let mut order = Mint::new(Sender::Graph, tenant_id, &app_id);
    if let Some(name) = variant.strip_prefix("token:") {
        let known = forge::VARIANTS.iter().find(|known| known.name == name);
        order = order.with(known.ok_or_else(|| format!("there is no variant of tokens called {name:?}"))?);
    }
    let token = shared.signer.mint(&order, &shared.hello, shared.now()).map_err(|error| error.to_string())?;
    let mut body = json!({"value": [item], "validationTokens": [token]});
    if variant == "no-token"
        && let Some(members) = body.as_object_mut()
    {
        members.shift_remove("validationTokens");
    }
    Ok(body)
}

/// Sends one notification once, genuine or forged, and says how it was answered: `{"subscription", "id", "variant"}`.
pub(super) async fn forged(shared: &Arc<Shared>, order: &Value) -> Result<Value, String> {
    let text = |name: &str| order[name].as_str().filter(|text| !text.is_empty());
    let subscription = text("subscription").ok_or("subscription is missing: its id")?;
    let id = text("id").ok_or("id is missing: of an incident, or of an alert")?;
    let variant = text("variant").unwrap_or("genuine");
    if !variant.starts_with("token:") && !FORGERIES.iter().any(|(name, _)| *name == variant) {
        let names: Vec<&str> = FORGERIES.iter().map(|(name, _)| *name).collect();
        return Err(format!("variant can be {} or token:NAME", names.join(", ")));
    }
    let found = {
        let world = shared.world();
        world.tenants.iter().find_map(|(tenant_id, tenant)| {
            Some((tenant_id.clone(), tenant.news_of(subscription, id, "updated")?))
        })
    };
    let (tenant_id, news) = found.ok_or("there is no such subscription")?;
    let url = news.url.clone();
    let body = graph_body(shared, &tenant_id, news, variant)?.to_string().into_bytes();
    let (id, waits) = (String::new(), GRAPH_RETRIES.map(Duration::from_secs_f64));
    let delivery = Delivery { url, body, id, secret: None, deadlines: GRAPH_DEADLINES, waits };
    Ok(json!({"variant": variant, "status": post(shared, &delivery, GRAPH_DEADLINES[0]).await}))
}

/// One message, and how long to wait between the tries.
struct Delivery {
    url: String,
    body: Vec<u8>,
    /// The same for every try.
    id: String,
    /// A playbook's: each try is signed anew, because its timestamp must be fresh.
    secret: Option<Secret>,
    /// How long the first try may take, and each that follows.
    deadlines: [Duration; 2],
    waits: [Duration; 4],
}

/// Tries until it is answered for good.
async fn deliver(shared: Arc<Shared>, delivery: Delivery) {
    for (number, wait) in delivery.waits.iter().map(Some).chain([None]).enumerate() {
        let status = post(&shared, &delivery, delivery.deadlines[number.min(1)]).await;
        let repeated = match (status, &delivery.secret) {
            (None | Some(408 | 429 | 500..=599), _) => true,
            // Graph takes nothing but a 2xx for an answer (graph.md 13.5).
            (Some(status), None) => !(200..300).contains(&status),
            (Some(_), Some(_)) => false,
        };
        let again = wait.filter(|_| repeated);
        shared.playbooks.note(&delivery.id, status, again.is_some());
        let Some(wait) = again else { return };
        tokio::select! {
            () = shared.playbooks.stopped.cancelled() => return,
            () = tokio::time::sleep(*wait) => {}
        }
    }
}

/// What the receiver answered, if it did.
async fn post(shared: &Shared, delivery: &Delivery, deadline: Duration) -> Option<u16> {
    let Delivery { url, body, id, secret, .. } = delivery;
    let request = shared.playbooks.http.post(url).timeout(deadline);
    let mut request = request.header("content-type", "application/json");
    if let Some(secret) = secret {
        let timestamp = shared.now().unix_timestamp().to_string();
        let signature = secret.sign(id, &timestamp, body);
        request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
    }
    let answer = request.body(body.clone()).send().await;
    answer.ok().map(|answer| answer.status().as_u16())
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
