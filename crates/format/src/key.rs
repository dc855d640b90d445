//! Keys of the metadata tables: big-endian, so that their order has meaning.
//!
//! A versioned key is a **stem** followed by the epoch in which it was written, inverted so that the newest
//! version of a stem sorts first.

use crate::FormatError;
use aegisfs_base::{BranchId, ChunkId, EpochId, InodeId, SegmentId, Sequence};

/// A metadata table. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Inodes (versioned).
    Inode = 1,
    /// Directory entries (versioned).
    Dirent = 2,
    /// Extents of files by window (versioned).
    Extents = 3,
    /// Content of tiny files and symlink targets (versioned).
    Inline = 4,
    /// Extended attributes (versioned).
    Xattr = 5,
    /// Chunk descriptors.
    Chunks = 6,
    /// Segments.
    Segments = 7,
    /// Bytes that so far stand only in the log.
    Pending = 8,
    /// Volumes by name.
    Volumes = 9,
    /// Branches, and behind each the epochs of it that are pinned.
    Branches = 10,
    /// Snapshots by branch and name.
    Snapshots = 11,
    /// Inodes without a name that still hold space (versioned).
    Orphans = 12,
    /// What died but is still seen by a snapshot.
    Superseded = 13,
    /// Which stems have a version of an epoch.
    Changed = 14,
    /// Long work that survives a restart.
    Jobs = 15,
    /// Single values of the store itself.
    Config = 16,
    /// Hash to chunk; lives in a database of its own.
    Dedup = 32,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 17] = [
        Self::Inode,
        Self::Dirent,
        Self::Extents,
        Self::Inline,
        Self::Xattr,
        Self::Chunks,
        Self::Segments,
        Self::Pending,
        Self::Volumes,
        Self::Branches,
        Self::Snapshots,
        Self::Orphans,
        Self::Superseded,
        Self::Changed,
        Self::Jobs,
        Self::Config,
        Self::Dedup,
    ];

    /// The table with this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_raw(raw: u8) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|table| *table as u8 == raw).ok_or(FormatError::Value {
            what: "operation",
            field: "table",
            value: u64::from(raw),
        })
    }

    /// Its name, as docs/format.md has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inode => "inode",
            Self::Dirent => "dirent",
            Self::Extents => "extents",
            Self::Inline => "inline",
            Self::Xattr => "xattr",
            Self::Chunks => "chunks",
            Self::Segments => "segments",
            Self::Pending => "pending",
            Self::Volumes => "volumes",
            Self::Branches => "branches",
            Self::Snapshots => "snapshots",
            Self::Orphans => "orphans",
            Self::Superseded => "superseded",
            Self::Changed => "changed",
            Self::Jobs => "jobs",
            Self::Config => "config",
            Self::Dedup => "dedup",
        }
    }

    /// Whether its keys end in an epoch.
    pub const fn versioned(self) -> bool {
        matches!(
            self,
            Self::Inode | Self::Dirent | Self::Extents | Self::Inline | Self::Xattr | Self::Orphans
        )
    }
}

const CHANGED: &str = "changed key";

/// Bytes of the epoch at the end of a versioned key.
pub const EPOCH_BYTES: usize = 8;

/// A stem with its epoch.
pub fn versioned(stem: &[u8], epoch: EpochId) -> Vec<u8> {
    let mut key = Vec::with_capacity(stem.len() + EPOCH_BYTES);
    key.extend_from_slice(stem);
    key.extend_from_slice(&(!epoch.0).to_be_bytes());
    key
}

/// Splits a versioned key into stem and epoch.
///
/// # Errors
/// When the key is too short.
pub fn split_version(key: &[u8]) -> Result<(&[u8], EpochId), FormatError> {
    let (stem, epoch) =
        key.split_last_chunk::<EPOCH_BYTES>().ok_or(FormatError::Short { what: "versioned key" })?;
    Ok((stem, EpochId(!u64::from_be_bytes(*epoch))))
}

/// Stem of an inode, of its inline content and of its orphan entry.
pub fn inode(inode: InodeId) -> [u8; 8] {
    inode.0.to_be_bytes()
}

/// Stem of a bucket of directory entries.
pub fn dirent(parent: InodeId, name_hash: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&parent.0.to_be_bytes());
    key[8..].copy_from_slice(&name_hash.to_be_bytes());
    key
}

