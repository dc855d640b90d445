//! Attaching a connection to a directory, and taking it away.

use crate::fusermount;
use crate::mount_table::{BLOCK_FS_TYPE, FS_TYPE};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

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
    /// The kernel refused to change the options of a mount.
    #[error("{path} cannot be remounted: {source}")]
    Remount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only root can mount without a helper.
    #[error("fusermount3 is not installed, and without it only root can mount")]
    HelperMissing,
    /// The helper cannot be run.
    #[error("fusermount3 cannot be run: {0}")]
    Helper(io::Error),
    /// Only root can change a mount.
    #[error("only root can remount")]
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
    /// The source is a block device, which the kernel takes for itself; as root. It then asks for syncs of the
    /// whole filesystem, and unmounting waits until everything is written.
    pub block: bool,
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
            block: false,
        }
    }
}

/// Whether this kernel asks filesystems that are mounted from block devices for a sync of the whole, as it does
/// since 6.18.
pub fn kernel_syncs_block_mounts() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

/// A mount. Dropping it leaves it in place: the kernel ends it when the connection closes.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts; the connection is served by [`Session`](crate::Session). For users other than root the helper
    /// `fusermount3` does it.
    ///
    /// # Errors
    /// When /dev/fuse cannot be opened, the helper is missing, or the kernel refuses.
    pub fn new(path: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        let connection = match rustix::process::geteuid().is_root() {
            true => mount_directly(path, options)?,
            false => fusermount::mount(path, options)?,
        };
        Ok((Self { path: path.into() }, connection))
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how far the kernel reads ahead on this mount; as root, after the mount.
    pub fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        self.set_backing("read_ahead_kb", u64::from(kib))
    }

    /// Bounds what the kernel may hold of written bytes before they reach us; as root, after the mount.
    pub fn set_dirty_bytes_max(&self, bytes: u64) -> io::Result<()> {
        self.set_backing("max_bytes", bytes)?;
        // Without this the bound counts only once the whole machine holds much.
        self.set_backing("strict_limit", 1)
    }

    fn set_backing(&self, what: &str, value: u64) -> io::Result<()> {
        let device = rustix::fs::stat(&self.path)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let folder = format!("/sys/class/bdi/{major}:{minor}");
        // The plain name is the device's own where there is one.
        let of_mount = format!("{folder}-fuseblk");
        let folder = if Path::new(&of_mount).exists() { of_mount } else { folder };
        std::fs::write(format!("{folder}/{what}"), value.to_string())
    }
}

fn mount_directly(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
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
    if options.block {
        data.push_str(",blksize=4096");
    }
    let data = std::ffi::CString::new(data).expect("options hold no zero byte");
    let fs_type = if options.block { BLOCK_FS_TYPE } else { FS_TYPE };
    rustix::mount::mount(options.source.as_str(), path, fs_type, flags(options), data.as_c_str())
        .map_err(|e| MountError::Mount { path: path.into(), source: e.into() })?;
    Ok(device)
}

fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, !options.exec);
    flags.set(MountFlags::NOATIME, options.no_atime);
    flags
}

/// Whether the kernel still has the connection of a mount with this device number (`major:minor`), attached somewhere
/// or not; as root. Without that no when it cannot be told.
pub fn kernel_knows(number: &str) -> bool {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let Some((major, minor)) = number.split_once(':') else { return false };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return false };
    let look = || {
        // The list of connections is a filesystem, which need not be attached to be looked into.
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let list = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        // Named by the kernel's own form of the number.
        let name = (major << 20 | minor).to_string();
        rustix::fs::statat(&list, name, rustix::fs::AtFlags::empty())
    };
    look().is_ok()
}

/// Changes the flags of a mount. The kernel refuses to go read-only while something is open for writing, and
/// hands over what it holds of written bytes before.
///
/// # Errors
/// When the caller is not root, or the kernel refuses.
pub fn remount(path: &Path, options: &MountOptions) -> Result<(), MountError> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountError::NotRoot);
    }
    let mut flags = flags(options);
    // Without any word about access times the kernel would keep what it had.
    flags.set(MountFlags::RELATIME, !options.no_atime);
    rustix::mount::mount_remount(path, flags, c"")
        .map_err(|e| MountError::Remount { path: path.into(), source: e.into() })
}

/// Unmounts; `lazy` detaches at once and leaves the rest to whoever still uses it.
///
/// # Errors
/// When the kernel refuses: it is busy, or not a mount.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    if !rustix::process::geteuid().is_root() {
        return fusermount::unmount(path, lazy);
    }
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(path, flags)
        .map_err(|e| MountError::Unmount { path: path.into(), source: e.into() })
}
