//! Replays a trace of calls against a keep-alive policy and measures what users wait and what GPUs
//! are held. It must never show a policy anything but what has already happened, except the
//! optimum, which is marked as such.

mod caching;
mod clairvoyant;
mod generator;
mod node;
mod pool;
mod report;
mod trace;

pub use caching::{optimum_misses, policy_misses};
pub use clairvoyant::{Clairvoyant, ClairvoyantPool};
pub use node::{Decision, NodeConfig, NodeRun, StartTier, simulate};
pub use report::Summary;
pub use trace::{Call, Trace, TraceError};
