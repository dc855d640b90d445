//! Frames: what is compressed in one go. Small neighbours share one, which compresses them far better.

use crate::rows::Frame;
use aegisfs_base::ChunkId;
use aegisfs_chunk::{Codec, Compression, Compressor};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Chunks smaller than this share a frame with their neighbours.
const SHARED_BELOW: usize = 64 << 10;
/// A shared frame is closed when it has grown to this.
const SHARED_BYTES: usize = 128 << 10;
/// Fewer plain bytes than this are not worth handing to other threads.
const PARALLEL_BYTES_MIN: usize = 256 << 10;

/// A chunk that has to be stored.
pub(crate) struct NewChunk<'a> {
    pub(crate) chunk: ChunkId,
    pub(crate) hash: [u8; 32],
    pub(crate) data: Cow<'a, [u8]>,
}

thread_local! {
    /// A compression context is costly to make and is kept by each thread that compresses.
    static COMPRESSOR: RefCell<Option<(Compression, Compressor)>> = const { RefCell::new(None) };
}

/// Groups chunks into frames, compresses them, on several threads when it pays, and hands them on in order
/// as soon as each is ready.
pub(crate) fn compress<'d, E: Send>(
    chunks: &[NewChunk<'d>],
    compression: Compression,
    workers: Option<&rayon::ThreadPool>,
    mut take: impl FnMut(Frame<'d>) -> Result<(), E>,
) -> Result<(), E> {
    let groups = group(chunks);
    let total: usize = chunks.iter().map(|c| c.data.len()).sum();
    let Some(workers) = workers.filter(|_| total >= PARALLEL_BYTES_MIN && groups.len() > 1) else {
        return groups.iter().try_for_each(|group| take(compress_one(group, compression)));
    };
    // The caller writes the first frames while the others are still being compressed.
    let (sender, receiver) = std::sync::mpsc::channel();
    workers.in_place_scope(|scope| {
        for (number, group) in groups.iter().enumerate() {
            let sender = sender.clone();
            scope.spawn(move |_| {
                // Nobody listens any more when writing failed.
                let _ = sender.send((number, compress_one(group, compression)));
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (number, frame) in &receiver {
            early.insert(number, frame);
            while let Some(frame) = early.remove(&next) {
                take(frame)?;
                next += 1;
            }
        }
        Ok(())
    })
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

fn compress_one<'d>(group: &[NewChunk<'d>], compression: Compression) -> Frame<'d> {
    let mut entries = Vec::with_capacity(group.len());
    let mut offset = 0u32;
    for chunk in group {
        entries.push((chunk.chunk, chunk.hash, offset, chunk.data.len() as u32));
        offset += chunk.data.len() as u32;
    }
    let plain = match group {
        [only] => only.data.clone(),
        several => Cow::Owned(several.iter().map(|chunk| &*chunk.data).collect::<Vec<_>>().concat()),
    };
    let shrunk = COMPRESSOR.with_borrow_mut(|slot| {
        let fresh = slot.as_ref().is_none_or(|(kind, _)| *kind != compression);
        if fresh {
            *slot = Some((compression, Compressor::new(compression)));
        }
        let (_, compressor) = slot.as_mut().expect("it was just put there");
        compressor.shrink(&plain).map(|(codec, stored)| (codec, stored.to_vec()))
    });
    let (codec, stored) = match shrunk {
        Some((codec, stored)) => (codec, Cow::Owned(stored)),
        None => (Codec::Plain, plain),
    };
    Frame { stored, plain_bytes: offset, codec: codec as u8, chunks: entries }
}
