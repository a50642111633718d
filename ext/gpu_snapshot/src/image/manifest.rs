//! manifest.json: what a snapshot is of, where it may run and which bytes it consists of.
//! It must never drop what it does not know: unknown keys survive reading and writing.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The longest manifest that is read, bytes: a sound one has a few KiB.
pub const MANIFEST_LEN_MAX: u64 = 16 << 20;

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The snapshot's id; the directory is `snap-<id>`.
    pub id: String,
    /// When it was taken, Unix milliseconds.
    pub created_unix_ms: u64,
    /// What it is of and where it may run.
    pub identity: Identity,
    /// The memory regions, by ascending id.
    pub regions: Vec<Region>,
    /// The data segments, by index.
    pub segments: Vec<Segment>,
    /// Records in the chunk table.
    pub chunks: u64,
    /// blake3 of `chunks.tbl`, lower-case hex.
    pub table_blake3: String,
    /// Further files, by path.
    #[serde(default)]
    pub files: Vec<AuxFile>,
    /// Keys of other writers: process tree, mounts, stdio, tool times.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a snapshot is of and what it depends on. An empty text means "does not matter".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Owner of the function.
    pub tenant: String,
    /// Namespace of the function.
    pub namespace: String,
    /// Name of the function.
    pub function: String,
    /// Revision of the function.
    pub revision: i64,
    /// Digest of the image the worker was started from.
    pub image: String,
    /// GPU driver version.
    pub driver: String,
    /// CUDA version of the driver.
    pub cuda: String,
    /// Kernel release.
    pub kernel: String,
    /// CRIU version.
    pub criu: String,
    /// Version of the agent that took it.
    pub agent: String,
    /// The GPUs, by the index the worker knew them under.
    pub gpus: Vec<Gpu>,
    /// Keys of other writers.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One GPU of a snapshot's identity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Marketing name.
    pub name: String,
    /// Compute capability, e.g. "9.0".
    pub compute_capability: String,
    /// UUID in hex; not part of compatibility, since a restore may remap GPUs.
    pub uuid: String,
}

/// Where a region's bytes live in a running worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegionClass {
    /// Device memory.
    Gpu,
    /// Page-locked host memory.
    Pinned,
    /// Ordinary host memory.
    Pageable,
}

/// One contiguous piece of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Unique in the snapshot.
    pub id: u32,
    /// What it is, for people.
    pub name: String,
    /// Where it lives.
    pub class: RegionClass,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of a chunk, a multiple of `align`; the region's last chunk may be shorter.
    pub chunk_len: u32,
    /// Alignment of chunks in a segment, a power of two of at least 4096.
    pub align: u32,
    /// Address in the worker, when it has to come back at the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub va: Option<u64>,
    /// Index into the identity's `gpus`, for GPU regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// Keys of other writers.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One data segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Length in bytes.
    pub len: u64,
}

/// A file that comes with the snapshot, such as a CRIU image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxFile {
    /// Path below the snapshot, with `/`; at most one directory deep.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// xxh3-128 of the content, lower-case hex.
    pub xxh3: String,
}

impl Region {
    /// A region of `len` bytes with the sizes that fit its class: chunks of 8 MiB for GPU memory,
    /// aligned to 2 MiB so that they can be mapped, of 1 MiB aligned to 4 KiB for the rest.
    pub fn new(id: u32, name: impl Into<String>, class: RegionClass, len: u64) -> Self {
        let (chunk_len, align) = match class {
            RegionClass::Gpu => (8 << 20, 2 << 20),
            RegionClass::Pinned | RegionClass::Pageable => (1 << 20, 4096),
        };
        let name = name.into();
        let extra = Map::new();
        Self {
            id,
            name,
            class,
            len,
            chunk_len,
            align,
            va: None,
            device: None,
            extra,
        }
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.len.div_ceil(u64::from(self.chunk_len))
    }

    /// Raw bytes of the chunk at `offset`; `None` when no chunk starts there.
    pub fn raw_len(&self, offset: u64) -> Option<u32> {
        let chunk = u64::from(self.chunk_len);
        if offset >= self.len || !offset.is_multiple_of(chunk) {
            return None;
        }
        u32::try_from(chunk.min(self.len - offset)).ok()
    }

    /// Bytes that `raw_len` bytes take in a segment.
    pub fn stored_len(&self, raw_len: u32) -> u32 {
        raw_len.next_multiple_of(self.align)
    }

