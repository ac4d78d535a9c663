//! The bare handler: axum as the service uses it, reading the same bytes and answering 202. What HTTP costs before
//! anything is verified or stored. Runs in a process of its own: this benchmark, started again.

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;

/// The argument that makes this program the bare server.
pub(crate) const ARGUMENT: &str = "--serve-bare";

/// Serves until it is killed. The first line on standard output is the port.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        println!("{}", listener.local_addr().expect("it is bound").port());
        // The same two routes as the service's doors.
        let doors = Router::new()
            .route("/notify/sentinel/{workspace}", post(read_and_accept))
            .route("/notify/graph", post(read_and_accept));
        axum::serve(listener, doors).await.expect("serves until it is killed");
    });
}

async fn read_and_accept(body: Bytes) -> StatusCode {
    if body.is_empty() { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED }
}
