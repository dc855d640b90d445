//! A disk or partition as a device.
//!
//! The kernel gives a block device exclusively to one opener (`O_EXCL`) and refuses it while it is
//! mounted or belongs to a volume, which no lock file could know. The descriptor that says so carries no data, only
//! discards: it is let go when the kernel itself mounts a filesystem from the device, and keeps others away in our place.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegisfs_base::limits::BLOCK_BYTES;
use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::in_use::{InUse, behind_loop, in_use};
use super::raw::{RawDevice, RawOptions, retry_interrupted};
use super::{OpenOptions, access_flags, describe, file_type, ioctl, kind_of, open_error, until_free};
use crate::error::{DeviceError, Operation};
use crate::{Device, DiscardLimits, check_range};

/// How long the kernel may take to let go of a device after the filesystem on it ended.
const RETURN_WAIT: Duration = Duration::from_secs(5);

/// A block device that is ours alone.
#[derive(Debug)]
pub struct BlockDevice {
    raw: RawDevice,
    path: PathBuf,
    /// Keeps others away.
    claim: Mutex<Option<OwnedFd>>,
    /// What the kernel says of its discards.
    limits: DiscardLimits,
    /// It has said that it cannot do any.
    keeps_all: AtomicBool,
    /// Of a loop device: its file, locked.
    _backing: Option<OwnedFd>,
}

impl BlockDevice {
    /// Opens a block device exclusively.
    ///
    /// # Errors
    /// When it is not one, the system uses it, or it cannot be opened.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DeviceError> {
        if kind_of(path)? != FileType::BlockDevice {
            return Err(DeviceError::NotADevice { device: describe(path) });
        }
        let claim = claim(path, access_flags(options), options.wait)?;
        let fd = retry_interrupted(|| rustix::fs::open(path, access_flags(options), Mode::empty()))
            .map_err(|errno| open_error(path, errno))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| open_error(path, errno))?;
        let claimed = rustix::fs::fstat(&claim).map_err(|errno| open_error(path, errno))?;
        if file_type(&stat) != FileType::BlockDevice || stat.st_rdev != claimed.st_rdev {
            return Err(DeviceError::NotADevice { device: describe(path) });
        }
        let backing = guard_backing(stat.st_rdev, options)?;
        let bytes = measure(&fd, path)?;
        let options =
            RawOptions { bytes, direct: options.direct, read_only: options.read_only, name: describe(path) };
        let (path, claim) = (path.to_path_buf(), Mutex::new(Some(claim)));
        let limits = discard_limits(stat.st_rdev);
        let keeps_all = AtomicBool::new(false);
        Ok(Self { raw: RawDevice::new(fd, options)?, path, claim, limits, keeps_all, _backing: backing })
    }

    /// Whether accesses go past the kernel's cache.
    pub fn direct(&self) -> bool {
        self.raw.direct()
    }
}

/// Opens a device so that nobody else can.
fn claim(path: &Path, access: OFlags, wait: Duration) -> Result<OwnedFd, DeviceError> {
    let flags = access | OFlags::EXCL;
    let fd = until_free(wait, || match retry_interrupted(|| rustix::fs::open(path, flags, Mode::empty())) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::BUSY) => Ok(None),
        Err(errno) => Err(open_error(path, errno)),
    })?;
    fd.ok_or_else(|| busy(path))
}

/// The kernel gives a loop device to one opener, but not what is behind it: nobody else may use the file, by
/// itself or through another loop device. Two that open at the same time may both be refused.
fn guard_backing(number: u64, options: &OpenOptions) -> Result<Option<OwnedFd>, DeviceError> {
    let Some((file, rival)) = behind_loop(number) else { return Ok(None) };
    if let Some(by) = rival {
        return Err(DeviceError::InUse { device: describe(&file), by });
    }
    match super::file::share(&file, options) {
        Ok(locked) => Ok(Some(locked)),
        Err(DeviceError::Busy { .. }) => Err(DeviceError::Busy { device: describe(&file) }),
        // Another mount namespace's, or not ours to read.
        Err(_) => Ok(None),
    }
}

fn measure(fd: &OwnedFd, path: &Path) -> Result<u64, DeviceError> {
    let sector_bytes = rustix::fs::ioctl_blksszget(fd).map_err(|errno| open_error(path, errno))?;
    if sector_bytes as usize > BLOCK_BYTES {
        return Err(DeviceError::SectorTooLarge { sector_bytes, device: describe(path) });
    }
    ioctl::size_bytes(fd.as_fd()).map_err(|errno| open_error(path, errno))
}

/// What the kernel says of a device's discards. A partition has its disk's units, and its own place among them.
fn discard_limits(number: u64) -> DiscardLimits {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let of_queue = |name: &str| {
        let own = number(device.join("queue").join(name));
        own.or_else(|| number(device.join("../queue").join(name)))
    };
    let (Some(granularity), Some(bytes_max)) =
        (of_queue("discard_granularity"), of_queue("discard_max_bytes"))
    else {
        return DiscardLimits::default();
    };
    DiscardLimits::new(granularity, number(device.join("discard_alignment")).unwrap_or(0), bytes_max)
}

/// The kernel only says busy; say by whom where that can be found out.
fn busy(path: &Path) -> DeviceError {
    match in_use(path) {
        Ok(Some(by)) if by != InUse::Held => DeviceError::InUse { device: describe(path), by },
        _ => DeviceError::Busy { device: describe(path) },
    }
}

impl Device for BlockDevice {
    fn bytes(&self) -> u64 {
        self.raw.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        check_range(self, Operation::Read, offset, buffer.len() as u64)?;
        self.raw.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        check_range(self, Operation::Write, offset, data.len() as u64)?;
        self.raw.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.raw.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        check_range(self, Operation::Discard, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        // Whoever has the device alone may do it. While that is a mount, and we only have it open, the kernel does it
        // as long as it holds nothing of the range in its own cache; we go past that.
        let claim = self.claim.lock();
        let fd = claim.as_ref().map_or(self.raw.fd(), OwnedFd::as_fd);
        match retry_interrupted(|| ioctl::discard(fd, offset, length)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => {
                self.keeps_all.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(errno) => Err(self.raw.io_error(Operation::Discard, offset, length, errno)),
        }
    }

    fn discard_limits(&self) -> DiscardLimits {
        let supported = self.limits.supported && !self.keeps_all.load(Ordering::Relaxed);
        DiscardLimits { supported, ..self.limits }
    }

    fn allocated_bytes(&self) -> Option<u64> {
        None
    }

    fn describe(&self) -> String {
        self.raw.name().to_owned()
    }

    fn read_only(&self) -> bool {
        self.raw.read_only()
    }

    fn hand_over(&self) {
        *self.claim.lock() = None;
    }

    fn take_back(&self) -> Result<(), DeviceError> {
        let mut held = self.claim.lock();
        if held.is_none() {
            let access = if self.read_only() { OFlags::RDONLY } else { OFlags::RDWR };
            *held = Some(claim(&self.path, access | OFlags::CLOEXEC, RETURN_WAIT)?);
        }
        Ok(())
    }
}
