//! Pages and checksum blocks of a database looked at in every copy.

use super::Database;
use crate::PoolError;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_device::AlignedBuffer;
use aegisfs_format::page::{PAGES_PER_GROUP, page_sum};

/// What was looked at, and what of it was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Pages and checksum blocks, each copy counted.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that did not verify.
    pub damaged: u64,
    /// Of those, how many were written anew.
    pub repaired: u64,
    /// Pages of which no copy verifies.
    pub lost: u64,
}

impl Database {
    /// Looks at everything that a piece holds, in every copy, and mends it if that is wanted. Nobody writes the database
    /// while a group of pages is looked at.
    ///
    /// # Errors
    /// When no copy of a checksum block verifies, or a device fails that is written to.
    pub fn scrub_piece(&self, piece: u32, mends: bool) -> Result<Scrubbed, PoolError> {
        let mut found = Scrubbed::default();
        for group in 0..self.layout.groups {
            // Whoever wants to write goes between.
            let _writing = self.sync.lock();
            if self.places(piece).is_empty() {
                break;
            }
            if let Err(error) = self.scrub_sums(piece, group, mends, &mut found) {
                if !matches!(error, PoolError::PageSums { .. }) {
                    return Err(error);
                }
                // Nobody knows what its pages should be.
                found.lost += 1;
                continue;
            }
            let first = group * PAGES_PER_GROUP as u32;
            for page in first..(first + PAGES_PER_GROUP as u32).min(self.layout.pages) {
                self.scrub_page(piece, page, mends, &mut found)?;
            }
        }
        Ok(found)
    }

    fn scrub_page(&self, piece: u32, page: u32, mends: bool, found: &mut Scrubbed) -> Result<(), PoolError> {
        let (entry, generation) = self.page_entry(piece, page)?;
        if entry.counter == 0 {
            return Ok(());
        }
        let offset = self.page_place(piece, page, generation);
        let verifies = |content: &[u8]| page_sum(content) == entry.sum;
        let lost = self.scrub_copies(piece, offset, &verifies, mends, found)?;
        if lost {
            found.lost += 1;
            tracing::error!(database = self.number, piece, page, "no copy of a metadata page verifies");
        }
        Ok(())
    }

    fn scrub_sums(&self, piece: u32, group: u32, mends: bool, found: &mut Scrubbed) -> Result<(), PoolError> {
        // As it is on the devices: changes that wait in memory are written with the next sync.
        let Some((right, copy)) = self.sum_block_on_devices(piece, group)? else { return Ok(()) };
        let offset = self.layout.sum_block_offset(group, copy);
        // What is in memory came from a copy that verified, and is as good.
        for place in self.places(piece).into_iter().filter(|place| self.pool.readable(*place)) {
            let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
            found.pages += 1;
            found.bytes += BLOCK_BYTES as u64;
            let read = self.pool.read_slot(place, offset, &mut block);
            if read.is_ok() && block[..] == right[..] {
                continue;
            }
            found.damaged += 1;
            self.pool.note_damage(place.0, 1);
            if mends {
                self.pool.write_slot(place, offset, &right)?;
                found.repaired += 1;
            }
        }
        Ok(())
    }

    /// Looks at a block in every copy. Says whether none verifies.
    fn scrub_copies(
        &self,
        piece: u32,
        offset: u64,
        verifies: &dyn Fn(&[u8]) -> bool,
        mends: bool,
        found: &mut Scrubbed,
    ) -> Result<bool, PoolError> {
        let mut sound = None;
        let mut bad = Vec::new();
        for place in self.places(piece).into_iter().filter(|place| self.pool.readable(*place)) {
            let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
            found.pages += 1;
            found.bytes += BLOCK_BYTES as u64;
            if self.pool.read_slot(place, offset, &mut block).is_ok() && verifies(&block) {
                sound = Some(block);
            } else {
                bad.push(place);
            }
        }
        found.damaged += bad.len() as u64;
        // Where no copy verifies it may be that nobody refers to it.
        let Some(sound) = sound else { return Ok(!bad.is_empty()) };
        bad.iter().for_each(|place| self.pool.note_damage(place.0, 1));
        for place in bad.into_iter().filter(|_| mends) {
            self.pool.write_slot(place, offset, &sound)?;
            found.repaired += 1;
        }
        Ok(false)
    }
}
