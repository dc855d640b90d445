//! A dedup hit that dies before it is referred to: with the safeguard it is told, without it `check` finds a
//! reference to nothing.

use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{BranchId, InodeId, ManualClock, Rng, SeededRng, Sequence};
use aegisfs_format::op::Op;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_sim::SimWorld;
use aegisfs_store::reap::hole;
use aegisfs_store::{Ingested, Piece, Store, StoreError, StoreOptions, create, open};
use std::sync::Arc;

const HEAD: BranchId = BranchId(0);

fn refer(store: &Store, inode: u64, mut ingested: Ingested<'_>) -> Result<(), StoreError> {
    let references = std::mem::take(&mut ingested.references[0]);
    let inode = InodeId(inode);
    let op = Op::Replace { inode, from: 0, to: u64::MAX, pending_up_to: Sequence(u64::MAX), references };
    store.commit_ingested(HEAD, ingested, vec![op]).map(drop)
}

/// Lets a chunk die between being found and being referred to; returns what that led to, and how many
/// problems a check finds.
fn let_it_die() -> (Result<(), StoreError>, usize) {
    let rng = SeededRng::new(5);
    let mut world = SimWorld::new();
    world.add("disk", 24 << 20);
    let options =
        CreateOptions { slot_bytes: Some(256 << 10), log_pieces: Some(4), ..CreateOptions::default() };
    let pool = Pool::create(world.devices(), &options, &ManualClock::default(), &rng).expect("a pool");
    create(&pool, &[]).expect("a store");
    let (pool, _) = Pool::open(world.devices(), OpenOptions::default()).expect("it opens");
    let options = StoreOptions { workers: 0, ..StoreOptions::default() };
    let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &rng).expect("it opens");
    let mut data = vec![0; 10_000];
    rng.fill(&mut data);
    let piece = [Piece::new(0, 0, &data)];
    refer(&store, 10, store.ingest(1, &piece, aegisfs_base::PolicyId(0), true).expect("room"))
        .expect("it is new");
    let found = store.ingest(1, &piece, aegisfs_base::PolicyId(0), true).expect("room");
    store.commit(HEAD, vec![hole(InodeId(10), 0, u64::MAX)], Vec::new()).expect("it dies");
    let outcome = refer(&store, 11, found);
    let problems = store.check(true).expect("it can be checked").problems.len();
    (outcome, problems)
}

#[test]
fn a_hit_that_died_is_told() {
    let (outcome, problems) = let_it_die();
    assert!(matches!(outcome, Err(StoreError::StaleChunk { .. })), "{outcome:?}");
    assert_eq!(problems, 0);
}

#[test]
fn without_the_second_look_a_reference_leads_nowhere() {
    let (outcome, problems) = without(Edge::DedupHitRechecked, let_it_die);
    assert!(outcome.is_ok() && problems > 0, "{outcome:?}, {problems} problems: the switch shows nothing");
}
