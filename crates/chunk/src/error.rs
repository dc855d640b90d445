//! What can go wrong with a chunk.

use aegisfs_base::FaultKind;

use crate::Codec;

/// Why stored bytes could not be turned back, or a setting was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// A codec number that no version of this program wrote.
    #[error("unknown codec {raw}")]
    UnknownCodec {
        /// The number found.
        raw: u8,
    },
    /// More plain bytes are claimed than any frame has.
    #[error("{plain_bytes} plain bytes are claimed, at most {bytes_max} are possible")]
    TooLarge {
        /// The length claimed.
        plain_bytes: usize,
        /// The largest possible.
        bytes_max: usize,
    },
    /// The bytes are not a stream of this codec, or it has more content than claimed.
    #[error("{stored_bytes} stored bytes do not decode as {codec} to {plain_bytes} bytes")]
    Undecodable {
        /// How they were said to be stored.
        codec: Codec,
        /// How many there are.
        stored_bytes: usize,
        /// The length claimed.
        plain_bytes: usize,
    },
    /// The stream decodes, but to another length.
    #[error("{codec} decodes to {found} bytes instead of {expected}")]
    WrongLength {
        /// How the bytes are stored.
        codec: Codec,
        /// The length claimed.
        expected: usize,
        /// The length found.
        found: usize,
    },
    /// A compression setting that does not exist.
    #[error("{text:?} is no compression: use none, lz4, or zstd:1 to zstd:19")]
    UnknownCompression {
        /// What was given.
        text: String,
    },
}

impl ChunkError {
    /// What the error means to whoever has to act on it.
    pub const fn kind(&self) -> FaultKind {
        match self {
            Self::UnknownCodec { .. }
            | Self::TooLarge { .. }
            | Self::Undecodable { .. }
            | Self::WrongLength { .. } => FaultKind::Corrupt,
            Self::UnknownCompression { .. } => FaultKind::Invalid,
        }
    }
}
