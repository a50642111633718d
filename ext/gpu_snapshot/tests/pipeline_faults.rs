//! Every failure on the way from disk to device: what is reported, and that nothing is kept.
//! It must never accept a restore that went wrong silently.

mod common;

use common::rig::{CHUNK, device_bytes, failure, gpu_region, options, ring, soft, usual};
use common::{Faults, MemStorage, sample};
use gpu_snapshot::device::{GRANULARITY, Va};
use gpu_snapshot::image::Store;
use gpu_snapshot::pipeline::{
    Cancel, DeviceRange, Options, Placement, Ring, check_device, load, restore,
};
use gpu_snapshot::soft::{SoftConfig, SoftDevice};
use gpu_snapshot::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
fn bad_sectors_are_bad_chunks_and_short_reads_are_none() {
    let storage = MemStorage::new();
    let (store, _) = Store::open(Arc::new(storage.clone()), Path::new(sample::ROOT)).unwrap();
    let regions = vec![gpu_region(1, 20 * u64::from(CHUNK))];
    let kinds: Vec<u8> = (1..=20).collect();
    let contents = sample::contents(&regions, &kinds);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    let (device, cancel) = (soft(&[]), Cancel::default());
    let mut ring = ring(&device);
    storage.set_faults(Faults {
        bad_sector: Some(u64::from(CHUNK) - 1),
        ..Faults::default()
    });
    let result = load(&snapshot, &device, &mut ring, &cancel, options());
    let error = result.err().expect("a sector is bad");
    let Error::BadChunks(bad) = error else {
        panic!("{error}");
    };
    // Each chunk has a segment of its own here, so that each of them has that sector.
    assert_eq!((bad.len(), bad[7].index), (20, 7));
    assert!(bad[0].why.contains("os error 5"), "{}", bad[0].why);
    assert_eq!((device.used(), ring.usable()), (0, 4));
    storage.set_faults(Faults {
        stutter: true,
        ..Faults::default()
    });
    let loaded = load(&snapshot, &device, &mut ring, &cancel, options()).unwrap();
    assert!(loaded.report.read_calls > loaded.report.reads);
    let va = loaded.ranges[0].1.va();
    assert!(device_bytes(&device, va, contents[0].len()) == contents[0]);
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
        matches!(&error, Error::Device { why, .. } if why.contains("of 16384")),
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
