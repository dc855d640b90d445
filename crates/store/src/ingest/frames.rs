//! Frames: what is compressed in one go. Small neighbours share one, which compresses them far better.

use crate::rows::Frame;
use aegisfs_base::ChunkId;
use aegisfs_chunk::{Compression, Compressor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Chunks smaller than this share a frame with their neighbours.
const SHARED_BELOW: usize = 64 << 10;
/// A shared frame is closed when it has grown to this.
const SHARED_BYTES: usize = 128 << 10;
/// Fewer plain bytes than this are not worth handing to other threads.
const PARALLEL_BYTES_MIN: usize = 256 << 10;

/// A chunk that has to be stored.
pub(super) struct NewChunk<'a> {
    pub(super) chunk: ChunkId,
    pub(super) hash: [u8; 32],
    pub(super) data: &'a [u8],
}

thread_local! {
    /// A compression context is costly to make and is kept by each thread that compresses.
    static COMPRESSOR: RefCell<Option<(Compression, Compressor)>> = const { RefCell::new(None) };
}

/// Groups chunks into frames and compresses them, on several threads when it pays.
pub(super) fn compress(
    chunks: &[NewChunk<'_>],
    compression: Compression,
    workers: Option<&rayon::ThreadPool>,
) -> Vec<Frame> {
    let groups = group(chunks);
    let total: usize = chunks.iter().map(|c| c.data.len()).sum();
    match workers {
        Some(workers) if total >= PARALLEL_BYTES_MIN && groups.len() > 1 => {
            workers.install(|| groups.par_iter().map(|group| compress_one(group, compression)).collect())
        }
        _ => groups.iter().map(|group| compress_one(group, compression)).collect(),
    }
}

fn group<'c, 'd>(chunks: &'c [NewChunk<'d>]) -> Vec<&'c [NewChunk<'d>]> {
    let mut groups = Vec::new();
    let mut start = 0;
    while start < chunks.len() {
        let mut end = start + 1;
        let mut bytes = chunks[start].data.len();
        if bytes < SHARED_BELOW {
            while end < chunks.len()
                && chunks[end].data.len() < SHARED_BELOW
                && bytes + chunks[end].data.len() <= SHARED_BYTES
            {
                bytes += chunks[end].data.len();
                end += 1;
            }
        }
        groups.push(&chunks[start..end]);
        start = end;
    }
    groups
}

fn compress_one(group: &[NewChunk<'_>], compression: Compression) -> Frame {
    let mut joined = Vec::new();
    let mut entries = Vec::with_capacity(group.len());
    let mut offset = 0u32;
    for chunk in group {
        entries.push((chunk.chunk, chunk.hash, offset, chunk.data.len() as u32));
        offset += chunk.data.len() as u32;
    }
    let plain: &[u8] = match group {
        [only] => only.data,
        several => {
            joined.reserve(offset as usize);
            several.iter().for_each(|chunk| joined.extend_from_slice(chunk.data));
            &joined
        }
    };
    let mut stored = Vec::with_capacity(plain.len());
    let codec = COMPRESSOR.with_borrow_mut(|slot| {
        let fresh = slot.as_ref().is_none_or(|(kind, _)| *kind != compression);
        if fresh {
            *slot = Some((compression, Compressor::new(compression)));
        }
        let (_, compressor) = slot.as_mut().expect("it was just put there");
        compressor.compress(plain, &mut stored)
    });
    Frame { stored, plain_bytes: offset, codec: codec as u8, chunks: entries }
}
