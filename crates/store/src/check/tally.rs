//! A number for each chunk, in little memory: chunks are numbered one after the other.

use aegisfs_base::ChunkId;
use std::collections::BTreeMap;

/// Chunks that share a page.
const PAGE_CHUNKS: u64 = 4096;

/// Numbers by chunk, 0 where none was noted.
#[derive(Default)]
pub(super) struct Tally {
    pages: BTreeMap<u64, Box<[u32]>>,
    /// Chunks with another number than 0.
    chunks: u64,
}

impl Tally {
    pub(super) fn get(&self, chunk: ChunkId) -> u32 {
        let page = self.pages.get(&(chunk.0 / PAGE_CHUNKS));
        page.map_or(0, |page| page[(chunk.0 % PAGE_CHUNKS) as usize])
    }

    pub(super) fn add_one(&mut self, chunk: ChunkId) {
        let fresh = || vec![0; PAGE_CHUNKS as usize].into();
        let page = self.pages.entry(chunk.0 / PAGE_CHUNKS).or_insert_with(fresh);
        let number = &mut page[(chunk.0 % PAGE_CHUNKS) as usize];
        self.chunks += u64::from(*number == 0);
        *number += 1;
    }

    /// How many chunks were noted.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }
}
