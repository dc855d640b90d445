//! Replaying the intent log.
//!
//! Records form a chain. Up to the highest `flushed` that any record tells, nothing may be missing: a record
//! that does not verify is read from its mirror, and if none verifies, that is damage and not the end. What
//! is behind that point is the tail: its records count as long as the chain holds and the rows they mention
//! are whole. A place that a device fails to read is neither: unless another copy answers, nothing is decided
//! and nothing is written, or a passing failure would cut off what was acknowledged.

use super::Recovered;
use crate::StoreError;
use crate::apply::apply;
use crate::log::LogMark;
use crate::memtable::Scratch;
use crate::metadata::Metadata;
use crate::sound_row::{CellAnswer, SoundRow};
use crate::tables::Tables;
use aegisfs_base::limits::{BLOCK_BYTES, LOG_RECORD_BYTES_MAX};
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{SegmentId, Sequence};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::key::{self, Table};
use aegisfs_format::log::{self, LogRecord, LogRecordHead, RowDependency};
use aegisfs_format::op::Op;
use aegisfs_format::value::Segment;
use aegisfs_pool::{LogRing, Placement, Pool, PoolError};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Bytes read at a time while records are looked for.
const SCAN_BYTES: usize = 256 << 10;

pub(super) struct Replay<'a> {
    pool: Arc<Pool>,
    ring: LogRing,
    metadata: &'a Metadata,
    /// Whether nothing will be written in any case.
    read_only: bool,
    start: LogMark,
    /// The last sequence applied.
    pub(super) last: Sequence,
    /// Where the log ends.
    pub(super) end: LogMark,
    /// Slots of segments that died on the way.
    pub(super) freed: Vec<Placement>,
    /// The highest sequence that some record calls durable.
    flushed: Sequence,
    /// Whether something behind the end has been cut.
    cut: bool,
    /// What of the tail did not arrive: cells on one member that did on another, and slots' headers.
    pub(super) torn: Vec<Torn>,
    /// Segments of the tail whose slots' headers were looked at.
    headed: HashSet<SegmentId>,
}

/// Something to be written anew: a cell, with the bytes of a sound one of its row, or a slot's header.
pub(crate) struct Torn {
    pub(crate) place: Placement,
    pub(crate) slot_offset: u32,
    pub(crate) bytes: Vec<u8>,
}

/// What the copies of something said when they were read.
#[derive(Default)]
struct Answers {
    read: bool,
    failure: Option<PoolError>,
}

impl Answers {
    fn note<T>(&mut self, answer: Result<T, PoolError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.read = true;
                Some(answer)
            }
            Err(failure) => {
                self.failure = Some(failure);
                None
            }
        }
    }

    /// The failure, when no copy could be read. One that could be is enough: what was acknowledged stands on
    /// all of them.
    fn none(self, position: u64) -> Option<StoreError> {
        let failure = self.failure.filter(|_| !self.read)?;
        Some(StoreError::LogUnread { position, source: failure })
    }
}

/// A record that verifies, not yet applied.
struct Found {
    head: LogRecordHead,
    record: LogRecord,
}

impl<'a> Replay<'a> {
    pub(super) fn new(pool: Arc<Pool>, metadata: &'a Metadata, mark: LogMark, read_only: bool) -> Self {
        let ring = LogRing::new(Arc::clone(&pool));
        Self {
            pool,
            ring,
            metadata,
            read_only,
            start: mark,
            last: mark.applied,
            end: mark,
            freed: Vec::new(),
            flushed: mark.applied,
            cut: false,
            torn: Vec::new(),
            headed: HashSet::new(),
        }
    }

    pub(super) fn run(&mut self, recovered: &mut Recovered) -> Result<(), StoreError> {
        // Records whose durability no later record has confirmed yet.
        let mut waiting: VecDeque<Found> = VecDeque::new();
        let mut cursor = self.start;
        while let Some(found) = self.find_next(&cursor).or_else(|error| self.unread(error, recovered))? {
            self.flushed = self.flushed.max(found.head.flushed);
            cursor = LogMark {
                applied: found.head.sequences.1,
                position: found.head.position + found.head.record_bytes as u64,
                previous: found.head.sum,
                incarnation: cursor.incarnation,
            };
            waiting.push_back(found);
            while waiting.front().is_some_and(|first| first.head.sequences.1 <= self.flushed) {
                let first = waiting.pop_front().expect("there is a first");
                self.apply_record(first, recovered)?;
            }
            if cursor.position - self.start.position >= self.ring.capacity() {
                break;
            }
        }
        let behind = self.damage_behind(&cursor).or_else(|error| self.unread(error, recovered));
        if let Some(beyond) = behind?
            && !removed(Edge::LogDamageIsNotTail)
        {
            recovered.read_only = Some(format!(
                "the intent log is damaged at position {}: changes up to {beyond} were acknowledged, but \
                     those after {} cannot be read",
                cursor.position, cursor.applied
            ));
            tracing::error!(position = cursor.position, "the intent log is damaged");
        }
        for found in waiting {
            let whole = self.rows_are_whole(&found.record).map(Some);
            let whole = whole.or_else(|error| self.unread(error, recovered))?;
            if whole != Some(true) {
                self.cut = true;
                break;
            }
            self.apply_record(found, recovered)?;
        }
        recovered.cut = self.cut;
        Ok(())
    }

