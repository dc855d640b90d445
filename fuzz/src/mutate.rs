//! Seeded mutations: what a fuzzer does first, where there is none.

use aegisfs_base::{Rng, SeededRng};

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x10_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 1,
];
/// Inputs do not grow beyond this.
const BYTES_MAX: usize = 64 << 10;

/// Changes bytes in one to four ways.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &SeededRng) {
    for _ in 0..=rng.below(4) {
        mutate_once(bytes, other, rng);
    }
    bytes.truncate(BYTES_MAX);
}

fn mutate_once(bytes: &mut Vec<u8>, other: &[u8], rng: &SeededRng) {
    let place = |length: usize| rng.below(length.max(1) as u64) as usize;
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    // Structures have their lengths at the start, so half of all changes fall there.
    let near = if rng.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
    let at = place(near);
    match rng.below(8) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.below(256) as u8,
        2 => bytes.truncate(at),
        3 => put_edge(bytes, at, rng),
        4 => {
            let end = (at + 1 + place(32)).min(bytes.len());
            bytes.drain(at..end);
        }
        5 => {
            let end = (at + 1 + place(64)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let from = place(other.len());
            let end = (from + 1 + place(64)).min(other.len());
            let until = (at + end - from).min(bytes.len());
            bytes.splice(at..until, other[from..end].iter().copied());
        }
        _ => bytes.extend((0..=rng.below(32)).map(|n| n as u8)),
    }
}

/// Writes a number of one to eight bytes over what is there.
fn put_edge(bytes: &mut [u8], at: usize, rng: &SeededRng) {
    let number = EDGES[rng.below(EDGES.len() as u64) as usize].to_le_bytes();
    let width = 1usize << rng.below(4);
    let end = (at + width).min(bytes.len());
    bytes[at..end].copy_from_slice(&number[..end - at]);
}
