//! Microsoft Sentinel incidents through Azure Resource Manager.

mod client;
mod wire;

pub use client::{DEFAULT_API_VERSION, SentinelClient, SentinelSettings};
