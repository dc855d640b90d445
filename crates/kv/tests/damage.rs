//! Whatever bytes the storage returns, opening, checking and reading answer with an error or with
//! data, never with a panic. Writing does so too as long as only the first page is damaged; other
//! damaged pages must not reach the engine at all, because on them a commit can abort the process
//! (it asserts in a destructor while it unwinds). A pool verifies every page but the first.

use aegisfs_base::{FaultKind, Rng, SeededRng};
use aegisfs_kv::{Backing, KvError, MemoryBacking, OrderedKv, RedbKv, TABLES_MAX, TableId};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CACHE_BYTES: usize = 1 << 20;
const ROUNDS: usize = 800;

fn sample() -> Vec<u8> {
    let backing = MemoryBacking::new();
    let kv = RedbKv::create(backing.clone(), CACHE_BYTES).expect("create");
    for round in 0..4_u64 {
        let mut transaction = kv.begin().expect("begin");
        for number in 0..300_u64 {
            transaction
                .put(TableId(2), &(number * (round + 1)).to_be_bytes(), &[round as u8; 90])
                .expect("put");
        }
        transaction.commit().expect("commit");
    }
    // Closing cuts off the free end; opening and dropping leaves it as a crash would.
    kv.close();
    drop(RedbKv::open(backing.clone(), CACHE_BYTES).expect("open"));
    backing.to_bytes()
}

/// Opens, checks and reads everything; any of it may fail.
fn read_it(bytes: Vec<u8>) -> Result<RedbKv, KvError> {
    let mut kv = RedbKv::open(MemoryBacking::from_bytes(bytes), CACHE_BYTES)?;
    let checked = kv.check();
    let snapshot = kv.snapshot()?;
    for table in (0..TABLES_MAX as u8).map(TableId) {
        snapshot.scan(table, &[], None, &mut |_, _| ControlFlow::Continue(()))?;
        snapshot.last(table, &[], None)?;
        snapshot.get(table, &7_u64.to_be_bytes())?;
        snapshot.usage(table)?;
    }
    checked.map(|_| kv)
}

/// Reads, then writes, checks again and closes.
fn use_it(bytes: Vec<u8>) -> Result<(), KvError> {
    let mut kv = read_it(bytes)?;
    let mut transaction = kv.begin()?;
    for number in 0..40_u64 {
        transaction.put(TableId(2), &(number * 31).to_be_bytes(), &[5; 40])?;
    }
    transaction.commit()?;
    kv.check()?;
    kv.close();
    Ok(())
}

fn damage(bytes: &mut [u8], rng: &SeededRng) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(3) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.below(256) as u8,
            _ => {
                let end = (at + 1 + rng.below(200) as usize).min(bytes.len());
                rng.fill(&mut bytes[at..end]);
            }
        }
    }
}

#[test]
fn a_damaged_header_is_an_error_or_harmless() {
    let sample = sample();
    use_it(sample.clone()).expect("an undamaged database works");
    let rng = SeededRng::new(11);
    let errors = (0..ROUNDS).filter(|_| {
        let mut bytes = sample.clone();
        damage(&mut bytes[..320], &rng);
        use_it(bytes).is_err()
    });
    assert!(errors.count() > ROUNDS / 3, "most damage is noticed");
}

#[test]
fn damaged_pages_are_an_error_to_readers() {
    let sample = sample();
    let rng = SeededRng::new(12);
    let errors = (0..ROUNDS).filter(|_| {
        let mut bytes = sample.clone();
        damage(&mut bytes[4096..], &rng);
        read_it(bytes).is_err()
    });
    assert!(errors.count() > ROUNDS / 10, "damage outside of free pages is noticed");
}

#[test]
fn storage_of_any_length_is_an_error_or_harmless() {
    let sample = sample();
    for len in [1, 8, 9, 319, 320, 4095, 4096, 8192, 8193, sample.len() - 4096, sample.len() - 1] {
        let error = use_it(sample[..len].to_vec()).expect_err("cut short");
        assert!(matches!(error.kind(), FaultKind::Corrupt | FaultKind::Unavailable), "{len}: {error}");
    }
    let mut longer = sample.clone();
    longer.extend([0; 5 * 4096]);
    use_it(longer).expect("a length that was set but not used yet is fine");
    assert!(use_it(vec![0xa5; 1 << 20]).is_err());
    assert_eq!(use_it(Vec::new()).expect_err("nothing there").kind(), FaultKind::Invalid);
    let occupied = RedbKv::create(MemoryBacking::from_bytes(sample), CACHE_BYTES);
    assert_eq!(occupied.err().map(|error| error.kind()), Some(FaultKind::Invalid));
}

/// Fails when told to.
#[derive(Clone, Debug, Default)]
struct Failing {
    inner: MemoryBacking,
    fails: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl Failing {
    fn check(&self) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) { Err(io::Error::other("unplugged")) } else { Ok(()) }
    }
}

impl Backing for Failing {
    fn len(&self) -> io::Result<u64> {
        self.check()?;
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        if self.full.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.inner.write(offset, data)
    }
}

#[test]
fn after_a_failure_the_handle_stops_until_it_is_reopened() {
    let storage = Failing::default();
    let kv = RedbKv::create(storage.clone(), CACHE_BYTES).expect("create");
    let put = |kv: &RedbKv, count: u64| {
        let mut transaction = kv.begin()?;
        for number in 0..count {
            transaction.put(TableId(0), &number.to_be_bytes(), &[1; 500])?;
        }
        transaction.commit()
    };
    put(&kv, 10).expect("commit");
    let held = kv.snapshot().expect("snapshot");
    storage.fails.store(true, Ordering::Relaxed);
    assert_eq!(put(&kv, 20).expect_err("unplugged").kind(), FaultKind::Unavailable);
    storage.fails.store(false, Ordering::Relaxed);
    assert_eq!(put(&kv, 20).expect_err("still stopped").kind(), FaultKind::Poisoned);
    // What is in memory is still read; what is not is refused.
    assert!(held.get(TableId(0), &[0; 8]).is_ok_and(|value| value.is_some()));
    let calls = storage.calls.load(Ordering::Relaxed);
    drop((held, kv));
    assert_eq!(storage.calls.load(Ordering::Relaxed), calls, "dropping does not touch the storage");

    let kv = RedbKv::open(storage.clone(), CACHE_BYTES).expect("open");
    assert_eq!(kv.snapshot().expect("snapshot").count(TableId(0)).expect("count"), 10);
    storage.full.store(true, Ordering::Relaxed);
    assert_eq!(put(&kv, 20_000).expect_err("no room to grow").kind(), FaultKind::NoSpace);
    drop(kv);
    let kv = RedbKv::open(storage, CACHE_BYTES).expect("open");
    assert_eq!(kv.snapshot().expect("snapshot").count(TableId(0)).expect("count"), 10);
    put(&kv, 20).expect("a commit that needs no growth succeeds");
}
