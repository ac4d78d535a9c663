//! What all listeners do with a call before and after its handler: log it, spoil it when that was ordered, check its
//! token, charge its budget, and name it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use uuid::Uuid;

use super::halves;
use super::world::budget::Purse;
use super::world::defender::format_instant;
use super::world::faults::{Fault, Kind};
use super::world::{Answer, Caller, Refusal};
use super::{Call, Shared};

/// Which listener a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Login,
    Graph,
    Arm,
    Ingestion,
}

impl Service {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Service::Login => "login",
            Service::Graph => "graph",
            Service::Arm => "arm",
            Service::Ingestion => "ingestion",
        }
    }
}

/// More than any body that the service takes.
const MOST_BODY: usize = 16 << 20;

/// Set on a request whose GET shall see everything as it was before its last change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale(pub(super) bool);

/// Puts the frame around a service's router.
pub(super) fn framed(router: Router, service: Service, shared: Arc<Shared>) -> Router {
    router.layer(middleware::from_fn_with_state((service, shared), frame))
}

/// The ingestion listener: nothing is ingested there yet, and it says so as ARM's edge does. Azure Key Vault is served
/// beside it, under the address that the service has as a vault's.
pub(super) fn ingestion(shared: Arc<Shared>) -> Router {
    let nothing = async || {
        let refusal = Refusal::new(404, "NotFound", "The data collection endpoint serves nothing here.");
        (StatusCode::NOT_FOUND, Json(refusal.body()))
    };
    let router = Router::new()
        .route("/secrets/{name}", get(secret))
        .route("/secrets/{name}/{version}", get(secret))
        .fallback(nothing)
        .with_state(Arc::clone(&shared));
    framed(router, Service::Ingestion, shared)
}

/// Azure Key Vault, as far as it is asked for a secret.
async fn secret(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let part = |name: &str| path.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    let audiences = ["https://vault.azure.net", "https://vault.usgovcloudapi.net", "https://vault.azure.cn"];
    let answer = match shared.signer.verify(token, &audiences, shared.now()) {
        Ok(_) => {
            let base = &shared.hello.ingestion;
            shared.world().vault.get(base, part("name").unwrap_or_default(), part("version"))
        }
        Err(_) => Err(Refusal::new(401, "Unauthorized", "[TokenInvalid] Error validating token.")),
    };
    match answer {
        Ok((status, body)) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::OK), body_of(&body)).into_response()
        }
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
            (status, Json(refusal.body())).into_response()
        }
    }
}

async fn frame(
    State((service, shared)): State<(Service, Arc<Shared>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let method = request.method().clone();
    let mut body = Bytes::new();
    if shared.world().faults.read_bodies() {
        let (parts, whole) = request.into_parts();
        // A body that cannot be read is one that breaks off: its call fails for want of it.
        body = to_bytes(whole, MOST_BODY).await.unwrap_or_default();
        request = Request::from_parts(parts, Body::from(body.clone()));
    }
    let fault = shared.world().faults.strike(service.name(), method.as_str(), &target, &body);
    let caller = match service {
        Service::Graph | Service::Arm => Some(authenticate(&shared, service, request.headers())),
        Service::Login | Service::Ingestion => None,
    };
    let app = caller.as_ref().and_then(|caller| caller.as_ref().ok()).map(|caller| caller.app_id.clone());
    let id = Uuid::new_v4();
    shared.begin_call(Call {
        id,
        at: format_instant(shared.now()),
        service: service.name(),
        method: method.to_string(),
        path: target.clone(),
        app,
        status: None,
        fault: fault.as_ref().map(|fault| fault.id.clone()),
    });
    let ids = Ids::of(request.headers());
    let answer = async {
        if let Some(fault) = &fault {
            match fault.kind {
                Kind::DropBefore => return None,
                Kind::Delay => tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await,
                Kind::Status => return Some(ordered_status(service, fault, &ids)),
                Kind::Html => return Some(html(fault)),
                Kind::DropAfter | Kind::StaleRead => {}
            }
        }
        let stale = matches!(&fault, Some(fault) if fault.kind == Kind::StaleRead) && method == Method::GET;
        request.extensions_mut().insert(Stale(stale));
        request.extensions_mut().insert(ids.clone());
        let mut quota = None;
        if let Some(caller) = caller {
            let caller = match caller {
                Ok(caller) => caller,
                Err(refusal) => return Some(unauthorized(service, &refusal, &ids)),
            };
            match charge(&shared, service, &method, &target, &caller) {
                Ok(left) => quota = left,
                Err(wait) => return Some(throttled(&shared, service, wait, &ids)),
            }
            request.extensions_mut().insert(caller);
        }
        let mut response = next.run(request).await;
        if let Some((purse, left)) = quota {
            quota_headers(&mut response, purse, left);
        }
        let lost = matches!(&fault, Some(fault) if fault.kind == Kind::DropAfter);
        (!lost).then_some(response)
    }
    .await;
    shared.send_news();
    let Some(mut response) = answer else { return cut() };
    shared.end_call(id, response.status().as_u16());
    ids.put(service, &mut response);
    response
}

/// Ends the connection without an answer. A handler cannot take back a response, but a body that promises more than it
/// sends makes the server close: here even the head is lost, because the body fails before the first byte is written.
fn cut() -> Response {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    let body = Body::from_stream(Broken(Some(broken)));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000000"));
    response
}

/// A stream of one error.
struct Broken(Option<std::io::Error>);

impl futures_core::Stream for Broken {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.take().map(Err))
    }
}

