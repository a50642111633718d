//! The io_uring backend does what the threads do: same bytes, same refusals, same slots back.
//! It must never be taken for granted: where the kernel refuses it, the threads do the work.

mod common;

use common::rig::{CHUNK, device_bytes, fixture, gpu_region, options, ring, soft, usual};
use common::{MemStorage, sample};
use gpu_snapshot::Error;
use gpu_snapshot::device::GRANULARITY;
use gpu_snapshot::image::Store;
use gpu_snapshot::pipeline::{Backend, Cancel, Options, Ring, load};
use gpu_snapshot::soft::{SoftConfig, SoftDevice};
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn uring() -> Options {
    Options {
        backend: Backend::Uring,
        readers: Options::default().readers,
        ..options()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_shape_arrives_with_any_ring(
        lens in prop::collection::vec(1u64..600_000, 1..4),
        kinds in prop::collection::vec(0u8..5, 1..9),
        slots in 1usize..9,
        part_len in prop::sample::select(vec![4096, 32 << 10, 1 << 20]),
    ) {
        let fixture = fixture(&lens, &kinds);
        let device = soft(&[]);
        let mut ring = Ring::new(&device, slots, CHUNK as usize).unwrap();
        let options = Options { part_len, ..uring() };
        let loaded =
            load(&fixture.snapshot, &device, &mut ring, &Cancel::default(), options).unwrap();
        for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
            prop_assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
        }
        prop_assert_eq!(ring.usable(), slots);
    }
}

#[test]
fn it_needs_fewer_system_calls_than_chunks() {
    let kinds: Vec<u8> = (1..=100).collect();
    let fixture = fixture(&[100 * u64::from(CHUNK)], &kinds);
    let device = soft(&[]);
    let mut ring = Ring::new(&device, 8, CHUNK as usize).unwrap();
    let cancel = Cancel::default();
    let loaded = load(&fixture.snapshot, &device, &mut ring, &cancel, uring()).unwrap();
    let report = loaded.report;
    assert_eq!(report.reads, 100);
    // A kernel without io_uring is served by the threads, one call for each read.
    match report.backend {
        Backend::Uring => assert!(report.read_calls < 100, "{report:?}"),
        Backend::Pread => assert!(report.read_calls >= 100, "{report:?}"),
    }
}

#[test]
fn all_bad_chunks_are_reported_and_the_memory_is_gone() {
    let fixture = usual();
    let path = fixture.directory.path().join("store/snap-a/data-000.seg");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let records = fixture.snapshot.records();
    let stored: Vec<_> = records.iter().filter(|record| record.crc != 0).collect();
    for record in [stored[0], stored[stored.len() - 1]] {
        file.write_at(&[0xff, 0], record.seg_off + 17).unwrap();
    }
    // The last chunk of all is not even there any more: a short read, then the end of the file.
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    let device = soft(&[]);
    let mut ring = ring(&device);
    let cancel = Cancel::default();
    let result = load(&fixture.snapshot, &device, &mut ring, &cancel, uring());
    let error = result.err().expect("chunks are bad");
    let Error::BadChunks(bad) = &error else {
        panic!("{error}")
    };
    assert!(bad.len() >= 2, "{error}");
    assert_eq!((device.used(), ring.usable()), (0, 4));
}

#[test]
fn a_hung_device_is_given_up_and_a_failing_one_reported() {
    let fixture = usual();
    let cancel = Cancel::default();
    let options = Options {
        copy_timeout: Duration::from_millis(50),
        ..uring()
    };
    for (fault, expected) in [("hang:2", "no copy finished"), ("short-copy:3", "of 16384")] {
        let device = soft(&[fault]);
        let mut ring = ring(&device);
        let result = load(&fixture.snapshot, &device, &mut ring, &cancel, options);
        let error = result.err().expect("the device fails");
        assert!(error.to_string().contains(expected), "{fault}: {error}");
        assert_eq!(device.used(), 0, "{fault}");
        ring.refill(&device).unwrap();
        load(&fixture.snapshot, &device, &mut ring, &cancel, options).unwrap();
    }
}

#[test]
fn a_cancelled_restore_ends_and_keeps_nothing() {
    let fixture = usual();
    let slow = SoftConfig {
        capacity: 32 * GRANULARITY,
        bytes_per_second: Some(400_000),
        ..SoftConfig::default()
    };
    let device = SoftDevice::with_config(slow).unwrap();
    let (mut ring, cancel) = (ring(&device), Cancel::default());
    let result = std::thread::scope(|scope| {
        let (snapshot, ring, device) = (&fixture.snapshot, &mut ring, &device);
        let job = scope.spawn({
            let cancel = cancel.clone();
            move || load(snapshot, device, ring, &cancel, uring()).map(|_| ())
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
fn storage_without_descriptors_is_read_by_threads() {
    let storage = MemStorage::new();
    let (store, _) = Store::open(Arc::new(storage), Path::new(sample::ROOT)).unwrap();
    let regions = vec![gpu_region(1, 300_000)];
    let contents = sample::contents(&regions, &[1, 2, 0, 3]);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let device = soft(&[]);
    let snapshot = store.snapshot("a").unwrap();
    let cancel = Cancel::default();
    let loaded = load(&snapshot, &device, &mut ring(&device), &cancel, uring()).unwrap();
    assert_eq!(loaded.report.backend, Backend::Pread);
    let va = loaded.ranges[0].1.va();
    assert!(device_bytes(&device, va, 300_000) == contents[0]);
}
