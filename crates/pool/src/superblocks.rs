//! Reading and writing superblocks with their slot maps.
//!
//! Generation g lies in the superblock slot and the map zone numbered g mod 2, in both header areas of every
//! member. A map that is torn fails the checksum in its superblock, and then the generation before counts;
//! therefore map and superblock go out in the same flush.

use crate::PoolError;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_device::{AlignedBuffer, Device};
use aegisfs_format::layout::{
    HEADER_AREA_BYTES, MAP_ZONE_BYTES, SUPERBLOCK_BYTES, map_zone_offset, superblock_offset,
};
use aegisfs_format::map::MapEntry;
use aegisfs_format::superblock::Superblock;
use aegisfs_format::{FormatError, map};

/// The newest superblock of a device that verifies together with its map.
pub(crate) struct Found {
    pub(crate) superblock: Superblock,
    pub(crate) map: Vec<MapEntry>,
    /// Of the four places where superblocks stand, how many did not verify.
    pub(crate) damaged: u32,
}

/// Looks in all four places.
pub(crate) fn read_newest(device: &dyn Device) -> Result<Found, PoolError> {
    if device.bytes() < 2 * HEADER_AREA_BYTES {
        return Err(PoolError::NotFormatted { device: device.describe() });
    }
    let mut best: Option<(Superblock, Vec<MapEntry>)> = None;
    let mut damaged = 0;
    let mut refusal: Option<FormatError> = None;
    let mut failure = None;
    // The area at the end is found by the device's size; a device that has grown since keeps one area.
    for area in [0, device.bytes() - HEADER_AREA_BYTES] {
        for parity in 0..2 {
            match read_one(device, area, parity) {
                Ok((block, map)) => {
                    if best.as_ref().is_none_or(|(b, _)| b.generation < block.generation) {
                        best = Some((block, map));
                    }
                }
                Err(Unusable::Format(FormatError::Magic { .. })) => damaged += 1,
                Err(Unusable::Format(error)) => {
                    damaged += 1;
                    let newer = matches!(error, FormatError::Version { .. } | FormatError::Features { .. });
                    if newer || refusal.is_none() {
                        refusal = Some(error);
                    }
                }
                Err(Unusable::Device(error)) => {
                    damaged += 1;
                    tracing::warn!(%error, "superblock could not be read");
                    failure = failure.or(Some(error));
                }
            }
        }
    }
    match (best, refusal) {
        // Whoever reads "not formatted" formats; a device that does not answer may hold everything.
        (None, _) if failure.is_some() => Err(failure.expect("just tested").into()),
        // A newer program's superblock beside an older one of ours: the older one is history.
        (_, Some(error @ (FormatError::Version { .. } | FormatError::Features { .. }))) => {
            Err(PoolError::Superblock { device: device.describe(), source: error })
        }
        (Some((superblock, map)), _) => Ok(Found { superblock, map, damaged }),
        (None, Some(source)) => Err(PoolError::Superblock { device: device.describe(), source }),
        (None, None) => Err(PoolError::NotFormatted { device: device.describe() }),
    }
}

enum Unusable {
    Format(FormatError),
    Device(aegisfs_device::DeviceError),
}

fn read_one(device: &dyn Device, area: u64, parity: u64) -> Result<(Superblock, Vec<MapEntry>), Unusable> {
    let mut bytes = AlignedBuffer::zeroed(SUPERBLOCK_BYTES);
    device.read_at(area + superblock_offset(parity), &mut bytes).map_err(Unusable::Device)?;
    let verify = !removed(Edge::SuperblockChecksum);
    let superblock = Superblock::decode_with(&bytes, verify).map_err(Unusable::Format)?;
    let map_bytes = superblock.map_blocks as usize * BLOCK_BYTES;
    if map_bytes > MAP_ZONE_BYTES {
        let value = u64::from(superblock.map_blocks);
        return Err(Unusable::Format(FormatError::Value { what: "superblock", field: "map_blocks", value }));
    }
    let mut bytes = AlignedBuffer::zeroed(map_bytes);
    if map_bytes > 0 {
        let zone = map_zone_offset(superblock.generation.0);
        device.read_at(area + zone, &mut bytes).map_err(Unusable::Device)?;
    }
    let map = map::decode(&bytes, &superblock.map_sum, verify).map_err(Unusable::Format)?;
    Ok((superblock, map))
}

/// Writes a superblock and its map to both header areas; the caller flushes.
pub(crate) fn write(
    member: &crate::member::Member,
    superblock: &Superblock,
    map_bytes: &[u8],
) -> Result<(), aegisfs_device::DeviceError> {
    let place = if removed(Edge::SuperblockAlternates) { 0 } else { superblock.generation.0 };
    let bytes = superblock.encode();
    for area in member.layout.header_areas() {
        if !map_bytes.is_empty() {
            member.write(area + map_zone_offset(superblock.generation.0), map_bytes)?;
        }
        member.write(area + superblock_offset(place), &bytes)?;
    }
    Ok(())
}

/// Destroys every superblock on a device, so that nothing half-formatted looks like a pool.
pub(crate) fn erase(member: &crate::member::Member) -> Result<(), aegisfs_device::DeviceError> {
    let zeros = AlignedBuffer::zeroed(2 * SUPERBLOCK_BYTES);
    for area in member.layout.header_areas() {
        member.write(area, &zeros)?;
    }
    member.flush()
}
