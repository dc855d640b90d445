//! write: bytes into memory, under the bound on what may wait there.

use crate::FsError;
use crate::flush::Portion;
use crate::fs::{Fs, SMALL_BYTES};
use crate::gate::Entering;
use crate::handle::{Access, HandleId};
use crate::node::{Node, NodeState, S_ISGID, S_ISUID};
use crate::overlay::Origin;
use aegisfs_base::limits::FILE_BYTES_MAX;
use aegisfs_base::{InodeId, PolicyId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::Inode;
use aegisfs_store::{Reservation, StoreError};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Execution bit of the group, without which setgid means something else.
const S_IXGRP: u32 = 0o010;

/// How bytes come to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteKind {
    /// A kernel writes back what it took and stamped itself. Such bytes may have the room kept for them.
    pub cached: bool,
    /// The writer may not keep the file's setuid and setgid bits.
    pub drops_privileges: bool,
    /// The writer writes at the end, wherever that is by then.
    pub appends: bool,
    /// It goes past the cache of a kernel, which may hold what was there before.
    pub past_cache: bool,
}

impl Default for WriteKind {
    /// That of an ordinary user, anywhere.
    fn default() -> Self {
        Self { cached: false, drops_privileges: true, appends: false, past_cache: false }
    }
}

/// The attribute that gives a program powers; it does not outlive a change of the program.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Fs {
    /// Writes bytes at an offset, on behalf of an ordinary user. Durable after a sync of the file.
    ///
    /// # Errors
    /// `TooLarge`, `BadHandle`, `NotPermitted` to an immutable file, no space, or a fault.
    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        self.write_with(handle, offset, data, WriteKind::default())?;
        Ok(data.len())
    }

    /// The same, as it came about. Says whether the file's mode lost setuid or setgid.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub fn write_with(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        kind: WriteKind,
    ) -> Result<bool, FsError> {
        let (node, access) = self.handle_access(handle)?;
        if data.is_empty() {
            return Ok(false);
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        let end = end.ok_or(FsError::TooLarge)?;
        self.store.check_writable()?;
        let entering = self.wait_for_memory(&node, data.len() as u64)?;
        let leave = if kind.cached { 0 } else { self.soft_reserve_bytes() };
        let (promise, mut state) = loop {
            let policy = node.state.read().inode.policy;
            let promise = self.reserve(data.len() as u64, leave, policy)?;
            let state = node.state.write();
            // Somebody may have said meanwhile that it takes more.
            if state.inode.policy == policy {
                break (promise, state);
            }
        };
        if !state.is_regular() {
            return Err(FsError::Invalid);
        }
        check_flags(&state, access, kind)?;
        // A kernel that cached the bytes asked for this when they were written; what was set since stays.
        if !kind.cached {
            self.drop_capability(&node, &mut state)?;
        }
        let was_clean = !state.overlay.needs_flush();
        let before = state.overlay.waiting_bytes();
        let run = state.overlay.write(offset, data, Origin::New);
        self.count_waiting(before, state.overlay.waiting_bytes());
        drop(entering);
        state.fit_promise(&self.store, Some(promise));
        state.inode.size = state.inode.size.max(end);
        let mode = state.inode.mode;
        self.stamp(&node, &mut state, kind);
        let lost_powers = state.inode.mode != mode;
        if was_clean {
            state.dirty_since = state.written;
        }
        let ready = run as u64 >= self.options.stream_bytes;
        drop(state);
        if kind.past_cache {
            node.past_cache.store(true, Ordering::Release);
        }
        if ready && !self.options.background {
            self.flush_nodes(std::iter::once((&*node, Portion::Stream)))?;
        } else if ready {
            self.wake_flusher();
        }
        self.sync_if_asked(&node)?;
        Ok(lost_powers)
    }

    pub(super) fn stamp(&self, node: &Arc<Node>, state: &mut NodeState, kind: WriteKind) {
        let now = self.now();
        if !kind.cached {
            state.inode.mtime = now;
            state.inode.ctime = now;
        }
        if kind.drops_privileges {
            drop_set_bits(&mut state.inode);
        }
        state.attributes_dirty = true;
        state.written = self.clock.elapsed();
        self.nodes.note_dirty(node);
    }

    /// Whether bytes were written past a kernel's cache since the file came to memory, and so since a kernel came to know
    /// it.
    pub fn went_past_cache(&self, id: InodeId) -> bool {
        self.node(id).is_ok_and(|node| node.past_cache.load(Ordering::Acquire))
    }

    /// Takes powers from a file that somebody of a group is about to change. Says whether its mode showed any.
    ///
    /// # Errors
    /// `NotFound`, `NotPermitted` when it is immutable, or a fault.
    pub fn drop_privileges(&self, id: InodeId, group: u32) -> Result<bool, FsError> {
        let node = self.node(id)?;
        let mut state = node.state.write();
        state.refuse_immutable()?;
        self.drop_capability(&node, &mut state)?;
        let before = state.inode.mode;
        drop_set_bits(&mut state.inode);
        // What setgid means without the group's execution bit is for those of the group to keep.
        if group != state.inode.gid {
            state.inode.mode &= !S_ISGID;
        }
        let lost_powers = state.inode.mode != before;
        if lost_powers {
            self.keep_for_later(&node, &mut state);
        }
        Ok(lost_powers)
    }

    /// Removes the attribute that gives powers, if the file may have it.
    pub(super) fn drop_capability(&self, node: &Node, state: &mut NodeState) -> Result<(), FsError> {
        if !state.inode.xattrs || state.powerless || state.dead {
            return Ok(());
        }
        if self.stored_xattr(node.id, CAPABILITY)?.is_some() {
            let stem = key::xattr(node.id, CAPABILITY);
            let committed = self.commit(vec![Op::RemoveVersion { table: Table::Xattr, stem }])?;
            state.last = committed.sequence;
        }
        state.powerless = true;
        Ok(())
    }

    /// Promises room. What waits in memory was promised its worst case; once it is stored the rest comes back.
    pub(crate) fn reserve(&self, bytes: u64, leave: u64, policy: PolicyId) -> Result<Reservation, FsError> {
        self.reserve_stored(self.store.worst_case_bytes(bytes, 1, policy), leave, policy)
    }

    /// The same for so many bytes on the devices.
    pub(crate) fn reserve_stored(
        &self,
        bytes: u64,
        leave: u64,
        policy: PolicyId,
    ) -> Result<Reservation, FsError> {
        match self.store.reserve_stored(bytes, leave, policy) {
            Err(StoreError::NoSpace { .. }) if self.dirty_bytes() > 0 => {
                self.flush_all()?;
                Ok(self.store.reserve_stored(bytes, leave, policy)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Room that only a kernel's writeback cache may have.
    pub fn kept_for_kernel(&self) -> u64 {
        self.soft_reserve_bytes()
    }

    pub(crate) fn soft_reserve_bytes(&self) -> u64 {
        self.options.soft_reserve_bytes
    }

    /// Whether so little room is left that writers should hear of it at once.
    pub fn nearly_full(&self) -> bool {
        let kept = self.soft_reserve_bytes();
        kept > 0 && self.store.free_bytes() < kept
    }

    /// Attributes that go to the store with what else the file has for it, or soon by themselves.
    pub(crate) fn keep_for_later(&self, node: &Arc<Node>, state: &mut NodeState) {
        state.attributes_dirty = true;
        state.written = self.clock.elapsed();
        if self.nodes.note_dirty(node) {
            self.wake_flusher();
        }
    }

    /// Whether so many bytes wait in memory that a writer may soon have to wait for them to leave.
    pub fn holds_writers(&self) -> bool {
        let most = self.options.dirty_bytes_max;
        self.dirty_bytes() >= most - most / 8 || self.gate.is_shut()
    }

    /// Holds a writer while too many bytes wait in memory. Files with little of it may go a quarter beyond what others
    /// may, and need not wait for those who came before them.
    fn wait_for_memory(&self, node: &Node, bytes: u64) -> Result<Option<Entering<'_>>, FsError> {
        let most = self.options.dirty_bytes_max;
        if !self.options.background {
            if self.dirty_bytes() >= most {
                self.flush_node(node)?;
            }
            if self.dirty_bytes() >= most {
                self.flush_all()?;
            }
            return Ok(None);
        }
        let is_small = || self.holds_writers() && node.state.read().bytes_in_memory() < SMALL_BYTES;
        let most = |small| if small { most + most / 4 } else { most };
        let has_room = |entering: u64, small| self.dirty_bytes() + entering < most(small);
        let look = || {
            self.store.check_writable()?;
            self.wake_flusher();
            Ok(())
        };
        self.gate.enter(bytes, is_small, has_room, look).map(Some)
    }
}

/// Refuses bytes that the file's flags forbid.
///
/// What a kernel cached may have been written before the flags were set, and is taken. But what was opened as
/// append-only is written directly, and no kernel caches anything of it except what is written to a mapping: where
/// nobody else has the file open to write, cached bytes come from there, and would lie over older ones.
fn check_flags(state: &NodeState, access: Access, kind: WriteKind) -> Result<(), FsError> {
    let only_appenders = state.writers == 0 && access == Access::Appends;
    match (kind.cached, access) {
        (true, _) if only_appenders => state.refuse_flagged(),
        (true, _) => Ok(()),
        (false, Access::Appends) if !kind.appends => state.refuse_flagged(),
        (false, _) => state.refuse_immutable(),
    }
}

/// Takes the setuid bit off, and setgid where it is one: without the group's execution bit it means something else.
pub(super) fn drop_set_bits(inode: &mut Inode) {
    inode.mode &= !S_ISUID;
    if inode.mode & S_IXGRP != 0 {
        inode.mode &= !S_ISGID;
    }
}
