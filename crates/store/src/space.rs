//! Room: what is left, what is promised, what is withheld.
//!
//! Data is admitted before it is taken in, at its worst case: incompressible and new. The promise is given
//! back when its row is written. Some slots are withheld from users so that a checkpoint, a deletion and
//! later the cleaner always find room.

use crate::StoreError;
use crate::segments::{Class, Purpose, Shape};
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX};
use aegisfs_base::{InodeId, PolicyId, Sequence, Share};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::Table;
use aegisfs_format::map::MapOwner;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::is_tombstone;
use aegisfs_pool::{Pool, Redundancy};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes withheld at least.
const WITHHELD_BYTES_MIN: u64 = 16 << 20;
/// Slots withheld at least, unless that were more than an eighth: half of them for the metadata, half for moving.
const WITHHELD_SLOTS_MIN: u64 = 8;
/// Bytes of directory and frame overhead per this many bytes of data.
const OVERHEAD_PART: u64 = 64;
/// The part of the slots that metadata is expected to take, and how many at least.
const METADATA_PART: u64 = 32;
const METADATA_SLOTS_MIN: u64 = 8;
/// Cells of a wide row are filled evenly to this part, as a rule.
const UNEVEN_PART: u64 = 8;
/// So many times the bytes of the changes are what their pages take at most, when all of them are new.
const PAGES_HALF_FULL: usize = 2;
/// Bytes of overhead for each contiguous run, which is at least one chunk.
const OVERHEAD_RUN: u64 = 256;
/// Whoever cleans because there is no room gets this part of the whole.
const CLEANED_PART: u64 = 64;
/// How often whoever needs room looks for it.
const RESERVE_ATTEMPTS: u32 = 64;
/// How old the number of bytes that cleaning gives back may be for those who only want to know.
const RECLAIMABLE_FRESH: Duration = Duration::from_secs(1);

/// The largest frame in a cell of its own.
pub(crate) const FRAME_BYTES_WORST: u64 = (CHUNK_BYTES_MAX + 2 * BLOCK_BYTES) as u64;

/// What is promised.
#[derive(Debug, Default)]
pub(crate) struct SpaceBook {
    promised: Arc<AtomicU64>,
    /// Orphans that something still has open.
    pub(crate) held: Mutex<HashSet<InodeId>>,
    /// Orphans that were let go and wait for the reaper.
    pub(crate) released: Mutex<Vec<InodeId>>,
    /// Those of them that the reaper is at.
    pub(crate) under_way: Mutex<Arc<Vec<InodeId>>>,
    /// One reaper at a time.
    pub(crate) reaping: Mutex<()>,
    /// What cleaning would give back.
    reclaimable: Mutex<Option<Reclaimable>>,
}

/// Bytes that cleaning gives back, as they were at some time.
#[derive(Clone, Copy, Debug)]
struct Reclaimable {
    bytes: u64,
    sequence: Sequence,
    looked: Duration,
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
    /// Bytes of free slots that take room where the devices lie, since they were not discarded yet.
    pub untrimmed_bytes: u64,
    /// All three together.
    pub physical_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// References to them.
    pub references: u64,
}

/// Has the pool keep slots for the metadata that nothing else ever takes.
///
/// A checkpoint writes pages that it changes elsewhere, and only the next one may write over what was there before.
/// Without room for that no checkpoint succeeds, and no slot is ever free again.
pub(crate) fn keep_room_for_metadata(pool: &Pool) {
    pool.keep_for_metadata(withheld_slots(pool, pool.space().slots) / 2);
}

/// Slots that users never get.
fn withheld_slots(pool: &Pool, slots: u64) -> u64 {
    let least = WITHHELD_BYTES_MIN.div_ceil(pool.slot_bytes()).clamp(1, WITHHELD_SLOTS_MIN.max(slots / 32));
    let least = least.max(WITHHELD_SLOTS_MIN) * shards(pool);
    (slots / 100).max(least.min(slots / 8))
}

fn shards(pool: &Pool) -> u64 {
    pool.redundancy().shards() as u64
}

impl Store {
    fn shards(&self) -> u64 {
        shards(&self.pool)
    }

    /// Bytes of cells that a slot takes.
    fn slot_data_bytes(&self) -> u64 {
        self.pool.slot_bytes() - SLOT_HEADER_BYTES
    }

