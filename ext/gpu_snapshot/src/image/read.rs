//! Opening a published snapshot: everything but the chunks' bytes is checked before this returns.
//! It must never give out a chunk's bytes without having checked them.

use super::check::check_table;
use super::commit::{COMMIT_LEN, Commit};
use super::manifest::{MANIFEST_LEN_MAX, Manifest};
use super::record::{Codec, HEADER_LEN, Header, RECORD_LEN, Record};
use super::{COMMIT, MANIFEST, TABLE, segment_name};
use crate::buffer::{HostBuffer, is_zero};
use crate::error::BadChunk;
use crate::storage::{Open, Storage, StoredFile, read_exact};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// The longest table that is read, bytes: four million chunks.
const TABLE_LEN_MAX: u64 = 256 << 20;
/// Bytes read at once when a further file is checked.
const FILE_STEP: usize = 1 << 20;

/// What came of reading some bytes of a chunk: their checksum, and the system calls it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartRead {
    pub(crate) crc: u32,
    pub(crate) calls: u64,
}

/// A published snapshot, open for reading. Its files stay readable when it is deleted meanwhile.
pub struct Snapshot {
    path: PathBuf,
    manifest: Manifest,
    records: Vec<Record>,
    segments: Vec<Box<dyn StoredFile>>,
}

