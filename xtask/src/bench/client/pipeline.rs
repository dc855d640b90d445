//! What one core does with a stream when nothing else stands in the way: cut, hash, compress, copy.

use crate::Arguments;
use crate::content::{CALL_BYTES, Kind, Stream};
use aegisfs_chunk::{ChunkHash, Compression, Compressor, next_cut};
use anyhow::Result;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

/// Calls that are handed over together, as the daemon gets them from the kernel's cache.
const BATCH_CALLS: usize = 16;

/// Bytes per second of one core on the data of the writing rows.
pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let mut stream = Stream::new(arguments.number("seed")?, Kind::parse(arguments.text("kind")?)?);
    let calls: usize = arguments.number("mib")?;
    let mut set = CpuSet::new();
    set.set(0);
    sched_setaffinity(None, &set)?;
    let mut compressor = Compressor::new(Compression::Zstd(1));
    let (mut input, mut stored) = (Vec::new(), Vec::with_capacity(2 * BATCH_CALLS * CALL_BYTES));
    let (mut seconds, mut stored_bytes) = (0.0, 0);
    for first in (0..calls).step_by(BATCH_CALLS) {
        input.clear();
        (first..first + BATCH_CALLS).for_each(|call| input.extend_from_slice(stream.call(call)));
        stored.clear();
        let start = Instant::now();
        let mut rest = input.as_slice();
        while let Some(length) = next_cut(rest, true) {
            let (chunk, behind) = rest.split_at(length);
            black_box(ChunkHash::of(chunk));
            compressor.compress(chunk, &mut stored);
            rest = behind;
        }
        seconds += start.elapsed().as_secs_f64();
        stored_bytes += black_box(&stored).len();
    }
    let plain_bytes = calls.next_multiple_of(BATCH_CALLS) * CALL_BYTES;
    Ok(json!({ "seconds": seconds, "bytes": plain_bytes, "stored": stored_bytes }))
}
