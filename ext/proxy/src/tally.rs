//! The count of records that were made, in a file that outlives a kill of the process.
//! Must never cost a call a system call, nor touch the file's other numbers.
#![allow(unsafe_code, reason = "maps a file; every block says why it is sound")]

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The numbers of the file; `python/inferx/audit/spill.py` makes it and owns the others.
const NUMBERS: usize = 4;
const MADE: usize = 2;
const BYTES: usize = NUMBERS * size_of::<u64>();

/// The file, mapped.
#[derive(Debug)]
pub struct Tally {
    at: NonNull<u64>,
}

// SAFETY: the mapping belongs to this value, and is touched by atomic operations only.
unsafe impl Send for Tally {}
// SAFETY: as above.
unsafe impl Sync for Tally {}

impl Tally {
    /// Maps the file at `path`, which must not shrink while the process lives.
    ///
    /// # Errors
    /// When it is not there, is too short, or cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        if len < BYTES as u64 {
            let why = format!("{}: {len} bytes, not {BYTES}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing is replaced.
        let at = unsafe { mmap(null_mut(), BYTES, access, MapFlags::SHARED, &file, 0) }?;
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { at })
    }

    /// One more record.
    pub(crate) fn add(&self) {
        // SAFETY: inside the mapping, aligned because pages are, and in this process only ever
        // touched here.
        let made = unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(MADE)) };
        made.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // SAFETY: the own mapping, whole, once. It cannot fail for a mapping that exists.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_in_the_file() {
        let path = std::env::temp_dir().join(format!("tally-{}", std::process::id()));
        std::fs::write(&path, [7; BYTES - 1]).expect("written");
        assert!(Tally::open(&path).is_err(), "too short");
        std::fs::write(&path, [0; BYTES]).expect("written");
        let tally = Tally::open(&path).expect("mapped");
        tally.add();
        tally.add();
        let bytes = std::fs::read(&path).expect("read");
        std::fs::remove_file(&path).expect("removed");
        let expected: Vec<u8> = [0_u64, 0, 2, 0]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        assert_eq!(bytes, expected);
    }
}
