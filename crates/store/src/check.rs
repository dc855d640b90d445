//! Checking everything that is stored: what scrub and the offline `check` share with reading.
//!
//! References are counted anew and compared with the stored counts; live bytes are added up; every chunk is
//! read from every copy and compared with its hash.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{ChunkId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::{ExtentRef, decode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState, is_tombstone};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Metadata contradicts itself.
    Inconsistent {
        /// What does not fit.
        what: String,
    },
    /// A chunk's bytes are damaged on some copy.
    DamagedChunk {
        /// The chunk.
        chunk: ChunkId,
        /// The segment.
        segment: SegmentId,
        /// The device of the bad copy.
        device: u16,
        /// Whether another copy is sound.
        healable: bool,
        /// What was wrong.
        reason: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inconsistent { what } => write!(f, "{what}"),
            Self::DamagedChunk { chunk, segment, device, healable, reason } => {
                let verdict = if *healable { "another copy is sound" } else { "no copy is sound" };
                write!(f, "chunk {chunk} in segment {segment} on device {device}: {reason}; {verdict}")
            }
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is not as it should be.
    pub problems: Vec<Problem>,
    /// Chunks looked at.
    pub chunks: u64,
    /// Stored bytes read and verified, each copy counted.
    pub bytes_verified: u64,
    /// References counted.
    pub references: u64,
    /// Segments.
    pub segments: u64,
    /// Metadata entries read.
    pub entries: u64,
}

impl Store {
    /// Verifies everything. With `data` off, chunks are not read.
    ///
    /// # Errors
    /// When the metadata itself cannot be read.
    pub fn check(&self, data: bool) -> Result<CheckReport, StoreError> {
        let mut report = CheckReport::default();
        let counted = self.recount(&mut report)?;
        let live = self.check_chunks(&counted, data, &mut report)?;
        self.check_segments(&live, &mut report)?;
        self.read_other_tables(&mut report)?;
        Ok(report)
    }

    /// Counts references from scratch: one that stands in several versions of a window counts once.
    fn recount(&self, report: &mut CheckReport) -> Result<HashMap<ChunkId, u32>, StoreError> {
        let mut counted: HashMap<ChunkId, u32> = HashMap::new();
        let mut stem: Vec<u8> = Vec::new();
        let mut seen: BTreeSet<ExtentRef> = BTreeSet::new();
        let mut problems = Vec::new();
        self.view().scan(Table::Extents, &[], None, &mut |key, value| {
            report.entries += 1;
            let Ok((this, _)) = key::split_version(key) else { return ControlFlow::Continue(()) };
            if this != stem {
                stem = this.to_vec();
                seen.clear();
            }
            if is_tombstone(value) {
                return ControlFlow::Continue(());
            }
            match decode_window(value) {
                Ok(window) => {
                    for reference in window {
                        if seen.insert(reference) {
                            *counted.entry(reference.chunk).or_default() += 1;
                            report.references += 1;
                        }
                    }
                }
                Err(error) => {
                    problems.push(Problem::Inconsistent { what: format!("extents {key:02x?}: {error}") });
                }
            }
            ControlFlow::Continue(())
        })?;
        report.problems.extend(problems);
        Ok(counted)
    }

