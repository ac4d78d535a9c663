//! What is known of the sides, route by route: tokens, closed gates, the last successful poll, the last error. Read by
//! the readiness page and by the metrics; it decides nothing, so one tenant's trouble takes nobody off the ingress.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::model::Side;
use crate::ports::{ApiObserver, alerts_scope};

/// A route, as far as health is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedRoute {
    /// The name from the configuration.
    pub name: String,
    /// The Defender tenant, in lower case: the scope of its Defender side.
    pub tenant_id: String,
    /// The workspace's resource id, in lower case: the scope of its Sentinel side.
    pub workspace: String,
}

/// Calls to the services by how they ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `defender` or `sentinel`.
    pub side: &'static str,
    /// The adapter's name of the call.
    pub operation: &'static str,
    /// `2xx`, `3xx`, `4xx`, `429`, `5xx` or `none`.
    pub status: &'static str,
}

/// Calls to the services by what they were.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationLabels {
    /// `defender` or `sentinel`.
    pub side: &'static str,
    /// The adapter's name of the call.
    pub operation: &'static str,
}

/// One side of one route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// The route's name.
    pub route: String,
    /// `defender` or `sentinel`.
    pub side: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// What is known of one side of one tenant or workspace.
#[derive(Clone, Debug, Default)]
struct Scope {
    token: Option<Result<OffsetDateTime, String>>,
    closed: Option<(String, OffsetDateTime)>,
    polled: Option<OffsetDateTime>,
    poll_error: Option<String>,
}

/// The state of every route, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the configuration.
    pub routes: Vec<RouteReport>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// The route's name.
    pub route: String,
    /// Its Defender side.
    pub defender: SideReport,
    /// Its Sentinel side.
    pub sentinel: SideReport,
}

/// One side of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideReport {
    /// `none` (not asked for yet), `valid`, `expired` or `refused`.
    pub token: &'static str,
    /// `open` or `closed`: while it is closed, no calls are made but probes.
    pub gate: &'static str,
    /// Why the gate is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_because: Option<String>,
    /// Until when it is closed.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub closed_until: Option<OffsetDateTime>,
    /// How many seconds ago the last poll succeeded; null when none has yet.
    pub last_poll_seconds_ago: Option<i64>,
    /// The last error that no success has followed, as one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why alerts are neither listed nor changed by themselves, where that is so. Incidents go on without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alerts: Option<String>,
}

/// The watch over the sides. One per application.
pub struct Health {
    routes: Vec<WatchedRoute>,
    scopes: Mutex<BTreeMap<Side, BTreeMap<String, Scope>>>,
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<OperationLabels, Histogram>,
    open: Family<RouteLabels, Gauge>,
    token_expires: Family<RouteLabels, Seconds>,
    token_ok: Family<RouteLabels, Gauge>,
    last_poll: Family<RouteLabels, Seconds>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl Health {
    /// A watch over these routes.
    pub fn new(routes: Vec<WatchedRoute>) -> Self {
        let health = Self {
            routes,
            scopes: Mutex::default(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
            }),
            open: Family::default(),
            token_expires: Family::default(),
            token_ok: Family::default(),
            last_poll: Family::default(),
        };
        for route in &health.routes {
            for side in [Side::Defender, Side::Sentinel] {
                health.open.get_or_create(&labels(route, side)).set(1);
            }
        }
        health
    }

