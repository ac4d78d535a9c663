//! The Graph listener: paths and query options in, the tenant's rules in the middle, JSON out.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::Value;

use super::Shared;
use super::http::{Ids, Service, Stale, answered, framed, json_body, options, refused};
use super::notify;
use super::world::defender::{Query, Tenant};
use super::world::directory::Directory;
use super::world::{Answer, Caller, Moment, Refusal};

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let router = Router::new()
        .route("/v1.0/security/incidents", get(incidents))
        .route("/v1.0/security/incidents/{id}", get(incident).patch(patch_incident))
        .route("/v1.0/security/incidents/{id}/comments", post(comment_incident))
        .route("/v1.0/security/alerts_v2", get(alerts))
        .route("/v1.0/security/alerts_V2", get(alerts))
        .route("/v1.0/security/alerts_v2/{id}", get(alert).patch(patch_alert))
        .route("/v1.0/security/alerts_v2/{id}/comments", post(comment_alert))
        .route("/v1.0/users/{id}", get(user))
        .route("/v1.0/groups/{id}", get(group))
        .route("/v1.0/subscriptions", get(subscriptions).post(subscribe))
        .route("/v1.0/subscriptions/{id}", get(subscription).patch(renew).delete(unsubscribe))
        .route("/v1.0/subscriptions/{id}/reauthorize", post(reauthorize))
        .method_not_allowed_fallback(async |Extension(ids): Extension<Ids>| {
            let message = "The method is not allowed for this resource.";
            refused(Service::Graph, &Refusal::new(405, "MethodNotAllowed", message), &ids)
        })
        .fallback(async |uri: Uri, Extension(ids): Extension<Ids>| {
            let message = format!("Resource not found for the segment '{}'.", uri.path());
            refused(Service::Graph, &Refusal::new(400, "BadRequest", message), &ids)
        })
        .with_state(Arc::clone(&shared));
    framed(router, Service::Graph, shared)
}

/// What every handler needs of a request.
struct Asked {
    shared: Arc<Shared>,
    caller: Caller,
    ids: Ids,
    query: Query,
}

impl Asked {
    fn new(
        shared: Arc<Shared>,
        caller: Caller,
        ids: Ids,
        Stale(stale): Stale,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Self {
        let unknown_members = headers.get_all("prefer").iter().any(|value| {
            value.to_str().is_ok_and(|text| {
                text.split(',').any(|part| part.trim().eq_ignore_ascii_case("include-unknown-enum-members"))
            })
        });
        let base = shared.hello.graph.clone();
        let query = Query { options: options(uri.query()), base, unknown_members, stale };
        Self { shared, caller, ids, query }
    }

    /// Runs an operation on the caller's tenant.
    fn answer(
        &self,
        operation: impl FnOnce(&mut Tenant, &mut Directory, &Query, &Moment<'_>) -> Answer,
    ) -> Response {
        let now = self.shared.now();
        let mut world = self.shared.world();
        let super::world::World { tenants, switches, directory, .. } = &mut *world;
        let moment = Moment { now, caller: &self.caller, switches };
        let answer = match tenants.get_mut(&self.caller.tenant_id) {
            Some(tenant) => operation(tenant, directory, &self.query, &moment),
            None => {
                Err(Refusal::new(401, "InvalidAuthenticationToken", "The tenant of the token is unknown."))
            }
        };
        drop(world);
        answered(Service::Graph, answer, &self.ids)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        refused(Service::Graph, refusal, &self.ids)
    }

    fn answer_body(
        &self,
        body: &Bytes,
        operation: impl FnOnce(&mut Tenant, &Value, &Query, &Moment<'_>) -> Answer,
    ) -> Response {
        match json_body(body) {
            Ok(body) => self.answer(|tenant, _, query, moment| operation(tenant, &body, query, moment)),
            Err(refusal) => self.refuse(&refusal),
        }
    }
}

impl axum::extract::FromRequestParts<Arc<Shared>> for Asked {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        shared: &Arc<Shared>,
    ) -> Result<Self, Response> {
        let extensions = &parts.extensions;
        // The frame has set all three before any handler runs.
        let (Some(caller), Some(ids), Some(stale)) =
            (extensions.get::<Caller>(), extensions.get::<Ids>(), extensions.get::<Stale>())
        else {
            return Err(Response::new(axum::body::Body::empty()));
        };
        let shared = Arc::clone(shared);
        Ok(Self::new(shared, caller.clone(), ids.clone(), *stale, &parts.uri, &parts.headers))
    }
}

async fn incidents(asked: Asked) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.list_incidents(query, moment))
}