// ---- tokens and budgets ------------------------------------------------------------------------------------------

fn authenticate(shared: &Shared, service: Service, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = bearer.and_then(|text| text.strip_prefix("Bearer ").or(text.strip_prefix("bearer ")))
    else {
        return Err(match service {
            Service::Arm => Refusal::new(
                401,
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
            ),
            _ => Refusal::new(401, "InvalidAuthenticationToken", "Access token is empty."),
        });
    };
    let audiences: &[&str] = match service {
        Service::Arm => &[
            "https://management.azure.com",
            "https://management.core.windows.net",
            "https://management.usgovcloudapi.net",
            "https://management.chinacloudapi.cn",
            &shared.hello.arm,
        ],
        _ => &[
            "https://graph.microsoft.com",
            "https://graph.microsoft.us",
            "https://dod-graph.microsoft.us",
            "00000003-0000-0000-c000-000000000000",
            &shared.hello.graph,
        ],
    };
    shared.signer.verify(token, audiences, shared.now()).map_err(|why| match (service, why) {
        (Service::Arm, "expired") => Refusal::new(
            401,
            "ExpiredAuthenticationToken",
            "The access token expiry UTC time is earlier than current UTC time.",
        ),
        (Service::Arm, why) => {
            Refusal::new(401, "InvalidAuthenticationToken", format!("The access token is invalid: {why}."))
        }
        (_, "expired") => {
            Refusal::new(401, "InvalidAuthenticationToken", "Access token has expired or is not yet valid.")
        }
        (_, "audience") => Refusal::new(401, "InvalidAuthenticationToken", "Invalid audience."),
        (_, _) => Refusal::new(401, "InvalidAuthenticationToken", "Access token validation failure."),
    })
}

/// Which purse a call is charged to, and what is left in it. Users and subscriptions have none worth emulating.
fn charge(
    shared: &Shared,
    service: Service,
    method: &Method,
    target: &str,
    caller: &Caller,
) -> Result<Option<(Purse, u32)>, f64> {
    let path = target.to_lowercase();
    let (purse, owner) = match service {
        Service::Graph if path.contains("/security/incidents") => {
            (Purse::GraphIncidents, caller.tenant_id.clone())
        }
        Service::Graph if path.contains("/security/alerts") => (Purse::GraphAlerts, caller.tenant_id.clone()),
        Service::Arm => {
            let subscription = path.split('/').nth(2).unwrap_or_default().to_owned();
            let purse = match *method {
                Method::GET | Method::HEAD => Purse::ArmReads,
                Method::DELETE => Purse::ArmDeletes,
                _ => Purse::ArmWrites,
            };
            (purse, subscription)
        }
        _ => return Ok(None),
    };
    let mut world = shared.world();
    if world.switches.is("budgets", "off") {
        return Ok(None);
    }
    let who = format!("{}|{owner}|{}", service.name(), caller.app_id);
    world.budgets.take(&who, purse, shared.now()).map(|left| Some((purse, left)))
}

fn quota_headers(response: &mut Response, purse: Purse, left: u32) {
    let name = match purse {
        Purse::ArmReads => "reads",
        Purse::ArmWrites => "writes",
        Purse::ArmDeletes => "deletes",
        Purse::GraphIncidents | Purse::GraphAlerts => return,
    };
    for name in [
        format!("x-ms-ratelimit-remaining-subscription-{name}"),
        format!("x-ms-ratelimit-remaining-subscription-global-{name}"),
    ] {
        if let Ok(name) = HeaderName::try_from(name) {
            response.headers_mut().insert(name, HeaderValue::from(left));
        }
    }
}

// ---- answers -----------------------------------------------------------------------------------------------------

/// The ids of one call.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    request: String,
    client: String,
}

impl Ids {
    fn of(headers: &HeaderMap) -> Self {
        let request = Uuid::new_v4().to_string();
        let given = ["client-request-id", "x-ms-client-request-id"];
        let client = given
            .into_iter()
            .find_map(|name| headers.get(name))
            .and_then(|value| value.to_str().ok())
            .map_or_else(|| request.clone(), str::to_owned);
        Self { request, client }
    }

