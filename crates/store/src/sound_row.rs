//! Rows read back whole: what each of their cells holds, or should hold.
//!
//! As many sound cells as a row has data tell what all of its cells are, headers included.

use aegisfs_base::SegmentId;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_device::AlignedBuffer;
use aegisfs_format::Sum128;
use aegisfs_format::cell::{self, Cell, CellPlace, RowHead};
use aegisfs_format::value::Segment;
use aegisfs_pool::{Erasure, Placement, Pool, PoolError};
use std::borrow::Cow;

/// Where the bytes begin that parity is made of.
const CODED_FROM: usize = cell::payload_start(0);

/// Bytes in which rows' headers are looked for at a time; cells are seldom larger.
pub(crate) const HEADERS_WINDOW_BYTES: u32 = 1 << 20;

/// A row of which enough cells are sound.
pub(crate) struct SoundRow {
    /// Where its cells are in their slots, and who wrote them; `cell` is any of them.
    pub(crate) place: CellPlace,
    pub(crate) head: RowHead,
    /// Its sound cells, each with its number. No more than are needed were looked for.
    cells: Vec<(u8, AlignedBuffer)>,
    /// Its other cells of data, made from those.
    made: Vec<(u8, Vec<u8>)>,
}

impl SoundRow {
    /// Reads the row that begins at an offset of a segment's slots; none if fewer of its cells are sound than it has data. No
    /// more of them are asked for than are needed.
    pub(crate) fn read(pool: &Pool, id: SegmentId, segment: &Segment, offset: u32) -> Option<Self> {
        Self::read_until(pool, id, segment, offset, None, false, &mut |_, _| {})
    }

    /// The same with all of its cells, only if it is the row with that sum. What each device says is told to `note`.
    pub(crate) fn read_all(
        pool: &Pool,
        id: SegmentId,
        segment: &Segment,
        offset: u32,
        sum: Sum128,
        note: &mut dyn FnMut(u8, CellAnswer),
    ) -> Option<Self> {
        Self::read_until(pool, id, segment, offset, Some(sum), true, note)
    }

    fn read_until(
        pool: &Pool,
        id: SegmentId,
        segment: &Segment,
        offset: u32,
        sum: Option<Sum128>,
        all: bool,
        note: &mut dyn FnMut(u8, CellAnswer),
    ) -> Option<Self> {
        let needed = usize::from(segment.shards.0);
        let mut found: Vec<(Cell, AlignedBuffer)> = Vec::new();
        let mut enough = None;
        for (number, place) in (0u8..).zip(&segment.placements) {
            let answer = match read_cell(pool, *place, offset) {
                Err(error) => CellAnswer::Unread(error),
                Ok(Some((cell, bytes))) if belongs(&cell, id, segment, number, offset, sum) => {
                    found.push((cell, bytes));
                    CellAnswer::Sound
                }
                Ok(_) => CellAnswer::Bad,
            };
            note(number, answer);
            let Some((last, _)) = found.last() else { continue };
            let is_same = |cell: &Cell| cell.place.row == last.place.row && cell.row == last.row;
            if found.iter().filter(|(cell, _)| is_same(cell)).count() >= needed {
                enough = Some((last.place, last.row.clone()));
                if !all {
                    break;
                }
            }
        }
        let (place, head) = enough?;
        let same = found.into_iter().filter(|(cell, _)| cell.place.row == place.row && cell.row == head);
        let cells = same.map(|(cell, bytes)| (cell.place.cell, bytes)).collect();
        let mut row = Self { place, head, cells, made: Vec::new() };
        for number in 0..place.shards.0 {
            if let Cow::Owned(bytes) = row.right(number) {
                row.made.push((number, bytes));
            }
        }
        row.is_sound().then_some(row)
    }

    /// Whether the sums of all data cells are those that the row had.
    fn is_sound(&self) -> bool {
        let data: Vec<Cow<'_, [u8]>> = (0..self.place.shards.0).map(|number| self.right(number)).collect();
        let cells = data.iter().zip(&self.head.shapes).map(|(bytes, shape)| (*shape, &**bytes));
        cell::row_sum(cells) == self.head.sum
    }

    /// Whether a cell was read, and is what it should be.
    pub(crate) fn has_read(&self, number: u8) -> bool {
        self.cells.iter().any(|(there, _)| *there == number)
    }

