//! The ARM listener: one path for everything, taken apart without case, because Resource Manager compares ids so.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::Shared;
use super::http::{Ids, Service, Stale, answered, framed, json_body, options};
use super::world::sentinel::{Child, Workspace};
use super::world::{Answer, Caller, Moment, Refusal, World};
use crate::domain::model::workspace_id;

/// The versions that answer (sentinel.md 1). The oldest is the one that Microsoft's stable Python SDK sends.
const VERSIONS: [&str; 13] = [
    "2021-10-01",
    "2022-08-01",
    "2022-11-01",
    "2023-02-01",
    "2023-11-01",
    "2024-03-01",
    "2024-09-01",
    "2025-06-01",
    "2025-09-01",
    "2025-12-01",
    "2025-07-01-preview",
    "2025-10-01-preview",
    "2024-10-01-preview",
];

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
    framed(router, Service::Arm, shared)
}

async fn serve(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    (Extension(ids), Extension(Stale(stale))): (Extension<Ids>, Extension<Stale>),
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let only_new = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value == "*");
    let answer = answer(&shared, &caller, (stale, only_new), &method, &uri, &body);
    answered(Service::Arm, answer.map(|(status, body)| (status, shown_under(&uri, body))), &ids)
}

/// Where a merged incident went is shown by preview versions only (sentinel.md 1).
fn shown_under(uri: &Uri, mut body: Value) -> Value {
    fn hide(value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(hide),
            Value::Object(members) => {
                members.retain(|name, _| name != "mergedIncidentNumber" && name != "mergedIncidentUrl");
                members.values_mut().for_each(hide);
            }
            _ => {}
        }
    }
    if !uri.query().unwrap_or_default().to_lowercase().contains("-preview") {
        hide(&mut body);
    }
    body
}

