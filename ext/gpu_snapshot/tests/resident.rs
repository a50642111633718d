//! The memory tier: disk to host, host to device and back, within a fixed pool.
//! It must never lose a slot of the pool, whatever fails.

mod common;

use common::rig::{CHUNK, device_bytes, options, ring, soft, usual};
use common::sample;
use gpu_snapshot::Error;
use gpu_snapshot::image::WriterLimits;
use gpu_snapshot::pipeline::{Cancel, HostPool, Options, Resident, load, load_resident};
use gpu_snapshot::storage::OsStorage;
use std::time::Duration;

const SLOTS: usize = 24;

#[test]
fn a_resident_copy_restores_again_and_again_without_the_disk() {
    let fixture = usual();
    let device = soft(&[]);
    let pool = HostPool::new(&device, SLOTS, CHUNK as usize).unwrap();
    let cancel = Cancel::default();
    let mut resident = Resident::read(&fixture.snapshot, &pool, &cancel).unwrap();
    fixture.store.remove("a").unwrap();
    let held = pool.slots() - pool.free_slots();
    assert_eq!(resident.host_bytes(), held as u64 * u64::from(CHUNK));
    assert!(held < 16, "zero and equal chunks took slots: {held}");
    for _ in 0..3 {
        let loaded = load_resident(&mut resident, &device, &cancel, options()).unwrap();
        for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
            assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
        }
        let report = loaded.report;
        assert_eq!((report.chunks, report.reads), (21, 0));
        assert_eq!(report.bytes_copied + report.bytes_zeroed, 1_300_000);
    }
    drop(resident);
    assert_eq!((pool.free_slots(), device.used()), (SLOTS, 0));
}

#[test]
fn a_captured_worker_is_written_later() {
    let fixture = usual();
    let device = soft(&[]);
    let pool = HostPool::new(&device, SLOTS, CHUNK as usize).unwrap();
    let (cancel, mut ring) = (Cancel::default(), ring(&device));
    let loaded = load(&fixture.snapshot, &device, &mut ring, &cancel, options()).unwrap();
    let regions = fixture.snapshot.manifest().regions.clone();
    let placements = loaded.placements();
    let mut resident =
        Resident::capture(&device, regions.clone(), &placements, &pool, options()).unwrap();
    drop(loaded);
    assert_eq!(
        device.used(),
        0,
        "the worker's memory is free before anything is written"
    );
    assert!(
        pool.free_slots() > SLOTS - 21,
        "zero chunks kept their slots"
    );
    let draft = sample::draft("b", regions);
    let mut writer = fixture
        .store
        .writer(draft, WriterLimits::default())
        .unwrap();
    resident.write(&mut writer, &cancel).unwrap();
    writer.publish().unwrap();
    let again = fixture.store.snapshot("b").unwrap();
    assert!(sample::load(&OsStorage, &again).unwrap() == fixture.contents);
}

#[test]
fn a_pool_that_is_too_small_refuses_and_keeps_its_slots() {
    let fixture = usual();
    let device = soft(&[]);
    let pool = HostPool::new(&device, 3, CHUNK as usize).unwrap();
    let refused = Resident::read(&fixture.snapshot, &pool, &Cancel::default())
        .err()
        .unwrap();
    assert!(
        matches!(refused, Error::OutOfHostMemory { .. }),
        "{refused}"
    );
    assert_eq!(pool.free_slots(), 3);
    let narrow = HostPool::new(&device, 64, 4096).unwrap();
    let refused = Resident::read(&fixture.snapshot, &narrow, &Cancel::default())
        .err()
        .unwrap();
    assert!(refused.to_string().contains("slots of 4096"), "{refused}");
    let cancel = Cancel::default();
    cancel.cancel();
    let pool = HostPool::new(&device, SLOTS, CHUNK as usize).unwrap();
    let refused = Resident::read(&fixture.snapshot, &pool, &cancel)
        .err()
        .unwrap();
    assert!(matches!(refused, Error::Cancelled), "{refused}");
    assert_eq!(pool.free_slots(), SLOTS);
}

#[test]
fn damage_on_the_disk_never_becomes_resident() {
    let fixture = usual();
    let device = soft(&[]);
    let pool = HostPool::new(&device, SLOTS, CHUNK as usize).unwrap();
    let path = fixture.directory.path().join("store/snap-a/data-000.seg");
    std::fs::write(&path, vec![0; CHUNK as usize]).unwrap();
    let refused = Resident::read(&fixture.snapshot, &pool, &Cancel::default())
        .err()
        .unwrap();
    assert!(matches!(refused, Error::BadChunks(_)), "{refused}");
    assert_eq!(pool.free_slots(), SLOTS);
}

#[test]
fn a_failed_copy_keeps_the_resident_copy_whole_and_a_hang_does_not() {
    let fixture = usual();
    let device = soft(&["short-copy:3", "hang:40"]);
    let pool = HostPool::new(&device, SLOTS, CHUNK as usize).unwrap();
    let cancel = Cancel::default();
    let mut resident = Resident::read(&fixture.snapshot, &pool, &cancel).unwrap();
    let before = resident.host_bytes();
    let failed = load_resident(&mut resident, &device, &cancel, options())
        .err()
        .unwrap();
    assert!(matches!(failed, Error::Device { .. }), "{failed}");
    assert_eq!((device.used(), resident.host_bytes()), (0, before));
    load_resident(&mut resident, &device, &cancel, options()).unwrap();
    let options = Options {
        copy_timeout: Duration::from_millis(50),
        ..options()
    };
    let mut errors =
        (0..3).filter_map(|_| load_resident(&mut resident, &device, &cancel, options).err());
    let hung = errors.next().expect("copy 40 hangs");
    assert!(matches!(hung, Error::Timeout(_)), "{hung}");
    let lost = load_resident(&mut resident, &device, &cancel, options)
        .err()
        .unwrap();
    assert!(lost.to_string().contains("was lost"), "{lost}");
    assert_eq!(device.used(), 0);
}
