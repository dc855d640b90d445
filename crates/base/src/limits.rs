//! Every bound in one place. Memory is bounded by these and by configuration, not by data size.

use crate::units::{GIB, KIB, MIB, TIB};

/// The unit of every device access, page and cell boundary. Changing it is a format change.
pub const BLOCK_BYTES: usize = 4096;

/// The smallest device that can be formatted.
pub const DEVICE_BYTES_MIN: u64 = 256 * MIB;
/// Devices in one pool. Raising it needs a larger superblock, which is a format change.
pub const DEVICES_MAX: usize = 64;

/// Slot size for pools below [`POOL_BYTES_SMALL`].
pub const SLOT_BYTES_SMALL: u64 = 4 * MIB;
/// Slot size for most pools.
pub const SLOT_BYTES_DEFAULT: u64 = 16 * MIB;
/// Slot size for pools above [`POOL_BYTES_LARGE`].
pub const SLOT_BYTES_LARGE: u64 = 64 * MIB;
/// Below this total size slots are small.
pub const POOL_BYTES_SMALL: u64 = 4 * GIB;
/// Above this total size slots are large.
pub const POOL_BYTES_LARGE: u64 = 4 * TIB;

/// Longest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, in bytes.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Largest extended attribute value.
pub const XATTR_BYTES_MAX: usize = 64 * KIB as usize;
/// Largest file, one below the largest signed 64-bit offset.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Content of a file up to this size lives beside its inode.
pub const INLINE_BYTES_MAX: usize = 512;
/// Hard links to one inode.
pub const LINKS_MAX: u32 = 1 << 20;

/// A file's extents are kept in windows of this many bytes. Changing it is a format change.
pub const WINDOW_BYTES: u64 = MIB;

/// Smallest chunk the cutter makes, but for the end of a run.
pub const CHUNK_BYTES_MIN: usize = 16 * KIB as usize;
/// Chunk size the cutter aims at.
pub const CHUNK_BYTES_AVERAGE: usize = 64 * KIB as usize;
/// Largest chunk. Readers size buffers by it, so raising it is a format change.
pub const CHUNK_BYTES_MAX: usize = 256 * KIB as usize;
/// Small neighbouring chunks are compressed together up to this many plain bytes.
/// Readers size buffers by it, so raising it is a format change.
pub const FRAME_BYTES_MAX: usize = 256 * KIB as usize;

/// Largest cell: one row's piece on one device.
pub const CELL_BYTES_MAX: usize = 4 * MIB as usize;

/// Largest record of the intent log, header and padding included.
/// Recovery looks this far past a bad record, so raising it is a format change.
pub const LOG_RECORD_BYTES_MAX: usize = MIB as usize;
/// A group of synced writes up to this size goes into the log itself and writes no row.
pub const LOG_PAYLOAD_BYTES_MAX: usize = 64 * KIB as usize;

/// Memory for the filter of the dedup index: about 21 MiB for each TiB of different data. What has no room
/// in it is not found again, and stored once more.
pub const DEDUP_FILTER_BYTES_MAX: usize = 64 * MIB as usize;
