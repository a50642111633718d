//! COMMIT: the 64 bytes that make a directory a snapshot.
//! It must never be read as valid when a single bit of it differs from what was written.

use crate::{Error, Result};

/// Length of the file in bytes.
pub const COMMIT_LEN: usize = 64;
/// The last two characters are the major version; a newer one is refused.
const MAGIC: &[u8; 8] = b"GSNAPC01";
const MAGIC_STEM: usize = 6;

/// What COMMIT says. Layout: magic 8, blake3 32, length u64, zero 12, crc32c of the rest u32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// blake3 of the manifest's bytes.
    pub manifest_blake3: [u8; 32],
    /// Length of the manifest in bytes.
    pub manifest_len: u64,
}

impl Commit {
    /// The file's bytes.
    pub fn encode(&self) -> [u8; COMMIT_LEN] {
        let mut bytes = [0; COMMIT_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..40].copy_from_slice(&self.manifest_blake3);
        bytes[40..48].copy_from_slice(&self.manifest_len.to_le_bytes());
        let crc = crate::checksum::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the file's bytes. A sound COMMIT of another major version is `Unsupported`.
    pub fn decode(bytes: &[u8; COMMIT_LEN]) -> Result<Self> {
        let bad = |why: &str| Err(Error::corrupt(super::COMMIT, why));
        if bytes[..MAGIC_STEM] != MAGIC[..MAGIC_STEM] {
            return bad("wrong magic");
        }
        let (body, crc) = bytes.split_at(60);
        if crc != crate::checksum::crc32c(body).to_le_bytes() {
            return bad("crc32c does not match");
        }
        if bytes[..8] != MAGIC[..] {
            let major = String::from_utf8_lossy(&bytes[MAGIC_STEM..8]);
            return Err(Error::Unsupported(format!(
                "format version {major}, this reads 01"
            )));
        }
        if bytes[48..60] != [0; 12] {
            return bad("reserved bytes are set");
        }
        let mut manifest_blake3 = [0; 32];
        manifest_blake3.copy_from_slice(&bytes[8..40]);
        let mut len = [0; 8];
        len.copy_from_slice(&bytes[40..48]);
        Ok(Self {
            manifest_blake3,
            manifest_len: u64::from_le_bytes(len),
        })
    }
}
