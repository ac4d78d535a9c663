//! The edge: what is decided about a request before anything of ours looks into it. Who sent it, whether this door is
//! open to that address, and whether it has not had its share. It stands before the router and not in a layer, so that
//! every address is covered, doors that are added later too, and a request costs no more than two look-ups.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tower_service::Service as _;

use super::error::Refused;
use super::listen::Patience;
use super::rate::{Connections, Open, Rates};
use super::router::{self, framed};
use super::tls::Certificates;
use super::{AppState, DoorMetrics};
use crate::config::{Server, ServerLimits};
use crate::domain::network::{self, Network};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Probes and scrapes come often, from inside, and must be answered most of all when there is a flood.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Everything that stands between a connection and the handlers.
pub struct Front {
    router: Router,
    edge: Edge,
    metrics: DoorMetrics,
    places: Arc<Semaphore>,
    connections: Arc<Connections>,
    certificates: Option<Arc<Certificates>>,
    patience: Patience,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl Front {
    /// The service's addresses behind the configured edge. The error is a sentence about the TLS files.
    pub fn new(state: AppState, server: &Server) -> Result<Self, String> {
        let certificates = server.tls.as_ref().map(Certificates::load).transpose()?;
        let limits = &server.limits;
        let metrics = state.metrics.clone();
        Ok(Self {
            router: router::router_within(state, limits),
            edge: Edge::new(server),
            metrics,
            places: Arc::new(Semaphore::new(count(limits.connections))),
            connections: Connections::new(limits.connections_per_source),
            certificates,
            patience: Patience::USUAL,
        })
    }

    /// The answer to one request.
    pub(super) async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        match self.edge.admit(peer, path, request.headers(), Instant::now()) {
            // A router is always ready and has no errors.
            Ok(()) => match self.router.clone().call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(turned_away) => {
                self.metrics.count(door_of(path).unwrap_or("none"), turned_away.outcome);
                framed(request.headers(), async |_| turned_away.into_response()).await
            }
        }
    }

    /// Room for one more connection. Those who must wait for it stay in the system's queue.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        self.count("no-connection-free");
        // Never closed: acquiring does not fail.
        self.places.clone().acquire_owned().await.ok()
    }

    /// Whether this peer may have one more. Trusted proxies bring everybody's, so they are not counted.
    pub(super) fn open(&self, peer: IpAddr) -> Option<Option<Open>> {
        if network::any_contains(&self.edge.trusted, peer) {
            return Some(None);
        }
        let open = self.connections.open(peer);
        if open.is_none() {
            self.count("too-many-connections");
        }
        open.map(Some)
    }

    /// What TLS is spoken with, if it is spoken.
    pub fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.certificates.as_ref()
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    pub(super) fn count(&self, outcome: &'static str) {
        self.metrics.count("none", outcome);
    }
}

/// Who may send what, and how much.
struct Edge {
    trusted: Vec<Network>,
    /// By door; a door that is missing is open to every address.
    allow: BTreeMap<&'static str, Vec<Network>>,
    rates: Rates,
    told_of_proxy: AtomicBool,
}

/// Why a request is answered at the edge.
#[derive(Debug, PartialEq, Eq)]
struct TurnedAway {
    refused: Refused,
    outcome: &'static str,
    wait: Option<Duration>,
}

impl TurnedAway {
    fn into_response(self) -> Response<Body> {
        let mut response = self.refused.into_response();
        if let Some(wait) = self.wait {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl Edge {
    fn new(server: &Server) -> Self {
        let ServerLimits { requests_per_second, burst, .. } = server.limits;
        Self {
            trusted: server.trusted_proxies.clone(),
            allow: server.allow.clone(),
            rates: Rates::new(requests_per_second, burst),
            told_of_proxy: AtomicBool::new(false),
        }
    }

    fn admit(&self, peer: IpAddr, path: &str, headers: &HeaderMap, now: Instant) -> Result<(), TurnedAway> {
        if PROBES.contains(&path) {
            return Ok(());
        }
        let source = self.source(peer, headers);
        let list = door_of(path).and_then(|door| self.allow.get(door));
        if list.is_some_and(|list| !network::any_contains(list, source)) {
            let outcome = "address-not-allowed";
            return Err(TurnedAway { refused: Refused::NOT_ALLOWED, outcome, wait: None });
        }
        self.rates.take(source, now).map_err(|wait| TurnedAway {
            refused: Refused::TOO_MANY,
            outcome: "rate-limited",
            wait: Some(wait),
        })
    }

    fn source(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !headers.contains_key(FORWARDED_FOR) {
            return peer;
        }
        if !network::any_contains(&self.trusted, peer) {
            if !self.told_of_proxy.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    %peer,
                    "X-Forwarded-For is not heeded from an address that is not in server.trusted_proxies; if it is your \
                     ingress, name it there: else all senders behind it share one limit"
                );
            }
            return peer;
        }
        // A value that is no text ends the walk, like any hop that cannot be read.
        let values: Vec<&str> =
            headers.get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or("")).collect();
        network::source(peer, values.into_iter(), &self.trusted)
    }
}

