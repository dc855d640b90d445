//! How orphans are found.

use super::{CHUNKS_PER_PASS, LISTED_MAX, Orphan, OrphanFound, Watch};
use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use crate::versions;
use aegisfs_base::{BranchId, ChunkId, InodeId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState, is_tombstone};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// How often references to suspected chunks are looked for again.
const LOOKS: u32 = 2;
/// Entries of a table that are looked at in one go. What is being looked at the metadata keeps as it is, so that its pages
/// are not free for others meanwhile.
const AT_ONCE: usize = 20_000;

/// Told a key and what stands there.
type See<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// Orphans with the bytes that they take.
type Found = Vec<(Orphan, u64)>;

impl Store {
    /// Everything that nothing refers to, and whether there is more of some kind.
    pub(super) fn look_for_orphans(&self, watch: &Watch<'_>) -> Result<(Found, bool), StoreError> {
        let mut found = self.unowned_slots(watch)?;
        let slots = found.len();
        found.extend(self.forgotten_segments(watch)?);
        let segments = found.len() - slots;
        found.extend(self.unreaped_inodes()?);
        let inodes = found.len() - slots - segments;
        let chunks = self.unreferenced_chunks(watch)?;
        let more = [slots, segments, inodes, chunks.len()].iter().any(|count| *count >= LISTED_MAX);
        found.extend(chunks);
        Ok((found, more))
    }

    /// Slots that count as used, without a segment or a piece of metadata that has them.
    fn unowned_slots(&self, watch: &Watch<'_>) -> Result<Found, StoreError> {
        self.scan_segments(watch, &mut |_, segment| self.pool.acquit_slots(&segment.placements))?;
        let bytes = self.pool.slot_bytes();
        let named = self.pool.suspected_slots(LISTED_MAX).into_iter().map(|slot| {
            let orphan = if slot.mapped { Orphan::MappedSlot(slot.place) } else { Orphan::Slot(slot.place) };
            (orphan, bytes)
        });
        Ok(named.collect())
    }

    fn scan_segments(
        &self,
        watch: &Watch<'_>,
        visit: &mut dyn FnMut(SegmentId, Segment),
    ) -> Result<(), StoreError> {
        self.scan_in_steps(watch, Table::Segments, (&[], None), &mut |key, stored| {
            let id = key
                .first_chunk::<8>()
                .ok_or_else(|| StoreError::Inconsistent { what: "a segment's key is too short".into() })?;
            visit(SegmentId(u64::from_be_bytes(*id)), Segment::decode(stored)?);
            Ok(())
        })
    }

