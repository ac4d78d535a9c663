//! The laws of the core, over every small world: what may never happen is tried everywhere it could.

mod alerts;
mod comments;
mod doubts;
mod examples;
mod loop_model;
mod owners;
mod plan_laws;
mod round_trips;
mod worlds;
