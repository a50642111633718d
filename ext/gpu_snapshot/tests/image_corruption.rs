//! A snapshot that differs in one byte from what was written is refused, wherever the byte is.
//! It must never sample: every position and every length of a small snapshot is tried.

mod common;

use common::MemStorage;
use common::sample::{self, ROOT};
use gpu_snapshot::image::{
    COMMIT_LEN, Commit, HEADER_LEN, Header, Manifest, RECORD_LEN, Record, Store, check_table,
};
use gpu_snapshot::{Error, Result};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(ROOT).join("snap-a")
}

/// A store with snapshot `a`: raw, zero and repeated chunks, two segments, one further file.
fn saved() -> (MemStorage, Store) {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let mut regions = vec![
        sample::region(1, 9_000, 4096),
        sample::region(2, 4096, 4096),
    ];
    regions[1].align = 8192;
    regions[1].chunk_len = 8192;
    let contents = sample::contents(&regions, &[1, 0, 1, 2]);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    (storage, store)
}

const FILES: [&str; 6] = [
    "COMMIT",
    "manifest.json",
    "chunks.tbl",
    "data-000.seg",
    "data-001.seg",
    "criu/core-1.img",
];

/// What a reader says of the snapshot; anything but a typed refusal is a failure of the test.
fn refusal(store: &Store, context: &str) -> Error {
    let error = store.fsck("a").expect_err(context);
    let refused = matches!(
        error,
        Error::Corrupt { .. } | Error::BadChunks(_) | Error::Unsupported(_)
    );
    assert!(refused, "{context}: {error}");
    error
}

#[test]
fn every_flipped_byte_is_refused() {
    let (storage, store) = saved();
    store.fsck("a").unwrap();
    let mut tried = 0;
    for file in FILES {
        let path = directory().join(file);
        let sound = storage.read_file(&path);
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            // A different single bit at each position, so that all eight are met.
            bytes[at] ^= 1 << (at % 8);
            storage.write_file(&path, &bytes);
            refusal(&store, &format!("{file} byte {at}"));
            tried += 1;
        }
        storage.write_file(&path, &sound);
    }
    assert!(tried > 20_000, "only {tried} positions");
    store.fsck("a").unwrap();
}

#[test]
fn every_other_length_is_refused() {
    let (storage, store) = saved();
    for file in FILES {
        let path = directory().join(file);
        let sound = storage.read_file(&path);
        for len in 0..sound.len() {
            storage.write_file(&path, &sound[..len]);
            refusal(&store, &format!("{file} cut to {len}"));
        }
        let longer = [&sound[..], &[0]].concat();
        storage.write_file(&path, &longer);
        refusal(&store, &format!("{file} with one more byte"));
        storage.write_file(&path, &sound);
    }
    store.fsck("a").unwrap();
}

#[test]
fn missing_and_unlisted_files_are_refused() {
    let (storage, store) = saved();
    storage.write_file(&directory().join("notes.txt"), b"hello");
    let error = refusal(&store, "a file nobody listed");
    assert!(error.to_string().contains("notes.txt"), "{error}");
    for file in FILES {
        let (storage, store) = saved();
        gpu_snapshot::storage::Storage::remove_file(&storage, &directory().join(file)).unwrap();
        refusal(&store, &format!("{file} is missing"));
    }
}

#[test]
fn another_snapshots_files_or_name_do_not_pass() {
    let (storage, store) = saved();
    let regions = vec![
        sample::region(1, 9_000, 4096),
        sample::region(2, 4096, 4096),
    ];
    let contents = sample::contents(&regions, &[3, 4, 5, 6]);
    sample::save(&store, sample::draft("b", regions), &contents).unwrap();
    let other = Path::new(ROOT).join("snap-b");
    for file in ["COMMIT", "manifest.json", "chunks.tbl", "data-000.seg"] {
        let path = directory().join(file);
        let sound = storage.read_file(&path);
        storage.write_file(&path, &storage.read_file(&other.join(file)));
        refusal(&store, &format!("{file} of another snapshot"));
        storage.write_file(&path, &sound);
    }
    for file in [
        "COMMIT",
        "manifest.json",
        "chunks.tbl",
        "data-000.seg",
        "criu/core-1.img",
    ] {
        storage.write_file(
            &directory().join(file),
            &storage.read_file(&other.join(file)),
        );
    }
    refusal(&store, "all files of another snapshot");
}

#[test]
fn a_corrupt_snapshot_is_set_aside_at_the_start() {
    let (storage, store) = saved();
    drop(store);
    storage.write_file(&directory().join("COMMIT"), &[0; COMMIT_LEN]);
    let open = || Store::open(std::sync::Arc::new(storage.clone()), Path::new(ROOT)).unwrap();
    let (store, scan) = open();
    assert_eq!((scan.sound.len(), scan.quarantined.len()), (0, 1));
    assert!(scan.quarantined[0].1.contains("magic"), "{scan:?}");
    assert!(store.list().unwrap().is_empty());
    assert_eq!(open().1, Default::default());
}

