//! What could not be read, and nothing could mend.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::{DeviceIndex, SegmentId, Timestamp};

const WHAT: &str = "damage";

/// Where the bytes of a chunk should be that were not found there, or anywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// When that was noticed.
    pub found: Timestamp,
    /// The segment.
    pub segment: SegmentId,
    /// Where the chunk's frame begins in its slot.
    pub slot_offset: u32,
    /// The cell of data.
    pub cell: u8,
    /// The device that holds it.
    pub device: DeviceIndex,
}

impl Damage {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        value.put_u64(self.found.0.cast_unsigned());
        value.put_u64(self.segment.0);
        value.put_u32(self.slot_offset);
        value.push(self.cell);
        value.put_u16(self.device.0);
        value
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// When it is cut short, or of a kind that is not known.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let damage = Self {
            found: Timestamp(reader.u64()?.cast_signed()),
            segment: SegmentId(reader.u64()?),
            slot_offset: reader.u32()?,
            cell: reader.u8()?,
            device: DeviceIndex(reader.u16()?),
        };
        reader.finish()?;
        Ok(damage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_is_not_cut_short() {
        let damage = Damage {
            found: Timestamp(-7),
            segment: SegmentId(1 << 40),
            slot_offset: 4096,
            cell: 3,
            device: DeviceIndex(5),
        };
        let stored = damage.encode();
        assert_eq!(Damage::decode(&stored), Ok(damage));
        for length in 0..stored.len() {
            assert!(Damage::decode(&stored[..length]).is_err(), "{length}");
        }
    }
}
