//! The dedup index over the life of a store: what opening reads, what is found when, and what damage costs.

#![expect(clippy::print_stdout, reason = "a test tells what it did")]

use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{BranchId, InodeId, ManualClock, Rng, SeededRng, Sequence, SystemClock};
use aegisfs_device::{Device, DeviceStats, MemoryDevice, StatsDevice};
use aegisfs_format::key::{self, Table};
use aegisfs_format::layout::DeviceLayout;
use aegisfs_format::map::MapOwner;
use aegisfs_format::op::Op;
use aegisfs_format::value::Inode;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{Intervals, Piece, Service, Store, StoreOptions, create, open};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const HEAD: BranchId = BranchId(0);
/// Bytes of a chunk: many fit into a small device.
const CHUNK: usize = 600;
/// Chunks stored in one change.
const BATCH: usize = 1000;

type Disk = Arc<StatsDevice<MemoryDevice>>;

fn format(bytes: u64, rng: &dyn Rng) -> Disk {
    let device = Arc::new(StatsDevice::new(MemoryDevice::new("disk", bytes)));
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let pool = Pool::create(devices, &CreateOptions::default(), &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    device
}

fn mount(device: &Disk, rng: &dyn Rng) -> Store {
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let options = StoreOptions { workers: 0, ..StoreOptions::default() };
    let (store, recovered) = open(pool, &options, Arc::new(SystemClock::default()), rng).unwrap();
    assert_eq!(recovered.read_only, None);
    store
}

/// Chunk `number`, different from all others.
fn content(number: usize) -> Vec<u8> {
    let mut data = vec![0; CHUNK];
    SeededRng::new(number as u64).fill(&mut data);
    data
}

/// Stores chunks as a file of one page each; says how many of them were found.
fn write(store: &Store, inode: u64, chunks: std::ops::Range<usize>) -> u64 {
    let found = || store.counters().chunks_deduplicated.load(Ordering::Relaxed);
    let before = found();
    let inode = InodeId(inode);
    let all: Vec<_> = chunks.map(content).collect();
    for (number, data) in all.chunks(BATCH).enumerate() {
        let start = (number * BATCH * BLOCK_BYTES) as u64;
        let pieces: Vec<_> = (start..)
            .step_by(BLOCK_BYTES)
            .zip(data)
            .map(|(offset, data)| Piece::new(0, offset, data))
            .collect();
        let mut ingested = store.ingest(1, &pieces, aegisfs_base::PolicyId(0), true).unwrap();
        let references = std::mem::take(&mut ingested.references[0]);
        let (from, to) = (start, start + (data.len() * BLOCK_BYTES) as u64);
        let value = Inode { size: to, ..Inode::default() }.encode();
        let ops = vec![
            Op::PutVersion { table: Table::Inode, stem: key::inode(inode).to_vec(), value },
            Op::Replace { inode, from, to, pending_up_to: Sequence(u64::MAX), references },
        ];
        store.commit_ingested(HEAD, ingested, ops).unwrap();
    }
    found() - before
}

fn assert_sound(store: &Store) {
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// What opening reads once so many chunks are stored, after an end in order.
fn reads_of_opening(chunks: usize) -> DeviceStats {
    let rng = SeededRng::new(5);
    let device = format(2 << 30, &rng);
    let store = mount(&device, &rng);
    for (inode, first) in (10..).zip((0..chunks).step_by(10 * BATCH)) {
        assert_eq!(write(&store, inode, first..(first + 10 * BATCH).min(chunks)), 0);
    }
    store.close().unwrap();
    drop(store);
    let before = device.stats();
    let store = mount(&device, &rng);
    let read = device.stats().since(before);
    assert!(!store.dedup_is_loaded());
    assert_eq!(write(&store, 9, 0..10), 10, "the first lookup of a store without a thread loads");
    assert!(store.dedup_is_loaded());
    read
}

#[test]
fn opening_reads_as_much_whatever_is_stored() {
    let few = reads_of_opening(5_000);
    let many = reads_of_opening(50_000);
    println!("opening reads {few:?} with 5,000 chunks and {many:?} with 50,000");
    // Trees are higher, and there are more segments: a few pages each.
    assert!(many.reads <= few.reads + 60, "{few:?} {many:?}");
    assert!(many.read_bytes <= few.read_bytes + (1 << 20), "{few:?} {many:?}");
}

#[test]
fn a_thread_loads_in_the_background_and_what_it_has_not_loaded_is_stored_again() {
    let rng = SeededRng::new(6);
    let device = format(512 << 20, &rng);
    let store = mount(&device, &rng);
    write(&store, 10, 0..50_000);
    store.close().unwrap();
    drop(store);

    let store = Arc::new(mount(&device, &rng));
    // The thread has nothing to wait for but may not have come far.
    let service = Service::start(Arc::clone(&store), Intervals::default()).unwrap();
    let early = write(&store, 11, 0..50);
    let patience = Instant::now() + Duration::from_secs(60);
    while !store.dedup_is_loaded() {
        assert!(Instant::now() < patience, "it never ends");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{early} of 50 chunks were found while the filter was being loaded");
    assert_eq!(write(&store, 12, 0..50_000), 50_000, "everything is found once it is loaded");
    drop(service);
    assert_sound(&store);
    store.close().unwrap();
    drop(store);

    // One that ends before anything was loaded loses nothing either.
    let store = mount(&device, &rng);
    store.close().unwrap();
    drop(store);
    assert_eq!(write(&mount(&device, &rng), 13, 0..50_000), 50_000);
}

#[test]
fn after_a_crash_everything_durable_is_found() {
    let rng = SeededRng::new(7);
    let device = format(512 << 20, &rng);
    let store = mount(&device, &rng);
    write(&store, 10, 0..12_000);
    store.checkpoint().unwrap();
    write(&store, 11, 12_000..15_000);
    store.sync().unwrap();
    drop(store);
    let store = mount(&device, &rng);
    assert_eq!(write(&store, 12, 0..15_000), 15_000);
    assert_sound(&store);
}

/// Overwrites the dedup database but for its first pages, which opening reads.
fn spoil(device: &Disk, all: bool) {
    let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
    let (pool, _) = Pool::open(devices, OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    let slot_bytes = pool.slot_bytes();
    let layout = DeviceLayout::new(device.bytes(), slot_bytes).unwrap();
    let entries = pool.mapped_slots();
    for entry in entries.iter().filter(|entry| entry.owner == MapOwner::Database(1)) {
        let start = layout.slot_offset(entry.slot);
        let mut block = vec![0; BLOCK_BYTES];
        for offset in (0..slot_bytes).step_by(BLOCK_BYTES) {
            device.read_at(start + offset, &mut block).unwrap();
            // Index and filter pages are leaves, which begin with a 1.
            if all || (block[0] == 1 && block[1] == 0) {
                block[2000..2100].fill(0x5a);
                device.write_at(start + offset, &block).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_index_or_filter_is_made_anew_and_nobody_fails() {
    for (all, served) in [(true, false), (true, true), (false, false), (false, true)] {
        let rng = SeededRng::new(8);
        let device = format(512 << 20, &rng);
        let store = mount(&device, &rng);
        write(&store, 10, 0..12_000);
        store.close().unwrap();
        drop(store);
        spoil(&device, all);
        let store = Arc::new(mount(&device, &rng));
        let service = served.then(|| Service::start(Arc::clone(&store), Intervals::default()).unwrap());
        write(&store, 11, 12_000..24_000);
        store.checkpoint().unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        while !store.dedup_is_loaded() {
            assert!(Instant::now() < patience, "it never ends");
            write(&store, 14, 0..1);
        }
        assert_eq!(write(&store, 12, 0..24_000), 24_000, "all {all} served {served}");
        drop(service);
        assert_sound(&store);
        store.space_report().unwrap();
        store.close().unwrap();
        drop(store);
        let store = mount(&device, &rng);
        assert_eq!(write(&store, 13, 0..24_000), 24_000, "it was saved: all {all} served {served}");
    }
}
