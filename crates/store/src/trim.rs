//! When freed slots are discarded: in the background, some time after the checkpoint that freed them.
//!
//! Slots that are taken again meanwhile need not be, and neighbours that were freed one after the other are discarded
//! together. Nothing waits for it but whoever finds all other slots taken.

use crate::StoreError;
use crate::store::Store;
use aegisfs_pool::TrimPass;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So many bytes do not wait for more.
const WAITING_BYTES_MAX: u64 = 1 << 30;
/// After a step it rests as long as that took, but no longer than this.
const REST_MAX: Duration = Duration::from_secs(1);
/// How long the end of a mount may be put off. What is left is found by the next [`Store::request_trim`].
const END_MAX: Duration = Duration::from_secs(10);

/// How slots are discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimOptions {
    /// Whether that happens by itself.
    pub background: bool,
    /// Bytes discarded in one step at most; a slot at least.
    pub batch_bytes: u64,
    /// How long freed slots wait for others.
    pub settle: Duration,
}

impl Default for TrimOptions {
    fn default() -> Self {
        Self { background: true, batch_bytes: 256 << 20, settle: Duration::from_secs(10) }
    }
}

/// What the trimmer knows.
#[derive(Debug)]
pub(crate) struct Trimmer {
    options: TrimOptions,
    /// Whether a thread of its own does it; without one, whoever makes a checkpoint does.
    served: AtomicBool,
    /// Whether there was one. What is freed afterwards waits for the end.
    ended: AtomicBool,
    /// How often all free slots were to be discarded, and how many of these wishes came true.
    requested: AtomicU64,
    granted: AtomicU64,
    /// Why that failed the last time.
    problem: Mutex<Option<String>>,
    turn: Mutex<()>,
    wakeup: Condvar,
    /// One at a time.
    running: Mutex<()>,
}

impl Trimmer {
    pub(crate) fn new(options: TrimOptions) -> Self {
        Self {
            options,
            served: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            requested: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            problem: Mutex::new(None),
            turn: Mutex::new(()),
            wakeup: Condvar::new(),
            running: Mutex::new(()),
        }
    }

    fn is_requested(&self) -> bool {
        self.granted.load(Ordering::Acquire) < self.requested.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Whoever is about to sleep has looked before, and holds this.
        drop(self.turn.lock());
        self.wakeup.notify_all();
    }
}

impl Store {
    /// Has all free slots discarded that were not since they were last written, those as well that were free when the
    /// store was opened; what only waits for the reaper or a checkpoint comes first.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn request_trim(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        self.trimmer.requested.fetch_add(1, Ordering::AcqRel);
        if self.trimmer.served.load(Ordering::Acquire) {
            self.trimmer.wake();
            return Ok(());
        }
        self.trim_everything(&|| true)
    }

    /// Whether that is still going on.
    pub fn trim_requested(&self) -> bool {
        self.trimmer.is_requested()
    }

    /// Why the last pass over everything failed, if it did; what a device refused is told with the device.
    pub fn trim_problem(&self) -> Option<String> {
        self.trimmer.problem.lock().clone()
    }

    /// How slots are discarded.
    pub fn trim_options(&self) -> TrimOptions {
        self.trimmer.options
    }

    /// Slots were freed: has them discarded some time, or does it, if nobody else would.
    pub(crate) fn trim_after_checkpoint(&self) {
        if !self.trimmer.options.background {
            return;
        }
        if self.trimmer.served.load(Ordering::Acquire) {
            if self.pool.space().left > 0 {
                self.trimmer.wake();
            }
            return;
        }
        if !self.trimmer.ended.load(Ordering::Acquire) {
            self.trim_for_a_while();
        }
    }

    /// What was freed since the thread ended is discarded too.
    pub(crate) fn trim_at_end(&self) {
        if self.trimmer.options.background && self.trimmer.ended.load(Ordering::Acquire) {
            self.trim_for_a_while();
        }
    }

    fn trim_for_a_while(&self) {
        let begun = self.clock.elapsed();
        self.trim(TrimPass::over_freed(), &|| self.clock.elapsed().saturating_sub(begun) < END_MAX);
    }

    fn trim_everything(&self, goes_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
        // What is asked for from here on may have been freed behind this pass.
        let wish = self.trimmer.requested.load(Ordering::Acquire);
        let prepared = self.reap_all().and_then(|_| self.checkpoint());
        if prepared.is_ok() {
            self.trim(TrimPass::over_everything(), goes_on);
        }
        *self.trimmer.problem.lock() = prepared.as_ref().err().map(ToString::to_string);
        self.trimmer.granted.fetch_max(wish, Ordering::AcqRel);
        prepared
    }

    /// Discards until the pass is over, or `goes_on` says no; it is asked after every step.
    fn trim(&self, mut pass: TrimPass, goes_on: &dyn Fn() -> bool) {
        let _running = self.trimmer.running.lock();
        // Once nothing may be written, the device may be somebody else's.
        while self.check_writable().is_ok()
            && self.pool.trim_step(&mut pass, self.trimmer.options.batch_bytes).is_some()
            && goes_on()
        {}
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct TrimThread {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TrimThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (worker, stopping) = (Arc::clone(&store), Arc::clone(&stop));
        let thread =
            std::thread::Builder::new().name("trimmer".into()).spawn(move || run(&worker, &stopping))?;
        store.trimmer.served.store(true, Ordering::Release);
        Ok(Self { store, stop, thread: Some(thread) })
    }
}

impl Drop for TrimThread {
    fn drop(&mut self) {
        self.store.trimmer.ended.store(true, Ordering::Release);
        self.store.trimmer.served.store(false, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        self.store.trimmer.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the trimmer died; freed slots are discarded by the next mount when told to");
        }
    }
}

fn run(store: &Store, stop: &AtomicBool) {
    let trimmer = &store.trimmer;
    let is_told = || stop.load(Ordering::Acquire) || trimmer.is_requested();
    let waiting = || {
        let may = trimmer.options.background && store.check_writable().is_ok();
        if may { store.pool.trim_waiting_bytes() } else { 0 }
    };
    while !stop.load(Ordering::Acquire) {
        {
            let mut turn = trimmer.turn.lock();
            while !is_told() && waiting() == 0 {
                trimmer.wakeup.wait(&mut turn);
            }
            let until = Instant::now() + trimmer.options.settle;
            while !is_told() && waiting() < WAITING_BYTES_MAX {
                if trimmer.wakeup.wait_until(&mut turn, until).timed_out() {
                    break;
                }
            }
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
        if trimmer.is_requested() {
            if let Err(error) = store.trim_everything(&|| !stop.load(Ordering::Acquire)) {
                tracing::error!(%error, "free slots could not be discarded");
            }
            continue;
        }
        let begun = Cell::new(Instant::now());
        let goes_on = || {
            rest(begun.get().elapsed(), &is_told);
            begun.set(Instant::now());
            !is_told()
        };
        store.trim(TrimPass::over_freed(), &goes_on);
    }
}

/// Leaves the device to others for as long as it was kept from them.
fn rest(took: Duration, is_told: &dyn Fn() -> bool) {
    let until = Instant::now() + took.min(REST_MAX);
    while !is_told() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(10)));
    }
}
