//! A snapshot on a real disk, a simulated GPU and a ring: what the engine's tests need.
//! It must never be larger than a few hundred KiB.

use super::sample;
use gpu_snapshot::Error;
use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::device::{Device, GRANULARITY, Va, Work, WorkKind};
use gpu_snapshot::image::{Region, RegionClass, Snapshot, Store};
use gpu_snapshot::pipeline::{Backend, Cancel, Options, Ring, load};
use gpu_snapshot::soft::{Fault, SoftConfig, SoftDevice};
use gpu_snapshot::storage::OsStorage;
use std::sync::Arc;
use std::time::Duration;

pub const CHUNK: u32 = 64 << 10;

/// A snapshot on disk: two GPU regions with zero, equal and distinct chunks, and its contents.
pub struct Fixture {
    pub directory: tempfile::TempDir,
    pub store: Store,
    pub snapshot: Snapshot,
    pub contents: Vec<Vec<u8>>,
}

pub fn gpu_region(id: u32, len: u64) -> Region {
    let region = Region::new(id, format!("region-{id}"), RegionClass::Gpu, len);
    Region {
        chunk_len: CHUNK,
        align: 4096,
        ..region
    }
}

pub fn fixture(lens: &[u64], kinds: &[u8]) -> Fixture {
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

pub fn usual() -> Fixture {
    fixture(&[1_000_000, 300_000], &[1, 0, 2, 1, 3, 0, 0, 4, 5, 6, 7, 8])
}

pub fn soft(faults: &[&str]) -> SoftDevice {
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

pub fn ring(device: &SoftDevice) -> Ring {
    Ring::new(device, 4, CHUNK as usize).unwrap()
}

/// Bytes of a read: a quarter of a chunk.
pub const PART: usize = CHUNK as usize / 4;

pub fn options() -> Options {
    Options {
        readers: 2,
        part_len: PART,
        backend: Backend::Pread,
        copy_timeout: Duration::from_secs(30),
    }
}

/// The bytes at a device address.
pub fn device_bytes(device: &SoftDevice, va: Va, len: usize) -> Vec<u8> {
    let queue = device.open_queue(1).unwrap();
    let room = len.next_multiple_of(4096);
    let buffer = Some(HostBuffer::new(room).unwrap());
    let (kind, len) = (WorkKind::ToHost, len as u64);
    let work = Work {
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
pub fn failure(fixture: &Fixture, device: &SoftDevice, ring: &mut Ring) -> Error {
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
