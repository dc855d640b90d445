//! Finding chunks by their hash.
//!
//! The index is derived data in a database of its own, which lags behind: what is not merged yet stands in
//! memory. It names a chunk below which every living chunk is indexed; opening adds what was stored since.
//! An entry may outlive its chunk, because every hit is compared with the chunk's descriptor and checked
//! again in the sequencer. A filter in memory answers most misses without touching the index.

mod filter;

use crate::StoreError;
use crate::store::Ids;
use crate::tables::Tables;
use aegisfs_base::{ChunkId, FaultKind};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value;
use aegisfs_kv::{KvSnapshot, OrderedKv, TableId};
use filter::Filter;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Hashes by domain and prefix.
const INDEX: TableId = TableId(1);
/// The index's own state.
const STATE: TableId = TableId(2);
const MARKER_KEY: &[u8] = b"indexed_below";
/// Entries in memory above which they are merged into the index.
const DELTA_ENTRIES_MAX: usize = 32 << 10;
/// The only dedup domain so far: one policy class, not sealed.
const DOMAIN: u32 = 0;

type Key = [u8; 20];

/// The dedup index.
pub(crate) struct Dedup {
    kv: Box<dyn OrderedKv>,
    state: RwLock<State>,
    /// Held while the memory is merged into the index.
    merging: Mutex<()>,
}

struct State {
    /// Not yet merged; `None` for a chunk that died.
    delta: BTreeMap<Key, Option<ChunkId>>,
    /// Being merged right now.
    leaving: Arc<BTreeMap<Key, Option<ChunkId>>>,
    base: Arc<dyn KvSnapshot>,
    filter: Filter,
}

impl Dedup {
    /// Opens the index and adds the chunks stored since it was last merged.
    pub(crate) fn open(kv: Box<dyn OrderedKv>, metadata: &dyn Tables) -> Result<Self, StoreError> {
        let base = kv.snapshot()?;
        let indexed = base.count(INDEX)?;
        let mut filter = Filter::for_entries(indexed);
        base.scan(INDEX, &[], None, &mut |key, _| {
            filter.insert(key);
            ControlFlow::Continue(())
        })?;
        let marker = base.get(STATE, MARKER_KEY)?;
        let marker = marker.and_then(|m| m.try_into().ok()).map_or(0, u64::from_le_bytes);
        let mut delta = BTreeMap::new();
        metadata.scan(Table::Chunks, &key::chunk(ChunkId(marker)), None, &mut |chunk, stored| {
            if let (Some(chunk), Ok(Some(found))) = (chunk.first_chunk(), Descriptor::decode(stored)) {
                let key = key::dedup(DOMAIN, &found.hash);
                filter.insert(&key);
                delta.insert(key, Some(ChunkId(u64::from_be_bytes(*chunk))));
            }
            ControlFlow::Continue(())
        })?;
        let state = State { delta, leaving: Arc::default(), base, filter };
        Ok(Self { kv, state: RwLock::new(state), merging: Mutex::new(()) })
    }

    /// A chunk that may have this hash; the caller compares it with the chunk's descriptor.
    pub(crate) fn find(&self, hash: &[u8; 32]) -> Result<Option<ChunkId>, StoreError> {
        let key = key::dedup(DOMAIN, hash);
        let base = {
            let state = self.state.read();
            if !state.filter.may_contain(&key) {
                return Ok(None);
            }
            if let Some(found) = state.delta.get(&key).or_else(|| state.leaving.get(&key)) {
                return Ok(*found);
            }
            Arc::clone(&state.base)
        };
        let stored = match base.get(INDEX, &key) {
            // A damaged index costs room, never data; the next opening makes it anew.
            Err(error) if error.kind() == FaultKind::Corrupt => {
                tracing::warn!(%error, "the dedup index is damaged; what it would find is stored again");
                return Ok(None);
            }
            stored => stored?,
        };
        let Some(stored) = stored else { return Ok(None) };
        let chunk = value::unwrap(&stored)?.first_chunk::<8>().copied();
        Ok(chunk.map(|bytes| ChunkId(u64::from_le_bytes(bytes))))
    }

    pub(crate) fn insert(&self, hash: [u8; 32], chunk: ChunkId) {
        let key = key::dedup(DOMAIN, &hash);
        let mut state = self.state.write();
        state.filter.insert(&key);
        state.delta.insert(key, Some(chunk));
    }

    /// Forgets a chunk that died, unless another one with the same hash took its place.
    pub(crate) fn remove(&self, hash: [u8; 32], chunk: ChunkId) {
        let key = key::dedup(DOMAIN, &hash);
        let mut state = self.state.write();
        let newer = state.delta.get(&key).is_some_and(|found| found.is_some_and(|f| f != chunk));
        if !newer {
            state.delta.insert(key, None);
        }
    }

    pub(crate) fn merge_if_due(&self, ids: &Ids) -> Result<(), StoreError> {
        if self.state.read().delta.len() >= DELTA_ENTRIES_MAX {
            self.merge(ids)?;
        }
        Ok(())
    }

    /// Moves what is in memory into the index, in key order.
    pub(crate) fn merge(&self, ids: &Ids) -> Result<(), StoreError> {
        let _one = self.merging.lock();
        let (leaving, marker) = {
            let mut state = self.state.write();
            let marker = ids.chunks.next();
            state.leaving = Arc::new(std::mem::take(&mut state.delta));
            (Arc::clone(&state.leaving), marker)
        };
        let mut transaction = self.kv.begin()?;
        for (key, chunk) in leaving.iter() {
            match chunk {
                Some(chunk) => transaction.put(INDEX, key, &value::wrap(&chunk.0.to_le_bytes()))?,
                None => transaction.delete(INDEX, key)?,
            }
        }
        transaction.put(STATE, MARKER_KEY, &marker.to_le_bytes())?;
        transaction.commit()?;
        let base = self.kv.snapshot()?;
        let mut state = self.state.write();
        state.base = base;
        state.leaving = Arc::default();
        Ok(())
    }
}
