//! The checksum of stored bytes: crc32c by the fastest instructions that the processor has.
//! It must never change: it is part of the file format.

use crc_fast::{CrcAlgorithm, checksum};

/// CRC-32C (Castagnoli; "CRC-32/ISCSI" in the catalogues).
pub fn crc32c(bytes: &[u8]) -> u32 {
    // A 32-bit checksum: the upper half of the answer is always zero.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    /// The check value of the catalogues, and the vectors of RFC 3720, appendix B.4.
    #[test]
    fn it_is_the_checksum_of_the_standard() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(super::crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
