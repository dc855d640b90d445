//! Chunk descriptors: where a chunk lies, what it hashes to, how many references it has.

use crate::FormatError;
use aegisfs_base::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use aegisfs_base::{RowIndex, SegmentId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Descriptors kept under one key of the `chunks` table. Changing it is a format change.
pub const DESCRIPTORS_PER_GROUP: u64 = 32;
/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: usize = size_of::<DescriptorV1>();

const WHAT: &str = "chunk descriptor";

on_disk! {
    /// A chunk: place, hash, references. All zero where there is no chunk.
    pub struct DescriptorV1 [88] {
        /// The segment.
        segment: U64,
        /// The row in it.
        row: U32,
        /// Where the frame begins, from the start of its slot.
        slot_offset: U32,
        /// Stored bytes of the frame.
        frame_stored: U32,
        /// Plain bytes of the frame.
        frame_plain: U32,
        /// Where the chunk begins in the plain frame.
        offset_in_frame: U32,
        /// Plain bytes of the chunk.
        plain_bytes: U32,
        /// This chunk's share of the stored frame, for space accounting.
        charged_bytes: U32,
        /// References to it.
        references: U32,
        /// Which cell of the row.
        cell: u8,
        /// 0 as it is, 1 lz4, 2 zstd.
        codec: u8,
        /// Key domain; 0 is not sealed.
        key_domain: U16,
        /// Bit 0: known damaged.
        flags: U32,
        /// Bytes of all those references together.
        referred_bytes: U64,
        /// BLAKE3 of the plain bytes.
        hash: [u8; 32],
    }
}

/// Where a chunk's frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// The segment.
    pub segment: SegmentId,
    /// The row in it.
    pub row: RowIndex,
    /// Which cell of the row.
    pub cell: u8,
    /// Where the frame begins in its slot.
    pub slot_offset: u32,
    /// Stored bytes.
    pub stored_bytes: u32,
    /// Plain bytes.
    pub plain_bytes: u32,
    /// Codec number.
    pub codec: u8,
    /// Key domain.
    pub key_domain: u16,
}

/// A chunk descriptor, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The frame that holds the chunk.
    pub frame: FramePlace,
    /// Where the chunk begins in the plain frame.
    pub offset_in_frame: u32,
    /// Plain bytes of the chunk.
    pub plain_bytes: u32,
    /// Its share of the stored frame.
    pub charged_bytes: u32,
    /// References to it.
    pub references: u32,
    /// Bytes of all those references together; where they overlap, each counts.
    pub referred_bytes: u64,
    /// Whether it is known to be damaged.
    pub damaged: bool,
    /// BLAKE3 of the plain bytes.
    pub hash: [u8; 32],
}

/// Less of a chunk than the inverse of this is not counted as forsaken.
const FORSAKEN_PART_MIN: u64 = 8;
/// What a chunk costs beside its bytes, in directories and metadata with their copies, at most.
const CHUNK_COST_BYTES: u64 = 1024;

impl Descriptor {
    /// What storing anew those bytes gives back to which something refers: the part of its charge that falls on others,
    /// less what the new chunks cost, one for each reference. Less than an eighth of the chunk does not count. Part of the
    /// format, since segments add it up.
    pub fn forsaken_bytes(&self) -> u64 {
        let plain = u64::from(self.plain_bytes);
        let forsaken = plain.saturating_sub(self.referred_bytes);
        if forsaken * FORSAKEN_PART_MIN < plain {
            return 0;
        }
        let gained = u64::from(self.charged_bytes) * forsaken / plain;
        gained.saturating_sub(u64::from(self.references) * CHUNK_COST_BYTES)
    }

