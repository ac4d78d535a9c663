//! Microsoft Sentinel incidents through Azure Resource Manager.

mod client;
#[doc(hidden)]
pub mod codec;
mod wire;

pub use client::{DEFAULT_API_VERSION, SentinelClient, SentinelSettings};
