//! Entra ID's discovery and key documents over HTTP: one GET, no redirects, an answer of bounded size.

use std::time::Duration;

use super::transport::{Broken, ClientOptions, Transport, TransportError};
use crate::ports::{KeySource, KeyTrouble};

/// The largest document that is read. Entra's key documents have some 20 KB.
const MOST_BYTES: usize = 256 << 10;
/// How long one document may take.
const TIMEOUT: Duration = Duration::from_secs(7);

/// The key service behind the login host.
#[derive(Clone, Debug)]
pub struct EntraKeys {
    transport: Transport,
}

impl EntraKeys {
    /// A client of its own, with narrower bounds than those of the two sides.
    pub fn new(options: &ClientOptions) -> Result<Self, TransportError> {
        let options = ClientOptions {
            timeout: options.timeout.min(TIMEOUT),
            most_bytes: options.most_bytes.min(MOST_BYTES),
            ..options.clone()
        };
        Ok(Self { transport: Transport::new(&options)? })
    }
}

#[async_trait::async_trait]
impl KeySource for EntraKeys {
    async fn document(&self, address: &str) -> Result<Vec<u8>, KeyTrouble> {
        let trouble = |why: String| Err(KeyTrouble(why));
        let Ok(url) = url::Url::parse(address) else {
            return trouble("the key service has no valid address; check login_url".to_owned());
        };
        let request = self.transport.request(reqwest::Method::GET, url);
        let answer = match self.transport.send(request.header("accept", "application/json")).await {
            Ok(answer) => answer,
            Err(Broken::TimedOut) => return trouble("the key service did not answer in time".to_owned()),
            Err(Broken::NotSent(why)) => return trouble(format!("the key service cannot be reached: {why}")),
            Err(Broken::Cut(why)) => {
                return trouble(format!("the connection to the key service broke: {why}"));
            }
        };
        if !answer.is_success() {
            return trouble(format!("the key service answered {}", answer.status));
        }
        if answer.too_large {
            return trouble(format!("the key service's document is larger than {MOST_BYTES} bytes"));
        }
        Ok(answer.body)
    }
}
