//! POSIX ACLs in the form in which extended attributes carry them, and what they have to do with modes.
//!
//! ```text
//! | version 2: u32 | entries: tag u16, permissions u16, id u32 |
//! ```
//! Three of the entries say what the mode says too: the owner's, the others', and the mask's (or, where there
//! is none, the group's). An ACL that has no further entry is the mode and is not stored. The kernel evaluates
//! ACLs; making inodes, changing modes and keeping both in step is ours. After withdrawn POSIX 1003.1e draft
//! 17, sections 23.1.5 and 23.1.6.

use crate::FsError;

/// The attribute that holds the ACL of a file or directory.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what is made in a directory begins with.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Tags, in the order in which they stand.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Bits of a mode that an ACL speaks of.
const MODE_BITS: u32 = 0o777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    /// User or group; without meaning for the other tags.
    id: u32,
}

/// A well-formed ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

/// Whether an attribute's name is that of an ACL.
pub(crate) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    /// Reads an ACL.
    ///
    /// # Errors
    /// `NotSupported` for another version, `Invalid` for anything that is no ACL.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FsError> {
        let (version, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(FsError::NotSupported);
        }
        let (entries, []) = rest.as_chunks::<ENTRY_BYTES>() else { return Err(FsError::Invalid) };
        let entry = |raw: &[u8; ENTRY_BYTES]| Entry {
            tag: u16::from_le_bytes([raw[0], raw[1]]),
            permissions: u16::from_le_bytes([raw[2], raw[3]]),
            id: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
        };
        let acl = Self { entries: entries.iter().map(entry).collect() };
        if acl.is_well_formed() { Ok(acl) } else { Err(FsError::Invalid) }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn is_well_formed(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        [OWNER, OWNING_GROUP, OTHER].iter().all(|tag| count(*tag) == 1)
            && (count(MASK) == 1 || (count(MASK) == 0 && named == 0))
            && self.entries.len() == 3 + count(MASK) + named
            && self.entries.is_sorted_by_key(|entry| entry.tag)
            && self.entries.iter().all(|entry| entry.permissions <= 7)
    }

    /// The entries that say what the mode says, and how far up their bits stand in it.
    fn shared(&mut self) -> impl Iterator<Item = (&mut Entry, u32)> {
        let group = if self.says_more() { MASK } else { OWNING_GROUP };
        let shift = move |tag| match tag {
            OWNER => Some(6),
            OTHER => Some(0),
            _ => (tag == group).then_some(3),
        };
        self.entries.iter_mut().filter_map(move |entry| shift(entry.tag).map(|shift| (entry, shift)))
    }

    /// Whether it says more than a mode can.
    pub(crate) fn says_more(&self) -> bool {
        self.entries.len() > 3
    }

    /// The permissions that it gives a mode.
    pub(crate) fn mode(&mut self) -> u32 {
        self.shared().fold(0, |mode, (entry, shift)| mode | u32::from(entry.permissions) << shift)
    }

    /// Follows a mode that was changed.
    pub(crate) fn follow(&mut self, mode: u32) {
        self.shared().for_each(|(entry, shift)| entry.permissions = (mode >> shift & 7) as u16);
    }

    /// What something begins with that is made with a mode where this is the default; and its mode.
    pub(crate) fn inherited(mut self, mode: u32) -> (Self, u32) {
        self.shared().for_each(|(entry, shift)| entry.permissions &= (mode >> shift & 7) as u16);
        let permissions = self.mode();
        (self, mode & !MODE_BITS | permissions)
    }

    /// A mode with the permissions that this ACL gives it.
    pub(crate) fn applied(&mut self, mode: u32) -> u32 {
        mode & !MODE_BITS | self.mode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |(tag, permissions, id): &(u16, u16, u32)| Entry {
            tag: *tag,
            permissions: *permissions,
            id: *id,
        };
        Acl { entries: entries.iter().map(entry).collect() }.encode()
    }

    const PLAIN: [(u16, u16, u32); 3] = [(OWNER, 6, !0), (OWNING_GROUP, 4, !0), (OTHER, 0, !0)];
    const NAMED: [(u16, u16, u32); 6] = [
        (OWNER, 7, !0),
        (USER, 6, 1000),
        (OWNING_GROUP, 5, !0),
        (GROUP, 7, 20),
        (MASK, 6, !0),
        (OTHER, 1, !0),
    ];

    #[test]
    fn acls_round_trip_and_become_modes() {
        for (entries, says_more, mode) in [(&PLAIN[..], false, 0o640), (&NAMED[..], true, 0o761)] {
            let mut found = Acl::decode(&acl(entries)).unwrap();
            assert_eq!(found.encode(), acl(entries));
            assert_eq!((found.says_more(), found.mode()), (says_more, mode));
            assert_eq!(found.applied(0o102_000), 0o102_000 | mode);
        }
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        let whole = acl(&NAMED);
        for length in (0..whole.len()).filter(|length| *length != 4 + 8) {
            assert!(Acl::decode(&whole[..length]).is_err(), "{length}");
        }
        let mut other = whole.clone();
        other[0] = 3;
        assert!(matches!(Acl::decode(&other), Err(FsError::NotSupported)));
        let without = |tag| acl(&NAMED.into_iter().filter(|entry| entry.0 != tag).collect::<Vec<_>>());
        for tag in [OWNER, OWNING_GROUP, MASK, OTHER] {
            assert!(matches!(Acl::decode(&without(tag)), Err(FsError::Invalid)), "{tag}");
        }
        let with = |entry| acl(&[&NAMED[..], &[entry]].concat());
        for entry in [(OTHER, 1, !0), (USER, 1, 5), (0x40, 1, 0), (MASK, 8, !0)] {
            assert!(matches!(Acl::decode(&with(entry)), Err(FsError::Invalid)), "{entry:?}");
        }
    }

    #[test]
    fn a_mode_that_changes_takes_its_entries_along() {
        let mut named = Acl::decode(&acl(&NAMED)).unwrap();
        named.follow(0o100_524);
        let permissions: Vec<u16> = named.entries.iter().map(|entry| entry.permissions).collect();
        assert_eq!((permissions, named.mode()), (vec![5, 6, 5, 7, 2, 4], 0o524));
        let mut plain = Acl::decode(&acl(&PLAIN)).unwrap();
        plain.follow(0o751);
        assert_eq!(plain.mode(), 0o751);
    }

    #[test]
    fn what_is_made_gets_what_both_allow() {
        let named = Acl::decode(&acl(&NAMED)).unwrap();
        let (inherited, mode) = named.inherited(0o2_654);
        let permissions: Vec<u16> = inherited.entries.iter().map(|entry| entry.permissions).collect();
        // The named ones stay; the mask holds them down.
        assert_eq!((permissions, mode), (vec![6, 6, 5, 7, 4, 0], 0o2_640));
        let (inherited, mode) = Acl::decode(&acl(&PLAIN)).unwrap().inherited(0o666);
        assert_eq!((inherited.says_more(), mode), (false, 0o640));
    }
}
