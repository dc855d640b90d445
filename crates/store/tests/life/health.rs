//! Devices that hesitate, err or are given up: who reads is not kept waiting, and new data go elsewhere.

use super::{noise, read, write};
use aegisfs_base::{DeviceIndex, InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{Device, DeviceError, Fault, FaultyDevice, MemoryDevice, Operation};
use aegisfs_format::superblock::Health;
use aegisfs_pool::{CreateOptions, MemberState, OpenOptions, Pool, Redundancy};
use aegisfs_store::{Store, StoreOptions, create, open};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Takes its time for each read, and fails as planned.
struct Slow {
    inner: FaultyDevice<MemoryDevice>,
    read_ms: AtomicU64,
}

impl Device for Slow {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        std::thread::sleep(Duration::from_millis(self.read_ms.load(Ordering::SeqCst)));
        self.inner.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.inner.write_at(offset, data)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.inner.discard(offset, length)
    }
    fn allocated_bytes(&self) -> Option<u64> {
        self.inner.allocated_bytes()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn read_only(&self) -> bool {
        false
    }
}

fn format(count: usize, redundancy: (u8, u8), rng: &dyn Rng) -> Vec<Arc<Slow>> {
    format_in(count, redundancy, &[], rng)
}

/// The same with failure domains.
fn format_in(count: usize, redundancy: (u8, u8), domains: &[&str], rng: &dyn Rng) -> Vec<Arc<Slow>> {
    let device = |n: usize| {
        let inner = FaultyDevice::new(MemoryDevice::new(format!("device {n}"), 128 << 20));
        Arc::new(Slow { inner, read_ms: AtomicU64::new(0) })
    };
    let devices: Vec<_> = (0..count).map(device).collect();
    let options = CreateOptions {
        redundancy: Some(Redundancy { shards_data: redundancy.0, shards_parity: redundancy.1 }),
        failure_domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        slot_bytes: Some(1 << 20),
        log_pieces: Some(4),
        ..CreateOptions::default()
    };
    let pool = Pool::create(dynamic(&devices), &options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    devices
}

fn dynamic(devices: &[Arc<Slow>]) -> Vec<Arc<dyn Device>> {
    devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
}

fn mount(devices: &[Arc<Slow>], rng: &dyn Rng) -> Store {
    let (pool, _) = Pool::open(dynamic(devices), OpenOptions::default()).unwrap();
    // So small that everything is read from the devices.
    let options = StoreOptions { chunk_cache_bytes: 1 << 20, workers: 0, ..super::options() };
    open(pool, &options, Arc::new(ManualClock::default()), rng).unwrap().0
}

fn fill(store: &Store, first: u64, rng: &dyn Rng) -> Vec<(InodeId, Vec<u8>)> {
    let contents: Vec<_> = (first..first + 8).map(|id| (InodeId(id), noise(rng, 3_000_000))).collect();
    for (id, data) in &contents {
        write(store, *id, data).unwrap();
    }
    store.sync().unwrap();
    contents
}

/// How often each device has a part in segments that were made since one.
fn parts(store: &Store, devices: usize) -> Vec<usize> {
    let mut parts = vec![0; devices];
    store
        .each_segment(&mut |_, segment| {
            segment.placements.iter().for_each(|place| parts[usize::from(place.0.0)] += 1);
            ControlFlow::Continue(())
        })
        .unwrap();
    parts
}

#[test]
fn nobody_waits_for_a_device_that_hesitates() {
    for redundancy in [(1, 1), (3, 2)] {
        let rng = SeededRng::new(91);
        let count = usize::from(redundancy.0 + redundancy.1);
        let devices = format(count, redundancy, &rng);
        let store = mount(&devices, &rng);
        let contents = fill(&store, 10, &rng);
        for (id, data) in &contents {
            assert!(read(&store, *id) == *data);
        }
        let slow = 400;
        devices[0].read_ms.store(slow, Ordering::SeqCst);
        let reads = || store.counters().device_reads.load(Ordering::Relaxed);
        let (before, begun) = (reads(), Instant::now());
        for (id, data) in &contents {
            assert!(read(&store, *id) == *data, "inode {id} reads wrong");
        }
        let (took, asked) = (begun.elapsed(), reads() - before);
        // Each read of a chunk would have taken that long otherwise; by a few that were under way it is found out.
        let patient = Duration::from_millis(slow * asked / count as u64);
        assert!(
            took < patient / 4,
            "{redundancy:?}: {took:?} for {asked} reads, {patient:?} if everybody waited"
        );
        let report = &store.pool().device_reports()[0];
        assert!(report.counts.failed == 0 && report.counts.damaged == 0, "{report:?}");
        assert_eq!(store.pool().member_states()[0], MemberState::In, "that is no failure");
        // What nobody else has is waited for.
        devices[0].read_ms.store(20, Ordering::SeqCst);
        for device in 1..=usize::from(redundancy.1) {
            store.pool().leave_out(DeviceIndex(device as u16)).unwrap();
        }
        assert!(read(&store, contents[0].0) == contents[0].1);
    }
}

/// Cells on different devices are read at the same time: a reader waits about as long as for one of them.
#[test]
fn cells_are_read_side_by_side() {
    for (redundancy, count) in [((4, 2), 6), ((1, 1), 2)] {
        let rng = SeededRng::new(95);
        let devices = format(count, redundancy, &rng);
        let store = mount(&devices, &rng);
        let contents = fill(&store, 10, &rng);
        let took = |n: usize| {
            let chunks: Vec<_> =
                super::references_of(&store, contents[n].0).iter().map(|(_, r)| r.chunk).collect();
            let reads = || store.counters().device_reads.load(Ordering::Relaxed);
            let (before, begun) = (reads(), Instant::now());
            store.prefetch(&chunks).unwrap();
            (begun.elapsed(), reads() - before)
        };
        let slow = 40;
        devices.iter().for_each(|device| device.read_ms.store(slow, Ordering::SeqCst));
        // The first ones find out that it takes long.
        for n in 0..6 {
            took(n);
        }
        // A busy machine may be slower at any time.
        let (time, asked) = (6..8).map(&took).min().unwrap();
        let one_by_one = Duration::from_millis(slow * asked);
        let devices_asked = u32::from(if redundancy.0 == 1 { 2_u8 } else { redundancy.0 });
        assert!(asked >= 4, "{asked} reads are too few to tell");
        assert!(
            time < one_by_one / devices_asked + Duration::from_millis(slow * 3 / 2),
            "{redundancy:?}: {time:?} for {asked} reads on {devices_asked} devices"
        );
        assert!(read(&store, contents[6].0) == contents[6].1);
    }
}

#[test]
fn calls_that_fail_now_and_then_are_nobodys_trouble() {
    let rng = SeededRng::new(92);
    let devices = format(1, (1, 0), &rng);
    let store = mount(&devices, &rng);
    for n in 0..15 {
        devices[0].inner.plan(Fault::once(Operation::Write, 5 * n));
        devices[0].inner.plan(Fault::once(Operation::Read, 3 * n));
    }
    let contents = fill(&store, 10, &rng);
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data);
    }
    assert_eq!(store.read_only_reason(), None);
    let counts = store.pool().device_reports()[0].counts;
    assert!(counts.retried > 15 && counts.failed == 0, "{counts:?}");
    let changes = store.pool().settle_health().unwrap();
    assert_eq!(changes[0].after, Health::Degraded, "somebody should know of it");
    // It is the only one, and goes on being written to.
    fill(&store, 30, &rng);
    store.close().unwrap();
}

