//! Reading: one engine transaction whose tables are opened once each.

use super::{Definition, definition};
use crate::contain::contain;
use crate::ordered::is_empty_range;
use crate::{KvError, KvSnapshot, TABLES_MAX, TableId, TableUsage, Visitor};
use redb::{AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTableMetadata, TableError};
use std::ops::Bound;
use std::sync::OnceLock;

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Entries = redb::Range<'static, &'static [u8], &'static [u8]>;

/// The engine finds key and value in their page only now, and asserts if the page is damaged.
fn bytes_of<'a>(found: &'a AccessGuard<'_, &'static [u8]>) -> Result<&'a [u8], KvError> {
    contain("reading an entry", || Ok(found.value()))
}

/// A view of one commit.
pub(super) struct RedbSnapshot {
    // Opening a table costs several times a get, so each is opened once; `None` is a table that
    // the commit does not have, or that has nothing in it.
    tables: [OnceLock<Option<Table>>; TABLES_MAX],
    transaction: ReadTransaction,
}

impl RedbSnapshot {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self { tables: [const { OnceLock::new() }; TABLES_MAX], transaction }
    }

    fn table(&self, table: TableId) -> Result<Option<&Table>, KvError> {
        let place = &self.tables[table.index()?];
        if let Some(opened) = place.get() {
            return Ok(opened.as_ref());
        }
        let opened = self.open_table(definition(table)?)?;
        // Another thread may have been quicker; either handle shows the same commit.
        Ok(place.get_or_init(|| opened).as_ref())
    }

    fn open_table(&self, definition: Definition) -> Result<Option<Table>, KvError> {
        contain("opening a table", || match self.transaction.open_table(definition) {
            Ok(table) => {
                let is_empty =
                    table.is_empty().map_err(|error| KvError::from_engine("opening a table", error))?;
                Ok((!is_empty).then_some(table))
            }
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(KvError::from_engine("opening a table", error)),
        })
    }

    fn entries(&self, table: TableId, start: &[u8], end: Option<&[u8]>) -> Result<Option<Entries>, KvError> {
        let Some(table) = self.table(table)? else { return Ok(None) };
        if is_empty_range(start, end) {
            return Ok(None);
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        contain("seeking in a table", || {
            table
                .range::<&[u8]>(bounds)
                .map(Some)
                .map_err(|error| KvError::from_engine("seeking in a table", error))
        })
    }
}

impl KvSnapshot for RedbSnapshot {
    fn get_with(&self, table: TableId, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, KvError> {
        let Some(table) = self.table(table)? else { return Ok(false) };
        let found = contain("reading a key", || {
            table.get(key).map_err(|error| KvError::from_engine("reading a key", error))
        })?;
        let Some(value) = found else { return Ok(false) };
        visit(bytes_of(&value)?);
        Ok(true)
    }

    fn scan(
        &self,
        table: TableId,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), KvError> {
        let Some(mut entries) = self.entries(table, start, end)? else { return Ok(()) };
        while let Some((key, value)) = contain("scanning a table", || {
            entries.next().transpose().map_err(|error| KvError::from_engine("scanning a table", error))
        })? {
            if visit(bytes_of(&key)?, bytes_of(&value)?).is_break() {
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
        let Some(mut entries) = self.entries(table, start, end)? else { return Ok(()) };
        while let Some((key, value)) = contain("scanning a table backwards", || {
            entries
                .next_back()
                .transpose()
                .map_err(|error| KvError::from_engine("scanning a table backwards", error))
        })? {
            if visit(bytes_of(&key)?, bytes_of(&value)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn count(&self, table: TableId) -> Result<u64, KvError> {
        let Some(table) = self.table(table)? else { return Ok(0) };
        contain("counting entries", || {
            table.len().map_err(|error| KvError::from_engine("counting entries", error))
        })
    }

    fn usage(&self, table: TableId) -> Result<TableUsage, KvError> {
        let Some(opened) = self.table(table)? else { return Ok(TableUsage::default()) };
        let stats = contain("measuring a table", || {
            opened.stats().map_err(|error| KvError::from_engine("measuring a table", error))
        })?;
        Ok(TableUsage {
            entries: self.count(table)?,
            stored_bytes: stats.stored_bytes(),
            page_bytes: stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes(),
        })
    }
}
