//! fallocate: room ahead, holes, zeros.

use crate::FsError;
use crate::fs::{Fs, note_commit};
use crate::handle::HandleId;
use crate::node::Node;
use aegisfs_base::limits::FILE_BYTES_MAX;
use aegisfs_store::reap::hole;
use std::sync::atomic::Ordering;

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
    /// `NotSupported` for other modes, `Invalid`, `TooLarge`, no space, or a fault.
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
        match mode {
            0 | KEEP_SIZE => drop(self.store.reserve(length)?),
            ZERO_RANGE => self.clear(&node, offset, end)?,
            m if m == PUNCH_HOLE | KEEP_SIZE || m == ZERO_RANGE | KEEP_SIZE => {
                self.clear(&node, offset, end)?;
            }
            _ => return Err(FsError::NotSupported),
        }
        if mode & KEEP_SIZE == 0 {
            self.grow_to(&node, end)?;
        }
        Ok(())
    }

    fn grow_to(&self, node: &Node, end: u64) -> Result<(), FsError> {
        let size = node.state.read().inode.size;
        if end > size {
            let changes = super::setattr::Changes { size: Some(end), ..Default::default() };
            self.setattr(node.id, &changes)?;
        }
        Ok(())
    }

    /// Makes a range a hole.
    fn clear(&self, node: &Node, from: u64, to: u64) -> Result<(), FsError> {
        // Tiny files are stored whole; they take the hole as zeros.
        let inline = node.state.read().inode.inline;
        if inline {
            return self.zero_inline(node, from, to);
        }
        let _flushing = node.flushing.lock();
        let mut from = from;
        loop {
            let mut state = node.state.write();
            if state.dead {
                return Err(FsError::NotFound);
            }
            let step = self.store.clear_step(node.id, from, to)?;
            let before = state.overlay.bytes();
            state.overlay.cut(from, step);
            let gone = before - state.overlay.bytes();
            self.dirty_bytes.fetch_sub(gone.min(self.dirty_bytes()), Ordering::AcqRel);
            let now = self.now();
            state.inode.mtime = now;
            state.inode.ctime = now;
            let committed =
                self.commit(vec![Self::put_inode(node.id, &state), hole(node.id, from, step)])?;
            note_commit(node.id, &mut state, &committed);
            if step == to {
                return Ok(());
            }
            from = step;
        }
    }

    fn zero_inline(&self, node: &Node, from: u64, to: u64) -> Result<(), FsError> {
        let mut state = node.state.write();
        let end = to.min(state.inode.size);
        if from < end {
            let before = state.overlay.bytes();
            let zeros = vec![0; (end - from) as usize];
            state.overlay.write(from, &zeros, crate::overlay::Origin::New);
            self.dirty_bytes.fetch_add(state.overlay.bytes() - before, Ordering::AcqRel);
            let now = self.now();
            state.inode.mtime = now;
            state.inode.ctime = now;
            state.attributes_dirty = true;
        }
        Ok(())
    }
}
