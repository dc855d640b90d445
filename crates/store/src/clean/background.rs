//! When cleaning happens by itself, and how fast.
//!
//! The less room there is, the smaller a dead part is worth cleaning. As long as there is enough, the cleaner keeps to
//! its rate while others read or write, and costs them little; when room runs short, it does not wait for anything.

use super::{Candidate, Cleaned};
use crate::StoreError;
use crate::store::Store;
use aegisfs_base::Sequence;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How often the thread looks whether there is something to do.
const LOOK: Duration = Duration::from_secs(1);
/// How finely it sleeps while it keeps to its rate.
const SLICE: Duration = Duration::from_millis(10);
/// When nobody has read or written for so long, nobody is disturbed.
const QUIET: Duration = Duration::from_secs(1);
/// With so little room left, in thousandths, it keeps to no rate.
const URGENT: u64 = 50;
/// Bytes that come back before a checkpoint is made for their sake while room is short.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// The part of the whole that is cleaned before it looks anew what is worth most.
const AT_ONCE_PART: u64 = 256;
/// Segments cleaned one after the other that may give nothing back.
const FUTILE_MAX: u32 = 3;
/// How long slots wait for a checkpoint that somebody makes for another reason.
const SETTLE: Duration = Duration::from_secs(5);
/// It rests so many times as long as it took, but no longer than this.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(10);

/// How much cleaning may take from those who read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intensity {
    /// 16 MiB a second while others read or write.
    Low,
    /// 64 MiB a second while others read or write.
    #[default]
    Medium,
    /// As much as there is.
    High,
}

impl Intensity {
    /// All of them, the gentlest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Bytes moved in a second at most while others read or write.
    pub(crate) const fn rate(self) -> Option<u64> {
        match self {
            Self::Low => Some(16 << 20),
            Self::Medium => Some(64 << 20),
            Self::High => None,
        }
    }

    pub(crate) fn from_raw(raw: u8) -> Self {
        Self::ALL.into_iter().find(|known| *known as u8 == raw).unwrap_or_default()
    }
}

/// What the operator has said.
#[derive(Debug, Default)]
pub(super) struct Orders {
    intensity: AtomicU8,
    /// Bytes moved in a second at most; 0 is no limit.
    bandwidth: AtomicU64,
    paused: AtomicBool,
    /// How often everything that is worth anything was to be cleaned, and how many of these wishes came true.
    wishes: AtomicU64,
    granted: AtomicU64,
}

impl Orders {
    fn wants_everything(&self) -> bool {
        self.granted.load(Ordering::Acquire) < self.wishes.load(Ordering::Acquire)
    }

    fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

/// The cleaner's thread, while it has nothing to do and waits for a change.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    sleeps: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Sleeper {
    /// Says that there may be something to do.
    pub(crate) fn wake(&self) {
        if self.sleeps.load(Ordering::Acquire)
            && self.sleeps.swap(false, Ordering::AcqRel)
            && let Some(thread) = &*self.thread.lock()
        {
            thread.unpark();
        }
    }

    /// Sleeps until somebody says so, unless there is something to do already.
    fn sleep(&self, nothing_to_do: impl Fn() -> bool) {
        if !nothing_to_do() {
            return;
        }
        *self.thread.lock() = Some(std::thread::current());
        self.sleeps.store(true, Ordering::SeqCst);
        if nothing_to_do() {
            std::thread::park();
        }
        self.sleeps.store(false, Ordering::Release);
    }
}

/// Since when nobody has read or written.
#[derive(Debug)]
struct Quiet {
    seen: u64,
    since: Instant,
}

impl Quiet {
    /// Whether nobody has for a while, if so much was read and written by now.
    fn is_kept(&mut self, used: u64, now: Instant) -> bool {
        if used != self.seen {
            *self = Self { seen: used, since: now };
        }
        now.duration_since(self.since) >= QUIET
    }
}

/// Keeps whoever moves data in the background to the cleaner's rate.
pub(crate) struct Restraint {
    quiet: Quiet,
}

impl Restraint {
    pub(crate) fn new(store: &Store) -> Self {
        Self { quiet: Quiet { seen: store.used_by_others(), since: Instant::now() } }
    }

    /// Waits as long as it is too early to move more after so many bytes that took so long.
    pub(crate) fn wait(&mut self, store: &Store, bytes: u64, took: Duration, goes_on: &dyn Fn() -> bool) {
        let begun = Instant::now();
        while store.has_to_wait(bytes, took + begun.elapsed(), &mut self.quiet) && goes_on() {
            std::thread::sleep(SLICE);
        }
    }
}

