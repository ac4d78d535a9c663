//! `ports::Vault` over Azure Key Vault: `GET {vault}/secrets/{name}`, with the tenant's own token. One call is all that
//! is needed of it, so it is made here and not by a library of its own.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::entra::{TokenFailure, TokenSource};
use super::lenient;
use super::transport::{Answer, Broken, Transport};
use crate::domain::failure::{Class, Effect, Failure};
use crate::ports::{Clock, Vault, VaultSecret};

/// The oldest version of the API that is still recommended.
const API_VERSION: &str = "7.4";

/// One vault.
pub struct KeyVault {
    base: Url,
    scope: String,
    tokens: Arc<TokenSource>,
    transport: Transport,
    clock: Arc<dyn Clock>,
}

impl KeyVault {
    /// Calls nothing yet. The scope is the cloud's, whatever the host.
    pub fn new(
        base: Url,
        scope: String,
        tokens: Arc<TokenSource>,
        transport: Transport,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { base, scope, tokens, transport, clock }
    }

    async fn ask(&self, url: &Url, bearer: &SecretString) -> Result<Answer, Failure> {
        let retry = Class::Retry { wait: None };
        let request = self
            .transport
            .request(Method::GET, url.clone())
            .bearer_auth(bearer.expose_secret())
            .header("accept", "application/json");
        self.transport.send(request).await.map_err(|broken| match broken {
            Broken::NotSent(why) => failure(retry, "connect", format!("the vault cannot be reached: {why}")),
            Broken::TimedOut => failure(retry, "timeout", "the vault did not answer in time".to_owned()),
            Broken::Cut(why) => failure(retry, "cut", format!("the connection to the vault broke: {why}")),
        })
    }
}

fn failure(class: Class, code: &str, message: String) -> Failure {
    Failure { class, side: None, code: code.to_owned(), message, effect: Effect::None }
}

fn no_token(refused: TokenFailure) -> Failure {
    failure(refused.class, refused.code, refused.message)
}

#[async_trait]
impl Vault for KeyVault {
    async fn secret(&self, name: &str, version: Option<&str>) -> Result<Option<VaultSecret>, Failure> {
        let mut path = vec!["secrets", name];
        path.extend(version);
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| failure(Class::Permanent, "bad-url", "vault_url makes no URL".to_owned()))?
            .pop_if_empty()
            .extend(path);
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        let (token, _) = self.tokens.token(&self.scope).await.map_err(no_token)?;
        let mut answer = self.ask(&url, &token.bearer).await?;
        if answer.status == 401
            && let Some(fresh) = self.tokens.renew(&self.scope, token.number).await.map_err(no_token)?
        {
            answer = self.ask(&url, &fresh.bearer).await?;
        }
        match answer.status {
            200 => {}
            404 => return Ok(None),
            status => {
                let class = Class::of_status(status, answer.retry_after(self.clock.now()));
                let cure = match class {
                    Class::Auth => "; give the application the role Key Vault Secrets User on the vault",
                    _ => "",
                };
                let message = format!("the vault answered {status}{cure}");
                return Err(failure(class, &format!("status-{status}"), message));
            }
        }
        let unreadable = || {
            let message = "the vault answered something that is no secret".to_owned();
            failure(Class::Retry { wait: None }, "unreadable", message)
        };
        let secret = lenient::object(&lenient::text_of(&answer.body)).map_err(|_| unreadable())?;
        let id = lenient::text(&secret, "id").ok_or_else(unreadable)?;
        let version = id.rsplit('/').next().filter(|version| !version.is_empty());
        Ok(Some(VaultSecret {
            version: version.ok_or_else(unreadable)?.to_owned(),
            value: lenient::text(&secret, "value").ok_or_else(unreadable)?.into(),
        }))
    }
}
