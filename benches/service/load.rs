//! The sender: closed-loop HTTP/1.1 with keep-alive, written by hand so that it costs little of the machine that it
//! shares with what it measures. A request is one buffer per connection in which only the ids, the timestamp and the
//! signature change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::machine;
use crate::support::emulator::Place;
use crate::support::service;

/// Where a fresh number goes: twelve digits, as a GUID's last group and as a Graph id.
const SPOT: &str = "############";
/// The first of them: the ids have no zeros in front.
const FIRST: u64 = 100_000_000_000;
/// An answer that does not come within this fails the run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which door is knocked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// `/notify/sentinel/{workspace}`, a signed playbook body of 1 KB.
    Playbook,
    /// `/notify/graph`, one notification with `clientState`, padded to 1 KB.
    Graph,
}

impl Door {
    pub(crate) const ALL: [Door; 2] = [Door::Playbook, Door::Graph];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Door::Playbook => "playbook",
            Door::Graph => "graph",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Door::Playbook => "/notify/sentinel/workspace-0",
            Door::Graph => "/notify/graph",
        }
    }

    /// The body, with [`SPOT`] wherever the fresh number goes.
    pub(crate) fn body(self, place: &Place) -> String {
        match self {
            Door::Playbook => {
                let name = format!("5f3c7a1e-1b52-4c0f-9c55-{SPOT}");
                let id =
                    format!("{}/providers/Microsoft.SecurityInsights/Incidents/{name}", place.workspace());
                let incident = json!({
                    "id": id, "name": name, "etag": format!("\"{SPOT}\""),
                    "type": "Microsoft.SecurityInsights/Incidents",
                    "properties": {
                        "title": "Suspicious sign-in from unusual location", "severity": "Medium", "status": "New",
                        "description": "A sign-in from a location not seen before for this user, from a device not \
                                        seen before, minutes after one from his usual place.",
                        "lastModifiedTimeUtc": "2026-03-04T10:22:10.7833333Z", "incidentNumber": 4211,
                        "providerName": "Azure Sentinel", "labels": [],
                    },
                });
                service::playbook_body(place, "Update", &incident).to_string()
            }
            Door::Graph => {
                let mut body = service::graph_body(place, SPOT);
                body["value"][0]["pad"] = json!("x".repeat(559));
                body.to_string()
            }
        }
    }
}

/// A whole request as it goes on the wire, with the places that change.
struct Request {
    bytes: Vec<u8>,
    /// Where [`SPOT`] stands.
    spots: Vec<usize>,
    /// Where delivery id, timestamp and signature stand, and where the body begins; only for a signed door.
    signed: Option<Signed>,
}

struct Signed {
    key: hmac::Key,
    id: std::ops::Range<usize>,
    timestamp: std::ops::Range<usize>,
    signature: std::ops::Range<usize>,
    body: usize,
}

impl Request {
    fn new(door: Door, place: &Place) -> Self {
        let body = door.body(place);
        let mut head = format!(
            "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            door.path(),
            body.len()
        );
        let mut write = |name: &str, value: &str| {
            head.push_str(name);
            let start = head.len();
            head.push_str(value);
            let range = start..head.len();
            head.push_str("\r\n");
            range
        };
        let ranges = (door == Door::Playbook).then(|| {
            let id = write("webhook-id: ", &format!("msg_{SPOT}"));
            let timestamp = write("webhook-timestamp: ", "0000000000");
            let signature = write("webhook-signature: v1,", &"=".repeat(44));
            (id, timestamp, signature)
        });
        head.push_str("\r\n");
        let signed = ranges.map(|(id, timestamp, signature)| Signed {
            key: service::webhook_key(),
            id,
            timestamp,
            signature,
            body: head.len(),
        });
        head.push_str(&body);
        let spots = head.match_indices(SPOT).map(|(at, _)| at).collect();
        Self { bytes: head.into_bytes(), spots, signed }
    }

    /// Makes it a request that was never sent before.
    fn renew(&mut self, number: u64) {
        let digits = number.to_string();
        for &at in &self.spots {
            self.bytes[at..at + SPOT.len()].copy_from_slice(digits.as_bytes());
        }
        let Some(Signed { key, id, timestamp, signature, body }) = &self.signed else { return };
        let now = OffsetDateTime::now_utc().unix_timestamp().to_string();
        self.bytes[timestamp.clone()].copy_from_slice(now.as_bytes());
        let mut context = hmac::Context::with_key(key);
        for part in [&self.bytes[id.clone()], b".", now.as_bytes(), b".", &self.bytes[*body..]] {
            context.update(part);
        }
        let tag = context.sign();
        BASE64
            .encode_slice(tag.as_ref(), &mut self.bytes[signature.clone()])
            .expect("32 bytes are 44 characters in base 64");
    }
}

