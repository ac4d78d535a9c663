//! The addresses, and what holds for all of them: an id, a limit of time, a limit of number, and no panic that takes
//! the process along. One small layer instead of many: a door's whole cost is to stay near that of a bare handler.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Refused;
use super::turn::{Budget, Room, TURN, Turn};
use super::{AppState, api, graph, health, openapi, sentinel};
use crate::config::ServerLimits;

/// How long a request may take as a whole, the reading of its body included.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long an answer may take once the sender has done its part. Graph takes one for slow after three seconds
/// (`graph.md` §13.5). A little more than the store has, so that its own word comes first.
const ANSWER_TIME: Duration = Duration::from_millis(2_250);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// The id of a request, ours or the sender's.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        Self(headers.get(REQUEST_ID).filter(|id| is_plain(id.as_bytes())).cloned().unwrap_or_else(new_id))
    }

    /// For the log. Only visible ASCII is ever taken.
    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// The names in an address. Where one cannot be decoded, all are empty: nothing is called so, and the answer is that of
/// any other unknown name.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Default + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        Ok(Self(path.map(|Path(names)| names).unwrap_or_default()))
    }
}

/// What the handlers share: one pointer to copy for a request.
pub(super) struct Served {
    pub(super) state: AppState,
    /// Room for notifications that are being handled.
    room: Room,
    /// Room for their bodies.
    budget: Arc<Budget>,
}

/// Every address of the service.
pub fn router(state: AppState) -> Router {
    router_within(state, &ServerLimits::default())
}

/// The doors. Their handlers put the frame around themselves: a layer does the same for the other addresses, but costs
/// every request of a door more than all that the door does.
///
/// A new door: `#[utoipa::path]` at its handler, which calls [`at_door`], and a line here.
fn doors() -> OpenApiRouter<Arc<Served>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(graph::notify))
        .routes(routes!(graph::lifecycle))
        .routes(routes!(sentinel::notify))
}

/// All other addresses.
fn others() -> OpenApiRouter<Arc<Served>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(api::explain))
        .routes(routes!(api::owners))
        .routes(routes!(api::owners_of_route))
        .routes(routes!(openapi::as_json))
        .routes(routes!(openapi::as_page))
}

/// The addresses as their handlers describe them.
pub(super) fn described() -> utoipa::openapi::OpenApi {
    doors().merge(others()).into_openapi()
}

/// The same within limits.
pub(super) fn router_within(state: AppState, limits: &ServerLimits) -> Router {
    let (doors, _) = doors().split_for_parts();
    let doors = doors.method_not_allowed_fallback(async |headers: HeaderMap| {
        framed(&headers, async |_| Refused::METHOD.into_response()).await
    });
    let (others, _) = others().split_for_parts();
    let others =
        others.fallback(unknown).method_not_allowed_fallback(async || Refused::METHOD).layer(from_fn(marked));
    // Doors limit their bodies themselves, to answer in their own words; nobody else reads one.
    let served = Served {
        state,
        room: Room::new(limits.at_once as usize),
        budget: Budget::new((limits.body_mib as usize) << 20),
    };
    doors.merge(others).with_state(Arc::new(served))
}

/// A notification's turn: the frame, and a place among those that are handled at once.
pub(super) async fn at_door(
    served: &Served,
    headers: &HeaderMap,
    work: impl AsyncFnOnce(&RequestId) -> Response,
) -> Response {
    framed(headers, async |id| {
        let _place = match served.room.enter().await {
            Ok(place) => place,
            Err(refused) => {
                served.state.metrics.count("any", "busy");
                return refused.into_response();
            }
        };
        Turn::charge(&served.budget);
        work(id).await
    })
    .await
}

async fn marked(request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    let work = async |_: &RequestId| next.run(request).await;
    // Nobody waits for a body here: what is slow is ours.
    framed_until(&headers, Refused::UNAVAILABLE, work).await
}

/// A limit of time, an id in the answer, `nosniff`, and a panic that ends this request and nothing else.
pub(super) async fn framed(headers: &HeaderMap, work: impl AsyncFnOnce(&RequestId) -> Response) -> Response {
    framed_until(headers, Refused::TIMEOUT, work).await
}

async fn framed_until(
    headers: &HeaderMap,
    late: Refused,
    work: impl AsyncFnOnce(&RequestId) -> Response,
) -> Response {
    let id = RequestId::of(headers);
    let mut response = TURN.scope(Turn::default(), in_time(late, work(&id))).await;
    if response.status().is_server_error() {
        tracing::debug!(
            status = response.status().as_u16(),
            request_id = id.as_str(),
            "answered with an error"
        );
    }
    response.headers_mut().insert(REQUEST_ID, id.0);
    response.headers_mut().insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    response
}

/// The work, or a refusal when it takes too long (`late`, as long as the sender has not done its part) or panics.
async fn in_time(late: Refused, work: impl Future<Output = Response>) -> Response {
    let mut work = pin!(work);
    let mut timer = pin!(sleep_until(Instant::now() + REQUEST_TIME));
    let mut waits_for_us = false;
    poll_fn(|context| {
        // What a panic leaves half done is the request's own and dropped with it.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => {}
            Ok(answered) => return answered,
            Err(_) => return Poll::Ready(panicked()),
        }
        if !waits_for_us && Turn::waits_for_us() {
            waits_for_us = true;
            let soon = Instant::now() + ANSWER_TIME;
            if soon < timer.deadline() {
                timer.as_mut().reset(soon);
            }
        }
        let refused = if waits_for_us { Refused::UNAVAILABLE } else { late };
        timer.as_mut().poll(context).map(|()| refused.into_response())
    })
    .await
}

/// A sender's id is written into logs and answers, so only what cannot mean anything there is taken.
fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&id.len()) && id.iter().all(plain)
}

fn new_id() -> HeaderValue {
    HeaderValue::try_from(format!("{:032x}", fastrand::u128(..)))
        .expect("hexadecimal digits are a header value")
}

async fn unknown(State(served): State<Arc<Served>>) -> Refused {
    served.state.metrics.count("none", "unknown-address");
    Refused::NOT_FOUND
}

/// The panic's own text may quote what was being handled; the hook has printed where it was.
fn panicked() -> Response {
    tracing::error!("a request ended in a panic");
    Refused::INTERNAL.into_response()
}
