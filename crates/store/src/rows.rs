//! Rows: frames put into cells and written to every member of a segment.

use crate::StoreError;
use crate::segments::{Class, RowPlace, Shape};
use crate::store::Store;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, later, removed};
use aegisfs_base::{ChunkId, FaultKind};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::cell::{self, CellChunk, CellPlace, CellShape, RowHead};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::log::RowDependency;
use aegisfs_pool::{Erasure, Placement, PoolError, side_by_side, together};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::sync::Arc;

/// Cells are closed when they have grown to this.
const CELL_BYTES_AIM: usize = 1 << 20;
/// Cells of a row may be this part of them unequal, if that is how frames fit.
const EVENNESS: usize = 16;
/// Bytes that a chunk takes in a cell's directory.
const ENTRY_BYTES: usize = cell::payload_start(1) - cell::payload_start(0);
/// Cells of this size are written at the same time.
const TOGETHER_BYTES_MIN: usize = 128 << 10;

/// A frame ready to be written: what was compressed in one go.
pub(crate) struct Frame<'d> {
    pub(crate) stored: Cow<'d, [u8]>,
    pub(crate) plain_bytes: u32,
    pub(crate) codec: u8,
    /// The chunks in it: id, hash, offset in the plain frame, length.
    pub(crate) chunks: Vec<(ChunkId, [u8; 32], u32, u32)>,
}

/// Which of some frames the next row takes, and in which of its cells of data they go.
#[derive(Default)]
struct Row {
    /// Frame by frame, up to the last that it takes; none for those that wait.
    cells: Vec<Option<u8>>,
    count: usize,
    /// Stored bytes of those it takes.
    payload: usize,
    /// Bytes of its cells.
    total: usize,
}

impl Row {
    /// Each frame goes to the first of `data` cells that has room for it and grows to no more than `limit`; the first in a
    /// cell may be larger, up to `room`.
    ///
    /// The end of a segment takes what fits, so that little of it is lost; elsewhere one cell is filled in order.
    fn choose(frames: &[Frame<'_>], data: u8, limit: usize, room: usize) -> Self {
        let mut row = Self::default();
        let mut filled = vec![(0, 0); usize::from(data)];
        for frame in frames {
            let grown = |(chunks, payload): (usize, usize)| {
                cell::cell_bytes(chunks + frame.chunks.len(), payload + frame.stored.len())
            };
            let fits = |cell: &(usize, usize)| {
                grown(*cell) <= limit.min(room) || cell.0 == 0 && grown(*cell) <= room
            };
            let Some(number) = filled.iter().position(fits) else {
                if data == 1 && room >= limit {
                    break;
                }
                row.cells.push(None);
                continue;
            };
            row.total = row.total.max(grown(filled[number]));
            filled[number].0 += frame.chunks.len();
            filled[number].1 += frame.stored.len();
            row.cells.push(Some(number as u8));
            row.count += 1;
            row.payload += frame.stored.len();
        }
        while row.cells.pop_if(|cell| cell.is_none()).is_some() {}
        row
    }

    /// The same for several cells, which are filled evenly: as far as there are frames for.
    fn choose_even(frames: &[Frame<'_>], data: u8, room: usize) -> Self {
        let bytes = |frame: &Frame<'_>| cell::cell_bytes(frame.chunks.len(), frame.stored.len());
        let all: usize =
            frames.iter().map(|frame| frame.chunks.len() * ENTRY_BYTES + frame.stored.len()).sum();
        let largest = frames.iter().map(bytes).max().unwrap_or_default();
        let even = (all / usize::from(data) + cell::payload_start(0)).max(largest);
        let mut limit = even.next_multiple_of(BLOCK_BYTES);
        loop {
            let row = Self::choose(frames, data, limit.min(CELL_BYTES_AIM), room);
            if row.count == frames.len() || limit >= CELL_BYTES_AIM.min(room) {
                return row;
            }
            limit += (limit / EVENNESS).next_multiple_of(BLOCK_BYTES);
        }
    }

    /// What a byte of it costs on the devices, to be compared.
    fn cost(&self, shards: (u8, u8)) -> f64 {
        (self.total * usize::from(shards.0 + shards.1)) as f64 / self.payload.max(1) as f64
    }
}

/// A row that was written.
pub(crate) struct WrittenRow {
    pub(crate) dependency: RowDependency,
    /// Bytes of all its cells.
    pub(crate) bytes: u64,
    pub(crate) chunks: Vec<(ChunkId, Descriptor)>,
}

/// Packs frames into rows and writes each row as soon as it is full; durable with the log record that will
/// mention them.
///
/// Each row written has to be given back with [`Store::row_done`], those written before an error too.
pub(crate) struct RowWriter<'s, 'd> {
    store: &'s Store,
    class: Class,
    written: &'s mut Vec<WrittenRow>,
    waiting: Vec<Frame<'d>>,
    /// Chunks and stored bytes of those.
    chunks: usize,
    payload: usize,
    buffers: RowBuffers,
    /// Cells of data and of parity that wide rows have at present.
    shards: (u8, u8),
    /// Rows that are written at the same time, because they go to different devices.
    lanes: usize,
}

/// What rows are put together in, each in one; memory for it is costly to come by.
#[derive(Default)]
pub(crate) struct RowBuffers(Vec<Mutex<AlignedBuffer>>);

impl RowBuffers {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }
}

/// A row that has a place, and is to be written.
struct PlacedRow<'d> {
    place: RowPlace,
    cells: Vec<Vec<Frame<'d>>>,
    /// Bytes of each cell.
    total: usize,
}

