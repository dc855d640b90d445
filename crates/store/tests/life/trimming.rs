//! What was freed is discarded: together, later, and only once.

use super::{format, noise, options, write};
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{
    Device, DeviceError, DiscardLimits, Fault, FaultyDevice, MemoryDevice, Operation, StatsDevice,
};
use aegisfs_pool::{OpenOptions, Pool};
use aegisfs_store::{Store, StoreOptions, TrimOptions, TrimThread, Upkeep, UpkeepOptions, open};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Counted = Arc<StatsDevice<Arc<MemoryDevice>>>;

fn mount_on(device: Arc<dyn Device>, trim: TrimOptions, rng: &dyn Rng) -> Arc<Store> {
    let (pool, _) = Pool::open(vec![device], OpenOptions::default()).unwrap();
    let options = StoreOptions { trim, ..options() };
    Arc::new(open(pool, &options, Arc::new(ManualClock::default()), rng).unwrap().0)
}

fn counted(device: &Arc<MemoryDevice>) -> Counted {
    Arc::new(StatsDevice::new(Arc::clone(device)))
}

const OFF: TrimOptions = TrimOptions { background: false, batch_bytes: 256 << 20, settle: Duration::ZERO };

fn fill(store: &Store, rng: &dyn Rng, files: u64) {
    for n in 10..10 + files {
        write(store, InodeId(n), &noise(rng, 1 << 20)).unwrap();
    }
}

fn empty(store: &Store, files: u64) {
    for n in 10..10 + files {
        write(store, InodeId(n), b"").unwrap();
    }
}

/// Nobody serves this one, so whoever makes a checkpoint discards.
#[test]
fn neighbours_go_in_one_call() {
    let rng = SeededRng::new(31);
    let device = format(256 << 20, &rng);
    let disk = counted(&device);
    let store = mount_on(disk.clone(), TrimOptions::default(), &rng);
    fill(&store, &rng, 80);
    store.checkpoint().unwrap();
    let full = device.allocated_bytes().unwrap();
    let before = disk.stats();
    empty(&store, 80);
    assert_eq!(disk.stats().discards, before.discards, "nothing is discarded before the checkpoint");
    store.checkpoint().unwrap();
    let done = disk.stats().since(before);
    assert!((1..6).contains(&done.discards) && done.discard_bytes > 70 << 20, "{done:?}");
    assert!(device.allocated_bytes().unwrap() + (70 << 20) < full);
    let status = store.pool().trim_status();
    assert_eq!((status[0].discarded_bytes, status[0].waiting_bytes), (done.discard_bytes, 0));
    store.checkpoint().unwrap();
    assert_eq!(disk.stats().since(before).discards, done.discards, "once is enough");
    let report = store.space_report().unwrap();
    assert_eq!(report.untrimmed_bytes, 0);
}

#[test]
fn what_was_not_discarded_is_when_asked_for() {
    let rng = SeededRng::new(32);
    let device = format(256 << 20, &rng);
    let disk = counted(&device);
    let store = mount_on(disk.clone(), OFF, &rng);
    fill(&store, &rng, 60);
    empty(&store, 60);
    store.checkpoint().unwrap();
    let report = store.space_report().unwrap();
    assert!(
        report.untrimmed_bytes >= 56 << 20 && report.physical_bytes > report.untrimmed_bytes,
        "{report:?}"
    );
    assert_eq!(disk.stats().discards, 0);
    // As after a crash: nobody knows what was free.
    drop(store);
    let store = mount_on(disk.clone(), OFF, &rng);
    let status = &store.pool().trim_status()[0];
    assert!(status.unknown_bytes > 150 << 20 && status.waiting_bytes < 20 << 20, "{status:?}");
    let full = device.allocated_bytes().unwrap();
    store.request_trim().unwrap();
    assert!(!store.trim_requested());
    assert!(device.allocated_bytes().unwrap() + (50 << 20) < full);
    let status = &store.pool().trim_status()[0];
    assert_eq!((status.unknown_bytes, status.waiting_bytes), (0, 0));
    let once = disk.stats().discards;
    store.request_trim().unwrap();
    assert_eq!(disk.stats().discards, once, "there is nothing more to forget");
    assert_eq!(store.check(true).unwrap().problems, []);
}