fn answer(
    shared: &Shared,
    caller: &Caller,
    (stale, only_new): (bool, bool),
    method: &Method,
    uri: &Uri,
    body: &Bytes,
) -> Answer {
    let options = options(uri.query());
    let version = options.iter().find(|(name, _)| name == "api-version").map(|(_, value)| value.clone());
    let Some(version) = version.filter(|version| !version.is_empty()).map(|version| version.to_lowercase())
    else {
        let message = "The api-version query parameter (?api-version=) is required for all requests.";
        return Err(Refusal::new(400, "MissingApiVersionParameter", message));
    };
    if !VERSIONS.contains(&version.as_str()) {
        return Err(Refusal::new(
            400,
            "InvalidResourceType",
            format!(
                "The resource type 'incidents' could not be found in the namespace 'Microsoft.SecurityInsights' for api \
                 version '{version}'. The supported api-versions are '{}'.",
                VERSIONS.join(",")
            ),
        ));
    }
    let segments: Vec<String> = uri
        .path()
        .trim_matches('/')
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let lower: Vec<String> = segments.iter().map(|segment| segment.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    let [
        "subscriptions",
        _,
        "resourcegroups",
        _,
        "providers",
        "microsoft.operationalinsights",
        "workspaces",
        _,
        "providers",
        "microsoft.securityinsights",
        collection @ ("incidents" | "bookmarks" | "entities"),
        rest @ ..,
    ] = lower.as_slice()
    else {
        return Err(Refusal::new(404, "InvalidResourceType", "The resource type could not be found."));
    };
    let names: Vec<&str> = segments[11..].iter().map(String::as_str).collect();
    let mut world = shared.world();
    let (subscription, group, workspace) = (&segments[1], &segments[3], &segments[7]);
    let place = find(&world, subscription, group, workspace, caller)?;
    let body = match *method {
        Method::PUT => json_body(body)?,
        _ => Value::Null,
    };
    let World { workspaces, switches, .. } = &mut *world;
    let Some(workspace) = workspaces.get_mut(&place) else {
        return Err(Refusal::new(404, "ResourceNotFound", "The workspace is gone."));
    };
    let moment = Moment { now: shared.now(), caller, switches };
    // The token knows the other options; `$` and `=` stay as they are, as the service writes them.
    let link =
        |token: &str| format!("{}{}?api-version={version}&$skipToken={token}", shared.hello.arm, uri.path());
    let child = |segment: &str| {
        [Child::Comment, Child::Relation, Child::Task].into_iter().find(|child| child.segment() == segment)
    };
    let unsupported = || {
        let message = format!(
            "The HTTP resource that matches the request URI '{}{}' with API version '{version}' does not support HTTP \
             method '{method}'.",
            shared.hello.arm,
            uri.path()
        );
        Err(Refusal::new(405, "UnsupportedApiVersion", message))
    };
    if *collection == "entities" {
        // One entity alone is served by preview versions only.
        return match (rest, method) {
            ([_], &Method::GET) if version.ends_with("-preview") => workspace.get_entity(names[0]),
            _ => unsupported(),
        };
    }
    if *collection == "bookmarks" {
        return match (rest, method) {
            ([], &Method::GET) => workspace.list_bookmarks(&options, &link, &moment),
            ([_], &Method::GET) => workspace.get_bookmark(names[0]),
            ([_], &Method::PUT) => workspace.put_bookmark(names[0], &body, &moment),
            ([_], &Method::DELETE) => workspace.delete_bookmark(names[0], &moment),
            _ => unsupported(),
        };
    }
    match (rest, child(rest.get(1).copied().unwrap_or_default())) {
        ([], _) => match *method {
            Method::GET => workspace.list_incidents(&options, stale, &link, &moment),
            _ => unsupported(),
        },
        ([_], _) => match *method {
            Method::GET => workspace.get_incident(names[0], stale, &moment),
            Method::PUT if only_new && switches.is("ifNoneMatch", "heeded") && workspace.has(names[0]) => {
                let message = "The condition specified using HTTP conditional header(s) is not met.";
                Err(Refusal::new(412, "PreconditionFailed", message))
            }
            Method::PUT => workspace.put_incident(names[0], &body, &moment),
            Method::DELETE => workspace.delete_incident(names[0]),
            _ => unsupported(),
        },
        ([_, "alerts" | "bookmarks" | "entities"], _) => match *method {
            Method::POST => workspace.related(names[0], rest[1]),
            _ => unsupported(),
        },
        ([_, _], Some(child)) => match *method {
            Method::GET => workspace.list_children(names[0], child, &options, &link, &moment),
            _ => unsupported(),
        },
        ([_, _, _], Some(child)) => match *method {
            Method::GET => workspace.get_child(names[0], child, names[2]),
            Method::PUT => workspace.put_child(names[0], child, names[2], &body, &moment),
            Method::DELETE => workspace.delete_child(names[0], child, names[2], &moment),
            _ => unsupported(),
        },
        _ => Err(Refusal::new(404, "InvalidResourceType", "The resource type could not be found.")),
    }
}

/// The workspace's key, or which part of the path is not there. A tenant's token opens that tenant's workspaces only.
fn find(
    world: &World,
    subscription: &str,
    group: &str,
    name: &str,
    caller: &Caller,
) -> Result<String, Refusal> {
    let own = || world.workspaces.values().filter(|workspace| workspace.tenant_id == caller.tenant_id);
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    if !world.workspaces.values().any(|w| same(&w.subscription_id, subscription)) {
        let message = format!("The subscription '{subscription}' could not be found.");
        return Err(Refusal::new(404, "SubscriptionNotFound", message));
    }
    let in_subscription = |w: &&Workspace| same(&w.subscription_id, subscription);
    if !own().any(|w| in_subscription(&w)) {
        let message = format!(
            "The access token is from the wrong issuer. It must match the tenant of subscription '{subscription}'."
        );
        return Err(Refusal::new(401, "InvalidAuthenticationTokenTenant", message));
    }
    if !own().filter(in_subscription).any(|w| same(&w.resource_group, group)) {
        let message = format!("Resource group '{group}' could not be found.");
        return Err(Refusal::new(404, "ResourceGroupNotFound", message));
    }
    let key = workspace_id(subscription, group, name);
    match world.workspaces.get(&key) {
        Some(workspace) if workspace.tenant_id == caller.tenant_id => Ok(key),
        _ => {
            let code = ["ResourceNotFound", "WorkspaceNotFound"]
                .into_iter()
                .find(|code| world.switches.is("workspaceGone", code))
                .unwrap_or("ResourceNotFound");
            let message = format!(
                "The Resource 'Microsoft.OperationalInsights/workspaces/{name}' under resource group '{group}' was not \
                 found."
            );
            Err(Refusal::new(404, code, message))
        }
    }
}