/// What the cleaner is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleaningStatus {
    /// How much it may take.
    pub intensity: Intensity,
    /// Bytes it moves in a second at most, if that is limited.
    pub bandwidth: Option<u64>,
    /// Whether it does nothing by itself.
    pub paused: bool,
    /// Whether it is at it.
    pub running: bool,
    /// Whether it was told to clean everything, and is not done.
    pub requested: bool,
    /// Bytes that cleaning would give back.
    pub reclaimable_bytes: u64,
    /// Segments in which it would do so.
    pub candidates: u64,
    /// Segments with something in them that cannot be read.
    pub stuck: u64,
}

impl Store {
    /// Says how much cleaning may take.
    pub fn set_cleaning_intensity(&self, intensity: Intensity) {
        self.cleaner.orders.intensity.store(intensity as u8, Ordering::Relaxed);
    }

    /// Limits what cleaning in the background moves in a second, also when nobody is disturbed; 0 is no limit.
    pub fn set_cleaning_bandwidth(&self, bytes: u64) {
        self.cleaner.orders.bandwidth.store(bytes, Ordering::Relaxed);
    }

    /// Has the cleaner do nothing by itself, or go on. Whoever needs room has it clean all the same.
    pub fn pause_cleaning(&self, paused: bool) {
        self.cleaner.orders.paused.store(paused, Ordering::Relaxed);
        self.cleaner.sleeper.wake();
    }

    /// Has the cleaner clean everything that gives anything back, once, at the pace of its intensity.
    pub fn request_cleaning(&self) {
        // What could not be read may have been healed, or its device be back.
        self.cleaner.stuck.lock().clear();
        self.cleaner.kept.lock().clear();
        self.cleaner.orders.wishes.fetch_add(1, Ordering::AcqRel);
        self.cleaner.sleeper.wake();
    }

    /// What the cleaner is at.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn cleaning_status(&self) -> Result<CleaningStatus, StoreError> {
        let (candidates, reclaimable_bytes) = self.cleaning_candidates()?;
        let orders = &self.cleaner.orders;
        Ok(CleaningStatus {
            intensity: Intensity::from_raw(orders.intensity.load(Ordering::Relaxed)),
            bandwidth: orders.bandwidth(),
            paused: orders.paused.load(Ordering::Relaxed),
            running: self.cleaner.running.is_locked(),
            requested: orders.wants_everything(),
            reclaimable_bytes,
            candidates: candidates.len() as u64,
            stuck: self.cleaner.stuck.lock().len() as u64,
        })
    }

    /// Whether the cleaner can wait for a change: it has seen the last one, or may do nothing anyway.
    fn leaves_nothing_to_do(&self, seen: Option<Sequence>) -> bool {
        let orders = &self.cleaner.orders;
        let may_not = orders.paused.load(Ordering::Relaxed);
        let has_seen = seen == Some(self.last_sequence()) && !orders.wants_everything();
        self.check_writable().is_err() || (self.pool.space().freeing == 0 && (may_not || has_seen))
    }

    /// Whether it is too early to move more after so many bytes that took so long.
    fn has_to_wait(&self, bytes: u64, took: Duration, quiet: &mut Quiet) -> bool {
        let orders = &self.cleaner.orders;
        let is_early = |rate: u64| took < Duration::from_secs_f64(bytes as f64 / rate as f64);
        let is_quiet = quiet.is_kept(self.used_by_others(), Instant::now());
        let rate = Intensity::from_raw(orders.intensity.load(Ordering::Relaxed)).rate();
        let rate = rate.filter(|_| !is_quiet);
        rate.into_iter().chain(orders.bandwidth()).any(is_early) && self.room_left() >= URGENT
    }

    /// Notes that a change or a chunk that was read is not of those who read and write.
    pub(crate) fn count_background_use(&self) {
        self.cleaner.count_use();
    }

    /// How often others than the cleaner have used the store: changes and chunks read.
    pub fn used_by_others(&self) -> u64 {
        let (hits, misses) = self.cache.counts();
        let all = hits + misses + self.counters.transactions.load(Ordering::Relaxed);
        all.saturating_sub(self.cleaner.uses.load(Ordering::Relaxed))
    }

    /// Room that is left, in thousandths of all.
    fn room_left(&self) -> u64 {
        let (total, _) = self.capacity();
        self.placeable_bytes().saturating_mul(1000) / total.max(1)
    }

    /// Cleans what is worth it by now, until nothing is, somebody else needs room at once, or `goes_on` says no.
    /// Says whether there is nothing left to do.
    fn clean_in_background(&self, everything: bool, goes_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let (mut unsettled, mut futile) = (0, 0);
        let mut outcome = Ok(Cleaned { stopped: true, ..Cleaned::default() });
        let quiet = RefCell::new(Quiet { seen: self.used_by_others(), since: Instant::now() });
        while goes_on() {
            let left = self.room_left();
            let worth_it = |candidates: &mut Vec<Candidate>| {
                candidates
                    .retain(|candidate| everything || candidate.dead_part() >= dead_part_worth_it(left));
            };
            let pace = |bytes: u64, took: Duration| {
                let begun = Instant::now();
                while self.has_to_wait(bytes, took + begun.elapsed(), &mut quiet.borrow_mut())
                    && goes_on()
                    && !self.cleaner.is_wanted()
                {
                    std::thread::sleep(SLICE);
                }
                if goes_on() && !self.cleaner.is_wanted() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let running = self.cleaner.running.lock();
            // What is left of chunks is looked for once for all of these.
            let some = self.segment_data_bytes().max(self.capacity().0 / AT_ONCE_PART);
            outcome = self.empty_some(&running, some, &worth_it, &pace);
            drop(running);
            let Ok(done) = &outcome else { break };
            // What gives nothing back, whatever its accounts say, is not tried for ever.
            futile = if done.gained_bytes() > 0 { 0 } else { futile + 1 };
            if done.segments == 0 || done.stopped || futile == FUTILE_MAX {
                break;
            }
            unsettled += done.released_bytes;
            if left < 4 * URGENT && unsettled >= CHECKPOINT_BYTES.min(self.capacity().0 / 64) {
                self.checkpoint()?;
                unsettled = 0;
            }
        }
        if unsettled > 0 {
            self.checkpoint()?;
        }
        outcome.map(|done| !done.stopped)
    }
}

