//! A store as it lies on the devices, for whoever looks for a fault or writes another reader.
//!
//! Nothing is written, and everything is handed out piece by piece, so that the memory it takes does not grow
//! with the store.

mod walk;

use crate::StoreError;
use crate::create::{DEDUP, DEDUP_COPIES, OnPool};
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::SegmentId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::Segment;
use aegisfs_kv::{Backing, OrderedKv, RedbKv, TableId};
use aegisfs_pool::Database;
use std::ops::ControlFlow;
use std::sync::Arc;
pub(crate) use walk::Living;
pub use walk::{CellSeen, ChunkSeen, GapSeen, Seen, ShardSeen};

/// Tables of the dedup database.
const DEDUP_TABLES: [(u8, &str); 3] = [(1, "index"), (2, "state"), (3, "filter")];
/// Page cache while the dedup database is read once.
const CACHE_BYTES: usize = 1 << 20;

/// A table and what stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpace {
    /// The number of its table in the database.
    pub number: u8,
    /// Its name in the description of the format.
    pub name: &'static str,
    /// Its entries; each chunk counts, although several share a key.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

impl KeySpace {
    fn new(number: u8, name: &'static str) -> Self {
        Self { number, name, entries: 0, bytes: 0 }
    }

    fn count(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        self.entries += 1;
        self.bytes += (key.len() + value.len()) as u64;
        ControlFlow::Continue(())
    }
}

impl Store {
    /// The tables of the metadata, the replayed log included. Reads all of them.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn key_spaces(&self) -> Result<Vec<KeySpace>, StoreError> {
        let tables = Table::ALL.into_iter().filter(|table| *table != Table::Dedup);
        tables
            .map(|table| {
                let mut space = KeySpace::new(table as u8, table.name());
                self.view().scan(table, &[], None, &mut |key, value| space.count(key, value))?;
                Ok(space)
            })
            .collect()
    }

    /// The tables of the dedup database as its last commit left them; none when there is no such database.
    /// For a store that is open for reading only. Reads all of them.
    ///
    /// # Errors
    /// When it cannot be read, which costs nothing but room: it is made anew at the next mount.
    pub fn dedup_key_spaces(&self) -> Result<Vec<KeySpace>, StoreError> {
        let stored = OnPool(Arc::new(Database::new(Arc::clone(self.pool()), DEDUP, DEDUP_COPIES)));
        if stored.len().is_ok_and(|bytes| bytes == 0) {
            return Ok(Vec::new());
        }
        let engine = RedbKv::open_read_only(stored, CACHE_BYTES)?;
        let snapshot = engine.snapshot()?;
        let tables = DEDUP_TABLES.into_iter();
        tables
            .map(|(number, name)| {
                let mut space = KeySpace::new(number, name);
                snapshot.scan(TableId(number), &[], None, &mut |key, value| space.count(key, value))?;
                Ok(space)
            })
            .collect()
    }

    /// Shows every segment, in the order of their numbers.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn each_segment(
        &self,
        visit: &mut dyn FnMut(SegmentId, Segment) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.view().scan(Table::Segments, &[], None, &mut |key, stored| {
            let id = SegmentId(key.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
            match Segment::decode(stored) {
                Ok(segment) => visit(id, segment),
                Err(error) => {
                    outcome = Err(error.into());
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome
    }

    /// What the metadata says of a segment.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn segment(&self, id: SegmentId) -> Result<Option<Segment>, StoreError> {
        let stored = self.view().get(Table::Segments, &key::segment(id))?;
        Ok(stored.map(|stored| Segment::decode(&stored)).transpose()?)
    }
}
