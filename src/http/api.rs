//! The API for people's tools: what was written for an incident, and why, or why nothing was; and whose owners have no
//! counterpart. Asks the store and this process, and neither side. Shut until a token is configured.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde_json::json;

use super::error::Refused;
use super::router::{Named, Served};
use crate::app::explain::{self, Live, Question};
use crate::app::unmapped;
use crate::domain::model::LinkKey;
use crate::domain::policy::Policy;
use crate::ports::StoreError;

/// How many entries of the journal an answer holds.
const ENTRIES: usize = 500;

const SHUT: Refused = Refused {
    status: StatusCode::NOT_FOUND,
    detail: "the API is shut: configure api_tokens in [server] to open it",
};
const NO_ROUTE: Refused = Refused { status: StatusCode::NOT_FOUND, detail: "there is no such route" };

/// `GET /api/v1/routes/{route}/incidents/{incident}/explain`
#[utoipa::path(
    get, path = "/api/v1/routes/{route}/incidents/{incident}/explain", tag = "api", operation_id = "explain",
    summary = "What was written for an incident, and why, or why nothing was",
    security(("apiToken" = [])),
    params(
        ("route" = String, Path, description = "The route's name.", example = "contoso-soc"),
        ("incident" = String, Path, description = "The Defender incident's id.", example = "29"),
    ),
    responses((status = 200, description = "As `lockstep explain --json` prints it.", body = Object,
        content_type = "application/json"))
)]
pub(super) async fn explain(
    State(served): State<Arc<Served>>,
    Named((route, incident)): Named<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let state = &served.state;
    if let Err(refused) = admit(&state.doors.api_tokens, &headers) {
        return refused.into_response();
    }
    let Some((tenant_id, workspace, policy)) = state.doors.routes.get(&route) else {
        return NO_ROUTE.into_response();
    };
    // No id has such characters, and not every store can be asked for them.
    if incident.chars().any(char::is_control) {
        return Refused { status: StatusCode::NOT_FOUND, detail: "there is no such incident" }
            .into_response();
    }
    let key = LinkKey { tenant_id: tenant_id.clone(), incident_id: incident, workspace: workspace.clone() };
    let same = |other: &&(String, String, Policy)| other.0 == *tenant_id && other.1 == *workspace;
    let pair = state.doors.routes.iter().filter(|(_, other)| same(other));
    let pair: Vec<&str> = pair.map(|(name, _)| name.as_str()).collect();
    let question = Question { route: &route, policy, key: &key, pair: &pair, most: ENTRIES };
    let live = Live { health: &state.health, routes: &state.routes, lately: &state.lately };
    match explain::explain(&*state.store, question, Some(live), state.inbox.clock().now()).await {
        Ok(explained) => Json(explained.to_json()).into_response(),
        Err(error) => unread(&error),
    }
}

/// `GET /api/v1/owners`
#[utoipa::path(
    get, path = "/api/v1/owners", tag = "api", operation_id = "owners",
    summary = "Owners without a counterpart on the other side, and the line that would map each",
    security(("apiToken" = [])),
    responses((status = 200, description = "As `lockstep owners --json` prints it.", body = Object,
        content_type = "application/json"))
)]
pub(super) async fn owners(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    unmapped_owners(&served, None, &headers).await
}

/// `GET /api/v1/routes/{route}/owners`
#[utoipa::path(
    get, path = "/api/v1/routes/{route}/owners", tag = "api", operation_id = "ownersOfRoute",
    summary = "The same of one route",
    security(("apiToken" = [])),
    params(("route" = String, Path, description = "The route's name.")),
    responses((status = 200, description = "As `lockstep owners ROUTE --json` prints it.", body = Object,
        content_type = "application/json"))
)]
pub(super) async fn owners_of_route(
    State(served): State<Arc<Served>>,
    Named(route): Named<String>,
    headers: HeaderMap,
) -> Response {
    unmapped_owners(&served, Some(&route), &headers).await
}

async fn unmapped_owners(served: &Served, route: Option<&str>, headers: &HeaderMap) -> Response {
    let state = &served.state;
    if let Err(refused) = admit(&state.doors.api_tokens, headers) {
        return refused.into_response();
    }
    let routes = &state.doors.routes;
    if route.is_some_and(|route| !routes.contains_key(route)) {
        return NO_ROUTE.into_response();
    }
    let policy = |route: &str| routes.get(route).map(|(_, _, policy)| policy);
    match unmapped::report(&*state.store, route, policy).await {
        Ok(lines) => Json(json!({"owners": lines})).into_response(),
        Err(error) => unread(&error),
    }
}

fn unread(error: &StoreError) -> Response {
    tracing::warn!(%error, "an answer of the API could not be read");
    let detail = "the store cannot be read now; ask again";
    Refused { status: StatusCode::SERVICE_UNAVAILABLE, detail }.into_response()
}

/// Whether the caller has one of the tokens. All are compared, in constant time.
fn admit(tokens: &[secrecy::SecretString], headers: &HeaderMap) -> Result<(), Refused> {
    if tokens.is_empty() {
        return Err(SHUT);
    }
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(given) = given else { return Err(Refused::unauthorized("send a bearer token")) };
    let mut known = false;
    for token in tokens {
        known |= verify_slices_are_equal(token.expose_secret().as_bytes(), given.as_bytes()).is_ok();
    }
    if known { Ok(()) } else { Err(Refused::unauthorized("the bearer token is not known here")) }
}
