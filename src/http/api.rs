//! The API for people's tools: what was written for an incident, and why, or why nothing was. Reads the store alone.
//! Shut until a token is configured.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;

use super::error::Refused;
use super::router::Served;
use crate::app::explain;
use crate::domain::model::LinkKey;

/// How many entries of the journal an answer holds.
const ENTRIES: usize = 500;

const SHUT: Refused = Refused {
    status: StatusCode::NOT_FOUND,
    detail: "the API is shut: configure api_tokens in [server] to open it",
};

/// `GET /api/v1/routes/{route}/incidents/{incident}/explain`
pub(super) async fn explain(
    State(served): State<Arc<Served>>,
    Path((route, incident)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let state = &served.state;
    if let Err(refused) = admit(&state.doors.api_tokens, &headers) {
        return refused.into_response();
    }
    let Some((tenant_id, workspace, policy)) = state.doors.routes.get(&route) else {
        return Refused { status: StatusCode::NOT_FOUND, detail: "there is no such route" }.into_response();
    };
    let key = LinkKey { tenant_id: tenant_id.clone(), incident_id: incident, workspace: workspace.clone() };
    let now = state.inbox.clock().now();
    match explain::explain(&*state.store, &route, policy, key, ENTRIES, now).await {
        Ok(explained) => Json(explained.to_json()).into_response(),
        Err(error) => {
            tracing::warn!(%error, "an explanation could not be read");
            let detail = "the store cannot be read now; ask again";
            Refused { status: StatusCode::SERVICE_UNAVAILABLE, detail }.into_response()
        }
    }
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
