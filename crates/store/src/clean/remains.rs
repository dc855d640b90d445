//! What is left of chunks in which much was overwritten.
//!
//! A chunk lives as long as something refers to any part of it. Where files are overwritten in small parts, most of what
//! chunks take may be forsaken: of use to nobody, and yet not dead. So before segments are cleaned, the parts of such
//! chunks that are still referred to are stored as chunks of their own, and what referred to the old ones refers to these.
//! With its last reference the old chunk dies.
//!
//! Nothing says who refers to a chunk. Hence the extents are walked, once for as many segments as can be moved at a time.
//! What happens meanwhile the sequencer sorts out: only what still refers to what was read is pointed elsewhere, and a
//! chunk to which somebody else refers by then stays. What a snapshot sees is never changed; such chunks move as a whole.

#[cfg(test)]
mod tests;

use super::{Candidate, Cleaned, MOVED_PER_CHANGE, Moving, Pace};
use crate::StoreError;
use crate::ingest::frames::NewChunk;
use crate::store::{Counters, Store};
use crate::tables::Tables;
use crate::versions::{self, Head};
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{BranchId, ChunkId, InodeId, PolicyId, SegmentId};
use aegisfs_chunk::ChunkHash;
use aegisfs_format::FormatError;
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{NewRef, Op};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Instant;

/// References that are looked for in one walk; bounds its memory.
const RUNS_MAX: u64 = 1 << 17;
/// Runs that one change points elsewhere; bounds the log record.
const RUNS_PER_CHANGE: usize = 1000;

/// A run of a file that refers to a chunk.
#[derive(Clone, Copy, Debug)]
struct Run {
    inode: InodeId,
    from: NewRef,
}

/// A chunk of which parts are forsaken, and what refers to it.
#[derive(Debug)]
pub(super) struct Remains {
    chunk: ChunkId,
    /// Where it lies.
    segment: SegmentId,
    /// How many references there are to be found.
    references: u32,
    runs: Vec<Run>,
}

/// Remains on their way to new chunks.
#[derive(Default)]
struct Batch {
    /// The one that they follow.
    policy: PolicyId,
    runs: Vec<(Run, NewChunk<'static>)>,
    bytes: u64,
}

impl Store {
    /// Stores anew what is left of the chunks of some segments, the first ones of these that there is room for and that give
    /// so many bytes. Says how many segments that was, or nothing when it was told to stop.
    pub(super) fn take_remains(
        &self,
        candidates: &[Candidate],
        wanted_bytes: u64,
        pace: &Pace<'_>,
        done: &mut Cleaned,
    ) -> Result<Option<usize>, StoreError> {
        let (mut living, mut dead) = (0, 0);
        let enough = candidates.iter().position(|candidate| {
            living += candidate.live_bytes;
            let is_enough = dead >= wanted_bytes || !self.has_room_to_move(living, PolicyId::default());
            dead += candidate.dead_bytes;
            is_enough
        });
        if enough == Some(0) {
            return Ok(Some(1));
        }
        let group = &candidates[..enough.unwrap_or(candidates.len())];
        let with_remains = || group.iter().filter(|candidate| candidate.forsaken_bytes > 0);
        let segments: HashSet<_> = with_remains().map(|candidate| candidate.segment).collect();
        if segments.is_empty() {
            return Ok(Some(group.len()));
        }
        loop {
            let so_far = done.remains_bytes;
            // Room that the metadata needs for its next state is not for more chunks.
            if self.pool.space().lent > 0 {
                return Ok(Some(group.len()));
            }
            let (remains, is_all) = self.find_remains(&segments)?;
            if self.store_remains(&remains, pace, done)?.is_break() {
                return Ok(None);
            }
            if is_all || done.remains_bytes == so_far {
                break;
            }
        }
        // What is still forsaken there cannot be had, but for a little that others have overwritten since.
        let mut kept = self.cleaner.kept.lock();
        for candidate in with_remains() {
            let left = self
                .read_segment(candidate.segment)?
                .map_or(0, |segment| self.in_own_bytes(segment.forsaken_bytes, segment.policy));
            if left > candidate.forsaken_bytes / 2 {
                kept.insert(candidate.segment);
            }
        }
        Ok(Some(group.len()))
    }