/// The doors that an allow list can be given for, by the beginning of their addresses.
const DOORS: &[(&str, &str)] = &[
    ("/notify/graph", "graph"),
    ("/notify/sentinel", "sentinel"),
    ("/notify/action-group", "action_group"),
    ("/notify/event-grid", "event_grid"),
    ("/notify/defender-stream", "defender_stream"),
    ("/api", "api"),
];

/// Which door an address belongs to: the words of `[server.allow]`.
fn door_of(path: &str) -> Option<&'static str> {
    let below =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    DOORS.iter().find(|(prefix, _)| below(prefix)).map(|(_, door)| *door)
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DOORS as CONFIGURED;

    fn edge(change: impl FnOnce(&mut Server)) -> Edge {
        let mut server = Server::default();
        change(&mut server);
        Edge::new(&server)
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn forwarded(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(FORWARDED_FOR, HeaderValue::from_static(value))])
    }

    #[test]
    fn every_door_of_the_configuration_is_a_door_here() {
        let here: Vec<&str> = DOORS.iter().map(|(_, door)| *door).collect();
        assert_eq!(here, CONFIGURED);
        assert_eq!(door_of("/notify/graph/lifecycle"), Some("graph"));
        assert_eq!(door_of("/notify/graphs"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_share_is_each_senders_and_probes_have_none() {
        let edge = edge(|server| {
            server.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
            server.limits.requests_per_second = 1;
            server.limits.burst = 1;
        });
        let ask = |headers: &HeaderMap, path| edge.admit(at("10.0.0.1"), path, headers, Instant::now());
        let (one, other) = (forwarded("192.0.2.1"), forwarded("192.0.2.2"));
        assert_eq!(ask(&one, "/notify/graph"), Ok(()));
        let refused = ask(&one, "/notify/sentinel/soc").unwrap_err();
        assert_eq!(refused.refused, Refused::TOO_MANY);
        assert_eq!(refused.into_response().headers()[RETRY_AFTER], "1");
        assert_eq!(ask(&other, "/notify/graph"), Ok(()), "another sender behind the same proxy");
        for path in PROBES {
            assert_eq!([ask(&one, path), ask(&one, path)], [Ok(()), Ok(())], "{path}");
        }
        // From elsewhere the header is nobody's word.
        let stranger =
            |headers: &HeaderMap| edge.admit(at("198.51.100.7"), "/api/v1", headers, Instant::now());
        assert_eq!(stranger(&forwarded("192.0.2.3")), Ok(()));
        assert!(stranger(&forwarded("192.0.2.4")).is_err(), "the same peer, whatever it says");
    }

    #[test]
    fn a_door_with_a_list_is_open_to_those_on_it() {
        let edge = edge(|server| {
            server.allow.insert("graph", vec!["192.0.2.0/24".parse().unwrap()]);
            server.trusted_proxies = vec!["10.0.0.1".parse().unwrap()];
        });
        let ask = |peer: &str, path: &str, headers: &HeaderMap| {
            edge.admit(at(peer), path, headers, Instant::now()).map_err(|away| away.refused)
        };
        let none = HeaderMap::new();
        assert_eq!(ask("192.0.2.9", "/notify/graph/lifecycle", &none), Ok(()));
        assert_eq!(ask("198.51.100.1", "/notify/graph", &none), Err(Refused::NOT_ALLOWED));
        assert_eq!(ask("198.51.100.1", "/notify/sentinel/soc", &none), Ok(()), "no list, no refusal");
        assert_eq!(ask("10.0.0.1", "/notify/graph", &forwarded("192.0.2.9")), Ok(()));
        assert_eq!(
            ask("10.0.0.1", "/notify/graph", &forwarded("192.0.2.9, 198.51.100.1")),
            Err(Refused::NOT_ALLOWED)
        );
    }
}
