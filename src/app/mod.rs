//! The order of work, written over the ports: what is read before what, what is stored before what, and who waits
//! for whom. It decides nothing about incidents (that is `domain`) and knows no HTTP and no SQL.

pub mod backfill;
pub mod drift;
pub mod explain;
pub mod health;
mod hung;
pub mod intake;
pub mod keyring;
pub mod keys;
pub mod lately;
mod links;
mod merges;
pub mod metrics;
pub mod native;
pub mod ownership;
pub mod patience;
pub mod poll;
pub mod reconcile;
pub mod routes;
mod shadow;
pub mod subscriptions;
pub mod sweep;
pub mod tokens;
pub mod unmapped;
pub mod worker;
