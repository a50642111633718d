//! Killed before any call, or out of power there, the store shows the old or the new, never half.
//! It must never pass over a call: every changing call of a save and of a removal is tried.

mod common;

use common::sample;
use common::{Faults, MemStorage};
use gpu_snapshot::image::Store;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// Two snapshots' regions and contents: the one that is there and the one being saved.
fn bodies() -> (Vec<gpu_snapshot::image::Region>, Vec<Vec<u8>>) {
    let regions = vec![
        sample::region(1, 20_000, 8192),
        sample::region(2, 5_000, 4096),
    ];
    let contents = sample::contents(&regions, &[1, 2, 1, 0, 3]);
    (regions, contents)
}

fn with_old() -> MemStorage {
    let storage = MemStorage::new();
    let store = sample::open(&storage).unwrap();
    let (regions, contents) = bodies();
    sample::save(&store, sample::draft("old", regions), &contents).unwrap();
    // The store's own directory is older than any crash.
    gpu_snapshot::storage::Storage::sync_dir(&storage, std::path::Path::new("/")).unwrap();
    storage
}

/// After a restart: everything listed is whole, nothing else lies around; returns the ids.
fn settled(storage: &MemStorage, context: &str) -> (Store, Vec<String>) {
    let store = sample::open(storage).unwrap_or_else(|error| panic!("{context}: {error}"));
    let ids = store.list().unwrap();
    let (_, contents) = bodies();
    for id in &ids {
        let snapshot = store
            .snapshot(id)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(
            sample::load(storage, &snapshot).unwrap() == contents,
            "{context}: {id}"
        );
    }
    let root = std::path::Path::new(sample::ROOT);
    let names = gpu_snapshot::storage::Storage::list(storage, root).unwrap();
    assert_eq!(names.len(), ids.len(), "{context}: {names:?}");
    (store, ids)
}

#[test]
fn a_save_killed_before_any_call_leaves_old_or_new() {
    let (regions, contents) = bodies();
    let mut seen_new = 0;
    for call in 0.. {
        let storage = with_old();
        let store = sample::open(&storage).unwrap();
        storage.set_faults(Faults {
            kill_at: Some(call),
            ..Faults::default()
        });
        let result = sample::save(&store, sample::draft("new", regions.clone()), &contents);
        if !storage.dead() {
            assert!(result.is_ok());
            assert!(call > 20, "only {call} calls were tried");
            break;
        }
        let mut after = vec![(storage.reborn(), format!("killed before call {call}"))];
        for seed in 0..24u64 {
            let context = format!("power cut before call {call}, seed {seed}");
            after.push((storage.after_power_cut(seed), context));
        }
        for (storage, context) in after {
            let (store, ids) = settled(&storage, &context);
            assert!(ids.contains(&"old".into()), "{context}");
            if ids.len() == 2 {
                seen_new += 1;
                continue;
            }
            sample::save(&store, sample::draft("new", regions.clone()), &contents)
                .unwrap_or_else(|error| panic!("{context}, then again: {error}"));
        }
    }
    assert!(seen_new > 0, "no crash came between the rename and the end");
}

#[test]
fn a_published_snapshot_survives_a_power_cut() {
    for seed in 0..64 {
        let (_, ids) = settled(&with_old().after_power_cut(seed), &format!("seed {seed}"));
        assert_eq!(ids, ["old"]);
    }
}

#[test]
fn a_removal_killed_before_any_call_leaves_all_or_nothing() {
    for call in 0.. {
        let storage = with_old();
        let store = sample::open(&storage).unwrap();
        storage.set_faults(Faults {
            kill_at: Some(call),
            ..Faults::default()
        });
        let result = store.remove("old");
        if !storage.dead() {
            result.unwrap();
            break;
        }
        settled(&storage.reborn(), &format!("killed before call {call}"));
        for seed in 0..24 {
            let context = format!("power cut before call {call}, seed {seed}");
            settled(&storage.after_power_cut(seed), &context);
        }
    }
}

#[test]
fn an_io_error_anywhere_is_reported_and_cleaned_up() {
    let (regions, contents) = bodies();
    for call in 0.. {
        let storage = with_old();
        let store = sample::open(&storage).unwrap();
        storage.set_faults(Faults {
            fail_at: Some((call, EIO)),
            ..Faults::default()
        });
        let result = sample::save(&store, sample::draft("new", regions.clone()), &contents);
        let tried = storage.calls() > call;
        storage.set_faults(Faults::default());
        if !tried {
            result.unwrap();
            break;
        }
        assert!(result.is_err(), "call {call} failed unnoticed");
        let ids = store.list().unwrap();
        // Only the last fsync comes after the rename: the snapshot is whole, its name not durable.
        assert!(
            ids == ["old"] || ids == ["new", "old"],
            "call {call}: {ids:?}"
        );
        settled(&storage, &format!("error at call {call}"));
    }
}

#[test]
fn a_full_disk_is_found_before_the_first_chunk() {
    let (regions, contents) = bodies();
    let storage = with_old();
    let store = sample::open(&storage).unwrap();
    storage.set_faults(Faults {
        allocate_max: Some(4096),
        ..Faults::default()
    });
    let refused = store.writer(sample::draft("new", regions.clone()), Default::default());
    let error = refused.err().expect("the disk is full");
    assert!(error.to_string().contains("allocate"), "{error}");
    settled(&storage, "disk full at the start");
    storage.set_faults(Faults {
        fail_at: Some((9, ENOSPC)),
        ..Faults::default()
    });
    assert!(sample::save(&store, sample::draft("new", regions), &contents).is_err());
    settled(&storage, "disk full on the way");
}
