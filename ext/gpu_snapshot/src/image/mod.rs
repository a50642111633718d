//! The snapshot on disk, format version 1: COMMIT, manifest, chunk table and data segments.
//! It must never accept what its writer did not publish, and never change a published snapshot.
//!
//! ```text
//! snap-<id>/        published by rename from .tmp-<id>; never modified afterwards
//!   COMMIT          64 bytes: magic, blake3 and length of the manifest; written last
//!   manifest.json   identity, regions, segments, further files; binds the table by its blake3
//!   chunks.tbl      header of 4096 bytes, then one record of 64 bytes a chunk, little-endian
//!   data-NNN.seg    the chunks' bytes; records tile a segment without gap or overlap
//! ```
//! Every byte of every file is covered by a checksum: COMMIT by its own crc32c, the manifest by
//! COMMIT, the table and the further files by the manifest, each record and each chunk by a crc32c.

mod check;
mod commit;
mod import;
mod manifest;
mod read;
mod record;
mod segments;
mod store;
mod write;

pub use check::check_table;
pub use commit::{COMMIT_LEN, Commit};
pub use import::Import;
pub use manifest::{AuxFile, Gpu, Identity, Manifest, Region, RegionClass, Segment};
pub(crate) use read::PartRead;
pub use read::Snapshot;
pub use record::{Codec, HEADER_LEN, Header, RECORD_LEN, Record};
pub use store::{Scan, Store, fsck};
pub use write::{Draft, Writer, WriterLimits};

/// Name of the file that makes a directory a snapshot.
pub const COMMIT: &str = "COMMIT";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of the chunk table.
pub const TABLE: &str = "chunks.tbl";

/// Name of a data segment.
pub fn segment_name(index: u16) -> String {
    format!("data-{index:03}.seg")
}
