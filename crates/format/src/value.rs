//! Values of the metadata tables. Each begins with an envelope byte: 0 is plain, sealed forms come later.

mod damage;
mod device;
mod history;
mod inode;
mod policy;
mod schedule;
mod scrub;

pub use damage::{Damage, Mended, MendedList};
pub use device::DeviceCounts;
pub use history::{Branch, Pin, Snapshot, Volume, branch_of, first_epoch};
pub use inode::{INODE_FLAGS, Inode};
pub use policy::Policy;
pub use schedule::{Schedule, When};
pub use scrub::{Scrub, ScrubCounts, ScrubState};

use crate::FormatError;
use crate::cell::is_geometry;
use crate::wire::{Append, Reader};
use aegisfs_base::limits::NAME_BYTES_MAX;
use aegisfs_base::{DeviceIndex, InodeId, PolicyId, SlotIndex};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// The envelope byte of a value that is not sealed.
pub const ENVELOPE_PLAIN: u8 = 0;
/// The envelope byte of a tombstone: the stem is gone since this version.
pub const ENVELOPE_TOMBSTONE: u8 = 0xff;

pub(crate) fn check_envelope(what: &'static str, envelope: u8) -> Result<(), FormatError> {
    if envelope == ENVELOPE_PLAIN {
        Ok(())
    } else {
        Err(FormatError::Value { what, field: "envelope", value: u64::from(envelope) })
    }
}

/// The value that marks a stem as gone.
pub const TOMBSTONE: [u8; 1] = [ENVELOPE_TOMBSTONE];

/// Whether a versioned value says that its stem is gone.
pub fn is_tombstone(value: &[u8]) -> bool {
    value.first() == Some(&ENVELOPE_TOMBSTONE)
}

/// A plain value around some bytes.
pub fn wrap(bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + bytes.len());
    value.push(ENVELOPE_PLAIN);
    value.extend_from_slice(bytes);
    value
}

/// The bytes inside a plain value.
///
/// # Errors
/// When the value is empty or its envelope is unknown.
pub fn unwrap(value: &[u8]) -> Result<&[u8], FormatError> {
    let (envelope, rest) = value.split_first().ok_or(FormatError::Short { what: "value" })?;
    check_envelope("value", *envelope)?;
    Ok(rest)
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// Tells names of the same hash apart; part of the readdir cookie.
    pub ordinal: u8,
    /// File type, as the upper bits of `st_mode` shifted down by 12.
    pub kind: u8,
    /// The inode.
    pub inode: InodeId,
    /// The name: any bytes but zero and slash.
    pub name: Vec<u8>,
}

/// The stored form of the entries that share a name hash.
pub fn encode_dirents(entries: &[Dirent]) -> Vec<u8> {
    let mut bytes = vec![ENVELOPE_PLAIN];
    for entry in entries {
        bytes.push(entry.ordinal);
        bytes.push(entry.kind);
        bytes.put_u64(entry.inode.0);
        bytes.put_short_bytes(&entry.name);
    }
    bytes
}

/// Reads the entries that share a name hash.
///
/// # Errors
/// When they are cut short or a name is too long.
pub fn decode_dirents(value: &[u8]) -> Result<Vec<Dirent>, FormatError> {
    let mut entries = Vec::new();
    each_dirent(value, |(ordinal, kind), inode, name| {
        entries.push(Dirent { ordinal, kind, inode, name: name.to_vec() });
    })?;
    Ok(entries)
}

/// Where a name leads, among the entries that share its hash.
///
/// # Errors
/// As [`decode_dirents`], whichever entry is the bad one.
pub fn find_dirent(value: &[u8], name: &[u8]) -> Result<Option<InodeId>, FormatError> {
    let mut found = None;
    each_dirent(value, |_, inode, other| {
        if other == name {
            found = found.or(Some(inode));
        }
    })?;
    Ok(found)
}

