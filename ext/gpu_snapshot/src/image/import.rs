//! Taking a snapshot in from elsewhere, as its bytes come: every chunk is checked on its way.
//! It must never publish a snapshot of which a single byte was not checked.

use super::COMMIT;
use super::commit::{COMMIT_LEN, Commit};
use super::manifest::{AuxFile, Identity, Manifest};
use super::read::{parse_manifest, parse_table};
use super::record::{Codec, Record};
use super::store::{check_id, remove_tree};
use super::write::{at, publish, write_file};
use super::{MANIFEST, TABLE, segment_name};
use crate::buffer::HostBuffer;
use crate::storage::{Open, Storage, StoredFile, write_all};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// A file on its way in: how much of it has come, and how its bytes are judged.
struct Incoming {
    name: String,
    len: u64,
    done: u64,
    file: Box<dyn StoredFile>,
    check: Check,
}

enum Check {
    /// A segment: the stored chunks in the order of the disk, and how many have come.
    Chunks(Vec<Record>, usize),
    /// A further file: its hash so far, and what it has to be.
    Hash(Box<Xxh3>, String),
}

/// A snapshot on its way in. Dropping it without `publish` removes what was written.
pub struct Import {
    storage: Arc<dyn Storage>,
    temporary: PathBuf,
    target: PathBuf,
    commit: Vec<u8>,
    manifest: Manifest,
    files: Vec<Incoming>,
    /// The chunk that is coming, from the buffer's start.
    slot: HostBuffer,
    filled: usize,
    published: bool,
}

impl Import {
    /// Checks the metadata, reserves the disk space of all files and creates them.
    pub(super) fn begin(
        storage: Arc<dyn Storage>,
        root: &Path,
        [commit, manifest, table]: [&[u8]; 3],
        host: Option<&Identity>,
    ) -> Result<Self> {
        let fixed: &[u8; COMMIT_LEN] = commit
            .try_into()
            .map_err(|_| Error::corrupt(COMMIT, format!("not {COMMIT_LEN} bytes")))?;
        let parsed = parse_manifest(manifest, &Commit::decode(fixed)?)?;
        let records = parse_table(table, &parsed)?;
        check_id(&parsed.id)?;
        host.map_or(Ok(()), |host| parsed.identity.check(host))?;
        let target = root.join(format!("snap-{}", parsed.id));
        if storage.list(&target).is_ok() {
            return Err(Error::Invalid(format!("snapshot {} exists", parsed.id)));
        }
        let temporary = root.join(format!(".tmp-{}", parsed.id));
        storage
            .create_dir(&temporary)
            .map_err(at(&temporary, "mkdir"))?;
        let longest = records.iter().map(|record| record.stored_len).max();
        let slot_len = (longest.unwrap_or(0).max(1) as usize).next_multiple_of(4096);
        let mut import = Self {
            storage,
            temporary,
            target,
            commit: commit.to_vec(),
            manifest: parsed,
            files: Vec::new(),
            slot: HostBuffer::new(slot_len)?,
            filled: 0,
            published: false,
        };
        import.create_segments(&records)?;
        import.create_files()?;
        for (name, bytes) in [(TABLE, table), (MANIFEST, manifest)] {
            write_file(&*import.storage, &import.temporary.join(name), bytes)?;
        }
        Ok(import)
    }

