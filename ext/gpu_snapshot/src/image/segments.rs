//! The data segments of a snapshot being written: where each chunk goes.
//! It must never leave a gap: chunks tile their segment, so every byte is under a checksum.

use super::manifest::{Region, Segment};
use super::record::{Codec, Record};
use super::segment_name;
use super::write::at;
use crate::buffer::HostBuffer;
use crate::storage::{Open, Storage, StoredFile, read_exact, write_all};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct OpenSegment {
    file: Box<dyn StoredFile>,
    align: u32,
    used: u64,
}

pub(super) struct Segments {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    len_max: u64,
    all: Vec<OpenSegment>,
    /// Where a stored chunk is read back to be compared with one of the same id.
    compare: Option<HostBuffer>,
}

impl Segments {
    pub(super) fn new(storage: Arc<dyn Storage>, dir: &Path, len_max: u64) -> Self {
        Self {
            storage,
            dir: dir.to_owned(),
            len_max,
            all: Vec::new(),
            compare: None,
        }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(segment_name(index as u16))
    }

    /// Lays out all chunks as if all were stored and allocates the segments they need.
    pub(super) fn reserve(&mut self, regions: &[Region]) -> Result<()> {
        for region in regions {
            for chunk in 0..region.chunks() {
                let raw_len = region
                    .raw_len(chunk * u64::from(region.chunk_len))
                    .unwrap_or(0);
                let stored_len = region.stored_len(raw_len);
                let index = self.room(region.align, stored_len)?;
                self.all[index].used += u64::from(stored_len);
            }
        }
        for index in 0..self.all.len() {
            let path = self.path(index);
            let segment = &mut self.all[index];
            segment
                .file
                .allocate(segment.used)
                .map_err(at(&path, "allocate"))?;
            segment.used = 0;
        }
        Ok(())
    }

    /// The segment that takes the next `len` bytes of this alignment; a new one when all are full.
    /// Alignments are kept apart, because mixed ones would need gaps.
    fn room(&mut self, align: u32, len: u32) -> Result<usize> {
        let limit = self.len_max;
        let fits = |segment: &OpenSegment| {
            segment.align == align && (segment.used == 0 || segment.used + u64::from(len) <= limit)
        };
        if let Some(found) = self.all.iter().position(fits) {
            return Ok(found);
        }
        let index = self.all.len();
        if index >= usize::from(u16::MAX) {
            return Err(Error::Invalid(format!("more than {index} segments")));
        }
        let path = self.path(index);
        let file = self
            .storage
            .open(&path, Open::CreateDirect)
            .map_err(at(&path, "create"))?;
        self.all.push(OpenSegment {
            file,
            align,
            used: 0,
        });
        Ok(index)
    }

    /// Writes a chunk's stored bytes and fills in where they are.
    pub(super) fn store(&mut self, record: &mut Record, stored: &[u8], align: u32) -> Result<()> {
        let index = self.room(align, stored.len() as u32)?;
        let path = self.path(index);
        let segment = &mut self.all[index];
        write_all(&*segment.file, stored, segment.used).map_err(at(&path, "write"))?;
        record.codec = Codec::Raw;
        record.seg = index as u16;
        record.seg_off = segment.used;
        record.stored_len = stored.len() as u32;
        record.crc = crate::checksum::crc32c(stored);
        segment.used += stored.len() as u64;
        Ok(())
    }

    /// Whether the chunk of `found` has exactly these raw bytes. The id is no proof: it is not a
    /// cryptographic hash.
    pub(super) fn holds(&mut self, found: &Record, raw: &[u8]) -> Result<bool> {
        if found.raw_len as usize != raw.len() {
            return Ok(false);
        }
        let len = found.stored_len as usize;
        let mut buffer = match self.compare.take().filter(|buffer| buffer.len() >= len) {
            Some(buffer) => buffer,
            None => HostBuffer::new(len)?,
        };
        let segment = &self.all[usize::from(found.seg)];
        let bytes = &mut buffer.bytes_mut()[..len];
        read_exact(&*segment.file, bytes, found.seg_off)
            .map_err(at(&self.path(usize::from(found.seg)), "read back"))?;
        let equal = bytes[..raw.len()] == *raw;
        self.compare = Some(buffer);
        Ok(equal)
    }

    /// Cuts what was reserved and not needed, and makes all bytes durable.
    pub(super) fn finish(&mut self) -> Result<()> {
        for (index, segment) in self.all.iter().enumerate() {
            let path = self.path(index);
            segment
                .file
                .truncate(segment.used)
                .map_err(at(&path, "truncate"))?;
            segment.file.sync().map_err(at(&path, "fsync"))?;
        }
        Ok(())
    }

    /// The segments as the manifest lists them.
    pub(super) fn listed(&self) -> Vec<Segment> {
        self.all
            .iter()
            .map(|segment| Segment { len: segment.used })
            .collect()
    }
}
