//! The vectors that the verdicts are known of, and the documents of the key service as Entra publishes them.

use lockstep::app::tokens::TokenRefusal;
use lockstep::domain::cloud::Cloud;
use lockstep::domain::token::{
    Authority, DocumentError, Key, Refused, Standing, TokenRules, Unproved, Version, key_address, keys,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::bench::{
    AUDIENCE, HandClock, KIDS, LOGIN, Service, TENANT, fixture, graph_rules, json_fixture, sign, tokens,
};

#[tokio::test]
async fn every_published_token_gets_its_verdict() {
    let vectors = json_fixture("validation-tokens.json");
    let now = vectors["validAtUnix"].as_i64().expect("a time");
    assert_eq!(vectors["audience"], AUDIENCE);
    let refused = |name: &str| match name {
        "expired" => Refused::Expired,
        "not-yet-valid" => Refused::NotYetValid,
        "wrong-audience" => Refused::Audience,
        "wrong-publisher-v1" | "wrong-publisher-v2" => Refused::Application,
        "issuer-of-other-tenant" | "issuer-not-entra" => Refused::Issuer,
        "signed-by-unknown-key" => Refused::Signature,
        "unknown-kid" => Refused::UnknownKey,
        "alg-none" | "hmac-with-public-key" => Refused::Algorithm,
        other => panic!("no verdict is known for {other}"),
    };
    let cases = vectors["tokens"].as_array().expect("a list");
    assert!(cases.len() >= 13, "{}", cases.len());
    for case in cases {
        let (name, token) =
            (case["name"].as_str().expect("a name"), case["token"].as_str().expect("a token"));
        // A verifier of its own for each, so that none profits from another's keys.
        let service = Service::serving("jwks.json");
        let tokens = tokens(&service, &HandClock::at(now));
        let verdict = tokens.verify(token, &graph_rules()).await;
        match case["expect"].as_str().expect("a verdict") {
            "accept" => {
                let verified = verdict.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
                assert_eq!(verified.app_id, vectors["publisher"], "{name}");
                assert!(verified.expires.unix_timestamp() > now, "{name}");
            }
            "reject" => assert_eq!(verdict, Err(TokenRefusal::Refused(refused(name))), "{name}"),
            "reject-after-one-key-refresh" => {
                assert_eq!(verdict, Err(TokenRefusal::Refused(refused(name))), "{name}");
                assert_eq!(service.fetches(), 1, "{name}");
                let again = tokens.verify(token, &graph_rules()).await;
                assert_eq!(again, Err(TokenRefusal::Refused(refused(name))), "{name}");
                assert_eq!(service.fetches(), 0, "{name}");
            }
            other => panic!("{name}: {other} is no verdict"),
        }
    }
}

/// Each Azure sender's claims, in both forms, signed: its own door lets it in, the others do not.
#[tokio::test]
async fn each_sender_is_let_in_at_its_own_door_alone() {
    let all = json_fixture("jwt-claims.json");
    let tenant = "72f988bf-0000-4000-8000-000000000001";
    let audiences = ["api://11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-555555555555"];
    let doors = [
        ("logicApp", TokenRules::playbook([tenant], audiences, Standing::role("Bridge.Ingest"))),
        ("azureMonitor", TokenRules::action_groups([tenant], audiences, "ActionGroupsSecureWebhook")),
        ("eventGrid", TokenRules::event_grid([tenant], audiences, "AzureEventGridSecureWebhookSubscriber")),
        ("graph", TokenRules::graph([tenant], audiences)),
    ];
    let key = the_keys().remove(0);
    let authority = Authority::new(Cloud::Global, LOGIN, tenant);
    let mut tried = 0;
    for (name, case) in all.as_object().expect("an object").iter().filter(|(name, _)| *name != "x-note") {
        let claims = &case["claims"];
        let token = sign(0, KIDS[0], claims);
        let now =
            OffsetDateTime::from_unix_timestamp(claims["iat"].as_i64().expect("iat") + 60).expect("a date");
        for (door, rules) in &doors {
            let proved = Unproved::read(&token).expect("it reads").prove(&key).expect("it is signed");
            let verdict = proved.judge(rules, &authority, now);
            if name.starts_with(door) {
                let verified = verdict.unwrap_or_else(|refused| panic!("{name} at {door}: {refused}"));
                assert_eq!(
                    (verified.tenant.as_str(), verified.object_id.is_some()),
                    (tenant, true),
                    "{name}"
                );
                assert_eq!(json!(verified.roles), claims["roles"], "{name}");
                tried += 1;
            } else {
                assert!(matches!(verdict, Err(Refused::Application | Refused::Standing)), "{name} at {door}");
            }
        }
    }
    assert_eq!(tried, 6);
}

fn the_keys() -> Vec<Key> {
    keys(fixture("jwks.json").as_bytes(), TENANT).expect("a key document")
}

/// Rules that say too little let nobody in: an audience is no proof of who asks.
#[test]
fn an_audience_alone_is_never_enough() {
    let now = 1_772_037_033;
    let claims = json!({
        "aud": AUDIENCE, "iss": format!("https://sts.windows.net/{TENANT}/"), "tid": TENANT, "ver": "1.0",
        "appid": "99999999-0000-4000-8000-000000000001", "oid": "88888888-0000-4000-8000-000000000001",
        "roles": ["Bridge.Ingest"], "exp": now + 600,
    });
    let token = sign(0, KIDS[0], &claims);
    let authority = Authority::new(Cloud::Global, LOGIN, TENANT);
    let now = OffsetDateTime::from_unix_timestamp(now).expect("a date");
    let object = |id: &str| Standing::RoleOrObject {
        roles: Default::default(),
        object_ids: [id.to_owned()].into_iter().collect(),
    };
    for (standing, verdict) in [
        (Standing::AppAlone, Err(Refused::Standing)),
        (TokenRules::default().standing, Err(Refused::Standing)),
        (Standing::role("bridge.ingest"), Err(Refused::Standing)),
        (object("88888888-0000-4000-8000-000000000002"), Err(Refused::Standing)),
        (object("88888888-0000-4000-8000-000000000001"), Ok(())),
        (Standing::role("Bridge.Ingest"), Ok(())),
    ] {
        let rules = TokenRules::playbook([TENANT], [AUDIENCE], standing.clone());
        let unproved = Unproved::read(&token).expect("it reads");
        assert_eq!(unproved.judge(&rules, &authority, now), verdict, "{standing:?}");
    }
}

#[test]
fn keys_are_where_the_login_host_says_and_nowhere_else() {
    let authority = Authority::new(Cloud::Global, LOGIN, TENANT);
    let genuine = fixture("openid-configuration-v2-tenant.json");
    let address = key_address(genuine.as_bytes(), &authority, Version::V2).expect("an address");
    assert_eq!(address.as_str(), format!("{LOGIN}/{TENANT}/discovery/v2.0/keys"));
    // Everybody's document is a template: the tenants' own are preferred, and nothing else is asked for.
    for (name, version) in
        [("v1-common", Version::V1), ("v2-common", Version::V2), ("v2-tenant", Version::V1)]
    {
        let document = fixture(&format!("openid-configuration-{name}.json"));
        let answer = key_address(document.as_bytes(), &authority, version);
        assert_eq!(answer, Err(DocumentError::OtherIssuer), "{name}");
    }
    let issuer = format!("{LOGIN}/{TENANT}/v2.0");
    for elsewhere in [
        "https://keys.example/keys",
        "http://login.microsoftonline.com/keys",
        "https://login.microsoftonline.com:8443/keys",
        "https://login.microsoftonline.com.keys.example/keys",
        "https://login.microsoftonline.com@keys.example/keys",
        "https://somebody@login.microsoftonline.com/keys",
        "file:///etc/passwd",
        "data:application/json,{}",
    ] {
        let document = json!({"issuer": issuer, "jwks_uri": elsewhere}).to_string();
        let answer = key_address(document.as_bytes(), &authority, Version::V2);
        assert_eq!(answer, Err(DocumentError::OtherHost), "{elsewhere}");
    }
    for unreadable in ["", "[]", "{}", "<html>", "{\"issuer\":1}"] {
        let answer = key_address(unreadable.as_bytes(), &authority, Version::V2);
        assert_eq!(answer, Err(DocumentError::Unreadable), "{unreadable}");
    }
}

#[test]
fn a_key_that_is_not_for_this_is_left_out() {
    assert_eq!(the_keys().iter().map(Key::kid).collect::<Vec<_>>(), KIDS);
    let genuine = json_fixture("jwks.json")["keys"][0].clone();
    let changed = |name: &str, value: Value| {
        let mut key = genuine.clone();
        key[name] = value;
        keys(json!({"keys": [key]}).to_string().as_bytes(), TENANT).map(|keys| keys.len())
    };
    for (name, value) in [
        ("use", json!("sig")),
        ("alg", json!("RS256")),
        ("issuer", json!(format!("{LOGIN}/{{tenantid}}/v2.0"))),
        ("issuer", json!(format!("{LOGIN}/{TENANT}/v2.0"))),
        ("x5t", json!(null)),
    ] {
        assert_eq!(changed(name, value.clone()), Ok(1), "{name} {value}");
    }
    let modulus = genuine["n"].as_str().expect("n");
    for (name, value) in [
        ("kty", json!("EC")),
        ("kty", json!("oct")),
        ("use", json!("enc")),
        ("use", json!(null)),
        ("alg", json!("RS512")),
        ("alg", json!("HS256")),
        ("kid", json!("../keys")),
        ("kid", json!("")),
        ("kid", json!(7)),
        ("issuer", json!(format!("{LOGIN}/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0"))),
        // 1,024 bits, an even modulus, no modulus; exponents of 1, 3, an even one, and one that never ends.
        ("n", json!(format!("{}Q", &modulus[..170]))),
        ("n", json!(format!("{}A", &modulus[..341]))),
        ("n", json!("")),
        ("n", json!("AAAA")),
        ("e", json!("AQ")),
        ("e", json!("Aw")),
        ("e", json!("AQAA")),
        ("e", json!(modulus)),
    ] {
        assert_eq!(changed(name, value.clone()), Err(DocumentError::NoKey), "{name} {value}");
    }
    let mut other = json_fixture("jwks.json")["keys"][1].clone();
    other["kid"] = genuine["kid"].clone();
    let both = json!({"keys": [genuine, other]}).to_string();
    assert_eq!(keys(both.as_bytes(), TENANT), Err(DocumentError::NoKey), "two keys of one id");
}

#[test]
fn a_bearer_token_stands_alone_in_its_header() {
    use lockstep::domain::token::bearer;
    for (header, token) in [
        ("Bearer a.b.c", Some("a.b.c")),
        ("bearer a.b.c", Some("a.b.c")),
        ("BEARER  a.b.c", Some("a.b.c")),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearer a.b.c d", None),
        ("Bearer\ta.b.c", None),
        ("Basic a.b.c", None),
        ("a.b.c", None),
        ("", None),
    ] {
        assert_eq!(bearer(header), token, "{header:?}");
    }
}
