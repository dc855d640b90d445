//! Snapshots, forks, rollback: the history of branches, as pure functions over the tables.
//!
//! A branch's epochs are one unbroken interval of numbers that no other branch uses
//! ([`first_epoch`](aegisfs_format::value::first_epoch)). Were epochs numbered across branches, a branch
//! that goes on after a fork would find the fork's epochs inside its own interval, and a view could not be
//! a short list of intervals. So nothing has to be remembered for giving out epochs: the next one of a
//! branch follows its head. Branch numbers are counted in the configuration and never used twice.
//!
//! An epoch is **pinned** while a snapshot names it or a branch that was forked there exists; pins stand
//! behind their branch in the table of branches, each knowing the one before it. A snapshot whose name is
//! deleted while forks hold on to it stays as a pin without a name, and goes with the last of them.
//!
//! # What a deletion frees
//!
//! Let a version or reference be born in epoch e of branch b and die in b at d. It is needed if and only if
//! a pin of b lies in [e, d), or if b is open and it has not died. Forks need no thought of their own:
//! whatever a fork inherits was alive at its origin, which is a pin of b for as long as the fork or
//! anything forked from it exists. That is why a death is noted only in the branch that bore what died,
//! and why the neighbours of a pin are those of its own branch:
//!
//! - Unpinning s between p and n (n being the head if no pin follows) frees what was born in (p, s] and
//!   died in (s, n]. `superseded` is read once per epoch of (s, n] in which something died.
//! - If nothing of the branch follows s, because it is closed, everything born in (p, s] goes, as
//!   `changed` lists it; closing a branch does the same for its head. The deaths noted there are void,
//!   for what died in them lives on behind the pins before. When no pin is left the branch goes, and with
//!   it its hold on its origin.
//!
//! A tombstone goes with the version right under it. As versions are overwritten where they stand, it is
//! the oldest version above, and lies before the next view of the branch.

mod reclaim;

use crate::StoreError;
use crate::apply::Effects;
use crate::tables::{Tables, TablesMut};
use crate::versions::{read_branch, write_branch};
use aegisfs_base::limits::NAME_BYTES_MAX;
use aegisfs_base::{BranchId, EpochId, Timestamp};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{self, Branch, Pin, Snapshot, Volume, branch_of, first_epoch};
use std::ops::ControlFlow;

/// Where the number of the next branch stands.
const NEXT_BRANCH_KEY: &[u8] = b"next_branch";
/// The branch that every pool begins with is number 0.
const SECOND_BRANCH: BranchId = BranchId(1);

/// Why history cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// A name is empty, too long, or holds what a directory entry cannot.
    #[error("the name cannot be used for a snapshot")]
    Name,
    /// The branch has a snapshot of this name.
    #[error("a snapshot of this name exists")]
    Exists,
    /// There is no such branch, snapshot or volume, or it has been deleted.
    #[error("there is no such branch, snapshot or volume")]
    Missing,
    /// Bytes of the branch stand only in the log; they have to be flushed first.
    #[error("the branch has data that is not flushed")]
    Unflushed,
    /// A volume shows the branch.
    #[error("a volume shows the branch")]
    InUse,
    /// Numbers are used up.
    #[error("no further epoch or branch can be numbered")]
    UsedUp,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<aegisfs_format::FormatError> for BranchError {
    fn from(error: aegisfs_format::FormatError) -> Self {
        Self::Store(error.into())
    }
}

/// Names the present state of a branch and starts its next epoch. Costs the same whatever the branch holds.
///
/// # Errors
/// When the name cannot be used or is taken, the branch is missing or closed or has unflushed bytes, or
/// the tables cannot be read.
pub fn create_snapshot(
    tables: &mut dyn TablesMut,
    branch: BranchId,
    name: &[u8],
    created: Timestamp,
) -> Result<EpochId, BranchError> {
    check_name(name)?;
    let mut found = open_branch(tables, branch)?;
    let key = key::snapshot(branch, name);
    if tables.get(Table::Snapshots, &key)?.is_some() {
        return Err(BranchError::Exists);
    }
    if first_key(tables, Table::Pending, &key::branch(branch))?.is_some() {
        return Err(BranchError::Unflushed);
    }
    let epoch = found.head;
    let next = EpochId(epoch.0 + 1);
    if branch_of(next) != branch {
        return Err(BranchError::UsedUp);
    }
    tables.put(Table::Snapshots, &key, Snapshot { epoch, created }.encode());
    write_pin(tables, epoch, &Pin { previous: found.last_pin(), forks: 0, named: true });
    found.pinned = Some(epoch);
    found.head = next;
    write_branch(tables, branch, &found);
    Ok(epoch)
}

