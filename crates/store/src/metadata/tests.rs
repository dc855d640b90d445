//! What readers see of the changes, and when.

use super::*;
use crate::memtable::{MapTables, Scratch};
use crate::tables::TablesMut;
use crate::versions::{View, read_branch, write_branch};
use aegisfs_base::{EpochId, Rng, SeededRng};
use aegisfs_format::value::{Branch, first_epoch};
use aegisfs_kv::{MemoryBacking, MemoryKv, RedbKv};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAIN: BranchId = BranchId(0);
const FORK: BranchId = BranchId(1);

fn change(metadata: &Metadata, change: impl FnOnce(&mut Scratch<'_>)) {
    let view = metadata.view();
    let mut scratch = Scratch::new(&view);
    change(&mut scratch);
    metadata.absorb(scratch.changes);
}

fn head_at(tables: &mut dyn TablesMut, branch: BranchId, head: EpochId) {
    let first = first_epoch(branch);
    write_branch(tables, branch, &Branch { origin: None, first, head, pinned: None });
}

/// A main branch at its first epoch.
fn with_branch() -> Metadata {
    let metadata = Metadata::new(Box::new(MemoryKv::new())).unwrap();
    change(&metadata, |tables| head_at(tables, MAIN, first_epoch(MAIN)));
    metadata
}

#[test]
fn a_changed_branch_is_seen_at_once() {
    let metadata = with_branch();
    let (view, first) = (metadata.view(), first_epoch(MAIN));
    let before = view.head(MAIN).unwrap();
    assert_eq!((before.epoch, before.view.newest()), (first, first));
    assert!(Arc::ptr_eq(&before, &view.head(MAIN).unwrap()), "it is kept");
    change(&metadata, |tables| head_at(tables, MAIN, first.next()));
    let after = view.head(MAIN).unwrap();
    assert_eq!((after.epoch, after.view.newest()), (first.next(), first.next()));
    // A fork sees what its origin had, and goes with its entry.
    change(&metadata, |tables| {
        let own = first_epoch(FORK);
        let fork = Branch { origin: Some((MAIN, first)), first: own, head: own, pinned: Some(first) };
        write_branch(tables, FORK, &fork);
    });
    let own = first_epoch(FORK);
    assert_eq!(*view.head(FORK).unwrap().view, View::new(vec![(own, own), (first, first)]));
    change(&metadata, |tables| tables.delete(Table::Branches, &key::branch(FORK)));
    assert!(view.head(FORK).is_err());
    change(&metadata, |tables| head_at(tables, MAIN, EpochId(0)));
    assert!(view.head(MAIN).is_err(), "it is closed");
}

#[test]
fn what_was_read_while_a_branch_changed_is_not_kept() {
    let metadata = with_branch();
    let (view, first) = (metadata.view(), first_epoch(MAIN));
    let read = || {
        let old = read_head(&view, MAIN);
        change(&metadata, |tables| head_at(tables, MAIN, first.next()));
        old
    };
    assert_eq!(metadata.head(MAIN, read).unwrap().epoch, first, "it was asked for before");
    assert_eq!(view.head(MAIN).unwrap().epoch, first.next());
}

#[test]
fn a_change_sees_the_branches_that_it_has_changed_itself() {
    let metadata = with_branch();
    let (view, first) = (metadata.view(), first_epoch(MAIN));
    assert_eq!(view.head(MAIN).unwrap().epoch, first);
    let mut scratch = Scratch::new(&view);
    scratch.put(Table::Config, b"other", vec![0]);
    assert_eq!(scratch.head(MAIN).unwrap().epoch, first);
    head_at(&mut scratch, MAIN, first.next());
    assert_eq!(scratch.head(MAIN).unwrap().epoch, first.next());
    assert_eq!(view.head(MAIN).unwrap().epoch, first, "nothing has happened yet");
    drop(scratch);
    assert_eq!(view.head(MAIN).unwrap().epoch, first);
}

/// Whoever looks after a change was acknowledged sees it, however many look at the same time.
#[test]
fn nobody_sees_an_old_branch_after_a_change() {
    const CHANGES: u64 = 20_000;
    let metadata = with_branch();
    let (acknowledged, over) = (AtomicU64::new(first_epoch(MAIN).0), AtomicBool::new(false));
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let view = metadata.view();
                let mut last = EpochId(0);
                start.wait();
                while !over.load(Ordering::Acquire) {
                    let least = acknowledged.load(Ordering::Acquire);
                    let head = view.head(MAIN).unwrap();
                    assert!(head.epoch.0 >= least, "{} was seen after {least}", head.epoch);
                    assert!(head.epoch >= last, "{} was seen after {last}", head.epoch);
                    assert_eq!(head.view.newest(), head.epoch);
                    last = head.epoch;
                }
            });
        }
        start.wait();
        for _ in 0..CHANGES {
            let next = read_branch(&metadata.view(), MAIN).unwrap().head.next();
            change(&metadata, |tables| head_at(tables, MAIN, next));
            acknowledged.store(next.0, Ordering::Release);
            assert_eq!(metadata.view().head(MAIN).unwrap().epoch, next);
        }
        over.store(true, Ordering::Release);
    });
}

