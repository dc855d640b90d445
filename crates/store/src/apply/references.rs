//! References to chunks, counted: which chunks are born and die with them, and the segments' accounts.
//!
//! Whatever a change does is gathered here and settled once at its end, so that a chunk or segment that
//! loses something and gains something in the same change is never taken for dead in between.

use super::Effects;
use crate::StoreError;
use crate::tables::{Tables, TablesMut};
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{ChunkId, PolicyId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState};
use std::collections::BTreeMap;

/// Chunks touched by a change.
#[derive(Debug, Default)]
pub(crate) struct References {
    chunks: BTreeMap<ChunkId, Touched>,
    /// What becomes of segments.
    segments: BTreeMap<SegmentId, Account>,
}

/// A chunk touched by a change.
#[derive(Debug)]
struct Touched {
    /// Its descriptor as the change leaves it.
    now: Descriptor,
    /// What it was to its segment before; nothing if it is new.
    before: Option<Weight>,
}

/// What a chunk is to its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weight {
    segment: SegmentId,
    live_bytes: u64,
    forsaken_bytes: u64,
}

impl Weight {
    fn of(descriptor: &Descriptor) -> Self {
        Self {
            segment: descriptor.frame.segment,
            live_bytes: u64::from(descriptor.charged_bytes),
            forsaken_bytes: descriptor.forsaken_bytes(),
        }
    }
}

/// What a change does to a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Charged bytes that die in it, and those of them that nothing referred to.
    died: (u64, u64),
    /// Charged bytes that live in it from now on, and those of them that nothing refers to.
    born: (u64, u64),
    /// Charged bytes that are written to it.
    written: u64,
    /// The rows it ends with and where they end, when it is sealed.
    sealed: Option<(u32, u32)>,
}

impl References {
    /// Describes a new chunk, to which nothing refers yet.
    pub(crate) fn describe(&mut self, chunk: ChunkId, descriptor: &Descriptor) {
        let now = Descriptor { references: 0, referred_bytes: 0, ..*descriptor };
        self.chunks.insert(chunk, Touched { now, before: None });
    }

    /// Counts a reference to so many bytes that is born.
    ///
    /// # Errors
    /// [`StoreError::StaleChunk`] when the chunk is gone.
    pub(crate) fn add(&mut self, tables: &dyn Tables, chunk: ChunkId, bytes: u32) -> Result<(), StoreError> {
        let Some(descriptor) = self.touch(tables, chunk)? else {
            if removed(Edge::DedupHitRechecked) {
                return Ok(());
            }
            return Err(StoreError::StaleChunk { chunk });
        };
        let references = descriptor.references.checked_add(1);
        descriptor.references = references.ok_or_else(|| StoreError::Inconsistent {
            what: format!("chunk {chunk} has more references than can be counted"),
        })?;
        descriptor.referred_bytes += u64::from(bytes);
        Ok(())
    }

    /// Counts a reference to so many bytes that has died.
    ///
    /// # Errors
    /// When the chunk has no reference that could die.
    pub(crate) fn drop_one(
        &mut self,
        tables: &dyn Tables,
        chunk: ChunkId,
        bytes: u32,
    ) -> Result<(), StoreError> {
        let left = self.touch(tables, chunk)?.and_then(|descriptor| {
            let references = descriptor.references.checked_sub(1)?;
            let referred_bytes = descriptor.referred_bytes.checked_sub(u64::from(bytes))?;
            Some((descriptor, references, referred_bytes))
        });
        let (descriptor, references, referred_bytes) = left.ok_or_else(|| StoreError::Inconsistent {
            what: format!("chunk {chunk} loses a reference that it does not have"),
        })?;
        (descriptor.references, descriptor.referred_bytes) = (references, referred_bytes);
        Ok(())
    }

    /// Notes that a chunk lies elsewhere now. Where it is not at `from` any more, what was written is dead.
    ///
    /// # Errors
    /// When the chunk's descriptor cannot be read.
    pub(crate) fn relocate(
        &mut self,
        tables: &dyn Tables,
        chunk: ChunkId,
        from: (SegmentId, u32),
        to: &Descriptor,
    ) -> Result<(), StoreError> {
        let charged = u64::from(to.charged_bytes);
        self.segments.entry(to.frame.segment).or_default().written += charged;
        let Some(descriptor) = self.touch(tables, chunk)? else { return Ok(()) };
        let is_there = (descriptor.frame.segment, descriptor.frame.slot_offset) == from;
        if !is_there && !removed(Edge::MovedOnlyFromWhereItWas) {
            return Ok(());
        }
        let Descriptor { references, referred_bytes, .. } = *descriptor;
        *descriptor = Descriptor { references, referred_bytes, ..*to };
        Ok(())
    }

