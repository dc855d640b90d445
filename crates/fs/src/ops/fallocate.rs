//! fallocate: room ahead, holes, zeros.

use crate::FsError;
use crate::fs::{Fs, note_commit};
use crate::handle::HandleId;
use crate::node::{Node, NodeState};
use crate::overlay::Origin;
use aegisfs_base::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use aegisfs_format::value::Inode;
use aegisfs_store::reap::hole;
use std::sync::Arc;

/// Keeps the file's length.
const KEEP_SIZE: u32 = 1;
/// Makes the range a hole.
const PUNCH_HOLE: u32 = 2;
/// Makes the range zeros.
const ZERO_RANGE: u32 = 16;

impl Fs {
    /// Allocates, punches or zeroes a range; `mode` as in fallocate(2).
    ///
    /// Nothing is overwritten in place here, so room cannot be set aside for a file: allocating checks that
    /// there is room now. Zeroes are a hole, which reads the same.
    ///
    /// # Errors
    /// `NotSupported` for other modes, `NotPermitted` where flags forbid it, `Invalid`, `TooLarge`, no space, or
    /// a fault.
    pub fn fallocate(&self, handle: HandleId, offset: u64, length: u64, mode: u32) -> Result<(), FsError> {
        let node = self.handle_node(handle)?;
        if length == 0 {
            return Err(FsError::Invalid);
        }
        let end = offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::TooLarge)?;
        self.store.check_writable()?;
        if !node.state.read().is_regular() {
            return Err(FsError::Invalid);
        }
        match mode & !KEEP_SIZE {
            0 => node.state.read().refuse_immutable()?,
            _ => node.state.read().refuse_flagged()?,
        }
        match mode {
            0 | KEEP_SIZE => {
                let policy = node.state.read().inode.policy;
                let length = self.store.in_own_bytes(length, policy);
                drop(self.reserve_stored(length, self.soft_reserve_bytes(), policy)?);
            }
            ZERO_RANGE => self.clear(&node, offset, end)?,
            m if m == PUNCH_HOLE | KEEP_SIZE || m == ZERO_RANGE | KEEP_SIZE => {
                self.clear(&node, offset, end)?;
            }
            _ => return Err(FsError::NotSupported),
        }
        if mode & KEEP_SIZE == 0 {
            self.grow_to(&node, end)?;
        }
        self.sync_if_asked(&node)
    }

    /// Makes a file longer. What is written behind the range meanwhile stays.
    fn grow_to(&self, node: &Arc<Node>, end: u64) -> Result<(), FsError> {
        let _flushing = node.flushing.lock();
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        if end > state.inode.size { self.extend(node, &mut state, end) } else { Ok(()) }
    }

    /// Makes a range a hole.
    fn clear(&self, node: &Arc<Node>, from: u64, to: u64) -> Result<(), FsError> {
        let _flushing = node.flushing.lock();
        let mut from = from;
        loop {
            let mut state = node.state.write();
            if state.dead {
                return Err(FsError::NotFound);
            }
            if state.inode.inline && from < INLINE_BYTES_MAX as u64 {
                let end = to.min(INLINE_BYTES_MAX as u64);
                self.zero_inline(node, &mut state, from, end);
                if end == to {
                    return Ok(());
                }
                from = end;
            }
            let step = self.store.clear_step(node.id, from, to)?;
            let now = self.now();
            let inode = Inode { mtime: now, ctime: now, ..state.inode };
            let before = std::mem::replace(&mut state.inode, inode);
            let waiting = state.overlay.waiting_bytes();
            let older = state.overlay.clone();
            state.overlay.cut(from, step);
            match self.commit(vec![Self::put_inode(node.id, &state), hole(node.id, from, step)]) {
                Ok(committed) => note_commit(node.id, &mut state, &committed),
                Err(error) => {
                    state.inode = before;
                    state.overlay = older;
                    return Err(error);
                }
            }
            self.count_waiting(waiting, state.overlay.waiting_bytes());
            state.fit_promise(&self.store, None);
            if step == to {
                return Ok(());
            }
            from = step;
        }
    }

    /// What lies beside the inode is stored whole; it takes a hole as zeros.
    fn zero_inline(&self, node: &Arc<Node>, state: &mut NodeState, from: u64, to: u64) {
        let end = to.min(state.inode.size);
        if from < end {
            let before = state.overlay.waiting_bytes();
            state.overlay.write(from, &vec![0; (end - from) as usize], Origin::New);
            self.count_waiting(before, state.overlay.waiting_bytes());
        }
        let now = self.now();
        state.inode.mtime = now;
        state.inode.ctime = now;
        self.keep_for_later(node, state);
    }
}
