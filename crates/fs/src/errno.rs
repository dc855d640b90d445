//! Errors as the kernel's numbers: the one place that knows them.

use crate::FsError;
use aegisfs_base::FaultKind;

/// A Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// No such device or address.
    pub const ENXIO: Self = Self(6);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// File exists.
    pub const EEXIST: Self = Self(17);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(20);
    /// Is a directory.
    pub const EISDIR: Self = Self(21);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// File too large.
    pub const EFBIG: Self = Self(27);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// Read-only file system.
    pub const EROFS: Self = Self(30);
    /// Too many links.
    pub const EMLINK: Self = Self(31);
    /// Numerical result out of range.
    pub const ERANGE: Self = Self(34);
    /// File name too long.
    pub const ENAMETOOLONG: Self = Self(36);
    /// Directory not empty.
    pub const ENOTEMPTY: Self = Self(39);
    /// No data available.
    pub const ENODATA: Self = Self(61);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(95);
}

impl FsError {
    /// The number that says it to the kernel.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::Exists => Errno::EEXIST,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::IsDirectory => Errno::EISDIR,
            Self::NotEmpty => Errno::ENOTEMPTY,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::Invalid => Errno::EINVAL,
            Self::NotPermitted => Errno::EPERM,
            Self::TooLarge => Errno::EFBIG,
            Self::TooManyLinks => Errno::EMLINK,
            Self::NoAttribute => Errno::ENODATA,
            Self::Range => Errno::ERANGE,
            Self::NoData => Errno::ENXIO,
            Self::BadHandle => Errno::EBADF,
            Self::NotSupported => Errno::EOPNOTSUPP,
            Self::Collisions => Errno::ENOSPC,
            Self::ReadOnly { .. } => Errno::EROFS,
            Self::Store(error) => match error.kind() {
                FaultKind::NoSpace => Errno::ENOSPC,
                FaultKind::Poisoned => Errno::EROFS,
                FaultKind::Corrupt | FaultKind::Unavailable | FaultKind::Invalid | FaultKind::Internal => {
                    Errno::EIO
                }
            },
        }
    }
}
