//! How near the engine comes to the disk and to memory: rates beside ceilings of the same run.
//! It must never print a figure without its ceiling, nor use memory that was not touched before.
//!
//! `cargo bench -p gpu_snapshot --bench restore -- [DIRECTORY] [MIB] [ROUNDS]`; one JSON object a
//! line. The directory should be on the disk that holds snapshots. In each round every case and
//! every setting of a ceiling runs once, one after the other; a figure is the median of its
//! rounds, and a ceiling is the highest median among its settings, so that neither side gains by
//! a lucky round.

mod ceiling;

use ceiling::{Disk, Memory};
use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::image::{Draft, Region, RegionClass, Snapshot, Store, WriterLimits};
use gpu_snapshot::pipeline::{
    Backend, Cancel, DeviceRange, HostPool, Options, Placement, Report, Resident, Ring, restore,
};
use gpu_snapshot::soft::SoftDevice;
use gpu_snapshot::storage::OsStorage;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MIB: usize = 1 << 20;
const SLOT_LEN: usize = 8 * MIB;
/// As many as an agent's ring has.
const SLOTS: usize = gpu_snapshot::held::RING_SLOTS;

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
    let result = run(&root, mib / 8 * 8, rounds);
    std::fs::remove_dir_all(&root)?;
    result
}

/// One way to read a snapshot.
struct Case {
    name: &'static str,
    options: Options,
    slots: usize,
    reports: Vec<Report>,
    cpu: Vec<Duration>,
}

impl Case {
    fn new(name: &'static str, slots: usize, options: Options) -> Self {
        let (reports, cpu) = Default::default();
        Self {
            name,
            options,
            slots,
            reports,
            cpu,
        }
    }
}

fn run(root: &Path, mib: usize, rounds: usize) -> Outcome<()> {
    let (store, _) = Store::open(Arc::new(OsStorage), root)?;
    let snapshot = write_snapshot(&store, mib)?;
    let device = SoftDevice::new(2 * (mib * MIB) as u64)?;
    let range = DeviceRange::allocate(&device, (mib * MIB) as u64, None)?;
    let (region_id, va) = (1, range.va());
    let placements = [Placement { region_id, va }];
    let cancel = Cancel::default();
    let threads = Options::default();
    let uring = Options {
        backend: Backend::Uring,
        ..threads
    };
    let sequential = Options {
        readers: 1,
        part_len: SLOT_LEN,
        ..threads
    };
    let mut cases = [
        Case::new("file-to-device", SLOTS, threads),
        Case::new("file-to-device-uring", SLOTS, uring),
        Case::new("file-to-device-sequential", 1, sequential),
    ];
    let mut rings = cases
        .iter()
        .map(|case| Ring::new(&device, case.slots, SLOT_LEN))
        .collect::<Result<Vec<_>, _>>()?;
    let pool = HostPool::new(&device, mib / 8, SLOT_LEN)?;
    let mut disk = Disk::new(&snapshot, mib * MIB)?;
    let mut memory = Memory::new(mib * MIB)?;
    let (mut from_memory, mut copy_cpu) = (Vec::new(), Vec::new());
    let (mut to_memory, mut read_cpu) = (Vec::new(), Vec::new());
    // Round 0 touches all memory, the device's through both ways of writing, and is not counted.
    for round in 0..=rounds {
        disk.round()?;
        for (case, ring) in cases.iter_mut().zip(&mut rings) {
            let before = cpu_time();
            let report = restore(&snapshot, &device, ring, &placements, &cancel, case.options)?;
            case.reports.push(report);
            case.cpu.push(cpu_time() - before);
        }
        memory.round();
        let (before, started) = (cpu_time(), Instant::now());
        let mut resident = Resident::read(&snapshot, &pool, &cancel)?;
        to_memory.push(Report {
            elapsed: started.elapsed(),
            direct: snapshot.direct(),
            read_calls: snapshot.records().len() as u64,
            ..Report::default()
        });
        read_cpu.push(cpu_time() - before);
        let before = cpu_time();
        from_memory.push(resident.restore(&device, &placements, &cancel, Options::default())?);
        copy_cpu.push(cpu_time() - before);
        if round == 0 {
            disk.forget();
            memory.forget();
            (from_memory, to_memory) = Default::default();
            (copy_cpu, read_cpu) = Default::default();
            for case in &mut cases {
                case.reports.clear();
                case.cpu.clear();
            }
        }
    }
    let (setting, ceiling) = disk.best();
    for case in &mut cases {
        let cpu = ceiling::median(&mut case.cpu);
        row(case.name, &case.reports, cpu, (&setting, ceiling), mib)?;
    }
    let cpu = ceiling::median(&mut read_cpu);
    row("file-to-memory", &to_memory, cpu, (&setting, ceiling), mib)?;
    let (setting, ceiling) = memory.best();
    let cpu = ceiling::median(&mut copy_cpu);
    row(
        "memory-to-device",
        &from_memory,
        cpu,
        (&setting, ceiling),
        mib,
    )
}

fn row(
    case: &str,
    reports: &[Report],
    cpu: Duration,
    of: (&str, Duration),
    mib: usize,
) -> Outcome<()> {
    let mut times: Vec<Duration> = reports.iter().map(|report| report.elapsed).collect();
    let elapsed = ceiling::median(&mut times);
    let rate = |time: Duration| (mib * MIB) as f64 / time.as_secs_f64() / 1e9;
    let last = reports.last().copied().unwrap_or_default();
    let line = serde_json::json!({
        "bench": "snapshot", "case": case, "median_ms": elapsed.as_secs_f64() * 1e3,
        "gb_per_s": rate(elapsed), "ceiling": rate(of.1), "ceiling_of": of.0,
        "fraction": rate(elapsed) / rate(of.1), "rounds": reports.len(), "direct": last.direct,
        "backend": format!("{:?}", last.backend).to_lowercase(),
        "read_calls_per_gib": last.read_calls as f64 * 1024.0 / mib as f64,
        "cpu_ms": cpu.as_secs_f64() * 1e3,
        "first_copy_ms": last.first_copy.as_secs_f64() * 1e3,
    });
    Ok(writeln!(std::io::stdout(), "{line}")?)
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

fn cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
