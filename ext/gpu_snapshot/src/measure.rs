//! What a device costs, measured through its own trait: pinning, copies, mappings.
//! It must never leave anything behind, nor time memory that nobody touched before.

use crate::buffer::HostBuffer;
use crate::device::{Access, Device, Va, Work, WorkKind};
use crate::pipeline::DeviceRange;
use crate::{Error, Result};
use std::time::{Duration, Instant};

const COPY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long copies of the same bytes took, one way and the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copies {
    /// From pinned host memory to the device.
    pub to_device: Duration,
    /// Back.
    pub to_host: Duration,
}

/// How long the steps took that make device memory usable and give it back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapping {
    /// Taking physical memory.
    pub create: Duration,
    /// Mapping it at a reserved address, with access.
    pub map: Duration,
    /// Unmapping it.
    pub unmap: Duration,
}

/// Pins fresh, touched host memory in buffers of `piece` bytes; the pinning alone is timed.
pub fn pin(device: &dyn Device, bytes: usize, piece: usize) -> Result<Duration> {
    let count = bytes.div_ceil(piece.max(1));
    let mut buffers = (0..count)
        .map(|_| HostBuffer::new(piece))
        .collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    for buffer in &mut buffers {
        device.pin(buffer)?;
    }
    Ok(started.elapsed())
}

/// Copies `pieces` pinned buffers of `piece` bytes to the device and back, all queued at once.
pub fn copies(device: &dyn Device, pieces: usize, piece: usize) -> Result<Copies> {
    let mut buffers = Vec::with_capacity(pieces);
    for _ in 0..pieces {
        let mut buffer = HostBuffer::new(piece)?;
        device.pin(&mut buffer)?;
        buffers.push(buffer);
    }
    let range = DeviceRange::allocate(device, (pieces * piece) as u64, None)?;
    // Once for the device's own first use of the memory.
    transfer(device, range.va(), WorkKind::ToDevice, &mut buffers)?;
    let to_device = transfer(device, range.va(), WorkKind::ToDevice, &mut buffers)?;
    let to_host = transfer(device, range.va(), WorkKind::ToHost, &mut buffers)?;
    range.free()?;
    Ok(Copies { to_device, to_host })
}

fn transfer(
    device: &dyn Device,
    va: Va,
    kind: WorkKind,
    buffers: &mut Vec<HostBuffer>,
) -> Result<Duration> {
    let queue = device.open_queue(buffers.len())?;
    let started = Instant::now();
    let mut at = va.0;
    for (tag, buffer) in (0..).zip(buffers.drain(..)) {
        let len = buffer.len() as u64;
        let work = Work {
            kind,
            va: Va(at),
            len,
            tag,
            buffer: Some(buffer),
        };
        queue.submit(work).map_err(|(error, _)| error)?;
        at += len;
    }
    while let Some(completion) = queue.reap(COPY_TIMEOUT) {
        completion.result?;
        buffers.extend(completion.buffer);
    }
    let back: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    if at - va.0 != back {
        return Err(Error::Timeout(format!(
            "no copy finished in {COPY_TIMEOUT:?}"
        )));
    }
    Ok(started.elapsed())
}

/// Creates, maps and unmaps memory of `len` bytes once.
pub fn mapping(device: &dyn Device, len: u64) -> Result<Mapping> {
    let started = Instant::now();
    let phys = device.create(len, true)?;
    let create = started.elapsed();
    let va = match device.reserve(phys.len(), None) {
        Ok(va) => va,
        Err(error) => return device.release(phys).and(Err(error)),
    };
    let started = Instant::now();
    let mapped = device.map(va, &phys, Access::ReadWrite);
    let map = started.elapsed();
    let started = Instant::now();
    let unmapped = mapped.and_then(|()| device.unmap(va, phys.len()));
    let unmap = started.elapsed();
    let len = phys.len();
    unmapped
        .and(device.release(phys))
        .and(device.unreserve(va, len))?;
    Ok(Mapping { create, map, unmap })
}
