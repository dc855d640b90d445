//! Cells of a segment compared with what they should be, on some of its devices, and written anew where they are not.
//!
//! What a cell should be the sound ones of its row tell. Nothing is written over a sound cell, and nothing where the segment
//! is gone by then: its slots may be another's.

use crate::StoreError;
use crate::sound_row::{SoundRow, next_row};
use crate::store::Store;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{DeviceIndex, RowIndex, SegmentId};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::Segment;
use aegisfs_pool::Placement;
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

/// What was found when cells were compared, and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Cells that were read, each copy counted.
    pub(crate) cells: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Cells and headers that were not what they should be.
    pub(crate) damaged: u64,
    /// Of those, how many were written anew.
    pub(crate) repaired: u64,
    /// Bytes written.
    pub(crate) written: u64,
    /// Rows of which too few cells are sound, with something in them that is referred to and cannot be read.
    pub(crate) lost: u64,
    /// Chunks in such rows that can be read all the same, though not as rows: they should be elsewhere.
    pub(crate) stranded: u64,
    /// On which device the first of those cells was.
    pub(crate) first: Option<DeviceIndex>,
}

/// Which cells of a segment are compared: in which slots, and of which rows.
pub(crate) struct Wanted<'a> {
    pub(crate) place: &'a dyn Fn(Placement) -> bool,
    pub(crate) row: &'a dyn Fn(RowIndex) -> bool,
}

impl<'a> Wanted<'a> {
    /// All rows in some of the slots.
    pub(crate) fn in_slots(place: &'a dyn Fn(Placement) -> bool) -> Self {
        Self { place, row: &|_| true }
    }
}

/// Told after each step how many bytes were read or moved and how long that took; says whether to go on, and takes its time.
pub(crate) type Pace<'a> = dyn Fn(u64, Duration) -> ControlFlow<()> + 'a;

impl Store {
    /// Compares the cells of a sealed segment in some of its places, and mends them if that is wanted. Nothing is returned
    /// when it was told to stop, or the segment is gone.
    pub(crate) fn compare_cells(
        &self,
        id: SegmentId,
        segment: &Segment,
        wanted: &Wanted<'_>,
        mends: bool,
        pace: &Pace<'_>,
    ) -> Result<Option<Compared>, StoreError> {
        let places: Vec<(u8, Placement)> = (0..)
            .zip(segment.placements.iter().copied())
            .filter(|(_, place)| (wanted.place)(*place))
            .collect();
        let mut found = Compared::default();
        if !self.compare_headers(id, segment, &places, mends, &mut found)? {
            return Ok(None);
        }
        let end = if segment.end > 0 { segment.end } else { self.pool.slot_bytes() as u32 };
        let rows = if segment.rows > 0 { segment.rows } else { u32::MAX };
        let (mut offset, mut gap, mut gaps) = (SLOT_HEADER_BYTES as u32, None, Vec::new());
        while offset + BLOCK_BYTES as u32 <= end {
            let begun = Instant::now();
            let Some(row) = SoundRow::read(&self.pool, id, segment, offset) else {
                // A row that was cut off, or damage in too many cells; rows behind it are whole all the same.
                gap = gap.or(Some(offset));
                offset = next_row(&self.pool, id, segment, offset + BLOCK_BYTES as u32).unwrap_or(end);
                continue;
            };
            gaps.extend(gap.take().map(|start| start..offset));
            let cell_bytes = u64::from(row.head.cell_bytes);
            let is_wanted = (wanted.row)(row.place.row);
            for (number, place) in places.iter().filter(|_| is_wanted) {
                found.cells += 1;
                found.bytes += cell_bytes;
                if row.has_read(*number) {
                    continue;
                }
                let right = row.right(*number);
                if self.holds_already(*place, offset, &right) {
                    continue;
                }
                found.damaged += 1;
                found.first = found.first.or(Some(place.0));
                // Where nobody counted the rows, one may have been on its way in a crash, and nobody was told of it.
                self.pool.note_damage(place.0, u64::from(segment.end > 0));
                if mends {
                    let write = || Ok(self.pool.write_slot(*place, u64::from(offset), &right)?);
                    if !self.while_there(id, write)? {
                        return Ok(None);
                    }
                    found.repaired += 1;
                    found.written += cell_bytes;
                    if self.pool.readable(*place) {
                        self.note_mended(None, (id, offset, *number), place.0);
                    }
                }
            }
            offset += row.head.cell_bytes;
            if pace(cell_bytes * places.len() as u64, begun.elapsed()).is_break() {
                return Ok(None);
            }
            if row.place.row.0.saturating_add(1) >= rows {
                offset = end;
            }
        }
        gaps.extend(gap.map(|start| start..end));
        self.look_into_gaps(id, &gaps, &mut found)?;
        Ok(Some(found))
    }

    fn compare_headers(
        &self,
        id: SegmentId,
        segment: &Segment,
        places: &[(u8, Placement)],
        mends: bool,
        found: &mut Compared,
    ) -> Result<bool, StoreError> {
        for (number, place) in places {
            let Some(right) = self.pool.header_lacking(*place, id, segment.shards, *number) else { continue };
            let mut is_wrong = true;
            let is_there = self.while_there(id, || {
                // It may only have been another segment's by then.
                is_wrong = self.pool.header_lacking(*place, id, segment.shards, *number).is_some();
                if is_wrong && mends { Ok(self.pool.write_slot(*place, 0, &right)?) } else { Ok(()) }
            })?;
            if !is_there {
                return Ok(false);
            }
            found.damaged += u64::from(is_wrong);
            self.pool.note_damage(place.0, u64::from(is_wrong));
            found.repaired += u64::from(is_wrong && mends);
            found.written += if is_wrong && mends { right.len() as u64 } else { 0 };
        }
        Ok(true)
    }

    /// In how many stretches without a sound row something begins that is referred to and cannot be read, and how much else can.
    /// Reads the whole table of chunks, if there are any, and heals what can be read.
    fn look_into_gaps(
        &self,
        id: SegmentId,
        gaps: &[Range<u32>],
        found: &mut Compared,
    ) -> Result<(), StoreError> {
        if gaps.is_empty() {
            return Ok(());
        }
        let mut chunks = Vec::new();
        self.each_chunk_in(id, &mut |chunk, frame| {
            if let Some(gap) = gaps.iter().find(|gap| gap.contains(&frame.slot_offset)) {
                chunks.push((chunk, gap.start));
            }
        })?;
        let mut lost = BTreeSet::new();
        // What is bad in too many cells of a row need not be bad at the same place of them. Whoever reads puts the rest on record.
        for (chunk, gap) in chunks {
            match self.read_chunk(chunk, 0, &mut [0]) {
                Err(StoreError::Damaged { .. }) => {
                    lost.insert(gap);
                }
                Err(_) => {}
                Ok(()) => found.stranded += 1,
            }
        }
        for start in &lost {
            tracing::error!(segment = id.0, start, "too few cells of a row are sound");
        }
        found.lost += lost.len() as u64;
        Ok(())
    }

    fn holds_already(&self, place: Placement, offset: u32, right: &[u8]) -> bool {
        let mut found = AlignedBuffer::zeroed(right.len());
        self.pool.read_returning(place, u64::from(offset), &mut found).is_ok() && found[..] == *right
    }

    /// Writes to a segment's slots while they are its own. Says whether it was still there.
    fn while_there(
        &self,
        id: SegmentId,
        write: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        // While this is held no slot is given to anybody else.
        let _held = self.healing.lock();
        let is_there = self.read_segment(id)?.is_some();
        if is_there {
            write()?;
        }
        Ok(is_there)
    }
}
