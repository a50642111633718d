//! The ring of pinned slots that every transfer of a device goes through.
//! It must never be made for one job: pinning is slow, so a ring lives as long as its device.

use crate::buffer::{HostBuffer, PAGE};
use crate::device::Device;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pinned, page-aligned slots of one size.
#[derive(Debug)]
pub struct Ring {
    pub(super) free: Vec<HostBuffer>,
    slots: usize,
    slot_len: usize,
}

impl Ring {
    /// Makes and pins `slots` slots of `slot_len` bytes, a multiple of the page size.
    pub fn new(device: &dyn Device, slots: usize, slot_len: usize) -> Result<Self> {
        if slots == 0 {
            return Err(Error::Invalid("a ring needs a slot".into()));
        }
        let mut ring = Self {
            free: Vec::with_capacity(slots),
            slots,
            slot_len,
        };
        ring.refill(device)?;
        Ok(ring)
    }

    /// Replaces slots that a hung device never gave back.
    pub fn refill(&mut self, device: &dyn Device) -> Result<()> {
        while self.free.len() < self.slots {
            let mut slot = HostBuffer::new(self.slot_len)?;
            device.pin(&mut slot)?;
            self.free.push(slot);
        }
        Ok(())
    }

    /// Bytes of a part: `wanted` where that divides the slots, otherwise a whole slot.
    pub(super) fn part_len(&self, wanted: usize) -> usize {
        let divides = wanted.is_multiple_of(PAGE) && wanted > 0;
        if divides && self.slot_len.is_multiple_of(wanted) {
            wanted
        } else {
            self.slot_len
        }
    }

    /// All slots that can be used now, cut into parts of `part_len` bytes.
    pub(super) fn lend(&mut self, part_len: usize) -> Vec<HostBuffer> {
        let slots = self.free.drain(..);
        slots.flat_map(|slot| slot.split(part_len)).collect()
    }

    /// Makes slots of the parts again. A slot that lacks one, which a device that hung has not
    /// given back, is dropped: `refill` replaces it.
    pub(super) fn take_back(&mut self, mut parts: Vec<HostBuffer>) {
        parts.sort_by_key(|part| part.bytes().as_ptr());
        let mut slots: Vec<HostBuffer> = Vec::with_capacity(self.slots);
        for part in parts {
            let apart = match slots.last_mut() {
                Some(slot) => slot.unsplit(part).err(),
                None => Some(part),
            };
            slots.extend(apart);
        }
        slots.retain(|slot| slot.len() == self.slot_len);
        self.free.extend(slots);
    }

    /// Slots that can be used now.
    pub fn usable(&self) -> usize {
        self.free.len()
    }

    /// Bytes of a slot.
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Refuses a job whose chunks do not fit, or one on a ring that lost all slots.
    pub(super) fn check(&self, chunk_len: usize) -> Result<()> {
        if self.free.is_empty() {
            return Err(Error::Invalid("the ring has no slot left".into()));
        }
        if chunk_len > self.slot_len {
            let why = format!("chunks of {chunk_len} bytes, slots of {}", self.slot_len);
            return Err(Error::Invalid(why));
        }
        Ok(())
    }
}

/// Cancels a job from another thread; the job stops between two chunks.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
