//! Writing a snapshot: space first, then chunks, then one rename that makes it visible.
//! It must never leave a directory that looks published before every byte of it is durable.

use super::check::check_table;
use super::commit::Commit;
use super::manifest::{AuxFile, Identity, Manifest, Region, check_path};
use super::record::{Codec, Header, Record};
use super::segments::Segments;
use super::{COMMIT, MANIFEST, TABLE};
use crate::buffer::{HostBuffer, is_zero};
use crate::storage::{Open, Storage, write_all};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a snapshot will be of; everything that is known before its bytes are.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Unique in the store; letters, digits, `-` and `_`.
    pub id: String,
    /// Unix milliseconds.
    pub created_unix_ms: u64,
    /// What it is of and where it may run.
    pub identity: Identity,
    /// The memory regions; ids unique.
    pub regions: Vec<Region>,
    /// Further keys of the manifest.
    pub extra: Map<String, Value>,
}

/// Limits of a writer.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// The longest segment in bytes; a longer one is split.
    pub segment_len_max: u64,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self {
            segment_len_max: 16 << 30,
        }
    }
}

/// A snapshot being written. Dropping it without `publish` removes what was written.
pub struct Writer {
    storage: Arc<dyn Storage>,
    root: PathBuf,
    temporary: PathBuf,
    draft: Draft,
    segments: Segments,
    records: Vec<Record>,
    by_id: HashMap<[u8; 16], usize>,
    files: Vec<AuxFile>,
    published: bool,
}

pub(super) fn at(path: &Path, call: &str) -> impl Fn(std::io::Error) -> Error + use<> {
    let what = format!("{call} {}", path.display());
    move |error| Error::io(what.clone(), error)
}

impl Writer {
    /// Creates the temporary directory and reserves the disk space of the worst case, in which no
    /// chunk is zero or a duplicate: a full disk is found here, before a worker is paused.
    pub(super) fn begin(
        storage: Arc<dyn Storage>,
        root: &Path,
        mut draft: Draft,
        limits: WriterLimits,
    ) -> Result<Self> {
        super::store::check_id(&draft.id)?;
        draft.regions.sort_by_key(|region| region.id);
        let temporary = root.join(format!(".tmp-{}", draft.id));
        storage
            .create_dir(&temporary)
            .map_err(at(&temporary, "mkdir"))?;
        let segments = Segments::new(Arc::clone(&storage), &temporary, limits.segment_len_max);
        let mut writer = Self {
            storage,
            root: root.to_owned(),
            temporary,
            draft,
            segments,
            records: Vec::new(),
            by_id: HashMap::new(),
            files: Vec::new(),
            published: false,
        };
        writer
            .manifest(String::new())
            .check()
            .map_err(|error| Error::Invalid(error.to_string()))?;
        writer.segments.reserve(&writer.draft.regions)?;
        Ok(writer)
    }

    /// The regions, by id.
    pub fn regions(&self) -> &[Region] {
        &self.draft.regions
    }

    /// Stores the chunk of `region_id` that starts at `offset`; its bytes come first in `chunk`,
    /// whose rest up to the alignment is overwritten with zeros.
    pub fn append(&mut self, region_id: u32, offset: u64, chunk: &mut HostBuffer) -> Result<()> {
        let wrong = || Error::Invalid(format!("no chunk of region {region_id} starts at {offset}"));
        let at_id = self
            .draft
            .regions
            .binary_search_by_key(&region_id, |region| region.id);
        let region = &self.draft.regions[at_id.map_err(|_| wrong())?];
        let raw_len = region.raw_len(offset).ok_or_else(wrong)?;
        let (stored_len, align) = (region.stored_len(raw_len), region.align);
        if chunk.len() < stored_len as usize {
            return Err(Error::Invalid(format!(
                "the buffer has less than {stored_len} bytes"
            )));
        }
        chunk.bytes_mut()[raw_len as usize..stored_len as usize].fill(0);
        let raw = &chunk.bytes()[..raw_len as usize];
        let mut record = Record {
            region_off: offset,
            region_id,
            codec: Codec::Zero,
            seg: 0,
            seg_off: 0,
            stored_len: 0,
            raw_len,
            crc: 0,
            id: xxhash_rust::xxh3::xxh3_128(raw).to_be_bytes(),
        };
        if !is_zero(raw) {
            match self.find_equal(&record, raw)? {
                Some(equal) => {
                    record = Record {
                        region_off: offset,
                        region_id,
                        ..equal
                    }
                }
                None => {
                    let stored = &chunk.bytes()[..stored_len as usize];
                    self.segments.store(&mut record, stored, align)?;
                    self.by_id.insert(record.id, self.records.len());
                }
            }
        }
        self.records.push(record);
        Ok(())
    }

