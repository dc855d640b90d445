//! Scrubs find what rotted on any device and mend it, and go on where they were.

use super::{noise, options, read, write};
use aegisfs_base::{BranchId, ChunkId, InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{AlignedBuffer, Device, MemoryDevice};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{Scrub, ScrubState, When};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{Intensity, ScrubThread, Store, Tables, create, open};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: u64 = 256 << 20;
const BLOCK: u64 = 4096;

fn format(devices: usize, rng: &dyn Rng) -> Vec<Arc<MemoryDevice>> {
    let names = ["a", "b", "c"];
    let devices: Vec<_> =
        names[..devices].iter().map(|name| Arc::new(MemoryDevice::new(*name, BYTES))).collect();
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let pool = Pool::create(all, &CreateOptions::default(), &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    devices
}

fn mount(devices: &[Arc<MemoryDevice>], rng: &dyn Rng) -> Arc<Store> {
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let (pool, _) = Pool::open(all, OpenOptions::default()).unwrap();
    Arc::new(open(pool, &options(), Arc::new(ManualClock::default()), rng).unwrap().0)
}

fn fill(store: &Store, rng: &dyn Rng) -> Vec<Vec<u8>> {
    let contents: Vec<Vec<u8>> = (0..30).map(|n| noise(rng, 100_000 * (1 + n % 7))).collect();
    for (id, data) in (10..).zip(&contents) {
        write(store, InodeId(id), data).unwrap();
    }
    store.sync().unwrap();
    contents
}

/// Random bytes in one block of so many, the header areas aside.
pub(crate) fn rot(device: &MemoryDevice, one_in: u64, rng: &dyn Rng) {
    let header = aegisfs_format::layout::HEADER_AREA_BYTES;
    for offset in (header..device.bytes() - header).step_by(BLOCK as usize) {
        if rng.below(one_in) == 0 {
            let mut block = AlignedBuffer::zeroed(BLOCK as usize);
            rng.fill(&mut block);
            device.write_at(offset, &block).unwrap();
        }
    }
}

pub(crate) fn scrub(store: &Store, repairs: bool) -> Scrub {
    assert!(store.start_scrub(repairs).unwrap());
    store.scrub(&|| true).unwrap();
    let done = store.scrub_status().unwrap().unwrap();
    assert_eq!(done.state, ScrubState::Done);
    done
}

#[test]
fn what_rotted_on_one_mirror_is_mended() {
    let rng = SeededRng::new(61);
    let devices = format(2, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, &rng);
    let clean = scrub(&store, true);
    assert_eq!((clean.counts.damaged, clean.counts.lost), (0, 0), "{clean:?}");
    assert!(clean.counts.segments > 0 && clean.counts.cells > 20 && clean.counts.pages > 10, "{clean:?}");
    store.close().unwrap();
    drop(store);

    rot(&devices[1], 10, &rng);
    let store = mount(&devices, &rng);
    let looked = scrub(&store, false);
    assert!(looked.counts.damaged > 10 && looked.counts.repaired == 0, "{looked:?}");
    assert_eq!(looked.counts.lost, 0);
    let mended = scrub(&store, true);
    assert!(mended.counts.damaged > 10, "{mended:?}");
    assert_eq!((mended.counts.damaged, mended.counts.lost), (mended.counts.repaired, 0), "{mended:?}");
    let again = scrub(&store, true);
    assert_eq!((again.counts.damaged, again.counts.lost), (0, 0), "{again:?}");
    assert_eq!(store.check(true).unwrap().problems, []);
    store.close().unwrap();
    drop(store);

    // The one that had rotted holds everything alone now.
    let alone = OpenOptions { degraded: true, ..OpenOptions::default() };
    let (pool, _) = Pool::open(vec![devices[1].clone() as _], alone).unwrap();
    let (store, _) = open(pool, &options(), Arc::new(ManualClock::default()), &rng).unwrap();
    for (id, data) in (10..).zip(&contents) {
        assert!(read(&store, InodeId(id)) == *data, "inode {id} reads wrong");
    }
}

#[test]
fn what_rotted_on_all_mirrors_is_told_and_left() {
    let rng = SeededRng::new(62);
    for count in [1, 2] {
        let devices = format(count, &rng);
        let store = mount(&devices, &rng);
        fill(&store, &rng);
        assert!(store.start_scrub(true).unwrap(), "what is open is sealed");
        let mut places = Vec::new();
        store
            .each_segment(&mut |_, segment| {
                places = segment.placements;
                std::ops::ControlFlow::Break(())
            })
            .unwrap();
        // A whole megabyte of the first segment, wherever it is.
        let rotten = AlignedBuffer::zeroed(1 << 20);
        for place in &places {
            store.pool().write_slot(*place, 4096, &rotten).unwrap();
        }
        store.scrub(&|| true).unwrap();
        let done = store.scrub_status().unwrap().unwrap();
        assert!(done.counts.lost > 0, "{done:?}");
        assert_eq!((done.counts.damaged, done.counts.repaired), (0, 0), "{done:?}");
        assert_ne!(store.check(true).unwrap().problems, []);
    }
}

#[test]
fn a_scrub_waits_goes_on_and_ends_as_it_is_told() {
    let rng = SeededRng::new(63);
    let devices = format(2, &rng);
    let store = mount(&devices, &rng);
    fill(&store, &rng);
    assert!(!store.order_scrub(ScrubState::Paused).unwrap(), "there is none");
    assert!(store.start_scrub(true).unwrap());
    assert!(!store.start_scrub(true).unwrap(), "one is enough");
    // Told to wait after its first step.
    let steps = std::cell::Cell::new(0);
    let goes_on = || {
        steps.set(steps.get() + 1);
        if steps.get() == 40 {
            store.order_scrub(ScrubState::Paused).unwrap();
        }
        true
    };
    store.scrub(&goes_on).unwrap();
    let waiting = store.scrub_status().unwrap().unwrap();
    assert_eq!(waiting.state, ScrubState::Paused, "{waiting:?}");
    store.sync().unwrap();
    drop(store);

    // As after a crash. It is known how far it was, and it waits still.
    let store = mount(&devices, &rng);
    assert_eq!(store.scrub_status().unwrap(), Some(waiting));
    let thread = ScrubThread::start(Arc::clone(&store)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(store.scrub_status().unwrap(), Some(waiting));
    assert!(store.order_scrub(ScrubState::Running).unwrap());
    let patience = Instant::now();
    while store.scrub_status().unwrap().unwrap().state != ScrubState::Done {
        assert!(patience.elapsed() < Duration::from_secs(60), "{:?}", store.scrub_status());
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = store.scrub_status().unwrap().unwrap();
    assert!(
        done.counts.cells >= waiting.counts.cells && done.counts.pages > 0,
        "{done:?}, {waiting:?} before"
    );
    assert!(!store.order_scrub(ScrubState::Cancelled).unwrap());
    drop(thread);

    assert!(store.start_scrub(false).unwrap());
    assert!(store.order_scrub(ScrubState::Cancelled).unwrap());
    store.scrub(&|| true).unwrap();
    assert_eq!(store.scrub_status().unwrap().unwrap().state, ScrubState::Cancelled);
}

/// Others write, delete and clean meanwhile.
#[test]
fn a_scrub_beside_others_finds_nothing_wrong() {
    let rng = SeededRng::new(64);
    let devices = format(2, &rng);
    let store = mount(&devices, &rng);
    fill(&store, &rng);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, stop) = (&store, &stop);
        scope.spawn(move || {
            let rng = SeededRng::new(65);
            for n in 0u64.. {
                if stop.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                let bytes = 1 + rng.below(400_000) as usize;
                write(store, InodeId(10 + n % 40), &noise(&rng, bytes)).unwrap();
                if n.is_multiple_of(16) {
                    store.clean(1 << 20).unwrap();
                }
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let done = scrub(store, true);
            if done.counts.damaged + done.counts.lost > 0 {
                stop.store(true, std::sync::atomic::Ordering::Release);
                panic!("{done:?}");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Release);
    });
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// Pages of which no copy verifies are lost, if anything refers to them.
#[test]
fn metadata_that_rotted_on_all_mirrors_are_told() {
    let rng = SeededRng::new(68);
    let devices = format(2, &rng);
    let store = mount(&devices, &rng);
    fill(&store, &rng);
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    assert!(store.start_scrub(true).unwrap(), "what is open is sealed");
    // What the engine knows by heart it does not read again.
    assert_eq!(store.check(false).unwrap().problems, []);
    let mut rotten = AlignedBuffer::zeroed(1 << 20);
    rng.fill(&mut rotten);
    for entry in store.pool().mapped_slots() {
        if entry.owner == aegisfs_format::map::MapOwner::Database(0) {
            // Behind the checksum blocks and page 0.
            store.pool().write_slot((entry.device, entry.slot), 64 << 10, &rotten).unwrap();
        }
    }
    store.scrub(&|| true).unwrap();
    let done = store.scrub_status().unwrap().unwrap();
    assert!(done.counts.lost > 0 && done.counts.damaged > done.counts.repaired, "{done:?}");
}

/// The dedup index has one copy, and is made anew from the chunks' descriptors.
#[test]
fn a_rotten_index_is_made_anew_and_nothing_is_lost() {
    let rng = SeededRng::new(64);
    let devices = format(2, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, &rng);
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    let mapped = store.pool().mapped_slots();
    let index = mapped.iter().find(|entry| entry.owner == aegisfs_format::map::MapOwner::Database(1));
    let place = index.map(|entry| (entry.device, entry.slot)).expect("there is an index");
    let mut rotten = AlignedBuffer::zeroed(1 << 20);
    rng.fill(&mut rotten);
    // Behind the checksum blocks and page 0.
    store.pool().write_slot(place, 1 << 20, &rotten).unwrap();
    store.pool().write_slot(place, 64 << 10, &rotten).unwrap();
    let first = scrub(&store, true);
    assert!(first.counts.damaged > 0 && first.counts.damaged == first.counts.repaired, "{first:?}");
    assert_eq!(first.counts.lost, 0);
    let second = scrub(&store, true);
    assert_eq!((second.counts.damaged, second.counts.lost), (0, 0), "{second:?}");
    for (id, data) in (10..).zip(&contents) {
        assert!(read(&store, InodeId(id)) == *data, "inode {id} reads wrong");
    }
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// With a clock that runs as it is told to.
#[test]
fn scrubs_begin_when_they_are_due_and_how_stays_known() {
    let rng = SeededRng::new(67);
    let devices = format(1, &rng);
    let clock = Arc::new(ManualClock::default());
    let mount = |clock: &Arc<ManualClock>| {
        let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
        let (pool, _) = Pool::open(all, OpenOptions::default()).unwrap();
        open(pool, &options(), Arc::clone(clock) as Arc<_>, &rng).unwrap().0
    };
    let store = mount(&clock);
    fill(&store, &rng);
    assert!(!store.start_due_scrub().unwrap() && store.scrub_schedule().unwrap().is_none());
    let day = Duration::from_secs(86_400);
    let weekly = When::Every { seconds: 7 * 86_400 };
    store.set_scrub_schedule(Some((weekly, Intensity::High, false))).unwrap();
    let set = store.scrub_schedule().unwrap().unwrap().set;
    assert_eq!(store.next_scrub().unwrap(), weekly.after(set));
    clock.advance(6 * day);
    assert!(!store.start_due_scrub().unwrap());
    clock.advance(day);
    assert!(store.start_due_scrub().unwrap() && !store.start_due_scrub().unwrap());
    assert_eq!(store.scrub_intensity().unwrap(), Intensity::High);
    // One that waits is not begun anew.
    store.order_scrub(ScrubState::Paused).unwrap();
    clock.advance(8 * day);
    assert!(!store.start_due_scrub().unwrap());
    store.order_scrub(ScrubState::Running).unwrap();
    store.scrub(&|| true).unwrap();
    store.close().unwrap();
    drop(store);
    // It was due while nobody was there; and it begins by itself.
    let store = Arc::new(mount(&clock));
    assert_eq!(store.scrub_intensity().unwrap(), Intensity::High);
    let first = store.scrub_status().unwrap().unwrap();
    let scrubber = ScrubThread::start(Arc::clone(&store)).unwrap();
    let begun = Instant::now();
    loop {
        let now = store.scrub_status().unwrap().unwrap();
        if now.started != first.started && now.state == ScrubState::Done {
            assert!(!now.repairs && now.counts.cells > 0);
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{now:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(scrubber);
    store.set_scrub_schedule(None).unwrap();
    clock.advance(100 * day);
    assert!(!store.start_due_scrub().unwrap() && store.next_scrub().unwrap().is_none());
}

/// Counted while somebody changes them, and with one that is wrong.
#[test]
fn references_are_counted_while_they_change() {
    let rng = SeededRng::new(68);
    let devices = format(1, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, &rng);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // The same chunks again and again under other names, and under the same one.
                round += 1;
                write(&store, InodeId(1000 + round % 7), &contents[round as usize % 30]).unwrap();
            }
        });
        for _ in 0..5 {
            let done = scrub(&store, true);
            assert_eq!((done.counts.damaged, done.counts.lost), (0, 0), "{done:?}");
            assert!(store.references_counted().unwrap().chunks > 30);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // A reference more than there is.
    let chunk = {
        let mut first = None;
        store
            .view()
            .scan(Table::Chunks, &[], None, &mut |key, _| {
                first = key.first_chunk::<8>().map(|number| ChunkId(u64::from_be_bytes(*number)));
                ControlFlow::Break(())
            })
            .unwrap();
        first.unwrap()
    };
    let mut descriptor = store.descriptor(chunk).unwrap();
    descriptor.references += 1;
    let put = Op::Put {
        table: Table::Chunks,
        key: key::chunk(chunk).to_vec(),
        value: descriptor.encode().to_vec(),
    };
    store.commit(BranchId(0), vec![put], Vec::new()).unwrap();
    let done = scrub(&store, true);
    assert_eq!((done.counts.damaged, done.counts.repaired), (1, 0), "{done:?}");
    assert_eq!(store.references_counted().unwrap().wrong, 1);
}
