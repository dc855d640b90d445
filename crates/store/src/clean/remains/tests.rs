//! What happens between the walk and the change.

use super::*;
use crate::Piece;
use crate::read::tests::store_on;
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{Rng, SeededRng, Sequence};

const FILE: InodeId = InodeId(10);
const OTHER: InodeId = InodeId(11);

fn replace(store: &Store, offset: u64, data: &[u8]) {
    let mut ingested =
        store.ingest(1, &[Piece::new(0, offset, data)], aegisfs_base::PolicyId(0), true).unwrap();
    let references = std::mem::take(&mut ingested.references[0]);
    let (from, to) = (offset, offset + data.len() as u64);
    let op = Op::Replace { inode: FILE, from, to, pending_up_to: Sequence(0), references };
    store.commit_ingested(BranchId(0), ingested, vec![op]).unwrap();
}

fn window(store: &Store, inode: InodeId) -> Vec<aegisfs_format::extent::ExtentRef> {
    let view = store.head_view(BranchId(0)).unwrap();
    let stored = versions::visible(&store.view(), Table::Extents, &key::extents(inode, 0), &view);
    decode_window(&stored.unwrap().unwrap()).unwrap()
}

fn read(store: &Store, inode: InodeId) -> Vec<u8> {
    let window = window(store, inode);
    let mut data = vec![0; window.last().unwrap().end() as usize];
    for reference in window {
        let out = &mut data[reference.offset as usize..reference.end() as usize];
        store.read_chunk(reference.chunk, reference.offset_in_chunk, out).unwrap();
    }
    data
}

/// A file of one chunk of which the middle was overwritten, what it holds, and what was found of it.
fn overwritten(store: &Store) -> (Vec<u8>, Vec<Remains>) {
    let mut data = vec![0; 16_000];
    SeededRng::new(2).fill(&mut data);
    replace(store, 0, &data);
    let old = window(store, FILE)[0].chunk;
    replace(store, 4000, &[7; 8000]);
    data[4000..12_000].fill(7);
    let segment = store.descriptor(old).unwrap().frame.segment;
    let (remains, is_all) = store.find_remains(&HashSet::from([segment])).unwrap();
    assert!(is_all);
    assert_eq!(remains.len(), 1);
    assert_eq!((remains[0].chunk, remains[0].references, remains[0].runs.len()), (old, 2, 2));
    (data, remains)
}

fn store_remains(store: &Store, remains: &[Remains]) {
    let mut done = Cleaned::default();
    let outcome = store.store_remains(remains, &|_, _| ControlFlow::Continue(()), &mut done);
    assert!(outcome.unwrap().is_continue() && done.row_bytes > 0);
}

#[test]
fn what_is_left_of_a_chunk_becomes_chunks_of_their_own() {
    let store = store_on(&["one"]);
    let (data, remains) = overwritten(&store);
    store_remains(&store, &remains);
    assert!(matches!(store.descriptor(remains[0].chunk), Err(StoreError::StaleChunk { .. })));
    assert!(read(&store, FILE) == data);
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// What was overwritten after it was read stays what it is.
#[test]
fn what_is_overwritten_meanwhile_is_left_alone() {
    let overwritten_meanwhile = || {
        let store = store_on(&["one"]);
        let (mut data, remains) = overwritten(&store);
        replace(&store, 0, &[9; 3000]);
        data[..3000].fill(9);
        store_remains(&store, &remains);
        read(&store, FILE) == data
    };
    assert!(overwritten_meanwhile());
    assert!(!without(Edge::RepointedOnlyWhatItWas, overwritten_meanwhile));
}

/// A clone that is made meanwhile keeps the old chunk.
#[test]
fn who_comes_to_refer_to_it_meanwhile_keeps_it() {
    let store = store_on(&["one"]);
    let (data, remains) = overwritten(&store);
    let references = window(&store, FILE).into_iter().map(|reference| NewRef {
        offset: u64::from(reference.offset),
        length: reference.length,
        chunk: reference.chunk,
        offset_in_chunk: reference.offset_in_chunk,
    });
    let references = references.collect();
    let (to, pending_up_to) = (data.len() as u64, Sequence(0));
    let clone = Op::Replace { inode: OTHER, from: 0, to, pending_up_to, references };
    store.commit(BranchId(0), vec![clone], Vec::new()).unwrap();
    store_remains(&store, &remains);
    assert_eq!(store.descriptor(remains[0].chunk).unwrap().references, 2);
    assert!(read(&store, FILE) == data && read(&store, OTHER) == data);
    assert_eq!(store.check(true).unwrap().problems, []);
}
