//! Versions of metadata: what makes a snapshot cost nothing.
//!
//! A versioned key is a stem and the epoch in which it was written. Every epoch belongs to one branch; a
//! [`View`] is a short list of epoch intervals, and what it sees of a stem is the newest version inside
//! them. Writing keeps the version before only if a snapshot or fork still sees it, and then notes its
//! death in `superseded`, so that deleting that snapshot later finds exactly what it alone held.
//!
//! What always holds, and the model test asserts:
//! - Behind its last pin a branch has at most one version of a stem: what no snapshot sees is overwritten
//!   where it stands, also when it was written in an earlier epoch, which then means the same.
//! - Right under a tombstone stands a version that is not one; without it nothing needs hiding.
//! - `changed` has a note for every version, but for those of the pool's very first epoch: before there was
//!   a snapshot nobody compares anything, and most pools never leave that epoch.
//! - `superseded` has a note for every version and reference that died in the branch that bore it and is
//!   still seen there. Of what was inherited it has none: the origin is pinned as long as the branch is
//!   there, and keeps that alive by itself.

use crate::StoreError;
use crate::tables::{Tables, TablesMut};
use aegisfs_base::{BranchId, EpochId};
use aegisfs_format::FormatError;
use aegisfs_format::extent::{EXTENT_REF_BYTES, ExtentRef};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{self, Branch, TOMBSTONE, first_epoch, is_tombstone};
use std::ops::ControlFlow;
use std::sync::Arc;

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
    pub fn of_branch<T: Tables + ?Sized>(
        tables: &T,
        branch: BranchId,
        up_to: EpochId,
    ) -> Result<Self, StoreError> {
        let mut intervals = Vec::new();
        let mut next = Some((branch, up_to));
        while let Some((branch, last)) = next {
            let found = tables.branch(branch)?;
            if last < found.first {
                let what = format!("branch {branch} is asked for epoch {last}, before its first");
                return Err(StoreError::Inconsistent { what });
            }
            intervals.push((found.first, last));
            next = found.origin;
        }
        Ok(Self { intervals })
    }

    /// Whether an epoch is inside.
    pub fn contains(&self, epoch: EpochId) -> bool {
        self.intervals.iter().any(|(first, last)| (*first..=*last).contains(&epoch))
    }

    /// The newest epoch it sees, from an epoch downwards.
    fn newest_from(&self, epoch: EpochId) -> Option<EpochId> {
        let below = |(first, last): &(EpochId, EpochId)| (*first <= epoch).then_some(epoch.min(*last));
        self.intervals.iter().find_map(below)
    }

    /// The newest epoch it sees.
    pub fn newest(&self) -> EpochId {
        self.intervals.first().map_or(EpochId(0), |(_, last)| *last)
    }

    /// The oldest epoch it sees.
    fn oldest(&self) -> EpochId {
        self.intervals.last().map_or(EpochId(0), |(first, _)| *first)
    }
}

/// Reads a branch.
///
/// # Errors
/// When it is missing or unreadable.
pub fn read_branch(tables: &dyn Tables, branch: BranchId) -> Result<Branch, StoreError> {
    tables.branch(branch)
}

/// Writes a branch.
pub fn write_branch(tables: &mut dyn TablesMut, branch: BranchId, value: &Branch) {
    tables.put(Table::Branches, &key::branch(branch), value.encode());
}

/// The branch a transaction writes to, and what of it snapshots and forks hold on to.
#[derive(Clone, Debug)]
pub struct Head {
    /// The branch.
    pub branch: BranchId,
    /// The first epoch of its own; what is older was inherited.
    pub first: EpochId,
    /// The epoch being written.
    pub epoch: EpochId,
    /// What was written up to here is seen by a snapshot or fork and must be kept.
    pub pinned: Option<EpochId>,
    /// What the head sees.
    pub view: Arc<View>,
}

