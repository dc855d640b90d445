//! Changes in memory, ordered like the tables they will become.

mod key;

use crate::StoreError;
use crate::tables::{Tables, TablesMut, Visit, read_head};
use crate::versions::Head;
use aegisfs_base::BranchId;
use aegisfs_format::key::Table;
pub(crate) use key::Key;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

/// Memory that an entry takes besides key and value.
const ENTRY_OVERHEAD_BYTES: usize = 96;
/// Tables are found by number.
const TABLES: usize = 33;

/// A changed value, or that the key is gone.
pub(crate) type Change = Option<Arc<[u8]>>;
type Entries = BTreeMap<Key, Change>;

static NO_ENTRIES: Entries = Entries::new();

/// Changes since some checkpoint; absent keys are as they were there.
///
/// Every transaction begins with an empty one, so tables are made when something is put into them.
#[derive(Clone, Debug)]
pub(crate) struct Memtable {
    made: Vec<Entries>,
    /// By the number of a table, its place among those made, or `NOT_MADE`.
    places: [u8; TABLES],
    bytes: usize,
    entries: usize,
}

const NOT_MADE: u8 = u8::MAX;

impl Default for Memtable {
    fn default() -> Self {
        Self { made: Vec::new(), places: [NOT_MADE; TABLES], bytes: 0, entries: 0 }
    }
}

impl Memtable {
    pub(crate) fn table(&self, table: Table) -> &Entries {
        self.made.get(usize::from(self.places[table as usize])).unwrap_or(&NO_ENTRIES)
    }

    fn table_mut(&mut self, table: usize) -> &mut Entries {
        let place = &mut self.places[table];
        if *place == NOT_MADE {
            *place = self.made.len() as u8;
            self.made.push(Entries::new());
        }
        &mut self.made[usize::from(*place)]
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<&Change> {
        self.table(table).get(&Key::new(key))
    }

    pub(crate) fn set(&mut self, table: Table, key: &[u8], change: Change) {
        self.set_owned(table as usize, Key::new(key), change);
    }

    fn set_owned(&mut self, table: usize, key: Key, change: Change) {
        let (added, length) = (change.as_ref().map_or(0, |value| value.len()), key.len());
        match self.table_mut(table).insert(key, change) {
            Some(old) => self.bytes = self.bytes + added - old.map_or(0, |value| value.len()),
            None => {
                self.bytes += added + length + ENTRY_OVERHEAD_BYTES;
                self.entries += 1;
            }
        }
    }

    /// How many keys have changed.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Memory that the changes take, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes over everything from a later set of changes.
    pub(crate) fn absorb(&mut self, mut later: Memtable) {
        for number in 0..TABLES {
            let Some(entries) = later.made.get_mut(usize::from(later.places[number])) else { continue };
            for (key, change) in std::mem::take(entries) {
                self.set_owned(number, key, change);
            }
        }
    }

    /// The changes of a range, in order.
    pub(crate) fn range<'a>(
        &'a self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a Change)> + use<'a> {
        let entries = self.table(table);
        let empty = entries.is_empty() || end.is_some_and(|end| end <= start);
        let bounds = || {
            let to = end.map_or(Bound::Unbounded, |end| Bound::Excluded(Key::new(end)));
            (Bound::Included(Key::new(start)), to)
        };
        let range = if empty { None } else { Some(entries.range(bounds())) };
        range.into_iter().flatten().map(|(key, change)| (&key[..], change))
    }
}

/// Visits the union of changes over a base. There may be two sets of them, the first the newer one.
pub(crate) fn scan_layers<'a>(
    newer: impl Iterator<Item = (&'a [u8], &'a Change)>,
    older: impl Iterator<Item = (&'a [u8], &'a Change)>,
    base: &mut dyn FnMut(Visit<'_>) -> Result<(), StoreError>,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    let (mut newer, mut older) = (newer.peekable(), older.peekable());
    // Most of what is looked for has not changed since the last checkpoint.
    if newer.peek().is_none() && older.peek().is_none() {
        return base(visit);
    }
    // Visits every layered entry below `limit`; says whether to go on.
    let mut drain = |limit: Option<&[u8]>, visit: Visit<'_>| -> (ControlFlow<()>, bool) {
        loop {
            let next = newer.peek().into_iter().chain(older.peek()).map(|(key, _)| *key).min();
            let Some(key) = next.filter(|key| limit.is_none_or(|limit| *key <= limit)) else {
                return (ControlFlow::Continue(()), false);
            };
            let (new, old) = (newer.next_if(|(k, _)| *k == key), older.next_if(|(k, _)| *k == key));
            let newest = new.or(old).map(|(_, change)| change);
            let covers_limit = limit == Some(key);
            if let Some(Some(value)) = newest
                && visit(key, value).is_break()
            {
                return (ControlFlow::Break(()), covers_limit);
            }
            if covers_limit {
                return (ControlFlow::Continue(()), true);
            }
        }
    };
    let mut stopped = false;
    base(&mut |key, value| {
        let (flow, covered) = drain(Some(key), visit);
        let flow = if flow.is_continue() && !covered { visit(key, value) } else { flow };
        stopped = flow.is_break();
        flow
    })?;
    if !stopped {
        let _ = drain(None, visit);
    }
    Ok(())
}

