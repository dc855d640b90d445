//! The cleaner: what lives in a segment moves to new rows, and the segment's slots come back.
//!
//! 1. The segment's cells are read, from whichever copy verifies. Frames that live as a whole are copied as they
//!    are; of others the living chunks are compressed anew.
//! 2. The rows are written, to a segment that holds nothing but moved chunks.
//! 3. One change after the other says where the chunks are now. The sequencer looks whether each is still where it
//!    was; what died or moved meanwhile was copied in vain.
//! 4. With its last chunk the segment goes. Its slots are free after the next checkpoint, as those of any other.
//!
//! A crash leaves a chunk in the old place or in the new one, and both are whole until that checkpoint.

mod background;
mod remains;

use crate::StoreError;
use crate::ingest::frames::{self, NewChunk};
use crate::mend::Pace;
use crate::rows::{Frame, RowBuffers, RowWriter, WrittenRow};
use crate::segments::{Class, Purpose};
use crate::sound_row::SoundRow;
use crate::space::FRAME_BYTES_WORST;
use crate::store::{Counters, Store};
use crate::tables::Tables;
use aegisfs_base::{BranchId, ChunkId, FaultKind, PolicyId, SegmentId};
use aegisfs_chunk::{ChunkHash, Codec, decompress};
use aegisfs_format::cell::{Cell, CellChunk};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::Table;
use aegisfs_format::op::Op;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::{Segment, SegmentState};
pub(crate) use background::Restraint;
pub use background::{CleanerThread, CleaningStatus, Intensity};
use parking_lot::{Mutex, MutexGuard};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Chunks whose new places one change tells; bounds the log record.
const MOVES_PER_CHANGE: usize = 2000;
/// Bytes that are moved before a change tells of them.
const MOVED_PER_CHANGE: u64 = 8 << 20;
/// Segments of which so small a part is dead are left alone, in parts of a segment: moving the rest costs more writing
/// than it gives back.
const DEAD_PART_MIN: u64 = 50;

/// A segment whose end nobody knows was sealed early if less than the inverse of this part was written to; others are full,
/// however much of them are directories.
const UNUSED_BEYOND: (u64, u64) = (3, 2);

/// What the cleaner knows beyond the metadata.
#[derive(Default)]
pub(crate) struct Cleaner {
    /// One at a time.
    running: Mutex<()>,
    /// Segments with something in them that cannot be read, and so cannot be moved.
    stuck: Mutex<HashSet<SegmentId>>,
    /// Segments in which something is forsaken that cannot be had: a snapshot sees what refers to the rest, or it cannot be
    /// read.
    kept: Mutex<HashSet<SegmentId>>,
    /// Those who wait for room and want to clean at once.
    wanted: AtomicUsize,
    /// Changes it made and chunks it read.
    uses: AtomicU64,
    orders: background::Orders,
    pub(crate) sleeper: background::Sleeper,
}

impl Cleaner {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > 0
    }

    fn count_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }
}

/// What cleaning has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Segments that are gone.
    pub segments: u64,
    /// Stored bytes of chunks that were moved.
    pub moved_bytes: u64,
    /// Bytes of the slots that come back, one copy counted.
    pub released_bytes: u64,
    /// Segments that could not be emptied, because something in them cannot be read.
    pub stuck: u64,
    /// Of the moved bytes, those that were what is left of chunks and became chunks of their own.
    pub remains_bytes: u64,
    /// Bytes of the rows that were written for that.
    pub row_bytes: u64,
    /// It was told to stop.
    stopped: bool,
}

impl Cleaned {
    /// Bytes that are there for others now.
    pub(crate) fn gained_bytes(&self) -> u64 {
        self.released_bytes.saturating_sub(self.row_bytes)
    }
}

/// What became of a segment that was to be moved as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// What lived in it lives elsewhere.
    Gone,
    /// There is no room for that now.
    NoRoom,
    /// Something in it cannot be read.
    Unreadable,
}

/// A segment that may be worth cleaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The segment.
    pub segment: SegmentId,
    /// Bytes in it that take what is referred to.
    pub live_bytes: u64,
    /// The other bytes.
    pub dead_bytes: u64,
    /// Those of them that lie in chunks of which other parts are referred to.
    pub forsaken_bytes: u64,
    /// The sequence at which it was opened.
    pub opened: u64,
}

