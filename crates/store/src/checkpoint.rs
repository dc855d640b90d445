//! Checkpoints: the changes in memory become the metadata database's next durable state.
//!
//! 1. Everything up to sequence S is durable: one log sync, which flushes the rows as well.
//! 2. Slots by which the database grows are in the durable map (the database sees to that itself).
//! 3. One transaction: the changes up to S, and where the log goes on behind S.
//! 4. Only then the log before that is let go, and slots that died up to S are free; their devices are told later.

use crate::StoreError;
use crate::log::LogMark;
use crate::memtable::Memtable;
use crate::store::Store;
use aegisfs_base::ChunkId;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_pool::Placement;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the mark stands in the configuration.
pub(crate) const MARK_KEY: &[u8] = b"log_mark";

impl Store {
    /// Makes a checkpoint of everything acknowledged so far.
    ///
    /// # Errors
    /// When a device or the metadata engine fails; the store then takes no more writes.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.make_checkpoint()?;
        self.trim_after_checkpoint();
        Ok(())
    }

    fn make_checkpoint(&self) -> Result<(), StoreError> {
        let _one = self.checkpointing.lock();
        self.check_writable()?;
        // Asked before the changes are frozen, so that it is covered by them.
        let marker = self.dedup.marker();
        let (sequence, frozen, freed) = self.with_sequencer(|sequence, freed| {
            self.log.set_boundary(sequence);
            (sequence, self.metadata.freeze(), freed)
        });
        let outcome = self.finish_checkpoint(sequence, &frozen, freed, marker);
        if let Err(error) = &outcome {
            self.poison(&format!("a checkpoint failed: {error}"));
        }
        self.wakeup.1.notify_all();
        outcome
    }

    fn finish_checkpoint(
        &self,
        sequence: aegisfs_base::Sequence,
        frozen: &Arc<Memtable>,
        freed: Vec<Placement>,
        indexed: ChunkId,
    ) -> Result<(), StoreError> {
        self.log.sync_to(sequence)?;
        let mark = self.log.mark_at_boundary()?;
        if removed(Edge::LogTrimAfterCheckpoint) {
            self.commit_metadata(&Memtable::default(), &mark)?;
        }
        self.commit_metadata(frozen, &mark)?;
        self.metadata.thaw()?;
        self.log.trim(&mark);
        // Nobody heals what lay there any more.
        drop(self.healing.lock());
        self.pool.finish_release(&freed);
        self.dedup.merge_if_due(indexed)?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn commit_metadata(&self, frozen: &Memtable, mark: &LogMark) -> Result<(), StoreError> {
        let config = BTreeMap::from([(MARK_KEY, mark.encode())]);
        self.metadata.commit_frozen(frozen, &config)
    }

    /// The clean end: everything durable, nothing left open, the superblock says so.
    ///
    /// # Errors
    /// When a device fails.
    pub fn close(&self) -> Result<(), StoreError> {
        if self.check_writable().is_err() {
            return self.check_poison();
        }
        self.seal_open_segments()?;
        let indexed = self.dedup.marker();
        self.checkpoint()?;
        self.dedup.merge_at_end(indexed)?;
        self.trim_at_end();
        self.pool.end_incarnation()?;
        Ok(())
    }
}