    /// Bytes of data that a segment of the pool's redundancy takes.
    pub(crate) fn segment_data_bytes(&self) -> u64 {
        self.slot_data_bytes() * u64::from(self.pool.redundancy().shards_data)
    }

    /// Bytes of data that a wide segment takes with the devices that take part now.
    fn segment_data_bytes_now(&self, policy: PolicyId) -> u64 {
        self.slot_data_bytes() * u64::from(self.shards_now(policy).0)
    }

    /// Bytes of data that so many slots take, put to wide segments with the devices that take part now.
    pub(crate) fn slots_worth(&self, slots: u64, policy: PolicyId) -> u64 {
        self.cells_worth(slots * self.slot_data_bytes(), policy)
    }

    /// The same for bytes of cells of any kind.
    pub(crate) fn cells_worth(&self, bytes: u64, policy: PolicyId) -> u64 {
        let (data, parity) = self.shards_now(policy);
        bytes * u64::from(data) / (u64::from(data) + u64::from(parity))
    }

    /// Room for bytes that follow a policy, told in bytes that could be had there at the pool's own redundancy.
    ///
    /// All room is promised and told in these: what is stored with more redundancy takes more of it.
    pub fn in_own_bytes(&self, bytes: u64, policy: PolicyId) -> u64 {
        let (own, other) = (self.pool.redundancy(), self.redundancy_of(policy));
        if own == other {
            return bytes;
        }
        let parts = |one: Redundancy, two: Redundancy| u128::from(one.shards_data) * two.shards() as u128;
        u64::try_from(u128::from(bytes) * parts(own, other) / parts(other, own)).unwrap_or(u64::MAX)
    }

    /// By how much data take more when there is too little of it for wide rows, in parts of what wide rows take.
    fn narrow_factor(&self, policy: PolicyId) -> (u64, u64) {
        let redundancy = self.redundancy_of(policy);
        let (data, parity) = (u64::from(redundancy.shards_data), u64::from(redundancy.shards_parity));
        ((1 + parity) * data, data + parity)
    }

    /// Segments that only the cleaner gets.
    fn withheld_segments(&self, slots: u64) -> u64 {
        withheld_slots(&self.pool, slots).div_ceil(2 * self.shards())
    }

    /// By how much the changes that wait for a checkpoint have used up what it can write at most, in thousandths of half of
    /// that: the other half is for those that come while it is made.
    pub(crate) fn checkpoint_fullness(&self) -> u64 {
        let (entries, bytes) = self.metadata.active_size();
        // What is kept is free, or it was written in earlier checkpoints, whose pages are free inside the database.
        let pieces = self.pool.room_for_metadata() / u64::from(self.database.copies());
        let room = (pieces * self.database.pages_per_piece() / 2).max(1);
        // A change rewrites a page that is there, or adds to one.
        let rewritten = (entries as u64).min(self.database.mapped_pages());
        let added = (bytes * PAGES_HALF_FULL / BLOCK_BYTES) as u64;
        (rewritten + added) * 1000 / room
    }

    /// Segments that users never get: those withheld, and what metadata is expected to grow by. What it has grown by is
    /// taken from that, so that a filesystem is as large when it has been full as it was when it was new.
    fn kept_segments(&self, slots: u64) -> u64 {
        let expected = (slots / METADATA_PART).max(METADATA_SLOTS_MIN).min(slots / 16);
        let to_come = expected.saturating_sub(self.pool.database_slots());
        self.withheld_segments(slots) + to_come.div_ceil(self.shards())
    }

