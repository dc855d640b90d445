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
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_format::extent::{ExtentRef, decode_window, encode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::NewRef;
use aegisfs_format::value::{Inode, is_tombstone};
use std::ops::{ControlFlow, Range};

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
        range: Range<u32>,
        born: Vec<ExtentRef>,
    ) -> Result<i64, StoreError> {
        let stem = key::extents(inode, window);
        let newest = versions::newest_version(self.tables, Table::Extents, &stem, &self.head.view)?;
        let before = newest.as_ref().map(|(epoch, stored)| (*epoch, is_tombstone(stored)));
        let old = match newest {
            Some((_, stored)) if !is_tombstone(&stored) => decode_window(&stored)?,
            _ => Vec::new(),
        };
        let untouched =
            |reference: &ExtentRef| reference.end() <= range.start || range.end <= reference.offset;
        if born.is_empty() && old.iter().all(untouched) {
            return Ok(0);
        }
        let length = |references: &[ExtentRef]| references.iter().map(|r| i64::from(r.length)).sum::<i64>();
        let length_before = length(&old);
        // Births are counted before deaths, so that none of them finds its chunk stale.
        for reference in &born {
            self.references.add(self.tables, reference.chunk, reference.length)?;
        }
        let mut kept = born;
        kept.reserve(old.len() + 1);
        for reference in old {
            if untouched(&reference) {
                kept.push(reference);
                continue;
            }
            for piece in self.left_over(&reference, &range).into_iter().flatten() {
                self.references.add(self.tables, piece.chunk, piece.length)?;
                kept.push(piece);
            }
            self.bury(&reference, &stem)?;
        }
        kept.sort_unstable();
        if kept.is_empty() {
            versions::remove_over(self.tables, &self.head, Table::Extents, &stem, before)?;
        } else {
            let window = encode_window(&kept);
            versions::put_over(self.tables, &self.head, Table::Extents, &stem, before, &window);
        }
        Ok(length(&kept) - length_before)
    }

    /// Points what still refers to some part of a chunk, as it did when it was read, to chunks that hold the same bytes.
    pub(super) fn repoint(
        &mut self,
        inode: InodeId,
        from: &NewRef,
        references: &[NewRef],
    ) -> Result<(), StoreError> {
        let window = from.offset / WINDOW_BYTES;
        let start = window * WINDOW_BYTES;
        let stem = key::extents(inode, window);
        let newest = versions::newest_version(self.tables, Table::Extents, &stem, &self.head.view)?;
        let Some((epoch, stored)) = newest.filter(|(_, stored)| !is_tombstone(stored)) else { return Ok(()) };
        let run = self.clip(from, start, start.saturating_add(WINDOW_BYTES));
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for reference in decode_window(&stored)? {
            let within = run.offset <= reference.offset && reference.end() <= run.end();
            let same = reference.chunk == run.chunk
                && u64::from(reference.offset_in_chunk) + u64::from(run.offset)
                    == u64::from(run.offset_in_chunk) + u64::from(reference.offset);
            let as_it_was = same || removed(Edge::RepointedOnlyWhatItWas);
            // A snapshot would keep the old chunk as well.
            if !within || !as_it_was || self.head.is_pinned(reference.birth) {
                kept.push(reference);
                continue;
            }
            let (from, to) = (start + u64::from(reference.offset), start + u64::from(reference.end()));
            for new in references {
                if new.offset < to && from < new.offset + u64::from(new.length) {
                    let piece = self.clip(new, from, to);
                    let piece = ExtentRef { offset: piece.offset + reference.offset, ..piece };
                    self.references.add(self.tables, piece.chunk, piece.length)?;
                    kept.push(piece);
                }
            }
            gone.push(reference);
        }
        if gone.is_empty() {
            return Ok(());
        }
        for reference in &gone {
            self.bury(reference, &stem)?;
        }
        kept.sort_unstable();
        let window = encode_window(&kept);
        versions::put_over(self.tables, &self.head, Table::Extents, &stem, Some((epoch, false)), &window);
        Ok(())
    }

    /// What stays of a reference on both sides of a range that cuts it.
    fn left_over(&self, reference: &ExtentRef, range: &Range<u32>) -> [Option<ExtentRef>; 2] {
        let birth = self.head.epoch;
        let head = (reference.offset < range.start).then(|| ExtentRef {
            length: range.start - reference.offset,
            birth,
            ..*reference
        });
        let tail = (range.end < reference.end()).then(|| {
            let cut = range.end - reference.offset;
            ExtentRef {
                offset: range.end,
                length: reference.length - cut,
                offset_in_chunk: reference.offset_in_chunk + cut,
                birth,
                ..*reference
            }
        });
        [head, tail]
    }

    /// Settles a reference's death.
    fn bury(&mut self, reference: &ExtentRef, stem: &[u8]) -> Result<(), StoreError> {
        if self.head.is_pinned(reference.birth) {
            versions::note_reference(self.tables, &self.head, stem, reference);
            Ok(())
        } else {
            self.references.drop_one(self.tables, reference.chunk, reference.length)
        }
    }

    /// Keeps the inode's account of covered bytes; an inode already gone needs none.
    fn change_allocated(&mut self, inode: InodeId, by: i64) -> Result<(), StoreError> {
        let stem = key::inode(inode);
        let newest = versions::newest_version(self.tables, Table::Inode, &stem, &self.head.view)?;
        if let Some((epoch, stored)) = newest.filter(|(_, stored)| !is_tombstone(stored)) {
            let mut value = Inode::decode(&stored)?;
            value.allocated = value.allocated.saturating_add_signed(by);
            let before = Some((epoch, false));
            versions::put_over(self.tables, &self.head, Table::Inode, &stem, before, &value.encode());
        }
        *self.effects.allocated.entry(inode).or_default() += by;
        Ok(())
    }
}
