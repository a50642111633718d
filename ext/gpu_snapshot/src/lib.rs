//! Snapshots of GPU workers: the device trait, the file format and the restore pipeline.
//! It must never hand on a byte that was not verified, and never know Python outside of `py`.

pub mod buffer;
pub mod checksum;
pub mod cuda;
pub mod device;
pub mod error;
pub mod held;
pub mod image;
mod map;
pub mod measure;
pub mod pipeline;
pub mod soft;
pub mod storage;
mod uring;

#[cfg(feature = "python")]
pub mod py;

pub use error::{BadChunk, Error, Result};
