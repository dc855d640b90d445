//! The reaper: gives back what a deletion or a truncation left behind, a few windows at a time.
//!
//! An entry in `orphans` stands from the change that orphaned something until all of it is gone, so that a
//! crash in between only means that the rest is done later.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use crate::versions;
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{BranchId, InodeId, Sequence};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Windows given back in one change.
pub const REAP_WINDOWS_MAX: usize = 16;
/// Extended attributes removed in one change.
const REAP_XATTRS_MAX: usize = 64;
/// Orphans looked at in one go.
const REAP_BATCH: usize = 64;
/// Orphans let go that are reaped without further delay.
pub(crate) const RELEASED_AT_ONCE: usize = 4096;

/// First byte of the entry of an inode that is gone.
const GONE: u8 = 0;
/// First byte of the entry of a file that was truncated; the new length follows.
const TRUNCATED: u8 = 1;

/// The orphan entry of an inode that is gone.
pub fn orphan_inode_value() -> Vec<u8> {
    value::wrap(&[GONE])
}

/// The orphan entry of a file that is being truncated in steps.
pub fn truncated_value(size: u64) -> Vec<u8> {
    let mut entry = vec![TRUNCATED];
    entry.extend_from_slice(&size.to_le_bytes());
    value::wrap(&entry)
}

impl Store {
    /// Keeps an orphan from being reaped: something still has it open.
    pub fn hold_orphan(&self, inode: InodeId) {
        self.space.held.lock().insert(inode);
    }

    /// Lets an orphan be reaped.
    pub fn release_orphan(&self, inode: InodeId) {
        let waiting = {
            // Both held, so that it is at every moment either held or waiting.
            let mut held = self.space.held.lock();
            held.remove(&inode);
            let mut released = self.space.released.lock();
            released.push(inode);
            released.len()
        };
        // The first one begins the wait for company; very many are not kept waiting.
        if waiting == 1 || waiting == RELEASED_AT_ONCE {
            self.wake_service();
        }
    }

    /// Reaps the orphans that were let go since the last time, many in one change where they are small.
    ///
    /// # Errors
    /// When the metadata fails or nothing may be written.
    pub fn reap_released(&self) -> Result<(), StoreError> {
        loop {
            let released = self.take_released();
            if released.is_empty() {
                return Ok(());
            }
            for (number, batch) in released.chunks(REAP_BATCH).enumerate() {
                // The thread that reaps is the one that makes checkpoints, and must not wait for one.
                let outcome =
                    if self.checkpoint_due() { Ok(false) } else { self.reap_batch(batch).map(|()| true) };
                if !matches!(outcome, Ok(true)) {
                    self.space.released.lock().extend_from_slice(&released[number * REAP_BATCH..]);
                    return outcome.map(drop);
                }
            }
        }
    }

    /// Takes the orphans that were let go, to reap them.
    fn take_released(&self) -> Arc<Vec<InodeId>> {
        let mut waiting = self.space.released.lock();
        let released = Arc::new(std::mem::take(&mut *waiting));
        *self.space.under_way.lock() = Arc::clone(&released);
        released
    }

    /// Leaves of some orphans those that nothing holds and that the reaper is not going to get to.
    pub(crate) fn leave_out_in_flight(&self, orphans: &mut BTreeSet<InodeId>) {
        let held = self.space.held.lock();
        let waiting = self.space.released.lock();
        orphans.retain(|inode| !held.contains(inode));
        for inode in waiting.iter().chain(&**self.space.under_way.lock()) {
            orphans.remove(inode);
        }
    }

    /// Reaps orphans; those with little to give back share a change.
    fn reap_batch(&self, inodes: &[InodeId]) -> Result<(), StoreError> {
        let mut ops = Vec::new();
        {
            let _one = self.space.reaping.lock();
            for inode in inodes {
                let small = self.is_gone(*inode)?
                    && self.clears_at_once(*inode, 0, u64::MAX)?
                    && self.xattrs_of(*inode)?.is_empty();
                if small {
                    ops.push(hole(*inode, 0, u64::MAX));
                    ops.extend(removal(*inode));
                }
            }
            if !ops.is_empty() {
                self.commit(BranchId(0), ops, Vec::new())?;
            }
        }
        inodes.iter().try_for_each(|inode| self.reap(*inode).map(drop))
    }

    /// Whether an inode has lost its last name and user. One that was let go may have been taken up again. A truncation
    /// under way has an entry too, but finishes itself; one that a crash interrupted was finished at mount.
    pub(crate) fn is_gone(&self, inode: InodeId) -> Result<bool, StoreError> {
        let view = self.head_view(BranchId(0))?;
        let entry = versions::visible(&self.view(), Table::Orphans, &key::inode(inode), &view)?;
        let Some(entry) = entry else { return Ok(false) };
        // Looked at after the entry: whoever makes an orphan of it holds it first.
        Ok(value::unwrap(&entry)?.first() != Some(&TRUNCATED) && !self.space.held.lock().contains(&inode))
    }

    /// Reaps everything that may be reaped; says whether there was anything.
    ///
    /// # Errors
    /// When the metadata fails or nothing may be written.
    pub fn reap_all(&self) -> Result<bool, StoreError> {
        let mut any = false;
        let mut after = Vec::new();
        loop {
            let batch = self.orphans_after(&after)?;
            let Some(last) = batch.last() else { return Ok(any) };
            after = key::inode(InodeId(last.0 + 1)).to_vec();
            for inode in batch {
                if !self.space.held.lock().contains(&inode) {
                    any |= self.reap(inode)?;
                }
            }
        }
    }

