//! A chunk that was found by its hash and died before it could be referred to.

use aegisfs_base::{BranchId, ChunkId, InodeId, ManualClock, Rng, SeededRng, Sequence};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::Inode;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::reap::hole;
use aegisfs_store::{Ingested, Piece, Store, StoreError, StoreOptions, create, open};
use std::sync::Arc;

const HEAD: BranchId = BranchId(0);

fn mount(device: &Arc<MemoryDevice>, rng: &dyn Rng) -> Store {
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let options = StoreOptions { workers: 0, ..StoreOptions::default() };
    open(pool, &options, Arc::new(ManualClock::default()), rng).unwrap().0
}

fn refer(store: &Store, inode: InodeId, mut ingested: Ingested<'_>, bytes: u64) -> Result<(), StoreError> {
    let references = std::mem::take(&mut ingested.references[0]);
    let value = Inode { size: bytes, ..Inode::default() }.encode();
    let ops = vec![
        Op::PutVersion { table: Table::Inode, stem: key::inode(inode).to_vec(), value },
        Op::Replace { inode, from: 0, to: u64::MAX, pending_up_to: Sequence(u64::MAX), references },
    ];
    store.commit_ingested(HEAD, ingested, ops).map(drop)
}

fn chunk_of(ingested: &Ingested<'_>) -> ChunkId {
    ingested.references[0][0].chunk
}

#[test]
fn a_hit_that_dies_is_told_and_the_bytes_are_stored_anew() {
    let rng = SeededRng::new(21);
    let device = Arc::new(MemoryDevice::new("disk", 256 << 20));
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let pool = Pool::create(devices, &CreateOptions::default(), &ManualClock::default(), &rng).unwrap();
    create(&pool, &[]).unwrap();
    let store = mount(&device, &rng);
    let mut data = vec![0; 10_000];
    rng.fill(&mut data);
    let piece = [Piece::new(0, 0, &data)];
    let first = store.ingest(1, &piece, aegisfs_base::PolicyId(0), true).unwrap();
    let chunk = chunk_of(&first);
    refer(&store, InodeId(10), first, 10_000).unwrap();

    let found = store.ingest(1, &piece, aegisfs_base::PolicyId(0), true).unwrap();
    assert_eq!(chunk_of(&found), chunk, "it is a hit");
    store.commit(HEAD, vec![hole(InodeId(10), 0, u64::MAX)], Vec::new()).unwrap();
    let refused = refer(&store, InodeId(11), found, 10_000).unwrap_err();
    assert!(matches!(refused, StoreError::StaleChunk { chunk: stale } if stale == chunk), "{refused}");
    assert_eq!(store.check(true).unwrap().problems, []);

    let again = store.ingest(1, &piece, aegisfs_base::PolicyId(0), false).unwrap();
    let anew = chunk_of(&again);
    assert_ne!(anew, chunk, "the number of the dead is not used again");
    refer(&store, InodeId(11), again, 10_000).unwrap();
    store.sync().unwrap();
    drop(store);
    let store = mount(&device, &rng);
    let mut out = vec![0; 10_000];
    store.read_chunk(anew, 0, &mut out).unwrap();
    assert!(out == data);
    assert_eq!(store.check(true).unwrap().problems, []);
}
