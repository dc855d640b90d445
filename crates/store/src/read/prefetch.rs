//! Bringing many frames into the cache: neighbours in one read, and from several devices at once.

use super::{CachedFrame, Layout, Wait, decode, key_of};
use crate::StoreError;
use crate::store::Store;
use aegisfs_base::{ChunkId, DeviceIndex};
use aegisfs_format::descriptor::FramePlace;
use aegisfs_pool::{Placement, side_by_side};
use parking_lot::Mutex;
use std::sync::Arc;

/// Neighbouring frames are read in one go up to this many bytes.
const RUN_BYTES_MAX: u32 = 1 << 20;
/// Frames this close together are read in one go, the gap included.
const GAP_BYTES_MAX: u32 = 32 << 10;
/// Devices that are asked at the same time for one reader.
const AT_ONCE_MAX: usize = 16;

/// Frames of one cell that are read in one go.
#[derive(Clone, Copy, Debug)]
struct Run<'f> {
    frames: &'f [FramePlace],
    /// Where the last of them ends.
    end: u32,
}

/// A run and where it comes from: one place, or the other cells of its row.
struct Planned<'f> {
    run: Run<'f>,
    layout: Arc<Layout>,
    from: Option<Placement>,
}

impl Planned<'_> {
    fn device(&self) -> Option<DeviceIndex> {
        self.from.map(|place| place.0)
    }
}

/// The runs of some frames, which are in order.
fn runs(mut frames: &[FramePlace]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    while let Some(first) = frames.first() {
        let mut end = first.slot_offset + first.stored_bytes;
        let mut count = 1;
        for next in &frames[1..] {
            let near = (next.segment, next.cell) == (first.segment, first.cell)
                && next.slot_offset <= end + GAP_BYTES_MAX
                && next.slot_offset + next.stored_bytes - first.slot_offset <= RUN_BYTES_MAX;
            if !near {
                break;
            }
            end = next.slot_offset + next.stored_bytes;
            count += 1;
        }
        let (run, later) = frames.split_at(count);
        runs.push(Run { frames: run, end });
        frames = later;
    }
    runs
}

impl Store {
    /// Brings chunks into the cache with as few device reads as their places allow, from several devices at the same time
    /// where that pays. What cannot be read is left for [`Store::read_chunk`] to report.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn prefetch(&self, chunks: &[ChunkId]) -> Result<(), StoreError> {
        let mut wanted: Vec<FramePlace> = Vec::new();
        for chunk in chunks {
            let Ok(descriptor) = self.descriptor(*chunk) else { continue };
            if self.cache.frames.peek(&key_of(&descriptor.frame)).is_none() {
                wanted.push(descriptor.frame);
            }
        }
        wanted.sort_by_key(key_of);
        wanted.dedup_by_key(|frame| key_of(frame));
        let batches = self.plan(&runs(&wanted));
        let load = |batch: &Vec<Planned<'_>>| batch.iter().for_each(|planned| self.load_run(planned));
        let firsts: Vec<Placement> = batches
            .iter()
            .filter_map(|batch| batch[0].from.or(batch[0].layout.places.first().copied()))
            .collect();
        if batches.len() > 1 && self.pool.pays_side_by_side(&firsts) {
            for some in batches.chunks(AT_ONCE_MAX) {
                side_by_side(some, load);
            }
        } else {
            batches.iter().for_each(load);
        }
        Ok(())
    }

    /// Who reads what: those of a device in one batch, in their order, and in another all that are made from other cells, for
    /// which several devices are asked at once anyway.
    fn plan<'f>(&self, runs: &[Run<'f>]) -> Vec<Vec<Planned<'f>>> {
        let mut reads = self.pool.plan_reads();
        let mut batches: Vec<Vec<Planned<'f>>> = Vec::new();
        for run in runs {
            let (segment, cell, _) = key_of(&run.frames[0]);
            // A segment that has gone had its chunks moved elsewhere.
            let Ok(layout) = self.layout(segment) else { continue };
            let is_there = |place: &Placement| self.pool.readable(*place) && !self.pool.is_avoided(*place);
            let there: Vec<Placement> = layout.copies(cell).iter().copied().filter(is_there).collect();
            let planned = Planned { run: *run, from: reads.choose(&there), layout };
            let device = planned.device();
            match batches.iter_mut().find(|batch| batch[0].device() == device) {
                Some(batch) => batch.push(planned),
                None => batches.push(vec![planned]),
            }
        }
        batches
    }

    fn load_run(&self, planned: &Planned<'_>) {
        let Planned { run, layout, from } = planned;
        let (_, cell, start) = key_of(&run.frames[0]);
        let span = match from {
            Some(place) => self.read_span(*place, start, run.end - start, Wait::Soon),
            None => self.decode_span(layout, cell, start, run.end - start, Wait::Soon),
        };
        let Ok(span) = span else { return };
        for frame in run.frames {
            let from = (frame.slot_offset - start) as usize;
            let stored = &span.bytes()[from..from + frame.stored_bytes as usize];
            if let Ok(plain) = decode(frame, stored) {
                let cached = CachedFrame { plain, verified: Mutex::default() };
                self.cache.frames.insert(key_of(frame), Arc::new(cached));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{RowIndex, SegmentId};

    fn frame(segment: u64, cell: u8, slot_offset: u32, stored_bytes: u32) -> FramePlace {
        FramePlace {
            segment: SegmentId(segment),
            row: RowIndex(0),
            cell,
            slot_offset,
            stored_bytes,
            plain_bytes: stored_bytes,
            codec: 0,
            key_domain: 0,
        }
    }

    #[test]
    fn neighbours_are_one_run() {
        let frames = [
            frame(1, 0, 4096, 1000),
            frame(1, 0, 5096, 1000),
            // Behind a gap that is read as well, and behind one that is not.
            frame(1, 0, 6096 + GAP_BYTES_MAX, 10),
            frame(1, 0, 6107 + 2 * GAP_BYTES_MAX, 10),
            // In another cell, and in another segment.
            frame(1, 1, 4096, RUN_BYTES_MAX - 10),
            frame(1, 1, 4096 + RUN_BYTES_MAX - 10, 11),
            frame(2, 1, 4097 + RUN_BYTES_MAX, 10),
        ];
        let found: Vec<(usize, u32)> = runs(&frames).iter().map(|run| (run.frames.len(), run.end)).collect();
        let expected = [
            (3, 6106 + GAP_BYTES_MAX),
            (1, 6117 + 2 * GAP_BYTES_MAX),
            (1, 4096 + RUN_BYTES_MAX - 10),
            (1, 4097 + RUN_BYTES_MAX),
            (1, 4107 + RUN_BYTES_MAX),
        ];
        assert_eq!(found, expected);
        assert!(runs(&[]).is_empty());
    }
}
