//! Room: what is left, what is promised, what is withheld.
//!
//! Data is admitted before it is taken in, at its worst case: incompressible and new. The promise is given
//! back when its row is written. Some slots are withheld from users so that a checkpoint, a deletion and
//! later the cleaner always find room.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX};
use aegisfs_base::{InodeId, Share};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::Table;
use aegisfs_format::map::MapOwner;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::is_tombstone;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes withheld at least.
const WITHHELD_BYTES_MIN: u64 = 16 << 20;
/// Slots withheld at least: growth of both databases in all copies, and a segment.
const WITHHELD_SLOTS_MIN: u64 = 4;
/// Bytes of directory and frame overhead per this many bytes of data.
const OVERHEAD_PART: u64 = 64;
/// Bytes of overhead for each contiguous run, which is at least one chunk.
const OVERHEAD_RUN: u64 = 256;

/// The largest frame in a cell of its own.
const FRAME_BYTES_WORST: u64 = (CHUNK_BYTES_MAX + 2 * BLOCK_BYTES) as u64;

/// What is promised.
#[derive(Debug, Default)]
pub(crate) struct SpaceBook {
    promised: Arc<AtomicU64>,
    /// Orphans that something still has open.
    pub(crate) held: Mutex<HashSet<InodeId>>,
    /// Orphans that were let go and wait for the reaper.
    pub(crate) released: Mutex<Vec<InodeId>>,
    /// One reaper at a time.
    pub(crate) reaping: Mutex<()>,
}

/// A promise of room, overhead included; dropping it gives the room back.
pub type Reservation = Share;

/// Where the bytes of a store are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    /// Bytes that users can have at the default policy, full or empty.
    pub total_bytes: u64,
    /// Of those, bytes still to be had.
    pub free_bytes: u64,
    /// Bytes of files that lie in chunks, each reference counted.
    pub logical_bytes: u64,
    /// Plain bytes of the chunks that hold it.
    pub unique_bytes: u64,
    /// Stored bytes of those chunks.
    pub compressed_bytes: u64,
    /// Bytes written to slots that hold segments, all copies counted.
    pub data_bytes: u64,
    /// Bytes written to slots of metadata databases and the log, and to the header areas.
    pub metadata_bytes: u64,
    /// Both together.
    pub physical_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// References to them.
    pub references: u64,
}

impl Store {
    fn shards(&self) -> u64 {
        let redundancy = self.pool.redundancy();
        u64::from(redundancy.shards_data + redundancy.shards_parity)
    }

    /// Bytes of data that a slot's worth of segment takes.
    fn segment_data_bytes(&self) -> u64 {
        self.pool.slot_bytes() - SLOT_HEADER_BYTES
    }

    fn withheld_segments(&self, slots: u64) -> u64 {
        let least =
            WITHHELD_BYTES_MIN.div_ceil(self.pool.slot_bytes()).clamp(1, WITHHELD_SLOTS_MIN.max(slots / 32));
        (slots / 100).max(least).max(WITHHELD_SLOTS_MIN.min(slots / 8))
    }

