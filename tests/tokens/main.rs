//! The verifier of senders' tokens: the published vectors, every forgery the emulator can make, the laws of the key
//! cache on a clock of our own, and tokens with one byte changed.

mod bench;
#[cfg(feature = "emulator")]
mod forged;
mod keys;
mod mutated;
mod vectors;