    /// Chunks of some segments of which parts are forsaken, if all that refers to them can be pointed elsewhere; and
    /// whether that is all that there are.
    pub(super) fn find_remains(
        &self,
        segments: &HashSet<SegmentId>,
    ) -> Result<(Vec<Remains>, bool), StoreError> {
        let mut sought: BTreeMap<ChunkId, Remains> = BTreeMap::new();
        let mut references = 0;
        let mut problem: Option<FormatError> = None;
        self.view().scan(Table::Chunks, &[], None, &mut |key, stored| {
            let found = match (Descriptor::decode(stored), key.first_chunk::<8>()) {
                (Ok(found), Some(id)) => found.map(|found| (ChunkId(u64::from_be_bytes(*id)), found)),
                (Ok(_), None) => None,
                (Err(error), _) => {
                    problem = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let is_sought = |descriptor: &Descriptor| {
                segments.contains(&descriptor.frame.segment) && descriptor.forsaken_bytes() > 0
            };
            if let Some((chunk, descriptor)) = found.filter(|(_, descriptor)| is_sought(descriptor)) {
                references += u64::from(descriptor.references);
                let (segment, references) = (descriptor.frame.segment, descriptor.references);
                let remains = Remains { chunk, segment, references, runs: Vec::new() };
                sought.insert(chunk, remains);
            }
            if references < RUNS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let head = Head::of_branch(&self.view(), BranchId(0))?;
        versions::scan_visible(&self.view(), Table::Extents, &[], None, &head.view, &mut |stem, stored| {
            let window = decode_window(stored)
                .and_then(|window| Ok((key::stem_inode(stem)?, key::extents_window(stem)?, window)));
            let (inode, number, window) = match window {
                Ok(window) => window,
                Err(error) => {
                    problem = Some(error);
                    return ControlFlow::Break(());
                }
            };
            for reference in window.iter().filter(|reference| !head.is_pinned(reference.birth)) {
                if let Some(remains) = sought.get_mut(&reference.chunk) {
                    let from = NewRef {
                        offset: number * WINDOW_BYTES + u64::from(reference.offset),
                        length: reference.length,
                        chunk: reference.chunk,
                        offset_in_chunk: reference.offset_in_chunk,
                    };
                    remains.runs.push(Run { inode, from });
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        let is_whole = |remains: &Remains| remains.runs.len() as u64 == u64::from(remains.references);
        Ok((sought.into_values().filter(is_whole).collect(), references < RUNS_MAX))
    }

    /// Stores remains as chunks of their own, and points what referred to the old ones to these.
    pub(super) fn store_remains(
        &self,
        remains: &[Remains],
        pace: &Pace<'_>,
        done: &mut Cleaned,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut batch = Batch::default();
        let mut begun = Instant::now();
        let mut policies = HashMap::new();
        for one in remains {
            if let Entry::Vacant(place) = policies.entry(one.segment) {
                place.insert(self.read_segment(one.segment)?.map_or(batch.policy, |segment| segment.policy));
            }
        }
        let mut remains: Vec<_> = remains.iter().map(|one| (policies[&one.segment], one)).collect();
        remains.sort_by_key(|(policy, _)| *policy);
        for (number, (policy, one)) in remains.iter().enumerate() {
            if self.pool.space().lent > 0 {
                break;
            }
            batch.policy = *policy;
            self.read_remains(one, &mut batch)?;
            let is_last = remains.get(number + 1).is_none_or(|(next, _)| next != policy);
            if is_last || batch.bytes >= MOVED_PER_CHANGE || batch.runs.len() >= RUNS_PER_CHANGE {
                let bytes = batch.bytes;
                self.plant_remains(std::mem::take(&mut batch), done)?;
                if pace(bytes, begun.elapsed()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                begun = Instant::now();
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read_remains(&self, remains: &Remains, batch: &mut Batch) -> Result<(), StoreError> {
        let bytes = match self.descriptor(remains.chunk) {
            Ok(descriptor) => descriptor.plain_bytes,
            Err(StoreError::StaleChunk { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut plain = vec![0; bytes as usize];
        self.cleaner.count_use();
        // What cannot be read stays, and whoever reads it is told.
        if self.read_chunk(remains.chunk, 0, &mut plain).is_err() {
            return Ok(());
        }
        for run in &remains.runs {
            let start = run.from.offset_in_chunk as usize;
            let part = plain.get(start..start + run.from.length as usize).ok_or_else(|| {
                let what = format!("a reference reaches beyond chunk {}", remains.chunk);
                StoreError::Inconsistent { what }
            })?;
            let (hash, data) = (ChunkHash::of(part).0, Cow::Owned(part.to_vec()));
            batch.bytes += part.len() as u64;
            // Its number it gets when it is stored.
            batch.runs.push((*run, NewChunk { chunk: ChunkId(0), hash, data }));
        }
        Ok(())
    }

    fn plant_remains(&self, batch: Batch, done: &mut Cleaned) -> Result<(), StoreError> {
        if batch.runs.is_empty() {
            return Ok(());
        }
        let (first, _expected) = self.take_chunk_ids(batch.runs.len() as u64)?;
        let (runs, mut parts): (Vec<_>, Vec<_>) = batch.runs.into_iter().unzip();
        for (number, part) in (first..).zip(&mut parts) {
            part.chunk = ChunkId(number);
        }
        let mut moving = Moving { store: self, rows: Vec::new() };
        self.write_moved(batch.policy, &mut moving.rows, Vec::new(), &parts, done)?;
        let changes = moving
            .rows
            .iter()
            .flat_map(|row| row.chunks.chunks(RUNS_PER_CHANGE).map(move |some| (row, some)));
        for (row, chunks) in changes {
            let mut ops = Vec::with_capacity(2 * chunks.len());
            let mut moved = 0;
            for (chunk, descriptor) in chunks {
                let Run { inode, from } = runs[(chunk.0 - first) as usize];
                let to = NewRef { chunk: *chunk, offset_in_chunk: 0, ..from };
                ops.push(Op::NewChunk { chunk: *chunk, descriptor: *descriptor });
                ops.push(Op::Repoint { inode, from, references: vec![to] });
                moved += u64::from(descriptor.charged_bytes);
            }
            self.commit(BranchId(0), ops, vec![row.dependency])?;
            self.cleaner.count_use();
            done.moved_bytes += moved;
            done.remains_bytes += moved;
            Counters::add(&self.counters.moved_bytes, moved);
            Counters::add(&self.counters.remains_bytes, moved);
        }
        Ok(())
    }
}
