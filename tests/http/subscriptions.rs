//! The life of a subscription on a clock that the test turns: made, renewed, authorised, lost, found again, refused,
//! given a new certificate, and ended. Graph is a memory with a will of its own.

use lockstep::app::keyring::Source;
use lockstep::app::subscriptions::{Managed, Manager, Wish, records};
use lockstep::domain::failure::{Class, Effect, Failure};
use lockstep::domain::plan::parse_instant;
use secrecy::ExposeSecret as _;
use time::Duration as Span;

use super::rich::vector_key;
use super::*;
use crate::vectors;

const URL: &str = "https://lockstep.example/notify/graph";

#[derive(Default)]
struct Graph {
    alive: Mutex<Vec<(Subscription, SubscriptionOrder)>>,
    calls: Mutex<Vec<String>>,
    refusal: Mutex<Option<Failure>>,
    /// The next subscription is made, and nobody hears of it.
    loses_answer: Mutex<bool>,
}

fn refusal(class: Class, code: &str) -> Failure {
    let message = "Graph's subscriptions answered so".to_owned();
    Failure { class, side: Some(Side::Defender), code: code.into(), message, effect: Effect::None }
}

impl Graph {
    fn called(&self, what: String) -> Result<(), Failure> {
        self.calls.lock().unwrap().push(what);
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn calls(&self, what: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.starts_with(what)).count()
    }

    fn states(&self) -> Vec<String> {
        let alive = self.alive.lock().unwrap();
        alive.iter().map(|(_, order)| order.client_state.expose_secret().to_owned()).collect()
    }

    fn expire(&self, now: OffsetDateTime) {
        self.alive.lock().unwrap().retain(|(one, _)| one.expires > now);
    }
}

#[async_trait]
impl Subscriptions for Graph {
    async fn list(&self) -> Result<Vec<Subscription>, Failure> {
        self.called("list".into())?;
        Ok(self.alive.lock().unwrap().iter().map(|(one, _)| one.clone()).collect())
    }

    async fn create(&self, order: &SubscriptionOrder) -> Result<Subscription, Failure> {
        self.called(format!("create {}", order.resource))?;
        let made = Subscription {
            id: Uuid::new_v4().to_string(),
            resource: order.resource.clone(),
            notification_url: order.notification_url.clone(),
            expires: order.expires,
        };
        let mut alive = self.alive.lock().unwrap();
        if alive
            .iter()
            .any(|(_, known)| known.resource == order.resource && known.change_types == order.change_types)
        {
            return Err(refusal(Class::Conflict, "status-409"));
        }
        alive.push((made.clone(), order.clone()));
        match std::mem::take(&mut *self.loses_answer.lock().unwrap()) {
            true => Err(Failure { effect: Effect::Unknown, ..refusal(Class::Retry { wait: None }, "cut") }),
            false => Ok(made),
        }
    }

    async fn change(&self, id: &str, change: &SubscriptionChange) -> Result<Option<Subscription>, Failure> {
        let certificate = change.certificate.as_ref().map_or("", |certificate| &certificate.id);
        self.called(format!("change expires={} {certificate}", change.expires.is_some()))?;
        let mut alive = self.alive.lock().unwrap();
        let Some((one, order)) = alive.iter_mut().find(|(one, _)| one.id == id) else { return Ok(None) };
        one.expires = change.expires.unwrap_or(one.expires);
        order.certificate = change.certificate.clone().or(order.certificate.take());
        Ok(Some(one.clone()))
    }

    async fn reauthorize(&self, id: &str) -> Result<bool, Failure> {
        self.called("reauthorize".into())?;
        Ok(self.alive.lock().unwrap().iter().any(|(one, _)| one.id == id))
    }

    async fn end(&self, id: &str) -> Result<(), Failure> {
        self.called("end".into())?;
        self.alive.lock().unwrap().retain(|(one, _)| one.id != id);
        Ok(())
    }
}

/// A vault with one secret, whose versions may go away.
#[derive(Default)]
struct Safe {
    versions: Mutex<Vec<(String, String)>>,
    shut: Mutex<bool>,
    asked: Mutex<usize>,
}

