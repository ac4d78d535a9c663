//! The document of the service against the service.

use lockstep::http::openapi::{document, document_text};
use serde_json::Value;

use super::*;

const REWRITE: &str = "write it anew with: cargo run -- openapi > openapi/lockstep.json";

#[test]
fn the_file_is_what_the_code_says() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/lockstep.json");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    // Compared line by line, to show the first that differs.
    for (number, (found, wanted)) in text.lines().zip(document_text().lines()).enumerate() {
        assert_eq!(found, wanted, "openapi/lockstep.json:{}: {REWRITE}", number + 1);
    }
    assert_eq!(text.lines().count(), document_text().lines().count(), "{REWRITE}");
}

/// Every address in the router's source is described, and every described one is answered.
#[tokio::test]
async fn every_address_is_described_and_every_description_is_true() {
    let house = House::new();
    let paths = document()["paths"].as_object().unwrap();
    assert!(paths.len() >= 9, "{:?}", paths.keys());
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let method: axum::http::Method = method.to_uppercase().parse().unwrap();
            let filled: String = path
                .split('{')
                .map(|part| part.split_once('}').map_or(part, |(_, rest)| rest))
                .collect::<Vec<_>>()
                .join("x");
            let request = Request::builder().method(method.clone()).uri(&filled).body(Body::empty()).unwrap();
            let answer = house.ask(request).await;
            assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            let described = operation["responses"].get(answer.status.as_str());
            let kinds =
                described.unwrap_or_else(|| panic!("{method} {path}: {} is not described", answer.status));
            let kind = answer.headers.get("content-type").map(|kind| kind.to_str().unwrap());
            let kind = kind.map(|kind| kind.split(';').next().unwrap());
            let known = kinds["content"]
                .as_object()
                .map(|kinds| kinds.keys().map(String::as_str).collect::<Vec<_>>());
            assert!(
                known.unwrap_or_default().contains(&kind.unwrap_or("none")) || kind.is_none(),
                "{method} {path}: {kind:?}"
            );
            for status in ["500"].into_iter().chain(path.starts_with("/notify/").then_some("413")) {
                assert!(operation["responses"].get(status).is_some(), "{method} {path}: {status}");
            }
            assert!(
                operation["summary"].is_string() && operation["operationId"].is_string(),
                "{method} {path}"
            );
        }
    }
    // A handler that is put in beside `routes!` has an address that nobody describes.
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/router.rs");
    let source = std::fs::read_to_string(source).unwrap();
    assert!(
        source.contains(".routes(routes!(") && !source.contains(".route("),
        "register handlers with routes!"
    );
}

#[test]
fn the_document_refers_to_what_is_in_it() {
    fn walk<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| walk(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    assert_eq!(document()["openapi"], "3.1.0");
    let mut references = Vec::new();
    walk(document(), &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("nothing from outside");
        assert!(document().pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let schemes = document()["components"]["securitySchemes"].as_object().unwrap();
    for operations in document()["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            for choice in operation["security"].as_array().into_iter().flatten() {
                assert!(choice.as_object().unwrap().keys().all(|name| schemes.contains_key(name)));
            }
        }
    }
}

#[tokio::test]
async fn the_page_needs_nobody_else() {
    let house = House::new();
    let page = house.get("/docs").await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for path in document()["paths"].as_object().unwrap().keys() {
        assert!(page.body.contains(&format!("<code>{path}</code>")), "{path}");
    }
    for foreign in ["<script", "src=", "http://", "https://", "@import", "url("] {
        assert!(!page.body.contains(foreign), "{foreign}");
    }
    assert_eq!(house.get("/openapi.json").await.body, document_text());
}
