//! Operations: what a transaction of the intent log does to the metadata.
//!
//! They say what changes, not what the packed result is, so that the log stays small; the one apply function
//! of the store evaluates them, live and at recovery alike.

use crate::FormatError;
use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor};
use crate::key::Table;
use crate::wire::{Append, Reader};
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{BranchId, ChunkId, EpochId, InodeId, SegmentId, Sequence};
use std::ops::Range;

const WHAT: &str = "operation";

/// A run of a file and the chunk that now holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRef {
    /// Where the run begins in the file.
    pub offset: u64,
    /// Bytes of the run.
    pub length: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the run begins in the plain chunk.
    pub offset_in_chunk: u32,
}

/// One change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key of a table without versions.
    Put {
        /// The table.
        table: Table,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Removes a key of a table without versions.
    Delete {
        /// The table.
        table: Table,
        /// The key.
        key: Vec<u8>,
    },
    /// Sets a stem at the head of the branch.
    PutVersion {
        /// The table.
        table: Table,
        /// The key without its epoch.
        stem: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Removes a stem at the head of the branch.
    RemoveVersion {
        /// The table.
        table: Table,
        /// The key without its epoch.
        stem: Vec<u8>,
    },
    /// Describes a new chunk; references are counted by what follows.
    NewChunk {
        /// The chunk.
        chunk: ChunkId,
        /// Its descriptor, with no references.
        descriptor: Descriptor,
    },
    /// Replaces what a file's range refers to; no references make it a hole.
    Replace {
        /// The file.
        inode: InodeId,
        /// First byte of the range.
        from: u64,
        /// The byte after the range.
        to: u64,
        /// Pending bytes in the range up to this sequence are covered by it.
        pending_up_to: Sequence,
        /// The new references, in order, within the range.
        references: Vec<NewRef>,
    },
    /// Bytes of a file that so far stand only in the log.
    Pending {
        /// The file.
        inode: InodeId,
        /// Where they go.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A chunk lies elsewhere now. If it is gone, or no longer where it was, its new bytes are dead.
    MoveChunk {
        /// The chunk.
        chunk: ChunkId,
        /// Where it was: the segment, and where its frame begins in the slots.
        from: (SegmentId, u32),
        /// Its new descriptor, with no references.
        descriptor: Descriptor,
    },
    /// Other chunks hold the same bytes. What of the run refers to that part of the chunk still refers to them from now on;
    /// the rest of the run, and what a snapshot sees, stays as it is.
    Repoint {
        /// The file.
        inode: InodeId,
        /// The run, which lies in one window, and what it refers to.
        from: NewRef,
        /// What it is to refer to: the whole run, in order.
        references: Vec<NewRef>,
    },
    /// A segment takes no more rows.
    SealSegment {
        /// The segment.
        segment: SegmentId,
        /// Rows it has.
        rows: u32,
        /// Behind the last of them, from the start of its slots; 0 where nobody knows.
        end: u32,
    },
}

/// The operations that take effect together, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its place in the order of all changes.
    pub sequence: Sequence,
    /// The branch it writes to.
    pub branch: BranchId,
    /// The epoch of that branch at the time.
    pub epoch: EpochId,
    /// What changes.
    pub ops: Vec<Op>,
}

impl Op {
    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { table, key, value } => {
                out.extend_from_slice(&[1, *table as u8]);
                out.put_short_bytes(key);
                out.put_long_bytes(value);
            }
            Self::Delete { table, key } => {
                out.extend_from_slice(&[2, *table as u8]);
                out.put_short_bytes(key);
            }
            Self::PutVersion { table, stem, value } => {
                out.extend_from_slice(&[3, *table as u8]);
                out.put_short_bytes(stem);
                out.put_long_bytes(value);
            }
            Self::RemoveVersion { table, stem } => {
                out.extend_from_slice(&[4, *table as u8]);
                out.put_short_bytes(stem);
            }
            Self::NewChunk { chunk, descriptor } => {
                out.push(5);
                out.put_u64(chunk.0);
                out.extend_from_slice(&descriptor.encode());
            }
            Self::Replace { inode, from, to, pending_up_to, references } => {
                out.push(6);
                out.put_u64(inode.0);
                out.put_u64(*from);
                out.put_u64(*to);
                out.put_u64(pending_up_to.0);
                put_references(out, references);
            }
            Self::Pending { inode, offset, bytes } => {
                out.push(7);
                out.put_u64(inode.0);
                out.put_u64(*offset);
                out.put_long_bytes(bytes);
            }
            Self::SealSegment { segment, rows, end } => {
                out.push(8);
                out.put_u64(segment.0);
                out.put_u32(*rows);
                out.put_u32(*end);
            }
            Self::MoveChunk { chunk, from: (segment, slot_offset), descriptor } => {
                out.push(9);
                out.put_u64(chunk.0);
                out.put_u64(segment.0);
                out.put_u32(*slot_offset);
                out.extend_from_slice(&descriptor.encode());
            }
            Self::Repoint { inode, from, references } => {
                out.push(10);
                out.put_u64(inode.0);
                from.put(out);
                put_references(out, references);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let tag = reader.u8()?;
        Ok(match tag {
            1 | 3 => {
                let table = Table::from_raw(reader.u8()?)?;
                let key = reader.short_bytes()?.to_vec();
                let value = reader.long_bytes()?.to_vec();
                if tag == 1 {
                    Self::Put { table, key, value }
                } else {
                    Self::PutVersion { table, stem: key, value }
                }
            }
            2 | 4 => {
                let table = Table::from_raw(reader.u8()?)?;
                let key = reader.short_bytes()?.to_vec();
                if tag == 2 { Self::Delete { table, key } } else { Self::RemoveVersion { table, stem: key } }
            }
            5 => Self::NewChunk { chunk: ChunkId(reader.u64()?), descriptor: descriptor(reader)? },
            6 => Self::decode_replace(reader)?,
            7 => Self::Pending {
                inode: InodeId(reader.u64()?),
                offset: reader.u64()?,
                bytes: reader.long_bytes()?.to_vec(),
            },
            8 => Self::SealSegment {
                segment: SegmentId(reader.u64()?),
                rows: reader.u32()?,
                end: reader.u32()?,
            },
            9 => Self::MoveChunk {
                chunk: ChunkId(reader.u64()?),
                from: (SegmentId(reader.u64()?), reader.u32()?),
                descriptor: descriptor(reader)?,
            },
            10 => Self::decode_repoint(reader)?,
            other => {
                return Err(FormatError::Value { what: WHAT, field: "tag", value: u64::from(other) });
            }
        })
    }

    fn decode_replace(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let inode = InodeId(reader.u64()?);
        let (from, to) = (reader.u64()?, reader.u64()?);
        let pending_up_to = Sequence(reader.u64()?);
        let references = references(reader, from..to)?;
        Ok(Self::Replace { inode, from, to, pending_up_to, references })
    }

    fn decode_repoint(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let inode = InodeId(reader.u64()?);
        let from = NewRef::take(reader)?;
        let bad = |field, value| FormatError::Value { what: WHAT, field, value };
        let end = from.offset.checked_add(u64::from(from.length)).ok_or(bad("offset", from.offset))?;
        if from.length == 0 || from.offset / WINDOW_BYTES != (end - 1) / WINDOW_BYTES {
            return Err(bad("length", u64::from(from.length)));
        }
        let references = references(reader, from.offset..end)?;
        if references.iter().map(|reference| reference.length).sum::<u32>() != from.length {
            return Err(bad("references", references.len() as u64));
        }
        Ok(Self::Repoint { inode, from, references })
    }
}

impl NewRef {
    const BYTES: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u32(self.length);
        out.put_u64(self.chunk.0);
        out.put_u32(self.offset_in_chunk);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            offset: reader.u64()?,
            length: reader.u32()?,
            chunk: ChunkId(reader.u64()?),
            offset_in_chunk: reader.u32()?,
        })
    }
}

