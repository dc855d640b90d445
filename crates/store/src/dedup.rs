//! Finding chunks by their hash.
//!
//! The index is derived data in a database of its own, which lags behind: what is not merged yet stands in
//! memory. It names a chunk below which every living chunk is indexed; what was stored since is added after
//! opening. An entry may outlive its chunk, because every hit is compared with the chunk's descriptor and
//! checked again in the sequencer. A filter in memory answers most misses without touching the index.
//!
//! Opening reads next to nothing. Filter and missing entries are [loaded](load) afterwards, in steps; what is
//! not there yet is a miss, which costs room and nothing else. The filter is saved together with what is
//! merged, so that it is never older than the index; pages of it that have not changed are not written.
//!
//! An index that cannot be read, whenever that shows, is forgotten and made anew from the descriptors.

mod expected;
mod filter;
mod load;

use crate::StoreError;
use aegisfs_base::limits::DEDUP_FILTER_BYTES_MAX;
use aegisfs_base::{ChunkId, FaultKind, PolicyId};
use aegisfs_format::filter::FilterHead;
use aegisfs_format::{key, value};
use aegisfs_kv::{KvSnapshot, OrderedKv, TableId};
use aegisfs_pool::Database;
pub(crate) use expected::Expected;
use expected::Expecting;
use filter::Filter;
use load::Work;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Hashes by domain and prefix.
const INDEX: TableId = TableId(1);
/// The index's own state.
const STATE: TableId = TableId(2);
/// Pages of the filter, by the first prefix that they cover.
const FILTER: TableId = TableId(3);
const MARKER_KEY: &[u8] = b"indexed_below";
const FILTER_KEY: &[u8] = b"filter";
/// Entries in memory above which they are merged into the index.
const DELTA_ENTRIES_MAX: usize = 32 << 10;
/// The domain of chunks that follow a policy. Equal bytes that follow different ones are stored once for each.
fn domain(policy: PolicyId) -> u32 {
    u32::from(policy.0)
}

type Key = [u8; 20];
type Delta = BTreeMap<Key, Option<ChunkId>>;

/// A dedup database and the storage that it stands on.
pub(crate) type Stored = (Box<dyn OrderedKv>, Arc<Database>);
/// Makes an empty dedup database in place of the one there is.
pub(crate) type Renew = Box<dyn Fn() -> Result<Stored, StoreError> + Send + Sync>;

/// The dedup index.
///
/// Lock order: `work`, then `state`; `work` is held across I/O.
pub(crate) struct Dedup {
    state: RwLock<State>,
    /// Held by whoever merges, loads, or makes the index anew.
    work: Mutex<Work>,
    expected: Mutex<Expecting>,
    /// Whether there is something to load.
    loading: AtomicBool,
    /// Whether the index cannot be read any more.
    lost: AtomicBool,
    /// What the index stands on; nothing when it is in memory only.
    database: RwLock<Option<Arc<Database>>>,
}

struct State {
    /// Not yet merged; `None` for a chunk that died.
    delta: Delta,
    /// Being merged right now.
    leaving: Arc<Delta>,
    base: Arc<dyn KvSnapshot>,
    filter: Filter,
}

