//! Reading chunks: cache, device, verification, healing from another copy.
//!
//! A frame is cached once it was decoded; each chunk in it is checked against its hash before its first
//! bytes leave here.

use crate::StoreError;
use crate::store::{Counters, Store};
use crate::tables::Tables;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{ChunkId, SegmentId};
use aegisfs_chunk::{ChunkHash, Codec, decompress};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::Segment;
use aegisfs_pool::Placement;
use parking_lot::Mutex;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Segments whose placement is kept in memory.
const PLACEMENTS_KEPT: usize = 4096;
/// Neighbouring frames are read in one go up to this many bytes.
const RUN_BYTES_MAX: u32 = 1 << 20;
/// Frames this close together are read in one go, the gap included.
const GAP_BYTES_MAX: u32 = 32 << 10;

type FrameKey = (SegmentId, u32);

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
    placements: quick_cache::sync::Cache<SegmentId, Arc<Vec<Placement>>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl FrameCache {
    pub(crate) fn new(bytes: u64) -> Self {
        let frames = (bytes / (64 << 10)).max(16) as usize;
        Self {
            frames: quick_cache::sync::Cache::with_weighter(frames, bytes.max(1 << 20), ByBytes),
            placements: quick_cache::sync::Cache::new(PLACEMENTS_KEPT),
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

    /// Brings chunks into the cache with as few device reads as their places allow. What cannot be read is
    /// left for [`Store::read_chunk`] to report.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn prefetch(&self, chunks: &[ChunkId]) -> Result<(), StoreError> {
        let mut wanted: Vec<FramePlace> = Vec::new();
        for chunk in chunks {
            let Ok(descriptor) = self.descriptor(*chunk) else { continue };
            let key = (descriptor.frame.segment, descriptor.frame.slot_offset);
            if self.cache.frames.peek(&key).is_none() {
                wanted.push(descriptor.frame);
            }
        }
        wanted.sort_by_key(|frame| (frame.segment, frame.slot_offset));
        wanted.dedup_by_key(|frame| (frame.segment, frame.slot_offset));
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let mut end = first.slot_offset + first.stored_bytes;
            let mut count = 1;
            for next in &rest[1..] {
                let near = next.segment == first.segment
                    && next.slot_offset <= end + GAP_BYTES_MAX
                    && next.slot_offset + next.stored_bytes - first.slot_offset <= RUN_BYTES_MAX;
                if !near {
                    break;
                }
                end = next.slot_offset + next.stored_bytes;
                count += 1;
            }
            let (run, later) = rest.split_at(count);
            self.load_run(run, end)?;
            rest = later;
        }
        Ok(())
    }

    fn load_run(&self, run: &[FramePlace], end: u32) -> Result<(), StoreError> {
        let (segment, start) = (run[0].segment, run[0].slot_offset);
        // A segment that has gone had its chunks moved elsewhere.
        let Ok(places) = self.placements(segment) else { return Ok(()) };
        let Some(place) = places.iter().find(|place| self.pool.readable(**place)) else { return Ok(()) };
        let Ok(span) = self.read_span(*place, start, end - start) else { return Ok(()) };
        for frame in run {
            let from = (frame.slot_offset - start) as usize;
            let stored = &span.bytes()[from..from + frame.stored_bytes as usize];
            if let Ok(plain) = decode(frame, stored) {
                let cached = CachedFrame { plain, verified: Mutex::default() };
                self.cache.frames.insert((segment, frame.slot_offset), Arc::new(cached));
            }
        }
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
        visit: &mut dyn FnMut(u32),
    ) -> Result<(), StoreError> {
        let mut problem = None;
        self.view().scan(Table::Chunks, &[], None, &mut |_, stored| {
            match Descriptor::decode(stored) {
                Ok(Some(found)) if found.frame.segment == segment => visit(found.frame.slot_offset),
                Ok(_) => {}
                Err(error) => problem = Some(error),
            }
            if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        problem.map_or(Ok(()), |error| Err(error.into()))
    }

    pub(crate) fn placements(&self, segment: SegmentId) -> Result<Arc<Vec<Placement>>, StoreError> {
        if let Some(places) = self.cache.placements.get(&segment) {
            return Ok(places);
        }
        let stored = self.view().get(Table::Segments, &key::segment(segment))?;
        let stored = stored
            .ok_or_else(|| StoreError::Inconsistent { what: format!("segment {segment} is missing") })?;
        let places = Arc::new(Segment::decode(&stored)?.placements);
        self.cache.placements.insert(segment, Arc::clone(&places));
        Ok(places)
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
                        return Err(error);
                    }
                    descriptor = now;
                }
            }
        }
    }

    /// The decoded frame of a chunk, with that chunk verified.
    fn frame(&self, chunk: ChunkId, descriptor: &Descriptor) -> Result<Arc<CachedFrame>, StoreError> {
        let key = (descriptor.frame.segment, descriptor.frame.slot_offset);
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

    /// Reads a frame from the first copy in which the chunk verifies, and heals the ones before it.
    fn load(&self, chunk: ChunkId, descriptor: &Descriptor) -> Result<Vec<u8>, StoreError> {
        let place = &descriptor.frame;
        let places = self.placements(place.segment)?;
        let mut bad = Vec::new();
        let mut reasons = Vec::new();
        let mut sound = None;
        for slot in places.iter() {
            match self.load_copy(*slot, descriptor) {
                Ok(found) => {
                    sound = Some(found);
                    break;
                }
                Err(reason) => bad.push((*slot, reason)),
            }
        }
        if !bad.is_empty() && self.descriptor(chunk).is_ok_and(|now| now.frame == *place) {
            for (slot, reason) in &bad {
                reasons.push(format!("device {}: {reason}", slot.0));
                // Of a device that is not there everybody knows.
                if !self.pool.readable(*slot) {
                    continue;
                }
                Counters::add(&self.counters.frames_damaged, 1);
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

    /// Reads and verifies one copy; returns the plain frame and the stored one.
    pub(crate) fn load_copy(
        &self,
        slot: Placement,
        descriptor: &Descriptor,
    ) -> Result<(Vec<u8>, Span), String> {
        let place = &descriptor.frame;
        let stored =
            self.read_span(slot, place.slot_offset, place.stored_bytes).map_err(|e| e.to_string())?;
        let plain = decode(place, stored.bytes())?;
        if !verifies(descriptor, &plain) {
            return Err("its hash does not match".into());
        }
        Ok((plain, stored))
    }

    /// Reads whole blocks around a span of a slot.
    fn read_span(&self, slot: Placement, offset: u32, bytes: u32) -> Result<Span, StoreError> {
        let block = BLOCK_BYTES as u64;
        let first = u64::from(offset) / block * block;
        let end = (u64::from(offset) + u64::from(bytes)).next_multiple_of(block);
        if end > self.pool.slot_bytes() {
            let what = format!("a frame reaches beyond slot {}", slot.1);
            return Err(StoreError::Inconsistent { what });
        }
        let mut span = Span { blocks: BUFFER.take(), skip: (u64::from(offset) - first) as usize, bytes };
        span.blocks.set_length((end - first) as usize);
        self.pool.read_slot(slot, first, &mut span.blocks)?;
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
            let healed = self.read_span(*slot, place.slot_offset, place.stored_bytes).and_then(|mut span| {
                let skip = span.skip;
                span.blocks[skip..skip + stored.len()].copy_from_slice(stored);
                let first = u64::from(place.slot_offset) - skip as u64;
                Ok(self.pool.write_slot(*slot, first, &span.blocks)?)
            });
            match healed {
                Ok(()) => {
                    Counters::add(&self.counters.frames_healed, 1);
                    tracing::warn!(chunk = chunk.0, device = slot.0.0, "healed from another copy");
                }
                Err(error) => tracing::warn!(%error, chunk = chunk.0, "could not be healed"),
            }
        }
    }
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

    /// A slot that a chunk has left may be anybody's.
    #[test]
    fn a_chunk_that_moved_is_not_healed_where_it_was() {
        let store = store_on(&["one", "two"]);
        let data: Vec<u8> = (0..20_000u32).map(|n| ((n * n) >> 7) as u8).collect();
        let mut ingested = store.ingest(1, &[Piece::new(0, 0, &data)], true).unwrap();
        let references = std::mem::take(&mut ingested.references[0]);
        let chunk = references[0].chunk;
        let (inode, pending_up_to) = (InodeId(10), Sequence(u64::MAX));
        let op = Op::Replace { inode, from: 0, to: 20_000, pending_up_to, references };
        store.commit_ingested(BranchId(0), ingested, vec![op]).unwrap();
        let before = store.descriptor(chunk).unwrap();
        let places = store.placements(before.frame.segment).unwrap();
        let content = |slot| {
            let span = store.read_span(slot, before.frame.slot_offset, before.frame.stored_bytes).unwrap();
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
