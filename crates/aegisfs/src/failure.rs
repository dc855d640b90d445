//! Failures as an operator sees them: what happened, to which object, why, and what to do about it.

use serde_json::{Value, json};
use std::process::ExitCode;

/// Exit codes, one meaning each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed.
    Failed = 1,
    /// It was asked wrongly.
    Usage = 2,
    /// It works, with less redundancy than it should have.
    Degraded = 3,
    /// Damage is left.
    Damage = 4,
    /// What was named is not there.
    NotFound = 5,
    /// Somebody else uses it.
    Busy = 6,
    /// It is not allowed.
    Permission = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// What happened, to which object.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// A code that stays the same between versions.
    pub(crate) code: &'static str,
    /// The exit code.
    pub(crate) exit: Exit,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(code: &'static str, exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code, exit }
    }

    /// The same with a hint.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Something that was asked wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new("E_USAGE", Exit::Usage, message)
    }

    /// What stands in an answer in its place.
    pub(crate) fn json(&self) -> Value {
        json!({ "code": self.code, "message": self.message, "hint": self.hint })
    }

    /// Tells the operator.
    #[expect(clippy::print_stdout, reason = "the answer of a command")]
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        if as_json {
            println!("{}", json!({ "schema_version": 1, "error": self.json() }));
        } else {
            eprintln!("aegisfs: {}", self.message);
            if let Some(hint) = &self.hint {
                eprintln!("  hint: {hint}");
            }
        }
        self.exit.into()
    }
}

impl From<aegisfs_device::DeviceError> for Failure {
    fn from(error: aegisfs_device::DeviceError) -> Self {
        use aegisfs_device::DeviceError as E;
        let message = error.to_string();
        match error {
            E::Busy { .. } | E::InUse { .. } => Self::new("E_BUSY", Exit::Busy, message)
                .hint("unmount it first, or wait until whoever uses it has finished"),
            E::NotFound { .. } => {
                Self::new("E_NOT_FOUND", Exit::NotFound, message).hint("give --size to create an image file")
            }
            _ => Self::new("E_DEVICE", Exit::Failed, message),
        }
    }
}

impl From<aegisfs_pool::PoolError> for Failure {
    fn from(error: aegisfs_pool::PoolError) -> Self {
        use aegisfs_pool::PoolError as E;
        match error {
            E::Device(error) => error.into(),
            E::NotFormatted { .. } => Self::new("E_NOT_FORMATTED", Exit::Failed, error.to_string()),
            E::TooFew { present, .. } if present > 0 => Self::new("E_POOL", Exit::Failed, error.to_string())
                .hint("add them, or mount with -o degraded,ro to read what can be read"),
            other => Self::new("E_POOL", Exit::Failed, other.to_string()),
        }
    }
}

impl From<aegisfs_store::StoreError> for Failure {
    fn from(error: aegisfs_store::StoreError) -> Self {
        match error {
            aegisfs_store::StoreError::Pool(error) => error.into(),
            other if other.kind() == aegisfs_base::FaultKind::Corrupt => {
                Self::new("E_DAMAGED", Exit::Damage, other.to_string())
            }
            other => Self::new("E_STORE", Exit::Failed, other.to_string()),
        }
    }
}

impl From<aegisfs_fs::FsError> for Failure {
    fn from(error: aegisfs_fs::FsError) -> Self {
        match error {
            aegisfs_fs::FsError::Store(error) => error.into(),
            other => Self::new("E_FILESYSTEM", Exit::Failed, other.to_string()),
        }
    }
}

impl From<aegisfs_fuse::MountError> for Failure {
    fn from(error: aegisfs_fuse::MountError) -> Self {
        use aegisfs_fuse::MountError as E;
        let message = error.to_string();
        match error {
            E::NotRoot => Self::new("E_NOT_ROOT", Exit::Permission, message),
            E::HelperMissing => Self::new("E_NO_HELPER", Exit::Failed, message)
                .hint("install the package fuse3, or mount as root"),
            E::Remount { source, path } if source.raw_os_error() == Some(16) => {
                let message = format!(
                    "{} is busy: something is open for writing, or removed and in use",
                    path.display()
                );
                Self::new("E_BUSY", Exit::Busy, message)
            }
            E::Unmount { source, .. } if source.raw_os_error() == Some(16) => {
                Self::new("E_BUSY", Exit::Busy, message)
            }
            _ => Self::new("E_MOUNT", Exit::Failed, message),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new("E_IO", Exit::Failed, error.to_string())
    }
}
