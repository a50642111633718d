//! The chunk table's header and records, bit by bit.
//! It must never decide whether a record makes sense in its snapshot: that is `check`.

use crate::{Error, Result};

/// Bytes before the first record.
pub const HEADER_LEN: usize = 4096;
/// Bytes of one record.
pub const RECORD_LEN: usize = 64;
const HEADER_MAGIC: &[u8; 8] = b"GSNAPT01";
const CRC_AT: usize = 36;

/// The header of `chunks.tbl`.
///
/// Layout: magic 8, minor u32, record length u32, records u64, incompatible features u64,
/// read-only-compatible features u64, zero, and in the last four bytes the crc32c of the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor version; a higher one is readable when its features are.
    pub minor: u32,
    /// Number of records.
    pub records: u64,
    /// Features that a reader must know; this version knows none.
    pub incompat: u64,
    /// Features that a writer of the same snapshot would have to know; readers ignore them.
    pub ro_compat: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&self.minor.to_le_bytes());
        bytes[12..16].copy_from_slice(&(RECORD_LEN as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.records.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.incompat.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.ro_compat.to_le_bytes());
        let crc = crate::checksum::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| Err(Error::corrupt(super::TABLE, why));
        if bytes.len() < HEADER_LEN {
            return bad("shorter than its header");
        }
        if bytes[..8] != HEADER_MAGIC[..] {
            return bad("wrong magic");
        }
        if u32_at(bytes, HEADER_LEN - 4) != crate::checksum::crc32c(&bytes[..HEADER_LEN - 4]) {
            return bad("crc32c of the header does not match");
        }
        if u32_at(bytes, 12) != RECORD_LEN as u32 {
            return Err(Error::Unsupported(format!(
                "record length {}",
                u32_at(bytes, 12)
            )));
        }
        let incompat = u64_at(bytes, 24);
        if incompat != 0 {
            return Err(Error::Unsupported(format!("features {incompat:#x}")));
        }
        Ok(Self {
            minor: u32_at(bytes, 8),
            records: u64_at(bytes, 16),
            incompat,
            ro_compat: u64_at(bytes, 32),
        })
    }
}

/// How a chunk's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are, padded with zeros to the region's alignment.
    Raw,
    /// Not at all: every byte is zero.
    Zero,
    /// In the place of an equal chunk of the same snapshot.
    Ref,
}

/// One chunk.
///
/// Layout: region_off u64, region_id u32, codec u8, flags u8 (zero), seg u16, seg_off u64,
/// stored_len u32, raw_len u32, crc32c of the stored bytes u32, crc32c of the record u32,
/// id (xxh3-128 of the raw bytes) 16, zero 8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Offset of the chunk in its region, bytes.
    pub region_off: u64,
    /// The region.
    pub region_id: u32,
    /// How it is stored.
    pub codec: Codec,
    /// The segment that holds it.
    pub seg: u16,
    /// Where in the segment, bytes.
    pub seg_off: u64,
    /// Bytes in the segment, padding included.
    pub stored_len: u32,
    /// Bytes of the region.
    pub raw_len: u32,
    /// crc32c of the stored bytes.
    pub crc: u32,
    /// xxh3-128 of the raw bytes, big-endian.
    pub id: [u8; 16],
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..8].copy_from_slice(&self.region_off.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.region_id.to_le_bytes());
        bytes[12] = match self.codec {
            Codec::Raw => 0,
            Codec::Zero => 3,
            Codec::Ref => 4,
        };
        bytes[14..16].copy_from_slice(&self.seg.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seg_off.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.crc.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.id);
        let crc = record_crc(&bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads one record; `index` is for the message.
    pub fn decode(bytes: &[u8; RECORD_LEN], index: usize) -> Result<Self> {
        let what = || format!("{} record {index}", super::TABLE);
        if u32_at(bytes, CRC_AT) != record_crc(bytes) {
            return Err(Error::corrupt(what(), "crc32c does not match"));
        }
        if bytes[13] != 0 || bytes[56..] != [0; 8] {
            return Err(Error::Unsupported(format!(
                "{}: reserved bytes are set",
                what()
            )));
        }
        let codec = match bytes[12] {
            0 => Codec::Raw,
            3 => Codec::Zero,
            4 => Codec::Ref,
            other => return Err(Error::Unsupported(format!("{}: codec {other}", what()))),
        };
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[40..56]);
        Ok(Self {
            region_off: u64_at(bytes, 0),
            region_id: u32_at(bytes, 8),
            codec,
            seg: u16::from_le_bytes([bytes[14], bytes[15]]),
            seg_off: u64_at(bytes, 16),
            stored_len: u32_at(bytes, 24),
            raw_len: u32_at(bytes, 28),
            crc: u32_at(bytes, 32),
            id,
        })
    }
}

/// Everything but the checksum's own four bytes.
fn record_crc(bytes: &[u8; RECORD_LEN]) -> u32 {
    let mut covered = [0; RECORD_LEN - 4];
    covered[..CRC_AT].copy_from_slice(&bytes[..CRC_AT]);
    covered[CRC_AT..].copy_from_slice(&bytes[CRC_AT + 4..]);
    crate::checksum::crc32c(&covered)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
