//! Graph's subscriptions, kept for the user: made when they are missing, renewed well before their end, authorised anew
//! when Graph asks, made again when they are gone, given a newer certificate, and ended when nobody wants them.
//!
//! What is known of each is stored before anything is asked of Graph: its `clientState`, which only we and Graph know,
//! must be at hand when the first notification comes, and that may be before the answer. A crash in between leaves a
//! subscription that nobody knows; it sends to our address, so it is found in the list and ended.
//!
//! Nothing here is needed for the two sides to converge: polling goes on whatever Graph says to a subscription. So a
//! refusal is a warning, once, and is asked again at leisure; and a gap is no loss, it only makes the next look wider.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration as Wait;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::intake::PATIENCE;
use crate::app::keyring::Keyring;
use crate::app::poll::look_back_name;
use crate::app::sweep;
use crate::domain::failure::{Class, Failure};
use crate::domain::model::Side;
use crate::domain::plan::{format_instant, parse_instant};
use crate::ports::{
    Clock, Dice, EncryptionCertificate, Fence, Held, Store, StoreError, SubscriptionChange,
    SubscriptionOrder, Subscriptions,
};

/// How long a step may take.
const FENCE_FOR: Duration = Duration::minutes(5);
/// How often the store is asked for news of the subscriptions.
const LOOK: Wait = Wait::from_secs(15);
/// How often the whole list is compared with what we know.
const COMPARE: Duration = Duration::hours(6);
/// The first wait after a call that failed for now; doubled up to the longest.
const AGAIN: (Duration, Duration) = (Duration::seconds(15), Duration::minutes(10));
/// The same after a refusal: it will not change its mind soon.
const REFUSED: (Duration, Duration) = (Duration::minutes(5), Duration::hours(6));
/// A look back begins this much before the last time that all was well.
const MARGIN: Duration = Duration::minutes(10);
/// How far back everything is looked at again after `missed`.
const FULL: Duration = Duration::days(7);
/// How long the news of a subscription is kept after it was heard.
const KEEP_NEWS: Duration = Duration::days(7);
/// How many values are read at once.
const PAGE: usize = 500;
/// How old what the doors know may be, and how soon they may look again for a subscription that they do not know.
const STALE: Wait = Wait::from_secs(60);
const FRESH: Wait = Wait::from_secs(1);

/// A subscription that the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The path that is watched. One subscription for each.
    pub resource: String,
    /// `created,updated`
    pub change_types: String,
    /// How long each life of it is to be.
    pub lifetime: Duration,
    /// Whether the resource is to come along, encrypted.
    pub rich: bool,
}

/// What is known of one subscription, as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Graph's id; none while it is being made, or while it is gone.
    pub id: Option<String>,
    /// What every item must repeat.
    client_state: String,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires: Option<OffsetDateTime>,
    /// When it is to be renewed.
    #[serde(with = "time::serde::rfc3339::option")]
    renew_at: Option<OffsetDateTime>,
    /// The certificate that it has.
    pub certificate: Option<String>,
    /// What cannot be changed but by making it anew.
    shape: String,
    /// When we last knew that it was alive.
    #[serde(with = "time::serde::rfc3339::option")]
    alive: Option<OffsetDateTime>,
    /// Graph asked for a new authorisation.
    #[serde(default)]
    reauthorize: bool,
    /// Since when it has been gone, if it was there before.
    #[serde(with = "time::serde::rfc3339::option", default)]
    gap: Option<OffsetDateTime>,
    /// Why the last call failed, if it did: the code, and the sentence.
    #[serde(default)]
    pub refused: Option<(String, String)>,
    #[serde(default)]
    failures: u32,
    /// Nothing is asked before this.
    #[serde(with = "time::serde::rfc3339::option", default)]
    retry_at: Option<OffsetDateTime>,
}

