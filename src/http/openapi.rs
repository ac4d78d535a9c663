//! The service's own contract, OpenAPI 3.1. A handler says what is its own in `#[utoipa::path]` and is put into the
//! router by `routes!` from the same words, so no address can be served without being described. What the frame and
//! the edge answer at every address is added here, once.
//!
//! `openapi/lockstep.json` is this document; a test fails when it is stale. `lockstep openapi > openapi/lockstep.json`
//! writes it anew.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use utoipa::{Modify, OpenApi, ToSchema};

use super::router;
use crate::telemetry::VERSION;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lockstep",
        description = "Keeps the incidents of Microsoft Defender XDR and Microsoft Sentinel in step. The doors \
                       (`/notify/…`) take change notifications: one is a hint that something changed and nothing more, \
                       and what is answered 202 is on disk. Every refusal is a problem document (RFC 9457) that never \
                       repeats what was sent.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact()
    ),
    tags(
        (name = "doors", description = "For the senders of notifications."),
        (name = "probes", description = "For load balancers and scrapers. Never limited."),
        (name = "api", description = "For people's tools. Shut until `api_tokens` are configured."),
        (name = "contract", description = "This document."),
    ),
    components(schemas(Problem, super::graph::ChangeNotification)),
    modifiers(&Common)
)]
struct Frame;

/// A refusal (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "stands for what `Refused` writes; only its description is used")]
struct Problem {
    /// The status in words.
    title: String,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// One sentence for whoever reads the sender's log.
    detail: String,
}

/// The frame before any address is in it.
pub(super) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi()
}

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document.info.version = VERSION.to_owned();
        // Nobody in particular: the crate would name its own author.
        document.info.contact = None;
    }
}

/// The document as JSON.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        // Built from strings and maps of strings: there is nothing in it that JSON cannot say.
        let mut document = serde_json::to_value(router::described()).unwrap_or_default();
        complete(&mut document);
        document
    });
    &DOCUMENT
}

/// As it stands in `openapi/lockstep.json`.
pub fn document_text() -> String {
    format!("{:#}\n", document())
}

/// A refusal and who gives it: every address that begins so.
struct Everywhere {
    below: &'static str,
    status: &'static str,
    description: &'static str,
}

const fn everywhere(below: &'static str, status: &'static str, description: &'static str) -> Everywhere {
    Everywhere { below, status, description }
}

/// What the frame and the edge answer.
const EVERYWHERE: &[Everywhere] = &[
    everywhere("/notify/", "400", "The body cannot be read, or broke off."),
    everywhere("/notify/", "403", "An allow list (`[server.allow]`) does not name the sender's address."),
    everywhere("/notify/", "408", "The request took longer than ten seconds to arrive."),
    everywhere("/notify/", "413", "The body is larger than 4 MiB."),
    everywhere(
        "/notify/",
        "429",
        "Too many from this address, or too much at once: come again after `Retry-After`.",
    ),
    everywhere("/notify/", "503", "Not stored, or the sender cannot be verified now: send it again."),
    everywhere("/api/", "400", "The address or its query cannot be read."),
    everywhere("/api/", "401", "The bearer token is missing or unknown."),
    everywhere("/api/", "403", "An allow list (`[server.allow]`) does not name the caller's address."),
    everywhere("/api/", "404", "There is no such thing, or the API is shut."),
    everywhere("/api/", "429", "Too many from this address: come again after `Retry-After`."),
    everywhere("/api/", "503", "The store does not answer; ask again."),
    everywhere("/", "500", "A defect; the log has the request's id."),
];

/// Adds to every operation what holds for all of them.
fn complete(document: &mut Value) {
    document["components"]["securitySchemes"] = json!({
        "apiToken": {
            "type": "http", "scheme": "bearer",
            "description": "One of `[server] api_tokens`.",
        },
        "webhookSignature": {
            "type": "apiKey", "in": "header", "name": "webhook-signature",
            "description": "Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `webhook-id`, `.`, \
                            `webhook-timestamp`, `.` and the body's bytes. Several, separated by blanks, while a secret \
                            is rotated.",
        },
        "entraToken": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "An access token of Microsoft Entra ID for this service's application.",
        },
    });
    document["components"]["headers"] = json!({
        "RequestId": {
            "description": "The sender's `X-Request-Id`, if it is plain, or a fresh one. The log has it too.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._-]+$" },
        },
        "RetryAfter": {
            "description": "When to come again, in seconds.",
            "schema": { "type": "integer", "minimum": 1 },
        },
    });
    for (path, operations) in members(&mut document["paths"]) {
        for (_, operation) in members(operations) {
            if path.starts_with("/notify/") && operation.get("tags").is_none_or(|tags| tags == &json!([])) {
                operation["tags"] = json!(["doors"]);
            }
            let Some(responses) = operation["responses"].as_object_mut() else { continue };
            for Everywhere { below, status, description } in EVERYWHERE {
                if path.starts_with(below) && !responses.contains_key(*status) {
                    responses.insert((*status).to_owned(), json!({ "description": description }));
                }
            }
            responses.sort_keys();
            for (status, response) in responses.iter_mut() {
                response["headers"]["x-request-id"] = json!({ "$ref": "#/components/headers/RequestId" });
                if status == "429" || (status == "503" && path != "/readyz") {
                    response["headers"]["retry-after"] = json!({ "$ref": "#/components/headers/RetryAfter" });
                }
                if status.starts_with(['4', '5']) && response.get("content").is_none() {
                    let problem = json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
                    response["content"] = json!({ "application/problem+json": problem });
                }
            }
        }
    }
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(|members| members.iter_mut())
}