    /// What a cell of the row should hold.
    pub(crate) fn right(&self, number: u8) -> Cow<'_, [u8]> {
        if let Some((_, bytes)) = self.cells.iter().find(|(there, _)| *there == number) {
            return Cow::Borrowed(bytes);
        }
        if let Some((_, bytes)) = self.made.iter().find(|(there, _)| *there == number) {
            return Cow::Borrowed(bytes);
        }
        let (data, parity) = self.place.shards;
        let mut bytes = vec![0; self.head.cell_bytes as usize];
        if data == 1 {
            bytes[CODED_FROM..].copy_from_slice(&self.cells[0].1[CODED_FROM..]);
        } else {
            let there: Vec<(usize, &[u8])> =
                self.cells.iter().map(|(n, bytes)| (usize::from(*n), &bytes[CODED_FROM..])).collect();
            let erasure = Erasure::new(usize::from(data), usize::from(parity));
            erasure.decode(&there, &mut [(usize::from(number), &mut bytes[CODED_FROM..])]);
        }
        cell::put_header(&mut bytes, &CellPlace { cell: number, ..self.place }, &self.head);
        Cow::Owned(bytes)
    }

    /// Its data cells, with their bytes.
    pub(crate) fn data_cells(&self) -> impl Iterator<Item = (Cell, Cow<'_, [u8]>)> {
        (0..self.place.shards.0).filter_map(|number| {
            let bytes = self.right(number);
            Some((Cell::decode_head(&bytes).ok()?, bytes))
        })
    }
}

/// What was found when a cell was asked for.
pub(crate) enum CellAnswer {
    /// It is what was written.
    Sound,
    /// It is not.
    Bad,
    /// Its device is not there, or fails.
    Unread(PoolError),
}

/// The cell that begins at an offset of a slot, if one does and all of it verifies.
fn read_cell(pool: &Pool, place: Placement, offset: u32) -> Result<Option<(Cell, AlignedBuffer)>, PoolError> {
    let Some(room) = pool.slot_bytes().checked_sub(u64::from(offset)) else { return Ok(None) };
    if room < BLOCK_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = AlignedBuffer::zeroed(BLOCK_BYTES);
    pool.read_slot(place, u64::from(offset), &mut bytes)?;
    let Some(total) = cell::peek_bytes(&bytes).ok().filter(|total| *total as u64 <= room) else {
        return Ok(None);
    };
    bytes.set_length(total);
    pool.read_slot(place, u64::from(offset), &mut bytes)?;
    Ok(Cell::decode(&bytes).ok().map(|cell| (cell, bytes)))
}

fn belongs(
    cell: &Cell,
    id: SegmentId,
    segment: &Segment,
    number: u8,
    offset: u32,
    sum: Option<Sum128>,
) -> bool {
    let place = &cell.place;
    (place.segment, place.slot_offset, place.cell) == (id, offset, number)
        && place.shards == segment.shards
        && sum.is_none_or(|sum| cell.row.sum == sum)
}

/// Where the next row of a segment may begin, as a header on any of its devices tells.
pub(crate) fn next_row(pool: &Pool, id: SegmentId, segment: &Segment, from: u32) -> Option<u32> {
    let end = pool.slot_bytes() as u32;
    let mut start = from;
    while start < end {
        let length = HEADERS_WINDOW_BYTES.min(end - start);
        let begins = |place: &Placement| Some(headers_in(pool, *place, id, start, length).first()?.0);
        if let Some(next) = segment.placements.iter().filter_map(begins).min() {
            return Some(next);
        }
        start += length;
    }
    None
}

/// Where in a span of a slot something begins that looks like a header of a segment's row, and its cell's bytes.
pub(crate) fn headers_in(
    pool: &Pool,
    place: Placement,
    id: SegmentId,
    start: u32,
    length: u32,
) -> Vec<(u32, usize)> {
    let mut bytes = AlignedBuffer::zeroed(length as usize);
    if pool.read_slot(place, u64::from(start), &mut bytes).is_err() {
        return Vec::new();
    }
    let blocks = (start..start + length).step_by(BLOCK_BYTES).zip(bytes.chunks_exact(BLOCK_BYTES));
    blocks
        .filter(|(offset, block)| cell::names_place(block, id, *offset))
        .filter_map(|(offset, block)| Some((offset, cell::peek_bytes(block).ok()?)))
        .collect()
}
