//! Labels of SELinux, for which ls(1) asks each file that it lists, whether or not there is an SELinux.
//!
//! "This file has none" makes it ask for the next one, a message each. "There is no such thing here" is remembered
//! for the whole filesystem. A label that a file does have, as from a backup, is told all the same.

use aegisfs_fs::FsError;
use std::path::Path;

/// The attribute that holds a file's label.
const LABEL: &[u8] = b"security.selinux";

/// Whether files may be labelled; the kernel does not change that while it runs.
pub(crate) struct Labels {
    used: bool,
}

impl Labels {
    /// As the kernel has it.
    pub(crate) fn of_kernel() -> Self {
        // The list is not there for everybody, nor everywhere.
        let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        Self::told_by(Path::new("/sys/fs/selinux").exists(), &modules)
    }

    /// By whether there is a place for SELinux's own files, and the list of security modules.
    fn told_by(has_place: bool, modules: &str) -> Self {
        Self { used: has_place || modules.trim().split(',').any(|module| module == "selinux") }
    }

    /// What to answer when an attribute could not be had.
    pub(crate) fn explain(&self, name: &[u8], error: FsError) -> FsError {
        match error {
            FsError::NoAttribute if name == LABEL && !self.used => FsError::NotSupported,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_fs::Errno;

    #[test]
    fn only_a_missing_label_without_selinux_is_not_supported() {
        let answer = |used, name: &[u8], error| Labels { used }.explain(name, error).errno();
        assert_eq!(answer(false, LABEL, FsError::NoAttribute), Errno::EOPNOTSUPP);
        assert_eq!(answer(true, LABEL, FsError::NoAttribute), Errno::ENODATA);
        assert_eq!(answer(false, LABEL, FsError::NotFound), Errno::ENOENT);
        for other in [&b"security.selinux2"[..], b"security.capability", b"user.selinux", b"security."] {
            assert_eq!(answer(false, other, FsError::NoAttribute), Errno::ENODATA, "{other:?}");
        }
    }

    #[test]
    fn selinux_shows_by_its_place_or_in_the_list() {
        let used = |has_place, modules| Labels::told_by(has_place, modules).used;
        assert!(!used(false, "") && !used(false, "capability,landlock,yama,selinux2"));
        assert!(used(false, "capability,selinux,bpf") && used(false, "lockdown,selinux\n"));
        assert!(used(true, "") && used(true, "capability"));
    }
}
