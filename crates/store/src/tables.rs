//! What the apply function sees: ordered tables, wherever they are.
//!
//! Keys are as in the memtable: chunk descriptors stand one by one.

use crate::StoreError;
use aegisfs_base::BranchId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::Branch;
use std::ops::ControlFlow;

/// Sees one entry after the other and says whether to go on.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Tables to read from.
pub trait Tables {
    /// The value of a key.
    ///
    /// # Errors
    /// When the storage below fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// A branch. Every change and every lookup begins with one, so whoever can keeps it at hand.
    ///
    /// # Errors
    /// When it is missing or unreadable.
    fn branch(&self, branch: BranchId) -> Result<Branch, StoreError> {
        decode_branch(branch, self.get(Table::Branches, &key::branch(branch))?.as_deref())
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

/// Tables to write to as well.
pub trait TablesMut: Tables {
    /// Sets the value of a key.
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>);
    /// Removes a key.
    fn delete(&mut self, table: Table, key: &[u8]);
}
