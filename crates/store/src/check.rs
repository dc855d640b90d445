//! Checking everything that is stored: what scrub and the offline `check` share with reading.
//!
//! References are counted anew and compared with the stored counts; live bytes are added up; every slot of
//! every segment with living chunks is walked from cell to cell, and each chunk on it compared with its hash. A
//! chunk that such a walk does not come by, or finds damaged, is read as files read it. Memory: 8 bytes for each
//! chunk, and what there is to say about the damage.

mod rows;

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{ChunkId, SegmentId, Tally};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::{ExtentRef, decode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState, is_tombstone};
use rows::Share;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Told how many of how many segments have been read.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The metadata, which have to agree with themselves.
    Metadata,
    /// Besides, every chunk is where it should be, as headers and directories tell; what they tell of is not read.
    Directories,
    /// All of it is read and verified, and parity is compared with the data that it is of.
    Data,
}

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
    /// What stands around the chunks of a row is damaged on some copy: they can be read, but not found
    /// without the metadata.
    DamagedRow {
        /// The segment.
        segment: SegmentId,
        /// The device of the bad copy.
        device: u16,
        /// Where on the slot, and what was wrong.
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
            Self::DamagedRow { segment, device, reason } => {
                write!(f, "segment {segment} on device {device}: {reason}")
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

/// What refers to chunks, counted from scratch.
#[derive(Default)]
struct Counted {
    references: Tally,
    bytes: Tally<u64>,
}

impl Store {
    /// Verifies everything. With `data` off, segments are not read.
    ///
    /// # Errors
    /// When the metadata itself cannot be read.
    pub fn check(&self, data: bool) -> Result<CheckReport, StoreError> {
        let depth = if data { Depth::Data } else { Depth::Metadata };
        self.check_and_tell(depth, &mut |_, _| {})
    }

    /// The same, and tells how far it is.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn check_and_tell(&self, depth: Depth, progress: Progress<'_>) -> Result<CheckReport, StoreError> {
        let mut report = CheckReport::default();
        let counted = self.recount(&mut report)?;
        let shares = self.check_chunks(&counted, &mut report)?;
        drop(counted);
        self.check_segments(&shares, &mut report)?;
        self.read_other_tables(&mut report)?;
        if depth > Depth::Metadata {
            self.check_rows(&shares, depth == Depth::Data, progress, &mut report)?;
        }
        Ok(report)
    }

    /// Counts references from scratch: one that stands in several versions of a window counts once.
    fn recount(&self, report: &mut CheckReport) -> Result<Counted, StoreError> {
        let mut counted = Counted::default();
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
                            counted.references.add_one(reference.chunk.0);
                            counted.bytes.add(reference.chunk.0, u64::from(reference.length));
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
        counted: &Counted,
        report: &mut CheckReport,
    ) -> Result<BTreeMap<SegmentId, Share>, StoreError> {
        let mut shares: BTreeMap<SegmentId, Share> = BTreeMap::new();
        let mut found = 0;
        let mut problems = Vec::new();
        self.view().scan(Table::Chunks, &[], None, &mut |key, value| {
            report.entries += 1;
            let chunk = chunk_of(key);
            match Descriptor::decode(value) {
                Ok(Some(descriptor)) => {
                    report.chunks += 1;
                    shares.entry(descriptor.frame.segment).or_default().add(&descriptor);
                    let expected = counted.references.get(chunk.0);
                    found += u64::from(expected > 0);
                    if expected != descriptor.references {
                        problems.push(Problem::Inconsistent {
                            what: format!(
                                "chunk {chunk} has {} references noted and {expected} counted",
                                descriptor.references
                            ),
                        });
                    }
                    let expected = counted.bytes.get(chunk.0);
                    if expected != descriptor.referred_bytes {
                        problems.push(Problem::Inconsistent {
                            what: format!(
                                "chunk {chunk} has {} bytes noted as referred to, and {expected} are",
                                descriptor.referred_bytes
                            ),
                        });
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    problems.push(Problem::Inconsistent { what: format!("chunk {chunk}: {error}") });
                }
            }
            ControlFlow::Continue(())
        })?;
        if found != counted.references.noted() {
            let missing = counted.references.noted() - found;
            problems.push(Problem::Inconsistent {
                what: format!("{missing} chunks are referred to but missing"),
            });
        }
        report.problems.extend(problems);
        Ok(shares)
    }

    fn check_segments(
        &self,
        shares: &BTreeMap<SegmentId, Share>,
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
                    if !self.knows_policy(segment.policy) {
                        let what = format!("segment {id} follows policy {}, which is none", segment.policy);
                        problems.push(Problem::Inconsistent { what });
                    }
                    let expected =
                        shares.get(&id).map_or((0, 0), |share| (share.live_bytes, share.forsaken_bytes));
                    let noted = (segment.live_bytes, segment.forsaken_bytes);
                    if noted != expected {
                        problems.push(Problem::Inconsistent {
                            what: format!(
                                "segment {id} notes {} live bytes, {} of them forsaken, and holds {} and {}",
                                noted.0, noted.1, expected.0, expected.1
                            ),
                        });
                    }
                }
                Err(error) => problems.push(Problem::Inconsistent { what: format!("segment {id}: {error}") }),
            }
            ControlFlow::Continue(())
        })?;
        for id in shares.keys().filter(|id| !known.contains(id)) {
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

fn chunk_of(key: &[u8]) -> ChunkId {
    ChunkId(key.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}
