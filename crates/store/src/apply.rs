//! The one function that changes metadata: live writes and recovery both go through it.
//!
//! A transaction's operations are evaluated against the tables as they are. Whatever follows from them is
//! decided here and nowhere else: which references die, which counts fall, which chunks and segments go with them.

mod extents;

use crate::StoreError;
use crate::tables::{Tables, TablesMut};
use crate::versions::{self, Head};
use aegisfs_base::{ChunkId, InodeId, SegmentId, Sequence};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{Op, Transaction};
use aegisfs_format::value::{self, Segment, SegmentState};
use std::collections::BTreeMap;

/// What followed from a transaction, for whoever keeps derived state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Chunks that are new and referred to.
    pub born: Vec<(ChunkId, [u8; 32])>,
    /// Chunks whose last reference is gone.
    pub died: Vec<(ChunkId, [u8; 32])>,
    /// Segments with nothing live left in them.
    pub freed: Vec<(SegmentId, Segment)>,
    /// By how much the bytes that references cover have changed, by inode.
    pub allocated: BTreeMap<InodeId, i64>,
}

/// Applies a transaction. On an error the tables may have been changed in part: the caller drops them.
///
/// # Errors
/// When the tables cannot be read, or the transaction does not fit them.
pub fn apply(tables: &mut dyn TablesMut, transaction: &Transaction) -> Result<Effects, StoreError> {
    let head = Head::of_branch(tables, transaction.branch)?;
    if head.epoch != transaction.epoch {
        let what = format!(
            "transaction {} is of epoch {}, but branch {} is at {}",
            transaction.sequence, transaction.epoch, head.branch, head.epoch
        );
        return Err(StoreError::Inconsistent { what });
    }
    let mut work = Work { tables, head, effects: Effects::default(), chunks: BTreeMap::new() };
    for op in &transaction.ops {
        work.apply_op(op, transaction.sequence)?;
    }
    work.settle_chunks()?;
    Ok(work.effects)
}

/// A transaction being applied.
struct Work<'a> {
    tables: &'a mut dyn TablesMut,
    head: Head,
    effects: Effects,
    /// Descriptors touched so far, with whether they are new; counts are settled at the end.
    chunks: BTreeMap<ChunkId, (Descriptor, bool)>,
}

