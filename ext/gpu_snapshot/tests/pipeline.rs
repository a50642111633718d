//! From disk to device and back through the engine, with every failure on the way.
//! It must never leave memory, slots or files behind, whatever failed.

mod common;

use common::sample;
use gpu_snapshot::device::{Device, GRANULARITY, Va, WorkKind};
use gpu_snapshot::image::{Region, RegionClass, Snapshot, Store, WriterLimits};
use gpu_snapshot::pipeline::{
    Cancel, DeviceRange, Options, Placement, Ring, check_device, load, restore, save,
};
use gpu_snapshot::soft::{Fault, SoftConfig, SoftDevice};
use gpu_snapshot::storage::OsStorage;
use gpu_snapshot::{Error, Result};
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const CHUNK: u32 = 64 << 10;

/// A snapshot on disk: two GPU regions with zero, equal and distinct chunks, and its contents.
struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
    snapshot: Snapshot,
    contents: Vec<Vec<u8>>,
}

fn gpu_region(id: u32, len: u64) -> Region {
    let region = Region::new(id, format!("region-{id}"), RegionClass::Gpu, len);
    Region {
        chunk_len: CHUNK,
        align: 4096,
        ..region
    }
}

fn fixture(lens: &[u64], kinds: &[u8]) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Arc::new(OsStorage), &directory.path().join("store")).unwrap();
    let regions: Vec<Region> = (1u32..)
        .zip(lens)
        .map(|(id, len)| gpu_region(id, *len))
        .collect();
    let contents = sample::contents(&regions, kinds);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    Fixture {
        directory,
        store,
        snapshot,
        contents,
    }
}

fn usual() -> Fixture {
    fixture(&[1_000_000, 300_000], &[1, 0, 2, 1, 3, 0, 0, 4, 5, 6, 7, 8])
}

fn soft(faults: &[&str]) -> SoftDevice {
    let faults = faults
        .iter()
        .map(|name| name.parse::<Fault>().unwrap())
        .collect();
    let capacity = 32 * GRANULARITY;
    SoftDevice::with_config(SoftConfig {
        capacity,
        faults,
        ..SoftConfig::default()
    })
    .unwrap()
}

fn ring(device: &SoftDevice) -> Ring {
    Ring::new(device, 4, CHUNK as usize).unwrap()
}

fn options() -> Options {
    Options {
        readers: 2,
        copy_timeout: Duration::from_secs(30),
    }
}

/// The bytes at a device address.
fn device_bytes(device: &SoftDevice, va: Va, len: usize) -> Vec<u8> {
    let queue = device.open_queue(1).unwrap();
    let room = len.next_multiple_of(4096);
    let buffer = Some(gpu_snapshot::buffer::HostBuffer::new(room).unwrap());
    let (kind, len) = (WorkKind::ToHost, len as u64);
    let work = gpu_snapshot::device::Work {
        kind,
        va,
        len,
        tag: 0,
        buffer,
    };
    queue.submit(work).map_err(|(error, _)| error).unwrap();
    let completion = queue.reap(Duration::from_secs(30)).unwrap();
    completion.result.unwrap();
    completion.buffer.unwrap().bytes()[..len as usize].to_vec()
}

/// Restores and returns the error after checking that nothing was kept.
fn failure(fixture: &Fixture, device: &SoftDevice, ring: &mut Ring) -> Error {
    let result = load(
        &fixture.snapshot,
        device,
        ring,
        &Cancel::default(),
        options(),
    );
    let error = result.err().expect("the restore went well");
    assert_eq!(device.used(), 0, "{error}: memory was kept");
    error
}

#[test]
fn regions_arrive_and_survive_a_second_look() {
    let fixture = usual();
    let device = soft(&[]);
    let mut ring = ring(&device);
    let loaded = load(
        &fixture.snapshot,
        &device,
        &mut ring,
        &Cancel::default(),
        options(),
    )
    .unwrap();
    for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
        assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
    }
    let report = loaded.report;
    assert_eq!(report.chunks, 16 + 5);
    assert!(
        report.reads < report.chunks,
        "equal chunks were read twice: {report:?}"
    );
    assert_eq!(report.bytes_copied + report.bytes_zeroed, 1_300_000);
    let placements = loaded.placements();
    let cancel = Cancel::default();
    check_device(
        &fixture.snapshot,
        &device,
        &mut ring,
        &placements,
        &cancel,
        options(),
    )
    .unwrap();
    assert_eq!(ring.usable(), 4);
    drop(loaded);
    assert_eq!(device.used(), 0);
}