#[async_trait]
impl Vault for Safe {
    async fn secret(&self, name: &str, version: Option<&str>) -> Result<Option<VaultSecret>, Failure> {
        assert_eq!(name, "lockstep-rich");
        *self.asked.lock().unwrap() += 1;
        if *self.shut.lock().unwrap() {
            return Err(refusal(Class::Auth, "status-403"));
        }
        let versions = self.versions.lock().unwrap();
        let found = match version {
            None => versions.last(),
            Some(version) => versions.iter().find(|(known, _)| known == version),
        };
        Ok(found
            .map(|(version, value)| VaultSecret { version: version.clone(), value: value.clone().into() }))
    }
}

struct Scene {
    store: Arc<Memory>,
    clock: Arc<Stopped>,
    graph: Arc<Graph>,
    wishes: Vec<Wish>,
    keyring: Keyring,
    board: Board,
}

fn wish(resource: &str, rich: bool) -> Wish {
    Wish { resource: resource.into(), change_types: "created,updated".into(), lifetime: Span::days(2), rich }
}

impl Scene {
    fn new(wishes: Vec<Wish>) -> Self {
        Self {
            store: Arc::default(),
            clock: Stopped::at(NOW),
            graph: Arc::default(),
            wishes,
            keyring: Keyring::default(),
            board: Board::default(),
        }
    }

    /// A process: what it knows is in the store.
    fn manager(&self) -> Manager {
        Manager {
            store: self.store.clone(),
            clock: self.clock.clone(),
            dice: Arc::new(Even),
            side: self.graph.clone(),
            tenant_id: TENANT.into(),
            notification_url: URL.into(),
            lifecycle_url: format!("{URL}/lifecycle"),
            wishes: self.wishes.clone(),
            keyring: self.keyring.clone(),
            board: self.board.clone(),
        }
    }

    async fn step(&self) {
        self.graph.expire(self.clock.now());
        assert_eq!(self.manager().step().await.unwrap(), Managed::Resting);
    }

    fn pass(&self, span: Span) {
        *self.clock.0.lock().unwrap() += span;
    }

    async fn steps(&self, count: i32, every: Span) {
        for _ in 0..count {
            self.pass(every);
            self.step().await;
        }
    }

    fn value(&self, name: &str) -> Option<String> {
        self.store.values.lock().unwrap().get(name).cloned()
    }

    fn look_back(&self) -> Option<OffsetDateTime> {
        parse_instant(&self.value(&format!("look-back:defender:{TENANT}"))?)
    }

    fn tell(&self, event: &str) {
        let id = self.graph.alive.lock().unwrap()[0].0.id.clone();
        self.tell_of(&id, event);
    }

    fn tell_of(&self, id: &str, event: &str) {
        let at = self.clock.now().format(&time::format_description::well_known::Rfc3339).unwrap();
        let value = serde_json::json!({"event": event, "at": at}).to_string();
        self.store.values.lock().unwrap().insert(format!("lifecycle:{TENANT}:{id}:{event}"), value);
    }

    fn shown(&self) -> Vec<(String, &'static str)> {
        self.board.report().into_iter().map(|one| (one.resource, one.state)).collect()
    }
}

#[tokio::test]
async fn a_subscription_lives_on_for_a_year_of_restarts() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    scene.step().await;
    let state = scene.graph.states().pop().unwrap();
    assert_eq!(state.len(), 64);
    assert!(!scene.store.values.lock().unwrap().keys().any(|name| name.contains(&state)));
    let id = scene.graph.alive.lock().unwrap()[0].0.id.clone();
    let book = Book::new(scene.store.clone());
    assert!(book.knows(TENANT, &id, &state).await.unwrap());
    assert!(!book.knows(TENANT, "another", &state).await.unwrap());
    assert!(!book.knows("another-tenant", &id, &state).await.unwrap());
    assert!(!book.knows(TENANT, &id, "").await.unwrap());
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "active")]);
    // A step each hour, each by a process that has just started.
    scene.steps(24 * 365, Span::hours(1)).await;
    assert_eq!(scene.graph.calls("create"), 1, "it was never lost");
    let renewals = scene.graph.calls("change");
    assert!((250..400).contains(&renewals), "{renewals}: after six tenths of two days");
    assert_eq!(scene.graph.states(), [state]);
    assert_eq!(scene.look_back(), None, "there was no gap");
}

