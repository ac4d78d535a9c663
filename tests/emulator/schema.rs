//! The published shapes, as validators.

use std::sync::OnceLock;

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

use crate::desk::fixture;

/// Asserts that a Graph object has the published shape, each evidence that of its own type.
#[track_caller]
pub(crate) fn graph(name: &str, object: &Value) {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| nullable(fixture("specs/graph-security.openapi.json")));
    check(document, &format!("#/components/schemas/{name}"), object);
    each_evidence(object, &mut |evidence| {
        let Some(kind) = evidence["@odata.type"].as_str() else { return };
        let kind = kind.trim_start_matches('#');
        if document["components"]["schemas"].get(kind).is_some() {
            check(document, &format!("#/components/schemas/{kind}"), evidence);
        }
    });
}

/// Asserts that an ARM object has the published shape.
#[track_caller]
pub(crate) fn arm(name: &str, object: &Value) {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| fixture("specs/sentinel-incidents.openapi.json"));
    check(document, &format!("#/definitions/{name}"), object);
}

/// Asserts that a playbook body has the shape that the trigger sends.
#[track_caller]
pub(crate) fn playbook(body: &Value) {
    let schema = fixture("sentinel/playbook-incident-trigger.schema.json");
    assert_valid(&jsonschema::validator_for(&schema).expect("a schema"), "the playbook body", body);
}

#[track_caller]
fn check(document: &Value, pointer: &str, object: &Value) {
    let mut root: Map<String, Value> = Map::new();
    for part in ["components", "definitions"] {
        if let Some(found) = document.get(part) {
            root.insert(part.to_owned(), found.clone());
        }
    }
    root.insert("allOf".to_owned(), json!([{"$ref": pointer}]));
    let validator = jsonschema::options()
        .with_draft(Draft::Draft4)
        .should_validate_formats(false)
        .build(&Value::Object(root))
        .unwrap_or_else(|error| panic!("{pointer}: {error}"));
    assert_valid(&validator, pointer, object);
}

#[track_caller]
fn assert_valid(validator: &Validator, what: &str, object: &Value) {
    let errors: Vec<String> = validator
        .iter_errors(object)
        .map(|error| {
            format!(
                "{} at {}",
                error.to_string().chars().take(300).collect::<String>(),
                error.instance_path()
            )
        })
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}");
}

fn each_evidence(object: &Value, look: &mut impl FnMut(&Value)) {
    match object {
        Value::Array(items) => items.iter().for_each(|item| each_evidence(item, look)),
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::Array(items) if name == "evidence" => items.iter().for_each(&mut *look),
                    _ => each_evidence(member, look),
                }
            }
        }
        _ => {}
    }
}

/// OpenAPI 3.0 says `nullable` where JSON Schema names the type `null`.
fn nullable(schema: Value) -> Value {
    match schema {
        Value::Array(items) => Value::Array(items.into_iter().map(nullable).collect()),
        Value::Object(members) => {
            let mut members: Map<String, Value> =
                members.into_iter().map(|(name, member)| (name, nullable(member))).collect();
            if members.get("nullable") == Some(&Value::Bool(true)) {
                if let Some(Value::String(kind)) = members.get("type") {
                    let kinds = json!([kind, "null"]);
                    members.insert("type".to_owned(), kinds);
                }
                if let Some(Value::Array(values)) = members.get_mut("enum") {
                    values.push(Value::Null);
                }
            }
            Value::Object(members)
        }
        other => other,
    }
}

#[test]
fn a_wrong_member_is_noticed() {
    let mut incident = fixture("graph/incident-get-expand-alerts.response.json");
    graph("microsoft.graph.security.incident", &incident);
    incident["severity"] = json!("critical");
    assert!(
        std::panic::catch_unwind(|| graph("microsoft.graph.security.incident", &incident)).is_err(),
        "an unknown severity passes for a known one"
    );
}