    /// The record of an equal chunk, as a reference.
    fn find_equal(&mut self, record: &Record, raw: &[u8]) -> Result<Option<Record>> {
        let Some(found) = self
            .by_id
            .get(&record.id)
            .map(|index| &self.records[*index])
        else {
            return Ok(None);
        };
        let equal = self.segments.holds(found, raw)?;
        Ok(equal.then(|| Record {
            codec: Codec::Ref,
            ..found.clone()
        }))
    }

    /// Copies a further file in, such as a CRIU image; `path` is `name` or `directory/name`.
    pub fn add_file(&mut self, path: &str, content: &mut dyn Read) -> Result<()> {
        check_path(path).map_err(|error| Error::Invalid(error.to_string()))?;
        if self.files.iter().any(|file| file.path == path) {
            return Err(Error::Invalid(format!("{path} is there already")));
        }
        let target = self.temporary.join(path);
        let parent = path
            .split_once('/')
            .map(|(directory, _)| self.temporary.join(directory));
        if let Some(parent) = &parent {
            match self.storage.create_dir(parent) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.map_err(at(parent, "mkdir"))?,
            }
        }
        let file = self
            .storage
            .open(&target, Open::Create)
            .map_err(at(&target, "create"))?;
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut step = vec![0; 1 << 20];
        let mut len = 0u64;
        loop {
            let count = content
                .read(&mut step)
                .map_err(at(Path::new(path), "read source of"))?;
            if count == 0 {
                break;
            }
            hash.update(&step[..count]);
            write_all(&*file, &step[..count], len).map_err(at(&target, "write"))?;
            len += count as u64;
        }
        file.sync().map_err(at(&target, "fsync"))?;
        if let Some(parent) = &parent {
            self.storage.sync_dir(parent).map_err(at(parent, "fsync"))?;
        }
        let xxh3 = format!("{:032x}", hash.digest128());
        self.files.push(AuxFile {
            path: path.to_owned(),
            len,
            xxh3,
        });
        Ok(())
    }

    fn manifest(&self, table_blake3: String) -> Manifest {
        let draft = &self.draft;
        Manifest {
            id: draft.id.clone(),
            created_unix_ms: draft.created_unix_ms,
            identity: draft.identity.clone(),
            chunks: draft.regions.iter().map(Region::chunks).sum(),
            regions: draft.regions.clone(),
            segments: self.segments.listed(),
            table_blake3,
            files: self.files.clone(),
            extra: draft.extra.clone(),
        }
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_file(&*self.storage, &self.temporary.join(name), bytes)
    }

    /// Makes the snapshot durable, then visible; returns its path. In this order: segments, table,
    /// manifest, COMMIT, directory, rename, parent directory, each fsynced before the next.
    pub fn publish(mut self) -> Result<PathBuf> {
        self.records
            .sort_by_key(|record| (record.region_id, record.region_off));
        self.segments.finish()?;
        let records = self.records.len() as u64;
        let mut table = Header {
            minor: 0,
            records,
            incompat: 0,
            ro_compat: 0,
        }
        .encode()
        .to_vec();
        self.records
            .iter()
            .for_each(|record| table.extend(record.encode()));
        let manifest = self.manifest(blake3::hash(&table).to_hex().to_string());
        check_table(&manifest, &self.records).map_err(|error| Error::Invalid(error.to_string()))?;
        self.write_file(TABLE, &table)?;
        let manifest = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::Invalid(format!("manifest: {error}")))?;
        self.write_file(MANIFEST, &manifest)?;
        let manifest_blake3 = *blake3::hash(&manifest).as_bytes();
        let commit = Commit {
            manifest_blake3,
            manifest_len: manifest.len() as u64,
        };
        let target = self.root.join(format!("snap-{}", self.draft.id));
        publish(
            &*self.storage,
            &self.temporary,
            &target,
            &commit.encode(),
            &mut self.published,
        )?;
        Ok(target)
    }
}

/// Creates a file with these bytes and makes it durable.
pub(super) fn write_file(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = storage
        .open(path, Open::Create)
        .map_err(at(path, "create"))?;
    write_all(&*file, bytes, 0).map_err(at(path, "write"))?;
    file.sync().map_err(at(path, "fsync"))
}

/// The last steps of every new snapshot, all else being durable: COMMIT, directory, rename, parent
/// directory. `published` is set once others can see it.
pub(super) fn publish(
    storage: &dyn Storage,
    temporary: &Path,
    target: &Path,
    commit: &[u8],
    published: &mut bool,
) -> Result<()> {
    write_file(storage, &temporary.join(COMMIT), commit)?;
    storage
        .sync_dir(temporary)
        .map_err(at(temporary, "fsync"))?;
    storage
        .rename(temporary, target)
        .map_err(at(target, "rename to"))?;
    *published = true;
    let root = target.parent().unwrap_or(Path::new("."));
    storage.sync_dir(root).map_err(at(root, "fsync"))
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be reported here; what stays is removed by the next start-up scan.
            let _ = super::store::remove_tree(&*self.storage, &self.temporary);
        }
    }
}
