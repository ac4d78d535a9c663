//! Reading incidents and alerts from Graph: shapes, pages, order, filters, hidden enum members, refusals.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::desk::{Desk, fixture, incident};
use crate::schema;

const INCIDENT: &str = "microsoft.graph.security.incident";
const INCIDENTS: &str = "microsoft.graph.security.incidentCollectionResponse";
const ALERT: &str = "microsoft.graph.security.alert";
const ALERTS: &str = "microsoft.graph.security.alertCollectionResponse";

/// The ids of a list, in its order.
fn ids(list: &Value) -> Vec<String> {
    let items = list["value"].as_array().unwrap_or_else(|| panic!("{list}"));
    items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

/// Follows `@odata.nextLink` to the end, and tells how long each page was.
async fn drain(desk: &Desk, token: &str, path: &str) -> (Vec<String>, Vec<usize>) {
    let bearer = format!("Bearer {token}");
    let mut url = format!("{}/v1.0{path}", desk.url("graph"));
    let (mut all, mut pages) = (Vec::new(), Vec::new());
    loop {
        let page = desk.call(Method::GET, &url, &[("authorization", &bearer)], Value::Null).await.expect(200);
        schema::graph(INCIDENTS, &page);
        pages.push(page["value"].as_array().expect("a list").len());
        all.extend(ids(&page));
        let Some(next) = page["@odata.nextLink"].as_str() else { return (all, pages) };
        assert!(next.starts_with(desk.url("graph")), "{next} leaves the emulator");
        assert!(pages.len() < 100, "the pages do not end");
        url = next.to_owned();
    }
}

#[tokio::test]
async fn every_example_incident_is_served_in_the_published_shape() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for name in [
        "incident-get",
        "incident-list",
        "incident-list-older-text",
        "incident-list-page-1",
        "incident-list-page-2",
        "incident-list-expand-alerts",
        "incident-get-expand-alerts",
        "incident-new-minimal",
        "incident-awaiting-action",
        "incident-redirected",
    ] {
        let body = fixture(&format!("graph/{name}.response.json"));
        let one = [body.clone()];
        let items = body["value"].as_array().map_or(one.as_slice(), Vec::as_slice);
        for item in items {
            let made =
                desk.control(Method::POST, "/incidents?keepTimes=true", item.clone()).await.expect(201);
            assert_eq!(made["id"], item["id"], "{name}");
            expected.insert(item["id"].as_str().expect("an id").to_owned());

            let path = format!("/security/incidents/{}", made["id"].as_str().expect("an id"));
            let served = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
            schema::graph(INCIDENT, &served);
            assert_eq!(served["displayName"], item["displayName"], "{name}");
            assert_eq!(served["lastUpdateDateTime"], item["lastUpdateDateTime"], "{name}");
            assert_eq!(served["tenantId"], desk.tenant(), "{name}");
            assert!(served.get("alerts").is_none(), "alerts come only when they are asked for");
            assert!(served["@odata.context"].is_string(), "{served}");
        }
    }
    let page =
        desk.graph(&token, Method::GET, "/security/incidents?$expand=alerts", Value::Null).await.expect(200);
    schema::graph(INCIDENTS, &page);
    assert_eq!(ids(&page).into_iter().collect::<BTreeSet<_>>(), expected);
    let with_alerts = page["value"].as_array().expect("a list").iter().find(|one| one["id"] == "29");
    let alerts = with_alerts.expect("incident 29")["alerts"].as_array().expect("its alerts");
    assert!(!alerts.is_empty());
    assert!(alerts.iter().all(|alert| alert["incidentId"] == "29"), "{alerts:?}");
}

