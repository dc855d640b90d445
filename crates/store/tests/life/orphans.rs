//! Orphans are found and cleaned, and what only looks like one is not.

use super::{HEAD, Settle, format, noise, options, read, write};
use aegisfs_base::{BranchId, ChunkId, EpochId, InodeId, ManualClock, Rng, SeededRng, SegmentId};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{Segment, SegmentState, TOMBSTONE};
use aegisfs_pool::{OpenOptions, Placement, Pool};
use aegisfs_store::reap::orphan_inode_value;
use aegisfs_store::{
    CleanerThread, Intervals, Orphan, OrphanKind, Piece, Service, Store, StoreError, Tables, TrimThread,
    Upkeep, UpkeepOptions, open,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

fn mount(device: &Arc<MemoryDevice>, rng: &dyn Rng) -> (Arc<Store>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let (store, _) = open(pool, &options(), Arc::clone(&clock) as _, rng).unwrap();
    (Arc::new(store), clock)
}

fn put(store: &Store, table: Table, key: &[u8], value: Vec<u8>) {
    store.commit(BranchId(0), vec![Op::Put { table, key: key.to_vec(), value }], Vec::new()).unwrap();
}

fn segment(state: SegmentState, placements: Vec<Placement>) -> Vec<u8> {
    let value = Segment {
        state,
        shards: (1, 0),
        tier: 0,
        policy: aegisfs_base::PolicyId(0),
        key_domain: 0,
        live_bytes: 0,
        written_bytes: 0,
        opened: 0,
        rows: 0,
        forsaken_bytes: 0,
        end: 0,
        placements,
    };
    value.encode()
}

fn kinds(store: &Store) -> Vec<OrphanKind> {
    store.find_orphans().unwrap().found.iter().map(|found| found.orphan.kind()).collect()
}

/// Five orphans, one of them a chunk. Returns that.
fn plant(store: &Store, rng: &dyn Rng) -> ChunkId {
    write(store, InodeId(20), &noise(rng, 100_000)).unwrap();
    let mut last = None;
    let scan = &mut |key: &[u8], value: &[u8]| {
        last = Some((key.to_vec(), value.to_vec()));
        std::ops::ControlFlow::Continue(())
    };
    store.view().scan(Table::Chunks, &[], None, scan).unwrap();
    let (chunk, descriptor) = last.unwrap();
    write(store, InodeId(20), b"").unwrap();

    store.pool().open_segment(SegmentId(1 << 40), store.pool().redundancy(), true).unwrap();
    for (id, state) in [(2 << 40, SegmentState::Open), (3 << 40, SegmentState::Sealed)] {
        let places = store.pool().open_segment(SegmentId(id), store.pool().redundancy(), true).unwrap().1;
        put(store, Table::Segments, &key::segment(SegmentId(id)), segment(state, places));
    }
    write(store, InodeId(21), &noise(rng, 3 << 20)).unwrap();
    let orphan = Op::PutVersion {
        table: Table::Orphans,
        stem: key::inode(InodeId(21)).to_vec(),
        value: orphan_inode_value(),
    };
    store.commit(HEAD, vec![orphan], Vec::new()).unwrap();
    put(store, Table::Chunks, &chunk, descriptor);
    ChunkId(u64::from_be_bytes(*chunk.first_chunk().unwrap()))
}

#[test]
fn planted_orphans_are_listed_and_cleaned_when_they_are_old() {
    let rng = SeededRng::new(41);
    let device = format(256 << 20, &rng);
    let (store, clock) = mount(&device, &rng);
    let kept = noise(&rng, 5 << 20);
    write(&store, InodeId(10), &kept).unwrap();
    assert_eq!(store.find_orphans().unwrap().found, []);
    let free = store.pool().space().free;
    let chunk = plant(&store, &rng);
    let report = store.find_orphans().unwrap();
    let expected =
        [OrphanKind::Slot, OrphanKind::Segment, OrphanKind::Segment, OrphanKind::Inode, OrphanKind::Chunk];
    let found: Vec<_> = report.found.iter().map(|found| found.orphan.kind()).collect();
    assert_eq!((&found[..], report.more), (&expected[..], false));
    let inode = report.found.iter().find(|found| found.orphan == Orphan::Inode(InodeId(21))).unwrap();
    assert_eq!(inode.bytes, 3 << 20);
    assert!(report.found.iter().any(|found| found.orphan == Orphan::Chunk(chunk)));

    clock.advance(DAY - Duration::from_secs(1));
    let done = store.clean_orphans(DAY, false).unwrap();
    assert_eq!((done.cleaned.len(), done.young, done.kept), (0, 4, 1), "{done:?}");
    clock.advance(Duration::from_secs(2));
    let done = store.clean_orphans(DAY, true).unwrap();
    assert_eq!((done.cleaned.len(), done.young, done.kept), (4, 0, 1), "{done:?}");
    assert_eq!(kinds(&store), expected, "nothing was to be done");
    let done = store.clean_orphans(DAY, false).unwrap();
    assert_eq!((done.cleaned.len(), done.kept, done.spared), (4, 1, 0), "{done:?}");
    // What remains is damage: a chunk that nothing refers to cannot be.
    assert_eq!(kinds(&store), [OrphanKind::Chunk]);
    assert_eq!(store.clean_orphans(Duration::ZERO, false).unwrap().kept, 1);
    assert!(!store.check(true).unwrap().problems.is_empty());
    let remove = Op::Delete { table: Table::Chunks, key: key::chunk(chunk).to_vec() };
    store.commit(HEAD, vec![remove], Vec::new()).unwrap();
    assert_eq!(kinds(&store), []);
    assert!(store.pool().space().free + 1 >= free, "{:?}, {free} before", store.pool().space());
    assert!(read(&store, InodeId(10)) == kept);
    assert_eq!(store.check(true).unwrap().problems, []);
    store.sync().unwrap();
    drop(store);
    let (store, _) = mount(&device, &rng);
    assert_eq!(store.check(true).unwrap().problems, []);
    assert_eq!(kinds(&store), []);
}

#[test]
fn old_orphans_go_by_themselves() {
    let rng = SeededRng::new(46);
    let device = format(256 << 20, &rng);
    let (store, clock) = mount(&device, &rng);
    // What is trimmed is reaped before.
    let options = UpkeepOptions { trim_every: Duration::ZERO, ..UpkeepOptions::default() };
    let mut upkeep = Upkeep::new(&store, options);
    let goes_on = |_| ControlFlow::Continue(());
    let chunk = plant(&store, &rng);
    let mut seen = Vec::new();
    for _ in 0..30 {
        clock.advance(Duration::from_secs(3600));
        if let Some(done) = upkeep.step(&store, &goes_on).unwrap().orphans {
            seen.push((done.cleaned.len(), done.young, done.kept));
        }
    }
    // Every six hours, and after a day they are gone.
    assert_eq!(seen, [(0, 4, 1), (0, 4, 1), (0, 4, 1), (0, 4, 1), (4, 0, 1)]);
    assert_eq!(kinds(&store), [OrphanKind::Chunk]);
    let remove = Op::Delete { table: Table::Chunks, key: key::chunk(chunk).to_vec() };
    store.commit(HEAD, vec![remove], Vec::new()).unwrap();
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// With more in the metadata than is looked at in one go.
#[test]
fn a_look_that_is_told_to_stop_changes_nothing() {
    let rng = SeededRng::new(47);
    let device = format(256 << 20, &rng);
    let (store, clock) = mount(&device, &rng);
    write(&store, InodeId(10), &noise(&rng, 100_000)).unwrap();
    for batch in 0..25u64 {
        let one = |n| Op::Put {
            table: Table::Extents,
            key: key::versioned(&key::extents(InodeId(1 << 30), batch * 1000 + n), EpochId(1)),
            value: TOMBSTONE.to_vec(),
        };
        store.commit(HEAD, (0..1000).map(one).collect(), Vec::new()).unwrap();
    }
    let places = store.pool().open_segment(SegmentId(1 << 40), store.pool().redundancy(), true).unwrap().1;
    assert_eq!(kinds(&store), [OrphanKind::Slot]);
    clock.advance(2 * DAY);
    let mut upkeep = Upkeep::new(&store, UpkeepOptions { orphans_every: DAY, ..UpkeepOptions::default() });
    clock.advance(DAY);
    let stopped = upkeep.step(&store, &|_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
    assert!(store.pool().claim_slot(places[0]), "it is a segment's still");
    // It is not forgotten either how old it is.
    assert_eq!(store.clean_orphans(DAY, true).unwrap().cleaned.len(), 1);
}

#[test]
fn an_orphan_that_was_gone_for_a_while_is_young_again() {
    let rng = SeededRng::new(42);
    let device = format(256 << 20, &rng);
    let (store, clock) = mount(&device, &rng);
    let places = store.pool().open_segment(SegmentId(1 << 40), store.pool().redundancy(), true).unwrap().1;
    assert_eq!(kinds(&store), [OrphanKind::Slot]);
    clock.advance(2 * DAY);
    store.pool().abandon(&places);
    assert_eq!(kinds(&store), []);
    assert!(store.pool().claim_slot(places[0]));
    let done = store.clean_orphans(DAY, false).unwrap();
    assert_eq!((done.cleaned.len(), done.young), (0, 1));
    assert_eq!(store.clean_orphans(Duration::ZERO, false).unwrap().cleaned.len(), 1);
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// A segment whose account says that nothing lives in it, although chunks do, is none to be thrown away.
#[test]
fn a_segment_with_chunks_in_it_is_spared_whatever_its_account_says() {
    let rng = SeededRng::new(43);
    let device = format(256 << 20, &rng);
    let (store, _) = mount(&device, &rng);
    let contents = noise(&rng, 2 << 20);
    write(&store, InodeId(10), &contents).unwrap();
    store.seal_all_and_checkpoint();
    let mut stored = None;
    let scan = &mut |key: &[u8], value: &[u8]| {
        stored = Some((key.to_vec(), Segment::decode(value).unwrap()));
        std::ops::ControlFlow::Continue(())
    };
    store.view().scan(Table::Segments, &[], None, scan).unwrap();
    let (key, mut value) = stored.unwrap();
    let right = value.encode();
    value.live_bytes = 0;
    put(&store, Table::Segments, &key, value.encode());
    assert_eq!(kinds(&store), [OrphanKind::Segment]);
    let done = store.clean_orphans(Duration::ZERO, false).unwrap();
    assert_eq!((done.cleaned.len(), done.spared), (0, 1), "{done:?}");
    assert!(read(&store, InodeId(10)) == contents);
    put(&store, Table::Segments, &key, right);
    assert_eq!(store.check(true).unwrap().problems, []);
}

#[test]
fn what_is_in_flight_is_no_orphan() {
    let rng = SeededRng::new(44);
    let device = format(256 << 20, &rng);
    let (store, _) = mount(&device, &rng);
    // Somebody has it open.
    write(&store, InodeId(21), &noise(&rng, 1 << 20)).unwrap();
    store.hold_orphan(InodeId(21));
    let stem = key::inode(InodeId(21)).to_vec();
    let orphan = Op::PutVersion { table: Table::Orphans, stem, value: orphan_inode_value() };
    store.commit(HEAD, vec![orphan], Vec::new()).unwrap();
    // Its slots wait for a checkpoint.
    write(&store, InodeId(22), &noise(&rng, 9 << 20)).unwrap();
    write(&store, InodeId(22), b"").unwrap();
    // Rows are written, and no change has told of them yet; more than one segment is in flight.
    let data = noise(&rng, 20 << 20);
    let pieces: Vec<_> = (0..)
        .step_by(1 << 20)
        .zip(data.chunks(1 << 20))
        .map(|(offset, data)| Piece::new(0, offset, data))
        .collect();
    let ingested = store.ingest(1, &pieces, aegisfs_base::PolicyId(0), true).unwrap();
    assert_eq!(kinds(&store), []);
    assert_eq!(store.clean_orphans(Duration::ZERO, false).unwrap(), Default::default());
    store.release_orphan(InodeId(21));
    assert_eq!(kinds(&store), [], "the reaper is going to get to it");
    drop(ingested);
    store.reap_released().unwrap();
    assert_eq!(kinds(&store), []);
    store.seal_all_and_checkpoint();
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// Everything at once, and orphans looked for all the time, however young.
#[test]
fn under_load_there_is_nothing_to_be_cleaned() {
    let rng = SeededRng::new(45);
    let device = format(256 << 20, &rng);
    let (store, _) = mount(&device, &rng);
    let intervals = Intervals {
        log: Duration::from_millis(5),
        checkpoint: Duration::from_millis(50),
        ..Intervals::default()
    };
    let service = Service::start(Arc::clone(&store), intervals).unwrap();
    let cleaner = CleanerThread::start(Arc::clone(&store)).unwrap();
    let trimmer = TrimThread::start(Arc::clone(&store)).unwrap();
    let stop = AtomicBool::new(false);
    let mut sweeps = 0;
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let rng = SeededRng::new(50 + writer);
                let first = 100 + writer * 100_000;
                let mut next = first;
                while !stop.load(Ordering::Acquire) {
                    let inode = InodeId(next);
                    next += 1;
                    let bytes = 1 + rng.below(2 << 20) as usize;
                    // Where there is no room some of what was written before goes all the same.
                    if let Ok(_room) = store.reserve(bytes as u64, 0, aegisfs_base::PolicyId(0)) {
                        write(store, inode, &noise(&rng, bytes)).unwrap();
                    }
                    if next - first > 10 {
                        let gone = InodeId(first + rng.below(next - first));
                        store.hold_orphan(gone);
                        let stem = key::inode(gone).to_vec();
                        let orphan =
                            Op::PutVersion { table: Table::Orphans, stem, value: orphan_inode_value() };
                        store.commit(HEAD, vec![orphan], Vec::new()).unwrap();
                        store.release_orphan(gone);
                    }
                }
            });
        }
        let begun = std::time::Instant::now();
        let mut wrong = None;
        while begun.elapsed() < Duration::from_secs(8) && wrong.is_none() {
            sweeps += 1;
            let done = store.clean_orphans(Duration::ZERO, false).unwrap();
            // What a first look takes for one, the second may spare.
            wrong = (!done.cleaned.is_empty()).then_some(done);
        }
        stop.store(true, Ordering::Release);
        assert_eq!(wrong, None, "in sweep {sweeps}");
    });
    drop((service, cleaner, trimmer));
    assert!(sweeps > 3, "{sweeps} sweeps");
    store.reap_all().unwrap();
    store.seal_all_and_checkpoint();
    assert_eq!(store.check(true).unwrap().problems, []);
}
