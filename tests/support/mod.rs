//! Runs the program as its users do, for tests and benchmarks that look at it from outside: real processes, real
//! sockets, the emulator's control listener, analysts who work through the real APIs.
//!
//! Used by several binaries with `#[path]`. Whatever cannot be done here panics with what was waited for and the end
//! of the program's own log: these are tests, and a test that cannot set its stage has failed.
//!
//! - [`process`]: one started program, killed by its own process id when it is dropped
//! - [`emulator`]: `lockstep emulator`, its control listener, [`emulator::Analyst`]
//! - [`service`]: `lockstep serve` on a configuration written here, signed notifications, restarts
//! - [`in_step`]: whether both sides say the same, judged by a table of its own
//! - [`postgres`]: a database of one's own in the server that `LOCKSTEP_TEST_POSTGRES` names

// Each binary uses its own part of this.
#![allow(dead_code)]

pub(crate) mod emulator;
pub(crate) mod in_step;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod service;

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until the condition answers with a value, and says how long that took. The condition answers `Err` with what
/// is still missing; that is what the panic shows when patience ends.
pub(crate) async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> F,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return (value, start.elapsed()),
            Err(missing) if start.elapsed() > patience => {
                panic!("waited {} s in vain for: {what}. Still: {missing}", patience.as_secs())
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// A client for loopback: no proxy, short patience.
pub(crate) fn client() -> reqwest::Client {
    plain().build().expect("nothing in this client depends on the machine")
}

/// The same, for servers whose certificates this authority (PEM) has signed.
pub(crate) fn client_trusting(authority: &[u8]) -> reqwest::Client {
    let authority = reqwest::Certificate::from_pem(authority).expect("a certificate");
    plain().tls_certs_only([authority]).build().expect("nothing in this client depends on the machine")
}

fn plain() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10))
}
