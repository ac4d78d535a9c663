//! The application over fakes that remember, lag, refuse and lose answers, under a paused clock: random worlds first,
//! then a few stories. `LOCKSTEP_SEEDS=2000` runs more worlds, `LOCKSTEP_SEED=42` one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod backfills;
mod drifts;
mod file;
mod house;
mod life;
mod people;
mod plant;
mod sayings;
mod seeds;
mod sides;
mod store;
mod stories;
mod sweeps;
mod truth;
mod world;
mod worlds;
