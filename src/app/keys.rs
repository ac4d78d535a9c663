//! The keys that prove senders' tokens: one cache for all doors, by tenant and version of the token.
//!
//! Only what the configuration names is ever fetched; a token chooses among these and adds nothing. A set is renewed in
//! the background each hour, and at once when a token names a key that is not in it, though not more often than once in
//! five minutes, because anybody can write a key id. While the key service fails, the last good set serves for a day;
//! what it cannot decide is neither believed nor refused: the door answers 503, and the sender keeps its copy.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as Wait;

use time::{Duration, OffsetDateTime};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::domain::token::{self, Authority, Key, Version};
use crate::ports::{Clock, Dice, KeySource};

/// From one renewal to the next, give or take a tenth.
pub const RENEW: Duration = Duration::hours(1);
/// For how long the last good set serves while the key service fails.
pub const LIFE: Duration = Duration::hours(24);
/// From one fetch that a token's key id caused to the next.
pub const ON_DEMAND: Duration = Duration::minutes(5);
/// After a first failure; doubled with each that follows, up to [`ON_DEMAND`].
const FIRST_PAUSE: Duration = Duration::seconds(10);
/// A set that nobody asked for in this long is not renewed any more.
const IDLE: Duration = Duration::hours(24);
/// How long a sender may wait for a fetch. The fetch goes on without it.
const PATIENCE: Wait = Wait::from_secs(2);
/// How long both documents may take.
const FETCH_TIME: Wait = Wait::from_secs(15);
/// How often the background task looks for sets that are due.
const LOOK: Wait = Wait::from_secs(20);

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// The tenant has none of this id, as far as a healthy key service said lately.
    Unknown,
    /// The key service is down, so nobody can tell.
    Unavailable,
}

/// One tenant's keys for one version, for the health page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetState {
    /// Whose.
    pub tenant: String,
    /// Of which tokens.
    pub version: Version,
    /// How many keys there are.
    pub keys: usize,
    /// When they were fetched.
    pub fetched: Option<OffsetDateTime>,
    /// Why the last fetch failed, if it did.
    pub failing: Option<String>,
}

/// The cache. Cloning shares it.
#[derive(Clone)]
pub struct Keys {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn KeySource>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    slots: HashMap<String, [Arc<Slot>; 2]>,
}

struct Slot {
    authority: Authority,
    version: Version,
    state: Mutex<State>,
    /// Held by whoever fetches.
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    keys: HashMap<String, Arc<Key>>,
    fetched: Option<OffsetDateTime>,
    /// When the set is to be renewed, or a failed fetch tried again.
    due: Option<OffsetDateTime>,
    /// When a token last caused a fetch.
    on_demand: Option<OffsetDateTime>,
    /// Until when a failed fetch stands for all.
    pause: Option<OffsetDateTime>,
    failures: u32,
    failing: Option<String>,
    used: Option<OffsetDateTime>,
}

enum Look {
    Found(Arc<Key>),
    Missing(NoKey),
    Fetch,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("tenants", &self.shared.slots.len()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Fetches nothing yet.
    pub fn new(
        authorities: impl IntoIterator<Item = Authority>,
        source: Arc<dyn KeySource>,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        let slots = authorities.into_iter().map(|authority| {
            let slot = |version| {
                let (state, fetching) = (Mutex::default(), Arc::default());
                Arc::new(Slot { authority: authority.clone(), version, state, fetching })
            };
            (authority.tenant.clone(), Version::ALL.map(slot))
        });
        let slots = slots.collect();
        Self { shared: Arc::new(Shared { source, clock, dice, slots }) }
    }

    /// The authority of a configured tenant.
    pub fn authority(&self, tenant: &str) -> Option<&Authority> {
        self.shared.slots.get(tenant).map(|[slot, _]| &slot.authority)
    }

    /// A tenant's key. Waits for a fetch where there is none yet, but not for long.
    pub async fn find(&self, tenant: &str, version: Version, kid: &str) -> Result<Arc<Key>, NoKey> {
        let Some(slot) = self.slot(tenant, version) else { return Err(NoKey::Unknown) };
        match slot.look(kid, self.shared.clock.now()) {
            Look::Found(key) => {
                self.renew_if_due(slot);
                return Ok(key);
            }
            Look::Missing(why) => return Err(why),
            Look::Fetch => {}
        }
        let fetched = async {
            let one_at_a_time = Arc::clone(&slot.fetching).lock_owned().await;
            let now = self.shared.clock.now();
            // Whoever was quicker may have fetched it.
            match slot.look(kid, now) {
                Look::Found(key) => return Ok(key),
                Look::Missing(why) => return Err(why),
                Look::Fetch => slot.lock().on_demand = Some(now),
            }
            // A task of its own: a sender that hangs up, or loses patience, does not break it off.
            let _ = self.spawn_fetch(slot, one_at_a_time).await;
            match slot.look(kid, self.shared.clock.now()) {
                Look::Found(key) => Ok(key),
                Look::Missing(why) => Err(why),
                Look::Fetch => Err(NoKey::Unavailable),
            }
        };
        tokio::time::timeout(PATIENCE, fetched).await.unwrap_or(Err(NoKey::Unavailable))
    }

    /// The key if it is in the set now. Never waits, never fetches.
    pub fn held(&self, tenant: &str, version: Version, kid: &str) -> Option<Arc<Key>> {
        let slot = self.slot(tenant, version)?;
        match slot.look(kid, self.shared.clock.now()) {
            Look::Found(key) => {
                self.renew_if_due(slot);
                Some(key)
            }
            Look::Missing(_) | Look::Fetch => None,
        }
    }

    /// Renews, in the background, the sets that are due and in use. Returns how many it began with.
    pub fn renew_due(&self) -> usize {
        self.shared.slots.values().flatten().filter(|slot| self.renew_if_due(slot)).count()
    }

    /// Keeps the sets fresh until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {
                    self.renew_due();
                }
            }
        }
    }

    /// The sets that were ever asked for.
    pub fn state(&self) -> Vec<KeySetState> {
        let mut states: Vec<KeySetState> = self
            .shared
            .slots
            .values()
            .flatten()
            .filter_map(|slot| {
                let state = slot.lock();
                state.used?;
                Some(KeySetState {
                    tenant: slot.authority.tenant.clone(),
                    version: slot.version,
                    keys: state.keys.len(),
                    fetched: state.fetched,
                    failing: state.failing.clone(),
                })
            })
            .collect();
        states.sort_by(|a, b| (&a.tenant, a.version).cmp(&(&b.tenant, b.version)));
        states
    }

    fn slot(&self, tenant: &str, version: Version) -> Option<&Arc<Slot>> {
        let [v1, v2] = self.shared.slots.get(tenant)?;
        Some(match version {
            Version::V1 => v1,
            Version::V2 => v2,
        })
    }

    fn renew_if_due(&self, slot: &Arc<Slot>) -> bool {
        if !slot.is_due(self.shared.clock.now()) {
            return false;
        }
        let Ok(one_at_a_time) = Arc::clone(&slot.fetching).try_lock_owned() else { return false };
        // Whoever held the lock until now may have done it.
        if !slot.is_due(self.shared.clock.now()) {
            return false;
        }
        drop(self.spawn_fetch(slot, one_at_a_time));
        true
    }

    fn spawn_fetch(
        &self,
        slot: &Arc<Slot>,
        one_at_a_time: OwnedMutexGuard<()>,
    ) -> tokio::task::JoinHandle<()> {
        let (shared, slot) = (Arc::clone(&self.shared), Arc::clone(slot));
        tokio::spawn(async move {
            shared.fetch(&slot).await;
            drop(one_at_a_time);
        })
    }
}

