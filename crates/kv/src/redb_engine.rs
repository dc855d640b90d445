//! The redb engine, and what it asks of the storage below.
//!
//! Everything here was read in the source of redb 4.4.0 and is asserted by `tests/backing_facts.rs`
//! and `tests/crash.rs`. redb is pinned; an update has to turn these green again.
//!
//! **In place.** Only bytes 0 to 319 are ever rewritten in place: one write of 320 bytes at offset 0
//! with flags, region counts and both commit slots. Byte 9 holds the flags: 1 = slot 1 is the root,
//! 2 = not closed cleanly, 4 = two-phase. A slot (128 bytes, at 64 and 192) carries its own checksum
//! in its last 16 bytes and its transaction id at 104; the first 64 bytes carry none, and a rotten
//! flag would show an older root whose pages were reused since. A flush stands between any two writes
//! of the header, so storage can keep it in two places in turn, with a checksum of its own. There are
//! no region headers; the allocator state is a table like any other.
//!
//! **Accesses.** Everything else is a page of 4096 << order bytes at a multiple of 4096, so a large
//! page may cross a slot's edge. Reads at 0 are 9 or 320 bytes (opening read-only: the whole page).
//! No page is read that was not written since the file was made or grown.
//!
//! **Copy on write.** A page that the last durable root reaches is not written before the next root
//! is durable. Pages that it does not reach are written at any time: during a transaction when dirty
//! pages exceed half of the cache, and by readers too; they are read back, and written again, before
//! the next flush. So a page in flight at a crash is one that nothing durable refers to.
//!
//! **Order.** Commit: pages and header in any order, flush, header, flush, then `set_len` if it
//! shrinks. Create: `set_len`, header, flush, header, flush, header, flush. Open: after a crash header,
//! flush, header, flush; after closing header, flush. Close: a commit, flush, header, flush.
//!
//! **Length.** Grows inside a transaction by `set_len` and a flush: doubles up to 4 GiB, then fills up
//! or adds a region of 4 GiB, so storage must be mapped when it is written, not when the length is
//! set. An abort sets the old length, without a flush. A commit may cut off up to half of the last
//! region, after its last flush. After a crash any multiple of 4096 from the root's own length on is
//! accepted.
//!
//! **Failure.** Any error of the storage, a read's too, stops the handle: everything that is not in
//! its cache fails until it is reopened. A commit that failed may or may not be there afterwards.
//!
//! **Damage.** Page checksums are tested by [`RedbKv::check`] only. On a damaged page redb panics;
//! `contain` turns that into an error, but a panic inside a commit can abort the process. Pages must
//! therefore be verified below. A damaged header is an error or, unnoticed, another root: never a panic.

mod gate;
mod snapshot;
mod transaction;

use crate::contain::contain;
use crate::{Backing, KvError, KvSnapshot, KvTransaction, OrderedKv, TABLES_MAX, TableId};
use gate::{Gate, Latch};
use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition, WriteTransaction};
use snapshot::RedbSnapshot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use transaction::RedbTransaction;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The names under which tables are stored, by number. Changing one is a format change.
const TABLE_NAMES: [&str; TABLES_MAX] = [
    "t00", "t01", "t02", "t03", "t04", "t05", "t06", "t07", "t08", "t09", "t10", "t11", "t12", "t13", "t14",
    "t15", "t16", "t17", "t18", "t19", "t20", "t21", "t22", "t23", "t24", "t25", "t26", "t27", "t28", "t29",
    "t30", "t31",
];

fn definition(table: TableId) -> Result<Definition, KvError> {
    Ok(Definition::new(TABLE_NAMES[table.index()?]))
}

/// A database on some [`Backing`].
///
/// Dropping it touches the storage no more, as a crash would; every commit is durable already, and
/// opening again takes milliseconds. [`close`](Self::close) gives back free space at the end as well.
pub struct RedbKv {
    // Taken by close and by drop.
    database: Option<Database>,
    latch: Latch,
    read_only: bool,
    // Whether the engine may hold a clean-up in memory that it has not made durable.
    committed: AtomicBool,
}

impl RedbKv {
    /// Makes a new database in empty storage.
    ///
    /// A crash in here leaves storage that neither `create` nor `open` accepts: whoever keeps the
    /// pointer to the storage must write it only after this returned.
    ///
    /// # Errors
    /// When the storage is not empty or fails.
    pub fn create(backing: impl Backing, cache_bytes: usize) -> Result<Self, KvError> {
        match backing.len() {
            Ok(0) => {}
            Ok(bytes) => return Err(KvError::Occupied { bytes }),
            Err(source) => return Err(KvError::Backing { during: "creating a database", source }),
        }
        let (gate, latch) = Gate::new(backing);
        Self::start(gate, latch, cache_bytes, false)
    }

