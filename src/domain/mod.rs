//! The reason the program exists: the record, the mapping, the three-way merge, the plan, the retry rule.
//! Pure: it never awaits, never asks the time, never rolls dice, and imports nothing of ours.

pub mod alert;
pub mod cloud;
pub mod comments;
pub mod digest;
pub mod failure;
pub mod filter;
pub mod mapping;
pub mod merge;
pub mod model;
pub mod network;
pub mod notice;
pub mod owners;
pub mod plan;
pub mod policy;
pub mod retry;
pub mod rich;
pub mod signature;
pub mod text;
pub mod token;
