//! Tokens: who gets one, what is in it, and whether the published keys prove it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, Reply};

const APP: &str = "11112222-bbbb-3333-cccc-4444dddd5555";

async fn ask(desk: &Desk, tenant: &str, form: &str, basic: Option<&str>) -> Reply {
    let url = format!("{}/{tenant}/oauth2/v2.0/token", desk.url("login"));
    let mut request =
        desk.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form.to_owned());
    if let Some(pair) = basic {
        request = request.header("authorization", format!("Basic {}", STANDARD.encode(pair)));
    }
    Reply::read(request.send().await.expect("an answer")).await
}

/// The claims, proved by the keys of the discovery document at `path`.
async fn claims(desk: &Desk, token: &str, path: &str, audience: &str) -> Value {
    let discovery = desk
        .call(Method::GET, &format!("{}/{}{path}", desk.url("login"), desk.tenant()), &[], Value::Null)
        .await
        .expect(200);
    let keys = desk
        .call(Method::GET, discovery["jwks_uri"].as_str().expect("a jwks_uri"), &[], Value::Null)
        .await
        .expect(200);
    assert!(keys["keys"][0]["x5c"][0].is_string() || keys["keys"][0]["n"].is_string(), "{keys}");
    let keys: JwkSet = serde_json::from_value(keys).expect("a key set");
    let kid = decode_header(token).expect("a header").kid.expect("a kid");
    let key = DecodingKey::from_jwk(keys.find(&kid).expect("the key is published")).expect("a key");
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[audience]);
    decode::<Value>(token, &key, &validation).expect("the signature holds").claims
}

