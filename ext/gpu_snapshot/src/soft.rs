//! SoftDevice: a GPU without a GPU; its memory is sparse memfds under a capacity limit.
//! It must never touch the bytes it accounts for unless somebody copies into them: unused VRAM costs no RAM.

use crate::device::{Access, Device, DeviceInfo, GRANULARITY, Phys, Va, round_up};
use crate::{Error, Result};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lowest address handed out; above it everything is free at the start.
const VA_BASE: u64 = 0x7000_0000_0000;
/// One past the highest address.
const VA_END: u64 = 0x7fff_0000_0000;

/// One piece of memory, shared by its handles and its mappings; freed with the last of them.
#[derive(Debug)]
struct Block {
    memfd: OwnedFd,
    len: u64,
    exportable: bool,
    /// Device and inode of the memfd: how an import recognises memory that is here already.
    identity: (u64, u64),
}

/// One mapping of a block at an address.
#[derive(Debug)]
struct Mapping {
    block: Arc<Block>,
    access: Access,
}

/// Everything that changes, under one lock.
#[derive(Debug, Default)]
struct State {
    next_handle: u64,
    handles: BTreeMap<u64, Arc<Block>>,
    /// Start address to length.
    reservations: BTreeMap<u64, u64>,
    mappings: BTreeMap<u64, Mapping>,
}

impl State {
    /// Bytes held by handles and mappings, each block counted once.
    fn used(&self) -> u64 {
        let held = self.handles.values();
        let mapped = self.mappings.values().map(|mapping| &mapping.block);
        let blocks: BTreeMap<_, _> = held
            .chain(mapped)
            .map(|block| (block.identity, block.len))
            .collect();
        blocks.values().sum()
    }

    fn block(&self, phys: &Phys) -> Result<&Arc<Block>> {
        self.handles
            .get(&phys.handle)
            .ok_or_else(|| Error::Invalid(format!("handle {} is not of this device", phys.handle)))
    }

    fn hold(&mut self, block: Arc<Block>) -> Phys {
        self.next_handle += 1;
        let phys = Phys {
            handle: self.next_handle,
            len: block.len,
        };
        self.handles.insert(phys.handle, block);
        phys
    }

    /// Whether `[start, start + len)` lies inside one reservation.
    fn reserved(&self, start: u64, len: u64) -> bool {
        let Some((base, size)) = self.reservations.range(..=start).next_back() else {
            return false;
        };
        start.checked_add(len).is_some_and(|end| end <= base + size)
    }

    /// Whether a mapping touches `[start, start + len)`.
    fn touches_mapping(&self, start: u64, len: u64) -> bool {
        self.mappings
            .range(..start + len)
            .next_back()
            .is_some_and(|(at, mapping)| at + mapping.block.len > start)
    }

    fn touches_reservation(&self, start: u64, len: u64) -> bool {
        self.reservations
            .range(..start + len)
            .next_back()
            .is_some_and(|(at, size)| at + size > start)
    }

    /// First fit: the lowest free range of `len` bytes.
    fn find_free(&self, len: u64) -> Option<u64> {
        let mut start = VA_BASE;
        for (at, size) in &self.reservations {
            if at - start >= len {
                return Some(start);
            }
            start = at + size;
        }
        (VA_END - start >= len).then_some(start)
    }
}

/// A simulated GPU. Dropping it frees all of its memory.
#[derive(Debug)]
pub struct SoftDevice {
    capacity: u64,
    uuid: [u8; 16],
    state: Mutex<State>,
}

impl SoftDevice {
    /// A device with `capacity` bytes, rounded down to the granularity; refuses less than one unit.
    pub fn new(capacity: u64) -> Result<Self> {
        let capacity = capacity / GRANULARITY * GRANULARITY;
        if capacity == 0 {
            return Err(Error::Invalid(format!(
                "capacity is below {GRANULARITY} bytes"
            )));
        }
        let mut uuid = *b"inferx-softdev\0\0";
        uuid[14..].copy_from_slice(&((capacity >> 30) as u16).to_be_bytes());
        Ok(Self {
            capacity,
            uuid,
            state: Mutex::default(),
        })
    }

