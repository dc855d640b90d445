//! What the cleaner gives back, and what it leaves as it is.

use super::{HEAD, assert_sound, format, mount, noise, options, read, write};
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng, Sequence};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::op::{NewRef, Op};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{Piece, Store, StoreError, create, open};
use memchr::memmem;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Contents = BTreeMap<InodeId, Vec<u8>>;

/// Writes files of so many bytes, from inode 10 on.
fn fill(store: &Store, rng: &dyn Rng, files: u64, bytes: usize) -> Contents {
    let one = |n| {
        let data = noise(rng, bytes);
        write(store, InodeId(n), &data).unwrap();
        (InodeId(n), data)
    };
    (10..10 + files).map(one).collect()
}

/// Empties every other file.
fn thin_out(store: &Store, contents: &mut Contents) {
    for inode in contents.keys().copied().filter(|inode| inode.0.is_multiple_of(2)).collect::<Vec<_>>() {
        write(store, inode, b"").unwrap();
        contents.remove(&inode);
    }
}

fn assert_reads(store: &Store, contents: &Contents) {
    for (inode, data) in contents {
        assert!(read(store, *inode) == *data, "inode {inode} reads wrong");
    }
}

/// Overwrites a part of a file that is there.
fn overwrite(store: &Store, inode: InodeId, offset: usize, part: &[u8], contents: &mut Contents) {
    let mut ingested =
        store.ingest(1, &[Piece::new(0, offset as u64, part)], aegisfs_base::PolicyId(0), true).unwrap();
    let references = std::mem::take(&mut ingested.references[0]);
    let (from, to) = (offset as u64, (offset + part.len()) as u64);
    let replace = Op::Replace { inode, from, to, pending_up_to: Sequence(u64::MAX), references };
    store.commit_ingested(HEAD, ingested, vec![replace]).unwrap();
    contents.get_mut(&inode).unwrap()[offset..offset + part.len()].copy_from_slice(part);
}

/// Blocks of a file that fills most of a device are overwritten, more than there is room for beside it: what
/// is left of chunks is not kept for the sake of a few of their blocks.
#[test]
fn a_file_that_nearly_fills_a_device_can_be_overwritten_block_by_block() {
    const BLOCK: usize = 4096;
    let rng = SeededRng::new(18);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let (total, _) = store.capacity();
    let size = (total as usize * 7 / 10) / BLOCK * BLOCK;
    let (file, other) = (InodeId(10), InodeId(11));
    let mut contents = Contents::new();
    for (inode, size) in [(file, size - (8 << 20)), (other, 8 << 20)] {
        let data = noise(&rng, size);
        write(&store, inode, &data).unwrap();
        contents.insert(inode, data);
    }
    let mut written = 0;
    while written < size {
        let room = store.reserve(64 * BLOCK as u64, 0, aegisfs_base::PolicyId(0)).unwrap();
        for _ in 0..64 {
            let block = rng.below(((size - (8 << 20)) / BLOCK) as u64) as usize;
            overwrite(&store, file, block * BLOCK, &noise(&rng, BLOCK), &mut contents);
            written += BLOCK;
        }
        drop(room);
    }
    assert_reads(&store, &contents);
    assert_sound(&store);
    store.sync_to(store.last_sequence()).unwrap();
    drop(store);
    let store = mount(&device, &rng);
    assert_reads(&store, &contents);
    assert_sound(&store);
    // And what it has cost comes back.
    while store.clean(u64::MAX).unwrap().segments > 0 {}
    let (total, free) = store.capacity();
    let live: usize = contents.values().map(Vec::len).sum();
    let missing = (total as i64) - (live as i64) - (free as i64);
    assert!(missing < total as i64 / 16, "of {total} bytes {live} are used and {free} free");
    assert_reads(&store, &contents);
    assert_sound(&store);
}

/// Directories of tiny chunks take as much room as these; where nothing died, nothing is to be had.
#[test]
fn segments_full_of_tiny_chunks_are_left_alone() {
    let rng = SeededRng::new(19);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    for batch in 0..40u64 {
        let contents: Vec<_> = (0..3000).map(|_| noise(&rng, 72)).collect();
        let pieces: Vec<_> = contents.iter().enumerate().map(|(n, data)| Piece::new(n, 0, data)).collect();
        let mut ingested = store.ingest(contents.len(), &pieces, aegisfs_base::PolicyId(0), true).unwrap();
        let references = std::mem::take(&mut ingested.references);
        let refer = |(n, references)| {
            let inode = InodeId(10 + batch * 3000 + n);
            Op::Replace { inode, from: 0, to: 72, pending_up_to: Sequence(u64::MAX), references }
        };
        let ops = (0..).zip(references).map(refer).collect();
        store.commit_ingested(HEAD, ingested, ops).unwrap();
    }
    let (candidates, bytes) = store.cleaning_candidates().unwrap();
    assert_eq!((candidates, bytes), (vec![], 0));
    assert_eq!(store.clean(u64::MAX).unwrap().segments, 0);
    assert_sound(&store);
}

