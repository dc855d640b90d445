//! Names: their rules and their hash.

use crate::FsError;
use aegisfs_base::limits::NAME_BYTES_MAX;

/// Bits of a name's hash that are kept; with the ordinal they make a readdir cookie of 63 bits.
const HASH_BITS: u32 = 55;

/// Refuses what cannot be a name.
pub(crate) fn check(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(FsError::Invalid);
    }
    Ok(())
}

/// Refuses what cannot be the name of something new, too.
pub(crate) fn check_new(name: &[u8]) -> Result<(), FsError> {
    check(name)?;
    if matches!(name, b"." | b"..") { Err(FsError::Exists) } else { Ok(()) }
}

/// Hashes names with the pool's own key, so that nobody can prepare names that collide: the first 55 bits
/// of keyed BLAKE3 under the key repeated to 32 bytes. Never zero: small cookies are for `.` and `..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameHasher {
    key: [u8; 32],
}

impl NameHasher {
    pub(crate) fn new(key: [u8; 16]) -> Self {
        let mut long = [0; 32];
        long[..16].copy_from_slice(&key);
        long[16..].copy_from_slice(&key);
        Self { key: long }
    }

    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        let digest = blake3::keyed_hash(&self.key, name);
        let first: [u8; 8] = digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
        (u64::from_be_bytes(first) >> (64 - HASH_BITS)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_bytes_but_zero_and_slash() {
        for good in [&b"a"[..], b"\xff\xfe", b"..a", &[b'x'; 255]] {
            assert!(check_new(good).is_ok());
        }
        assert!(matches!(check(&[b'x'; 256]), Err(FsError::NameTooLong)));
        for bad in [&b""[..], b"a/b", b"a\0b"] {
            assert!(matches!(check(bad), Err(FsError::Invalid)));
        }
        assert!(matches!(check_new(b".."), Err(FsError::Exists)));
    }

    #[test]
    fn the_hash_is_frozen_and_keyed() {
        let hasher = NameHasher::new([1; 16]);
        assert_eq!(hasher.hash(b"etc"), NameHasher::new([1; 16]).hash(b"etc"));
        assert_ne!(hasher.hash(b"etc"), NameHasher::new([2; 16]).hash(b"etc"));
        assert!(hasher.hash(b"etc") < 1 << HASH_BITS);
    }
}
