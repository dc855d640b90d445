//! The store: sequencer, and what the other files of this crate hang on.

mod counters;
mod ids;
mod last;

use crate::apply::{Effects, apply};
use crate::clean::Cleaner;
use crate::damage::DamageBook;
use crate::dedup::Dedup;
use crate::devices::CountsBefore;
use crate::log::{Log, LogCounts};
use crate::memtable::Scratch;
use crate::metadata::{MetaView, Metadata};
use crate::orphans::OrphanBook;
use crate::policies::Policies;
use crate::read::FrameCache;
use crate::recovery::Torn;
use crate::returning::Returning;
use crate::scrub::Scrubber;
use crate::segments::Segments;
use crate::space::SpaceBook;
use crate::tables::Tables;
use crate::trim::{TrimOptions, Trimmer};
use crate::versions::View;
use crate::{StoreError, ingest};
use aegisfs_base::{BranchId, Clock, InodeId, SegmentId, Sequence};
use aegisfs_chunk::Compression;
use aegisfs_format::log::RowDependency;
use aegisfs_format::op::{Op, Transaction};
use aegisfs_pool::{Placement, Pool, ReadBack};
pub use counters::Counters;
pub(crate) use ids::{Ids, id_limits};
use last::Last;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Taken part of the log, in thousandths, above which a checkpoint is due.
const LOG_CHECKPOINT_AT: u64 = 300;
/// Above this, writers are slowed in proportion.
const LOG_SLOW_AT: u64 = 450;
/// Above this, writers wait.
const LOG_WAIT_AT: u64 = 600;
/// Log bytes above which a checkpoint is due however large the log is.
const LOG_CHECKPOINT_BYTES: u64 = 256 << 20;
/// Queued changes at which the log is written without further delay.
pub(crate) const LOG_TRANSACTIONS: usize = 3000;
/// Memory of changes above which a checkpoint is due. After a crash all of it is replayed and stored before
/// the filesystem opens, which has to take less than a second.
const MEMTABLE_CHECKPOINT_BYTES: usize = 24 << 20;
/// A checkpoint is due when so much of the room that it can fill is used up, in thousandths; writers wait at the other.
const CHECKPOINT_AT: u64 = 500;
const CHECKPOINT_WAIT_AT: u64 = 1000;
/// Memory of changes above which writers wait for the checkpoint.
const MEMTABLE_WAIT_BYTES: usize = 48 << 20;

/// Waits of 20 ms for the service's checkpoint before a writer makes it itself.
const ROUNDS_BEFORE_HELP: u32 = 50;

/// How a store runs.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of decoded chunks kept in memory.
    pub chunk_cache_bytes: u64,
    /// Bytes of metadata pages kept in memory.
    pub metadata_cache_bytes: usize,
    /// Threads that compress; 0 does it on the calling thread, one after the other.
    pub workers: usize,
    /// How new data is compressed; by the superblock when not given.
    pub compression: Option<Compression>,
    /// Which writes are read back and compared.
    pub read_back: ReadBack,
    /// How freed slots are discarded.
    pub trim: TrimOptions,
    /// Write nothing.
    pub read_only: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            chunk_cache_bytes: 96 << 20,
            metadata_cache_bytes: 96 << 20,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            compression: None,
            read_back: ReadBack::Off,
            trim: TrimOptions::default(),
            read_only: false,
        }
    }
}

/// A change that passed the sequencer.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Its place in the order of all changes.
    pub sequence: Sequence,
    /// What followed from it.
    pub effects: Effects,
}

/// The object store on a pool.
///
/// Lock order: a segment's or the ingest order's lock, then `sequencer`, then the metadata's heads,
/// its layers, the log's state, the pool's slots. `checkpointing` comes before `sequencer` and is held across I/O.
pub struct Store {
    pub(crate) pool: Arc<Pool>,
    pub(crate) metadata: Metadata,
    pub(crate) dedup: Dedup,
    pub(crate) log: Log,
    pub(crate) segments: Segments,
    pub(crate) ids: Ids,
    pub(crate) cache: FrameCache,
    pub(crate) space: SpaceBook,
    pub(crate) ingest: ingest::Ingest,
    pub(crate) counters: Counters,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) database: Arc<aegisfs_pool::Database>,
    sequencer: Mutex<Sequencer>,
    last: Last,
    pub(crate) checkpointing: Mutex<()>,
    /// Held by whoever writes over a damaged copy, of which a block may hold more than one; slots are given away only
    /// while nobody does.
    pub(crate) healing: Mutex<()>,
    pub(crate) cleaner: Cleaner,
    pub(crate) trimmer: Trimmer,
    pub(crate) orphans: OrphanBook,
    pub(crate) returning: Returning,
    pub(crate) scrubber: Scrubber,
    pub(crate) device_counts: CountsBefore,
    pub(crate) damage: DamageBook,
    pub(crate) policies: Policies,
    poison: OnceLock<String>,
    read_only: AtomicBool,
    /// Whether a thread of its own makes checkpoints; without one, writers make them.
    pub(crate) served: AtomicBool,
    /// Spans of slots that a power cut left torn and that recovery would mend if it could write.
    unmended: Mutex<Vec<(Placement, Range<u32>)>>,
    /// Whether that thread waits for the first change.
    pub(crate) dozing: AtomicBool,
    /// Queued changes at which that thread is woken.
    pub(crate) log_transactions: AtomicUsize,
    pub(crate) wakeup: (Mutex<u64>, Condvar),
}

