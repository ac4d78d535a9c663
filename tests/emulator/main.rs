//! The emulator over HTTP, as outside tests and the service drive it: what it serves has the published shape, its
//! control listener keeps its contract, and trouble comes exactly when it is ordered.

#![cfg(feature = "emulator")]

mod arm;
mod bookmarks;
mod control;
mod desk;
mod detections;
mod directory;
mod engine;
mod entra;
mod faults;
mod graph_reading;
mod graph_writing;
mod limits;
mod native;
mod playbooks;
mod receiver;
mod schema;
mod subscriptions;
mod tls;
#[path = "../support/vectors.rs"]
mod vectors;
