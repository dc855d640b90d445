//! A cheap look at a chunk: is it worth trying to compress?
//!
//! Photographs, films and archives do not get smaller, and trying costs more than everything else
//! that is done to them. Two things make data compressible, and samples all over the chunk are
//! looked at for both:
//!
//! * **Uneven bytes.** If some values are more frequent than others, more pairs of sampled bytes are
//!   equal than one in 256. Counting pairs needs no logarithms and no floating point. It is done for
//!   the whole, and for each sample alone so that a small part that is text shows.
//! * **Repeats.** Eight bytes at every point of a grid are remembered; then all positions in some
//!   windows, each as long as the grid's step, are looked up. A repeat that is longer than two steps
//!   and is touched by a window cannot slip through, at whatever distance it lies.
//!
//! The probe errs towards trying: a wrong yes costs time, a wrong no costs space for ever.

/// Below this the samples are too few to tell, and a try is cheap.
const BYTES_MIN: usize = 2048;

const SAMPLE_BYTES: usize = 256;
/// An eighth of the data is sampled for the bytes, within these bounds.
const SAMPLES_MIN: usize = 16;
const SAMPLES_MAX: usize = 32;

/// Pairs of equal bytes, in 256ths of what even bytes have, that are called uneven. For random
/// data the whole is within 3 % (five standard deviations of the fewest samples), and one sample
/// within 50 %, but for once in a million samples. A saving of 1/32 from uneven bytes has at least
/// 19 % more pairs.
const WHOLE_UNEVEN: u64 = 256 + 16;
const SAMPLE_UNEVEN: u64 = 256 + 144;

const GRID_POINTS_MAX: usize = 1024;
const GRID_STEP_MIN: usize = 64;
/// One grid point in so many repeats an earlier one exactly: worth trying.
const GRID_REPEATS_SHARE: usize = 48;
const SLOT_BITS: u32 = 11;

/// Whether compression is likely to make the data smaller by a thirty-second or more.
pub fn worth_compressing(plain: &[u8]) -> bool {
    plain.len() < BYTES_MIN || has_uneven_bytes(plain) || has_repeats(plain)
}

/// Starts of `count` windows spread evenly, the first at the start and the last at the end.
fn spread(plain_bytes: usize, window_bytes: usize, count: usize) -> impl Iterator<Item = usize> {
    let room = plain_bytes.saturating_sub(window_bytes);
    (0..count).map(move |i| room * i / (count - 1).max(1))
}

fn has_uneven_bytes(plain: &[u8]) -> bool {
    let count = (plain.len() / (8 * SAMPLE_BYTES)).clamp(SAMPLES_MIN, SAMPLES_MAX);
    // Samples must not overlap, or a byte makes a pair with itself.
    let count = count.min(plain.len() / SAMPLE_BYTES);
    let mut whole = [0u16; 256];
    for start in spread(plain.len(), SAMPLE_BYTES, count) {
        let mut sample = [0u16; 256];
        for byte in &plain[start..start + SAMPLE_BYTES] {
            sample[usize::from(*byte)] += 1;
        }
        if is_uneven(&sample, SAMPLE_BYTES, SAMPLE_UNEVEN) {
            return true;
        }
        for (sum, part) in whole.iter_mut().zip(sample) {
            *sum += part;
        }
    }
    is_uneven(&whole, count * SAMPLE_BYTES, WHOLE_UNEVEN)
}

/// Compares the ordered pairs of equal bytes, the sum of c(c-1), with n(n-1)/256.
fn is_uneven(counts: &[u16; 256], total: usize, uneven: u64) -> bool {
    let squares: u64 =
        u64::from(counts.iter().map(|count| u32::from(*count) * u32::from(*count)).sum::<u32>());
    let total = total as u64;
    (squares - total) * 256 * 256 > total * (total - 1) * uneven
}

fn has_repeats(plain: &[u8]) -> bool {
    let step = GRID_STEP_MIN.max(plain.len().div_ceil(GRID_POINTS_MAX));
    let mut slots = [0u64; 1 << SLOT_BITS];
    let (mut points, mut repeats) = (0, 0);
    for at in (0..plain.len() - 7).step_by(step) {
        let word = word_at(plain, at);
        let slot = &mut slots[slot_of(word)];
        repeats += usize::from(*slot == word);
        *slot = word;
        points += 1;
    }
    if repeats * GRID_REPEATS_SHARE >= points {
        return true;
    }
    let windows = (plain.len() / 1024).clamp(SAMPLES_MIN, SAMPLES_MAX);
    spread(plain.len(), step + 8, windows).any(|start| {
        // The point of the grid in the window would only find itself.
        let window = (start..start + step).filter(|at| !at.is_multiple_of(step));
        window.map(|at| word_at(plain, at)).any(|word| slots[slot_of(word)] == word)
    })
}

fn word_at(plain: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*plain[at..].first_chunk().expect("eight bytes follow"))
}

fn slot_of(word: u64) -> usize {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOT_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    const SIZES: [usize; 5] = [2048, 5000, 16 << 10, 64 << 10, 256 << 10];

    fn random(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        SeededRng::new(seed).fill(&mut bytes);
        bytes
    }

    #[test]
    fn random_data_is_not_worth_it() {
        for size in SIZES {
            let wrong = (0..1000).filter(|seed| worth_compressing(&random(*seed, size))).count();
            assert!(wrong <= 1, "{wrong} of 1000 at {size} bytes");
        }
    }

    #[test]
    fn few_values_are_worth_it() {
        for size in SIZES {
            // 7 of 8 bits used; sixty-four letters; one byte in four always the same.
            let seven: Vec<u8> = random(1, size).iter().map(|byte| byte & 0x7f).collect();
            let letters: Vec<u8> = random(2, size).iter().map(|byte| b'0' + byte % 64).collect();
            let mut numbers = random(3, size);
            numbers.iter_mut().step_by(4).for_each(|byte| *byte = 0);
            for data in [seven, letters, numbers, vec![0; size], vec![0xff; size]] {
                assert!(worth_compressing(&data), "{size}");
            }
        }
    }

    #[test]
    fn a_small_part_of_text_shows() {
        for size in [16 << 10, 64 << 10, 256 << 10] {
            for part in 0..10 {
                let mut data = random(part, size);
                let start = size / 10 * part as usize;
                data[start..start + size / 10].iter_mut().for_each(|byte| *byte = b'a' + *byte % 20);
                assert!(worth_compressing(&data), "a tenth at {start} of {size}");
            }
        }
    }

    #[test]
    fn repeats_of_random_data_show_at_any_distance() {
        for size in [16 << 10, 64 << 10, 256 << 10] {
            for shift in [0, 1, 31, 63, 777] {
                let mut data = random(9, size);
                let third = size / 3;
                data.copy_within(..third, size - third - shift);
                assert!(worth_compressing(&data), "shift {shift} of {size}");
            }
            let record = random(10, 48);
            let data: Vec<u8> = record.iter().copied().cycle().take(size).collect();
            assert!(worth_compressing(&data));
        }
    }
}