/// Deletes a snapshot and frees what it alone held, unless branches are forked from it: then it goes with
/// the last of them.
///
/// # Errors
/// When there is no such snapshot, or the tables cannot be read or contradict themselves.
pub fn delete_snapshot(
    tables: &mut dyn TablesMut,
    branch: BranchId,
    name: &[u8],
) -> Result<Effects, BranchError> {
    let snapshot = find_snapshot(tables, branch, name)?.ok_or(BranchError::Missing)?;
    tables.delete(Table::Snapshots, &key::snapshot(branch, name));
    let mut pin = read_pin(tables, snapshot.epoch)?;
    pin.named = false;
    write_pin(tables, snapshot.epoch, &pin);
    let mut effects = Effects::default();
    release(tables, snapshot.epoch, &mut effects)?;
    Ok(effects)
}

/// Starts a branch that begins as a pinned epoch ended. The epoch stays pinned as long as the branch is there.
///
/// # Errors
/// When the epoch is not pinned, or the tables cannot be read.
pub fn fork(tables: &mut dyn TablesMut, at: EpochId) -> Result<BranchId, BranchError> {
    let mut pin = find_pin(tables, at)?.ok_or(BranchError::Missing)?;
    let branch = next_branch(tables)?;
    pin.forks = pin.forks.checked_add(1).ok_or(BranchError::UsedUp)?;
    write_pin(tables, at, &pin);
    let first = first_epoch(branch);
    let forked = Branch { origin: Some((branch_of(at), at)), first, head: first, pinned: Some(at) };
    write_branch(tables, branch, &forked);
    Ok(branch)
}

/// What a volume showed before a rollback, and what it shows now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The branch it showed; its snapshots stay, and [`delete_branch`] gives back the rest.
    pub before: BranchId,
    /// The branch it shows.
    pub now: BranchId,
}

/// Lets a volume show a new branch that begins as a pinned epoch ended.
///
/// # Errors
/// When there is no such volume, the epoch is not pinned, or the tables cannot be read.
pub fn rollback(tables: &mut dyn TablesMut, volume: &[u8], to: EpochId) -> Result<RolledBack, BranchError> {
    let before = find_volume(tables, volume)?.ok_or(BranchError::Missing)?.head;
    let now = fork(tables, to)?;
    write_volume(tables, volume, &Volume { head: now });
    Ok(RolledBack { before, now })
}

/// Closes a branch: what only its head saw is freed. Its snapshots stay, and so does what was forked from
/// it; with the last of them the branch goes altogether.
///
/// # Errors
/// When the branch is missing or already closed, a volume shows it, or the tables cannot be read or
/// contradict themselves.
pub fn delete_branch(tables: &mut dyn TablesMut, branch: BranchId) -> Result<Effects, BranchError> {
    let mut found = open_branch(tables, branch)?;
    if is_shown(tables, branch)? {
        return Err(BranchError::InUse);
    }
    let mut effects = Effects::default();
    let last = found.head;
    found.head = EpochId(0);
    write_branch(tables, branch, &found);
    reclaim::pending(tables, branch)?;
    let born = found.last_pin().map_or(found.first, EpochId::next)..=last;
    reclaim::everything_born(tables, born, &mut effects)?;
    if found.last_pin().is_none()
        && let Some(origin) = forget(tables, branch, &found)?
    {
        release(tables, origin, &mut effects)?;
    }
    Ok(effects)
}

/// The snapshot of a branch that has this name.
///
/// # Errors
/// When the tables cannot be read.
pub fn find_snapshot(
    tables: &dyn Tables,
    branch: BranchId,
    name: &[u8],
) -> Result<Option<Snapshot>, StoreError> {
    let stored = tables.get(Table::Snapshots, &key::snapshot(branch, name))?;
    Ok(stored.map(|stored| Snapshot::decode(&stored)).transpose()?)
}

/// The volume that has this name.
///
/// # Errors
/// When the tables cannot be read.
pub fn find_volume(tables: &dyn Tables, name: &[u8]) -> Result<Option<Volume>, StoreError> {
    let stored = tables.get(Table::Volumes, name)?;
    Ok(stored.map(|stored| Volume::decode(&stored)).transpose()?)
}

/// Writes a volume.
pub fn write_volume(tables: &mut dyn TablesMut, name: &[u8], volume: &Volume) {
    tables.put(Table::Volumes, name, volume.encode());
}

/// Unpins an epoch that nothing names and nothing is forked from, and frees what it alone held; then the
/// same for its branch's origin, if the branch went with it, and so on.
fn release(tables: &mut dyn TablesMut, epoch: EpochId, effects: &mut Effects) -> Result<(), BranchError> {
    let mut next = Some(epoch);
    while let Some(epoch) = next.take() {
        let pin = read_pin(tables, epoch)?;
        if pin.named || pin.forks > 0 {
            return Ok(());
        }
        next = unpin(tables, epoch, &pin, effects)?;
    }
    Ok(())
}

