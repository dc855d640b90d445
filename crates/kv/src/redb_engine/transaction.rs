//! Writing: changes are gathered per table, because opening a table costs more than a change.
//!
//! An open table borrows the engine's transaction, so it cannot be kept beside it. A batch of
//! changes copied into one buffer and applied with one opened table costs less than either.

use super::definition;
use crate::contain::contain;
use crate::ordered::check_sizes;
use crate::{KvError, KvTransaction, TableId};
use redb::{ReadableTable, Table, WriteTransaction};

/// Changes gathered before they are applied.
const BATCH_CHANGES_MAX: usize = 4096;
/// Bytes gathered before they are applied.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The open write transaction.
pub(super) struct RedbTransaction {
    // Taken by commit and by drop.
    transaction: Option<WriteTransaction>,
    batch: Batch,
    // Set while the engine works: what an error or a panic left half done must not be committed.
    broken: bool,
}

#[derive(Default)]
struct Batch {
    table: Option<TableId>,
    bytes: Vec<u8>,
    changes: Vec<Change>,
}

/// The lengths of a change's key and value, which lie in the batch's buffer one after the other.
struct Change {
    key_bytes: usize,
    value_bytes: Option<usize>,
}

impl Batch {
    fn push(&mut self, table: TableId, key: &[u8], value: Option<&[u8]>) {
        self.table = Some(table);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.changes.push(Change { key_bytes: key.len(), value_bytes: value.map(<[u8]>::len) });
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= BATCH_CHANGES_MAX || self.bytes.len() >= BATCH_BYTES_MAX
    }

    fn apply(&self, table: &mut Table<'_, &'static [u8], &'static [u8]>) -> Result<(), redb::StorageError> {
        let mut rest = self.bytes.as_slice();
        for change in &self.changes {
            let (key, after_key) = rest.split_at(change.key_bytes);
            let (value, after_value) = after_key.split_at(change.value_bytes.unwrap_or(0));
            rest = after_value;
            if change.value_bytes.is_some() {
                table.insert(key, value)?;
            } else {
                table.remove(key)?;
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.changes.clear();
        self.table = None;
    }
}

impl RedbTransaction {
    pub(super) fn new(transaction: WriteTransaction) -> Self {
        Self { transaction: Some(transaction), batch: Batch::default(), broken: false }
    }

    fn engine(&self) -> Result<&WriteTransaction, KvError> {
        match &self.transaction {
            Some(transaction) if !self.broken => Ok(transaction),
            _ => Err(KvError::Poisoned { during: "using a failed transaction" }),
        }
    }

    fn push(&mut self, table: TableId, key: &[u8], value: Option<&[u8]>) -> Result<(), KvError> {
        check_sizes(key, value.unwrap_or_default())?;
        table.index()?;
        self.engine()?;
        if self.batch.is_full() || self.batch.table.is_some_and(|current| current != table) {
            self.apply_batch()?;
        }
        self.batch.push(table, key, value);
        Ok(())
    }

    fn apply_batch(&mut self) -> Result<(), KvError> {
        let Some(table) = self.batch.table else { return Ok(()) };
        let engine = self.engine()?;
        let batch = &self.batch;
        let outcome = contain("applying changes", || {
            let mut table = engine
                .open_table(definition(table)?)
                .map_err(|error| KvError::from_engine("opening a table to write", error))?;
            batch.apply(&mut table).map_err(|error| KvError::from_engine("applying changes", error))
        });
        self.broken = outcome.is_err();
        self.batch.clear();
        outcome
    }
}

impl KvTransaction for RedbTransaction {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.push(table, key, Some(value))
    }

    fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), KvError> {
        self.push(table, key, None)
    }

    fn get(&mut self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let definition = definition(table)?;
        self.apply_batch()?;
        let engine = self.engine()?;
        contain("reading inside a transaction", || {
            let table = engine
                .open_table(definition)
                .map_err(|error| KvError::from_engine("opening a table to write", error))?;
            let found = table
                .get(key)
                .map_err(|error| KvError::from_engine("reading inside a transaction", error))?;
            Ok(found.map(|value| value.value().to_vec()))
        })
    }

    fn commit(mut self: Box<Self>) -> Result<(), KvError> {
        self.apply_batch()?;
        self.engine()?;
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        contain("committing", || {
            transaction.commit().map_err(|error| KvError::from_engine("committing", error))
        })
    }
}

impl Drop for RedbTransaction {
    fn drop(&mut self) {
        let Some(transaction) = self.transaction.take() else { return };
        // An abort that fails leaves pages allocated that nothing refers to; the engine then
        // records no allocator state until it was reopened. Nothing durable has changed.
        let _ = contain("aborting a transaction", || {
            transaction.abort().map_err(|error| KvError::from_engine("aborting a transaction", error))
        });
    }
}
