//! Repeatable data of two kinds.

use aegisfs_base::{Rng, SeededRng};

/// Noise.
pub(crate) fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SeededRng::new(seed).fill(&mut bytes);
    bytes
}

/// Lines of words, which compress about as program text does.
pub(crate) fn compressible(seed: u64, length: usize) -> Vec<u8> {
    let rng = SeededRng::new(seed);
    let words: Vec<Vec<u8>> =
        (0..2000).map(|_| (0..2 + rng.below(9)).map(|_| b'a' + rng.below(26) as u8).collect()).collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        // The lower of two picks: some words are more frequent than others.
        let pick = rng.below(2000).min(rng.below(2000)) as usize;
        text.extend_from_slice(&words[pick]);
        text.push(if rng.below(8) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(length);
    text
}
