//! Checksum blocks in memory: loaded when first needed, written by each sync that changed them.

use super::Database;
use crate::PoolError;
use crate::slots::Placement;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::Sum128;
use aegisfs_format::page::{PAGES_PER_GROUP, PageEntry, SumBlock, SumBlockPlace, page_sum};
use std::collections::{BTreeMap, BTreeSet};

/// Clean checksum blocks kept in memory; each covers half a megabyte of metadata.
const GROUPS_KEPT_MAX: usize = 16 << 10;

/// The checksum blocks in memory.
#[derive(Debug, Default)]
pub(super) struct Groups {
    loaded: BTreeMap<(u32, u32), SumBlock>,
    dirty: BTreeSet<(u32, u32)>,
    /// How often blocks were dropped; one that was read before may be older than what was dropped.
    trims: u64,
    /// The first page, which is written anew with every new generation of the first block.
    page_zero: Option<Box<[u8; BLOCK_BYTES]>>,
}

impl Groups {
    /// Drops clean blocks when there are too many.
    fn trim(&mut self) {
        if self.loaded.len() <= GROUPS_KEPT_MAX {
            return;
        }
        let clean: Vec<_> = self
            .loaded
            .keys()
            .filter(|k| !self.dirty.contains(k))
            .take(GROUPS_KEPT_MAX / 4)
            .copied()
            .collect();
        self.trims += 1;
        for key in clean {
            self.loaded.remove(&key);
        }
    }
}

impl Database {
    /// Where a page lies in its slot, given the generation of its checksum block.
    pub(super) fn page_place(&self, piece: u32, page: u32, generation: u64) -> u64 {
        if piece == 0 && page == 0 && generation % 2 == 1 {
            return self.layout.first_page_twin_offset();
        }
        self.layout.page_offset(page)
    }

    /// A page's checksum and the generation of the block that holds it.
    pub(super) fn page_entry(&self, piece: u32, page: u32) -> Result<(PageEntry, u64), PoolError> {
        self.with_group(piece, page, false, |block, index| (block.entries[index], block.generation))
    }

    /// Notes a page's new checksum.
    pub(super) fn note_page(&self, piece: u32, page: u32, sum: Sum128) -> Result<(), PoolError> {
        self.with_group(piece, page, true, |block, index| {
            let counter = block.entries[index].counter + 1;
            block.entries[index] = PageEntry { sum, counter };
        })
    }

    /// Keeps the first page for the next write of its checksum block.
    pub(super) fn keep_page_zero(&self, content: &[u8; BLOCK_BYTES]) {
        self.groups.lock().page_zero = Some(Box::new(*content));
    }

    /// The first page, if it was written or read since the database was opened.
    pub(super) fn page_zero_in_memory(&self) -> Option<Box<[u8; BLOCK_BYTES]>> {
        self.groups.lock().page_zero.clone()
    }

    fn with_group<T>(
        &self,
        piece: u32,
        page: u32,
        changes: bool,
        work: impl FnOnce(&mut SumBlock, usize) -> T,
    ) -> Result<T, PoolError> {
        let key = (piece, page / PAGES_PER_GROUP as u32);
        let index = page as usize % PAGES_PER_GROUP;
        let mut groups = self.groups.lock();
        while !groups.loaded.contains_key(&key) {
            let trims = groups.trims;
            drop(groups);
            let loaded = self.load_group(piece, key.1)?;
            groups = self.groups.lock();
            // Another thread may have loaded, changed, written and dropped it meanwhile.
            if groups.trims == trims {
                groups.trim();
                groups.loaded.entry(key).or_insert(loaded);
            }
        }
        if changes {
            // Noted before the lock is let go: what is not dirty may be dropped at any time.
            groups.dirty.insert(key);
        }
        let block = groups.loaded.get_mut(&key).expect("loaded above");
        Ok(work(block, index))
    }

    /// Reads a checksum block: the newest of all places that verifies.
    fn load_group(&self, piece: u32, group: u32) -> Result<SumBlock, PoolError> {
        let place = SumBlockPlace { database: self.number, piece, group };
        let mut best: Option<SumBlock> = None;
        // Which of the two places hold a block in at least one copy, and the highest generation of all.
        let mut present = [false; 2];
        let mut newest = 0;
        let mut bytes = AlignedBuffer::zeroed(BLOCK_BYTES);
        for slot in self.places(piece) {
            for copy in 0..2 {
                let offset = self.layout.sum_block_offset(group, copy);
                if self.pool.read_slot(slot, offset, &mut bytes).is_err() {
                    continue;
                }
                let Ok(block) = SumBlock::decode(&bytes, place) else { continue };
                present[copy as usize] = true;
                newest = newest.max(block.generation);
                let newer = best.as_ref().is_none_or(|b| b.generation < block.generation);
                if newer && (piece != 0 || group != 0 || self.page_zero_verifies(&block)?) {
                    best = Some(block);
                }
            }
        }
        let root = (piece, group) == (0, 0);
        if root && self.pool.ended_in_order() {
            // Falling back to the older block would bring back the older root, and with it undo a commit.
            // After a crash that is right; after an orderly end the newer block can only be damaged.
            best = best.filter(|b| b.generation == newest && present == [true; 2]);
        }
        best.ok_or_else(|| {
            let pages = u64::from(self.layout.pages);
            let first = u64::from(group) * PAGES_PER_GROUP as u64;
            let last = (first + PAGES_PER_GROUP as u64).min(pages) - 1;
            tracing::error!(database = self.number, piece, group, "no copy of a checksum block verifies");
            let start = u64::from(piece) * pages;
            PoolError::PageSums { database: self.number, first: start + first, last: start + last }
        })
    }

