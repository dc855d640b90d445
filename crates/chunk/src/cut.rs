//! Where to cut: at places that the content chooses, so that equal data gets equal chunks wherever
//! it lies.
//!
//! A gear hash rolls over the last 64 bytes; where its high bits are all zero is a place to cut.
//! Before the average size more bits are asked for than after it ("normalised" chunking), which
//! draws the sizes together. Where a chunk ends depends on its own bytes only, so after a change the
//! cuts fall back into step at the first place that both sides choose.

use aegisfs_base::limits::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use gearhash::{Hasher, Table};

/// Bytes that the hash remembers: each shifts it by one bit of 64.
const WINDOW_BYTES: usize = 64;

/// Two bits more than the average calls for, before it; and two less after it. Measured on random
/// data: mean 73 KiB, and less than one chunk in 800 reaches the largest size.
const MASK_HARD: u64 = high_bits(CHUNK_BYTES_AVERAGE.ilog2() + 2);
const MASK_EASY: u64 = high_bits(CHUNK_BYTES_AVERAGE.ilog2() - 2);

/// Frozen by test vectors: another table cuts elsewhere, and nothing old would be found again.
static TABLE: Table = gear_table(0x6165_6769_7366_7331);

const _: () = assert!(WINDOW_BYTES <= CHUNK_BYTES_MIN);
const _: () = assert!(CHUNK_BYTES_MIN < CHUNK_BYTES_AVERAGE && CHUNK_BYTES_AVERAGE < CHUNK_BYTES_MAX);

/// The length of the first chunk in `data`, which begins where the chunk before ended.
///
/// `None` means that more data is needed to decide, which happens only below the largest chunk and
/// when `last` is not set. With `last` the data ends here and the rest is a chunk, however short;
/// only of no data at all there is none. The answer does not depend on how much data lies behind
/// the cut, so a caller may offer its data in any pieces.
pub fn next_cut(data: &[u8], last: bool) -> Option<usize> {
    let rest = if last && !data.is_empty() { Some(data.len()) } else { None };
    if data.len() <= CHUNK_BYTES_MIN {
        return rest;
    }
    let mut hasher = Hasher::new(&TABLE);
    // The hash at the first candidate has seen its whole window, as everywhere else.
    hasher.update(&data[CHUNK_BYTES_MIN - WINDOW_BYTES..CHUNK_BYTES_MIN]);
    let average = data.len().min(CHUNK_BYTES_AVERAGE);
    if let Some(length) = hasher.next_match(&data[CHUNK_BYTES_MIN..average], MASK_HARD) {
        return Some(CHUNK_BYTES_MIN + length);
    }
    let end = data.len().min(CHUNK_BYTES_MAX);
    if let Some(length) = hasher.next_match(&data[average..end], MASK_EASY) {
        return Some(average + length);
    }
    if end == CHUNK_BYTES_MAX { Some(end) } else { rest }
}

const fn high_bits(count: u32) -> u64 {
    !0 << (u64::BITS - count)
}

/// 256 numbers of splitmix64.
const fn gear_table(seed: u64) -> Table {
    let mut table = [0; 256];
    let mut state = seed;
    let mut i = 0;
    while i < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};
    use proptest::prelude::*;

    fn random(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        SeededRng::new(seed).fill(&mut bytes);
        bytes
    }

    fn cut_all(mut data: &[u8]) -> Vec<&[u8]> {
        let mut chunks = Vec::new();
        while let Some(length) = next_cut(data, true) {
            chunks.push(&data[..length]);
            data = &data[length..];
        }
        assert!(data.is_empty());
        chunks
    }

    /// The same decision, byte by byte.
    fn next_cut_slowly(data: &[u8]) -> usize {
        let mut hash = 0u64;
        for (i, byte) in data.iter().enumerate().take(CHUNK_BYTES_MAX) {
            hash = (hash << 1).wrapping_add(TABLE[*byte as usize]);
            let length = i + 1;
            let mask = if length <= CHUNK_BYTES_AVERAGE { MASK_HARD } else { MASK_EASY };
            if length > CHUNK_BYTES_MIN && hash & mask == 0 {
                return length;
            }
        }
        data.len().min(CHUNK_BYTES_MAX)
    }

    #[test]
    fn fast_and_slow_agree() {
        let data = random(1, 8 << 20);
        let mut rest = &data[..];
        while let Some(length) = next_cut(rest, true) {
            assert_eq!(length, next_cut_slowly(rest));
            rest = &rest[length..];
        }
    }

    #[test]
    fn sizes_keep_their_bounds_and_their_average() {
        let data = random(2, 64 << 20);
        let chunks = cut_all(&data);
        let (end, whole) = chunks.split_last().unwrap();
        assert!(end.len() <= CHUNK_BYTES_MAX);
        for chunk in whole {
            assert!((CHUNK_BYTES_MIN + 1..=CHUNK_BYTES_MAX).contains(&chunk.len()));
        }
        let mean = data.len() / chunks.len();
        assert!((56 << 10..80 << 10).contains(&mean), "mean {mean}");
        let forced = whole.iter().filter(|chunk| chunk.len() == CHUNK_BYTES_MAX).count();
        assert!(forced * 100 < chunks.len(), "{forced} of {} cut by force", chunks.len());
    }

    #[test]
    fn constant_runs_give_equal_chunks_of_the_largest_size() {
        for byte in 0..=255 {
            let data = vec![byte; 4 * CHUNK_BYTES_MAX];
            assert!(cut_all(&data).iter().all(|chunk| chunk.len() == CHUNK_BYTES_MAX), "byte {byte}");
        }
    }

    #[test]
    fn undecided_only_while_more_can_matter() {
        assert_eq!((next_cut(&[], false), next_cut(&[], true)), (None, None));
        for length in [1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX - 1] {
            let zeros = vec![0; length];
            assert_eq!((next_cut(&zeros, false), next_cut(&zeros, true)), (None, Some(length)));
        }
        assert_eq!(next_cut(&vec![0; CHUNK_BYTES_MAX], false), Some(CHUNK_BYTES_MAX));
        assert_eq!(next_cut(&vec![0; CHUNK_BYTES_MAX + 1], true), Some(CHUNK_BYTES_MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn pieces_do_not_matter(seed: u64, pieces in proptest::collection::vec(1usize..200_000, 1..20)) {
            let data = random(seed, 1 << 20);
            let expected: Vec<usize> = cut_all(&data).iter().map(|chunk| chunk.len()).collect();
            let (mut found, mut start, mut end) = (Vec::new(), 0, 0);
            let mut pieces = pieces.iter().cycle();
            while start < data.len() {
                let last = end == data.len();
                match next_cut(&data[start..end], last) {
                    Some(length) => {
                        found.push(length);
                        start += length;
                    }
                    None => end = data.len().min(end + pieces.next().unwrap()),
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