    /// Finishes truncations that a crash interrupted. Only while nobody else uses the store: at mount.
    ///
    /// # Errors
    /// When the metadata fails or nothing may be written.
    pub fn finish_truncations(&self) -> Result<(), StoreError> {
        let mut after = Vec::new();
        loop {
            let batch = self.orphans_after(&after)?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = key::inode(InodeId(last.0 + 1)).to_vec();
            let view = self.head_view(BranchId(0))?;
            for inode in batch {
                let entry = versions::visible(&self.view(), Table::Orphans, &key::inode(inode), &view)?;
                if let Some(entry) = entry
                    && let [TRUNCATED, size @ ..] = value::unwrap(&entry)?
                {
                    let size = size.try_into().map_or(u64::MAX, u64::from_le_bytes);
                    self.finish_truncation(inode, size, false)?;
                }
            }
        }
    }

    pub(crate) fn orphans_after(&self, start: &[u8]) -> Result<Vec<InodeId>, StoreError> {
        let view = self.head_view(BranchId(0))?;
        let mut found = Vec::new();
        versions::scan_visible(&self.view(), Table::Orphans, start, None, &view, &mut |stem, _| {
            found.extend(key::stem_inode(stem));
            if found.len() == REAP_BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Gives back all that an orphan holds, then the orphan, unless it is none. Says whether it was one.
    pub(crate) fn reap(&self, inode: InodeId) -> Result<bool, StoreError> {
        let _one = self.space.reaping.lock();
        if !self.is_gone(inode)? {
            return Ok(false);
        }
        self.release_range(inode, 0, u64::MAX)?;
        loop {
            let names = self.xattrs_of(inode)?;
            if names.is_empty() {
                break;
            }
            let remove = |stem| Op::RemoveVersion { table: Table::Xattr, stem };
            self.commit(BranchId(0), names.into_iter().map(remove).collect(), Vec::new())?;
        }
        self.commit(BranchId(0), removal(inode).to_vec(), Vec::new())?;
        Ok(true)
    }

    fn xattrs_of(&self, inode: InodeId) -> Result<Vec<Vec<u8>>, StoreError> {
        let view = self.head_view(BranchId(0))?;
        let mut stems = Vec::new();
        let (start, end) = (key::inode(inode), key::inode(InodeId(inode.0 + 1)));
        versions::scan_visible(&self.view(), Table::Xattr, &start, Some(&end), &view, &mut |stem, _| {
            stems.push(stem.to_vec());
            if stems.len() == REAP_XATTRS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(stems)
    }

    /// Makes a range of a file a hole, a few windows per change; returns by how much the covered bytes changed.
    ///
    /// # Errors
    /// When the metadata fails or nothing may be written.
    pub fn release_range(&self, inode: InodeId, from: u64, to: u64) -> Result<i64, StoreError> {
        let mut from = from;
        let mut released = 0;
        loop {
            // The last step takes pending bytes too, which may stand where no window does.
            let step = self.clear_step(inode, from, to)?;
            let committed = self.commit(BranchId(0), vec![hole(inode, from, step)], Vec::new())?;
            released += committed.effects.allocated.values().sum::<i64>();
            if step == to {
                return Ok(released);
            }
            from = step;
        }
    }

    /// Where the first few windows of a range end; `None` when few enough are left for one change.
    fn first_windows(&self, inode: InodeId, from: u64, to: u64) -> Result<Option<u64>, StoreError> {
        if to <= from {
            return Ok(None);
        }
        let start = key::extents(inode, from / WINDOW_BYTES);
        let end = key::prefix_end(&key::extents(inode, (to - 1) / WINDOW_BYTES));
        let mut count = 0;
        let mut next = None;
        self.view().scan(Table::Extents, &start, end.as_deref(), &mut |key, _| {
            count += 1;
            if count <= REAP_WINDOWS_MAX {
                return ControlFlow::Continue(());
            }
            next = key::extents_window(key).ok();
            ControlFlow::Break(())
        })?;
        Ok(next.map(|window| window * WINDOW_BYTES))
    }

    /// How far a range can be cleared in one change.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn clear_step(&self, inode: InodeId, from: u64, to: u64) -> Result<u64, StoreError> {
        Ok(self.first_windows(inode, from, to)?.unwrap_or(to))
    }

    /// Gives back what a truncation left behind the new end; returns by how much the covered bytes changed.
    /// An orphan's entry stays, since the orphan still has to go as a whole.
    ///
    /// # Errors
    /// When the metadata fails or nothing may be written.
    pub fn finish_truncation(&self, inode: InodeId, from: u64, orphan: bool) -> Result<i64, StoreError> {
        let released = self.release_range(inode, from, u64::MAX)?;
        if !orphan {
            let stem = key::inode(inode).to_vec();
            self.commit(BranchId(0), vec![Op::RemoveVersion { table: Table::Orphans, stem }], Vec::new())?;
        }
        Ok(released)
    }

    /// Whether clearing a range is small enough for a single change.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn clears_at_once(&self, inode: InodeId, from: u64, to: u64) -> Result<bool, StoreError> {
        Ok(self.first_windows(inode, from, to)?.is_none())
    }
}

/// The operations that remove an inode of which nothing else is left.
fn removal(inode: InodeId) -> [Op; 3] {
    let stem = key::inode(inode).to_vec();
    let tables = [Table::Inline, Table::Inode, Table::Orphans];
    tables.map(|table| Op::RemoveVersion { table, stem: stem.clone() })
}

/// The operation that makes a range a hole, pending bytes included.
pub fn hole(inode: InodeId, from: u64, to: u64) -> Op {
    Op::Replace { inode, from, to, pending_up_to: Sequence(u64::MAX), references: Vec::new() }
}
