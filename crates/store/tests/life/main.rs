//! A store from format to remount, on devices in memory.

mod cleaning;
mod erasure;
mod health;
mod members;
mod orphans;
mod parallel;
mod scrubbing;
mod trimming;

use aegisfs_base::{BranchId, InodeId, ManualClock, Rng, SeededRng, Sequence};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::extent::ExtentRef;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::Inode;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::reap::orphan_inode_value;
use aegisfs_store::{
    Intervals, Piece, Service, Store, StoreError, StoreOptions, Tables, create, open, versions,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEAD: BranchId = BranchId(0);

fn options() -> StoreOptions {
    StoreOptions {
        chunk_cache_bytes: 4 << 20,
        metadata_cache_bytes: 1 << 20,
        workers: 0,
        ..StoreOptions::default()
    }
}

fn format(bytes: u64, rng: &dyn Rng) -> Arc<MemoryDevice> {
    let device = Arc::new(MemoryDevice::new("disk", bytes));
    let create_options = CreateOptions { compression: (2, 1), ..CreateOptions::default() };
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let pool = Pool::create(devices, &create_options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    device
}

fn mount(device: &Arc<MemoryDevice>, rng: &dyn Rng) -> Store {
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let (store, recovered) = open(pool, &options(), Arc::new(ManualClock::default()), rng).unwrap();
    assert_eq!(recovered.read_only, None);
    store
}

/// Stores a whole file's content in one change.
fn write(store: &Store, inode: InodeId, data: &[u8]) -> Result<Sequence, StoreError> {
    let pieces = [Piece::new(0, 0, data)];
    let mut ingested = store.ingest(1, &pieces, aegisfs_base::PolicyId(0), true)?;
    let references = std::mem::take(&mut ingested.references[0]);
    let value = Inode { size: data.len() as u64, ..Inode::default() }.encode();
    let ops = vec![
        Op::PutVersion { table: Table::Inode, stem: key::inode(inode).to_vec(), value },
        Op::Replace { inode, from: 0, to: u64::MAX, pending_up_to: Sequence(u64::MAX), references },
    ];
    Ok(store.commit_ingested(HEAD, ingested, ops)?.sequence)
}

fn read(store: &Store, inode: InodeId) -> Vec<u8> {
    try_read(store, inode).unwrap()
}

/// What a file refers to, and where in it.
fn references_of(store: &Store, inode: InodeId) -> Vec<(u64, ExtentRef)> {
    let view = store.head_view(HEAD).unwrap();
    let prefix = key::inode(inode);
    let end = key::prefix_end(&prefix);
    let mut runs = Vec::new();
    versions::scan_visible(
        &store.view(),
        Table::Extents,
        &prefix,
        end.as_deref(),
        &view,
        &mut |stem, value| {
            let start = key::extents_window(stem).unwrap() * aegisfs_base::limits::WINDOW_BYTES;
            let window = aegisfs_format::extent::decode_window(value).unwrap();
            runs.extend(window.into_iter().map(|r| (start + u64::from(r.offset), r)));
            std::ops::ControlFlow::Continue(())
        },
    )
    .unwrap();
    runs
}

fn try_read(store: &Store, inode: InodeId) -> Result<Vec<u8>, StoreError> {
    let view = store.head_view(HEAD).unwrap();
    let stored = versions::visible(&store.view(), Table::Inode, &key::inode(inode), &view).unwrap().unwrap();
    let mut data = vec![0; Inode::decode(&stored).unwrap().size as usize];
    let runs = references_of(store, inode);
    let chunks: Vec<_> = runs.iter().map(|(_, r)| r.chunk).collect();
    store.prefetch(&chunks).unwrap();
    for (offset, reference) in runs {
        let out = &mut data[offset as usize..][..reference.length as usize];
        store.read_chunk(reference.chunk, reference.offset_in_chunk, out)?;
    }
    Ok(data)
}

fn noise(rng: &dyn Rng, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rng.fill(&mut data);
    data
}

fn assert_sound(store: &Store) {
    let report = store.check(true).unwrap();
    assert_eq!(report.problems, []);
}

#[test]
fn what_was_synced_is_there_after_a_crash_and_after_a_clean_end() {
    let rng = SeededRng::new(1);
    let device = format(256 << 20, &rng);
    let big = noise(&rng, 5 << 20);
    let text = b"all work and no play ".repeat(30_000);
    {
        let store = mount(&device, &rng);
        write(&store, InodeId(10), &big).unwrap();
        let sequence = write(&store, InodeId(11), &text).unwrap();
        store.sync_to(sequence).unwrap();
        assert_eq!(read(&store, InodeId(10)), big);
        // No clean end: the next opening replays the log.
    }
    {
        let store = mount(&device, &rng);
        assert_eq!(read(&store, InodeId(10)), big);
        assert_eq!(read(&store, InodeId(11)), text);
        assert_sound(&store);
        store.close().unwrap();
    }
    let store = mount(&device, &rng);
    assert_eq!(read(&store, InodeId(11)), text);
    assert_sound(&store);
}

#[test]
fn equal_content_is_stored_once_and_freed_with_its_last_reference() {
    let rng = SeededRng::new(2);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let data = noise(&rng, 3 << 20);
    write(&store, InodeId(10), &data).unwrap();
    let once = store.space_report().unwrap();
    write(&store, InodeId(11), &data).unwrap();
    let mut shifted = vec![7];
    shifted.extend_from_slice(&data);
    write(&store, InodeId(12), &shifted).unwrap();
    let thrice = store.space_report().unwrap();
    assert!(thrice.unique_bytes < once.unique_bytes + once.unique_bytes / 10, "{thrice:?}");
    assert!(thrice.logical_bytes > 9 << 20);
    for inode in [10, 11, 12] {
        write(&store, InodeId(inode), b"").unwrap();
    }
    let none = store.space_report().unwrap();
    assert_eq!((none.chunks, none.logical_bytes, none.compressed_bytes), (0, 0, 0));
    store.seal_all_and_checkpoint();
    assert_sound(&store);
    assert_eq!(store.space_report().unwrap().data_bytes, 0);
}

#[test]
fn filled_to_the_brim_and_emptied_again() {
    let rng = SeededRng::new(3);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut stored = 0u64;
    let mut inode = 10;
    loop {
        let data = noise(&rng, 2 << 20);
        match store.reserve(data.len() as u64, 0, aegisfs_base::PolicyId(0)) {
            Ok(_room) => {
                write(&store, InodeId(inode), &data).unwrap();
                stored += data.len() as u64;
                inode += 1;
            }
            Err(StoreError::NoSpace { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored >= 150 << 20, "only {} MiB fit", stored >> 20);
    assert_sound(&store);
    for gone in 10..inode {
        write(&store, InodeId(gone), b"").unwrap();
    }
    store.seal_all_and_checkpoint();
    assert_eq!(store.space_report().unwrap().data_bytes, 0);
    let room = store.reserve(150 << 20, 0, aegisfs_base::PolicyId(0)).unwrap();
    drop(room);
    assert_sound(&store);
}

trait Settle {
    fn seal_all_and_checkpoint(&self);
}

impl Settle for Store {
    /// A clean end and nothing more, so that every dead segment is given back.
    fn seal_all_and_checkpoint(&self) {
        self.close().unwrap();
        self.checkpoint().unwrap();
    }
}

/// Who has seen a change and then asks how far to sync is told of no earlier one, and never before the sync
/// can reach it.
#[test]
fn a_change_that_was_seen_is_durable_after_a_sync_to_the_last_one() {
    const CHANGES: u64 = 5000;
    let rng = SeededRng::new(6);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let put = |sequence: u64| {
        let value = sequence.to_be_bytes().to_vec();
        let op = Op::Put { table: Table::Config, key: b"seen".to_vec(), value };
        assert_eq!(store.commit(HEAD, vec![op], Vec::new()).unwrap().sequence.0, sequence);
    };
    let first = store.last_sequence().0 + 1;
    put(first);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (first + 1..first + CHANGES).for_each(put));
        while !writer.is_finished() {
            let stored = store.view().get(Table::Config, b"seen").unwrap().unwrap();
            let seen = Sequence(u64::from_be_bytes(stored.try_into().unwrap()));
            let last = store.last_sequence();
            assert!(last >= seen, "{seen} was seen before {last}");
            store.sync_to(last).unwrap();
            assert!(store.durable_sequence() >= last, "{last} cannot be made durable yet");
        }
    });
}

/// Also what is let go just when the service thread has looked for the last time.
#[test]
fn what_is_let_go_is_reaped_soon() {
    let rng = SeededRng::new(31);
    let device = format(256 << 20, &rng);
    let store = Arc::new(mount(&device, &rng));
    let intervals = Intervals {
        log: Duration::from_millis(1),
        checkpoint: Duration::from_secs(600),
        ..Intervals::default()
    };
    let service = Service::start(Arc::clone(&store), intervals).unwrap();
    for n in 0..3000u64 {
        let inode = InodeId(100 + n);
        store.hold_orphan(inode);
        let stem = key::inode(inode).to_vec();
        let value = Inode::default().encode();
        let ops = vec![
            Op::PutVersion { table: Table::Inode, stem: stem.clone(), value },
            Op::PutVersion { table: Table::Orphans, stem, value: orphan_inode_value() },
        ];
        store.commit(HEAD, ops, Vec::new()).unwrap();
        // Anywhere in what the service does with that change.
        let until = Instant::now() + Duration::from_micros(rng.below(3000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        store.release_orphan(inode);
        let is_there = || {
            let view = store.head_view(HEAD).unwrap();
            versions::visible(&store.view(), Table::Inode, &key::inode(inode), &view).unwrap().is_some()
        };
        let late = Instant::now() + Duration::from_secs(5);
        while is_there() {
            assert!(Instant::now() < late, "orphan {n} was forgotten");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    drop(service);
}