/// `GET /openapi.json`
#[utoipa::path(
    get, path = "/openapi.json", tag = "contract", operation_id = "document",
    summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json"))
)]
pub(super) async fn as_json() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(document_text);
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")], TEXT.as_str()).into_response()
}

/// `GET /docs`
#[utoipa::path(
    get, path = "/docs", tag = "contract", operation_id = "page",
    summary = "This document for people",
    responses((status = 200, description = "A page that needs no other host.", body = String, content_type = "text/html"))
)]
pub(super) async fn as_page() -> Response {
    static PAGE: LazyLock<(String, String)> = LazyLock::new(|| (page(document()), policy()));
    let (page, policy) = &*PAGE;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, page.as_str()).into_response()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
    color:#1b1f24;background:#fff}h1,h2,h3{line-height:1.2}h3{margin-top:2.5rem;border-top:1px solid #d0d7de;\
    padding-top:1rem}code,pre{font:.875rem/1.45 ui-monospace,monospace;background:#f3f5f7;border-radius:4px}\
    code{padding:.1em .3em}pre{padding:.75rem;overflow:auto}table{border-collapse:collapse;width:100%}\
    th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #d0d7de}\
    .method{text-transform:uppercase;color:#0550ae}@media(prefers-color-scheme:dark){body{color:#e6edf3;\
    background:#0d1117}code,pre{background:#1c2128}.method{color:#79b8ff}}";

/// Nothing but this one style sheet is let in: no script, no picture, no frame around the page.
fn policy() -> String {
    let hash = BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The document as one page without scripts.
fn page(document: &Value) -> String {
    let mut html = String::with_capacity(64 << 10);
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Lockstep: the API</title><style>{STYLE}</style></head><body>\
         <h1>{} {}</h1><p>{}</p><p><a href=\"/openapi.json\">openapi.json</a></p>",
        text(&document["info"]["title"]),
        text(&document["info"]["version"]),
        text(&document["info"]["description"]),
    );
    let empty = Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    for tag in document["tags"].as_array().into_iter().flatten() {
        let _ = write!(html, "<h2>{}</h2><p>{}</p>", text(&tag["name"]), text(&tag["description"]));
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap_or(&empty) {
                if operation["tags"][0] == tag["name"] {
                    section(&mut html, path, method, operation);
                }
            }
        }
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap_or(&empty) {
        let _ = write!(html, "<h3>{}</h3><pre>{}</pre>", escaped(name), escaped(&format!("{schema:#}")));
    }
    html.push_str("<h2>Security</h2>");
    for (name, scheme) in document["components"]["securitySchemes"].as_object().unwrap_or(&empty) {
        let _ = write!(html, "<h3>{}</h3><p>{}</p>", escaped(name), text(&scheme["description"]));
    }
    html.push_str("</body></html>\n");
    html
}

fn section(html: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        html,
        "<h3><span class=\"method\">{}</span> <code>{}</code></h3><p><strong>{}</strong></p><p>{}</p>",
        escaped(method),
        escaped(path),
        text(&operation["summary"]),
        text(&operation["description"])
    );
    let security: Vec<String> = operation["security"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .map(|all| {
            all.keys().map(|name| format!("<code>{}</code>", escaped(name))).collect::<Vec<_>>().join(" and ")
        })
        .collect();
    if !security.is_empty() {
        let _ = write!(html, "<p>Security: {}</p>", security.join(" or "));
    }
    let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !parameters.is_empty() {
        html.push_str("<table><tr><th>Parameter</th><th>In</th><th>What</th></tr>");
        for parameter in parameters {
            let _ = write!(
                html,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                text(&parameter["name"]),
                text(&parameter["in"]),
                text(&parameter["description"])
            );
        }
        html.push_str("</table>");
    }
    for (kind, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        let schema = format!("{:#}", content["schema"]);
        let _ = write!(html, "<p>Body, <code>{}</code>:</p><pre>{}</pre>", escaped(kind), escaped(&schema));
    }
    html.push_str("<table><tr><th>Status</th><th>Content</th><th>When</th></tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let kinds: Vec<_> =
            response["content"].as_object().into_iter().flat_map(|kinds| kinds.keys()).collect();
        let kinds: Vec<_> = kinds.into_iter().map(|kind| escaped(kind)).collect();
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(status),
            kinds.join(", "),
            text(&response["description"])
        );
    }
    html.push_str("</table>");
}

/// Text for a page; what stands between backticks is code.
fn text(value: &Value) -> String {
    let mut out = String::new();
    for (index, part) in value.as_str().unwrap_or_default().split('`').enumerate() {
        let part = escaped(part).replace("\n\n", "</p><p>");
        let _ = if index % 2 == 1 { write!(out, "<code>{part}</code>") } else { write!(out, "{part}") };
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
