//! The bookkeeping of SoftDevice's memory: blocks, handles, reservations, mappings.
//! It must never forget a block that a handle, a mapping or a process still holds.

use crate::device::{Access, GRANULARITY, Phys};
use crate::map::SharedMap;
use crate::{Error, Result};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate,
    memfd_create,
};
use rustix::io::{pread, pwrite};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lowest address handed out; above it everything is free at the start.
pub(super) const VA_BASE: u64 = 0x7000_0000_0000;
/// One past the highest address.
pub(super) const VA_END: u64 = 0x7fff_0000_0000;

/// One piece of memory, shared by its holders; freed with the last of them.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) memfd: OwnedFd,
    pub(super) len: u64,
    pub(super) exportable: bool,
    /// Device and inode of the memfd: how an import recognises memory that is here already.
    pub(super) identity: (u64, u64),
    map: SharedMap,
    /// Which units of the granularity were written as a whole, so that their pages are there.
    present: Vec<AtomicBool>,
}

impl Block {
    /// Zeroed memory of `len` bytes; takes no RAM until it is written.
    pub(super) fn new(len: u64, exportable: bool) -> Result<Self> {
        let memfd = memfd_create("soft-vram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|error| Error::io("memfd_create for device memory", error))?;
        ftruncate(&memfd, len).map_err(|error| Error::io("ftruncate of device memory", error))?;
        fcntl_add_seals(
            &memfd,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )
        .map_err(|error| Error::io("sealing device memory", error))?;
        Self::of(memfd, len, exportable)
    }

    /// Memory that is there already; refuses a file that somebody could cut.
    pub(super) fn of(memfd: OwnedFd, len: u64, exportable: bool) -> Result<Self> {
        let identity = identity(memfd.as_fd())?;
        let map = SharedMap::new(memfd.as_fd(), len)?;
        let present = (0..len.div_ceil(GRANULARITY))
            .map(|_| AtomicBool::new(false))
            .collect();
        Ok(Self {
            memfd,
            len,
            exportable,
            identity,
            map,
            present,
        })
    }

    /// Writes through the mapping where the pages are there, and by `pwrite` where they are not:
    /// each is several times faster than the other would be. In runs as long as possible, because
    /// short copies do not go past the cache.
    pub(super) fn write(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let unit = (offset / GRANULARITY) as usize;
            let present = self.present[unit].load(Ordering::Relaxed);
            let last = ((offset + bytes.len() as u64 - 1) / GRANULARITY) as usize;
            let same = |unit: &&AtomicBool| unit.load(Ordering::Relaxed) == present;
            let units = self.present[unit..=last].iter().take_while(same).count();
            let end = (unit + units) as u64 * GRANULARITY;
            let count = bytes.len().min((end - offset) as usize);
            if present {
                self.map.write(&bytes[..count], offset)?;
            } else {
                self.write_new(&bytes[..count], offset)?;
                self.mark_present(offset, offset + count as u64);
            }
            bytes = &bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// Notes the units that lie inside a written range as a whole.
    fn mark_present(&self, start: u64, end: u64) {
        let (first, after) = (start.div_ceil(GRANULARITY), end / GRANULARITY);
        for unit in first..after.max(first) {
            self.present[unit as usize].store(true, Ordering::Relaxed);
        }
    }

    fn write_new(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let count = pwrite(&self.memfd, bytes, offset)
                .map_err(|error| Error::io("write of device memory", error))?;
            bytes = &bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    pub(super) fn read(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let count = pread(&self.memfd, &mut *bytes, offset)
                .map_err(|error| Error::io("read of device memory", error))?;
            if count == 0 {
                return Err(Error::Invalid(
                    "the memory was cut by another process".into(),
                ));
            }
            bytes = &mut bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// Zeroes by giving the pages back.
    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let units = offset / GRANULARITY..(offset + len).div_ceil(GRANULARITY);
        for present in &self.present[units.start as usize..units.end as usize] {
            present.store(false, Ordering::Relaxed);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memfd, flags, offset, len)
            .map_err(|error| Error::io("zeroing device memory", error))
    }
}

pub(super) fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let stat = fstat(fd).map_err(|error| Error::io("fstat of device memory", error))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// One mapping of a block at an address.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) block: Arc<Block>,
    pub(super) access: Access,
}

/// Everything that changes, under one lock.
#[derive(Debug, Default)]
pub(super) struct Memory {
    next_handle: u64,
    pub(super) handles: BTreeMap<u64, Arc<Block>>,
    /// Start address to length.
    pub(super) reservations: BTreeMap<u64, u64>,
    pub(super) mappings: BTreeMap<u64, Mapping>,
    /// Memory of processes that hold the device now, by process id.
    pub(super) resident: BTreeMap<i32, Arc<Block>>,
}

impl Memory {
    fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        let mapped = self.mappings.values().map(|mapping| &mapping.block);
        self.handles
            .values()
            .chain(mapped)
            .chain(self.resident.values())
    }

    /// Bytes in use, each block counted once.
    pub(super) fn used(&self) -> u64 {
        let blocks: BTreeMap<_, _> = self
            .blocks()
            .map(|block| (block.identity, block.len))
            .collect();
        blocks.values().sum()
    }

    /// The block of this identity, when somebody holds it here.
    pub(super) fn known(&self, identity: (u64, u64)) -> Option<Arc<Block>> {
        self.blocks()
            .find(|block| block.identity == identity)
            .cloned()
    }

    pub(super) fn block(&self, phys: &Phys) -> Result<&Arc<Block>> {
        self.handles
            .get(&phys.handle)
            .ok_or_else(|| Error::Invalid(format!("handle {} is not of this device", phys.handle)))
    }

    pub(super) fn hold(&mut self, block: Arc<Block>) -> Phys {
        self.next_handle += 1;
        let phys = Phys {
            handle: self.next_handle,
            len: block.len,
        };
        self.handles.insert(phys.handle, block);
        phys
    }

    /// Whether `[start, start + len)` lies inside one reservation.
    pub(super) fn reserved(&self, start: u64, len: u64) -> bool {
        let Some((base, size)) = self.reservations.range(..=start).next_back() else {
            return false;
        };
        start.checked_add(len).is_some_and(|end| end <= base + size)
    }

    /// Whether a mapping touches `[start, start + len)`.
    pub(super) fn touches_mapping(&self, start: u64, len: u64) -> bool {
        self.mappings
            .range(..start + len)
            .next_back()
            .is_some_and(|(at, mapping)| at + mapping.block.len > start)
    }

    pub(super) fn touches_reservation(&self, start: u64, len: u64) -> bool {
        self.reservations
            .range(..start + len)
            .next_back()
            .is_some_and(|(at, size)| at + size > start)
    }

    /// First fit: the lowest free range of `len` bytes.
    pub(super) fn find_free(&self, len: u64) -> Option<u64> {
        let mut start = VA_BASE;
        for (at, size) in &self.reservations {
            if at - start >= len {
                return Some(start);
            }
            start = at + size;
        }
        (VA_END - start >= len).then_some(start)
    }

    /// The mapping at an address: its block, the offset in it and the bytes left in it.
    pub(super) fn resolve(&self, at: u64, write: bool) -> Result<(Arc<Block>, u64, u64)> {
        let found = self.mappings.range(..=at).next_back();
        let found = found.filter(|(start, mapping)| at - **start < mapping.block.len);
        let (start, mapping) =
            found.ok_or_else(|| Error::Invalid(format!("{at:#x} is not mapped")))?;
        if write && mapping.access == Access::Read {
            return Err(Error::Invalid(format!(
                "{at:#x} is mapped for reading only"
            )));
        }
        let offset = at - start;
        Ok((
            Arc::clone(&mapping.block),
            offset,
            mapping.block.len - offset,
        ))
    }
}
