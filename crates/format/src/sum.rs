//! XXH3-128, the checksum of headers, pages and records. Content is hashed with BLAKE3 instead.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// A 128-bit checksum as stored: little-endian.
pub type Sum128 = [u8; 16];

/// The checksum of some bytes.
pub fn sum128(bytes: &[u8]) -> Sum128 {
    xxh3_128(bytes).to_le_bytes()
}

/// The checksum of several pieces as if they stood together.
pub fn sum128_of_parts(parts: &[&[u8]]) -> Sum128 {
    let mut state = Xxh3::new();
    for part in parts {
        state.update(part);
    }
    state.digest128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_whole_agree_and_the_value_is_frozen() {
        assert_eq!(sum128(b"aegisfs"), sum128_of_parts(&[b"aeg", b"", b"isfs"]));
        assert_eq!(u128::from_le_bytes(sum128(b"")), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }
}