/// However many pieces a file is in, a checkpoint can store what they refer to.
#[test]
fn a_window_in_very_many_pieces_is_stored() {
    const PIECES: u64 = 60_000;
    let rng = SeededRng::new(20);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut ingested =
        store.ingest(1, &[Piece::new(0, 0, &noise(&rng, 16_000))], aegisfs_base::PolicyId(0), true).unwrap();
    let mut references = std::mem::take(&mut ingested.references[0]);
    let chunk = references[0].chunk;
    let whole = |references| Op::Replace {
        inode: InodeId(10),
        from: 0,
        to: 16_000,
        pending_up_to: Sequence(u64::MAX),
        references,
    };
    store.commit_ingested(HEAD, ingested, vec![whole(std::mem::take(&mut references))]).unwrap();
    for first in (0..PIECES).step_by(10_000) {
        let piece =
            |n: u64| NewRef { offset: n * 16, length: 8, chunk, offset_in_chunk: (n * 8 % 8000) as u32 };
        let references: Vec<_> = (first..first + 10_000).map(piece).collect();
        let (from, to) = (first * 16, (first + 10_000) * 16);
        let inode = InodeId(11);
        let op = Op::Replace { inode, from, to, pending_up_to: Sequence(u64::MAX), references };
        store.commit(HEAD, vec![op], Vec::new()).unwrap();
    }
    store.checkpoint().unwrap();
    assert_eq!(u64::from(store.descriptor(chunk).unwrap().references), PIECES + 1);
    drop(store);
    assert_sound(&mount(&device, &rng));
}

#[test]
fn what_died_among_what_lives_comes_back() {
    let rng = SeededRng::new(11);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut contents = fill(&store, &rng, 120, 1 << 20);
    thin_out(&store, &mut contents);
    store.checkpoint().unwrap();
    let before = store.space_report().unwrap();
    assert!(before.data_bytes > 115 << 20, "no segment died as a whole: {before:?}");
    let done = store.clean(u64::MAX).unwrap();
    let after = store.space_report().unwrap();
    // One open segment and what rows lose at their ends come on top.
    assert!(after.data_bytes < 70 << 20, "{after:?} after {done:?}");
    assert!(done.moved_bytes < 65 << 20 && done.stuck == 0, "{done:?}");
    assert_eq!(after.compressed_bytes, before.compressed_bytes);
    assert_reads(&store, &contents);
    assert_sound(&store);
    assert_eq!(store.clean(u64::MAX).unwrap().moved_bytes, 0, "there is nothing more to be had");
    // As it was synced, without a clean end.
    drop(store);
    let store = mount(&device, &rng);
    assert_reads(&store, &contents);
    assert_sound(&store);
}

/// Small chunks share a frame; what of it died does not come along.
#[test]
fn chunks_leave_the_frames_in_which_others_died() {
    let rng = SeededRng::new(12);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut contents = Contents::new();
    for n in 10..300 {
        let data: Vec<u8> = noise(&rng, 100_000).iter().map(|byte| b'a' + byte % 16).collect();
        write(&store, InodeId(n), &data).unwrap();
        contents.insert(InodeId(n), data);
    }
    let before = store.space_report().unwrap();
    for (inode, data) in &mut contents {
        // A hole in the middle, at no border of anything.
        let (from, to) = (20_001, 80_001);
        let op = Op::Replace {
            inode: *inode,
            from,
            to,
            pending_up_to: Sequence(u64::MAX),
            references: Vec::new(),
        };
        store.commit(HEAD, vec![op], Vec::new()).unwrap();
        data[from as usize..to as usize].fill(0);
    }
    store.close().unwrap();
    let store = mount(&device, &rng);
    store.clean(u64::MAX).unwrap();
    store.close().unwrap();
    let store = mount(&device, &rng);
    let after = store.space_report().unwrap();
    assert!(after.compressed_bytes < before.compressed_bytes, "{after:?}");
    assert!(after.data_bytes < after.compressed_bytes + (3 << 20), "{after:?}");
    assert_reads(&store, &contents);
    assert_sound(&store);
}

/// Nobody has to ask for it: whoever needs room gets it.
#[test]
fn a_full_device_takes_again_what_was_deleted_here_and_there() {
    let rng = SeededRng::new(13);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut contents = Contents::new();
    let mut next = 10;
    let mut fill_up = |store: &Store, contents: &mut Contents| {
        let mut bytes = 0;
        loop {
            let data = noise(&rng, 300_000);
            match store.reserve(data.len() as u64, 0, aegisfs_base::PolicyId(0)) {
                Ok(_room) => write(store, InodeId(next), &data).unwrap(),
                Err(StoreError::NoSpace { .. }) => return bytes,
                Err(error) => panic!("{error}"),
            };
            bytes += data.len() as u64;
            contents.insert(InodeId(next), data);
            next += 1;
        }
    };
    let first = fill_up(&store, &mut contents);
    let (total, free) = store.capacity();
    assert!(free < total / 100, "{free} of {total} are free, but nothing fits");
    for round in 0..3 {
        let before: u64 = contents.values().map(|data| data.len() as u64).sum();
        thin_out(&store, &mut contents);
        let gone = before - contents.values().map(|data| data.len() as u64).sum::<u64>();
        let again = fill_up(&store, &mut contents);
        assert!(again + first / 50 >= gone, "round {round}: {gone} bytes went, only {again} fit again");
        assert_reads(&store, &contents);
    }
    assert_sound(&store);
    let gone: Vec<InodeId> = contents.keys().copied().collect();
    for inode in gone {
        write(&store, inode, b"").unwrap();
    }
    let again = fill_up(&store, &mut contents);
    assert!(again + first / 50 >= first, "{first} bytes went, only {again} fit again");
}