#[tokio::test]
async fn every_kind_of_evidence_is_served_in_its_published_shape() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let id = desk.incident(incident("Everything at once")).await;
    for name in [
        "alert-all-evidence-types",
        "alert-all-evidence-types-nulls",
        "alert-unknown-evidence-type",
        "alert-get",
    ] {
        let alert = fixture(&format!("graph/{name}.response.json"));
        let reply = desk.control(Method::POST, &format!("/incidents/{id}/alerts"), alert.clone()).await;
        assert!(matches!(reply.status, 200 | 201), "{name}: {}", reply.text);
        let path = format!("/security/alerts_v2/{}", alert["id"].as_str().expect("an id"));
        let served = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
        if name != "alert-unknown-evidence-type" {
            schema::graph(ALERT, &served);
        }
        assert_eq!(served["evidence"], alert["evidence"], "{name}: evidence comes back as it went in");
        assert_eq!(served["incidentId"], id.as_str(), "{name}");
    }
    let list = desk.graph(&token, Method::GET, "/security/alerts_v2", Value::Null).await.expect(200);
    assert!(list["value"].as_array().is_some_and(|alerts| alerts.len() >= 2), "{list}");
}

#[tokio::test]
async fn pages_are_at_most_fifty_and_lead_on_to_the_end() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let mut made = Vec::new();
    for n in 0..60 {
        made.push(desk.incident(incident(&format!("Incident {n}"))).await);
    }
    made.reverse();
    let everything: BTreeSet<&String> = made.iter().collect();

    for path in ["/security/incidents?$top=50", "/security/incidents?$top=7", "/security/incidents"] {
        let (all, pages) = drain(&desk, &token, path).await;
        assert_eq!(all, made, "{path}: newest first, each once");
        assert_eq!(all.iter().collect::<BTreeSet<_>>(), everything, "{path}");
        assert!(pages.iter().all(|length| *length <= 50), "{path}: {pages:?}");
        if path.ends_with("=7") {
            assert_eq!(pages[0], 7);
        }
    }
    let skipped = desk
        .graph(&token, Method::GET, "/security/incidents?$skip=58&$count=true", Value::Null)
        .await
        .expect(200);
    assert_eq!(ids(&skipped), made[58..]);
    assert_eq!(skipped["@odata.count"], 60);

    let example = fixture("graph/errors/400-top-too-large-incidents.json");
    let refused = desk.graph(&token, Method::GET, "/security/incidents?$top=1000", Value::Null).await;
    assert_eq!(refused.refused(400).1, example["body"]["error"]["message"].as_str().expect("a message"));
}

#[tokio::test]
async fn filters_compare_times_as_instants_and_words_as_words() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let at = |n: u32, fraction: &str| format!("2026-03-01T08:0{n}:00{fraction}Z");
    for (n, fraction, status, severity, owner) in [
        (1, "", "active", "low", Value::Null),
        (2, ".5", "resolved", "high", json!("kim@contoso.com")),
        (3, ".5533333", "active", "high", json!("lee@contoso.com")),
    ] {
        let body = json!({
            "id": n.to_string(), "displayName": format!("Number {n}"), "status": status, "severity": severity,
            "assignedTo": owner, "createdDateTime": at(n, ""), "lastUpdateDateTime": at(n, fraction),
            "classification": if n == 2 { "truePositive" } else { "unknown" },
            "determination": if n == 2 { "malware" } else { "unknown" },
        });
        desk.control(Method::POST, "/incidents?keepTimes=true", body).await.expect(201);
    }
    for (filter, expected) in [
        ("lastUpdateDateTime ge 2026-03-01T08:02:00.5000000Z", vec!["3", "2"]),
        ("lastUpdateDateTime gt 2026-03-01T08:02:00.500Z", vec!["3"]),
        ("lastUpdateDateTime lt 2026-03-01T08:02:00Z", vec!["1"]),
        ("createdDateTime le 2026-03-01T08:02:00Z", vec!["2", "1"]),
        ("status eq 'active'", vec!["3", "1"]),
        ("severity eq 'high' and status eq 'active'", vec!["3"]),
        ("assignedTo eq 'kim@contoso.com'", vec!["2"]),
        ("classification eq 'truePositive'", vec!["2"]),
        ("determination eq 'malware'", vec!["2"]),
        ("lastUpdateDateTime ge 2030-01-01T00:00:00Z", vec![]),
    ] {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("$filter", filter)
            .finish()
            .replace('+', "%20");
        let list = desk
            .graph(&token, Method::GET, &format!("/security/incidents?{query}"), Value::Null)
            .await
            .expect(200);
        assert_eq!(ids(&list), expected, "{filter}");
    }
    for bad in ["foo%20eq%20'x'", "status%20eq", "lastUpdateDateTime%20ge%20soon"] {
        let path = format!("/security/incidents?$filter={bad}");
        desk.graph(&token, Method::GET, &path, Value::Null).await.refused(400);
    }
}

