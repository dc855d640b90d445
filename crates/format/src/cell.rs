//! Cells: a row's piece on one device.
//!
//! ```text
//! | header 256 | directory: one entry per chunk | payload: frames one after the other | zeros to 4 KiB |
//! ```
//! A **frame** is what was compressed in one go: one chunk, or several small neighbours.
//!
//! All cells of a row are of the same size and begin at the same place in their slots. With one data cell the others are
//! copies of it. With several, parity cells have an empty directory, and their payload is computed from the bytes that the
//! data cells hold at the same place, everything behind the header: whatever part of a cell is lost comes from the same part
//! of others. Each header tells the shapes of all data cells, so that a lost cell can be made anew with its header.

use crate::{FormatError, Sum128, sum128, sum128_of_parts};
use aegisfs_base::limits::{BLOCK_BYTES, CELL_BYTES_MAX, CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use aegisfs_base::{ChunkId, Incarnation, RowIndex, SegmentId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a cell.
pub const CELL_MAGIC: [u8; 8] = *b"AegisCel";

const WHAT: &str = "cell";
const HEADER_BYTES: usize = size_of::<CellHeaderV1>();
const ENTRY_BYTES: usize = size_of::<CellChunkV1>();

on_disk! {
    /// Begins a cell.
    pub struct CellHeaderV1 [256] {
        /// [`CELL_MAGIC`].
        magic: [u8; 8],
        /// Always 1.
        version: U16,
        /// Which cell of the row.
        cell: u8,
        /// Data cells of the row.
        shards_data: u8,
        /// Parity cells of the row.
        shards_parity: u8,
        /// Reserved, zero.
        reserved_geometry: [u8; 3],
        /// The segment.
        segment: U64,
        /// The row's place in it.
        row: U32,
        /// Where the cell begins, from the start of its slot.
        slot_offset: U32,
        /// Bytes of the cell, padding included.
        cell_bytes: U32,
        /// Entries of the directory.
        chunks: U32,
        /// Bytes of the payload, without padding.
        payload_bytes: U32,
        /// Reserved, zero.
        reserved_length: U32,
        /// Who wrote it.
        incarnation: U64,
        /// XXH3-128 of the payload.
        payload_sum: [u8; 16],
        /// XXH3-128 over the sums of all data cells of the row: the row's own id.
        row_sum: [u8; 16],
        /// Of each data cell of the row the entries of its directory and the bytes of its payload.
        shapes: [[U32; 2]; 16],
        /// Reserved, zero.
        reserved: [u8; 24],
        /// XXH3-128 of the header before it and of the directory.
        sum: [u8; 16],
    }
}

/// Data cells of a row, at most.
pub const DATA_CELLS_MAX: usize = 16;

/// Other cells of a row, at most.
pub const PARITY_CELLS_MAX: usize = 8;

/// Whether rows can have so many cells of data and of parity.
pub fn is_geometry((data, parity): (u8, u8)) -> bool {
    (1..=DATA_CELLS_MAX).contains(&usize::from(data)) && usize::from(parity) <= PARITY_CELLS_MAX
}

/// How a data cell is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CellShape {
    /// Entries of the directory.
    pub chunks: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
}

impl CellShape {
    /// Where the payload begins, from the start of the cell.
    pub const fn payload_start(self) -> usize {
        payload_start(self.chunks as usize)
    }

    /// Where the payload is in the cell.
    pub const fn payload(self) -> std::ops::Range<usize> {
        let start = self.payload_start();
        start..start + self.payload_bytes as usize
    }

    /// The same for numbers that anybody may have written.
    fn cell_bytes_checked(self) -> Option<usize> {
        let directory = (self.chunks as usize).checked_mul(ENTRY_BYTES)?;
        let bytes = HEADER_BYTES.checked_add(directory)?.checked_add(self.payload_bytes as usize)?;
        Some(bytes.next_multiple_of(BLOCK_BYTES)).filter(|bytes| *bytes <= CELL_BYTES_MAX)
    }

    /// Bytes of the least cell that it fits into.
    pub const fn cell_bytes(self) -> usize {
        cell_bytes(self.chunks as usize, self.payload_bytes as usize)
    }
}

/// What all cells of a row tell alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowHead {
    /// Bytes of each of its cells.
    pub cell_bytes: u32,
    /// The row's own id.
    pub sum: Sum128,
    /// Its data cells.
    pub shapes: Vec<CellShape>,
}