#[test]
fn new_data_go_to_those_that_are_trusted() {
    let rng = SeededRng::new(93);
    let devices = format(6, (4, 2), &rng);
    let store = mount(&devices, &rng);
    let mut contents = fill(&store, 10, &rng);
    for health in [Health::Degraded, Health::Suspect, Health::Draining] {
        store.pool().set_health(DeviceIndex(2), health).unwrap();
        let before = parts(&store, 6);
        contents.extend(fill(&store, 20 + 10 * health as u64, &rng));
        let after = parts(&store, 6);
        assert_eq!(after[2], before[2], "{health:?}: an open segment is left as well");
        assert!(after.iter().zip(&before).enumerate().all(|(n, (after, before))| n == 2 || after > before));
    }
    // Given up, it lacks what comes now, and is brought up to date when it is trusted again.
    store.pool().set_health(DeviceIndex(2), Health::Failed).unwrap();
    contents.extend(fill(&store, 70, &rng));
    assert_eq!(store.bring_back(&|| true).unwrap(), []);
    store.pool().set_health(DeviceIndex(2), Health::Healthy).unwrap();
    assert_eq!(store.bring_back(&|| true).unwrap().len(), 1);
    assert_eq!(store.pool().member_states()[2], MemberState::In);
    contents.extend(fill(&store, 80, &rng));
    store.note_device_counts(true).unwrap();
    let counts = store.device_counts().unwrap();
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    let again = store.device_counts().unwrap();
    assert!(counts.iter().zip(&again).all(|(then, now)| now.writes >= then.writes && then.writes > 0));
    store.pool().leave_out(DeviceIndex(0)).unwrap();
    store.pool().leave_out(DeviceIndex(5)).unwrap();
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data, "inode {id} reads wrong");
    }
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// A device that failed under the store, and answers again.
#[test]
fn who_answers_again_comes_back_while_others_write() {
    let rng = SeededRng::new(94);
    let devices = format(2, (1, 1), &rng);
    let store = Arc::new(mount(&devices, &rng));
    let mut contents = fill(&store, 10, &rng);
    devices[1].inner.kill();
    contents.extend(fill(&store, 20, &rng));
    assert_eq!(store.pool().member_states()[1], MemberState::Out);
    let returner = aegisfs_store::ReturnThread::start(Arc::clone(&store)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(store.pool().member_states()[1], MemberState::Out, "it is still away");
    devices[1].inner.revive();
    let begun = Instant::now();
    while store.pool().member_states()[1] != MemberState::In {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come back");
        let (id, data) = (InodeId(100 + contents.len() as u64), noise(&rng, 20_000));
        write(&store, id, &data).unwrap();
        contents.push((id, data));
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(returner);
    store.sync().unwrap();
    store.pool().leave_out(DeviceIndex(0)).unwrap();
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data, "inode {id} reads wrong");
    }
}

