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
}

#[cfg(feature = "sabotage")]
mod active {
    use super::Edge;
    use std::cell::Cell;

    thread_local! {
        static REMOVED: Cell<Option<Edge>> = const { Cell::new(None) };
    }

    /// Whether this thread's test took the safeguard out.
    pub fn removed(edge: Edge) -> bool {
        REMOVED.get() == Some(edge)
    }

    /// Takes a safeguard out for this thread while `body` runs.
    pub fn without<T>(edge: Edge, body: impl FnOnce() -> T) -> T {
        struct Restore;
        impl Drop for Restore {
            fn drop(&mut self) {
                REMOVED.set(None);
            }
        }
        let _restore = Restore;
        REMOVED.set(Some(edge));
        body()
    }
}

#[cfg(feature = "sabotage")]
pub use active::{removed, without};

/// Whether a test took the safeguard out; never in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn removed(_edge: Edge) -> bool {
    false
}