#[test]
fn what_a_device_holds_can_be_saved_and_comes_back() {
    let fixture = usual();
    let (device, cancel) = (soft(&[]), Cancel::default());
    let mut ring = ring(&device);
    let loaded = load(&fixture.snapshot, &device, &mut ring, &cancel, options()).unwrap();
    let regions = fixture.snapshot.manifest().regions.clone();
    let mut writer = fixture
        .store
        .writer(sample::draft("b", regions), WriterLimits::default())
        .unwrap();
    let placements = loaded.placements();
    let report = save(
        &mut writer,
        &device,
        &mut ring,
        &placements,
        &cancel,
        options(),
    )
    .unwrap();
    assert_eq!((report.chunks, report.bytes), (21, 1_300_000));
    writer.publish().unwrap();
    let again = fixture.store.snapshot("b").unwrap();
    assert!(sample::load(&OsStorage, &again).unwrap() == fixture.contents);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_shape_arrives_with_any_ring(
        lens in prop::collection::vec(1u64..600_000, 1..4),
        kinds in prop::collection::vec(0u8..5, 1..9),
        slots in 1usize..5,
        readers in 1usize..4,
    ) {
        let fixture = fixture(&lens, &kinds);
        let device = soft(&[]);
        let mut ring = Ring::new(&device, slots, CHUNK as usize).unwrap();
        let options = Options { readers, ..options() };
        let loaded =
            load(&fixture.snapshot, &device, &mut ring, &Cancel::default(), options).unwrap();
        for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
            prop_assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
        }
        prop_assert_eq!(ring.usable(), slots);
    }
}

