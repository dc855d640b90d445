//! Reading chunks: cache, device, verification, healing from another copy.
//!
//! A frame is cached once it was decoded; each chunk in it is checked against its hash before its first
//! bytes leave here.

mod prefetch;

use crate::StoreError;
use crate::sound_row::{HEADERS_WINDOW_BYTES, SoundRow, headers_in};
use crate::store::{Counters, Store};
use crate::tables::Tables;
use aegisfs_base::limits::{BLOCK_BYTES, CELL_BYTES_MAX};
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{ChunkId, SegmentId};
use aegisfs_chunk::{ChunkHash, Codec, decompress};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::key::{self, Table};
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::Segment;
use aegisfs_pool::{Erasure, Placement, PoolError, side_by_side};
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that are tried where bytes of other rows look like headers.
const ROWS_TRIED_MAX: usize = 16;
/// Choices of other cells from which a lost one is made before whole cells are read.
const DECODINGS_MAX: usize = 64;
/// Segments of which it is kept in memory where they are.
const LAYOUTS_KEPT: usize = 4096;

/// Segment, cell and offset.
type FrameKey = (SegmentId, u8, u32);

fn key_of(frame: &FramePlace) -> FrameKey {
    (frame.segment, frame.cell, frame.slot_offset)
}

thread_local! {
    /// What this thread read into last; memory for it is costly to come by.
    static BUFFER: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::new()) };
}

/// A span of a slot, in the blocks around it.
pub(crate) struct Span {
    blocks: AlignedBuffer,
    /// Where the span begins in them.
    skip: usize,
    bytes: u32,
}

impl Span {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.blocks[self.skip..self.skip + self.bytes as usize]
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        BUFFER.set(std::mem::take(&mut self.blocks));
    }
}

/// Where the cells of a segment's rows are.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Cells of data and of parity.
    pub(crate) shards: (u8, u8),
    /// The slot of each.
    pub(crate) places: Vec<Placement>,
}

impl Layout {
    /// The slots that hold the bytes of a cell of data: its own, or where there is one cell of data the copies too.
    pub(crate) fn copies(&self, cell: u8) -> &[Placement] {
        match self.shards.0 {
            1 => &self.places,
            data if cell >= data => &[],
            _ => self.places.get(usize::from(cell)).map_or(&[], std::slice::from_ref),
        }
    }
}

/// How long a device is waited for whose bytes may be had elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not long, if it hesitated before; and one that is about to fail is not asked at all.
    Soon,
    /// Until it answers.
    Long,
}

/// Why a copy is of no use.
pub(crate) enum Unread {
    /// Its device does not answer in time.
    Late,
    /// It cannot be read, or does not verify.
    Bad(String),
}

impl Unread {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Late => "its device does not answer in time".into(),
            Self::Bad(reason) => reason,
        }
    }
}

/// What became of the copies of a frame that were no use.
#[derive(Default)]
struct Tried {
    bad: Vec<(Placement, String)>,
    reasons: Vec<String>,
}

/// A decoded frame and which of its chunks were verified.
struct CachedFrame {
    plain: Vec<u8>,
    verified: Mutex<Vec<ChunkId>>,
}

#[derive(Clone)]
struct ByBytes;

impl quick_cache::Weighter<FrameKey, Arc<CachedFrame>> for ByBytes {
    fn weight(&self, _: &FrameKey, frame: &Arc<CachedFrame>) -> u64 {
        frame.plain.len() as u64 + 128
    }
}