#[tokio::test]
async fn every_subscription_has_a_state_of_its_own_and_strangers_are_left_alone() {
    let scene = Scene::new(vec![wish("security/incidents", false), wish("security/alerts_v2", false)]);
    let left_over = SubscriptionOrder {
        resource: "security/incidents".into(),
        change_types: "created,updated".into(),
        notification_url: URL.into(),
        lifecycle_url: String::new(),
        expires: scene.clock.now() + Span::days(1),
        client_state: "forgotten".to_owned().into(),
        certificate: None,
    };
    let elsewhere = SubscriptionOrder {
        resource: "users".into(),
        notification_url: "https://other.example".into(),
        client_state: "elsewhere".to_owned().into(),
        ..left_over.clone()
    };
    scene.graph.create(&left_over).await.unwrap();
    scene.graph.create(&elsewhere).await.unwrap();
    scene.step().await;
    let states = scene.graph.states();
    assert_eq!(states.len(), 3, "{states:?}");
    assert!(!states.contains(&"forgotten".to_owned()), "a left-over with our address is ended");
    assert_eq!(states[0], "elsewhere", "one that sends elsewhere is somebody's");
    assert_ne!(states[1], states[2]);
}

#[tokio::test]
async fn what_is_removed_is_made_again_with_another_state_and_the_gap_is_looked_through() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    scene.step().await;
    let before = scene.graph.states();
    let alive = scene.clock.now();
    scene.pass(Span::hours(3));
    scene.tell("subscriptionRemoved");
    scene.graph.alive.lock().unwrap().clear();
    scene.step().await;
    assert_eq!(scene.graph.calls("create"), 2);
    assert_ne!(scene.graph.states(), before);
    assert!(scene.look_back().is_some_and(|since| since < alive && alive - since < Span::hours(1)));
    // Gone without a word: found by the comparison.
    scene.store.values.lock().unwrap().remove(&format!("look-back:defender:{TENANT}"));
    scene.graph.alive.lock().unwrap().clear();
    scene.steps(7, Span::hours(1)).await;
    assert_eq!(scene.graph.calls("create"), 3);
    assert!(scene.look_back().is_some());
    // Ended while nobody was there.
    scene.store.values.lock().unwrap().remove(&format!("look-back:defender:{TENANT}"));
    scene.pass(Span::days(30));
    scene.step().await;
    assert_eq!(scene.graph.calls("create"), 4);
    assert!(scene.look_back().is_some_and(|since| scene.clock.now() - since > Span::days(29)));
    assert_eq!(scene.graph.alive.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn missed_looks_at_everything_each_time_that_it_comes() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    scene.step().await;
    let sweep = format!("sweep:last:defender:{TENANT}");
    for _ in 0..2 {
        scene.pass(Span::hours(1));
        scene.tell("missed");
        scene.step().await;
        assert!(scene.look_back().is_some_and(|since| scene.clock.now() - since == Span::days(7)));
        assert!(scene.value(&sweep).is_some_and(|at| at.starts_with("1970-01-01")));
        for name in [&sweep, &format!("look-back:defender:{TENANT}")] {
            scene.store.values.lock().unwrap().remove(name);
        }
        scene.step().await;
        assert_eq!(scene.look_back(), None, "heard once");
    }
    // Of one that was made by hand, too.
    scene.tell_of("by-hand", "missed");
    scene.step().await;
    assert!(scene.look_back().is_some());
    scene.steps(8, Span::days(1)).await;
    let values = scene.store.values.lock().unwrap();
    assert!(!values.keys().any(|name| name.starts_with("lifecycle")), "old news is forgotten: {values:?}");
}

