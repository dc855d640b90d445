//! Rows: frames put into cells and written to every member of a segment.

use crate::StoreError;
use crate::segments::{Purpose, RowPlace};
use crate::store::Store;
use aegisfs_base::sabotage::{Edge, later, removed};
use aegisfs_base::{ChunkId, FaultKind};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::cell::{self, CellChunk, CellPlace};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::log::RowDependency;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Cells are closed when they have grown to this.
const CELL_BYTES_AIM: usize = 1 << 20;

/// A frame ready to be written: what was compressed in one go.
pub(crate) struct Frame<'d> {
    pub(crate) stored: Cow<'d, [u8]>,
    pub(crate) plain_bytes: u32,
    pub(crate) codec: u8,
    /// The chunks in it: id, hash, offset in the plain frame, length.
    pub(crate) chunks: Vec<(ChunkId, [u8; 32], u32, u32)>,
}

/// Which of some frames the next row takes.
#[derive(Default)]
struct Row {
    count: usize,
    /// It takes those before this one, but for
    until: usize,
    /// those that are larger than the room at the end of a segment.
    skipped: Vec<usize>,
    /// Bytes of its cells.
    total: usize,
}

impl Row {
    /// In order as far as there is room. The end of a segment takes what fits, so that little of it is lost.
    fn choose(frames: &[Frame<'_>], room: usize) -> Self {
        let limit = room.min(CELL_BYTES_AIM);
        let (mut row, mut chunks, mut payload) = (Self::default(), 0, 0);
        for (n, frame) in frames.iter().enumerate() {
            let grown = cell::cell_bytes(chunks + frame.chunks.len(), payload + frame.stored.len());
            let fits = grown <= limit || row.count == 0 && grown <= room;
            if !fits && room >= CELL_BYTES_AIM {
                break;
            }
            if !fits {
                row.skipped.push(n);
                continue;
            }
            row.count += 1;
            row.until = n + 1;
            row.total = grown;
            chunks += frame.chunks.len();
            payload += frame.stored.len();
        }
        row.skipped.retain(|n| *n < row.until);
        row
    }
}

/// A row that was written.
pub(crate) struct WrittenRow {
    pub(crate) dependency: RowDependency,
    pub(crate) chunks: Vec<(ChunkId, Descriptor)>,
}

/// Packs frames into rows and writes each row as soon as it is full; durable with the log record that will
/// mention them.
///
/// Each row written has to be given back with [`Store::row_done`], those written before an error too.
pub(crate) struct RowWriter<'s, 'd> {
    store: &'s Store,
    purpose: Purpose,
    written: &'s mut Vec<WrittenRow>,
    waiting: Vec<Frame<'d>>,
    /// Chunks and stored bytes of those.
    chunks: usize,
    payload: usize,
    buffer: AlignedBuffer,
}

impl<'s, 'd> RowWriter<'s, 'd> {
    /// Writes to the open segment that a store has for a purpose.
    /// Cells are put together in the buffer, since memory for it is costly to come by.
    pub(crate) fn new(
        store: &'s Store,
        purpose: Purpose,
        written: &'s mut Vec<WrittenRow>,
        buffer: AlignedBuffer,
    ) -> Self {
        Self { store, purpose, written, waiting: Vec::new(), chunks: 0, payload: 0, buffer }
    }

    /// Takes a frame; what was taken before may be written.
    pub(crate) fn add(&mut self, frame: Frame<'d>) -> Result<(), StoreError> {
        let grown = cell::cell_bytes(self.chunks + frame.chunks.len(), self.payload + frame.stored.len());
        if grown > CELL_BYTES_AIM && !self.waiting.is_empty() {
            self.write_row()?;
        }
        self.chunks += frame.chunks.len();
        self.payload += frame.stored.len();
        self.waiting.push(frame);
        Ok(())
    }

    /// Writes what is left; gives the buffer back.
    pub(crate) fn finish(mut self) -> Result<AlignedBuffer, StoreError> {
        while !self.waiting.is_empty() {
            self.write_row()?;
        }
        Ok(self.buffer)
    }

    fn write_row(&mut self) -> Result<(), StoreError> {
        let mut row = Row::default();
        let place = self.store.place_row(self.purpose, |room| {
            row = Row::choose(&self.waiting, room.min(self.store.cell_bytes_max()));
            (row.count > 0).then_some(row.total)
        })?;
        let mut later = self.waiting.split_off(row.until);
        let mut number = 0;
        let skipped = |_: &mut Frame<'d>| {
            number += 1;
            row.skipped.contains(&(number - 1))
        };
        let mut kept: Vec<Frame<'d>> = self.waiting.extract_if(.., skipped).collect();
        kept.append(&mut later);
        let frames = std::mem::replace(&mut self.waiting, kept);
        self.chunks = self.waiting.iter().map(|frame| frame.chunks.len()).sum();
        self.payload = self.waiting.iter().map(|frame| frame.stored.len()).sum();
        let written = self.store.write_row(&frames, &place, row.total, &mut self.buffer)?;
        self.written.push(written);
        Ok(())
    }
}