fn put_references(out: &mut Vec<u8>, references: &[NewRef]) {
    out.put_u32(u32::try_from(references.len()).expect("a record bounds them"));
    for reference in references {
        reference.put(out);
    }
}

/// References in order, within a range.
fn references(reader: &mut Reader<'_>, range: Range<u64>) -> Result<Vec<NewRef>, FormatError> {
    let count = reader.u32()? as usize;
    if count > reader.remaining() / NewRef::BYTES || range.start > range.end {
        return Err(FormatError::Value { what: WHAT, field: "references", value: count as u64 });
    }
    let mut references = Vec::with_capacity(count);
    let mut end = range.start;
    for _ in 0..count {
        let reference = NewRef::take(reader)?;
        let next = reference.offset.checked_add(u64::from(reference.length));
        let next = next.filter(|next| *next <= range.end);
        if reference.offset < end || reference.length == 0 || next.is_none() {
            return Err(FormatError::Value { what: WHAT, field: "offset", value: reference.offset });
        }
        end = next.unwrap_or(range.end);
        references.push(reference);
    }
    Ok(references)
}

fn descriptor(reader: &mut Reader<'_>) -> Result<Descriptor, FormatError> {
    Descriptor::decode(reader.take(DESCRIPTOR_BYTES)?)?.ok_or(FormatError::Value {
        what: WHAT,
        field: "descriptor",
        value: 0,
    })
}

