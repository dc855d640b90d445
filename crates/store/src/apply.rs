//! The one function that changes metadata: live writes and recovery both go through it.
//!
//! A transaction's operations are evaluated against the tables as they are. Whatever follows from them is
//! decided here and nowhere else: which references die, which counts fall, which chunks and segments go with them.

mod extents;
mod pending;
mod references;

pub(crate) use references::References;

use crate::StoreError;
use crate::tables::TablesMut;
use crate::versions::{self, Head};
use aegisfs_base::{ChunkId, InodeId, PolicyId, SegmentId, Sequence};
use aegisfs_format::op::{Op, Transaction};
use aegisfs_format::value::Segment;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What followed from a transaction, for whoever keeps derived state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Chunks that are new and referred to, their hashes, and the policies of their segments.
    pub born: Vec<(ChunkId, [u8; 32], PolicyId)>,
    /// The same of chunks whose last reference is gone.
    pub died: Vec<(ChunkId, [u8; 32], PolicyId)>,
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
    let head = tables.head(transaction.branch)?;
    if head.epoch != transaction.epoch {
        let what = format!(
            "transaction {} is of epoch {}, but branch {} is at {}",
            transaction.sequence, transaction.epoch, head.branch, head.epoch
        );
        return Err(StoreError::Inconsistent { what });
    }
    let mut work = Work { tables, head, effects: Effects::default(), references: References::default() };
    let mut trimmed = 0;
    for (number, op) in transaction.ops.iter().enumerate() {
        if number >= trimmed {
            trimmed = number + work.trim_pending(&transaction.ops[number..])?;
        }
        work.apply_op(op, transaction.sequence)?;
    }
    let Work { tables, mut effects, references, .. } = work;
    references.settle(tables, &mut effects)?;
    Ok(effects)
}

/// A transaction being applied.
struct Work<'a> {
    tables: &'a mut dyn TablesMut,
    head: Arc<Head>,
    effects: Effects,
    references: References,
}

impl Work<'_> {
    fn apply_op(&mut self, op: &Op, sequence: Sequence) -> Result<(), StoreError> {
        match op {
            Op::Put { table, key, value } => self.tables.put_copy(*table, key, value),
            Op::Delete { table, key } => self.tables.delete(*table, key),
            Op::PutVersion { table, stem, value } => {
                versions::put_version(self.tables, &self.head, *table, stem, value)?;
            }
            Op::RemoveVersion { table, stem } => {
                versions::remove_version(self.tables, &self.head, *table, stem)?;
            }
            Op::NewChunk { chunk, descriptor } => self.references.describe(*chunk, descriptor),
            // Pending bytes were trimmed before.
            Op::Replace { inode, from, to, references, .. } => {
                self.replace(*inode, *from, *to, references)?;
            }
            Op::Pending { inode, offset, bytes } => self.put_pending(*inode, sequence, *offset, bytes)?,
            Op::Repoint { inode, from, references } => self.repoint(*inode, from, references)?,
            Op::SealSegment { segment, rows, end } => self.references.seal(*segment, *rows, *end),
            Op::MoveChunk { chunk, from, descriptor } => {
                self.references.relocate(self.tables, *chunk, *from, descriptor)?;
            }
        }
        Ok(())
    }
}
