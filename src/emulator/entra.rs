//! The sign-in listener: tokens for client secrets, the discovery documents of both versions, the signing keys
//! (`graph.md` §3). Every tenant and every client id exists; the secret is [`super::SECRET`].

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::http::{Service, framed, options};
use super::signer::KeyService;
use super::{SECRET, Shared};

/// How long a token lives unless the control listener orders otherwise, in seconds.
pub(super) const TOKEN_LIFE: i64 = 3_599;
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let router = Router::new()
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/oauth2/token", post(token))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery_v2))
        .route("/{tenant}/.well-known/openid-configuration", get(discovery_v1))
        .route("/{tenant}/discovery/v2.0/keys", get(keys_v2))
        .route("/{tenant}/discovery/keys", get(keys_v1))
        .route("/common/discovery/instance", get(instance))
        .fallback(async || (StatusCode::NOT_FOUND, Json(json!({"error": "not_found"}))))
        .with_state(Arc::clone(&shared));
    framed(router, Service::Login, shared)
}

/// A refusal as Entra ID words it.
fn refused(status: StatusCode, error: &str, code: u32, sentence: &str) -> Response {
    let (trace, correlation) = (Uuid::new_v4(), Uuid::new_v4());
    let now = OffsetDateTime::now_utc();
    let stamp = format!("{} {:02}:{:02}:{:02}Z", now.date(), now.hour(), now.minute(), now.second());
    let description = format!(
        "AADSTS{code}: {sentence}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {stamp}"
    );
    let body = json!({
        "error": error, "error_description": description, "error_codes": [code], "timestamp": stamp,
        "trace_id": trace, "correlation_id": correlation,
    });
    (status, Json(body)).into_response()
}

/// The answer to a call for which this status was ordered.
pub(super) fn ordered(status: StatusCode) -> Response {
    match status {
        StatusCode::BAD_REQUEST => refused(status, "invalid_request", 900_144, "The request is not valid."),
        StatusCode::UNAUTHORIZED => {
            refused(status, "invalid_client", 7_000_215, "Invalid client secret provided.")
        }
        StatusCode::TOO_MANY_REQUESTS => {
            refused(status, "temporarily_unavailable", 90_055, "Too many requests.")
        }
        _ => refused(
            status,
            "temporarily_unavailable",
            90_033,
            "A transient error has occurred. Please try again.",
        ),
    }
}

async fn token(
    State(shared): State<Arc<Shared>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = options(std::str::from_utf8(&body).ok());
    let get = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let basic = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("Basic "))
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|pair| pair.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned())));
    let (client_id, secret) = match basic {
        Some((id, secret)) => (Some(id), Some(secret)),
        None => (get("client_id"), get("client_secret")),
    };
    if Uuid::try_parse(&tenant).is_err() {
        return refused(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            90_002,
            &format!("Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."),
        );
    }
    let tenant = tenant.to_lowercase();
    if !shared.world().tenants.contains_key(&tenant) {
        return refused(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            90_002,
            &format!("Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."),
        );
    }
    if get("grant_type").as_deref() != Some("client_credentials") {
        return refused(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            70_003,
            "The app requested an unsupported grant type.",
        );
    }
    let Some(client_id) = client_id.filter(|id| !id.is_empty()) else {
        return refused(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            900_144,
            "The request body must contain the following parameter: 'client_id'.",
        );
    };
    if secret.as_deref() != Some(SECRET) {
        let sentence = format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, \
             not the client secret ID, for a secret added to app '{client_id}'."
        );
        return refused(StatusCode::UNAUTHORIZED, "invalid_client", 7_000_215, &sentence);
    }
    // Version 2 names a scope, version 1 a resource.
    let audience = match (get("scope"), get("resource")) {
        (Some(scope), _) => scope.strip_suffix("/.default").map(str::to_owned),
        (None, resource) => resource,
    };
    let Some(audience) = audience.filter(|audience| !audience.is_empty()) else {
        let scope = get("scope").unwrap_or_default();
        let sentence = format!(
            "The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid."
        );
        return refused(StatusCode::BAD_REQUEST, "invalid_scope", 70_011, &sentence);
    };
    match shared.signer.token(&tenant, &client_id, None, &audience, TOKEN_LIFE, shared.now()) {
        Ok(token) => Json(json!({
            "token_type": "Bearer", "expires_in": TOKEN_LIFE, "ext_expires_in": TOKEN_LIFE, "access_token": token,
        }))
        .into_response(),
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "server_error", 50_000, "There was an error."),
    }
}

