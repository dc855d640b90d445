//! What the apply function sees: ordered tables, wherever they are.
//!
//! Keys are as in the memtable: chunk descriptors stand one by one.

use crate::StoreError;
use crate::versions::Head;
use aegisfs_base::BranchId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::Branch;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Sees one entry after the other and says whether to go on.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Tables to read from.
pub trait Tables {
    /// The value of a key.
    ///
    /// # Errors
    /// When the storage below fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Shows the value of a key to `visit`, without a copy where there need be none; `false` when there is
    /// none. No lock is held meanwhile.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    fn get_with(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, StoreError> {
        let found = self.get(table, key)?;
        if let Some(value) = &found {
            visit(value);
        }
        Ok(found.is_some())
    }

    /// A branch.
    ///
    /// # Errors
    /// When it is missing or unreadable.
    fn branch(&self, branch: BranchId) -> Result<Branch, StoreError> {
        decode_branch(branch, self.get(Table::Branches, &key::branch(branch))?.as_deref())
    }

    /// The head of a branch. Every change and every lookup begins with one, so whoever can keeps it at hand.
    ///
    /// # Errors
    /// When the branch, or one that it was forked from, is missing, closed or unreadable.
    fn head(&self, branch: BranchId) -> Result<Arc<Head>, StoreError> {
        read_head(self, branch)
    }

    /// Visits the entries from `start` to before `end` in ascending order of their keys.
    ///
    /// # Errors
    /// When the storage below fails.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StoreError>;

    /// Visits the entries whose keys begin with a prefix, in ascending order.
    ///
    /// # Errors
    /// When the storage below fails.
    fn scan_prefix(&self, table: Table, prefix: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.scan(table, prefix, aegisfs_format::key::prefix_end(prefix).as_deref(), visit)
    }
}

/// Reads what a table has of a branch, which has to be there.
pub(crate) fn decode_branch(branch: BranchId, stored: Option<&[u8]>) -> Result<Branch, StoreError> {
    let missing = || StoreError::Inconsistent { what: format!("branch {branch} is missing") };
    Ok(Branch::decode(stored.ok_or_else(missing)?)?)
}

/// Reads the head of a branch out of the tables.
pub(crate) fn read_head<T: Tables + ?Sized>(tables: &T, branch: BranchId) -> Result<Arc<Head>, StoreError> {
    Ok(Arc::new(Head::of_branch(tables, branch)?))
}

/// Tables to write to as well.
pub trait TablesMut: Tables {
    /// Sets the value of a key.
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>);
    /// Sets it to a value that the caller keeps.
    fn put_copy(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put(table, key, value.to_vec());
    }
    /// Removes a key.
    fn delete(&mut self, table: Table, key: &[u8]);
}