impl Store {
    fn write_row(
        &self,
        frames: &[Frame<'_>],
        place: &RowPlace,
        total: usize,
        buffer: &mut AlignedBuffer,
    ) -> Result<WrittenRow, StoreError> {
        let directory = directory_of(frames);
        let start = cell::payload_start(directory.len());
        buffer.clear();
        buffer.reserve(total);
        buffer.resize(start, 0);
        frames.iter().for_each(|frame| buffer.extend_from_slice(&frame.stored));
        let end = buffer.len();
        buffer.resize(total, 0);
        let row_sum = cell::row_sum(&[(&directory, &buffer[start..end])]);
        if let Err(error) = self.write_cells(place, &directory, buffer, start..end, row_sum) {
            self.row_done(place.segment)?;
            return Err(error);
        }
        let dependency = RowDependency {
            segment: place.segment,
            row: place.row,
            slot_offset: place.slot_offset,
            cell_bytes: total as u32,
            row_sum,
        };
        let start = place.slot_offset + start as u32;
        let chunks = directory.iter().map(|entry| (entry.chunk, describe(place, start, entry))).collect();
        Ok(WrittenRow { dependency, chunks })
    }

    /// Writes a row's cells. With one data shard every parity cell holds the same bytes behind its header.
    fn write_cells(
        &self,
        place: &RowPlace,
        directory: &[CellChunk],
        bytes: &mut AlignedBuffer,
        payload: Range<usize>,
        row_sum: aegisfs_format::Sum128,
    ) -> Result<(), StoreError> {
        for (cell, slot) in place.places.iter().enumerate() {
            let cell_place = CellPlace {
                segment: place.segment,
                row: place.row,
                cell: cell as u8,
                shards: (1, (place.places.len() - 1) as u8),
                slot_offset: place.slot_offset,
                incarnation: self.pool.incarnation(),
            };
            let head = cell::encode_head(&cell_place, directory, &bytes[payload.clone()], row_sum);
            bytes[..payload.start].copy_from_slice(&head);
            if removed(Edge::RowsBeforeRecord) {
                let (pool, slot, late) = (Arc::clone(&self.pool), *slot, bytes.to_vec());
                let offset = u64::from(place.slot_offset);
                later(move || drop(pool.write_slot(slot, offset, &late)));
                continue;
            }
            if let Err(error) = self.pool.write_slot(*slot, u64::from(place.slot_offset), bytes) {
                if error.kind() != FaultKind::NoSpace {
                    self.poison(&format!("a row could not be written: {error}"));
                }
                return Err(error.into());
            }
        }
        self.counters.rows_written(bytes.len() as u64);
        Ok(())
    }
}

/// The directory of a cell with these frames.
fn directory_of(frames: &[Frame<'_>]) -> Vec<CellChunk> {
    let mut directory = Vec::new();
    let mut frame_offset = 0;
    for frame in frames {
        for (chunk, hash, offset_in_frame, plain_bytes) in &frame.chunks {
            directory.push(CellChunk {
                chunk: *chunk,
                hash: *hash,
                frame_offset,
                frame_stored: frame.stored.len() as u32,
                frame_plain: frame.plain_bytes,
                offset_in_frame: *offset_in_frame,
                plain_bytes: *plain_bytes,
                codec: frame.codec,
                key_domain: 0,
            });
        }
        frame_offset += frame.stored.len() as u32;
    }
    directory
}

fn describe(place: &RowPlace, payload_start: u32, entry: &CellChunk) -> Descriptor {
    let share = u64::from(entry.frame_stored) * u64::from(entry.plain_bytes);
    Descriptor {
        frame: FramePlace {
            segment: place.segment,
            row: place.row,
            cell: 0,
            slot_offset: payload_start + entry.frame_offset,
            stored_bytes: entry.frame_stored,
            plain_bytes: entry.frame_plain,
            codec: entry.codec,
            key_domain: entry.key_domain,
        },
        offset_in_frame: entry.offset_in_frame,
        plain_bytes: entry.plain_bytes,
        charged_bytes: share.div_ceil(u64::from(entry.frame_plain)) as u32,
        references: 0,
        referred_bytes: 0,
        damaged: false,
        hash: entry.hash,
    }
}
