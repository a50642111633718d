//! A snapshot's regions in the pinned pool: the copy that a standby worker resumes from.
//! It must never hold a byte that was not checked when it came from a disk.

use super::options::{Options, Placement, Report};
use super::pool::HostPool;
use super::ring::Cancel;
use crate::buffer::{HostBuffer, is_zero};
use crate::device::{CopyQueue, Device, Va, Work, WorkKind};
use crate::image::{Codec, Region, RegionClass, Snapshot, Writer};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Copies under way at once: enough to keep a copy engine busy.
const DEPTH: usize = 8;

/// One chunk and the slot that has its bytes; `None` for a chunk of zeros.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    region_id: u32,
    offset: u64,
    len: u64,
    slot: Option<usize>,
}

/// GPU regions in host memory. Dropping it gives the slots back to the pool.
pub struct Resident {
    pool: Arc<HostPool>,
    regions: Vec<Region>,
    chunks: Vec<Chunk>,
    /// `None` only while a copy is under way, or for ever after a device hung in one.
    slots: Vec<Option<HostBuffer>>,
}

fn check_sizes(pool: &HostPool, regions: &[Region]) -> Result<()> {
    let stored = |region: &Region| region.stored_len(region.chunk_len) as usize;
    match regions
        .iter()
        .find(|region| stored(region) > pool.slot_len())
    {
        Some(region) => {
            let why = format!(
                "chunks of {} bytes, slots of {}",
                stored(region),
                pool.slot_len()
            );
            Err(Error::Invalid(why))
        }
        None => Ok(()),
    }
}

impl Resident {
    /// From disk to host memory: reads and checks the GPU regions of a snapshot.
    pub fn read(snapshot: &Snapshot, pool: &Arc<HostPool>, cancel: &Cancel) -> Result<Self> {
        let regions = snapshot.manifest().regions.iter();
        let regions: Vec<Region> = regions
            .filter(|region| region.class == RegionClass::Gpu)
            .cloned()
            .collect();
        check_sizes(pool, &regions)?;
        let mut by_place = HashMap::new();
        let mut reads = Vec::new();
        let mut chunks = Vec::new();
        for (index, record) in snapshot.records().iter().enumerate() {
            if !regions.iter().any(|region| region.id == record.region_id) {
                continue;
            }
            let slot = (record.codec != Codec::Zero).then(|| {
                *by_place
                    .entry((record.seg, record.seg_off))
                    .or_insert_with(|| {
                        reads.push(index);
                        reads.len() - 1
                    })
            });
            let (region_id, offset) = (record.region_id, record.region_off);
            chunks.push(Chunk {
                region_id,
                offset,
                len: u64::from(record.raw_len),
                slot,
            });
        }
        let slots = pool.take(reads.len())?.into_iter().map(Some).collect();
        let mut resident = Self {
            pool: Arc::clone(pool),
            regions,
            chunks,
            slots,
        };
        read_all(snapshot, &reads, &mut resident.slots, cancel)?;
        Ok(resident)
    }

    /// From the device to host memory. When this returns, the worker may go on or give its memory
    /// up; `write` makes a snapshot of it later. Slots of zero chunks go back to the pool.
    pub fn capture(
        device: &dyn Device,
        regions: Vec<Region>,
        placements: &[Placement],
        pool: &Arc<HostPool>,
        options: Options,
    ) -> Result<Self> {
        regions.iter().try_for_each(Region::check)?;
        check_sizes(pool, &regions)?;
        let mut chunks = Vec::new();
        for region in &regions {
            for offset in (0..region.chunks()).map(|chunk| chunk * u64::from(region.chunk_len)) {
                let len = u64::from(region.raw_len(offset).unwrap_or(0));
                let slot = Some(chunks.len());
                chunks.push(Chunk {
                    region_id: region.id,
                    offset,
                    len,
                    slot,
                });
            }
        }
        let slots = pool.take(chunks.len())?.into_iter().map(Some).collect();
        let mut resident = Self {
            pool: Arc::clone(pool),
            regions,
            chunks,
            slots,
        };
        let jobs = resident.jobs(placements)?;
        resident.transfer(device, WorkKind::ToHost, &jobs, &Cancel::default(), options)?;
        for chunk in &mut resident.chunks {
            let len = chunk.len as usize;
            let slot = chunk.slot.and_then(|slot| {
                resident.slots[slot].take_if(|buffer| is_zero(&buffer.bytes()[..len]))
            });
            if let Some(buffer) = slot {
                chunk.slot = None;
                pool.give_back([buffer]);
            }
        }
        Ok(resident)
    }

    /// The regions, as they were on the device.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of the pool that this holds.
    pub fn host_bytes(&self) -> u64 {
        self.slots
            .iter()
            .flatten()
            .map(|slot| slot.len() as u64)
            .sum()
    }

    /// From host memory to the device, without the disk. The slots are as before afterwards,
    /// unless the device hangs: then this is of no use any more.
    pub fn restore(
        &mut self,
        device: &dyn Device,
        placements: &[Placement],
        cancel: &Cancel,
        options: Options,
    ) -> Result<Report> {
        let started = Instant::now();
        let jobs = self.jobs(placements)?;
        self.transfer(device, WorkKind::ToDevice, &jobs, cancel, options)?;
        let (zero, copied): (Vec<&Job>, Vec<&Job>) =
            jobs.iter().partition(|job| job.slot.is_none());
        let bytes = |jobs: &[&Job]| jobs.iter().map(|job| job.len).sum();
        Ok(Report {
            chunks: jobs.len() as u64,
            bytes_copied: bytes(&copied),
            bytes_zeroed: bytes(&zero),
            elapsed: started.elapsed(),
            ..Report::default()
        })
    }