    /// The stored form.
    pub fn encode(&self) -> [u8; DESCRIPTOR_BYTES] {
        let raw = DescriptorV1 {
            segment: U64::new(self.frame.segment.0),
            row: U32::new(self.frame.row.0),
            slot_offset: U32::new(self.frame.slot_offset),
            frame_stored: U32::new(self.frame.stored_bytes),
            frame_plain: U32::new(self.frame.plain_bytes),
            offset_in_frame: U32::new(self.offset_in_frame),
            plain_bytes: U32::new(self.plain_bytes),
            charged_bytes: U32::new(self.charged_bytes),
            references: U32::new(self.references),
            cell: self.frame.cell,
            codec: self.frame.codec,
            key_domain: U16::new(self.frame.key_domain),
            flags: U32::new(u32::from(self.damaged)),
            referred_bytes: U64::new(self.referred_bytes),
            hash: self.hash,
        };
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a stored descriptor; `None` for the zeros that stand where there is no chunk.
    ///
    /// # Errors
    /// When it is too short or a field is out of bounds.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FormatError> {
        let (raw, _) =
            DescriptorV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        if raw.plain_bytes.get() == 0 {
            return Ok(None);
        }
        let descriptor = Self {
            frame: FramePlace {
                segment: SegmentId(raw.segment.get()),
                row: RowIndex(raw.row.get()),
                cell: raw.cell,
                slot_offset: raw.slot_offset.get(),
                stored_bytes: raw.frame_stored.get(),
                plain_bytes: raw.frame_plain.get(),
                codec: raw.codec,
                key_domain: raw.key_domain.get(),
            },
            offset_in_frame: raw.offset_in_frame.get(),
            plain_bytes: raw.plain_bytes.get(),
            charged_bytes: raw.charged_bytes.get(),
            references: raw.references.get(),
            referred_bytes: raw.referred_bytes.get(),
            damaged: raw.flags.get() & 1 != 0,
            hash: raw.hash,
        };
        let end = u64::from(descriptor.offset_in_frame) + u64::from(descriptor.plain_bytes);
        let bounded = end <= u64::from(descriptor.frame.plain_bytes)
            && descriptor.frame.plain_bytes as usize <= FRAME_BYTES_MAX
            && descriptor.plain_bytes as usize <= CHUNK_BYTES_MAX
            && descriptor.frame.stored_bytes as usize <= 2 * FRAME_BYTES_MAX
            && descriptor.frame.slot_offset.checked_add(descriptor.frame.stored_bytes).is_some();
        if !bounded {
            return Err(FormatError::Value { what: WHAT, field: "plain_bytes", value: end });
        }
        Ok(Some(descriptor))
    }
}

/// The descriptors stored under one key, by their place in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescriptorGroup(pub [Option<Descriptor>; DESCRIPTORS_PER_GROUP as usize]);

impl DescriptorGroup {
    /// Whether no chunk is left in the group.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// The stored form: a bit per present descriptor, then those descriptors.
    pub fn encode(&self) -> Vec<u8> {
        let mut mask = 0u32;
        let mut bytes = vec![0; 5];
        for (place, descriptor) in self.0.iter().enumerate() {
            if let Some(descriptor) = descriptor {
                mask |= 1 << place;
                bytes.extend_from_slice(&descriptor.encode());
            }
        }
        bytes[1..5].copy_from_slice(&mask.to_le_bytes());
        bytes
    }

    /// Reads a stored group.
    ///
    /// # Errors
    /// When it is cut short or a descriptor is bad.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut group = Self::default();
        for place in 0..DESCRIPTORS_PER_GROUP {
            group.0[place as usize] = Self::decode_one(bytes, place)?;
        }
        Ok(group)
    }

    /// Reads one descriptor of a stored group.
    ///
    /// # Errors
    /// When the group is cut short or the descriptor is bad.
    pub fn decode_one(bytes: &[u8], place: u64) -> Result<Option<Descriptor>, FormatError> {
        let head: &[u8; 5] = bytes.first_chunk().ok_or(FormatError::Short { what: WHAT })?;
        crate::value::check_envelope(WHAT, head[0])?;
        let mask = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let bit = 1u32 << (place % DESCRIPTORS_PER_GROUP);
        if mask & bit == 0 {
            return Ok(None);
        }
        let before = (mask & (bit - 1)).count_ones() as usize;
        let start = 5 + before * DESCRIPTOR_BYTES;
        let raw = bytes.get(start..start + DESCRIPTOR_BYTES).ok_or(FormatError::Short { what: WHAT })?;
        Descriptor::decode(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_round_trip() {
        let descriptor = Descriptor {
            frame: FramePlace {
                segment: SegmentId(3),
                row: RowIndex(2),
                cell: 1,
                slot_offset: 8192,
                stored_bytes: 100,
                plain_bytes: 300,
                codec: 2,
                key_domain: 0,
            },
            offset_in_frame: 100,
            plain_bytes: 200,
            charged_bytes: 67,
            references: 5,
            referred_bytes: 77,
            damaged: true,
            hash: [9; 32],
        };
        let mut group = DescriptorGroup::default();
        assert!(group.is_empty());
        group.0[0] = Some(descriptor);
        group.0[31] = Some(Descriptor { references: 1, ..descriptor });
        let bytes = group.encode();
        assert_eq!(bytes.len(), 5 + 2 * DESCRIPTOR_BYTES);
        assert_eq!(DescriptorGroup::decode(&bytes).unwrap(), group);
        assert_eq!(DescriptorGroup::decode_one(&bytes, 31 + 64).unwrap().unwrap().references, 1);
        for length in 0..bytes.len() {
            assert!(DescriptorGroup::decode(&bytes[..length]).is_err());
        }
    }
}
