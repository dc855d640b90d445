//! open, create, release: handles.

use super::make::{Kind, MakeOptions};
use crate::FsError;
use crate::fs::{Attributes, Fs, attributes};
use crate::handle::HandleId;
use aegisfs_base::InodeId;

impl Fs {
    /// Opens a file or directory.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn open(&self, id: InodeId) -> Result<HandleId, FsError> {
        let node = self.node(id)?;
        if node.state.read().dead {
            return Err(FsError::NotFound);
        }
        Ok(self.handles.open(node, false))
    }

    /// Opens a file for somebody who may write to it.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn open_to_write(&self, id: InodeId) -> Result<HandleId, FsError> {
        if !self.options.kernel_caches {
            return self.open(id);
        }
        let node = self.node(id)?;
        {
            let mut state = node.state.write();
            if state.dead {
                return Err(FsError::NotFound);
            }
            state.cached_writers += 1;
        }
        Ok(self.handles.open(node, true))
    }

    /// Whether the kernel may hold bytes of a file that have not reached us.
    pub fn kernel_may_hold(&self, id: InodeId) -> bool {
        self.node(id).is_ok_and(|node| node.state.read().cached_writers > 0)
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As [`Fs::make`].
    pub fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        options: &MakeOptions,
    ) -> Result<(Attributes, HandleId), FsError> {
        let made = self.make(parent, name, Kind::File, options)?;
        let handle = self.open_to_write(made.id)?;
        Ok((self.getattr(made.id)?, handle))
    }

    /// Closes a handle. Returns the inode if its attributes look otherwise than while it was open.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn release(&self, handle: HandleId) -> Result<Option<InodeId>, FsError> {
        let (node, writes_cached) = self.handles.close(handle).ok_or(FsError::BadHandle)?;
        let mut changed = None;
        if writes_cached {
            let mut state = node.state.write();
            let before = attributes(node.id, &state);
            state.cached_writers -= 1;
            changed = (attributes(node.id, &state) != before).then_some(node.id);
        }
        self.drop_if_unused(&node);
        Ok(changed)
    }
}
