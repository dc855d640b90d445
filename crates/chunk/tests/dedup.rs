//! Content-defined cutting earns its keep: after an insertion nearly all chunks are found again.

use std::collections::HashSet;

use aegisfs_base::{Rng, SeededRng};
use aegisfs_chunk::{ChunkHash, next_cut};

mod data;

fn hashes(mut data: &[u8]) -> HashSet<ChunkHash> {
    let mut hashes = HashSet::new();
    while let Some(length) = next_cut(data, true) {
        hashes.insert(ChunkHash::of(&data[..length]));
        data = &data[length..];
    }
    hashes
}

fn new_share(old: &[u8], new: &[u8]) -> f64 {
    let (old, new) = (hashes(old), hashes(new));
    new.difference(&old).count() as f64 / new.len() as f64
}

#[test]
fn one_byte_in_front_makes_few_new_chunks() {
    for data in [data::random(1, 32 << 20), data::compressible(1, 32 << 20)] {
        let shifted: Vec<u8> = std::iter::once(b'!').chain(data.iter().copied()).collect();
        let share = new_share(&data, &shifted);
        assert!(share < 0.01, "{:.2} % are new", share * 100.0);
    }
}

#[test]
fn an_edit_in_the_middle_stays_local() {
    let data = data::compressible(2, 32 << 20);
    let rng = SeededRng::new(3);
    for _ in 0..4 {
        let mut edited = data.clone();
        let at = rng.below(data.len() as u64) as usize;
        edited.splice(at..at, *b"inserted");
        let share = new_share(&data, &edited);
        assert!(share < 0.01, "{:.2} % are new after an edit at {at}", share * 100.0);
    }
}