/// Reads the name hash out of a dirent stem.
///
/// # Errors
/// When the stem is too short.
pub fn dirent_hash(stem: &[u8]) -> Result<u64, FormatError> {
    number_at(stem, 8)
}

/// Stem of a window of extents.
pub fn extents(inode: InodeId, window: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&inode.0.to_be_bytes());
    key[8..].copy_from_slice(&window.to_be_bytes());
    key
}

/// Reads the window out of an extents stem.
///
/// # Errors
/// When the stem is too short.
pub fn extents_window(stem: &[u8]) -> Result<u64, FormatError> {
    number_at(stem, 8)
}

/// Reads the inode at the start of a stem.
///
/// # Errors
/// When the stem is too short.
pub fn stem_inode(stem: &[u8]) -> Result<InodeId, FormatError> {
    number_at(stem, 0).map(InodeId)
}

fn number_at(stem: &[u8], start: usize) -> Result<u64, FormatError> {
    let bytes = stem
        .get(start..)
        .and_then(|rest| rest.first_chunk::<8>())
        .ok_or(FormatError::Short { what: "key" })?;
    Ok(u64::from_be_bytes(*bytes))
}

/// Stem of an extended attribute. Names cannot hold a zero byte, so the terminator keeps order and prefixes apart.
pub fn xattr(inode: InodeId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + name.len());
    key.extend_from_slice(&inode.0.to_be_bytes());
    key.extend_from_slice(name);
    key.push(0);
    key
}

/// Reads the name out of an xattr stem.
///
/// # Errors
/// When the stem is too short.
pub fn xattr_name(stem: &[u8]) -> Result<&[u8], FormatError> {
    stem.get(8..)
        .and_then(<[u8]>::split_last)
        .map(|(_, name)| name)
        .ok_or(FormatError::Short { what: "xattr key" })
}

/// Key of a chunk in the memtable: descriptors one by one.
pub fn chunk(chunk: ChunkId) -> [u8; 8] {
    chunk.0.to_be_bytes()
}

/// Key of a group of descriptors in the engine.
pub fn chunk_group(chunk: ChunkId) -> [u8; 8] {
    (chunk.0 / crate::descriptor::DESCRIPTORS_PER_GROUP).to_be_bytes()
}

/// Key of a segment.
pub fn segment(segment: SegmentId) -> [u8; 8] {
    segment.0.to_be_bytes()
}

/// Key of bytes that stand only in the log.
pub fn pending(branch: BranchId, inode: InodeId, sequence: Sequence, part: u32) -> [u8; 24] {
    let mut key = [0; 24];
    key[..4].copy_from_slice(&branch.0.to_be_bytes());
    key[4..12].copy_from_slice(&inode.0.to_be_bytes());
    key[12..20].copy_from_slice(&sequence.0.to_be_bytes());
    key[20..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Reads inode, sequence and part out of a pending key.
///
/// # Errors
/// When the key is too short.
pub fn split_pending(key: &[u8]) -> Result<(InodeId, Sequence, u32), FormatError> {
    let part = key.get(20..24).ok_or(FormatError::Short { what: "pending key" })?;
    let part = u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
    Ok((InodeId(number_at(key, 4)?), Sequence(number_at(key, 12)?), part))
}

/// Key of a hash in a dedup domain.
pub fn dedup(domain: u32, hash: &[u8; 32]) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&domain.to_be_bytes());
    key[4..].copy_from_slice(&hash[..16]);
    key
}

/// Key of something that died in `death` in a branch, after it was born in `birth`.
pub fn superseded(branch: BranchId, death: EpochId, birth: EpochId, what: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(20 + what.len());
    key.extend_from_slice(&branch.0.to_be_bytes());
    key.extend_from_slice(&death.0.to_be_bytes());
    key.extend_from_slice(&birth.0.to_be_bytes());
    key.extend_from_slice(what);
    key
}

/// Reads death, birth and the rest out of a superseded key.
///
/// # Errors
/// When the key is too short.
pub fn split_superseded(key: &[u8]) -> Result<(EpochId, EpochId, &[u8]), FormatError> {
    let rest = key.get(20..).ok_or(FormatError::Short { what: "superseded key" })?;
    Ok((EpochId(number_at(key, 4)?), EpochId(number_at(key, 12)?), rest))
}

