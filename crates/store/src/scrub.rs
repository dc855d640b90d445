//! Scrubbing: everything is read on every device, and what rotted is written anew from what did not.
//!
//! Segments come first, in their order, then the pieces of the metadata. How far it is stands in the metadata, so that it
//! goes on after a crash or at the next mount where it was. Segments that are still written to are left out: they are
//! sealed at its start, so all that was there then is looked at. At the end references are counted (`references`). The intent log holds what a checkpoint at its start has
//! not yet taken, nothing else, and its mirrors are compared when it is replayed.
//!
//! As the cleaner it keeps to a rate while others read or write.

mod references;
mod schedule;

use crate::StoreError;
use crate::clean::Cleaned;
use crate::create::{DEDUP, METADATA};
use crate::mend::{Compared, Wanted};
use crate::metadata::table_id;
use crate::recovery::open_engine;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{BranchId, SegmentId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{Scrub, ScrubState, Segment, SegmentState};
use aegisfs_pool::{Database, Scrubbed};
use parking_lot::{Condvar, Mutex};
pub use references::ReferencesCounted;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where it stands in the configuration.
const SCRUB_KEY: &[u8] = b"scrub";
/// Memory for looking whether the metadata can be read.
const LOOK_CACHE_BYTES: usize = 1 << 20;
/// How often it notes how far it is.
const NOTE: Duration = Duration::from_secs(5);
/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(30);
/// How finely it sleeps while it keeps to its rate, and how long nobody may have done anything for that to be lifted.
const SLICE: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_secs(1);

/// What the scrubber knows beyond the metadata.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    intensity: AtomicU8,
    /// It has been read from the metadata.
    intensity_known: AtomicBool,
    /// The scrub as it is now; read from the metadata when it is first asked for.
    current: Mutex<Option<Option<Scrub>>>,
    /// What came of counting references, once a scrub of this mount has done so.
    references: Mutex<Option<ReferencesCounted>>,
    turn: Mutex<()>,
    wakeup: Condvar,
    stop: AtomicBool,
}

impl Scrubber {
    fn wake(&self) {
        // Whoever is about to sleep has looked before, and holds this.
        drop(self.turn.lock());
        self.wakeup.notify_all();
    }
}

