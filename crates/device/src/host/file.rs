//! An image file as a device.
//!
//! The lock is a `flock` on the open file: it goes away with the process, however that ends. An
//! image that is open for writing has it exclusively; read-only openings share it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aegisfs_base::limits::BLOCK_BYTES;
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::in_use::{loop_device_over, used_through_loop};
use super::raw::{RawDevice, RawOptions, retry_interrupted};
use super::{OpenOptions, access_flags, describe, file_type, image_path, open_error, until_free};
use crate::error::{DeviceError, Operation};
use crate::{Device, DiscardLimits, check_range};

/// An image holds private data, whatever the umask says.
const IMAGE_MODE: u32 = 0o600;

/// An image file, sparse where nothing was written.
#[derive(Debug)]
pub struct FileDevice {
    raw: RawDevice,
    /// The host has said that it cannot punch holes.
    keeps_all: AtomicBool,
}

impl FileDevice {
    /// Opens and locks an image, or the image in a folder.
    ///
    /// # Errors
    /// When there is none, it is locked or backs a loop device, or it cannot be opened.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DeviceError> {
        let path = &image_path(path)?;
        // A path may turn into a pipe between the look and the opening; NONBLOCK keeps us from
        // hanging there and means nothing to a file.
        let flags = access_flags(options) | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| open_error(path, errno))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| open_error(path, errno))?;
        if file_type(&stat) != FileType::RegularFile {
            return Err(DeviceError::NotADevice { device: describe(path) });
        }
        lock(&fd, path, options)?;
        let by = if options.read_only { used_through_loop(&stat) } else { loop_device_over(&stat) };
        if let Some(by) = by {
            return Err(DeviceError::InUse { device: describe(path), by });
        }
        // Measured under the lock: before it, somebody else might still have changed it.
        let stat = rustix::fs::fstat(&fd).map_err(|errno| open_error(path, errno))?;
        let options = RawOptions {
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            direct: options.direct,
            read_only: options.read_only,
            name: describe(path),
        };
        Ok(Self { raw: RawDevice::new(fd, options)?, keeps_all: AtomicBool::new(false) })
    }

    /// Whether accesses go past the kernel's cache.
    pub fn direct(&self) -> bool {
        self.raw.direct()
    }
}

impl Device for FileDevice {
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
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_interrupted(|| rustix::fs::fallocate(self.raw.fd(), flags, offset, length)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.keeps_all.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(errno) => Err(self.raw.io_error(Operation::Discard, offset, length, errno)),
        }
    }

    fn discard_limits(&self) -> DiscardLimits {
        DiscardLimits { supported: !self.keeps_all.load(Ordering::Relaxed), ..DiscardLimits::default() }
    }

    fn allocated_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::fstat(self.raw.fd()).ok()?;
        Some(u64::try_from(stat.st_blocks).ok()? * 512)
    }

    fn describe(&self) -> String {
        self.raw.name().to_owned()
    }

    fn read_only(&self) -> bool {
        self.raw.read_only()
    }
}

/// How an image is made.
#[derive(Clone, Copy, Debug)]
pub struct ImageOptions {
    /// Its size; what is beyond the last whole block stays unused.
    pub bytes: u64,
    /// Throw away what an existing file holds; otherwise only an empty one is taken.
    pub reuse: bool,
}

/// Makes a sparse image file, in a folder if the path is one. The file and its name are durable
/// when this returns; it is not left open.
///
/// # Errors
/// When a file with content exists and `reuse` is not set, the file is in use, or the host cannot
/// hold it. A file that this call made is then removed again.
pub fn create_image(path: &Path, options: &ImageOptions) -> Result<(), DeviceError> {
    let path = &image_path(path)?;
    let ImageOptions { bytes, reuse } = *options;
    if bytes < BLOCK_BYTES as u64 {
        return Err(DeviceError::TooSmall { bytes, needed: BLOCK_BYTES as u64, device: describe(path) });
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(IMAGE_MODE);
    match rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Ok(fd) => fill_image(&fd, path, bytes).inspect_err(|_| {
            // Nobody saw the file yet; that it cannot be removed matters less than the first error.
            let _ = rustix::fs::unlink(path);
        }),
        Err(Errno::EXIST) => {
            let fd = rustix::fs::open(path, flags, mode).map_err(|errno| open_error(path, errno))?;
            empty_for_reuse(&fd, path, reuse)?;
            fill_image(&fd, path, bytes)
        }
        Err(errno) => Err(create_error(path, errno)),
    }
}

fn empty_for_reuse(fd: &OwnedFd, path: &Path, reuse: bool) -> Result<(), DeviceError> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| create_error(path, errno))?;
    if file_type(&stat) != FileType::RegularFile {
        return Err(DeviceError::NotADevice { device: describe(path) });
    }
    lock(fd, path, &OpenOptions::default())?;
    if let Some(by) = loop_device_over(&stat) {
        return Err(DeviceError::InUse { device: describe(path), by });
    }
    let bytes = u64::try_from(rustix::fs::fstat(fd).map_err(|e| create_error(path, e))?.st_size).unwrap_or(0);
    if bytes > 0 && !reuse {
        return Err(DeviceError::Exists { bytes, device: describe(path) });
    }
    rustix::fs::ftruncate(fd, 0).map_err(|errno| create_error(path, errno))
}

