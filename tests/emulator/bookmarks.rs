//! Bookmarks: resources of a workspace that an incident shows when they are related to it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::schema;

fn mark(name: &str) -> Value {
    json!({"properties": {
        "displayName": name, "query": "AlertInfo", "queryResult": "{}", "notes": "of an alert", "labels": ["x"],
        "eventTime": "2026-03-01T08:00:00Z",
        "entityMappings": [
            {"entityType": "Host", "fieldMappings": [{"identifier": "HostName", "value": "pc-1"}]},
            {"entityType": "Account", "fieldMappings": [{"identifier": "Name", "value": "kim"}]},
        ],
    }})
}

async fn relate(desk: &Desk, token: &str, bookmark: &str) -> crate::desk::Reply {
    let id = format!("{}/providers/Microsoft.SecurityInsights/bookmarks/{bookmark}", desk.workspace());
    let body = json!({"properties": {"relatedResourceId": id}});
    desk.arm(token, Method::PUT, &format!("/incidents/marked/relations/to-{bookmark}"), body).await
}

async fn with_incident() -> (Desk, String) {
    let desk = Desk::open().await;
    let token = desk.app_token("arm", "writer").await;
    let body = json!({"properties": {"title": "t", "severity": "Low", "status": "New"}});
    desk.arm(&token, Method::PUT, "/incidents/marked", body).await.expect(201);
    (desk, token)
}

#[tokio::test]
async fn a_bookmark_is_made_changed_listed_and_deleted() {
    let (desk, _) = with_incident().await;
    let token = desk.user_token("arm", "kim@contoso.com").await;
    let made = desk.arm(&token, Method::PUT, "/bookmarks/b-1", mark("One")).await.expect(201);
    schema::arm("HuntingBookmarkProperties", &made["properties"]);
    assert_eq!(made["type"], "Microsoft.SecurityInsights/bookmarks");
    assert_eq!(made["properties"]["createdBy"]["email"], "kim@contoso.com");
    let mut update = made.clone();
    update["properties"]["notes"] = json!("more");
    let second = desk.arm(&token, Method::PUT, "/bookmarks/B-1", update.clone()).await.expect(200);
    assert_eq!((&second["name"], &second["properties"]["notes"]), (&json!("b-1"), &json!("more")));
    assert_eq!(second["properties"]["created"], made["properties"]["created"]);
    desk.arm(&token, Method::PUT, "/bookmarks/b-1", update).await.refused(409);
    for missing in ["displayName", "query"] {
        let mut body = mark("Two");
        body["properties"].as_object_mut().expect("members").remove(missing);
        desk.arm(&token, Method::PUT, "/bookmarks/b-2", body).await.refused(400);
    }
    desk.arm(&token, Method::PUT, "/bookmarks/b-2", mark("Two")).await.expect(201);
    let list = desk.arm(&token, Method::GET, "/bookmarks", Value::Null).await.expect(200);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        desk.state().await["workspaces"][desk.workspace()]["bookmarks"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(desk.arm(&token, Method::DELETE, "/bookmarks/b-2", Value::Null).await.status, 200);
    assert_eq!(desk.arm(&token, Method::DELETE, "/bookmarks/b-2", Value::Null).await.status, 204);
    desk.arm(&token, Method::GET, "/bookmarks/b-2", Value::Null).await.refused(404);
}

#[tokio::test]
async fn a_related_bookmark_is_counted_shown_and_brings_its_entities() {
    let (desk, token) = with_incident().await;
    let (_, message) = relate(&desk, &token, "b-1").await.refused(404);
    assert_eq!(message, "Resource 'b-1' does not exist.");
    desk.arm(&token, Method::PUT, "/bookmarks/b-1", mark("One")).await.expect(201);
    relate(&desk, &token, "b-1").await.expect(201);
    let count = async || {
        let incident = desk.arm(&token, Method::GET, "/incidents/marked", Value::Null).await.expect(200);
        incident["properties"]["additionalData"]["bookmarksCount"].clone()
    };
    assert_eq!(count().await, 1);
    let shown = desk.arm(&token, Method::POST, "/incidents/marked/bookmarks", Value::Null).await.expect(200);
    schema::arm("IncidentBookmarkList", &shown);
    assert_eq!((&shown["value"][0]["kind"], &shown["value"][0]["name"]), (&json!("Bookmark"), &json!("b-1")));
    assert_eq!(shown["value"][0]["properties"]["displayName"], "One");
    let entities =
        desk.arm(&token, Method::POST, "/incidents/marked/entities", Value::Null).await.expect(200);
    schema::arm("IncidentEntitiesResponse", &entities);
    let kinds: Vec<&str> = entities["metaData"]
        .as_array()
        .expect("counts")
        .iter()
        .filter_map(|one| one["entityKind"].as_str())
        .collect();
    assert_eq!(kinds, ["Account", "Host"]);
    assert_eq!(entities["entities"][0]["properties"]["hostName"], "pc-1");
    let bookmark = desk.arm(&token, Method::GET, "/bookmarks/b-1", Value::Null).await.expect(200);
    assert_eq!(bookmark["properties"]["incidentInfo"]["incidentId"], "marked");
    assert_eq!(desk.arm(&token, Method::DELETE, "/bookmarks/b-1", Value::Null).await.status, 200);
    assert_eq!(count().await, 0);
    let shown = desk.arm(&token, Method::POST, "/incidents/marked/bookmarks", Value::Null).await.expect(200);
    assert_eq!(shown["value"], json!([]));
}

#[tokio::test]
async fn an_incident_takes_twenty_and_an_onboarded_one_as_switched() {
    let (desk, token) = with_incident().await;
    for number in 0..21 {
        let path = format!("/bookmarks/b-{number}");
        desk.arm(&token, Method::PUT, &path, mark("One of many")).await.expect(201);
        let reply = relate(&desk, &token, &format!("b-{number}")).await;
        assert_eq!(reply.status, if number < 20 { 201 } else { 400 }, "{}", reply.text);
    }
    let body = json!({"properties": {"title": "t", "severity": "Low", "status": "New"}});
    desk.arm(&token, Method::DELETE, "/incidents/marked", Value::Null).await;
    desk.arm(&token, Method::PUT, "/incidents/marked", body).await.expect(201);
    desk.switch("defenderSwitch", "on").await;
    relate(&desk, &token, "b-0").await.expect(201);
    desk.switch("onboardedBookmarks", "refused").await;
    relate(&desk, &token, "b-1").await.refused(400);
}
