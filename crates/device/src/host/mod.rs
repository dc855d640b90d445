//! Devices that the host provides: block devices, image files, and folders that hold one.

mod block;
mod file;
mod in_use;
mod ioctl;
mod raw;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

pub use block::BlockDevice;
pub use file::{FileDevice, ImageOptions, create_image};
pub use in_use::{InUse, behind, in_use};

use crate::Device;
use crate::error::{DeviceError, Operation};

/// The image file in a folder that is given as a device.
pub const IMAGE_FILE_NAME: &str = "aegisfs.img";

/// How often a device that is busy is tried again while there is time to wait.
const WAIT_STEP: Duration = Duration::from_millis(20);

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Refuse writes. An image may then be open read-only several times at once.
    pub read_only: bool,
    /// How long to wait for whoever holds the device.
    pub wait: Duration,
    /// Go past the kernel's cache where the backing can; it falls back silently.
    pub direct: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, wait: Duration::ZERO, direct: true }
    }
}

/// Opens a block device, an image file, or the image file in a folder.
///
/// # Errors
/// When there is no such thing, somebody else has it, or it cannot be opened.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let path = image_path(path)?;
    match kind_of(&path)? {
        FileType::BlockDevice => Ok(Arc::new(BlockDevice::open(&path, options)?)),
        _ => Ok(Arc::new(FileDevice::open(&path, options)?)),
    }
}

/// The path itself, or for a folder that of the image in it.
fn image_path(path: &Path) -> Result<PathBuf, DeviceError> {
    match rustix::fs::stat(path) {
        Ok(stat) if file_type(&stat) == FileType::Directory => Ok(path.join(IMAGE_FILE_NAME)),
        Ok(_) | Err(Errno::NOENT) => Ok(path.to_path_buf()),
        Err(errno) => Err(open_error(path, errno)),
    }
}

/// Block device or regular file; anything else is refused before it is opened, because opening a
/// pipe would wait and opening a terminal has effects.
fn kind_of(path: &Path) -> Result<FileType, DeviceError> {
    let stat = rustix::fs::stat(path).map_err(|errno| open_error(path, errno))?;
    match file_type(&stat) {
        kind @ (FileType::BlockDevice | FileType::RegularFile) => Ok(kind),
        _ => Err(DeviceError::NotADevice { device: describe(path) }),
    }
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn describe(path: &Path) -> String {
    path.display().to_string()
}

fn access_flags(options: &OpenOptions) -> OFlags {
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    access | OFlags::CLOEXEC
}

fn open_error(path: &Path, errno: Errno) -> DeviceError {
    let device = describe(path);
    match errno {
        Errno::NOENT | Errno::NOTDIR => DeviceError::NotFound { device },
        Errno::ROFS => DeviceError::ReadOnly { op: Operation::Open, device },
        _ => DeviceError::Io { op: Operation::Open, offset: 0, length: 0, device, errno },
    }
}

/// Tries until the device is free or the time is up; `None` is "busy".
fn until_free<T>(
    wait: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, DeviceError>,
) -> Result<Option<T>, DeviceError> {
    let start = Instant::now();
    loop {
        if let Some(held) = attempt()? {
            return Ok(Some(held));
        }
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(left.min(WAIT_STEP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_refused_by_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let options = OpenOptions::default();
        let refused = |path: &Path| open(path, &options).map(|_| ()).unwrap_err();
        assert!(matches!(refused(Path::new("/dev/null")), DeviceError::NotADevice { .. }));
        assert!(matches!(refused(&folder.path().join("absent")), DeviceError::NotFound { .. }));
        assert!(matches!(refused(folder.path()), DeviceError::NotFound { .. }));
        let file = folder.path().join("file");
        std::fs::write(&file, [1; 100]).unwrap();
        assert!(matches!(refused(&file), DeviceError::TooSmall { bytes: 0, .. }));
        assert!(matches!(refused(&file.join("below")), DeviceError::NotFound { .. }));
    }

    #[test]
    fn waiting_ends_when_free_or_late() {
        let mut left = 3;
        let mut countdown = || {
            left -= 1;
            Ok((left == 0).then_some("free"))
        };
        assert_eq!(until_free(Duration::from_secs(60), &mut countdown), Ok(Some("free")));
        assert_eq!(until_free(Duration::from_millis(30), || Ok(None::<()>)), Ok(None));
    }
}
