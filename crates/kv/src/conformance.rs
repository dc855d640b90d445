//! One suite that every engine passes, on every backing.
//!
//! A test hands [`all`] a factory and, for random histories, [`agrees_with_a_model`] a list of
//! [`Step`]s. Everything in here panics when the engine is wrong, as tests do.

use crate::{KEY_BYTES_MAX, KvError, KvSnapshot, OrderedKv, TABLES_MAX, TableId, VALUE_BYTES_MAX};
use aegisfs_base::FaultKind;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

/// An engine under test that can be closed and opened again.
pub trait Subject {
    /// The engine.
    fn kv(&self) -> &dyn OrderedKv;
    /// Closes it and opens it again on what it stored.
    fn reopen(&mut self);
}

type Make<'a> = &'a dyn Fn() -> Box<dyn Subject>;
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

const A: TableId = TableId(0);
const B: TableId = TableId(7);

/// Runs every case on a fresh engine each.
pub fn all(make: Make<'_>) {
    empty_tables_read_as_empty(make);
    what_was_put_is_read_and_what_was_deleted_is_gone(make);
    ranges_keep_their_edges(make);
    entries_come_in_order(make);
    a_snapshot_does_not_change(make);
    a_transaction_sees_its_own_writes(make);
    a_dropped_transaction_leaves_nothing(make);
    commits_survive_reopening(make);
    large_values_and_long_keys(make);
    every_table_is_its_own(make);
    limits_are_refused_and_harm_nothing(make);
    readers_run_beside_a_writer(make);
}

fn write(kv: &dyn OrderedKv, table: TableId, entries: &[(&[u8], &[u8])]) {
    let mut transaction = kv.begin().expect("begin");
    for (key, value) in entries {
        transaction.put(table, key, value).expect("put");
    }
    transaction.commit().expect("commit");
}

fn view(kv: &dyn OrderedKv) -> Arc<dyn KvSnapshot> {
    kv.snapshot().expect("snapshot")
}