#[test]
fn a_device_that_fails_to_discard_is_not_asked_again_by_itself() {
    let rng = SeededRng::new(33);
    let device = Arc::new(FaultyDevice::new(format(256 << 20, &rng)));
    let store = mount_on(device.clone(), TrimOptions::default(), &rng);
    fill(&store, &rng, 20);
    empty(&store, 20);
    device.plan(Fault::lasting(Operation::Discard, 0));
    store.checkpoint().unwrap();
    let failed = store.pool().trim_status()[0].clone();
    assert!(
        failed.failures > 0 && failed.discarded_bytes == 0 && failed.last_failure.is_some(),
        "{failed:?}"
    );
    assert!(failed.supported && failed.waiting_bytes == 0 && failed.unknown_bytes > 0, "{failed:?}");
    store.checkpoint().unwrap();
    assert_eq!(store.pool().trim_status()[0].failures, failed.failures);
    store.request_trim().unwrap();
    assert!(store.pool().trim_status()[0].failures > failed.failures);
    // Nothing of it is lost for others.
    fill(&store, &rng, 100);
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// A device of great units, which refuses everything else. Something may happen while it discards for the first time.
struct Picky {
    inner: Arc<dyn Device>,
    limits: DiscardLimits,
    first: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Device for Picky {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.inner.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        assert_eq!(self.limits.inward(offset, length), Some((offset, length)), "no whole units");
        assert!(length <= self.limits.bytes_max, "{length} in one call");
        if let Some(first) = self.first.lock().unwrap().take() {
            first();
        }
        self.inner.discard(offset, length)
    }

    fn discard_limits(&self) -> DiscardLimits {
        self.limits
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.inner.allocated_bytes()
    }

    fn describe(&self) -> String {
        "a picky device".into()
    }

    fn read_only(&self) -> bool {
        false
    }
}

#[test]
fn only_whole_units_are_discarded() {
    let rng = SeededRng::new(34);
    for (granularity, alignment, bytes_max) in
        [(16 << 20, 0, u64::MAX), (10 << 20, 1 << 20, 20 << 20), (64 << 10, 4096, 1 << 20)]
    {
        let device = format(256 << 20, &rng);
        let limits = DiscardLimits::new(granularity, alignment, bytes_max);
        let picky = Arc::new(Picky { inner: device.clone(), limits, first: Mutex::default() });
        let store = mount_on(picky, TrimOptions::default(), &rng);
        fill(&store, &rng, 100);
        store.checkpoint().unwrap();
        let full = device.allocated_bytes().unwrap();
        empty(&store, 100);
        store.checkpoint().unwrap();
        let left = device.allocated_bytes().unwrap();
        assert!(left + (50 << 20) < full, "{left} of {full} bytes, units of {granularity}");
        let contents = noise(&rng, 30 << 20);
        write(&store, InodeId(10), &contents).unwrap();
        store.request_trim().unwrap();
        assert!(super::read(&store, InodeId(10)) == contents, "what was written behind a discard is lost");
        assert_eq!(store.check(true).unwrap().problems, []);
    }
    let device = format(256 << 20, &rng);
    let limits = DiscardLimits { supported: false, ..DiscardLimits::default() };
    let picky = Arc::new(Picky { inner: device, limits, first: Mutex::default() });
    let store = mount_on(picky, TrimOptions::default(), &rng);
    fill(&store, &rng, 20);
    empty(&store, 20);
    store.request_trim().unwrap();
    let status = &store.pool().trim_status()[0];
    assert_eq!((status.calls, status.failures, status.supported), (0, 0, false));
}

/// The first pass fails at a slot, and meanwhile somebody asks for another one, which has to come by that slot again.
#[test]
fn what_is_asked_for_during_a_pass_is_done_after_it() {
    let rng = SeededRng::new(36);
    let faulty = Arc::new(FaultyDevice::new(format(256 << 20, &rng)));
    let limits = DiscardLimits::new(4096, 0, u64::MAX);
    let picky = Arc::new(Picky { inner: faulty.clone(), limits, first: Mutex::default() });
    let store = mount_on(picky.clone(), OFF, &rng);
    let asker = Arc::downgrade(&store);
    let ask = move || asker.upgrade().unwrap().request_trim().unwrap();
    *picky.first.lock().unwrap() = Some(Box::new(ask));
    faulty.plan(Fault { operation: Some(Operation::Discard), ..Fault::once(Operation::Discard, 0) });
    let thread = TrimThread::start(Arc::clone(&store)).unwrap();
    store.request_trim().unwrap();
    let patience = Instant::now();
    while store.trim_requested() {
        assert!(patience.elapsed() < Duration::from_secs(60), "it never ends");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(thread);
    let status = &store.pool().trim_status()[0];
    assert_eq!((status.failures, status.unknown_bytes, store.trim_problem()), (1, 0, None), "{status:?}");
}

#[test]
fn a_pass_that_could_not_begin_says_why() {
    let rng = SeededRng::new(37);
    let device = Arc::new(FaultyDevice::new(format(256 << 20, &rng)));
    let store = mount_on(device.clone(), OFF, &rng);
    fill(&store, &rng, 3);
    device.plan(Fault::lasting(Operation::Write, 0));
    let told = store.request_trim().unwrap_err().to_string();
    assert_eq!((store.trim_requested(), store.trim_problem()), (false, Some(told)));
}

#[test]
fn once_a_day_everything_is_discarded() {
    let rng = SeededRng::new(38);
    let device = format(256 << 20, &rng);
    let day = Duration::from_secs(86_400);
    for (background, expected) in [(false, false), (true, true)] {
        let clock = Arc::new(ManualClock::default());
        let (pool, _) = Pool::open(vec![device.clone() as _], OpenOptions::default()).unwrap();
        let trim = TrimOptions { background, ..TrimOptions::default() };
        let (store, _) =
            open(pool, &StoreOptions { trim, ..options() }, Arc::clone(&clock) as _, &rng).unwrap();
        let mut upkeep = Upkeep::new(&store, UpkeepOptions::default());
        let goes_on = |_| ControlFlow::Continue(());
        clock.advance(day - Duration::from_secs(1));
        assert!(!upkeep.step(&store, &goes_on).unwrap().trimmed);
        assert!(store.pool().trim_status()[0].unknown_bytes > 200 << 20);
        clock.advance(Duration::from_secs(1));
        assert_eq!(upkeep.step(&store, &goes_on).unwrap().trimmed, expected);
        assert_eq!(store.pool().trim_status()[0].unknown_bytes == 0, expected);
    }
}

/// Others write meanwhile, on a device on which nearly everything is always being discarded.
#[test]
fn writers_and_the_trimmer_do_not_meet() {
    let rng = SeededRng::new(35);
    let device = format(256 << 20, &rng);
    let trim = TrimOptions { batch_bytes: 64 << 20, settle: Duration::ZERO, ..TrimOptions::default() };
    let store = mount_on(device.clone(), trim, &rng);
    let thread = TrimThread::start(Arc::clone(&store)).unwrap();
    for round in 0..12u64 {
        let contents: Vec<_> = (0..15).map(|_| noise(&rng, 1 << 20)).collect();
        for (n, data) in (10..).zip(&contents) {
            write(&store, InodeId(n), data).unwrap();
        }
        store.request_trim().unwrap();
        store.checkpoint().unwrap();
        for (n, data) in (10..).zip(&contents) {
            assert!(super::read(&store, InodeId(n)) == *data, "round {round}, inode {n} reads wrong");
        }
    }
    empty(&store, 15);
    store.checkpoint().unwrap();
    let patience = Instant::now();
    while store.trim_requested() || store.pool().trim_waiting_bytes() > 0 {
        assert!(patience.elapsed() < Duration::from_secs(60), "the thread discards by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(thread);
    assert!(store.pool().trim_status()[0].discarded_bytes > 100 << 20);
    assert_eq!(store.check(true).unwrap().problems, []);
}
