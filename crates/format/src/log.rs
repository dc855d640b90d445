//! Records of the intent log: one append each, a whole number of blocks.
//!
//! ```text
//! | header 160 | row dependencies | transactions | zeros to 4 KiB |
//! ```
//! A record continues its predecessor: it holds that record's checksum. `flushed` is the highest sequence
//! that was known durable when the record was written, which tells a torn tail from damage.

use crate::op::Transaction;
use crate::{FormatError, Sum128, sum128_of_parts};
use aegisfs_base::limits::{BLOCK_BYTES, LOG_RECORD_BYTES_MAX};
use aegisfs_base::{Incarnation, RowIndex, SegmentId, Sequence};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a log record.
pub const LOG_MAGIC: [u8; 8] = *b"AegisLog";

const WHAT: &str = "log record";
const HEADER_BYTES: usize = size_of::<LogRecordHeaderV1>();
const DEPENDENCY_BYTES: usize = size_of::<RowDependencyV1>();

on_disk! {
    /// Begins a log record.
    pub struct LogRecordHeaderV1 [160] {
        /// [`LOG_MAGIC`].
        magic: [u8; 8],
        /// Always 1.
        version: U16,
        /// Reserved, zero.
        reserved_version: U16,
        /// Bytes of the record, padding included.
        record_bytes: U32,
        /// Bytes of the transactions.
        body_bytes: U32,
        /// Rows that must be there for the record to count.
        dependencies: U32,
        /// Who wrote it.
        incarnation: U64,
        /// Where the record begins in the endless log.
        position: U64,
        /// The first transaction's sequence.
        first: U64,
        /// The last transaction's sequence.
        last: U64,
        /// The highest sequence known durable when it was written.
        flushed: U64,
        /// The checksum of the record before.
        previous: [u8; 16],
        /// Reserved, zero.
        reserved: [u8; 64],
        /// XXH3-128 of the header before it, of the dependencies and of the body.
        sum: [u8; 16],
    }
}

on_disk! {
    /// A row that a record mentions.
    pub struct RowDependencyV1 [40] {
        /// The segment.
        segment: U64,
        /// The row in it.
        row: U32,
        /// Where its cells begin in their slots.
        slot_offset: U32,
        /// Bytes of each cell.
        cell_bytes: U32,
        /// Reserved, zero.
        reserved: U32,
        /// The row's checksum.
        row_sum: [u8; 16],
    }
}

/// A row that a record mentions, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDependency {
    /// The segment.
    pub segment: SegmentId,
    /// The row in it.
    pub row: RowIndex,
    /// Where its cells begin in their slots.
    pub slot_offset: u32,
    /// Bytes of each cell.
    pub cell_bytes: u32,
    /// The row's checksum.
    pub row_sum: Sum128,
}

/// A log record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// Where it begins in the endless log.
    pub position: u64,
    /// The highest sequence known durable when it was written.
    pub flushed: Sequence,
    /// The checksum of the record before.
    pub previous: Sum128,
    /// Rows that must be there for the record to count.
    pub dependencies: Vec<RowDependency>,
    /// What it does, in order of sequence; never empty.
    pub transactions: Vec<Transaction>,
}

/// What is known of a record from its header and checksum, its transactions not yet read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecordHead {
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// Where it begins in the endless log.
    pub position: u64,
    /// Bytes of the record, padding included.
    pub record_bytes: usize,
    /// First and last sequence.
    pub sequences: (Sequence, Sequence),
    /// The highest sequence known durable when it was written.
    pub flushed: Sequence,
    /// The checksum of the record before.
    pub previous: Sum128,
    /// Its own checksum.
    pub sum: Sum128,
    dependencies: usize,
    body_bytes: usize,
}

/// The header of a record about to be written.
#[derive(Clone, Copy, Debug)]
pub struct LogRecordPlace {
    /// Who writes it.
    pub incarnation: Incarnation,
    /// Where it begins in the endless log.
    pub position: u64,
    /// First and last sequence in it.
    pub sequences: (Sequence, Sequence),
    /// The highest sequence known durable.
    pub flushed: Sequence,
    /// The checksum of the record before.
    pub previous: Sum128,
}

