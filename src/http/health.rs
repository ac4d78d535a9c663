//! For probes, scrapers and people: alive, ready, and how the routes are. Readiness fails on the store alone: one
//! tenant's trouble is in the body and takes nobody else off the ingress.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::error::Refused;
use super::router::Served;
use crate::telemetry::VERSION;

/// How long a probe waits for the store.
const PROBE: Duration = Duration::from_secs(1);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /healthz`: the process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "probes", operation_id = "alive",
    summary = "Whether the process answers",
    responses((status = 200, description = "It does.", body = Object, content_type = "application/json"))
)]
pub(super) async fn alive() -> Response {
    Json(json!({ "status": "ok", "version": VERSION })).into_response()
}

/// `GET /readyz`: hints can be taken in.
#[utoipa::path(
    get, path = "/readyz", tag = "probes", operation_id = "ready",
    summary = "Whether hints can be taken in, and how every route is",
    description = "Fails on the store alone: the trouble of one tenant is told in the body.",
    responses(
        (status = 200, description = "They can.", body = Object, content_type = "application/json"),
        (status = 503, description = "They cannot; the body says why.", body = Object, content_type = "application/json"),
    )
)]
pub(super) async fn ready(State(served): State<Arc<Served>>) -> Response {
    let state = &served.state;
    let store = match timeout(PROBE, state.store.ping()).await {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {PROBE:?}"),
    };
    let phase = state.phase.word();
    let ready = phase == "running" && store == "ok";
    let report = state.health.report(state.inbox.clock().now());
    let body = json!({
        "status": if ready { "ready" } else { "unready" },
        "phase": phase,
        "store": store,
        "version": VERSION,
        "routes": report.routes,
        "subscriptions": state.board.report(),
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

/// `GET /metrics`: OpenMetrics text; the queue is asked at the time of the scrape.
#[utoipa::path(
    get, path = "/metrics", tag = "probes", operation_id = "metrics",
    summary = "Metrics",
    responses((status = 200, description = "OpenMetrics text.", body = String,
        content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let state = &served.state;
    let mut queue = Registry::default();
    let gauge = |queue: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        queue.register(name, help, gauge);
    };
    let stats = timeout(PROBE, state.store.queue_stats()).await.ok().and_then(Result::ok);
    gauge(
        &mut queue,
        "lockstep_store_up",
        "1 when the store answered this scrape",
        i64::from(stats.is_some()),
    );
    if let Some(stats) = stats {
        let now = state.inbox.clock().now();
        let age =
            |oldest: Option<OffsetDateTime>| oldest.map_or(0, |oldest| (now - oldest).whole_seconds().max(0));
        gauge(&mut queue, "lockstep_queue_waiting", "Incidents that wait for service", stats.waiting);
        gauge(&mut queue, "lockstep_queue_parked", "Incidents that were put aside", stats.parked);
        gauge(
            &mut queue,
            "lockstep_queue_oldest_age_seconds",
            "Age of the oldest hint not yet served that somebody waits for",
            age(stats.oldest),
        );
        gauge(
            &mut queue,
            "lockstep_queue_background_waiting",
            "Of the incidents that wait, those of a backfill or a sweep",
            stats.background,
        );
        gauge(
            &mut queue,
            "lockstep_queue_background_oldest_age_seconds",
            "Age of the oldest hint of a backfill or a sweep not yet served",
            age(stats.oldest_background),
        );
    }
    let mut text = String::with_capacity(16 << 10);
    let encoded = encode_registry(&mut text, &state.registry)
        .and_then(|()| encode_registry(&mut text, &queue))
        .and_then(|()| encode_eof(&mut text));
    match encoded {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => Refused::INTERNAL.into_response(),
    }
}
