//! What can go wrong with a pool.

use aegisfs_base::{DeviceIndex, FaultKind, SlotIndex, Uuid};
use aegisfs_device::DeviceError;
use aegisfs_format::FormatError;

/// Why a pool could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device holds nothing of ours.
    #[error("{device} is not formatted for AegisFS; format it with `aegisfs format {device}`")]
    NotFormatted {
        /// The device.
        device: String,
    },
    /// A device holds a superblock that cannot be used.
    #[error("{device}: {source}")]
    Superblock {
        /// The device.
        device: String,
        /// Why.
        source: FormatError,
    },
    /// A device belongs to another pool.
    #[error("{device} belongs to pool {found}, not to pool {expected}")]
    ForeignPool {
        /// The device.
        device: String,
        /// The pool it belongs to.
        found: Uuid,
        /// The pool being opened.
        expected: Uuid,
    },
    /// The same member was named twice.
    #[error("{first} and {second} are the same member of the pool (device {uuid}); name it once")]
    SameMember {
        /// One name.
        first: String,
        /// The other.
        second: String,
        /// The member.
        uuid: Uuid,
    },
    /// Two halves of a pool were each written to without the other.
    #[error("{first} and {second} were each written to without the other; mount one of them alone")]
    Split {
        /// One half.
        first: String,
        /// The other.
        second: String,
    },
    /// Members are not there.
    #[error(
        "{missing} of {total} devices of the pool are missing ({names}), and those may have gone on without the others; add \
         them, or mount with -o degraded"
    )]
    Missing {
        /// How many.
        missing: usize,
        /// Of how many.
        total: usize,
        /// Where they were last seen.
        names: String,
    },
    /// Too few members are left to read everything.
    #[error(
        "too few devices of the pool are left: {present} of {total}, and it can do without {spare}; missing: {names}"
    )]
    TooFew {
        /// Members present.
        present: usize,
        /// Members in all.
        total: usize,
        /// How many may be missing.
        spare: usize,
        /// Where those were last seen that are missing.
        names: String,
    },
    /// A device shrank below what its superblock says.
    #[error(
        "{device} has {found} bytes, but was formatted with {expected}; it was truncated or is another device"
    )]
    Shrunk {
        /// The device.
        device: String,
        /// Bytes now.
        found: u64,
        /// Bytes at format.
        expected: u64,
    },
    /// A device is too small to be a member.
    #[error("{device} has {bytes} bytes; at least {minimum} are needed")]
    TooSmall {
        /// The device.
        device: String,
        /// Its size.
        bytes: u64,
        /// The smallest size.
        minimum: u64,
    },
    /// What was asked at format is impossible.
    #[error("{reason}")]
    Impossible {
        /// Why.
        reason: String,
    },
    /// There is no free slot.
    #[error("no free slot is left for {purpose}")]
    NoSpace {
        /// What the slot was for.
        purpose: &'static str,
    },
    /// No copy of a page verifies.
    #[error("metadata database {database}, page {page}: no copy of it verifies")]
    Page {
        /// The database.
        database: u8,
        /// The page.
        page: u64,
    },
    /// A checksum block has no copy that verifies.
    #[error(
        "metadata database {database}: the checksums of pages {first} to {last} are damaged in every copy"
    )]
    PageSums {
        /// The database.
        database: u8,
        /// First page covered.
        first: u64,
        /// Last page covered.
        last: u64,
    },
    /// A slot's device is not there.
    #[error("slot {slot} is on device {device}, which is missing")]
    Absent {
        /// The device.
        device: DeviceIndex,
        /// The slot.
        slot: SlotIndex,
    },
    /// A device takes longer than is worth waiting for.
    #[error("device {device} does not answer in time")]
    Slow {
        /// The device.
        device: DeviceIndex,
    },
    /// The pool may only be read.
    #[error("the pool is open for reading only")]
    ReadOnly,
}

impl PoolError {
    /// The class of fault.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Device(source) => source.kind(),
            Self::Superblock { source, .. } => source.kind(),
            Self::NotFormatted { .. }
            | Self::ForeignPool { .. }
            | Self::SameMember { .. }
            | Self::Split { .. }
            | Self::TooSmall { .. }
            | Self::Impossible { .. }
            | Self::Shrunk { .. }
            | Self::ReadOnly => FaultKind::Invalid,
            Self::Missing { .. } | Self::TooFew { .. } | Self::Absent { .. } | Self::Slow { .. } => {
                FaultKind::Unavailable
            }
            Self::NoSpace { .. } => FaultKind::NoSpace,
            Self::Page { .. } | Self::PageSums { .. } => FaultKind::Corrupt,
        }
    }
}
