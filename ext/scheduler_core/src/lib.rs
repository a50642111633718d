//! scheduler_core
pub mod keepalive;
#[cfg(feature = "python")]
pub mod py;
pub mod sim;
