//! The control listener: a contract that outside tests drive. JSON, no token, and only for those who reach it by a
//! loopback name, so that no web page can.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Shared;
use super::forge::{self, Mint};
use super::halves;
use super::http::{body_of, options};
use super::world::defender::Tenant;
use super::world::native::ENGINE;
use super::world::sentinel::Workspace;
use super::world::{Caller, Moment, Person, World};

type Outcome = Result<(StatusCode, Value), (StatusCode, String)>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/tenants", post(tenants))
        .route("/workspaces", post(workspaces))
        .route("/incidents", post(incidents))
        .route("/incidents/{id}", delete(forget_incident))
        .route("/incidents/{id}/alerts", post(alerts))
        .route("/incidents/{id}/engine", post(engine_edit))
        .route("/incidents/{id}/comments", post(comment))
        .route("/alerts/{id}/move", post(move_alert))
        .route("/merge", post(merge))
        .route("/unmerge", post(unmerge))
        .route("/native", post(connect).delete(disconnect))
        .route("/native/flush", post(flush))
        .route("/sentinel/alerts", post(detection))
        .route("/people", post(people))
        .route("/people/{upn}", delete(forget_person))
        .route("/groups", post(groups))
        .route("/tokens", post(tokens))
        .route("/tokens/mint", post(mint))
        .route("/tokens/variants", get(variants))
        .route("/keys", get(key_service).put(order_key_service))
        .route("/keys/rollover", post(rollover))
        .route("/playbooks", post(playbooks))
        .route("/subscriptions/{id}/lifecycle", post(lifecycle))
        .route("/notifications", get(notification_variants).post(notification))
        .route("/vault/{name}", put(vault))
        .route("/faults", post(order_fault).delete(heal))
        .route("/switches", get(switches).put(switch))
        .route("/calls", get(calls).delete(forget_calls))
        .route("/state", get(state))
        .fallback(async || told(Err((StatusCode::NOT_FOUND, "there is no such path here".to_owned()))))
        .method_not_allowed_fallback(async || {
            told(Err((StatusCode::METHOD_NOT_ALLOWED, "this path takes another method".to_owned())))
        })
        .layer(middleware::from_fn(loopback_only))
        .with_state(shared)
}

async fn loopback_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let local = name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if !local {
        let why = "the control listener answers only by a loopback name such as 127.0.0.1".to_owned();
        return told(Err((StatusCode::FORBIDDEN, why)));
    }
    next.run(request).await
}

fn told(outcome: Outcome) -> Response {
    match outcome {
        Ok((status, Value::Null)) => status.into_response(),
        Ok((status, body)) => (status, body_of(&body)).into_response(),
        Err((status, sentence)) => (status, Json(json!({"error": sentence}))).into_response(),
    }
}

fn wrong(sentence: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, sentence.into())
}

fn read(body: &Bytes) -> Result<Value, (StatusCode, String)> {
    serde_json::from_slice(&halves::hide(body))
        .map_err(|error| wrong(format!("the body is not JSON: {error}")))
}

fn text<'v>(order: &'v Value, name: &str) -> Result<&'v str, (StatusCode, String)> {
    match order.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) => Err(wrong(format!("{name} is a text that is not empty"))),
        None => Err(wrong(format!("{name} is missing"))),
    }
}

fn guid(order: &Value, name: &str) -> Result<String, (StatusCode, String)> {
    let text = text(order, name)?;
    match Uuid::try_parse(text) {
        Ok(guid) => Ok(guid.hyphenated().to_string()),
        Err(_) => Err(wrong(format!("{name} is a GUID, not {text:?}"))),
    }
}