impl Shared {
    /// Call with `slot.fetching` held.
    async fn fetch(&self, slot: &Slot) {
        let outcome = match tokio::time::timeout(FETCH_TIME, self.read(slot)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("the key service did not answer in time".to_owned()),
        };
        let (now, roll) = (self.clock.now(), self.dice.roll());
        let (tenant, version) = (&slot.authority.tenant, slot.version);
        let mut state = slot.lock();
        match outcome {
            Ok(keys) => {
                if state.failing.is_some() {
                    tracing::info!(%tenant, %version, keys = keys.len(), "signing keys can be fetched again");
                }
                let mut old = std::mem::take(&mut state.keys);
                // A key that stays keeps its place in memory: that is how a proved token knows its key again.
                state.keys = keys
                    .into_iter()
                    .map(|key| match old.remove(key.kid()) {
                        Some(known) if *known == key => (key.kid().to_owned(), known),
                        _ => (key.kid().to_owned(), Arc::new(key)),
                    })
                    .collect();
                state.fetched = Some(now);
                state.due = Some(now + RENEW * (0.9 + 0.2 * roll));
                (state.pause, state.failing, state.failures) = (None, None, 0);
            }
            Err(why) => {
                let doubled = FIRST_PAUSE * (1_i32 << state.failures.min(8));
                let pause = now + doubled.min(ON_DEMAND) * (0.8 + 0.2 * roll);
                state.failures = state.failures.saturating_add(1);
                (state.pause, state.due) = (Some(pause), Some(pause));
                tracing::warn!(%tenant, %version, failures = state.failures, "signing keys cannot be fetched: {why}");
                state.failing = Some(why);
            }
        }
    }

    async fn read(&self, slot: &Slot) -> Result<Vec<Key>, String> {
        let Slot { authority, version, .. } = slot;
        let discovery = self.source.document(&authority.discovery(*version)).await;
        let discovery = discovery.map_err(|trouble| trouble.to_string())?;
        let address =
            token::key_address(&discovery, authority, *version).map_err(|error| error.to_string())?;
        let keys = self.source.document(address.as_str()).await.map_err(|trouble| trouble.to_string())?;
        token::keys(&keys, &authority.tenant).map_err(|error| error.to_string())
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, kid: &str, now: OffsetDateTime) -> Look {
        let mut state = self.lock();
        state.used = Some(now);
        let usable = state.fetched.is_some_and(|at| now < at + LIFE);
        if usable && let Some(key) = state.keys.get(kid) {
            return Look::Found(Arc::clone(key));
        }
        // A clock that was set back shall not shut us out: what lies ahead by more than its length counts for nothing.
        if state.pause.is_some_and(|until| now < until && until <= now + ON_DEMAND) {
            return Look::Missing(NoKey::Unavailable);
        }
        let limited = state.on_demand.filter(|at| *at <= now && now < *at + ON_DEMAND);
        match limited {
            Some(at) if usable && state.failing.is_none() => {
                // The key may be new, and a forger's key id may have used up the fetch: look again when it is allowed.
                let again = at + ON_DEMAND;
                state.due = Some(state.due.map_or(again, |due| due.min(again)));
                Look::Missing(NoKey::Unknown)
            }
            _ => Look::Fetch,
        }
    }

    /// Whether the set is to be renewed now, or a failed fetch to be tried again, by nobody's demand.
    fn is_due(&self, now: OffsetDateTime) -> bool {
        let state = self.lock();
        let in_use = state.used.is_some_and(|used| now < used + IDLE);
        in_use && state.due.is_some_and(|due| due <= now)
    }
}