    /// Whether the sizes obey the rules of the format.
    pub fn check(&self) -> Result<()> {
        let Self {
            id,
            len,
            chunk_len,
            align,
            ..
        } = self;
        let sound = *len > 0
            && len.checked_add(u64::from(*chunk_len)).is_some()
            && align.is_power_of_two()
            && (4096..=1 << 30).contains(align)
            && *chunk_len > 0
            && *chunk_len <= 1 << 30
            && chunk_len.is_multiple_of(*align);
        if sound {
            return Ok(());
        }
        let why = format!("region {id}: length {len}, chunk_len {chunk_len}, align {align}");
        Err(Error::corrupt(super::MANIFEST, why))
    }
}

impl Manifest {
    /// Checks what the manifest says of itself, before any other file is opened.
    pub fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::corrupt(super::MANIFEST, why));
        if !self.regions.is_sorted_by(|left, right| left.id < right.id) {
            return bad("region ids do not ascend".into());
        }
        self.regions.iter().try_for_each(Region::check)?;
        let chunks = self
            .regions
            .iter()
            .try_fold(0u64, |sum, next| sum.checked_add(next.chunks()));
        if chunks != Some(self.chunks) {
            return bad(format!(
                "{} chunks, the regions have {chunks:?}",
                self.chunks
            ));
        }
        if self.segments.len() > usize::from(u16::MAX) {
            return bad(format!("{} segments", self.segments.len()));
        }
        let paths: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if paths.len() != self.files.len() {
            return bad("a file is listed twice".into());
        }
        paths.into_iter().try_for_each(check_path)
    }

    /// The region of an id.
    pub fn region(&self, id: u32) -> Option<&Region> {
        let at = self
            .regions
            .binary_search_by_key(&id, |region| region.id)
            .ok()?;
        self.regions.get(at)
    }
}

/// Accepts `name` and `directory/name` of harmless characters; never a way out of the snapshot.
pub(super) fn check_path(path: &str) -> Result<()> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let part = |part: &str| {
        !part.is_empty() && part.len() <= 255 && !part.starts_with('.') && part.bytes().all(fine)
    };
    let own = [super::COMMIT, super::MANIFEST, super::TABLE];
    let reserved = own.contains(&path) || (path.starts_with("data-") && path.ends_with(".seg"));
    if !reserved && path.split('/').count() <= 2 && path.split('/').all(part) {
        return Ok(());
    }
    Err(Error::corrupt(
        super::MANIFEST,
        format!("file path {path:?} is not allowed"),
    ))
}

impl Identity {
    /// Refuses a restore on a host that differs; see `differences`.
    pub fn check(&self, host: &Identity) -> Result<()> {
        let differences = self.differences(host);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(Error::Incompatible(differences))
        }
    }

    /// The differences that forbid a restore on `host`, which fills in what the host is.
    pub fn differences(&self, host: &Identity) -> Vec<String> {
        let texts = [
            ("tenant", &self.tenant, &host.tenant),
            ("namespace", &self.namespace, &host.namespace),
            ("function", &self.function, &host.function),
            ("image", &self.image, &host.image),
            ("driver", &self.driver, &host.driver),
            ("cuda", &self.cuda, &host.cuda),
            ("kernel", &self.kernel, &host.kernel),
            ("criu", &self.criu, &host.criu),
        ];
        let differs = |taken: &str, here: &str| !taken.is_empty() && taken != here;
        let mut found: Vec<String> = texts
            .iter()
            .filter(|(_, taken, here)| differs(taken, here))
            .map(|(name, taken, here)| format!("{name} is {here:?}, the snapshot needs {taken:?}"))
            .collect();
        if self.revision != host.revision {
            found.push(format!(
                "revision is {}, not {}",
                host.revision, self.revision
            ));
        }
        if host.gpus.len() < self.gpus.len() {
            found.push(format!("{} GPUs, not {}", host.gpus.len(), self.gpus.len()));
        }
        for (index, (taken, here)) in self.gpus.iter().zip(&host.gpus).enumerate() {
            if differs(&taken.name, &here.name)
                || differs(&taken.compute_capability, &here.compute_capability)
            {
                found.push(format!(
                    "GPU {index} is {:?}, not {:?}",
                    here.name, taken.name
                ));
            }
        }
        found
    }
}
