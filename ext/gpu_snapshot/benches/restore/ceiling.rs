//! What the machine could do at best: direct reads of the same file, copies between buffers.
//! It must never be measured with less care than the engine: touched memory, medians, same run.

use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::image::{Snapshot, segment_name};
use gpu_snapshot::storage::{Open, OsStorage, Storage, StoredFile, read_exact};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Bytes of a read and reads under way at once.
const READS: [(usize, usize); 7] = [(1, 4), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (16, 2)];
/// Threads that copy.
const COPIERS: [usize; 2] = [1, 2];
const CHUNK: usize = 8 * MIB;

pub fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The setting whose median is the shortest.
fn best<'a>(settings: impl Iterator<Item = (String, &'a [Duration])>) -> (String, Duration) {
    let medians = settings.map(|(name, times)| (name, median(&mut times.to_vec())));
    let shortest = medians.min_by_key(|(_, time)| *time);
    shortest.unwrap_or_default()
}

/// O_DIRECT reads of a snapshot's first segment.
pub struct Disk {
    file: Box<dyn StoredFile>,
    len: u64,
    settings: Vec<(usize, Vec<HostBuffer>, Vec<Duration>)>,
}

impl Disk {
    pub fn new(snapshot: &Snapshot, len: usize) -> super::Outcome<Self> {
        let path = snapshot.path().join(segment_name(0));
        let setting = |(mib, threads): (usize, usize)| {
            let buffers = (0..threads).map(|_| HostBuffer::new(mib * MIB));
            Ok::<_, gpu_snapshot::Error>((
                mib * MIB,
                buffers.collect::<Result<_, _>>()?,
                Vec::new(),
            ))
        };
        Ok(Self {
            file: OsStorage.open(&path, Open::ReadDirect)?,
            len: len as u64,
            settings: READS.into_iter().map(setting).collect::<Result<_, _>>()?,
        })
    }

    pub fn round(&mut self) -> io::Result<()> {
        for (block, buffers, times) in &mut self.settings {
            times.push(read(&*self.file, self.len, *block, buffers)?);
        }
        Ok(())
    }

    pub fn forget(&mut self) {
        self.settings
            .iter_mut()
            .for_each(|setting| setting.2.clear());
    }

    pub fn best(&self) -> (String, Duration) {
        best(self.settings.iter().map(|(block, buffers, times)| {
            let name = format!("O_DIRECT, {} MiB x {}", block / MIB, buffers.len());
            (name, &times[..])
        }))
    }
}

fn read(
    file: &dyn StoredFile,
    end: u64,
    block: usize,
    buffers: &mut [HostBuffer],
) -> io::Result<Duration> {
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let next = &next;
    std::thread::scope(|scope| -> io::Result<()> {
        let reader = move |buffer: &mut HostBuffer| -> io::Result<()> {
            loop {
                let at = next.fetch_add(block as u64, Ordering::Relaxed);
                if at >= end {
                    return Ok(());
                }
                let len = block.min((end - at) as usize);
                read_exact(file, &mut buffer.bytes_mut()[..len], at)?;
            }
        };
        let start = |buffer| scope.spawn(move || reader(buffer));
        let jobs: Vec<_> = buffers.iter_mut().map(start).collect();
        let panicked = |_| Err(io::Error::other("a reader panicked"));
        jobs.into_iter()
            .try_for_each(|job| job.join().unwrap_or_else(panicked))
    })?;
    Ok(started.elapsed())
}

/// `memcpy` between touched buffers, chunk by chunk.
pub struct Memory {
    source: HostBuffer,
    target: HostBuffer,
    settings: Vec<(usize, Vec<Duration>)>,
}

impl Memory {
    pub fn new(len: usize) -> super::Outcome<Self> {
        Ok(Self {
            source: HostBuffer::new(len)?,
            target: HostBuffer::new(len)?,
            settings: COPIERS.map(|threads| (threads, Vec::new())).into(),
        })
    }

    pub fn round(&mut self) {
        for (threads, times) in &mut self.settings {
            let share = self.source.len().div_ceil(*threads);
            let parts = self.target.bytes_mut().chunks_mut(share);
            let parts = parts.zip(self.source.bytes().chunks(share));
            let started = Instant::now();
            std::thread::scope(|scope| {
                for (to, from) in parts {
                    scope.spawn(|| {
                        let chunks = to.chunks_mut(CHUNK).zip(from.chunks(CHUNK));
                        chunks.for_each(|(to, from)| to.copy_from_slice(from));
                    });
                }
            });
            times.push(started.elapsed());
        }
    }

    pub fn forget(&mut self) {
        self.settings
            .iter_mut()
            .for_each(|setting| setting.1.clear());
    }

    pub fn best(&self) -> (String, Duration) {
        best(self.settings.iter().map(|(threads, times)| {
            let name = format!("memcpy, {threads} threads");
            (name, &times[..])
        }))
    }
}
