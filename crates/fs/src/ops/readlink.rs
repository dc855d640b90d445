//! readlink: where a symbolic link leads.

use crate::FsError;
use crate::fs::{Fs, HEAD, inconsistent};
use crate::node::{S_IFLNK, S_IFMT};
use aegisfs_base::InodeId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value;
use aegisfs_store::versions;

impl Fs {
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` when it is none, `NotFound`, or a fault.
    pub fn readlink(&self, id: InodeId) -> Result<Vec<u8>, FsError> {
        let node = self.node(id)?;
        if node.state.read().inode.mode & S_IFMT != S_IFLNK {
            return Err(FsError::Invalid);
        }
        let view = self.store.head_view(HEAD)?;
        let stored = versions::visible(&self.store.view(), Table::Inline, &key::inode(id), &view)?;
        let stored = stored.ok_or_else(|| inconsistent(format!("symlink {id} lacks its target")))?;
        Ok(value::unwrap(&stored)?.to_vec())
    }
}