    fn put(&self, service: Service, response: &mut Response) {
        let names: &[&'static str] = match service {
            Service::Arm => &["x-ms-request-id", "x-ms-correlation-request-id"],
            _ => &["request-id"],
        };
        for name in names {
            if let Ok(value) = HeaderValue::from_str(&self.request) {
                response.headers_mut().insert(*name, value);
            }
        }
        if service == Service::Arm {
            let routing = format!("WESTEUROPE:{}", self.request);
            if let Ok(value) = HeaderValue::from_str(&routing) {
                response.headers_mut().insert("x-ms-routing-request-id", value);
            }
        } else if let Ok(value) = HeaderValue::from_str(&self.client) {
            response.headers_mut().insert("client-request-id", value);
        }
    }
}

/// A refusal as this service words it.
pub(super) fn refused(service: Service, refusal: &Refusal, ids: &Ids) -> Response {
    let mut body = refusal.body();
    if service == Service::Graph {
        let now = format_instant(time::OffsetDateTime::now_utc());
        body["error"]["innerError"] = json!({
            "date": now.split('.').next().unwrap_or_default().trim_end_matches('Z'),
            "request-id": ids.request,
            "client-request-id": ids.client,
        });
    }
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(body)).into_response()
}

/// An operation's answer as HTTP.
pub(super) fn answered(service: Service, answer: Answer, ids: &Ids) -> Response {
    match answer {
        Ok((status, body)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            if body == Value::Null {
                status.into_response()
            } else {
                (status, body_of(&body)).into_response()
            }
        }
        Err(refusal) => refused(service, &refusal, ids),
    }
}

/// A value as a body.
pub(super) fn body_of(body: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], halves::show(body.to_string()))
}

/// A body that must be JSON.
pub(super) fn json_body(body: &Bytes) -> Result<Value, Refusal> {
    serde_json::from_slice(&halves::hide(body)).map_err(|error| {
        Refusal::new(400, "BadRequest", format!("Unable to read JSON request payload: {error}"))
    })
}

/// The decoded query options: names in lower case.
pub(super) fn options(query: Option<&str>) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .map(|(name, value)| (name.to_lowercase(), value.into_owned()))
        .collect()
}

fn unauthorized(service: Service, refusal: &Refusal, ids: &Ids) -> Response {
    let mut response = refused(service, refusal, ids);
    let challenge = match service {
        Service::Arm => "Bearer authorization_uri=\"https://login.windows.net/\", error=\"invalid_token\"",
        _ => {
            "Bearer realm=\"\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\""
        }
    };
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

fn throttled(shared: &Shared, service: Service, wait: f64, ids: &Ids) -> Response {
    let (refusal, seconds, fraction) = {
        let world = shared.world();
        match service {
            Service::Arm => (
                Refusal::new(
                    429,
                    "SubscriptionRequestsThrottled",
                    "Number of requests exceeded the limit. Please retry.",
                ),
                world.switches.is("armRetryAfter", "seconds"),
                false,
            ),
            _ => (
                Refusal::new(429, "TooManyRequests", "Please retry again later."),
                !world.switches.is("graphRetryAfter", "absent"),
                world.switches.is("graphRetryAfter", "fraction"),
            ),
        }
    };
    let mut response = refused(service, &refusal, ids);
    if seconds {
        let text = if fraction { format!("{wait:.3}") } else { format!("{}", wait.ceil() as u64) };
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
    }
    response
}

fn ordered_status(service: Service, fault: &Fault, ids: &Ids) -> Response {
    if service == Service::Login {
        let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = super::entra::ordered(status);
        if let Some(Ok(value)) = fault.retry_after.as_deref().map(HeaderValue::from_str) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        return response;
    }
    let (code, message) = match (service, fault.status) {
        (Service::Arm, 401) => ("ExpiredAuthenticationToken", "The access token has expired."),
        (Service::Arm, 403) => {
            ("AuthorizationFailed", "The client does not have authorization to perform this action.")
        }
        (Service::Arm, 404) => ("ResourceNotFound", "The resource was not found."),
        (_, 401) => ("InvalidAuthenticationToken", "Access token has expired or is not yet valid."),
        (_, 403) => (
            "Forbidden",
            "Missing application roles. API required roles: SecurityIncident.ReadWrite.All, application roles: .",
        ),
        (_, 404) => ("NotFound", "The item was not found."),
        (_, 409) => ("Conflict", "Newer version of resource exists. Data was not saved"),
        (_, 429) => ("TooManyRequests", "Please retry again later."),
        (_, 503) => ("ServiceUnavailable", "The service is temporarily unavailable."),
        (_, 400) => ("BadRequest", "The request is not valid."),
        _ => ("InternalServerError", "An error was ordered for this call."),
    };
    let mut response = refused(service, &Refusal::new(fault.status, code, message), ids);
    if let Some(Ok(value)) = fault.retry_after.as_deref().map(HeaderValue::from_str) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

fn html(fault: &Fault) -> Response {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let page =
        "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\r\n";
    (status, [(header::CONTENT_TYPE, "text/html")], page).into_response()
}
