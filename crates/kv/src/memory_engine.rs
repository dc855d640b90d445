//! The memory engine: for tests and models. Nothing survives the last handle.

use crate::ordered::{check_sizes, is_empty_range};
use crate::{KvError, KvSnapshot, KvTransaction, OrderedKv, TABLES_MAX, TableId, TableUsage, Visitor};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

type Table = BTreeMap<Vec<u8>, Vec<u8>>;
/// Tables are shared between versions until one of them writes.
type Tables = [Arc<Table>; TABLES_MAX];

/// Ordered tables in memory. Clones are handles to the same tables.
#[derive(Clone, Default)]
pub struct MemoryKv {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    committed: RwLock<Arc<Tables>>,
    // Taken before `committed`; held by the open transaction.
    writer: Mutex<()>,
}

impl MemoryKv {
    /// Empty tables.
    pub fn new() -> Self {
        Self::default()
    }
}

impl OrderedKv for MemoryKv {
    fn snapshot(&self) -> Result<Arc<dyn KvSnapshot>, KvError> {
        Ok(Arc::new(MemorySnapshot { tables: Arc::clone(&self.shared.committed.read()) }))
    }

    fn begin(&self) -> Result<Box<dyn KvTransaction + '_>, KvError> {
        let writer = self.shared.writer.lock();
        let tables = Tables::clone(&self.shared.committed.read());
        Ok(Box::new(MemoryTransaction { shared: &self.shared, _writer: writer, tables }))
    }
}

struct MemorySnapshot {
    tables: Arc<Tables>,
}

impl MemorySnapshot {
    fn table(&self, table: TableId) -> Result<&Table, KvError> {
        Ok(&self.tables[table.index()?])
    }
}

fn bounds<'a>(start: &'a [u8], end: Option<&'a [u8]>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded))
}

impl KvSnapshot for MemorySnapshot {
    fn get_with(&self, table: TableId, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, KvError> {
        let Some(value) = self.table(table)?.get(key) else { return Ok(false) };
        visit(value);
        Ok(true)
    }

    fn scan(
        &self,
        table: TableId,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), KvError> {
        let table = self.table(table)?;
        if is_empty_range(start, end) {
            return Ok(());
        }
        for (key, value) in table.range::<[u8], _>(bounds(start, end)) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn scan_back(
        &self,
        table: TableId,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), KvError> {
        let table = self.table(table)?;
        if is_empty_range(start, end) {
            return Ok(());
        }
        for (key, value) in table.range::<[u8], _>(bounds(start, end)).rev() {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn count(&self, table: TableId) -> Result<u64, KvError> {
        Ok(self.table(table)?.len() as u64)
    }

    fn usage(&self, table: TableId) -> Result<TableUsage, KvError> {
        let table = self.table(table)?;
        let stored_bytes = table.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        Ok(TableUsage { entries: table.len() as u64, stored_bytes, page_bytes: stored_bytes })
    }
}

struct MemoryTransaction<'a> {
    shared: &'a Shared,
    _writer: MutexGuard<'a, ()>,
    tables: Tables,
}

impl KvTransaction for MemoryTransaction<'_> {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        check_sizes(key, value)?;
        Arc::make_mut(&mut self.tables[table.index()?]).insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), KvError> {
        check_sizes(key, &[])?;
        let table = &mut self.tables[table.index()?];
        if table.contains_key(key) {
            Arc::make_mut(table).remove(key);
        }
        Ok(())
    }

    fn get(&mut self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.tables[table.index()?].get(key).cloned())
    }

    fn commit(self: Box<Self>) -> Result<(), KvError> {
        *self.shared.committed.write() = Arc::new(self.tables);
        Ok(())
    }
}
