//! Snapshots that come from elsewhere, byte by byte: what arrives whole is published, no other.
//! It must never leave half of one behind.

mod common;

use common::{Faults, MemStorage, sample};
use gpu_snapshot::image::{COMMIT, Identity, MANIFEST, Snapshot, Store, TABLE, fsck};
use gpu_snapshot::storage::Storage;
use gpu_snapshot::{Error, Result};
use std::path::{Path, PathBuf};

/// The files of a snapshot, by name.
type Files = Vec<(String, Vec<u8>)>;

const TARGET: &str = "/target";

fn origin() -> (Files, Vec<Vec<u8>>) {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let regions = vec![
        sample::region(1, 20_000, 8192),
        sample::region(2, 9_000, 4096),
    ];
    let contents = sample::contents(&regions, &[1, 0, 2, 1]);
    let path = sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let mut names: Vec<String> = Vec::new();
    for entry in storage.list(&path).unwrap() {
        if entry.is_dir {
            let inner = storage.list(&path.join(&entry.name)).unwrap();
            names.extend(
                inner
                    .iter()
                    .map(|file| format!("{}/{}", entry.name, file.name)),
            );
        } else {
            names.push(entry.name);
        }
    }
    let read = |name: String| {
        let bytes = storage.read_file(&path.join(&name));
        (name, bytes)
    };
    (names.into_iter().map(read).collect(), contents)
}

fn target() -> (MemStorage, Store) {
    let storage = MemStorage::new();
    let root = Path::new(TARGET);
    let (store, _) = Store::open(std::sync::Arc::new(storage.clone()), root).unwrap();
    (storage, store)
}

fn bytes<'a>(files: &'a Files, name: &str) -> &'a [u8] {
    let found = files.iter().find(|(known, _)| known == name);
    found.map(|(_, bytes)| &bytes[..]).unwrap_or_default()
}

/// Brings all files in, in pieces of `step` bytes.
fn bring(store: &Store, files: &Files, step: usize, host: Option<&Identity>) -> Result<PathBuf> {
    let [commit, manifest, table] = [COMMIT, MANIFEST, TABLE].map(|name| bytes(files, name));
    let mut import = store.import(commit, manifest, table, host)?;
    let names: Vec<String> = import.files().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        for piece in bytes(files, &name).chunks(step) {
            import.feed(&name, piece)?;
        }
    }
    import.publish()
}

fn left(storage: &MemStorage) -> usize {
    storage.list(Path::new(TARGET)).unwrap().len()
}

#[test]
fn a_snapshot_arrives_in_pieces_of_any_size() {
    let (files, contents) = origin();
    for step in [1000, 4096, 1 << 20] {
        let (storage, store) = target();
        let path = bring(&store, &files, step, None).unwrap();
        let snapshot = Snapshot::open(&storage, &path).unwrap();
        assert!(sample::load(&storage, &snapshot).unwrap() == contents);
        assert_eq!(store.list().unwrap(), ["a"]);
        let again = bring(&store, &files, step, None).unwrap_err();
        assert!(again.to_string().contains("exists"), "{again}");
    }
}

#[test]
fn every_flipped_byte_on_the_way_is_refused() {
    let (files, _) = origin();
    let (storage, store) = target();
    for place in 0..files.len() {
        for at in 0..files[place].1.len() {
            let mut damaged = files.clone();
            damaged[place].1[at] ^= 0x10;
            let error = bring(&store, &damaged, 1 << 20, None).unwrap_err();
            let name = &files[place].0;
            let known = matches!(error, Error::Corrupt { .. } | Error::Unsupported(_));
            assert!(known, "{name} at {at}: {error}");
        }
    }
    assert_eq!(left(&storage), 0);
}

#[test]
fn what_is_cut_too_long_or_missing_is_refused() {
    let (files, _) = origin();
    let (storage, store) = target();
    for place in 0..files.len() {
        let len = files[place].1.len();
        for cut in (0..len).step_by(97) {
            let mut torn = files.clone();
            torn[place].1.truncate(cut);
            assert!(
                bring(&store, &torn, 4096, None).is_err(),
                "{} cut",
                files[place].0
            );
        }
        let mut longer = files.clone();
        longer[place].1.push(0);
        assert!(
            bring(&store, &longer, 1 << 20, None).is_err(),
            "{} longer",
            files[place].0
        );
    }
    assert_eq!(left(&storage), 0);
}

#[test]
fn one_of_another_machine_is_refused_before_anything_is_written() {
    let (files, _) = origin();
    let (storage, store) = target();
    let before = storage.calls();
    let host = Identity {
        tenant: "other".into(),
        ..Identity::default()
    };
    let error = bring(&store, &files, 4096, Some(&host)).unwrap_err();
    assert!(matches!(error, Error::Incompatible(_)), "{error}");
    assert_eq!((storage.calls(), left(&storage)), (before, 0));
}

#[test]
fn an_import_killed_before_any_call_leaves_all_or_nothing() {
    let (files, contents) = origin();
    let (storage, store) = target();
    storage.set_faults(Faults::default());
    bring(&store, &files, 4096, None).unwrap();
    for call in 0..storage.calls() {
        let (storage, store) = target();
        storage.set_faults(Faults {
            kill_at: Some(call),
            ..Faults::default()
        });
        let _ = bring(&store, &files, 4096, None);
        drop(store);
        let after = storage.reborn();
        let root = Path::new(TARGET);
        let (store, _) = Store::open(std::sync::Arc::new(after.clone()), root).unwrap();
        for id in store.list().unwrap() {
            let snapshot = store.snapshot(&id).unwrap();
            assert!(sample::load(&after, &snapshot).unwrap() == contents);
        }
        assert!(left(&after) <= 1, "killed at {call}");
    }
}

#[test]
fn fsck_names_what_is_wrong_and_changes_nothing() {
    let (files, _) = origin();
    let (storage, store) = target();
    bring(&store, &files, 4096, None).unwrap();
    let root = Path::new(TARGET);
    assert!(fsck(&storage, root).unwrap()[0].1.is_none());
    let path = root.join("snap-a/data-000.seg");
    let mut segment = storage.read_file(&path);
    segment[5] ^= 1;
    storage.write_file(&path, &segment);
    let calls = storage.calls();
    let found = fsck(&storage, root).unwrap();
    let reason = found[0].1.as_ref().expect("a chunk is bad");
    assert!(
        matches!(reason, Error::BadChunks(bad) if !bad.is_empty()),
        "{reason}"
    );
    assert_eq!((found.len(), storage.calls()), (1, calls));
}
