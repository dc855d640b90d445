//! From plain bytes to what is stored.

use aegisfs_base::limits::FRAME_BYTES_MAX;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::codec::{Codec, Compression, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN};
use crate::probe::worth_compressing;

/// Less than one part in so many saved is not worth decoding at every read. Chunks are packed
/// without padding, so nothing is gained by a whole block and no other unit matters.
const SAVING_SHARE_MIN: usize = 32;

/// Compresses one buffer after the other with the same tables and contexts.
pub struct Compressor {
    compression: Compression,
    engine: Engine,
    // The stored form before it is known to be worth having. Stays at its largest size.
    scratch: Vec<u8>,
}

enum Engine {
    None,
    Lz4(Box<CompressTable>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// A compressor for this setting; it holds up to a few MiB.
    pub fn new(compression: Compression) -> Self {
        let engine = match compression {
            Compression::None => Engine::None,
            Compression::Lz4 => Engine::Lz4(Box::new(CompressTable::large())),
            Compression::Zstd(level) => {
                let level = level.clamp(ZSTD_LEVEL_MIN, ZSTD_LEVEL_MAX);
                Engine::Zstd(zstd::bulk::Compressor::new(level).expect("the levels exist"))
            }
        };
        Self { compression, engine, scratch: Vec::new() }
    }

    /// The setting.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Appends the stored form of `plain` to `out` and says how it is to be read.
    ///
    /// # Panics
    /// When there are more plain bytes than a frame may have.
    pub fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Codec {
        let (codec, stored) = self.shrink(plain).unwrap_or((Codec::Plain, plain));
        out.extend_from_slice(stored);
        codec
    }

    /// The stored form of `plain`, until the next call; none when it is stored as it is.
    ///
    /// # Panics
    /// When there are more plain bytes than a frame may have.
    pub fn shrink(&mut self, plain: &[u8]) -> Option<(Codec, &[u8])> {
        assert!(plain.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", plain.len());
        if matches!(self.engine, Engine::None) || !worth_compressing(plain) {
            return None;
        }
        let (codec, length) = self.try_compress(plain)?;
        Some((codec, &self.scratch[..length]))
    }

    /// Leaves the stored form in the scratch buffer, if there is one that is small enough.
    fn try_compress(&mut self, plain: &[u8]) -> Option<(Codec, usize)> {
        // At least one byte less, however short the data is.
        let limit = plain.len().checked_sub((plain.len() / SAVING_SHARE_MIN).max(1))?;
        let scratch_bytes = get_maximum_output_size(plain.len());
        if self.scratch.len() < scratch_bytes {
            self.scratch.resize(scratch_bytes, 0);
        }
        // An engine that fails costs the saving only: the data is stored as it is.
        match &mut self.engine {
            Engine::None => None,
            Engine::Lz4(table) => {
                let length = compress_into_with_table(plain, &mut self.scratch, table).ok()?;
                (length <= limit).then_some((Codec::Lz4, length))
            }
            // With room for no more than the limit it gives up early.
            Engine::Zstd(context) => {
                let length = context.compress_to_buffer(plain, &mut self.scratch[..limit]).ok()?;
                Some((Codec::Zstd, length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    #[test]
    fn appends_and_saves_what_it_promises() {
        let text: Vec<u8> = b"all work and no play makes a dull disk. ".repeat(1000);
        for (compression, codec) in [
            (Compression::None, Codec::Plain),
            (Compression::Lz4, Codec::Lz4),
            (Compression::Zstd(1), Codec::Zstd),
        ] {
            let mut compressor = Compressor::new(compression);
            let mut out = b"before".to_vec();
            assert_eq!(compressor.compress(&text, &mut out), codec);
            assert!(out.starts_with(b"before"));
            let stored = out.len() - 6;
            assert!(if codec == Codec::Plain { stored == text.len() } else { stored < text.len() / 20 });
        }
    }

    #[test]
    fn what_does_not_shrink_enough_is_plain() {
        let mut noise = vec![0; 64 << 10];
        SeededRng::new(1).fill(&mut noise);
        // A fiftieth of zeros can be seen and saved, but is not worth decoding for.
        let mut nearly = noise.clone();
        nearly[..(64 << 10) / 50].fill(0);
        for compression in [Compression::Lz4, Compression::Zstd(3)] {
            let mut compressor = Compressor::new(compression);
            for plain in [&noise[..], &nearly, b"", b"a", b"ab", &[7; 9][..1]] {
                let mut out = Vec::new();
                assert_eq!(compressor.compress(plain, &mut out), Codec::Plain);
                assert_eq!(out, plain);
            }
        }
    }

    #[test]
    fn levels_out_of_range_are_the_nearest() {
        for level in [i32::MIN, 0, 20, i32::MAX] {
            let mut out = Vec::new();
            assert_eq!(Compressor::new(Compression::Zstd(level)).compress(&[0; 9000], &mut out), Codec::Zstd);
        }
    }

    #[test]
    #[should_panic(expected = "a frame of")]
    fn a_frame_beyond_the_limit_is_a_mistake() {
        Compressor::new(Compression::Lz4).compress(&vec![0; FRAME_BYTES_MAX + 1], &mut Vec::new());
    }
}