impl Store {
    /// The scrub that goes on, or the last one; none if there was none.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn scrub_status(&self) -> Result<Option<Scrub>, StoreError> {
        self.read_scrub(&mut self.scrubber.current.lock())
    }

    fn read_scrub(&self, current: &mut Option<Option<Scrub>>) -> Result<Option<Scrub>, StoreError> {
        if let Some(known) = *current {
            return Ok(known);
        }
        let stored = self.view().get(Table::Config, SCRUB_KEY)?;
        let stored = stored.map(|stored| Scrub::decode(&stored)).transpose()?;
        *current = Some(stored);
        Ok(stored)
    }

    /// Makes something else of the scrub, unless that is nothing; says what it was. Nobody waits for it to be durable: what
    /// is looked at twice does no harm.
    fn change_scrub(
        &self,
        change: impl FnOnce(Option<Scrub>) -> Option<Scrub>,
    ) -> Result<Option<Scrub>, StoreError> {
        let mut current = self.scrubber.current.lock();
        let before = self.read_scrub(&mut current)?;
        if let Some(after) = change(before) {
            let put = Op::Put { table: Table::Config, key: SCRUB_KEY.to_vec(), value: after.encode() };
            self.commit(BranchId(0), vec![put], Vec::new())?;
            *current = Some(Some(after));
        }
        Ok(before)
    }

    /// Begins a scrub, from the start. Says whether none was under way.
    ///
    /// # Errors
    /// When nothing may be written, or the metadata or a device fails.
    pub fn start_scrub(&self, repairs: bool) -> Result<bool, StoreError> {
        self.check_writable()?;
        // What is being written to now is looked at as well.
        self.seal_open_segments()?;
        self.checkpoint()?;
        let started = self.clock.now();
        let before = self.change_scrub(|before| {
            let is_free = !before.is_some_and(|scrub| is_under_way(&scrub));
            is_free.then(|| Scrub { repairs, started, ..Scrub::default() })
        })?;
        self.scrubber.wake();
        Ok(!before.is_some_and(|scrub| is_under_way(&scrub)))
    }

    /// Has a scrub that is under way wait, go on, or end. Says whether there was one.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn order_scrub(&self, state: ScrubState) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let before = self.change_scrub(|before| {
            let scrub = before.filter(is_under_way)?;
            let ended = if state == ScrubState::Cancelled { now } else { scrub.ended };
            Some(Scrub { state, ended, ..scrub })
        })?;
        self.scrubber.wake();
        Ok(before.is_some_and(|scrub| is_under_way(&scrub)))
    }

    /// Goes on with a scrub until it is done, somebody has it wait or end, or `goes_on` says no.
    ///
    /// # Errors
    /// When nothing may be written, or the metadata cannot be read.
    pub fn scrub(&self, goes_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
        let Some(mut scrub) = self.scrub_status()?.filter(|scrub| scrub.state == ScrubState::Running) else {
            return Ok(());
        };
        let mut noted = Instant::now();
        let pacer = Pacer::new(self, goes_on);
        while !scrub.segments_done {
            match self.next_segment(scrub.cursor)? {
                None => scrub.segments_done = true,
                Some((id, segment)) => {
                    if !self.scrub_segment(id, &segment, &mut scrub, &pacer)? {
                        return Ok(());
                    }
                    scrub.cursor = SegmentId(id.0 + 1);
                }
            }
            if !self.note_scrub(&scrub, &mut noted)? {
                return Ok(());
            }
        }
        // Pages of the metadata of which no copy verifies, and how many copies those are.
        let (mut unsure, mut unsure_copies) = (0, 0);
        for database in self.databases() {
            for piece in 0..database.pieces() {
                let begun = Instant::now();
                let found = database.scrub_piece(piece, scrub.repairs)?;
                let Scrubbed { pages, bytes, damaged, mut repaired, mut lost } = found;
                if lost > 0 && database.number() == DEDUP {
                    // It is derived: nobody lacks anything, and it is made anew.
                    lost = 0;
                    if scrub.repairs {
                        self.dedup.make_anew();
                        self.dedup.load_step(&self.view())?;
                        self.wake_service();
                        repaired = damaged;
                    }
                }
                if lost > 0 && database.number() == METADATA {
                    (unsure, unsure_copies) = (unsure + lost, unsure_copies + (damaged - repaired));
                }
                scrub.counts.pages += pages;
                scrub.counts.bytes += bytes;
                scrub.counts.damaged += damaged;
                scrub.counts.repaired += repaired;
                scrub.counts.lost += lost;
                if pacer.pace(bytes, begun.elapsed()).is_break() {
                    return Ok(());
                }
            }
        }
        if unsure > 0 && self.metadata_reads_whole() {
            scrub.counts.lost -= unsure;
            scrub.counts.damaged -= unsure_copies;
        }
        let Some(references) = self.count_references(&pacer)? else { return Ok(()) };
        scrub.counts.damaged += references.wrong;
        let ended = self.clock.now();
        self.change_scrub(|now| {
            now.filter(|now| now.state == ScrubState::Running && now.started == scrub.started)
                .map(|_| Scrub { state: ScrubState::Done, ended, ..scrub })
        })?;
        self.sync()
    }

    /// Whether all that the metadata refer to can be read from the devices.
    ///
    /// A page that a checkpoint was writing when the power went verifies on no device until somebody writes it again, and
    /// nothing refers to it. It is an engine of its own that looks, since one that cannot read a page reads nothing any more.
    fn metadata_reads_whole(&self) -> bool {
        let _nobody_writes = self.checkpointing.lock();
        let copies = self.pool.superblock().metadata_copies;
        let database = Arc::new(Database::new(Arc::clone(&self.pool), METADATA, copies));
        let read = || -> Result<(), StoreError> {
            let snapshot = open_engine(&database, LOOK_CACHE_BYTES, true)?.snapshot()?;
            for table in Table::ALL {
                snapshot.scan(table_id(table), &[], None, &mut |_, _| ControlFlow::Continue(()))?;
            }
            Ok(())
        };
        read().inspect_err(|error| tracing::error!(%error, "pages of the metadata are lost")).is_ok()
    }

    fn is_running_still(&self) -> Result<bool, StoreError> {
        Ok(self.scrub_status()?.is_some_and(|now| now.state == ScrubState::Running))
    }

    /// Tells how far it is, and notes it once in a while. Says whether it goes on.
    fn note_scrub(&self, scrub: &Scrub, noted: &mut Instant) -> Result<bool, StoreError> {
        if noted.elapsed() < NOTE {
            let mut current = self.scrubber.current.lock();
            if let Some(Some(now)) = &mut *current
                && now.state == ScrubState::Running
                && now.started == scrub.started
            {
                *now = *scrub;
                return Ok(true);
            }
        }
        *noted = Instant::now();
        // Whoever has it wait wants to know how far it came.
        let is_it = |now: &Scrub| now.started == scrub.started;
        let before = self.change_scrub(|now| {
            now.filter(is_it).map(|now| Scrub { state: now.state, ended: now.ended, ..*scrub })
        })?;
        Ok(before.is_some_and(|before| is_it(&before) && before.state == ScrubState::Running))
    }

    /// The first segment from one on.
    fn next_segment(&self, from: SegmentId) -> Result<Option<(SegmentId, Segment)>, StoreError> {
        let mut found = None;
        self.view().scan(Table::Segments, &key::segment(from), None, &mut |key, stored| {
            let id = SegmentId(key.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
            found = Some(Segment::decode(stored).map(|segment| (id, segment)));
            ControlFlow::Break(())
        })?;
        Ok(found.transpose()?)
    }

    /// Says whether it got to the segment's end, or the segment is gone.
    fn scrub_segment(
        &self,
        id: SegmentId,
        segment: &Segment,
        scrub: &mut Scrub,
        pacer: &Pacer<'_>,
    ) -> Result<bool, StoreError> {
        if segment.state != SegmentState::Sealed || self.segments.holds(id) {
            return Ok(true);
        }
        let readable = |place| self.pool.readable(place);
        let pace = |bytes, took| pacer.pace(bytes, took);
        let found = self.compare_cells(id, segment, &Wanted::in_slots(&readable), scrub.repairs, &pace)?;
        let Some(Compared { cells, bytes, damaged, repaired, lost, stranded, .. }) = found else {
            // It is begun again, if it is still there.
            return Ok(self.read_segment(id)?.is_none());
        };
        scrub.counts.segments += 1;
        scrub.counts.cells += cells;
        scrub.counts.bytes += bytes;
        scrub.counts.damaged += damaged;
        scrub.counts.repaired += repaired;
        scrub.counts.lost += lost;
        if stranded > 0 && scrub.repairs {
            // There its rows are whole. Where there is no room for that, the next scrub tries again.
            self.move_segment(id, &mut Cleaned::default())?;
        }
        Ok(true)
    }
}

