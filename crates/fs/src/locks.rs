//! Locks that count how often somebody had to wait for one, so that contention shows before it hurts.

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::atomic::{AtomicU64, Ordering};

/// How often somebody waited for a kind of lock, in the whole process.
#[derive(Debug)]
pub(crate) struct Waits(AtomicU64);

/// For the state of a node: two who use one file, one of them changing it.
pub(crate) static NODES: Waits = Waits(AtomicU64::new(0));
/// For a shard of the nodes in memory.
pub(crate) static TABLE: Waits = Waits(AtomicU64::new(0));
/// For a shard of the open handles.
pub(crate) static HANDLES: Waits = Waits(AtomicU64::new(0));

impl Waits {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often somebody waited, by kind of lock.
pub fn lock_waits() -> [(&'static str, u64); 3] {
    [("nodes", &NODES), ("node_table", &TABLE), ("handles", &HANDLES)]
        .map(|(name, waits)| (name, waits.0.load(Ordering::Relaxed)))
}

/// A lock for several readers or one writer.
pub(crate) struct CountedRwLock<T> {
    lock: RwLock<T>,
    waits: &'static Waits,
}

impl<T> CountedRwLock<T> {
    pub(crate) const fn new(waits: &'static Waits, value: T) -> Self {
        Self { lock: RwLock::new(value), waits }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.lock.try_read().unwrap_or_else(|| {
            self.waits.note();
            self.lock.read()
        })
    }

    /// For whoever does something else instead of waiting.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.lock.try_read()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.lock.try_write().unwrap_or_else(|| {
            self.waits.note();
            self.lock.write()
        })
    }
}

/// A lock for one.
pub(crate) struct CountedMutex<T> {
    lock: Mutex<T>,
    waits: &'static Waits,
}

impl<T> CountedMutex<T> {
    pub(crate) const fn new(waits: &'static Waits, value: T) -> Self {
        Self { lock: Mutex::new(value), waits }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.lock.try_lock().unwrap_or_else(|| {
            self.waits.note();
            self.lock.lock()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn who_waits_is_counted_and_who_does_not_is_not() {
        static WAITS: Waits = Waits(AtomicU64::new(0));
        let lock = CountedRwLock::new(&WAITS, 1);
        drop((lock.read(), lock.read()));
        assert_eq!(WAITS.0.load(Ordering::Relaxed), 0);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let held = lock.write();
            scope.spawn(|| {
                barrier.wait();
                drop(lock.read());
            });
            barrier.wait();
            while WAITS.0.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(held);
        });
        assert_eq!(WAITS.0.load(Ordering::Relaxed), 1);
    }
}