#[tokio::test]
async fn it_is_authorised_when_graph_asks() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    scene.step().await;
    scene.pass(Span::hours(1));
    scene.tell("reauthorizationRequired");
    scene.step().await;
    assert_eq!((scene.graph.calls("reauthorize"), scene.graph.calls("change")), (1, 0));
    assert!(scene.look_back().is_some(), "Graph may have held its tongue");
    scene.step().await;
    assert_eq!(scene.graph.calls("reauthorize"), 1);
    // Later in its life, one call does both; and a failure is tried again.
    scene.pass(Span::hours(25));
    scene.tell("reauthorizationRequired");
    *scene.graph.refusal.lock().unwrap() = Some(refusal(Class::Retry { wait: None }, "status-500"));
    scene.step().await;
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "failing")]);
    *scene.graph.refusal.lock().unwrap() = None;
    scene.steps(2, Span::minutes(1)).await;
    assert_eq!((scene.graph.calls("reauthorize"), scene.graph.calls("change expires=true")), (1, 2));
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "active")]);
    // Of one that is gone by then.
    scene.pass(Span::hours(1));
    scene.tell("reauthorizationRequired");
    scene.graph.alive.lock().unwrap().clear();
    scene.step().await;
    assert_eq!(scene.graph.calls("create"), 2);
}

#[tokio::test]
async fn a_lost_answer_leaves_one_subscription_and_no_stranger() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    *scene.graph.loses_answer.lock().unwrap() = true;
    scene.step().await;
    assert_eq!(scene.graph.alive.lock().unwrap().len(), 1, "it landed");
    let orphan = scene.graph.states().pop().unwrap();
    let book = Book::new(scene.store.clone());
    assert!(book.knows(TENANT, "any-id", &orphan).await.unwrap(), "its notifications count meanwhile");
    scene.steps(2, Span::minutes(1)).await;
    assert_eq!(scene.graph.alive.lock().unwrap().len(), 1);
    assert_ne!(scene.graph.states(), [orphan], "nobody knows which state Graph has, so it was made anew");
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "active")]);
}

#[tokio::test]
async fn a_refusal_is_a_warning_once_and_is_asked_again_at_leisure() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    for (code, class) in [("status-400", Class::Permanent), ("status-403", Class::Auth)] {
        let (heard, guard) = listen();
        let before = scene.graph.calls("create") + scene.graph.calls("list");
        *scene.graph.refusal.lock().unwrap() = Some(refusal(class, code));
        scene.steps(24 * 60, Span::minutes(1)).await;
        drop(guard);
        let calls = scene.graph.calls("create") + scene.graph.calls("list") - before;
        assert!((1..=24).contains(&calls), "{code}: {calls} calls in a day");
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        assert_eq!(heard.matches("WARN").count(), 1, "{code}: {heard}");
        assert_eq!(scene.shown(), [("security/incidents".to_owned(), "refused")]);
    }
    *scene.graph.refusal.lock().unwrap() = None;
    scene.steps(7, Span::hours(1)).await;
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "active")]);
}

#[tokio::test]
async fn the_newest_certificate_takes_over_without_a_new_subscription() {
    let sources = |numbers: &[usize]| {
        let sources = numbers.iter().map(|number| Source::Here(vector_key(*number))).collect();
        Keyring::new([(TENANT.to_owned(), sources)].into())
    };
    let mut scene = Scene::new(vec![wish("security/incidents", true)]);
    scene.step().await;
    assert_eq!(scene.graph.calls("create"), 0, "without a certificate it waits");
    scene.keyring = sources(&[1]);
    scene.steps(2, Span::minutes(1)).await;
    let certificate = |scene: &Scene| {
        let alive = scene.graph.alive.lock().unwrap();
        let certificate = alive[0].1.certificate.clone().unwrap();
        assert!(certificate.certificate.starts_with("MII"), "{certificate:?}");
        certificate.id
    };
    assert_eq!(certificate(&scene), "bridge-cert-1");
    scene.keyring = sources(&[1, 2]);
    scene.steps(2, Span::minutes(1)).await;
    assert_eq!(certificate(&scene), "bridge-cert-2");
    assert_eq!((scene.graph.calls("create"), scene.graph.calls("change")), (1, 1));
    let stored = records(&*scene.store, TENANT).await.unwrap();
    assert_eq!(stored["security/incidents"].certificate.as_deref(), Some("bridge-cert-2"));
}