/// Why a document of the key service is not served: an order of the control listener, or no such tenant.
fn withheld(shared: &Shared, tenant: &str, keys: bool) -> Option<Response> {
    let service = shared.signer.service();
    if service == KeyService::Down || (keys && service == KeyService::KeysDown) {
        return Some(ordered(StatusCode::SERVICE_UNAVAILABLE));
    }
    let known = matches!(tenant, "common" | "organizations")
        || shared.world().tenants.contains_key(&tenant.to_lowercase());
    (!known).then(|| {
        let sentence =
            format!("Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID.");
        refused(StatusCode::BAD_REQUEST, "invalid_tenant", 90_002, &sentence)
    })
}

/// For everybody's tenant the issuer is a template.
fn issuing(tenant: &str) -> &str {
    if matches!(tenant, "common" | "organizations") { "{tenantid}" } else { tenant }
}

/// Where the keys are, unless it was ordered to say something else.
fn key_address(shared: &Shared, path: &str) -> String {
    match shared.signer.service() {
        KeyService::OtherHost => format!("https://keys.example/{path}"),
        _ => format!("{}/{path}", shared.hello.login),
    }
}

async fn discovery_v2(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    if let Some(answer) = withheld(&shared, &tenant, false) {
        return answer;
    }
    let login = &shared.hello.login;
    Json(json!({
        "issuer": format!("{login}/{}/v2.0", issuing(&tenant)),
        "authorization_endpoint": format!("{login}/{tenant}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{login}/{tenant}/oauth2/v2.0/token"),
        "jwks_uri": key_address(&shared, &format!("{tenant}/discovery/v2.0/keys")),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "subject_types_supported": ["pairwise"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
    }))
    .into_response()
}

async fn discovery_v1(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    if let Some(answer) = withheld(&shared, &tenant, false) {
        return answer;
    }
    let login = &shared.hello.login;
    Json(json!({
        "issuer": format!("https://sts.windows.net/{}/", issuing(&tenant)),
        "authorization_endpoint": format!("{login}/{tenant}/oauth2/authorize"),
        "token_endpoint": format!("{login}/{tenant}/oauth2/token"),
        "jwks_uri": key_address(&shared, &format!("{tenant}/discovery/keys")),
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["pairwise"],
        "response_types_supported": ["code", "id_token", "code id_token", "token id_token", "token"],
    }))
    .into_response()
}

async fn keys_v2(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    // Version 2 says of each key whose tokens it signs.
    let issuer = format!("{}/{}/v2.0", shared.hello.login, issuing(&tenant));
    keys(&shared, &tenant, Some(&issuer))
}

async fn keys_v1(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    keys(&shared, &tenant, None)
}

fn keys(shared: &Shared, tenant: &str, issuer: Option<&str>) -> Response {
    if let Some(answer) = withheld(shared, tenant, true) {
        return answer;
    }
    match shared.signer.service() {
        KeyService::Garbage => "<html>We are sorry.</html>".into_response(),
        KeyService::Empty => Json(json!({"keys": []})).into_response(),
        KeyService::Giant => {
            let filling = "A".repeat(1 << 20);
            Json(json!({"keys": shared.signer.published(issuer), "x": filling})).into_response()
        }
        _ => Json(json!({"keys": shared.signer.published(issuer)})).into_response(),
    }
}

/// Which hosts belong together: Microsoft's libraries ask before they trust an authority.
async fn instance(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let asked = options(uri.query());
    let endpoint =
        asked.iter().find(|(name, _)| name == "authorization_endpoint").map(|(_, value)| value.as_str());
    let Some(tenant) = endpoint
        .and_then(|url| url::Url::parse(url).ok())
        .and_then(|url| url.path_segments().and_then(|mut segments| segments.next().map(str::to_owned)))
    else {
        return refused(StatusCode::BAD_REQUEST, "invalid_instance", 50_049, "Unknown or invalid instance.");
    };
    let login = &shared.hello.login;
    let host = login.split("://").nth(1).unwrap_or(login);
    Json(json!({
        "tenant_discovery_endpoint": format!("{login}/{tenant}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
    }))
    .into_response()
}