fn fill_image(fd: &OwnedFd, path: &Path, bytes: u64) -> Result<(), DeviceError> {
    let step = |result: rustix::io::Result<()>| result.map_err(|errno| create_error(path, errno));
    step(rustix::fs::ftruncate(fd, bytes))?;
    step(retry_interrupted(|| rustix::fs::fsync(fd)))?;
    // The name is durable only when its folder is.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).map_err(|e| create_error(path, e))?;
    step(retry_interrupted(|| rustix::fs::fsync(&folder)))
}

fn create_error(path: &Path, errno: Errno) -> DeviceError {
    match open_error(path, errno) {
        DeviceError::Io { offset, length, device, errno, .. } => {
            DeviceError::Io { op: Operation::Create, offset, length, device, errno }
        }
        error => error,
    }
}

fn lock(fd: &OwnedFd, path: &Path, options: &OpenOptions) -> Result<(), DeviceError> {
    let operation = if options.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    lock_as(fd, path, options, operation)
}

/// Locks the file behind a loop device as one of those who use it so; whoever opens the file itself for
/// writing has it alone.
pub(super) fn share(path: &Path, options: &OpenOptions) -> Result<OwnedFd, DeviceError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| open_error(path, errno))?;
    lock_as(&fd, path, options, FlockOperation::NonBlockingLockShared)?;
    Ok(fd)
}

fn lock_as(
    fd: &OwnedFd,
    path: &Path,
    options: &OpenOptions,
    operation: FlockOperation,
) -> Result<(), DeviceError> {
    let locked =
        until_free(options.wait, || match retry_interrupted(|| rustix::fs::flock(fd.as_fd(), operation)) {
            Ok(()) => Ok(Some(())),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(open_error(path, errno)),
        })?;
    locked.ok_or_else(|| DeviceError::Busy { device: describe(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn image(reuse: bool) -> ImageOptions {
        ImageOptions { bytes: SIZE, reuse }
    }

    #[test]
    fn images_are_sparse_private_and_never_overwritten_unasked() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        create_image(&path, &image(false)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, IMAGE_MODE);
        let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
        assert_eq!((device.bytes(), device.allocated_bytes()), (SIZE, Some(0)));
        device.write_at(4096, &[9; 4096]).unwrap();
        device.flush().unwrap();
        assert!(matches!(create_image(&path, &image(true)), Err(DeviceError::Busy { .. })));
        drop(device);
        let refused = create_image(&path, &image(false));
        assert!(matches!(refused, Err(DeviceError::Exists { bytes: SIZE, .. })));
        create_image(&path, &image(true)).unwrap();
        let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
        let mut block = [1; 4096];
        device.read_at(4096, &mut block).unwrap();
        assert_eq!(block, [0; 4096]);
    }

    #[test]
    fn a_folder_and_an_empty_file_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        create_image(folder.path(), &image(false)).unwrap();
        let device = super::super::open(folder.path(), &OpenOptions::default()).unwrap();
        assert!(device.describe().ends_with(super::super::IMAGE_FILE_NAME));
        let empty = folder.path().join("empty");
        std::fs::write(&empty, []).unwrap();
        create_image(&empty, &image(false)).unwrap();
        let refused = create_image(&folder.path().join("tiny"), &ImageOptions { bytes: 4095, reuse: false });
        assert!(matches!(refused, Err(DeviceError::TooSmall { .. })));
    }

    #[test]
    fn a_failed_creation_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge");
        let refused = create_image(&path, &ImageOptions { bytes: i64::MAX as u64, reuse: false });
        assert!(matches!(refused, Err(DeviceError::Io { op: Operation::Create, .. })), "{refused:?}");
        assert!(!path.exists());
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let folder = tempfile::tempdir().unwrap();
        create_image(folder.path(), &image(false)).unwrap();
        let reading = OpenOptions { read_only: true, ..OpenOptions::default() };
        let first = FileDevice::open(folder.path(), &reading).unwrap();
        let second = FileDevice::open(folder.path(), &reading).unwrap();
        let writer = FileDevice::open(folder.path(), &OpenOptions::default());
        assert!(matches!(writer, Err(DeviceError::Busy { .. })));
        assert!(matches!(first.write_at(0, &[0; 4096]), Err(DeviceError::ReadOnly { .. })));
        assert!(matches!(first.discard(0, 4096), Err(DeviceError::ReadOnly { .. })));
        first.flush().unwrap();
        drop((first, second));
        FileDevice::open(folder.path(), &OpenOptions::default()).unwrap();
    }

    #[test]
    fn discarding_gives_the_host_its_space_back() {
        let folder = tempfile::tempdir().unwrap();
        create_image(folder.path(), &image(false)).unwrap();
        let device = FileDevice::open(folder.path(), &OpenOptions::default()).unwrap();
        device.write_at(0, &vec![7; SIZE as usize]).unwrap();
        device.flush().unwrap();
        let full = device.allocated_bytes().unwrap();
        assert!(full >= SIZE, "{full}");
        device.discard(0, SIZE / 2).unwrap();
        device.flush().unwrap();
        assert!(device.allocated_bytes().unwrap() <= full - SIZE / 2 + 65536);
        assert_eq!(device.bytes(), SIZE);
    }
}
