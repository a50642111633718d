//! Small snapshots for tests: regions with zero, repeated and distinct chunks.
//! It must never depend on the machine: the same bytes come out everywhere.

use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::image::{Draft, Identity, Region, RegionClass, Snapshot, Store, WriterLimits};
use gpu_snapshot::storage::Storage;
use gpu_snapshot::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const ROOT: &str = "/store";

/// A region of `chunk_len` chunks, small enough for tests that try every byte.
pub fn region(id: u32, len: u64, chunk_len: u32) -> Region {
    let name = format!("region-{id}");
    Region {
        chunk_len,
        align: 4096,
        ..Region::new(id, name, RegionClass::Pageable, len)
    }
}

/// Bytes of a chunk of this kind: 0 is zero, others repeat for equal kinds.
pub fn fill(bytes: &mut [u8], kind: u8) {
    let mut word = u64::from(kind).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in bytes {
        *byte = (word >> 56) as u8;
        word = word
            .wrapping_mul(6364136223846793005)
            .wrapping_add(u64::from(kind));
    }
}

/// The contents of all regions; `kinds` are used in turn, chunk by chunk.
pub fn contents(regions: &[Region], kinds: &[u8]) -> Vec<Vec<u8>> {
    let mut kinds = kinds.iter().copied().cycle();
    let content = |region: &Region| {
        let mut bytes = vec![0; region.len as usize];
        bytes
            .chunks_mut(region.chunk_len as usize)
            .for_each(|chunk| fill(chunk, kinds.next().unwrap()));
        bytes
    };
    regions.iter().map(content).collect()
}

pub fn draft(id: &str, regions: Vec<Region>) -> Draft {
    let identity = Identity {
        tenant: "t".into(),
        function: "f".into(),
        ..Identity::default()
    };
    Draft {
        id: id.into(),
        created_unix_ms: 1,
        identity,
        regions,
        ..Draft::default()
    }
}

/// Saves `contents` as snapshot `id` with one further file.
pub fn save(store: &Store, draft: Draft, contents: &[Vec<u8>]) -> Result<PathBuf> {
    let regions = draft.regions.clone();
    let limits = WriterLimits {
        segment_len_max: 16384,
    };
    let mut writer = store.writer(draft, limits)?;
    for (region, bytes) in regions.iter().zip(contents) {
        let mut slot = HostBuffer::new(region.chunk_len as usize)?;
        let step = region.chunk_len as usize;
        for (index, chunk) in bytes.chunks(step).enumerate() {
            slot.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            writer.append(region.id, (index * step) as u64, &mut slot)?;
        }
    }
    writer.add_file("criu/core-1.img", &mut &b"process image"[..])?;
    writer.publish()
}

pub fn open(storage: &(impl Storage + Clone + 'static)) -> Result<Store> {
    Store::open(Arc::new(storage.clone()), Path::new(ROOT)).map(|(store, _)| store)
}

/// Reads everything back through the checked path.
pub fn load(storage: &dyn Storage, snapshot: &Snapshot) -> Result<Vec<Vec<u8>>> {
    snapshot.verify(storage)?;
    let regions = &snapshot.manifest().regions;
    let mut out: Vec<Vec<u8>> = regions
        .iter()
        .map(|one| vec![0; one.len as usize])
        .collect();
    let mut slot = HostBuffer::new(snapshot.slot_len())?;
    for (index, record) in snapshot.records().iter().enumerate() {
        snapshot
            .read_chunk(index, slot.bytes_mut())
            .map_err(|why| Error::BadChunks(vec![snapshot.bad_chunk(index, why)]))?;
        let at = regions
            .iter()
            .position(|region| region.id == record.region_id)
            .unwrap();
        let (start, len) = (record.region_off as usize, record.raw_len as usize);
        out[at][start..start + len].copy_from_slice(&slot.bytes()[..len]);
    }
    Ok(out)
}