// The state is a secret.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Record {
    fn new() -> Self {
        Self {
            id: None,
            client_state: String::new(),
            expires: None,
            renew_at: None,
            certificate: None,
            shape: String::new(),
            alive: None,
            reauthorize: false,
            gap: None,
            refused: None,
            failures: 0,
            retry_at: None,
        }
    }

    /// `active`, `refused`, `failing` or `pending`.
    pub fn state(&self, now: OffsetDateTime) -> &'static str {
        let alive = self.id.is_some() && self.expires.is_some_and(|expires| now < expires);
        match (alive, &self.refused) {
            (true, None) => "active",
            (true, Some(_)) => "failing",
            (false, Some(_)) => "refused",
            (false, None) => "pending",
        }
    }

    fn lost(&mut self) {
        if self.id.take().is_some() {
            self.gap = self.gap.or(self.alive);
        }
        (self.expires, self.renew_at, self.certificate) = (None, None, None);
        self.reauthorize = false;
    }

    fn went_well(&mut self, now: OffsetDateTime) {
        self.alive = Some(now);
        (self.refused, self.failures, self.retry_at) = (None, 0, None);
    }
}

fn record_prefix(tenant_id: &str) -> String {
    format!("subscription:{tenant_id}:")
}

/// The stored records of a tenant's subscriptions, by the path that is watched.
pub async fn records(store: &dyn Store, tenant_id: &str) -> Result<BTreeMap<String, Record>, StoreError> {
    let prefix = record_prefix(tenant_id);
    let stored = all_values(store, &prefix).await?;
    Ok(stored
        .into_iter()
        .filter_map(|(name, value)| {
            // One that cannot be read is made anew, and what it stood for is ended as a left-over.
            Some((name.strip_prefix(&prefix)?.to_owned(), serde_json::from_str(&value).ok()?))
        })
        .collect())
}

async fn all_values(store: &dyn Store, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
    let mut all: Vec<(String, String)> = Vec::new();
    loop {
        let after = all.last().map(|(name, _)| name.clone());
        let page = store.values(prefix, after.as_deref(), PAGE).await?;
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

// ---- what the doors ask ------------------------------------------------------------------------------------------

/// The client states of the subscriptions that are kept, for the doors. Cloning shares it.
#[derive(Clone)]
pub struct Book {
    store: Arc<dyn Store>,
    pages: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<Entry>>>>>,
}

#[derive(Default)]
struct Entry {
    read: Option<Instant>,
    records: Vec<Record>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Book")
    }
}

impl Book {
    /// Nothing is read yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, pages: Arc::default() }
    }

    /// Whether this is the state of that subscription of the tenant. Takes as long whatever of it is right.
    pub async fn knows(&self, tenant_id: &str, subscription: &str, state: &str) -> Result<bool, StoreError> {
        let entry = {
            let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            pages.entry(tenant_id.to_owned()).or_default().clone()
        };
        let mut entry = entry.lock().await;
        if entry.read.is_some_and(|read| read.elapsed() < STALE)
            && believed(&entry.records, subscription, state)
        {
            return Ok(true);
        }
        // It may be newer than what we have. Whoever guesses makes us look once in a second and no more.
        if entry.read.is_none_or(|read| read.elapsed() >= FRESH) {
            let read = timeout(PATIENCE, records(&*self.store, tenant_id)).await;
            let read = read.map_err(|_| StoreError::Unavailable(format!("no answer within {PATIENCE:?}")))?;
            entry.records = read?.into_values().collect();
            entry.read = Some(Instant::now());
        }
        Ok(believed(&entry.records, subscription, state))
    }
}

fn believed(records: &[Record], subscription: &str, state: &str) -> bool {
    let mut right = false;
    for record in records.iter().filter(|record| !record.client_state.is_empty()) {
        // One that is being made has no id yet; Graph may send before it answers.
        let named = record.id.as_deref().is_none_or(|id| id == subscription);
        let same = verify_slices_are_equal(record.client_state.as_bytes(), state.as_bytes()).is_ok();
        right |= named & same;
    }
    right
}

// ---- what people ask ---------------------------------------------------------------------------------------------

/// One subscription, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The tenant.
    pub tenant: String,
    /// The path that is watched.
    pub resource: String,
    /// `active`; `failing`: alive, but the last call about it failed; `refused`: not alive, and why is in `error`;
    /// `pending`: about to be made.
    pub state: &'static str,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires: Option<OffsetDateTime>,
    /// The certificate that the resource is encrypted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Why it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SubscriptionLabels {
    /// The tenant's id.
    pub tenant: String,
    /// The path that is watched.
    pub resource: String,
}

/// The state of all subscriptions, for the readiness page and the metrics. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Board {
    shown: Arc<Mutex<BTreeMap<String, Vec<Shown>>>>,
    active: Family<SubscriptionLabels, Gauge>,
    expires: Family<SubscriptionLabels, Gauge<f64, AtomicU64>>,
}