#[tokio::test]
async fn what_the_list_does_not_offer_is_refused() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    for query in
        ["$orderby=createdDateTime", "$select=id", "$search=%22x%22", "$expand=comments", "$top=many"]
    {
        let path = format!("/security/incidents?{query}");
        desk.graph(&token, Method::GET, &path, Value::Null).await.refused(400);
    }
}

#[tokio::test]
async fn newer_enum_members_are_shown_only_to_those_who_ask() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let waiting = fixture("graph/incident-awaiting-action.response.json");
    let id = desk.incident(waiting).await;
    let alert = fixture("graph/alert-list-sentinel.response.json")["value"][0].clone();
    desk.control(Method::POST, &format!("/incidents/{id}/alerts"), alert.clone()).await;
    let alert_path = format!("/security/alerts_v2/{}", alert["id"].as_str().expect("an id"));
    let bearer = format!("Bearer {token}");
    for (ask, status, source) in
        [(true, "awaitingAction", "microsoftSentinel"), (false, "unknownFutureValue", "unknownFutureValue")]
    {
        let mut headers = vec![("authorization", bearer.as_str())];
        if ask {
            headers.push(("prefer", "include-unknown-enum-members"));
        }
        let read = async |path: &str| {
            let url = format!("{}/v1.0{path}", desk.url("graph"));
            desk.call(Method::GET, &url, &headers, Value::Null).await.expect(200)
        };
        assert_eq!(read(&format!("/security/incidents/{id}")).await["status"], status);
        assert_eq!(read("/security/incidents").await["value"][0]["status"], status);
        assert_eq!(read(&alert_path).await["serviceSource"], source);
        let expanded = read(&format!("/security/incidents/{id}?$expand=alerts")).await;
        assert_eq!(expanded["alerts"][0]["serviceSource"], source);
    }
}

#[tokio::test]
async fn each_tenant_sees_its_own_incidents() {
    let desk = Desk::open().await;
    let other = "bbbbcccc-1111-dddd-2222-eeee3333ffff";
    let reply = desk.control(Method::POST, "/tenants", json!({"tenantId": other})).await;
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
    desk.incident(incident("Ours")).await;
    let path = format!("/incidents?tenant={other}");
    desk.control(Method::POST, &path, incident("Theirs")).await.expect(201);

    let theirs =
        desk.token(json!({"tenantId": other, "clientId": "reader", "audience": desk.url("graph")})).await;
    for (token, name) in [(desk.app_token("graph", "reader").await, "Ours"), (theirs, "Theirs")] {
        let list = desk.graph(&token, Method::GET, "/security/incidents", Value::Null).await.expect(200);
        assert_eq!(list["value"].as_array().map(Vec::len), Some(1), "{list}");
        assert_eq!(list["value"][0]["displayName"], name);
    }
    let state = desk.state().await;
    assert_eq!(state["tenants"][other]["incidents"][0]["displayName"], "Theirs");
}

#[tokio::test]
async fn a_call_without_a_good_token_is_told_so_in_graphs_words() {
    let desk = Desk::open().await;
    let url = format!("{}/v1.0/security/incidents", desk.url("graph"));
    let own_request = "0ba5d0a0-1111-4222-8333-944445555666";
    let stale = desk
        .token(json!({
            "tenantId": desk.tenant(), "clientId": "reader", "audience": "https://graph.microsoft.com",
            "expiresIn": -600
        }))
        .await;
    let elsewhere = desk.app_token("arm", "reader").await;
    let example = fixture("graph/errors/401-token-expired.json");
    for (token, message) in [
        (Some(stale), Some(example["body"]["error"]["message"].as_str().expect("a message"))),
        (Some(elsewhere), None),
        (Some("nonsense".to_owned()), None),
        (None, None),
    ] {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("client-request-id", own_request)];
        if let Some(bearer) = &bearer {
            headers.push(("authorization", bearer));
        }
        let reply = desk.call(Method::GET, &url, &headers, Value::Null).await;
        let (code, words) = reply.refused(401);
        assert_eq!(code, "InvalidAuthenticationToken");
        if let Some(message) = message {
            assert_eq!(words, message);
        }
        assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
        assert_eq!(reply.header("client-request-id"), Some(own_request));
        let inner = &reply.json()["error"]["innerError"];
        assert_eq!(inner["client-request-id"], own_request);
        assert_eq!(inner["request-id"].as_str(), reply.header("request-id"));
        assert!(inner["date"].is_string(), "{inner}");
    }
}

