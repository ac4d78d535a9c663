//! The sign-in listener: tokens for client secrets, the discovery documents of both versions, the signing keys
//! (`graph.md` §3). Every tenant and every client id exists; the secret is [`super::SECRET`].

use std::sync::Arc;

use anyhow::Context;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::http::{Service, framed, options};

use super::world::{Caller, Person};
use super::{SECRET, Shared};

/// How long a token lives unless the control listener orders otherwise, in seconds.
pub(super) const TOKEN_LIFE: i64 = 3_599;
const KEY_ID: &str = "lockstep-emulator-1";

/// Signs tokens, and knows its own again.
pub(crate) struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    modulus: String,
    exponent: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    appid: String,
    appidacr: String,
    idtyp: String,
    oid: String,
    sub: String,
    tid: String,
    ver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    upn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
}

impl Signer {
    /// Makes a key.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048).ok().context("no RSA key could be made")?;
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair)
            .ok()
            .context("the key has no form")?;
        // PKCS#8 is what this library gives; the token library reads it as PEM only.
        let begin = "-----BEGIN PRIVATE KEY-----";
        let pem = format!("{begin}\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
        let encoding = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let public = pair.public_key();
        let modulus = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let exponent = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        let decoding = DecodingKey::from_rsa_components(&modulus, &exponent)?;
        Ok(Self { encoding, decoding, modulus, exponent })
    }

    /// A token for an application, or for a person who uses one.
    pub(crate) fn token(
        &self,
        tenant_id: &str,
        app_id: &str,
        user: Option<&Person>,
        audience: &str,
        life: i64,
        now: OffsetDateTime,
    ) -> anyhow::Result<String> {
        let now = now.unix_timestamp();
        let seed = format!("principal:{tenant_id}:{}", app_id.to_lowercase());
        let object_id = match user {
            Some(person) => person.object_id.clone(),
            None => Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).to_string(),
        };
        let claims = Claims {
            aud: audience.to_owned(),
            iss: format!("https://sts.windows.net/{tenant_id}/"),
            iat: now.min(now + life),
            nbf: now.min(now + life) - 300,
            exp: now + life,
            appid: app_id.to_owned(),
            appidacr: "1".to_owned(),
            idtyp: if user.is_some() { "user" } else { "app" }.to_owned(),
            oid: object_id.clone(),
            sub: object_id,
            tid: tenant_id.to_owned(),
            ver: "1.0".to_owned(),
            upn: user.map(|person| person.upn.clone()),
            name: user.map(|person| person.display_name.clone()),
            roles: user.is_none().then(|| {
                vec!["SecurityIncident.ReadWrite.All".to_owned(), "SecurityAlert.ReadWrite.All".to_owned()]
            }),
        };
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(KEY_ID.to_owned());
        Ok(jsonwebtoken::encode(&header, &claims, &self.encoding)?)
    }

    /// Who a token stands for. The error is a word: `expired`, `audience`, or another.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[&str],
        now: OffsetDateTime,
    ) -> Result<Caller, &'static str> {
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|_| "signature")?
            .claims;
        if claims.exp <= now.unix_timestamp() {
            return Err("expired");
        }
        let audience = claims.aud.trim_end_matches('/');
        if !audiences.iter().any(|known| known.trim_end_matches('/').eq_ignore_ascii_case(audience)) {
            return Err("audience");
        }
        let user = claims.upn.map(|upn| Person {
            object_id: claims.oid.clone(),
            display_name: claims.name.unwrap_or_else(|| upn.clone()),
            upn,
        });
        Ok(Caller { tenant_id: claims.tid, app_id: claims.appid, object_id: claims.oid, user })
    }
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let router = Router::new()
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/oauth2/token", post(token))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery_v2))
        .route("/{tenant}/.well-known/openid-configuration", get(discovery_v1))
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .route("/{tenant}/discovery/keys", get(keys))
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

async fn discovery_v2(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Json<Value> {
    let login = &shared.hello.login;
    Json(json!({
        "issuer": format!("{login}/{tenant}/v2.0"),
        "authorization_endpoint": format!("{login}/{tenant}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{login}/{tenant}/oauth2/v2.0/token"),
        "jwks_uri": format!("{login}/{tenant}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "subject_types_supported": ["pairwise"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
    }))
}

async fn discovery_v1(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Json<Value> {
    let login = &shared.hello.login;
    Json(json!({
        "issuer": format!("https://sts.windows.net/{tenant}/"),
        "authorization_endpoint": format!("{login}/{tenant}/oauth2/authorize"),
        "token_endpoint": format!("{login}/{tenant}/oauth2/token"),
        "jwks_uri": format!("{login}/{tenant}/discovery/keys"),
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["pairwise"],
        "response_types_supported": ["code", "id_token", "code id_token", "token id_token", "token"],
    }))
}

async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let Signer { modulus, exponent, .. } = &shared.signer;
    Json(json!({"keys": [{
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID, "x5t": KEY_ID, "n": modulus, "e": exponent,
    }]}))
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
