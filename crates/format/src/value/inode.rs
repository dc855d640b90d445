//! Inodes, stored without what goes without saying.
//!
//! ```text
//! | fields u16 | mode | those that `fields` names, in its order | ctime i64 | btime | mtime | atime |
//! ```
//! Numbers are varints. The last three times are told by how far they lie before `ctime`, zigzagged: of a
//! file that was just made they take a byte each.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::{InodeId, PolicyId, Timestamp};

const WHAT: &str = "inode";

/// Bits of `fields`. What has none is 0, but for `nlink`, which is 1, and `allocated`, which is `size`.
const UID: u16 = 1 << 0;
const GID: u16 = 1 << 1;
const NLINK: u16 = 1 << 2;
const SIZE: u16 = 1 << 3;
const ALLOCATED: u16 = 1 << 4;
const RDEV: u16 = 1 << 5;
const FLAGS: u16 = 1 << 6;
const GENERATION: u16 = 1 << 7;
const PARENT: u16 = 1 << 8;
const POLICY: u16 = 1 << 9;
/// Bits that are all there is to say.
const INLINE: u16 = 1 << 10;
const XATTRS: u16 = 1 << 11;
const OWN_POLICY: u16 = 1 << 12;
const KNOWN: u16 = (1 << 13) - 1;

/// Bits of an inode's flags, by the names that docs/format.md gives them. Their numbers are those that chattr(1)
/// and the kernel use.
pub const INODE_FLAGS: [(&str, u32); 5] = [
    ("sync", Inode::SYNC),
    ("immutable", Inode::IMMUTABLE),
    ("append-only", Inode::APPEND_ONLY),
    ("no dump", Inode::NO_DUMP),
    ("no access time", Inode::NO_ATIME),
];

/// An inode's attributes, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// File type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that refer to it.
    pub nlink: u32,
    /// Bytes of the content; of a directory, its entries.
    pub size: u64,
    /// Bytes of the content that references cover.
    pub allocated: u64,
    /// Device number of a special file.
    pub rdev: u32,
    /// Flags, of [`INODE_FLAGS`]; what a later version may have set besides is kept.
    pub flags: u32,
    /// For NFS.
    pub generation: u64,
    /// The directory it is in, of a directory.
    pub parent: InodeId,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// How its content is stored.
    pub policy: PolicyId,
    /// Whether somebody said so of it: it does not follow the directory that it is in.
    pub own_policy: bool,
    /// Whether the content is inline.
    pub inline: bool,
    /// Whether it has extended attributes.
    pub xattrs: bool,
}

impl Inode {
    /// Changes are durable when the call returns.
    pub const SYNC: u32 = 0x08;
    /// Nothing of it changes, its names included.
    pub const IMMUTABLE: u32 = 0x10;
    /// It only grows, and keeps its names.
    pub const APPEND_ONLY: u32 = 0x20;
    /// A backup may leave it out.
    pub const NO_DUMP: u32 = 0x40;
    /// Reading does not set the access time.
    pub const NO_ATIME: u32 = 0x80;

    /// Whether it has any of these flags.
    pub const fn has_any(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// The numbers that have a bit: the bit, what goes without saying, and the number.
    fn numbers(&self) -> [(u16, u64, u64); 10] {
        [
            (UID, 0, u64::from(self.uid)),
            (GID, 0, u64::from(self.gid)),
            (NLINK, 1, u64::from(self.nlink)),
            (SIZE, 0, self.size),
            (ALLOCATED, self.size, self.allocated),
            (RDEV, 0, u64::from(self.rdev)),
            (FLAGS, 0, u64::from(self.flags)),
            (GENERATION, 0, self.generation),
            (PARENT, 0, self.parent.0),
            (POLICY, 0, u64::from(self.policy.0)),
        ]
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let numbers = self.numbers();
        let said = numbers.iter().filter(|(_, unsaid, number)| number != unsaid);
        let mut fields = said.clone().fold(0, |fields, (bit, ..)| fields | bit);
        fields |= if self.inline { INLINE } else { 0 };
        fields |= if self.xattrs { XATTRS } else { 0 };
        fields |= if self.own_policy { OWN_POLICY } else { 0 };
        let mut value = Vec::with_capacity(48);
        value.push(ENVELOPE_PLAIN);
        value.put_u16(fields);
        value.put_varint(u64::from(self.mode));
        for (.., number) in said {
            value.put_varint(*number);
        }
        value.put_u64(self.ctime.0.cast_unsigned());
        for time in [self.btime, self.mtime, self.atime] {
            value.put_varint(zigzag(self.ctime.0.wrapping_sub(time.0)));
        }
        value
    }

    /// Reads a stored inode.
    ///
    /// # Errors
    /// When it is cut short, its envelope or a field of it is unknown, or a number is too large.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let fields = reader.u16()?;
        if fields & !KNOWN != 0 {
            return Err(FormatError::Value { what: WHAT, field: "fields", value: u64::from(fields) });
        }
        let mode = narrow("mode", reader.varint()?)?;
        let mut next = |bit, unsaid| if fields & bit == 0 { Ok(unsaid) } else { reader.varint() };
        let mut inode = Self {
            mode,
            uid: narrow("uid", next(UID, 0)?)?,
            gid: narrow("gid", next(GID, 0)?)?,
            nlink: narrow("nlink", next(NLINK, 1)?)?,
            size: next(SIZE, 0)?,
            inline: fields & INLINE != 0,
            xattrs: fields & XATTRS != 0,
            own_policy: fields & OWN_POLICY != 0,
            ..Self::default()
        };
        inode.allocated = next(ALLOCATED, inode.size)?;
        inode.rdev = narrow("rdev", next(RDEV, 0)?)?;
        inode.flags = narrow("flags", next(FLAGS, 0)?)?;
        inode.generation = next(GENERATION, 0)?;
        inode.parent = InodeId(next(PARENT, 0)?);
        inode.policy = PolicyId(narrow("policy", next(POLICY, 0)?)?);
        inode.ctime = Timestamp(reader.u64()?.cast_signed());
        let mut time =
            || Ok::<_, FormatError>(Timestamp(inode.ctime.0.wrapping_sub(unzigzag(reader.varint()?))));
        (inode.btime, inode.mtime, inode.atime) = (time()?, time()?, time()?);
        reader.finish()?;
        Ok(inode)
    }
}