async fn incident(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.get_incident(&id, query, moment))
}

async fn patch_incident(asked: Asked, Path(id): Path<String>, body: Bytes) -> Response {
    asked.answer_body(&body, |tenant, body, query, moment| tenant.patch_incident(&id, body, query, moment))
}

async fn comment_incident(asked: Asked, Path(id): Path<String>, body: Bytes) -> Response {
    asked.answer_body(&body, |tenant, body, query, moment| tenant.comment(false, &id, body, query, moment))
}

async fn alerts(asked: Asked) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.list_alerts(query, moment))
}

async fn alert(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.get_alert(&id, query, moment))
}

async fn patch_alert(asked: Asked, Path(id): Path<String>, body: Bytes) -> Response {
    asked.answer_body(&body, |tenant, body, query, moment| tenant.patch_alert(&id, body, query, moment))
}

async fn comment_alert(asked: Asked, Path(id): Path<String>, body: Bytes) -> Response {
    asked.answer_body(&body, |tenant, body, query, moment| tenant.comment(true, &id, body, query, moment))
}

async fn user(asked: Asked, Path(id): Path<String>) -> Response {
    {
        // Whoever Sentinel knows is in the directory too.
        let mut world = asked.shared.world();
        let super::world::World { workspaces, directory, .. } = &mut *world;
        for workspace in workspaces.values().filter(|one| one.tenant_id == asked.caller.tenant_id) {
            workspace.people().for_each(|person| directory.meet(&workspace.tenant_id, person));
        }
    }
    asked.answer(|_, directory, query, moment| directory.user(&id, query, moment))
}

async fn group(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|_, directory, query, moment| directory.group(&id, query, moment))
}

async fn subscriptions(asked: Asked) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.list_subscriptions(query, moment))
}

async fn subscription(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|tenant, _, query, moment| tenant.get_subscription(&id, query, moment))
}

async fn renew(asked: Asked, Path(id): Path<String>, body: Bytes) -> Response {
    asked
        .answer_body(&body, |tenant, body, query, moment| tenant.renew_subscription(&id, body, query, moment))
}

async fn unsubscribe(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|tenant, _, _, moment| tenant.delete_subscription(&id, moment))
}

async fn reauthorize(asked: Asked, Path(id): Path<String>) -> Response {
    asked.answer(|tenant, _, _, moment| tenant.reauthorize_subscription(&id, moment))
}

/// Both URLs must prove themselves before the subscription counts (graph.md 13.3); nothing is locked meanwhile.
async fn subscribe(asked: Asked, body: Bytes) -> Response {
    let body = match json_body(&body) {
        Ok(body) => body,
        Err(refusal) => return asked.refuse(&refusal),
    };
    let now = asked.shared.now();
    let checked = {
        let world = asked.shared.world();
        let moment = Moment { now, caller: &asked.caller, switches: &world.switches };
        match world.tenants.get(&asked.caller.tenant_id) {
            Some(tenant) => tenant.check_subscription(&body, &moment),
            None => {
                Err(Refusal::new(401, "InvalidAuthenticationToken", "The tenant of the token is unknown."))
            }
        }
    };
    let subscription = match checked {
        Ok(subscription) => subscription,
        Err(refusal) => return asked.refuse(&refusal),
    };
    for name in ["notificationUrl", "lifecycleNotificationUrl"] {
        let Some(url) = subscription[name].as_str() else { continue };
        if let Err(why) = notify::validate(url).await {
            let message = format!("Subscription validation request failed. {why}");
            return asked.refuse(&Refusal::new(400, "ValidationError", message));
        }
    }
    asked.answer(|tenant, _, query, _| {
        tenant.keep_subscription(subscription.clone());
        let mut answer = subscription;
        if let Some(members) = answer.as_object_mut() {
            members.shift_remove("encryptionCertificate");
        }
        answer["@odata.context"] =
            serde_json::json!(format!("{}/v1.0/$metadata#subscriptions/$entity", query.base));
        Ok((201, answer))
    })
}