    /// The newest checksum block as it should be on the devices, and in which of its places; nothing while changes to it wait
    /// in memory.
    pub(super) fn sum_block_on_devices(
        &self,
        piece: u32,
        group: u32,
    ) -> Result<Option<(Vec<u8>, u64)>, PoolError> {
        let first = group * PAGES_PER_GROUP as u32;
        self.with_group(piece, first, false, |block, _| (block.encode(), block.generation % 2)).map(|found| {
            let waits = self.groups.lock().dirty.contains(&(piece, group));
            (!waits).then_some(found)
        })
    }

    /// Reads what stands in one place of a checksum block, if any copy of that verifies.
    pub(super) fn read_sum_block(
        &self,
        piece: u32,
        group: u32,
        copy: u64,
        places: &[Placement],
        out: &mut AlignedBuffer,
    ) -> bool {
        let place = SumBlockPlace { database: self.number, piece, group };
        let offset = self.layout.sum_block_offset(group, copy);
        let verifies = |slot: &Placement| {
            self.pool.readable(*slot)
                && self.pool.read_slot(*slot, offset, out).is_ok()
                && SumBlock::decode(out, place).is_ok()
        };
        places.iter().any(verifies)
    }

    /// The bytes of a new piece's checksum blocks: both copies valid, no page written.
    pub(super) fn blank_sums(&self, piece: u32) -> AlignedBuffer {
        let mut bytes = AlignedBuffer::with_capacity(2 * self.layout.groups as usize * BLOCK_BYTES);
        for group in 0..self.layout.groups {
            let mut block = SumBlock::empty(SumBlockPlace { database: self.number, piece, group });
            for generation in 0..2 {
                block.generation = generation;
                bytes.extend_from_slice(&block.encode());
            }
        }
        bytes
    }

    /// Whether any copy of the page 0 that a block names is what it says.
    ///
    /// A copy that cannot be read is no reason to fall back to the older root.
    fn page_zero_verifies(&self, block: &SumBlock) -> Result<bool, PoolError> {
        let entry = block.entries[0];
        if entry.counter == 0 {
            return Ok(true);
        }
        let mut page = AlignedBuffer::zeroed(BLOCK_BYTES);
        let offset = self.page_place(0, 0, block.generation);
        let mut failure = None;
        for slot in self.places(0).into_iter().filter(|slot| self.pool.readable(*slot)) {
            match self.pool.read_slot(slot, offset, &mut page) {
                Ok(()) if page_sum(&page) == entry.sum => return Ok(true),
                Ok(()) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(false), Err)
    }

    /// Writes the changed checksum blocks, each over its older copy. The caller holds `sync`.
    pub(super) fn write_sums(&self) -> Result<(), PoolError> {
        let dirty = std::mem::take(&mut self.groups.lock().dirty);
        for (piece, group) in dirty {
            let page_zero = if (piece, group) == (0, 0) { self.current_page_zero()? } else { None };
            let (bytes, generation) = {
                let mut groups = self.groups.lock();
                let block = groups.loaded.get_mut(&(piece, group)).expect("dirty blocks stay loaded");
                block.generation += 1;
                (block.encode(), block.generation)
            };
            let copy = if removed(Edge::PageSumsAlternate) { 0 } else { generation % 2 };
            let places = self.places(piece);
            if let Some(page) = &page_zero {
                self.pool.write_copies(&places, self.page_place(0, 0, generation), &page[..])?;
            }
            self.pool.write_copies(&places, self.layout.sum_block_offset(group, copy), &bytes)?;
        }
        Ok(())
    }

    /// The first page as last written, from memory or from where the current generation has it.
    fn current_page_zero(&self) -> Result<Option<Box<[u8; BLOCK_BYTES]>>, PoolError> {
        let kept = self.page_zero_in_memory();
        if kept.is_some() {
            return Ok(kept);
        }
        if self.page_entry(0, 0)?.0.counter == 0 {
            return Ok(None);
        }
        let mut page = Box::new([0u8; BLOCK_BYTES]);
        self.read_bytes(0, &mut page[..])?;
        self.groups.lock().page_zero = Some(page.clone());
        Ok(Some(page))
    }
}