/// Rewrites the manifest and the table with all checksums right, so that only the rules can refuse.
fn forged(change: impl Fn(&mut Manifest, &mut Vec<Record>)) -> Error {
    let (storage, store) = saved();
    let snapshot = store.snapshot("a").unwrap();
    let (mut manifest, mut records) = (snapshot.manifest().clone(), snapshot.records().to_vec());
    change(&mut manifest, &mut records);
    let header = Header {
        minor: 0,
        records: records.len() as u64,
        incompat: 0,
        ro_compat: 0,
    };
    let mut table = header.encode().to_vec();
    records
        .iter()
        .for_each(|record| table.extend(record.encode()));
    manifest.table_blake3 = blake3::hash(&table).to_hex().to_string();
    let text = serde_json::to_vec(&manifest).unwrap();
    let commit = Commit {
        manifest_blake3: *blake3::hash(&text).as_bytes(),
        manifest_len: text.len() as u64,
    };
    storage.write_file(&directory().join("chunks.tbl"), &table);
    storage.write_file(&directory().join("manifest.json"), &text);
    storage.write_file(&directory().join("COMMIT"), &commit.encode());
    store.snapshot("a").err().expect("the rules let it through")
}

#[test]
fn sound_checksums_do_not_excuse_broken_rules() {
    type Change = fn(&mut Manifest, &mut Vec<Record>);
    // The table: 0 raw at 0, 1 zero, 2 raw (808 bytes) of region 1; 3 raw of region 2.
    let cases: [(&str, Change); 19] = [
        ("unaligned", |_, records| records[0].seg_off = 512),
        ("overlap", |_, records| records[2].seg_off = 0),
        ("a gap", |manifest, records| {
            records[2].seg_off = 8192;
            manifest.segments[0].len += 4096;
        }),
        ("past the end", |_, records| records[2].seg_off = 1 << 40),
        ("past the end", |_, records| {
            records[2].seg_off = u64::MAX - 4095
        }),
        ("no segment 9", |_, records| records[0].seg = 9),
        ("stored bytes, not", |_, records| {
            records[0].stored_len = 8192
        }),
        ("raw bytes", |_, records| records[0].raw_len = 4095),
        ("raw bytes", |_, records| records[2].raw_len = 4096),
        ("past region 1", |_, records| {
            records[2].region_off = 1 << 50
        }),
        ("no chunk's start", |_, records| records[0].region_off = 1),
        ("no region 5", |_, records| records[3].region_id = 5),
        ("second time", |_, records| records[1] = records[0].clone()),
        ("out of order", |_, records| records.swap(0, 1)),
        ("chunks, the regions have", |manifest, _| {
            manifest.chunks = 3
        }),
        ("chunks.tbl: length", |_, records| records.truncate(3)),
        ("a zero chunk with stored", |_, records| {
            records[1].stored_len = 4096
        }),
        ("its chunks end at", |manifest, _| {
            manifest.segments[0].len += 4096
        }),
        ("not allowed", |manifest, _| {
            manifest.files[0].path = "../../etc/passwd".into()
        }),
    ];
    for (expected, change) in cases {
        let error = forged(change).to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?}, got {error:?}"
        );
    }
}

#[test]
fn a_reference_must_match_a_stored_chunk_in_everything() {
    use gpu_snapshot::image::Codec;
    let refer = |records: &mut Vec<Record>, change: fn(&mut Record)| {
        let target = records[0].clone();
        let (region_id, region_off) = (records[1].region_id, records[1].region_off);
        records[1] = Record {
            region_id,
            region_off,
            codec: Codec::Ref,
            ..target
        };
        change(&mut records[1]);
    };
    let changes: [fn(&mut Record); 5] = [
        |record| record.crc ^= 1,
        |record| record.id[0] ^= 1,
        |record| record.seg_off = 1 << 30,
        |record| record.seg = 7,
        |record| record.stored_len = 1 << 30,
    ];
    for change in changes {
        let error = forged(|_, records| refer(records, change)).to_string();
        assert!(error.contains("refers to bytes"), "{error}");
    }
    let (_, store) = saved();
    let snapshot = store.snapshot("a").unwrap();
    let mut records = snapshot.records().to_vec();
    refer(&mut records, |_| ());
    check_table(snapshot.manifest(), &records).unwrap();
}

#[test]
fn newer_formats_are_refused_as_such() {
    let newer = |file: &str, at: usize, value: u8, crc_at: usize| -> Result<()> {
        let (storage, store) = saved();
        let path = directory().join(file);
        let mut bytes = storage.read_file(&path);
        bytes[at] = value;
        let crc = gpu_snapshot::checksum::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        storage.write_file(&path, &bytes);
        store.fsck("a")
    };
    let major = newer("COMMIT", 7, b'2', COMMIT_LEN - 4).unwrap_err();
    assert!(
        matches!(&major, Error::Unsupported(why) if why.contains("02")),
        "{major}"
    );
    let feature = newer("chunks.tbl", 24, 1, HEADER_LEN - 4).unwrap_err();
    assert!(
        matches!(&feature, Error::Unsupported(why) if why.contains("features")),
        "{feature}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 64..5000)) {
        let commit: [u8; COMMIT_LEN] = bytes[..COMMIT_LEN].try_into().unwrap();
        prop_assert!(Commit::decode(&commit).is_err());
        prop_assert!(Header::decode(&bytes).is_err());
        let record: [u8; RECORD_LEN] = bytes[..RECORD_LEN].try_into().unwrap();
        prop_assert!(Record::decode(&record, 0).is_err());
    }

    #[test]
    fn records_come_back_as_they_were(
        numbers in any::<(u64, u32, u16, u64, u32, u32, u32)>(), id: [u8; 16],
    ) {
        let (region_off, region_id, seg, seg_off, stored_len, raw_len, crc) = numbers;
        let codec = gpu_snapshot::image::Codec::Raw;
        let record = Record {
            region_off, region_id, codec, seg, seg_off, stored_len, raw_len, crc, id,
        };
        prop_assert_eq!(Record::decode(&record.encode(), 0).unwrap(), record);
    }
}
