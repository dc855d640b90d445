//! Extents: the references of one window (1 MiB of a file) to chunks. Holes are absence.

use crate::FormatError;
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{ChunkId, EpochId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const WHAT: &str = "extents";
/// Bytes of one stored reference.
pub const EXTENT_REF_BYTES: usize = size_of::<ExtentRefV1>();

on_disk! {
    /// A run of a file that lies within one chunk.
    pub struct ExtentRefV1 [28] {
        /// Where the run begins, from the start of the window.
        offset: U32,
        /// Bytes of the run.
        length: U32,
        /// The chunk.
        chunk: U64,
        /// Where the run begins in the plain chunk.
        offset_in_chunk: U32,
        /// The epoch in which the reference was born.
        birth: U64,
    }
}

/// A run of a file within one chunk, decoded. The order is by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentRef {
    /// Where the run begins in its window.
    pub offset: u32,
    /// Bytes of the run.
    pub length: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the run begins in the plain chunk.
    pub offset_in_chunk: u32,
    /// The epoch in which the reference was born.
    pub birth: EpochId,
}

impl ExtentRef {
    /// The byte after the run.
    pub const fn end(&self) -> u32 {
        self.offset + self.length
    }

    /// The stored form.
    pub fn encode(&self) -> [u8; EXTENT_REF_BYTES] {
        let raw = ExtentRefV1 {
            offset: U32::new(self.offset),
            length: U32::new(self.length),
            chunk: U64::new(self.chunk.0),
            offset_in_chunk: U32::new(self.offset_in_chunk),
            birth: U64::new(self.birth.0),
        };
        let mut bytes = [0; EXTENT_REF_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a stored reference.
    ///
    /// # Errors
    /// When it is cut short or leaves its window.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = ExtentRefV1::read_from_bytes(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        let (offset, length) = (raw.offset.get(), raw.length.get());
        if length == 0 || u64::from(offset) + u64::from(length) > WINDOW_BYTES {
            return Err(FormatError::Value { what: WHAT, field: "length", value: u64::from(length) });
        }
        Ok(Self {
            offset,
            length,
            chunk: ChunkId(raw.chunk.get()),
            offset_in_chunk: raw.offset_in_chunk.get(),
            birth: EpochId(raw.birth.get()),
        })
    }
}

/// The stored form of a window: the envelope byte, then its references in order of offset.
pub fn encode_window(references: &[ExtentRef]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + references.len() * EXTENT_REF_BYTES);
    bytes.push(crate::value::ENVELOPE_PLAIN);
    for reference in references {
        bytes.extend_from_slice(&reference.encode());
    }
    bytes
}

/// Reads a stored window.
///
/// # Errors
/// When it is cut short, out of order, or references overlap.
pub fn decode_window(bytes: &[u8]) -> Result<Vec<ExtentRef>, FormatError> {
    let (envelope, rest) = bytes.split_first().ok_or(FormatError::Short { what: WHAT })?;
    crate::value::check_envelope(WHAT, *envelope)?;
    if rest.len() % EXTENT_REF_BYTES != 0 {
        return Err(FormatError::Short { what: WHAT });
    }
    let mut references: Vec<ExtentRef> = Vec::with_capacity(rest.len() / EXTENT_REF_BYTES);
    for raw in rest.chunks_exact(EXTENT_REF_BYTES) {
        let reference = ExtentRef::decode(raw)?;
        if references.last().is_some_and(|last| last.end() > reference.offset) {
            let value = u64::from(reference.offset);
            return Err(FormatError::Value { what: WHAT, field: "offset", value });
        }
        references.push(reference);
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_round_trip_and_refuse_overlap() {
        let reference = |offset, length| ExtentRef {
            offset,
            length,
            chunk: ChunkId(u64::from(offset) + 1),
            offset_in_chunk: 5,
            birth: EpochId(2),
        };
        let window = [reference(0, 10), reference(10, 5), reference(1 << 19, 1 << 19)];
        assert_eq!(decode_window(&encode_window(&window)).unwrap(), window);
        assert!(decode_window(&encode_window(&[])).unwrap().is_empty());
        let bad =
            [vec![reference(0, 10), reference(9, 5)], vec![reference(1, 1 << 20)], vec![reference(0, 0)]];
        for window in bad {
            assert!(decode_window(&encode_window(&window)).is_err());
        }
        assert!(decode_window(&[]).is_err());
        assert!(decode_window(&[0, 1]).is_err());
        assert!(decode_window(&[9]).is_err());
    }
}
