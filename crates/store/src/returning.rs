//! A device that was away comes back: what was written without it is written to it, and then it counts again.
//!
//! 1. From now on what is written to the log and to databases reaches it. New segments are still placed without it; when
//!    those are full that may be appended to, the ones it has a part in only lose what they hold.
//! 2. Every cell of those is compared with what the others hold, and written where it differs: it may lack more than was
//!    written while it was away, since what it was told last before it failed may be lost.
//! 3. Databases are copied piece by piece, while nobody writes to them.
//! 4. New segments have a part of it from now on. What was written while it was away with less redundancy than it should have
//!    is written anew: copies of metadata that share a device, and segments that have fewer shards.
//! 5. A checkpoint lets go of the log before. It is flushed, and noted as a member on all devices.
//!
//! What ends this early leaves the device out, as stale as it was; it begins again after a while, or at the next mount.

use crate::StoreError;
use crate::clean::{Cleaned, Moved};
use crate::mend::Wanted;
use crate::stop::Stop;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{DeviceIndex, SegmentId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_pool::Database;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long whoever is writing a row to a segment may take.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);
/// How long it waits before it begins again: at first, and at most where that keeps failing.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How far a device has come that is being brought up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReturnProgress {
    /// The device.
    pub device: DeviceIndex,
    /// Segments that were compared.
    pub segments: u64,
    /// Of how many.
    pub segments_total: u64,
    /// Bytes of data that it lacked.
    pub data_bytes: u64,
    /// Bytes of metadata written to it.
    pub metadata_bytes: u64,
}

/// Who is coming back.
#[derive(Debug, Default)]
pub(crate) struct Returning {
    progress: Mutex<Option<ReturnProgress>>,
    /// One at a time.
    running: Mutex<()>,
}

/// Whether to go on.
type GoesOn<'a> = dyn Fn() -> bool + 'a;

impl Store {
    /// Who is being brought up to date, and how far that is.
    pub fn return_progress(&self) -> Option<ReturnProgress> {
        *self.returning.progress.lock()
    }

    /// Brings all devices up to date that are there and were left out, one after the other; then has what was written
    /// without them the redundancy that it should have. `goes_on` is asked between the steps.
    ///
    /// # Errors
    /// When the metadata or a device fails, when nothing may be written, or when it is told to stop. Devices that were not
    /// done with stay out.
    pub fn bring_back(&self, goes_on: &GoesOn<'_>) -> Result<Vec<ReturnProgress>, StoreError> {
        let _running = self.returning.running.lock();
        let mut done = Vec::new();
        let mut outcome = Ok(());
        for device in self.pool.stale_members() {
            self.check_writable()?;
            let one = self.pool.revive(device).and_then(|()| self.pool.begin_return(device));
            let one = one.map_err(StoreError::from);
            let one = one.and_then(|()| self.bring_one_back(device, goes_on));
            let progress = self.returning.progress.lock().take();
            match one {
                Ok(()) => done.extend(progress),
                Err(error) => {
                    self.pool.abandon_return(device);
                    // One that fails is no reason to leave out the next.
                    outcome = outcome.and(Err(error));
                }
            }
        }
        // One that stays away is no reason either to leave the others with less than they can have.
        outcome.and(self.restore_redundancy(goes_on))?;
        Ok(done)
    }

    fn bring_one_back(&self, device: DeviceIndex, goes_on: &GoesOn<'_>) -> Result<(), StoreError> {
        *self.returning.progress.lock() = Some(ReturnProgress { device, ..ReturnProgress::default() });
        self.settle_segments_on(device, goes_on)?;
        let segments = self.segments_on(device)?;
        self.note(|progress| progress.segments_total = segments.len() as u64);
        for id in segments {
            self.may_go_on(device, goes_on)?;
            let bytes =
                if removed(Edge::ReturnComplete) { 0 } else { self.bring_segment(id, device, goes_on)? };
            self.note(|progress| {
                progress.segments += 1;
                progress.data_bytes += bytes;
            });
        }
        for database in self.databases() {
            for piece in 0..database.pieces() {
                self.may_go_on(device, goes_on)?;
                let bytes = database.bring_up_to_date(piece, device)?;
                self.note(|progress| progress.metadata_bytes += bytes);
            }
        }
        self.pool.place_on(device);
        if !removed(Edge::ReturnComplete) {
            self.restore_redundancy(goes_on)?;
        }
        // Recovery reads nothing of the log before it.
        self.checkpoint()?;
        self.may_go_on(device, goes_on)?;
        Ok(self.pool.finish_return(device)?)
    }

    fn note(&self, change: impl FnOnce(&mut ReturnProgress)) {
        if let Some(progress) = &mut *self.returning.progress.lock() {
            change(progress);
        }
    }

    fn may_go_on(&self, device: DeviceIndex, goes_on: &GoesOn<'_>) -> Result<(), StoreError> {
        self.check_writable()?;
        // A write to it that failed has ended it.
        if goes_on() && self.pool.is_returning(device) { Ok(()) } else { Err(StoreError::Stopped) }
    }

