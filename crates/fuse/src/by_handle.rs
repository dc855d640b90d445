//! Files by their numbers instead of their names, as the kernel finds them for servers of NFS.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The kernel's kind of handle that FUSE gives: inode in two halves, generation.
const INO64_GEN: i32 = 0x81;
const WORDS: usize = 3;

/// The kernel's `struct file_handle` with its bytes.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    words: [u32; WORDS],
}

/// Has the kernel write back what it holds of a file of a mount, and waits for it; as root, and from a process that
/// does not serve the mount.
///
/// # Errors
/// When the file is not there any more, or the bytes could not be written.
pub fn write_back(mount: &Path, node: u64, generation: u64) -> io::Result<()> {
    let mount = rustix::fs::open(mount, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut handle = Handle {
        bytes: (WORDS * size_of::<u32>()) as u32,
        kind: INO64_GEN,
        words: [(node >> 32) as u32, node as u32, generation as u32],
    };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the handle is a whole `struct file_handle`, with as many bytes behind its head as it says.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened and belongs to nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let how =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: it takes no memory.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