/// The tenant that `?tenant=` names, by default the first.
fn tenant<'w>(
    world: &'w mut World,
    shared: &Shared,
    uri: &Uri,
) -> Result<&'w mut Tenant, (StatusCode, String)> {
    let asked = options(uri.query());
    let named = asked.iter().find(|(name, _)| name == "tenant").map(|(_, value)| value.to_lowercase());
    let id = named.unwrap_or_else(|| shared.hello.tenant_id.clone());
    world.tenants.get_mut(&id).ok_or_else(|| {
        (StatusCode::NOT_FOUND, format!("tenant: there is none with the id {id:?}; POST /tenants makes one"))
    })
}

fn flag(uri: &Uri, name: &str) -> bool {
    options(uri.query())
        .iter()
        .any(|(known, value)| known.eq_ignore_ascii_case(name) && value.eq_ignore_ascii_case("true"))
}

async fn tenants(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let id = guid(&read(&body)?, "tenantId")?;
        let mut world = shared.world();
        world.tenants.entry(id.clone()).or_insert_with(|| Tenant::new(&id));
        Ok((StatusCode::CREATED, json!({"tenantId": id})))
    })())
}

async fn workspaces(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let tenant_id = guid(&order, "tenantId")?;
        let subscription_id = guid(&order, "subscriptionId")?;
        let (group, name) = (text(&order, "resourceGroup")?, text(&order, "workspaceName")?);
        let mut world = shared.world();
        if !world.tenants.contains_key(&tenant_id) {
            let why = format!("tenantId: there is no tenant {tenant_id:?}; POST /tenants makes one");
            return Err((StatusCode::NOT_FOUND, why));
        }
        let workspace = Workspace::new(&tenant_id, &subscription_id, group, name);
        let id = workspace.resource_id();
        world.workspaces.entry(workspace.key()).or_insert(workspace);
        Ok((StatusCode::CREATED, json!({"id": id})))
    })())
}

async fn incidents(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let now = shared.now();
        let mut world = shared.world();
        let tenant = tenant(&mut world, &shared, &uri)?;
        let keep = flag(&uri, "keepTimes");
        // A page as Graph lists it is taken too.
        match order["value"].as_array() {
            None => {
                let id = tenant.put_incident(&order, keep, now).map_err(wrong)?;
                Ok((StatusCode::CREATED, json!({"id": id})))
            }
            Some(list) => {
                let ids: Result<Vec<String>, String> =
                    list.iter().map(|incident| tenant.put_incident(incident, keep, now)).collect();
                Ok((StatusCode::CREATED, json!({"ids": ids.map_err(wrong)?})))
            }
        }
    })();
    shared.send_news();
    told(outcome)
}

async fn forget_incident(State(shared): State<Arc<Shared>>, Path(id): Path<String>, uri: Uri) -> Response {
    told((|| {
        let mut world = shared.world();
        let tenant = tenant(&mut world, &shared, &uri)?;
        match tenant.delete_incident(&id) {
            true => Ok((StatusCode::NO_CONTENT, Value::Null)),
            false => Err((StatusCode::NOT_FOUND, format!("there is no incident {id:?}"))),
        }
    })())
}

async fn alerts(
    State(shared): State<Arc<Shared>>,
    Path(incident): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let now = shared.now();
        let mut world = shared.world();
        let silent = world.switches.is("alertsTouch", "off");
        let tenant = tenant(&mut world, &shared, &uri)?;
        if !tenant.has_incident(&incident) {
            return Err((StatusCode::NOT_FOUND, format!("there is no incident {incident:?}")));
        }
        // One that joins is a change of an alert: where these move no incident's time, it does not either.
        let id = match silent && !flag(&uri, "keepTimes") {
            true => tenant.put_alert_silently(&incident, &order, now).map_err(wrong)?,
            false => tenant.put_alert(&incident, &order, flag(&uri, "keepTimes"), now).map_err(wrong)?,
        };
        Ok((StatusCode::CREATED, json!({"id": id})))
    })();
    shared.send_news();
    told(outcome)
}

/// The correlation engine as a caller.
fn engine(tenant: &Tenant) -> Caller {
    Caller { tenant_id: tenant.id.clone(), app_id: ENGINE.to_owned(), object_id: String::new(), user: None }
}