/// Every way to read, on all layers, against a plain map.
fn agrees_with_a_map(kv: Box<dyn OrderedKv>, seed: u64) {
    const TABLES: [Table; 3] = [Table::Pending, Table::Xattr, Table::Config];
    let rng = SeededRng::new(seed);
    let metadata = Metadata::new(kv).unwrap();
    let mut model = MapTables::default();
    let mut frozen = None;
    // Keys of all lengths, short and long, many of which begin alike.
    let key = || vec![rng.below(2) as u8; rng.below(4) as usize * 12 + rng.below(3) as usize];
    for step in 0..1500u32 {
        match rng.below(12) {
            0 if frozen.is_none() => frozen = Some(metadata.freeze()),
            1 => {
                if let Some(frozen) = frozen.take() {
                    metadata.commit_frozen(&frozen, &BTreeMap::new()).unwrap();
                    metadata.thaw().unwrap();
                }
            }
            _ => {
                let (table, key, put) = (TABLES[rng.below(3) as usize], key(), rng.below(3) > 0);
                let value = step.to_be_bytes();
                change(&metadata, |tables| match put {
                    true => tables.put_copy(table, &key, &value),
                    false => tables.delete(table, &key),
                });
                if put { model.put(table, &key, value.to_vec()) } else { model.delete(table, &key) }
            }
        }
        let (view, table, one, other) = (metadata.view(), TABLES[rng.below(3) as usize], key(), key());
        let expected = model.get(table, &one).unwrap();
        assert_eq!(view.get(table, &one).unwrap(), expected);
        let mut shown = None;
        let there = view.get_with(table, &one, &mut |value| shown = Some(value.to_vec())).unwrap();
        assert_eq!((there, &shown), (expected.is_some(), &expected));
        let end = (rng.below(2) == 0).then_some(&other[..]);
        let most = 1 + rng.below(8) as usize;
        let collect = |tables: &dyn Tables| {
            let mut seen = Vec::new();
            let mut see = |key: &[u8], value: &[u8]| {
                seen.push((key.to_vec(), value.to_vec()));
                if seen.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            tables.scan(table, &one, end, &mut see).unwrap();
            seen
        };
        assert_eq!(collect(&view), collect(&model));
    }
}

#[test]
fn all_layers_together_read_like_one_map() {
    for seed in 0..10 {
        agrees_with_a_map(Box::new(MemoryKv::new()), seed);
    }
    let kv = RedbKv::create(MemoryBacking::new(), 1 << 20).unwrap();
    agrees_with_a_map(Box::new(kv), 10);
}

/// A scan of more changes than are taken under the lock at a time.
#[test]
fn long_scans_take_several_batches() {
    let metadata = Metadata::new(Box::new(MemoryKv::new())).unwrap();
    let count = SCAN_BATCH as u32 * 2 + 7;
    change(&metadata, |tables| {
        (0..count).for_each(|n| tables.put_copy(Table::Pending, &n.to_be_bytes(), &[1]));
    });
    let mut next = 0u32;
    let mut see = |key: &[u8], _: &[u8]| {
        assert_eq!(key, next.to_be_bytes());
        next += 1;
        ControlFlow::Continue(())
    };
    metadata.view().scan(Table::Pending, &[], None, &mut see).unwrap();
    assert_eq!(next, count);
}