on_disk! {
    /// A chunk in a cell's directory.
    pub struct CellChunkV1 [72] {
        /// The chunk.
        chunk: U64,
        /// BLAKE3 of its plain bytes.
        hash: [u8; 32],
        /// Where its frame begins, from the start of the payload.
        frame_offset: U32,
        /// Stored bytes of the frame.
        frame_stored: U32,
        /// Plain bytes of the frame.
        frame_plain: U32,
        /// Where the chunk begins in the plain frame.
        offset_in_frame: U32,
        /// Plain bytes of the chunk.
        plain_bytes: U32,
        /// 0 as it is, 1 lz4, 2 zstd.
        codec: u8,
        /// Reserved, zero.
        reserved: u8,
        /// Key domain; 0 is not sealed.
        key_domain: U16,
        /// Reserved, zero.
        reserved_too: U64,
    }
}

/// A chunk in a cell's directory, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// BLAKE3 of its plain bytes.
    pub hash: [u8; 32],
    /// Where its frame begins, from the start of the payload.
    pub frame_offset: u32,
    /// Stored bytes of the frame.
    pub frame_stored: u32,
    /// Plain bytes of the frame.
    pub frame_plain: u32,
    /// Where the chunk begins in the plain frame.
    pub offset_in_frame: u32,
    /// Plain bytes of the chunk.
    pub plain_bytes: u32,
    /// Codec number.
    pub codec: u8,
    /// Key domain.
    pub key_domain: u16,
}

/// A cell's place and geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellPlace {
    /// The segment.
    pub segment: SegmentId,
    /// The row.
    pub row: RowIndex,
    /// Which cell of the row.
    pub cell: u8,
    /// Data and parity cells of the row.
    pub shards: (u8, u8),
    /// Where the cell begins in its slot.
    pub slot_offset: u32,
    /// Who wrote it.
    pub incarnation: Incarnation,
}

/// A cell, decoded and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Where it belongs.
    pub place: CellPlace,
    /// The row that it belongs to.
    pub row: RowHead,
    /// Where the payload begins, from the start of the cell.
    pub payload_start: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// What it holds.
    pub chunks: Vec<CellChunk>,
    /// Checksum of the payload, not yet compared.
    pub payload_sum: Sum128,
}

/// Bytes of a cell with this directory and payload.
pub const fn cell_bytes(chunks: usize, payload_bytes: usize) -> usize {
    (HEADER_BYTES + chunks * ENTRY_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Where the payload of a cell with so many chunks begins.
pub const fn payload_start(chunks: usize) -> usize {
    HEADER_BYTES + chunks * ENTRY_BYTES
}

/// A row's checksum, from its whole data cells; their headers are not looked at.
pub fn row_sum<'c>(cells: impl Iterator<Item = (CellShape, &'c [u8])>) -> Sum128 {
    let mut sums = Vec::new();
    for (shape, bytes) in cells {
        sums.extend_from_slice(&sum128(&bytes[HEADER_BYTES..shape.payload_start()]));
        sums.extend_from_slice(&sum128(&bytes[shape.payload()]));
    }
    sum128(&sums)
}

fn encode_directory(chunks: &[CellChunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * ENTRY_BYTES);
    for chunk in chunks {
        let raw = CellChunkV1 {
            chunk: U64::new(chunk.chunk.0),
            hash: chunk.hash,
            frame_offset: U32::new(chunk.frame_offset),
            frame_stored: U32::new(chunk.frame_stored),
            frame_plain: U32::new(chunk.frame_plain),
            offset_in_frame: U32::new(chunk.offset_in_frame),
            plain_bytes: U32::new(chunk.plain_bytes),
            codec: chunk.codec,
            reserved: 0,
            key_domain: U16::new(chunk.key_domain),
            reserved_too: U64::new(0),
        };
        bytes.extend_from_slice(raw.as_bytes());
    }
    bytes
}

