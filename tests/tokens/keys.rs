//! The laws of the key cache, on a clock that is set by hand: when it fetches, when it must not, and what it says when
//! it cannot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration as Wait;

use lockstep::app::keys::{LIFE, ON_DEMAND};
use lockstep::app::tokens::{TokenRefusal, Tokens};
use lockstep::domain::token::{Refused, Verified};
use serde_json::json;
use time::Duration;

use crate::bench::{
    HandClock, KIDS, Mood, OTHER_TENANT, Service, TENANT, fixture, graph_claims, graph_rules, sign, tokens,
};

const NOW: i64 = 1_772_037_033;
const UNKNOWN: Result<(), TokenRefusal> = Err(TokenRefusal::Refused(Refused::UnknownKey));
const UNAVAILABLE: Result<(), TokenRefusal> = Err(TokenRefusal::KeysUnavailable);

struct Stage {
    service: Arc<Service>,
    clock: Arc<HandClock>,
    tokens: Tokens,
}

impl Stage {
    fn new(keys: &str) -> Self {
        let (service, clock) = (Service::serving(keys), HandClock::at(NOW));
        let tokens = tokens(&service, &clock);
        Self { service, clock, tokens }
    }

    async fn verify(&self, token: &str) -> Result<(), TokenRefusal> {
        self.tokens.verify(token, &graph_rules()).await.map(|_: Verified| ())
    }

    /// Lets what runs in the background come to its end.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn renewed(&self) -> usize {
        self.tokens.renew_due();
        self.settle().await;
        self.service.fetches()
    }
}

/// A genuine token by the first or the second key.
fn by(number: usize) -> String {
    sign(number, KIDS[number], &graph_claims(NOW))
}

fn unknown(number: u32) -> String {
    sign(0, &format!("unknown-{number}"), &graph_claims(NOW))
}

