//! Memory mapped into this process: shared memory files and own memory on huge pages.
//! It must never map what could shrink: an access past the end would kill the process.
//!
//! Why shared files are mapped at all: a mapped copy into memory that is there already costs half
//! of a `pwrite` (2.2 against 4.1 GB/s, memcpy 4.3, one machine, same run). Into new memory
//! `pwrite` is three times faster, because it faults nothing in; the caller chooses.
#![allow(unsafe_code, reason = "maps memory; every block says why it is sound")]

use crate::{Error, Result};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// All of a memory file, readable and writable, shared with whoever else maps it.
#[derive(Debug)]
pub(crate) struct SharedMap {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and no reference into it is ever given out.
// Other threads and processes may write the same bytes at the same time, as with device memory;
// then it is undefined which bytes win, but only bytes are ever read.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps a memory file that is sealed against shrinking and has at least `len` bytes.
    pub(crate) fn new(memfd: BorrowedFd<'_>, len: u64) -> Result<Self> {
        let seals = fcntl_get_seals(memfd)
            .map_err(|error| Error::io("the seals of device memory", error))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::Invalid(
                "the memory is not sealed against shrinking".into(),
            ));
        }
        let stat = fstat(memfd).map_err(|error| Error::io("fstat of device memory", error))?;
        let len = usize::try_from(len).map_err(|error| Error::Invalid(error.to_string()))?;
        if len == 0 || usize::try_from(stat.st_size).is_ok_and(|size| size < len) {
            return Err(Error::Invalid(format!("{} bytes, not {len}", stat.st_size)));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing is replaced.
        let at = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, memfd, 0) };
        let at = at.map_err(|error| Error::io("mmap of device memory", error))?;
        let at = NonNull::new(at.cast()).ok_or_else(|| Error::Invalid("mapped at 0".into()))?;
        Ok(Self { at, len })
    }

    /// Copies bytes in; refuses what does not fit.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let fits = usize::try_from(offset).ok().filter(|start| {
            start
                .checked_add(bytes.len())
                .is_some_and(|end| end <= self.len)
        });
        let Some(start) = fits else {
            let why = format!("{} bytes at {offset} of {}", bytes.len(), self.len);
            return Err(Error::Invalid(why));
        };
        // SAFETY: inside the mapping (checked above), which the seal keeps backed by the file; the
        // source is no part of it, since no reference into it exists.
        unsafe { copy(bytes, self.at.as_ptr().add(start)) };
        Ok(())
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the own mapping, whole, once. It cannot fail for a mapping that exists.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// From this length on a copy goes past the cache; about the size of a second-level cache.
const STREAM_LEN_MIN: usize = 1 << 20;

