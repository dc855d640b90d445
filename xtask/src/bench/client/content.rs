//! Content that follows from a seed, cheap to make and never the same twice.

use anyhow::{Result, bail};

/// Bytes of one call.
pub(crate) const CALL_BYTES: usize = 1 << 20;
/// The unit in which content differs.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// What is repeated, with other stamps. Farther apart than any compressor here looks back.
const BASE_CALLS: usize = 64;
const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog, and then it does so again\n";

/// A small generator: speed matters, quality does not.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give similar numbers, and zero would give only zeros.
        Self(mix(seed) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }
}

/// Scatters a number over all 64 bits.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// How well content compresses.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Of every block one half is noise, the other a repeated line.
    Half,
    /// All noise.
    Noise,
}

impl Kind {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "half" => Ok(Self::Half),
            "noise" => Ok(Self::Noise),
            _ => bail!("content is half or noise, not {text}"),
        }
    }
}

/// A stream of calls. A base is made beforehand; each call stamps every block of its part of it, which costs
/// next to nothing while the clock runs, and no chunk ever comes twice.
pub(crate) struct Stream {
    base: Vec<u8>,
    seed: u64,
}

impl Stream {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let mut base = vec![0; BASE_CALLS * CALL_BYTES];
        let mut noise = Noise::new(seed);
        for block in base.chunks_mut(BLOCK_BYTES) {
            let (first, second) = block.split_at_mut(BLOCK_BYTES / 2);
            noise.fill(first);
            match kind {
                Kind::Noise => noise.fill(second),
                Kind::Half => second.iter_mut().zip(LINE.iter().cycle()).for_each(|(to, from)| *to = *from),
            }
        }
        Self { base, seed }
    }

    /// What the call of this number writes.
    pub(crate) fn call(&mut self, number: usize) -> &[u8] {
        let start = number % BASE_CALLS * CALL_BYTES;
        let call = &mut self.base[start..start + CALL_BYTES];
        for (place, block) in call.chunks_mut(BLOCK_BYTES).enumerate() {
            let stamp = mix(self.seed ^ mix((number * (CALL_BYTES / BLOCK_BYTES) + place) as u64));
            block[..8].copy_from_slice(&stamp.to_le_bytes());
        }
        call
    }
}
