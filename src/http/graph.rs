//! Graph's door: the handshake, change notifications, and the lifecycle of subscriptions. Items are judged one by one
//! against the `clientState` that the tenant's subscriptions were given; a POST with wrong items is answered like any
//! other (`graph.md` §13.4), because an error would make Graph repeat it and tell a stranger what he guessed. Items that
//! bring their resource along, encrypted, need a token of Graph's for their tenant besides (§13.7), and must open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;
use url::form_urlencoded;
use utoipa::ToSchema;
use utoipa::openapi::schema::{AnyOf, Array, Object, SchemaType};
use utoipa::openapi::{Ref, Schema};

use super::AppState;
use super::error::Refused;
use super::router::{Served, at_door};
use super::sentinel::{body_within_limit, refused_body, unavailable};
use crate::app::tokens::TokenRefusal;
use crate::domain::model::Side;
use crate::domain::notice::{self, About, GraphItem, GraphNotice};
use crate::domain::rich::{Sealed, Unopened};
use crate::domain::token;
use crate::ports::{Hint, StoreError, Subject};

/// Longer validation tokens than this are nobody's.
const LONGEST_TOKEN: usize = 4096;
/// How long the tokens of a POST may take, the fetch of a key included.
const TOKEN_PATIENCE: Duration = Duration::from_millis(2_200);
/// Subscription ids are GUIDs; a little more does no harm.
const LONGEST_SUBSCRIPTION: usize = 128;

/// A Graph change notification collection.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `domain::notice` reads")]
struct ChangeNotifications {
    #[schema(schema_with = items)]
    value: Vec<ChangeNotification>,
}

/// A change notification or a lifecycle event.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what `domain::notice` reads")]
pub(super) struct ChangeNotification {
    /// The Entra tenant.
    tenant_id: Option<String>,
    /// The subscription.
    subscription_id: Option<String>,
    /// The secret that the subscription was given.
    client_state: Option<String>,
    /// What changed, such as `security/incidents/29`.
    resource: Option<String>,
    /// `missed`, `reauthorizationRequired`, `subscriptionRemoved` or a newer word.
    lifecycle_event: Option<String>,
    /// `id`, `@odata.id` and `@odata.type` of what changed.
    #[schema(value_type = Option<Object>)]
    resource_data: Option<()>,
}

/// Anything may stand in the list: an odd item is no reason to refuse its neighbours.
fn items() -> Schema {
    let any = Object::with_type(SchemaType::AnyValue);
    let item = AnyOf::builder().item(Ref::from_schema_name("ChangeNotification")).item(any);
    let description = "Each is judged alone. One that cannot be read or believed is dropped and counted, and the POST \
                       is answered as if all were well.";
    Array::builder().items(item).description(Some(description)).build().into()
}

/// `POST /notify/graph`
#[utoipa::path(
    post, path = "/notify/graph", tag = "doors", operation_id = "graph",
    summary = "Change notifications of Microsoft Graph",
    description = "With `validationToken` it is the handshake of a new subscription: the token comes back as plain text. \
                   Otherwise every item is held against the `clientState` of its tenant's subscriptions.",
    params(("validationToken" = Option<String>, Query, min_length = 1, max_length = 4096,
        description = "The handshake. The body is then empty, or is judged for its form alone.")),
    request_body(content = ChangeNotifications, content_type = "application/json"),
    responses(
        (status = 200, description = "The handshake's token.", body = String, content_type = "text/plain"),
        (status = 202, description = "What could be believed is on disk."),
    )
)]
pub(super) async fn notify(
    State(served): State<Arc<Served>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    at_door(&served, &headers, async |_| knock("graph", &served.state, uri, body).await).await
}

/// `POST /notify/graph/lifecycle`. An event is about a subscription and no incident, so it cannot be a hint: it is
/// stored as the named value `lifecycle:TENANT:SUBSCRIPTION:EVENT`, with the time it came, for whoever keeps the
/// subscriptions. Both addresses take both kinds, since one URL may be given for both.
#[utoipa::path(
    post, path = "/notify/graph/lifecycle", tag = "doors", operation_id = "graph_lifecycle",
    summary = "Lifecycle events of Microsoft Graph",
    description = "The lifecycleNotificationUrl of subscriptions. Takes what `/notify/graph` takes.",
    params(("validationToken" = Option<String>, Query, min_length = 1, max_length = 4096,
        description = "The handshake. The body is then empty, or is judged for its form alone.")),
    request_body(content = ChangeNotifications, content_type = "application/json"),
    responses(
        (status = 200, description = "The handshake's token.", body = String, content_type = "text/plain"),
        (status = 202, description = "What could be believed is on disk."),
    )
)]
pub(super) async fn lifecycle(
    State(served): State<Arc<Served>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    at_door(&served, &headers, async |_| knock("graph-lifecycle", &served.state, uri, body).await).await
}

