//! The name of a chunk: the hash of its plain bytes.

use std::fmt;

/// BLAKE3 of a chunk's plain bytes. Two chunks with one hash are taken for the same chunk, so this
/// must stay collision-resistant: changing it is a format change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// Hashes plain bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }

    /// The half that the dedup index keeps; a hit is confirmed with the whole.
    pub fn prefix(&self) -> [u8; 16] {
        *self.0.first_chunk().expect("a hash is longer than its prefix")
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_blake3_as_others_compute_it() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(format!("{:?}", ChunkHash::of(b"")), empty);
        assert_eq!(ChunkHash::of(b"").prefix()[..2], [0xaf, 0x13]);
        assert_ne!(ChunkHash::of(b"a"), ChunkHash::of(b"b"));
    }
}
