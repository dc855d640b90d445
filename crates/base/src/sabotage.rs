//! Test-only switches: each takes one flush, checksum test or ordering edge out of the store, so
//! that the simulator can show that it would notice. A simulator that cannot fail proves nothing.
//!
//! Without the `sabotage` feature [`removed`] is a constant `false` and costs nothing.

/// A safeguard that a test may take out, by where it stands and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Edge {
    /// Superblock slots alternate; without it the one in use is overwritten.
    SuperblockAlternates,
    /// A superblock is flushed before anything relies on it.
    SuperblockFlush,
    /// A superblock's checksum is tested.
    SuperblockChecksum,
    /// A grown database's map is durable before the database uses the new slots.
    GrowthMapFirst,
    /// Checksum blocks of database pages alternate.
    PageSumsAlternate,
    /// Database pages are flushed at the engine's sync points.
    PageFlush,
    /// A database page is verified when it is read.
    PageVerify,
    /// A log append is flushed before it counts as durable.
    LogFlush,
    /// A log record's own checksum is tested.
    LogChecksum,
    /// A log record must continue its predecessor's chain.
    LogChain,
    /// A log record of an earlier incarnation is not replayed.
    LogIncarnation,
    /// The log is trimmed only after the checkpoint that covers it.
    LogTrimAfterCheckpoint,
    /// Rows of the log's tail are verified at recovery.
    TailRowsVerified,
    /// A damaged record below the known durable point is not taken for the end of the log.
    LogDamageIsNotTail,
    /// Rows reach the device before the record that mentions them is logged.
    RowsBeforeRecord,
    /// Freed slots are reused only after the checkpoint that freed them.
    SlotsFreedAfterCheckpoint,
    /// Freed slots are discarded only after the checkpoint that freed them.
    SlotsTrimmedAfterCheckpoint,
    /// Open segments are sealed at recovery, never appended to again.
    SealAtRecovery,
    /// A chunk's hash is verified when it is read.
    ChunkVerify,
    /// A dedup hit is checked again in the sequencer.
    DedupHitRechecked,
    /// A rename over a file flushes the source's data first.
    RenameFlushesSource,
    /// Chunk ids handed out are never handed out again after a crash.
    ChunkIdsNeverReused,
    /// A chunk that cannot be read where it was is looked for again before it counts as damaged.
    MovedIsNotDamage,
    /// A copy is healed only where its chunk still is.
    HealRechecked,
    /// A chunk is moved only from where it still is.
    MovedOnlyFromWhereItWas,
    /// A run is pointed elsewhere only where it still refers to what was read for it.
    RepointedOnlyWhatItWas,
    /// A member that comes back counts only when nothing is left that the others hold alone.
    ReturnComplete,
    /// The parity of a row is made before the row is written.
    ParityMade,
    /// A change of an inode that is marked sync is synced before the verb returns.
    SyncFlag,
}

#[cfg(feature = "sabotage")]
mod active {
    use super::Edge;
    use std::cell::{Cell, RefCell};

    thread_local! {
        /// One bit for each safeguard.
        static REMOVED: Cell<u64> = const { Cell::new(0) };
        static LATE: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
    }

    const fn bit(edge: Edge) -> u64 {
        1 << edge as u64
    }

    /// Whether this thread's test took the safeguard out.
    pub fn removed(edge: Edge) -> bool {
        REMOVED.get() & bit(edge) != 0
    }

    /// Takes a safeguard out for this thread while `body` runs. Calls may lie within each other: then all of
    /// those safeguards are out.
    pub fn without<T>(edge: Edge, body: impl FnOnce() -> T) -> T {
        struct Restore(u64);
        impl Drop for Restore {
            fn drop(&mut self) {
                REMOVED.set(self.0);
                // What was still to come died with the process that wanted it.
                LATE.take();
            }
        }
        let before = REMOVED.get();
        let _restore = Restore(before);
        REMOVED.set(before | bit(edge));
        body()
    }

    /// Keeps work whose order a missing safeguard no longer ensures, for [`catch_up`].
    pub fn later(work: impl FnOnce() + 'static) {
        LATE.with_borrow_mut(|late| late.push(Box::new(work)));
    }

    /// Does what was put off, in its order.
    pub fn catch_up() {
        for work in LATE.take() {
            work();
        }
    }

    /// Drops what was put off: the process that wanted it is gone.
    pub fn forget_late() {
        LATE.take();
    }
}

#[cfg(feature = "sabotage")]
pub use active::{catch_up, forget_late, later, removed, without};

/// Does what a missing safeguard put off; nothing in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn catch_up() {}

/// Keeps work for later; never asked in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub fn later(_work: impl FnOnce() + 'static) {}

/// Whether a test took the safeguard out; never in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn removed(_edge: Edge) -> bool {
    false
}