    /// The snapshot's id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Names and lengths of the files that have to come, in this order.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files
            .iter()
            .map(|incoming| (incoming.name.as_str(), incoming.len))
    }

    fn create(&self, name: &str, len: u64, how: Open) -> Result<Box<dyn StoredFile>> {
        let path = self.temporary.join(name);
        let file = self.storage.open(&path, how).map_err(at(&path, "create"))?;
        if len > 0 {
            file.allocate(len).map_err(at(&path, "allocate"))?;
        }
        Ok(file)
    }

    fn create_segments(&mut self, records: &[Record]) -> Result<()> {
        for (index, segment) in (0u16..).zip(self.manifest.segments.clone()) {
            let name = segment_name(index);
            let stored = |record: &&Record| record.codec == Codec::Raw && record.seg == index;
            let mut chunks: Vec<Record> = records.iter().filter(stored).cloned().collect();
            chunks.sort_by_key(|record| record.seg_off);
            let file = self.create(&name, segment.len, Open::CreateDirect)?;
            self.files.push(Incoming {
                name,
                len: segment.len,
                done: 0,
                file,
                check: Check::Chunks(chunks, 0),
            });
        }
        Ok(())
    }

    fn create_files(&mut self) -> Result<()> {
        for AuxFile { path, len, xxh3 } in self.manifest.files.clone() {
            if let Some((directory, _)) = path.split_once('/') {
                let directory = self.temporary.join(directory);
                match self.storage.create_dir(&directory) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    other => other.map_err(at(&directory, "mkdir"))?,
                }
            }
            let file = self.create(&path, len, Open::Create)?;
            self.files.push(Incoming {
                name: path,
                len,
                done: 0,
                file,
                check: Check::Hash(Box::default(), xxh3),
            });
        }
        Ok(())
    }

    /// Takes the next bytes of a file in; files come one after the other. A chunk is written when
    /// it is whole and its checksum matches; one that does not ends the import.
    pub fn feed(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.files.iter().position(|one| one.name == name);
        let place = place.ok_or_else(|| Error::Invalid(format!("no file {name} is expected")))?;
        if self.files[place].done + bytes.len() as u64 > self.files[place].len {
            let len = self.files[place].len;
            return Err(Error::corrupt(name, format!("longer than {len} bytes")));
        }
        match self.files[place].check {
            Check::Chunks(..) => self.feed_segment(place, bytes),
            Check::Hash(..) => self.feed_file(place, bytes),
        }
    }

    fn feed_segment(&mut self, place: usize, mut bytes: &[u8]) -> Result<()> {
        let incoming = &mut self.files[place];
        let Check::Chunks(chunks, next) = &mut incoming.check else {
            return Ok(());
        };
        while !bytes.is_empty() {
            let Some(record) = chunks.get(*next) else {
                return Err(Error::corrupt(&incoming.name, "more bytes than chunks"));
            };
            let stored_len = record.stored_len as usize;
            let count = bytes.len().min(stored_len - self.filled);
            let target = &mut self.slot.bytes_mut()[self.filled..self.filled + count];
            target.copy_from_slice(&bytes[..count]);
            (self.filled, bytes) = (self.filled + count, &bytes[count..]);
            incoming.done += count as u64;
            if self.filled < stored_len {
                continue;
            }
            let stored = &self.slot.bytes()[..stored_len];
            let crc = crate::checksum::crc32c(stored);
            if crc != record.crc {
                let why = format!("crc32c of the chunk at {} is {crc:#010x}", record.seg_off);
                return Err(Error::corrupt(&incoming.name, why));
            }
            write_all(&*incoming.file, stored, record.seg_off)
                .map_err(|error| Error::io(format!("write {}", incoming.name), error))?;
            *next += 1;
            self.filled = 0;
        }
        Ok(())
    }

    fn feed_file(&mut self, place: usize, bytes: &[u8]) -> Result<()> {
        let incoming = &mut self.files[place];
        if let Check::Hash(hash, _) = &mut incoming.check {
            hash.update(bytes);
        }
        write_all(&*incoming.file, bytes, incoming.done)
            .map_err(|error| Error::io(format!("write {}", incoming.name), error))?;
        incoming.done += bytes.len() as u64;
        Ok(())
    }

    /// Makes the snapshot visible; refuses one of which something is missing.
    pub fn publish(mut self) -> Result<PathBuf> {
        for incoming in &self.files {
            let Incoming {
                name, len, done, ..
            } = incoming;
            if done != len {
                return Err(Error::corrupt(name, format!("{done} of {len} bytes came")));
            }
            if let Check::Hash(hash, expected) = &incoming.check
                && format!("{:032x}", hash.digest128()) != *expected
            {
                return Err(Error::corrupt(name, "xxh3-128 does not match"));
            }
            incoming
                .file
                .sync()
                .map_err(|error| Error::io(format!("fsync {name}"), error))?;
        }
        for directory in self.manifest.files.iter().filter_map(|file| {
            let (directory, _) = file.path.split_once('/')?;
            Some(self.temporary.join(directory))
        }) {
            self.storage
                .sync_dir(&directory)
                .map_err(at(&directory, "fsync"))?;
        }
        publish(
            &*self.storage,
            &self.temporary,
            &self.target,
            &self.commit,
            &mut self.published,
        )?;
        Ok(self.target.clone())
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be reported here; what stays is removed by the next start-up scan.
            let _ = remove_tree(&*self.storage, &self.temporary);
        }
    }
}
