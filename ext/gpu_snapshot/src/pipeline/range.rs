//! Device memory that belongs to one job: mapped as a whole, and given back whatever happens.
//! It must never outlive a failed restore: nobody may find half-restored memory.

use super::options::{Options, Placement, Report};
use super::resident::Resident;
use super::restore::restore;
use super::ring::{Cancel, Ring};
use crate::device::{Access, Device, Phys, Va, round_up};
use crate::image::{Region, RegionClass, Snapshot};
use crate::{Error, Result};
use std::os::fd::OwnedFd;

/// A mapping of memory that somebody else holds; dropping it unmaps.
pub struct Window<'d> {
    device: &'d dyn Device,
    va: Va,
    len: u64,
    mapped: bool,
    reserved: bool,
}

impl<'d> Window<'d> {
    /// Maps all of `phys`, at the address `hint` when that is free.
    pub fn open(device: &'d dyn Device, phys: &Phys, hint: Option<Va>) -> Result<Self> {
        let len = phys.len();
        let va = device.reserve(len, hint)?;
        let mut window = Self {
            device,
            va,
            len,
            mapped: false,
            reserved: true,
        };
        device.map(va, phys, Access::ReadWrite)?;
        window.mapped = true;
        Ok(window)
    }

    /// Address of the first byte.
    pub fn va(&self) -> Va {
        self.va
    }

    /// Unmaps and says when the device refuses, which dropping cannot.
    pub fn close(mut self) -> Result<()> {
        self.give_back()
    }

    /// Goes on after an error, so that as little as possible is lost; the first one is returned.
    fn give_back(&mut self) -> Result<()> {
        let mut result = Ok(());
        if std::mem::take(&mut self.mapped) {
            result = self.device.unmap(self.va, self.len);
        }
        if std::mem::take(&mut self.reserved) {
            result = result.and(self.device.unreserve(self.va, self.len));
        }
        result
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // A device that refuses to take its memory back is broken, and its next call says so.
        let _ = self.give_back();
    }
}

/// Mapped device memory; dropping it unmaps and frees it.
pub struct DeviceRange<'d> {
    window: Window<'d>,
    /// `None` once it was given on.
    phys: Option<Phys>,
}

impl<'d> DeviceRange<'d> {
    /// Takes memory of at least `len` bytes, at the address `hint` when that is free.
    pub fn allocate(device: &'d dyn Device, len: u64, hint: Option<Va>) -> Result<Self> {
        let phys = device.create(len, true)?;
        match Window::open(device, &phys, hint) {
            Ok(window) => Ok(Self {
                window,
                phys: Some(phys),
            }),
            Err(error) => device.release(phys).and(Err(error)),
        }
    }

    /// Address of the first byte.
    pub fn va(&self) -> Va {
        self.window.va
    }

    /// Length in bytes, a multiple of the device's granularity.
    pub fn len(&self) -> u64 {
        self.window.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.window.len == 0
    }

    /// A descriptor of the memory for another process.
    pub fn export(&self) -> Result<OwnedFd> {
        match &self.phys {
            Some(phys) => self.window.device.export(phys),
            None => Err(Error::Invalid("the memory was given on".into())),
        }
    }

    /// Unmaps the memory and hands it on.
    pub fn into_phys(mut self) -> Result<Phys> {
        self.window.give_back()?;
        self.phys
            .take()
            .ok_or_else(|| Error::Invalid("the memory was given on".into()))
    }

    /// Gives everything back and says when the device refuses, which dropping cannot.
    pub fn free(mut self) -> Result<()> {
        let unmapped = self.window.give_back();
        let released = self
            .phys
            .take()
            .map_or(Ok(()), |phys| self.window.device.release(phys));
        unmapped.and(released)
    }
}

impl Drop for DeviceRange<'_> {
    fn drop(&mut self) {
        if let Some(phys) = self.phys.take() {
            // As in `Window`; memory that cannot be unmapped is still released.
            let _ = (self.window.give_back(), self.window.device.release(phys));
        }
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
    load_with(device, &snapshot.manifest().regions, |placements| {
        restore(snapshot, device, ring, placements, cancel, options)
    })
}

/// The same from host memory.
pub fn load_resident<'d>(
    resident: &mut Resident,
    device: &'d dyn Device,
    cancel: &Cancel,
    options: Options,
) -> Result<Loaded<'d>> {
    let regions = resident.regions().to_vec();
    load_with(device, &regions, |placements| {
        resident.restore(device, placements, cancel, options)
    })
}

fn load_with<'d>(
    device: &'d dyn Device,
    regions: &[Region],
    restore: impl FnOnce(&[Placement]) -> Result<Report>,
) -> Result<Loaded<'d>> {
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
    loaded.report = restore(&loaded.placements())?;
    Ok(loaded)
}