#[tokio::test]
async fn what_is_not_wished_any_more_is_ended_and_what_is_wished_otherwise_is_made_anew() {
    let mut scene = Scene::new(vec![wish("security/incidents", false), wish("security/alerts_v2", false)]);
    scene.step().await;
    scene.wishes.pop();
    scene.wishes[0].change_types = "updated".into();
    scene.pass(Span::minutes(1));
    scene.step().await;
    {
        let alive = scene.graph.alive.lock().unwrap();
        assert_eq!(alive.len(), 1);
        assert_eq!(alive[0].1.change_types, "updated");
    }
    scene.wishes.clear();
    scene.step().await;
    assert!(scene.graph.alive.lock().unwrap().is_empty());
    assert!(records(&*scene.store, TENANT).await.unwrap().is_empty());
    let calls = scene.graph.calls.lock().unwrap().len();
    scene.steps(3, Span::days(1)).await;
    assert_eq!(scene.graph.calls.lock().unwrap().len(), calls, "then Graph is left alone");
    assert!(scene.shown().is_empty());
}

#[tokio::test]
async fn of_several_replicas_one_has_them_in_hand() {
    let scene = Scene::new(vec![wish("security/incidents", false)]);
    let now = scene.clock.now();
    let name = format!("subscriptions:{TENANT}");
    let fence = scene.store.take_fence(&name, now, now + Span::minutes(5)).await.unwrap().unwrap();
    assert_eq!(scene.manager().step().await.unwrap(), Managed::NotOurs);
    assert!(scene.graph.calls.lock().unwrap().is_empty());
    assert_eq!(scene.shown(), [("security/incidents".to_owned(), "pending")]);
    scene.store.release_fence(&fence).await.unwrap();
    for _ in 0..3 {
        scene.step().await;
    }
    assert_eq!(scene.graph.calls("create"), 1);
}

#[tokio::test]
async fn a_vaults_new_version_is_a_certificate_of_its_own_and_the_old_ones_survive_a_restart() {
    let (store, safe) = (Arc::new(Memory::default()), Arc::new(Safe::default()));
    let ring = || {
        let (vault, secret) = (safe.clone(), "lockstep-rich".to_owned());
        let sources = vec![Source::Here(vector_key(1)), Source::Vault { id: "v".into(), vault, secret }];
        Keyring::new([(TENANT.to_owned(), sources)].into())
    };
    let pem = |number: usize| {
        let (certificate, key) = vectors::pair(number);
        format!(
            "{certificate}
{key}"
        )
    };
    let newest = |ring: &Keyring| ring.of(TENANT).newest().map(|key| key.id().to_owned());
    let first = ring();
    assert_eq!(newest(&first).as_deref(), Some("bridge-cert-1"), "what is here is there at once");
    assert_eq!(first.reload(&*store).await.unwrap(), ["v: the vault has no secret of that name"]);
    safe.versions.lock().unwrap().push(("one".into(), pem(1)));
    assert!(first.reload(&*store).await.unwrap().is_empty());
    assert_eq!(newest(&first).as_deref(), Some("v/one"));
    safe.versions.lock().unwrap().push(("broken".into(), "no PEM".into()));
    let wrong = first.reload(&*store).await.unwrap();
    assert!(wrong.len() == 1 && !wrong[0].contains("no PEM"), "{wrong:?}");
    assert_eq!(newest(&first).as_deref(), Some("v/one"), "a broken version changes nothing");
    safe.versions.lock().unwrap().push(("two".into(), pem(2)));
    assert!(first.reload(&*store).await.unwrap().is_empty());
    // A restart: the newest goes to Graph, the one before it opens what still comes.
    let second = ring();
    assert!(second.reload(&*store).await.unwrap().is_empty());
    for ring in [&first, &second] {
        assert_eq!(newest(ring).as_deref(), Some("v/two"));
        assert!(ring.of(TENANT).get("v/one").is_some());
    }
    // A vault that is shut takes nothing away, and one that is at rest is asked one thing.
    *safe.shut.lock().unwrap() = true;
    assert_eq!(second.reload(&*store).await.unwrap().len(), 1);
    assert_eq!(newest(&second).as_deref(), Some("v/two"));
    *safe.shut.lock().unwrap() = false;
    let asked = *safe.asked.lock().unwrap();
    second.reload(&*store).await.unwrap();
    assert_eq!(*safe.asked.lock().unwrap(), asked + 1);
}