impl Head {
    /// The head of a branch.
    ///
    /// # Errors
    /// When the branch is missing, closed or unreadable.
    pub fn of_branch<T: Tables + ?Sized>(tables: &T, branch: BranchId) -> Result<Self, StoreError> {
        let found = tables.branch(branch)?;
        if found.is_closed() {
            return Err(StoreError::Inconsistent { what: format!("branch {branch} is closed") });
        }
        let mut view = View::new(vec![(found.first, found.head)]);
        if let Some((origin, up_to)) = found.origin {
            view.intervals.extend(View::of_branch(tables, origin, up_to)?.intervals);
        }
        Ok(Self { branch, first: found.first, epoch: found.head, pinned: found.pinned, view: Arc::new(view) })
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
    let mut copy = Vec::new();
    let epoch = show_newest(tables, table, stem, view, &mut |value| copy = value.to_vec())?;
    Ok(epoch.map(|epoch| (epoch, copy)))
}

/// Shows the value of the newest version that a view sees, tombstones included; returns its epoch.
fn show_newest(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
    show: &mut dyn FnMut(&[u8]),
) -> Result<Option<EpochId>, StoreError> {
    let newest = view.newest();
    // What is written often was last written in this very epoch, and to look up is cheaper than to search.
    if tables.get_with(table, &key::versioned(stem, newest), show)? {
        return Ok(Some(newest));
    }
    show_newest_before(tables, table, stem, view, newest, show)
}

/// The same, but only versions older than an epoch.
fn show_newest_before(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
    before: EpochId,
    show: &mut dyn FnMut(&[u8]),
) -> Result<Option<EpochId>, StoreError> {
    let below = |epoch: EpochId| view.newest_from(EpochId(epoch.0.saturating_sub(1)));
    let mut next = below(before);
    while let Some(newest) = next {
        let start = key::versioned(stem, newest);
        let end = key::versioned(stem, EpochId(0));
        let (mut found, mut foreign) = (None, None);
        tables.scan(table, &start, Some(&end), &mut |key, value| {
            let Ok((found_stem, epoch)) = key::split_version(key) else { return ControlFlow::Continue(()) };
            // A longer stem that begins with this one is somebody else's.
            if found_stem.len() != stem.len() {
                return ControlFlow::Continue(());
            }
            if view.contains(epoch) {
                found = Some(epoch);
                show(value);
            } else {
                foreign = Some(epoch);
            }
            ControlFlow::Break(())
        })?;
        if found.is_some() {
            return Ok(found);
        }
        // A version of a sibling lies in between: leap over all of its kind.
        next = foreign.and_then(below);
    }
    Ok(None)
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
    visible_with(tables, table, stem, view, <[u8]>::to_vec)
}

/// The same for whoever takes from the value what is needed and copies nothing else.
///
/// # Errors
/// When the storage below fails.
pub fn visible_with<T>(
    tables: &dyn Tables,
    table: Table,
    stem: &[u8],
    view: &View,
    read: impl Fn(&[u8]) -> T,
) -> Result<Option<T>, StoreError> {
    let mut found = None;
    show_newest(tables, table, stem, view, &mut |value| {
        found = (!is_tombstone(value)).then(|| read(value));
    })?;
    Ok(found)
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

/// What a change found of a stem at the head: the epoch of its newest version, and whether that is a
/// tombstone.
pub(crate) type Before = Option<(EpochId, bool)>;

fn find_before(tables: &dyn Tables, head: &Head, table: Table, stem: &[u8]) -> Result<Before, StoreError> {
    let mut gone = false;
    let epoch = show_newest(tables, table, stem, &head.view, &mut |old| gone = is_tombstone(old))?;
    Ok(epoch.map(|epoch| (epoch, gone)))
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
    value: &[u8],
) -> Result<(), StoreError> {
    let before = find_before(tables, head, table, stem)?;
    put_over(tables, head, table, stem, before, value);
    Ok(())
}

/// Sets a stem at the head, over what was found there.
pub(crate) fn put_over(
    tables: &mut dyn TablesMut,
    head: &Head,
    table: Table,
    stem: &[u8],
    before: Before,
    value: &[u8],
) {
    let epoch = match before {
        Some((epoch, _)) if !head.is_pinned(epoch) => epoch,
        _ => {
            note_change(tables, head.epoch, table, stem);
            if let Some((epoch, false)) = before {
                note_death(tables, head, epoch, table, stem);
            }
            head.epoch
        }
    };
    tables.put_copy(table, &key::versioned(stem, epoch), value);
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
    let before = find_before(tables, head, table, stem)?;
    remove_over(tables, head, table, stem, before)
}

/// Removes a stem at the head, of which this was found there; says whether it was there.
pub(crate) fn remove_over(
    tables: &mut dyn TablesMut,
    head: &Head,
    table: Table,
    stem: &[u8],
    before: Before,
) -> Result<bool, StoreError> {
    let Some((epoch, false)) = before else { return Ok(false) };
    if head.is_pinned(epoch) {
        put_over(tables, head, table, stem, before, &TOMBSTONE);
    } else if has_value_under(tables, &head.view, table, stem, epoch)? {
        // What is under it must not come to light.
        tables.put(table, &key::versioned(stem, epoch), TOMBSTONE.to_vec());
    } else {
        drop_version(tables, table, stem, epoch);
    }
    Ok(true)
}

/// Whether under a version stands one that is no tombstone.
pub(crate) fn has_value_under(
    tables: &dyn Tables,
    view: &View,
    table: Table,
    stem: &[u8],
    epoch: EpochId,
) -> Result<bool, StoreError> {
    if epoch == view.oldest() {
        return Ok(false);
    }
    let mut value_under = false;
    show_newest_before(tables, table, stem, view, epoch, &mut |value| value_under = !is_tombstone(value))?;
    Ok(value_under)
}

/// Whether `changed` has notes of an epoch.
pub(crate) fn is_noted(epoch: EpochId) -> bool {
    epoch != first_epoch(BranchId(0))
}

/// Notes that a stem has a version of an epoch.
fn note_change(tables: &mut dyn TablesMut, epoch: EpochId, table: Table, stem: &[u8]) {
    if is_noted(epoch) {
        tables.put(Table::Changed, &key::changed(epoch, table, stem), value::wrap(&[]));
    }
}

/// Deletes a version that nothing sees any more, with its note.
pub(crate) fn drop_version(tables: &mut dyn TablesMut, table: Table, stem: &[u8], epoch: EpochId) {
    tables.delete(table, &key::versioned(stem, epoch));
    if is_noted(epoch) {
        tables.delete(Table::Changed, &key::changed(epoch, table, stem));
    }
}

/// What a note in `superseded` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dead {
    /// A version of a stem.
    Version { table: Table, stem: Vec<u8> },
    /// A reference in a window.
    Reference(ExtentRef),
}

impl Dead {
    /// Reads what stands behind branch, death and birth.
    pub(crate) fn decode(what: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "note of a death";
        let short = FormatError::Short { what: WHAT };
        match what.split_first().ok_or(short)? {
            (&NOTE_VERSION, rest) => {
                let (table, stem) = rest.split_first().ok_or(FormatError::Short { what: WHAT })?;
                Ok(Self::Version { table: Table::from_raw(*table)?, stem: stem.to_vec() })
            }
            (&NOTE_REFERENCE, rest) => {
                let (_, reference) =
                    rest.split_last_chunk::<EXTENT_REF_BYTES>().ok_or(FormatError::Short { what: WHAT })?;
                Ok(Self::Reference(ExtentRef::decode(reference)?))
            }
            (other, _) => Err(FormatError::Value { what: WHAT, field: "kind", value: u64::from(*other) }),
        }
    }
}

/// Notes that a version died at the head while a snapshot or fork still sees it.
fn note_death(tables: &mut dyn TablesMut, head: &Head, birth: EpochId, table: Table, stem: &[u8]) {
    let mut what = Vec::with_capacity(2 + stem.len());
    what.extend_from_slice(&[NOTE_VERSION, table as u8]);
    what.extend_from_slice(stem);
    note(tables, head, birth, &what);
}

/// Notes that a reference died at the head while a snapshot or fork still sees it.
pub(crate) fn note_reference(tables: &mut dyn TablesMut, head: &Head, stem: &[u8], reference: &ExtentRef) {
    let mut what = Vec::with_capacity(1 + stem.len() + EXTENT_REF_BYTES);
    what.push(NOTE_REFERENCE);
    what.extend_from_slice(stem);
    what.extend_from_slice(&reference.encode());
    note(tables, head, reference.birth, &what);
}

/// Notes a death, unless what died was inherited.
fn note(tables: &mut dyn TablesMut, head: &Head, birth: EpochId, what: &[u8]) {
    if birth >= head.first {
        let key = key::superseded(head.branch, head.epoch, birth, what);
        tables.put(Table::Superseded, &key, value::wrap(&[]));
    }
}
