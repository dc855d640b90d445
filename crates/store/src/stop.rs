//! How a thread that sleeps is told to end.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Told once, by whoever ends the thread.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    told: AtomicBool,
    turn: Mutex<()>,
    wakeup: Condvar,
}

impl Stop {
    /// Has the thread end, and wakes it.
    pub(crate) fn tell(&self) {
        self.told.store(true, Ordering::Release);
        // Whoever is about to sleep has looked before, and holds this.
        drop(self.turn.lock());
        self.wakeup.notify_all();
    }

    /// Whether it is to end.
    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Sleeps for a while, or until it is to end.
    pub(crate) fn sleep(&self, time: Duration) {
        let mut turn = self.turn.lock();
        if !self.is_told() {
            self.wakeup.wait_for(&mut turn, time);
        }
    }
}
