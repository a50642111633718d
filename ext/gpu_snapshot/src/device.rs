//! The device trait: everything the engine may ask of a GPU, real or simulated.
//! It must never expose a pointer: memory is named by addresses and handles that the device checks.

use crate::Result;
use std::os::fd::{BorrowedFd, OwnedFd};

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
    /// Driver version as the device reports it.
    pub driver: String,
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
    /// Creates physical memory of `len` bytes, rounded up to the granularity; zero-filled.
    fn create(&self, len: u64, exportable: bool) -> Result<Phys>;
    /// Gives memory back. Memory that is still mapped is freed by its last `unmap`.
    fn release(&self, phys: Phys) -> Result<()>;
    /// Maps all of `phys` at `va`, which must lie inside one reservation and be unmapped.
    fn map(&self, va: Va, phys: &Phys, access: Access) -> Result<()>;
    /// Unmaps whole mappings that together cover exactly `len` bytes from `va`.
    fn unmap(&self, va: Va, len: u64) -> Result<()>;
    /// A descriptor of exportable memory that another process can import.
    fn export(&self, phys: &Phys) -> Result<OwnedFd>;
    /// Takes in memory that `export` of the same kind of device gave.
    fn import(&self, fd: BorrowedFd<'_>) -> Result<Phys>;
}

/// Rounds up to a multiple of `unit`; `None` on overflow.
pub fn round_up(bytes: u64, unit: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(unit)
}