/// The part of a segment, in thousandths, that has to be dead before it is cleaned with so much room left.
const fn dead_part_worth_it(left: u64) -> u64 {
    match left {
        0..50 => 20,
        50..100 => 100,
        100..250 => 300,
        250..500 => 500,
        _ => 800,
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct CleanerThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl CleanerThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("cleaner".into()).spawn(move || run(&store, &stopping))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for CleanerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the cleaner died; room comes back when somebody needs it");
            }
        }
    }
}

/// Gives slots back that only wait for a checkpoint, once that has been so for a while: nobody else may make one.
fn settle(store: &Store, waiting_since: &mut Option<Instant>) {
    if store.pool.space().freeing == 0 {
        *waiting_since = None;
    } else if waiting_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
        *waiting_since = None;
        if let Err(error) = store.checkpoint() {
            tracing::error!(%error, "slots could not be given back");
        }
    }
}

fn run(store: &Store, stop: &AtomicBool) {
    let goes_on = || !stop.load(Ordering::Acquire) && !store.cleaner.orders.paused.load(Ordering::Relaxed);
    let mut seen = None;
    let mut waiting_since = None;
    let mut rest = LOOK;
    while !stop.load(Ordering::Acquire) {
        store.cleaner.sleeper.sleep(|| !stop.load(Ordering::Acquire) && store.leaves_nothing_to_do(seen));
        // What one change begins others go on with.
        std::thread::park_timeout(rest);
        if !stop.load(Ordering::Acquire) && store.check_writable().is_ok() {
            settle(store, &mut waiting_since);
        }
        let last = store.last_sequence();
        let wish = store.cleaner.orders.wishes.load(Ordering::Acquire);
        let everything = store.cleaner.orders.wants_everything();
        if !goes_on() || (seen == Some(last) && !everything) || store.check_writable().is_err() {
            continue;
        }
        let begun = Instant::now();
        let outcome = store.clean_in_background(everything, &goes_on);
        // With very many segments to look through it looks less often.
        rest = LOOK.max((begun.elapsed() * REST).min(REST_MAX));
        // Who was told to stop in the middle, or gave way to somebody, goes on later.
        let is_done = matches!(outcome, Ok(true));
        if let Err(error) = &outcome {
            tracing::error!(%error, "cleaning failed");
        }
        if is_done || outcome.is_err() {
            seen = Some(store.last_sequence());
            if everything {
                store.cleaner.orders.granted.fetch_max(wish, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_room_the_smaller_a_dead_part_is_worth_it() {
        let parts: Vec<u64> = (0..=1000).map(dead_part_worth_it).collect();
        assert!(parts.is_sorted() && parts[0] > 0 && parts[1000] < 1000);
    }

    #[test]
    fn it_is_quiet_when_nobody_did_anything_for_a_while() {
        let begin = Instant::now();
        let mut quiet = Quiet { seen: 5, since: begin };
        assert!(!quiet.is_kept(5, begin + QUIET / 2) && quiet.is_kept(5, begin + QUIET));
        assert!(!quiet.is_kept(6, begin + 2 * QUIET) && !quiet.is_kept(6, begin + 2 * QUIET + QUIET / 2));
        assert!(quiet.is_kept(6, begin + 3 * QUIET));
    }

    #[test]
    fn intensities_are_kept_as_they_are_set() {
        for intensity in Intensity::ALL {
            assert_eq!(Intensity::from_raw(intensity as u8), intensity);
        }
        assert_eq!(Intensity::from_raw(77), Intensity::Medium);
    }
}