#[tokio::test]
async fn any_application_gets_a_token_for_the_secret_in_form_or_header() {
    let desk = Desk::open().await;
    let form = format!(
        "grant_type=client_credentials&client_id={APP}&client_secret=emulator-secret\
         &scope=https%3A%2F%2Fgraph.microsoft.com%2F.default"
    );
    let body = ask(&desk, desk.tenant(), &form, None).await.expect(200);
    assert_eq!(body["token_type"], "Bearer");
    assert!(body["expires_in"].as_u64().is_some_and(|seconds| seconds > 3000), "{body}");

    let token = body["access_token"].as_str().expect("a token");
    let claims =
        claims(&desk, token, "/.well-known/openid-configuration", "https://graph.microsoft.com").await;
    assert_eq!(claims["tid"], desk.tenant());
    assert_eq!(claims.get("appid").or(claims.get("azp")), Some(&json!(APP)));

    let form = "grant_type=client_credentials&scope=https%3A%2F%2Fgraph.microsoft.com%2F.default";
    let body = ask(&desk, desk.tenant(), form, Some(&format!("{APP}:emulator-secret"))).await.expect(200);
    let token = body["access_token"].as_str().expect("a token");
    desk.graph(token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
}

#[tokio::test]
async fn the_scope_may_be_the_emulators_own_host() {
    let desk = Desk::open().await;
    for (service, path) in [("graph", "/v1.0/security/incidents"), ("arm", "")] {
        let scope = desk.url(service).replace(':', "%3A").replace('/', "%2F");
        let form = format!(
            "grant_type=client_credentials&client_id={APP}&client_secret=emulator-secret\
             &scope={scope}%2F.default"
        );
        let body = ask(&desk, desk.tenant(), &form, None).await.expect(200);
        let bearer = format!("Bearer {}", body["access_token"].as_str().expect("a token"));
        let path = if service == "arm" {
            format!(
                "{}/providers/Microsoft.SecurityInsights/incidents?api-version=2025-12-01",
                desk.workspace()
            )
        } else {
            path.to_owned()
        };
        let url = format!("{}{path}", desk.url(service));
        desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.expect(200);
    }
}

#[tokio::test]
async fn refusals_carry_the_number_that_a_person_looks_up() {
    let desk = Desk::open().await;
    let nobody = "00000000-0000-0000-0000-00000000dead";
    let good = "scope=https%3A%2F%2Fgraph.microsoft.com%2F.default";
    let cases = [
        (desk.tenant(), "emulator-secret", "client_credentials", "scope=openid", "AADSTS"),
        (desk.tenant(), "guess", "client_credentials", good, "AADSTS7000215"),
        (nobody, "emulator-secret", "client_credentials", good, "AADSTS90002"),
        (desk.tenant(), "emulator-secret", "magic", good, "AADSTS70003"),
    ];
    for (tenant, secret, grant, scope, number) in cases {
        let form = format!("grant_type={grant}&client_id={APP}&client_secret={secret}&{scope}");
        let reply = ask(&desk, tenant, &form, None).await;
        assert!(matches!(reply.status, 400 | 401), "{number}: {}", reply.text);
        let body = reply.json();
        assert!(body["error"].is_string(), "{body}");
        let words = body["error_description"].as_str().expect("a description");
        assert!(words.starts_with(number), "{number}: {words}");
        let code = number.trim_start_matches("AADSTS");
        if !code.is_empty() {
            assert_eq!(body["error_codes"], json!([code.parse::<u64>().expect("a number")]));
        }
        assert!(body["trace_id"].is_string() && body["correlation_id"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn both_discovery_documents_name_their_issuer_and_endpoints() {
    let desk = Desk::open().await;
    let (login, tenant) = (desk.url("login"), desk.tenant());
    let read = async |path: &str| {
        desk.call(Method::GET, &format!("{login}/{tenant}{path}"), &[], Value::Null).await.expect(200)
    };
    let v1 = read("/.well-known/openid-configuration").await;
    assert_eq!(v1["issuer"], format!("https://sts.windows.net/{tenant}/"));
    let v2 = read("/v2.0/.well-known/openid-configuration").await;
    assert_eq!(v2["issuer"], format!("{login}/{tenant}/v2.0"));
    assert_eq!(v2["token_endpoint"], format!("{login}/{tenant}/oauth2/v2.0/token"));
    for document in [&v1, &v2] {
        assert!(document["jwks_uri"].as_str().is_some_and(|uri| uri.starts_with(login)), "{document}");
        assert!(document["authorization_endpoint"].is_string(), "{document}");
    }
    let instance = desk
        .call(
            Method::GET,
            &format!(
                "{login}/common/discovery/instance?api-version=1.1&authorization_endpoint={login}/{tenant}/oauth2/v2.0/authorize"
            ),
            &[],
            Value::Null,
        )
        .await
        .expect(200);
    assert!(
        instance["tenant_discovery_endpoint"].as_str().is_some_and(|url| url.starts_with(login)),
        "{instance}"
    );
}

#[tokio::test]
async fn tokens_made_to_order_name_the_person_and_their_life() {
    let desk = Desk::open().await;
    let token = desk
        .token(json!({
            "tenantId": desk.tenant(), "user": "kim@contoso.com", "audience": "https://graph.microsoft.com",
            "expiresIn": 120
        }))
        .await;
    let claims =
        claims(&desk, &token, "/v2.0/.well-known/openid-configuration", "https://graph.microsoft.com").await;
    assert_eq!(claims.get("upn").or(claims.get("preferred_username")), Some(&json!("kim@contoso.com")));
    let life = claims["exp"].as_i64().expect("exp") - claims["iat"].as_i64().expect("iat");
    assert!((100..=140).contains(&life), "{life}");

    let (_, message) = {
        let reply = desk
            .control(
                Method::POST,
                "/tokens",
                json!({"tenantId": desk.tenant(), "audience": "https://graph.microsoft.com"}),
            )
            .await;
        let body = reply.json();
        assert_eq!(reply.status, 400, "{body}");
        ((), body["error"].as_str().expect("a sentence").to_owned())
    };
    assert!(message.contains("user") && message.contains("clientId"), "{message}");
}

#[tokio::test]
async fn everybodys_documents_are_templates_and_a_strangers_tenant_has_none() {
    let desk = Desk::open().await;
    let login = desk.url("login").to_owned();
    let read = async |path: &str| desk.call(Method::GET, &format!("{login}/{path}"), &[], Value::Null).await;
    let v1 = read("common/.well-known/openid-configuration").await.expect(200);
    assert_eq!(v1["issuer"], "https://sts.windows.net/{tenantid}/");
    let v2 = read("common/v2.0/.well-known/openid-configuration").await.expect(200);
    assert_eq!(v2["issuer"], format!("{login}/{{tenantid}}/v2.0"));
    let keys = read("common/discovery/v2.0/keys").await.expect(200);
    assert_eq!(keys["keys"][0]["issuer"], v2["issuer"]);
    let own = read(&format!("{}/discovery/v2.0/keys", desk.tenant())).await.expect(200);
    assert_eq!(own["keys"][0]["issuer"], format!("{login}/{}/v2.0", desk.tenant()));
    for path in
        [".well-known/openid-configuration", "v2.0/.well-known/openid-configuration", "discovery/keys"]
    {
        let reply = read(&format!("00000000-0000-0000-0000-00000000dead/{path}")).await;
        assert_eq!(reply.expect(400)["error"], "invalid_tenant", "{path}");
    }
}

/// While the key service is down, tokens are issued and the services take them: only receivers are in trouble.
#[tokio::test]
async fn a_key_service_that_is_down_leaves_the_services_alone() {
    let desk = Desk::open().await;
    let order = json!({"service": "down"});
    assert_eq!(desk.control(Method::PUT, "/keys", order).await.expect(200)["service"], "down");
    let url = format!("{}/{}/discovery/keys", desk.url("login"), desk.tenant());
    assert_eq!(desk.call(Method::GET, &url, &[], Value::Null).await.status, 503);
    let token = desk.token(json!({"clientId": APP, "audience": "graph"})).await;
    desk.control(Method::POST, "/keys/rollover", json!({"keepOld": false})).await.expect(201);
    desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
    for (method, path, order, words) in [
        (Method::PUT, "/keys", json!({"service": "asleep"}), "keys-down"),
        (Method::POST, "/keys/rollover", json!({"keepOld": "yes"}), "keepOld"),
        (Method::POST, "/tokens/mint", json!({"audience": "a", "variant": "odd"}), "/tokens/variants"),
        (Method::POST, "/tokens/mint", json!({"audience": "a", "sender": "odd"}), "event-grid"),
        (Method::POST, "/tokens/mint", json!({}), "audience"),
    ] {
        let body = desk.control(method, path, order).await.expect(400);
        assert!(body["error"].as_str().is_some_and(|sentence| sentence.contains(words)), "{path}: {body}");
    }
}