impl Board {
    /// Names the families in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lockstep_subscription_active",
            "1 while Graph's subscription is alive and the last call about it went well",
            self.active.clone(),
        );
        registry.register(
            "lockstep_subscription_expires_timestamp_seconds",
            "When Graph's subscription ends, in seconds since 1970; 0 when there is none",
            self.expires.clone(),
        );
    }

    /// All subscriptions as they were last seen, by tenant and path.
    pub fn report(&self) -> Vec<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }

    fn show(&self, tenant_id: &str, shown: Vec<Shown>) {
        for one in &shown {
            let labels = SubscriptionLabels { tenant: one.tenant.clone(), resource: one.resource.clone() };
            self.active.get_or_create(&labels).set(i64::from(one.state == "active"));
            let expires = one.expires.map_or(0.0, |at| at.unix_timestamp() as f64);
            self.expires.get_or_create(&labels).set(expires);
        }
        let mut known = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(tenant_id.to_owned(), shown.clone()).unwrap_or_default();
        for gone in before.iter().filter(|old| !shown.iter().any(|new| new.resource == old.resource)) {
            let labels = SubscriptionLabels { tenant: gone.tenant.clone(), resource: gone.resource.clone() };
            self.active.remove(&labels);
            self.expires.remove(&labels);
        }
    }
}

/// What is stored of a tenant's subscriptions and what is wished, for people.
pub fn shown(
    tenant_id: &str,
    wishes: &[Wish],
    records: &BTreeMap<String, Record>,
    now: OffsetDateTime,
) -> Vec<Shown> {
    let mut all: BTreeMap<&str, Shown> = BTreeMap::new();
    let blank = |resource: &str| Shown {
        tenant: tenant_id.to_owned(),
        resource: resource.to_owned(),
        state: "pending",
        expires: None,
        certificate: None,
        error: None,
    };
    for wish in wishes {
        all.insert(&wish.resource, blank(&wish.resource));
    }
    for (resource, record) in records {
        let one = all.entry(resource).or_insert_with(|| blank(resource));
        one.state = record.state(now);
        (one.expires, one.certificate) = (record.expires, record.certificate.clone());
        one.error = record.refused.as_ref().map(|(_, sentence)| sentence.clone());
    }
    all.into_values().collect()
}

// ---- the manager -------------------------------------------------------------------------------------------------

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Managed {
    /// All is as it should be, or is left alone for now.
    Resting,
    /// Another replica has the subscriptions in hand.
    NotOurs,
}

/// Keeps the subscriptions of one tenant.
pub struct Manager {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub dice: Arc<dyn Dice>,
    /// Graph.
    pub side: Arc<dyn Subscriptions>,
    /// The tenant, in lower case.
    pub tenant_id: String,
    /// Where notifications go. A subscription of ours that sends here is ours to end.
    pub notification_url: String,
    /// Where the news of the subscriptions goes.
    pub lifecycle_url: String,
    /// What the configuration asks for.
    pub wishes: Vec<Wish>,
    /// The certificates.
    pub keyring: Keyring,
    /// Where the state is shown.
    pub board: Board,
}

/// A step in progress: the fence has to be ours before anything is asked of Graph.
struct Turn<'m> {
    manager: &'m Manager,
    fence: &'m Fence,
    records: BTreeMap<String, Record>,
}

