//! Device memory by handle, for callers that cannot hold Rust values; whole saves and restores.
//! It must never give out a handle for memory whose restore did not go through.

use crate::device::{Gpu, Phys};
use crate::image::{Draft, Identity, Region, RegionClass, Store, WriterLimits};
use crate::pipeline::{
    self, Cancel, HostPool, Loaded, Options, Placement, PullReport, Report, Resident, Ring, Window,
};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots of a device's ring: sixteen chunks of weights, 128 MiB, made at the first transfer.
/// Several times a processor's cache, so that a slot has left it when it is read into again.
pub const RING_SLOTS: usize = 16;
const RING_SLOT_LEN: usize = 8 << 20;

/// A GPU, the memory held on it and the ring that is made when it is first needed.
pub struct HeldGpu {
    gpu: Arc<dyn Gpu>,
    held: Mutex<BTreeMap<u64, Phys>>,
    ring: Mutex<Option<Ring>>,
}

/// Layout, mappings and addresses of memory, by ascending region id.
type Windows<'g> = (Vec<Region>, Vec<Window<'g>>, Vec<Placement>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(handle: u64) -> Error {
    Error::NotHeld(handle)
}

impl HeldGpu {
    /// Nothing is held yet.
    pub fn new(gpu: Arc<dyn Gpu>) -> Self {
        Self {
            gpu,
            held: Mutex::default(),
            ring: Mutex::default(),
        }
    }

    /// The device.
    pub fn gpu(&self) -> &dyn Gpu {
        &*self.gpu
    }

    /// Takes memory of at least `len` bytes.
    pub fn allocate(&self, len: u64) -> Result<u64> {
        Ok(self.hold(self.gpu.create(len, true)?))
    }

    /// Gives memory back.
    pub fn free(&self, handle: u64) -> Result<()> {
        let phys = locked(&self.held).remove(&handle);
        self.gpu.release(phys.ok_or_else(|| unknown(handle))?)
    }

    /// A descriptor of the memory for another process.
    pub fn export(&self, handle: u64) -> Result<OwnedFd> {
        let held = locked(&self.held);
        self.gpu
            .export(held.get(&handle).ok_or_else(|| unknown(handle))?)
    }

    /// Takes over exported memory of `len` bytes that another process kept.
    pub fn import(&self, fd: BorrowedFd<'_>, len: u64) -> Result<u64> {
        Ok(self.hold(self.gpu.import(fd, len)?))
    }

    fn hold(&self, phys: Phys) -> u64 {
        let handle = phys.handle;
        locked(&self.held).insert(handle, phys);
        handle
    }

    /// Runs a transfer; one at a time on a device, because they share its ring.
    fn with_ring<T>(&self, job: impl FnOnce(&mut Ring) -> Result<T>) -> Result<T> {
        let mut ring = locked(&self.ring);
        let made = match ring.take() {
            Some(ring) => ring,
            None => Ring::new(&*self.gpu, RING_SLOTS, RING_SLOT_LEN)?,
        };
        let made = ring.insert(made);
        made.refill(&*self.gpu)?;
        job(made)
    }

    /// Saves memory by name of region, and files by their path in the snapshot, and publishes.
    /// The draft's regions are filled in here.
    pub fn save(
        &self,
        store: &Store,
        mut draft: Draft,
        regions: &BTreeMap<String, u64>,
        files: &BTreeMap<String, PathBuf>,
        cancel: &Cancel,
    ) -> Result<PullReport> {
        let (layout, windows, placements) = self.windows(regions)?;
        draft.regions = layout;
        let mut writer = store.writer(draft, WriterLimits::default())?;
        for (path, source) in files {
            let mut file = std::fs::File::open(source)
                .map_err(|error| Error::io(format!("open {}", source.display()), error))?;
            writer.add_file(path, &mut file)?;
        }
        let options = Options::default();
        let report = self.with_ring(|ring| {
            pipeline::save(&mut writer, &*self.gpu, ring, &placements, cancel, options)
        })?;
        windows.into_iter().try_for_each(Window::close)?;
        writer.publish()?;
        Ok(report)
    }

    /// Restores all GPU regions into new memory; handles by name of region. A snapshot that is
    /// not of `host` is refused.
    pub fn restore(
        &self,
        store: &Store,
        id: &str,
        host: Option<&Identity>,
        cancel: &Cancel,
    ) -> Result<(BTreeMap<String, u64>, Report)> {
        let snapshot = store.snapshot(id)?;
        host.map_or(Ok(()), |host| snapshot.manifest().identity.check(host))?;
        let options = Options::default();
        let loaded =
            self.with_ring(|ring| pipeline::load(&snapshot, &*self.gpu, ring, cancel, options))?;
        self.hold_all(loaded, &snapshot.manifest().regions)
    }

    /// The same from host memory.
    pub fn restore_resident(
        &self,
        resident: &mut Resident,
        cancel: &Cancel,
    ) -> Result<(BTreeMap<String, u64>, Report)> {
        let options = Options::default();
        let loaded = pipeline::load_resident(resident, &*self.gpu, cancel, options)?;
        self.hold_all(loaded, resident.regions())
    }

    /// Copies memory by name of region into the pool; it can be freed or go on afterwards.
    pub fn capture(
        &self,
        regions: &BTreeMap<String, u64>,
        pool: &Arc<HostPool>,
    ) -> Result<Resident> {
        let (layout, windows, placements) = self.windows(regions)?;
        let options = Options::default();
        let resident = Resident::capture(&*self.gpu, layout, &placements, pool, options)?;
        windows.into_iter().try_for_each(Window::close)?;
        Ok(resident)
    }

    /// Maps memory by name of region. The windows keep it alive; the lock is free meanwhile.
    fn windows(&self, regions: &BTreeMap<String, u64>) -> Result<Windows<'_>> {
        let held = locked(&self.held);
        let (mut layout, mut windows, mut placements) = (Vec::new(), Vec::new(), Vec::new());
        for (region_id, (name, handle)) in (1u32..).zip(regions) {
            let phys = held.get(handle).ok_or_else(|| unknown(*handle))?;
            layout.push(Region::new(region_id, name, RegionClass::Gpu, phys.len()));
            let window = Window::open(&*self.gpu, phys, None)?;
            placements.push(Placement {
                region_id,
                va: window.va(),
            });
            windows.push(window);
        }
        Ok((layout, windows, placements))
    }

    /// Takes restored memory over; all of it or, when the device fails, none.
    fn hold_all(
        &self,
        loaded: Loaded<'_>,
        regions: &[Region],
    ) -> Result<(BTreeMap<String, u64>, Report)> {
        let report = loaded.report;
        let mut done: Vec<(String, Phys)> = Vec::new();
        for (region_id, range) in loaded.ranges {
            let region = regions.iter().find(|region| region.id == region_id);
            let name = region.map(|region| region.name.clone()).unwrap_or_default();
            match range.into_phys() {
                Ok(phys) => done.push((name, phys)),
                Err(error) => {
                    for (_, phys) in done {
                        self.gpu.release(phys)?;
                    }
                    return Err(error);
                }
            }
        }
        let handles = done
            .into_iter()
            .map(|(name, phys)| (name, self.hold(phys)))
            .collect();
        Ok((handles, report))
    }
}
