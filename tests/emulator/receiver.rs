//! A small receiver of notifications that remembers what came.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;

/// One delivery.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A listener on a free port.
pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    /// Answers each delivery as `answer` says, which is told how many came before. A validation handshake is always
    /// answered with its token, and not counted.
    pub(crate) async fn open(
        answer: impl Fn(usize) -> (u16, String) + Clone + Send + Sync + 'static,
    ) -> Self {
        let got: Arc<Mutex<Vec<Post>>> = Arc::default();
        let keep = got.clone();
        let take = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let (keep, answer) = (keep.clone(), answer.clone());
            async move {
                let query = uri.query().unwrap_or("").to_owned();
                let token = url::form_urlencoded::parse(query.as_bytes())
                    .find(|(name, _)| name == "validationToken")
                    .map(|(_, value)| value.into_owned());
                if let Some(token) = token {
                    return (StatusCode::OK, token);
                }
                let mut keep = keep.lock().expect("nobody panicked");
                let seen = keep.len();
                keep.push(Post { query, headers, body: body.to_vec() });
                let (status, text) = answer(seen);
                (StatusCode::from_u16(status).expect("a status"), text)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(take))).await });
        Self { url, got }
    }

    /// All deliveries so far.
    pub(crate) fn got(&self) -> Vec<Post> {
        self.got.lock().expect("nobody panicked").clone()
    }
}