    /// From host memory to disk: fills a snapshot that has the same regions.
    pub fn write(&mut self, writer: &mut Writer, cancel: &Cancel) -> Result<()> {
        let mut zeros = HostBuffer::new(self.pool.slot_len())?;
        for chunk in &self.chunks {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let buffer = match chunk.slot {
                Some(slot) => self.slots[slot].as_mut().ok_or_else(lost)?,
                None => {
                    zeros.bytes_mut().fill(0);
                    &mut zeros
                }
            };
            writer.append(chunk.region_id, chunk.offset, buffer)?;
        }
        Ok(())
    }

    /// The placed chunks, those that share a slot next to each other.
    fn jobs(&self, placements: &[Placement]) -> Result<Vec<Job>> {
        for placement in placements {
            if !self
                .regions
                .iter()
                .any(|region| region.id == placement.region_id)
            {
                return Err(Error::Invalid(format!("no region {}", placement.region_id)));
            }
        }
        let place = |chunk: &Chunk| {
            let base = placements
                .iter()
                .find(|place| place.region_id == chunk.region_id)?;
            let va = base.va.checked_add(chunk.offset)?;
            Some(Job {
                va,
                len: chunk.len,
                slot: chunk.slot,
            })
        };
        let mut jobs: Vec<Job> = self.chunks.iter().filter_map(place).collect();
        jobs.sort_by_key(|job| (job.slot, job.va));
        Ok(jobs)
    }

    /// Runs all jobs; whatever happens, waits for the copies under way and takes the slots back.
    fn transfer(
        &mut self,
        device: &dyn Device,
        kind: WorkKind,
        jobs: &[Job],
        cancel: &Cancel,
        options: Options,
    ) -> Result<()> {
        let queue = device.open_queue(DEPTH)?;
        let (mut next, mut in_flight, mut result) = (0, 0, Ok(()));
        loop {
            while in_flight < DEPTH && next < jobs.len() && result.is_ok() {
                if cancel.is_cancelled() {
                    result = Err(Error::Cancelled);
                    break;
                }
                let job = &jobs[next];
                // The slot is under way to another place; its completion comes first.
                if job.slot.is_some_and(|slot| self.slots[slot].is_none()) && in_flight > 0 {
                    break;
                }
                match self.submit(&*queue, kind, job, next as u64) {
                    Ok(()) => (next, in_flight) = (next + 1, in_flight + 1),
                    Err(error) => result = Err(error),
                }
            }
            if in_flight == 0 {
                return result;
            }
            let Some(completion) = queue.reap(options.copy_timeout) else {
                return Err(Error::Timeout(format!(
                    "no copy in {:?}",
                    options.copy_timeout
                )));
            };
            in_flight -= 1;
            if let Some(slot) = jobs[completion.tag as usize].slot {
                self.slots[slot] = completion.buffer;
            }
            result = result.and(completion.result);
        }
    }

    fn submit(&mut self, queue: &dyn CopyQueue, kind: WorkKind, job: &Job, tag: u64) -> Result<()> {
        let Job { va, len, slot } = *job;
        let work = match slot {
            Some(slot) => {
                let buffer = Some(self.slots[slot].take().ok_or_else(lost)?);
                Work {
                    kind,
                    va,
                    len,
                    tag,
                    buffer,
                }
            }
            None => Work {
                kind: WorkKind::Zero,
                va,
                len,
                tag,
                buffer: None,
            },
        };
        queue.submit(work).map_err(|(error, buffer)| {
            if let Some(slot) = slot {
                self.slots[slot] = buffer;
            }
            error
        })
    }
}

/// Fills each slot with its chunk and checks it, several at once, so that the disk is busy while
/// chunks are checked. All bad chunks are reported.
fn read_all(
    snapshot: &Snapshot,
    reads: &[usize],
    slots: &mut [Option<HostBuffer>],
    cancel: &Cancel,
) -> Result<()> {
    let left = Mutex::new(reads.iter().zip(slots.iter_mut().flatten()));
    let bad = Mutex::new(Vec::new());
    let reader = || {
        while !cancel.is_cancelled() {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, slot)) = next else { return };
            if let Err(why) = snapshot.read_chunk(*index, slot.bytes_mut()) {
                let why = snapshot.bad_chunk(*index, why);
                bad.lock().unwrap_or_else(PoisonError::into_inner).push(why);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..Options::default().readers.min(reads.len()) {
            scope.spawn(reader);
        }
    });
    if cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let mut bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    bad.sort_by_key(|bad| bad.index);
    if bad.is_empty() {
        Ok(())
    } else {
        Err(Error::BadChunks(bad))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.pool.give_back(self.slots.drain(..).flatten());
    }
}

/// One copy: where on the device, and which slot.
struct Job {
    va: Va,
    len: u64,
    slot: Option<usize>,
}

fn lost() -> Error {
    Error::Invalid("a slot was lost to a device that hung".into())
}
