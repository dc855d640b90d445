//! Giving back what nothing sees any more, in batches, so that memory does not grow with what is freed.

use crate::StoreError;
use crate::apply::{Effects, References};
use crate::tables::{Tables, TablesMut};
use crate::versions::{Dead, View, drop_version, has_value_under, is_noted};
use aegisfs_base::{BranchId, EpochId};
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::is_tombstone;
use std::ops::{ControlFlow, RangeInclusive};

/// Entries gathered before they are acted upon.
const BATCH: usize = 1024;

/// The key of an entry.
type Key = Vec<u8>;
/// Epochs, both ends included.
type Epochs = RangeInclusive<EpochId>;

/// Frees what was born in these epochs of a branch and died behind them, up to `seen_next`: the pin that
/// follows, or the head.
pub(super) fn what_died(
    tables: &mut dyn TablesMut,
    branch: BranchId,
    born: Epochs,
    seen_next: EpochId,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let view = View::of_branch(tables, branch, seen_next)?;
    let end = key::superseded(branch, seen_next.next(), EpochId(0), &[]);
    let mut cursor = key::superseded(branch, born.end().next(), *born.start(), &[]);
    loop {
        let (batch, next) = deaths(tables, &cursor, &end, branch, &born)?;
        let mut references = References::default();
        for note in &batch {
            let (_, birth, what) = key::split_superseded(note)?;
            match Dead::decode(what)? {
                Dead::Reference(reference) => {
                    references.drop_one(tables, reference.chunk, reference.length)?;
                }
                Dead::Version { table, stem } => {
                    drop_version(tables, table, &stem, birth);
                    drop_tombstone_over(tables, &view, table, &stem, birth)?;
                }
            }
            tables.delete(Table::Superseded, note);
        }
        references.settle(tables, effects)?;
        match next {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

/// Notes of deaths from a place on, of what was born in these epochs; and the place to go on from, if any.
fn deaths(
    tables: &dyn Tables,
    start: &[u8],
    end: &[u8],
    branch: BranchId,
    born: &Epochs,
) -> Result<(Vec<Key>, Option<Key>), StoreError> {
    let mut batch = Vec::new();
    let mut next = Ok(None);
    tables.scan(Table::Superseded, start, Some(end), &mut |key, _| {
        let (death, birth) = match key::split_superseded(key) {
            Ok((death, birth, _)) => (death, birth),
            Err(error) => {
                next = Err(error);
                return ControlFlow::Break(());
            }
        };
        // Within a death the births are in order: leap to the first that counts, or past the last.
        if birth < *born.start() {
            next = Ok(Some(key::superseded(branch, death, *born.start(), &[])));
        } else if birth > *born.end() {
            next = Ok(Some(key::superseded(branch, death.next(), *born.start(), &[])));
        } else if batch.len() == BATCH {
            next = Ok(Some(key.to_vec()));
        } else {
            batch.push(key.to_vec());
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(())
    })?;
    Ok((batch, next?))
}

/// Drops the tombstone right above a version that went, if it hides nothing any more.
fn drop_tombstone_over(
    tables: &mut dyn TablesMut,
    view: &View,
    table: Table,
    stem: &[u8],
    gone: EpochId,
) -> Result<(), StoreError> {
    let mut above = None;
    let (newest, oldest) = (key::versioned(stem, view.newest()), key::versioned(stem, gone));
    tables.scan(table, &newest, Some(&oldest), &mut |key, value| {
        if let Ok((found, epoch)) = key::split_version(key)
            && found == stem
        {
            above = Some((epoch, is_tombstone(value)));
        }
        ControlFlow::Continue(())
    })?;
    if let Some((epoch, true)) = above
        && !has_value_under(tables, view, table, stem, epoch)?
    {
        drop_version(tables, table, stem, epoch);
    }
    Ok(())
}

/// Frees everything that was born in these last epochs of a branch, and the notes of what died in them.
pub(super) fn everything_born(
    tables: &mut dyn TablesMut,
    born: Epochs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let (first, last) = (*born.start(), *born.end());
    if !is_noted(first) {
        for table in Table::ALL.into_iter().filter(|table| table.versioned()) {
            drop_epoch_of(tables, table, first, effects)?;
        }
    }
    let (start, end) = (first.0.to_be_bytes(), last.next().0.to_be_bytes());
    loop {
        let batch = keys(tables, Table::Changed, &start, &end)?;
        let mut references = References::default();
        for note in &batch {
            let (epoch, table, stem) = key::split_changed(note)?;
            drop_whole_version(tables, table, &stem, epoch, first, &mut references)?;
        }
        references.settle(tables, effects)?;
        if batch.is_empty() {
            break;
        }
    }
    let branch = aegisfs_format::value::branch_of(first);
    let start = key::superseded(branch, first, EpochId(0), &[]);
    let end = key::superseded(branch, last.next(), EpochId(0), &[]);
    drop_keys(tables, Table::Superseded, &start, &end)
}

/// Drops a version, and with it the references in it that were born since an epoch. Behind the last pin
/// there is one version of a stem, so no other holds the same references.
fn drop_whole_version(
    tables: &mut dyn TablesMut,
    table: Table,
    stem: &[u8],
    epoch: EpochId,
    since: EpochId,
    references: &mut References,
) -> Result<(), StoreError> {
    if table == Table::Extents {
        let stored = tables.get(table, &key::versioned(stem, epoch))?;
        for reference in match &stored {
            Some(stored) if !is_tombstone(stored) => decode_window(stored)?,
            _ => Vec::new(),
        } {
            if reference.birth >= since {
                references.drop_one(tables, reference.chunk, reference.length)?;
            }
        }
    }
    drop_version(tables, table, stem, epoch);
    Ok(())
}

/// Drops all versions of an epoch that has no notes, which takes a walk through the table. Only the end of
/// a pool's very first branch comes here.
fn drop_epoch_of(
    tables: &mut dyn TablesMut,
    table: Table,
    epoch: EpochId,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let mut cursor = Vec::new();
    loop {
        let mut batch: Vec<Key> = Vec::new();
        let mut next = None;
        tables.scan(table, &cursor, None, &mut |key, _| {
            if key::split_version(key).is_ok_and(|(_, found)| found == epoch) {
                if batch.len() == BATCH {
                    next = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                batch.push(key.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        let mut references = References::default();
        for key in &batch {
            let (stem, _) = key::split_version(key)?;
            drop_whole_version(tables, table, stem, epoch, epoch, &mut references)?;
        }
        references.settle(tables, effects)?;
        match next {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

/// Drops the bytes of a branch that stand only in the log.
pub(super) fn pending(tables: &mut dyn TablesMut, branch: BranchId) -> Result<(), StoreError> {
    let end = key::branch(BranchId(branch.0.saturating_add(1)));
    drop_keys(tables, Table::Pending, &key::branch(branch), &end)
}

fn drop_keys(tables: &mut dyn TablesMut, table: Table, start: &[u8], end: &[u8]) -> Result<(), StoreError> {
    loop {
        let batch = keys(tables, table, start, end)?;
        for key in &batch {
            tables.delete(table, key);
        }
        if batch.len() < BATCH {
            return Ok(());
        }
    }
}

fn keys(tables: &dyn Tables, table: Table, start: &[u8], end: &[u8]) -> Result<Vec<Key>, StoreError> {
    let mut batch = Vec::new();
    tables.scan(table, start, Some(end), &mut |key, _| {
        if batch.len() == BATCH {
            return ControlFlow::Break(());
        }
        batch.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(batch)
}