fn unknown(what: &str, id: &str) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("there is no {what} {id:?}"))
}

async fn engine_edit(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let now = shared.now();
        let mut world = shared.world();
        let tenant = tenant(&mut world, &shared, &uri)?;
        if !tenant.has_incident(&id) {
            return Err(unknown("incident", &id));
        }
        tenant.engine_edit(&id, &order, now).map_err(wrong)?;
        Ok((StatusCode::OK, json!({"id": id})))
    })();
    shared.send_news();
    told(outcome)
}

/// A comment as somebody leaves it in the portal.
async fn comment(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let (said, by) = (text(&order, "comment")?, text(&order, "by")?);
        let now = shared.now();
        let mut world = shared.world();
        let switches = world.switches.clone();
        let tenant = tenant(&mut world, &shared, &uri)?;
        if !tenant.has_incident(&id) {
            return Err(unknown("incident", &id));
        }
        let engine = engine(tenant);
        let moment = Moment { now, caller: &engine, switches: &switches };
        tenant.say(&id, said, by, &moment).map_err(wrong)?;
        Ok((StatusCode::CREATED, json!({"id": id})))
    })();
    shared.send_news();
    told(outcome)
}

async fn move_alert(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let incident = text(&order, "incident")?;
        let now = shared.now();
        let mut world = shared.world();
        let switches = world.switches.clone();
        let tenant = tenant(&mut world, &shared, &uri)?;
        if !tenant.has_alert(&id) {
            return Err(unknown("alert", &id));
        }
        if !tenant.has_incident(incident) {
            return Err(unknown("incident", incident));
        }
        let engine = engine(tenant);
        let moment = Moment { now, caller: &engine, switches: &switches };
        tenant.move_alert(&id, incident, &moment).map_err(wrong)?;
        Ok((StatusCode::OK, json!({"id": id, "incident": incident})))
    })();
    shared.send_news();
    told(outcome)
}

async fn unmerge(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let source = text(&order, "source")?;
        let now = shared.now();
        let mut world = shared.world();
        let tenant = tenant(&mut world, &shared, &uri)?;
        if !tenant.has_incident(source) {
            return Err(unknown("incident", source));
        }
        tenant.unmerge(source, now).map_err(wrong)?;
        Ok((StatusCode::OK, json!({"source": source})))
    })();
    shared.send_news();
    told(outcome)
}

async fn merge(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let (source, target) = (text(&order, "source")?, text(&order, "target")?);
        let now = shared.now();
        let mut world = shared.world();
        let switches = world.switches.clone();
        let tenant = tenant(&mut world, &shared, &uri)?;
        let engine = engine(tenant);
        for (name, id) in [("source", source), ("target", target)] {
            if !tenant.has_incident(id) {
                return Err((StatusCode::NOT_FOUND, format!("{name}: there is no incident {id:?}")));
            }
        }
        let moment = Moment { now, caller: &engine, switches: &switches };
        tenant.merge(source, target, &moment).map_err(wrong)?;
        Ok((StatusCode::OK, json!({"source": source, "target": target})))
    })();
    shared.send_news();
    told(outcome)
}

/// Microsoft's own connector: a tenant to a workspace of its own.
async fn connect(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let workspace = text(&order, "workspace")?.trim_end_matches('/').to_lowercase();
        let tenant_id = match order.get("tenantId") {
            None => shared.hello.tenant_id.clone(),
            Some(_) => guid(&order, "tenantId")?,
        };
        let mut world = shared.world();
        if !world.workspaces.contains_key(&workspace) {
            let why = format!("workspace: there is none with the id {workspace:?}");
            return Err((StatusCode::NOT_FOUND, why));
        }
        world.connect_native(&workspace, &tenant_id).map_err(wrong)?;
        Ok((StatusCode::CREATED, json!({"workspace": workspace, "tenantId": tenant_id})))
    })();
    shared.send_news();
    told(outcome)
}

