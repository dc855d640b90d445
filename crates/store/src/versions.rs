//! Versions of metadata: what makes a snapshot cost nothing.
//!
//! A versioned key is a stem and the epoch in which it was written. Every epoch belongs to one branch; a
//! [`View`] is a short list of epoch intervals, and what it sees of a stem is the newest version inside
//! them. Writing keeps the version before only if a snapshot or fork still sees it, and then notes its
//! death in `superseded`, so that deleting that snapshot later finds exactly what it alone held.

use crate::StoreError;
use crate::tables::{Tables, TablesMut};
use aegisfs_base::{BranchId, EpochId};
use aegisfs_format::key::{self, EPOCH_BYTES, Table};
use aegisfs_format::value::{self, Branch, TOMBSTONE, is_tombstone};
use std::ops::ControlFlow;

/// Marks a note in `superseded` as being of a key version rather than of a reference.
const NOTE_VERSION: u8 = 0;
/// Marks a note in `superseded` as being of a reference.
const NOTE_REFERENCE: u8 = 1;

/// What a reader sees: epochs, newest interval first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    intervals: Vec<(EpochId, EpochId)>,
}

impl View {
    /// Everything in these intervals, both ends included, newest first.
    pub const fn new(intervals: Vec<(EpochId, EpochId)>) -> Self {
        Self { intervals }
    }

    /// What a branch sees at one of its epochs: its own up to there, then each ancestor's up to the fork.
    ///
    /// # Errors
    /// When a branch on the way is missing or unreadable.
    pub fn of_branch(tables: &dyn Tables, branch: BranchId, up_to: EpochId) -> Result<Self, StoreError> {
        let mut intervals = Vec::new();
        let mut next = Some((branch, up_to));
        while let Some((branch, last)) = next {
            let found = read_branch(tables, branch)?;
            if found.first <= last {
                intervals.push((found.first, last));
            }
            next = found.origin;
        }
        Ok(Self { intervals })
    }

    /// Whether an epoch is inside.
    pub fn contains(&self, epoch: EpochId) -> bool {
        self.intervals.iter().any(|(first, last)| (*first..=*last).contains(&epoch))
    }

    /// The newest epoch it sees.
    pub fn newest(&self) -> EpochId {
        self.intervals.first().map_or(EpochId(0), |(_, last)| *last)
    }
}

/// Reads a branch.
///
/// # Errors
/// When it is missing or unreadable.
pub fn read_branch(tables: &dyn Tables, branch: BranchId) -> Result<Branch, StoreError> {
    let value = tables.get(Table::Branches, &branch.0.to_be_bytes())?;
    let value =
        value.ok_or_else(|| StoreError::Inconsistent { what: format!("branch {branch} is missing") })?;
    Ok(Branch::decode(&value)?)
}

/// Writes a branch.
pub fn write_branch(tables: &mut dyn TablesMut, branch: BranchId, value: &Branch) {
    tables.put(Table::Branches, &branch.0.to_be_bytes(), value.encode());
}

/// The branch a transaction writes to, and what of it snapshots and forks hold on to.
#[derive(Clone, Debug)]
pub struct Head {
    /// The branch.
    pub branch: BranchId,
    /// The epoch being written.
    pub epoch: EpochId,
    /// What was written up to here is seen by a snapshot or fork and must be kept.
    pub pinned: Option<EpochId>,
    /// What the head sees.
    pub view: View,
}

impl Head {
    /// The head of a branch.
    ///
    /// # Errors
    /// When the branch is missing or unreadable.
    pub fn of_branch(tables: &dyn Tables, branch: BranchId) -> Result<Self, StoreError> {
        let found = read_branch(tables, branch)?;
        let view = View::of_branch(tables, branch, found.head)?;
        Ok(Self { branch, epoch: found.head, pinned: found.pinned, view })
    }

    /// Whether something born in this epoch is seen by a snapshot or fork.
    pub fn is_pinned(&self, birth: EpochId) -> bool {
        self.pinned.is_some_and(|pinned| birth <= pinned)
    }
}

/// A version of a stem: its epoch and value, tombstones included.
pub type Version = (EpochId, Vec<u8>);

/// The newest version that a view sees, tombstones included.
///
/// # Errors
/// When the storage below fails.
pub fn newest_version(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
) -> Result<Option<Version>, StoreError> {
    newest_version_before(tables, table, stem, view, None)
}