struct Sequencer {
    last: Sequence,
    /// Slots whose segments died since the last checkpoint began.
    freed: Vec<Placement>,
}

/// What recovery hands over.
pub(crate) struct Parts {
    pub(crate) pool: Arc<Pool>,
    pub(crate) metadata: Metadata,
    pub(crate) dedup: Dedup,
    pub(crate) log: Log,
    pub(crate) ids: Ids,
    pub(crate) last: Sequence,
    pub(crate) freed: Vec<Placement>,
    pub(crate) database: Arc<aegisfs_pool::Database>,
}

impl Store {
    pub(crate) fn assemble(parts: Parts, options: &StoreOptions, clock: Arc<dyn Clock>) -> Self {
        parts.pool.set_read_back(options.read_back);
        let compression = options.compression.unwrap_or_else(|| {
            let (codec, level) = parts.pool.superblock().compression;
            match codec {
                1 => Compression::Lz4,
                2 => Compression::Zstd(i32::from(level)),
                _ => Compression::None,
            }
        });
        Self {
            metadata: parts.metadata,
            dedup: parts.dedup,
            log: parts.log,
            segments: Segments::default(),
            ids: parts.ids,
            cache: FrameCache::new(options.chunk_cache_bytes),
            space: SpaceBook::default(),
            ingest: ingest::Ingest::new(compression, options.workers),
            counters: Counters::default(),
            clock,
            database: parts.database,
            sequencer: Mutex::new(Sequencer { last: parts.last, freed: parts.freed }),
            last: Last::new(parts.last),
            checkpointing: Mutex::new(()),
            healing: Mutex::new(()),
            cleaner: Cleaner::default(),
            trimmer: Trimmer::new(options.trim),
            orphans: OrphanBook::default(),
            returning: Returning::default(),
            scrubber: Scrubber::default(),
            device_counts: CountsBefore::default(),
            damage: DamageBook::default(),
            policies: Policies::default(),
            poison: OnceLock::new(),
            read_only: AtomicBool::new(options.read_only || parts.pool.read_only()),
            pool: parts.pool,
            served: AtomicBool::new(false),
            unmended: Mutex::default(),
            dozing: AtomicBool::new(false),
            log_transactions: AtomicUsize::new(LOG_TRANSACTIONS),
            wakeup: (Mutex::new(0), Condvar::new()),
        }
    }

    /// The pool below.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The source of time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The metadata as it now is.
    pub fn view(&self) -> MetaView<'_> {
        self.metadata.view()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Hits and misses of the chunk cache.
    pub fn cache_counts(&self) -> (u64, u64) {
        self.cache.counts()
    }

    /// What the intent log has done.
    pub fn log_counts(&self) -> LogCounts {
        self.log.counts()
    }

    /// Why nothing can be written, if so.
    pub fn read_only_reason(&self) -> Option<String> {
        if let Some(reason) = self.poison.get() {
            return Some(reason.clone());
        }
        self.read_only.load(Ordering::Acquire).then(|| "opened for reading only".to_owned())
    }

    /// What the head of a branch sees.
    ///
    /// # Errors
    /// When the branch cannot be read.
    pub fn head_view(&self, branch: BranchId) -> Result<Arc<View>, StoreError> {
        Ok(Arc::clone(&self.view().head(branch)?.view))
    }

    /// A new inode number; never given out before.
    ///
    /// # Errors
    /// When the reservation of further numbers cannot be logged.
    pub fn new_inode_id(&self) -> Result<InodeId, StoreError> {
        self.ids.inodes.take(self).map(InodeId)
    }

    /// The sequence of the last change.
    pub fn last_sequence(&self) -> Sequence {
        self.last.settled().unwrap_or_else(|| self.lock_sequencer().last)
    }

    /// The highest sequence known to be on stable storage.
    pub fn durable_sequence(&self) -> Sequence {
        self.log.durable()
    }