/// `workspace` stands in the body or in the query.
async fn disconnect(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    told((|| {
        let named = options(uri.query()).into_iter().find(|(name, _)| name == "workspace");
        let workspace = match named {
            Some((_, value)) => value,
            None => text(&read(&body)?, "workspace")?.to_owned(),
        };
        let workspace = workspace.trim_end_matches('/').to_lowercase();
        match shared.world().disconnect_native(&workspace) {
            true => Ok((StatusCode::NO_CONTENT, Value::Null)),
            false => Err((StatusCode::NOT_FOUND, format!("workspace: {workspace:?} is not connected"))),
        }
    })())
}

async fn flush(State(shared): State<Arc<Shared>>) -> Response {
    let now = shared.now();
    shared.world().flush_native(now);
    shared.send_news();
    StatusCode::NO_CONTENT.into_response()
}

/// An alert of the workspace's own, as an analytics rule makes it.
async fn detection(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let named = text(&order, "workspace")?.trim_end_matches('/');
        let now = shared.now();
        let mut world = shared.world();
        let World { workspaces, switches, .. } = &mut *world;
        let found = workspaces.iter_mut().find(|(key, workspace)| {
            key.eq_ignore_ascii_case(named) || workspace.workspace_name.eq_ignore_ascii_case(named)
        });
        let (_, workspace) = found.ok_or_else(|| unknown("workspace", named))?;
        let caller = Caller {
            tenant_id: workspace.tenant_id.clone(),
            app_id: "Azure Sentinel".to_owned(),
            object_id: String::new(),
            user: None,
        };
        let moment = Moment { now, caller: &caller, switches };
        let id = workspace.put_alert(&order, &moment).map_err(wrong)?;
        Ok((StatusCode::CREATED, json!({"systemAlertId": id})))
    })();
    shared.send_news();
    told(outcome)
}

/// The tenant that an order names in its body or its query, by default the first.
fn tenant_of(
    shared: &Shared,
    world: &mut World,
    order: &Value,
    uri: &Uri,
) -> Result<String, (StatusCode, String)> {
    match order.get("tenantId") {
        None => tenant(world, shared, uri).map(|tenant| tenant.id.clone()),
        Some(_) => {
            let id = guid(order, "tenantId")?;
            match world.tenants.contains_key(&id) {
                true => Ok(id),
                false => Err(unknown("tenant", &id)),
            }
        }
    }
}

fn optional(order: &Value, name: &str) -> Result<Option<String>, (StatusCode, String)> {
    match order.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(order, name).map(|text| Some(text.to_owned())),
    }
}

async fn people(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let upn = text(&order, "upn")?;
        let mut world = shared.world();
        let tenant = tenant_of(&shared, &mut world, &order, &uri)?;
        let mut person: Person = super::world::defender::person(&tenant, upn);
        if order.get("objectId").is_some() {
            person.object_id = guid(&order, "objectId")?;
        }
        if let Some(name) = optional(&order, "displayName")? {
            person.display_name = name;
        }
        let mail = match order.get("mail") {
            None => Some(upn.to_owned()),
            Some(_) => optional(&order, "mail")?,
        };
        for workspace in world.workspaces.values_mut().filter(|workspace| workspace.tenant_id == tenant) {
            workspace.introduce(&person);
        }
        world.directory.post_person(&tenant, person.clone(), mail);
        Ok((StatusCode::CREATED, json!({"tenantId": tenant, "upn": upn, "objectId": person.object_id})))
    })())
}

async fn forget_person(State(shared): State<Arc<Shared>>, Path(upn): Path<String>, uri: Uri) -> Response {
    told((|| {
        let mut world = shared.world();
        let tenant = tenant(&mut world, &shared, &uri)?.id.clone();
        let gone = world.directory.remove_person(&tenant, &upn);
        for workspace in world.workspaces.values_mut().filter(|workspace| workspace.tenant_id == tenant) {
            workspace.part_with(&gone);
        }
        Ok((StatusCode::NO_CONTENT, Value::Null))
    })())
}