fn each_dirent(value: &[u8], mut see: impl FnMut((u8, u8), InodeId, &[u8])) -> Result<(), FormatError> {
    const WHAT: &str = "directory entries";
    let mut reader = Reader::new(WHAT, unwrap(value)?);
    while !reader.is_empty() {
        let numbers = (reader.u8()?, reader.u8()?);
        let inode = InodeId(reader.u64()?);
        let name = reader.short_bytes()?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(FormatError::Value { what: WHAT, field: "name", value: name.len() as u64 });
        }
        see(numbers, inode, name);
    }
    Ok(())
}

on_disk! {
    /// A segment, behind its envelope byte; its placements follow.
    pub struct SegmentV1 [64] {
        /// 1 open, 2 sealed.
        state: u8,
        /// Data shards.
        shards_data: u8,
        /// Parity shards.
        shards_parity: u8,
        /// Tier.
        tier: u8,
        /// Storage policy.
        policy: U16,
        /// Key domain.
        key_domain: U16,
        /// Bytes of chunks still referred to, as charged.
        live_bytes: U64,
        /// Bytes of chunks ever written to it, as charged.
        written_bytes: U64,
        /// When it was opened, as a sequence number.
        opened: U64,
        /// Rows.
        rows: U32,
        /// Of the live bytes, those of parts of chunks that nothing refers to.
        forsaken_bytes: U64,
        /// Behind the last row, from the start of the slots; 0 while it is open, and where nobody knows.
        end: U32,
        /// Reserved, zero.
        reserved: [u8; 16],
    }
}

on_disk! {
    /// A slot that holds one of a segment's shards.
    pub struct PlacementV1 [8] {
        /// The device.
        device: U16,
        /// Reserved, zero.
        reserved: U16,
        /// The slot on it.
        slot: U32,
    }
}

/// Whether rows may still be appended to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Rows are being appended.
    Open,
    /// Complete.
    Sealed,
}

/// A segment, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whether rows may still be appended.
    pub state: SegmentState,
    /// Data and parity shards.
    pub shards: (u8, u8),
    /// Tier.
    pub tier: u8,
    /// Storage policy.
    pub policy: PolicyId,
    /// Key domain.
    pub key_domain: u16,
    /// Bytes of chunks still referred to.
    pub live_bytes: u64,
    /// Bytes of chunks ever written to it.
    pub written_bytes: u64,
    /// When it was opened, as a sequence number.
    pub opened: u64,
    /// Rows.
    pub rows: u32,
    /// Of the live bytes, those of parts of chunks that nothing refers to.
    pub forsaken_bytes: u64,
    /// Behind the last row, from the start of the slots; 0 while it is open, and where nobody knows.
    pub end: u32,
    /// The slots of its shards, in order.
    pub placements: Vec<(DeviceIndex, SlotIndex)>,
}

