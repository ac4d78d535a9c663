//! HTTP as we want it: one pooled client, our own timeouts, no redirects, no repeats behind our back, answers of
//! bounded size. It knows nothing of Graph or ARM.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;
use time::PrimitiveDateTime;
use time::macros::format_description;

/// How to build the client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// PEM certificates to trust besides the system's: a private proxy, the emulator.
    pub extra_ca: Option<Vec<u8>>,
    /// Sent with every request.
    pub user_agent: String,
    /// The whole request, answer included. Well below a lease.
    pub timeout: Duration,
    /// The connection alone.
    pub connect_timeout: Duration,
    /// The largest answer that is read, after decompression.
    pub most_bytes: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            extra_ca: None,
            user_agent: concat!("lockstep/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(5),
            most_bytes: 32 << 20,
        }
    }
}

/// The client could not be built: a bad certificate file, most likely.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be built: {0}")]
pub struct TransportError(String);

/// The shared HTTP client. Cloning shares the pool.
#[derive(Clone, Debug)]
pub struct Transport {
    client: reqwest::Client,
    most_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// The body was larger than we read, and was dropped.
    pub(crate) too_large: bool,
}

/// No whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection was never made: nothing can have happened.
    NotSent(String),
    /// Our patience ran out.
    TimedOut,
    /// The connection broke while we waited or read.
    Cut(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::NotSent(why) => write!(f, "it cannot be reached: {why}"),
            Broken::TimedOut => f.write_str("it did not answer in time"),
            Broken::Cut(why) => write!(f, "the connection broke: {why}"),
        }
    }
}

impl Transport {
    /// Builds the client. Proxies are taken from the usual environment variables.
    pub fn new(options: &ClientOptions) -> Result<Self, TransportError> {
        Self::build(options, |name| std::env::var(name).ok())
    }

    pub(crate) fn build(
        options: &ClientOptions,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TransportError> {
        let wrong = |error: reqwest::Error| TransportError(chain(&error));
        let mut builder = reqwest::Client::builder()
            .user_agent(&options.user_agent)
            .timeout(options.timeout)
            .connect_timeout(options.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            // Not even after a refusal that is known to be safe: the caller counts every attempt.
            .retry(reqwest::retry::never())
            .pool_idle_timeout(Duration::from_secs(60))
            .tls_backend_rustls()
            .no_proxy();
        for proxy in proxies(variable).map_err(wrong)? {
            builder = builder.proxy(proxy);
        }
        if let Some(pem) = &options.extra_ca {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(wrong)?;
            if certificates.is_empty() {
                return Err(TransportError("the certificate file holds no PEM certificate".to_owned()));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        Ok(Self { client: builder.build().map_err(wrong)?, most_bytes: options.most_bytes })
    }

    /// Starts a request.
    pub(crate) fn request(&self, method: reqwest::Method, url: url::Url) -> reqwest::RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends it and reads the answer.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Broken> {
        let mut response = request.send().await.map_err(broken)?;
        let mut answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: Vec::new(),
            too_large: false,
        };
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if answer.body.len() + chunk.len() > self.most_bytes {
                answer.too_large = true;
                answer.body = Vec::new();
                break;
            }
            answer.body.extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

/// The proxies that the environment names. reqwest would read the same variables, but send loopback through them too,
/// where no proxy finds the emulator.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<reqwest::Proxy>, reqwest::Error> {
    let named =
        |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let direct = format!("{},localhost,127.0.0.1,::1", named(&["NO_PROXY", "no_proxy"]).unwrap_or_default());
    let mut proxies = Vec::new();
    // `HTTP_PROXY` in capitals is left out, as curl does: a CGI client can set it by a header.
    if let Some(proxy) = named(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) {
        proxies.push(reqwest::Proxy::https(proxy)?);
    }
    if let Some(proxy) = named(&["http_proxy", "ALL_PROXY", "all_proxy"]) {
        proxies.push(reqwest::Proxy::http(proxy)?);
    }
    Ok(proxies.into_iter().map(|proxy| proxy.no_proxy(reqwest::NoProxy::from_string(&direct))).collect())
}

fn broken(error: reqwest::Error) -> Broken {
    if error.is_connect() || error.is_builder() {
        return Broken::NotSent(chain(&error.without_url()));
    }
    if error.is_timeout() {
        return Broken::TimedOut;
    }
    Broken::Cut(chain(&error.without_url()))
}

/// An error with its causes: reqwest's own sentence says only "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !sentence.contains(&next) {
            sentence = format!("{sentence}: {next}");
        }
        cause = error.source();
    }
    super::lenient::sentence(&sentence, 300)
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Somebody between us and the service answered: a proxy's page, a sign-in page.
    pub(crate) fn is_page(&self) -> bool {
        let html = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        html.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"))
            || self.body.trim_ascii_start().first() == Some(&b'<')
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
    }

    /// The ids by which the service's support finds this call, by the names of their headers.
    pub(crate) fn request_ids(&self) -> Vec<(&'static str, String)> {
        let names = ["request-id", "x-ms-request-id", "x-ms-correlation-request-id"];
        names
            .into_iter()
            .filter_map(|name| Some((name, super::lenient::sentence(self.header(name)?, 80))))
            .collect()
    }

    /// `Retry-After`: seconds, perhaps with a fraction, or an HTTP date. Never more than an hour.
    pub(crate) fn retry_after(&self, now: OffsetDateTime) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<f64>() {
            Ok(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(MOST_WAIT),
            Ok(_) => Duration::ZERO,
            Err(_) => {
                let date = format_description!(
                    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
                );
                let until = PrimitiveDateTime::parse(text, date).ok()?.assume_utc();
                Duration::try_from(until - now).unwrap_or_default()
            }
        };
        Some(wait.min(MOST_WAIT))
    }
}

const MOST_WAIT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn every_form_of_retry_after_is_understood() {
        let now = datetime!(2026-03-04 10:22:15 UTC);
        for (header, wait) in [
            (Some("12"), Some(Duration::from_secs(12))),
            (Some(" 2.128 "), Some(Duration::from_millis(2128))),
            (Some("Wed, 04 Mar 2026 10:22:45 GMT"), Some(Duration::from_secs(30))),
            (Some("Wed, 04 Mar 2026 10:00:00 GMT"), Some(Duration::ZERO)),
            (Some("-3"), Some(Duration::ZERO)),
            (Some("1e300"), Some(MOST_WAIT)),
            (Some("NaN"), Some(Duration::ZERO)),
            (Some("soon"), None),
            (None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(RETRY_AFTER, header.parse().unwrap());
            }
            let answer = Answer { status: 429, headers, body: Vec::new(), too_large: false };
            assert_eq!(answer.retry_after(now), wait, "{header:?}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let options = ClientOptions { extra_ca: Some(b"nothing".to_vec()), ..ClientOptions::default() };
        assert!(Transport::new(&options).is_err());
    }
}
