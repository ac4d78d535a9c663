//! Sentinel through ARM: shapes, versions, lists, comments, relations, tasks.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, fixture};
use crate::schema;

const ID: &str = "73e01a99-5cd7-4139-a149-9f2736ff2ab5";

fn properties(title: &str) -> Value {
    json!({"properties": {"title": title, "severity": "Medium", "status": "New"}})
}

#[tokio::test]
async fn an_incident_is_created_then_updated_under_its_etag() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let path = format!("/incidents/{ID}");
    let example = fixture("sentinel/Incidents_CreateOrUpdate.json");
    let mut body = example["parameters"]["incident"].clone();
    body.as_object_mut().expect("an object").remove("etag");
    let made = desk.arm(&token, Method::PUT, &path, body.clone()).await.expect(201);
    schema::arm("Incident", &made);
    assert_eq!(made["name"], ID);
    for name in ["title", "description", "severity", "status", "classification", "classificationReason"] {
        assert_eq!(made["properties"][name], body["properties"][name], "{name}");
    }
    assert_eq!(made["properties"]["incidentNumber"], 1);
    assert_eq!(made["properties"]["providerName"], "Azure Sentinel");
    assert!(made["properties"]["incidentUrl"].as_str().is_some_and(|url| url.contains(ID)), "{made}");
    assert!(
        made["id"].as_str().is_some_and(|id| id.ends_with(&format!("/Incidents/{ID}"))),
        "{}",
        made["id"]
    );

    let mut update = made.clone();
    update["properties"]["title"] = json!("Second title");
    let second = desk.arm(&token, Method::PUT, &path, update.clone()).await.expect(200);
    schema::arm("Incident", &second);
    assert_eq!(second["properties"]["title"], "Second title");
    assert_ne!(second["etag"], made["etag"]);

    let (code, message) = desk.arm(&token, Method::PUT, &path, update).await.refused(409);
    assert_eq!(code, "Conflict");
    assert!(message.starts_with("Newer version of resource"), "{message}");
    let read = desk.arm(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!(read, second);

    assert_eq!(desk.arm(&token, Method::DELETE, &path, Value::Null).await.status, 200);
    assert_eq!(desk.arm(&token, Method::DELETE, &path, Value::Null).await.status, 204);
    desk.arm(&token, Method::GET, &path, Value::Null).await.refused(404);
}

#[tokio::test]
async fn what_is_required_is_asked_for() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let path = format!("/incidents/{ID}");
    for missing in ["title", "severity", "status"] {
        let mut body = properties("Lacking");
        body["properties"].as_object_mut().expect("an object").remove(missing);
        desk.arm(&token, Method::PUT, &path, body).await.refused(400);
    }
    let mut body = properties("Critical");
    body["properties"]["severity"] = json!("Critical");
    desk.arm(&token, Method::PUT, &path, body).await.refused(400);

    let bearer = format!("Bearer {token}");
    let url =
        format!("{}{}/providers/Microsoft.SecurityInsights/incidents", desk.url("arm"), desk.workspace());
    desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.refused(400);
    let url = format!("{url}?api-version=2025-12-01");
    desk.call(Method::GET, &url, &[], Value::Null).await.refused(401);
    let graph = format!("Bearer {}", desk.app_token("graph", "writer").await);
    desk.call(Method::GET, &url, &[("authorization", &graph)], Value::Null).await.refused(401);
    let unknown = url.replace(desk.url("workspaceName"), "no-such-workspace");
    desk.call(Method::GET, &unknown, &[("authorization", &bearer)], Value::Null).await.refused(404);
    let shouted = url.replace("resourceGroups", "RESOURCEGROUPS");
    desk.call(Method::GET, &shouted, &[("authorization", &bearer)], Value::Null).await.expect(200);
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    for n in 0..12 {
        let mut body = properties(&format!("Number {n:02}"));
        if n % 2 == 0 {
            body["properties"]["severity"] = json!("High");
        }
        desk.arm(&token, Method::PUT, &format!("/incidents/made-{n:02}"), body).await.expect(201);
    }
    let titles = |list: &Value| -> Vec<String> {
        let items = list["value"].as_array().expect("a list");
        items.iter().map(|item| item["properties"]["title"].as_str().expect("a title").to_owned()).collect()
    };
    let read = async |query: &str| {
        let list =
            desk.arm(&token, Method::GET, &format!("/incidents?{query}"), Value::Null).await.expect(200);
        schema::arm("IncidentList", &list);
        list
    };
    let high = read("$filter=properties/severity%20eq%20'High'&$orderby=properties/title%20asc").await;
    assert_eq!(titles(&high).len(), 6);
    assert_eq!(titles(&high)[0], "Number 00");
    let one = read("$filter=contains(properties/title,%20'07')").await;
    assert_eq!(titles(&one), ["Number 07"]);
    let none = read("$filter=properties/lastModifiedTimeUtc%20ge%202099-01-01T00:00:00Z").await;
    assert_eq!(none["value"], json!([]));
    let some = read("$filter=properties/LastModifiedTimeUtc%20ge%202020-01-01T00:00:00Z").await;
    assert_eq!(titles(&some).len(), 12);

    let mut page = read("$top=5&$orderby=properties/createdTimeUtc%20asc").await;
    let mut seen = titles(&page);
    assert_eq!(seen.len(), 5);
    let bearer = format!("Bearer {token}");
    while let Some(next) = page["nextLink"].as_str() {
        assert!(next.starts_with(desk.url("arm")), "{next} leaves the emulator");
        page = desk.call(Method::GET, next, &[("authorization", &bearer)], Value::Null).await.expect(200);
        schema::arm("IncidentList", &page);
        seen.extend(titles(&page));
        assert!(seen.len() <= 12, "{seen:?}");
    }
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 12);
    let sorted = seen.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(sorted, "{seen:?}");
    desk.arm(&token, Method::GET, "/incidents?$filter=nonsense", Value::Null).await.refused(400);
}

