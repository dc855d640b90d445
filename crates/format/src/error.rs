//! What can be wrong with bytes from a device.

use aegisfs_base::FaultKind;

/// Why bytes could not be read as the structure they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The structure's first bytes are not its magic.
    #[error("{what}: not there (its magic is missing)")]
    Magic {
        /// The structure.
        what: &'static str,
    },
    /// The checksum does not match the content.
    #[error("{what}: checksum mismatch")]
    Checksum {
        /// The structure.
        what: &'static str,
    },
    /// A version this program does not know.
    #[error("{what}: version {found} is newer than this program reads ({known}); use a newer aegisfs")]
    Version {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version this program reads.
        known: u32,
    },
    /// A version from before the first release, which promised nothing.
    #[error(
        "{what}: version {found} is from before the first release and this program reads {known}; \
         copy the data out with the aegisfs that wrote it"
    )]
    Outdated {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The oldest version this program reads.
        known: u32,
    },
    /// Feature bits this program does not know and must not ignore.
    #[error("{what}: needs features {bits:#x} that this program does not have; use a newer aegisfs")]
    Features {
        /// The structure.
        what: &'static str,
        /// The unknown bits.
        bits: u64,
    },
    /// Fewer bytes than the structure needs.
    #[error("{what}: cut short")]
    Short {
        /// The structure.
        what: &'static str,
    },
    /// A field has a value it cannot have.
    #[error("{what}: field {field} is {value}, which it cannot be")]
    Value {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
}

impl FormatError {
    /// The class of fault.
    pub const fn kind(&self) -> FaultKind {
        match self {
            Self::Magic { .. } | Self::Version { .. } | Self::Outdated { .. } | Self::Features { .. } => {
                FaultKind::Invalid
            }
            Self::Checksum { .. } | Self::Short { .. } | Self::Value { .. } => FaultKind::Corrupt,
        }
    }
}
