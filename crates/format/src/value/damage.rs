//! What could not be read, and nothing could mend.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::{ChunkId, DeviceIndex, SegmentId, Timestamp};

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
        self.put(&mut value);
        value
    }

    fn put(&self, value: &mut Vec<u8>) {
        value.put_u64(self.found.0.cast_unsigned());
        value.put_u64(self.segment.0);
        value.put_u32(self.slot_offset);
        value.push(self.cell);
        value.put_u16(self.device.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            found: Timestamp(reader.u64()?.cast_signed()),
            segment: SegmentId(reader.u64()?),
            slot_offset: reader.u32()?,
            cell: reader.u8()?,
            device: DeviceIndex(reader.u16()?),
        })
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// When it is cut short, or of a kind that is not known.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let damage = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(damage)
    }
}

/// What was damaged and is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mended {
    /// Where it was, and when.
    pub damage: Damage,
    /// The chunk; none where a whole cell was written anew.
    pub chunk: Option<ChunkId>,
}

/// The last things that were mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MendedList(pub Vec<Mended>);

impl MendedList {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        for Mended { damage, chunk } in &self.0 {
            damage.put(&mut value);
            value.put_u64(chunk.map_or(0, |chunk| chunk.0));
        }
        value
    }

    /// Reads a stored list.
    ///
    /// # Errors
    /// When it is cut short, or of a kind that is not known.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let mut list = Vec::new();
        while !reader.is_empty() {
            let damage = Damage::read(&mut reader)?;
            // The first chunk is 1.
            let chunk = Some(ChunkId(reader.u64()?)).filter(|chunk| chunk.0 != 0);
            list.push(Mended { damage, chunk });
        }
        Ok(Self(list))
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
        let chunk = |number| Some(ChunkId(number)).filter(|_| number > 0);
        let list = MendedList((0..3).map(|n| Mended { damage, chunk: chunk(n) }).collect());
        let stored = list.encode();
        assert_eq!(MendedList::decode(&stored), Ok(list));
        assert_eq!(MendedList::decode(&MendedList::default().encode()), Ok(MendedList::default()));
        let each = (stored.len() - 1) / 3;
        for length in (0..stored.len()).filter(|length| *length == 0 || (length - 1) % each != 0) {
            assert!(MendedList::decode(&stored[..length]).is_err(), "{length}");
        }
    }
}