impl Snapshot {
    /// Opens and checks COMMIT, manifest, table, file names and file lengths, in this order.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Self> {
        let commit = read_whole(storage, path, COMMIT, COMMIT_LEN as u64)?;
        let commit: [u8; COMMIT_LEN] = commit
            .try_into()
            .map_err(|_| Error::corrupt(COMMIT, format!("not {COMMIT_LEN} bytes")))?;
        let commit = Commit::decode(&commit)?;
        let manifest = read_manifest(storage, path, &commit)?;
        let records = read_table(storage, path, &manifest)?;
        check_names(storage, path, &manifest)?;
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for (index, segment) in (0u16..).zip(&manifest.segments) {
            let name = segment_name(index);
            let file = open(storage, path, &name, Open::ReadDirect)?;
            check_len(&*file, &name, segment.len)?;
            segments.push(file);
        }
        for listed in &manifest.files {
            let file = open(storage, path, &listed.path, Open::Read)?;
            check_len(&*file, &listed.path, listed.len)?;
        }
        Ok(Self {
            path: path.to_owned(),
            manifest,
            records,
            segments,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its chunks, by region and offset.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether all segments are read past the page cache.
    pub fn direct(&self) -> bool {
        self.segments.iter().all(|file| file.direct())
    }

    /// Length of the longest stored chunk, bytes; at least one page.
    pub fn slot_len(&self) -> usize {
        let longest = self
            .records
            .iter()
            .map(|record| record.stored_len.max(record.raw_len))
            .max();
        (longest.unwrap_or(0).max(1) as usize).next_multiple_of(crate::buffer::PAGE)
    }

    /// Reads the chunk at `index` into `slot` and checks it; its raw bytes come first in the slot.
    /// Returns the system calls it took; the text says why the chunk is bad.
    pub fn read_chunk(&self, index: usize, slot: &mut [u8]) -> std::result::Result<u64, String> {
        if self.records[index].codec == Codec::Zero {
            slot[..self.records[index].raw_len as usize].fill(0);
            return Ok(0);
        }
        let stored = &mut slot[..self.records[index].stored_len as usize];
        let part = self.read_part(index, 0, stored, 0)?;
        self.check_chunk(index, part.crc)?;
        Ok(part.calls)
    }

    /// Fills `bytes` from `offset` of a stored chunk on; the first `done` of them are there.
    pub(crate) fn read_part(
        &self,
        index: usize,
        offset: u64,
        bytes: &mut [u8],
        done: usize,
    ) -> std::result::Result<PartRead, String> {
        let record = &self.records[index];
        let segment = &*self.segments[usize::from(record.seg)];
        let at = record.seg_off + offset + done as u64;
        let calls = read_exact(segment, &mut bytes[done..], at)
            .map_err(|error| format!("{}: {error}", segment_name(record.seg)))?;
        let crc = crate::checksum::crc32c(bytes);
        Ok(PartRead { crc, calls })
    }

    /// Whether a chunk whose stored bytes have this checksum is sound.
    pub(crate) fn check_chunk(&self, index: usize, crc: u32) -> std::result::Result<(), String> {
        let expected = self.records[index].crc;
        if crc == expected {
            return Ok(());
        }
        Err(format!("crc32c is {crc:#010x}, not {expected:#010x}"))
    }

    /// The descriptor of the segment that stores a chunk; `None` when its file has none.
    pub(crate) fn descriptor(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.segments[usize::from(self.records[index].seg)].descriptor()
    }

    /// Describes a bad chunk.
    pub fn bad_chunk(&self, index: usize, why: String) -> BadChunk {
        let Record {
            region_id,
            region_off,
            ..
        } = self.records[index];
        BadChunk {
            index,
            region_id,
            region_off,
            why,
        }
    }

    /// Reads and checks every byte, ids included; reports all bad chunks, not only the first.
    pub fn verify(&self, storage: &dyn Storage) -> Result<()> {
        let mut slot = HostBuffer::new(self.slot_len())?;
        let mut bad = Vec::new();
        for (index, record) in self.records.iter().enumerate() {
            let slot = slot.bytes_mut();
            let read = self.read_chunk(index, slot).and_then(|_| {
                let (raw, padding) = slot.split_at(record.raw_len as usize);
                let padded = record.stored_len.saturating_sub(record.raw_len) as usize;
                if !is_zero(&padding[..padded]) {
                    return Err("the padding is not zero".into());
                }
                let id = xxhash_rust::xxh3::xxh3_128(raw).to_be_bytes();
                if id == record.id {
                    Ok(())
                } else {
                    Err("the id does not match".into())
                }
            });
            if let Err(why) = read {
                bad.push(self.bad_chunk(index, why));
            }
        }
        if !bad.is_empty() {
            return Err(Error::BadChunks(bad));
        }
        self.verify_files(storage)
    }

    /// Reads and checks the further files.
    pub fn verify_files(&self, storage: &dyn Storage) -> Result<()> {
        let mut step = vec![0; FILE_STEP];
        for listed in &self.manifest.files {
            let file = open(storage, &self.path, &listed.path, Open::Read)?;
            check_len(&*file, &listed.path, listed.len)?;
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            let mut at = 0;
            while at < listed.len {
                let count = (listed.len - at).min(FILE_STEP as u64) as usize;
                read_exact(&*file, &mut step[..count], at)
                    .map_err(|error| Error::io(format!("read {}", listed.path), error))?;
                hash.update(&step[..count]);
                at += count as u64;
            }
            if format!("{:032x}", hash.digest128()) != listed.xxh3 {
                return Err(Error::corrupt(&listed.path, "xxh3-128 does not match"));
            }
        }
        Ok(())
    }
}

fn open(storage: &dyn Storage, dir: &Path, name: &str, how: Open) -> Result<Box<dyn StoredFile>> {
    storage
        .open(&dir.join(name), how)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(name, "the file is missing"),
            _ => Error::io(format!("open {}", dir.join(name).display()), error),
        })
}

fn check_len(file: &dyn StoredFile, name: &str, expected: u64) -> Result<()> {
    let len = file
        .len()
        .map_err(|error| Error::io(format!("stat {name}"), error))?;
    if len == expected {
        return Ok(());
    }
    Err(Error::corrupt(
        name,
        format!("length {len}, not {expected}"),
    ))
}

/// A file's bytes; the length is checked before anything is read.
fn read_whole(storage: &dyn Storage, dir: &Path, name: &str, len: u64) -> Result<Vec<u8>> {
    let file = open(storage, dir, name, Open::Read)?;
    check_len(&*file, name, len)?;
    let mut bytes = vec![0; len as usize];
    read_exact(&*file, &mut bytes, 0).map_err(|error| Error::io(format!("read {name}"), error))?;
    Ok(bytes)
}

fn read_manifest(storage: &dyn Storage, dir: &Path, commit: &Commit) -> Result<Manifest> {
    check_manifest_len(commit)?;
    let bytes = read_whole(storage, dir, MANIFEST, commit.manifest_len)?;
    parse_manifest(&bytes, commit)
}