    /// Visits a range of a table, some entries at a time, as they are by then. What moves between two keys meanwhile may be
    /// seen twice, or not at all.
    fn scan_in_steps(
        &self,
        watch: &Watch<'_>,
        table: Table,
        (start, end): (&[u8], Option<&[u8]>),
        visit: &mut See<'_>,
    ) -> Result<(), StoreError> {
        let mut from = start.to_vec();
        loop {
            let begun = Instant::now();
            let (mut seen, mut last, mut outcome) = (0, None, Ok(()));
            self.view().scan(table, &from, end, &mut |key, stored| {
                seen += 1;
                outcome = visit(key, stored);
                if seen == AT_ONCE {
                    last = Some(key.to_vec());
                }
                if last.is_some() || outcome.is_err() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            outcome?;
            let Some(last) = last else { return Ok(()) };
            // The next key that there can be.
            from = last;
            from.push(0);
            if (watch.pace)(begun.elapsed()).is_break() {
                return Err(StoreError::Stopped);
            }
        }
    }

    /// Segments that nobody appends to, and that are not sealed, or hold nothing.
    fn forgotten_segments(&self, watch: &Watch<'_>) -> Result<Found, StoreError> {
        let mut suspects = Vec::new();
        // When nothing may be written, those that were open in a crash stay so.
        if self.check_writable().is_err() {
            return Ok(suspects);
        }
        self.scan_segments(watch, &mut |id, segment| {
            let is_one = is_forgotten(&segment) && !self.segments.holds(id);
            if is_one && suspects.len() < LISTED_MAX {
                // With something living in it, it only cannot be cleaned as others are.
                let slots = if segment.live_bytes == 0 { segment.placements.len() } else { 0 };
                let bytes = slots as u64 * self.pool.slot_bytes();
                suspects.push((Orphan::Segment(id), bytes));
            }
        })?;
        let mut found = Vec::new();
        for (orphan, bytes) in suspects {
            if let Orphan::Segment(id) = orphan
                && self.with_segment_forgotten(id, |_| ())?.is_some()
            {
                found.push((orphan, bytes));
            }
        }
        Ok(found)
    }

    /// Looks at a segment if it is one that nobody appends to, while nobody can.
    pub(super) fn with_segment_forgotten<T>(
        &self,
        id: SegmentId,
        look: impl FnOnce(&Segment) -> T,
    ) -> Result<Option<T>, StoreError> {
        let read = || {
            let stored = self.view().get(Table::Segments, &key::segment(id))?;
            let segment = stored.map(|stored| Segment::decode(&stored)).transpose()?;
            Ok(segment.filter(is_forgotten).map(|segment| look(&segment)))
        };
        self.unless_held(id, read).unwrap_or(Ok(None))
    }

    /// Which of some segments chunks say that they lie in. Nothing new gets into one that nobody appends to.
    pub(super) fn segments_with_chunks(
        &self,
        watch: &Watch<'_>,
        chosen: &[OrphanFound],
    ) -> Result<BTreeSet<SegmentId>, StoreError> {
        let asked: BTreeSet<SegmentId> = chosen
            .iter()
            .filter_map(|found| match found.orphan {
                Orphan::Segment(id) => Some(id),
                _ => None,
            })
            .collect();
        let mut held = BTreeSet::new();
        if !asked.is_empty() {
            self.scan_chunks(watch, 0..u64::MAX, &mut |_, descriptor| {
                let segment = descriptor.frame.segment;
                if asked.contains(&segment) {
                    held.insert(segment);
                }
            })?;
        }
        Ok(held)
    }

    /// Orphaned inodes that nobody has open and that the reaper is not going to get to.
    fn unreaped_inodes(&self) -> Result<Found, StoreError> {
        let mut suspects = BTreeSet::new();
        let mut after = Vec::new();
        while suspects.len() < LISTED_MAX {
            let mut batch: BTreeSet<InodeId> = self.orphans_after(&after)?.into_iter().collect();
            let Some(last) = batch.last() else { break };
            after = key::inode(InodeId(last.0 + 1)).to_vec();
            self.leave_out_in_flight(&mut batch);
            suspects.append(&mut batch);
        }
        let mut found = Vec::new();
        for inode in suspects {
            // A truncation under way has an entry too.
            if self.is_gone(inode)? {
                found.push((Orphan::Inode(inode), self.covered_bytes(inode)?));
            }
        }
        // Those that were taken up or reaped meanwhile.
        let mut still: BTreeSet<InodeId> = found.iter().filter_map(|(orphan, _)| inode_of(*orphan)).collect();
        self.leave_out_in_flight(&mut still);
        found.retain(|(orphan, _)| inode_of(*orphan).is_some_and(|inode| still.contains(&inode)));
        Ok(found)
    }

    /// Bytes that the references of an inode cover.
    fn covered_bytes(&self, inode: InodeId) -> Result<u64, StoreError> {
        let view = self.head_view(BranchId(0))?;
        let (start, end) = (key::inode(inode), key::inode(InodeId(inode.0 + 1)));
        let mut bytes = 0;
        versions::scan_visible(&self.view(), Table::Extents, &start, Some(&end), &view, &mut |_, window| {
            // What cannot be read is a check's to name.
            let references = decode_window(window).unwrap_or_default();
            bytes += references.iter().map(|reference| u64::from(reference.length)).sum::<u64>();
            ControlFlow::Continue(())
        })?;
        Ok(bytes)
    }

    /// Chunks that no extent refers to, whatever their counts say.
    fn unreferenced_chunks(&self, watch: &Watch<'_>) -> Result<Found, StoreError> {
        let mut suspects = BTreeSet::new();
        let end = self.ids.chunks.next();
        let mut first = 0;
        while first < end && suspects.len() < LISTED_MAX {
            let range = first..(first + CHUNKS_PER_PASS).min(end);
            first = range.end;
            suspects.append(&mut self.unreferenced_in(watch, range, LISTED_MAX - suspects.len())?);
        }
        // A reference may have moved from where nobody had looked to where somebody had.
        for _ in 0..LOOKS {
            if suspects.is_empty() {
                break;
            }
            self.scan_references(watch, &mut |chunk| {
                suspects.remove(&chunk);
            })?;
        }
        let mut found = Vec::new();
        for chunk in suspects {
            match self.descriptor(chunk) {
                Ok(descriptor) => found.push((Orphan::Chunk(chunk), u64::from(descriptor.charged_bytes))),
                Err(StoreError::StaleChunk { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The first so many chunks of a range that no extent refers to.
    fn unreferenced_in(
        &self,
        watch: &Watch<'_>,
        range: Range<u64>,
        most: usize,
    ) -> Result<BTreeSet<ChunkId>, StoreError> {
        let mut bits = Bits::new(range.clone());
        self.scan_chunks(watch, range, &mut |chunk, _| bits.set(chunk.0, true))?;
        if !bits.is_empty() {
            self.scan_references(watch, &mut |chunk| bits.set(chunk.0, false))?;
        }
        Ok(bits.iter().take(most).map(ChunkId).collect())
    }

    fn scan_chunks(
        &self,
        watch: &Watch<'_>,
        range: Range<u64>,
        visit: &mut dyn FnMut(ChunkId, &Descriptor),
    ) -> Result<(), StoreError> {
        let (start, end) = (key::chunk(ChunkId(range.start)), key::chunk(ChunkId(range.end)));
        self.scan_in_steps(watch, Table::Chunks, (&start, Some(&end)), &mut |key, stored| {
            if let (Some(id), Some(descriptor)) = (key.first_chunk::<8>(), Descriptor::decode(stored)?) {
                visit(ChunkId(u64::from_be_bytes(*id)), &descriptor);
            }
            Ok(())
        })
    }

    /// Visits the chunk of every reference, of all versions.
    fn scan_references(&self, watch: &Watch<'_>, visit: &mut dyn FnMut(ChunkId)) -> Result<(), StoreError> {
        self.scan_in_steps(watch, Table::Extents, (&[], None), &mut |_, stored| {
            if !is_tombstone(stored) {
                decode_window(stored)?.into_iter().for_each(|reference| visit(reference.chunk));
            }
            Ok(())
        })
    }
}

fn is_forgotten(segment: &Segment) -> bool {
    segment.state == SegmentState::Open || segment.live_bytes == 0
}

const fn inode_of(orphan: Orphan) -> Option<InodeId> {
    match orphan {
        Orphan::Inode(inode) => Some(inode),
        _ => None,
    }
}

/// One bit for each number of a range, in pages that are there where something was set.
struct Bits {
    range: Range<u64>,
    pages: Vec<Option<Box<[u64; WORDS]>>>,
}

/// Words of a page.
const WORDS: usize = 512;
/// Numbers of a page.
const NUMBERS: u64 = WORDS as u64 * 64;

impl Bits {
    fn new(range: Range<u64>) -> Self {
        let pages = (range.end - range.start).div_ceil(NUMBERS);
        Self { range, pages: (0..pages).map(|_| None).collect() }
    }

    /// Numbers outside of the range are not its business.
    fn set(&mut self, number: u64, to: bool) {
        if !self.range.contains(&number) {
            return;
        }
        let place = number - self.range.start;
        let page = &mut self.pages[(place / NUMBERS) as usize];
        if to || page.is_some() {
            let word = &mut page.get_or_insert_with(|| Box::new([0; WORDS]))[(place % NUMBERS / 64) as usize];
            let bit = 1 << (place % 64);
            *word = if to { *word | bit } else { *word & !bit };
        }
    }

    fn is_empty(&self) -> bool {
        self.pages.iter().all(Option::is_none)
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        let start = self.range.start;
        let pages = (0..).zip(&self.pages).filter_map(|(number, page)| Some((number, page.as_ref()?)));
        pages.flat_map(move |(number, page): (u64, _)| {
            let set = move |bit: &u64| page[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
            (0..NUMBERS).filter(set).map(move |bit| start + number * NUMBERS + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_kept_for_a_range() {
        let mut bits = Bits::new(100..100 + 3 * NUMBERS);
        assert!(bits.is_empty());
        for number in [100, 163, 164, 99 + 3 * NUMBERS, 5000, 99, 100 + 3 * NUMBERS] {
            bits.set(number, true);
        }
        bits.set(5000, false);
        bits.set(7000, false);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [100, 163, 164, 99 + 3 * NUMBERS]);
    }
}
