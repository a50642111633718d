//! What was saved comes back, whatever the regions look like and however the disk stutters.
//! It must never compare anything but the bytes a worker would see.

mod common;

use common::sample::{self, ROOT};
use common::{Faults, MemStorage};
use gpu_snapshot::Error;
use gpu_snapshot::image::{Codec, Identity, Region, RegionClass, Store};
use gpu_snapshot::storage::OsStorage;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

fn regions() -> impl Strategy<Value = Vec<Region>> {
    let one = (
        1u64..40_000,
        prop::sample::select(vec![4096u32, 8192, 12288]),
    );
    prop::collection::vec(one, 1..4).prop_map(|all| {
        (0u32..)
            .zip(all)
            .map(|(id, (len, chunk))| sample::region(id * 7, len, chunk))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_regions_come_back(
        regions in regions(),
        kinds in prop::collection::vec(0u8..4, 1..9),
        stutter: bool,
    ) {
        let storage = MemStorage::new();
        storage.set_faults(Faults { stutter, ..Faults::default() });
        let store = sample::open(&storage).unwrap();
        let contents = sample::contents(&regions, &kinds);
        sample::save(&store, sample::draft("a", regions), &contents).unwrap();
        let snapshot = store.snapshot("a").unwrap();
        prop_assert_eq!(sample::load(&storage, &snapshot).unwrap(), contents);
    }
}

#[test]
fn zero_and_equal_chunks_take_no_space() {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let regions = vec![
        sample::region(1, 5 * 4096, 4096),
        sample::region(2, 4096, 4096),
    ];
    let contents = sample::contents(&regions, &[1, 0, 2, 1, 0, 2]);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    let codecs: Vec<Codec> = snapshot
        .records()
        .iter()
        .map(|record| record.codec)
        .collect();
    use Codec::{Raw, Ref, Zero};
    assert_eq!(codecs, [Raw, Zero, Raw, Ref, Zero, Ref]);
    assert_eq!(
        snapshot
            .manifest()
            .segments
            .iter()
            .map(|one| one.len)
            .sum::<u64>(),
        8192
    );
    assert_eq!(sample::load(&storage, &snapshot).unwrap(), contents);
}

#[test]
fn a_real_directory_holds_private_files_and_one_owner() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (store, scan) = Store::open(Arc::new(OsStorage), &root).unwrap();
    assert_eq!(scan, Default::default());
    let second = Store::open(Arc::new(OsStorage), &root).err().unwrap();
    assert!(matches!(second, Error::Io { source, .. } if
        source.kind() == std::io::ErrorKind::WouldBlock));
    let mut regions = vec![Region::new(1, "weights", RegionClass::Gpu, (2 << 20) + 5)];
    regions.push(sample::region(2, 9_000, 8192));
    let contents = sample::contents(&regions, &[3, 4, 5]);
    let path = sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("criu"))), (0o700, 0o700));
    for file in [
        "COMMIT",
        "manifest.json",
        "chunks.tbl",
        "data-000.seg",
        "criu/core-1.img",
    ] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
    let snapshot = store.snapshot("a").unwrap();
    assert_eq!(sample::load(&OsStorage, &snapshot).unwrap(), contents);
    // An open snapshot outlives its removal.
    store.remove("a").unwrap();
    assert_eq!(store.list().unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    let mut slot = gpu_snapshot::buffer::HostBuffer::new(snapshot.slot_len()).unwrap();
    snapshot.read_chunk(0, slot.bytes_mut()).unwrap();
}

#[test]
fn unknown_keys_survive_and_other_machines_are_told_apart() {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let regions = vec![sample::region(1, 4096, 4096)];
    let contents = sample::contents(&regions, &[1]);
    let mut draft = sample::draft("a", regions);
    draft.extra.insert("stdio".into(), "null".into());
    draft.identity.driver = "580.1".into();
    draft.identity.extra.insert("cgroup".into(), 2.into());
    sample::save(&store, draft, &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    let manifest = snapshot.manifest();
    assert_eq!(manifest.extra["stdio"], "null");
    assert_eq!(manifest.identity.extra["cgroup"], 2);
    assert!(manifest.identity.differences(&manifest.identity).is_empty());
    let host = Identity {
        driver: "595.2".into(),
        ..manifest.identity.clone()
    };
    let differences = manifest.identity.differences(&host);
    assert_eq!(
        differences,
        ["driver is \"595.2\", the snapshot needs \"580.1\""]
    );
}

#[test]
fn an_unfinished_or_double_snapshot_is_not_published() {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let draft = || sample::draft("a", vec![sample::region(1, 8192, 4096)]);
    let refused = store
        .writer(draft(), Default::default())
        .unwrap()
        .publish()
        .unwrap_err();
    assert!(matches!(refused, Error::Invalid(why) if why.contains("0 records")));
    assert!(store.list().unwrap().is_empty());
    let contents = vec![vec![1; 8192]];
    sample::save(&store, draft(), &contents).unwrap();
    assert!(sample::save(&store, draft(), &contents).is_err());
    for id in ["", "../a", ".hidden", "a/b"] {
        let draft = sample::draft(id, vec![sample::region(1, 8192, 4096)]);
        assert!(store.writer(draft, Default::default()).is_err(), "{id}");
    }
    assert_eq!(store.list().unwrap(), ["a"]);
    assert!(
        storage
            .read_file(&Path::new(ROOT).join("snap-a/COMMIT"))
            .starts_with(b"GSNAPC01")
    );
}
