//! Rows: frames put into cells and written to every member of a segment.

use crate::StoreError;
use crate::segments::RowPlace;
use crate::store::Store;
use aegisfs_base::sabotage::{Edge, later, removed};
use aegisfs_base::{ChunkId, FaultKind};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::cell::{self, CellChunk, CellPlace};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::log::RowDependency;
use std::sync::Arc;

/// Cells are closed when they have grown to this.
const CELL_BYTES_AIM: usize = 1 << 20;

/// A frame ready to be written: what was compressed in one go.
pub(crate) struct Frame {
    pub(crate) stored: Vec<u8>,
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
    fn choose(frames: &[&Frame], room: usize) -> Self {
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

impl Store {
    /// Packs frames into rows and writes them; durable with the log record that will mention them.
    ///
    /// Each row returned has to be given back with [`Store::row_done`], those written before an error too.
    pub(crate) fn write_rows(
        &self,
        frames: &[Frame],
        written: &mut Vec<WrittenRow>,
    ) -> Result<(), StoreError> {
        let mut rest: Vec<&Frame> = frames.iter().collect();
        while !rest.is_empty() {
            let mut row = Row::default();
            let place = self.place_row(|room| {
                row = Row::choose(&rest, room.min(self.cell_bytes_max()));
                (row.count > 0).then_some(row.total)
            })?;
            let later = rest.split_off(row.until);
            let now: Vec<&Frame> =
                rest.iter().enumerate().filter(|(n, _)| !row.skipped.contains(n)).map(|(_, f)| *f).collect();
            written.push(self.write_row(&now, &place, row.total)?);
            rest = row.skipped.iter().map(|n| rest[*n]).chain(later).collect();
        }
        Ok(())
    }

    fn write_row(&self, frames: &[&Frame], place: &RowPlace, total: usize) -> Result<WrittenRow, StoreError> {
        let mut payload = Vec::with_capacity(frames.iter().map(|f| f.stored.len()).sum());
        let mut directory = Vec::new();
        for frame in frames {
            let frame_offset = payload.len() as u32;
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
            payload.extend_from_slice(&frame.stored);
        }
        let row_sum = cell::row_sum(&[(&directory, &payload)]);
        let outcome = self.write_cells(place, &directory, &payload, row_sum, total);
        if let Err(error) = outcome {
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
        let start = place.slot_offset + cell::payload_start(directory.len()) as u32;
        let chunks = directory.iter().map(|entry| (entry.chunk, describe(place, start, entry))).collect();
        Ok(WrittenRow { dependency, chunks })
    }

    /// Writes a row's cells. With one data shard every parity cell holds the same bytes behind its header.
    fn write_cells(
        &self,
        place: &RowPlace,
        directory: &[CellChunk],
        payload: &[u8],
        row_sum: aegisfs_format::Sum128,
        total: usize,
    ) -> Result<(), StoreError> {
        let mut bytes = AlignedBuffer::with_capacity(total);
        for (cell, slot) in place.places.iter().enumerate() {
            let cell_place = CellPlace {
                segment: place.segment,
                row: place.row,
                cell: cell as u8,
                shards: (1, (place.places.len() - 1) as u8),
                slot_offset: place.slot_offset,
                incarnation: self.pool.incarnation(),
            };
            bytes.clear();
            bytes.extend_from_slice(&cell::encode_head(&cell_place, directory, payload, row_sum));
            bytes.extend_from_slice(payload);
            bytes.resize(total, 0);
            if removed(Edge::RowsBeforeRecord) {
                let (pool, slot, late) = (Arc::clone(&self.pool), *slot, bytes.to_vec());
                let offset = u64::from(place.slot_offset);
                later(move || drop(pool.write_slot(slot, offset, &late)));
                continue;
            }
            if let Err(error) = self.pool.write_slot(*slot, u64::from(place.slot_offset), &bytes) {
                if error.kind() != FaultKind::NoSpace {
                    self.poison(&format!("a row could not be written: {error}"));
                }
                return Err(error.into());
            }
        }
        self.counters.rows_written(total as u64);
        Ok(())
    }
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
        damaged: false,
        hash: entry.hash,
    }
}
