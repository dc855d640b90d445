//! Prints what one core does per second, on noise, on made-up text, and on files that are named.
//!
//! ```text
//! cargo run --release -p aegisfs-chunk --example throughput [FILE..]
//! ```
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use aegisfs_chunk::{ChunkHash, Codec, Compression, Compressor, Decompressor, next_cut, worth_compressing};

#[path = "../tests/data/mod.rs"]
mod data;

const SIZE: usize = 64 << 20;
const ROUNDS: usize = 5;

/// The median round, and how far apart the extremes are.
fn measure(name: &str, bytes: usize, mut round: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .collect();
    times.sort();
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e6;
    let (slow, mid, fast) = (rate(times[ROUNDS - 1]), rate(times[ROUNDS / 2]), rate(times[0]));
    println!("  {name:<24} {mid:>8.0} MB/s   ({slow:.0} to {fast:.0})");
}

fn cut(mut data: &[u8]) -> Vec<&[u8]> {
    let mut chunks = Vec::new();
    while let Some(length) = next_cut(data, true) {
        chunks.push(&data[..length]);
        data = &data[length..];
    }
    chunks
}

/// What the probe gives away: bytes stored with it, and with trying everything.
fn ratio(chunks: &[&[u8]], compression: Compression) {
    let Compression::Zstd(level) = compression else { return };
    let mut compressor = Compressor::new(compression);
    let mut all = zstd::bulk::Compressor::new(level).expect("a level");
    let (mut plain, mut with, mut without, mut skipped) = (0, 0, 0, 0);
    for chunk in chunks {
        let mut out = Vec::new();
        compressor.compress(chunk, &mut out);
        let tried = all.compress(chunk).expect("compresses").len();
        plain += chunk.len();
        with += out.len();
        without += if tried <= chunk.len() - chunk.len() / 32 { tried } else { chunk.len() };
        skipped += usize::from(!worth_compressing(chunk));
    }
    println!(
        "  ratio {:.4}, without probe {:.4}; probe skips {skipped} of {} chunks, mean {} bytes",
        plain as f64 / with as f64,
        plain as f64 / without as f64,
        chunks.len(),
        plain / chunks.len()
    );
}

fn report(name: &str, data: &[u8]) {
    println!("{name}, {} bytes", data.len());
    let chunks = cut(data);
    measure("cut", data.len(), || {
        black_box(cut(data));
    });
    measure("hash", data.len(), || {
        for chunk in &chunks {
            black_box(ChunkHash::of(chunk));
        }
    });
    measure("probe", data.len(), || {
        for chunk in &chunks {
            black_box(worth_compressing(chunk));
        }
    });
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let mut compressor = Compressor::new(compression);
        let mut stored: Vec<(Codec, Vec<u8>, usize)> = Vec::new();
        measure(&format!("probe + {compression}"), data.len(), || {
            stored.clear();
            for chunk in &chunks {
                let mut out = Vec::with_capacity(chunk.len());
                stored.push((compressor.compress(chunk, &mut out), out, chunk.len()));
            }
        });
        let (mut decompressor, mut plain) = (Decompressor::new(), Vec::new());
        measure(&format!("decompress {compression}"), data.len(), || {
            for (codec, bytes, plain_bytes) in &stored {
                plain.clear();
                decompressor.append(*codec, bytes, *plain_bytes, &mut plain).expect("decodes");
            }
        });
        ratio(&chunks, compression);
    }
}

fn main() -> std::io::Result<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    for file in &files {
        report(file, &std::fs::read(file)?);
    }
    if files.is_empty() {
        report("noise", &data::random(1, SIZE));
        report("text", &data::compressible(1, SIZE));
    }
    Ok(())
}