#[tokio::test]
async fn a_comment_names_its_author_and_moves_the_incidents_etag() {
    let desk = Desk::open().await;
    let (app, kim) = (desk.app_token("arm", "writer").await, desk.user_token("arm", "kim@contoso.com").await);
    let incident = format!("/incidents/{ID}");
    let before = desk.arm(&app, Method::PUT, &incident, properties("Talked about")).await.expect(201);
    let body = json!({"properties": {"message": "Some message"}});
    let mine =
        desk.arm(&kim, Method::PUT, &format!("{incident}/comments/by-kim"), body.clone()).await.expect(201);
    schema::arm("IncidentComment", &mine);
    assert_eq!(mine["properties"]["author"]["userPrincipalName"], "kim@contoso.com");
    let theirs = desk.arm(&app, Method::PUT, &format!("{incident}/comments/by-app"), body).await.expect(201);
    schema::arm("IncidentComment", &theirs);
    assert!(theirs["properties"]["author"]["userPrincipalName"].is_null(), "{theirs}");

    let after = desk.arm(&app, Method::GET, &incident, Value::Null).await.expect(200);
    assert_ne!(after["etag"], before["etag"]);
    assert_eq!(after["properties"]["additionalData"]["commentsCount"], 2);
    let list = desk.arm(&app, Method::GET, &format!("{incident}/comments"), Value::Null).await.expect(200);
    schema::arm("IncidentCommentList", &list);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(2));
    let one =
        desk.arm(&app, Method::GET, &format!("{incident}/comments/by-kim"), Value::Null).await.expect(200);
    assert_eq!(one["properties"]["message"], "Some message");

    let state = desk.state().await;
    let held = state["workspaces"].as_object().expect("workspaces").values().next().expect("one");
    assert_eq!(held["comments"][ID].as_array().map(Vec::len), Some(2), "{}", held["comments"]);

    let long = json!({"properties": {"message": "x".repeat(30_001)}});
    desk.arm(&app, Method::PUT, &format!("{incident}/comments/long"), long).await.refused(400);
    let gone = desk.arm(&app, Method::DELETE, &format!("{incident}/comments/by-app"), Value::Null).await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    desk.arm(&app, Method::GET, &format!("{incident}/comments/by-app"), Value::Null).await.refused(404);
}

#[tokio::test]
async fn tasks_and_relations_have_their_published_shape() {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let incident = format!("/incidents/{ID}");
    desk.arm(&token, Method::PUT, &incident, properties("With tasks")).await.expect(201);

    let task = json!({"properties": {"title": "Call them", "status": "New", "description": "<div>x</div>"}});
    let made = desk.arm(&token, Method::PUT, &format!("{incident}/tasks/call"), task).await.expect(201);
    schema::arm("IncidentTask", &made);
    let list = desk.arm(&token, Method::GET, &format!("{incident}/tasks"), Value::Null).await.expect(200);
    schema::arm("IncidentTaskList", &list);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(1));

    let name = "/bookmarks/2216d0e1-91e3-4902-89fd-d2df8c535096";
    let body = json!({"properties": {"displayName": "Mark", "query": "SecurityEvent"}});
    desk.arm(&token, Method::PUT, name, body).await.expect(201);
    let bookmark = format!(
        "{}/providers/Microsoft.SecurityInsights/bookmarks/2216d0e1-91e3-4902-89fd-d2df8c535096",
        desk.workspace()
    );
    let relation = json!({"properties": {"relatedResourceId": bookmark}});
    let made =
        desk.arm(&token, Method::PUT, &format!("{incident}/relations/mark"), relation).await.expect(201);
    schema::arm("Relation", &made);
    let list = desk.arm(&token, Method::GET, &format!("{incident}/relations"), Value::Null).await.expect(200);
    schema::arm("RelationList", &list);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(1));

    for (what, schema) in [
        ("alerts", "IncidentAlertList"),
        ("bookmarks", "IncidentBookmarkList"),
        ("entities", "IncidentEntitiesResponse"),
    ] {
        let body =
            desk.arm(&token, Method::POST, &format!("{incident}/{what}"), Value::Null).await.expect(200);
        schema::arm(schema, &body);
    }
}