    /// What a device failed to read is refused, or, where nothing is written anyway, taken for the end.
    fn unread<T>(&self, error: StoreError, recovered: &mut Recovered) -> Result<Option<T>, StoreError> {
        if !self.read_only || !matches!(error, StoreError::LogUnread { .. }) {
            return Err(error);
        }
        tracing::error!(%error, "the newest changes may be missing");
        recovered.read_only = Some(error.to_string());
        Ok(None)
    }

    /// The record that continues the chain: where the last one ended, or in the next piece.
    fn find_next(&self, cursor: &LogMark) -> Result<Option<Found>, StoreError> {
        let room = self.ring.room_in_piece(cursor.position);
        let mut unread = None;
        for position in [cursor.position, cursor.position + room] {
            let mut answers = Answers::default();
            for copy in 0..self.ring.copies() {
                let Some((head, bytes)) = answers.note(self.read_at(position, copy)).flatten() else {
                    continue;
                };
                let continues = head.position == position
                    && (head.incarnation == cursor.incarnation || removed(Edge::LogIncarnation))
                    && (head.previous == cursor.previous || removed(Edge::LogChain))
                    && head.sequences.0 == cursor.applied.next();
                if !continues {
                    continue;
                }
                // What verifies but cannot be understood was written by a newer program.
                let record = head.open(&bytes)?;
                return Ok(Some(Found { head, record }));
            }
            unread = unread.or(answers.none(position));
        }
        unread.map_or(Ok(None), Err)
    }

    /// A record that begins at a position, if one does and verifies.
    fn read_at(
        &self,
        position: u64,
        copy: usize,
    ) -> Result<Option<(LogRecordHead, AlignedBuffer)>, PoolError> {
        let room = self.ring.room_in_piece(position);
        let mut bytes = AlignedBuffer::zeroed(BLOCK_BYTES);
        self.ring.read(position, copy, &mut bytes)?;
        let Some(total) = log::peek_bytes(&bytes).ok().filter(|total| *total as u64 <= room) else {
            return Ok(None);
        };
        bytes.resize(total, 0);
        self.ring.read(position, copy, &mut bytes)?;
        let head = LogRecordHead::decode(&bytes, !removed(Edge::LogChecksum));
        Ok(head.ok().map(|head| (head, bytes)))
    }

    /// Looks behind the end of the chain for a record which says that more was durable.
    fn damage_behind(&mut self, cursor: &LogMark) -> Result<Option<Sequence>, StoreError> {
        let capacity = self.ring.capacity();
        let end = self.start.position + capacity;
        let mut position = cursor.position;
        let mut limit = (position + 2 * LOG_RECORD_BYTES_MAX as u64).min(end);
        let mut beyond = None;
        while position < limit {
            let count = (limit - position).min(self.ring.room_in_piece(position)).min(SCAN_BYTES as u64);
            let mut answers = Answers::default();
            for copy in 0..self.ring.copies() {
                let heads = answers.note(self.heads_in(position, count as usize, copy));
                for found in heads.into_iter().flatten() {
                    if found.incarnation != cursor.incarnation || found.sequences.0 <= cursor.applied {
                        continue;
                    }
                    self.cut = true;
                    limit = (found.position + found.record_bytes as u64 + 2 * LOG_RECORD_BYTES_MAX as u64)
                        .max(limit)
                        .min(end);
                    if found.flushed > cursor.applied {
                        beyond = beyond.max(Some(found.flushed));
                    }
                }
            }
            if let Some(unread) = answers.none(position) {
                return Err(unread);
            }
            position += count;
        }
        Ok(beyond)
    }

