//! References to chunks, counted: which chunks are born and die with them, and the segments' accounts.
//!
//! Whatever a change does is gathered here and settled once at its end, so that a chunk or segment that
//! loses something and gains something in the same change is never taken for dead in between.

use super::Effects;
use crate::StoreError;
use crate::tables::{Tables, TablesMut};
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{ChunkId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState};
use std::collections::BTreeMap;

/// Chunks touched by a change.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Descriptors as the change leaves them, with whether they are new.
    chunks: BTreeMap<ChunkId, (Descriptor, bool)>,
    /// What becomes of segments.
    segments: BTreeMap<SegmentId, Account>,
}

/// What a change does to a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Charged bytes that die in it.
    died: u64,
    /// Charged bytes that are written to it and live on.
    born: u64,
    /// Charged bytes that are written to it.
    written: u64,
    /// The rows it ends with, when it is sealed.
    sealed: Option<u32>,
}

impl References {
    /// Describes a new chunk, to which nothing refers yet.
    pub(crate) fn describe(&mut self, chunk: ChunkId, descriptor: &Descriptor) {
        self.chunks.insert(chunk, (Descriptor { references: 0, ..*descriptor }, true));
    }

    /// Counts a reference that is born.
    ///
    /// # Errors
    /// [`StoreError::StaleChunk`] when the chunk is gone.
    pub(crate) fn add(&mut self, tables: &dyn Tables, chunk: ChunkId) -> Result<(), StoreError> {
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
        Ok(())
    }

    /// Counts a reference that has died.
    ///
    /// # Errors
    /// When the chunk has no reference that could die.
    pub(crate) fn drop_one(&mut self, tables: &dyn Tables, chunk: ChunkId) -> Result<(), StoreError> {
        let left = match self.touch(tables, chunk)? {
            Some(descriptor) => descriptor.references.checked_sub(1).map(|left| (descriptor, left)),
            None => None,
        };
        let (descriptor, left) = left.ok_or_else(|| StoreError::Inconsistent {
            what: format!("chunk {chunk} loses a reference that it does not have"),
        })?;
        descriptor.references = left;
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
        if (descriptor.frame.segment, descriptor.frame.slot_offset) != from {
            return Ok(());
        }
        let before = u64::from(descriptor.charged_bytes);
        let left = descriptor.frame.segment;
        *descriptor = Descriptor { references: descriptor.references, ..*to };
        self.segments.entry(left).or_default().died += before;
        self.segments.entry(to.frame.segment).or_default().born += charged;
        Ok(())
    }

    fn touch(&mut self, tables: &dyn Tables, chunk: ChunkId) -> Result<Option<&mut Descriptor>, StoreError> {
        use std::collections::btree_map::Entry;
        let (descriptor, _) = match self.chunks.entry(chunk) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let Some(stored) = tables.get(Table::Chunks, &key::chunk(chunk))? else { return Ok(None) };
                let Some(descriptor) = Descriptor::decode(&stored)? else { return Ok(None) };
                place.insert((descriptor, false))
            }
        };
        Ok(Some(descriptor))
    }

    /// Seals a segment.
    pub(crate) fn seal(&mut self, segment: SegmentId, rows: u32) {
        self.segments.entry(segment).or_default().sealed = Some(rows);
    }

    /// Writes the touched descriptors and segments back. What nothing refers to goes, and a sealed segment
    /// with nothing live in it goes as well.
    ///
    /// # Errors
    /// When an account does not fit what is taken from it.
    pub(crate) fn settle(self, tables: &mut dyn TablesMut, effects: &mut Effects) -> Result<(), StoreError> {
        let Self { chunks, mut segments } = self;
        for (chunk, (descriptor, new)) in chunks {
            let key = key::chunk(chunk);
            let charged = u64::from(descriptor.charged_bytes);
            let alive = descriptor.references > 0;
            if new {
                // A new chunk that nothing refers to was written in vain; its bytes are dead on arrival.
                let account = segments.entry(descriptor.frame.segment).or_default();
                account.written += charged;
                account.born += if alive { charged } else { 0 };
            }
            match (alive, new) {
                (true, true) => effects.born.push((chunk, descriptor.hash)),
                (false, false) => {
                    segments.entry(descriptor.frame.segment).or_default().died += charged;
                    effects.died.push((chunk, descriptor.hash));
                    tables.delete(Table::Chunks, &key);
                }
                (true, false) | (false, true) => {}
            }
            if alive {
                tables.put(Table::Chunks, &key, descriptor.encode().to_vec());
            }
        }
        for (segment, account) in segments {
            account.settle(segment, tables, effects)?;
        }
        Ok(())
    }
}

impl Account {
    fn settle(
        self,
        segment: SegmentId,
        tables: &mut dyn TablesMut,
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        let key = key::segment(segment);
        let stored = tables
            .get(Table::Segments, &key)?
            .ok_or_else(|| StoreError::Inconsistent { what: format!("segment {segment} is missing") })?;
        let mut value = Segment::decode(&stored)?;
        let live = value.live_bytes.saturating_add(self.born).checked_sub(self.died);
        value.live_bytes = live.ok_or_else(|| StoreError::Inconsistent {
            what: format!("segment {segment} holds less live data than dies in it"),
        })?;
        value.written_bytes = value.written_bytes.saturating_add(self.written);
        if let Some(rows) = self.sealed {
            value.state = SegmentState::Sealed;
            value.rows = rows;
        }
        if value.state == SegmentState::Sealed && value.live_bytes == 0 {
            tables.delete(Table::Segments, &key);
            effects.freed.push((segment, value));
        } else {
            tables.put(Table::Segments, &key, value.encode());
        }
        Ok(())
    }
}
