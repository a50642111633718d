//! The scheduler's decisions as one pure state machine: facts and wishes in, effects out.
//! It must never do I/O, read a clock, start a thread or draw a random number; time is an argument.

pub mod core;
pub mod fleet;
pub mod keepalive;
pub mod lease;
pub mod ledger;
pub mod nodes;
pub mod place;
pub mod pod;
#[cfg(feature = "python")]
pub mod py;
pub mod queue;
pub mod shared;
pub mod sim;

pub use crate::core::Core;
pub use crate::core::{messages, model};
