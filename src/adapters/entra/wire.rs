//! The token call on the wire: carries azure_identity's request over our own client to the configured login host,
//! keeps the answer, and says what a refusal means. Entra's own sentences are long and name the cure badly.

use std::sync::{Mutex, PoisonError};

use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::Headers;
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Request, StatusCode};
use time::OffsetDateTime;

use super::TokenFailure;
use crate::adapters::lenient;
use crate::adapters::transport::{Answer, Broken, Transport};
use crate::domain::failure::Class;

/// One fetch's way out.
#[derive(Debug)]
pub(super) struct Wire {
    transport: Transport,
    base: url::Url,
    seen: Mutex<Option<Result<Answer, Broken>>>,
}

impl Wire {
    pub(super) fn new(transport: Transport, base: url::Url) -> Self {
        Self { transport, base, seen: Mutex::default() }
    }

    /// What the answer that azure_identity did not take means.
    pub(super) fn failure(&self, now: OffsetDateTime) -> TokenFailure {
        let retry =
            |code, wait, message: String| TokenFailure { class: Class::Retry { wait }, code, message };
        match self.seen.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => retry("token", None, "the token request was never made".to_owned()),
            Some(Err(Broken::TimedOut)) => {
                retry("token-timeout", None, "Entra ID did not answer in time".to_owned())
            }
            Some(Err(Broken::NotSent(why))) => {
                retry("token-connect", None, format!("Entra ID cannot be reached: {why}"))
            }
            Some(Err(Broken::Cut(why))) => {
                retry("token-cut", None, format!("the connection to Entra ID broke: {why}"))
            }
            Some(Ok(answer)) => refusal(&answer, now),
        }
    }
}

/// An answer of success that is no token.
pub(super) fn unreadable() -> TokenFailure {
    TokenFailure {
        class: Class::Retry { wait: None },
        code: "token-unreadable",
        message: "Entra ID answered something that is not a token; is login_url right?".to_owned(),
    }
}

fn refusal(answer: &Answer, now: OffsetDateTime) -> TokenFailure {
    let status = answer.status;
    let wait = answer.retry_after(now);
    if answer.is_success() {
        return unreadable();
    }
    if matches!(status, 408 | 425 | 429 | 500..) {
        return TokenFailure {
            class: Class::Retry { wait },
            code: if status == 429 { "token-throttled" } else { "token-status" },
            message: format!("Entra ID answered {status} to the token request"),
        };
    }
    let body = lenient::object(&lenient::text_of(&answer.body)).unwrap_or_default();
    let Some(error) = lenient::text(&body, "error").map(|error| lenient::sentence(&error, 60)) else {
        return TokenFailure {
            class: if (300..400).contains(&status) { Class::Retry { wait } } else { Class::Auth },
            code: "token-refused",
            message: format!(
                "the login host answered {status} with something that is not Entra ID's: check login_url, cloud and \
                 any proxy in between"
            ),
        };
    };
    let number = lenient::texts(&body, "error_codes").into_iter().next().filter(|code| code.len() < 12);
    let number = number.or_else(|| {
        let description = lenient::text(&body, "error_description")?;
        let digits =
            description.strip_prefix("AADSTS")?.split(|c: char| !c.is_ascii_digit()).next()?.to_owned();
        (!digits.is_empty()).then_some(digits)
    });
    let trace =
        lenient::text(&body, "trace_id").map(|id| format!("; trace id {}", lenient::sentence(&id, 60)));
    let named = match &number {
        Some(number) => format!("AADSTS{number}, {error}"),
        None => error.clone(),
    };
    if error == "temporarily_unavailable" || matches!(number.as_deref(), Some("90033" | "90006")) {
        let message = format!("Entra ID is unavailable for the moment ({named})");
        return TokenFailure { class: Class::Retry { wait }, code: "token-status", message };
    }
    TokenFailure {
        class: Class::Auth,
        code: "token-refused",
        message: format!(
            "Entra ID gave no token ({named}): {}{}",
            cure(number.as_deref().unwrap_or_default(), &error),
            trace.unwrap_or_default()
        ),
    }
}

/// What most likely helps, by AADSTS number, else by OAuth error.
fn cure(number: &str, error: &str) -> &'static str {
    match number {
        "7000215" => "the client secret is wrong; configure the secret's value, not its id",
        "7000222" => "the client secret has expired; make a new one in the app registration",
        "7000112" => "the application is disabled in the tenant",
        "7000229" | "700016" => {
            "the application is unknown in this tenant; check client_id and tenant_id, and that an administrator \
             consented there"
        }
        "90002" | "900021" | "900023" | "50059" => "there is no such tenant; check tenant_id and cloud",
        "70011" | "500011" | "650057" | "1002012" => {
            "the scope is unknown there; check that cloud is the tenant's cloud"
        }
        "53003" => "a conditional access policy blocks the application",
        _ => match error {
            "invalid_client" => "check client_id and client_secret",
            "unauthorized_client" => "check client_id and tenant_id",
            "invalid_scope" | "invalid_resource" => "check that cloud is the tenant's cloud",
            _ => "check tenant_id, client_id and client_secret",
        },
    }
}

#[async_trait::async_trait]
impl HttpClient for Wire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let Body::Bytes(body) = request.body() else {
            return Err(Error::with_message(ErrorKind::Other, "a token request has a body of bytes"));
        };
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path().trim_end_matches('/'), request.url().path()));
        url.set_query(request.url().query());
        let mut outgoing = self.transport.request(reqwest::Method::POST, url).body(body.clone());
        for (name, value) in request.headers().iter() {
            outgoing = outgoing.header(name.as_str(), value.as_str());
        }
        let mut seen = self.transport.send(outgoing).await;
        let result = match &mut seen {
            Ok(answer) => {
                // What is kept of a success has no body: it holds a token.
                let body =
                    if answer.is_success() { std::mem::take(&mut answer.body) } else { answer.body.clone() };
                Ok(AsyncRawResponse::from_bytes(StatusCode::from(answer.status), Headers::default(), body))
            }
            Err(_) => Err(Error::with_message(ErrorKind::Io, "no answer")),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        result
    }
}
