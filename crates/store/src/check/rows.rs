//! The part of a check that reads segments.

use super::{CheckReport, Problem, Progress, chunk_of};
use crate::StoreError;
use crate::inspect::{CellSeen, Living, Seen};
use crate::mend::Wanted;
use crate::read::{Layout, Wait};
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{ChunkId, SegmentId, Tally};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::Table;
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_pool::Placement;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Chunks that are looked at again at a time.
const AGAIN_MAX: usize = 4096;

/// What the chunks' descriptors say of a segment.
#[derive(Default)]
pub(super) struct Share {
    pub(super) live_bytes: u64,
    pub(super) forsaken_bytes: u64,
    /// In each cell of data.
    chunks: BTreeMap<u8, u64>,
    /// Rows up to the last one with such a chunk.
    rows: u32,
    /// Those that have one.
    living: BTreeSet<u32>,
}

impl Share {
    pub(super) fn add(&mut self, descriptor: &Descriptor) {
        self.live_bytes += u64::from(descriptor.charged_bytes);
        self.forsaken_bytes += descriptor.forsaken_bytes();
        *self.chunks.entry(descriptor.frame.cell).or_default() += 1;
        self.rows = self.rows.max(descriptor.frame.row.0.saturating_add(1));
        self.living.insert(descriptor.frame.row.0);
    }
}

impl Store {
    pub(super) fn check_rows(
        &self,
        shares: &BTreeMap<SegmentId, Share>,
        payloads: bool,
        progress: Progress<'_>,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        // Sound copies by chunk.
        let mut sound = Tally::default();
        let mut segments = Vec::new();
        self.each_segment(&mut |id, segment| {
            segments.push((id, segment));
            ControlFlow::Continue(())
        })?;
        let total = segments.len() as u64;
        let mut copies = BTreeMap::new();
        for (done, (id, segment)) in (0..).zip(&segments) {
            progress(done, total);
            let Some(share) = shares.get(id) else { continue };
            let layout = Layout { shards: segment.shards, places: segment.placements.clone() };
            for cell in 0..segment.shards.0 {
                let readable = layout.copies(cell).iter().filter(|place| self.pool.readable(**place)).count();
                copies.insert((*id, cell), readable as u32);
            }
            let mut slot = Slot::default();
            let living = Living::counted(share.chunks.clone(), share.rows);
            let before = report.problems.len();
            self.walk_with(*id, segment, &living, payloads, &mut |seen| {
                match seen {
                    Seen::Shard(shard) => {
                        report.problems.extend(slot.problems(*id));
                        // Parity holds no chunks; what counts is whether the row has any.
                        let is_parity = segment.shards.0 > 1 && shard.number >= segment.shards.0;
                        let parity_of =
                            (is_parity && self.pool.readable(shard.place)).then(|| share.living.clone());
                        slot = Slot { place: shard.place, parity_of, ..Slot::default() };
                        if self.pool.readable(shard.place) {
                            slot.found.extend(shard.problem);
                        }
                    }
                    Seen::Cell(mut cell) => {
                        if self.is_unmended(slot.place, cell.slot_offset) {
                            cell.problem = None;
                        }
                        let bytes = slot.note(&cell, &mut sound);
                        report.bytes_verified += if payloads { bytes } else { 0 };
                    }
                    Seen::Gap(gap) if self.is_unmended(slot.place, gap.slot_offset) => {}
                    Seen::Gap(gap) => slot.gaps.push(format!("at {}: {}", gap.slot_offset, gap.reason)),
                    Seen::Missing { .. } => slot.is_missing = true,
                }
                ControlFlow::Continue(())
            })?;
            report.problems.extend(slot.problems(*id));
            if payloads && segment.shards.0 > 1 && report.problems.len() == before {
                report.problems.extend(self.wrong_parity(*id, segment, &share.living)?);
            }
        }
        progress(total, total);
        self.check_again(&sound, &copies, report)
    }

    /// What is wrong with cells of parity of which each verifies by itself, compared with the data of their rows. Only rows count
    /// that files refer to: of others not all may have arrived before a crash.
    fn wrong_parity(
        &self,
        id: SegmentId,
        segment: &Segment,
        living: &BTreeSet<u32>,
    ) -> Result<Option<Problem>, StoreError> {
        // What recovery would mend first differs, of course.
        if segment.state != SegmentState::Sealed || self.has_unmended() {
            return Ok(None);
        }
        let data = segment.shards.0;
        let parity = &segment.placements[usize::from(data)..];
        let is_parity = |place: Placement| parity.contains(&place) && self.pool.readable(place);
        let goes_on = |_, _| ControlFlow::Continue(());
        let wanted = Wanted { place: &is_parity, row: &|row| living.contains(&row.0) };
        let found = self.compare_cells(id, segment, &wanted, false, &goes_on)?.unwrap_or_default();
        let wrong = found.damaged;
        let reason = format!("{wrong} cells of parity are not those of the data in their rows");
        let device = found.first.map_or(0, |device| device.0);
        Ok((wrong > 0).then_some(Problem::DamagedRow { segment: id, device, reason }))
    }