    /// Passes a change through the sequencer: applies it and queues it for the log.
    ///
    /// It is durable after [`Store::sync`]. `rows` are those that its chunks lie in.
    ///
    /// # Errors
    /// When nothing may be written, or the change does not fit the metadata; nothing has happened then.
    pub fn commit(
        &self,
        branch: BranchId,
        ops: Vec<Op>,
        rows: Vec<RowDependency>,
    ) -> Result<Committed, StoreError> {
        self.check_writable()?;
        self.wait_for_log_room()?;
        let mut body = Vec::with_capacity(512);
        let mut sequencer = self.lock_sequencer();
        let sequence = sequencer.last.next();
        let view = self.metadata.view();
        let epoch = view.head(branch)?.epoch;
        let transaction = Transaction { sequence, branch, epoch, ops };
        let mut scratch = Scratch::new(&view);
        let effects = apply(&mut scratch, &transaction)?;
        transaction.encode(&mut body);
        let room = rows.len() * size_of::<RowDependency>();
        if body.len() + room > self.log.body_bytes_max() {
            return Err(StoreError::TooLarge { bytes: body.len() + room, max: self.log.body_bytes_max() });
        }
        sequencer.last = sequence;
        self.last.will_be_seen(sequence);
        let changes = scratch.changes;
        self.metadata.absorb(changes);
        let queued = self.log.append(sequence, body, rows);
        self.last.queued(sequence);
        self.note_effects(&effects, &mut sequencer.freed);
        drop(sequencer);
        if self.dozing.load(Ordering::Acquire) || queued == self.log_transactions.load(Ordering::Relaxed) {
            self.wake_service();
        }
        self.cleaner.sleeper.wake();
        self.counters.committed();
        Ok(Committed { sequence, effects })
    }