impl Candidate {
    /// How much of it is dead, in thousandths.
    fn dead_part(&self) -> u64 {
        self.dead_bytes * 1000 / (self.live_bytes + self.dead_bytes).max(1)
    }

    /// What cleaning it is worth, as Rosenblum and Ousterhout put it for Sprite LFS: the room that comes back, times how
    /// long it has been as it is, by what reading it and writing the rest costs.
    fn worth(&self, now: u64) -> f64 {
        let total = (self.live_bytes + self.dead_bytes) as f64;
        let live = self.live_bytes as f64 / total;
        (1.0 - live) * (now.saturating_sub(self.opened) + 1) as f64 / (1.0 + live)
    }
}

/// Rows on their way to the metadata; they are given back whatever happens.
struct Moving<'s> {
    store: &'s Store,
    rows: Vec<WrittenRow>,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        for row in &self.rows {
            if let Err(error) = self.store.row_done(row.dependency.segment) {
                tracing::warn!(%error, "a full segment could not be sealed; recovery will do it");
            }
        }
    }
}

/// What lives in one segment, on its way out.
struct Harvest {
    /// The one that the segment follows, and what it is moved to.
    policy: PolicyId,
    /// Where each chunk's frame begins in the slots.
    from: HashMap<ChunkId, u32>,
    /// Frames that live as a whole.
    whole: Vec<Frame<'static>>,
    /// Chunks of frames in which others died, verified.
    single: Vec<NewChunk<'static>>,
    bytes: u64,
}

impl Harvest {
    fn new(policy: PolicyId) -> Self {
        Self { policy, from: HashMap::new(), whole: Vec::new(), single: Vec::new(), bytes: 0 }
    }

    /// What there is so far; it begins again with nothing.
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.policy))
    }

    /// Whether a change tells of it before more is taken.
    fn is_enough(&self) -> bool {
        self.bytes >= MOVED_PER_CHANGE || self.from.len() >= MOVES_PER_CHANGE
    }
}

impl Store {
    /// Segments in which something is dead, those first that are worth most; and the bytes that cleaning all of them would
    /// give back.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn cleaning_candidates(&self) -> Result<(Vec<Candidate>, u64), StoreError> {
        let mut found = Vec::new();
        let mut dead = 0;
        let mut problem = None;
        let stuck = self.cleaner.stuck.lock().clone();
        let kept = self.cleaner.kept.lock().clone();
        // Those that are not found any more.
        let mut gone = kept.clone();
        let no_more_chunks = self.pool.space().lent > 0;
        let slot_bytes = self.pool.slot_bytes();
        self.view().scan(Table::Segments, &[], None, &mut |key, stored| {
            let (Some(id), Ok(mut segment)) = (key.first_chunk::<8>(), Segment::decode(stored)) else {
                problem = Some(StoreError::Inconsistent { what: "a segment cannot be read".into() });
                return ControlFlow::Break(());
            };
            let segment_id = SegmentId(u64::from_be_bytes(*id));
            gone.remove(&segment_id);
            if no_more_chunks || kept.contains(&segment_id) {
                segment.forsaken_bytes = 0;
            }
            let room = self.room_of(&segment);
            let dead_bytes = dead_bytes(room, slot_bytes, &segment);
            let is_worth_it = segment.state == SegmentState::Sealed && dead_bytes > room / DEAD_PART_MIN;
            if is_worth_it && !stuck.contains(&segment_id) {
                let Segment { live_bytes, forsaken_bytes, opened, policy, .. } = segment;
                let live_bytes = live_bytes - forsaken_bytes.min(live_bytes);
                let [live_bytes, dead_bytes, forsaken_bytes] =
                    [live_bytes, dead_bytes, forsaken_bytes].map(|bytes| self.in_own_bytes(bytes, policy));
                dead += dead_bytes;
                found.push(Candidate { segment: segment_id, live_bytes, dead_bytes, forsaken_bytes, opened });
            }
            ControlFlow::Continue(())
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.cleaner.kept.lock().retain(|segment| !gone.contains(segment));
        let now = self.last_sequence().0;
        found.sort_by(|a, b| b.worth(now).total_cmp(&a.worth(now)).then(a.segment.cmp(&b.segment)));
        Ok((found, dead))
    }

    /// Cleans segments, as many of the most worthwhile as give back so many bytes, and makes a checkpoint, so that their
    /// slots are free. Says what was done; no segments means that there is nothing more to be had.
    ///
    /// # Errors
    /// When the metadata or a device fails, or nothing may be written.
    pub fn clean(&self, wanted_bytes: u64) -> Result<Cleaned, StoreError> {
        // Whoever comes next finds the slots free, and can move something.
        let running = self.take_turn();
        let done = self.empty_at_once(&running, wanted_bytes)?;
        if done.segments > 0 || self.pool.space().freeing > 0 {
            self.checkpoint()?;
        }
        Ok(done)
    }

    /// The right to clean, which the background gives away at its next step.
    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.cleaner.wanted.fetch_add(1, Ordering::AcqRel);
        let running = self.cleaner.running.lock();
        self.cleaner.wanted.fetch_sub(1, Ordering::AcqRel);
        running
    }