    /// Reads those chunks as files do that were not sound wherever they should be.
    fn check_again(
        &self,
        sound: &Tally,
        copies: &BTreeMap<(SegmentId, u8), u32>,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let mut again: Vec<(ChunkId, Descriptor)> = Vec::new();
            let mut last = None;
            self.view().scan(Table::Chunks, &from, None, &mut |key, value| {
                let chunk = chunk_of(key);
                // What cannot be read here was named before.
                if let Ok(Some(descriptor)) = Descriptor::decode(value)
                    && (sound.get(chunk.0) == 0
                        || copies.get(&(descriptor.frame.segment, descriptor.frame.cell))
                            != Some(&sound.get(chunk.0)))
                {
                    again.push((chunk, descriptor));
                }
                last = Some(key.to_vec());
                if again.len() == AGAIN_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            again.sort_by_key(|(_, d)| (d.frame.segment, d.frame.slot_offset));
            for (chunk, descriptor) in &again {
                self.check_copies(*chunk, descriptor, report)?;
            }
            match last {
                Some(key) if again.len() == AGAIN_MAX => from = [&key[..], &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }

    fn check_copies(
        &self,
        chunk: ChunkId,
        descriptor: &Descriptor,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let segment = descriptor.frame.segment;
        let layout = match self.layout(segment) {
            Ok(layout) => layout,
            Err(StoreError::Inconsistent { what }) => {
                report.problems.push(Problem::Inconsistent { what: format!("chunk {chunk}: {what}") });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let copies = layout.copies(descriptor.frame.cell);
        let mut bad = Vec::new();
        let mut healable = false;
        for place in copies.iter().filter(|place| self.pool.readable(**place)) {
            match self.load_copy(*place, descriptor, Wait::Long) {
                Ok((_, stored)) => {
                    healable = true;
                    report.bytes_verified += stored.bytes().len() as u64;
                }
                Err(_) if self.is_unmended(*place, descriptor.frame.slot_offset) => healable = true,
                Err(unread) => bad.push((place.0.0, unread.reason())),
            }
        }
        if !healable {
            // The other cells of its row may tell.
            match self.load_decoded(&layout, descriptor, Wait::Long) {
                Ok(found) => healable = found.is_some(),
                Err(reason) => bad.extend(copies.first().map(|place| (place.0.0, reason))),
            }
        }
        if let Some(place) = copies.first().filter(|_| !healable && bad.is_empty()) {
            bad.push((place.0.0, "no device that holds it takes part".to_owned()));
        }
        for (device, reason) in bad {
            report.problems.push(Problem::DamagedChunk { chunk, segment, device, healable, reason });
        }
        Ok(())
    }
}

/// What was found on one slot of a segment.
#[derive(Default)]
struct Slot {
    place: Placement,
    /// Problems around chunks that files refer to.
    found: Vec<String>,
    /// Where no cell begins: a row that was cut off, unless chunks are missing.
    gaps: Vec<String>,
    is_missing: bool,
    /// Of a slot of parity, the rows with such chunks that were not found yet.
    parity_of: Option<BTreeSet<u32>>,
}

impl Slot {
    /// Notes the chunks of a cell that are sound; returns the bytes read of it.
    fn note(&mut self, cell: &CellSeen, sound: &mut Tally) -> u64 {
        let used = cell.chunks.iter().filter(|chunk| chunk.references > 0);
        let mut matters = used.clone().next().is_some();
        if let Some(rows) = &mut self.parity_of {
            matters = rows.remove(&cell.row.0);
        }
        for chunk in used {
            match &chunk.problem {
                None => sound.add_one(chunk.entry.chunk.0),
                // It is named by itself.
                Some(_) => matters = false,
            }
        }
        if let Some(problem) = cell.problem.as_ref().filter(|_| matters) {
            self.found.push(format!("row {} at {}: {problem}", cell.row, cell.slot_offset));
        }
        u64::from(cell.payload_bytes)
    }

    fn problems(&mut self, segment: SegmentId) -> Vec<Problem> {
        let mut found = std::mem::take(&mut self.found);
        let lost = self.parity_of.take().unwrap_or_default();
        if !lost.is_empty() {
            found.push(format!(
                "{} rows have no parity here, the first is row {}",
                lost.len(),
                lost.first().unwrap_or(&0)
            ));
        }
        if self.is_missing || !lost.is_empty() {
            found.append(&mut self.gaps);
        }
        let device = self.place.0.0;
        found.into_iter().map(|reason| Problem::DamagedRow { segment, device, reason }).collect()
    }
}
