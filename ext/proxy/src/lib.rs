//! proxy
#[cfg(feature = "python")]
pub mod py;
