//! setattr: chmod, chown, truncate, utimens.

use crate::FsError;
use crate::acl;
use crate::fs::{Attributes, Fs, attributes, note_commit};
use crate::node::{Node, NodeState, S_IFDIR, S_IFMT, S_ISGID, S_ISUID};
use aegisfs_base::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use aegisfs_base::{InodeId, Timestamp};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{self, Inode};
use aegisfs_store::reap::{hole, truncated_value};
use std::sync::Arc;

/// A new time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// The time of the change.
    Now,
    /// This one.
    To(Timestamp),
}

/// What to change; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeChange>,
    /// Last change of content.
    pub mtime: Option<TimeChange>,
    /// Whoever changes the length or the owner may not keep setuid and setgid bits.
    pub drops_privileges: bool,
    /// Last change of the inode, which a kernel with a writeback cache keeps itself.
    pub ctime: Option<Timestamp>,
    /// Nobody asked for it: a kernel with a writeback cache hands over the times that it kept.
    pub handed_over: bool,
}

impl Changes {
    /// Whether both times are to be that of the change, as touch(1) asks. A kernel that keeps times itself gives
    /// the one of modification as a number, the same as that of the inode's change.
    fn touches(&self) -> bool {
        let modified = match self.mtime {
            Some(TimeChange::Now) => true,
            Some(TimeChange::To(time)) => self.ctime == Some(time),
            None => false,
        };
        modified && self.atime == Some(TimeChange::Now)
    }

    /// Whether nobody asked for it. A kernel that keeps times itself may also hand them over when nobody has the
    /// file open any more, since it changes the last one with every name and mode; the others are as they were.
    fn is_handed_over(&self, inode: &Inode) -> bool {
        let alone = self.atime.is_none() && self.permissions.is_none();
        let alone = alone && self.uid.is_none() && self.gid.is_none() && self.ctime.is_some();
        alone && (self.handed_over || self.mtime.is_none_or(|time| time == TimeChange::To(inode.mtime)))
    }

    /// Refuses what the inode's flags forbid.
    fn check_flags(&self, state: &NodeState) -> Result<(), FsError> {
        if self.is_handed_over(&state.inode) {
            return Ok(());
        }
        let only_touches = self.touches() && self.permissions.is_none() && self.uid.is_none();
        if only_touches && self.gid.is_none() { state.refuse_immutable() } else { state.refuse_flagged() }
    }
}

impl Fs {
    /// Changes attributes.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `TooLarge`, `NotPermitted` where flags forbid it, or a fault.
    pub fn setattr(&self, id: InodeId, changes: &Changes) -> Result<Attributes, FsError> {
        self.store.check_writable()?;
        let node = self.node(id)?;
        if let Some(size) = changes.size {
            self.truncate(&node, size)?;
        }
        let changed = self.change_attributes(&node, changes)?;
        self.sync_if_asked(&node)?;
        Ok(changed)
    }

    fn change_attributes(&self, node: &Arc<Node>, changes: &Changes) -> Result<Attributes, FsError> {
        let id = node.id;
        let mut state = node.state.write();
        let has_any = state.inode.mode & (S_ISUID | S_ISGID) != 0 || state.inode.xattrs;
        let drops_privileges = changes.drops_privileges && has_any;
        let others = Changes { size: None, drops_privileges, ..*changes };
        if state.dead {
            return Err(FsError::NotFound);
        }
        if others == Changes::default() {
            return Ok(attributes(id, &state));
        }
        others.check_flags(&state)?;
        if others.drops_privileges && !state.is_directory() {
            self.drop_capability(node, &mut state)?;
        }
        let before = state.inode;
        let acl = match others.permissions {
            Some(_) => self.stored_acl(id, &before, acl::ACCESS)?,
            None => None,
        };
        change(&mut state, &others, self.now());
        // Times that a writeback cache sends along with every file are kept until something else is stored.
        let only_times = others.permissions.is_none()
            && others.uid.is_none()
            && others.gid.is_none()
            && !others.drops_privileges;
        if only_times && state.is_dirty() {
            self.keep_for_later(node, &mut state);
            return Ok(attributes(id, &state));
        }
        // What has no name is gone after a crash, and if it gets one its attributes are stored with that. The kernel
        // sends the times of every file that was removed.
        if only_times && state.orphan {
            return Ok(attributes(id, &state));
        }
        let mut ops = vec![Self::put_inode(id, &state)];
        if let Some(mut acl) = acl {
            acl.follow(state.inode.mode);
            let stem = key::xattr(id, acl::ACCESS);
            ops.push(Op::PutVersion { table: Table::Xattr, stem, value: value::wrap(&acl.encode()) });
        }
        self.commit_node(id, &mut state, before, ops)?;
        Ok(attributes(id, &state))
    }

