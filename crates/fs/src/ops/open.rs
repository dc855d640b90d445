//! open, create, release: handles.

use super::make::{Kind, MakeOptions};
use crate::FsError;
use crate::fs::{Attributes, Fs, attributes};
use crate::handle::{Access, HandleId};
use crate::node::{Node, NodeState};
use aegisfs_base::InodeId;
use aegisfs_format::value::Inode;
use std::sync::Arc;

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
        Ok(self.handles.open(node, Access::Reads))
    }

    /// Opens a file for somebody who may write to it, or with `appends` only at its end. Says whether its
    /// attributes look otherwise since.
    ///
    /// # Errors
    /// `NotFound`, `NotPermitted` where flags forbid it, or a fault.
    pub fn open_to_write(&self, id: InodeId, appends: bool) -> Result<(HandleId, bool), FsError> {
        self.open_node_to_write(&self.node(id)?, appends)
    }

    fn open_node_to_write(&self, node: &Arc<Node>, appends: bool) -> Result<(HandleId, bool), FsError> {
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        if appends {
            state.refuse_immutable()?;
        } else {
            state.refuse_flagged()?;
        }
        if state.inode.has_any(Inode::APPEND_ONLY) {
            drop(state);
            return Ok((self.handles.open(Arc::clone(node), Access::Appends), false));
        }
        let cached = u32::from(self.options.kernel_caches);
        state.writers += 1;
        let changed = changes_looks(node.id, &mut state, |state| state.cached_writers += cached);
        drop(state);
        Ok((self.handles.open(Arc::clone(node), Access::Writes), changed))
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
        let (_, node) = self.make_node(parent, name, Kind::File, options)?;
        let (handle, _) = self.open_node_to_write(&node, true)?;
        Ok((self.attributes_of(&node), handle))
    }

    /// Closes a handle. Says whether the inode's attributes look otherwise since.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn release(&self, handle: HandleId) -> Result<bool, FsError> {
        let (node, access) = self.handles.close(handle).ok_or(FsError::BadHandle)?;
        let changed = access == Access::Writes && {
            let cached = u32::from(self.options.kernel_caches);
            let mut state = node.state.write();
            state.writers -= 1;
            changes_looks(node.id, &mut state, |state| state.cached_writers -= cached)
        };
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
