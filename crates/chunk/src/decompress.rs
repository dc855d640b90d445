//! From stored bytes back to plain ones. The input may be anything.

use std::cell::RefCell;

use aegisfs_base::limits::FRAME_BYTES_MAX;

use crate::{ChunkError, Codec};

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Appends the plain form of `stored` to `out`, with a context that this thread keeps.
///
/// # Errors
/// As [`Decompressor::append`].
pub fn decompress(
    codec: Codec,
    stored: &[u8],
    plain_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), ChunkError> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.append(codec, stored, plain_bytes, out))
}

/// Decompresses one buffer after the other with the same context.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Decompressor {
    /// A decompressor for every codec.
    pub fn new() -> Self {
        Self { zstd: zstd::bulk::Decompressor::new().expect("a context without a dictionary") }
    }

    /// Fills `plain`, whose length is the length that was stored, and takes no other memory.
    ///
    /// # Errors
    /// When the bytes are not of this codec or have another length. What `plain` then holds is
    /// undefined and must not be used.
    pub fn fill(&mut self, codec: Codec, stored: &[u8], plain: &mut [u8]) -> Result<(), ChunkError> {
        let expected = plain.len();
        if expected > FRAME_BYTES_MAX {
            return Err(ChunkError::TooLarge { plain_bytes: expected, bytes_max: FRAME_BYTES_MAX });
        }
        let undecodable =
            || ChunkError::Undecodable { codec, stored_bytes: stored.len(), plain_bytes: expected };
        let found = match codec {
            Codec::Plain => {
                if stored.len() == expected {
                    plain.copy_from_slice(stored);
                }
                stored.len()
            }
            Codec::Lz4 => lz4_flex::block::decompress_into(stored, plain).map_err(|_| undecodable())?,
            Codec::Zstd => self.zstd.decompress_to_buffer(stored, plain).map_err(|_| undecodable())?,
        };
        check_length(codec, expected, found)
    }

    /// Appends the plain form of `stored` to `out`.
    ///
    /// # Errors
    /// As [`Decompressor::fill`], and when the length is larger than a frame can be; `out` is then
    /// as it was.
    pub fn append(
        &mut self,
        codec: Codec,
        stored: &[u8],
        plain_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ChunkError> {
        // Tested before anything is allocated: the length may be garbage.
        if plain_bytes > FRAME_BYTES_MAX {
            return Err(ChunkError::TooLarge { plain_bytes, bytes_max: FRAME_BYTES_MAX });
        }
        let start = out.len();
        match codec {
            // Without filling it with zeros first.
            Codec::Plain if stored.len() == plain_bytes => {
                out.extend_from_slice(stored);
                Ok(())
            }
            Codec::Zstd if start == 0 => {
                out.reserve_exact(plain_bytes);
                let found = self.zstd.decompress_to_buffer(stored, out);
                let stored_bytes = stored.len();
                let found = found.map_err(|_| ChunkError::Undecodable { codec, stored_bytes, plain_bytes });
                let outcome = found.and_then(|found| check_length(codec, plain_bytes, found));
                outcome.inspect_err(|_| out.clear())
            }
            _ => {
                out.resize(start + plain_bytes, 0);
                self.fill(codec, stored, &mut out[start..]).inspect_err(|_| out.truncate(start))
            }
        }
    }
}

fn check_length(codec: Codec, expected: usize, found: usize) -> Result<(), ChunkError> {
    if found == expected { Ok(()) } else { Err(ChunkError::WrongLength { codec, expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compression, Compressor};
    use proptest::prelude::*;

    const CODECS: [Codec; 3] = [Codec::Plain, Codec::Lz4, Codec::Zstd];

    fn compression() -> impl Strategy<Value = Compression> {
        prop_oneof![Just(Compression::None), Just(Compression::Lz4), (1i32..=19).prop_map(Compression::Zstd)]
    }

    /// Runs of equal, of few, and of any bytes.
    fn plain() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (any::<u8>(), 1usize..9000).prop_map(|(byte, length)| vec![byte; length]),
            proptest::collection::vec(b'a'..b'f', 0..9000),
            proptest::collection::vec(any::<u8>(), 0..9000),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn what_was_compressed_comes_back(compression in compression(), plain in plain()) {
            let (mut stored, mut back) = (Vec::new(), b"before".to_vec());
            let codec = Compressor::new(compression).compress(&plain, &mut stored);
            prop_assert!(stored.len() <= plain.len());
            decompress(codec, &stored, plain.len(), &mut back).unwrap();
            prop_assert_eq!(&back[6..], &plain[..]);
            // The same into nothing, and into nothing with more room than it takes.
            for room in [0, plain.len() + 5000] {
                let mut alone = Vec::with_capacity(room);
                decompress(codec, &stored, plain.len(), &mut alone).unwrap();
                prop_assert_eq!(&alone, &plain);
                for wrong in [plain.len() + 1, plain.len().wrapping_sub(1), 0] {
                    if wrong != plain.len() {
                        alone.clear();
                        prop_assert!(decompress(codec, &stored, wrong, &mut alone).is_err());
                        prop_assert!(alone.is_empty());
                    }
                }
            }
            // Any other length is refused, and leaves the output alone.
            for wrong in [plain.len() + 1, plain.len().wrapping_sub(1), 0, usize::MAX] {
                if wrong != plain.len() {
                    prop_assert!(decompress(codec, &stored, wrong, &mut back).is_err());
                    prop_assert_eq!(back.len(), 6 + plain.len());
                }
            }
        }

        #[test]
        fn damage_never_panics(
            compression in compression(), plain in plain(), cut: usize, flips in proptest::collection::vec(any::<(usize, u8)>(), 0..4)
        ) {
            let mut stored = Vec::new();
            let codec = Compressor::new(compression).compress(&plain, &mut stored);
            if !stored.is_empty() {
                for (at, bits) in flips {
                    let at = at % stored.len();
                    stored[at] ^= bits;
                }
                stored.truncate(1 + cut % stored.len());
            }
            let _ = decompress(codec, &stored, plain.len(), &mut Vec::new());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn garbage_never_panics(
            stored in proptest::collection::vec(any::<u8>(), 0..2000), zstd_magic: bool, plain_bytes in 0usize..300_000
        ) {
            let mut stored = stored;
            if zstd_magic {
                stored.splice(0..0, 0xfd2f_b528_u32.to_le_bytes());
            }
            for codec in CODECS {
                let mut out = Vec::new();
                let result = decompress(codec, &stored, plain_bytes, &mut out);
                prop_assert_eq!(out.len(), if result.is_ok() { plain_bytes } else { 0 });
            }
        }
    }

    #[test]
    fn lengths_are_tested_before_memory_is_taken() {
        let mut out = Vec::new();
        for codec in CODECS {
            let refused = decompress(codec, &[], usize::MAX, &mut out);
            assert!(matches!(refused, Err(ChunkError::TooLarge { .. })));
        }
        assert_eq!(out.capacity(), 0);
    }
}