impl Dedup {
    /// Opens the index. What is not loaded yet is not found; without `renew` nothing is ever loaded, for a
    /// store to which nothing is written.
    pub(crate) fn open(
        kv: Box<dyn OrderedKv>,
        database: Option<Arc<Database>>,
        renew: Option<Renew>,
    ) -> Result<Self, StoreError> {
        let base = kv.snapshot()?;
        let marker = base.get(STATE, MARKER_KEY)?;
        let marker = marker.and_then(|m| m.try_into().ok()).map_or(0, u64::from_le_bytes);
        let head = base.get(STATE, FILTER_KEY)?.and_then(|head| FilterHead::decode(&head).ok());
        // One that was saved with another index is of no use.
        let saved = head.filter(|head| head.indexed_below == marker && head.pages > 0);
        let most = Filter::pages_for(u64::MAX, DEDUP_FILTER_BYTES_MAX);
        let saved = saved.map(|head| head.pages as usize).filter(|pages| *pages <= most);
        let pages = match saved {
            Some(pages) => pages,
            None => Filter::pages_for(base.count(INDEX)?, DEDUP_FILTER_BYTES_MAX),
        };
        let filter = Filter::unloaded(pages);
        let loading = renew.is_some();
        Ok(Self {
            state: RwLock::new(State { delta: Delta::new(), leaving: Arc::default(), base, filter }),
            work: Mutex::new(Work::new(kv, renew, saved.is_some(), ChunkId(marker))),
            expected: Mutex::new(Expecting::from(ChunkId(marker))),
            loading: AtomicBool::new(loading),
            lost: AtomicBool::new(false),
            database: RwLock::new(database),
        })
    }

    /// Says below which number every chunk was there, durably, when the store was opened.
    pub(crate) fn begin(&self, chunks_below: ChunkId) {
        self.expected.lock().begin(chunks_below);
        self.work.lock().durable_below = chunks_below;
    }

    /// What the index stands on.
    pub(crate) fn database(&self) -> Option<Arc<Database>> {
        self.database.read().clone()
    }

    /// A chunk that may have this hash; the caller compares it with the chunk's descriptor.
    pub(crate) fn find(&self, policy: PolicyId, hash: &[u8; 32]) -> Result<Option<ChunkId>, StoreError> {
        let key = key::dedup(domain(policy), hash);
        let base = {
            let state = self.state.read();
            if let Some(found) = state.delta.get(&key).or_else(|| state.leaving.get(&key)) {
                return Ok(*found);
            }
            if !state.filter.may_contain(&key) {
                return Ok(None);
            }
            Arc::clone(&state.base)
        };
        let stored = match base.get(INDEX, &key) {
            Ok(stored) => stored,
            // A damaged index costs room, never data.
            Err(error) => {
                self.lose(&base, &error.into());
                return Ok(None);
            }
        };
        let Some(stored) = stored else { return Ok(None) };
        let chunk = value::unwrap(&stored).ok().and_then(|chunk| chunk.first_chunk::<8>().copied());
        Ok(chunk.map(|bytes| ChunkId(u64::from_le_bytes(bytes))))
    }

    pub(crate) fn insert(&self, policy: PolicyId, hash: [u8; 32], chunk: ChunkId) {
        let key = key::dedup(domain(policy), &hash);
        let mut state = self.state.write();
        state.filter.insert(&key);
        state.delta.insert(key, Some(chunk));
    }

    /// Forgets a chunk that died, unless another one with the same hash took its place.
    pub(crate) fn remove(&self, policy: PolicyId, hash: [u8; 32], chunk: ChunkId) {
        let key = key::dedup(domain(policy), &hash);
        let mut state = self.state.write();
        let newer = state.delta.get(&key).is_some_and(|found| found.is_some_and(|f| f != chunk));
        if !newer {
            state.delta.insert(key, None);
        }
    }

