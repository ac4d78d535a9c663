//! The real things behind the ports.

pub mod store;
