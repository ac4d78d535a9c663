//! Log lines and metrics: set up once, in one place. Lines go to standard error, since standard output belongs to the
//! commands; nothing here or elsewhere writes a secret, a token or a body.

use std::io::IsTerminal as _;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Starts the log. Does nothing when a log was started before (tests, the demo).
pub fn start(log: &Log) {
    // The configuration has tried the filter already; a filter from elsewhere falls back to the usual level.
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _ = match log.format {
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
}

/// A registry that tells the version. Families are registered under their whole name, `lockstep_…`.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let build = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    build.get_or_create(&[("version", VERSION)]).set(1);
    registry.register("lockstep_build", "Always 1; its label tells the version", build);
    registry
}
