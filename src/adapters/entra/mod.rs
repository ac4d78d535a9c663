//! Tokens from Entra ID, by client credentials.
//!
//! `azure_identity` makes the call; the cache around it is ours, because its own refreshes only when a caller waits,
//! and fails although the old token still works. Here a token is renewed in the background well before its end,
//! by one fetch at a time, and the old one serves while it is valid. A credential lives for one fetch: its cache
//! would hand us back the token that was just refused.

mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use azure_core::credentials::{Secret, TokenCredential};
use azure_core::http::{ClientOptions, RetryOptions, Transport as AzureTransport};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::transport::Transport;
use crate::domain::failure::Class;
use crate::ports::Clock;

/// An application in a tenant.
#[derive(Clone, Debug)]
pub struct EntraSettings {
    /// The cloud's login host, or what stands in for it.
    pub login_url: url::Url,
    /// The directory's id, or one of its verified domains.
    pub tenant_id: String,
    /// The application's id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretString,
}

/// The tokens of one application, for any number of scopes. Shared by everybody who calls in its name.
pub struct TokenSource {
    settings: EntraSettings,
    transport: Transport,
    clock: Arc<dyn Clock>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

/// A token in hand.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) bearer: SecretString,
    pub(crate) expires: OffsetDateTime,
    /// Counts the tokens of a scope, so that "the one that was refused" can be told from a newer one.
    pub(crate) number: u64,
    fetched: Instant,
    good_until: OffsetDateTime,
    refresh_at: OffsetDateTime,
}

/// Why there is no token: class, code and sentence as in `domain::failure::Failure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenFailure {
    pub(crate) class: Class,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

struct Slot {
    scope: String,
    state: Mutex<SlotState>,
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct SlotState {
    token: Option<Arc<Token>>,
    count: u64,
    failed: Option<(TokenFailure, Instant)>,
}

/// After a failed fetch, for how long its answer stands for all.
const COOL_OFF: Duration = Duration::from_secs(5);
/// A token this young that is refused will not get better by being fetched again.
const JUST_FETCHED: Duration = Duration::from_secs(30);

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("tenant_id", &self.settings.tenant_id)
            .field("client_id", &self.settings.client_id)
            .finish_non_exhaustive()
    }
}

