//! Power is cut at every call to the storage. After each cut the database opens at the last commit
//! or at the one that was under way, and reads nothing that was in flight.
//!
//! Pages that were written after the last flush do not merely hold old or torn bytes here: reading
//! them fails, as it does in a pool, where such a page does not match its checksum. Opening must
//! not need any of them. Only the first page, which is rewritten in place, stays readable.

use aegisfs_base::{Rng, SeededRng};
use aegisfs_kv::{Backing, KvError, OrderedKv, RedbKv, TableId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

const TABLE: TableId = TableId(3);
const PAGE: u64 = 4096;
/// So small that dirty pages are written long before the commit.
const CACHE_BYTES: usize = 48 << 10;

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
    /// Pages that a crash left neither old nor new.
    unreadable: BTreeSet<u64>,
    /// Pages that hold something the engine wrote.
    written: BTreeSet<u64>,
    calls: u64,
    calls_max: u64,
}

/// Storage that loses what was not flushed.
#[derive(Clone, Debug, Default)]
struct Fragile(Arc<Mutex<State>>);

impl Fragile {
    fn with_limit(self, calls_max: u64) -> Self {
        {
            let mut state = self.0.lock().expect("no holder panics");
            state.calls = 0;
            state.calls_max = calls_max;
        }
        self
    }

    fn step(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().expect("no holder panics");
        state.calls += 1;
        if state.calls > state.calls_max { Err(io::Error::other("power is off")) } else { Ok(state) }
    }

    fn calls(&self) -> u64 {
        self.0.lock().expect("no holder panics").calls
    }

    /// What a reboot finds.
    fn after_power_loss(&self, rng: &SeededRng) -> Self {
        let old = self.0.lock().expect("no holder panics");
        let mut image = old.durable.clone();
        let mut unreadable = old.unreadable.clone();
        for pending in &old.pending {
            match pending {
                Pending::SetLen(len) if rng.below(2) == 0 => image.resize(*len as usize, 0),
                Pending::SetLen(_) => {}
                Pending::Write(0, data) => {
                    if rng.below(2) == 0 {
                        image[..data.len()].copy_from_slice(data);
                    }
                }
                Pending::Write(at, data) => {
                    unreadable.extend(at / PAGE..(at + data.len() as u64) / PAGE);
                }
            }
        }
        let pages = image.len() as u64 / PAGE;
        unreadable.retain(|page| *page < pages);
        let written = old.written.clone();
        Self(Arc::new(Mutex::new(State {
            durable: image.clone(),
            current: image,
            unreadable,
            written,
            ..State::default()
        })))
        .with_limit(u64::MAX)
    }
}

impl Backing for Fragile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.step()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.step()?;
        let end = offset + out.len() as u64;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            assert!(state.written.contains(&page), "page {page} is read but was never written");
            if state.unreadable.contains(&page) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("page {page} was in flight")));
            }
        }
        out.copy_from_slice(&state.current[offset as usize..end as usize]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.step()?;
        state.current.resize(len as usize, 0);
        state.pending.push(Pending::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.step()?;
        state.durable = state.current.clone();
        state.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.step()?;
        let end = offset + data.len() as u64;
        state.current[offset as usize..end as usize].copy_from_slice(data);
        for page in offset / PAGE..end.div_ceil(PAGE) {
            state.unreadable.remove(&page);
            state.written.insert(page);
        }
        state.pending.push(Pending::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// Commits random changes until the power fails; keeps the states that a reboot may show.
fn work(kv: &RedbKv, rng: &SeededRng, commits: u64, state: &mut Contents) -> Result<(), (KvError, Contents)> {
    for _ in 0..commits {
        let mut next = state.clone();
        let outcome = one_commit(kv, rng, &mut next);
        match outcome {
            Ok(()) => *state = next,
            Err(error) => return Err((error, next)),
        }
    }
    Ok(())
}

fn one_commit(kv: &RedbKv, rng: &SeededRng, state: &mut Contents) -> Result<(), KvError> {
    let mut changes = Contents::new();
    for _ in 0..10 + rng.below(60) {
        let len = if rng.below(20) == 0 { 9000 } else { rng.below(300) };
        changes.insert(vec![1, rng.below(120) as u8], vec![rng.below(256) as u8; len as usize]);
    }
    let deleted: Vec<Vec<u8>> = (0..rng.below(20)).map(|_| vec![1, rng.below(120) as u8]).collect();
    // The state after the commit is known before the commit is tried.
    for (key, value) in &changes {
        state.insert(key.clone(), value.clone());
    }
    for key in &deleted {
        state.remove(key);
    }
    if rng.below(8) == 0 {
        let mut aborted = kv.begin()?;
        for number in 0..400_u32 {
            aborted.put(TABLE, &number.to_be_bytes(), &[9; 200])?;
        }
    }
    let mut transaction = kv.begin()?;
    for (key, value) in &changes {
        transaction.put(TABLE, key, value)?;
    }
    for key in &deleted {
        transaction.delete(TABLE, key)?;
    }
    transaction.commit()
}

fn contents(kv: &RedbKv) -> Contents {
    let mut found = Contents::new();
    kv.snapshot()
        .expect("snapshot")
        .scan(TABLE, &[], None, &mut |key, value| {
            found.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .expect("everything committed is readable");
    found
}

fn created() -> Fragile {
    let storage = Fragile::default().with_limit(u64::MAX);
    drop(RedbKv::create(storage.clone(), CACHE_BYTES).expect("create"));
    storage
}

/// Works until the given call, cuts the power, reopens, and returns what is there.
fn cut_at(seed: u64, storage: Fragile, before: &Contents, call: u64) -> (Fragile, Contents, bool) {
    let rng = SeededRng::new(seed);
    let storage = storage.with_limit(call);
    let mut acknowledged = before.clone();
    let under_way = match RedbKv::open(storage.clone(), CACHE_BYTES) {
        Ok(kv) => {
            let outcome = work(&kv, &rng, 6, &mut acknowledged);
            if rng.below(2) == 0 {
                kv.close();
            }
            outcome.err().map(|(_, state)| state)
        }
        Err(_) => None,
    };
    let finished = storage.calls() <= call;
    let survivor = storage.after_power_loss(&SeededRng::new(seed ^ call));
    let kv = RedbKv::open(survivor.clone(), CACHE_BYTES)
        .unwrap_or_else(|error| panic!("seed {seed}, cut at call {call}: {error}"));
    let found = contents(&kv);
    assert!(
        found == acknowledged || Some(&found) == under_way.as_ref(),
        "seed {seed}, cut at call {call}: neither the last commit nor the one under way"
    );
    drop(kv);
    (survivor, found, finished)
}

#[test]
fn power_is_cut_at_every_call() {
    for call in 1.. {
        let (_, _, finished) = cut_at(1, created(), &Contents::new(), call);
        if finished {
            assert!(call > 100, "the history is long enough to mean something");
            break;
        }
    }
}

#[test]
fn power_is_cut_again_and_again() {
    for seed in 0..60 {
        let rng = SeededRng::new(seed);
        let (mut storage, mut state) = (created(), Contents::new());
        for round in 0..8 {
            (storage, state, _) = cut_at(seed * 100 + round, storage, &state, 1 + rng.below(300));
        }
        let mut kv = RedbKv::open(storage, CACHE_BYTES).expect("open");
        assert!(kv.check().expect("check"), "seed {seed}");
        assert_eq!(contents(&kv), state);
    }
}
