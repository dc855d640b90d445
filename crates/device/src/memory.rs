//! A device in memory: sparse, and cheap to copy.
//!
//! Blocks hang in two levels of shared pointers. A snapshot copies the upper level (one pointer per
//! MiB that was ever written); a write afterwards copies the one region and block that it changes.
//! The simulator takes a snapshot at every point where it cuts the power.

use std::collections::BTreeMap;
use std::sync::Arc;

use aegisfs_base::limits::{BLOCK_BYTES, FILE_BYTES_MAX};
use parking_lot::RwLock;

use crate::error::{DeviceError, Operation};
use crate::{Device, check_range};

const REGION_BLOCKS: u64 = 256;

type Block = Arc<[u8; BLOCK_BYTES]>;

/// One MiB; a block that is absent reads as zeros.
#[derive(Clone)]
struct Region {
    blocks: [Option<Block>; REGION_BLOCKS as usize],
}

impl Default for Region {
    fn default() -> Self {
        Self { blocks: [const { None }; REGION_BLOCKS as usize] }
    }
}

/// A device that lives as long as the process does.
pub struct MemoryDevice {
    name: String,
    bytes: u64,
    regions: RwLock<BTreeMap<u64, Arc<Region>>>,
}

impl MemoryDevice {
    /// A device of zeros; the size is rounded down to whole blocks, and to what a file can have.
    pub fn new(name: impl Into<String>, bytes: u64) -> Self {
        // Real offsets are signed too, so no sum of two of them overflows.
        let bytes = bytes.min(FILE_BYTES_MAX);
        let bytes = bytes - bytes % BLOCK_BYTES as u64;
        Self { name: name.into(), bytes, regions: RwLock::default() }
    }

    /// A device of its own with the same content; later writes to one do not show in the other.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let regions = RwLock::new(self.regions.read().clone());
        Self { name: self.name.clone(), bytes: self.bytes, regions }
    }
}

/// Region, and block in the region.
fn place(offset: u64) -> (u64, usize) {
    let block = offset / BLOCK_BYTES as u64;
    (block / REGION_BLOCKS, (block % REGION_BLOCKS) as usize)
}

impl Device for MemoryDevice {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        check_range(self, Operation::Read, offset, buffer.len() as u64)?;
        let regions = self.regions.read();
        let offsets = (offset..).step_by(BLOCK_BYTES);
        for (at, piece) in offsets.zip(buffer.chunks_exact_mut(BLOCK_BYTES)) {
            let (region, block) = place(at);
            match regions.get(&region).and_then(|region| region.blocks[block].as_ref()) {
                Some(block) => piece.copy_from_slice(&block[..]),
                None => piece.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        check_range(self, Operation::Write, offset, data.len() as u64)?;
        let mut regions = self.regions.write();
        for (at, piece) in (offset..).step_by(BLOCK_BYTES).zip(data.chunks_exact(BLOCK_BYTES)) {
            let (region, block) = place(at);
            let slot = &mut Arc::make_mut(regions.entry(region).or_default()).blocks[block];
            // Changed in place unless a snapshot still sees it.
            match slot.as_mut().and_then(Arc::get_mut) {
                Some(block) => block.copy_from_slice(piece),
                None => *slot = Some(Arc::new(piece.try_into().expect("pieces are whole blocks"))),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        check_range(self, Operation::Discard, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let mut regions = self.regions.write();
        let end = offset + length;
        // Only what exists is visited: a whole device may be discarded at once.
        let touched: Vec<u64> = regions.range(place(offset).0..=place(end - 1).0).map(|(k, _)| *k).collect();
        for index in touched {
            let start = index * REGION_BLOCKS * BLOCK_BYTES as u64;
            let region = Arc::make_mut(regions.get_mut(&index).expect("listed above"));
            for (at, block) in (start..).step_by(BLOCK_BYTES).zip(&mut region.blocks) {
                if (offset..end).contains(&at) {
                    *block = None;
                }
            }
            if region.blocks.iter().all(Option::is_none) {
                regions.remove(&index);
            }
        }
        Ok(())
    }

    fn allocated_bytes(&self) -> Option<u64> {
        let regions = self.regions.read();
        let blocks: usize = regions.values().map(|region| region.blocks.iter().flatten().count()).sum();
        Some((blocks * BLOCK_BYTES) as u64)
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn read_only(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_byte(device: &MemoryDevice, offset: u64) -> u8 {
        let mut block = [0; BLOCK_BYTES];
        device.read_at(offset, &mut block).unwrap();
        block[0]
    }

    #[test]
    fn snapshots_are_independent_both_ways() {
        let device = MemoryDevice::new("m", 8 << 20);
        device.write_at(4096, &[1; 4096]).unwrap();
        let before = device.snapshot();
        device.write_at(4096, &[2; 4096]).unwrap();
        before.write_at(8192, &[3; 4096]).unwrap();
        assert_eq!((first_byte(&device, 4096), first_byte(&before, 4096)), (2, 1));
        assert_eq!((first_byte(&device, 8192), first_byte(&before, 8192)), (0, 3));
    }

    #[test]
    fn a_huge_device_takes_what_is_written_and_gives_it_back() {
        let device = MemoryDevice::new("huge", u64::MAX);
        let end = device.bytes() - 4096;
        device.write_at(end, &[5; 4096]).unwrap();
        device.write_at(0, &[6; 3 * 4096]).unwrap();
        assert_eq!(first_byte(&device, end), 5);
        assert_eq!(device.allocated_bytes(), Some(4 * 4096));
        device.discard(4096, 4096).unwrap();
        assert_eq!((first_byte(&device, 4096), first_byte(&device, 8192)), (0, 6));
        device.discard(0, device.bytes()).unwrap();
        assert_eq!(device.allocated_bytes(), Some(0));
    }
}
