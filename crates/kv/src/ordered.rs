//! The interface: ordered tables, snapshots to read from, one transaction at a time to write with.

use crate::KvError;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Tables per database. Raising it costs every snapshot a few bytes and changes no format.
pub const TABLES_MAX: usize = 32;
/// Longest key. Keys live in inner pages too, so long ones make the tree tall.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 32 << 20;

/// A table's number, below [`TABLES_MAX`]. A table exists from its first use; a table that was
/// never written reads as empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u8);

impl TableId {
    /// Its place in an array of tables.
    pub(crate) fn index(self) -> Result<usize, KvError> {
        let index = usize::from(self.0);
        if index < TABLES_MAX {
            return Ok(index);
        }
        Err(KvError::NoSuchTable { table: self.0, max: (TABLES_MAX - 1) as u8 })
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}", self.0)
    }
}

/// Sees one entry after the other and says whether to go on.
///
/// It may read other keys of the same snapshot.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// What a table takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableUsage {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of keys and values.
    pub stored_bytes: u64,
    /// Bytes of the pages that hold them; equal to `stored_bytes` where there are no pages.
    pub page_bytes: u64,
}

/// A store of ordered tables.
///
/// What a commit wrote is there after any crash once `commit` has returned. A crash during `commit`
/// leaves all of it or nothing.
pub trait OrderedKv: Send + Sync {
    /// A view of the last commit; later commits do not change it.
    ///
    /// Pages that a snapshot can still see are not reused, so a snapshot held for long makes the
    /// database grow. Snapshots must be dropped before the database is: one that is not may fail.
    ///
    /// # Errors
    /// When an earlier failure stopped the database.
    fn snapshot(&self) -> Result<Arc<dyn KvSnapshot>, KvError>;

    /// Starts the only write transaction; waits while another one is open.
    ///
    /// # Errors
    /// When an earlier failure stopped the database, or it is open for reading only.
    fn begin(&self) -> Result<Box<dyn KvTransaction + '_>, KvError>;
}

/// An unchanging view, to be shared by many threads.
pub trait KvSnapshot: Send + Sync {
    /// Shows the value of a key to `visit`, without a copy; `false` when there is none.
    ///
    /// # Errors
    /// When the storage below fails or is damaged.
    fn get_with(&self, table: TableId, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, KvError>;

    /// Visits the entries from `start` to before `end` in ascending order of their keys.
    ///
    /// # Errors
    /// When the storage below fails or is damaged; entries before the damage were visited.
    fn scan(
        &self,
        table: TableId,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), KvError>;

    /// The same entries in descending order.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn scan_back(
        &self,
        table: TableId,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), KvError>;

    /// The number of entries, which the engine keeps and need not count.
    ///
    /// # Errors
    /// When the storage below fails or is damaged.
    fn count(&self, table: TableId) -> Result<u64, KvError>;

    /// What the table takes. Walks the whole table: for `usage`, not for `df`.
    ///
    /// # Errors
    /// When the storage below fails or is damaged.
    fn usage(&self, table: TableId) -> Result<TableUsage, KvError>;

    /// A copy of the value of a key.
    ///
    /// # Errors
    /// As [`get_with`](Self::get_with).
    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let mut value = None;
        self.get_with(table, key, &mut |bytes| value = Some(bytes.to_vec()))?;
        Ok(value)
    }

    /// The first entry at or after `start` and before `end`.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn first(&self, table: TableId, start: &[u8], end: Option<&[u8]>) -> Result<Option<Entry>, KvError> {
        let mut found = None;
        self.scan(table, start, end, &mut |key, value| {
            found = Some((key.to_vec(), value.to_vec()));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The last entry at or after `start` and before `end`.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn last(&self, table: TableId, start: &[u8], end: Option<&[u8]>) -> Result<Option<Entry>, KvError> {
        let mut found = None;
        self.scan_back(table, start, end, &mut |key, value| {
            found = Some((key.to_vec(), value.to_vec()));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

/// A key and its value.
type Entry = (Vec<u8>, Vec<u8>);

/// The changes of one commit. Dropping it without [`commit`](Self::commit) changes nothing.
///
/// Changes are fastest table by table and in ascending order of keys.
pub trait KvTransaction {
    /// Sets the value of a key.
    ///
    /// # Errors
    /// When key or value are too long, or the storage below fails. After any error but
    /// [`FaultKind::Invalid`](aegisfs_base::FaultKind::Invalid) the transaction cannot commit.
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), KvError>;

    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), KvError>;

    /// The value of a key as this transaction sees it.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn get(&mut self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Makes the changes visible and durable.
    ///
    /// # Errors
    /// When the storage below fails. Whether the changes are there is known after reopening.
    fn commit(self: Box<Self>) -> Result<(), KvError>;
}

/// Refuses what no engine takes.
pub(crate) fn check_sizes(key: &[u8], value: &[u8]) -> Result<(), KvError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(KvError::TooLong { part: "key", bytes: key.len(), max: KEY_BYTES_MAX });
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(KvError::TooLong { part: "value", bytes: value.len(), max: VALUE_BYTES_MAX });
    }
    Ok(())
}

/// Whether a range holds no key at all.
pub(crate) fn is_empty_range(start: &[u8], end: Option<&[u8]>) -> bool {
    end.is_some_and(|end| end <= start)
}
