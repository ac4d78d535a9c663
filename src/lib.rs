//! Lockstep keeps the incidents of Microsoft Defender XDR and Microsoft Sentinel in step: both ways, in seconds,
//! every write explained. `ARCHITECTURE.md` has the picture; read the modules in this order.

pub mod domain;
pub mod ports;

pub mod app;

pub mod adapters;

pub mod config;
pub mod http;
pub mod telemetry;
pub mod trace;

#[cfg(feature = "emulator")]
pub mod emulator;

pub mod cli;
