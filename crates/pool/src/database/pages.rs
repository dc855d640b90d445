//! Pages in memory on their way to the devices, and pages read back and verified.

use super::{BUFFER_BYTES_MAX, Database};
use crate::PoolError;
use crate::slots::Placement;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::page::page_sum;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest run of neighbouring pages written or read in one go.
const RUN_BYTES_MAX: usize = 1 << 20;

type Page = Box<[u8; BLOCK_BYTES]>;

/// Pages written by the engine that are not yet on the devices.
#[derive(Debug, Default)]
pub(super) struct PageBuffer {
    dirty: BTreeMap<u64, Page>,
    /// Pages that are being written out right now; still the newest content for readers.
    leaving: Arc<BTreeMap<u64, Page>>,
}

impl PageBuffer {
    fn get(&self, page: u64) -> Option<&Page> {
        self.dirty.get(&page).or_else(|| self.leaving.get(&page))
    }

    pub(super) fn truncate(&mut self, pages: u64) {
        self.dirty.split_off(&pages);
    }
}

impl Database {
    pub(super) fn read_bytes(&self, offset: u64, out: &mut [u8]) -> Result<(), PoolError> {
        let block = BLOCK_BYTES as u64;
        let (first, end) = (offset / block, (offset + out.len() as u64).div_ceil(block));
        let aligned = offset.is_multiple_of(block) && out.len().is_multiple_of(BLOCK_BYTES);
        if aligned {
            return self.read_pages(first, out);
        }
        let mut pages = AlignedBuffer::zeroed((end - first) as usize * BLOCK_BYTES);
        self.read_pages(first, &mut pages)?;
        let skip = (offset - first * block) as usize;
        out.copy_from_slice(&pages[skip..skip + out.len()]);
        Ok(())
    }

    pub(super) fn write_bytes(&self, offset: u64, data: &[u8]) -> Result<(), PoolError> {
        let block = BLOCK_BYTES as u64;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (page, within) = (at / block, (at % block) as usize);
            let count = rest.len().min(BLOCK_BYTES - within);
            let mut content = Box::new([0u8; BLOCK_BYTES]);
            if count < BLOCK_BYTES && self.is_written(page)? {
                self.read_pages(page, &mut content[..])?;
            }
            content[within..within + count].copy_from_slice(&rest[..count]);
            self.buffer.lock().dirty.insert(page, content);
            rest = &rest[count..];
            at += count as u64;
        }
        if self.buffer.lock().dirty.len() * BLOCK_BYTES > BUFFER_BYTES_MAX {
            let _writing = self.sync.lock();
            self.write_out()?;
        }
        Ok(())
    }

    /// Reads whole pages: from the buffer, else from a copy that verifies.
    fn read_pages(&self, first: u64, out: &mut [u8]) -> Result<(), PoolError> {
        let mut missing: Vec<(u64, usize)> = Vec::new();
        {
            let buffer = self.buffer.lock();
            for (n, place) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                let page = first + n as u64;
                match buffer.get(page) {
                    Some(content) => place.copy_from_slice(&content[..]),
                    None => missing.push((page, n)),
                }
            }
        }
        for (page, n) in missing {
            let place = &mut out[n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES];
            match (page == 0).then(|| self.page_zero_in_memory()).flatten() {
                Some(content) => place.copy_from_slice(&content[..]),
                None => self.read_stored(page, place)?,
            }
        }
        Ok(())
    }

    fn is_written(&self, page: u64) -> Result<bool, PoolError> {
        if self.buffer.lock().get(page).is_some() {
            return Ok(true);
        }
        let (piece, within) = self.locate(page);
        Ok(!self.places(piece).is_empty() && self.page_entry(piece, within)?.0.counter > 0)
    }

    /// Reads a page from the devices; a copy that does not verify is healed from one that does.
    pub(super) fn read_stored(&self, page: u64, out: &mut [u8]) -> Result<(), PoolError> {
        let (piece, within) = self.locate(page);
        let (entry, generation) = self.page_entry(piece, within)?;
        if entry.counter == 0 {
            // The engine reads nothing that it did not write, so the checksum block is an old one: the
            // newest is damaged. Zeros would be a lie.
            return Err(PoolError::Page { database: self.number, page });
        }
        let offset = self.page_place(piece, within, generation);
        let places = self.pool.by_preference(&self.places(piece));
        // Who is slow is waited for only when nobody else has it.
        for soon in [true, false] {
            let mut bad: Vec<Placement> = Vec::new();
            for place in places.iter().filter(|place| !soon || !self.pool.is_avoided(**place)) {
                let read = match soon {
                    true => self.pool.read_slot_soon(*place, offset, out),
                    false => self.pool.read_slot(*place, offset, out),
                };
                if read.is_ok() && (removed(Edge::PageVerify) || page_sum(out) == entry.sum) {
                    self.heal_page(page, offset, &bad, out);
                    return Ok(());
                }
                if self.pool.readable(*place) && !matches!(read, Err(PoolError::Slow { .. })) {
                    bad.push(*place);
                }
            }
        }
        tracing::error!(database = self.number, page, "no copy of a metadata page verifies");
        Err(PoolError::Page { database: self.number, page })
    }

    /// Writes a page back to the copies that did not verify; a failure leaves them as they are.
    fn heal_page(&self, page: u64, offset: u64, bad: &[Placement], content: &[u8]) {
        // While this is held no slot of it is given to anybody else; one may have been before.
        let pieces = self.pieces.read();
        let own = pieces.get(self.locate(page).0 as usize);
        for place in bad.iter().filter(|place| own.is_some_and(|own| own.contains(place))) {
            self.pool.note_damage(place.0, 1);
            tracing::warn!(
                database = self.number,
                page,
                device = place.0.0,
                "a metadata page was damaged and is healed from another copy"
            );
            if !self.pool.read_only() && self.pool.write_slot(*place, offset, content).is_ok() {
                self.healed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes buffered pages to every copy and notes their checksums. The caller holds `sync`.
    pub(super) fn write_out(&self) -> Result<(), PoolError> {
        let leaving = {
            let mut buffer = self.buffer.lock();
            let leaving = Arc::new(std::mem::take(&mut buffer.dirty));
            buffer.leaving = Arc::clone(&leaving);
            leaving
        };
        let mut run = AlignedBuffer::with_capacity(RUN_BYTES_MAX);
        let mut run_start = 0u64;
        for (page, content) in leaving.iter() {
            let (piece, within) = self.locate(*page);
            self.map_piece(piece)?;
            self.note_page(piece, within, page_sum(&content[..]))?;
            // Page 0 goes out with its checksum block.
            if *page == 0 {
                self.keep_page_zero(content);
                continue;
            }
            let next = run_start + (run.len() / BLOCK_BYTES) as u64;
            let follows = !run.is_empty() && *page == next && within != 0 && run.len() < RUN_BYTES_MAX;
            if !follows {
                self.write_run(run_start, &run)?;
                run.clear();
                run_start = *page;
            }
            run.extend_from_slice(&content[..]);
        }
        self.write_run(run_start, &run)?;
        self.written.fetch_add(leaving.len() as u64, Ordering::Relaxed);
        self.buffer.lock().leaving = Arc::default();
        Ok(())
    }

    fn write_run(&self, first: u64, run: &[u8]) -> Result<(), PoolError> {
        if run.is_empty() {
            return Ok(());
        }
        let (piece, within) = self.locate(first);
        self.pool.write_copies(&self.places(piece), self.layout.page_offset(within), run)
    }
}
