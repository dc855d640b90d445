//! Attaching a connection to a directory, and taking it away.

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The filesystem's type as the kernel lists it.
const FS_TYPE: &str = "fuse.aegisfs";

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// /dev/fuse is not there or not to be opened.
    #[error("/dev/fuse cannot be opened: {0}; load the fuse module, or see that you may use it")]
    Device(io::Error),
    /// mount(2) refused.
    #[error("{path} cannot be mounted on: {source}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// umount(2) refused.
    #[error("{path} cannot be unmounted: {source}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only root can mount without a helper.
    #[error("mounting needs root here; run it with sudo")]
    NotRoot,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the kernel shows as the source.
    pub source: String,
    /// For reading only.
    pub read_only: bool,
    /// Honour setuid and setgid bits.
    pub suid: bool,
    /// Honour device files.
    pub dev: bool,
    /// Run programs from it.
    pub exec: bool,
    /// Let others than the mounting user in.
    pub allow_other: bool,
    /// Let the kernel check permissions.
    pub default_permissions: bool,
    /// Do not keep access times.
    pub no_atime: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "aegisfs".into(),
            read_only: false,
            suid: true,
            dev: true,
            exec: true,
            allow_other: true,
            default_permissions: true,
            no_atime: false,
        }
    }
}

/// A mount. Dropping it leaves it in place: the kernel ends it when the connection closes.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts; the connection is served by [`Session`](crate::Session).
    ///
    /// # Errors
    /// When /dev/fuse cannot be opened or the kernel refuses.
    pub fn new(path: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        if !rustix::process::geteuid().is_root() {
            return Err(MountError::NotRoot);
        }
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| MountError::Device(e.into()))?;
        let mut data = format!(
            "fd={},rootmode=40000,user_id={},group_id={}",
            device.as_raw_fd(),
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw()
        );
        if options.allow_other {
            data.push_str(",allow_other");
        }
        if options.default_permissions {
            data.push_str(",default_permissions");
        }
        let _ = write!(data, ",max_read={}", 1 << 20);
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, options.read_only);
        flags.set(MountFlags::NOSUID, !options.suid);
        flags.set(MountFlags::NODEV, !options.dev);
        flags.set(MountFlags::NOEXEC, !options.exec);
        flags.set(MountFlags::NOATIME, options.no_atime);
        let data = std::ffi::CString::new(data).expect("options hold no zero byte");
        rustix::mount::mount(options.source.as_str(), path, FS_TYPE, flags, data.as_c_str())
            .map_err(|e| MountError::Mount { path: path.into(), source: e.into() })?;
        Ok((Self { path: path.into() }, device))
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how far the kernel reads ahead on this mount; as root, after the mount.
    pub fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let device = rustix::fs::stat(&self.path)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }
}

/// Unmounts; `lazy` detaches at once and leaves the rest to whoever still uses it.
///
/// # Errors
/// When the kernel refuses: it is busy, or not a mount.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(path, flags)
        .map_err(|e| MountError::Unmount { path: path.into(), source: e.into() })
}

/// Whether a path is one of our mounts, by the kernel's list.
pub fn is_fuse_mount(path: &Path) -> bool {
    let Ok(list) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    list.lines().any(|line| {
        let mut fields = line.split(' ');
        let here = fields.nth(4).is_some_and(|found| Path::new(&unescape(found)) == path);
        here && line.contains(&format!(" - {FS_TYPE} "))
    })
}

/// The kernel writes blanks and the like in paths as octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points() {
        assert_eq!(unescape(r"/mnt/a\040b\134c"), r"/mnt/a b\c");
        assert_eq!(unescape(r"/mnt/\9"), r"/mnt/\9");
    }
}