/// Whether it is not at its end.
fn is_under_way(scrub: &Scrub) -> bool {
    matches!(scrub.state, ScrubState::Running | ScrubState::Paused)
}

/// Keeps a scrub to its rate while others read or write.
struct Pacer<'a> {
    store: &'a Store,
    goes_on: &'a dyn Fn() -> bool,
    /// What others had done when that was looked at last, and when it had changed.
    others: Mutex<(u64, Instant)>,
}

impl<'a> Pacer<'a> {
    fn new(store: &'a Store, goes_on: &'a dyn Fn() -> bool) -> Self {
        // Whoever reads and writes right now may not have been seen yet.
        Self { store, goes_on, others: Mutex::new((store.used_by_others(), Instant::now())) }
    }

    fn pace(&self, bytes: u64, took: Duration) -> ControlFlow<()> {
        let begun = Instant::now();
        while (self.goes_on)() && self.is_early(bytes, took + begun.elapsed()) {
            std::thread::sleep(SLICE);
        }
        let goes_on = (self.goes_on)() && self.store.is_running_still().unwrap_or(false);
        if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn is_early(&self, bytes: u64, took: Duration) -> bool {
        let Some(rate) = self.store.scrubber.intensity_now().rate() else { return false };
        let used = self.store.used_by_others();
        let mut others = self.others.lock();
        if others.0 != used {
            *others = (used, Instant::now());
        }
        others.1.elapsed() < QUIET && took < Duration::from_secs_f64(bytes as f64 / rate as f64)
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct ScrubThread {
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

impl ScrubThread {
    /// Starts the thread, which goes on with a scrub that was under way.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let worker = Arc::clone(&store);
        let thread = std::thread::Builder::new().name("scrubber".into()).spawn(move || run(&worker))?;
        Ok(Self { store, thread: Some(thread) })
    }
}

impl Drop for ScrubThread {
    fn drop(&mut self) {
        self.store.scrubber.stop.store(true, Ordering::Release);
        self.store.scrubber.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the scrubber died; the next mount goes on");
        }
    }
}

fn run(store: &Store) {
    let scrubber = &store.scrubber;
    let goes_on = || !scrubber.stop.load(Ordering::Acquire) && store.check_writable().is_ok();
    let is_due = || store.is_running_still().unwrap_or(false);
    if let Err(error) = store.scrub_intensity() {
        tracing::error!(%error, "how much a scrub may take cannot be read");
    }
    while goes_on() {
        {
            let mut turn = scrubber.turn.lock();
            while goes_on() && !is_due() && !store.is_scrub_due() {
                scrubber.wakeup.wait_for(&mut turn, LOOK);
            }
        }
        // It wakes us, so the turn is not held.
        if let Err(error) = store.start_due_scrub() {
            tracing::error!(%error, "a scrub is due and cannot begin");
            let mut turn = scrubber.turn.lock();
            if goes_on() {
                scrubber.wakeup.wait_for(&mut turn, LOOK);
            }
        }
        if let Err(error) = store.scrub(&goes_on) {
            tracing::error!(%error, "a scrub failed");
            // It is not tried again before somebody says so, or the next mount.
            if store.order_scrub(ScrubState::Paused).is_err() {
                return;
            }
        }
    }
}
