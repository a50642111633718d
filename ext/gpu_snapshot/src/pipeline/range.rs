//! Device memory that belongs to one job: mapped as a whole, and given back whatever happens.
//! It must never outlive a failed restore: nobody may find half-restored memory.

use super::restore::{Options, Placement, Report, restore};
use super::ring::{Cancel, Ring};
use crate::device::{Access, Device, Phys, Va, round_up};
use crate::image::{RegionClass, Snapshot};
use crate::{Error, Result};
use std::os::fd::OwnedFd;

/// Mapped device memory; dropping it unmaps and frees it.
pub struct DeviceRange<'d> {
    device: &'d dyn Device,
    va: Va,
    len: u64,
    /// `None` once it is freed, or before it is there.
    phys: Option<Phys>,
    mapped: bool,
    reserved: bool,
}

impl<'d> DeviceRange<'d> {
    /// Takes memory of at least `len` bytes, at the address `hint` when that is free.
    pub fn allocate(device: &'d dyn Device, len: u64, hint: Option<Va>) -> Result<Self> {
        let unit = device.info().granularity;
        let len = round_up(len, unit).ok_or_else(|| Error::Invalid(format!("length {len}")))?;
        let va = device.reserve(len, hint)?;
        let mut range = Self {
            device,
            va,
            len,
            phys: None,
            mapped: false,
            reserved: true,
        };
        let phys = range.phys.insert(device.create(len, true)?);
        device.map(va, phys, Access::ReadWrite)?;
        range.mapped = true;
        Ok(range)
    }

    /// Address of the first byte.
    pub fn va(&self) -> Va {
        self.va
    }

    /// Length in bytes, a multiple of the device's granularity.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A descriptor of the memory for another process.
    pub fn export(&self) -> Result<OwnedFd> {
        match &self.phys {
            Some(phys) => self.device.export(phys),
            None => Err(Error::Invalid("the memory is freed".into())),
        }
    }

    /// Gives everything back and says when the device refuses, which dropping cannot.
    pub fn free(mut self) -> Result<()> {
        self.give_back()
    }

    /// Goes on after an error, so that as little as possible is lost; the first one is returned.
    fn give_back(&mut self) -> Result<()> {
        let mut result = Ok(());
        if std::mem::take(&mut self.mapped) {
            result = result.and(self.device.unmap(self.va, self.len));
        }
        if let Some(phys) = self.phys.take() {
            result = result.and(self.device.release(phys));
        }
        if std::mem::take(&mut self.reserved) {
            result = result.and(self.device.unreserve(self.va, self.len));
        }
        result
    }
}

impl Drop for DeviceRange<'_> {
    fn drop(&mut self) {
        // A device that refuses to take its memory back is broken, and its next call says so.
        let _ = self.give_back();
    }
}

/// The GPU regions of a snapshot, restored.
pub struct Loaded<'d> {
    /// Region id and memory, in the order of the manifest.
    pub ranges: Vec<(u32, DeviceRange<'d>)>,
    /// What the restore did.
    pub report: Report,
}

impl Loaded<'_> {
    /// Where the regions are.
    pub fn placements(&self) -> Vec<Placement> {
        let place = |(id, range): &(u32, DeviceRange<'_>)| Placement {
            region_id: *id,
            va: range.va(),
        };
        self.ranges.iter().map(place).collect()
    }
}

/// Takes memory for all GPU regions of a snapshot and restores them; at their own addresses where
/// these are free. Free memory is checked first, and after any error all of it is given back.
pub fn load<'d>(
    snapshot: &Snapshot,
    device: &'d dyn Device,
    ring: &mut Ring,
    cancel: &Cancel,
    options: Options,
) -> Result<Loaded<'d>> {
    let regions = &snapshot.manifest().regions;
    let regions = || {
        regions
            .iter()
            .filter(|region| region.class == RegionClass::Gpu)
    };
    let unit = device.info().granularity;
    let mut sizes = regions().map(|region| round_up(region.len, unit));
    let asked = sizes.try_fold(0u64, |sum, size| sum.checked_add(size?));
    let asked = asked.ok_or_else(|| Error::Invalid("the regions are too long".into()))?;
    let free = device.mem_free()?;
    if asked > free {
        return Err(Error::OutOfMemory { asked, free });
    }
    let allocate = |len, va: Option<u64>| DeviceRange::allocate(device, len, va.map(Va));
    let ranges = regions().map(|region| Ok((region.id, allocate(region.len, region.va)?)));
    let mut loaded = Loaded {
        ranges: ranges.collect::<Result<_>>()?,
        report: Report::default(),
    };
    loaded.report = restore(
        snapshot,
        device,
        ring,
        &loaded.placements(),
        cancel,
        options,
    )?;
    Ok(loaded)
}