    fn touch(&mut self, tables: &dyn Tables, chunk: ChunkId) -> Result<Option<&mut Descriptor>, StoreError> {
        use std::collections::btree_map::Entry;
        let touched = match self.chunks.entry(chunk) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let Some(stored) = tables.get(Table::Chunks, &key::chunk(chunk))? else { return Ok(None) };
                let Some(descriptor) = Descriptor::decode(&stored)? else { return Ok(None) };
                place.insert(Touched { now: descriptor, before: Some(Weight::of(&descriptor)) })
            }
        };
        Ok(Some(&mut touched.now))
    }

    /// Seals a segment.
    pub(crate) fn seal(&mut self, segment: SegmentId, rows: u32, end: u32) {
        self.segments.entry(segment).or_default().sealed = Some((rows, end));
    }

    /// Writes the touched descriptors and segments back. What nothing refers to goes, and a sealed segment
    /// with nothing live in it goes as well.
    ///
    /// # Errors
    /// When an account does not fit what is taken from it.
    pub(crate) fn settle(self, tables: &mut dyn TablesMut, effects: &mut Effects) -> Result<(), StoreError> {
        let Self { chunks, mut segments } = self;
        let (mut born, mut died) = (Vec::new(), Vec::new());
        for (chunk, Touched { now: descriptor, before }) in chunks {
            let key = key::chunk(chunk);
            let weight = Weight::of(&descriptor);
            let alive = descriptor.references > 0;
            if before.is_none() {
                // A new chunk that nothing refers to was written in vain; its bytes are dead on arrival.
                segments.entry(weight.segment).or_default().written += weight.live_bytes;
            }
            let after = alive.then_some(weight);
            if before != after {
                if let Some(Weight { segment, live_bytes, forsaken_bytes }) = before {
                    let account = segments.entry(segment).or_default();
                    account.died = (account.died.0 + live_bytes, account.died.1 + forsaken_bytes);
                }
                if let Some(Weight { segment, live_bytes, forsaken_bytes }) = after {
                    let account = segments.entry(segment).or_default();
                    account.born = (account.born.0 + live_bytes, account.born.1 + forsaken_bytes);
                }
            }
            match (alive, before.is_none()) {
                (true, true) => born.push((chunk, descriptor)),
                (false, false) => {
                    died.push((chunk, descriptor));
                    tables.delete(Table::Chunks, &key);
                }
                (true, false) | (false, true) => {}
            }
            if alive {
                tables.put(Table::Chunks, &key, descriptor.encode().to_vec());
            }
        }
        let mut policies = BTreeMap::new();
        for (segment, account) in segments {
            policies.insert(segment, account.settle(segment, tables, effects)?);
        }
        // Whatever is born or dies is on its segment's account.
        let identity = |(chunk, descriptor): (ChunkId, Descriptor)| {
            let policy = policies.get(&descriptor.frame.segment).copied().unwrap_or_default();
            (chunk, descriptor.hash, policy)
        };
        effects.born.extend(born.into_iter().map(identity));
        effects.died.extend(died.into_iter().map(identity));
        Ok(())
    }
}

impl Account {
    /// Puts it into the segment. Says which policy that follows.
    fn settle(
        self,
        segment: SegmentId,
        tables: &mut dyn TablesMut,
        effects: &mut Effects,
    ) -> Result<PolicyId, StoreError> {
        let key = key::segment(segment);
        let stored = tables
            .get(Table::Segments, &key)?
            .ok_or_else(|| StoreError::Inconsistent { what: format!("segment {segment} is missing") })?;
        let mut value = Segment::decode(&stored)?;
        let settled = |bytes: u64, born: u64, died: u64| {
            bytes.saturating_add(born).checked_sub(died).ok_or_else(|| StoreError::Inconsistent {
                what: format!("segment {segment} holds less live data than dies in it"),
            })
        };
        value.live_bytes = settled(value.live_bytes, self.born.0, self.died.0)?;
        value.forsaken_bytes = settled(value.forsaken_bytes, self.born.1, self.died.1)?;
        value.written_bytes = value.written_bytes.saturating_add(self.written);
        if let Some((rows, end)) = self.sealed {
            value.state = SegmentState::Sealed;
            (value.rows, value.end) = (rows, end);
        }
        let policy = value.policy;
        if value.state == SegmentState::Sealed && value.live_bytes == 0 {
            tables.delete(Table::Segments, &key);
            effects.freed.push((segment, value));
        } else {
            tables.put(Table::Segments, &key, value.encode());
        }
        Ok(policy)
    }
}