    /// What bytes in so many runs that follow a policy take on the devices at worst: all of them new and incompressible, and
    /// the end of each segment lost because the next frame is larger.
    ///
    /// With an erasure code the end of each run may be too little for a wide row, and the cells of a wide row differ by as
    /// much as a frame.
    pub fn worst_case_bytes(&self, bytes: u64, runs: u64, policy: PolicyId) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let bytes = self.worst_case_alike(bytes, runs, policy);
        self.in_own_bytes(bytes, policy) + u64::from(policy != PolicyId::default())
    }

    fn worst_case_alike(&self, bytes: u64, runs: u64, policy: PolicyId) -> u64 {
        let slot = self.slot_data_bytes();
        let lost = (bytes * FRAME_BYTES_WORST).div_ceil(slot.saturating_sub(FRAME_BYTES_WORST).max(slot / 2));
        let single = bytes + lost + bytes / OVERHEAD_PART + runs * OVERHEAD_RUN + BLOCK_BYTES as u64;
        let data = u64::from(self.redundancy_of(policy).shards_data);
        if data == 1 {
            return single;
        }
        let (narrow, wide) = self.narrow_factor(policy);
        // Where it is as much as this for each run, wide rows cost no more than they lose by frames that do not fit.
        let alone = single.min(runs * 2 * data * FRAME_BYTES_WORST);
        single + single / UNEVEN_PART + alone * (narrow - wide) / wide + BLOCK_BYTES as u64 * (data + 1)
    }

    /// Bytes that users can still have, promises not yet taken off.
    pub(crate) fn placeable_bytes(&self) -> u64 {
        self.placeable_bytes_with(PolicyId::default())
    }

    /// The same where what they store follows a policy, in bytes at the pool's own redundancy.
    fn placeable_bytes_with(&self, policy: PolicyId) -> u64 {
        let redundancy = self.redundancy_of(policy);
        let kept = self.kept_segments(self.pool.slots_total()) * self.shards();
        let segments = self.pool.segments_placeable(redundancy);
        let segments = segments.saturating_sub(kept.div_ceil(redundancy.shards() as u64));
        let class = Class { policy, purpose: Purpose::Fresh };
        let (narrow, wide) = self.narrow_factor(policy);
        let open = |shape| self.segments.room(&self.pool, class, shape, FRAME_BYTES_WORST);
        // With one shard of data left nobody writes wide rows.
        let is_wide = self.shards_now(policy).0 > 1;
        let open = open(Shape::Narrow) * wide / narrow + if is_wide { open(Shape::Wide) } else { 0 };
        self.in_own_bytes(segments * self.segment_data_bytes_now(policy) + open, policy)
    }

    /// Whether so many bytes that follow a policy can be moved with the slots that are free now.
    pub(crate) fn has_room_to_move(&self, bytes: u64, policy: PolicyId) -> bool {
        let room = |shape| {
            let class = Class { policy, purpose: Purpose::Moved };
            self.segments.room(&self.pool, class, shape, 0)
        };
        let segments = self.pool.segments_placeable(self.redundancy_of(policy));
        let room = room(Shape::Narrow) + room(Shape::Wide) + segments * self.segment_data_bytes_now(policy);
        self.worst_case_alike(bytes, 1, policy) <= room
    }

    /// Promises room for what was acknowledged before, whether there is any or not.
    pub fn promise(&self, bytes: u64) -> Reservation {
        Share::new(bytes, &self.space.promised)
    }

    /// Promises room for new data that follow a policy, and leaves so much of it for others.
    ///
    /// # Errors
    /// When there is no room even after what is dead was given back.
    pub fn reserve(&self, bytes: u64, leave: u64, policy: PolicyId) -> Result<Reservation, StoreError> {
        self.reserve_stored(self.worst_case_bytes(bytes, 1, policy), leave, policy)
    }

    /// The same for so many bytes on the devices, with all that belongs to them.
    ///
    /// # Errors
    /// As [`Store::reserve`].
    pub fn reserve_stored(
        &self,
        wanted: u64,
        leave: u64,
        policy: PolicyId,
    ) -> Result<Reservation, StoreError> {
        self.check_writable()?;
        let (mut asked, mut sealed) = (false, false);
        // Whatever is given back here, somebody else may be faster; but not for ever.
        for _ in 0..RESERVE_ATTEMPTS {
            let free = self.placeable_bytes_with(policy);
            // Nothing is promised that is not to be had: two who ask at once must not refuse each other.
            let promise =
                free.checked_sub(leave).and_then(|most| Share::within(wanted, &self.space.promised, most));
            if let Some(promise) = promise {
                return Ok(promise);
            }
            let taken = self.space.promised.load(Ordering::Acquire) + wanted + leave;
            // What died may only wait for the reaper, or for a checkpoint to say so.
            let reaped = self.reap_all()?;
            if !asked || reaped || self.pool.space().freeing > 0 {
                asked = true;
                self.checkpoint()?;
                continue;
            }
            // Or it is what is left of segments to which others append, if nothing of that is promised.
            let is_promised = || self.space.promised.load(Ordering::Acquire) > 0;
            if !sealed && self.has_policies() && !is_promised() {
                sealed = true;
                self.seal_segments_of_others(policy)?;
            }
            // Or it lies among what lives: not all that is wanted may, then nothing is moved for it.
            if taken > self.placeable_bytes_with(policy) + self.reclaimable_bytes(Duration::ZERO) {
                break;
            }
            // More than this one asks for, so that not everybody has to come here.
            let missing = taken
                .saturating_sub(free)
                .max(self.capacity().0 / CLEANED_PART)
                .max(self.segment_data_bytes());
            let gained = self.clean(missing)?.gained_bytes();
            // While this one waited for its turn another one may have got what there was to be had.
            let is_there = self.space.promised.load(Ordering::Acquire) + leave + wanted
                <= self.placeable_bytes_with(policy);
            if gained == 0 && !is_there {
                break;
            }
        }
        Err(StoreError::NoSpace { wanted, free: self.free_bytes().saturating_sub(leave) })
    }

    /// Refuses a change that adds metadata when only withheld room is left.
    ///
    /// # Errors
    /// When there is no room.
    pub fn admit_metadata(&self) -> Result<(), StoreError> {
        let has_room = || {
            let space = self.pool.space();
            // What the metadata took of what is kept for it is to be made up for first.
            space.segments_placeable
                > self.withheld_segments(space.slots) / 2 + space.lent.div_ceil(self.shards())
        };
        if has_room() {
            return Ok(());
        }
        if self.pool.space().freeing > 0 {
            self.checkpoint()?;
        }
        if has_room() {
            return Ok(());
        }
        if self.reclaimable_bytes(Duration::ZERO) > 0 {
            self.clean(self.segment_data_bytes())?;
        }
        if has_room() {
            return Ok(());
        }
        Err(StoreError::NoSpace { wanted: BLOCK_BYTES as u64, free: 0 })
    }

    /// Total and free bytes for users; cheap.
    pub fn capacity(&self) -> (u64, u64) {
        let space = self.pool.space();
        let total_segments = self.pool.segments_total().saturating_sub(self.kept_segments(space.slots));
        let total = total_segments * self.segment_data_bytes();
        (total, self.free_bytes().min(total))
    }

    /// Bytes promised and not yet written.
    pub fn promised_bytes(&self) -> u64 {
        self.space.promised.load(Ordering::Acquire)
    }

    /// Bytes that can still be promised, some of them only after a checkpoint or cleaning.
    pub fn free_bytes(&self) -> u64 {
        let freeing = self.slots_worth(self.pool.space().freeing, PolicyId::default());
        let free = self.placeable_bytes() + freeing + self.reclaimable_bytes(RECLAIMABLE_FRESH);
        free.saturating_sub(self.space.promised.load(Ordering::Acquire))
    }

    /// Bytes that cleaning gives back, as they are or were so long ago at most.
    fn reclaimable_bytes(&self, age: Duration) -> u64 {
        let (now, last) = (self.clock.elapsed(), self.last_sequence());
        let mut known = self.space.reclaimable.lock();
        let is_fresh = |known: &Reclaimable| known.sequence == last || now.saturating_sub(known.looked) < age;
        if !known.as_ref().is_some_and(is_fresh) {
            // What cannot be told now is not promised.
            let bytes = self.cleaning_candidates().map_or(0, |(_, bytes)| bytes);
            *known = Some(Reclaimable { bytes, sequence: last, looked: now });
        }
        known.as_ref().map_or(0, |known| known.bytes)
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
        // Between the two somebody may open a segment.
        report.data_bytes =
            (used * self.pool.slot_bytes()).saturating_sub(self.segments.unwritten(&self.pool));
        let log_slots = mapped.iter().filter(|entry| entry.owner == MapOwner::Log).count() as u64;
        report.metadata_bytes = log_slots * self.pool.slot_bytes() + self.pool.header_bytes();
        for database in self.databases() {
            report.metadata_bytes += database.written_bytes()?;
        }
        report.untrimmed_bytes = space.left * self.pool.slot_bytes();
        report.physical_bytes = report.data_bytes + report.metadata_bytes + report.untrimmed_bytes;
        Ok(report)
    }
}