/// Writes the directory of a data cell to where it belongs.
///
/// # Panics
/// When the cell is too short for it.
pub fn put_directory(cell: &mut [u8], chunks: &[CellChunk]) {
    let directory = encode_directory(chunks);
    cell[HEADER_BYTES..HEADER_BYTES + directory.len()].copy_from_slice(&directory);
}

/// Writes the header of a cell whose other bytes are there.
///
/// # Panics
/// When the cell is larger than [`CELL_BYTES_MAX`], its row has no such cell, or its length is another; the row writer
/// closes a row before.
pub fn put_header(cell: &mut [u8], place: &CellPlace, row: &RowHead) {
    let total = cell.len();
    assert!(total <= CELL_BYTES_MAX, "rows are closed before they grow this large");
    assert_eq!(total, row.cell_bytes as usize, "cells of a row are alike");
    let shape = row.shape_of(place.cell);
    let mut shapes = [[U32::new(0); 2]; DATA_CELLS_MAX];
    for (raw, shape) in shapes.iter_mut().zip(&row.shapes) {
        *raw = [U32::new(shape.chunks), U32::new(shape.payload_bytes)];
    }
    let mut header = CellHeaderV1 {
        magic: CELL_MAGIC,
        version: U16::new(1),
        cell: place.cell,
        shards_data: place.shards.0,
        shards_parity: place.shards.1,
        reserved_geometry: [0; 3],
        segment: U64::new(place.segment.0),
        row: U32::new(place.row.0),
        slot_offset: U32::new(place.slot_offset),
        cell_bytes: U32::new(row.cell_bytes),
        chunks: U32::new(shape.chunks),
        payload_bytes: U32::new(shape.payload_bytes),
        reserved_length: U32::new(0),
        incarnation: U64::new(place.incarnation.0),
        payload_sum: sum128(&cell[shape.payload()]),
        row_sum: row.sum,
        shapes,
        reserved: [0; 24],
        sum: [0; 16],
    };
    header.sum = sum128_of_parts(&[unsummed(&header), &cell[HEADER_BYTES..shape.payload_start()]]);
    cell[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

impl RowHead {
    /// How a cell of it is laid out. With several data cells, what parity cells hold is all payload.
    pub fn shape_of(&self, cell: u8) -> CellShape {
        match self.shapes[..] {
            [only] => only,
            _ => self
                .shapes
                .get(usize::from(cell))
                .copied()
                .unwrap_or(CellShape { chunks: 0, payload_bytes: self.cell_bytes - HEADER_BYTES as u32 }),
        }
    }
}

fn unsummed(header: &CellHeaderV1) -> &[u8] {
    &header.as_bytes()[..HEADER_BYTES - size_of::<Sum128>()]
}

/// Bytes of the cell that begins here, from its first block alone; for a reader that walks a segment.
///
/// # Errors
/// When no cell begins here.
pub fn peek_bytes(block: &[u8]) -> Result<usize, FormatError> {
    let (header, _) = CellHeaderV1::read_from_prefix(block).map_err(|_| FormatError::Short { what: WHAT })?;
    if header.magic != CELL_MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    let total = header.cell_bytes.get() as usize;
    if total == 0 || !total.is_multiple_of(BLOCK_BYTES) || total > CELL_BYTES_MAX {
        return Err(FormatError::Value { what: WHAT, field: "cell_bytes", value: total as u64 });
    }
    Ok(total)
}

/// Whether what begins here was a cell of this segment, even if it does not verify: it names the segment, and
/// magic or offset are right.
pub fn names_place(block: &[u8], segment: SegmentId, slot_offset: u32) -> bool {
    CellHeaderV1::read_from_prefix(block).is_ok_and(|(header, _)| {
        header.segment.get() == segment.0
            && (header.magic == CELL_MAGIC || header.slot_offset.get() == slot_offset)
    })
}

impl Cell {
    /// Reads a whole cell and verifies header, directory, payload and the zeros behind it.
    ///
    /// # Errors
    /// When it is not a cell, or any of its parts is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let cell = Self::decode_head(bytes)?;
        let start = cell.payload_start as usize;
        let end = start + cell.payload_bytes as usize;
        let whole = bytes.get(..cell.row.cell_bytes as usize).ok_or(FormatError::Short { what: WHAT })?;
        if sum128(&whole[start..end]) != cell.payload_sum {
            return Err(FormatError::Checksum { what: "cell payload" });
        }
        if whole[end..].iter().any(|byte| *byte != 0) {
            return Err(FormatError::Checksum { what: "end of a cell" });
        }
        Ok(cell)
    }

    /// Reads header and directory; the payload is left for later.
    ///
    /// # Errors
    /// When it is not a cell, or header or directory are damaged.
    pub fn decode_head(bytes: &[u8]) -> Result<Self, FormatError> {
        let total = peek_bytes(bytes)?;
        let (header, rest) =
            CellHeaderV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        let count = header.chunks.get() as usize;
        let directory_bytes = count.saturating_mul(ENTRY_BYTES);
        if directory_bytes > total {
            return Err(FormatError::Value { what: WHAT, field: "chunks", value: count as u64 });
        }
        let directory = rest.get(..directory_bytes).ok_or(FormatError::Short { what: WHAT })?;
        if sum128_of_parts(&[unsummed(&header), directory]) != header.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if header.version.get() != 1 {
            let (found, known) = (u32::from(header.version.get()), 1);
            return Err(FormatError::Version { what: WHAT, found, known });
        }
        let payload_bytes = header.payload_bytes.get();
        let row = decode_row(&header, total)?;
        let shape = CellShape { chunks: header.chunks.get(), payload_bytes };
        if shape != row.shape_of(header.cell) {
            let value = u64::from(payload_bytes);
            return Err(FormatError::Value { what: WHAT, field: "payload_bytes", value });
        }
        let chunks = directory
            .chunks_exact(ENTRY_BYTES)
            .map(|raw| decode_chunk(raw, payload_bytes))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            place: CellPlace {
                segment: SegmentId(header.segment.get()),
                row: RowIndex(header.row.get()),
                cell: header.cell,
                shards: (header.shards_data, header.shards_parity),
                slot_offset: header.slot_offset.get(),
                incarnation: Incarnation(header.incarnation.get()),
            },
            row,
            payload_start: u32::try_from(payload_start(count)).expect("bounded by the cell"),
            payload_bytes,
            chunks,
            payload_sum: header.payload_sum,
        })
    }
}

