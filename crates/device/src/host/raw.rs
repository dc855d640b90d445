//! Reading and writing whole blocks through a file descriptor: short transfers, interrupts, retries,
//! direct I/O and the copies it needs when a caller's memory is not aligned.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aegisfs_base::limits::BLOCK_BYTES;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::buffer::AlignedBuffer;
use crate::error::{DeviceError, Operation};

/// A read or write that fails with EIO is tried again this often. A path that fails over needs one;
/// more would only delay the answer that redundancy can give.
const RETRIES_MAX: u32 = 3;

/// Unaligned memory is copied through a buffer of at most this size, one per thread.
const BOUNCE_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static BOUNCE: RefCell<AlignedBuffer> = const { RefCell::new(AlignedBuffer::new()) };
}

/// An open file or block device. Ranges have been checked by the caller.
#[derive(Debug)]
pub(super) struct RawDevice {
    fd: OwnedFd,
    bytes: u64,
    direct: bool,
    read_only: bool,
    name: String,
    // The kernel reports pages it could not write once and then forgets them, so one failed flush
    // makes every later success meaningless. The lock is held while the flush runs: of two at the
    // same time the wrong one could get the only report, and the other would promise too much.
    flush_lost: Mutex<bool>,
}

/// What [`RawDevice::new`] has to know.
pub(super) struct RawOptions {
    pub(super) bytes: u64,
    pub(super) direct: bool,
    pub(super) read_only: bool,
    pub(super) name: String,
}

