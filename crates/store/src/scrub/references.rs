//! References counted anew while others change them.
//!
//! Nothing holds still meanwhile, so a count that differs from what is noted may only be older than that. It is counted again,
//! and what differs in the same way each time is wrong: every change of a chunk's references comes with a change of what is
//! noted, in one step.

use super::Pacer;
use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{ChunkId, Tally};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::{ExtentRef, decode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::is_tombstone;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::time::Duration;

/// Chunks that are counted in one go; each takes four bytes meanwhile.
const AT_ONCE: u64 = 4 << 20;
/// How often what differs is counted again.
const AGAIN: usize = 2;
/// Entries between two looks at the pace, and what they count as beside data that is read.
const STEP: u64 = 512;
const STEP_BYTES: u64 = 64 << 10;

/// What came of counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReferencesCounted {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Of those, how many have another number of references than is noted.
    pub wrong: u64,
}

/// Of a chunk: the references that are noted, and those that were counted.
type Differing = BTreeMap<ChunkId, (u32, u32)>;

impl Store {
    /// What came of counting references in the last scrub of this mount that got so far.
    pub fn references_counted(&self) -> Option<ReferencesCounted> {
        *self.scrubber.references.lock()
    }

    /// Counts all references, and says what is wrong; nothing if it was told to stop.
    pub(super) fn count_references(
        &self,
        pacer: &Pacer<'_>,
    ) -> Result<Option<ReferencesCounted>, StoreError> {
        let mut found = ReferencesCounted::default();
        let mut next = self.first_chunk(ChunkId(0))?;
        while let Some(first) = next {
            let range = first.0..first.0.saturating_add(AT_ONCE);
            let Some((chunks, mut differing)) = self.count_range(range.clone(), None, pacer)? else {
                return Ok(None);
            };
            for _ in 0..AGAIN {
                if differing.is_empty() {
                    break;
                }
                let Some((_, again)) = self.count_range(range.clone(), Some(&differing), pacer)? else {
                    return Ok(None);
                };
                differing.retain(|chunk, seen| again.get(chunk) == Some(seen));
            }
            for (chunk, (noted, counted)) in &differing {
                tracing::error!(
                    chunk = chunk.0,
                    noted,
                    counted,
                    "a chunk has another number of references than is noted"
                );
            }
            found.chunks += chunks;
            found.wrong += differing.len() as u64;
            next = self.first_chunk(ChunkId(range.end))?;
        }
        *self.scrubber.references.lock() = Some(found);
        Ok(Some(found))
    }

    /// The first chunk that there is from one on.
    fn first_chunk(&self, from: ChunkId) -> Result<Option<ChunkId>, StoreError> {
        let mut found = None;
        self.view().scan(Table::Chunks, &key::chunk(from), None, &mut |key, _| {
            found = key.first_chunk::<8>().map(|number| ChunkId(u64::from_be_bytes(*number)));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Counts the references to chunks of a range, or only to some of them; how many of those there are, and which differ.
    fn count_range(
        &self,
        range: Range<u64>,
        only: Option<&Differing>,
        pacer: &Pacer<'_>,
    ) -> Result<Option<(u64, Differing)>, StoreError> {
        let is_wanted =
            |chunk: ChunkId| range.contains(&chunk.0) && only.is_none_or(|only| only.contains_key(&chunk));
        let mut counted = Tally::default();
        let (mut stem, mut seen) = (Vec::new(), BTreeSet::<ExtentRef>::new());
        let (mut entries, mut stopped, mut problem) = (0u64, false, None);
        let mut step = || {
            entries += 1;
            entries.is_multiple_of(STEP) && pacer.pace(STEP_BYTES, Duration::ZERO).is_break()
        };
        self.view().scan(Table::Extents, &[], None, &mut |key, value| {
            stopped = step();
            let Ok((this, _)) = key::split_version(key) else { return ControlFlow::Continue(()) };
            if this != stem {
                stem = this.to_vec();
                seen.clear();
            }
            if !is_tombstone(value) {
                match decode_window(value) {
                    Ok(window) => {
                        for reference in window.into_iter().filter(|reference| is_wanted(reference.chunk)) {
                            // One that stands in several versions of a window counts once.
                            if seen.insert(reference) {
                                counted.add_one(reference.chunk.0);
                            }
                        }
                    }
                    Err(error) => problem = Some(error),
                }
            }
            if stopped || problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let (mut chunks, mut differing) = (0, Differing::new());
        let end = key::chunk(ChunkId(range.end));
        if !stopped && problem.is_none() {
            self.view().scan(
                Table::Chunks,
                &key::chunk(ChunkId(range.start)),
                Some(&end),
                &mut |key, value| {
                    stopped = step();
                    let chunk =
                        key.first_chunk::<8>().map_or(ChunkId(0), |n| ChunkId(u64::from_be_bytes(*n)));
                    match Descriptor::decode(value) {
                        Ok(Some(descriptor)) if is_wanted(chunk) => {
                            chunks += 1;
                            let (noted, found) = (descriptor.references, counted.get(chunk.0));
                            if noted != found {
                                differing.insert(chunk, (noted, found));
                            }
                        }
                        Ok(_) => {}
                        Err(error) => problem = Some(error),
                    }
                    if stopped || problem.is_some() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )?;
        }
        match problem {
            Some(error) => Err(error.into()),
            None if stopped => Ok(None),
            None => Ok(Some((chunks, differing))),
        }
    }
}
