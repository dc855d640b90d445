//! Byte-addressed storage: block devices, image files, memory, and faulty ones.
//!
//! Everything above sees one trait, [`Device`]: blocks of 4 KiB that are read, written, flushed and
//! discarded. A tour:
//!
//! * [`open`] picks the implementation for a path: block device, image file, or a directory that
//!   holds one; [`create_image`] makes a sparse image.
//! * [`in_use`] and [`signature`] answer what must be asked before a device is formatted: does
//!   anybody use it, and does it hold somebody's data?
//! * [`MemoryDevice`] is for the simulator and the tests; [`FaultyDevice`], [`ThrottledDevice`] and
//!   [`StatsDevice`] wrap any device.
//! * [`conformance`] holds what every implementation must pass.
//!
//! Two promises that the rooms above rely on:
//!
//! 1. When `flush` returns `Ok`, every write that returned before it was called is on stable
//!    storage. After a failed flush nothing of that is known any more, and a host device fails all
//!    later flushes until it is opened again: the kernel reports lost pages only once.
//! 2. A device that was opened for writing is ours alone, as far as the kernel lets us say so.

#![deny(unsafe_op_in_unsafe_fn)]

mod buffer;
pub mod conformance;
mod discard;
mod error;
mod faulty;
mod host;
mod memory;
mod reopenable;
pub mod signature;
mod stats;
mod throttled;

use std::sync::Arc;

use aegisfs_base::limits::BLOCK_BYTES;

pub use buffer::AlignedBuffer;
pub use discard::DiscardLimits;
pub use error::{DeviceError, Operation};
pub use faulty::{Fault, FaultyDevice};
pub use host::{
    BlockDevice, FileDevice, IMAGE_FILE_NAME, ImageOptions, InUse, OpenOptions, behind, create_image, in_use,
    open,
};
pub use memory::MemoryDevice;
pub use reopenable::ReopenableDevice;
pub use stats::{DeviceStats, StatsDevice};
pub use throttled::{Throttle, ThrottledDevice};

/// Storage addressed in bytes and accessed in whole blocks of 4 KiB.
///
/// Offsets and lengths are multiples of the block; a length of zero does nothing. Calls may come
/// from any number of threads; calls that overlap while one of them writes are the caller's race.
pub trait Device: Send + Sync {
    /// The usable size: what the backing holds, rounded down to whole blocks.
    fn bytes(&self) -> u64;

    /// Fills the buffer from `offset`.
    ///
    /// # Errors
    /// When the range is unaligned or outside, or the device fails. The buffer's content is then
    /// undefined.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes the data to `offset`. It may be lost in a crash until a later `flush` returns.
    ///
    /// # Errors
    /// When the range is unaligned or outside, the device is read-only, or it fails. What the range
    /// holds is then undefined: old, new, or some of each.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Returns when everything written before is on stable storage.
    ///
    /// # Errors
    /// When the device cannot promise that. It is not to be tried again: see the crate's promises.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Gives the range back to whoever provides the space. Its content is undefined afterwards.
    /// A device that cannot do it does nothing.
    ///
    /// # Errors
    /// When the range is unaligned or outside, the device is read-only, or it fails.
    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError>;

    /// What it can forget, and in which units; whether it can is known for sure only after it was asked to.
    fn discard_limits(&self) -> DiscardLimits {
        DiscardLimits::default()
    }

    /// Bytes that an image takes on its host; `None` where nobody can tell, as on block devices.
    fn allocated_bytes(&self) -> Option<u64>;

    /// Path or name, for messages.
    fn describe(&self) -> String;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Opens it anew after it failed: what an earlier flush lost is forgotten, and so is a connection that broke. A device
    /// that cannot do that goes on as it is.
    ///
    /// # Errors
    /// When it is not there, is another one by now, as `is_it` says, or somebody else has it; every call fails then until it is.
    fn reopen(&self, _is_it: &dyn Fn(&dyn Device) -> bool) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Leaves it to the kernel to keep others away, which it does while a filesystem is mounted from the device.
    fn hand_over(&self) {}

    /// Keeps others away again; waits for the kernel to let go.
    ///
    /// # Errors
    /// When somebody else has the device by now.
    fn take_back(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl<D: Device + ?Sized> Device for Arc<D> {
    fn bytes(&self) -> u64 {
        (**self).bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        (**self).read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        (**self).write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        (**self).flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        (**self).discard(offset, length)
    }

    fn discard_limits(&self) -> DiscardLimits {
        (**self).discard_limits()
    }

    fn allocated_bytes(&self) -> Option<u64> {
        (**self).allocated_bytes()
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn read_only(&self) -> bool {
        (**self).read_only()
    }

    fn reopen(&self, is_it: &dyn Fn(&dyn Device) -> bool) -> Result<(), DeviceError> {
        (**self).reopen(is_it)
    }

    fn hand_over(&self) {
        (**self).hand_over();
    }

    fn take_back(&self) -> Result<(), DeviceError> {
        (**self).take_back()
    }
}

/// What every implementation asks before it touches anything: whole blocks, inside the device.
fn check_range(device: &dyn Device, op: Operation, offset: u64, length: u64) -> Result<(), DeviceError> {
    let block = BLOCK_BYTES as u64;
    if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err(DeviceError::Misaligned { op, offset, length, device: device.describe() });
    }
    let bytes = device.bytes();
    if offset.checked_add(length).is_none_or(|end| end > bytes) {
        return Err(DeviceError::OutOfBounds { op, offset, length, bytes, device: device.describe() });
    }
    let changes = matches!(op, Operation::Write | Operation::Discard);
    if changes && device.read_only() {
        return Err(DeviceError::ReadOnly { op, device: device.describe() });
    }
    Ok(())
}