    fn lock_sequencer(&self) -> MutexGuard<'_, Sequencer> {
        self.sequencer.try_lock().unwrap_or_else(|| {
            self.counters.sequencer_waits.fetch_add(1, Ordering::Relaxed);
            self.sequencer.lock()
        })
    }

    /// Keeps derived state in step with a transaction.
    fn note_effects(&self, effects: &Effects, freed: &mut Vec<Placement>) {
        for (chunk, hash, policy) in &effects.born {
            self.dedup.insert(*policy, *hash, *chunk);
        }
        for (chunk, hash, policy) in &effects.died {
            self.dedup.remove(*policy, *hash, *chunk);
        }
        for (_, segment) in &effects.freed {
            self.pool.begin_release(&segment.placements);
            freed.extend_from_slice(&segment.placements);
        }
    }

    /// Metadata pages healed from another copy since the store was opened.
    pub fn pages_healed(&self) -> u64 {
        self.databases().map(|database| database.healed()).sum()
    }

    /// Pages of both databases written since the store was opened, one copy counted.
    pub fn pages_written(&self) -> u64 {
        self.databases().map(|database| database.pages_written()).sum()
    }

    /// Slots that the metadata and the dedup index take, all copies counted.
    pub fn metadata_slots(&self) -> (u64, u64) {
        let slots = |database: &aegisfs_pool::Database| {
            database.mapped_pages() / database.pages_per_piece() * u64::from(database.copies())
        };
        (slots(&self.database), self.dedup.database().map_or(0, |database| slots(&database)))
    }

    /// The databases of the metadata and of the dedup index.
    pub(crate) fn databases(&self) -> impl Iterator<Item = Arc<aegisfs_pool::Database>> {
        [Some(Arc::clone(&self.database)), self.dedup.database()].into_iter().flatten()
    }

    /// Makes everything up to a sequence durable.
    ///
    /// # Errors
    /// When the log cannot be written or flushed; the store then takes no more writes.
    pub fn sync_to(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.check_poison()?;
        self.log.sync_to(sequence).inspect_err(|error| self.poison(&error.to_string()))
    }

    /// Makes everything acknowledged so far durable.
    ///
    /// # Errors
    /// As [`Store::sync_to`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.sync_to(self.last_sequence())
    }

    /// Stops all writing until the store is opened anew, because of something that happened above.
    pub fn stop_writing(&self, reason: &str) {
        self.poison(reason);
    }

    /// Stops all writing until the store is opened anew.
    pub(crate) fn poison(&self, reason: &str) {
        if self.poison.set(reason.to_owned()).is_ok() {
            tracing::error!(reason, "no more writes are taken until the filesystem is mounted again");
        }
        self.wakeup.1.notify_all();
    }

    pub(crate) fn check_poison(&self) -> Result<(), StoreError> {
        match self.poison.get() {
            Some(reason) => Err(StoreError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Refuses when nothing may be written.
    ///
    /// # Errors
    /// Why.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.check_poison()?;
        if self.read_only.load(Ordering::Acquire) {
            return Err(StoreError::ReadOnly { reason: "it was opened so, or has ended".into() });
        }
        Ok(())
    }

    /// Takes no more changes: the device may be somebody else's from now on.
    pub fn retire(&self) {
        self.read_only.store(true, Ordering::Release);
    }

    /// Whether a checkpoint is due by what has piled up.
    pub(crate) fn checkpoint_due(&self) -> bool {
        let (fullness, used_bytes) = self.log.usage();
        fullness > LOG_CHECKPOINT_AT
            || used_bytes > LOG_CHECKPOINT_BYTES
            || self.metadata.active_bytes() > MEMTABLE_CHECKPOINT_BYTES
            || self.checkpoint_fullness() > CHECKPOINT_AT
    }

    /// Starts a checkpoint when one is due, slows writers as the log fills, and holds them before it is full.
    fn wait_for_log_room(&self) -> Result<(), StoreError> {
        if !self.checkpoint_due() {
            return Ok(());
        }
        if !self.served.load(Ordering::Acquire) {
            return self.checkpoint();
        }
        self.wake_service();
        let full = |fullness: u64| {
            fullness > LOG_WAIT_AT
                || self.metadata.active_bytes() > MEMTABLE_WAIT_BYTES
                || self.checkpoint_fullness() > CHECKPOINT_WAIT_AT
        };
        let fullness = self.log.fullness();
        if fullness > LOG_SLOW_AT && !full(fullness) {
            std::thread::sleep(Duration::from_micros((fullness - LOG_SLOW_AT) * 10));
        }
        let mut rounds = 0;
        while full(self.log.fullness()) {
            self.check_poison()?;
            rounds += 1;
            // The service may itself wait for something that this caller holds, or be this caller.
            if rounds > ROUNDS_BEFORE_HELP || !self.served.load(Ordering::Acquire) {
                return self.checkpoint();
            }
            self.wake_service();
            let mut turn = self.wakeup.0.lock();
            self.wakeup.1.wait_for(&mut turn, Duration::from_millis(20));
        }
        Ok(())
    }

    /// Notes what recovery could not mend, since nothing may be written.
    pub(crate) fn note_unmended(&self, torn: &[Torn]) {
        let span = |torn: &Torn| (torn.place, torn.slot_offset..torn.slot_offset + torn.bytes.len() as u32);
        self.unmended.lock().extend(torn.iter().map(span));
    }

    /// Whether there is anything that the next recovery mends if it may write.
    pub(crate) fn has_unmended(&self) -> bool {
        !self.unmended.lock().is_empty()
    }

    /// Whether the next recovery that may write mends what stands at an offset of a slot.
    pub(crate) fn is_unmended(&self, place: Placement, offset: u32) -> bool {
        self.unmended.lock().iter().any(|(torn, span)| *torn == place && span.contains(&offset))
    }

    /// Lets the service thread look around.
    pub(crate) fn wake_service(&self) {
        *self.wakeup.0.lock() += 1;
        self.wakeup.1.notify_all();
    }

    /// Runs `work` while no change can pass the sequencer, and takes the slots freed so far.
    pub(crate) fn with_sequencer<T>(&self, work: impl FnOnce(Sequence, Vec<Placement>) -> T) -> T {
        let mut sequencer = self.lock_sequencer();
        let freed = std::mem::take(&mut sequencer.freed);
        work(sequencer.last, freed)
    }

    /// Gives slots back with the next checkpoint that nothing refers to, if they are suspected of that to this moment.
    /// Says how many.
    pub(crate) fn release_unowned(&self, places: &[Placement]) -> usize {
        let mut sequencer = self.lock_sequencer();
        let before = sequencer.freed.len();
        let given = places.iter().filter(|place| self.pool.begin_release_suspect(**place));
        sequencer.freed.extend(given);
        sequencer.freed.len() - before
    }

    /// Sets the last sequence at the end of recovery.
    pub(crate) fn set_last(&self, last: Sequence) {
        let mut sequencer = self.lock_sequencer();
        sequencer.last = last;
        self.last.will_be_seen(last);
        self.last.queued(last);
    }

    /// Which segment holds how many live bytes; for tests and reports.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn segment_account(&self, segment: SegmentId) -> Result<Option<(u64, u64)>, StoreError> {
        let key = aegisfs_format::key::segment(segment);
        let stored = self.view().get(aegisfs_format::key::Table::Segments, &key)?;
        let segment = stored.map(|s| aegisfs_format::value::Segment::decode(&s)).transpose()?;
        Ok(segment.map(|s| (s.live_bytes, s.written_bytes)))
    }
}
