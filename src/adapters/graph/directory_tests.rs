//! The directory against a small server on loopback: what is asked, and for how long the answer is remembered.

use std::sync::{Arc, Mutex};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use secrecy::SecretString;
use serde_json::{Value, json};
use time::Duration;
use tokio::net::TcpListener;
use url::Url;

use super::{GraphDirectory, GraphSettings};
use crate::adapters::budget::{Limits, Quotas};
use crate::adapters::call::Shared;
use crate::adapters::call::testing::{FixedClock, Notes};
use crate::adapters::entra::{EntraSettings, TokenSource};
use crate::adapters::transport::{ClientOptions, Transport};
use crate::domain::failure::Class;
use crate::domain::owners::PersonKind;
use crate::ports::Directory;

const TENANT: &str = "aaaabbbb-0000-cccc-1111-dddd2222eeee";
const GROUP: &str = "3046feea-040d-4a46-9e2b-91c2941bfa71";
const USER_MEMBERS: &str = "$select=id,userPrincipalName,mail,displayName";

type Script = fn(&str) -> (u16, Value);

struct Stage {
    asked: Arc<Mutex<Vec<String>>>,
    clock: Arc<FixedClock>,
    notes: Arc<Notes>,
    directory: GraphDirectory,
}

impl Stage {
    async fn new(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remember = Arc::clone(&asked);
        let app = axum::Router::new().fallback(move |request: Request| {
            let remember = Arc::clone(&remember);
            async move { answer(&request, &remember, script) }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let (clock, notes) = (Arc::new(FixedClock::default()), Arc::new(Notes::default()));
        let transport = Transport::new(&ClientOptions::default()).unwrap();
        let entra = EntraSettings {
            login_url: url.clone(),
            tenant_id: TENANT.to_owned(),
            client_id: "an-app".to_owned(),
            client_secret: SecretString::from("a secret".to_owned()),
        };
        let tokens = TokenSource::new(entra, transport.clone(), clock.clone());
        let shared = Shared {
            transport,
            clock: clock.clone(),
            observer: notes.clone(),
            quotas: Arc::new(Quotas::new(Limits::default())),
        };
        let settings = GraphSettings {
            graph_url: url,
            scope: "https://graph.microsoft.com/.default".to_owned(),
            tenant_id: TENANT.to_owned(),
            alerts: false,
        };
        Self { asked, clock, notes, directory: GraphDirectory::new(settings, tokens, shared) }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn later(&self, by: Duration) {
        *self.clock.0.lock().unwrap() += by;
    }
}

fn answer(request: &Request, remember: &Mutex<Vec<String>>, script: Script) -> Response {
    let target = request.uri().path_and_query().unwrap().to_string();
    if target.ends_with("/token") {
        let token = json!({"token_type": "Bearer", "expires_in": 86_400, "access_token": "token"});
        return Json(token).into_response();
    }
    let (status, body) = script(&target);
    remember.lock().unwrap().push(target);
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn not_there() -> (u16, Value) {
    (404, json!({"error": {"code": "Request_ResourceNotFound", "message": "does not exist"}}))
}

#[tokio::test]
async fn people_are_asked_for_once_an_hour_and_the_missing_every_ten_minutes() {
    let stage = Stage::new(|target| match target {
        _ if target.contains("/users/al%40contoso.com") => (
            200,
            json!({"id": "1", "userPrincipalName": "al@contoso.com", "mail": null, "displayName": "Al"}),
        ),
        _ if target.contains("/groups/") => (200, json!({"id": GROUP, "displayName": "SOC"})),
        _ => not_there(),
    })
    .await;
    let al = stage.directory.person("al@contoso.com").await.unwrap().expect("a user");
    assert_eq!((al.object_id.as_str(), al.upn.as_deref(), al.mail), ("1", Some("al@contoso.com"), None));
    assert!(stage.directory.person(" AL@contoso.com").await.unwrap().is_some());
    assert_eq!(stage.asked(), [format!("/v1.0/users/al%40contoso.com?{USER_MEMBERS}")]);
    assert_eq!(stage.directory.person(GROUP).await.unwrap().expect("a group").kind, PersonKind::Group);
    assert_eq!(
        stage.asked(),
        [
            format!("/v1.0/users/{GROUP}?{USER_MEMBERS}"),
            format!("/v1.0/groups/{GROUP}?$select=id,mail,displayName")
        ]
    );
    let guest = "g_else.org#EXT#@contoso.onmicrosoft.com";
    assert_eq!(stage.directory.person(guest).await.unwrap(), None);
    let asked = stage.asked();
    assert_eq!(asked, [format!("/v1.0/users/g_else.org%23EXT%23%40contoso.onmicrosoft.com?{USER_MEMBERS}")]);

    stage.later(Duration::minutes(11));
    stage.directory.person("al@contoso.com").await.unwrap();
    assert!(stage.asked().is_empty(), "an hour has not passed");
    stage.directory.person(guest).await.unwrap();
    assert_eq!(stage.asked().len(), 1, "who was missing may have come");
    stage.later(Duration::hours(1));
    stage.directory.person("al@contoso.com").await.unwrap();
    assert_eq!(stage.asked().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_believed_for_a_while_and_closes_nothing_else() {
    let stage = Stage::new(|_| (403, json!({"error": {"code": "Authorization_RequestDenied"}}))).await;
    let refused = stage.directory.person("al@contoso.com").await.unwrap_err();
    assert_eq!(refused.class, Class::Auth);
    assert!(refused.message.contains("User.Read.All"), "{refused}");
    assert_eq!(stage.asked().len(), 2, "the person, and whether anybody may be read");
    assert_eq!(stage.directory.person("bo@contoso.com").await.unwrap_err(), refused);
    assert!(stage.asked().is_empty());
    assert!(stage.notes.gates().is_empty(), "incidents are read under another role");
    stage.later(Duration::minutes(11));
    stage.directory.person("al@contoso.com").await.unwrap_err();
}

#[tokio::test]
async fn trouble_is_not_remembered() {
    let stage = Stage::new(|_| (500, json!({}))).await;
    for _ in 0..2 {
        let failure = stage.directory.person("al@contoso.com").await.unwrap_err();
        assert!(matches!(failure.class, Class::Retry { .. }), "{failure}");
        assert_eq!(stage.asked().len(), 1);
    }
}
