//! The certificates of the tenants' subscriptions with their private keys: from files, which are read once, and from
//! vaults, which are asked again each hour. A vault's new version is a new certificate under an id of its own; those
//! before it stay, here and after a restart, until no notification can name them any more.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use crate::domain::rich::{LONGEST_ID, RichKey, RichKeys};
use crate::ports::{Store, StoreError, Vault};

/// How often a vault is asked for a newer version.
const RELOAD: Duration = Duration::from_secs(60 * 60);
/// How soon after it could not be read; doubled up to [`RELOAD`].
const AGAIN: Duration = Duration::from_secs(15);
/// How many versions of a vault's certificate are kept.
const VERSIONS: usize = 4;

/// Where a certificate comes from.
pub enum Source {
    /// It is here.
    Here(Arc<RichKey>),
    /// A secret of a vault that holds both, in PEM.
    Vault {
        /// What the ids of its versions begin with.
        id: String,
        /// The vault.
        vault: Arc<dyn Vault>,
        /// The secret's name in it.
        secret: String,
    },
}

/// The certificates of all tenants. Cloning shares them.
#[derive(Clone)]
pub struct Keyring {
    shared: Arc<Shared>,
}

/// By tenant and id of the source: what was read from its vault, oldest first.
type Read = HashMap<(String, String), Vec<Arc<RichKey>>>;

struct Shared {
    sources: HashMap<String, Vec<Source>>,
    keys: RwLock<HashMap<String, Arc<RichKeys>>>,
    read: tokio::sync::Mutex<Read>,
    /// Whether every vault has been asked once.
    looked: CancellationToken,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new(HashMap::new())
    }
}

impl Keyring {
    /// The sources by tenant, in the order of the configuration: the newest last. Vaults are not asked yet.
    pub fn new(sources: HashMap<String, Vec<Source>>) -> Self {
        let (keys, read, looked) =
            (RwLock::default(), tokio::sync::Mutex::default(), CancellationToken::new());
        if !sources.values().flatten().any(|source| matches!(source, Source::Vault { .. })) {
            looked.cancel();
        }
        let shared = Shared { sources, keys, read, looked };
        let ring = Self { shared: Arc::new(shared) };
        ring.arrange(&Read::new());
        ring
    }

    /// A tenant's certificates, as far as they could be read.
    pub fn of(&self, tenant_id: &str) -> Arc<RichKeys> {
        let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(tenant_id).cloned().unwrap_or_default()
    }

    /// Waits until every vault has been asked once, whatever it said.
    pub async fn looked(&self) {
        self.shared.looked.cancelled().await;
    }

    fn arrange(&self, read: &Read) {
        let arranged = self.shared.sources.iter().map(|(tenant, sources)| {
            let keys = sources.iter().flat_map(|source| match source {
                Source::Here(key) => vec![key.clone()],
                Source::Vault { id, .. } => {
                    read.get(&(tenant.clone(), id.clone())).cloned().unwrap_or_default()
                }
            });
            (tenant.clone(), Arc::new(RichKeys::new(keys.collect())))
        });
        *self.shared.keys.write().unwrap_or_else(PoisonError::into_inner) = arranged.collect();
    }

    /// Asks every vault for its newest version, and after a restart for those before it. Returns what went wrong.
    pub async fn reload(&self, store: &dyn Store) -> Result<Vec<String>, StoreError> {
        let mut read = self.shared.read.lock().await;
        let mut wrong = Vec::new();
        for (tenant, sources) in &self.shared.sources {
            for source in sources {
                let Source::Vault { id, vault, secret } = source else { continue };
                let known = read.entry((tenant.clone(), id.clone())).or_default();
                let name = format!("vault-versions:{tenant}:{id}");
                let stored = store.value(&name).await?;
                let mut versions: Vec<String> =
                    stored.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
                let before = versions.clone();
                for version in [None].into_iter().chain(before.iter().map(|v| Some(v.as_str()))) {
                    // Those that we hold need not be asked for; the newest may have changed.
                    let held = |version: &str| known.iter().any(|key| key.id() == full_id(id, version));
                    if version.is_some_and(held) {
                        continue;
                    }
                    let found = match vault.secret(secret, version).await {
                        Ok(Some(found)) => found,
                        // An old one that was taken away is no matter.
                        Ok(None) if version.is_some() => continue,
                        Ok(None) => {
                            wrong.push(format!("{id}: the vault has no secret of that name"));
                            continue;
                        }
                        Err(failure) => {
                            wrong.push(format!("{id}: {failure}"));
                            continue;
                        }
                    };
                    if held(&found.version) {
                        continue;
                    }
                    let pem = found.value.expose_secret();
                    match RichKey::from_pem(&full_id(id, &found.version), pem, pem) {
                        Ok(key) => {
                            tracing::info!(certificate = key.id(), "a certificate was read from the vault");
                            match version {
                                None => {
                                    known.push(Arc::new(key));
                                    versions.retain(|known| *known != found.version);
                                    versions.push(found.version);
                                }
                                // An old one: it opens what still comes, and is never given to Graph.
                                Some(_) => known.insert(0, Arc::new(key)),
                            }
                        }
                        Err(error) => wrong.push(format!("{id}: the vault's secret {error}")),
                    }
                }
                let excess = versions.len().saturating_sub(VERSIONS);
                versions.drain(..excess);
                let excess = known.len().saturating_sub(VERSIONS);
                known.drain(..excess);
                if versions != before {
                    // A list of texts: nothing in it can fail.
                    let text = serde_json::to_string(&versions).unwrap_or_default();
                    store.set_value(&name, &text).await?;
                }
            }
        }
        self.arrange(&read);
        Ok(wrong)
    }

    /// Keeps what comes from vaults fresh until `stop`.
    pub async fn run(self, store: Arc<dyn Store>, stop: CancellationToken) {
        let vaults = |source: &Source| matches!(source, Source::Vault { .. });
        if !self.shared.sources.values().flatten().any(vaults) {
            stop.cancelled().await;
            return;
        }
        let mut pause = AGAIN;
        loop {
            let wrong = match self.reload(&*store).await {
                Ok(wrong) => wrong,
                Err(error) => vec![error.to_string()],
            };
            self.shared.looked.cancel();
            for why in &wrong {
                tracing::warn!("a certificate cannot be read: {why}");
            }
            let wait = if wrong.is_empty() { RELOAD } else { pause };
            pause = if wrong.is_empty() { AGAIN } else { (pause * 2).min(RELOAD) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// The id that Graph is given: it has to tell the versions apart.
fn full_id(id: &str, version: &str) -> String {
    let mut full = format!("{id}/{version}");
    full.truncate(full.floor_char_boundary(LONGEST_ID));
    full
}
