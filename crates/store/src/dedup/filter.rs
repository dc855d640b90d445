//! A blocked Bloom filter (Putze, Sanders and Singler 2007): one cache line per key.

/// Bits per entry that the filter is sized for; about 1 % of misses get through.
const BITS_PER_ENTRY: u64 = 12;
/// Bits set per key.
const PROBES: u32 = 6;
/// Words of one block.
const BLOCK_WORDS: usize = 8;
/// Smallest filter, for about 350,000 chunks: 20 GiB at the average size.
const BYTES_MIN: u64 = 512 << 10;
/// Largest filter; beyond it more misses get through to the index.
const BYTES_MAX: u64 = 64 << 20;

/// Says for sure that a key is not there, or that it may be.
#[derive(Debug)]
pub(super) struct Filter {
    words: Vec<u64>,
    block_mask: u64,
}

impl Filter {
    /// A filter for four times as many entries as there are now.
    pub(super) fn for_entries(entries: u64) -> Self {
        let bytes = (entries.saturating_mul(4 * BITS_PER_ENTRY) / 8).clamp(BYTES_MIN, BYTES_MAX);
        let blocks = bytes.next_power_of_two() / (BLOCK_WORDS as u64 * 8);
        Self { words: vec![0; blocks as usize * BLOCK_WORDS], block_mask: blocks - 1 }
    }

    pub(super) fn insert(&mut self, key: &[u8]) {
        let (block, bits) = self.place(key);
        for (word, bit) in bits {
            self.words[block + word] |= 1 << bit;
        }
    }

    pub(super) fn may_contain(&self, key: &[u8]) -> bool {
        let (block, bits) = self.place(key);
        bits.into_iter().all(|(word, bit)| self.words[block + word] & 1 << bit != 0)
    }

    /// Keys end in a cryptographic hash, so their own bytes are as random as any.
    fn place(&self, key: &[u8]) -> (usize, [(usize, u32); PROBES as usize]) {
        let mut tail = [0u8; 16];
        let count = key.len().min(16);
        tail[..count].copy_from_slice(&key[key.len() - count..]);
        let low = u64::from_le_bytes(tail[..8].try_into().expect("eight bytes"));
        let mut high = u64::from_le_bytes(tail[8..].try_into().expect("eight bytes"));
        let block = (low & self.block_mask) as usize * BLOCK_WORDS;
        let bits = std::array::from_fn(|_| {
            let bit = high & 511;
            high >>= 9;
            ((bit / 64) as usize, (bit % 64) as u32)
        });
        (block, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    #[test]
    fn nothing_is_missed_and_little_gets_through() {
        let rng = SeededRng::new(11);
        let mut key = [0u8; 20];
        let mut filter = Filter::for_entries(0);
        let mut inside = Vec::new();
        for _ in 0..200_000 {
            rng.fill(&mut key);
            filter.insert(&key);
            inside.push(key);
        }
        assert!(inside.iter().all(|key| filter.may_contain(key)));
        let mut through = 0;
        for _ in 0..100_000 {
            rng.fill(&mut key);
            through += usize::from(filter.may_contain(&key));
        }
        assert!(through < 2_000, "{through} of 100,000 misses get through");
    }
}