    /// The same without the checkpoint.
    ///
    /// # Errors
    /// As [`Store::clean`].
    pub fn empty_segments(&self, wanted_bytes: u64) -> Result<Cleaned, StoreError> {
        self.empty_at_once(&self.take_turn(), wanted_bytes)
    }

    fn empty_at_once(&self, running: &MutexGuard<'_, ()>, wanted_bytes: u64) -> Result<Cleaned, StoreError> {
        // Whoever waits for room wants that which gives most of it first.
        let most_first = |candidates: &mut Vec<Candidate>| {
            candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.dead_bytes));
        };
        self.empty_some(running, wanted_bytes, &most_first, &|_, _| ControlFlow::Continue(()))
    }

    /// Empties those of the segments that are chosen, in that order, at some pace.
    fn empty_some(
        &self,
        _running: &MutexGuard<'_, ()>,
        wanted_bytes: u64,
        choose: &dyn Fn(&mut Vec<Candidate>),
        pace: &Pace<'_>,
    ) -> Result<Cleaned, StoreError> {
        self.check_writable()?;
        let mut done = Cleaned::default();
        let (mut candidates, _) = self.cleaning_candidates()?;
        choose(&mut candidates);
        // Of those before this one everything is a chunk of its own by now.
        let mut ready = 0;
        for (number, candidate) in candidates.iter().enumerate() {
            if done.gained_bytes() >= wanted_bytes {
                break;
            }
            if number == ready {
                let rest = wanted_bytes - done.gained_bytes();
                match self.take_remains(&candidates[number..], rest, pace, &mut done) {
                    // What is left of chunks stays with them this time.
                    Err(error) if error.kind() == FaultKind::NoSpace => ready = candidates.len(),
                    Ok(Some(count)) => ready += count,
                    Ok(None) => {
                        done.stopped = true;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            // What is moved needs room before the old slots are free.
            let segment = self.read_segment(candidate.segment)?;
            let has_room = |segment: &Segment| self.has_room_to_move(segment.live_bytes, segment.policy);
            if !segment.as_ref().is_none_or(has_room) {
                if done.segments == 0 {
                    continue;
                }
                break;
            }
            match self.clean_segment(candidate.segment, segment, pace, &mut done) {
                // What was moved so far counts, and a checkpoint may make room for the rest.
                Err(error) if error.kind() == FaultKind::NoSpace => break,
                outcome => {
                    if outcome?.is_break() {
                        done.stopped = true;
                        break;
                    }
                }
            }
        }
        Ok(done)
    }

    /// Moves everything that lives in a segment to new rows, however much that is; nothing where there is no room for that
    /// now.
    pub(crate) fn move_segment(&self, id: SegmentId, done: &mut Cleaned) -> Result<Moved, StoreError> {
        let _running = self.take_turn();
        let Some(segment) = self.read_segment(id)? else { return Ok(Moved::Gone) };
        if !self.has_room_to_move(segment.live_bytes, segment.policy) {
            return Ok(Moved::NoRoom);
        }
        match self.empty_segment(id, &segment, &|_, _| ControlFlow::Continue(()), done) {
            Err(error) if error.kind() == FaultKind::NoSpace => return Ok(Moved::NoRoom),
            outcome => drop(outcome?),
        }
        Ok(if self.read_segment(id)?.is_none() { Moved::Gone } else { Moved::Unreadable })
    }

    /// Moves what lives in a segment that is worth it.
    fn clean_segment(
        &self,
        id: SegmentId,
        segment: Option<Segment>,
        pace: &Pace<'_>,
        done: &mut Cleaned,
    ) -> Result<ControlFlow<()>, StoreError> {
        let Some(segment) = segment else {
            // Nothing but remains was left in it.
            self.count_cleaned(self.segment_data_bytes(), done);
            return Ok(ControlFlow::Continue(()));
        };
        if segment.state != SegmentState::Sealed || self.segments.holds(id) {
            return Ok(ControlFlow::Continue(()));
        }
        if segment.forsaken_bytes > 0 {
            let room = self.room_of(&segment);
            let certain = Segment { forsaken_bytes: 0, ..segment.clone() };
            if dead_bytes(room, self.pool.slot_bytes(), &certain) <= room / DEAD_PART_MIN {
                return Ok(ControlFlow::Continue(()));
            }
        }
        self.empty_segment(id, &segment, pace, done)
    }

    fn empty_segment(
        &self,
        id: SegmentId,
        segment: &Segment,
        pace: &Pace<'_>,
        done: &mut Cleaned,
    ) -> Result<ControlFlow<()>, StoreError> {
        let Some(is_whole) = self.move_cells(id, segment, pace, done)? else {
            return Ok(ControlFlow::Break(()));
        };
        let mut left = self.read_segment(id)?;
        if left.is_some() && !is_whole {
            self.move_single(id, segment.policy, done)?;
            left = self.read_segment(id)?;
        }
        if left.is_some() {
            done.stuck += 1;
            self.cleaner.stuck.lock().insert(id);
            tracing::warn!(segment = id.0, "a segment cannot be emptied: not everything in it can be read");
            return Ok(ControlFlow::Continue(()));
        }
        self.count_cleaned(self.in_own_bytes(self.room_of(segment), segment.policy), done);
        Ok(ControlFlow::Continue(()))
    }

    /// Bytes of data that a segment's slots take when they are given to new ones like it, those on devices that take part.
    fn room_of(&self, segment: &Segment) -> u64 {
        let there = segment.placements.iter().filter(|place| self.pool.readable(**place));
        self.slots_worth(there.count() as u64, segment.policy)
    }

    fn count_cleaned(&self, bytes: u64, done: &mut Cleaned) {
        done.segments += 1;
        done.released_bytes += bytes;
        Counters::add(&self.counters.segments_cleaned, 1);
    }

    /// Walks a segment's cells and moves what lives in them. Says whether all cells could be read; nothing when it was
    /// told to stop, and the rest of the segment stays.
    fn move_cells(
        &self,
        id: SegmentId,
        segment: &Segment,
        pace: &Pace<'_>,
        done: &mut Cleaned,
    ) -> Result<Option<bool>, StoreError> {
        let mut begun = Instant::now();
        let mut harvest = Harvest::new(segment.policy);
        let mut offset = SLOT_HEADER_BYTES as u32;
        let mut is_whole = true;
        // Nobody counted the rows of a segment that was open in a crash.
        let rows = if segment.rows == 0 { u32::MAX } else { segment.rows };
        for _ in 0..rows {
            let Some(row) = SoundRow::read(&self.pool, id, segment, offset) else {
                // Where the next one begins is not known.
                is_whole = false;
                break;
            };
            offset += row.head.cell_bytes;
            for (cell, bytes) in row.data_cells() {
                is_whole &= self.harvest_cell(id, &cell, &bytes, &mut harvest)?;
            }
            if harvest.is_enough() {
                let bytes = harvest.bytes;
                self.plant(id, harvest.take(), done)?;
                if pace(bytes, begun.elapsed()).is_break() {
                    return Ok(None);
                }
                begun = Instant::now();
            }
        }
        let bytes = harvest.bytes;
        self.plant(id, harvest, done)?;
        // The segment is done, whatever it says.
        let _ = pace(bytes, begun.elapsed());
        Ok(Some(is_whole))
    }

    /// Takes from a cell what lives in it. Says whether all of that could be had.
    fn harvest_cell(
        &self,
        id: SegmentId,
        cell: &Cell,
        bytes: &[u8],
        harvest: &mut Harvest,
    ) -> Result<bool, StoreError> {
        let payload = &bytes[cell.payload_start as usize..][..cell.payload_bytes as usize];
        let mut is_whole = true;
        let mut rest = &cell.chunks[..];
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|entry| entry.frame_offset == first.frame_offset).count();
            let (frame, later) = rest.split_at(count);
            rest = later;
            let slot_offset = cell.place.slot_offset + cell.payload_start + first.frame_offset;
            let mut living = Vec::with_capacity(count);
            for entry in frame {
                let lives = match self.descriptor(entry.chunk) {
                    Ok(now) => (now.frame.segment, now.frame.slot_offset) == (id, slot_offset),
                    Err(StoreError::StaleChunk { .. }) => false,
                    Err(error) => return Err(error),
                };
                if lives {
                    living.push(entry);
                    harvest.from.insert(entry.chunk, slot_offset);
                }
            }
            let stored = &payload[first.frame_offset as usize..][..first.frame_stored as usize];
            if living.len() == count {
                harvest.bytes += stored.len() as u64;
                harvest.whole.push(copied(frame, stored));
            } else if !living.is_empty() {
                is_whole &= harvest_single(&living, stored, harvest);
            }
        }
        Ok(is_whole)
    }

    /// Moves, one by one, what still lives in a segment of which cells cannot be read: there may be another copy, or only
    /// the directory is damaged.
    fn move_single(&self, id: SegmentId, policy: PolicyId, done: &mut Cleaned) -> Result<(), StoreError> {
        let mut living = Vec::new();
        let mut problem = None;
        self.view().scan(Table::Chunks, &[], None, &mut |key, stored| match Descriptor::decode(stored) {
            Ok(Some(descriptor)) if descriptor.frame.segment == id => {
                let id = key.first_chunk::<8>().map(|bytes| ChunkId(u64::from_be_bytes(*bytes)));
                living.extend(id.map(|chunk| (chunk, descriptor)));
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                problem = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = problem {
            return Err(error.into());
        }
        let mut harvest = Harvest::new(policy);
        for (chunk, descriptor) in living {
            let mut data = vec![0; descriptor.plain_bytes as usize];
            // What cannot be read stays, and whoever reads it is told.
            self.cleaner.count_use();
            if self.read_chunk(chunk, 0, &mut data).is_err() {
                continue;
            }
            harvest.from.insert(chunk, descriptor.frame.slot_offset);
            harvest.bytes += data.len() as u64;
            harvest.single.push(NewChunk { chunk, hash: descriptor.hash, data: Cow::Owned(data) });
            if harvest.is_enough() {
                self.plant(id, harvest.take(), done)?;
            }
        }
        self.plant(id, harvest, done)
    }

    /// Writes chunks of a segment anew from bytes that somebody else had; each with where its frame begins.
    pub(crate) fn store_again(
        &self,
        id: SegmentId,
        chunks: Vec<(NewChunk<'_>, u32)>,
    ) -> Result<(), StoreError> {
        let _running = self.take_turn();
        let Some(segment) = self.read_segment(id)? else { return Ok(()) };
        let mut done = Cleaned::default();
        let mut harvest = Harvest::new(segment.policy);
        for (NewChunk { chunk, hash, data }, slot_offset) in chunks {
            harvest.from.insert(chunk, slot_offset);
            harvest.bytes += data.len() as u64;
            harvest.single.push(NewChunk { chunk, hash, data: Cow::Owned(data.into_owned()) });
            if harvest.is_enough() {
                self.plant(id, harvest.take(), &mut done)?;
            }
        }
        self.plant(id, harvest, &mut done)
    }

    /// Writes rows of what is moved.
    fn write_moved(
        &self,
        policy: PolicyId,
        written: &mut Vec<WrittenRow>,
        whole: Vec<Frame<'_>>,
        single: &[NewChunk<'_>],
        done: &mut Cleaned,
    ) -> Result<(), StoreError> {
        let class = Class { policy, purpose: Purpose::Moved };
        let mut rows = RowWriter::new(self, class, written, RowBuffers::new());
        whole.into_iter().try_for_each(|frame| rows.add(frame))?;
        frames::compress(single, self.ingest.compression, None, |frame| rows.add(frame))?;
        rows.finish()?;
        let bytes = written.iter().map(|row| self.cells_worth(row.bytes, policy)).sum();
        let row_bytes = self.in_own_bytes(bytes, policy);
        done.row_bytes += row_bytes;
        Counters::add(&self.counters.moved_row_bytes, row_bytes);
        Ok(())
    }

    /// Writes what was taken out of a segment to new rows, and says where it is.
    fn plant(&self, id: SegmentId, harvest: Harvest, done: &mut Cleaned) -> Result<(), StoreError> {
        let Harvest { policy, from, whole, single, .. } = harvest;
        if from.is_empty() {
            return Ok(());
        }
        let mut moving = Moving { store: self, rows: Vec::new() };
        self.write_moved(policy, &mut moving.rows, whole, &single, done)?;
        for row in &moving.rows {
            // A record holds so many; one that mentions a row stands for nothing without it.
            for chunks in row.chunks.chunks(MOVES_PER_CHANGE) {
                let mut moved = 0;
                let mut ops = Vec::with_capacity(chunks.len());
                for (chunk, descriptor) in chunks {
                    let slot_offset = *from.get(chunk).expect("only what was taken is written");
                    moved += u64::from(descriptor.charged_bytes);
                    ops.push(Op::MoveChunk {
                        chunk: *chunk,
                        from: (id, slot_offset),
                        descriptor: *descriptor,
                    });
                }
                self.commit(BranchId(0), ops, vec![row.dependency])?;
                self.cleaner.count_use();
                done.moved_bytes += moved;
                Counters::add(&self.counters.moved_bytes, moved);
            }
        }
        Ok(())
    }
}

/// What moving the living parts of a segment gives back of its slots, as far as can be told: what died of what was
/// written, with the part of its directories, what was never written to because the segment was sealed early, and what copies
/// take beyond what parity will.
fn dead_bytes(room: u64, slot_bytes: u64, segment: &Segment) -> u64 {
    let written = segment.written_bytes.max(1);
    let cells = u64::from(segment.shards.0);
    let full = (slot_bytes - SLOT_HEADER_BYTES) * cells;
    // Directories and the ends of rows take as much of what lives as of what died.
    let used = match u64::from(segment.end).checked_sub(SLOT_HEADER_BYTES) {
        // What is left at the end of a full segment was too small for the next frame.
        Some(used) if (used + FRAME_BYTES_WORST) * cells < full => (used * cells).max(written),
        Some(_) => full,
        None => {
            let used = written.saturating_mul(UNUSED_BEYOND.0) / UNUSED_BEYOND.1;
            if used >= full { full } else { used.max(written) }
        }
    };
    let live = segment.live_bytes.saturating_sub(segment.forsaken_bytes);
    let live = u128::from(used) * u128::from(live.min(written)) / u128::from(written);
    room.saturating_sub(live as u64)
}

/// A frame as it is, for another row.
fn copied(entries: &[CellChunk], stored: &[u8]) -> Frame<'static> {
    let chunk = |entry: &CellChunk| (entry.chunk, entry.hash, entry.offset_in_frame, entry.plain_bytes);
    Frame {
        stored: Cow::Owned(stored.to_vec()),
        plain_bytes: entries[0].frame_plain,
        codec: entries[0].codec,
        chunks: entries.iter().map(chunk).collect(),
    }
}

/// Takes living chunks out of a frame in which others died. Says whether all of them verify.
fn harvest_single(living: &[&CellChunk], stored: &[u8], harvest: &mut Harvest) -> bool {
    let frame_plain = living[0].frame_plain as usize;
    let mut plain = Vec::with_capacity(frame_plain);
    let codec = Codec::from_raw(living[0].codec);
    let decoded = codec.ok().is_some_and(|codec| decompress(codec, stored, frame_plain, &mut plain).is_ok());
    let mut is_whole = true;
    for entry in living {
        let start = entry.offset_in_frame as usize;
        let data = plain.get(start..start + entry.plain_bytes as usize).filter(|_| decoded);
        match data.filter(|data| ChunkHash::of(data).0 == entry.hash) {
            Some(data) => {
                harvest.bytes += data.len() as u64;
                let data = Cow::Owned(data.to_vec());
                harvest.single.push(NewChunk { chunk: entry.chunk, hash: entry.hash, data });
            }
            None => {
                harvest.from.remove(&entry.chunk);
                is_whole = false;
            }
        }
    }
    is_whole
}