#[test]
fn readers_beside_the_cleaner_see_what_was_written() {
    let rng = SeededRng::new(14);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut contents = fill(&store, &rng, 60, 400_000);
    let stable: Contents = contents
        .iter()
        .filter(|(inode, _)| !inode.0.is_multiple_of(2))
        .map(|(i, d)| (*i, d.clone()))
        .collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    assert_reads(&store, &stable);
                }
            });
        }
        for round in 0..12 {
            thin_out(&store, &mut contents);
            store.clean(u64::MAX).unwrap();
            // The slots that came back are taken at once.
            for n in (1000..1040).map(|n| InodeId(n + 100 * round)) {
                let data = noise(&rng, 400_000);
                write(&store, n, &data).unwrap();
                contents.insert(n, data);
            }
        }
        done.store(true, Ordering::Release);
    });
    let cleaned = store.counters().segments_cleaned.load(Ordering::Relaxed);
    assert!(cleaned >= 12, "only {cleaned} segments were cleaned");
    assert_eq!(store.counters().frames_damaged.load(Ordering::Relaxed), 0);
    assert_sound(&store);
}

fn two_mirrored(rng: &dyn Rng) -> (Vec<Arc<MemoryDevice>>, Store) {
    let devices: Vec<_> =
        ["one", "two"].into_iter().map(|name| Arc::new(MemoryDevice::new(name, 256 << 20))).collect();
    let create_options = CreateOptions { compression: (2, 1), ..CreateOptions::default() };
    let all = || devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect::<Vec<_>>();
    let pool = Pool::create(all(), &create_options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    let (pool, _) = Pool::open(all(), OpenOptions::default()).unwrap();
    let (store, _) = open(pool, &options(), Arc::new(ManualClock::default()), rng).unwrap();
    (devices, store)
}

/// Flips a bit in what begins like any of these, wherever a device holds it.
fn rot<'a>(device: &MemoryDevice, rotten: impl IntoIterator<Item = &'a Vec<u8>>) -> usize {
    let finders: Vec<_> = rotten.into_iter().map(|bytes| memmem::Finder::new(&bytes[..32])).collect();
    let mut block = vec![0; 1 << 20];
    let mut found = 0;
    for at in (0..device.bytes()).step_by(block.len() - 4096) {
        let length = block.len().min((device.bytes() - at) as usize);
        device.read_at(at, &mut block[..length]).unwrap();
        for place in finders.iter().filter_map(|finder| finder.find(&block[..length])).collect::<Vec<_>>() {
            let first = place / 4096 * 4096;
            block[place] ^= 1;
            device.write_at(at + first as u64, &block[first..first + 4096]).unwrap();
            found += 1;
        }
    }
    found
}

#[test]
fn what_rotted_on_one_device_is_moved_from_the_other() {
    let rng = SeededRng::new(15);
    let (devices, store) = two_mirrored(&rng);
    let mut contents = fill(&store, &rng, 40, 1 << 20);
    assert!(rot(&devices[0], contents.values()) >= contents.len());
    thin_out(&store, &mut contents);
    let done = store.clean(u64::MAX).unwrap();
    assert!(done.segments > 3 && done.stuck == 0, "{done:?}");
    assert_reads(&store, &contents);
    assert_sound(&store);
}

/// What cannot be read stays where it is, and is an error for who reads it; everything else is moved.
#[test]
fn what_cannot_be_read_anywhere_stays() {
    let rng = SeededRng::new(16);
    let device = format(256 << 20, &rng);
    let store = mount(&device, &rng);
    let mut contents = fill(&store, &rng, 40, 1 << 20);
    thin_out(&store, &mut contents);
    store.checkpoint().unwrap();
    drop(store);
    let lost = InodeId(17);
    assert!(rot(&device, [&contents[&lost]]) > 0);
    let store = mount(&device, &rng);
    let done = store.clean(u64::MAX).unwrap();
    assert_eq!(done.stuck, 1, "{done:?}");
    assert!(done.segments > 3, "{done:?}");
    assert_eq!(store.clean(u64::MAX).unwrap().stuck, 0, "it is not tried again and again");
    contents.remove(&lost);
    assert_reads(&store, &contents);
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&store, lost)));
    assert!(failed.is_err(), "damage is told");
}