#[tokio::test]
async fn an_unknown_incident_is_not_found_in_graphs_words() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let example = fixture("graph/errors/404-incident.json");
    let reply = desk.graph(&token, Method::GET, "/security/incidents/99999", Value::Null).await;
    let (code, message) = reply.refused(404);
    assert_eq!(code, example["body"]["error"]["code"].as_str().expect("a code"));
    assert_eq!(message, example["body"]["error"]["message"].as_str().expect("a message"));
    assert!(reply.header("request-id").is_some());
    desk.graph(&token, Method::GET, "/security/alerts_v2/none", Value::Null).await.refused(404);
    desk.graph(&token, Method::GET, "/security/nothing", Value::Null).await.refused(400);
}

#[tokio::test]
async fn alerts_are_listed_filtered_and_counted() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let mut body = fixture("graph/incident-get-expand-alerts.response.json");
    let mut second = body["alerts"][0].clone();
    second["id"] = json!("da-second");
    second["severity"] = json!("low");
    body["alerts"].as_array_mut().expect("a list").push(second);
    desk.incident(body).await;

    let list =
        desk.graph(&token, Method::GET, "/security/alerts_v2?$count=true", Value::Null).await.expect(200);
    schema::graph(ALERTS, &list);
    assert_eq!(list["@odata.count"], 2);
    let low = desk
        .graph(&token, Method::GET, "/security/alerts_v2?$filter=severity%20eq%20'low'", Value::Null)
        .await
        .expect(200);
    assert_eq!(ids(&low), ["da-second"]);
}

/// What a poll of alerts asks: those that changed since an instant, page by page, whatever the time of their incident.
#[tokio::test]
async fn alerts_that_changed_are_listed_whether_or_not_their_incident_moved() {
    let desk = Desk::open().await;
    let token = desk.app_token("graph", "reader").await;
    let alerts: Vec<Value> = (0..5).map(|number| json!({"id": format!("da-{number}")})).collect();
    let id = desk.incident(json!({"displayName": "Many", "alerts": alerts})).await;
    desk.switch("alertsTouch", "off").await;
    let incident = async || {
        let path = format!("/security/incidents/{id}");
        let incident = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
        incident["lastUpdateDateTime"].clone()
    };
    let before = incident().await;
    let since = before.as_str().expect("an instant").to_owned();
    let patch = json!({"status": "inProgress"});
    desk.graph(&token, Method::PATCH, "/security/alerts_v2/da-3", patch).await.expect(200);
    let path = format!("/incidents/{id}/alerts");
    let late = json!({"id": "da-late", "lastUpdateDateTime": "2020-01-01T00:00:00Z"});
    desk.control(Method::POST, &path, late).await.expect(201);
    assert_eq!(incident().await, before, "its time stands still");

    let mut found = Vec::new();
    let mut path = format!("/security/alerts_v2?$filter=lastUpdateDateTime%20gt%20{since}&$top=1");
    loop {
        let page = desk.graph(&token, Method::GET, &path, Value::Null).await.expect(200);
        for alert in page["value"].as_array().expect("a page") {
            schema::graph("microsoft.graph.security.alert", alert);
            assert_eq!(alert["incidentId"], id.as_str());
            found.push(alert["id"].as_str().expect("an id").to_owned());
        }
        let Some(next) = page["@odata.nextLink"].as_str() else { break };
        path = next.split_once("/v1.0").expect("a link to the same service").1.to_owned();
    }
    found.sort();
    assert_eq!(found, ["da-3", "da-late"]);
    let refused = "/security/alerts_v2?$filter=incidentId%20eq%20'1'";
    desk.graph(&token, Method::GET, refused, Value::Null).await.refused(400);
}