    /// What bytes in so many runs take on the devices at worst: all of them new and incompressible, and the
    /// end of each segment lost because the next frame is larger.
    pub fn worst_case_bytes(&self, bytes: u64, runs: u64) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let segment = self.segment_data_bytes();
        let lost =
            (bytes * FRAME_BYTES_WORST).div_ceil(segment.saturating_sub(FRAME_BYTES_WORST).max(segment / 2));
        bytes + lost + bytes / OVERHEAD_PART + runs * OVERHEAD_RUN + BLOCK_BYTES as u64
    }

    /// Bytes that users can still have, promises not yet taken off.
    fn placeable_bytes(&self) -> u64 {
        let space = self.pool.space();
        let segments = space.segments_placeable.saturating_sub(self.withheld_segments(space.slots));
        let room = self.segments.room(&self.pool).saturating_sub(FRAME_BYTES_WORST);
        segments * self.segment_data_bytes() + room
    }

    /// Promises room for what was acknowledged before, whether there is any or not.
    pub fn promise(&self, bytes: u64) -> Reservation {
        Share::new(bytes, &self.space.promised)
    }

    /// Promises room for new data, and leaves so much of it for others.
    ///
    /// # Errors
    /// When there is no room even after what is dead was given back.
    pub fn reserve(&self, bytes: u64, leave: u64) -> Result<Reservation, StoreError> {
        self.check_writable()?;
        let wanted = self.worst_case_bytes(bytes, 1);
        let mut free = 0;
        for attempt in 0..3 {
            let promise = self.promise(wanted);
            free = self.placeable_bytes();
            if self.space.promised.load(Ordering::Acquire) + leave <= free {
                return Ok(promise);
            }
            drop(promise);
            // What died may only wait for the reaper, or for a checkpoint to say so.
            let reaped = self.reap_all()?;
            if attempt > 0 && !reaped && self.pool.space().freeing == 0 {
                break;
            }
            self.checkpoint()?;
        }
        let free = free.saturating_sub(self.space.promised.load(Ordering::Acquire) + leave);
        Err(StoreError::NoSpace { wanted, free })
    }

    /// Refuses a change that adds metadata when only withheld room is left.
    ///
    /// # Errors
    /// When there is no room.
    pub fn admit_metadata(&self) -> Result<(), StoreError> {
        let space = self.pool.space();
        if space.segments_placeable + space.freeing / self.shards() > self.withheld_segments(space.slots) / 2
        {
            return Ok(());
        }
        Err(StoreError::NoSpace { wanted: BLOCK_BYTES as u64, free: 0 })
    }

    /// Total and free bytes for users; cheap.
    pub fn capacity(&self) -> (u64, u64) {
        let space = self.pool.space();
        let mapped = self.pool.mapped_slots().len() as u64;
        let total_segments = (space.slots.saturating_sub(mapped) / self.shards())
            .saturating_sub(self.withheld_segments(space.slots));
        let total = total_segments * self.segment_data_bytes();
        (total, self.free_bytes().min(total))
    }

    /// Bytes promised and not yet written.
    pub fn promised_bytes(&self) -> u64 {
        self.space.promised.load(Ordering::Acquire)
    }

    /// Bytes that can still be promised.
    pub fn free_bytes(&self) -> u64 {
        self.placeable_bytes().saturating_sub(self.space.promised.load(Ordering::Acquire))
    }

    /// Where all bytes are. Walks the chunk descriptors and the extents.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn space_report(&self) -> Result<SpaceReport, StoreError> {
        let (total_bytes, free_bytes) = self.capacity();
        let mut report = SpaceReport { total_bytes, free_bytes, ..SpaceReport::default() };
        let mut bad = None;
        self.view().scan(Table::Chunks, &[], None, &mut |_, stored| match Descriptor::decode(stored) {
            Ok(Some(chunk)) => {
                report.chunks += 1;
                report.references += u64::from(chunk.references);
                report.unique_bytes += u64::from(chunk.plain_bytes);
                report.compressed_bytes += u64::from(chunk.charged_bytes);
                ControlFlow::Continue(())
            }
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
        })?;
        // Of a chunk that is referred to in parts only those parts count.
        self.view().scan(Table::Extents, &[], None, &mut |_, stored| {
            if is_tombstone(stored) {
                return ControlFlow::Continue(());
            }
            match decode_window(stored) {
                Ok(references) => {
                    report.logical_bytes += references.iter().map(|r| u64::from(r.length)).sum::<u64>();
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    bad = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = bad {
            return Err(error.into());
        }
        let space = self.pool.space();
        let mapped = self.pool.mapped_slots();
        let used = space.slots - space.free - mapped.len() as u64;
        report.data_bytes = used * self.pool.slot_bytes() - self.segments.unwritten(&self.pool);
        let log_slots = mapped.iter().filter(|entry| entry.owner == MapOwner::Log).count() as u64;
        report.metadata_bytes = log_slots * self.pool.slot_bytes() + self.pool.header_bytes();
        for database in self.databases() {
            report.metadata_bytes += database.written_bytes()?;
        }
        report.physical_bytes = report.data_bytes + report.metadata_bytes;
        Ok(report)
    }
}
