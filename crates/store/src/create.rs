//! Putting an empty store into a new pool.

use crate::StoreError;
use crate::checkpoint::MARK_KEY;
use crate::log::LogMark;
use crate::metadata::table_id;
use crate::store::id_limits;
use aegisfs_base::{BranchId, EpochId, Sequence};
use aegisfs_format::key::Table;
use aegisfs_format::value::Branch;
use aegisfs_kv::{OrderedKv, RedbKv};
pub(crate) use aegisfs_pool::OnPool;
use aegisfs_pool::{Database, Pool};
use std::sync::Arc;

/// The database of all metadata.
pub(crate) const METADATA: u8 = 0;
/// The database of the dedup index.
pub(crate) const DEDUP: u8 = 1;
/// Derived data needs no second copy.
pub(crate) const DEDUP_COPIES: u8 = 1;
/// Page cache while formatting.
const CACHE_BYTES: usize = 1 << 20;

/// Puts an empty store into a pool that [`Pool::create`] made, and publishes it. `entries` go into the
/// metadata as they are: the root directory, say.
///
/// # Errors
/// When a device fails; the pool then does not exist.
pub fn create(pool: &Arc<Pool>, entries: &[(Table, Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
    let copies = pool.superblock().metadata_copies;
    let metadata =
        RedbKv::create(OnPool(Arc::new(Database::new(Arc::clone(pool), METADATA, copies))), CACHE_BYTES)?;
    let mark =
        LogMark { applied: Sequence(0), position: 0, previous: [0; 16], incarnation: pool.incarnation() };
    let branch = Branch { origin: None, first: EpochId(1), head: EpochId(1), pinned: None };
    let mut transaction = metadata.begin()?;
    for (table, key, value) in entries {
        transaction.put(table_id(*table), key, value)?;
    }
    transaction.put(table_id(Table::Branches), &BranchId(0).0.to_be_bytes(), &branch.encode())?;
    transaction.put(table_id(Table::Config), MARK_KEY, &mark.encode())?;
    for (key, value) in id_limits() {
        transaction.put(table_id(Table::Config), key, &value)?;
    }
    transaction.commit()?;
    drop(RedbKv::create(
        OnPool(Arc::new(Database::new(Arc::clone(pool), DEDUP, DEDUP_COPIES))),
        CACHE_BYTES,
    )?);
    Ok(pool.publish_new()?)
}
