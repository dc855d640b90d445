//! Bytes of files that so far stand only in the log.
//!
//! A piece is known by the write that brought it, and by its part of that write. Where pieces overlap the
//! later part holds, so what is left behind a hole in a piece keeps the piece's place among the others.

use super::Work;
use crate::StoreError;
use aegisfs_base::{InodeId, Sequence};
use aegisfs_format::key::{self, Table};
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

    /// Takes a range out of the pending bytes that are not newer than a sequence.
    pub(super) fn trim_pending(
        &mut self,
        inode: InodeId,
        from: u64,
        to: u64,
        up_to: Sequence,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let first = key::pending(self.head.branch, inode, Sequence(0), 0);
        let end = key::pending(self.head.branch, inode, up_to, u32::MAX);
        let mut touched = Vec::new();
        let mut unreadable = None;
        self.tables.scan(Table::Pending, &first, Some(&end), &mut |key, stored| {
            match value::decode_pending(stored) {
                Ok((offset, bytes)) if offset < to && from < offset.saturating_add(bytes.len() as u64) => {
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
            self.trim_piece(&key, offset, &bytes, from, to)?;
        }
        Ok(())
    }

    /// Takes a range out of a piece.
    fn trim_piece(
        &mut self,
        key: &[u8],
        offset: u64,
        bytes: &[u8],
        from: u64,
        to: u64,
    ) -> Result<(), StoreError> {
        let has_head = offset < from;
        if has_head {
            let head = &bytes[..(from - offset) as usize];
            self.tables.put(Table::Pending, key, value::encode_pending(offset, head));
        } else {
            self.tables.delete(Table::Pending, key);
        }
        if to < offset + bytes.len() as u64 {
            let tail = &bytes[(to - offset) as usize..];
            let key = if has_head { self.key_behind(key)? } else { key.to_vec() };
            self.tables.put(Table::Pending, &key, value::encode_pending(to, tail));
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
