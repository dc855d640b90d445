//! What can go wrong in the store.

use aegisfs_base::{ChunkId, FaultKind, InodeId, SegmentId};
use aegisfs_chunk::ChunkError;
use aegisfs_format::FormatError;
use aegisfs_kv::KvError;
use aegisfs_pool::PoolError;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The metadata engine failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Stored metadata cannot be read as what it should be.
    #[error("metadata: {0}")]
    Format(#[from] FormatError),
    /// Data could not be decoded.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A chunk's bytes are not what was written.
    #[error("chunk {chunk} in segment {segment} at offset {offset} is damaged: {reason}")]
    Damaged {
        /// The chunk.
        chunk: ChunkId,
        /// The segment that holds it.
        segment: SegmentId,
        /// Where its frame begins in the slot.
        offset: u32,
        /// What was wrong with each copy.
        reason: String,
    },
    /// A reference names a chunk that is gone; the data has to be stored again.
    #[error("chunk {chunk} is no longer there")]
    StaleChunk {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Metadata contradicts itself.
    #[error("metadata is inconsistent: {what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
    /// An inode that should be there is not.
    #[error("inode {inode} is not there")]
    NoInode {
        /// The inode.
        inode: InodeId,
    },
    /// A device failed while the newest changes were looked for; nothing was decided or written.
    #[error(
        "the intent log cannot be read at position {position}: {source}; the newest changes may stand there, so \
         nothing was changed: try again, or mount it with -o ro to read what there is before them"
    )]
    LogUnread {
        /// Where in the log, or behind which position a row is named.
        position: u64,
        /// The failure.
        source: PoolError,
    },
    /// There is no room.
    #[error("no space is left: {wanted} bytes are needed, {free} are free")]
    NoSpace {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
    },
    /// An earlier failure stopped all writing.
    #[error("the filesystem takes no more writes since an earlier failure: {reason}")]
    Poisoned {
        /// The failure.
        reason: String,
    },
    /// Background work was told to end before it was done.
    #[error("it was told to stop before it was done")]
    Stopped,
    /// Opened for reading only.
    #[error("the filesystem is open for reading only: {reason}")]
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// A transaction is larger than a log record can be.
    #[error("a change of {bytes} bytes does not fit into a record of the intent log ({max})")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest size.
        max: usize,
    },
}

impl StoreError {
    /// The class of fault.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Pool(source) | Self::LogUnread { source, .. } => source.kind(),
            Self::Kv(source) => source.kind(),
            Self::Chunk(source) => source.kind(),
            Self::Format(_) | Self::Damaged { .. } | Self::Inconsistent { .. } => FaultKind::Corrupt,
            Self::NoSpace { .. } => FaultKind::NoSpace,
            Self::Poisoned { .. } => FaultKind::Poisoned,
            Self::ReadOnly { .. } => FaultKind::Invalid,
            Self::StaleChunk { .. } | Self::NoInode { .. } | Self::TooLarge { .. } | Self::Stopped => {
                FaultKind::Internal
            }
        }
    }
}