    /// Says that numbers from this one on may be given to chunks, until the answer is dropped: by then those
    /// that live were inserted.
    pub(crate) fn expect(&self, from: u64) -> Expected<'_> {
        Expected::new(&self.expected, from)
    }

    /// Every chunk with a lower number was inserted or never will be. What a checkpoint covers that begins
    /// after this was asked is what the index may claim.
    pub(crate) fn marker(&self) -> ChunkId {
        self.expected.lock().marker()
    }

    /// Merges when much is in memory. Everything below the marker is durable.
    pub(crate) fn merge_if_due(&self, marker: ChunkId) -> Result<(), StoreError> {
        if self.state.read().delta.len() < DELTA_ENTRIES_MAX {
            return Ok(());
        }
        let mut work = self.work.lock();
        let merged = self.load_all_pages(&mut work).and_then(|()| self.merge(&mut work, marker));
        self.settle(merged)
    }

    /// The last merge. While the filter is not loaded it is left to the next opening.
    pub(crate) fn merge_at_end(&self, marker: ChunkId) -> Result<(), StoreError> {
        let mut work = self.work.lock();
        if work.next_page < self.state.read().filter.len() {
            return Ok(());
        }
        let merged = self.merge(&mut work, marker);
        self.settle(merged)
    }

    /// Moves what is in memory into the index, in key order, together with what has changed of the filter.
    /// All of the filter is loaded.
    fn merge(&self, work: &mut Work, marker: ChunkId) -> Result<(), StoreError> {
        if self.is_lost() {
            self.drop_delta();
            return Ok(());
        }
        // What is still to be looked at is not indexed yet.
        let marker = work.catch_up.map_or(marker, |next| next.min(marker));
        let leaving = {
            let mut state = self.state.write();
            if state.delta.is_empty() && !state.filter.is_dirty() {
                return Ok(());
            }
            state.leaving = Arc::new(std::mem::take(&mut state.delta));
            Arc::clone(&state.leaving)
        };
        self.grow(leaving.len() as u64)?;
        work.next_page = self.state.read().filter.len();
        let (dirty, pages) = {
            let mut state = self.state.write();
            (state.filter.take_dirty(), state.filter.len())
        };
        let head = FilterHead { pages: pages as u32, indexed_below: marker.0 };
        let outdated = if work.saved { Vec::new() } else { self.saved_pages()? };
        let mut transaction = work.kv.begin()?;
        for (key, chunk) in leaving.iter() {
            match chunk {
                Some(chunk) => transaction.put(INDEX, key, &value::wrap(&chunk.0.to_le_bytes()))?,
                None => transaction.delete(INDEX, key)?,
            }
        }
        transaction.put(STATE, MARKER_KEY, &marker.0.to_le_bytes())?;
        transaction.put(STATE, FILTER_KEY, &head.encode())?;
        for key in outdated {
            transaction.delete(FILTER, &key)?;
        }
        for page in dirty {
            transaction.put(FILTER, &page.start.to_be_bytes(), &page.encode())?;
        }
        transaction.commit()?;
        work.saved = true;
        let base = work.kv.snapshot()?;
        let mut state = self.state.write();
        state.base = base;
        state.leaving = Arc::default();
        Ok(())
    }

    /// Keys of filter pages that an earlier filter left.
    fn saved_pages(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let base = Arc::clone(&self.state.read().base);
        let mut keys = Vec::new();
        base.scan(FILTER, &[], None, &mut |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        Ok(keys)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The index cannot be read any more; the next step makes it anew.
    fn lose(&self, base: &Arc<dyn KvSnapshot>, error: &StoreError) {
        // Of one that was given up meanwhile nothing is expected.
        if Arc::ptr_eq(base, &self.state.read().base) {
            self.note_lost(error);
        }
    }

    /// Has the index made anew from the chunks' descriptors, since pages of it are bad.
    pub(crate) fn make_anew(&self) {
        self.note_lost(&StoreError::Inconsistent { what: "pages of the dedup index are bad".into() });
    }

    fn note_lost(&self, error: &StoreError) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "the dedup index cannot be read; what it would find is stored again");
        }
        self.loading.store(true, Ordering::Release);
    }

    /// Damage to derived data is no failure: the index is made anew.
    fn settle(&self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        let Err(error) = outcome else { return Ok(()) };
        // Once a read has failed, the database refuses everything.
        let derived = self.is_lost() || matches!(error.kind(), FaultKind::Corrupt | FaultKind::NoSpace);
        if !derived {
            return Err(error);
        }
        self.note_lost(&error);
        self.drop_delta();
        Ok(())
    }

    /// Bounds the memory while there is no index. The entries come back when it is made anew.
    fn drop_delta(&self) {
        let mut state = self.state.write();
        state.leaving = Arc::default();
        if state.delta.len() >= DELTA_ENTRIES_MAX {
            state.delta = Delta::new();
        }
    }
}

#[cfg(test)]
mod tests;