/// Copies `bytes` to `to`, past the cache when they are many, as a device's copy engine would: the
/// target is not read first, which is 1.6 times as fast as `memcpy` (18.8 against 11.7 GB/s on
/// the machine of `bench/README.md`).
///
/// # Safety
/// `to` must be valid for writes of `bytes.len()` bytes that are no part of `bytes`.
unsafe fn copy(bytes: &[u8], to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= STREAM_LEN_MIN {
        // SAFETY: the caller's promise.
        return unsafe { stream(bytes, to) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

/// `copy` with non-temporal stores; SSE2, which every x86-64 processor has.
///
/// # Safety
/// As `copy`.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(bytes: &[u8], to: *mut u8) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const STEP: usize = 64;
    let head = to.align_offset(STEP).min(bytes.len());
    let (start, rest) = bytes.split_at(head);
    let blocks = rest.chunks_exact(STEP);
    let end = blocks.remainder();
    // SAFETY: `to` takes all of `bytes` (the caller's promise); after the head it is aligned to
    // 64, as the stores demand; each block has 64 bytes, so that four loads of 16 lie inside it.
    unsafe {
        std::ptr::copy_nonoverlapping(start.as_ptr(), to, start.len());
        let mut at = to.add(head);
        for block in blocks {
            let (from, into) = (block.as_ptr().cast::<__m128i>(), at.cast::<__m128i>());
            let four = [0, 1, 2, 3].map(|index| _mm_loadu_si128(from.add(index)));
            for (index, part) in four.into_iter().enumerate() {
                _mm_stream_si128(into.add(index), part);
            }
            at = at.add(STEP);
        }
        std::ptr::copy_nonoverlapping(end.as_ptr(), at, end.len());
        // Such stores are not ordered with others; whoever is told of the copy has to see them.
        _mm_sfence();
    }
}

/// Size of a huge page in bytes on the architectures that CUDA runs on.
const HUGE_PAGE: usize = 2 << 20;

/// Memory of this process alone, on huge pages where the kernel has them: direct I/O then looks
/// up one page where it would look up 512, and a copy misses the TLB that much less.
#[derive(Debug)]
struct OwnMap {
    at: NonNull<u8>,
    room: usize,
    start: usize,
}

// SAFETY: the mapping belongs to this value alone, and its bytes are only reached through the
// `OwnPart`s, no two of which share a byte.
unsafe impl Send for OwnMap {}
// SAFETY: as above.
unsafe impl Sync for OwnMap {}

impl OwnMap {
    /// Zeroed memory of `len` bytes that starts at a page, at a huge one when it has its size.
    fn new(len: usize) -> Result<Self> {
        let huge = len >= HUGE_PAGE;
        let room = len.checked_add(if huge { HUGE_PAGE } else { 0 });
        let room = room.ok_or_else(|| Error::Invalid(format!("{len} bytes of memory")))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing is replaced.
        let at = unsafe { mmap_anonymous(null_mut(), room, access, MapFlags::PRIVATE) };
        let at = at.map_err(|error| Error::io(format!("mmap of {room} bytes"), error))?;
        let at =
            NonNull::<u8>::new(at.cast()).ok_or_else(|| Error::Invalid("mapped at 0".into()))?;
        let start = if huge {
            at.as_ptr().align_offset(HUGE_PAGE)
        } else {
            0
        };
        let map = Self { at, room, start };
        if huge {
            // SAFETY: inside the own mapping; this advice never changes its content.
            let advised =
                unsafe { madvise(at.as_ptr().add(start).cast(), len, Advice::LinuxHugepage) };
            // A kernel without huge pages gives small ones, which are slower and as good.
            debug_assert!(advised.is_ok() || advised == Err(rustix::io::Errno::INVAL));
        }
        Ok(map)
    }
}

impl Drop for OwnMap {
    fn drop(&mut self) {
        // SAFETY: the own mapping, whole, once. It cannot fail for a mapping that exists.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.room) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A range of own memory that belongs to this value alone; the memory is freed with its last part.
#[derive(Debug)]
pub(crate) struct OwnPart {
    map: Arc<OwnMap>,
    /// Offset in the map's bytes.
    start: usize,
    len: usize,
}

impl OwnPart {
    /// New memory, zeroed, as one part.
    pub(crate) fn new(len: usize) -> Result<Self> {
        let map = Arc::new(OwnMap::new(len)?);
        Ok(Self { map, start: 0, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the bytes from `at` on off.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "{at} of {} bytes", self.len);
        let rest = Self {
            map: Arc::clone(&self.map),
            start: self.start + at,
            len: self.len - at,
        };
        self.len = at;
        rest
    }

    /// Takes back what was cut off here; gives back what was not.
    pub(crate) fn unsplit(&mut self, rest: Self) -> std::result::Result<(), Self> {
        if !Arc::ptr_eq(&self.map, &rest.map) || rest.start != self.start + self.len {
            return Err(rest);
        }
        self.len += rest.len;
        Ok(())
    }

    fn at(&self) -> *mut u8 {
        // SAFETY: parts only ever shrink from the whole or grow back, so that `start` lies inside
        // the map's bytes, which begin at `map.start` of the mapping.
        unsafe { self.map.at.as_ptr().add(self.map.start + self.start) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies inside the mapping, which lives as long as this value, and is in
        // no other part; nobody writes it while it is borrowed, see `crate::uring` and
        // `crate::cuda`.
        unsafe { std::slice::from_raw_parts(self.at(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at(), self.len) }
    }
}