#[tokio::test(start_paused = true)]
async fn many_senders_at_once_cause_one_fetch() {
    let stage = Arc::new(Stage::new("jwks.json"));
    stage.service.set(Mood::Slow(fixture("jwks.json"), Wait::from_millis(400)));
    let token = by(0);
    let senders: Vec<_> = (0..50)
        .map(|_| {
            let (stage, token) = (Arc::clone(&stage), token.clone());
            tokio::spawn(async move { stage.verify(&token).await })
        })
        .collect();
    for sender in senders {
        assert_eq!(sender.await.expect("no panic"), Ok(()));
    }
    assert_eq!(stage.service.fetches(), 1);
    assert_eq!(stage.service.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_set_is_renewed_each_hour_in_the_background() {
    let stage = Stage::new("jwks.json");
    let token = by(0);
    assert_eq!(stage.renewed().await, 0, "nobody asked for it yet");
    assert_eq!(stage.verify(&token).await, Ok(()));
    assert_eq!(stage.service.fetches(), 1);
    stage.clock.advance(Duration::minutes(53));
    assert_eq!(stage.renewed().await, 0);
    stage.clock.advance(Duration::minutes(14));
    assert_eq!(stage.renewed().await, 1);
    assert_eq!(stage.renewed().await, 0);
    // Without the task, a sender's token sets it going, and does not wait for it.
    stage.clock.advance(Duration::minutes(67));
    stage.service.set(Mood::Slow(fixture("jwks.json"), Wait::from_secs(5)));
    let before = tokio::time::Instant::now();
    assert_eq!(stage.verify(&token).await, Ok(()));
    assert_eq!(before.elapsed(), Wait::ZERO);
    stage.settle().await;
    assert_eq!(stage.service.fetches(), 1);
    // A set that nobody asks for any more is left to grow old.
    tokio::time::sleep(Wait::from_secs(20)).await;
    stage.clock.advance(Duration::hours(25));
    assert_eq!(stage.renewed().await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_looked_for_at_once_but_not_often() {
    let stage = Stage::new("jwks.json");
    assert_eq!(stage.verify(&by(0)).await, Ok(()));
    assert_eq!(stage.service.fetches(), 1);
    stage.clock.advance(ON_DEMAND - Duration::SECOND);
    for number in 0..50 {
        assert_eq!(stage.verify(&unknown(number)).await, UNKNOWN);
    }
    assert_eq!(stage.service.fetches(), 0);
    stage.clock.advance(Duration::seconds(2));
    for number in 0..50 {
        assert_eq!(stage.verify(&unknown(number)).await, UNKNOWN);
    }
    stage.settle().await;
    assert_eq!(stage.service.fetches(), 1);
    // What was refused for want of a fetch is looked for when a fetch is allowed, whether or not it comes again.
    stage.clock.advance(ON_DEMAND + Duration::SECOND);
    assert_eq!(stage.renewed().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rollover_is_followed_and_the_old_key_forgotten() {
    let stage = Stage::new("jwks.json");
    let mut first = json!({"keys": []});
    first["keys"] = json!([crate::bench::json_fixture("jwks.json")["keys"][0]]);
    stage.service.set(Mood::Serves(first.to_string()));
    let (old, new) = (by(0), by(1));
    assert_eq!(stage.verify(&old).await, Ok(()));
    assert_eq!(stage.verify(&old).await, Ok(()));
    stage.service.set(Mood::Serves(fixture("jwks-after-rollover.json")));
    stage.clock.advance(Duration::minutes(6));
    assert_eq!(stage.verify(&new).await, Ok(()), "the first token with the new key is let in");
    assert_eq!(stage.service.fetches(), 2);
    // It was proved before, but its key is not the tenant's any more.
    assert_eq!(stage.verify(&old).await, UNKNOWN);
    // The same id with another key behind it: the memory of what the old one proved is worth nothing.
    let mut swapped = crate::bench::json_fixture("jwks.json");
    swapped["keys"][0]["kid"] = KIDS[1].into();
    swapped["keys"].as_array_mut().expect("a list").truncate(1);
    stage.service.set(Mood::Serves(swapped.to_string()));
    stage.clock.advance(Duration::minutes(67));
    assert_eq!(stage.renewed().await, 1);
    assert_eq!(stage.verify(&new).await, Err(TokenRefusal::Refused(Refused::Signature)));
}

#[tokio::test(start_paused = true)]
async fn the_last_good_set_serves_for_a_day() {
    let stage = Stage::new("jwks.json");
    let (known, fresh) = (by(0), by(1));
    assert_eq!(stage.verify(&known).await, Ok(()));
    for mood in [
        Mood::Down,
        Mood::Serves("<html>".to_owned()),
        Mood::Serves(json!({"keys": []}).to_string()),
        Mood::Elsewhere("https://keys.example/keys".to_owned()),
        Mood::OtherIssuer("https://login.example/v2.0".to_owned()),
    ] {
        stage.service.set(mood.clone());
        stage.clock.advance(Duration::minutes(70));
        assert!(stage.renewed().await > 0, "{mood:?}");
        let state = stage.tokens.key_sets();
        assert!(state[0].failing.is_some() && state[0].keys == 2, "{mood:?}: {state:?}");
        assert_eq!(stage.verify(&known).await, Ok(()), "{mood:?}");
        assert_eq!(stage.verify(&unknown(1)).await, UNAVAILABLE, "nobody can tell: {mood:?}");
    }
    stage.service.set(Mood::Down);
    stage.clock.advance(LIFE - Duration::minutes(5 * 70 + 1));
    assert_eq!(stage.verify(&fresh).await, Ok(()), "the set is known, the token is new");
    stage.clock.advance(Duration::minutes(2));
    stage.settle().await;
    assert_eq!(stage.verify(&known).await, UNAVAILABLE);
    assert_eq!(stage.verify(&fresh).await, UNAVAILABLE);
    // What is wrong by itself is wrong in an outage too.
    let mut expired = graph_claims(NOW);
    expired["exp"] = NOW.into();
    let expired = sign(0, KIDS[0], &expired);
    assert_eq!(stage.verify(&expired).await, Err(TokenRefusal::Refused(Refused::Expired)));
    stage.service.set(Mood::Serves(fixture("jwks.json")));
    stage.clock.advance(ON_DEMAND);
    assert_eq!(stage.verify(&known).await, Ok(()));
    assert!(stage.tokens.key_sets()[0].failing.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_is_not_hammered() {
    let stage = Stage::new("jwks.json");
    stage.service.set(Mood::Down);
    let token = by(0);
    let mut fetches = 0;
    // An hour of a token a second.
    for _ in 0..3_600 {
        assert_eq!(stage.verify(&token).await, UNAVAILABLE);
        stage.settle().await;
        fetches += stage.service.fetches();
        stage.clock.advance(Duration::SECOND);
    }
    assert!((10..=24).contains(&fetches), "{fetches}");
    stage.service.set(Mood::Serves(fixture("jwks.json")));
    stage.clock.advance(ON_DEMAND);
    assert_eq!(stage.verify(&token).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_sender_does_not_wait_long_and_the_fetch_goes_on() {
    let stage = Stage::new("jwks.json");
    stage.service.set(Mood::Slow(fixture("jwks.json"), Wait::from_secs(4)));
    let token = by(0);
    let before = tokio::time::Instant::now();
    assert_eq!(stage.verify(&token).await, UNAVAILABLE);
    assert!(before.elapsed() < Wait::from_secs(3), "{:?}", before.elapsed());
    tokio::time::sleep(Wait::from_secs(8)).await;
    assert_eq!(stage.verify(&token).await, Ok(()));
    assert_eq!(stage.service.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_strangers_tenant_is_never_asked_about() {
    let stage = Stage::new("jwks.json");
    for tenant in [
        "11111111-2222-3333-4444-555555555555",
        "common",
        "../common",
        "AAAABBBB-0000-CCCC-1111-DDDD2222EEEE",
    ] {
        let mut claims = graph_claims(NOW);
        claims["tid"] = tenant.into();
        claims["iss"] = format!("https://sts.windows.net/{tenant}/").into();
        let verdict = stage.verify(&sign(0, KIDS[0], &claims)).await;
        assert_eq!(verdict, Err(TokenRefusal::Refused(Refused::Tenant)), "{tenant}");
    }
    assert!(stage.service.asked.lock().expect("no panic under the lock").is_empty());
    // A tenant that is configured, but not for this door.
    let mut rules = graph_rules();
    rules.tenants.remove(OTHER_TENANT);
    let mut claims = graph_claims(NOW);
    claims["tid"] = OTHER_TENANT.into();
    claims["iss"] = format!("https://sts.windows.net/{OTHER_TENANT}/").into();
    let verdict = stage.tokens.verify(&sign(0, KIDS[0], &claims), &rules).await;
    assert_eq!(verdict, Err(TokenRefusal::Refused(Refused::Tenant)));
    assert!(stage.service.asked.lock().expect("no panic under the lock").is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_tenants_key_service_does_not_stop_another() {
    let stage = Stage::new("jwks.json");
    assert_eq!(stage.verify(&by(0)).await, Ok(()));
    stage.service.set(Mood::Down);
    let mut claims = graph_claims(NOW);
    claims["tid"] = OTHER_TENANT.into();
    claims["iss"] = format!("https://sts.windows.net/{OTHER_TENANT}/").into();
    assert_eq!(stage.verify(&sign(0, KIDS[0], &claims)).await, UNAVAILABLE);
    assert_eq!(stage.verify(&by(0)).await, Ok(()));
    let sets = stage.tokens.key_sets();
    let failing: Vec<(&str, bool)> =
        sets.iter().map(|set| (set.tenant.as_str(), set.failing.is_some())).collect();
    assert_eq!(failing, [(TENANT, false), (OTHER_TENANT, true)]);
}

/// A token that was proved is judged again each time: the rules of one door are not those of another, and time passes.
#[tokio::test(start_paused = true)]
async fn a_remembered_token_is_judged_each_time() {
    let stage = Stage::new("jwks.json");
    let token = by(0);
    assert_eq!(stage.verify(&token).await, Ok(()));
    let mut rules = graph_rules();
    rules.audiences = ["somebody-else".to_owned()].into();
    let verdict = stage.tokens.verify(&token, &rules).await;
    assert_eq!(verdict, Err(TokenRefusal::Refused(Refused::Audience)));
    assert_eq!(stage.verify(&token).await, Ok(()));
    stage.clock.advance(Duration::seconds(200_029));
    stage.tokens.renew_due();
    let mut late = graph_claims(NOW);
    late["exp"] = (NOW + 400_000).into();
    assert_eq!(stage.verify(&sign(0, KIDS[0], &late)).await, Ok(()));
    assert_eq!(stage.verify(&token).await, Ok(()), "within the skew");
    stage.clock.advance(Duration::SECOND);
    assert_eq!(stage.verify(&token).await, Err(TokenRefusal::Refused(Refused::Expired)));
}
