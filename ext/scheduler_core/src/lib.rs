//! scheduler_core
pub mod place;
#[cfg(feature = "python")]
pub mod py;
