//! Microsoft Defender XDR through the Graph security API. Facts: the v1.0 reference of `/security/incidents`, and
//! what others have observed of it.

mod client;
#[doc(hidden)]
pub mod codec;
mod directory;
#[cfg(test)]
mod directory_tests;
mod subscriptions;
mod wire;

pub use client::{GraphClient, GraphSettings};
pub use directory::GraphDirectory;
pub use subscriptions::GraphSubscriptions;
