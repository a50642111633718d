//! The device trait: everything the engine may ask of a GPU, real or simulated.
//! It must never expose a pointer: memory is named by addresses and handles that the device checks.

use crate::buffer::HostBuffer;
use crate::{Error, Result};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Size unit of device memory in bytes; the minimum granularity of CUDA's virtual memory interface.
pub const GRANULARITY: u64 = 2 << 20;

/// An address in a device's virtual address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Va(pub u64);

impl Va {
    /// The address `bytes` further on; `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Va> {
        self.0.checked_add(bytes).map(Va)
    }
}

/// A piece of physical device memory. Not `Clone`: whoever holds it has to `release` it.
#[derive(Debug, PartialEq, Eq)]
pub struct Phys {
    pub(crate) handle: u64,
    pub(crate) len: u64,
}

impl Phys {
    /// Length in bytes, a multiple of the device's granularity.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true for memory that a device created.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What may be done through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only; a copy into the range is refused.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// What a device is; part of a snapshot's compatibility key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Marketing name, e.g. "NVIDIA H100 80GB HBM3" or "SoftDevice".
    pub name: String,
    /// The 16 bytes of the device's UUID.
    pub uuid: [u8; 16],
    /// Total memory in bytes.
    pub memory_total: u64,
    /// Granularity of `create`, `map` and `reserve` in bytes.
    pub granularity: u64,
    /// Version of the kernel driver, e.g. "580.126.09"; empty when it does not say.
    pub driver: String,
    /// CUDA version of the driver, e.g. "13.0".
    pub cuda: String,
    /// Compute capability, e.g. "9.0".
    pub compute_capability: String,
}

/// One piece of work for a copy queue. The queue owns the buffer until it gives it back.
#[derive(Debug)]
pub struct Work {
    /// What is done.
    pub kind: WorkKind,
    /// Device address.
    pub va: Va,
    /// Bytes; at most the buffer's length for a copy.
    pub len: u64,
    /// Chosen by the caller, given back with the completion.
    pub tag: u64,
    /// Source or target; any buffer, or none, for `Zero`.
    pub buffer: Option<HostBuffer>,
}

/// What a piece of work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Copies the buffer's first bytes to the device.
    ToDevice,
    /// Copies from the device to the buffer's start.
    ToHost,
    /// Sets device memory to zero.
    Zero,
}

/// Finished work.
#[derive(Debug)]
pub struct Completion {
    /// The work's tag.
    pub tag: u64,
    /// The work's buffer.
    pub buffer: Option<HostBuffer>,
    /// Whether all bytes were moved.
    pub result: Result<()>,
}

/// A queue that takes work from any thread and finishes it in order.
pub trait CopyQueue: Send + Sync {
    /// Takes work in without waiting; when refused, the buffer comes back with the reason.
    fn submit(&self, work: Work) -> std::result::Result<(), (Error, Option<HostBuffer>)>;
    /// The oldest unfinished work, once it is finished; `None` when that takes too long or when
    /// nothing is under way.
    fn reap(&self, timeout: Duration) -> Option<Completion>;
}

/// State of a process as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcState {
    /// Runs; its CUDA calls are served.
    Running,
    /// Its CUDA calls block.
    Locked,
    /// Its device memory is on the host; it holds no GPU.
    Checkpointed,
    /// Broken for good; it has to be killed.
    Failed,
}

/// Which GPU takes the place of which at a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuPair {
    /// UUID at the checkpoint.
    pub old: [u8; 16],
    /// UUID at the restore.
    pub new: [u8; 16],
}

/// Checkpoints of whole processes by the driver. Legal order: lock, checkpoint, restore, unlock;
/// anything else is a device error with code 401.
pub trait ProcessControl: Send + Sync {
    /// The state of a process.
    fn proc_state(&self, pid: i32) -> Result<ProcState>;
    /// Running to Locked. After a timeout (code 600) the process keeps running; try again.
    fn proc_lock(&self, pid: i32, timeout: Duration) -> Result<()>;
    /// Locked to Checkpointed.
    fn proc_checkpoint(&self, pid: i32) -> Result<()>;
    /// Checkpointed to Locked. Check `mem_free` first: after a failure for lack of memory the
    /// process may be stuck for ever (code 304) and has to be killed.
    fn proc_restore(&self, pid: i32, gpus: &[GpuPair]) -> Result<()>;
    /// Locked to Running.
    fn proc_unlock(&self, pid: i32) -> Result<()>;
}

/// Memory of one device. All methods may be called from any thread.
pub trait Device: Send + Sync {
    /// What this device is; constant for its life.
    fn info(&self) -> DeviceInfo;
    /// Free memory in bytes right now.
    fn mem_free(&self) -> Result<u64>;
    /// Reserves `len` bytes of address space, at `hint` when that range is free.
    fn reserve(&self, len: u64, hint: Option<Va>) -> Result<Va>;
    /// Gives a reservation back; its mappings must be gone.
    fn unreserve(&self, va: Va, len: u64) -> Result<()>;
    /// Creates physical memory of at least `len` bytes, a multiple of the granularity; its content
    /// is undefined.
    fn create(&self, len: u64, exportable: bool) -> Result<Phys>;
    /// Gives memory back. Memory that is still mapped is freed by its last `unmap`.
    fn release(&self, phys: Phys) -> Result<()>;
    /// Maps all of `phys` at `va`, which must lie inside one reservation and be unmapped.
    fn map(&self, va: Va, phys: &Phys, access: Access) -> Result<()>;
    /// Unmaps whole mappings that together cover exactly `len` bytes from `va`.
    fn unmap(&self, va: Va, len: u64) -> Result<()>;
    /// A descriptor of exportable memory that another process can import.
    fn export(&self, phys: &Phys) -> Result<OwnedFd>;
    /// Takes in memory of `len` bytes that `export` of the same kind of device gave.
    fn import(&self, fd: BorrowedFd<'_>, len: u64) -> Result<Phys>;
    /// Locks a buffer's pages for fast copies, until the buffer is dropped. Slow: seconds for
    /// many GiB, so it is done once and never on the path of a restore.
    fn pin(&self, buffer: &mut HostBuffer) -> Result<()>;
    /// Opens a copy queue that holds up to `depth` pieces of work.
    fn open_queue(&self, depth: usize) -> Result<Box<dyn CopyQueue>>;
}

/// Everything a GPU can do here.
pub trait Gpu: Device + ProcessControl {}

impl<T: Device + ProcessControl> Gpu for T {}

/// Rounds up to a multiple of `unit`; `None` on overflow.
pub fn round_up(bytes: u64, unit: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(unit)
}
