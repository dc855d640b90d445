//! Numbers that are never given out twice: reserved in blocks, durably, before they are used.

use super::Store;
use crate::StoreError;
use crate::tables::Tables;
use aegisfs_base::BranchId;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_format::key::Table;
use aegisfs_format::op::Op;
use aegisfs_format::value;
use parking_lot::Mutex;

/// A source of numbers.
pub(crate) struct IdSource {
    config_key: &'static [u8],
    block: u64,
    state: Mutex<Range>,
}

struct Range {
    next: u64,
    limit: u64,
}

/// Every source of numbers.
pub(crate) struct Ids {
    pub(crate) inodes: IdSource,
    pub(crate) chunks: IdSource,
    pub(crate) segments: IdSource,
}

const KEYS: [(&[u8], u64, u64); 3] =
    [(b"next_inode", 1 << 16, 2), (b"next_chunk", 1 << 16, 1), (b"next_segment", 1 << 10, 1)];

impl Ids {
    /// Goes on behind everything that may have been given out.
    pub(crate) fn load(tables: &dyn Tables) -> Result<Self, StoreError> {
        let load = |(key, block, first): (&'static [u8], u64, u64)| -> Result<IdSource, StoreError> {
            let stored = tables.get(Table::Config, key)?;
            let mut limit = first;
            if let Some(stored) = stored {
                let bytes: [u8; 8] = value::unwrap(&stored)?.try_into().map_err(|_| {
                    StoreError::Inconsistent { what: "a counter in the configuration is unreadable".into() }
                })?;
                limit = u64::from_le_bytes(bytes);
            }
            // Without the safeguard numbers start over from what was durable, less one block.
            let next = if removed(Edge::ChunkIdsNeverReused) {
                limit.saturating_sub(block).max(first)
            } else {
                limit
            };
            Ok(IdSource { config_key: key, block, state: Mutex::new(Range { next, limit: next }) })
        };
        let [inodes, chunks, segments] = KEYS;
        Ok(Self { inodes: load(inodes)?, chunks: load(chunks)?, segments: load(segments)? })
    }
}

/// The keys under which limits are stored, for the formatter.
pub(crate) fn id_limits() -> impl Iterator<Item = (&'static [u8], Vec<u8>)> {
    KEYS.into_iter().map(|(key, _, first)| (key, value::wrap(&first.to_le_bytes())))
}

impl IdSource {
    /// The next number.
    pub(crate) fn take(&self, store: &Store) -> Result<u64, StoreError> {
        self.take_many(store, 1)
    }

    /// The first of so many numbers in a row.
    pub(crate) fn take_many(&self, store: &Store, count: u64) -> Result<u64, StoreError> {
        let mut range = self.state.lock();
        if range.next + count > range.limit {
            let limit = range.next + count + self.block;
            let (key, value) = (self.config_key.to_vec(), value::wrap(&limit.to_le_bytes()));
            // Whoever uses a number does so in a later transaction, so the log's order is enough.
            store.commit(BranchId(0), vec![Op::Put { table: Table::Config, key, value }], Vec::new())?;
            range.limit = limit;
        }
        let first = range.next;
        range.next += count;
        Ok(first)
    }

    /// The first number that was not given out yet.
    pub(crate) fn next(&self) -> u64 {
        self.state.lock().next
    }
}