fn narrow<T: TryFrom<u64>>(field: &'static str, value: u64) -> Result<T, FormatError> {
    T::try_from(value).map_err(|_| FormatError::Value { what: WHAT, field, value })
}

/// Small numbers of either sign become small numbers: 0, -1, 1, -2, ...
const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::TOMBSTONE;

    fn full() -> Inode {
        Inode {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 3,
            size: 4,
            allocated: 5,
            rdev: 6,
            flags: 7,
            generation: 8,
            parent: InodeId(9),
            atime: Timestamp(-10),
            mtime: Timestamp(11),
            ctime: Timestamp(12),
            btime: Timestamp(13),
            policy: PolicyId(14),
            own_policy: false,
            inline: true,
            xattrs: false,
        }
    }

    #[test]
    fn inodes_round_trip() {
        let last = Timestamp(i64::MAX);
        let extreme = Inode {
            mode: u32::MAX,
            uid: u32::MAX,
            nlink: 0,
            size: u64::MAX,
            allocated: 0,
            generation: u64::MAX,
            policy: PolicyId(u16::MAX),
            own_policy: true,
            ctime: Timestamp(i64::MIN),
            atime: last,
            mtime: Timestamp(0),
            btime: last,
            xattrs: true,
            ..full()
        };
        for inode in [full(), extreme, Inode::default(), Inode { nlink: 1, ..Inode::default() }] {
            let value = inode.encode();
            assert_eq!(Inode::decode(&value).unwrap(), inode);
            for length in 0..value.len() {
                assert!(Inode::decode(&value[..length]).is_err());
            }
            assert!(Inode::decode(&[&value[..], &[0]].concat()).is_err());
        }
        assert!(Inode::decode(&TOMBSTONE).is_err());
    }

    /// The bytes are the promise, not the code.
    #[test]
    fn the_stored_form_is_this() {
        let value = [0, 0xff, 0x07, 0xa4, 0x83, 0x02, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14];
        let times = [12, 0, 0, 0, 0, 0, 0, 0, 1, 2, 44];
        assert_eq!(full().encode(), [&value[..], &times].concat());
    }

    #[test]
    fn a_plain_file_takes_few_bytes() {
        let now = 1_790_000_000_000_000_000;
        let (ctime, old) = (Timestamp(now), Timestamp(now - 400 * 86_400 * 1_000_000_000));
        let file = Inode { mode: 0o100_644, nlink: 1, size: 13_000, allocated: 13_000, ..Inode::default() };
        let fresh = Inode { ctime, btime: ctime, mtime: ctime, atime: ctime, ..file };
        assert_eq!(fresh.encode().len(), 19);
        let copied = Inode { ctime, btime: Timestamp(now - 90_000), mtime: old, atime: old, ..file };
        assert_eq!(copied.encode().len(), 19 + 2 + 2 * 7);
    }

    #[test]
    fn what_is_unknown_or_too_large_is_refused() {
        let mut value = full().encode();
        value[2] |= 1 << 5;
        assert!(matches!(Inode::decode(&value), Err(FormatError::Value { field: "fields", .. })));
        let mut wide = vec![ENVELOPE_PLAIN];
        wide.put_u16(UID);
        wide.put_varint(0o100_644);
        wide.put_varint(1 << 32);
        wide.extend_from_slice(&[0; 11]);
        assert!(matches!(Inode::decode(&wide), Err(FormatError::Value { field: "uid", .. })));
    }
}