/// The same, but only versions older than an epoch.
fn newest_version_before(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
    before: Option<EpochId>,
) -> Result<Option<Version>, StoreError> {
    let newest = before.map_or(view.newest(), |epoch| EpochId(epoch.0.saturating_sub(1)));
    let start = key::versioned(stem, newest);
    let end = key::prefix_end(stem);
    let mut found = None;
    tables.scan(table, &start, end.as_deref(), &mut |key, value| {
        // A longer stem that begins with this one is somebody else's.
        if key.len() != stem.len() + EPOCH_BYTES {
            return ControlFlow::Continue(());
        }
        let Ok((_, epoch)) = key::split_version(key) else { return ControlFlow::Continue(()) };
        if view.contains(epoch) {
            found = Some((epoch, value.to_vec()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// What a view sees of a stem.
///
/// # Errors
/// When the storage below fails.
pub fn visible(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
) -> Result<Option<Vec<u8>>, StoreError> {
    let version = newest_version(tables, table, stem, view)?;
    Ok(version.map(|(_, value)| value).filter(|value| !is_tombstone(value)))
}

/// Visits what a view sees of the stems from `start` to before `end`, in order.
///
/// # Errors
/// When the storage below fails.
pub fn scan_visible(
    tables: &dyn Tables,
    table: Table,
    start: &[u8],
    end: Option<&[u8]>,
    view: &View,
    visit: crate::tables::Visit<'_>,
) -> Result<(), StoreError> {
    let mut last: Vec<u8> = Vec::new();
    let mut settled = false;
    tables.scan(table, start, end, &mut |key, value| {
        let Ok((stem, epoch)) = key::split_version(key) else { return ControlFlow::Continue(()) };
        if stem != last {
            last.clear();
            last.extend_from_slice(stem);
            settled = false;
        }
        if settled || !view.contains(epoch) {
            return ControlFlow::Continue(());
        }
        settled = true;
        if is_tombstone(value) { ControlFlow::Continue(()) } else { visit(stem, value) }
    })
}

/// Sets a stem at the head.
///
/// # Errors
/// When the storage below fails.
pub fn put_version(
    tables: &mut dyn TablesMut,
    head: &Head,
    table: Table,
    stem: &[u8],
    value: Vec<u8>,
) -> Result<(), StoreError> {
    if let Some((epoch, old)) = newest_version(tables, table, stem, &head.view)? {
        retire(tables, head, table, stem, epoch, &old);
    }
    tables.put(table, &key::versioned(stem, head.epoch), value);
    Ok(())
}

/// Removes a stem at the head; says whether it was there.
///
/// # Errors
/// When the storage below fails.
pub fn remove_version(
    tables: &mut dyn TablesMut,
    head: &Head,
    table: Table,
    stem: &[u8],
) -> Result<bool, StoreError> {
    let Some((epoch, old)) = newest_version(tables, table, stem, &head.view)? else { return Ok(false) };
    if is_tombstone(&old) {
        return Ok(false);
    }
    retire(tables, head, table, stem, epoch, &old);
    // What is under it must not come to light.
    let under = newest_version_before(tables, table, stem, &head.view, Some(head.epoch))?;
    if under.is_some_and(|(_, value)| !is_tombstone(&value)) {
        tables.put(table, &key::versioned(stem, head.epoch), TOMBSTONE.to_vec());
    }
    Ok(true)
}

/// Ends a version's time at the head: it goes at once, or stays for the snapshots that see it.
fn retire(tables: &mut dyn TablesMut, head: &Head, table: Table, stem: &[u8], epoch: EpochId, old: &[u8]) {
    if epoch == head.epoch || !head.is_pinned(epoch) {
        tables.delete(table, &key::versioned(stem, epoch));
    } else if !is_tombstone(old) {
        let mut what = vec![NOTE_VERSION, table as u8];
        what.extend_from_slice(stem);
        note(tables, head, epoch, &what);
    }
}

/// Notes that a reference died at the head while a snapshot or fork still sees it.
pub(crate) fn note_reference(tables: &mut dyn TablesMut, head: &Head, birth: EpochId, what: &[u8]) {
    let mut noted = vec![NOTE_REFERENCE];
    noted.extend_from_slice(what);
    note(tables, head, birth, &noted);
}

fn note(tables: &mut dyn TablesMut, head: &Head, birth: EpochId, what: &[u8]) {
    let key = key::superseded(head.branch, head.epoch, birth, what);
    tables.put(Table::Superseded, &key, value::wrap(&[]));
}