    /// Waits until nothing is appended any more to segments that a device has a part in.
    fn settle_segments_on(&self, device: DeviceIndex, goes_on: &GoesOn<'_>) -> Result<(), StoreError> {
        self.seal_open_segments()?;
        let begun = Instant::now();
        while self.segments.any_on(device) {
            self.may_go_on(device, goes_on)?;
            if begun.elapsed() > IN_FLIGHT_MAX {
                return Err(StoreError::Stopped);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Segments that a device has a part in. No further ones are to come.
    fn segments_on(&self, device: DeviceIndex) -> Result<Vec<SegmentId>, StoreError> {
        let mut found = Vec::new();
        self.each_segment(&mut |id, segment| {
            if segment.placements.iter().any(|place| place.0 == device) {
                found.push(id);
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Writes to a device's slot of a segment what differs there from the others. Returns the bytes written.
    fn bring_segment(
        &self,
        id: SegmentId,
        device: DeviceIndex,
        goes_on: &GoesOn<'_>,
    ) -> Result<u64, StoreError> {
        let Some(segment) = self.read_segment(id)? else { return Ok(0) };
        let pace = |_, _| if goes_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        // One that is gone meanwhile needs nothing; whether it was told to stop is asked next.
        let found =
            self.compare_cells(id, &segment, &Wanted::in_slots(&|place| place.0 == device), true, &pace)?;
        if found.is_some_and(|found| found.stranded > 0) {
            self.move_segment(id, &mut Cleaned::default())?;
        }
        Ok(found.unwrap_or_default().written)
    }

    /// Gives what was written with less redundancy than there can be what it lacks.
    ///
    /// Each checkpoint gives back the room of what was moved, so that little room is enough.
    fn restore_redundancy(&self, goes_on: &GoesOn<'_>) -> Result<(), StoreError> {
        // What cannot be read cannot be moved either, and has as many copies as it ever will.
        let mut unreadable = HashSet::new();
        loop {
            let mut gets_on = false;
            for database in self.databases() {
                for piece in 0..database.pieces() {
                    gets_on |= database.spread(piece)? > 0;
                }
            }
            let is_crowded = |database: &Database| (0..database.pieces()).any(|n| database.is_crowded(n));
            let crowded = self.databases().any(|database| is_crowded(&database));
            let mut thin = self.thin_segments(goes_on)?;
            thin.retain(|id| !unreadable.contains(id));
            if thin.is_empty() && !crowded {
                return Ok(());
            }
            let mut done = Cleaned::default();
            for id in &thin {
                if !goes_on() {
                    return Err(StoreError::Stopped);
                }
                match self.move_segment(*id, &mut done)? {
                    Moved::Gone => gets_on = true,
                    Moved::Unreadable => gets_on |= unreadable.insert(*id),
                    Moved::NoRoom => {}
                }
            }
            gets_on |= self.pool.space().freeing > 0;
            self.checkpoint()?;
            if !gets_on {
                tracing::error!(
                    segments = thin.len(),
                    "there is no room to store anew what has too few copies"
                );
                let wanted = self.segment_data_bytes() * thin.len().max(1) as u64;
                return Err(StoreError::NoSpace { wanted, free: self.free_bytes() });
            }
        }
    }

    /// Sealed segments with less parity than new ones get. No further ones are to come.
    fn thin_segments(&self, goes_on: &GoesOn<'_>) -> Result<Vec<SegmentId>, StoreError> {
        let parity = |policy| self.shards_now(policy).1;
        self.seal_thin_segments(parity)?;
        let begun = Instant::now();
        while self.segments.any_thin(parity) {
            if !goes_on() || begun.elapsed() > IN_FLIGHT_MAX {
                return Err(StoreError::Stopped);
            }
            std::thread::sleep(LOOK);
        }
        let mut found = Vec::new();
        self.each_segment(&mut |id, segment| {
            let is_thin = segment.shards.1 < parity(segment.policy)
                || self.pool.is_crowded(&segment.placements, segment.shards.1);
            if segment.state == SegmentState::Sealed && is_thin {
                found.push(id);
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    pub(crate) fn read_segment(&self, id: SegmentId) -> Result<Option<Segment>, StoreError> {
        let stored = self.view().get(Table::Segments, &key::segment(id))?;
        Ok(stored.map(|stored| Segment::decode(&stored)).transpose()?)
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct ReturnThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl ReturnThread {
    /// Brings devices back that were away, now and whenever one that failed answers again.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let stop = Arc::<Stop>::default();
        let stopping = Arc::clone(&stop);
        let work = move || run(&store, &stopping);
        let thread = std::thread::Builder::new().name("return".into()).spawn(work)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ReturnThread {
    fn drop(&mut self) {
        self.stop.tell();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("what brings devices back died; the next mount goes on");
        }
    }
}

/// Tries, and tries again when something has changed or after a while: somebody may have made room, or a device may answer
/// again. One that keeps failing is tried less and less often.
fn run(store: &Store, stop: &Stop) {
    let goes_on = || !stop.is_told() && store.check_writable().is_ok();
    let mut again = AGAIN;
    let mut told = String::new();
    while goes_on() {
        match store.bring_back(&goes_on) {
            Ok(done) => {
                (again, told) = (AGAIN, String::new());
                for ReturnProgress { device, data_bytes, metadata_bytes, .. } in done {
                    tracing::info!(
                        device = device.0,
                        data_bytes,
                        metadata_bytes,
                        "a device is up to date again"
                    );
                }
            }
            Err(StoreError::Stopped) if !goes_on() => {
                tracing::warn!("a device is not up to date yet; the next mount goes on");
                return;
            }
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::error!(error, "a device could not be brought up to date; it is tried again");
                    told = error;
                }
                again = (again * 2).min(AGAIN_MAX);
            }
        }
        // It changes much itself. Who fails meanwhile is brought back all the same, after a while.
        let (changes, begun) = (store.pool.placement_changes(), Instant::now());
        let is_due = || {
            let has_changed = store.pool.placement_changes() != changes;
            let is_wanted = !store.pool.stale_members().is_empty() || !told.is_empty();
            has_changed || is_wanted && begun.elapsed() >= again
        };
        while goes_on() && !is_due() {
            stop.sleep(AGAIN);
        }
    }
}
