//! Bytes of files that so far stand only in the log.
//!
//! A piece is known by the write that brought it, and by its part of that write. Where pieces overlap the
//! later part holds, so what is left behind a hole in a piece keeps the piece's place among the others.

use super::Work;
use crate::StoreError;
use aegisfs_base::{InodeId, Sequence};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value;
use std::ops::ControlFlow;

/// Between the parts of a write there is room for what trimming may cut each of them into. A record holds
/// at most [`LOG_PAYLOAD_BYTES_MAX`](aegisfs_base::limits::LOG_PAYLOAD_BYTES_MAX) bytes, hence no part can
/// fall into more pieces. Changing it is a format change.
const PIECES_PER_PART: u32 = 1 << 16;

impl Work<'_> {
    /// Puts a piece behind all that this transaction has put so far for the inode.
    pub(super) fn put_pending(
        &mut self,
        inode: InodeId,
        sequence: Sequence,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let first = key::pending(self.head.branch, inode, sequence, 0);
        let mut last = None;
        self.tables.scan_prefix(Table::Pending, &first[..20], &mut |key, _| {
            last = key::split_pending(key).ok();
            ControlFlow::Continue(())
        })?;
        let part =
            last.map_or(Some(0), |(_, _, part)| (part / PIECES_PER_PART + 1).checked_mul(PIECES_PER_PART));
        let part = part.ok_or_else(|| StoreError::Inconsistent {
            what: format!("transaction {sequence} brings too many pieces of inode {inode}"),
        })?;
        let key = key::pending(self.head.branch, inode, sequence, part);
        self.tables.put(Table::Pending, &key, value::encode_pending(offset, bytes));
        Ok(())
    }

    /// Takes what the first operations replace in an inode out of its pending bytes, but for those that are newer than
    /// they say. One look at these serves all operations that say the same; returned is how many that are.
    pub(super) fn trim_pending(&mut self, ops: &[Op]) -> Result<usize, StoreError> {
        let Some(&Op::Replace { inode, pending_up_to: up_to, .. }) = ops.first() else { return Ok(0) };
        let mut ranges = Vec::new();
        for op in ops {
            match op {
                Op::Replace { inode: other, from, to, pending_up_to, .. }
                    if (*other, *pending_up_to) == (inode, up_to)
                        && ranges.last().is_none_or(|(_, end)| end <= from) =>
                {
                    ranges.push((*from, *to.max(from)));
                }
                _ => break,
            }
        }
        let count = ranges.len();
        ranges.retain(|(from, to)| from < to);
        if ranges.is_empty() {
            return Ok(count);
        }
        let first = key::pending(self.head.branch, inode, Sequence(0), 0);
        let end = key::pending(self.head.branch, inode, up_to, u32::MAX);
        let mut touched = Vec::new();
        let mut unreadable = None;
        self.tables.scan(Table::Pending, &first, Some(&end), &mut |key, stored| {
            match value::decode_pending(stored) {
                Ok((offset, bytes)) if !within(&ranges, offset, bytes.len()).is_empty() => {
                    touched.push((key.to_vec(), offset, bytes.to_vec()));
                }
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = unreadable {
            return Err(error.into());
        }
        for (key, offset, bytes) in touched {
            self.trim_piece(key, offset, &bytes, within(&ranges, offset, bytes.len()))?;
        }
        Ok(count)
    }

    /// Takes ranges out of a piece, each of which has some of it.
    fn trim_piece(
        &mut self,
        key: Vec<u8>,
        offset: u64,
        bytes: &[u8],
        ranges: &[(u64, u64)],
    ) -> Result<(), StoreError> {
        let end = offset + bytes.len() as u64;
        let starts = std::iter::once(offset).chain(ranges.iter().map(|(_, to)| *to));
        let ends = ranges.iter().map(|(from, _)| *from).chain([end]);
        let mut key = Some(key);
        let mut behind = Vec::new();
        for (from, to) in starts.zip(ends).filter(|(from, to)| from < to) {
            let place = match key.take() {
                Some(own) => own,
                None => self.key_behind(&behind)?,
            };
            let left = &bytes[(from - offset) as usize..(to - offset) as usize];
            self.tables.put(Table::Pending, &place, value::encode_pending(from, left));
            behind = place;
        }
        if let Some(own) = key {
            self.tables.delete(Table::Pending, &own);
        }
        Ok(())
    }

    /// The next free key behind a piece, before the next part of the same write.
    fn key_behind(&self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (inode, sequence, part) = key::split_pending(key)?;
        for piece in part + 1..(part / PIECES_PER_PART + 1) * PIECES_PER_PART {
            let key = key::pending(self.head.branch, inode, sequence, piece);
            if self.tables.get(Table::Pending, &key)?.is_none() {
                return Ok(key.to_vec());
            }
        }
        let what = format!("a piece of inode {inode} was cut into more pieces than it has bytes");
        Err(StoreError::Inconsistent { what })
    }
}

/// Those of ascending ranges that have some of a piece.
fn within(ranges: &[(u64, u64)], offset: u64, length: usize) -> &[(u64, u64)] {
    let end = offset.saturating_add(length as u64);
    let first = ranges.partition_point(|(_, to)| *to <= offset);
    let count = ranges[first..].partition_point(|(from, _)| *from < end);
    &ranges[first..first + count]
}
