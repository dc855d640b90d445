//! fsync, fdatasync and fsyncdir: durable before they return.

use crate::FsError;
use crate::fs::Fs;
use crate::handle::HandleId;
use aegisfs_base::InodeId;

impl Fs {
    /// Makes a file, or a directory's names, durable.
    ///
    /// # Errors
    /// `BadHandle`, no space, or a fault.
    pub fn fsync(&self, handle: HandleId) -> Result<(), FsError> {
        let node = self.handle_node(handle)?;
        self.sync_node(&node)
    }

    /// The same for an inode that is not open.
    ///
    /// # Errors
    /// As [`Fs::fsync`].
    pub fn fsync_inode(&self, id: InodeId) -> Result<(), FsError> {
        let node = self.node(id)?;
        self.sync_node(&node)
    }
}
