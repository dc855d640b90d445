//! statfs: how much room there is.

use crate::FsError;
use crate::fs::Fs;
use aegisfs_base::limits::{BLOCK_BYTES, NAME_BYTES_MAX};

/// Inodes are not counted out beforehand; each is taken to need this much room at least.
const BYTES_PER_INODE: u64 = 1024;

/// Room in the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Inodes that there could be in all.
    pub inodes: u64,
    /// Inodes that could still be made.
    pub inodes_free: u64,
    /// Longest name.
    pub name_bytes_max: u32,
}

impl Fs {
    /// Room in the filesystem, at the default policy.
    ///
    /// # Errors
    /// None so far.
    pub fn statfs(&self) -> Result<Statistics, FsError> {
        let (total, free) = self.store.capacity();
        let free = free.saturating_sub(self.soft_reserve_bytes());
        Ok(Statistics {
            block_bytes: BLOCK_BYTES as u32,
            blocks: total / BLOCK_BYTES as u64,
            blocks_free: free / BLOCK_BYTES as u64,
            inodes: total / BYTES_PER_INODE,
            inodes_free: free / BYTES_PER_INODE,
            name_bytes_max: NAME_BYTES_MAX as u32,
        })
    }
}
