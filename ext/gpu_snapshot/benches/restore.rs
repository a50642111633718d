//! How near the engine comes to the disk and to memory: rates beside ceilings of the same run.
//! It must never print a figure without its ceiling, nor use memory that was not touched before.
//!
//! `cargo bench -p gpu_snapshot -- [DIRECTORY] [MIB] [ROUNDS]`; one JSON object a line. The
//! directory should be on the disk that holds snapshots. Each figure is the median of the rounds.

use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::image::{
    Draft, Region, RegionClass, Snapshot, Store, WriterLimits, segment_name,
};
use gpu_snapshot::pipeline::{
    Cancel, DeviceRange, HostPool, Options, Placement, Resident, Ring, restore,
};
use gpu_snapshot::soft::SoftDevice;
use gpu_snapshot::storage::{Open, OsStorage, Storage, read_exact};
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MIB: usize = 1 << 20;
const SLOT_LEN: usize = 8 * MIB;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let root = directory.join(format!("snapshot-bench-{}", std::process::id()));
    let result = run(&root, mib, rounds);
    std::fs::remove_dir_all(&root)?;
    result
}

fn run(root: &Path, mib: usize, rounds: usize) -> Outcome<()> {
    let (store, _) = Store::open(Arc::new(OsStorage), root)?;
    let snapshot = write_snapshot(&store, mib)?;
    let device = SoftDevice::new(2 * (mib * MIB) as u64)?;
    let bytes = (mib * MIB) as f64;
    let range = DeviceRange::allocate(&device, (mib * MIB) as u64, None)?;
    let placements = [Placement {
        region_id: 1,
        va: range.va(),
    }];
    let mut ring = Ring::new(&device, 6, SLOT_LEN)?;
    let (cancel, options) = (Cancel::default(), Options::default());
    // Touches the device's memory, so that no round pays for first use.
    restore(&snapshot, &device, &mut ring, &placements, &cancel, options)?;

    let mut files = Vec::new();
    let mut sequential = Vec::new();
    let mut memory = Vec::new();
    let mut disk = Vec::new();
    let mut copies = Vec::new();
    let pool = HostPool::new(&device, mib.div_ceil(8), SLOT_LEN)?;
    let mut resident = Resident::read(&snapshot, &pool, &cancel)?;
    for _ in 0..rounds {
        disk.push(bytes / best_read(&snapshot, mib)?);
        let started = Instant::now();
        restore(&snapshot, &device, &mut ring, &placements, &cancel, options)?;
        files.push(bytes / started.elapsed().as_secs_f64());
        sequential.push(bytes / one_by_one(&snapshot, &device, &placements[0])?);
        copies.push(bytes / copy_memory(mib)?);
        let started = Instant::now();
        resident.restore(&device, &placements, &cancel, options)?;
        memory.push(bytes / started.elapsed().as_secs_f64());
    }
    let direct = snapshot.direct();
    let (disk, copies) = (median(&mut disk), median(&mut copies));
    row("file-to-device", median(&mut files), "disk", disk, direct)?;
    row(
        "file-to-device-sequential",
        median(&mut sequential),
        "disk",
        disk,
        direct,
    )?;
    row(
        "memory-to-device",
        median(&mut memory),
        "memcpy",
        copies,
        direct,
    )
}

fn row(case: &str, rate: f64, of: &str, ceiling: f64, direct: bool) -> Outcome<()> {
    let line = serde_json::json!({
        "bench": "snapshot", "case": case, "gb_per_s": rate / 1e9, "ceiling_of": of,
        "ceiling_gb_per_s": ceiling / 1e9, "fraction": rate / ceiling, "direct": direct,
    });
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Random bytes, because zero and equal chunks would be free.
fn write_snapshot(store: &Store, mib: usize) -> Outcome<Snapshot> {
    let region = Region::new(1, "weights", RegionClass::Gpu, (mib * MIB) as u64);
    let draft = Draft {
        id: "bench".into(),
        regions: vec![region.clone()],
        ..Draft::default()
    };
    let mut writer = store.writer(draft, WriterLimits::default())?;
    let mut slot = HostBuffer::new(SLOT_LEN)?;
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    for chunk in 0..region.chunks() {
        for bytes in slot.bytes_mut().chunks_exact_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        writer.append(1, chunk * SLOT_LEN as u64, &mut slot)?;
    }
    writer.publish()?;
    Ok(store.snapshot("bench")?)
}

/// Seconds that the best of several block sizes and thread counts takes to read the segment.
fn best_read(snapshot: &Snapshot, mib: usize) -> Outcome<f64> {
    let mut best = f64::INFINITY;
    for (block, threads) in [
        (MIB, 4),
        (4 * MIB, 2),
        (8 * MIB, 1),
        (8 * MIB, 2),
        (16 * MIB, 2),
    ] {
        best = best.min(read(snapshot, mib, block, threads)?);
    }
    Ok(best)
}

fn read(snapshot: &Snapshot, mib: usize, block: usize, threads: usize) -> Outcome<f64> {
    let file = OsStorage.open(&snapshot.path().join(segment_name(0)), Open::ReadDirect)?;
    let mut buffers = (0..threads)
        .map(|_| HostBuffer::new(block))
        .collect::<Result<Vec<_>, _>>()?;
    let (next, end) = (AtomicU64::new(0), (mib * MIB) as u64);
    let started = Instant::now();
    let (next, file) = (&next, &*file);
    std::thread::scope(|scope| -> std::io::Result<()> {
        let reader = move |buffer: &mut HostBuffer| -> std::io::Result<()> {
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
        let panicked = |_| Err(std::io::Error::other("a reader panicked"));
        jobs.into_iter()
            .try_for_each(|job| job.join().unwrap_or_else(panicked))
    })?;
    Ok(started.elapsed().as_secs_f64())
}

/// Read, check, copy, one after the other: what the pipeline has to beat.
fn one_by_one(snapshot: &Snapshot, device: &SoftDevice, place: &Placement) -> Outcome<f64> {
    let mut ring = Ring::new(device, 1, SLOT_LEN)?;
    let options = Options {
        readers: 1,
        ..Options::default()
    };
    let started = Instant::now();
    restore(
        snapshot,
        device,
        &mut ring,
        &[*place],
        &Cancel::default(),
        options,
    )?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds for copying between touched buffers, chunk by chunk, as a device would.
fn copy_memory(mib: usize) -> Outcome<f64> {
    let (source, mut target) = (HostBuffer::new(mib * MIB)?, HostBuffer::new(mib * MIB)?);
    target.bytes_mut().fill(1);
    let started = Instant::now();
    let chunks = target
        .bytes_mut()
        .chunks_mut(SLOT_LEN)
        .zip(source.bytes().chunks(SLOT_LEN));
    chunks.for_each(|(to, from)| to.copy_from_slice(from));
    Ok(started.elapsed().as_secs_f64())
}