impl Segment {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let raw = SegmentV1 {
            state: match self.state {
                SegmentState::Open => 1,
                SegmentState::Sealed => 2,
            },
            shards_data: self.shards.0,
            shards_parity: self.shards.1,
            tier: self.tier,
            policy: U16::new(self.policy.0),
            key_domain: U16::new(self.key_domain),
            live_bytes: U64::new(self.live_bytes),
            written_bytes: U64::new(self.written_bytes),
            opened: U64::new(self.opened),
            rows: U32::new(self.rows),
            forsaken_bytes: U64::new(self.forsaken_bytes),
            end: U32::new(self.end),
            reserved: [0; 16],
        };
        let mut value = wrap(raw.as_bytes());
        for (device, slot) in &self.placements {
            let raw =
                PlacementV1 { device: U16::new(device.0), reserved: U16::new(0), slot: U32::new(slot.0) };
            value.extend_from_slice(raw.as_bytes());
        }
        value
    }

    /// Reads a stored segment.
    ///
    /// # Errors
    /// When it is cut short or a field has a value it cannot have.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "segment";
        let (raw, rest) =
            SegmentV1::read_from_prefix(unwrap(value)?).map_err(|_| FormatError::Short { what: WHAT })?;
        let state = match raw.state {
            1 => SegmentState::Open,
            2 => SegmentState::Sealed,
            other => {
                return Err(FormatError::Value { what: WHAT, field: "state", value: u64::from(other) });
            }
        };
        if !is_geometry((raw.shards_data, raw.shards_parity)) {
            let value = u64::from(raw.shards_data);
            return Err(FormatError::Value { what: WHAT, field: "shards_data", value });
        }
        let members = usize::from(raw.shards_data) + usize::from(raw.shards_parity);
        if rest.len() != members * size_of::<PlacementV1>() {
            return Err(FormatError::Short { what: WHAT });
        }
        let placements = rest
            .chunks_exact(size_of::<PlacementV1>())
            .map(|raw| {
                let raw = PlacementV1::read_from_bytes(raw).map_err(|_| FormatError::Short { what: WHAT })?;
                Ok((DeviceIndex(raw.device.get()), SlotIndex(raw.slot.get())))
            })
            .collect::<Result<_, FormatError>>()?;
        Ok(Self {
            state,
            shards: (raw.shards_data, raw.shards_parity),
            tier: raw.tier,
            policy: PolicyId(raw.policy.get()),
            key_domain: raw.key_domain.get(),
            live_bytes: raw.live_bytes.get(),
            written_bytes: raw.written_bytes.get(),
            opened: raw.opened.get(),
            rows: raw.rows.get(),
            forsaken_bytes: raw.forsaken_bytes.get(),
            end: raw.end.get(),
            placements,
        })
    }
}

/// Bytes of a file that stand only in the log, stored with where they go.
pub fn encode_pending(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(9 + bytes.len());
    value.push(ENVELOPE_PLAIN);
    value.put_u64(offset);
    value.extend_from_slice(bytes);
    value
}

/// Reads pending bytes: the file offset and the bytes.
///
/// # Errors
/// When they are cut short.
pub fn decode_pending(value: &[u8]) -> Result<(u64, &[u8]), FormatError> {
    let (offset, bytes) =
        unwrap(value)?.split_first_chunk::<8>().ok_or(FormatError::Short { what: "pending bytes" })?;
    Ok((u64::from_le_bytes(*offset), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes() {
        let entries = vec![
            Dirent { ordinal: 0, kind: 8, inode: InodeId(5), name: b"\xff\xfe".to_vec() },
            Dirent { ordinal: 7, kind: 4, inode: InodeId(6), name: vec![b'x'; 255] },
        ];
        let value = encode_dirents(&entries);
        assert_eq!(decode_dirents(&value).unwrap(), entries);
        assert_eq!(find_dirent(&value, b"\xff\xfe").unwrap(), Some(InodeId(5)));
        assert_eq!(find_dirent(&value, &[b'x'; 255]).unwrap(), Some(InodeId(6)));
        assert_eq!(find_dirent(&value, b"x").unwrap(), None);
        let short = &value[..value.len() - 1];
        assert!(decode_dirents(short).is_err() && find_dirent(short, b"\xff\xfe").is_err());
    }

    #[test]
    fn segments_and_pending_round_trip() {
        let segment = Segment {
            state: SegmentState::Sealed,
            shards: (2, 1),
            tier: 1,
            policy: PolicyId(2),
            key_domain: 3,
            live_bytes: 4,
            written_bytes: 5,
            opened: 6,
            rows: 7,
            forsaken_bytes: 3,
            end: 8192,
            placements: (0..3).map(|n| (DeviceIndex(n), SlotIndex(u32::from(n) * 9))).collect(),
        };
        assert_eq!(Segment::decode(&segment.encode()).unwrap(), segment);
        assert_eq!(decode_pending(&encode_pending(7, b"abc")).unwrap(), (7, &b"abc"[..]));
        assert!(decode_pending(&[0; 5]).is_err());
    }
}
