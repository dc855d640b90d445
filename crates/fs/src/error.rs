//! What an operation can answer but success: POSIX outcomes, and faults from below.

use aegisfs_store::StoreError;

/// Why an operation did not succeed. Most of these are no faults but answers.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// There is no such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name exists already.
    #[error("it exists already")]
    Exists,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not expected.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The name has more than 255 bytes, or the symlink target more than 4095.
    #[error("name too long")]
    NameTooLong,
    /// An argument makes no sense here.
    #[error("invalid argument")]
    Invalid,
    /// The caller may not do this, whoever they are.
    #[error("operation not permitted")]
    NotPermitted,
    /// The file would be larger than files can be.
    #[error("file too large")]
    TooLarge,
    /// The inode has as many names as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// There is no such attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small.
    #[error("buffer too small")]
    Range,
    /// There is no data, or no hole, at or behind the offset.
    #[error("no data there")]
    NoData,
    /// The handle is not open, or not for this.
    #[error("bad handle")]
    BadHandle,
    /// The file is not of the kind that can do this.
    #[error("not supported")]
    NotSupported,
    /// Too many names of one directory share a hash.
    #[error("too many colliding names in one directory")]
    Collisions,
    /// The filesystem is read-only.
    #[error("read-only: {reason}")]
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ReadOnly { reason } => Self::ReadOnly { reason },
            other => Self::Store(other),
        }
    }
}

impl From<aegisfs_format::FormatError> for FsError {
    fn from(error: aegisfs_format::FormatError) -> Self {
        Self::Store(StoreError::Format(error))
    }
}