impl<'s, 'd> RowWriter<'s, 'd> {
    /// Writes to the open segments that a store has for a class.
    pub(crate) fn new(
        store: &'s Store,
        class: Class,
        written: &'s mut Vec<WrittenRow>,
        buffers: RowBuffers,
    ) -> Self {
        let shards = store.shards_now(class.policy);
        let shape = if shards.0 == 1 { Shape::Narrow } else { Shape::Wide };
        let lanes = store.lanes(class, shape);
        Self { store, class, written, waiting: Vec::new(), chunks: 0, payload: 0, buffers, shards, lanes }
    }

    /// Takes a frame; what was taken before may be written.
    pub(crate) fn add(&mut self, frame: Frame<'d>) -> Result<(), StoreError> {
        let grown = cell::cell_bytes(self.chunks + frame.chunks.len(), self.payload + frame.stored.len());
        if grown > CELL_BYTES_AIM * usize::from(self.shards.0) * self.lanes && !self.waiting.is_empty() {
            self.write_rows()?;
        }
        self.chunks += frame.chunks.len();
        self.payload += frame.stored.len();
        self.waiting.push(frame);
        Ok(())
    }

    /// Writes what is left; gives the buffers back.
    pub(crate) fn finish(mut self) -> Result<RowBuffers, StoreError> {
        while !self.waiting.is_empty() {
            self.write_rows()?;
        }
        Ok(self.buffers)
    }

    /// Where what waits costs least on the devices.
    fn shape(&self) -> Shape {
        let (data, parity) = self.shards;
        if data == 1 {
            return Shape::Narrow;
        }
        let room = self.store.cell_bytes_max();
        let wide = Row::choose_even(&self.waiting, data, room);
        let narrow = Row::choose(&self.waiting, 1, CELL_BYTES_AIM, room);
        if wide.cost((data, parity)) <= narrow.cost((1, parity)) { Shape::Wide } else { Shape::Narrow }
    }

    /// Writes what fills a row, or as many as are written at the same time.
    fn write_rows(&mut self) -> Result<(), StoreError> {
        let mut rows = vec![self.take_row()?];
        let mut refused = Ok(());
        while rows.len() < self.lanes && !self.waiting.is_empty() && refused.is_ok() {
            refused = self.take_row().map(|row| rows.push(row));
        }
        let buffers = &mut self.buffers.0;
        buffers.resize_with(buffers.len().max(rows.len()), Mutex::default);
        let jobs: Vec<_> = rows.iter().zip(&*buffers).collect();
        let write = |(row, buffer): &(&PlacedRow<'d>, &Mutex<AlignedBuffer>)| {
            self.store.write_row(row, &mut buffer.lock())
        };
        let outcomes = match self.store.ingest.has_workers() {
            true => side_by_side(&jobs, write),
            false => jobs.iter().map(write).collect(),
        };
        for outcome in outcomes {
            match outcome {
                Ok(written) => self.written.push(written),
                Err(error) => refused = refused.and(Err(error)),
            }
        }
        refused
    }

    fn take_row(&mut self) -> Result<PlacedRow<'d>, StoreError> {
        let shape = self.shape();
        let (place, row) = match self.place(shape) {
            // What has no room in one way may have it in another, and it was promised.
            Err(error) if error.kind() == FaultKind::NoSpace && self.shards.0 > 1 => {
                let other = if shape == Shape::Wide { Shape::Narrow } else { Shape::Wide };
                self.place(other).map_err(|_| error)?
            }
            placed => placed?,
        };
        let mut cells: Vec<Vec<Frame<'d>>> = Vec::new();
        cells.resize_with(usize::from(place.shards.0), Vec::new);
        let later = self.waiting.split_off(row.cells.len());
        let mut kept = Vec::new();
        for (frame, cell) in self.waiting.drain(..).zip(&row.cells) {
            match cell {
                Some(cell) => cells[usize::from(*cell)].push(frame),
                None => kept.push(frame),
            }
        }
        kept.extend(later);
        self.waiting = kept;
        self.chunks = self.waiting.iter().map(|frame| frame.chunks.len()).sum();
        self.payload = self.waiting.iter().map(|frame| frame.stored.len()).sum();
        Ok(PlacedRow { place, cells, total: row.total })
    }

    fn place(&self, shape: Shape) -> Result<(RowPlace, Row), StoreError> {
        let mut row = Row::default();
        let place = self.store.place_row(self.class, shape, |room, data| {
            let room = room.min(self.store.cell_bytes_max());
            row = match data {
                1 => Row::choose(&self.waiting, 1, CELL_BYTES_AIM, room),
                _ => Row::choose_even(&self.waiting, data, room),
            };
            (row.count > 0).then_some(row.total)
        })?;
        Ok((place, row))
    }
}