/// Everything in a range, read in both directions, which must agree.
fn entries(snapshot: &dyn KvSnapshot, table: TableId, start: &[u8], end: Option<&[u8]>) -> Entries {
    let mut forward = Entries::new();
    snapshot
        .scan(table, start, end, &mut |key, value| {
            forward.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("scan");
    let mut backward = Entries::new();
    snapshot
        .scan_back(table, start, end, &mut |key, value| {
            backward.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("scan back");
    backward.reverse();
    assert_eq!(forward, backward, "both directions show the same entries");
    forward
}

fn keys(snapshot: &dyn KvSnapshot, table: TableId, start: &[u8], end: Option<&[u8]>) -> Vec<Vec<u8>> {
    entries(snapshot, table, start, end).into_iter().map(|(key, _)| key).collect()
}

fn empty_tables_read_as_empty(make: Make<'_>) {
    let subject = make();
    let snapshot = view(subject.kv());
    assert_eq!(snapshot.get(A, b"x").expect("get"), None);
    assert!(entries(&*snapshot, A, b"", None).is_empty());
    assert_eq!(snapshot.count(A).expect("count"), 0);
    assert_eq!(snapshot.usage(A).expect("usage").entries, 0);
    assert_eq!(snapshot.last(A, b"", None).expect("last"), None);
    subject.kv().begin().expect("begin").commit().expect("an empty commit is fine");
}

fn what_was_put_is_read_and_what_was_deleted_is_gone(make: Make<'_>) {
    let subject = make();
    write(subject.kv(), A, &[(b"", b"empty key"), (b"a", b"1"), (b"b", b""), (b"a\0", b"2")]);
    let mut transaction = subject.kv().begin().expect("begin");
    transaction.put(A, b"a", b"one").expect("put");
    transaction.delete(A, b"a\0").expect("delete");
    transaction.delete(A, b"never there").expect("deleting nothing is no error");
    transaction.delete(B, b"never there").expect("in an empty table too");
    transaction.commit().expect("commit");
    let snapshot = view(subject.kv());
    let expected: [(&[u8], Option<&[u8]>); 4] =
        [(b"", Some(b"empty key")), (b"a", Some(b"one")), (b"b", Some(b"")), (b"a\0", None)];
    for (key, value) in expected {
        assert_eq!(snapshot.get(A, key).expect("get").as_deref(), value, "{key:?}");
    }
    assert_eq!(snapshot.count(A).expect("count"), 3);
    assert_eq!(snapshot.usage(A).expect("usage").entries, 3);
}

fn ranges_keep_their_edges(make: Make<'_>) {
    let subject = make();
    write(subject.kv(), A, &[(b"b", b""), (b"c", b""), (b"cc", b""), (b"d", b"")]);
    let snapshot = view(subject.kv());
    type Case<'a> = (&'a [u8], Option<&'a [u8]>, &'a [&'a [u8]]);
    let cases: [Case<'_>; 8] = [
        (b"", None, &[b"b", b"c", b"cc", b"d"]),
        (b"b", Some(b"d"), &[b"b", b"c", b"cc"]),
        (b"b\0", Some(b"cc"), &[b"c"]),
        (b"c", Some(b"c"), &[]),
        (b"d", Some(b"b"), &[]),
        (b"d", None, &[b"d"]),
        (b"e", None, &[]),
        (b"", Some(b""), &[]),
    ];
    for (start, end, expected) in cases {
        assert_eq!(keys(&*snapshot, A, start, end), expected, "{start:?} to {end:?}");
    }
    assert_eq!(snapshot.last(A, b"", Some(b"cc")).expect("last").map(|e| e.0).as_deref(), Some(&b"c"[..]));
    assert_eq!(snapshot.first(A, b"c\0", None).expect("first").map(|e| e.0).as_deref(), Some(&b"cc"[..]));
    let mut seen = 0;
    snapshot
        .scan(A, b"", None, &mut |_, _| {
            seen += 1;
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("scan");
    assert_eq!(seen, 2, "a visitor that breaks sees no more");
}

fn entries_come_in_order(make: Make<'_>) {
    let subject = make();
    let mut transaction = subject.kv().begin().expect("begin");
    for number in (0..5000_u32).rev() {
        let scattered = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
        transaction.put(A, &scattered, &number.to_be_bytes()).expect("put");
    }
    transaction.commit().expect("commit");
    let all = keys(&*view(subject.kv()), A, b"", None);
    assert_eq!(all.len(), 5000);
    assert!(all.is_sorted(), "keys ascend bytewise");
}

fn a_snapshot_does_not_change(make: Make<'_>) {
    let subject = make();
    write(subject.kv(), A, &[(b"k", b"old"), (b"gone", b"here")]);
    let before = view(subject.kv());
    let mut transaction = subject.kv().begin().expect("begin");
    transaction.put(A, b"k", b"new").expect("put");
    transaction.delete(A, b"gone").expect("delete");
    transaction.put(B, b"table", b"made later").expect("put");
    let during = view(subject.kv());
    transaction.commit().expect("commit");
    for round in 0..50_u8 {
        write(subject.kv(), A, &[(b"k", &[round]), (&[b'z', round], &[round; 3000])]);
    }
    for old in [&before, &during] {
        assert_eq!(old.get(A, b"k").expect("get").as_deref(), Some(&b"old"[..]));
        assert_eq!(keys(&**old, A, b"", None), [b"gone".to_vec(), b"k".to_vec()]);
        assert_eq!(old.get(B, b"table").expect("get"), None);
    }
    assert_eq!(view(subject.kv()).get(A, b"k").expect("get").as_deref(), Some(&[49][..]));
}

fn a_transaction_sees_its_own_writes(make: Make<'_>) {
    let subject = make();
    write(subject.kv(), A, &[(b"a", b"1")]);
    let mut transaction = subject.kv().begin().expect("begin");
    assert_eq!(transaction.get(A, b"a").expect("get").as_deref(), Some(&b"1"[..]));
    assert_eq!(transaction.get(B, b"a").expect("get"), None);
    transaction.put(A, b"a", b"2").expect("put");
    assert_eq!(transaction.get(A, b"a").expect("get").as_deref(), Some(&b"2"[..]));
    transaction.delete(A, b"a").expect("delete");
    assert_eq!(transaction.get(A, b"a").expect("get"), None);
    transaction.put(A, b"a", b"3").expect("put");
    transaction.commit().expect("commit");
    assert_eq!(view(subject.kv()).get(A, b"a").expect("get").as_deref(), Some(&b"3"[..]));
}

fn a_dropped_transaction_leaves_nothing(make: Make<'_>) {
    let subject = make();
    write(subject.kv(), A, &[(b"a", b"1")]);
    let mut transaction = subject.kv().begin().expect("begin");
    for number in 0..5000_u32 {
        transaction.put(A, &number.to_be_bytes(), &[7; 300]).expect("put");
    }
    transaction.delete(A, b"a").expect("delete");
    drop(transaction);
    assert_eq!(keys(&*view(subject.kv()), A, b"", None), [b"a".to_vec()]);
    write(subject.kv(), A, &[(b"b", b"2")]);
    assert_eq!(view(subject.kv()).count(A).expect("count"), 2);
}

fn commits_survive_reopening(make: Make<'_>) {
    let mut subject = make();
    for round in 0..10_u8 {
        write(subject.kv(), A, &[(&[round], &[round; 100]), (b"last", &[round])]);
        let mut transaction = subject.kv().begin().expect("begin");
        transaction.put(A, b"uncommitted", b"").expect("put");
        drop(transaction);
        subject.reopen();
        let snapshot = view(subject.kv());
        assert_eq!(snapshot.count(A).expect("count"), u64::from(round) + 2);
        assert_eq!(snapshot.get(A, b"last").expect("get").as_deref(), Some(&[round][..]));
        assert_eq!(snapshot.get(A, b"uncommitted").expect("get"), None);
    }
}

fn large_values_and_long_keys(make: Make<'_>) {
    let mut subject = make();
    let sizes = [0, 1, 4000, 4096, 5000, 64 << 10, 1 << 20, VALUE_BYTES_MAX];
    let mut transaction = subject.kv().begin().expect("begin");
    for size in sizes {
        transaction.put(A, &size.to_be_bytes(), &vec![size as u8 ^ 0x5a; size]).expect("put");
    }
    transaction.put(A, &[0xff; KEY_BYTES_MAX], b"long key").expect("put");
    transaction.commit().expect("commit");
    subject.reopen();
    let snapshot = view(subject.kv());
    for size in sizes {
        let expected = vec![size as u8 ^ 0x5a; size];
        assert!(
            snapshot.get(A, &size.to_be_bytes()).expect("get").is_some_and(|found| found == expected),
            "{size} bytes"
        );
    }
    assert!(snapshot.get_with(A, &[0xff; KEY_BYTES_MAX], &mut |v| assert_eq!(v, b"long key")).expect("get"));
}

fn every_table_is_its_own(make: Make<'_>) {
    let mut subject = make();
    let mut transaction = subject.kv().begin().expect("begin");
    for round in 0..3_u8 {
        for table in 0..TABLES_MAX as u8 {
            transaction.put(TableId(table), &[round], &[table, round]).expect("put");
        }
    }
    transaction.commit().expect("commit");
    subject.reopen();
    let snapshot = view(subject.kv());
    for table in 0..TABLES_MAX as u8 {
        assert_eq!(snapshot.count(TableId(table)).expect("count"), 3);
        assert_eq!(snapshot.get(TableId(table), &[2]).expect("get"), Some(vec![table, 2]));
    }
}

fn limits_are_refused_and_harm_nothing(make: Make<'_>) {
    fn refused<T>(outcome: Result<T, KvError>) {
        assert_eq!(outcome.err().map(|error| error.kind()), Some(FaultKind::Invalid));
    }
    let subject = make();
    let beyond = TableId(TABLES_MAX as u8);
    refused(view(subject.kv()).get(beyond, b""));
    refused(view(subject.kv()).count(beyond));
    let mut transaction = subject.kv().begin().expect("begin");
    transaction.put(A, b"kept", b"").expect("put");
    refused(transaction.put(A, &vec![0; KEY_BYTES_MAX + 1], b""));
    refused(transaction.put(A, b"", &vec![0; VALUE_BYTES_MAX + 1]));
    refused(transaction.put(beyond, b"", b""));
    refused(transaction.delete(beyond, b""));
    refused(transaction.get(beyond, b""));
    transaction.commit().expect("commit");
    assert_eq!(keys(&*view(subject.kv()), A, b"", None), [b"kept".to_vec()]);
}

fn readers_run_beside_a_writer(make: Make<'_>) {
    let subject = make();
    let kv = subject.kv();
    write(kv, A, &[(b"a", &[0; 8]), (b"b", &[0; 8])]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let snapshot = view(kv);
                    let (a, b) = (snapshot.get(A, b"a").expect("get"), snapshot.get(A, b"b").expect("get"));
                    assert_eq!(a, b, "a commit is seen whole or not at all");
                }
            });
        }
        for round in 0..100_u64 {
            let round = round.to_be_bytes();
            write(kv, A, &[(b"a", &round), (b"b", &round), (&round, &[1; 500])]);
        }
    });
}

/// One step of a random history.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sets a value in the open transaction.
    Put(TableId, Vec<u8>, Vec<u8>),
    /// Removes a key in the open transaction.
    Delete(TableId, Vec<u8>),
    /// Reads through the open transaction.
    Get(TableId, Vec<u8>),
    /// Commits, and compares a snapshot with the model.
    Commit(TableId, Vec<u8>, Option<Vec<u8>>),
    /// Aborts.
    Abort,
    /// Remembers a snapshot, to be compared again at the end or before reopening.
    Remember,
    /// Aborts, drops all snapshots, closes and opens again.
    Reopen,
}

type Model = BTreeMap<(TableId, Vec<u8>), Vec<u8>>;

/// Plays the steps on the engine and on a plain map; every answer must be the same.
pub fn agrees_with_a_model(subject: &mut dyn Subject, steps: &[Step]) {
    let mut committed = Model::new();
    let mut rest = steps;
    while !rest.is_empty() {
        let until_reopen = rest.iter().position(|step| matches!(step, Step::Reopen)).unwrap_or(rest.len());
        play(subject.kv(), &rest[..until_reopen], &mut committed);
        rest = &rest[(until_reopen + 1).min(rest.len())..];
        subject.reopen();
        compare(&*view(subject.kv()), &committed);
    }
}

fn play(kv: &dyn OrderedKv, steps: &[Step], committed: &mut Model) {
    let mut remembered: Vec<(Arc<dyn KvSnapshot>, Model)> = Vec::new();
    let mut transaction = kv.begin().expect("begin");
    let mut working = committed.clone();
    for step in steps {
        match step {
            Step::Put(table, key, value) => {
                transaction.put(*table, key, value).expect("put");
                working.insert((*table, key.clone()), value.clone());
            }
            Step::Delete(table, key) => {
                transaction.delete(*table, key).expect("delete");
                working.remove(&(*table, key.clone()));
            }
            Step::Get(table, key) => {
                let found = transaction.get(*table, key).expect("get");
                assert_eq!(found.as_ref(), working.get(&(*table, key.clone())));
            }
            Step::Commit(table, start, end) => {
                transaction.commit().expect("commit");
                committed.clone_from(&working);
                let snapshot = view(kv);
                let found = entries(&*snapshot, *table, start, end.as_deref());
                assert_eq!(found, model_range(committed, *table, start, end.as_deref()));
                transaction = kv.begin().expect("begin");
            }
            Step::Abort => {
                drop(transaction);
                working.clone_from(committed);
                transaction = kv.begin().expect("begin");
            }
            Step::Remember => remembered.push((view(kv), committed.clone())),
            Step::Reopen => unreachable!("the caller cuts the history at these"),
        }
    }
    drop(transaction);
    for (snapshot, model) in remembered {
        compare(&*snapshot, &model);
    }
}

fn model_range(model: &Model, table: TableId, start: &[u8], end: Option<&[u8]>) -> Entries {
    let from = Bound::Included((table, start.to_vec()));
    model
        .range((from, Bound::Unbounded))
        .take_while(|((at, key), _)| *at == table && end.is_none_or(|end| key.as_slice() < end))
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect()
}

fn compare(snapshot: &dyn KvSnapshot, model: &Model) {
    for table in (0..TABLES_MAX as u8).map(TableId) {
        let expected = model_range(model, table, b"", None);
        assert_eq!(snapshot.count(table).expect("count"), expected.len() as u64);
        assert_eq!(entries(snapshot, table, b"", None), expected, "{table}");
    }
}
