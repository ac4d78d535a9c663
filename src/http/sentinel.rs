//! The playbooks' door: `POST /notify/sentinel/{workspace}`, signed by the Standard Webhooks scheme. The raw bytes are
//! judged before anything parses them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use time::Duration;

use super::error::Refused;
use super::router::{Named, RequestId, Served, at_door};
use super::turn::Turn;
use super::{AppState, MOST_BODY_BYTES, WorkspaceDoor};
use crate::domain::model::Side;
use crate::domain::notice::{self, PlaybookNotice};
use crate::domain::signature::{self, TOLERANCE_SECS};
use crate::ports::{Delivery, Hint, Remembered, StoreError, Subject};

const DOOR: &str = "sentinel";
/// Longer delivery ids than this are not kept, so they are not taken.
const LONGEST_DELIVERY: usize = 256;
/// A body over the limit is read on and thrown away up to this: a sender who is cut off while it writes would not hear
/// why.
const MOST_THROWN_AWAY: usize = 4 * MOST_BODY_BYTES;

/// `POST /notify/sentinel/{workspace}`
#[utoipa::path(
    post, path = "/notify/sentinel/{workspace}", tag = "doors", operation_id = "sentinel",
    summary = "Incidents from a Microsoft Sentinel playbook",
    description = "The body of the trigger *Microsoft Sentinel incident* as it stands. What is signed by the right \
                   sender but is about another workspace or no incident is answered 202 and ignored: repeating it would \
                   not help.",
    security(("webhookSignature" = [])),
    params(
        ("workspace" = String, Path, description = "The workspace's name in the configuration.",
            example = "soc"),
        ("webhook-id" = String, Header, description = "The delivery's id; a repeated one is stored once.",
            min_length = 1, max_length = 256),
        ("webhook-timestamp" = String, Header, description = "When it was signed: seconds since 1970, within five minutes."),
    ),
    request_body(content = Object, content_type = "application/json"),
    responses(
        (status = 202, description = "On disk, or nothing that is followed here."),
        (status = 401, description = "The signature, its id or its timestamp is missing or wrong."),
        (status = 404, description = "No workspace has this name."),
    )
)]
pub(super) async fn notify(
    State(served): State<Arc<Served>>,
    Named(workspace): Named<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    at_door(&served, &headers, async |id| {
        match take_in(&served.state, &workspace, id, &headers, body).await {
            Ok(()) => StatusCode::ACCEPTED.into_response(),
            Err(refused) => refused.into_response(),
        }
    })
    .await
}

async fn take_in(
    state: &AppState,
    workspace: &str,
    request_id: &RequestId,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), Refused> {
    let Some(door) = state.doors.workspaces.get(workspace) else {
        state.metrics.count(DOOR, "unknown-workspace");
        return Err(Refused::NOT_FOUND);
    };
    let body = body_within_limit(body).await.map_err(|refused| refused_body(DOOR, state, refused))?;
    let now = state.inbox.clock().now();
    let delivery_id = signed(door, headers, &body, now).map_err(|reason| {
        state.metrics.count(DOOR, "signature");
        let request_id = request_id.as_str();
        tracing::warn!(door = DOOR, workspace, request_id, "notification refused: {reason}");
        Refused::unauthorized("the signature, its id or its timestamp is missing or wrong")
    })?;
    let notice = notice::playbook(&body).map_err(|unreadable| {
        state.metrics.count(DOOR, "unreadable");
        tracing::info!(door = DOOR, workspace, "notification refused: {unreadable}");
        Refused::bad("the body is not the JSON object of a Microsoft Sentinel incident trigger")
    })?;
    // What follows was sent by the right party and repeating it would not help, so it is answered as if all were well.
    let PlaybookNotice { workspace: info, incident, version } = notice;
    let Some(native_id) = incident else {
        state.metrics.count(DOOR, "no-incident");
        return Ok(());
    };
    let ours = info.is_some_and(|info| {
        info.subscription_id.eq_ignore_ascii_case(&door.subscription_id)
            && info.resource_group.eq_ignore_ascii_case(&door.resource_group)
            && info.workspace_name.eq_ignore_ascii_case(&door.workspace_name)
    });
    if !ours {
        state.metrics.count(DOOR, "other-workspace");
        tracing::info!(
            door = DOOR,
            workspace,
            "notification ignored: its workspaceInfo is of another workspace"
        );
        return Ok(());
    }
    let subject = Subject { side: Side::Sentinel, scope: door.resource_id.clone(), native_id };
    let hint = Hint { subject, version, source: "playbook".to_owned() };
    let delivery = Delivery {
        door: format!("playbook:{workspace}"),
        id: delivery_id.to_owned(),
        keep_until: now + Duration::seconds(2 * TOLERANCE_SECS as i64),
    };
    let remembered = state.inbox.remember(vec![hint], Some(delivery)).await;
    let remembered = remembered.map_err(|error| unavailable(DOOR, state, &error))?;
    state.metrics.count(DOOR, if remembered == Remembered::New { "accepted" } else { "repeated" });
    Ok(())
}

/// The delivery's id, if the message is by one who has the secret.
fn signed<'h>(
    door: &WorkspaceDoor,
    headers: &'h HeaderMap,
    body: &[u8],
    now: time::OffsetDateTime,
) -> Result<&'h str, String> {
    let header = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
            (Some(value), None) if !value.is_empty() => Ok(value),
            _ => Err(format!("`{name}` is missing, repeated or no text")),
        }
    };
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let signatures = header("webhook-signature")?;
    if id.len() > LONGEST_DELIVERY {
        return Err("`webhook-id` is too long".to_owned());
    }
    signature::verify(&door.secrets, id, timestamp, signatures, body, now)
        .map_err(|refusal| refusal.to_string())?;
    Ok(id)
}

/// Reads a body, or says why not. Most bodies come in one piece, which is then not copied.
pub(super) async fn body_within_limit(mut body: Body) -> Result<Bytes, Refused> {
    let (mut pieces, mut length) = (Vec::<Bytes>::new(), 0_usize);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|_| Refused::bad("the body broke off"))?;
        let Ok(piece) = frame.into_data() else { continue };
        length = length.saturating_add(piece.len());
        if length > MOST_THROWN_AWAY {
            break;
        }
        if length > MOST_BODY_BYTES {
            pieces.clear();
        } else {
            Turn::hold(piece.len())?;
            pieces.push(piece);
        }
    }
    Turn::body_is_here();
    match pieces.len() {
        _ if length > MOST_BODY_BYTES => Err(Refused::TOO_LARGE),
        1 => Ok(pieces.swap_remove(0)),
        _ => Ok(pieces.concat().into()),
    }
}

/// Counts a body that could not be had.
pub(super) fn refused_body(door: &'static str, state: &AppState, refused: Refused) -> Refused {
    let outcome = match refused {
        Refused::TOO_LARGE => "too-large",
        Refused::BUSY => "busy",
        _ => "unreadable",
    };
    state.metrics.count(door, outcome);
    refused
}

/// Counts and logs a commit that did not come about.
pub(super) fn unavailable(door: &'static str, state: &AppState, error: &StoreError) -> Refused {
    state.metrics.count(door, "unavailable");
    tracing::warn!(door, "notification not stored: {error}");
    Refused::UNAVAILABLE
}
