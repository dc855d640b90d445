//! Orphans: what takes room although nothing refers to it. Only a bug or an interrupted operation leaves any.
//!
//! A sweep looks for them while others read and write. What is in flight is none: open segments and rows on their way,
//! slots that wait for a checkpoint or are being discarded, chunks that no change has told of yet, files that somebody
//! has open, and what the reaper is going to get to. Whatever looks like an orphan is looked at twice, and again, under
//! the locks that its owners would take, before it is cleaned.
//!
//! | kind | how it comes about | cleaned by |
//! |---|---|---|
//! | slot | a segment was not opened after all, and its slot was not given back | giving it back with the next checkpoint |
//! | mapped slot | the superblock that maps it reached some devices at most | nobody: the next opening knows |
//! | segment | it could not be sealed, or lost its last chunk unnoticed | sealing it, with which it goes if nothing lives in it |
//! | inode | the reaper was not told of it, or failed | reaping it |
//! | chunk | cannot: the change that drops the last reference removes the chunk | nobody: counts are wrong, which is damage |
//!
//! Nothing on the devices tells how old an orphan is. It is as old as the sweep of this mount that saw it first, as
//! long as every sweep since has seen it too. Times are kept in memory, for [`SEEN_MAX`] orphans; others never age.
//!
//! Memory: one bit for each slot, one for each of [`CHUNKS_PER_PASS`] chunks (beyond that many chunk numbers the extents
//! are read once more for each further so many), and [`LISTED_MAX`] orphans of a kind; of more only some are named, and
//! the rest is found when those are gone.

mod find;

use crate::StoreError;
use crate::store::Store;
use aegisfs_base::{BranchId, ChunkId, InodeId, SegmentId, Timestamp};
use aegisfs_format::op::Op;
use aegisfs_pool::Placement;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// Orphans whose age is known.
const SEEN_MAX: usize = 4096;
/// Orphans of a kind that one sweep names.
const LISTED_MAX: usize = 1024;
/// Chunk numbers that are looked at in one pass over the extents.
const CHUNKS_PER_PASS: u64 = 1 << 26;
/// A slot that is being mapped looks like an orphan for a moment; one that does so for this long is one.
const MAPPING_MAX: Duration = Duration::from_secs(60);

/// Something that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Orphan {
    /// A slot that was taken for a segment.
    Slot(Placement),
    /// A slot that was taken for a database or the log.
    MappedSlot(Placement),
    /// A segment that nobody appends to and that is not sealed, or that is sealed and holds nothing.
    Segment(SegmentId),
    /// A file or directory without a name.
    Inode(InodeId),
    /// A chunk.
    Chunk(ChunkId),
}

/// Of what kind an orphan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrphanKind {
    /// [`Orphan::Slot`].
    Slot,
    /// [`Orphan::MappedSlot`].
    MappedSlot,
    /// [`Orphan::Segment`].
    Segment,
    /// [`Orphan::Inode`].
    Inode,
    /// [`Orphan::Chunk`].
    Chunk,
}

impl OrphanKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Slot, Self::MappedSlot, Self::Segment, Self::Inode, Self::Chunk];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::MappedSlot => "mapped slot",
            Self::Segment => "segment",
            Self::Inode => "inode",
            Self::Chunk => "chunk",
        }
    }

    /// Why cleaning leaves it alone, if it does.
    pub const fn kept_because(self) -> Option<&'static str> {
        match self {
            Self::Slot | Self::Segment | Self::Inode => None,
            Self::MappedSlot => Some("it is given back by the next mount"),
            Self::Chunk => Some("this is damage; unmount and run aegisfs check"),
        }
    }
}

impl Orphan {
    /// Of what kind it is.
    pub const fn kind(self) -> OrphanKind {
        match self {
            Self::Slot(_) => OrphanKind::Slot,
            Self::MappedSlot(_) => OrphanKind::MappedSlot,
            Self::Segment(_) => OrphanKind::Segment,
            Self::Inode(_) => OrphanKind::Inode,
            Self::Chunk(_) => OrphanKind::Chunk,
        }
    }
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slot((device, slot)) | Self::MappedSlot((device, slot)) => {
                write!(f, "{slot} of device {device}")
            }
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Inode(inode) => write!(f, "{inode}"),
            Self::Chunk(chunk) => write!(f, "{chunk}"),
        }
    }
}

/// An orphan that a sweep has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrphanFound {
    /// What it is.
    pub orphan: Orphan,
    /// Bytes that it takes: on the devices, but of an inode those that its references cover.
    pub bytes: u64,
    /// When a sweep of this mount saw it first.
    pub first_seen: Timestamp,
    /// How long ago that was.
    pub age: Duration,
}

/// What a sweep has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrphanReport {
    /// Orphans, by kind.
    pub found: Vec<OrphanFound>,
    /// There are more of some kind than are named.
    pub more: bool,
}

/// What cleaning did with orphans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrphansCleaned {
    /// Those that are gone; or that would be, if nothing was to be done.
    pub cleaned: Vec<OrphanFound>,
    /// Those that are too young.
    pub young: u64,
    /// Those that are left alone whatever their age.
    pub kept: u64,
    /// Those that somebody turned out to have use for when they were looked at again.
    pub spared: u64,
}

/// What is remembered of orphans between sweeps.
#[derive(Debug, Default)]
pub(crate) struct OrphanBook {
    /// One sweep at a time; when the orphans that are left were seen first.
    seen: Mutex<BTreeMap<Orphan, FirstSeen>>,
}

