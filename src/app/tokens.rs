//! The one verifier of all doors: reads a sender's token, proves it by its tenant's keys, and judges it by the door's
//! rules. A token that was proved once is known again by its hash until it ends or its key goes, so that a sender that
//! shows the same token a thousand times costs one signature. The rules are applied each time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use tokio_util::sync::CancellationToken;

use crate::app::keys::{KeySetState, Keys, NoKey};
use crate::domain::token::{Authority, Key, MOST_BYTES, Proved, Refused, TokenRules, Unproved, Verified};
use crate::ports::{Clock, Dice, KeySource};

/// How many proved tokens are remembered. A sender shows one for an hour to a day.
const MOST_PROVED: usize = 4_096;

/// Why a token was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// It is not good: 401.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody can tell whether it is good: 503, so that the sender keeps its copy.
    #[error("the keys that would prove the token cannot be fetched")]
    KeysUnavailable,
}

impl TokenRefusal {
    /// A short constant for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            TokenRefusal::Refused(refused) => refused.label(),
            TokenRefusal::KeysUnavailable => "token-keys-unavailable",
        }
    }
}

/// The verifier. Cloning shares its keys and what it remembers.
#[derive(Clone)]
pub struct Tokens {
    keys: Keys,
    clock: Arc<dyn Clock>,
    proved: Arc<Mutex<Memory>>,
}

type Hash = [u8; 32];

/// A proved token, and the key that proved it.
#[derive(Clone)]
struct Known {
    proved: Arc<Proved>,
    key: Arc<Key>,
}

/// Two halves: what is asked for moves to the younger, and when that is full the older is dropped. Nothing is searched,
/// and what was used among the last 2,048 is there.
#[derive(Default)]
struct Memory {
    young: HashMap<Hash, Known>,
    old: HashMap<Hash, Known>,
}

impl Memory {
    fn get(&mut self, hash: &Hash) -> Option<Known> {
        if let Some(known) = self.young.get(hash) {
            return Some(known.clone());
        }
        let known = self.old.remove(hash)?;
        self.put(*hash, known.clone());
        Some(known)
    }

    fn put(&mut self, hash: Hash, known: Known) {
        if self.young.len() >= MOST_PROVED / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, known);
    }

    fn forget(&mut self, hash: &Hash) {
        self.young.remove(hash);
        self.old.remove(hash);
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Tokens {
    /// A verifier for the tokens of these tenants. Fetches nothing yet.
    pub fn new(
        authorities: impl IntoIterator<Item = Authority>,
        source: Arc<dyn KeySource>,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        let keys = Keys::new(authorities, source, Arc::clone(&clock), dice);
        Self { keys, clock, proved: Arc::default() }
    }

    /// Who sent it, if the token is genuine and its sender is let in by these rules.
    pub async fn verify(&self, token: &str, rules: &TokenRules) -> Result<Verified, TokenRefusal> {
        if token.len() > MOST_BYTES {
            return Err(Refused::TooLong.into());
        }
        let now = self.clock.now();
        let hash = hash(token);
        let known = self.memory().get(&hash);
        if let Some(Known { proved, key }) = known {
            let held = self.keys.held(proved.tenant(), proved.version(), proved.kid());
            if held.is_some_and(|held| Arc::ptr_eq(&held, &key)) {
                let authority = self.keys.authority(proved.tenant()).ok_or(Refused::Tenant)?;
                let judged = proved.judge(rules, authority, now);
                if judged == Err(Refused::Expired) {
                    self.memory().forget(&hash);
                }
                return Ok(judged?);
            }
            // Its key went, or the whole set is too old: the token has to prove itself again.
            self.memory().forget(&hash);
        }
        let unproved = Unproved::read(token)?;
        let authority = self.keys.authority(unproved.tenant()).ok_or(Refused::Tenant)?;
        unproved.judge(rules, authority, now)?;
        let key = self.keys.find(unproved.tenant(), unproved.version(), unproved.kid()).await;
        let key = key.map_err(|why| match why {
            NoKey::Unknown => TokenRefusal::Refused(Refused::UnknownKey),
            NoKey::Unavailable => TokenRefusal::KeysUnavailable,
        })?;
        let proved = Arc::new(unproved.prove(&key)?);
        self.memory().put(hash, Known { proved: Arc::clone(&proved), key });
        Ok(proved.judge(rules, authority, now)?)
    }

    /// Keeps the keys fresh until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        self.keys.run(stop).await;
    }

    /// Renews, in the background, the keys that are due; [`Tokens::run`] does so by itself. Returns how many sets.
    pub fn renew_due(&self) -> usize {
        self.keys.renew_due()
    }

    /// The key sets that were ever asked for, for the health page.
    pub fn key_sets(&self) -> Vec<KeySetState> {
        self.keys.state()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}
