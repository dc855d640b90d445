//! What history costs: a snapshot the same whatever there is, a deletion as much as it frees.

use aegisfs_base::{BranchId, EpochId, InodeId, Sequence, Timestamp};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{Op, Transaction};
use aegisfs_format::value::{self, Branch};
use aegisfs_store::apply::apply;
use aegisfs_store::branches::{create_snapshot, delete_branch, delete_snapshot, fork};
use aegisfs_store::versions::{read_branch, write_branch};
use aegisfs_store::{MapTables, StoreError, Tables, TablesMut, Visit};
use std::cell::Cell;
use std::ops::ControlFlow;

const MAIN: BranchId = BranchId(0);

/// Counts what is asked of the tables below.
#[derive(Default)]
struct Counting {
    below: MapTables,
    looked_up: Cell<usize>,
    scans: Cell<usize>,
    visited: Cell<usize>,
    written: usize,
}

impl Tables for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.looked_up.set(self.looked_up.get() + 1);
        self.below.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        self.scans.set(self.scans.get() + 1);
        self.below.scan(table, start, end, &mut |key, value| {
            self.visited.set(self.visited.get() + 1);
            visit(key, value)
        })
    }
}

impl TablesMut for Counting {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.written += 1;
        self.below.put(table, key, value);
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.written += 1;
        self.below.delete(table, key);
    }
}

impl Counting {
    fn pool() -> Self {
        let mut tables = Self::default();
        let first = EpochId(1);
        write_branch(&mut tables, MAIN, &Branch { origin: None, first, head: first, pinned: None });
        tables
    }

    /// Everything asked of the tables by an act: look-ups, scans and what they visited, writes.
    fn cost(&mut self, act: impl FnOnce(&mut Self)) -> usize {
        let sum = |t: &Self| t.looked_up.get() + t.scans.get() + t.visited.get() + t.written;
        let before = sum(self);
        act(self);
        sum(self) - before
    }

    fn change(&mut self, branch: BranchId, op: impl Fn(Vec<u8>) -> Op, inodes: std::ops::Range<u64>) {
        let epoch = read_branch(self, branch).unwrap().head;
        let ops = inodes.map(|inode| op(key::inode(InodeId(inode)).to_vec())).collect();
        apply(self, &Transaction { sequence: Sequence(1), branch, epoch, ops }).unwrap();
    }

    fn put(&mut self, branch: BranchId, inodes: std::ops::Range<u64>) {
        self.change(
            branch,
            |stem| Op::PutVersion { table: Table::Inline, stem, value: value::wrap(b"v") },
            inodes,
        );
    }

    fn remove(&mut self, branch: BranchId, inodes: std::ops::Range<u64>) {
        self.change(branch, |stem| Op::RemoveVersion { table: Table::Inline, stem }, inodes);
    }

    fn snapshot(&mut self, name: &str) -> EpochId {
        create_snapshot(self, MAIN, name.as_bytes(), Timestamp(0)).unwrap()
    }

    fn count(&self, table: Table) -> usize {
        let mut count = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            count += 1;
            ControlFlow::Continue(())
        };
        self.below.scan_prefix(table, &[], &mut visit).unwrap();
        count
    }
}

#[test]
fn a_snapshot_costs_the_same_whatever_there_is() {
    let mut tables = Counting::pool();
    let empty = tables.cost(|tables| {
        tables.snapshot("a");
    });
    tables.put(MAIN, 0..5000);
    let full = tables.cost(|tables| {
        tables.snapshot("b");
    });
    assert_eq!(full, empty);
    assert!(empty < 10, "{empty}");
}

#[test]
fn deleting_a_snapshot_costs_what_it_frees() {
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..5000);
    tables.snapshot("kept");
    tables.put(MAIN, 0..3000);
    tables.snapshot("middle");
    tables.put(MAIN, 0..100);
    tables.snapshot("last");
    tables.put(MAIN, 50..3000);
    let before = tables.count(Table::Inline);
    let cost = tables.cost(|tables| drop(delete_snapshot(tables, MAIN, b"middle").unwrap()));
    // For each version: its note is found, version and both notes are deleted, and the version above is
    // looked at, which takes a scan that visits one.
    assert_eq!(before - tables.count(Table::Inline), 100);
    assert!(cost < 100 * 6 + 30, "{cost}");
}

#[test]
fn what_was_removed_goes_with_its_tombstone_at_a_bounded_cost() {
    let mut tables = Counting::pool();
    tables.snapshot("empty");
    tables.put(MAIN, 0..5000);
    tables.snapshot("full");
    tables.remove(MAIN, 0..100);
    let cost = tables.cost(|tables| drop(delete_snapshot(tables, MAIN, b"full").unwrap()));
    assert_eq!(tables.count(Table::Inline), 4900);
    assert_eq!(tables.count(Table::Changed), 4900);
    assert!(cost < 100 * 10 + 30, "{cost}");
}

#[test]
fn deleting_a_clone_costs_what_was_written_to_it() {
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..5000);
    let at = tables.snapshot("base");
    let clone = fork(&mut tables, at).unwrap();
    tables.put(clone, 100..150);
    tables.remove(clone, 0..50);
    tables.put(MAIN, 0..5000);
    let cost = tables.cost(|tables| drop(delete_branch(tables, clone).unwrap()));
    assert_eq!(tables.count(Table::Inline), 10_000);
    assert!(cost < 100 * 6 + 30, "{cost}");
}

#[test]
fn epochs_in_which_nothing_died_are_leapt_over() {
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..10);
    tables.snapshot("first");
    for n in 0..500 {
        tables.put(MAIN, 100 + n..101 + n);
        tables.snapshot("passing");
        delete_snapshot(&mut tables, MAIN, b"passing").unwrap();
    }
    tables.put(MAIN, 0..10);
    let cost = tables.cost(|tables| drop(delete_snapshot(tables, MAIN, b"first").unwrap()));
    assert_eq!(tables.count(Table::Superseded), 0);
    assert!(cost < 10 * 6 + 30, "{cost}");
}

#[test]
fn siblings_are_leapt_over() {
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..1);
    let at = tables.snapshot("base");
    let clones: Vec<_> = (0..200).map(|_| fork(&mut tables, at).unwrap()).collect();
    for clone in &clones[..199] {
        tables.put(*clone, 0..1);
    }
    let cost = tables.cost(|tables| tables.put(clones[199], 0..1));
    assert!(cost < 20, "{cost}");
}

#[test]
fn what_takes_several_batches_is_freed_to_the_end() {
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..2500);
    tables.snapshot("a");
    tables.put(MAIN, 0..2500);
    delete_snapshot(&mut tables, MAIN, b"a").unwrap();
    assert_eq!(tables.count(Table::Inline), 2500);
    assert_eq!(tables.count(Table::Superseded), 0);
    // Written in the pool's first epoch, of which no notes are kept.
    let mut tables = Counting::pool();
    tables.put(MAIN, 0..2500);
    tables.snapshot("b");
    tables.put(MAIN, 0..2500);
    delete_branch(&mut tables, MAIN).unwrap();
    assert_eq!((tables.count(Table::Inline), tables.count(Table::Superseded)), (2500, 0));
    delete_snapshot(&mut tables, MAIN, b"b").unwrap();
    assert_eq!(tables.below, MapTables::default());
}