impl Transaction {
    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.sequence.0);
        out.put_u32(self.branch.0);
        out.put_u64(self.epoch.0);
        out.put_u32(u32::try_from(self.ops.len()).expect("a record bounds them"));
        for op in &self.ops {
            op.encode(out);
        }
    }

    /// Reads all transactions of a record's body.
    ///
    /// # Errors
    /// When the body is cut short or holds something unknown.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, FormatError> {
        let mut reader = Reader::new("transaction", bytes);
        let mut transactions = Vec::new();
        while !reader.is_empty() {
            let sequence = Sequence(reader.u64()?);
            let branch = BranchId(reader.u32()?);
            let epoch = EpochId(reader.u64()?);
            let count = reader.u32()?;
            let mut ops = Vec::new();
            for _ in 0..count {
                ops.push(Op::decode(&mut reader)?);
            }
            transactions.push(Self { sequence, branch, epoch, ops });
        }
        reader.finish()?;
        Ok(transactions)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::descriptor::FramePlace;
    use aegisfs_base::RowIndex;

    pub(crate) fn sample() -> Vec<Transaction> {
        let descriptor = Descriptor {
            frame: FramePlace {
                segment: SegmentId(1),
                row: RowIndex(0),
                cell: 0,
                slot_offset: 4096,
                stored_bytes: 10,
                plain_bytes: 20,
                codec: 2,
                key_domain: 0,
            },
            offset_in_frame: 0,
            plain_bytes: 20,
            charged_bytes: 10,
            references: 0,
            referred_bytes: 0,
            damaged: false,
            hash: [3; 32],
        };
        let reference = NewRef { offset: 5, length: 20, chunk: ChunkId(4), offset_in_chunk: 0 };
        let ops = vec![
            Op::Put { table: Table::Config, key: b"k".to_vec(), value: b"v".to_vec() },
            Op::Delete { table: Table::Config, key: b"k".to_vec() },
            Op::PutVersion { table: Table::Inode, stem: vec![1; 8], value: vec![0; 129] },
            Op::RemoveVersion { table: Table::Dirent, stem: vec![1; 16] },
            Op::NewChunk { chunk: ChunkId(4), descriptor },
            Op::Replace {
                inode: InodeId(2),
                from: 5,
                to: 30,
                pending_up_to: Sequence(9),
                references: vec![reference],
            },
            Op::Pending { inode: InodeId(2), offset: 1, bytes: vec![7; 33] },
            Op::SealSegment { segment: SegmentId(1), rows: 3, end: 9000 },
            Op::MoveChunk { chunk: ChunkId(4), from: (SegmentId(9), 8192), descriptor },
            Op::Repoint { inode: InodeId(2), from: reference, references: vec![reference] },
        ];
        let transaction =
            |n, ops| Transaction { sequence: Sequence(n), branch: BranchId(0), epoch: EpochId(1), ops };
        vec![transaction(1, ops), transaction(2, vec![])]
    }

    #[test]
    fn transactions_round_trip_and_refuse_every_cut() {
        let mut bytes = Vec::new();
        for transaction in sample() {
            transaction.encode(&mut bytes);
        }
        assert_eq!(Transaction::decode_all(&bytes).unwrap(), sample());
        let whole_at = bytes.len() - 24;
        for length in 1..bytes.len() {
            assert_eq!(Transaction::decode_all(&bytes[..length]).is_ok(), length == whole_at, "{length}");
        }
    }

    #[test]
    fn references_must_be_in_order_and_in_range() {
        let reference = |offset, length| NewRef { offset, length, chunk: ChunkId(1), offset_in_chunk: 0 };
        let bad = [
            vec![reference(0, 5)],
            vec![reference(10, 11)],
            vec![reference(10, 0)],
            vec![reference(12, 2), reference(10, 2)],
            vec![reference(u64::MAX, 2)],
        ];
        for references in bad {
            let op =
                Op::Replace { inode: InodeId(1), from: 10, to: 20, pending_up_to: Sequence(0), references };
            let mut bytes = Vec::new();
            op.encode(&mut bytes);
            assert!(Op::decode(&mut Reader::new(WHAT, &bytes)).is_err());
        }
    }
}