/// Key of the note that a stem has a version of an epoch. Everything about an inode stands together.
pub fn changed(epoch: EpochId, table: Table, stem: &[u8]) -> Vec<u8> {
    let (inode, rest) = stem.split_at(stem.len().min(8));
    let mut key = Vec::with_capacity(9 + stem.len());
    key.extend_from_slice(&epoch.0.to_be_bytes());
    key.extend_from_slice(inode);
    key.push(table as u8);
    key.extend_from_slice(rest);
    key
}

/// Reads epoch, table and stem out of a changed key.
///
/// # Errors
/// When the key is too short or there is no such table.
pub fn split_changed(key: &[u8]) -> Result<(EpochId, Table, Vec<u8>), FormatError> {
    let (inode, rest) =
        key.get(8..).and_then(|key| key.split_at_checked(8)).ok_or(FormatError::Short { what: CHANGED })?;
    let (table, rest) = rest.split_first().ok_or(FormatError::Short { what: CHANGED })?;
    Ok((EpochId(number_at(key, 0)?), Table::from_raw(*table)?, [inode, rest].concat()))
}

/// Key of a branch.
pub fn branch(branch: BranchId) -> [u8; 4] {
    branch.0.to_be_bytes()
}

/// Key of a pinned epoch of a branch, in the table of branches.
pub fn pin(branch: BranchId, epoch: EpochId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&branch.0.to_be_bytes());
    key[4..].copy_from_slice(&epoch.0.to_be_bytes());
    key
}

/// Reads the epoch out of a pin's key.
///
/// # Errors
/// When the key is too short.
pub fn pin_epoch(key: &[u8]) -> Result<EpochId, FormatError> {
    number_at(key, 4).map(EpochId)
}

/// Key of a snapshot: names are told apart within their branch.
pub fn snapshot(branch: BranchId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + name.len());
    key.extend_from_slice(&branch.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The end of the range of keys that begin with a prefix; `None` when there is no end.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_sorts_first() {
        let stem = inode(InodeId(7));
        assert!(versioned(&stem, EpochId(9)) < versioned(&stem, EpochId(8)));
        assert_eq!(split_version(&versioned(&stem, EpochId(9))).unwrap(), (&stem[..], EpochId(9)));
        assert!(split_version(b"short").is_err());
    }

    #[test]
    fn prefixes_end_where_they_should() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff, 0xff]), None);
        assert_eq!(prefix_end(&[]), None);
    }

    #[test]
    fn names_that_are_prefixes_of_each_other_stay_apart() {
        let (a, ab) = (xattr(InodeId(1), b"user.a"), xattr(InodeId(1), b"user.ab"));
        assert!(a < ab && !ab.starts_with(&a));
        assert_eq!(xattr_name(&ab).unwrap(), b"user.ab");
        assert!(xattr_name(&[0; 8]).is_err());
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let stem = xattr(InodeId(5), b"user.a");
        let key = changed(EpochId(3), Table::Xattr, &stem);
        assert_eq!(split_changed(&key).unwrap(), (EpochId(3), Table::Xattr, stem));
        let of_inode = changed(EpochId(3), Table::Inode, &inode(InodeId(6)));
        assert!(key < of_inode, "an inode's changes stand together");
        assert_eq!(split_changed(&of_inode).unwrap().2, inode(InodeId(6)));
        for length in 0..17 {
            assert!(split_changed(&key[..length]).is_err());
        }
        assert!(split_changed(&[0; 17]).is_err(), "there is no table 0");
        assert_eq!(pin_epoch(&pin(BranchId(2), EpochId(9))).unwrap(), EpochId(9));
        assert!(pin(BranchId(2), EpochId(9)).starts_with(&branch(BranchId(2))));
        assert!(pin_epoch(&branch(BranchId(2))).is_err());
    }

    #[test]
    fn tables_have_frozen_numbers() {
        for table in Table::ALL {
            assert_eq!(Table::from_raw(table as u8).unwrap(), table);
        }
        assert_eq!(Table::Dedup as u8, 32);
        assert!(Table::from_raw(0).is_err());
    }
}