/// Devices 0 and 1 fail together, and 2 and 3.
fn assert_apart(store: &Store, when: &str) {
    let mut pieces = std::collections::BTreeMap::<_, Vec<u16>>::new();
    for entry in store.pool().mapped_slots() {
        let owner = format!("{:?} {}", entry.owner, entry.piece);
        pieces.entry(owner).or_default().push(entry.device.0 / 2);
    }
    store
        .each_segment(&mut |id, segment| {
            let domains = segment.placements.iter().map(|place| place.0.0 / 2).collect();
            pieces.insert(format!("segment {id}"), domains);
            ControlFlow::Continue(())
        })
        .unwrap();
    // The dedup index has one copy: it can be made anew.
    for (name, mut domains) in pieces.into_iter().filter(|(_, domains)| domains.len() > 1) {
        domains.sort_unstable();
        assert_eq!(domains, [0, 1], "{when}: {name} has both copies where they fail together");
    }
}

#[test]
fn copies_stay_in_different_failure_domains() {
    let rng = SeededRng::new(95);
    let devices = format_in(4, (1, 1), &["a", "a", "b", "b"], &rng);
    let store = mount(&devices, &rng);
    let mut contents = fill(&store, 10, &rng);
    store.checkpoint().unwrap();
    assert_apart(&store, "at first");
    for (round, device) in [2, 0, 3].into_iter().enumerate() {
        let device = DeviceIndex(device);
        store.pool().set_health(device, Health::Failed).unwrap();
        contents.extend(fill(&store, 30 + 20 * round as u64, &rng));
        store.bring_back(&|| true).unwrap();
        assert_apart(&store, &format!("without device {device}"));
        store.pool().set_health(device, Health::Healthy).unwrap();
        assert_eq!(store.bring_back(&|| true).unwrap().len(), 1);
        assert_apart(&store, &format!("with device {device} again"));
    }
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data, "inode {id} reads wrong");
    }
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// With a whole domain away two copies in the other are better than one; they part when it is back.
#[test]
fn copies_part_when_their_failure_domain_is_back() {
    let rng = SeededRng::new(96);
    let devices = format_in(4, (1, 2), &["a", "a", "b", "b"], &rng);
    let store = mount(&devices, &rng);
    let mut contents = fill(&store, 10, &rng);
    for device in [2, 3] {
        store.pool().set_health(DeviceIndex(device), Health::Failed).unwrap();
    }
    contents.extend(fill(&store, 30, &rng));
    store.bring_back(&|| true).unwrap();
    for device in [2, 3] {
        store.pool().set_health(DeviceIndex(device), Health::Healthy).unwrap();
    }
    assert_eq!(store.bring_back(&|| true).unwrap().len(), 2);
    // Three copies, of which two may be lost: not all of them on one side.
    store
        .each_segment(&mut |id, segment| {
            let first = segment.placements.iter().filter(|place| place.0.0 < 2).count();
            assert!(segment.placements.len() == 3 && (1..3).contains(&first), "segment {id}: {segment:?}");
            ControlFlow::Continue(())
        })
        .unwrap();
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data, "inode {id} reads wrong");
    }
}

/// Who was given up is not taken back by whoever was about to.
#[test]
fn who_is_given_up_stays_out() {
    let rng = SeededRng::new(97);
    let devices = format(3, (1, 2), &rng);
    let store = mount(&devices, &rng);
    fill(&store, 10, &rng);
    let pool = store.pool();
    pool.leave_out(DeviceIndex(1)).unwrap();
    pool.leave_out(DeviceIndex(2)).unwrap();
    let said = std::sync::atomic::AtomicBool::new(false);
    let done = store.bring_back(&|| {
        if !said.swap(true, Ordering::SeqCst) {
            pool.set_health(DeviceIndex(2), Health::Failed).unwrap();
        }
        true
    });
    assert!(done.is_err(), "one of them could not come back");
    assert_eq!(pool.member_states()[1..], [MemberState::In, MemberState::Out]);
    assert_eq!(pool.health(DeviceIndex(2)), Health::Failed);
}
