//! People and groups of the directory: who is there, who is gone, and who may ask.

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::Desk;

#[tokio::test]
async fn a_posted_person_is_known_everywhere_by_name_and_id() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let id = "5a5a5a5a-0000-4000-8000-000000000001";
    let person = json!({"upn": "kim@contoso.com", "objectId": id, "displayName": "Kim O'Hara", "mail": "k@contoso.com"});
    desk.control(Method::POST, "/people", person).await.expect(201);
    desk.switch("unknownPeople", "missing").await;
    for name in ["kim@contoso.com", "KIM@contoso.com", id] {
        let user = desk.graph(&token, Method::GET, &format!("/users/{name}"), Value::Null).await.expect(200);
        assert_eq!((&user["id"], &user["displayName"]), (&json!(id), &json!("Kim O'Hara")));
        assert_eq!(
            (&user["userPrincipalName"], &user["mail"]),
            (&json!("kim@contoso.com"), &json!("k@contoso.com"))
        );
    }
    let few = desk
        .graph(&token, Method::GET, &format!("/users/{id}?$select=id,mail"), Value::Null)
        .await
        .expect(200);
    assert!(few.get("displayName").is_none() && few["mail"] == "k@contoso.com", "{few}");
    let (code, _) = desk.graph(&token, Method::GET, "/users/ann@contoso.com", Value::Null).await.refused(404);
    assert_eq!(code, "Request_ResourceNotFound");

    // Sentinel's directory is the same, and so are tokens.
    let arm = desk.user_token("arm", "kim@contoso.com").await;
    let body =
        json!({"properties": {"title": "t", "severity": "Low", "status": "New", "owner": {"objectId": id}}});
    let made = desk.arm(&arm, Method::PUT, "/incidents/owned", body).await.expect(201);
    assert_eq!(made["properties"]["owner"]["userPrincipalName"], "kim@contoso.com");
    assert_eq!(made["properties"]["owner"]["assignedTo"], "Kim O'Hara");
    let comment = json!({"properties": {"message": "Mine"}});
    let said = desk.arm(&arm, Method::PUT, "/incidents/owned/comments/c", comment).await.expect(201);
    assert_eq!(
        (&said["properties"]["author"]["objectId"], &said["properties"]["author"]["name"]),
        (&json!(id), &json!("Kim O'Hara"))
    );
}

#[tokio::test]
async fn who_was_taken_out_is_not_found_by_name_or_id() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let kim = desk.graph(&token, Method::GET, "/users/kim@contoso.com", Value::Null).await.expect(200);
    let id = kim["id"].as_str().expect("an id").to_owned();
    assert_eq!(desk.control(Method::DELETE, "/people/kim@contoso.com", Value::Null).await.status, 204);
    for name in ["kim@contoso.com", id.as_str()] {
        desk.graph(&token, Method::GET, &format!("/users/{name}"), Value::Null).await.refused(404);
    }
    desk.graph(&token, Method::GET, "/users/ann@contoso.com", Value::Null).await.expect(200);
    desk.control(Method::POST, "/people", json!({"upn": "kim@contoso.com"})).await.expect(201);
    let back = desk.graph(&token, Method::GET, "/users/kim@contoso.com", Value::Null).await.expect(200);
    assert_eq!(back["id"], id.as_str());
}

#[tokio::test]
async fn a_group_is_found_by_its_id() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let made = desk.control(Method::POST, "/groups", json!({"displayName": "Tier 2"})).await.expect(201);
    let path = format!("/groups/{}", made["id"].as_str().expect("an id"));
    let group = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
    assert_eq!((&group["displayName"], &group["mail"]), (&json!("Tier 2"), &Value::Null));
    desk.graph(&token, Method::GET, "/groups/00000000-0000-4000-8000-00000000dead", Value::Null)
        .await
        .refused(404);
    desk.switch("directoryRead", "refused").await;
    for path in [path.as_str(), "/users/ann@contoso.com"] {
        let (code, _) = desk.graph(&token, Method::GET, path, Value::Null).await.refused(403);
        assert_eq!(code, "Authorization_RequestDenied");
    }
}

#[tokio::test]
async fn each_tenant_has_people_of_its_own() {
    let desk = Desk::open().await;
    let other = "bbbbcccc-1111-4ddd-8222-eeee3333ffff";
    desk.control(Method::POST, "/tenants", json!({"tenantId": other})).await.expect(201);
    desk.switch("unknownPeople", "missing").await;
    desk.control(Method::POST, "/people", json!({"tenantId": other, "upn": "kim@fabrikam.com"}))
        .await
        .expect(201);
    let own = desk.app_token("graph", "reader").await;
    desk.graph(&own, Method::GET, "/users/kim@fabrikam.com", Value::Null).await.refused(404);
    let wish = json!({"tenantId": other, "clientId": "reader", "audience": desk.url("graph")});
    let theirs = desk.token(wish).await;
    desk.graph(&theirs, Method::GET, "/users/kim@fabrikam.com", Value::Null).await.expect(200);
    let reply = desk.control(Method::POST, "/people", json!({"tenantId": desk.tenant()})).await;
    assert_eq!(reply.status, 400, "{}", reply.text);
}