    /// Opens the database at its last commit. Writes the first page.
    ///
    /// # Errors
    /// When there is no database, or it is damaged, or the storage fails.
    pub fn open(backing: impl Backing, cache_bytes: usize) -> Result<Self, KvError> {
        check_not_empty(&backing)?;
        let (gate, latch) = Gate::new(backing);
        Self::start(gate, latch, cache_bytes, false)
    }

    /// Opens the database at its last commit and never writes to the storage.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_read_only(backing: impl Backing, cache_bytes: usize) -> Result<Self, KvError> {
        check_not_empty(&backing)?;
        let (gate, latch) = Gate::read_only(backing)
            .map_err(|source| KvError::Backing { during: "opening a database", source })?;
        Self::start(gate, latch, cache_bytes, true)
    }

    fn start(
        gate: Gate<impl Backing>,
        latch: Latch,
        cache_bytes: usize,
        read_only: bool,
    ) -> Result<Self, KvError> {
        // redb calls a missing database one to be created, which is why emptiness was tested first.
        let database = contain("opening a database", || {
            Builder::new()
                .set_cache_size(cache_bytes)
                .create_with_backend(gate)
                .map_err(|error| KvError::from_engine("opening a database", error))
        })?;
        Ok(Self { database: Some(database), latch, read_only, committed: AtomicBool::new(false) })
    }

    /// Walks every page and every checksum of the last commit, and counts what is allocated.
    ///
    /// `false` means that the accounting of free pages was wrong and was repaired.
    ///
    /// # Errors
    /// [`KvError::Busy`] while a snapshot is held; damage that cannot be repaired. After damage the
    /// handle takes no more writes until it is reopened.
    pub fn check(&mut self) -> Result<bool, KvError> {
        // After a commit the engine has a clean-up pending, which it would now make durable by a
        // one-phase commit; after a crash in that, opening reads pages that were in flight. An
        // empty commit of ours leaves no clean-up pending.
        if self.committed.swap(false, Ordering::AcqRel) {
            self.commit_nothing()?;
        }
        let Some(database) = &mut self.database else { return Err(KvError::Closed { during: "checking" }) };
        let clean = contain("checking the database", || {
            database.check_integrity().map_err(|error| KvError::from_engine("checking the database", error))
        })?;
        if !clean {
            // A repair records no allocator state; the next open would have to rebuild it.
            self.commit_nothing()?;
        }
        Ok(clean)
    }

    /// Gives free space at the end of the storage back and marks the database as closed.
    ///
    /// A failure here loses nothing: every commit was durable already.
    pub fn close(mut self) {
        if !self.read_only {
            self.drop_database();
        }
    }

    fn commit_nothing(&self) -> Result<(), KvError> {
        let transaction = self.begin_engine()?;
        contain("committing", || {
            transaction.commit().map_err(|error| KvError::from_engine("committing", error))
        })
    }

    fn database(&self) -> Result<&Database, KvError> {
        self.database.as_ref().ok_or(KvError::Closed { during: "using the database" })
    }

    /// Every commit is two-phase and saves the allocator state: the root is flipped only after what
    /// it refers to is durable, and opening after a crash rebuilds nothing.
    fn begin_engine(&self) -> Result<WriteTransaction, KvError> {
        const DURING: &str = "starting a transaction";
        let database = self.database()?;
        contain(DURING, || {
            let mut transaction =
                database.begin_write().map_err(|error| KvError::from_engine(DURING, error))?;
            transaction
                .set_durability(Durability::Immediate)
                .map_err(|error| KvError::from_engine(DURING, error))?;
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            Ok(transaction)
        })
    }

    fn drop_database(&mut self) {
        let database = self.database.take();
        let _ = contain("closing the database", || {
            drop(database);
            Ok(())
        });
    }
}

impl OrderedKv for RedbKv {
    fn snapshot(&self) -> Result<Arc<dyn KvSnapshot>, KvError> {
        let database = self.database()?;
        let transaction = contain("taking a snapshot", || {
            database.begin_read().map_err(|error| KvError::from_engine("taking a snapshot", error))
        })?;
        Ok(Arc::new(RedbSnapshot::new(transaction)))
    }

    fn begin(&self) -> Result<Box<dyn KvTransaction + '_>, KvError> {
        if self.read_only {
            return Err(KvError::ReadOnly);
        }
        self.committed.store(true, Ordering::Release);
        Ok(Box::new(RedbTransaction::new(self.begin_engine()?)))
    }
}

impl Drop for RedbKv {
    fn drop(&mut self) {
        self.latch.shut();
        // Dropped as it is, the engine would start a commit and fail at its first write. A check
        // flushes before anything else, so it notices at once that the storage is gone.
        if let Some(database) = &mut self.database {
            let _ = contain("closing the database", || Ok(database.check_integrity().is_ok()));
        }
        self.drop_database();
    }
}

fn check_not_empty(backing: &impl Backing) -> Result<(), KvError> {
    match backing.len() {
        Ok(0) => Err(KvError::Missing),
        Ok(_) => Ok(()),
        Err(source) => Err(KvError::Backing { during: "opening a database", source }),
    }
}
