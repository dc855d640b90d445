//! Keys and values of the metadata tables.

use aegisfs_format::descriptor::DescriptorGroup;
use aegisfs_format::value::{
    Branch, Damage, DeviceCounts, Inode, MendedList, Pin, Policy, Schedule, Scrub, Segment, Snapshot, Volume,
    decode_dirents, decode_pending, encode_dirents, encode_pending,
};
use aegisfs_format::{extent, key};

/// Whether bytes are accepted; what was accepted is encoded and read back.
macro_rules! value {
    ($(#[$doc:meta])* $name:ident, $kind:ty) => {
        $(#[$doc])*
        pub fn $name(bytes: &[u8]) -> bool {
            let decoded = <$kind>::decode(bytes);
            if let Ok(value) = &decoded {
                assert_eq!(<$kind>::decode(&value.encode()).as_ref(), Ok(value));
            }
            decoded.is_ok()
        }
    };
}

value!(
    /// Up to 32 chunk descriptors.
    descriptor_group,
    DescriptorGroup
);
value!(
    /// An inode.
    inode,
    Inode
);
value!(
    /// A segment with its placements.
    segment,
    Segment
);
value!(
    /// A branch.
    branch,
    Branch
);
value!(
    /// A pinned epoch.
    pin,
    Pin
);
value!(
    /// A snapshot.
    snapshot,
    Snapshot
);
value!(
    /// A volume.
    volume,
    Volume
);
value!(
    /// Where lost bytes should be.
    damage,
    Damage
);
value!(
    /// What was mended.
    mended,
    MendedList
);
value!(
    /// How far a scrub is.
    scrub,
    Scrub
);
value!(
    /// When scrubs begin.
    schedule,
    Schedule
);
value!(
    /// How something is stored.
    policy,
    Policy
);
value!(
    /// What a device was asked for.
    device_counts,
    DeviceCounts
);

/// The references of a window.
pub fn extents_window(bytes: &[u8]) -> bool {
    let decoded = extent::decode_window(bytes);
    if let Ok(window) = &decoded {
        assert_eq!(extent::encode_window(window), bytes);
    }
    decoded.is_ok()
}

/// The directory entries that share a hash.
pub fn dirents(bytes: &[u8]) -> bool {
    let decoded = decode_dirents(bytes);
    if let Ok(entries) = &decoded {
        assert_eq!(encode_dirents(entries), bytes);
    }
    decoded.is_ok()
}

/// Bytes that stand only in the log.
pub fn pending(bytes: &[u8]) -> bool {
    let decoded = decode_pending(bytes);
    if let Ok((offset, content)) = decoded {
        assert_eq!(encode_pending(offset, content), bytes);
    }
    decoded.is_ok()
}

/// Every reader of keys, on the same bytes. Accepted when all of them find what they need.
pub fn keys(bytes: &[u8]) -> bool {
    let outcomes = [
        key::split_version(bytes).is_ok(),
        key::dirent_hash(bytes).is_ok(),
        key::extents_window(bytes).is_ok(),
        key::stem_inode(bytes).is_ok(),
        key::xattr_name(bytes).is_ok(),
        key::split_pending(bytes).is_ok(),
        key::split_superseded(bytes).is_ok(),
        key::split_changed(bytes).is_ok(),
        key::pin_epoch(bytes).is_ok(),
    ];
    if let Ok((epoch, table, stem)) = key::split_changed(bytes) {
        assert_eq!(key::changed(epoch, table, &stem), bytes);
    }
    if let Ok((stem, epoch)) = key::split_version(bytes) {
        assert_eq!(key::versioned(stem, epoch), bytes);
    }
    if let Some(end) = key::prefix_end(bytes) {
        assert!(&end[..] > bytes);
    }
    outcomes.into_iter().all(|found| found)
}
