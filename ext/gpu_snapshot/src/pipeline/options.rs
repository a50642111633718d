//! What a restore is asked for, and what it says it did.
//! It must never hold anything of a job that runs.

use crate::device::Va;
use std::time::Duration;

/// Where a region goes: device memory that is mapped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The region.
    pub region_id: u32,
    /// Its first byte's address.
    pub va: Va,
}

/// Who asks the kernel for a snapshot's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Threads that call `pread`: works everywhere.
    #[default]
    Pread,
    /// One thread with io_uring: a fraction of the system calls. Where the kernel refuses it, or a
    /// segment has no descriptor, `Pread` does the work; the report tells.
    Uring,
}

/// How a job runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Reads under way at once; with `Pread` each by a thread of its own, which checks them too.
    pub readers: usize,
    /// Bytes of a read; chunks that are longer are read in parts. Where it does not divide the
    /// ring's slots, chunks are read whole.
    pub part_len: usize,
    /// Who reads.
    pub backend: Backend,
    /// How long a single copy may take before the device counts as hung.
    pub copy_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 16,
            part_len: 2 << 20,
            backend: Backend::default(),
            copy_timeout: Duration::from_secs(10),
        }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chunks restored, zero and repeated ones included.
    pub chunks: u64,
    /// Reads from the disk.
    pub reads: u64,
    /// System calls for them.
    pub read_calls: u64,
    /// Who made them.
    pub backend: Backend,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes copied to the device.
    pub bytes_copied: u64,
    /// Bytes zeroed on the device.
    pub bytes_zeroed: u64,
    /// Whether the reads went past the page cache.
    pub direct: bool,
    /// From the call to the first finished copy.
    pub first_copy: Duration,
    /// From the call to its end.
    pub elapsed: Duration,
}
