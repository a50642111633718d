//! The checksum of stored bytes: crc32c by the fastest instructions that the processor has.
//! It must never change: it is part of the file format.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

/// CRC-32C (Castagnoli; "CRC-32/ISCSI" in the catalogues).
pub fn crc32c(bytes: &[u8]) -> u32 {
    // A 32-bit checksum: the upper half of the answer is always zero.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The checksum of bytes whose two halves have these, the second of them `len` bytes long.
pub fn combine(first: u32, second: u32, len: u64) -> u32 {
    checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), len) as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn halves_make_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|number| (number * 7) as u8).collect();
        for at in [0, 1, 4096, 9_999, 10_000] {
            let (first, second) = bytes.split_at(at);
            let [one, two] = [first, second].map(super::crc32c);
            let both = super::combine(one, two, second.len() as u64);
            assert_eq!(both, super::crc32c(&bytes), "cut at {at}");
        }
    }

    /// The check value of the catalogues, and the vectors of RFC 3720, appendix B.4.
    #[test]
    fn it_is_the_checksum_of_the_standard() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(super::crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