/// A set of changes on top of other tables: what a transaction does before it is known to succeed.
pub(crate) struct Scratch<'a> {
    below: &'a dyn Tables,
    pub(crate) changes: Memtable,
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(below: &'a dyn Tables) -> Self {
        Self { below, changes: Memtable::default() }
    }
}

impl Tables for Scratch<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(table, key) {
            Some(change) => Ok(change.as_ref().map(|value| value.to_vec())),
            None => self.below.get(table, key),
        }
    }

    fn get_with(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, StoreError> {
        match self.changes.get(table, key) {
            Some(Some(value)) => visit(value),
            Some(None) => return Ok(false),
            None => return self.below.get_with(table, key, visit),
        }
        Ok(true)
    }

    fn head(&self, branch: BranchId) -> Result<Arc<Head>, StoreError> {
        if self.changes.table(Table::Branches).is_empty() {
            return self.below.head(branch);
        }
        read_head(self, branch)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        let mut base = |visit: Visit<'_>| self.below.scan(table, start, end, visit);
        scan_layers(self.changes.range(table, start, end), std::iter::empty(), &mut base, visit)
    }
}

impl TablesMut for Scratch<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.put_copy(table, key, &value);
    }

    fn put_copy(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.changes.set(table, key, Some(value.into()));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.changes.set(table, key, None);
    }
}

/// Tables that are nothing but ordered maps: for models and tests of the apply function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapTables {
    entries: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl MapTables {
    /// Every entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.entries.iter().map(|((table, key), value)| (*table, &key[..], &value[..]))
    }
}

impl Tables for MapTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.entries.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        let beyond = |key: &[u8]| end.is_some_and(|end| key >= end);
        for ((found, key), value) in self.entries.range((table, start.to_vec())..) {
            if *found != table || beyond(key) || visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl TablesMut for MapTables {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.entries.insert((table, key.to_vec()), value);
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.entries.remove(&(table, key.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_hide_and_add() {
        let mut base = MapTables::default();
        for n in [2u8, 4, 6, 8] {
            base.put(Table::Config, &[n], vec![n]);
        }
        let (mut older, mut newer) = (Memtable::default(), Memtable::default());
        let value = |n: u8| Some(Arc::from([n]));
        older.set(Table::Config, &[4], None);
        older.set(Table::Config, &[5], value(50));
        older.set(Table::Config, &[6], value(60));
        newer.set(Table::Config, &[6], None);
        newer.set(Table::Config, &[4], value(41));
        newer.set(Table::Config, &[9], value(90));
        let collect = |start: &[u8], end: Option<&[u8]>, stop: usize| {
            let mut seen = Vec::new();
            let mut below = |visit: Visit<'_>| base.scan(Table::Config, start, end, visit);
            scan_layers(
                newer.range(Table::Config, start, end),
                older.range(Table::Config, start, end),
                &mut below,
                &mut |k, v| {
                    seen.push((k[0], v[0]));
                    if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                },
            )
            .unwrap();
            seen
        };
        assert_eq!(collect(&[], None, 99), [(2, 2), (4, 41), (5, 50), (8, 8), (9, 90)]);
        assert_eq!(collect(&[5], Some(&[9]), 99), [(5, 50), (8, 8)]);
        for stop in 1..=5 {
            assert_eq!(collect(&[], None, stop).len(), stop);
        }
        assert!(collect(&[7], Some(&[3]), 99).is_empty());
    }

    #[test]
    fn memory_is_counted() {
        let mut table = Memtable::default();
        table.set(Table::Config, b"k", Some(Arc::from(&[0u8; 100][..])));
        let full = table.bytes();
        table.set(Table::Config, b"k", None);
        assert_eq!(table.bytes(), full - 100);
        let mut other = Memtable::default();
        other.absorb(table);
        assert_eq!(other.bytes(), full - 100);
    }
}
