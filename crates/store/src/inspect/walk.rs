//! What a segment's slots really hold: every row with its cells' directories, read and verified.
//!
//! Rows are found by walking from one cell to the next, as a reader without metadata would. Where no cell
//! verifies, the walk goes on at the next block that begins one of the same segment.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{Incarnation, RowIndex, SegmentId};
use aegisfs_chunk::{ChunkHash, Codec, decompress};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::cell::{self, Cell, CellChunk};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_format::{FormatError, sum128};
use aegisfs_pool::Placement;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Where only directories are read, most of them are shorter.
const DIRECTORY_BYTES: usize = 64 << 10;

/// What a walk through a segment comes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A slot of the segment begins; its rows follow.
    Shard(ShardSeen),
    /// A row's cell.
    Cell(CellSeen),
    /// Bytes in which a cell should begin and none does.
    Gap(GapSeen),
    /// Chunks that files refer to and that the slot should hold were not found; comes last of a slot.
    Missing {
        /// How many.
        chunks: u64,
    },
}

/// A slot of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSeen {
    /// Its place among the slots of the segment.
    pub number: u8,
    /// Where it is.
    pub place: Placement,
    /// What is wrong with its header, or why it cannot be read.
    pub problem: Option<String>,
}

/// A cell with its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellSeen {
    /// The row.
    pub row: RowIndex,
    /// Which cell of the row.
    pub cell: u8,
    /// Where it begins in its slot.
    pub slot_offset: u32,
    /// Its bytes, padding included.
    pub cell_bytes: u32,
    /// Where its payload begins in it.
    pub payload_start: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// What does not verify in it, the chunks aside.
    pub problem: Option<String>,
    /// Its directory.
    pub chunks: Vec<ChunkSeen>,
}

/// A chunk in a cell's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSeen {
    /// The directory's entry.
    pub entry: CellChunk,
    /// References that the metadata counts to it at this place; 0 when it is dead.
    pub references: u32,
    /// Why it cannot be read.
    pub problem: Option<String>,
}

/// Bytes of a slot without a cell that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapSeen {
    /// Where they begin in the slot.
    pub slot_offset: u32,
    /// How many they are.
    pub bytes: u32,
    /// Chunks that files refer to and whose frames begin in there.
    pub chunks: u64,
    /// What stands where a cell should begin.
    pub reason: String,
    /// Whether that is damage, and not a row whose writing was cut off.
    pub damaged: bool,
}

impl Seen {
    /// Whether something here is damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Shard(shard) => shard.problem.is_some(),
            Self::Cell(cell) => cell.problem.is_some() || cell.chunks.iter().any(|c| c.problem.is_some()),
            Self::Gap(gap) => gap.damaged,
            Self::Missing { .. } => true,
        }
    }
}

/// The chunks of a segment that are referred to.
#[derive(Default)]
pub(crate) struct Living {
    /// How many begin in which block of which cell of data, where that is wanted.
    by_block: BTreeMap<(u8, u32), u64>,
    /// How many there are in each cell of data.
    chunks: BTreeMap<u8, u64>,
    /// Rows up to the last one with such a chunk.
    rows: u32,
}

impl Living {
    /// So many in each cell of data, wherever they are in it.
    pub(crate) fn counted(chunks: BTreeMap<u8, u64>, rows: u32) -> Self {
        Self { by_block: BTreeMap::new(), chunks, rows }
    }

    fn of(store: &Store, segment: SegmentId) -> Result<Self, StoreError> {
        let mut living = Self::default();
        let mut outcome = Ok(());
        store.view().scan(Table::Chunks, &[], None, &mut |_, stored| match Descriptor::decode(stored) {
            Ok(found) => {
                if let Some(found) = found.filter(|found| found.frame.segment == segment) {
                    let block = (found.frame.cell, found.frame.slot_offset / BLOCK_BYTES as u32);
                    *living.by_block.entry(block).or_default() += 1;
                    *living.chunks.entry(found.frame.cell).or_default() += 1;
                    living.rows = living.rows.max(found.frame.row.0.saturating_add(1));
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                outcome = Err(error.into());
                ControlFlow::Break(())
            }
        })?;
        outcome.map(|()| living)
    }

    fn between(&self, cell: u8, from: u32, to: u32) -> u64 {
        let block = |offset| (cell, offset / BLOCK_BYTES as u32);
        self.by_block.range(block(from)..block(to)).map(|(_, n)| n).sum()
    }
}

impl Store {
    /// Shows what each slot of a segment holds. Reads the table of chunks first, to tell the living.
    ///
    /// # Errors
    /// When the metadata cannot be read. What is wrong with the slots is shown.
    pub fn walk_segment(
        &self,
        id: SegmentId,
        segment: &Segment,
        visit: &mut dyn FnMut(Seen) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.walk_with(id, segment, &Living::of(self, id)?, true, visit)
    }

