//! From the device to the host: saving regions, and checking what a restore put on the device.
//! It must never keep a slot: whatever happens short of a hang, the ring is whole afterwards.

use super::options::{Options, Placement};
use super::ring::{Cancel, Ring};
use crate::buffer::{HostBuffer, is_zero};
use crate::device::{CopyQueue, Device, Va, Work, WorkKind};
use crate::error::BadChunk;
use crate::image::{Codec, Snapshot, Writer};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// What a copy from the device did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullReport {
    /// Chunks copied.
    pub chunks: u64,
    /// Bytes copied from the device.
    pub bytes: u64,
    /// From the call to its end.
    pub elapsed: Duration,
}

/// One chunk to copy: where it is and which one it is for the caller.
struct Job {
    va: Va,
    len: u64,
    tag: u64,
}

/// Copies jobs into slots, as many at once as there are slots, and hands each to `each` in order.
fn pull(
    device: &dyn Device,
    ring: &mut Ring,
    jobs: &mut dyn Iterator<Item = Job>,
    cancel: &Cancel,
    timeout: Duration,
    mut each: impl FnMut(u64, &mut HostBuffer) -> Result<()>,
) -> Result<PullReport> {
    let started = Instant::now();
    let queue = device.open_queue(ring.usable())?;
    let mut report = PullReport::default();
    let mut in_flight = 0usize;
    let mut result = Ok(());
    let mut jobs = jobs.fuse();
    loop {
        while result.is_ok() && !ring.free.is_empty() {
            let Some(job) = jobs.next() else { break };
            if cancel.is_cancelled() {
                result = Err(Error::Cancelled);
                break;
            }
            report.chunks += 1;
            report.bytes += job.len;
            match submit(&*queue, ring, job) {
                Ok(()) => in_flight += 1,
                Err(error) => result = Err(error),
            }
        }
        if in_flight == 0 {
            break;
        }
        let Some(completion) = queue.reap(timeout) else {
            return Err(Error::Timeout(format!("no copy finished in {timeout:?}")));
        };
        in_flight -= 1;
        let mut slot = completion.buffer;
        if result.is_ok() {
            result = completion.result.and_then(|()| match &mut slot {
                Some(slot) => each(completion.tag, slot),
                None => Err(Error::Invalid("the queue lost a buffer".into())),
            });
        }
        ring.free.extend(slot);
    }
    report.elapsed = started.elapsed();
    result.map(|()| report)
}

fn submit(queue: &dyn CopyQueue, ring: &mut Ring, job: Job) -> Result<()> {
    let Job { va, len, tag } = job;
    let work = Work {
        kind: WorkKind::ToHost,
        va,
        len,
        tag,
        buffer: ring.free.pop(),
    };
    queue.submit(work).map_err(|(error, slot)| {
        ring.free.extend(slot);
        error
    })
}

/// Saves regions from the device into a snapshot that is being written.
pub fn save(
    writer: &mut Writer,
    device: &dyn Device,
    ring: &mut Ring,
    placements: &[Placement],
    cancel: &Cancel,
    options: Options,
) -> Result<PullReport> {
    let mut jobs = Vec::new();
    let mut chunks = Vec::new();
    for Placement { region_id, va } in placements {
        let region = writer
            .regions()
            .iter()
            .find(|region| region.id == *region_id);
        let region = region.ok_or_else(|| Error::Invalid(format!("no region {region_id}")))?;
        ring.check(region.chunk_len as usize)?;
        let starts = (0..region.chunks()).map(|chunk| chunk * u64::from(region.chunk_len));
        for offset in starts {
            let len = u64::from(region.raw_len(offset).unwrap_or(0));
            jobs.push(Job {
                va: Va(va.0 + offset),
                len,
                tag: chunks.len() as u64,
            });
            chunks.push((*region_id, offset));
        }
    }
    let timeout = options.copy_timeout;
    pull(
        device,
        ring,
        &mut jobs.into_iter(),
        cancel,
        timeout,
        |tag, slot| {
            let (region_id, offset) = chunks[tag as usize];
            writer.append(region_id, offset, slot)
        },
    )
}

/// Copies restored regions back and checks them again: finds what a copy got wrong silently.
pub fn check_device(
    snapshot: &Snapshot,
    device: &dyn Device,
    ring: &mut Ring,
    placements: &[Placement],
    cancel: &Cancel,
    options: Options,
) -> Result<PullReport> {
    ring.check(snapshot.slot_len())?;
    let base = |id: u32| {
        placements
            .iter()
            .find(|placement| placement.region_id == id)
    };
    let mut jobs = snapshot
        .records()
        .iter()
        .enumerate()
        .filter_map(|(index, record)| {
            let va = Va(base(record.region_id)?.va.0 + record.region_off);
            Some(Job {
                va,
                len: u64::from(record.raw_len),
                tag: index as u64,
            })
        });
    let mut bad: Vec<BadChunk> = Vec::new();
    let timeout = options.copy_timeout;
    let report = pull(device, ring, &mut jobs, cancel, timeout, |tag, slot| {
        let record = &snapshot.records()[tag as usize];
        let (raw_len, stored_len) = (record.raw_len as usize, record.stored_len as usize);
        let sound = if record.codec == Codec::Zero {
            is_zero(&slot.bytes()[..raw_len])
        } else {
            slot.bytes_mut()[raw_len..stored_len].fill(0);
            crate::checksum::crc32c(&slot.bytes()[..stored_len]) == record.crc
        };
        if !sound {
            bad.push(snapshot.bad_chunk(tag as usize, "differs on the device".into()));
        }
        Ok(())
    })?;
    if bad.is_empty() {
        Ok(report)
    } else {
        Err(Error::BadChunks(bad))
    }
}