impl Store {
    fn write_row(&self, row: &PlacedRow<'_>, buffer: &mut AlignedBuffer) -> Result<WrittenRow, StoreError> {
        let PlacedRow { place, cells, total } = row;
        let total = *total;
        let directories: Vec<_> = cells.iter().map(|frames| directory_of(frames)).collect();
        let shape = |(directory, frames): (&Vec<CellChunk>, &Vec<Frame<'_>>)| CellShape {
            chunks: directory.len() as u32,
            payload_bytes: frames.iter().map(|frame| frame.stored.len() as u32).sum(),
        };
        let shapes: Vec<CellShape> = directories.iter().zip(cells).map(shape).collect();
        buffer.clear();
        buffer.reserve(total * place.places.len());
        for (number, frames) in cells.iter().enumerate() {
            buffer.resize(number * total + shapes[number].payload_start(), 0);
            frames.iter().for_each(|frame| buffer.extend_from_slice(&frame.stored));
            buffer.resize((number + 1) * total, 0);
            cell::put_directory(&mut buffer[number * total..], &directories[number]);
        }
        let data = buffer.chunks_exact(total);
        let sum = cell::row_sum(shapes.iter().copied().zip(data));
        let head = RowHead { cell_bytes: total as u32, sum, shapes };
        if let Err(error) = self.write_cells(place, &head, buffer) {
            self.row_done(place.segment)?;
            return Err(error);
        }
        let dependency = RowDependency {
            segment: place.segment,
            row: place.row,
            slot_offset: place.slot_offset,
            cell_bytes: total as u32,
            row_sum: sum,
        };
        let mut chunks = Vec::new();
        for ((cell, directory), shape) in (0u8..).zip(&directories).zip(&head.shapes) {
            let start = place.slot_offset + shape.payload_start() as u32;
            chunks.extend(directory.iter().map(|entry| (entry.chunk, describe(place, start, cell, entry))));
        }
        Ok(WrittenRow { dependency, bytes: (total * place.places.len()) as u64, chunks })
    }

    /// Makes the other cells of a row from those of data, and writes all of them.
    fn write_cells(
        &self,
        place: &RowPlace,
        head: &RowHead,
        buffer: &mut AlignedBuffer,
    ) -> Result<(), StoreError> {
        let total = head.cell_bytes as usize;
        buffer.resize(total * place.places.len(), 0);
        let (data, others) = buffer.split_at_mut(total * head.shapes.len());
        let coded = cell::payload_start(0)..total;
        if let [_] = head.shapes[..] {
            others.chunks_exact_mut(total).for_each(|copy| copy.copy_from_slice(data));
        } else {
            let data: Vec<&[u8]> = data.chunks_exact(total).map(|cell| &cell[coded.clone()]).collect();
            let mut parity: Vec<&mut [u8]> =
                others.chunks_exact_mut(total).map(|cell| &mut cell[coded.clone()]).collect();
            let erasure = Erasure::new(data.len(), parity.len());
            if !removed(Edge::ParityMade) {
                erasure.encode(&data, &mut parity);
            }
        }
        for (number, bytes) in (0u8..).zip(buffer.chunks_exact_mut(total)) {
            let cell_place = CellPlace {
                segment: place.segment,
                row: place.row,
                cell: number,
                shards: place.shards,
                slot_offset: place.slot_offset,
                incarnation: self.pool.incarnation(),
            };
            cell::put_header(bytes, &cell_place, head);
        }
        let offset = u64::from(place.slot_offset);
        let cells: Vec<(Placement, &[u8])> =
            place.places.iter().copied().zip(buffer.chunks_exact(total)).collect();
        if removed(Edge::RowsBeforeRecord) {
            for (slot, bytes) in cells {
                let (pool, late) = (Arc::clone(&self.pool), bytes.to_vec());
                later(move || drop(pool.write_slot(slot, offset, &late)));
            }
        } else if let Err(error) = self.write_together(&cells, offset) {
            if error.kind() != FaultKind::NoSpace {
                self.poison(&format!("a row could not be written: {error}"));
            }
            return Err(error.into());
        }
        self.counters.rows_written((total * head.shapes.len()) as u64);
        Ok(())
    }

    /// Writes to several slots, at the same time where that pays.
    fn write_together(&self, cells: &[(Placement, &[u8])], offset: u64) -> Result<(), PoolError> {
        let write = |(slot, bytes): &(Placement, &[u8])| self.pool.write_slot(*slot, offset, bytes);
        let pays = cells.first().is_some_and(|(_, bytes)| bytes.len() >= TOGETHER_BYTES_MIN);
        if pays && self.ingest.has_workers() {
            together(cells, write)
        } else {
            cells.iter().try_for_each(write)
        }
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

fn describe(place: &RowPlace, payload_start: u32, cell: u8, entry: &CellChunk) -> Descriptor {
    let share = u64::from(entry.frame_stored) * u64::from(entry.plain_bytes);
    Descriptor {
        frame: FramePlace {
            segment: place.segment,
            row: place.row,
            cell,
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