/// Before anything of that length is read or believed.
fn check_manifest_len(commit: &Commit) -> Result<()> {
    if commit.manifest_len > MANIFEST_LEN_MAX {
        return Err(Error::corrupt(
            COMMIT,
            format!("manifest of {} bytes", commit.manifest_len),
        ));
    }
    Ok(())
}

/// The manifest that a COMMIT names; its own rules are checked.
pub(super) fn parse_manifest(bytes: &[u8], commit: &Commit) -> Result<Manifest> {
    check_manifest_len(commit)?;
    if bytes.len() as u64 != commit.manifest_len {
        let why = format!("length {}, not {}", bytes.len(), commit.manifest_len);
        return Err(Error::corrupt(MANIFEST, why));
    }
    if blake3::hash(bytes) != blake3::Hash::from(commit.manifest_blake3) {
        return Err(Error::corrupt(MANIFEST, "blake3 does not match COMMIT"));
    }
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt(MANIFEST, error.to_string()))?;
    manifest.check()?;
    Ok(manifest)
}

fn table_len(manifest: &Manifest) -> Result<u64> {
    let len = manifest.chunks.checked_mul(RECORD_LEN as u64);
    let len = len.and_then(|len| len.checked_add(HEADER_LEN as u64));
    len.filter(|len| *len <= TABLE_LEN_MAX)
        .ok_or_else(|| Error::corrupt(MANIFEST, format!("{} chunks are too many", manifest.chunks)))
}

fn read_table(storage: &dyn Storage, dir: &Path, manifest: &Manifest) -> Result<Vec<Record>> {
    let bytes = read_whole(storage, dir, TABLE, table_len(manifest)?)?;
    parse_table(&bytes, manifest)
}

/// The records of the table that a manifest names; the rules between them are checked.
pub(super) fn parse_table(bytes: &[u8], manifest: &Manifest) -> Result<Vec<Record>> {
    let expected = table_len(manifest)?;
    if bytes.len() as u64 != expected {
        let why = format!("length {}, not {expected}", bytes.len());
        return Err(Error::corrupt(TABLE, why));
    }
    let header = Header::decode(bytes)?;
    if header.records != manifest.chunks {
        let why = format!(
            "{} records, the manifest says {}",
            header.records, manifest.chunks
        );
        return Err(Error::corrupt(TABLE, why));
    }
    let (records, _) = bytes[HEADER_LEN..].as_chunks::<RECORD_LEN>();
    let records = records
        .iter()
        .enumerate()
        .map(|(index, bytes)| Record::decode(bytes, index));
    let records = records.collect::<Result<Vec<Record>>>()?;
    // After the records, because their checksums say where the damage is.
    if blake3::hash(bytes).to_hex().as_str() != manifest.table_blake3 {
        return Err(Error::corrupt(TABLE, "blake3 does not match the manifest"));
    }
    check_table(manifest, &records)?;
    Ok(records)
}

/// Refuses files that nobody listed: they are not covered by any checksum.
fn check_names(storage: &dyn Storage, path: &Path, manifest: &Manifest) -> Result<()> {
    let list = |path: &Path| {
        storage
            .list(path)
            .map_err(|error| Error::io(format!("list {}", path.display()), error))
    };
    let mut known: BTreeSet<String> = [COMMIT, MANIFEST, TABLE].map(String::from).into();
    known.extend(
        (0u16..)
            .zip(&manifest.segments)
            .map(|(index, _)| segment_name(index)),
    );
    known.extend(manifest.files.iter().map(|file| file.path.clone()));
    for entry in list(path)? {
        let inside = if entry.is_dir {
            list(&path.join(&entry.name))?
        } else {
            Vec::new()
        };
        let names = inside
            .iter()
            .map(|inner| format!("{}/{}", entry.name, inner.name));
        let names = names.chain((!entry.is_dir).then(|| entry.name.clone()));
        for name in names {
            if !known.contains(&name) {
                return Err(Error::corrupt(name, "the manifest does not list this file"));
            }
        }
    }
    Ok(())
}
