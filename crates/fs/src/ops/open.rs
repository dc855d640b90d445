//! open, create, release: handles.

use super::make::{Kind, MakeOptions};
use crate::FsError;
use crate::fs::{Attributes, Fs, attributes};
use crate::handle::HandleId;
use crate::node::NodeState;
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

    /// Opens a file for somebody who may write to it. Says whether its attributes look otherwise since.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn open_to_write(&self, id: InodeId) -> Result<(HandleId, bool), FsError> {
        if !self.options.kernel_caches {
            return Ok((self.open(id)?, false));
        }
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        let changed = changes_looks(id, &mut state, |state| state.cached_writers += 1);
        drop(state);
        Ok((self.handles.open(node, true), changed))
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
        let (handle, _) = self.open_to_write(made.id)?;
        Ok((self.getattr(made.id)?, handle))
    }

    /// Closes a handle. Says whether the inode's attributes look otherwise since.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn release(&self, handle: HandleId) -> Result<bool, FsError> {
        let (node, writes_cached) = self.handles.close(handle).ok_or(FsError::BadHandle)?;
        let changed = writes_cached
            && changes_looks(node.id, &mut node.state.write(), |state| state.cached_writers -= 1);
        self.drop_if_unused(&node);
        Ok(changed)
    }
}

/// Changes a node; says whether a caller sees that in its attributes.
fn changes_looks(id: InodeId, state: &mut NodeState, change: impl FnOnce(&mut NodeState)) -> bool {
    let before = attributes(id, state);
    change(state);
    attributes(id, state) != before
}
