//! Replacing what a range of a file refers to.
//!
//! A reference never changes. One that is cut dies, and what is left of it is born anew; so a reference is
//! counted once when it is born, and its death is settled by when that was: at once if no snapshot saw it,
//! else by a note that the snapshots' deletion will find.

use super::Work;
use crate::StoreError;
use crate::versions;
use aegisfs_base::InodeId;
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_format::extent::{ExtentRef, decode_window, encode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::NewRef;
use aegisfs_format::value::Inode;
use std::ops::ControlFlow;

impl Work<'_> {
    pub(super) fn replace(
        &mut self,
        inode: InodeId,
        from: u64,
        to: u64,
        references: &[NewRef],
    ) -> Result<(), StoreError> {
        let mut covered = 0i64;
        let mut rest = references;
        for window in self.windows_to_touch(inode, from, to, references)? {
            let start = window * WINDOW_BYTES;
            let end = start.saturating_add(WINDOW_BYTES);
            // A new reference that crosses into the next window is split there.
            let mut born = Vec::new();
            while let Some((reference, later)) = rest.split_first() {
                if reference.offset >= end {
                    break;
                }
                born.push(self.clip(reference, start, end));
                if reference.offset + u64::from(reference.length) > end {
                    break;
                }
                rest = later;
            }
            let clipped = (from.max(start) - start) as u32..(to.min(end) - start) as u32;
            covered += self.replace_in_window(inode, window, clipped, born)?;
        }
        if covered != 0 {
            self.change_allocated(inode, covered)?;
        }
        Ok(())
    }

    /// The windows of the range that have references or get some.
    fn windows_to_touch(
        &self,
        inode: InodeId,
        from: u64,
        to: u64,
        references: &[NewRef],
    ) -> Result<Vec<u64>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut windows = Vec::new();
        for reference in references {
            let last = reference.offset + u64::from(reference.length) - 1;
            windows.extend(reference.offset / WINDOW_BYTES..=last / WINDOW_BYTES);
        }
        let start = key::extents(inode, from / WINDOW_BYTES);
        let end = key::prefix_end(&key::extents(inode, (to - 1) / WINDOW_BYTES));
        self.tables.scan(Table::Extents, &start, end.as_deref(), &mut |key, _| {
            if let Ok(window) = key::extents_window(key) {
                windows.push(window);
            }
            ControlFlow::Continue(())
        })?;
        windows.sort_unstable();
        windows.dedup();
        Ok(windows)
    }

    fn clip(&self, reference: &NewRef, start: u64, end: u64) -> ExtentRef {
        let from = reference.offset.max(start);
        let to = (reference.offset + u64::from(reference.length)).min(end);
        ExtentRef {
            offset: (from - start) as u32,
            length: (to - from) as u32,
            chunk: reference.chunk,
            offset_in_chunk: reference.offset_in_chunk + (from - reference.offset) as u32,
            birth: self.head.epoch,
        }
    }

    /// Replaces a range within a window; returns by how much the covered bytes have grown.
    fn replace_in_window(
        &mut self,
        inode: InodeId,
        window: u64,
        range: std::ops::Range<u32>,
        born: Vec<ExtentRef>,
    ) -> Result<i64, StoreError> {
        let stem = key::extents(inode, window);
        let old = match versions::visible(self.tables, Table::Extents, &stem, &self.head.view)? {
            Some(stored) => decode_window(&stored)?,
            None => Vec::new(),
        };
        let length = |references: &[ExtentRef]| references.iter().map(|r| i64::from(r.length)).sum::<i64>();
        let before = length(&old);
        let mut kept = Vec::with_capacity(old.len() + born.len() + 2);
        // Births are counted before deaths, so that a chunk referred to on both sides never dies between.
        for reference in &born {
            self.count(reference.chunk, true)?;
        }
        let mut dead = Vec::new();
        for reference in old {
            if reference.end() <= range.start || range.end <= reference.offset {
                kept.push(reference);
                continue;
            }
            for piece in self.left_over(&reference, &range) {
                self.count(piece.chunk, true)?;
                kept.push(piece);
            }
            dead.push(reference);
        }
        for reference in &dead {
            self.bury(reference, &stem)?;
        }
        kept.extend(born);
        kept.sort_unstable();
        if kept.is_empty() {
            versions::remove_version(self.tables, &self.head, Table::Extents, &stem)?;
        } else {
            versions::put_version(self.tables, &self.head, Table::Extents, &stem, encode_window(&kept))?;
        }
        Ok(length(&kept) - before)
    }

    /// What stays of a reference on both sides of a range that cuts it.
    fn left_over(&self, reference: &ExtentRef, range: &std::ops::Range<u32>) -> Vec<ExtentRef> {
        let mut pieces = Vec::new();
        let birth = self.head.epoch;
        if reference.offset < range.start {
            pieces.push(ExtentRef { length: range.start - reference.offset, birth, ..*reference });
        }
        if range.end < reference.end() {
            let cut = range.end - reference.offset;
            pieces.push(ExtentRef {
                offset: range.end,
                length: reference.length - cut,
                offset_in_chunk: reference.offset_in_chunk + cut,
                birth,
                ..*reference
            });
        }
        pieces
    }

    /// Settles a reference's death.
    fn bury(&mut self, reference: &ExtentRef, stem: &[u8]) -> Result<(), StoreError> {
        if self.head.is_pinned(reference.birth) {
            let mut what = stem.to_vec();
            what.extend_from_slice(&reference.encode());
            versions::note_reference(self.tables, &self.head, reference.birth, &what);
            Ok(())
        } else {
            self.count(reference.chunk, false)
        }
    }

    /// Keeps the inode's account of covered bytes; an inode already gone needs none.
    fn change_allocated(&mut self, inode: InodeId, by: i64) -> Result<(), StoreError> {
        let stem = key::inode(inode);
        if let Some(stored) = versions::visible(self.tables, Table::Inode, &stem, &self.head.view)? {
            let mut value = Inode::decode(&stored)?;
            value.allocated = value.allocated.saturating_add_signed(by);
            versions::put_version(self.tables, &self.head, Table::Inode, &stem, value.encode())?;
        }
        *self.effects.allocated.entry(inode).or_default() += by;
        Ok(())
    }
}