async fn groups(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let id = match order.get("id") {
            None | Some(Value::Null) => None,
            Some(_) => Some(guid(&order, "id")?),
        };
        let (name, mail) = (text(&order, "displayName")?, optional(&order, "mail")?);
        let mut world = shared.world();
        let tenant = tenant_of(&shared, &mut world, &order, &uri)?;
        let id = world.directory.post_group(&tenant, id, name, mail);
        Ok((StatusCode::CREATED, json!({"tenantId": tenant, "id": id})))
    })())
}

async fn tokens(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let tenant_id = match order.get("tenantId") {
            None => shared.hello.tenant_id.clone(),
            Some(_) => guid(&order, "tenantId")?,
        };
        let audience = match text(&order, "audience")? {
            "graph" => shared.hello.graph.as_str(),
            "arm" => shared.hello.arm.as_str(),
            other => other.strip_suffix("/.default").unwrap_or(other),
        };
        let life = match order.get("expiresIn") {
            None | Some(Value::Null) => super::entra::TOKEN_LIFE,
            Some(value) => value
                .as_i64()
                .ok_or_else(|| wrong("expiresIn is a whole number of seconds; below 0 is expired"))?,
        };
        let user = match order.get("user") {
            None | Some(Value::Null) => None,
            Some(_) => Some(text(&order, "user")?),
        };
        let app = match (user, order.get("clientId")) {
            (Some(_), None) => "00000000-0000-4000-8000-000000000b0b",
            (None, None) => return Err(wrong("user or clientId is missing: who the token is for")),
            (_, Some(_)) => text(&order, "clientId")?,
        };
        let mut world = shared.world();
        if !world.tenants.contains_key(&tenant_id) {
            let why = format!("tenantId: there is no tenant {tenant_id:?}; POST /tenants makes one");
            return Err((StatusCode::NOT_FOUND, why));
        }
        let user = user.map(|upn| world.directory.person(&tenant_id, upn));
        if let Some(user) = &user {
            world.directory.meet(&tenant_id, user);
        }
        drop(world);
        let token = shared.signer.token(&tenant_id, app, user.as_ref(), audience, life, shared.now());
        let token = token.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((StatusCode::OK, json!({"access_token": token, "token_type": "Bearer", "expires_in": life})))
    })())
}

/// Any token, genuine or forged.
async fn mint(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = Mint::read(&read(&body)?, &shared.hello).map_err(wrong)?;
        let token = shared.signer.mint(&order, &shared.hello, shared.now());
        let token = token.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((StatusCode::OK, json!({"access_token": token, "token_type": "Bearer"})))
    })())
}

/// What `POST /tokens/mint` can make.
async fn variants() -> Response {
    let named = |variant: &forge::Variant| (variant.name.to_owned(), Value::from(variant.meaning));
    told(Ok((StatusCode::OK, Value::Object(forge::VARIANTS.iter().map(named).collect()))))
}

async fn key_service(State(shared): State<Arc<Shared>>) -> Response {
    told(Ok((StatusCode::OK, shared.signer.describe())))
}

async fn order_key_service(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        shared.signer.order(text(&order, "service")?).map_err(wrong)?;
        Ok((StatusCode::OK, shared.signer.describe()))
    })())
}

async fn rollover(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = if body.is_empty() { json!({}) } else { read(&body)? };
        let keep = match order.get("keepOld") {
            None => true,
            Some(value) => value.as_bool().ok_or_else(|| wrong("keepOld is true or false"))?,
        };
        let made = shared.signer.roll_over(keep);
        made.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((StatusCode::CREATED, shared.signer.describe()))
    })())
}

