//! Host memory for direct I/O and device copies: page-aligned, touched once, never moved.
//! It must never grow: a slot is made before the job and reused until its end.

use crate::map::OwnMap;
use crate::{Error, Result};
use std::fmt;

/// Alignment of a buffer's start in bytes: what O_DIRECT asks for on every block size in use.
pub const PAGE: usize = 4096;

/// A page-aligned piece of host memory.
pub struct HostBuffer {
    /// Unlocks the pages; declared first, so that it is dropped before the pages are.
    pin: Option<Box<dyn Send + Sync>>,
    /// Never resized, so its address is stable for the buffer's life.
    memory: OwnMap,
}

impl HostBuffer {
    /// Memory of `len` bytes, a multiple of the page size, all pages faulted in.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(Error::Invalid(format!(
                "buffer length {len} is no multiple of {PAGE}"
            )));
        }
        let mut memory = OwnMap::new(len)?;
        // A write to each page, because an untouched page would fault on the restore path.
        let pages = memory.bytes_mut().iter_mut().step_by(PAGE);
        pages.for_each(|byte| *byte = 1);
        Ok(Self { pin: None, memory })
    }

    /// Whether a device has locked the pages.
    pub fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Keeps what unlocks the pages when it is dropped. For devices.
    pub(crate) fn set_pin(&mut self, pin: Box<dyn Send + Sync>) {
        self.pin = Some(pin);
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Never true: a buffer has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "HostBuffer({} bytes, pinned: {})",
            self.len(),
            self.is_pinned()
        )
    }
}

/// Whether every byte is zero; compares page by page, which is a `memcmp` each.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    bytes.chunks(PAGE).all(|page| page == &ZEROS[..page.len()])
}
