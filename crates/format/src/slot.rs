//! The header block at the start of every slot in use: slots describe themselves.

use crate::{FormatError, Sum128, sum128};
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{DeviceIndex, Incarnation, SegmentId, SlotIndex, Uuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a slot header.
pub const SLOT_MAGIC: [u8; 8] = *b"AegisSlt";
/// Content begins this far into a slot.
pub const SLOT_HEADER_BYTES: u64 = BLOCK_BYTES as u64;

const WHAT: &str = "slot header";

on_disk! {
    /// Begins a slot; the rest of its block is zero.
    pub struct SlotHeaderV1 [128] {
        /// [`SLOT_MAGIC`].
        magic: [u8; 8],
        /// Always 1.
        version: U16,
        /// 1 shard of a segment, 2 piece of a database, 3 piece of the intent log.
        kind: u8,
        /// Which database.
        database: u8,
        /// The device's place in the table.
        device: U16,
        /// Which shard of the segment, or which copy of the piece.
        member: u8,
        /// Data shards of the segment.
        shards_data: u8,
        /// Parity shards of the segment.
        shards_parity: u8,
        /// Reserved, zero.
        reserved_geometry: [u8; 3],
        /// This slot's number.
        slot: U32,
        /// The segment, or the piece's place.
        owner: U64,
        /// Who wrote it.
        incarnation: U64,
        /// The pool.
        pool_uuid: [u8; 16],
        /// The device.
        device_uuid: [u8; 16],
        /// Reserved, zero.
        reserved: [u8; 40],
        /// XXH3-128 of everything before it.
        sum: [u8; 16],
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotContent {
    /// One shard of a segment.
    Segment {
        /// The segment.
        segment: SegmentId,
        /// Data and parity shards.
        shards: (u8, u8),
    },
    /// A piece of a metadata database.
    Database {
        /// Which database.
        number: u8,
        /// The piece's place in it.
        piece: u32,
    },
    /// A piece of the intent log.
    Log {
        /// The piece's place in the ring.
        piece: u32,
    },
}

/// A slot header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// What the slot holds.
    pub content: SlotContent,
    /// Which shard, or which copy.
    pub member: u8,
    /// The device's place in the table.
    pub device: DeviceIndex,
    /// This slot's number.
    pub slot: SlotIndex,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// The pool.
    pub pool: Uuid,
    /// The device.
    pub device_uuid: Uuid,
}

impl SlotHeader {
    /// The header's block.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, database, owner, shards) = match self.content {
            SlotContent::Segment { segment, shards } => (1, 0, segment.0, shards),
            SlotContent::Database { number, piece } => (2, number, u64::from(piece), (0, 0)),
            SlotContent::Log { piece } => (3, 0, u64::from(piece), (0, 0)),
        };
        let mut raw = SlotHeaderV1 {
            magic: SLOT_MAGIC,
            version: U16::new(1),
            kind,
            database,
            device: U16::new(self.device.0),
            member: self.member,
            shards_data: shards.0,
            shards_parity: shards.1,
            reserved_geometry: [0; 3],
            slot: U32::new(self.slot.0),
            owner: U64::new(owner),
            incarnation: U64::new(self.incarnation.0),
            pool_uuid: self.pool.0,
            device_uuid: self.device_uuid.0,
            reserved: [0; 40],
            sum: [0; 16],
        };
        raw.sum = sum128(&raw.as_bytes()[..size_of::<SlotHeaderV1>() - size_of::<Sum128>()]);
        let mut block = raw.as_bytes().to_vec();
        block.resize(BLOCK_BYTES, 0);
        block
    }

    /// Reads a slot's first block.
    ///
    /// # Errors
    /// When it is not a slot header or is damaged.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let (raw, _) =
            SlotHeaderV1::read_from_prefix(block).map_err(|_| FormatError::Short { what: WHAT })?;
        if raw.magic != SLOT_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if sum128(&raw.as_bytes()[..size_of::<SlotHeaderV1>() - size_of::<Sum128>()]) != raw.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if raw.version.get() != 1 {
            let (found, known) = (u32::from(raw.version.get()), 1);
            return Err(FormatError::Version { what: WHAT, found, known });
        }
        let owner = raw.owner.get();
        let piece =
            u32::try_from(owner).map_err(|_| FormatError::Value { what: WHAT, field: "owner", value: owner });
        let content = match raw.kind {
            1 => SlotContent::Segment {
                segment: SegmentId(owner),
                shards: (raw.shards_data, raw.shards_parity),
            },
            2 => SlotContent::Database { number: raw.database, piece: piece? },
            3 => SlotContent::Log { piece: piece? },
            other => return Err(FormatError::Value { what: WHAT, field: "kind", value: u64::from(other) }),
        };
        Ok(Self {
            content,
            member: raw.member,
            device: DeviceIndex(raw.device.get()),
            slot: SlotIndex(raw.slot.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            pool: Uuid(raw.pool_uuid),
            device_uuid: Uuid(raw.device_uuid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let contents = [
            SlotContent::Segment { segment: SegmentId(1 << 40), shards: (4, 2) },
            SlotContent::Database { number: 1, piece: 77 },
            SlotContent::Log { piece: 3 },
        ];
        for content in contents {
            let header = SlotHeader {
                content,
                member: 1,
                device: DeviceIndex(2),
                slot: SlotIndex(9),
                incarnation: Incarnation(11),
                pool: Uuid([1; 16]),
                device_uuid: Uuid([2; 16]),
            };
            let block = header.encode();
            assert_eq!(SlotHeader::decode(&block).unwrap(), header);
            for bit in 0..128 * 8 {
                let mut bad = block.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(SlotHeader::decode(&bad).is_err());
            }
        }
    }
}