impl TokenSource {
    /// Fetches nothing yet.
    pub fn new(settings: EntraSettings, transport: Transport, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { settings, transport, clock, slots: Mutex::default() })
    }

    /// The application's id: half of what budgets are counted by.
    pub fn client_id(&self) -> &str {
        &self.settings.client_id
    }

    /// The directory that the tokens come from.
    pub fn tenant_id(&self) -> &str {
        &self.settings.tenant_id
    }

    /// A token that works now, and the reason why it could not be renewed, if that was tried in vain.
    pub(crate) async fn token(
        self: &Arc<Self>,
        scope: &str,
    ) -> Result<(Arc<Token>, Option<String>), TokenFailure> {
        let slot = self.slot(scope);
        if let Some(found) = self.in_hand(&slot) {
            return Ok(found);
        }
        let _one_at_a_time = slot.fetching.lock().await;
        if let Some(found) = self.in_hand(&slot) {
            return Ok(found);
        }
        if let Some((failure, until)) = slot.lock().failed.clone()
            && Instant::now() < until
        {
            return Err(failure);
        }
        self.fetch(&slot).await.map(|token| (token, None))
    }

    /// A token newer than `refused`, which a service turned down. `None`: the newest there is was refused, and is so
    /// young that another would be no better.
    pub(crate) async fn renew(&self, scope: &str, refused: u64) -> Result<Option<Arc<Token>>, TokenFailure> {
        let slot = self.slot(scope);
        let _one_at_a_time = slot.fetching.lock().await;
        let held = slot.lock().token.clone();
        match held {
            Some(token) if token.number != refused => Ok(Some(token)),
            Some(token) if token.fetched.elapsed() < JUST_FETCHED => Ok(None),
            _ => self.fetch(&slot).await.map(Some),
        }
    }

    fn in_hand(self: &Arc<Self>, slot: &Arc<Slot>) -> Option<(Arc<Token>, Option<String>)> {
        let now = self.clock.now();
        let state = slot.lock();
        let token = state.token.clone().filter(|token| now < token.good_until)?;
        let cooling = state.failed.as_ref().is_some_and(|(_, until)| Instant::now() < *until);
        if now >= token.refresh_at
            && !cooling
            && let Ok(guard) = Arc::clone(&slot.fetching).try_lock_owned()
        {
            let (this, slot) = (Arc::clone(self), Arc::clone(slot));
            tokio::spawn(async move {
                // The outcome is kept in the slot, where the next caller sees it.
                let _ = this.fetch(&slot).await;
                drop(guard);
            });
        }
        Some((token, state.failed.as_ref().map(|(failure, _)| failure.message.clone())))
    }

    fn slot(&self, scope: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(scope.to_owned()).or_insert_with(|| {
            Arc::new(Slot { scope: scope.to_owned(), state: Mutex::default(), fetching: Arc::default() })
        }))
    }

    /// Call with `slot.fetching` held.
    async fn fetch(&self, slot: &Slot) -> Result<Arc<Token>, TokenFailure> {
        let outcome = self.ask(&slot.scope).await;
        let mut state = slot.lock();
        match outcome {
            Ok((bearer, lifetime)) => {
                let now = self.clock.now();
                let expires = now + lifetime;
                state.count += 1;
                let token = Arc::new(Token {
                    bearer,
                    expires,
                    number: state.count,
                    fetched: Instant::now(),
                    good_until: expires - time::Duration::min(lifetime / 10, time::Duration::seconds(30)),
                    refresh_at: expires - time::Duration::min(lifetime / 3, time::Duration::minutes(10)),
                });
                state.token = Some(Arc::clone(&token));
                state.failed = None;
                Ok(token)
            }
            Err(failure) => {
                let wait = match failure.class {
                    Class::Retry { wait: Some(wait) } => wait.max(COOL_OFF),
                    _ => COOL_OFF,
                };
                state.failed = Some((failure.clone(), Instant::now() + wait));
                Err(failure)
            }
        }
    }

    async fn ask(&self, scope: &str) -> Result<(SecretString, time::Duration), TokenFailure> {
        let wire = Arc::new(wire::Wire::new(self.transport.clone(), self.settings.login_url.clone()));
        // azure_identity insists on https for the authority; where the request really goes is the wire's business.
        let mut cloud = azure_core::cloud::CustomConfiguration::default();
        cloud.authority_host = "https://login.invalid".to_owned();
        let client_options = ClientOptions {
            cloud: Some(Arc::new(cloud.into())),
            transport: Some(AzureTransport::new(wire.clone())),
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        };
        let credential = ClientSecretCredential::new(
            &self.settings.tenant_id,
            self.settings.client_id.clone(),
            Secret::new(self.settings.client_secret.expose_secret().to_owned()),
            Some(ClientSecretCredentialOptions { client_options }),
        );
        let credential = credential.map_err(|error| TokenFailure {
            class: Class::Auth,
            code: "token-refused",
            message: format!(
                "no token can be asked for: {}",
                super::lenient::sentence(&error.to_string(), 200)
            ),
        })?;
        match credential.get_token(&[scope], None).await {
            Ok(access) => {
                // The crate stamped it with the system's clock; ours may be another.
                let lifetime: time::Duration = access.expires_on - OffsetDateTime::now_utc();
                let text = access.token.secret();
                if text.is_empty()
                    || !text.bytes().all(|byte| byte.is_ascii_graphic())
                    || !lifetime.is_positive()
                {
                    return Err(wire::unreadable());
                }
                Ok((SecretString::from(text.to_owned()), lifetime))
            }
            Err(_) => Err(wire.failure(self.clock.now())),
        }
    }
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