/// Takes a pin out of its branch and frees what it alone held. If the branch goes with it and was the last
/// that held its origin, returns that.
fn unpin(
    tables: &mut dyn TablesMut,
    epoch: EpochId,
    pin: &Pin,
    effects: &mut Effects,
) -> Result<Option<EpochId>, BranchError> {
    let id = branch_of(epoch);
    let mut branch = read_branch(tables, id)?;
    let behind = pin_behind(tables, epoch)?;
    tables.delete(Table::Branches, &key::pin(id, epoch));
    if let Some(behind) = behind {
        let neighbour = read_pin(tables, behind)?;
        write_pin(tables, behind, &Pin { previous: pin.previous, ..neighbour });
    } else {
        branch.pinned = pin.previous.or(branch.origin.map(|(_, at)| at));
        write_branch(tables, id, &branch);
    }
    let born = pin.previous.map_or(branch.first, EpochId::next)..=epoch;
    let seen_next = behind.or((!branch.is_closed()).then_some(branch.head));
    if let Some(seen_next) = seen_next {
        reclaim::what_died(tables, id, born, seen_next, effects)?;
        return Ok(None);
    }
    reclaim::everything_born(tables, born, effects)?;
    if pin.previous.is_some() {
        return Ok(None);
    }
    forget(tables, id, &branch)
}

/// Deletes a branch that has neither head nor pins; returns its origin, which has one fork fewer.
fn forget(
    tables: &mut dyn TablesMut,
    branch: BranchId,
    value: &Branch,
) -> Result<Option<EpochId>, BranchError> {
    tables.delete(Table::Branches, &key::branch(branch));
    let Some((_, origin)) = value.origin else { return Ok(None) };
    let mut pin = read_pin(tables, origin)?;
    pin.forks = pin.forks.checked_sub(1).ok_or_else(|| StoreError::Inconsistent {
        what: format!("branch {branch} is not counted at its origin, epoch {origin}"),
    })?;
    write_pin(tables, origin, &pin);
    Ok(Some(origin))
}

fn check_name(name: &[u8]) -> Result<(), BranchError> {
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.len() > NAME_BYTES_MAX || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(BranchError::Name);
    }
    Ok(())
}

/// A branch that can be written to.
fn open_branch(tables: &dyn Tables, branch: BranchId) -> Result<Branch, BranchError> {
    let stored = tables.get(Table::Branches, &key::branch(branch)).map_err(BranchError::Store)?;
    let found = Branch::decode(&stored.ok_or(BranchError::Missing)?)?;
    if found.is_closed() { Err(BranchError::Missing) } else { Ok(found) }
}

fn find_pin(tables: &dyn Tables, epoch: EpochId) -> Result<Option<Pin>, StoreError> {
    let stored = tables.get(Table::Branches, &key::pin(branch_of(epoch), epoch))?;
    Ok(stored.map(|stored| Pin::decode(&stored)).transpose()?)
}

fn read_pin(tables: &dyn Tables, epoch: EpochId) -> Result<Pin, StoreError> {
    find_pin(tables, epoch)?
        .ok_or_else(|| StoreError::Inconsistent { what: format!("epoch {epoch} should be pinned") })
}

fn write_pin(tables: &mut dyn TablesMut, epoch: EpochId, pin: &Pin) {
    tables.put(Table::Branches, &key::pin(branch_of(epoch), epoch), pin.encode());
}

/// The next pinned epoch of the same branch.
fn pin_behind(tables: &dyn Tables, epoch: EpochId) -> Result<Option<EpochId>, StoreError> {
    let branch = branch_of(epoch);
    let mut found = None;
    let end = key::prefix_end(&key::branch(branch));
    tables.scan(Table::Branches, &key::pin(branch, epoch.next()), end.as_deref(), &mut |key, _| {
        found = Some(key.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found.map(|key| key::pin_epoch(&key)).transpose()?)
}

fn first_key(tables: &dyn Tables, table: Table, prefix: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let mut found = None;
    tables.scan_prefix(table, prefix, &mut |key, _| {
        found = Some(key.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

fn is_shown(tables: &dyn Tables, branch: BranchId) -> Result<bool, StoreError> {
    let mut outcome = Ok(false);
    tables.scan_prefix(Table::Volumes, &[], &mut |_, stored| {
        outcome = Volume::decode(stored).map(|volume| volume.head == branch);
        if matches!(outcome, Ok(false)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(outcome?)
}

fn next_branch(tables: &mut dyn TablesMut) -> Result<BranchId, BranchError> {
    let next = match tables.get(Table::Config, NEXT_BRANCH_KEY)? {
        Some(stored) => {
            let bytes = value::unwrap(&stored)?.try_into();
            BranchId(u32::from_le_bytes(bytes.map_err(|_| StoreError::Inconsistent {
                what: "the number of the next branch is unreadable".into(),
            })?))
        }
        None => SECOND_BRANCH,
    };
    let behind = next.0.checked_add(1).ok_or(BranchError::UsedUp)?;
    tables.put(Table::Config, NEXT_BRANCH_KEY, value::wrap(&behind.to_le_bytes()));
    Ok(next)
}
