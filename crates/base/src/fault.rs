//! The classes into which every room's errors fall.

/// What an error means to whoever has to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// What was read is not what was written, and no redundancy could mend it.
    Corrupt,
    /// A device or peer did not answer, or answered with an I/O error.
    Unavailable,
    /// There is no room for what was asked.
    NoSpace,
    /// An earlier failure made the store read-only until it is reopened.
    Poisoned,
    /// What was asked, or what was found, is not valid here.
    Invalid,
    /// A mistake in this program.
    Internal,
}
