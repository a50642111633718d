//! scheduler_core
#[cfg(feature = "python")]
pub mod py;