impl RawDevice {
    /// Takes over a descriptor that is open, locked and measured.
    pub(super) fn new(fd: OwnedFd, options: RawOptions) -> Result<Self, DeviceError> {
        let RawOptions { bytes, direct, read_only, name } = options;
        let bytes = bytes - bytes % BLOCK_BYTES as u64;
        if bytes == 0 {
            return Err(DeviceError::TooSmall { bytes, needed: BLOCK_BYTES as u64, device: name });
        }
        let direct = direct && go_direct(fd.as_fd());
        Ok(Self { fd, bytes, direct, read_only, name, flush_lost: Mutex::new(false) })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn direct(&self) -> bool {
        self.direct
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        if !self.direct || AlignedBuffer::is_aligned(buffer) {
            return self.read_all(offset, buffer);
        }
        let mut at = offset;
        for piece in buffer.chunks_mut(BOUNCE_BYTES_MAX) {
            with_bounce(piece.len(), |bounce| {
                self.read_all(at, bounce)?;
                piece.copy_from_slice(bounce);
                Ok(())
            })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        if !self.direct || AlignedBuffer::is_aligned(data) {
            return self.write_all(offset, data);
        }
        let mut at = offset;
        for piece in data.chunks(BOUNCE_BYTES_MAX) {
            with_bounce(piece.len(), |bounce| {
                bounce.copy_from_slice(piece);
                self.write_all(at, bounce)
            })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), DeviceError> {
        let mut lost = self.flush_lost.lock();
        if *lost {
            return Err(DeviceError::FlushLost { device: self.name.clone() });
        }
        retry_interrupted(|| rustix::fs::fdatasync(&self.fd)).map_err(|errno| {
            *lost = true;
            self.io_error(Operation::Flush, 0, 0, errno)
        })
    }

    pub(super) fn io_error(&self, op: Operation, offset: u64, length: u64, errno: Errno) -> DeviceError {
        DeviceError::Io { op, offset, length, device: self.name.clone(), errno }
    }

    fn read_all(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let length = buffer.len();
        self.transfer(Operation::Read, offset, length, |done, at| {
            rustix::io::pread(&self.fd, &mut buffer[done..], at)
        })
    }

    fn write_all(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.transfer(Operation::Write, offset, data.len(), |done, at| {
            rustix::io::pwrite(&self.fd, &data[done..], at)
        })
    }

    /// Calls `step(done, offset)` until everything is transferred.
    fn transfer(
        &self,
        op: Operation,
        offset: u64,
        length: usize,
        mut step: impl FnMut(usize, u64) -> rustix::io::Result<usize>,
    ) -> Result<(), DeviceError> {
        let (mut done, mut retries) = (0, 0);
        while done < length {
            let moved = match step(done, offset + done as u64) {
                Ok(0) if op == Operation::Read => {
                    let offset = offset + done as u64;
                    return Err(DeviceError::Truncated {
                        offset,
                        bytes: self.bytes,
                        device: self.name.clone(),
                    });
                }
                // Direct I/O goes on from a block boundary only; the rest of a block is done again.
                Ok(moved) if done + moved < length => moved - moved % BLOCK_BYTES,
                Ok(moved) => moved,
                Err(Errno::INTR) => continue,
                Err(Errno::IO | Errno::AGAIN) if retries < RETRIES_MAX => 0,
                Err(errno) => return Err(self.io_error(op, offset, length as u64, errno)),
            };
            done += moved;
            if moved == 0 {
                // No whole block of progress counts as a failure too, or this could go on for ever.
                if retries == RETRIES_MAX {
                    return Err(self.io_error(op, offset, length as u64, Errno::IO));
                }
                retries += 1;
            }
        }
        Ok(())
    }
}

/// Asks for direct I/O and believes it only after an aligned read has worked.
fn go_direct(fd: BorrowedFd<'_>) -> bool {
    let Ok(flags) = rustix::fs::fcntl_getfl(fd) else { return false };
    if rustix::fs::fcntl_setfl(fd, flags | OFlags::DIRECT).is_err() {
        return false;
    }
    let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
    match retry_interrupted(|| rustix::io::pread(fd, &mut *block, 0)) {
        // A medium error is no argument against direct I/O; the caller meets it where it matters.
        Ok(_) | Err(Errno::IO) => true,
        // If it cannot be switched off again, every access fails and says so.
        Err(_) => rustix::fs::fcntl_setfl(fd, flags).is_err(),
    }
}

pub(super) fn retry_interrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Lends this thread's aligned buffer. It is never lent twice at once: what runs inside is one
/// system call loop.
fn with_bounce<T>(length: usize, body: impl FnOnce(&mut [u8]) -> T) -> T {
    BOUNCE.with_borrow_mut(|bounce| {
        bounce.resize(length, 0);
        body(bounce)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (tempfile::NamedTempFile, RawDevice) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let fd = file.as_file().try_clone().unwrap().into();
        let options = RawOptions { bytes: 1 << 20, direct: false, read_only: false, name: "raw".into() };
        (file, RawDevice::new(fd, options).unwrap())
    }

    #[test]
    fn short_transfers_go_on_from_a_block_boundary() {
        let (_file, device) = device();
        let mut steps = Vec::new();
        let mut answers =
            [Ok(5000), Err(Errno::INTR), Ok(4096), Err(Errno::IO), Err(Errno::AGAIN), Ok(8192)].into_iter();
        device
            .transfer(Operation::Write, 8192, 16384, |done, at| {
                steps.push((done, at));
                answers.next().unwrap()
            })
            .unwrap();
        assert_eq!(
            steps,
            [(0, 8192), (4096, 12288), (4096, 12288), (8192, 16384), (8192, 16384), (8192, 16384)]
        );
    }

    #[test]
    fn retries_are_bounded_and_only_for_what_may_pass() {
        let (_file, device) = device();
        for (answer, tries) in
            [(Err(Errno::IO), 4), (Ok(100), 4), (Err(Errno::NOSPC), 1), (Err(Errno::NODEV), 1)]
        {
            let mut calls = 0;
            let result = device.transfer(Operation::Write, 0, 4096, |_, _| {
                calls += 1;
                answer
            });
            assert!(matches!(result, Err(DeviceError::Io { length: 4096, .. })), "{answer:?}");
            assert_eq!(calls, tries, "{answer:?}");
        }
    }

    #[test]
    fn a_file_that_shrank_is_not_read_as_zeros() {
        let (file, device) = device();
        file.as_file().set_len(8192).unwrap();
        let mut buffer = vec![0; 16384];
        let error = device.read_at(0, &mut buffer).unwrap_err();
        assert_eq!(error, DeviceError::Truncated { offset: 8192, bytes: 1 << 20, device: "raw".into() });
    }

    #[test]
    fn after_a_failed_flush_none_succeeds() {
        // A pipe cannot be synced, which stands in for a disk that fails to.
        let (reader, _writer) = std::io::pipe().unwrap();
        let options = RawOptions { bytes: 4096, direct: false, read_only: false, name: "raw".into() };
        let device = RawDevice::new(reader.into(), options).unwrap();
        assert!(matches!(device.flush(), Err(DeviceError::Io { op: Operation::Flush, .. })));
        assert!(matches!(device.flush(), Err(DeviceError::FlushLost { .. })));
    }
}