    /// Total memory in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in use, each piece of memory counted once.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// The state is consistent between any two statements that can panic, so poison is no danger.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, state: &State, len: u64) -> Result<()> {
        let free = self.capacity - state.used();
        if len > free {
            return Err(Error::OutOfMemory { asked: len, free });
        }
        Ok(())
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let stat = fstat(fd).map_err(|error| Error::io("fstat of device memory", error))?;
    Ok((stat.st_dev, stat.st_ino))
}

fn aligned(name: &str, value: u64) -> Result<()> {
    if value == 0 || value % GRANULARITY != 0 {
        return Err(Error::Invalid(format!(
            "{name} {value:#x} is no multiple of {GRANULARITY}"
        )));
    }
    Ok(())
}

impl Device for SoftDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "SoftDevice".into(),
            uuid: self.uuid,
            memory_total: self.capacity,
            granularity: GRANULARITY,
            driver: concat!("soft-", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    fn mem_free(&self) -> Result<u64> {
        Ok(self.capacity - self.used())
    }

    fn reserve(&self, len: u64, hint: Option<Va>) -> Result<Va> {
        let mut state = self.lock();
        aligned("length", len)?;
        let fits = |at: u64| at >= VA_BASE && at.checked_add(len).is_some_and(|end| end <= VA_END);
        let start = match hint {
            Some(Va(at))
                if at % GRANULARITY == 0 && fits(at) && !state.touches_reservation(at, len) =>
            {
                at
            }
            _ => state.find_free(len).ok_or_else(|| {
                Error::Invalid(format!("no address range of {len} bytes is free"))
            })?,
        };
        state.reservations.insert(start, len);
        Ok(Va(start))
    }

    fn unreserve(&self, va: Va, len: u64) -> Result<()> {
        let mut state = self.lock();
        if state.reservations.get(&va.0) != Some(&len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} is not a reservation",
                va.0
            )));
        }
        if state.touches_mapping(va.0, len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} still has mappings",
                va.0
            )));
        }
        state.reservations.remove(&va.0);
        Ok(())
    }

    fn create(&self, len: u64, exportable: bool) -> Result<Phys> {
        let size = round_up(len, GRANULARITY).filter(|size| *size > 0);
        let len = size.ok_or_else(|| Error::Invalid(format!("length {len}")))?;
        let mut state = self.lock();
        self.admit(&state, len)?;
        let memfd = memfd_create("soft-vram", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::io("memfd_create for device memory", error))?;
        ftruncate(&memfd, len).map_err(|error| Error::io("ftruncate of device memory", error))?;
        let identity = identity(memfd.as_fd())?;
        Ok(state.hold(Arc::new(Block {
            memfd,
            len,
            exportable,
            identity,
        })))
    }

    fn release(&self, phys: Phys) -> Result<()> {
        let mut state = self.lock();
        state.block(&phys)?;
        state.handles.remove(&phys.handle);
        Ok(())
    }

    fn map(&self, va: Va, phys: &Phys, access: Access) -> Result<()> {
        aligned("address", va.0)?;
        let mut state = self.lock();
        let block = state.block(phys)?.clone();
        if !state.reserved(va.0, block.len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{} is not reserved",
                va.0, block.len
            )));
        }
        if state.touches_mapping(va.0, block.len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{} is mapped already",
                va.0, block.len
            )));
        }
        state.mappings.insert(va.0, Mapping { block, access });
        Ok(())
    }

    fn unmap(&self, va: Va, len: u64) -> Result<()> {
        let end = va.checked_add(len).map(|end| end.0);
        let end = end.ok_or_else(|| Error::Invalid(format!("length {len}")))?;
        let mut state = self.lock();
        let mut at = va.0;
        while at < end {
            let Some(mapping) = state.mappings.get(&at) else {
                return Err(Error::Invalid(format!(
                    "{at:#x} is not the start of a mapping"
                )));
            };
            at += mapping.block.len;
        }
        if at != end {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} ends inside a mapping",
                va.0
            )));
        }
        let gone: Vec<u64> = state.mappings.range(va.0..end).map(|(at, _)| *at).collect();
        for at in gone {
            state.mappings.remove(&at);
        }
        Ok(())
    }

    fn export(&self, phys: &Phys) -> Result<OwnedFd> {
        let state = self.lock();
        let block = state.block(phys)?;
        if !block.exportable {
            return Err(Error::Invalid(
                "this memory was not created as exportable".into(),
            ));
        }
        block
            .memfd
            .try_clone()
            .map_err(|error| Error::io("dup of device memory", error))
    }

    fn import(&self, fd: BorrowedFd<'_>) -> Result<Phys> {
        let identity = identity(fd)?;
        let mut state = self.lock();
        let known = state
            .handles
            .values()
            .chain(state.mappings.values().map(|map| &map.block));
        let known = known
            .into_iter()
            .find(|block| block.identity == identity)
            .cloned();
        if let Some(block) = known {
            return Ok(state.hold(block));
        }
        let stat = fstat(fd).map_err(|error| Error::io("fstat of imported memory", error))?;
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        aligned("imported length", len)?;
        self.admit(&state, len)?;
        let memfd = fd
            .try_clone_to_owned()
            .map_err(|error| Error::io("dup of imported memory", error))?;
        Ok(state.hold(Arc::new(Block {
            memfd,
            len,
            exportable: true,
            identity,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> SoftDevice {
        SoftDevice::new(4 * GRANULARITY).unwrap()
    }

    #[test]
    fn memory_is_rounded_counted_and_limited() {
        let device = device();
        let small = device.create(1, false).unwrap();
        assert_eq!((small.len(), device.used()), (GRANULARITY, GRANULARITY));
        let refused = device.create(4 * GRANULARITY, false).unwrap_err();
        assert!(matches!(refused, Error::OutOfMemory { free, .. } if free == 3 * GRANULARITY));
        device.release(small).unwrap();
        assert_eq!(device.used(), 0);
        assert!(device.create(0, false).is_err());
        assert!(device.create(u64::MAX, false).is_err());
    }

    #[test]
    fn a_mapping_keeps_released_memory_alive() {
        let device = device();
        let va = device.reserve(2 * GRANULARITY, None).unwrap();
        let phys = device.create(2 * GRANULARITY, false).unwrap();
        device.map(va, &phys, Access::ReadWrite).unwrap();
        assert!(device.map(va, &phys, Access::ReadWrite).is_err());
        device.release(phys).unwrap();
        assert_eq!(device.used(), 2 * GRANULARITY);
        assert!(device.unreserve(va, 2 * GRANULARITY).is_err());
        assert!(device.unmap(va, GRANULARITY).is_err());
        device.unmap(va, 2 * GRANULARITY).unwrap();
        device.unreserve(va, 2 * GRANULARITY).unwrap();
        assert_eq!(device.used(), 0);
    }

    #[test]
    fn addresses_are_kept_apart_and_hints_are_honoured() {
        let device = device();
        let first = device.reserve(GRANULARITY, None).unwrap();
        let second = device.reserve(GRANULARITY, Some(first)).unwrap();
        assert_ne!(first, second);
        let hint = Va(VA_BASE + 64 * GRANULARITY);
        assert_eq!(device.reserve(GRANULARITY, Some(hint)).unwrap(), hint);
        let phys = device.create(2 * GRANULARITY, false).unwrap();
        assert!(device.map(first, &phys, Access::Read).is_err());
    }

    #[test]
    fn exported_memory_comes_back_as_the_same_memory() {
        let device = device();
        let private = device.create(1, false).unwrap();
        assert!(device.export(&private).is_err());
        let shared = device.create(1, true).unwrap();
        let fd = device.export(&shared).unwrap();
        let again = device.import(fd.as_fd()).unwrap();
        assert_eq!(device.used(), 2 * GRANULARITY);
        let other = SoftDevice::new(GRANULARITY).unwrap();
        let foreign = other.import(fd.as_fd()).unwrap();
        assert_eq!((other.used(), foreign.len()), (GRANULARITY, GRANULARITY));
        device.release(shared).unwrap();
        device.release(again).unwrap();
        assert_eq!(device.used(), GRANULARITY);
    }
}
