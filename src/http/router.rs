//! The addresses, and what holds for all of them: an id, a limit of time, a limit of number, and no panic that takes
//! the process along. One small layer instead of many: a door's whole cost is to stay near that of a bare handler.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::Refused;
use super::{AppState, api, graph, health, sentinel};

/// How long a request may take as a whole, the reading of its body included.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How many notifications are handled at once; the others wait within their time. Probes never wait.
const MOST_AT_ONCE: usize = 512;
/// How long requests that are being handled may take after shutdown has begun.
const FAREWELL: Duration = Duration::from_secs(15);

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

/// What the handlers share: one pointer to copy for a request.
pub(super) struct Served {
    pub(super) state: AppState,
    /// Room for notifications that are being handled.
    room: Semaphore,
}

/// Every address of the service.
///
/// The doors' handlers put the frame around themselves. A layer does the same for the other addresses, but costs every
/// request of a door more than all that the door does.
pub fn router(state: AppState) -> Router {
    let doors = Router::new()
        .route("/notify/graph", post(graph::notify))
        .route("/notify/graph/lifecycle", post(graph::lifecycle))
        .route("/notify/sentinel/{workspace}", post(sentinel::notify))
        .method_not_allowed_fallback(async |headers: HeaderMap| {
            framed(&headers, async |_| Refused::METHOD.into_response()).await
        });
    let others = Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/api/v1/routes/{route}/incidents/{incident}/explain", get(api::explain))
        .route("/api/v1/owners", get(api::owners))
        .route("/api/v1/routes/{route}/owners", get(api::owners_of_route))
        .fallback(unknown)
        .method_not_allowed_fallback(async || Refused::METHOD)
        .layer(from_fn(marked));
    // Doors limit their bodies themselves, to answer in their own words; nobody else reads one.
    let served = Served { state, room: Semaphore::new(MOST_AT_ONCE) };
    doors.merge(others).with_state(Arc::new(served))
}

/// A notification's turn: the frame, and a place among those that are handled at once.
pub(super) async fn at_door(
    served: &Served,
    headers: &HeaderMap,
    work: impl AsyncFnOnce(&RequestId) -> Response,
) -> Response {
    framed(headers, async |id| {
        // Never closed, so acquiring fails only in a world where waiting on would be no better.
        let _place = served.room.acquire().await;
        work(id).await
    })
    .await
}

/// Serves until `shutdown`, then lets requests end, but not for ever.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let listener = listener.tap_io(|connection| {
        // Answers are small: waiting to fill a packet would only delay them. Not vital, so a refusal is no matter.
        let _ = connection.set_nodelay(true);
    });
    let service = router.into_make_service();
    let serving = axum::serve(listener, service).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        ended = serving.into_future() => ended,
        () = async { shutdown.cancelled().await; tokio::time::sleep(FAREWELL).await } => {
            tracing::warn!("requests were cut off: they took longer than {FAREWELL:?} after shutdown had begun");
            Ok(())
        }
    }
}

async fn marked(request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    framed(&headers, async |_| next.run(request).await).await
}

/// A limit of time, an id in the answer, `nosniff`, and a panic that ends this request and nothing else.
async fn framed(headers: &HeaderMap, work: impl AsyncFnOnce(&RequestId) -> Response) -> Response {
    let id = RequestId::of(headers);
    let mut response = {
        let mut work = pin!(work(&id));
        // What a panic leaves half done is the request's own and dropped with it.
        let caught =
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
                Ok(polled) => polled,
                Err(_) => Poll::Ready(panicked()),
            });
        timeout(REQUEST_TIME, caught).await.unwrap_or_else(|_| Refused::TIMEOUT.into_response())
    };
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
