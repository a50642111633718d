//! Host memory for direct I/O and device copies: page-aligned, touched once, never moved.
//! It must never grow: a slot is made before the job and reused until its end.

use crate::map::OwnPart;
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// Alignment of a buffer's start in bytes: what O_DIRECT asks for on every block size in use.
pub const PAGE: usize = 4096;

/// A page-aligned piece of host memory.
pub struct HostBuffer {
    /// Unlocks the pages with its last owner; declared first, so that it is dropped before the
    /// pages are.
    pin: Option<Arc<dyn Send + Sync>>,
    /// Its address is stable for the buffer's life.
    memory: OwnPart,
}

impl HostBuffer {
    /// Memory of `len` bytes, a multiple of the page size, all pages faulted in.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(Error::Invalid(format!(
                "buffer length {len} is no multiple of {PAGE}"
            )));
        }
        let mut memory = OwnPart::new(len)?;
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
    pub(crate) fn set_pin(&mut self, pin: Arc<dyn Send + Sync>) {
        self.pin = Some(pin);
    }

    /// Cuts the buffer into parts of `part_len` bytes, a multiple of the page size, and what is
    /// left; all stay pinned until the last is dropped.
    pub fn split(mut self, part_len: usize) -> Vec<Self> {
        let part_len = part_len.next_multiple_of(PAGE).max(PAGE);
        let mut parts = Vec::with_capacity(self.len().div_ceil(part_len));
        while self.len() > part_len {
            let rest = Self {
                pin: self.pin.clone(),
                memory: self.memory.split_off(part_len),
            };
            parts.push(std::mem::replace(&mut self, rest));
        }
        parts.push(self);
        parts
    }

    /// Takes a part back that was cut off at this end; gives any other back.
    pub fn unsplit(&mut self, part: Self) -> std::result::Result<(), Self> {
        let Self { pin, memory } = part;
        let joined = self.memory.unsplit(memory);
        joined.map_err(|memory| Self { pin, memory })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_make_the_whole_again() {
        let whole = HostBuffer::new(5 * PAGE).unwrap();
        let start = whole.bytes().as_ptr();
        let mut parts = whole.split(2 * PAGE);
        let lens: Vec<usize> = parts.iter().map(HostBuffer::len).collect();
        assert_eq!(lens, [2 * PAGE, 2 * PAGE, PAGE]);
        for (number, part) in (1..).zip(&mut parts) {
            part.bytes_mut().fill(number);
        }
        let last = parts.pop().unwrap();
        let middle = parts.pop().unwrap();
        let mut first = parts.pop().unwrap();
        let last = first.unsplit(last).unwrap_err();
        let stranger = HostBuffer::new(PAGE).unwrap();
        assert!(first.unsplit(stranger).is_err());
        first.unsplit(middle).unwrap();
        first.unsplit(last).unwrap();
        assert_eq!((first.bytes().as_ptr(), first.len()), (start, 5 * PAGE));
        assert_eq!(first.bytes()[2 * PAGE - 1], 1);
        assert_eq!(first.bytes()[2 * PAGE], 2);
        assert_eq!(first.bytes()[4 * PAGE], 3);
    }

    #[test]
    fn the_pages_stay_pinned_until_the_last_part_is_dropped() {
        struct Unpin(Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Unpin {
            fn drop(&mut self) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let unpinned = Arc::default();
        let mut whole = HostBuffer::new(2 * PAGE).unwrap();
        whole.set_pin(Arc::new(Unpin(Arc::clone(&unpinned))));
        let mut parts = whole.split(PAGE);
        let last = parts.pop().unwrap();
        drop(parts);
        assert!(last.is_pinned());
        assert!(!unpinned.load(std::sync::atomic::Ordering::Relaxed));
        drop(last);
        assert!(unpinned.load(std::sync::atomic::Ordering::Relaxed));
    }
}
