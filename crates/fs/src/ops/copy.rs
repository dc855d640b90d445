//! copy_file_range: a range of one file becomes the other's, sharing chunks instead of copying them.

use super::write::WriteKind;
use crate::FsError;
use crate::fs::{Fs, note_commit};
use crate::handle::{Access, HandleId};
use crate::node::Node;
use aegisfs_base::limits::{FILE_BYTES_MAX, WINDOW_BYTES};
use aegisfs_base::{InodeId, PolicyId, Sequence};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{NewRef, Op};
use aegisfs_store::StoreError;
use std::sync::Arc;

/// Bytes copied in one change.
const STEP_BYTES: u64 = 32 * WINDOW_BYTES;
/// References copied in one change; bounds the log record.
const STEP_REFERENCES_MAX: usize = 1000;

/// One end of a copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyEnd {
    /// The open file.
    pub handle: HandleId,
    /// Where the range begins in it.
    pub offset: u64,
}

impl Fs {
    /// Copies a range; returns the bytes copied, fewer at the end of the source.
    ///
    /// # Errors
    /// `Invalid` when ranges of one file overlap, `NotPermitted` where flags forbid it, `BadHandle`, `TooLarge`,
    /// no space, or a fault.
    pub fn copy_range(&self, from: CopyEnd, to: CopyEnd, length: u64) -> Result<u64, FsError> {
        let source = self.handle_node(from.handle)?;
        let (target, access) = self.handle_access(to.handle)?;
        if !source.state.read().is_regular() || !target.state.read().is_regular() {
            return Err(FsError::Invalid);
        }
        let size = source.state.read().inode.size;
        let length = length.min(size.saturating_sub(from.offset));
        if to.offset.checked_add(length).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(FsError::TooLarge);
        }
        let apart = from.offset + length <= to.offset || to.offset + length <= from.offset;
        if source.id == target.id && !apart {
            return Err(FsError::Invalid);
        }
        self.store.check_writable()?;
        // A copy is never an append.
        match access {
            Access::Appends => target.state.read().refuse_flagged()?,
            _ => target.state.read().refuse_immutable()?,
        }
        self.store.admit_metadata()?;
        let mut copied = 0;
        while copied < length {
            let step = (length - copied).min(STEP_BYTES);
            let more = self.copy_step(&source, &target, (from.offset + copied, to.offset + copied), step)?;
            // The source has become shorter meanwhile.
            if more == 0 {
                break;
            }
            copied += more;
        }
        self.sync_if_asked(&target)?;
        Ok(copied)
    }

    /// Copies as much as fits into one change; says how much that was.
    fn copy_step(
        &self,
        source: &Arc<Node>,
        target: &Arc<Node>,
        (from, to): (u64, u64),
        length: u64,
    ) -> Result<u64, FsError> {
        // A chunk follows one policy; bytes of files that follow different ones are stored for each.
        let policy = |node: &Node| node.state.read().inode.policy;
        if policy(source) != policy(target) {
            return self.copy_bytes(source, target, (from, to), length);
        }
        // Both have to lie in chunks first; a tiny file is copied byte by byte.
        self.flush_node(source)?;
        self.flush_node(target)?;
        if source.state.read().inode.inline {
            return self.copy_bytes(source, target, (from, to), length);
        }
        if target.state.read().inode.inline {
            self.outline(target)?;
        }
        let flushing = target.flushing.lock();
        let mut locked = super::Locked::new(&[source, target]);
        let from_memory = locked.get(source.id);
        let waiting = from_memory.overlay.needs_flush()
            || !from_memory.leaving().is_empty()
            || from_memory.inode.inline;
        let by = from_memory.inode.policy;
        let beside = locked.get(target.id);
        let waiting = waiting || beside.inode.policy != by;
        let waiting = waiting || beside.inode.inline && !beside.overlay.is_empty();
        if waiting || !locked.all_alive() {
            drop(locked);
            drop(flushing);
            return self.copy_bytes(source, target, (from, to), length);
        }
        let (references, end) = self.references_for(source.id, (from, to), from + length)?;
        if !self.follow(by, &references)? {
            drop(locked);
            drop(flushing);
            return self.copy_bytes(source, target, (from, to), length);
        }
        let length = end - from;
        let state = locked.get(target.id);
        let (before, older) = (state.inode, state.overlay.clone());
        // Nothing is left of what lay beside the inode; from now on the file lies in chunks.
        let was_inline = std::mem::take(&mut state.inode.inline);
        state.overlay.cut(to, to + length);
        state.inode.size = state.inode.size.max(to + length);
        self.stamp(target, state, WriteKind::default());
        let mut ops = vec![
            Self::put_inode(target.id, state),
            Op::Replace {
                inode: target.id,
                from: to,
                to: to + length,
                pending_up_to: Sequence(u64::MAX),
                references,
            },
        ];
        if was_inline {
            ops.push(Op::RemoveVersion { table: Table::Inline, stem: key::inode(target.id).to_vec() });
        }
        match self.commit(ops) {
            Ok(committed) => note_commit(target.id, state, &committed),
            Err(error) => {
                state.inode = before;
                state.overlay = older;
                drop(locked);
                drop(flushing);
                // The cleaner stored something in another chunk meanwhile.
                let moved = matches!(error, FsError::Store(StoreError::StaleChunk { .. }));
                return if moved { self.copy_bytes(source, target, (from, to), length) } else { Err(error) };
            }
        }
        self.count_waiting(older.waiting_bytes(), state.overlay.waiting_bytes());
        state.fit_promise(&self.store, None);
        Ok(length)
    }

    /// References as the target will have them, up to `end` or as far as one change can take them.
    fn references_for(
        &self,
        source: InodeId,
        (from, to): (u64, u64),
        end: u64,
    ) -> Result<(Vec<NewRef>, u64), FsError> {
        let mut references = Vec::new();
        for (start, reference) in self.extents_in(source, from, end)? {
            let (piece_from, piece_to) = (start.max(from), (start + u64::from(reference.length)).min(end));
            if references.len() == STEP_REFERENCES_MAX {
                return Ok((references, piece_from));
            }
            references.push(NewRef {
                offset: piece_from - from + to,
                length: (piece_to - piece_from) as u32,
                chunk: reference.chunk,
                offset_in_chunk: reference.offset_in_chunk + (piece_from - start) as u32,
            });
        }
        Ok((references, end))
    }

    /// Whether chunks follow a policy, all of them.
    fn follow(&self, policy: PolicyId, references: &[NewRef]) -> Result<bool, FsError> {
        if !self.store.has_policies() {
            return Ok(true);
        }
        for reference in references {
            if self.store.policy_of_chunk(reference.chunk)? != Some(policy) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves what lies beside an inode into rows, so that other chunks can lie beside it.
    fn outline(&self, node: &Arc<Node>) -> Result<(), FsError> {
        let flushing = node.flushing.lock();
        {
            let mut state = node.state.write();
            let before = state.overlay.waiting_bytes();
            state.outlined = true;
            state.overlay.mark_new();
            self.count_waiting(before, state.overlay.waiting_bytes());
            self.nodes.note_dirty(node);
        }
        let outcome = self.flush_locked(node, flushing);
        node.state.write().outlined = false;
        outcome
    }

    fn copy_bytes(
        &self,
        source: &Node,
        target: &Arc<Node>,
        (from, to): (u64, u64),
        length: u64,
    ) -> Result<u64, FsError> {
        let handle = self.handles.open(Arc::clone(target), Access::Reads);
        let mut buffer = vec![0; (length as usize).min(1 << 20)];
        let mut done = 0;
        let outcome = loop {
            if done == length {
                break Ok(done);
            }
            let want = buffer.len().min((length - done) as usize);
            let copied = self
                .read_node(source, from + done, &mut buffer[..want])
                .and_then(|count| self.write(handle, to + done, &buffer[..count]));
            match copied {
                Ok(0) => break Ok(done),
                Ok(count) => done += count as u64,
                Err(error) => break Err(error),
            }
        };
        self.release(handle)?;
        outcome
    }
}
