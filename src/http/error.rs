//! What a refusal looks like: a problem document (RFC 9457) with one sentence, never a value from the request.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: StatusCode,
    /// One sentence for whoever reads the sender's log.
    pub detail: &'static str,
}

impl Refused {
    /// The store cannot take it: the sender is to keep its copy and come again.
    pub const UNAVAILABLE: Self =
        Self { status: StatusCode::SERVICE_UNAVAILABLE, detail: "not stored; send it again" };
    /// Larger than a body may be.
    pub const TOO_LARGE: Self =
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, detail: "the body is larger than 4 MiB" };
    /// This sender has had its share of the time.
    pub const TOO_MANY: Self =
        Self { status: StatusCode::TOO_MANY_REQUESTS, detail: "too many requests from your address; wait" };
    /// More is handled now than there is room for.
    pub const BUSY: Self =
        Self { status: StatusCode::TOO_MANY_REQUESTS, detail: "too much at once; send it again" };
    /// An allow list does not name the sender.
    pub const NOT_ALLOWED: Self =
        Self { status: StatusCode::FORBIDDEN, detail: "this door is not open to your address" };
    /// No such address.
    pub const NOT_FOUND: Self =
        Self { status: StatusCode::NOT_FOUND, detail: "there is nothing at this address" };
    /// Another method is needed.
    pub const METHOD: Self =
        Self { status: StatusCode::METHOD_NOT_ALLOWED, detail: "this address does not take this method" };
    /// Slower than we wait.
    pub const TIMEOUT: Self =
        Self { status: StatusCode::REQUEST_TIMEOUT, detail: "the request took longer than ten seconds" };
    /// A defect of ours.
    pub const INTERNAL: Self =
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, detail: "a defect; the log has the request's id" };

    /// The sender cannot be believed.
    pub const fn unauthorized(detail: &'static str) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, detail }
    }

    /// What was sent cannot be read.
    pub const fn bad(detail: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, detail }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Refused");
        let body =
            json!({ "title": title, "status": self.status.as_u16(), "detail": self.detail }).to_string();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => headers.insert(RETRY_AFTER, HeaderValue::from_static("5")),
            StatusCode::TOO_MANY_REQUESTS => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            _ => None,
        };
        response
    }
}
