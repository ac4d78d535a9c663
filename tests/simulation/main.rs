//! The application over the emulator's world in process, where notifications and calls are lost, late and doubled and
//! reads lag, under a paused clock: random lives, then a few stories. `LOCKSTEP_SEEDS=2000` lives more, `LOCKSTEP_SEED=42`
//! one. Lists of ten thousand are a shelf of their own: the sweep, the drift report and the backfill go over them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod backfills;
mod drifts;
mod explains;
mod file;
mod house;
mod life;
mod natives;
mod overlaps;
mod people;
mod plant;
mod sayings;
mod seeds;
mod store;
mod stories;
mod sweeps;
mod tales;
mod truth;
