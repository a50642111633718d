//! The scheduler core: pure decisions about placement, leases and standby.
//! It must never do I/O, ask a clock, start a thread or use randomness.

pub mod keepalive;
pub mod place;
pub mod sim;

#[cfg(feature = "python")]
pub mod py;