    /// The same for whoever knows the living. With `payloads` off only headers and directories are read, and a chunk is taken
    /// for sound that a directory names.
    pub(crate) fn walk_with(
        &self,
        id: SegmentId,
        segment: &Segment,
        living: &Living,
        payloads: bool,
        visit: &mut dyn FnMut(Seen) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let rows = living.rows.max(segment.rows);
        for (number, place) in segment.placements.iter().enumerate() {
            let mut walk = Walk {
                store: self,
                id,
                segment,
                living,
                payloads,
                rows,
                number: number as u8,
                place: *place,
                found: 0,
            };
            if walk.run(visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The walk through one slot.
struct Walk<'a> {
    store: &'a Store,
    id: SegmentId,
    segment: &'a Segment,
    living: &'a Living,
    payloads: bool,
    /// Rows that there should be at least.
    rows: u32,
    number: u8,
    place: Placement,
    /// Chunks found that are referred to.
    found: u64,
}

impl Walk<'_> {
    fn run(&mut self, visit: &mut dyn FnMut(Seen) -> ControlFlow<()>) -> Result<ControlFlow<()>, StoreError> {
        let readable = self.store.pool.readable(self.place);
        let problem =
            if readable { self.header_problem() } else { Some("its device is not there or is out".into()) };
        let shard = ShardSeen { number: self.number, place: self.place, problem };
        if visit(Seen::Shard(shard)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if !readable {
            return Ok(ControlFlow::Continue(()));
        }
        let mut offset = SLOT_HEADER_BYTES as u32;
        let mut next_row = 0;
        while let Some(seen) = self.next(offset, next_row)? {
            match &seen {
                Seen::Cell(cell) => {
                    offset = cell.slot_offset + cell.cell_bytes;
                    next_row = cell.row.0.saturating_add(1);
                }
                Seen::Gap(gap) => offset = gap.slot_offset + gap.bytes,
                Seen::Shard(_) | Seen::Missing { .. } => {}
            }
            if visit(seen).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let expected = self.living.chunks.get(&self.holds()).copied().unwrap_or_default();
        let missing = expected.saturating_sub(self.found);
        Ok(if missing > 0 { visit(Seen::Missing { chunks: missing }) } else { ControlFlow::Continue(()) })
    }

    /// Which cell of data the slot holds, or a copy of which; parity counts as a cell that no chunk is in.
    fn holds(&self) -> u8 {
        if self.segment.shards.0 == 1 { 0 } else { self.number }
    }

    fn header_problem(&self) -> Option<String> {
        let pool = &self.store.pool;
        if self.store.is_unmended(self.place, 0) {
            return None;
        }
        match pool.wrong_header(self.place, self.id, self.segment.shards, self.number) {
            Ok(wrong) => wrong.map(|(_, problem)| problem),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The cell at an offset, or the gap there; nothing behind the last row.
    fn next(&mut self, offset: u32, next_row: u32) -> Result<Option<Seen>, StoreError> {
        if u64::from(offset) + BLOCK_BYTES as u64 > self.store.pool.slot_bytes() {
            return Ok(None);
        }
        let nothing = match self.head_at(offset) {
            Ok((cell, bytes)) => return self.describe(&cell, &bytes).map(|cell| Some(Seen::Cell(cell))),
            Err(nothing) => nothing,
        };
        if next_row >= self.rows && (self.segment.state == SegmentState::Sealed || !nothing.damaged) {
            return Ok(None);
        }
        let end = self.next_head(offset + BLOCK_BYTES as u32);
        let chunks = self.living.between(self.holds(), offset, end);
        Ok(Some(Seen::Gap(GapSeen {
            slot_offset: offset,
            bytes: end - offset,
            chunks,
            reason: nothing.reason,
            damaged: nothing.damaged || chunks > 0,
        })))
    }

    /// Where the next cell of this segment begins, or the end of the slot.
    fn next_head(&self, from: u32) -> u32 {
        let end = self.store.pool.slot_bytes() as u32;
        (from..end).step_by(BLOCK_BYTES).find(|offset| self.head_at(*offset).is_ok()).unwrap_or(end)
    }

    /// A cell of this segment that begins at an offset, with its bytes; header and directory verify.
    fn head_at(&self, offset: u32) -> Result<(Cell, AlignedBuffer), Nothing> {
        let read = |bytes: &mut AlignedBuffer| {
            let read = self.store.pool.read_slot(self.place, u64::from(offset), bytes);
            read.map_err(|error| Nothing { reason: error.to_string(), damaged: true })
        };
        let mut bytes = AlignedBuffer::zeroed(BLOCK_BYTES);
        read(&mut bytes)?;
        // A cell of an earlier use of the slot may stand here too, whole or not.
        let ours = cell::names_place(&bytes, self.id, offset);
        let nothing = |error: FormatError| match ours {
            true => Nothing { reason: error.to_string(), damaged: true },
            false => Nothing { reason: "no cell of this segment begins here".into(), damaged: false },
        };
        let room = self.store.pool.slot_bytes() - u64::from(offset);
        let total = cell::peek_bytes(&bytes)
            .and_then(|total| match total as u64 <= room {
                true => Ok(total),
                false => Err(FormatError::Short { what: "cell" }),
            })
            .map_err(nothing)?;
        let mut cell = None;
        if !self.payloads {
            cell = Cell::decode_head(&bytes).ok();
            if cell.is_none() && total > DIRECTORY_BYTES {
                bytes.resize(DIRECTORY_BYTES, 0);
                read(&mut bytes)?;
                cell = Cell::decode_head(&bytes).ok();
            }
        }
        let cell = match cell {
            Some(cell) => cell,
            None => {
                bytes.resize(total, 0);
                read(&mut bytes)?;
                Cell::decode_head(&bytes).map_err(nothing)?
            }
        };
        if cell.place.segment == self.id && cell.place.slot_offset == offset {
            return Ok((cell, bytes));
        }
        let value = u64::from(cell.place.slot_offset);
        Err(nothing(FormatError::Value { what: "cell", field: "slot_offset", value }))
    }

    fn describe(&mut self, cell: &Cell, bytes: &[u8]) -> Result<CellSeen, StoreError> {
        let start = cell.payload_start as usize;
        let payload = bytes.get(start..start + cell.payload_bytes as usize).filter(|_| self.payloads);
        let copies = cell.place.shards.0 == 1 && self.payloads;
        let problem = if payload.is_some_and(|payload| sum128(payload) != cell.payload_sum) {
            Some("cell payload: checksum mismatch".to_owned())
        } else if copies && cell::row_sum([(cell.row.shapes[0], bytes)].into_iter()) != cell.row.sum {
            Some("cell: its row's checksum does not match".to_owned())
        } else if cell.place.cell != self.number {
            Some(format!("cell: it is cell {} of its row", cell.place.cell))
        } else {
            None
        };
        let mut frame = Frame::default();
        let mut chunks = Vec::with_capacity(cell.chunks.len());
        for entry in &cell.chunks {
            let references = self.references(cell, entry)?;
            self.found += u64::from(references > 0);
            let problem = payload.and_then(|payload| frame.verify(entry, payload).err());
            chunks.push(ChunkSeen { entry: *entry, references, problem });
        }
        Ok(CellSeen {
            row: cell.place.row,
            cell: cell.place.cell,
            slot_offset: cell.place.slot_offset,
            cell_bytes: cell.row.cell_bytes,
            payload_start: cell.payload_start,
            payload_bytes: cell.payload_bytes,
            incarnation: cell.place.incarnation,
            problem,
            chunks,
        })
    }

    /// References to a chunk, if this is the place that the metadata knows it by.
    fn references(&self, cell: &Cell, entry: &CellChunk) -> Result<u32, StoreError> {
        let stored = self.store.view().get(Table::Chunks, &key::chunk(entry.chunk))?;
        let found = stored.map(|stored| Descriptor::decode(&stored)).transpose()?.flatten();
        let slot_offset = cell.place.slot_offset + cell.payload_start + entry.frame_offset;
        let here = found.filter(|found| {
            let frame = &found.frame;
            (frame.segment, frame.cell, frame.slot_offset) == (self.id, self.holds(), slot_offset)
                && (frame.stored_bytes, frame.plain_bytes, frame.codec)
                    == (entry.frame_stored, entry.frame_plain, entry.codec)
                && (found.offset_in_frame, found.plain_bytes) == (entry.offset_in_frame, entry.plain_bytes)
                && found.hash == entry.hash
        });
        Ok(here.map_or(0, |found| found.references))
    }
}

/// Why no cell begins somewhere.
struct Nothing {
    reason: String,
    /// Whether one of this segment did.
    damaged: bool,
}

/// The frame decoded last: its neighbours in the directory often share it.
#[derive(Default)]
struct Frame {
    /// Where it begins in the payload, and how it is to be decoded.
    place: (u32, u32, u32, u8),
    plain: Option<Result<Vec<u8>, String>>,
}

impl Frame {
    fn verify(&mut self, entry: &CellChunk, payload: &[u8]) -> Result<(), String> {
        let place = (entry.frame_offset, entry.frame_stored, entry.frame_plain, entry.codec);
        if self.place != place {
            self.plain = None;
        }
        self.place = place;
        let plain = self.plain.get_or_insert_with(|| decode(entry, payload));
        let plain = plain.as_ref().map_err(Clone::clone)?;
        let start = entry.offset_in_frame as usize;
        let chunk = &plain[start..start + entry.plain_bytes as usize];
        if ChunkHash::of(chunk).0 == entry.hash { Ok(()) } else { Err("its hash does not match".into()) }
    }
}

fn decode(entry: &CellChunk, payload: &[u8]) -> Result<Vec<u8>, String> {
    let start = entry.frame_offset as usize;
    let stored = &payload[start..start + entry.frame_stored as usize];
    let codec = Codec::from_raw(entry.codec).map_err(|error| error.to_string())?;
    let mut plain = Vec::with_capacity(entry.frame_plain as usize);
    decompress(codec, stored, entry.frame_plain as usize, &mut plain).map_err(|error| error.to_string())?;
    Ok(plain)
}
