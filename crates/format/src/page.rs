//! Checksum blocks: one entry for each 4 KiB page of a metadata database.
//!
//! A database slot holds, behind its header block, two checksum blocks for every [`PAGES_PER_GROUP`] pages
//! and then the pages. The last block of the slot is the second place of the database's first page, which
//! alternates with its checksum block. The two copies of a checksum block alternate: a sync writes the older one, so that a torn write leaves
//! the other, and opening takes the newest that verifies.

use crate::{FormatError, Sum128, sum128};
use aegisfs_base::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a checksum block.
pub const SUM_BLOCK_MAGIC: [u8; 8] = *b"AegisSum";
/// Pages that one checksum block covers.
pub const PAGES_PER_GROUP: usize = (BLOCK_BYTES - size_of::<SumBlockHeaderV1>()) / size_of::<PageEntryV1>();

const WHAT: &str = "checksum block";

on_disk! {
    /// Begins a checksum block.
    pub struct SumBlockHeaderV1 [64] {
        /// [`SUM_BLOCK_MAGIC`].
        magic: [u8; 8],
        /// Age; the higher of the two copies that verify wins.
        generation: U64,
        /// The piece of the database.
        piece: U32,
        /// The group within the piece.
        group: U32,
        /// Which database.
        database: U32,
        /// Reserved, zero.
        reserved: [u8; 20],
        /// XXH3-128 of the header before it and of all entries.
        sum: [u8; 16],
    }
}

on_disk! {
    /// A page's checksum; all zero for a page never written.
    pub struct PageEntryV1 [32] {
        /// XXH3-128 of the page, or its authentication tag once pages are sealed.
        sum: [u8; 16],
        /// Times the page was written.
        counter: U64,
        /// Reserved, zero.
        spare: U64,
    }
}

/// A page's checksum and how often it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry {
    /// Checksum.
    pub sum: Sum128,
    /// Times the page was written; 0 is never, and such a page reads as zeros.
    pub counter: u64,
}

/// Which checksum block this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SumBlockPlace {
    /// Which database.
    pub database: u8,
    /// The piece of it.
    pub piece: u32,
    /// The group within the piece.
    pub group: u32,
}

/// A checksum block, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumBlock {
    /// Which it is.
    pub place: SumBlockPlace,
    /// Age.
    pub generation: u64,
    /// One entry per page.
    pub entries: Box<[PageEntry; PAGES_PER_GROUP]>,
}

impl SumBlock {
    /// A block of pages never written.
    pub fn empty(place: SumBlockPlace) -> Self {
        Self { place, generation: 0, entries: Box::new([PageEntry::default(); PAGES_PER_GROUP]) }
    }

    /// The block's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let header = SumBlockHeaderV1 {
            magic: SUM_BLOCK_MAGIC,
            generation: U64::new(self.generation),
            piece: U32::new(self.place.piece),
            group: U32::new(self.place.group),
            database: U32::new(u32::from(self.place.database)),
            reserved: [0; 20],
            sum: [0; 16],
        };
        let mut bytes = header.as_bytes().to_vec();
        for entry in self.entries.iter() {
            let raw = PageEntryV1 { sum: entry.sum, counter: U64::new(entry.counter), spare: U64::new(0) };
            bytes.extend_from_slice(raw.as_bytes());
        }
        let sum = block_sum(&bytes);
        bytes[48..64].copy_from_slice(&sum);
        bytes
    }

    /// Reads a block that should be the named one.
    ///
    /// # Errors
    /// When it is not, or is damaged.
    pub fn decode(bytes: &[u8], expected: SumBlockPlace) -> Result<Self, FormatError> {
        let (header, rest) =
            SumBlockHeaderV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        if header.magic != SUM_BLOCK_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if bytes.len() < BLOCK_BYTES {
            return Err(FormatError::Short { what: WHAT });
        }
        if block_sum(&bytes[..BLOCK_BYTES]) != header.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let found = (header.database.get(), header.piece.get(), header.group.get());
        if found != (u32::from(expected.database), expected.piece, expected.group) {
            return Err(FormatError::Value { what: WHAT, field: "piece", value: u64::from(found.1) });
        }
        let mut block = Self::empty(expected);
        block.generation = header.generation.get();
        for (entry, raw) in block.entries.iter_mut().zip(rest.chunks_exact(size_of::<PageEntryV1>())) {
            let raw = PageEntryV1::read_from_bytes(raw).map_err(|_| FormatError::Short { what: WHAT })?;
            *entry = PageEntry { sum: raw.sum, counter: raw.counter.get() };
        }
        Ok(block)
    }
}

/// The checksum of a block, with its own place left out.
fn block_sum(bytes: &[u8]) -> Sum128 {
    crate::sum128_of_parts(&[&bytes[..48], &bytes[64..]])
}

/// The checksum of one page.
pub fn page_sum(page: &[u8]) -> Sum128 {
    sum128(page)
}

/// How a database slot is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseSlotLayout {
    /// Groups of pages.
    pub groups: u32,
    /// Pages in the slot.
    pub pages: u32,
}

impl DatabaseSlotLayout {
    /// Divides a slot of this size.
    pub const fn new(slot_bytes: u64) -> Self {
        let blocks = slot_bytes / BLOCK_BYTES as u64 - 2;
        let groups = blocks.div_ceil(PAGES_PER_GROUP as u64 + 2);
        Self { groups: groups as u32, pages: (blocks - 2 * groups) as u32 }
    }

    /// Where a copy (0 or 1) of a group's checksum block lies in the slot.
    pub const fn sum_block_offset(&self, group: u32, copy: u64) -> u64 {
        (1 + 2 * group as u64 + copy) * BLOCK_BYTES as u64
    }

    /// The second place of the database's first page, at the end of the slot; only used in piece 0.
    pub const fn first_page_twin_offset(&self) -> u64 {
        self.page_offset(self.pages)
    }

    /// Where a page lies in the slot.
    pub const fn page_offset(&self, page: u32) -> u64 {
        (1 + 2 * self.groups as u64 + page as u64) * BLOCK_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: SumBlockPlace = SumBlockPlace { database: 1, piece: 2, group: 3 };

    #[test]
    fn round_trip_and_damage() {
        assert_eq!(PAGES_PER_GROUP, 126);
        let mut block = SumBlock::empty(PLACE);
        block.generation = 9;
        block.entries[125] = PageEntry { sum: [4; 16], counter: 2 };
        let bytes = block.encode();
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(SumBlock::decode(&bytes, PLACE).unwrap(), block);
        assert!(SumBlock::decode(&bytes, SumBlockPlace { group: 4, ..PLACE }).is_err());
        for bit in (0..BLOCK_BYTES * 8).step_by(7) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SumBlock::decode(&bad, PLACE).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn slots_of_any_size_are_filled() {
        for slot_bytes in [64 << 10, 256 << 10, 4 << 20, 16 << 20, 64 << 20] {
            let layout = DatabaseSlotLayout::new(slot_bytes);
            assert_eq!(layout.first_page_twin_offset() + BLOCK_BYTES as u64, slot_bytes);
            assert!(u64::from(layout.pages) <= u64::from(layout.groups) * PAGES_PER_GROUP as u64);
        }
        assert_eq!(DatabaseSlotLayout::new(4 << 20), DatabaseSlotLayout { groups: 8, pages: 1006 });
    }
}