/// What the header tells of its row. The largest of the data cells fills it.
fn decode_row(header: &CellHeaderV1, total: usize) -> Result<RowHead, FormatError> {
    let count = usize::from(header.shards_data);
    if !is_geometry((header.shards_data, header.shards_parity)) {
        return Err(FormatError::Value { what: WHAT, field: "shards_data", value: count as u64 });
    }
    let shape = |raw: &[U32; 2]| CellShape { chunks: raw[0].get(), payload_bytes: raw[1].get() };
    let mut shapes: Vec<CellShape> = header.shapes.iter().map(shape).collect();
    let unused = shapes.split_off(count);
    let largest = shapes.iter().map(|shape| shape.cell_bytes_checked()).max().flatten();
    let fits = shapes.iter().all(|shape| shape.cell_bytes_checked().is_some()) && largest == Some(total);
    if !fits || unused.iter().any(|shape| *shape != CellShape::default()) {
        return Err(FormatError::Value { what: WHAT, field: "shapes", value: total as u64 });
    }
    Ok(RowHead { cell_bytes: header.cell_bytes.get(), sum: header.row_sum, shapes })
}

fn decode_chunk(raw: &[u8], payload_bytes: u32) -> Result<CellChunk, FormatError> {
    let raw = CellChunkV1::read_from_bytes(raw).map_err(|_| FormatError::Short { what: WHAT })?;
    let chunk = CellChunk {
        chunk: ChunkId(raw.chunk.get()),
        hash: raw.hash,
        frame_offset: raw.frame_offset.get(),
        frame_stored: raw.frame_stored.get(),
        frame_plain: raw.frame_plain.get(),
        offset_in_frame: raw.offset_in_frame.get(),
        plain_bytes: raw.plain_bytes.get(),
        codec: raw.codec,
        key_domain: raw.key_domain.get(),
    };
    let frame_end = u64::from(chunk.frame_offset) + u64::from(chunk.frame_stored);
    let chunk_end = u64::from(chunk.offset_in_frame) + u64::from(chunk.plain_bytes);
    let bounded = frame_end <= u64::from(payload_bytes)
        && chunk_end <= u64::from(chunk.frame_plain)
        && chunk.frame_plain as usize <= FRAME_BYTES_MAX
        && chunk.plain_bytes as usize <= CHUNK_BYTES_MAX;
    if bounded {
        Ok(chunk)
    } else {
        Err(FormatError::Value { what: WHAT, field: "chunk", value: chunk.chunk.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let place = CellPlace {
            segment: SegmentId(8),
            row: RowIndex(2),
            cell: 0,
            shards: (1, 0),
            slot_offset: 4096,
            incarnation: Incarnation(6),
        };
        let payload = vec![7u8; 5000];
        let chunks = [CellChunk {
            chunk: ChunkId(4),
            hash: [1; 32],
            frame_offset: 0,
            frame_stored: 5000,
            frame_plain: 9000,
            offset_in_frame: 1000,
            plain_bytes: 8000,
            codec: 2,
            key_domain: 0,
        }];
        let shape = CellShape { chunks: 1, payload_bytes: 5000 };
        let mut bytes = vec![0; shape.cell_bytes()];
        put_directory(&mut bytes, &chunks);
        bytes[shape.payload()].copy_from_slice(&payload);
        let sum = row_sum([(shape, &bytes[..])].into_iter());
        let row = RowHead { cell_bytes: shape.cell_bytes() as u32, sum, shapes: vec![shape] };
        put_header(&mut bytes, &place, &row);
        let cell = Cell::decode(&bytes).unwrap();
        assert_eq!((cell.place, cell.chunks.as_slice(), &cell.row), (place, &chunks[..], &row));
        // Directory and payload by themselves, as the page on the format has it.
        let parts = [sum128(&encode_directory(&chunks)), sum128(&payload)].concat();
        assert_eq!(sum128(&parts), sum);
        bytes
    }

    /// Cells of a row of several are as large as the largest, and parity is all payload.
    #[test]
    fn cells_of_a_row_are_alike() {
        let shapes =
            [CellShape { chunks: 0, payload_bytes: 5000 }, CellShape { chunks: 0, payload_bytes: 9 }];
        let row = RowHead { cell_bytes: 8192, sum: [3; 16], shapes: shapes.to_vec() };
        for cell in 0..3 {
            let place = CellPlace {
                segment: SegmentId(8),
                row: RowIndex(2),
                cell,
                shards: (2, 1),
                slot_offset: 4096,
                incarnation: Incarnation(6),
            };
            let mut bytes = vec![0; 8192];
            put_header(&mut bytes, &place, &row);
            let found = Cell::decode(&bytes).unwrap();
            assert_eq!((found.place, &found.row), (place, &row));
            assert_eq!(found.payload_bytes, [5000, 9, 8192 - 256][usize::from(cell)]);
            // What is behind the payload counts as well: parity is made of it.
            bytes[8191] = 1;
            assert!(Cell::decode(&bytes).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_in_use_is_noticed() {
        let bytes = sample();
        for bit in 0..8192 * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Cell::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_cell_still_tells_whose_it_was() {
        let mut bytes = sample();
        let ours = |bytes: &[u8], segment, offset| names_place(bytes, SegmentId(segment), offset);
        assert!(ours(&bytes, 8, 4096) && ours(&bytes, 8, 0) && !ours(&bytes, 7, 4096));
        bytes[0] ^= 1;
        assert!(ours(&bytes, 8, 4096) && !ours(&bytes, 8, 0) && !ours(&bytes[..255], 8, 4096));
    }

    #[test]
    fn cut_short_at_any_length() {
        let bytes = sample();
        for length in 0..8192 {
            assert!(Cell::decode(&bytes[..length]).is_err(), "{length}");
        }
    }
}
