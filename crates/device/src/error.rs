//! What can go wrong with a device, as fields that a caller can act on.

use std::fmt;

use aegisfs_base::FaultKind;
use rustix::io::Errno;

use crate::host::InUse;
use crate::signature::Foreign;

/// What was being done to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Finding, opening, locking or measuring it.
    Open,
    /// Making a new image.
    Create,
    /// Reading a range.
    Read,
    /// Writing a range.
    Write,
    /// Making earlier writes durable.
    Flush,
    /// Giving a range back.
    Discard,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// Why a device did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The kernel or the medium reported an error, after the retries that make sense.
    #[error("{device}: {op}{} failed: {errno}", range_text(*offset, *length))]
    Io {
        /// What was being done.
        op: Operation,
        /// Where it began; zero where the operation has no range.
        offset: u64,
        /// How long the range was; zero where the operation has no range.
        length: u64,
        /// The device's description.
        device: String,
        /// What the system said.
        #[source]
        errno: Errno,
    },
    /// An earlier flush failed, so nobody knows which writes reached the medium.
    #[error("{device}: an earlier flush failed, writes may be lost; refused until it is opened again")]
    FlushLost {
        /// The device's description.
        device: String,
    },
    /// What was written is not what is there.
    #[error("{device}: other bytes than were just written are read back at offset {offset}")]
    ReadBack {
        /// Where the first one is.
        offset: u64,
        /// The device's description.
        device: String,
    },
    /// An image became shorter while it was open.
    #[error("{device}: ends at offset {offset}, inside its size of {bytes} bytes: it was truncated")]
    Truncated {
        /// Where the content ended.
        offset: u64,
        /// The size it had when it was opened.
        bytes: u64,
        /// The device's description.
        device: String,
    },
    /// The range is not within the device.
    #[error("{device}: {op} of {length} bytes at offset {offset} is outside its {bytes} bytes")]
    OutOfBounds {
        /// What was being done.
        op: Operation,
        /// Where the range begins.
        offset: u64,
        /// How long the range is.
        length: u64,
        /// The device's size.
        bytes: u64,
        /// The device's description.
        device: String,
    },
    /// The range is not made of whole blocks.
    #[error("{device}: {op} of {length} bytes at offset {offset} is not in whole blocks of 4096 bytes")]
    Misaligned {
        /// What was being done.
        op: Operation,
        /// Where the range begins.
        offset: u64,
        /// How long the range is.
        length: u64,
        /// The device's description.
        device: String,
    },
    /// Another process, or this one, holds it open exclusively.
    #[error("{device}: already open elsewhere")]
    Busy {
        /// The device's description.
        device: String,
    },
    /// The system uses it for something else.
    #[error("{device}: {by}")]
    InUse {
        /// The device's description.
        device: String,
        /// Who uses it, and how.
        by: InUse,
    },
    /// It holds somebody's data.
    #[error("{device}: holds {found}")]
    Foreign {
        /// The device's description.
        device: String,
        /// What was recognised.
        found: Foreign,
    },
    /// It has less room than is needed.
    #[error("{device}: has {bytes} bytes, at least {needed} are needed")]
    TooSmall {
        /// The device's size.
        bytes: u64,
        /// The smallest size that would do.
        needed: u64,
        /// The device's description.
        device: String,
    },
    /// Its sectors are larger than the block, so a block cannot be written alone.
    #[error("{device}: has sectors of {sector_bytes} bytes, at most 4096 are supported")]
    SectorTooLarge {
        /// The size of its sectors.
        sector_bytes: u32,
        /// The device's description.
        device: String,
    },
    /// It was opened read-only, or is write-protected.
    #[error("{device}: {op} refused, it is open read-only")]
    ReadOnly {
        /// What was being done.
        op: Operation,
        /// The device's description.
        device: String,
    },
    /// There is nothing at this path.
    #[error("{device}: not found")]
    NotFound {
        /// The path.
        device: String,
    },
    /// An image was to be made where a file with content exists.
    #[error("{device}: already exists and holds {bytes} bytes")]
    Exists {
        /// The file's size.
        bytes: u64,
        /// The path.
        device: String,
    },
    /// The path is neither a block device nor a regular file nor a directory.
    #[error("{device}: neither a block device nor a file")]
    NotADevice {
        /// The path.
        device: String,
    },
}

/// Opening and flushing have no range worth naming.
fn range_text(offset: u64, length: u64) -> String {
    if length == 0 { String::new() } else { format!(" of {length} bytes at offset {offset}") }
}

impl DeviceError {
    /// Whether the same call may succeed the next time. After a failed flush nobody can tell what that would mean.
    pub fn may_pass(&self) -> bool {
        const PASSING: [Errno; 6] =
            [Errno::IO, Errno::REMOTEIO, Errno::TIMEDOUT, Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
        matches!(self, Self::Io { op, errno, .. } if *op != Operation::Flush && PASSING.contains(errno))
    }

    /// What the error means to whoever has to act on it.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Io { errno, .. } if matches!(*errno, Errno::NOSPC | Errno::DQUOT) => FaultKind::NoSpace,
            Self::Io { .. } | Self::Truncated { .. } | Self::NotFound { .. } | Self::Busy { .. } => {
                FaultKind::Unavailable
            }
            Self::FlushLost { .. } => FaultKind::Poisoned,
            Self::ReadBack { .. } => FaultKind::Corrupt,
            Self::Misaligned { .. } => FaultKind::Internal,
            // A pointer read from a disk can lead outside; that is the data's fault, not ours.
            Self::OutOfBounds { .. }
            | Self::InUse { .. }
            | Self::Foreign { .. }
            | Self::TooSmall { .. }
            | Self::SectorTooLarge { .. }
            | Self::ReadOnly { .. }
            | Self::Exists { .. }
            | Self::NotADevice { .. } => FaultKind::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_device_the_act_and_the_place() {
        let error = DeviceError::Io {
            op: Operation::Read,
            offset: 8192,
            length: 4096,
            device: "sdx".into(),
            errno: Errno::IO,
        };
        let text = error.to_string();
        for part in ["sdx", "read", "8192", "4096"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(error.kind(), FaultKind::Unavailable);
    }

    #[test]
    fn a_full_host_is_no_space() {
        for (errno, kind) in [
            (Errno::NOSPC, FaultKind::NoSpace),
            (Errno::DQUOT, FaultKind::NoSpace),
            (Errno::NODEV, FaultKind::Unavailable),
        ] {
            let error =
                DeviceError::Io { op: Operation::Write, offset: 0, length: 0, device: "x".into(), errno };
            assert_eq!(error.kind(), kind);
        }
    }
}