/// Decoded frames, bounded in bytes.
pub(crate) struct FrameCache {
    frames: quick_cache::sync::Cache<FrameKey, Arc<CachedFrame>, ByBytes>,
    layouts: quick_cache::sync::Cache<SegmentId, Arc<Layout>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl FrameCache {
    pub(crate) fn new(bytes: u64) -> Self {
        let frames = (bytes / (64 << 10)).max(16) as usize;
        Self {
            frames: quick_cache::sync::Cache::with_weighter(frames, bytes.max(1 << 20), ByBytes),
            layouts: quick_cache::sync::Cache::new(LAYOUTS_KEPT),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

impl Store {
    /// Copies a part of a chunk's plain bytes.
    ///
    /// # Errors
    /// When the chunk is not there, or no copy of it verifies.
    pub fn read_chunk(&self, chunk: ChunkId, offset: u32, out: &mut [u8]) -> Result<(), StoreError> {
        let (descriptor, frame) = self.current_frame(chunk, self.descriptor(chunk)?)?;
        let start = (descriptor.offset_in_frame + offset) as usize;
        let end = start + out.len();
        if offset as usize + out.len() > descriptor.plain_bytes as usize || end > frame.plain.len() {
            let what = format!("a reference reaches beyond chunk {chunk}");
            return Err(StoreError::Inconsistent { what });
        }
        out.copy_from_slice(&frame.plain[start..end]);
        Ok(())
    }

    /// A chunk's descriptor.
    ///
    /// # Errors
    /// When there is no such chunk.
    pub fn descriptor(&self, chunk: ChunkId) -> Result<Descriptor, StoreError> {
        let stored = self.view().get(Table::Chunks, &key::chunk(chunk))?;
        let descriptor = stored.map(|stored| Descriptor::decode(&stored)).transpose()?.flatten();
        descriptor.ok_or(StoreError::StaleChunk { chunk })
    }

    /// Visits where in a segment's slots the frames of its chunks begin. Reads the whole table of chunks.
    pub(crate) fn each_chunk_in(
        &self,
        segment: SegmentId,
        visit: &mut dyn FnMut(ChunkId, &FramePlace),
    ) -> Result<(), StoreError> {
        let mut problem = None;
        self.view().scan(Table::Chunks, &[], None, &mut |key, stored| {
            let chunk =
                key.first_chunk::<8>().map_or(ChunkId(0), |number| ChunkId(u64::from_be_bytes(*number)));
            match Descriptor::decode(stored) {
                Ok(Some(found)) if found.frame.segment == segment => visit(chunk, &found.frame),
                Ok(_) => {}
                Err(error) => problem = Some(error),
            }
            if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        problem.map_or(Ok(()), |error| Err(error.into()))
    }

    pub(crate) fn layout(&self, segment: SegmentId) -> Result<Arc<Layout>, StoreError> {
        if let Some(layout) = self.cache.layouts.get(&segment) {
            return Ok(layout);
        }
        let Some(Segment { shards, placements: places, .. }) = self.read_segment(segment)? else {
            return Err(StoreError::Inconsistent { what: format!("segment {segment} is missing") });
        };
        let layout = Arc::new(Layout { shards, places });
        self.cache.layouts.insert(segment, Arc::clone(&layout));
        Ok(layout)
    }

    /// The decoded frame of a chunk that was at some place, from wherever it is by now: the cleaner may move it while it
    /// is read.
    fn current_frame(
        &self,
        chunk: ChunkId,
        mut descriptor: Descriptor,
    ) -> Result<(Descriptor, Arc<CachedFrame>), StoreError> {
        loop {
            match self.frame(chunk, &descriptor) {
                Ok(frame) => return Ok((descriptor, frame)),
                Err(error) => {
                    let now = self.descriptor(chunk)?;
                    if now.frame == descriptor.frame || removed(Edge::MovedIsNotDamage) {
                        if matches!(error, StoreError::Damaged { .. }) {
                            self.record_damage(chunk, &now.frame);
                        }
                        return Err(error);
                    }
                    descriptor = now;
                }
            }
        }
    }

    /// The decoded frame of a chunk, with that chunk verified.
    fn frame(&self, chunk: ChunkId, descriptor: &Descriptor) -> Result<Arc<CachedFrame>, StoreError> {
        let key = key_of(&descriptor.frame);
        if let Some(frame) = self.cache.frames.get(&key) {
            let known = frame.verified.lock().contains(&chunk);
            if known || verifies(descriptor, &frame.plain) {
                if !known {
                    frame.verified.lock().push(chunk);
                }
                self.cache.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(frame);
            }
            // It came from a bad copy; the others have not been asked yet.
            self.cache.frames.remove(&key);
        }
        self.cache.misses.fetch_add(1, Ordering::Relaxed);
        let plain = self.load(chunk, descriptor)?;
        let frame = Arc::new(CachedFrame { plain, verified: Mutex::new(vec![chunk]) });
        self.cache.frames.insert(key, Arc::clone(&frame));
        Ok(frame)
    }

    /// Reads a frame from the best copy in which the chunk verifies, and heals the ones that were asked before it.
    ///
    /// What lies on a device that is slow, or about to fail, is had elsewhere if it can be; only then is it waited for.
    fn load(&self, chunk: ChunkId, descriptor: &Descriptor) -> Result<Vec<u8>, StoreError> {
        let place = &descriptor.frame;
        let layout = self.layout(place.segment)?;
        let mut tried = Tried::default();
        let mut sound = self.load_from_any(&layout, descriptor, Wait::Soon, &mut tried);
        if sound.is_none() {
            tried = Tried::default();
            sound = self.load_from_any(&layout, descriptor, Wait::Long, &mut tried);
        }
        let Tried { bad, mut reasons } = tried;
        if !bad.is_empty() && self.descriptor(chunk).is_ok_and(|now| now.frame == *place) {
            for (slot, reason) in &bad {
                reasons.push(format!("device {}: {reason}", slot.0));
                // Of a device that is not there everybody knows.
                if !self.pool.readable(*slot) {
                    continue;
                }
                Counters::add(&self.counters.frames_damaged, 1);
                self.pool.note_damage(slot.0, 1);
                tracing::warn!(
                    chunk = chunk.0,
                    segment = place.segment.0,
                    device = slot.0.0,
                    reason,
                    "a chunk does not verify"
                );
            }
        }
        if let Some((plain, stored)) = sound {
            let readable = bad.iter().map(|(slot, _)| *slot).filter(|slot| self.pool.readable(*slot));
            self.heal(chunk, place, &readable.collect::<Vec<_>>(), stored.bytes());
            return Ok(plain);
        }
        Err(StoreError::Damaged {
            chunk,
            segment: place.segment,
            offset: place.slot_offset,
            reason: reasons.join("; "),
        })
    }

    /// Asks one copy after the other, then the other cells of its row.
    fn load_from_any(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        wait: Wait,
        tried: &mut Tried,
    ) -> Option<(Vec<u8>, Span)> {
        for slot in self.pool.by_preference(layout.copies(descriptor.frame.cell)) {
            if wait == Wait::Soon && self.pool.is_avoided(slot) {
                continue;
            }
            match self.load_copy(slot, descriptor, wait) {
                Ok(found) => return Some(found),
                Err(Unread::Late) => {}
                Err(Unread::Bad(reason)) => tried.bad.push((slot, reason)),
            }
        }
        match self.load_decoded(layout, descriptor, wait) {
            Ok(found) => found,
            Err(reason) => {
                tried.reasons.push(reason);
                None
            }
        }
    }

    /// Reads and verifies one copy; returns the plain frame and the stored one.
    pub(crate) fn load_copy(
        &self,
        slot: Placement,
        descriptor: &Descriptor,
        wait: Wait,
    ) -> Result<(Vec<u8>, Span), Unread> {
        let place = &descriptor.frame;
        let stored =
            self.read_span(slot, place.slot_offset, place.stored_bytes, wait).map_err(
                |error| match error {
                    StoreError::Pool(PoolError::Slow { .. }) => Unread::Late,
                    error => Unread::Bad(error.to_string()),
                },
            )?;
        let plain = decode(place, stored.bytes()).map_err(Unread::Bad)?;
        if !verifies(descriptor, &plain) {
            return Err(Unread::Bad("its hash does not match".into()));
        }
        Ok((plain, stored))
    }

    /// Makes a frame from the other cells of its row, and verifies it; nothing where it has no others.
    ///
    /// The same span of as many others as there are cells of data is enough. Where some of those are bad as well other choices
    /// are tried; in the end whole cells tell who is bad.
    pub(crate) fn load_decoded(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        wait: Wait,
    ) -> Result<Option<(Vec<u8>, Span)>, String> {
        let place = &descriptor.frame;
        if layout.shards.0 == 1 || place.cell >= layout.shards.0 {
            return Ok(None);
        }
        let verified = |stored: Span| -> Result<(Vec<u8>, Span), String> {
            let plain = decode(place, stored.bytes())?;
            if !verifies(descriptor, &plain) {
                return Err("made from the other cells its hash does not match".into());
            }
            Ok((plain, stored))
        };
        let span = self.decode_span(layout, place.cell, place.slot_offset, place.stored_bytes, wait);
        if let Ok(found) = span.map_err(|error| error.to_string()).and_then(verified) {
            return Ok(Some(found));
        }
        if wait == Wait::Soon {
            return Err("too few other cells of its row can be had at once".into());
        }
        let others = self.read_others(layout, place.cell, place.slot_offset, place.stored_bytes, true, wait);
        let needed = usize::from(layout.shards.0);
        // First those by which each of them is left out once.
        let in_turn = (0..others.len()).filter(|_| needed <= others.len());
        let in_turn = in_turn.map(|first| (first..first + needed).map(|n| n % others.len()).collect());
        for chosen in in_turn.chain(choices(others.len(), needed)).take(DECODINGS_MAX) {
            let chosen: Vec<usize> = chosen;
            let there: Vec<(usize, &[u8])> =
                chosen.iter().map(|n| (others[*n].0, others[*n].1.bytes())).collect();
            if let Ok(found) = verified(self.decode_from(layout, place.cell, &there)) {
                return Ok(Some(found));
            }
        }
        let whole = self.span_of_sound_row(place).map_err(|error| error.to_string())?;
        whole
            .ok_or_else(|| "too few other cells of its row are sound".to_owned())
            .and_then(verified)
            .map(Some)
    }

    /// Makes a span of a cell from the same span of as many others as are needed, without verifying them.
    fn decode_span(
        &self,
        layout: &Layout,
        cell: u8,
        offset: u32,
        bytes: u32,
        wait: Wait,
    ) -> Result<Span, StoreError> {
        let others = self.read_others(layout, cell, offset, bytes, false, wait);
        if others.len() < usize::from(layout.shards.0) || cell >= layout.shards.0 {
            let (device, slot) = layout.places.get(usize::from(cell)).copied().unwrap_or_default();
            return Err(aegisfs_pool::PoolError::Absent { device, slot }.into());
        }
        let there: Vec<(usize, &[u8])> =
            others.iter().map(|(number, span)| (*number, span.bytes())).collect();
        Ok(self.decode_from(layout, cell, &there))
    }

    /// The span that other cells of a row hold at some place: all that can be read, or as many as are needed.
    fn read_others(
        &self,
        layout: &Layout,
        cell: u8,
        offset: u32,
        bytes: u32,
        all: bool,
        wait: Wait,
    ) -> Vec<(usize, Span)> {
        let needed = usize::from(layout.shards.0);
        let is_other = |place: &Placement| Some(place) != layout.places.get(usize::from(cell));
        let others: Vec<Placement> = layout
            .places
            .iter()
            .copied()
            .filter(|place| is_other(place) && self.pool.readable(*place))
            .collect();
        let order = self.pool.by_preference(&others);
        let read = |place: &Placement| self.read_span(*place, offset, bytes, wait);
        let (mut there, mut rest) = (Vec::new(), &order[..]);
        while !rest.is_empty() && (all || there.len() < needed) {
            let wanted = if all { rest.len() } else { (needed - there.len()).min(rest.len()) };
            let (now, later) = rest.split_at(wanted);
            let spans = match self.pool.pays_side_by_side(now) {
                true => side_by_side(now, read),
                false => now.iter().map(read).collect(),
            };
            let number = |place: &Placement| layout.places.iter().position(|other| other == place);
            there
                .extend(now.iter().zip(spans).filter_map(|(place, span)| Some((number(place)?, span.ok()?))));
            rest = later;
        }
        there
    }

    fn decode_from(&self, layout: &Layout, cell: u8, there: &[(usize, &[u8])]) -> Span {
        let (data, parity) = layout.shards;
        let bytes = there[0].1.len();
        let mut out = Span { blocks: AlignedBuffer::zeroed(bytes), skip: 0, bytes: bytes as u32 };
        let erasure = Erasure::new(usize::from(data), usize::from(parity));
        erasure.decode(there, &mut [(usize::from(cell), &mut out.blocks)]);
        Counters::add(&self.counters.frames_decoded, 1);
        out
    }

    /// A span of a cell as the sound cells of its row have it.
    fn span_of_sound_row(&self, place: &FramePlace) -> Result<Option<Span>, StoreError> {
        let Some(segment) = self.read_segment(place.segment)? else { return Ok(None) };
        let rows = self.rows_around(&segment, place).into_iter().rev().take(ROWS_TRIED_MAX);
        let mut rows = rows.filter_map(|offset| {
            Some((offset, SoundRow::read(&self.pool, place.segment, &segment, offset)?))
        });
        let Some((offset, row)) = rows.next() else { return Ok(None) };
        let cell = row.right(place.cell);
        let from = (place.slot_offset - offset) as usize;
        let Some(stored) = cell.get(from..from + place.stored_bytes as usize) else { return Ok(None) };
        let mut blocks = AlignedBuffer::zeroed(stored.len());
        blocks.copy_from_slice(stored);
        Ok(Some(Span { blocks, skip: 0, bytes: place.stored_bytes }))
    }

    /// Where the row may begin that a frame is in, by the nearest headers before it, on whichever devices those stand.
    fn rows_around(&self, segment: &Segment, place: &FramePlace) -> BTreeSet<u32> {
        let mut end = (place.slot_offset / BLOCK_BYTES as u32 + 1) * BLOCK_BYTES as u32;
        let lowest = end.saturating_sub(CELL_BYTES_MAX as u32).max(SLOT_HEADER_BYTES as u32);
        let mut found = BTreeSet::new();
        while end > lowest && found.is_empty() {
            let start = end.saturating_sub(HEADERS_WINDOW_BYTES).max(lowest);
            for slot in &segment.placements {
                let headers = headers_in(&self.pool, *slot, place.segment, start, end - start);
                let covers = |header: &&(u32, usize)| {
                    u64::from(header.0) + header.1 as u64 > u64::from(place.slot_offset)
                };
                found.extend(headers.iter().filter(covers).map(|(offset, _)| *offset));
            }
            end = start;
        }
        found
    }

    /// Reads whole blocks around a span of a slot.
    fn read_span(&self, slot: Placement, offset: u32, bytes: u32, wait: Wait) -> Result<Span, StoreError> {
        let block = BLOCK_BYTES as u64;
        let first = u64::from(offset) / block * block;
        let end = (u64::from(offset) + u64::from(bytes)).next_multiple_of(block);
        if end > self.pool.slot_bytes() {
            let what = format!("a frame reaches beyond slot {}", slot.1);
            return Err(StoreError::Inconsistent { what });
        }
        let mut span = Span { blocks: BUFFER.take(), skip: (u64::from(offset) - first) as usize, bytes };
        span.blocks.set_length((end - first) as usize);
        match wait {
            Wait::Soon => self.pool.read_slot_soon(slot, first, &mut span.blocks)?,
            Wait::Long => self.pool.read_slot(slot, first, &mut span.blocks)?,
        }
        Counters::add(&self.counters.device_reads, 1);
        Counters::add(&self.counters.frames_read, 1);
        Ok(span)
    }

    /// Writes a sound frame over the copies that did not verify, and touches nothing beside it.
    fn heal(&self, chunk: ChunkId, place: &FramePlace, bad: &[Placement], stored: &[u8]) {
        if bad.is_empty() || self.check_writable().is_err() {
            return;
        }
        // While this is held no slot is given to anybody else. If the chunk is still there now, its slots are its own.
        let _held = self.healing.lock();
        let is_there = self.descriptor(chunk).is_ok_and(|now| now.frame == *place);
        if !is_there && !removed(Edge::HealRechecked) {
            return;
        }
        for slot in bad {
            let old = self.read_span(*slot, place.slot_offset, place.stored_bytes, Wait::Long);
            let healed = old.and_then(|mut span| {
                let skip = span.skip;
                span.blocks[skip..skip + stored.len()].copy_from_slice(stored);
                let first = u64::from(place.slot_offset) - skip as u64;
                Ok(self.pool.write_slot(*slot, first, &span.blocks)?)
            });
            match healed {
                Ok(()) => {
                    Counters::add(&self.counters.frames_healed, 1);
                    let at = (place.segment, place.slot_offset, place.cell);
                    self.note_mended(Some(chunk), at, slot.0);
                    tracing::warn!(chunk = chunk.0, device = slot.0.0, "healed from another copy");
                }
                Err(error) => tracing::warn!(%error, chunk = chunk.0, "could not be healed"),
            }
        }
    }
}

/// All ways to choose so many of some, by their places.
fn choices(of: usize, count: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next = (count <= of).then(|| (0..count).collect::<Vec<usize>>());
    std::iter::from_fn(move || {
        let now = next.take()?;
        // The last that can move on does, and those behind it follow.
        if let Some(at) = (0..count).rev().find(|at| now[*at] < of - count + at) {
            let mut later = now.clone();
            later[at] += 1;
            (at + 1..count).for_each(|n| later[n] = later[n - 1] + 1);
            next = Some(later);
        }
        Some(now)
    })
}

fn verifies(descriptor: &Descriptor, plain: &[u8]) -> bool {
    let start = descriptor.offset_in_frame as usize;
    let chunk = plain.get(start..start + descriptor.plain_bytes as usize);
    removed(Edge::ChunkVerify) || chunk.is_some_and(|chunk| ChunkHash::of(chunk).0 == descriptor.hash)
}

fn decode(place: &FramePlace, stored: &[u8]) -> Result<Vec<u8>, String> {
    let codec = Codec::from_raw(place.codec).map_err(|error| error.to_string())?;
    let mut plain = Vec::with_capacity(place.plain_bytes as usize);
    decompress(codec, stored, place.plain_bytes as usize, &mut plain).map_err(|error| error.to_string())?;
    Ok(plain)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Piece, StoreOptions, create, open};
    use aegisfs_base::sabotage::without;
    use aegisfs_base::{BranchId, InodeId, ManualClock, SeededRng, Sequence};
    use aegisfs_device::{Device, MemoryDevice};
    use aegisfs_format::op::Op;
    use aegisfs_pool::{CreateOptions, OpenOptions, Pool};

    /// A new store on mirrored devices in memory.
    pub(crate) fn store_on(names: &[&str]) -> Store {
        let device = |name: &&str| Arc::new(MemoryDevice::new(*name, 256 << 20)) as Arc<dyn Device>;
        let devices: Vec<_> = names.iter().map(device).collect();
        let rng = SeededRng::new(1);
        let pool =
            Pool::create(devices.clone(), &CreateOptions::default(), &ManualClock::default(), &rng).unwrap();
        create(&pool, &[]).unwrap();
        let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
        let options = StoreOptions { workers: 0, ..StoreOptions::default() };
        open(pool, &options, Arc::new(ManualClock::default()), &rng).unwrap().0
    }

    #[test]
    fn every_choice_comes_once() {
        let all: Vec<_> = choices(5, 3).collect();
        assert_eq!(all.len(), 10);
        assert_eq!((&all[0][..], &all[9][..]), (&[0, 1, 2][..], &[2, 3, 4][..]));
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((choices(3, 3).count(), choices(2, 3).count()), (1, 0));
    }

    /// A slot that a chunk has left may be anybody's.
    #[test]
    fn a_chunk_that_moved_is_not_healed_where_it_was() {
        let store = store_on(&["one", "two"]);
        let data: Vec<u8> = (0..20_000u32).map(|n| ((n * n) >> 7) as u8).collect();
        let mut ingested =
            store.ingest(1, &[Piece::new(0, 0, &data)], aegisfs_base::PolicyId(0), true).unwrap();
        let references = std::mem::take(&mut ingested.references[0]);
        let chunk = references[0].chunk;
        let (inode, pending_up_to) = (InodeId(10), Sequence(u64::MAX));
        let op = Op::Replace { inode, from: 0, to: 20_000, pending_up_to, references };
        store.commit_ingested(BranchId(0), ingested, vec![op]).unwrap();
        let before = store.descriptor(chunk).unwrap();
        let layout = store.layout(before.frame.segment).unwrap();
        let places = &layout.places;
        let content = |slot| {
            let frame = &before.frame;
            let span = store.read_span(slot, frame.slot_offset, frame.stored_bytes, Wait::Long).unwrap();
            span.bytes().to_vec()
        };
        let stored = content(places[0]);
        // Where it is, it is healed.
        let blocks = vec![0; aegisfs_base::limits::BLOCK_BYTES];
        let block = u64::from(before.frame.slot_offset) / blocks.len() as u64 * blocks.len() as u64;
        store.pool.write_slot(places[1], block, &blocks).unwrap();
        assert_ne!(content(places[1]), stored);
        store.heal(chunk, &before.frame, &[places[1]], &stored);
        assert_eq!(content(places[1]), stored);
        store.seal_open_segments().unwrap();
        assert_eq!(store.clean(u64::MAX).unwrap().segments, 1);
        assert_ne!(store.descriptor(chunk).unwrap().frame, before.frame);
        // The slots were given back, and are somebody else's by now.
        for place in places.iter() {
            store.pool.write_slot(*place, block, &blocks).unwrap();
            store.heal(chunk, &before.frame, &[*place], &stored);
            assert_ne!(content(*place), stored, "it was written over what is not its own");
        }
        let mut read = vec![0; before.plain_bytes as usize];
        store.read_chunk(chunk, 0, &mut read).unwrap();
        assert_eq!(read, data[..read.len()]);
        // Whoever looked up the old place before that finds the new one, and nobody hears of damage.
        let damaged = || store.counters.frames_damaged.load(Ordering::Relaxed);
        let so_far = damaged();
        let (now, frame) = store.current_frame(chunk, before).unwrap();
        assert_eq!(frame.plain[now.offset_in_frame as usize..][..read.len()], read);
        assert_eq!(damaged(), so_far);
        // Without the second looks both would go wrong.
        assert!(without(Edge::MovedIsNotDamage, || store.current_frame(chunk, before)).is_err());
        without(Edge::HealRechecked, || store.heal(chunk, &before.frame, &[places[0]], &stored));
        assert_eq!(content(places[0]), stored, "it was written over what is not its own");
    }
}