    /// Verified heads of the records that begin in a span.
    fn heads_in(&self, position: u64, count: usize, copy: usize) -> Result<Vec<LogRecordHead>, PoolError> {
        let mut bytes = AlignedBuffer::zeroed(count);
        self.ring.read(position, copy, &mut bytes)?;
        let mut heads = Vec::new();
        for (n, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            if log::peek_bytes(block).is_err() {
                continue;
            }
            let at = position + (n * BLOCK_BYTES) as u64;
            heads.extend(self.read_at(at, copy)?.map(|(head, _)| head).filter(|head| head.position == at));
        }
        Ok(heads)
    }

    /// Whether every row is there, on at least one of its places.
    fn rows_are_whole(&mut self, record: &LogRecord) -> Result<bool, StoreError> {
        if removed(Edge::TailRowsVerified) {
            return Ok(true);
        }
        // What is to be mended counts only if the record does: otherwise its slots are free.
        let mut torn = Vec::new();
        let mut headed = Vec::new();
        for row in &record.dependencies {
            let Some(segment) = self.segment(row, record)? else { return Ok(false) };
            if !self.headed.contains(&row.segment) && !headed.contains(&row.segment) {
                headed.push(row.segment);
                torn.extend(self.wrong_headers(row.segment, &segment));
            }
            let mut bad = Vec::new();
            let mut answers = Answers::default();
            let mut note = |number: u8, answer| match answer {
                CellAnswer::Sound => {}
                CellAnswer::Bad => {
                    answers.read = true;
                    bad.push(number);
                }
                CellAnswer::Unread(error) => {
                    let place = segment.placements[usize::from(number)];
                    if self.pool.readable(place) {
                        bad.push(number);
                    }
                    answers.failure = Some(error);
                }
            };
            let found = SoundRow::read_all(
                &self.pool,
                row.segment,
                &segment,
                row.slot_offset,
                row.row_sum,
                &mut note,
            );
            let Some(found) = found else {
                // One that could be read and is not what was written is enough: what was acknowledged stands on all.
                return answers.none(self.end.position).map_or(Ok(false), Err);
            };
            for number in bad {
                let place = segment.placements[usize::from(number)];
                let bytes = found.right(number).into_owned();
                torn.push(Torn { place, slot_offset: row.slot_offset, bytes });
            }
        }
        self.torn.append(&mut torn);
        self.headed.extend(headed);
        Ok(true)
    }

    /// A slot's header is written before its first row and is as late on the device. Where one cannot be read
    /// it is not needed either: rows are found by the metadata.
    fn wrong_headers(&self, id: SegmentId, segment: &Segment) -> Vec<Torn> {
        let wrong = |(number, place): (u8, &Placement)| {
            let wrong = self.pool.wrong_header(*place, id, segment.shards, number).ok().flatten();
            wrong.map(|(bytes, _)| Torn { place: *place, slot_offset: 0, bytes })
        };
        (0..).zip(&segment.placements).filter_map(wrong).collect()
    }

    /// The segment of a row, which the very record that mentions the row may have opened.
    fn segment(&self, row: &RowDependency, record: &LogRecord) -> Result<Option<Segment>, StoreError> {
        let key = key::segment(row.segment);
        let ops = record.transactions.iter().flat_map(|transaction| &transaction.ops);
        let mut opened = ops.rev().filter_map(|op| match op {
            Op::Put { table: Table::Segments, key: found, value } if *found == key => Some(value.clone()),
            _ => None,
        });
        let stored = match opened.next() {
            Some(value) => Some(value),
            None => self.metadata.view().get(Table::Segments, &key)?,
        };
        Ok(stored.map(|stored| Segment::decode(&stored)).transpose()?)
    }

    fn apply_record(&mut self, found: Found, recovered: &mut Recovered) -> Result<(), StoreError> {
        for transaction in &found.record.transactions {
            let view = self.metadata.view();
            let mut scratch = Scratch::new(&view);
            let effects = apply(&mut scratch, transaction)?;
            let changes = scratch.changes;
            self.metadata.absorb(changes);
            for (_, segment) in effects.freed {
                // It may have been opened in the log as well, and so not be claimed yet.
                for place in &segment.placements {
                    self.pool.claim_slot(*place);
                }
                self.pool.begin_release(&segment.placements);
                self.freed.extend_from_slice(&segment.placements);
            }
            recovered.transactions += 1;
        }
        recovered.records += 1;
        self.last = found.head.sequences.1;
        self.end = LogMark {
            applied: self.last,
            position: found.head.position + found.head.record_bytes as u64,
            previous: found.head.sum,
            incarnation: self.start.incarnation,
        };
        Ok(())
    }
}
