//! The real outside behind `ports`: Entra ID, Graph, Azure Resource Manager, the store, the clock. Only `main` and `cli`
//! know that these exist.

pub mod budget;
pub mod call;
pub mod clock;
pub mod entra;
pub mod gate;
pub mod graph;
pub mod keys;
pub mod lenient;
#[doc(hidden)]
pub mod pace;
pub mod sentinel;
pub mod store;
pub mod transport;
pub mod vault;

#[cfg(test)]
mod tests;
