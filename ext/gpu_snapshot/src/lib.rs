//! Snapshots of GPU workers: the device trait, the file format and the restore pipeline.
//! It must never hand a byte to a process that was not verified, and never know Python outside `py`.

pub mod buffer;
pub mod device;
pub mod error;
pub mod held;
pub mod image;
pub mod pipeline;
pub mod soft;
pub mod storage;

#[cfg(feature = "python")]
pub mod py;

pub use error::{BadChunk, Error, Result};