#[derive(Clone, Copy, Debug)]
struct FirstSeen {
    time: Timestamp,
    elapsed: Duration,
}

impl Store {
    /// Looks for orphans; changes nothing.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn find_orphans(&self) -> Result<OrphanReport, StoreError> {
        let mut seen = self.orphans.seen.lock();
        self.sweep(&Watch::begin(self, &|_| ControlFlow::Continue(())), &mut seen)
    }

    /// Looks for orphans, and cleans those that a sweep of this mount saw first at least so long ago; or says which it
    /// would clean. Their room is free when this returns.
    ///
    /// # Errors
    /// When the metadata or a device fails, or nothing may be written.
    pub fn clean_orphans(&self, older_than: Duration, dry_run: bool) -> Result<OrphansCleaned, StoreError> {
        self.clean_orphans_at(older_than, dry_run, &|_| ControlFlow::Continue(()))
    }

    /// The same at some pace.
    ///
    /// # Errors
    /// As [`Store::clean_orphans`], and when it is told to stop before it is done.
    pub(crate) fn clean_orphans_at(
        &self,
        older_than: Duration,
        dry_run: bool,
        pace: &Pace<'_>,
    ) -> Result<OrphansCleaned, StoreError> {
        self.check_writable()?;
        let mut seen = self.orphans.seen.lock();
        let watch = Watch::begin(self, pace);
        let report = self.sweep(&watch, &mut seen)?;
        let mut done = OrphansCleaned::default();
        let mut chosen = Vec::new();
        for found in report.found {
            match (found.orphan.kind().kept_because(), found.age >= older_than) {
                (Some(_), _) => done.kept += 1,
                (None, false) => done.young += 1,
                (None, true) => chosen.push(found),
            }
        }
        if dry_run {
            done.cleaned = chosen;
            return Ok(done);
        }
        let held = self.segments_with_chunks(&watch, &chosen)?;
        for found in chosen {
            if self.clean_orphan(found.orphan, &held)? {
                tracing::warn!(kind = found.orphan.kind().name(), place = %found.orphan, bytes = found.bytes, "an orphan was cleaned");
                seen.remove(&found.orphan);
                done.cleaned.push(found);
            } else {
                done.spared += 1;
            }
        }
        drop(watch);
        if !done.cleaned.is_empty() {
            self.checkpoint()?;
        }
        Ok(done)
    }

    /// Cleans an orphan, unless it is none by now. Says whether it is gone.
    fn clean_orphan(&self, orphan: Orphan, held: &BTreeSet<SegmentId>) -> Result<bool, StoreError> {
        match orphan {
            // Whoever took it or gave it back since the sweep began has cleared it.
            Orphan::Slot(place) => Ok(self.release_unowned(&[place]) == 1),
            Orphan::Segment(segment) => self.seal_forgotten(segment, held),
            Orphan::Inode(inode) => {
                // Held or taken up again, it stays.
                self.reap(inode)
            }
            Orphan::MappedSlot(_) | Orphan::Chunk(_) => Ok(false),
        }
    }

    /// Seals a segment that nobody appends to any more; with nothing in it, it goes. One whose account says that nothing
    /// is in it, although chunks say so, is left to a check.
    fn seal_forgotten(&self, segment: SegmentId, held: &BTreeSet<SegmentId>) -> Result<bool, StoreError> {
        let rows = self.with_segment_forgotten(segment, |value| {
            let is_empty = value.live_bytes == 0;
            (!is_empty || !held.contains(&segment)).then_some(value.rows)
        })?;
        let Some(rows) = rows.flatten() else { return Ok(false) };
        // Nobody appends to it again, so nothing can come between.
        self.commit(BranchId(0), vec![Op::SealSegment { segment, rows, end: 0 }], Vec::new())?;
        Ok(true)
    }

    fn sweep(
        &self,
        watch: &Watch<'_>,
        seen: &mut BTreeMap<Orphan, FirstSeen>,
    ) -> Result<OrphanReport, StoreError> {
        let (mut found, more) = self.look_for_orphans(watch)?;
        let now = FirstSeen { time: self.clock.now(), elapsed: self.clock.elapsed() };
        let before = std::mem::take(seen);
        let mut report = OrphanReport { found: Vec::new(), more };
        found.sort_unstable();
        for (orphan, bytes) in found {
            let first = before.get(&orphan).copied().unwrap_or(now);
            if seen.len() < SEEN_MAX {
                seen.insert(orphan, first);
            }
            let age = now.elapsed.saturating_sub(first.elapsed);
            if orphan.kind() == OrphanKind::MappedSlot && age < MAPPING_MAX {
                continue;
            }
            report.found.push(OrphanFound { orphan, bytes, first_seen: first.time, age });
        }
        Ok(report)
    }
}

/// Told after each step of a sweep how long it took; says whether to go on, and takes its time.
type Pace<'a> = dyn Fn(Duration) -> ControlFlow<()> + 'a;

/// While it lives, slots that change are known not to be orphans.
struct Watch<'s> {
    store: &'s Store,
    pace: &'s Pace<'s>,
}

impl<'s> Watch<'s> {
    fn begin(store: &'s Store, pace: &'s Pace<'s>) -> Self {
        // Of every slot that is taken for a segment now the metadata tells already.
        store.without_opening(|| store.pool.suspect_slots());
        Self { store, pace }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.store.pool.forget_suspects();
    }
}