async fn knock(door: &'static str, state: &AppState, uri: Uri, body: Body) -> Response {
    if let Some(answer) = uri.query().and_then(handshake) {
        let answer = match answer {
            Ok(token) => empty_or_readable(door, state, body).await.map(|()| token),
            refused => refused,
        };
        state.metrics.count(door, if answer.is_ok() { "handshake" } else { "unreadable" });
        return answer.map_or_else(IntoResponse::into_response, |token| {
            ([(CONTENT_TYPE, "text/plain; charset=utf-8")], token).into_response()
        });
    }
    match take_in(door, state, body).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// A handshake's body is empty. One that is not is a mistake, and is told so unless it is a notification's: an answer of
/// 200 must not let the sender think that it was taken in.
async fn empty_or_readable(door: &'static str, state: &AppState, body: Body) -> Result<(), Refused> {
    let body = body_within_limit(body).await.map_err(|refused| refused_body(door, state, refused))?;
    if body.is_empty() || notice::graph(&body).is_ok() {
        return Ok(());
    }
    Err(Refused::bad("a handshake has no body"))
}

/// The token to be echoed, decoded, if the request is a handshake.
fn handshake(query: &str) -> Option<Result<String, Refused>> {
    let (_, token) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "validationToken")?;
    Some(match token.chars().count() {
        1..=LONGEST_TOKEN => Ok(token.into_owned()),
        _ => Err(Refused::bad("the validation token is empty or too long")),
    })
}

async fn take_in(door: &'static str, state: &AppState, body: Body) -> Result<(), Refused> {
    let body = body_within_limit(body).await.map_err(|refused| refused_body(door, state, refused))?;
    let notice = notice::graph(&body).map_err(|unreadable| {
        state.metrics.count(door, "unreadable");
        tracing::debug!(door, "notification refused: {unreadable}");
        Refused::bad("the body is not a collection of notifications")
    })?;
    let GraphNotice { items, validation_tokens } = notice;
    let mut known = Vec::with_capacity(items.len());
    for item in items {
        match believed(state, &item).await.map_err(|error| unavailable(door, state, &error))? {
            Ok(()) => known.push(item),
            Err(reason) => state.metrics.count(door, reason),
        }
    }
    let mut touched = BTreeSet::new();
    let mut events = BTreeMap::new();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for item in proved(door, state, known, &validation_tokens).await? {
        let GraphItem { tenant_id, subscription_id, .. } = item.item;
        let mut outcome = "accepted";
        for about in item.abouts {
            match about {
                About::Incident(native_id) => {
                    let scope = tenant_id.clone();
                    touched.insert(Subject { side: Side::Defender, scope, native_id });
                }
                About::Alert(alert) => {
                    touched.insert(Subject::of_alert(&tenant_id, &alert));
                }
                About::Lifecycle(event) if is_plain(&subscription_id) && is_plain(&event) => {
                    let name = format!("lifecycle:{tenant_id}:{subscription_id}:{event}");
                    events.insert(name, event);
                }
                About::Other => outcome = "other-resource",
                About::Lifecycle(_) | About::Nothing => outcome = "unreadable",
            }
        }
        *counts.entry(outcome).or_default() += 1;
    }
    let hint = |subject| Hint { subject, version: None, source: "graph-notification".to_owned() };
    let hints: Vec<_> = touched.into_iter().map(hint).collect();
    state.inbox.remember(hints, None).await.map_err(|error| unavailable(door, state, &error))?;
    for (name, event) in events {
        let at = state.inbox.clock().now().format(&Rfc3339).unwrap_or_default();
        let value = json!({ "event": event, "at": at }).to_string();
        state.inbox.note(&name, &value).await.map_err(|error| unavailable(door, state, &error))?;
    }
    for (outcome, count) in counts {
        (0..count).for_each(|_| state.metrics.count(door, outcome));
    }
    Ok(())
}

