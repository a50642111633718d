//! The pinned host pool: the memory tier between disk and device, pinned once and shared.
//! It must never grow: what does not fit has to wait until something else is given up.

use crate::buffer::HostBuffer;
use crate::device::Device;
use crate::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pinned slots of one size; a chunk takes one slot.
#[derive(Debug)]
pub struct HostPool {
    free: Mutex<Vec<HostBuffer>>,
    slots: usize,
    slot_len: usize,
}

impl HostPool {
    /// Makes and pins all slots; slow, so it is done when the agent starts.
    pub fn new(device: &dyn Device, slots: usize, slot_len: usize) -> Result<Arc<Self>> {
        let mut free = Vec::with_capacity(slots);
        for _ in 0..slots {
            let mut slot = HostBuffer::new(slot_len)?;
            device.pin(&mut slot)?;
            free.push(slot);
        }
        Ok(Arc::new(Self {
            free: Mutex::new(free),
            slots,
            slot_len,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HostBuffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a slot.
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Slots that nobody uses.
    pub fn free_slots(&self) -> usize {
        self.lock().len()
    }

    /// Takes `count` slots, or none.
    pub(super) fn take(&self, count: usize) -> Result<Vec<HostBuffer>> {
        let mut free = self.lock();
        if count > free.len() {
            let bytes = |slots: usize| slots as u64 * self.slot_len as u64;
            return Err(Error::OutOfHostMemory {
                asked: bytes(count),
                free: bytes(free.len()),
            });
        }
        let at = free.len() - count;
        Ok(free.split_off(at))
    }

    pub(super) fn give_back(&self, slots: impl IntoIterator<Item = HostBuffer>) {
        self.lock().extend(slots);
    }
}
