//! What can go wrong in the key-value storage.

use aegisfs_base::FaultKind;
use std::io;

/// A fault of the key-value storage, with what was being done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The storage below failed. Its `ErrorKind` tells damage and lack of space from an outage.
    #[error("storage below the metadata database failed while {during}: {source}")]
    Backing {
        /// What was being done.
        during: &'static str,
        /// What the storage said.
        source: io::Error,
    },
    /// The engine found its own pages damaged.
    #[error("metadata database is damaged, found while {during}: {detail}")]
    Damaged {
        /// What was being done.
        during: &'static str,
        /// What the engine said.
        detail: String,
    },
    /// An earlier failure stopped this handle; reopening shows the last commit.
    #[error("metadata database stopped after an earlier failure, noticed while {during}; reopen it")]
    Poisoned {
        /// What was being done.
        during: &'static str,
    },
    /// The handle this snapshot came from is gone.
    #[error("metadata database was closed, noticed while {during}")]
    Closed {
        /// What was being done.
        during: &'static str,
    },
    /// The storage holds no database.
    #[error("there is no metadata database in this storage")]
    Missing,
    /// A fresh database was asked for where something is already stored.
    #[error("a new metadata database was asked for in storage that already holds {bytes} bytes")]
    Occupied {
        /// How much is there.
        bytes: u64,
    },
    /// The database was opened for reading only.
    #[error("metadata database is open for reading only")]
    ReadOnly,
    /// A snapshot is still held.
    #[error("metadata database cannot be checked while a snapshot of it is held")]
    Busy,
    /// A table number is out of range.
    #[error("table {table} does not exist; the highest is {max}")]
    NoSuchTable {
        /// What was asked for.
        table: u8,
        /// The highest there is.
        max: u8,
    },
    /// A key or value is too long.
    #[error("{part} of {bytes} bytes is longer than {max}")]
    TooLong {
        /// `key` or `value`.
        part: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl KvError {
    /// The class of the fault.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Backing { source, .. } => match source.kind() {
                io::ErrorKind::InvalidData => FaultKind::Corrupt,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    FaultKind::NoSpace
                }
                _ => FaultKind::Unavailable,
            },
            Self::Damaged { .. } => FaultKind::Corrupt,
            Self::Poisoned { .. } => FaultKind::Poisoned,
            Self::Closed { .. } => FaultKind::Unavailable,
            Self::Missing
            | Self::Occupied { .. }
            | Self::ReadOnly
            | Self::Busy
            | Self::NoSuchTable { .. }
            | Self::TooLong { .. } => FaultKind::Invalid,
        }
    }

    /// Turns an error of the engine into ours.
    pub(crate) fn from_engine(during: &'static str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(source) => Self::Backing { during, source },
            redb::Error::PreviousIo | redb::Error::LockPoisoned(_) | redb::Error::TransactionPoisoned => {
                Self::Poisoned { during }
            }
            redb::Error::DatabaseClosed => Self::Closed { during },
            redb::Error::TransactionInProgress => Self::Busy,
            other => Self::Damaged { during, detail: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_says_by_its_error_kind_what_the_fault_means() {
        let cases = [
            (io::ErrorKind::InvalidData, FaultKind::Corrupt),
            (io::ErrorKind::StorageFull, FaultKind::NoSpace),
            (io::ErrorKind::Other, FaultKind::Unavailable),
            (io::ErrorKind::UnexpectedEof, FaultKind::Unavailable),
        ];
        for (kind, fault) in cases {
            let error = KvError::from_engine("testing", redb::StorageError::Io(io::Error::from(kind)));
            assert_eq!(error.kind(), fault, "{kind:?}");
        }
        let again = KvError::from_engine("testing", redb::StorageError::PreviousIo);
        assert_eq!(again.kind(), FaultKind::Poisoned);
    }
}
