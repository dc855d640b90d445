//! Panics: no thread dies in silence, and none leaves a filesystem behind that goes on writing.

use aegisfs_store::Store;
use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock, Weak};

/// What stops writing when a thread panics; a process serves one filesystem.
static SERVED: OnceLock<Weak<Store>> = OnceLock::new();

/// From now on every panic is logged, whichever thread it strikes.
pub(crate) fn log() {
    std::panic::set_hook(Box::new(note));
}

/// From now on a panic stops all writing to this store.
pub(crate) fn guard(store: &Arc<Store>) {
    let _ = SERVED.set(Arc::downgrade(store));
}

fn note(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name").to_owned();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    let backtrace = Backtrace::force_capture();
    tracing::error!(thread, place, message, %backtrace, "a thread panicked");
    // What the thread was changing may be changed by half; it must not reach the device.
    if let Some(store) = SERVED.get().and_then(Weak::upgrade) {
        store.stop_writing(&format!("thread {thread} panicked: {message}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{ManualClock, SeededRng};
    use aegisfs_device::{Device, MemoryDevice};
    use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
    use aegisfs_store::StoreOptions;

    #[test]
    fn a_panic_of_any_thread_stops_all_writing() {
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::new("disk", 256 << 20));
        let (clock, rng) = (Arc::new(ManualClock::default()), SeededRng::new(1));
        let pool = Pool::create(vec![device.clone()], &CreateOptions::default(), &*clock, &rng).unwrap();
        aegisfs_fs::Fs::format(&pool, &*clock).unwrap();
        drop(pool);
        let (pool, _) = Pool::open(vec![device], OpenOptions::default()).unwrap();
        let options = StoreOptions { workers: 0, ..StoreOptions::default() };
        let (store, _) = aegisfs_store::open(pool, &options, clock, &rng).unwrap();
        let store = Arc::new(store);
        let usual = std::panic::take_hook();
        log();
        guard(&store);
        assert!(store.check_writable().is_ok());
        let thread = std::thread::Builder::new().name("flush-0".into());
        let outcome = thread.spawn(|| panic!("of {} hearts", 2)).unwrap().join();
        std::panic::set_hook(usual);
        assert!(outcome.is_err());
        assert_eq!(store.read_only_reason().unwrap(), "thread flush-0 panicked: of 2 hearts");
    }
}