    /// Names the families in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("lockstep_api_calls", "Calls to the services, by answer", self.calls.clone());
        registry.register("lockstep_api_call_seconds", "How long calls took", self.call_seconds.clone());
        registry.register("lockstep_side_open", "1 while calls to the side are made", self.open.clone());
        registry.register(
            "lockstep_token_ok",
            "1 when the last token request succeeded",
            self.token_ok.clone(),
        );
        registry.register(
            "lockstep_token_expires_timestamp_seconds",
            "When the side's token ends, in seconds since 1970",
            self.token_expires.clone(),
        );
        registry.register(
            "lockstep_last_poll_timestamp_seconds",
            "When the side was last polled with success, in seconds since 1970",
            self.last_poll.clone(),
        );
    }

    /// A poll of a side ended: well, or with an error in one sentence.
    pub fn polled(&self, side: Side, scope: &str, outcome: Result<(), &str>, now: OffsetDateTime) {
        self.change(side, scope, |known| match outcome {
            Ok(()) => {
                known.polled = Some(now);
                known.poll_error = None;
            }
            Err(why) => known.poll_error = Some(why.to_owned()),
        });
        if outcome.is_ok() {
            self.each_route(side, scope, |labels| {
                self.last_poll.get_or_create(labels).set(seconds(now));
            });
        }
    }

    /// The state of every route.
    pub fn report(&self, now: OffsetDateTime) -> Report {
        let scopes = self.lock();
        let side_of = |side: Side, scope: &str| {
            let unknown = Scope::default();
            let known = scopes.get(&side).and_then(|of_side| of_side.get(scope)).unwrap_or(&unknown);
            side_report(known, now)
        };
        let routes = self
            .routes
            .iter()
            .map(|route| RouteReport {
                route: route.name.clone(),
                defender: SideReport {
                    alerts: trouble(&side_of(Side::Defender, &alerts_scope(&route.tenant_id))),
                    ..side_of(Side::Defender, &route.tenant_id)
                },
                sentinel: side_of(Side::Sentinel, &route.workspace),
            })
            .collect();
        Report { routes }
    }

    fn change(&self, side: Side, scope: &str, change: impl FnOnce(&mut Scope)) {
        let mut scopes = self.lock();
        let of_side = scopes.entry(side).or_default();
        match of_side.get_mut(scope) {
            Some(known) => change(known),
            None => change(of_side.entry(scope.to_owned()).or_default()),
        }
    }

    fn each_route(&self, side: Side, scope: &str, mut tell: impl FnMut(&RouteLabels)) {
        for route in &self.routes {
            let of_route = if side == Side::Defender { &route.tenant_id } else { &route.workspace };
            if of_route == scope {
                tell(&labels(route, side));
            }
        }
    }

    /// A panic while the lock was held leaves facts that are each whole; they are worth more than a second panic.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Side, BTreeMap<String, Scope>>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiObserver for Health {
    fn called(&self, side: Side, _: &str, operation: &'static str, status: Option<u16>, took: Duration) {
        let side = side.as_str();
        self.calls.get_or_create(&CallLabels { side, operation, status: status_class(status) }).inc();
        self.call_seconds.get_or_create(&OperationLabels { side, operation }).observe(took.as_secs_f64());
    }

    fn gate(&self, side: Side, scope: &str, closed: Option<(&str, OffsetDateTime)>) {
        self.change(side, scope, |known| {
            known.closed = closed.map(|(why, until)| (why.to_owned(), until));
        });
        self.each_route(side, scope, |labels| {
            self.open.get_or_create(labels).set(i64::from(closed.is_none()));
        });
    }

    fn token(&self, side: Side, scope: &str, outcome: Result<OffsetDateTime, &str>) {
        self.change(side, scope, |known| known.token = Some(outcome.map_err(str::to_owned)));
        self.each_route(side, scope, |labels| {
            self.token_ok.get_or_create(labels).set(i64::from(outcome.is_ok()));
            if let Ok(expires) = outcome {
                self.token_expires.get_or_create(labels).set(seconds(expires));
            }
        });
    }
}

fn side_report(known: &Scope, now: OffsetDateTime) -> SideReport {
    let (token, token_error) = match &known.token {
        None => ("none", None),
        Some(Ok(expires)) if *expires > now => ("valid", None),
        Some(Ok(_)) => ("expired", None),
        Some(Err(why)) => ("refused", Some(why.clone())),
    };
    let (closed_because, closed_until) = known.closed.clone().unzip();
    SideReport {
        token,
        gate: if closed_until.is_some() { "closed" } else { "open" },
        closed_because,
        closed_until,
        last_poll_seconds_ago: known.polled.map(|at| (now - at).whole_seconds().max(0)),
        error: token_error.or_else(|| known.poll_error.clone()),
        alerts: None,
    }
}

fn trouble(report: &SideReport) -> Option<String> {
    report.closed_because.clone().or_else(|| report.error.clone())
}

fn labels(route: &WatchedRoute, side: Side) -> RouteLabels {
    RouteLabels { route: route.name.clone(), side: side.as_str() }
}

/// 429 stands alone: in steady state it is a bug, and an alert should find it without arithmetic.
fn status_class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(429) => "429",
        Some(100..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(_) => "5xx",
    }
}

fn seconds(at: OffsetDateTime) -> f64 {
    at.unix_timestamp_nanos() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn trouble_of_one_tenant_shows_on_its_routes_alone() {
        let route = |name: &str, tenant: &str| WatchedRoute {
            name: name.into(),
            tenant_id: tenant.into(),
            workspace: "/w".into(),
        };
        let health = Health::new(vec![route("one", "t1"), route("two", "t2")]);
        let now = datetime!(2026-03-04 10:00 UTC);
        health.token(Side::Defender, "t1", Err("Entra refused the client secret"));
        health.token(Side::Defender, "t2", Ok(now + Duration::from_secs(60)));
        health.gate(Side::Defender, "t1", Some(("no token", now)));
        health.polled(Side::Sentinel, "/w", Ok(()), now);
        health.polled(Side::Sentinel, "/w", Err("ARM answered 500"), now);

        let report = health.report(now + Duration::from_secs(9));
        let [one, two] = &report.routes[..] else { panic!("two routes") };
        assert_eq!((one.defender.token, one.defender.gate), ("refused", "closed"));
        assert_eq!(one.defender.error.as_deref(), Some("Entra refused the client secret"));
        assert_eq!((two.defender.token, two.defender.gate, &two.defender.error), ("valid", "open", &None));
        for route in [one, two] {
            assert_eq!(route.sentinel.last_poll_seconds_ago, Some(9));
            assert_eq!(route.sentinel.error.as_deref(), Some("ARM answered 500"));
        }
        assert_eq!(health.report(now + Duration::from_secs(60)).routes[1].defender.token, "expired");

        let mut registry = Registry::default();
        health.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"lockstep_side_open{route="one",side="defender"} 0"#), "{text}");
        assert!(text.contains(r#"lockstep_side_open{route="two",side="defender"} 1"#), "{text}");
    }
}