    /// Gives a file another length.
    fn truncate(&self, node: &Arc<Node>, size: u64) -> Result<(), FsError> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let _flushing = node.flushing.lock();
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        if state.is_directory() {
            return Err(FsError::IsDirectory);
        }
        if !state.is_regular() {
            return Err(FsError::Invalid);
        }
        state.refuse_flagged()?;
        if size > state.inode.size {
            return self.extend(node, &mut state, size);
        }
        let id = node.id;
        let at_once = self.store.clears_at_once(id, size, u64::MAX)?;
        let before = state.inode;
        let waiting = state.overlay.waiting_bytes();
        let tail = state.overlay.split_off(size);
        let now = self.now();
        state.inode.size = size;
        state.inode.mtime = now;
        state.inode.ctime = now;
        let mut ops = vec![Self::put_inode(id, &state)];
        if at_once {
            ops.push(hole(id, size, u64::MAX));
        } else if !state.orphan {
            // The rest is given back in steps; the entry finishes it should they be interrupted.
            let stem = key::inode(id).to_vec();
            ops.push(Op::PutVersion { table: Table::Orphans, stem, value: truncated_value(size) });
        }
        if state.inode.inline {
            ops.push(cut_inline(id, &state));
        }
        match self.commit(ops) {
            Ok(committed) => note_commit(id, &mut state, &committed),
            Err(error) => {
                state.inode = before;
                state.overlay.put_under(tail);
                return Err(error);
            }
        }
        self.count_waiting(waiting, state.overlay.waiting_bytes());
        state.fit_promise(&self.store, None);
        if !at_once {
            let released = self.store.finish_truncation(id, size, state.orphan)?;
            state.inode.allocated = state.inode.allocated.saturating_add_signed(released);
        }
        Ok(())
    }

    /// Bytes between the old length and the new one are a hole.
    pub(super) fn extend(&self, node: &Arc<Node>, state: &mut NodeState, size: u64) -> Result<(), FsError> {
        let before = state.inode;
        let now = self.now();
        state.inode.size = size;
        state.inode.mtime = now;
        state.inode.ctime = now;
        // While bytes are only here the metadata cannot claim the new length; it will with them.
        if state.overlay.new_bytes() > 0 {
            self.keep_for_later(node, state);
            return Ok(());
        }
        let ops = vec![Self::put_inode(node.id, state)];
        self.commit_node(node.id, state, before, ops)
    }
}

/// The inline content of a file that was cut: what is left of it in memory. Behind it the file may have been
/// longer, all of it a hole.
fn cut_inline(id: InodeId, state: &NodeState) -> Op {
    let mut content = vec![0; state.claimable_size().min(INLINE_BYTES_MAX as u64) as usize];
    state.overlay.read(0, &mut content, &mut crate::overlay::Ranges::default());
    Op::PutVersion { table: Table::Inline, stem: key::inode(id).to_vec(), value: value::wrap(&content) }
}

fn change(state: &mut NodeState, changes: &Changes, now: Timestamp) {
    let inode = &mut state.inode;
    if let Some(permissions) = changes.permissions {
        inode.mode = inode.mode & S_IFMT | permissions & 0o7_777;
    }
    if changes.drops_privileges && inode.mode & S_IFMT != S_IFDIR {
        super::write::drop_set_bits(inode);
    }
    inode.uid = changes.uid.unwrap_or(inode.uid);
    inode.gid = changes.gid.unwrap_or(inode.gid);
    let time = |change: Option<TimeChange>, old: Timestamp| match change {
        Some(TimeChange::Now) => now,
        Some(TimeChange::To(time)) => time,
        None => old,
    };
    inode.atime = time(changes.atime, inode.atime);
    inode.mtime = time(changes.mtime, inode.mtime);
    inode.ctime = changes.ctime.unwrap_or(now);
}