/// Why a step stopped early.
enum Stopped {
    Store(StoreError),
    /// Another replica has the fence by now.
    Lost,
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Manager {
    /// Does what is due.
    pub async fn step(&self) -> Result<Managed, StoreError> {
        let now = self.clock.now();
        let name = format!("subscriptions:{}", self.tenant_id);
        let Some(fence) = self.store.take_fence(&name, now, now + FENCE_FOR).await? else {
            let records = records(&*self.store, &self.tenant_id).await?;
            self.board.show(&self.tenant_id, shown(&self.tenant_id, &self.wishes, &records, now));
            return Ok(Managed::NotOurs);
        };
        let ended = self.turn(&fence).await;
        self.store.release_fence(&fence).await?;
        match ended {
            Ok(()) => Ok(Managed::Resting),
            Err(Stopped::Lost) => Ok(Managed::NotOurs),
            Err(Stopped::Store(error)) => Err(error),
        }
    }

    async fn turn(&self, fence: &Fence) -> Result<(), Stopped> {
        let records = records(&*self.store, &self.tenant_id).await?;
        let mut turn = Turn { manager: self, fence, records };
        let ended = turn.take().await;
        let shown = shown(&self.tenant_id, &self.wishes, &turn.records, self.clock.now());
        self.board.show(&self.tenant_id, shown);
        ended
    }

    /// Keeps them until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.keyring.looked() => {}
        }
        loop {
            if let Err(error) = self.step().await {
                tracing::warn!(tenant = self.tenant_id, "the subscriptions are left alone for now: {error}");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Everything since this instant is looked at again. An earlier wish that nobody has served yet is kept.
    async fn look_back(&self, since: OffsetDateTime) -> Result<(), StoreError> {
        let name = look_back_name(Side::Defender, &self.tenant_id);
        let pending = self.store.value(&name).await?;
        if pending.as_deref().and_then(parse_instant).is_some_and(|pending| pending <= since) {
            return Ok(());
        }
        self.store.set_value(&name, &format_instant(since)).await
    }

    /// Everything is looked at again: what changed lately by the poller, what is linked by the sweep.
    async fn resync(&self) -> Result<(), StoreError> {
        self.look_back(self.clock.now() - FULL).await?;
        sweep::order(&*self.store, Side::Defender, &self.tenant_id).await
    }

    fn shape(&self, wish: &Wish) -> String {
        let rich = if wish.rich { "rich" } else { "basic" };
        format!("{} {rich} {} {}", wish.change_types, self.notification_url, self.lifecycle_url)
    }

    fn newest_certificate(&self) -> Option<EncryptionCertificate> {
        let keys = self.keyring.of(&self.tenant_id);
        let newest = keys.newest()?;
        Some(EncryptionCertificate { id: newest.id().to_owned(), certificate: newest.certificate() })
    }

    /// Between half and seven tenths of a life: replicas and tenants do not all come at once, and there is time for many
    /// tries.
    fn renew_at(&self, now: OffsetDateTime, expires: OffsetDateTime) -> OffsetDateTime {
        now + (expires - now) * (0.5 + 0.2 * self.dice.roll())
    }
}

impl Turn<'_> {
    async fn take(&mut self) -> Result<(), Stopped> {
        self.hear().await?;
        let Manager { wishes, store, clock, .. } = self.manager;
        if wishes.is_empty() && self.records.is_empty() {
            return Ok(());
        }
        let wished = |resource: &str| wishes.iter().any(|wish| wish.resource == resource);
        let now = clock.now();
        for record in self.records.values_mut() {
            if record.expires.is_some_and(|expires| expires <= now) {
                record.lost();
            }
        }
        let due = |record: &Record| record.retry_at.is_none_or(|at| at <= now);
        let missing = wishes.iter().any(|wish| match self.records.get(&wish.resource) {
            None => true,
            Some(record) => record.id.is_none() && due(record),
        });
        let unwished = self.records.iter().any(|(resource, record)| !wished(resource) && due(record));
        let compared = store.value(&self.compared_name()).await?;
        let compared = compared.as_deref().and_then(parse_instant);
        let stale =
            compared.is_none_or(|at| at + COMPARE <= now || at > now) && self.records.values().all(due);
        if (missing || unwished || stale) && !self.compare(missing || unwished).await? {
            return Ok(());
        }
        for resource in self.records.keys().filter(|resource| !wished(resource)).cloned().collect::<Vec<_>>()
        {
            self.part_with(&resource).await?;
        }
        for wish in wishes {
            self.tend(wish).await?;
        }
        Ok(())
    }

    fn compared_name(&self) -> String {
        format!("subscriptions-compared:{}", self.manager.tenant_id)
    }

    async fn save(&self, resource: &str) -> Result<(), StoreError> {
        let Some(record) = self.records.get(resource) else { return Ok(()) };
        let name = format!("{}{resource}", record_prefix(&self.manager.tenant_id));
        // Texts, instants and numbers: nothing in it can fail.
        let value = serde_json::to_string(record).unwrap_or_default();
        self.manager.store.set_value(&name, &value).await
    }

    /// Before each call: two replicas that make the same subscription would each end the other's.
    async fn still_ours(&self) -> Result<(), Stopped> {
        let now = self.manager.clock.now();
        match self.manager.store.extend_fence(self.fence, now, now + FENCE_FOR).await? {
            Held::Yes => Ok(()),
            Held::No => Err(Stopped::Lost),
        }
    }

    /// The news of subscriptions that came in at the doors. A piece of news is done with when its very value is noted as
    /// heard: the same news that comes again meanwhile is not lost.
    async fn hear(&mut self) -> Result<(), Stopped> {
        let Manager { store, clock, tenant_id, side, .. } = self.manager;
        let news = all_values(&**store, &format!("lifecycle:{tenant_id}:")).await?;
        if news.is_empty() {
            return Ok(());
        }
        let heard_prefix = format!("lifecycle-heard:{tenant_id}:");
        let heard: HashMap<String, String> = all_values(&**store, &heard_prefix).await?.into_iter().collect();
        for (name, value) in news {
            let Some((_, rest)) = name.split_once(&format!("{tenant_id}:")) else { continue };
            let heard_name = format!("{heard_prefix}{rest}");
            let at = serde_json::from_str::<serde_json::Value>(&value)
                .ok()
                .and_then(|value| parse_instant(value["at"].as_str()?));
            if heard.get(&heard_name).is_some_and(|known| *known == value) {
                if at.is_none_or(|at| at + KEEP_NEWS <= clock.now()) {
                    store.remove_value(&name).await?;
                    store.remove_value(&heard_name).await?;
                }
                continue;
            }
            let Some((id, event)) = rest.split_once(':') else { continue };
            let ours = self.records.iter_mut().find(|(_, record)| record.id.as_deref() == Some(id));
            let ours = ours.map(|(resource, record)| (resource.clone(), record));
            tracing::info!(tenant = tenant_id, subscription = id, event, "Graph has news of a subscription");
            match (event, ours) {
                ("missed", _) => self.manager.resync().await?,
                ("subscriptionRemoved", Some((resource, record))) => {
                    record.lost();
                    record.retry_at = None;
                    let since = record.gap.map(|gap| gap - MARGIN);
                    self.save(&resource).await?;
                    if let Some(since) = since {
                        self.manager.look_back(since).await?;
                    }
                }
                ("reauthorizationRequired", Some((resource, record))) => {
                    record.reauthorize = true;
                    self.save(&resource).await?;
                }
                // Made by hand, with a state from the configuration.
                ("subscriptionRemoved", None) => self.manager.resync().await?,
                ("reauthorizationRequired", None) => {
                    self.still_ours().await?;
                    if let Err(failure) = side.reauthorize(id).await {
                        tracing::info!(
                            tenant = tenant_id,
                            subscription = id,
                            "a subscription that is not kept by us cannot be authorised: {failure}"
                        );
                    }
                }
                // A newer word: there is nothing known to be done about it.
                _ => {}
            }
            store.set_value(&heard_name, &value).await?;
        }
        Ok(())
    }

    /// Compares what Graph lists with what we know. False when the list is needed and could not be had.
    async fn compare(&mut self, needed: bool) -> Result<bool, Stopped> {
        let Manager { store, clock, side, notification_url, .. } = self.manager;
        self.still_ours().await?;
        let listed = match side.list().await {
            Ok(listed) => listed,
            Err(failure) if !needed => {
                tracing::info!(
                    tenant = self.manager.tenant_id,
                    "the subscriptions cannot be listed: {failure}"
                );
                // Soon again, but not each time.
                let soon = format_instant(clock.now() - COMPARE + AGAIN.1);
                store.set_value(&self.compared_name(), &soon).await?;
                return Ok(true);
            }
            Err(failure) => {
                let every: Vec<String> = self
                    .manager
                    .wishes
                    .iter()
                    .map(|wish| wish.resource.clone())
                    .chain(self.records.keys().cloned())
                    .collect();
                for resource in every {
                    self.failed(&resource, &failure).await?;
                }
                return Ok(false);
            }
        };
        let now = clock.now();
        let mut changed = Vec::new();
        for (resource, record) in &mut self.records {
            let Some(id) = record.id.as_deref() else { continue };
            match listed.iter().find(|one| one.id == id) {
                Some(one) => {
                    record.expires = Some(one.expires);
                    record.alive = Some(now);
                }
                None => record.lost(),
            }
            changed.push(resource.clone());
        }
        for resource in changed {
            self.save(&resource).await?;
        }
        let known = |id: &str| self.records.values().any(|record| record.id.as_deref() == Some(id));
        let strays: Vec<String> = listed
            .iter()
            .filter(|one| one.notification_url == *notification_url && !known(&one.id))
            .map(|one| one.id.clone())
            .collect();
        for id in strays {
            self.still_ours().await?;
            match side.end(&id).await {
                Ok(()) => tracing::info!(subscription = id, "a subscription that nobody knew was ended"),
                Err(failure) => {
                    tracing::warn!(subscription = id, "a left-over subscription cannot be ended: {failure}");
                }
            }
        }
        store.set_value(&self.compared_name(), &format_instant(now)).await?;
        Ok(true)
    }

    /// Ends a subscription that is not wished any more, and forgets it.
    async fn part_with(&mut self, resource: &str) -> Result<(), Stopped> {
        let id = self.records.get(resource).and_then(|record| record.id.clone());
        if let Some(id) = id {
            self.still_ours().await?;
            if let Err(failure) = self.manager.side.end(&id).await {
                return Ok(self.failed(resource, &failure).await?);
            }
            tracing::info!(
                resource,
                subscription = id,
                "a subscription that is not wished any more was ended"
            );
        }
        self.records.remove(resource);
        let name = format!("{}{resource}", record_prefix(&self.manager.tenant_id));
        Ok(self.manager.store.remove_value(&name).await?)
    }

    async fn tend(&mut self, wish: &Wish) -> Result<(), Stopped> {
        let resource = wish.resource.as_str();
        let now = self.manager.clock.now();
        let shape = self.manager.shape(wish);
        let record = self.records.entry(resource.to_owned()).or_insert_with(Record::new);
        if record.retry_at.is_some_and(|at| at > now) {
            return Ok(());
        }
        if let Some(id) = record.id.clone() {
            if record.shape == shape {
                return self.look_after(wish, &id, now).await;
            }
            // What it watches, or where it sends, cannot be changed in it.
            self.still_ours().await?;
            if let Err(failure) = self.manager.side.end(&id).await {
                return Ok(self.failed(resource, &failure).await?);
            }
            if let Some(record) = self.records.get_mut(resource) {
                record.lost();
            }
            self.save(resource).await?;
        }
        self.make(wish, shape, now).await
    }

    /// The certificate that a subscription is to have. The error is why there is none yet.
    fn certificate(&self, wish: &Wish) -> Result<Option<EncryptionCertificate>, Failure> {
        match (wish.rich, self.manager.newest_certificate()) {
            (false, _) => Ok(None),
            (true, Some(certificate)) => Ok(Some(certificate)),
            (true, None) => Err(Failure {
                class: Class::Retry { wait: None },
                side: Some(Side::Defender),
                code: "no-certificate".to_owned(),
                message: "there is no certificate yet: the vault has not been read".to_owned(),
                effect: crate::domain::failure::Effect::None,
            }),
        }
    }

    async fn make(&mut self, wish: &Wish, shape: String, now: OffsetDateTime) -> Result<(), Stopped> {
        let resource = wish.resource.as_str();
        let certificate = match self.certificate(wish) {
            Ok(certificate) => certificate,
            Err(failure) => return Ok(self.failed(resource, &failure).await?),
        };
        // Two random UUIDs: 244 bits, in half of the room that Graph has for it.
        let client_state = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let order = SubscriptionOrder {
            resource: wish.resource.clone(),
            change_types: wish.change_types.clone(),
            notification_url: self.manager.notification_url.clone(),
            lifecycle_url: self.manager.lifecycle_url.clone(),
            expires: now + wish.lifetime,
            client_state: SecretString::from(client_state.clone()),
            certificate: certificate.clone(),
        };
        let record = self.records.entry(resource.to_owned()).or_insert_with(Record::new);
        (record.client_state, record.shape) = (client_state, shape);
        // Graph may send before it answers.
        self.save(resource).await?;
        self.still_ours().await?;
        match self.manager.side.create(&order).await {
            Err(failure) => Ok(self.failed(resource, &failure).await?),
            Ok(made) => {
                let now = self.manager.clock.now();
                let renew_at = self.manager.renew_at(now, made.expires);
                let record = self.records.entry(resource.to_owned()).or_insert_with(Record::new);
                tracing::info!(
                    tenant = self.manager.tenant_id,
                    resource,
                    subscription = made.id,
                    expires = %made.expires,
                    "subscribed"
                );
                record.id = Some(made.id);
                (record.expires, record.renew_at) = (Some(made.expires), Some(renew_at));
                record.certificate = certificate.map(|certificate| certificate.id);
                record.reauthorize = false;
                record.went_well(now);
                let gap = record.gap.take();
                if let Some(gap) = gap {
                    // Nobody told us of what changed meanwhile. Ordered first: a crash orders it twice at worst.
                    self.manager.look_back(gap - MARGIN).await?;
                }
                Ok(self.save(resource).await?)
            }
        }
    }

    /// Renews, gives it the newest certificate, authorises anew: whichever is due.
    async fn look_after(&mut self, wish: &Wish, id: &str, now: OffsetDateTime) -> Result<(), Stopped> {
        let resource = wish.resource.as_str();
        // Where there is none yet, it lives on with the one that it has.
        let newest = self.certificate(wish).unwrap_or_default();
        let Some(record) = self.records.get(resource) else { return Ok(()) };
        let certificate = newest.filter(|newest| record.certificate.as_deref() != Some(&newest.id));
        let half_gone = record.expires.is_none_or(|expires| (expires - now) * 2 < wish.lifetime);
        let renew = record.renew_at.is_none_or(|at| at <= now) || (record.reauthorize && half_gone);
        let reauthorize = record.reauthorize;
        let alive = record.alive;
        if !renew && certificate.is_none() && !reauthorize {
            return Ok(());
        }
        self.still_ours().await?;
        let outcome = if renew || certificate.is_some() {
            let expires = renew.then_some(now + wish.lifetime);
            let change = SubscriptionChange { expires, certificate: certificate.clone() };
            match self.manager.side.change(id, &change).await {
                Ok(changed) => Ok(changed.map(|changed| Some(changed.expires))),
                Err(failure) => Err(failure),
            }
        } else {
            match self.manager.side.reauthorize(id).await {
                Ok(there) => Ok(there.then_some(None)),
                Err(failure) => Err(failure),
            }
        };
        let renew_at = |expires| self.manager.renew_at(now, expires);
        match outcome {
            Err(failure) => Ok(self.failed(resource, &failure).await?),
            Ok(None) => {
                if let Some(record) = self.records.get_mut(resource) {
                    record.lost();
                    record.retry_at = None;
                }
                self.save(resource).await?;
                self.make(wish, self.manager.shape(wish), now).await
            }
            Ok(Some(expires)) => {
                tracing::debug!(resource, subscription = id, renew, "a subscription was looked after");
                if let Some(record) = self.records.get_mut(resource) {
                    if let Some(expires) = expires {
                        record.expires = Some(expires);
                        if renew {
                            record.renew_at = Some(renew_at(expires));
                        }
                    }
                    if let Some(certificate) = certificate {
                        record.certificate = Some(certificate.id);
                    }
                    // Renewing authorises, too; a new certificate alone may not.
                    if renew || expires.is_none() {
                        record.reauthorize = false;
                    }
                    record.went_well(now);
                }
                if reauthorize && let Some(alive) = alive {
                    // Graph may have held its tongue until now, and does not say what about.
                    self.manager.look_back(alive - MARGIN).await?;
                }
                Ok(self.save(resource).await?)
            }
        }
    }

    /// Notes a failure: a warning when it is another than before, and the next try at leisure.
    async fn failed(&mut self, resource: &str, failure: &Failure) -> Result<(), StoreError> {
        let (now, roll) = (self.manager.clock.now(), self.manager.dice.roll());
        let record = self.records.entry(resource.to_owned()).or_insert_with(Record::new);
        let (first, longest) = match failure.class {
            Class::Retry { .. } => AGAIN,
            Class::Conflict | Class::Auth | Class::Permanent => REFUSED,
        };
        let asked = match failure.class {
            Class::Retry { wait: Some(wait) } => Duration::try_from(wait).unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let doubled = first * (1_i32 << record.failures.min(8));
        let wait = (doubled.min(longest) * (0.8 + 0.2 * roll)).max(asked);
        record.failures = record.failures.saturating_add(1);
        record.retry_at = Some(now + wait);
        let news = record.refused.as_ref().is_none_or(|(code, _)| *code != failure.code);
        record.refused = Some((failure.code.clone(), failure.message.clone()));
        if news {
            tracing::warn!(
                tenant = self.manager.tenant_id,
                resource,
                code = failure.code,
                "the subscription is not as it should be, and polling goes on without it: {}",
                failure.message
            );
        }
        self.save(resource).await
    }
}
