//! The slot map: which slots hold pieces of the metadata databases and of the intent log.
//!
//! Everything else about slots follows from the metadata itself; these few must be known before it can be
//! opened. The map stands in the map zone of every header area, checksummed by the superblock.

use crate::{FormatError, sum128};
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{DeviceIndex, SlotIndex};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a map block.
pub const MAP_MAGIC: [u8; 8] = *b"AegisMap";
/// Entries of one map block.
pub const MAP_ENTRIES_PER_BLOCK: usize =
    (BLOCK_BYTES - size_of::<MapBlockHeaderV1>()) / size_of::<MapEntryV1>();
/// Entries that a map zone has room for.
pub const MAP_ENTRIES_MAX: usize = crate::layout::MAP_ZONE_BYTES / BLOCK_BYTES * MAP_ENTRIES_PER_BLOCK;

const WHAT: &str = "slot map";

on_disk! {
    /// Begins each block of the slot map.
    pub struct MapBlockHeaderV1 [64] {
        /// [`MAP_MAGIC`].
        magic: [u8; 8],
        /// This block's place in the map.
        index: U32,
        /// Entries in this block.
        count: U32,
        /// Reserved, zero.
        reserved: [u8; 48],
    }
}

on_disk! {
    /// One slot in use by a database or the log.
    pub struct MapEntryV1 [16] {
        /// 1 a piece of a database, 2 a piece of the intent log.
        kind: u8,
        /// Which database; 0 for the log.
        database: u8,
        /// Which copy.
        copy: u8,
        /// Reserved, zero.
        reserved: u8,
        /// The device.
        device: U16,
        /// Reserved, zero.
        reserved_too: U16,
        /// The slot on it.
        slot: U32,
        /// The piece's place in its database or in the log's ring.
        piece: U32,
    }
}

/// What a mapped slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapOwner {
    /// A metadata database, by number.
    Database(u8),
    /// The intent log.
    Log,
}

/// An entry of the slot map, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapEntry {
    /// What the slot holds.
    pub owner: MapOwner,
    /// The piece's place within it.
    pub piece: u32,
    /// Which copy of the piece.
    pub copy: u8,
    /// The device.
    pub device: DeviceIndex,
    /// The slot on it.
    pub slot: SlotIndex,
}

/// The bytes of a map: whole blocks.
///
/// # Panics
/// When there are more entries than a zone holds; the allocator refuses long before.
pub fn encode(entries: &[MapEntry]) -> Vec<u8> {
    assert!(entries.len() <= MAP_ENTRIES_MAX, "the allocator bounds the map");
    let mut bytes = Vec::new();
    for (index, group) in entries.chunks(MAP_ENTRIES_PER_BLOCK).enumerate() {
        let start = bytes.len();
        let header = MapBlockHeaderV1 {
            magic: MAP_MAGIC,
            index: U32::new(u32::try_from(index).expect("bounded")),
            count: U32::new(u32::try_from(group.len()).expect("bounded")),
            reserved: [0; 48],
        };
        bytes.extend_from_slice(header.as_bytes());
        for entry in group {
            let (kind, database) = match entry.owner {
                MapOwner::Database(number) => (1, number),
                MapOwner::Log => (2, 0),
            };
            let raw = MapEntryV1 {
                kind,
                database,
                copy: entry.copy,
                reserved: 0,
                device: U16::new(entry.device.0),
                reserved_too: U16::new(0),
                slot: U32::new(entry.slot.0),
                piece: U32::new(entry.piece),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.resize(start + BLOCK_BYTES, 0);
    }
    bytes
}

/// Reads a map whose checksum the superblock holds.
///
/// # Errors
/// When the bytes are not the map that the superblock points to.
pub fn decode(bytes: &[u8], expected: &crate::Sum128, verify: bool) -> Result<Vec<MapEntry>, FormatError> {
    if verify && sum128(bytes) != *expected {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let mut entries = Vec::new();
    for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        let (header, rest) =
            MapBlockHeaderV1::read_from_prefix(block).map_err(|_| FormatError::Short { what: WHAT })?;
        if header.magic != MAP_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let count = header.count.get() as usize;
        if count > MAP_ENTRIES_PER_BLOCK || header.index.get() as usize != index {
            return Err(FormatError::Value { what: WHAT, field: "count", value: count as u64 });
        }
        for raw in rest.chunks_exact(size_of::<MapEntryV1>()).take(count) {
            let raw = MapEntryV1::read_from_bytes(raw).map_err(|_| FormatError::Short { what: WHAT })?;
            let owner = match raw.kind {
                1 => MapOwner::Database(raw.database),
                2 => MapOwner::Log,
                other => {
                    return Err(FormatError::Value { what: WHAT, field: "kind", value: u64::from(other) });
                }
            };
            entries.push(MapEntry {
                owner,
                piece: raw.piece.get(),
                copy: raw.copy,
                device: DeviceIndex(raw.device.get()),
                slot: SlotIndex(raw.slot.get()),
            });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_over_several_blocks() {
        let entries: Vec<_> = (0..600u32)
            .map(|n| MapEntry {
                owner: if n % 3 == 0 { MapOwner::Log } else { MapOwner::Database((n % 2) as u8) },
                piece: n / 2,
                copy: (n % 2) as u8,
                device: DeviceIndex(n as u16 % 5),
                slot: SlotIndex(n * 7),
            })
            .collect();
        let bytes = encode(&entries);
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        assert_eq!(decode(&bytes, &sum128(&bytes), true).unwrap(), entries);
        let mut bad = bytes.clone();
        bad[5000] ^= 1;
        assert!(decode(&bad, &sum128(&bytes), true).is_err());
        assert!(decode(&[], &sum128(&[]), true).unwrap().is_empty());
    }
}