/// One keep-alive connection.
struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server under test listens");
        stream.set_nodelay(true).expect("a TCP socket takes this option");
        Self { stream, answer: Vec::with_capacity(4096) }
    }

    /// Sends, reads the whole answer, returns its status.
    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<u16> {
        self.stream.write_all(request).await?;
        self.answer.clear();
        let head = loop {
            if let Some(end) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read().await?;
        };
        let text = std::str::from_utf8(&self.answer[..head]).map_err(std::io::Error::other)?;
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status: {text}")))?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let length = length.ok_or_else(|| std::io::Error::other(format!("no content-length: {text}")))?;
        while self.answer.len() < head + length {
            self.read().await?;
        }
        Ok(status)
    }

    async fn read(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.answer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) posts_a_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) cpu_us_a_post: f64,
    /// The share of the machine that neither the sender nor the server used.
    pub(crate) others: f64,
}

/// Posts for `warm` and then for `measured`, `concurrency` connections with one request in flight each. Panics unless
/// every answer is 202: a server that refuses is fast and proves nothing.
pub(crate) async fn run(
    address: SocketAddr,
    door: Door,
    place: &Place,
    concurrency: usize,
    (warm, measured): (Duration, Duration),
    server: &[u32],
) -> Run {
    let next = Arc::new(AtomicU64::new(FIRST));
    let begin = Instant::now() + warm;
    let end = begin + measured;
    let mut senders = Vec::new();
    for _ in 0..concurrency {
        let (mut request, next) = (Request::new(door, place), next.clone());
        let mut connection = Connection::open(address).await;
        senders.push(tokio::spawn(async move {
            let mut taken = Vec::with_capacity(64 * 1024);
            loop {
                request.renew(next.fetch_add(1, Ordering::Relaxed));
                let sent = Instant::now();
                if sent >= end {
                    return taken;
                }
                let status = match tokio::time::timeout(PATIENCE, connection.exchange(&request.bytes)).await {
                    Ok(Ok(status)) => status,
                    Ok(Err(error)) => panic!("{door:?}: {error}"),
                    Err(_) => panic!("{door:?}: no answer within {PATIENCE:?}"),
                };
                let answer = String::from_utf8_lossy(&connection.answer);
                assert!(status == 202, "{door:?}: answered {status} instead of 202:\n{answer}");
                let answered = Instant::now();
                if answered >= begin && answered < end {
                    taken.push(u32::try_from((answered - sent).as_micros()).unwrap_or(u32::MAX));
                }
            }
        }));
    }
    let (from, to) = (sample_at(begin, server).await, sample_at(end, server).await);
    let mut taken = Vec::new();
    for sender in senders {
        taken.extend(sender.await.expect("a sender only ends by panic when an answer was wrong"));
    }
    assert!(!taken.is_empty(), "{door:?}: nothing was answered");
    taken.sort_unstable();
    let at = |share: f64| {
        let rank = (taken.len() as f64 * share).ceil() as usize;
        f64::from(taken[rank.clamp(1, taken.len()) - 1]) / 1_000.0
    };
    let seconds = (to.at - from.at).as_secs_f64();
    let [server, own, all] = [to.server - from.server, to.own - from.own, to.all - from.all];
    Run {
        posts_a_second: taken.len() as f64 / measured.as_secs_f64(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        // The two samples lie a little off the window's ends; the server's work is scaled to the window.
        cpu_us_a_post: server * 1e6 / seconds * measured.as_secs_f64() / taken.len() as f64,
        others: ((all - server - own) / seconds / machine::processors()).max(0.0),
    }
}

struct Sample {
    at: Instant,
    server: f64,
    own: f64,
    all: f64,
}

async fn sample_at(at: Instant, server: &[u32]) -> Sample {
    tokio::time::sleep_until(at.into()).await;
    Sample {
        at: Instant::now(),
        server: machine::cpu_seconds(server),
        own: machine::own_cpu_seconds(),
        all: machine::all_cpu_seconds(),
    }
}
