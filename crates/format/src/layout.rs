//! Where things lie on a device. Format and mount compute it by this one rule.
//!
//! ```text
//! | header area 1 MiB | slot 0 | slot 1 | ... | slot n-1 | unused < 1 slot | header area 1 MiB |
//! ```
//! A header area holds two superblock slots and two map zones; generation g uses the one numbered g mod 2
//! of each, so that a torn write leaves the other generation whole.

use aegisfs_base::SlotIndex;
use aegisfs_base::limits::{
    BLOCK_BYTES, POOL_BYTES_LARGE, POOL_BYTES_SMALL, SLOT_BYTES_DEFAULT, SLOT_BYTES_LARGE, SLOT_BYTES_SMALL,
};

/// Bytes of each of the two header areas. Changing it is a format change.
pub const HEADER_AREA_BYTES: u64 = 1 << 20;
/// Bytes of one superblock slot within a header area.
pub const SUPERBLOCK_BYTES: usize = 32 << 10;
/// Where the first map zone begins within a header area.
pub const MAP_ZONE_START: u64 = 2 * SUPERBLOCK_BYTES as u64;
/// Bytes of one map zone.
pub const MAP_ZONE_BYTES: usize = 448 << 10;

const _: () = assert!(MAP_ZONE_START + 2 * MAP_ZONE_BYTES as u64 <= HEADER_AREA_BYTES);

/// Slots that the smallest device of a pool should have.
const DEVICE_SLOTS_MIN: u64 = 60;

/// Slot size for a pool of this many bytes in total.
pub const fn slot_bytes_for(pool_bytes: u64, smallest_device: u64) -> u64 {
    if pool_bytes < POOL_BYTES_SMALL || smallest_device < DEVICE_SLOTS_MIN * SLOT_BYTES_DEFAULT {
        SLOT_BYTES_SMALL
    } else if pool_bytes <= POOL_BYTES_LARGE || smallest_device < DEVICE_SLOTS_MIN * SLOT_BYTES_LARGE {
        SLOT_BYTES_DEFAULT
    } else {
        SLOT_BYTES_LARGE
    }
}

/// A device's geometry, from its size and the pool's slot size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLayout {
    /// Usable bytes, a multiple of the block size.
    pub device_bytes: u64,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Number of slots.
    pub slots: u32,
}

impl DeviceLayout {
    /// Lays out a device; `None` when it has no room for a single slot.
    pub fn new(device_bytes: u64, slot_bytes: u64) -> Option<Self> {
        let device_bytes = device_bytes - device_bytes % BLOCK_BYTES as u64;
        let room = device_bytes.checked_sub(2 * HEADER_AREA_BYTES)?;
        let slots = u32::try_from(room / slot_bytes).ok()?;
        (slots > 0).then_some(Self { device_bytes, slot_bytes, slots })
    }

    /// Where the two header areas begin.
    pub const fn header_areas(&self) -> [u64; 2] {
        [0, self.device_bytes - HEADER_AREA_BYTES]
    }

    /// Where a slot begins.
    ///
    /// # Panics
    /// When the device has no such slot.
    pub fn slot_offset(&self, slot: SlotIndex) -> u64 {
        assert!(slot.0 < self.slots, "slot {slot} of {}", self.slots);
        HEADER_AREA_BYTES + u64::from(slot.0) * self.slot_bytes
    }
}

/// Offset of a superblock slot within a header area, by generation.
pub const fn superblock_offset(generation: u64) -> u64 {
    (generation % 2) * SUPERBLOCK_BYTES as u64
}

/// Offset of a map zone within a header area, by generation.
pub const fn map_zone_offset(generation: u64) -> u64 {
    MAP_ZONE_START + (generation % 2) * MAP_ZONE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    #[test]
    fn slots_and_headers_never_overlap_whatever_the_size() {
        let rng = SeededRng::new(4);
        for _ in 0..1000 {
            let bytes = (256 << 20) + rng.below(1 << 45);
            let slot_bytes = slot_bytes_for(bytes, bytes);
            let layout = DeviceLayout::new(bytes, slot_bytes).expect("large enough");
            let last = layout.slot_offset(SlotIndex(layout.slots - 1)) + slot_bytes;
            assert!(last <= layout.header_areas()[1]);
            assert!(layout.header_areas()[1] - last < slot_bytes, "less than a slot is lost");
            assert_eq!(layout.header_areas()[1] % 4096, 0);
            assert!(layout.device_bytes <= bytes);
        }
        assert_eq!(DeviceLayout::new(1 << 20, 4 << 20), None);
        assert_eq!(DeviceLayout::new(0, 4 << 20), None);
    }
}