/// Whether the item repeats what its subscription was given: one of the tenant's configured states, or the state of the
/// very subscription, if it is kept by us. Every state is compared, in a time that does not tell how much was right.
async fn believed(state: &AppState, item: &GraphItem) -> Result<Result<(), &'static str>, StoreError> {
    let Some(states) = state.doors.client_states.get(&item.tenant_id) else {
        return Ok(Err("unknown-tenant"));
    };
    let given = item.client_state.as_deref().unwrap_or_default();
    let mut right = false;
    for known in states {
        right |= verify_slices_are_equal(known.expose_secret().as_bytes(), given.as_bytes()).is_ok();
    }
    if !right && state.doors.subscribed.contains(&item.tenant_id) {
        right = state.book.knows(&item.tenant_id, &item.subscription_id, given).await?;
    }
    Ok(if right { Ok(()) } else { Err("client-state") })
}

/// An item that may be acted on, and what it is about.
struct Proved {
    item: GraphItem,
    abouts: Vec<About>,
}

/// Lets through what is not encrypted, and what is if a token covers its tenant and it opens. The rest is counted; the
/// answer does not tell of it. Only when nobody can say whether a token is good, Graph is to keep the whole POST.
async fn proved(
    door: &'static str,
    state: &AppState,
    items: Vec<GraphItem>,
    tokens: &[String],
) -> Result<Vec<Proved>, Refused> {
    let mut covered: BTreeMap<String, Result<(), &'static str>> = BTreeMap::new();
    for item in items.iter().filter(|item| item.sealed.is_some()) {
        if covered.contains_key(&item.tenant_id) {
            continue;
        }
        let cover = timeout(TOKEN_PATIENCE, cover(state, &item.tenant_id, tokens)).await;
        let cover = cover.unwrap_or(Err(TokenRefusal::KeysUnavailable.label()));
        if cover == Err(TokenRefusal::KeysUnavailable.label()) {
            state.metrics.count(door, TokenRefusal::KeysUnavailable.label());
            tracing::warn!(
                door,
                "a notification was left with its sender: the keys that prove it cannot be had"
            );
            return Err(Refused::UNAVAILABLE);
        }
        covered.insert(item.tenant_id.clone(), cover);
    }
    let mut let_in = Vec::with_capacity(items.len());
    let mut sealed = Vec::new();
    for mut item in items {
        match item.sealed.take() {
            None => let_in.push(Proved { abouts: vec![item.about.clone()], item }),
            Some(content) => match covered.get(&item.tenant_id) {
                Some(Ok(())) => sealed.push((item, content)),
                Some(Err(reason)) => state.metrics.count(door, reason),
                None => state.metrics.count(door, "no-token"),
            },
        }
    }
    if sealed.is_empty() {
        return Ok(let_in);
    }
    // A private key's work takes a millisecond for each: too long for the thread that serves everybody.
    let keyring = state.keyring.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let open = |(item, content): (GraphItem, Box<Sealed>)| {
            let keys = keyring.of(&item.tenant_id);
            match keys.open(&content) {
                Ok(resource) => Ok(Proved { abouts: notice::opened(&item.about, &resource), item }),
                Err(Unopened) if keys.get(&content.certificate_id).is_none() => Err("unknown-certificate"),
                Err(Unopened) => Err("unopened"),
            }
        };
        sealed.into_iter().map(open).collect::<Vec<_>>()
    });
    for one in opened.await.map_err(|_| Refused::INTERNAL)? {
        match one {
            Ok(one) => let_in.push(one),
            Err(reason) => {
                state.metrics.count(door, reason);
                tracing::debug!(door, reason, "an encrypted notification was dropped");
            }
        }
    }
    Ok(let_in)
}

/// Whether one of the tokens is Graph's for this tenant and us. The error is the reason to count.
async fn cover(state: &AppState, tenant_id: &str, tokens: &[String]) -> Result<(), &'static str> {
    let Some(rules) = state.doors.validation.get(tenant_id) else { return Err("no-token") };
    let mut refused = Err("no-token");
    for token in tokens {
        match state.tokens.verify(token, rules).await {
            Ok(_) => return Ok(()),
            Err(TokenRefusal::KeysUnavailable) => refused = Err(TokenRefusal::KeysUnavailable.label()),
            // For another of our tenants: nothing is wrong with it.
            Err(TokenRefusal::Refused(token::Refused::Tenant)) => {}
            Err(other) if refused == Err("no-token") => refused = Err(other.label()),
            Err(_) => {}
        }
    }
    refused
}

fn is_plain(text: &str) -> bool {
    (1..=LONGEST_SUBSCRIPTION).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
