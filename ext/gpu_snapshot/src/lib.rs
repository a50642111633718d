//! gpu_snapshot
#[cfg(feature = "python")]
pub mod py;