#[test]
fn all_bad_chunks_are_reported_and_the_memory_is_gone() {
    let fixture = usual();
    let records = fixture.snapshot.records();
    for record in [&records[0], &records[2]] {
        let name = gpu_snapshot::image::segment_name(record.seg);
        let path = fixture.directory.path().join("store/snap-a").join(name);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_at(&[0xff, 0], record.seg_off + 17).unwrap();
    }
    let device = soft(&[]);
    let mut ring = ring(&device);
    let Error::BadChunks(bad) = failure(&fixture, &device, &mut ring) else {
        panic!("not reported as bad chunks");
    };
    // Both are shared by later chunks.
    let hit =
        |index: &usize| records[*index].id == records[0].id || records[*index].id == records[2].id;
    let expected: Vec<usize> = (0..records.len()).filter(hit).collect();
    assert!(expected.len() > 2);
    assert_eq!(
        bad.iter().map(|bad| bad.index).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(ring.usable(), 4);
}

#[test]
fn a_cut_segment_is_a_bad_chunk_and_no_panic() {
    let fixture = usual();
    let path = fixture.directory.path().join("store/snap-a/data-000.seg");
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let device = soft(&[]);
    let error = failure(&fixture, &device, &mut ring(&device));
    assert!(matches!(error, Error::BadChunks(_)), "{error}");
}

#[test]
fn full_memory_is_found_before_anything_is_taken() {
    let fixture = usual();
    let device = SoftDevice::new(GRANULARITY).unwrap();
    let error = failure(&fixture, &device, &mut ring(&device));
    let Error::OutOfMemory { asked, free } = error else {
        panic!("{error}")
    };
    assert_eq!((asked, free), (2 * GRANULARITY, GRANULARITY));
    // Memory that goes away between the check and its use: the second region does not fit.
    let device = soft(&["oom-on-create:2"]);
    let error = failure(&fixture, &device, &mut ring(&device));
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_short_copy_fails_the_restore() {
    let fixture = usual();
    let device = soft(&["short-copy:3"]);
    let mut ring = ring(&device);
    let error = failure(&fixture, &device, &mut ring);
    assert!(
        matches!(&error, Error::Device { why, .. } if why.contains("of 65536")),
        "{error}"
    );
    assert_eq!(ring.usable(), 4);
}

#[test]
fn a_hung_device_is_given_up_and_its_slots_are_replaced() {
    let fixture = usual();
    let device = soft(&["hang:2"]);
    let mut ring = ring(&device);
    let options = Options {
        copy_timeout: Duration::from_millis(50),
        ..options()
    };
    let result = load(
        &fixture.snapshot,
        &device,
        &mut ring,
        &Cancel::default(),
        options,
    );
    let error = result.err().expect("the copy hangs");
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    assert_eq!(device.used(), 0);
    assert!(ring.usable() < 4);
    ring.refill(&device).unwrap();
    load(
        &fixture.snapshot,
        &device,
        &mut ring,
        &Cancel::default(),
        options,
    )
    .unwrap();
}

#[test]
fn a_bit_flipped_by_the_copy_is_found_on_the_device() {
    let fixture = usual();
    let (device, cancel) = (soft(&["flip-bit:2"]), Cancel::default());
    let mut ring = ring(&device);
    let loaded = load(&fixture.snapshot, &device, &mut ring, &cancel, options()).unwrap();
    let placements = loaded.placements();
    let result = check_device(
        &fixture.snapshot,
        &device,
        &mut ring,
        &placements,
        &cancel,
        options(),
    );
    let Err(Error::BadChunks(bad)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(bad.len(), 1);
    assert!(bad[0].why.contains("on the device"));
}

#[test]
fn a_cancelled_restore_ends_and_keeps_nothing() {
    let fixture = usual();
    let capacity = 32 * GRANULARITY;
    let slow = SoftConfig {
        capacity,
        bytes_per_second: Some(400_000),
        ..SoftConfig::default()
    };
    let device = SoftDevice::with_config(slow).unwrap();
    let (mut ring, cancel) = (ring(&device), Cancel::default());
    let result: Result<()> = std::thread::scope(|scope| {
        let (cancel, device, ring) = (cancel.clone(), &device, &mut ring);
        let snapshot = &fixture.snapshot;
        let job = scope.spawn({
            let cancel = cancel.clone();
            move || load(snapshot, device, ring, &cancel, options()).map(|_| ())
        });
        while device.used() == 0 {
            std::thread::yield_now();
        }
        cancel.cancel();
        job.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!((device.used(), ring.usable()), (0, 4));
}

#[test]
fn two_restores_of_one_snapshot_run_at_once() {
    let fixture = usual();
    let device = soft(&[]);
    let one = || {
        let mut ring = ring(&device);
        let loaded = load(
            &fixture.snapshot,
            &device,
            &mut ring,
            &Cancel::default(),
            options(),
        )
        .unwrap();
        for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
            assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(one);
        scope.spawn(one);
    });
    assert_eq!(device.used(), 0);
}

#[test]
fn misuse_is_refused_before_any_work() {
    let fixture = usual();
    let (device, cancel) = (soft(&[]), Cancel::default());
    let small = &mut Ring::new(&device, 1, 4096).unwrap();
    let refused = load(&fixture.snapshot, &device, small, &cancel, options())
        .err()
        .unwrap();
    assert!(refused.to_string().contains("slots of 4096"), "{refused}");
    let ring = &mut ring(&device);
    let range = DeviceRange::allocate(&device, 1_000_000, None).unwrap();
    let wrong = [Placement {
        region_id: 9,
        va: range.va(),
    }];
    assert!(restore(&fixture.snapshot, &device, ring, &wrong, &cancel, options()).is_err());
    let unmapped = [Placement {
        region_id: 1,
        va: Va(4096),
    }];
    let refused = restore(
        &fixture.snapshot,
        &device,
        ring,
        &unmapped,
        &cancel,
        options(),
    );
    assert!(refused.unwrap_err().to_string().contains("not mapped"));
    assert_eq!(ring.usable(), 4);
    range.free().unwrap();
    assert!(Ring::new(&device, 0, 4096).is_err());
    assert!(Ring::new(&device, 1, 4097).is_err());
}

#[test]
fn a_thousand_cycles_keep_descriptors_flat() {
    let fixture = fixture(&[100_000], &[1, 2]);
    let device = soft(&[]);
    let mut ring = ring(&device);
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut after_first = None;
    for _ in 0..1000 {
        load(
            &fixture.snapshot,
            &device,
            &mut ring,
            &Cancel::default(),
            options(),
        )
        .unwrap();
        after_first.get_or_insert_with(open_files);
    }
    // Other tests of this process open and close files meanwhile.
    assert!(open_files() < after_first.unwrap() + 100);
    assert_eq!(device.used(), 0);
}