    fn check_chunks(
        &self,
        counted: &HashMap<ChunkId, u32>,
        data: bool,
        report: &mut CheckReport,
    ) -> Result<BTreeMap<SegmentId, u64>, StoreError> {
        let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
        let mut found = 0usize;
        let mut descriptors = Vec::new();
        let mut problems = Vec::new();
        self.view().scan(Table::Chunks, &[], None, &mut |key, value| {
            report.entries += 1;
            let chunk = ChunkId(key.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
            match Descriptor::decode(value) {
                Ok(Some(descriptor)) => {
                    *live.entry(descriptor.frame.segment).or_default() += u64::from(descriptor.charged_bytes);
                    let expected = counted.get(&chunk).copied().unwrap_or(0);
                    found += usize::from(expected > 0);
                    if expected != descriptor.references {
                        problems.push(Problem::Inconsistent {
                            what: format!(
                                "chunk {chunk} has {} references noted and {expected} counted",
                                descriptor.references
                            ),
                        });
                    }
                    descriptors.push((chunk, descriptor));
                }
                Ok(None) => {}
                Err(error) => {
                    problems.push(Problem::Inconsistent { what: format!("chunk {chunk}: {error}") });
                }
            }
            ControlFlow::Continue(())
        })?;
        if found != counted.len() {
            let missing = counted.len() - found;
            problems.push(Problem::Inconsistent {
                what: format!("{missing} chunks are referred to but missing"),
            });
        }
        report.problems.extend(problems);
        report.chunks = descriptors.len() as u64;
        if data {
            descriptors.sort_by_key(|(_, d)| (d.frame.segment, d.frame.slot_offset));
            for (chunk, descriptor) in &descriptors {
                self.check_copies(*chunk, descriptor, report)?;
            }
        }
        Ok(live)
    }

    fn check_copies(
        &self,
        chunk: ChunkId,
        descriptor: &Descriptor,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let segment = descriptor.frame.segment;
        let places = match self.placements(segment) {
            Ok(places) => places,
            Err(StoreError::Inconsistent { what }) => {
                report.problems.push(Problem::Inconsistent { what: format!("chunk {chunk}: {what}") });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut bad = Vec::new();
        let mut sound = false;
        for place in places.iter().filter(|place| self.pool.readable(**place)) {
            match self.load_copy(*place, descriptor) {
                Ok((_, stored)) => {
                    sound = true;
                    report.bytes_verified += stored.bytes().len() as u64;
                }
                Err(reason) => bad.push((place.0.0, reason)),
            }
        }
        for (device, reason) in bad {
            report.problems.push(Problem::DamagedChunk { chunk, segment, device, healable: sound, reason });
        }
        Ok(())
    }

    fn check_segments(
        &self,
        live: &BTreeMap<SegmentId, u64>,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let mut problems = Vec::new();
        let mut slots = 0u64;
        let mut known = BTreeSet::new();
        self.view().scan(Table::Segments, &[], None, &mut |key, value| {
            report.entries += 1;
            let id = SegmentId(key.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
            known.insert(id);
            match Segment::decode(value) {
                Ok(segment) => {
                    slots += segment.placements.len() as u64;
                    let forgotten = segment.state == SegmentState::Open && !self.segments.holds(id);
                    if forgotten && self.check_writable().is_ok() {
                        let what = format!("segment {id} is open, but nobody appends to it");
                        problems.push(Problem::Inconsistent { what });
                    }
                    let expected = live.get(&id).copied().unwrap_or(0);
                    if segment.live_bytes != expected {
                        problems.push(Problem::Inconsistent {
                            what: format!(
                                "segment {id} notes {} live bytes and holds {expected}",
                                segment.live_bytes
                            ),
                        });
                    }
                }
                Err(error) => problems.push(Problem::Inconsistent { what: format!("segment {id}: {error}") }),
            }
            ControlFlow::Continue(())
        })?;
        for id in live.keys().filter(|id| !known.contains(id)) {
            problems
                .push(Problem::Inconsistent { what: format!("segment {id} holds chunks but is missing") });
        }
        report.segments = known.len() as u64;
        let space = self.pool.space();
        let mapped = self.pool.mapped_slots().len() as u64;
        let accounted = space.free + space.freeing + mapped + slots;
        if accounted != space.slots {
            problems.push(Problem::Inconsistent {
                what: format!(
                    "of {} slots, {} are free, {} being freed, {mapped} hold metadata and {slots} hold segments",
                    space.slots, space.free, space.freeing
                ),
            });
        }
        report.problems.extend(problems);
        Ok(())
    }

    /// Reads every other table once, so that every page of the metadata is verified.
    fn read_other_tables(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        for table in Table::ALL {
            if matches!(table, Table::Extents | Table::Chunks | Table::Segments | Table::Dedup) {
                continue;
            }
            self.view().scan(table, &[], None, &mut |_, _| {
                report.entries += 1;
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }
}
