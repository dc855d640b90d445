//! The flags of chattr(1).
//!
//! What is immutable changes in nothing, what is append-only grows and changes in nothing else, and both keep their
//! names. The verbs refuse the rest with `NotPermitted`, whoever asks. Changes of an inode that is marked sync are
//! durable when the verb returns. The other flags are kept for those who ask for them.

use crate::FsError;
use crate::fs::{Caller, Fs};
use crate::node::Node;
use aegisfs_base::InodeId;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_format::value::{INODE_FLAGS, Inode};

/// Flags that there are.
const KNOWN: u32 = {
    let (mut known, mut at) = (0, 0);
    while at < INODE_FLAGS.len() {
        known |= INODE_FLAGS[at].1;
        at += 1;
    }
    known
};
/// Flags that only the superuser changes.
const GUARDED: u32 = Inode::IMMUTABLE | Inode::APPEND_ONLY;
/// What is made in a directory begins with these of its flags.
const INHERITED: u32 = Inode::SYNC | Inode::NO_DUMP | Inode::NO_ATIME;

impl Fs {
    /// An inode's flags.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn flags(&self, id: InodeId) -> Result<u32, FsError> {
        Ok(self.node(id)?.state.read().inode.flags & KNOWN)
    }

    /// Sets an inode's flags, all of them.
    ///
    /// # Errors
    /// `NotSupported` for flags that there are not, `NotPermitted` for who may not, or while it stays immutable;
    /// `NotFound`, or a fault.
    pub fn set_flags(&self, id: InodeId, flags: u32, caller: Caller) -> Result<(), FsError> {
        if flags & !KNOWN != 0 {
            return Err(FsError::NotSupported);
        }
        self.store.check_writable()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        let before = state.inode;
        let changed = (before.flags & KNOWN) ^ flags;
        let owns = caller.uid == before.uid && changed & GUARDED == 0;
        let stays_immutable = before.flags & flags & Inode::IMMUTABLE != 0;
        if (caller.uid != 0 && !owns) || (stays_immutable && changed != 0) {
            return Err(FsError::NotPermitted);
        }
        if changed == 0 {
            return Ok(());
        }
        state.inode.flags ^= changed;
        state.inode.ctime = self.now();
        let ops = vec![Self::put_inode(id, &state)];
        self.commit_node(id, &mut state, before, ops)?;
        drop(state);
        self.sync_if_asked(&node)
    }

    /// Makes a change durable that was made to a node that is marked so.
    pub(super) fn sync_if_asked(&self, node: &Node) -> Result<(), FsError> {
        let asked = node.state.read().inode.has_any(Inode::SYNC) && !removed(Edge::SyncFlag);
        if asked { self.sync_node(node) } else { Ok(()) }
    }
}

/// The flags that something begins with; only files and directories can be durable by themselves.
pub(super) fn inherited(parent: &Inode, of_bytes_or_names: bool) -> u32 {
    let kept = if of_bytes_or_names { INHERITED } else { INHERITED & !Inode::SYNC };
    parent.flags & kept
}