/// Bytes that a record with so many dependencies and so long a body has to say.
pub const fn content_bytes(dependencies: usize, body_bytes: usize) -> usize {
    HEADER_BYTES + dependencies * DEPENDENCY_BYTES + body_bytes
}

/// The same in whole blocks, as it is written.
pub const fn record_bytes(dependencies: usize, body_bytes: usize) -> usize {
    content_bytes(dependencies, body_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Puts a record together from encoded transactions; returns its bytes and its checksum.
///
/// # Panics
/// When it is larger than [`LOG_RECORD_BYTES_MAX`]; the log closes a record before.
pub fn encode(place: &LogRecordPlace, dependencies: &[RowDependency], body: &[u8]) -> (Vec<u8>, Sum128) {
    let total = record_bytes(dependencies.len(), body.len());
    assert!(total <= LOG_RECORD_BYTES_MAX, "records are closed before they grow this large");
    let mut rows = Vec::with_capacity(dependencies.len() * DEPENDENCY_BYTES);
    for row in dependencies {
        let raw = RowDependencyV1 {
            segment: U64::new(row.segment.0),
            row: U32::new(row.row.0),
            slot_offset: U32::new(row.slot_offset),
            cell_bytes: U32::new(row.cell_bytes),
            reserved: U32::new(0),
            row_sum: row.row_sum,
        };
        rows.extend_from_slice(raw.as_bytes());
    }
    let mut header = LogRecordHeaderV1 {
        magic: LOG_MAGIC,
        version: U16::new(1),
        reserved_version: U16::new(0),
        record_bytes: U32::new(u32::try_from(total).expect("bounded")),
        body_bytes: U32::new(u32::try_from(body.len()).expect("bounded")),
        dependencies: U32::new(u32::try_from(dependencies.len()).expect("bounded")),
        incarnation: U64::new(place.incarnation.0),
        position: U64::new(place.position),
        first: U64::new(place.sequences.0.0),
        last: U64::new(place.sequences.1.0),
        flushed: U64::new(place.flushed.0),
        previous: place.previous,
        reserved: [0; 64],
        sum: [0; 16],
    };
    header.sum = sum128_of_parts(&[unsummed(&header), &rows, body]);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&rows);
    bytes.extend_from_slice(body);
    bytes.resize(total, 0);
    (bytes, header.sum)
}

fn unsummed(header: &LogRecordHeaderV1) -> &[u8] {
    &header.as_bytes()[..HEADER_BYTES - size_of::<Sum128>()]
}

/// The length that a record's first block claims.
///
/// # Errors
/// When no record begins here.
pub fn peek_bytes(block: &[u8]) -> Result<usize, FormatError> {
    let (header, _) =
        LogRecordHeaderV1::read_from_prefix(block).map_err(|_| FormatError::Short { what: WHAT })?;
    if header.magic != LOG_MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    let total = header.record_bytes.get() as usize;
    if total == 0 || !total.is_multiple_of(BLOCK_BYTES) || total > LOG_RECORD_BYTES_MAX {
        return Err(FormatError::Value { what: WHAT, field: "record_bytes", value: total as u64 });
    }
    Ok(total)
}

impl LogRecordHead {
    /// Reads and verifies a record's bytes, leaving its transactions for [`LogRecordHead::open`].
    ///
    /// # Errors
    /// When it is no record or is damaged.
    pub fn decode(bytes: &[u8], verify: bool) -> Result<Self, FormatError> {
        let total = peek_bytes(bytes)?;
        let (header, rest) =
            LogRecordHeaderV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        let dependencies = header.dependencies.get() as usize;
        let body_bytes = header.body_bytes.get() as usize;
        let used = dependencies.saturating_mul(DEPENDENCY_BYTES).saturating_add(body_bytes);
        if used.saturating_add(HEADER_BYTES) > total {
            return Err(FormatError::Value { what: WHAT, field: "body_bytes", value: used as u64 });
        }
        let used = rest.get(..used).ok_or(FormatError::Short { what: WHAT })?;
        if verify && sum128_of_parts(&[unsummed(&header), used]) != header.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if header.version.get() != 1 {
            let (found, known) = (u32::from(header.version.get()), 1);
            return Err(FormatError::Version { what: WHAT, found, known });
        }
        Ok(Self {
            incarnation: Incarnation(header.incarnation.get()),
            position: header.position.get(),
            record_bytes: total,
            sequences: (Sequence(header.first.get()), Sequence(header.last.get())),
            flushed: Sequence(header.flushed.get()),
            previous: header.previous,
            sum: header.sum,
            dependencies,
            body_bytes,
        })
    }

    /// Reads the rest of the record that this is the head of.
    ///
    /// # Errors
    /// When it holds something unknown, or its transactions are not the ones its header names.
    pub fn open(&self, bytes: &[u8]) -> Result<LogRecord, FormatError> {
        let rows_end = HEADER_BYTES + self.dependencies * DEPENDENCY_BYTES;
        let (rows, body) = bytes
            .get(HEADER_BYTES..rows_end + self.body_bytes)
            .map(|used| used.split_at(rows_end - HEADER_BYTES))
            .ok_or(FormatError::Short { what: WHAT })?;
        let dependencies = rows
            .chunks_exact(DEPENDENCY_BYTES)
            .map(|raw| {
                let raw =
                    RowDependencyV1::read_from_bytes(raw).map_err(|_| FormatError::Short { what: WHAT })?;
                Ok(RowDependency {
                    segment: SegmentId(raw.segment.get()),
                    row: RowIndex(raw.row.get()),
                    slot_offset: raw.slot_offset.get(),
                    cell_bytes: raw.cell_bytes.get(),
                    row_sum: raw.row_sum,
                })
            })
            .collect::<Result<_, FormatError>>()?;
        let transactions = Transaction::decode_all(body)?;
        let ends = transactions.first().map(|t| t.sequence).zip(transactions.last().map(|t| t.sequence));
        let in_order =
            transactions.windows(2).all(|pair| pair[0].sequence.0.checked_add(1) == Some(pair[1].sequence.0));
        if ends != Some(self.sequences) || !in_order {
            return Err(FormatError::Value { what: WHAT, field: "first", value: self.sequences.0.0 });
        }
        Ok(LogRecord {
            incarnation: self.incarnation,
            position: self.position,
            flushed: self.flushed,
            previous: self.previous,
            dependencies,
            transactions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut body = Vec::new();
        for transaction in crate::op::tests::sample() {
            transaction.encode(&mut body);
        }
        let place = LogRecordPlace {
            incarnation: Incarnation(5),
            position: 8192,
            sequences: (Sequence(1), Sequence(2)),
            flushed: Sequence(0),
            previous: [1; 16],
        };
        let row = RowDependency {
            segment: SegmentId(1),
            row: RowIndex(2),
            slot_offset: 4096,
            cell_bytes: 8192,
            row_sum: [2; 16],
        };
        encode(&place, &[row], &body).0
    }

    #[test]
    fn records_round_trip() {
        let bytes = sample();
        let head = LogRecordHead::decode(&bytes, true).unwrap();
        let record = head.open(&bytes).unwrap();
        assert_eq!(record.transactions, crate::op::tests::sample());
        assert_eq!(record.dependencies.len(), 1);
        assert_eq!(head.record_bytes, bytes.len());
        assert_eq!(peek_bytes(&bytes).unwrap(), bytes.len());
    }

    #[test]
    fn every_flipped_bit_in_use_is_noticed() {
        let bytes = sample();
        let head = LogRecordHead::decode(&bytes, true).unwrap();
        let used = HEADER_BYTES + DEPENDENCY_BYTES + head.body_bytes;
        for bit in 0..used * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(LogRecordHead::decode(&bad, true).is_err(), "bit {bit}");
        }
        for length in 0..used {
            assert!(LogRecordHead::decode(&bytes[..length], true).is_err(), "{length}");
        }
    }
}
