//! A small pool with a database on it, what is done to them, and what must be found afterwards.

use aegisfs_base::{ManualClock, Rng, SeededRng};
use aegisfs_kv::{OrderedKv, RedbKv, TableId};
use aegisfs_pool::{CreateOptions, Database, OnPool, OpenOptions, Opening, Pool, PoolError};
use aegisfs_sim::{SimWorld, Trace};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Slots so small that a small database has several pieces.
pub(crate) const SLOT_BYTES: u64 = 256 << 10;
const DEVICE_BYTES: u64 = 16 << 20;
const TABLE: TableId = TableId(2);
/// So small that the engine writes and reads pages during a transaction.
const CACHE_BYTES: usize = 64 << 10;

/// What the database's table holds.
pub(crate) type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// An open pool with its database.
pub(crate) struct Stage {
    pub(crate) pool: Arc<Pool>,
    pub(crate) database: Arc<Database>,
    pub(crate) kv: RedbKv,
    pub(crate) opening: Opening,
}

pub(crate) fn options() -> CreateOptions {
    CreateOptions { slot_bytes: Some(SLOT_BYTES), log_pieces: Some(4), ..CreateOptions::default() }
}

/// A world with a new pool on so many devices; its history begins when the pool is there.
pub(crate) fn create(devices: usize, seed: u64) -> (SimWorld, Stage) {
    create_on(&vec![DEVICE_BYTES; devices], seed)
}

/// The same, on devices of these sizes.
pub(crate) fn create_on(sizes: &[u64], seed: u64) -> (SimWorld, Stage) {
    let mut world = SimWorld::new();
    for (n, bytes) in sizes.iter().enumerate() {
        world.add(&format!("sim{n}"), *bytes);
    }
    let clock = ManualClock::default();
    let pool = Pool::create(world.devices(), &options(), &clock, &SeededRng::new(seed)).expect("room enough");
    let database = Arc::new(Database::new(Arc::clone(&pool), 0, 2));
    let kv = RedbKv::create(OnPool(Arc::clone(&database)), CACHE_BYTES).expect("nothing fails");
    pool.publish_new().expect("nothing fails");
    world.settle();
    (world, Stage { pool, database, kv, opening: Opening::default() })
}

/// Opens the pool of a world as a mount does: a new life, then the database.
pub(crate) fn open(world: &SimWorld, seed: u64) -> Result<Stage, String> {
    open_with(world.devices(), OpenOptions::default(), seed)
}

pub(crate) fn open_with(
    devices: Vec<Arc<dyn aegisfs_device::Device>>,
    options: OpenOptions,
    seed: u64,
) -> Result<Stage, String> {
    let (pool, opening) = Pool::open(devices, options).map_err(|e| format!("opening the pool: {e}"))?;
    if !options.read_only {
        pool.begin_incarnation(&SeededRng::new(seed)).map_err(|e| format!("beginning a life: {e}"))?;
    }
    let database = Arc::new(Database::new(Arc::clone(&pool), 0, 2));
    let backing = OnPool(Arc::clone(&database));
    let kv = if options.read_only {
        RedbKv::open_read_only(backing, CACHE_BYTES)
    } else {
        RedbKv::open(backing, CACHE_BYTES)
    };
    let kv = kv.map_err(|e| format!("opening the database: {e} ({e:?})"))?;
    Ok(Stage { pool, database, kv, opening })
}

impl Stage {
    /// Slots that hold the database, all copies counted.
    pub(crate) fn database_slots(&self) -> usize {
        let owner = aegisfs_format::map::MapOwner::Database(0);
        self.pool.mapped_slots().iter().filter(|entry| entry.owner == owner).count()
    }

    /// Everything in the table.
    pub(crate) fn contents(&self) -> Result<Contents, String> {
        let snapshot = self.kv.snapshot().map_err(|e| format!("taking a snapshot: {e}"))?;
        let mut found = Contents::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            found.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        };
        snapshot.scan(TABLE, &[], None, &mut visit).map_err(|e| format!("reading: {e}"))?;
        Ok(found)
    }

    /// Makes the table hold what `next` says, by one commit.
    pub(crate) fn commit(&self, before: &Contents, next: &Contents) -> Result<(), String> {
        self.try_commit(before, next).map_err(|e| format!("committing: {e} ({e:?})"))
    }

    fn try_commit(&self, before: &Contents, next: &Contents) -> Result<(), aegisfs_kv::KvError> {
        let mut transaction = self.kv.begin()?;
        for key in before.keys().filter(|key| !next.contains_key(*key)) {
            transaction.delete(TABLE, key)?;
        }
        for (key, value) in next.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
            transaction.put(TABLE, key, value)?;
        }
        transaction.commit()
    }

    /// Ends as an unmount does.
    pub(crate) fn close(self) -> Result<(), PoolError> {
        self.kv.close();
        self.pool.end_incarnation()
    }
}

/// A random batch of changes: `puts` keys with values up to `bytes_max`, `deletes` in hundred of those there are.
pub(crate) fn change(
    contents: &Contents,
    rng: &SeededRng,
    puts: u64,
    bytes_max: u64,
    deletes: u64,
) -> Contents {
    let mut next = contents.clone();
    next.retain(|_, _| rng.below(100) >= deletes);
    for _ in 0..puts {
        let key = format!("key {:05}", rng.below(400)).into_bytes();
        let mut value = vec![0; rng.below(bytes_max) as usize];
        rng.fill(&mut value);
        next.insert(key, value);
    }
    next
}

/// Commits that grow the database over several pieces and let it shrink again.
pub(crate) fn growing_and_shrinking(seed: u64) -> Vec<Contents> {
    let rng = SeededRng::new(seed);
    let mut states = vec![Contents::new()];
    for (puts, bytes_max, deletes) in [
        (4, 500, 0),
        (10, 9000, 0),
        (60, 9000, 0),
        (3, 200, 0),
        (200, 4000, 10),
        (5, 3000, 95),
        (2, 100, 50),
        (20, 5000, 0),
    ] {
        let next = change(states.last().expect("never empty"), &rng, puts, bytes_max, deletes);
        states.push(next);
    }
    states
}

/// Commits one state after the other and promises each: the mark is its place in the list.
pub(crate) fn commit_all(world: &SimWorld, stage: &Stage, states: &[Contents]) -> Result<(), String> {
    world.mark(0);
    for n in 1..states.len() {
        stage.commit(&states[n - 1], &states[n])?;
        world.mark(n as u64);
    }
    Ok(())
}

/// Whether what was found is the last promised state or the one that was on its way.
pub(crate) fn check(states: &[Contents], promised: Option<u64>, found: &Contents) -> Result<(), String> {
    let promised = usize::try_from(promised.unwrap_or(0)).expect("small");
    let allowed = &states[promised..states.len().min(promised + 2)];
    if allowed.contains(found) {
        return Ok(());
    }
    let matching = states.iter().position(|state| state == found);
    Err(format!("commit {promised} was promised; found {matching:?}, {} keys", found.len()))
}

/// A whole history on new devices: its trace and the states that it promised.
pub(crate) fn history(devices: usize, seed: u64) -> (Trace, Vec<Contents>) {
    let (world, stage) = create(devices, seed);
    let states = growing_and_shrinking(seed);
    commit_all(&world, &stage, &states).expect("nothing fails");
    drop(stage);
    (world.trace(), states)
}
