//! The two questions to a block device for which no safe call exists.
#![expect(unsafe_code, reason = "ioctl takes untyped numbers and pointers")]

use std::os::fd::BorrowedFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `BLKGETSIZE64`, declared by the kernel as `_IOR(0x12, 114, size_t)`; it writes 64 bits.
const SIZE: Opcode = opcode::read::<usize>(0x12, 114);
/// `BLKDISCARD`, declared by the kernel as `_IO(0x12, 119)`; it reads two 64-bit numbers.
const DISCARD: Opcode = opcode::none(0x12, 119);

/// The block device's size in bytes.
pub(super) fn size_bytes(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    // SAFETY: the kernel writes exactly one u64 for this opcode.
    let request = unsafe { Getter::<SIZE, u64>::new() };
    // SAFETY: the request only writes to the memory that it owns.
    unsafe { ioctl(fd, request) }
}

/// Tells the block device that a range holds nothing of worth.
pub(super) fn discard(fd: BorrowedFd<'_>, offset: u64, length: u64) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads exactly two u64 for this opcode, start and length.
    let request = unsafe { Setter::<DISCARD, [u64; 2]>::new([offset, length]) };
    // SAFETY: the request only reads memory that it owns; what it does to the device is what the
    // caller, who opened it exclusively for writing, asked for.
    unsafe { ioctl(fd, request) }
}