async fn playbooks(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let world = shared.world();
        let registered = shared.playbooks.register(&order, &world).map_err(wrong)?;
        Ok((StatusCode::CREATED, registered))
    })())
}

/// Lets something happen to a subscription itself: `{"event"}`.
async fn lifecycle(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Response {
    let now = shared.now();
    let outcome = (|| {
        let order = read(&body)?;
        let event = text(&order, "event")?;
        let mut world = shared.world();
        let tenant = world.tenants.values_mut().find(|tenant| tenant.subscription(&id).is_some());
        let tenant = tenant.ok_or_else(|| unknown("subscription", &id))?;
        let news = tenant.lifecycle(&id, event, now).map_err(wrong)?;
        Ok((tenant.id.clone(), news))
    })();
    told(outcome.map(|(tenant_id, news)| {
        let told = news.is_some();
        if let Some(news) = news {
            super::notify::send_news(&shared, &tenant_id, news);
        }
        (StatusCode::OK, json!({"id": id, "told": told}))
    }))
}

/// One notification to a subscription's address, genuine or forged; the answer has the receiver's status.
async fn notification(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let order = match read(&body) {
        Ok(order) => order,
        Err(refusal) => return told(Err(refusal)),
    };
    told(super::notify::forged(&shared, &order).await.map(|sent| (StatusCode::OK, sent)).map_err(wrong))
}

/// What `POST /notifications` can send, besides `token:` with a variant of the token.
async fn notification_variants() -> Response {
    let named = |(name, meaning): &(&str, &str)| ((*name).to_owned(), Value::from(*meaning));
    told(Ok((StatusCode::OK, Value::Object(super::notify::FORGERIES.iter().map(named).collect()))))
}

/// A new version of a vault's secret: `{"value"}`.
async fn vault(State(shared): State<Arc<Shared>>, Path(name): Path<String>, body: Bytes) -> Response {
    told((|| {
        let order = read(&body)?;
        let version = shared.world().vault.put(&name, text(&order, "value")?);
        Ok((StatusCode::CREATED, json!({"name": name, "version": version})))
    })())
}

async fn order_fault(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    told((|| {
        let id = shared.world().faults.order(&read(&body)?).map_err(wrong)?;
        Ok((StatusCode::CREATED, json!({"id": id})))
    })())
}

async fn heal(State(shared): State<Arc<Shared>>) -> Response {
    shared.world().faults.clear();
    StatusCode::NO_CONTENT.into_response()
}

async fn switches(State(shared): State<Arc<Shared>>) -> Response {
    let described = shared.world().switches.describe();
    told(Ok((StatusCode::OK, described)))
}

/// All or nothing: one unknown name changes none.
async fn switch(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let outcome = (|| {
        let order = read(&body)?;
        let members = order.as_object().ok_or_else(|| wrong("the body is an object of names and values"))?;
        let mut world = shared.world();
        let mut next = world.switches.clone();
        for (name, value) in members {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Bool(true) => "on".to_owned(),
                Value::Bool(false) => "off".to_owned(),
                Value::Number(number) => number.to_string(),
                _ => return Err(wrong(format!("{name} is a text, or true or false"))),
            };
            next.set(name, &value).map_err(wrong)?;
        }
        world.switches = next;
        Ok((StatusCode::OK, world.switches.describe()))
    })();
    shared.send_news();
    told(outcome)
}

async fn calls(State(shared): State<Arc<Shared>>) -> Response {
    let calls = shared.calls().clone();
    told(Ok((StatusCode::OK, json!({"calls": calls}))))
}

async fn forget_calls(State(shared): State<Arc<Shared>>) -> Response {
    shared.calls().clear();
    StatusCode::NO_CONTENT.into_response()
}

async fn state(State(shared): State<Arc<Shared>>) -> Response {
    let mut described = shared.world().describe();
    described["deliveries"] = shared.playbooks.deliveries();
    told(Ok((StatusCode::OK, described)))
}
