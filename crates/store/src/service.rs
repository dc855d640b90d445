//! The thread that does what nobody waits for: log writes, checkpoints, reaping.

use crate::reap::RELEASED_AT_ONCE;
use crate::store::{LOG_TRANSACTIONS, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often what the store does by itself happens.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// The log is written and flushed when it has held something for so long.
    pub log: Duration,
    /// A checkpoint is made when changes have waited for so long.
    pub checkpoint: Duration,
    /// The log is written and flushed when it holds so many changes.
    pub log_transactions: usize,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            log: Duration::from_millis(500),
            checkpoint: Duration::from_secs(60),
            log_transactions: LOG_TRANSACTIONS,
        }
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct Service {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>, intervals: Intervals) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (worker, stopping) = (Arc::clone(&store), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("store-service".into())
            .spawn(move || run(&worker, &stopping, intervals))?;
        store.log_transactions.store(intervals.log_transactions, Ordering::Relaxed);
        store.served.store(true, Ordering::Release);
        Ok(Self { store, stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.store.served.store(false, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        self.store.wake_service();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.store.poison("the store's service thread died");
        }
    }
}

fn run(store: &Store, stop: &AtomicBool, intervals: Intervals) {
    let mut last_checkpoint = store.clock.elapsed();
    let mut last_sequence = store.last_sequence();
    let (mut reaped, mut failed) = (false, false);
    while !stop.load(Ordering::Acquire) {
        // With nothing queued only the checkpoint is still to come, then nothing at all; the first change
        // ends the wait. What is queued then waits for company, but not for long. Whoever syncs by themselves
        // meanwhile wakes nobody.
        load_dedup(store, stop, intervals.log);
        let idle = || !store.dedup.is_loading() && !stop.load(Ordering::Acquire);
        // Whoever let an orphan go while this thread was at work has woken nobody.
        let released = || if failed { 0 } else { store.space.released.lock().len() };
        store.dozing.store(true, Ordering::Release);
        pause(store, intervals.checkpoint, || {
            store.log.queued_transactions() == 0 && released() == 0 && idle()
        });
        store.dozing.store(false, Ordering::Release);
        pause(store, intervals.log, || {
            store.log.queued_transactions() < intervals.log_transactions
                && released() < RELEASED_AT_ONCE
                && idle()
        });
        if stop.load(Ordering::Acquire) || store.check_writable().is_err() {
            return;
        }
        let outcome = step(store, intervals, &mut last_checkpoint, &mut last_sequence, &mut reaped);
        // What failed is tried again when something else is due, not at once.
        failed = outcome.is_err();
        if let Err(error) = outcome {
            tracing::error!(%error, "background work failed");
        }
    }
}

/// Uses the time in which nothing else is due to load what the dedup index lacks.
fn load_dedup(store: &Store, stop: &AtomicBool, time: Duration) {
    let until = store.clock.elapsed() + time;
    let idle = || !stop.load(Ordering::Acquire) && !store.checkpoint_due() && store.clock.elapsed() < until;
    while idle() && store.check_writable().is_ok() {
        match store.dedup.load_step(&store.view()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::warn!(%error, "the dedup index is not complete until the next opening"),
        }
    }
}

/// Waits for a while, or until something happens, unless there is no reason to wait.
fn pause(store: &Store, time: Duration, reason: impl Fn() -> bool) {
    let mut turn = store.wakeup.0.lock();
    if reason() && !store.checkpoint_due() {
        store.wakeup.1.wait_for(&mut turn, time);
    }
}

fn step(
    store: &Store,
    intervals: Intervals,
    last_checkpoint: &mut Duration,
    last_sequence: &mut aegisfs_base::Sequence,
    reaped: &mut bool,
) -> Result<(), crate::StoreError> {
    // What a crash left is reaped at the start, later orphans when they are let go.
    let cleared = if *reaped { store.reap_released() } else { store.reap_all().map(|_| *reaped = true) };
    if store.log.queued_transactions() > 0 {
        store.sync()?;
    }
    let now = store.clock.elapsed();
    let waited = now.saturating_sub(*last_checkpoint) >= intervals.checkpoint;
    if store.checkpoint_due() || (waited && store.last_sequence() != *last_sequence) {
        store.checkpoint()?;
        *last_checkpoint = now;
        *last_sequence = store.last_sequence();
    }
    cleared
}
