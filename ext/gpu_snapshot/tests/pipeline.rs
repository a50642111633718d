//! From disk to device and back through the engine.
//! It must never leave memory, slots or files behind.

mod common;

use common::rig::{CHUNK, device_bytes, fixture, options, ring, soft, usual};
use common::sample;
use gpu_snapshot::image::WriterLimits;
use gpu_snapshot::pipeline::{Cancel, Options, Ring, check_device, load, save};
use gpu_snapshot::storage::OsStorage;
use proptest::prelude::*;

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
        part_len in prop::sample::select(vec![4096, 16 << 10, 64 << 10, 1 << 20, 12_345]),
    ) {
        let fixture = fixture(&lens, &kinds);
        let device = soft(&[]);
        let mut ring = Ring::new(&device, slots, CHUNK as usize).unwrap();
        let options = Options { readers, part_len, ..options() };
        let loaded =
            load(&fixture.snapshot, &device, &mut ring, &Cancel::default(), options).unwrap();
        for ((_, range), expected) in loaded.ranges.iter().zip(&fixture.contents) {
            prop_assert!(device_bytes(&device, range.va(), expected.len()) == *expected);
        }
        prop_assert_eq!(ring.usable(), slots);
    }
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