impl Work<'_> {
    fn apply_op(&mut self, op: &Op, sequence: Sequence) -> Result<(), StoreError> {
        match op {
            Op::Put { table, key, value } => self.tables.put(*table, key, value.clone()),
            Op::Delete { table, key } => self.tables.delete(*table, key),
            Op::PutVersion { table, stem, value } => {
                versions::put_version(self.tables, &self.head, *table, stem, value.clone())?;
                self.note_change(*table, stem)?;
            }
            Op::RemoveVersion { table, stem } => {
                versions::remove_version(self.tables, &self.head, *table, stem)?;
                self.note_change(*table, stem)?;
            }
            Op::NewChunk { chunk, descriptor } => {
                self.chunks.insert(*chunk, (Descriptor { references: 0, ..*descriptor }, true));
            }
            Op::Replace { inode, from, to, pending_up_to, references } => {
                self.trim_pending(*inode, *from, *to, *pending_up_to)?;
                self.replace(*inode, *from, *to, references)?;
            }
            Op::Pending { inode, offset, bytes } => {
                let key = self.next_pending_key(*inode, sequence)?;
                self.tables.put(Table::Pending, &key, value::encode_pending(*offset, bytes));
            }
            Op::SealSegment { segment, rows } => self.seal(*segment, *rows)?,
        }
        Ok(())
    }

    /// Remembers which inodes changed since the last snapshot, once there is one.
    fn note_change(&mut self, table: Table, stem: &[u8]) -> Result<(), StoreError> {
        if table == Table::Inode && self.head.pinned.is_some() {
            let key = key::changed(self.head.epoch, key::stem_inode(stem)?);
            self.tables.put(Table::Changed, &key, value::wrap(&[]));
        }
        Ok(())
    }

    /// A key behind all pending bytes that this transaction has put so far for the inode.
    fn next_pending_key(&self, inode: InodeId, sequence: Sequence) -> Result<[u8; 24], StoreError> {
        let first = key::pending(self.head.branch, inode, sequence, 0);
        let mut part = 0;
        self.tables.scan_prefix(Table::Pending, &first[..20], &mut |_, _| {
            part += 1;
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(key::pending(self.head.branch, inode, sequence, part))
    }

    /// Takes a range out of the pending bytes that are not newer than a sequence.
    fn trim_pending(
        &mut self,
        inode: InodeId,
        from: u64,
        to: u64,
        up_to: Sequence,
    ) -> Result<(), StoreError> {
        let prefix = key::pending(self.head.branch, inode, Sequence(0), 0);
        let mut touched = Vec::new();
        self.tables.scan_prefix(Table::Pending, &prefix[..12], &mut |key, value| {
            touched.push((key.to_vec(), value.to_vec()));
            std::ops::ControlFlow::Continue(())
        })?;
        for (key, stored) in touched {
            let (_, sequence, part) = key::split_pending(&key)?;
            let (offset, bytes) = value::decode_pending(&stored)?;
            let end = offset + bytes.len() as u64;
            if sequence > up_to || end <= from || to <= offset {
                continue;
            }
            self.tables.delete(Table::Pending, &key);
            if offset < from {
                let head = &bytes[..(from - offset) as usize];
                self.tables.put(Table::Pending, &key, value::encode_pending(offset, head));
            }
            if to < end {
                let tail = &bytes[(to - offset) as usize..];
                // The tail needs a key of its own when the head took the old one; the order among
                // pieces of one write does not matter, because they do not overlap.
                let tail_part = if offset < from { part | 1 << 31 } else { part };
                let tail_key = key::pending(self.head.branch, inode, sequence, tail_part);
                let tail_key = self.free_pending_key(tail_key)?;
                self.tables.put(Table::Pending, &tail_key, value::encode_pending(to, tail));
            }
        }
        Ok(())
    }

    /// The key itself, or the next one of the same write that nothing stands under.
    fn free_pending_key(&self, mut key: [u8; 24]) -> Result<[u8; 24], StoreError> {
        while self.tables.get(Table::Pending, &key)?.is_some() {
            let (inode, sequence, part) = key::split_pending(&key)?;
            key = key::pending(self.head.branch, inode, sequence, part + 1);
        }
        Ok(key)
    }

    /// Counts references up or down.
    fn count(&mut self, chunk: ChunkId, born: bool) -> Result<(), StoreError> {
        if !self.chunks.contains_key(&chunk) {
            let stored = self.tables.get(Table::Chunks, &key::chunk(chunk))?;
            let stored = stored.ok_or(StoreError::StaleChunk { chunk })?;
            let descriptor = Descriptor::decode(&stored)?.ok_or(StoreError::StaleChunk { chunk })?;
            self.chunks.insert(chunk, (descriptor, false));
        }
        let (descriptor, _) = self.chunks.get_mut(&chunk).expect("it was just put there");
        let references = if born {
            descriptor.references.checked_add(1)
        } else {
            descriptor.references.checked_sub(1)
        };
        descriptor.references = references.ok_or_else(|| StoreError::Inconsistent {
            what: format!("chunk {chunk} has {} references and loses or gains one", descriptor.references),
        })?;
        Ok(())
    }

    /// Writes the touched descriptors back; what nothing refers to goes, and its bytes leave its segment.
    fn settle_chunks(&mut self) -> Result<(), StoreError> {
        for (chunk, (descriptor, new)) in std::mem::take(&mut self.chunks) {
            let key = key::chunk(chunk);
            let charged = i64::from(descriptor.charged_bytes);
            if descriptor.references == 0 {
                self.tables.delete(Table::Chunks, &key);
                // A new chunk that nothing refers to was written in vain; its bytes are dead on arrival.
                if !new {
                    self.effects.died.push((chunk, descriptor.hash));
                    self.charge(descriptor.frame.segment, -charged, 0)?;
                }
                continue;
            }
            if new {
                self.effects.born.push((chunk, descriptor.hash));
                self.charge(descriptor.frame.segment, charged, charged)?;
            }
            self.tables.put(Table::Chunks, &key, descriptor.encode().to_vec());
        }
        Ok(())
    }

    /// Changes a segment's account; a sealed one that has nothing live left goes.
    fn charge(&mut self, segment: SegmentId, live: i64, written: i64) -> Result<(), StoreError> {
        let mut value = self.segment(segment)?;
        let live = value.live_bytes.checked_add_signed(live);
        value.live_bytes = live.ok_or_else(|| StoreError::Inconsistent {
            what: format!("segment {segment} holds less live data than dies in it"),
        })?;
        value.written_bytes = value.written_bytes.saturating_add_signed(written);
        self.keep_or_free(segment, value);
        Ok(())
    }

    fn seal(&mut self, segment: SegmentId, rows: u32) -> Result<(), StoreError> {
        let mut value = self.segment(segment)?;
        value.state = SegmentState::Sealed;
        value.rows = rows;
        // Chunks of this very transaction still have to be charged.
        let pending = self.chunks.values().any(|(d, new)| *new && d.frame.segment == segment);
        if pending {
            self.tables.put(Table::Segments, &key::segment(segment), value.encode());
        } else {
            self.keep_or_free(segment, value);
        }
        Ok(())
    }

    fn segment(&self, segment: SegmentId) -> Result<Segment, StoreError> {
        let stored = self.tables.get(Table::Segments, &key::segment(segment))?;
        let stored = stored
            .ok_or_else(|| StoreError::Inconsistent { what: format!("segment {segment} is missing") })?;
        Ok(Segment::decode(&stored)?)
    }

    fn keep_or_free(&mut self, segment: SegmentId, value: Segment) {
        let key = key::segment(segment);
        if value.state == SegmentState::Sealed && value.live_bytes == 0 {
            self.tables.delete(Table::Segments, &key);
            self.effects.freed.push((segment, value));
        } else {
            self.tables.put(Table::Segments, &key, value.encode());
        }
    }
}
