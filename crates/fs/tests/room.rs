//! Room: what is promised comes back, and a file may be as long as the device has room for it.

mod stage;

use aegisfs_base::{InodeId, Rng, SeededRng};
use aegisfs_fs::{Changes, Flusher, Fs, FsError, FsOptions, HandleId, Kind, MakeOptions, ROOT, WriteKind};
use aegisfs_pool::Redundancy;
use aegisfs_store::{CleanerThread, StoreError};
use stage::{World, create};
use std::sync::Arc;

const STEP: usize = 1 << 20;
const DEVICE_BYTES: u64 = 128 << 20;

/// Slots as large as they are in use, or nearly.
fn large() -> World {
    World::sized(DEVICE_BYTES, 2 << 20)
}

fn streaming(world: &World) -> (Arc<Fs>, Flusher) {
    let fs = Arc::new(world.mount_with(FsOptions { dirty_bytes_max: 8 << 20, ..FsOptions::default() }));
    let flusher = Flusher::start(Arc::clone(&fs), 2).unwrap();
    (fs, flusher)
}

/// Bytes of a step: a few that are new, the rest all alike.
fn compressible(step: u64) -> Vec<u8> {
    let mut data = vec![step as u8; STEP];
    data.chunks_mut(4096).enumerate().for_each(|(n, block)| {
        block[..16].copy_from_slice(&(u128::from(step) << 32 | n as u128).to_le_bytes());
    });
    data
}

fn read_back(fs: &Fs, handle: HandleId, step: u64) -> Vec<u8> {
    let mut found = vec![0; STEP];
    assert_eq!(fs.read(handle, step * STEP as u64, &mut found).unwrap(), STEP);
    found
}

// Room promised for a file was given back only when all of it was stored, so a stream that went on ran out of
// room on a device that was nearly empty.
#[test]
fn a_stream_three_times_as_long_as_the_device_fits_when_it_compresses() {
    let world = large();
    let (fs, flusher) = streaming(&world);
    let (_, handle) = create(&fs, b"stream");
    for step in 0..3 * DEVICE_BYTES / STEP as u64 {
        assert_eq!(fs.write(handle, step * STEP as u64, &compressible(step)).unwrap(), STEP);
    }
    fs.fsync(handle).unwrap();
    for step in [0, 7, 100, 383] {
        assert!(read_back(&fs, handle, step) == compressible(step), "step {step}");
    }
    drop(flusher);
}

#[test]
fn random_bytes_fill_nearly_all_that_was_free_and_the_rest_is_refused() {
    fill_nearly_all(&large());
}

// While there is room several segments are open at the same time; in the end one is.
#[test]
fn devices_side_by_side_are_filled_as_well() {
    let redundancy = |shards_data, shards_parity| Some(Redundancy { shards_data, shards_parity });
    fill_nearly_all(&World::of(&[64 << 20; 4], 1 << 20, redundancy(1, 0)));
    fill_nearly_all(&World::of(&[96 << 20; 5], 1 << 20, redundancy(1, 1)));
    fill_nearly_all(&World::of(&[128 << 20, 64 << 20, 64 << 20, 64 << 20], 1 << 20, redundancy(1, 1)));
    fill_nearly_all(&World::of(&[64 << 20; 6], 1 << 20, redundancy(2, 1)));
}

fn fill_nearly_all(world: &World) {
    let (fs, flusher) = streaming(world);
    let (id, handle) = create(&fs, b"random");
    let free = fs.store().free_bytes();
    let rng = SeededRng::new(9);
    let mut data = vec![0; STEP];
    let mut steps = 0u64;
    let refusal = loop {
        rng.fill(&mut data);
        match fs.write(handle, steps * STEP as u64, &data) {
            Ok(_) => steps += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, FsError::Store(StoreError::NoSpace { .. })), "{refusal}");
    assert!(steps * STEP as u64 * 100 >= free * 93, "{steps} MiB of {free} bytes");
    // What was taken is all there, and what is deleted comes back.
    fs.fsync(handle).unwrap();
    assert_eq!(fs.getattr(id).unwrap().inode.size, steps * STEP as u64);
    assert_eq!(read_back(&fs, handle, steps - 1).len(), STEP);
    fs.setattr(id, &Changes { size: Some(0), ..Changes::default() }).unwrap();
    for step in 0..steps * 9 / 10 {
        rng.fill(&mut data);
        fs.write(handle, step * STEP as u64, &data).unwrap();
    }
    fs.fsync(handle).unwrap();
    drop(flusher);
}

// Bytes that the log holds still need a row: their promise went with a truncation, and with a remount.
#[test]
fn logged_bytes_keep_their_promise_until_they_lie_in_rows() {
    let world = large();
    let promised = |fs: &Fs, empty: u64| empty - fs.store().free_bytes();
    {
        let fs = world.mount();
        let empty = fs.store().free_bytes();
        let (id, handle) = create(&fs, b"small");
        fs.write(handle, 0, &[7; 30_000]).unwrap();
        fs.fsync(handle).unwrap();
        assert!(promised(&fs, empty) >= 30_000);
        fs.setattr(id, &Changes { size: Some(20_000), ..Changes::default() }).unwrap();
        assert!((20_000..30_000).contains(&promised(&fs, empty)));
        fs.store().sync().unwrap();
    }
    let fs = world.mount();
    assert_eq!(fs.dirty_bytes(), 20_000);
    assert!(fs.store().promised_bytes() >= 20_000);
    fs.flush_all().unwrap();
    assert_eq!((fs.dirty_bytes(), fs.store().promised_bytes()), (0, 0));
}

#[test]
fn bytes_over_bytes_that_still_wait_need_no_more_room() {
    let world = large();
    let fs = world.mount();
    let (_, handle) = create(&fs, b"often");
    fs.write(handle, 0, &[1; 40_000]).unwrap();
    let promised = fs.store().promised_bytes();
    for n in 0..50 {
        fs.write(handle, 100, &[n; 30_000]).unwrap();
    }
    // They may stand in two runs now, which costs a few bytes more.
    assert!(fs.store().promised_bytes() < promised + 1000);
}

#[test]
fn the_room_kept_for_cached_writes_is_refused_to_others() {
    let world = large();
    let kept = 6 << 20;
    let fs =
        world.mount_with(FsOptions { background: false, soft_reserve_bytes: kept, ..FsOptions::default() });
    let (_, handle) = create(&fs, b"cached");
    let rng = SeededRng::new(3);
    let mut data = vec![0; STEP];
    let mut offset = 0;
    loop {
        rng.fill(&mut data);
        match fs.write(handle, offset, &data) {
            Ok(count) => offset += count as u64,
            Err(FsError::Store(StoreError::NoSpace { .. })) => break,
            Err(other) => panic!("{other}"),
        }
    }
    fs.fsync(handle).unwrap();
    let free = fs.store().free_bytes();
    assert!((kept..kept + 3 * STEP as u64).contains(&free), "{free} bytes are left");
    let cached = WriteKind { cached: true, drops_privileges: false, ..WriteKind::default() };
    // A cached write may still have it; then nothing new is made, until something goes.
    fs.write_with(handle, offset, &data, cached).unwrap();
    fs.write_with(handle, offset + STEP as u64, &data, cached).unwrap();
    fs.fsync(handle).unwrap();
    assert!(fs.nearly_full());
    assert_eq!(fs.statfs().unwrap().blocks_free, 0);
    let refused = fs.create(aegisfs_fs::ROOT, b"another", &Default::default()).map(drop);
    assert!(matches!(refused, Err(FsError::Store(StoreError::NoSpace { .. }))), "{refused:?}");
    fs.unlink(aegisfs_fs::ROOT, b"cached").unwrap();
    fs.release(handle).unwrap();
    let found = fs.peek(aegisfs_fs::ROOT, b"cached").map(drop);
    assert!(matches!(found, Err(FsError::NotFound)));
}

// What was overwritten in the log stayed among the metadata until its file settled, which one that is synced all the time
// never does: the metadata took the whole device, and kept it.
#[test]
fn what_is_overwritten_and_synced_takes_no_room() {
    let world = large();
    let (fs, flusher) = streaming(&world);
    let rng = SeededRng::new(5);
    let (_, handle) = create(&fs, b"overwritten");
    let free = fs.store().free_bytes();
    let mut content = vec![0; 10 << 16];
    let mut piece = vec![0; 1 << 16];
    for _ in 0..3000 {
        let at = rng.below(10) as usize * piece.len();
        rng.fill(&mut piece);
        fs.write(handle, at as u64, &piece).unwrap();
        fs.fsync(handle).unwrap();
        content[at..at + piece.len()].copy_from_slice(&piece);
    }
    fs.sync().unwrap();
    let mut found = vec![0; content.len()];
    fs.read(handle, 0, &mut found).unwrap();
    assert!(found == content);
    let report = fs.store().space_report().unwrap();
    assert!(report.metadata_bytes < 40 << 20, "{report:?}");
    let left = fs.store().free_bytes();
    assert!(left + (24 << 20) > free, "{left} of {free} are free");
    drop(flusher);
}

/// Makes small files until none fits any more, and says how many there are.
fn fill_with_small_files(fs: &Fs, directory: InodeId, rng: &SeededRng) -> u64 {
    let mut data = vec![0; 3000];
    for made in 0.. {
        rng.fill(&mut data);
        let name = format!("{made}");
        let outcome =
            fs.create(directory, name.as_bytes(), &MakeOptions::default()).and_then(|(file, handle)| {
                let outcome = fs.write(handle, 0, &data);
                fs.release(handle).unwrap();
                fs.forget(file.id, 1);
                outcome
            });
        match outcome {
            Ok(_) => {}
            Err(FsError::Store(StoreError::NoSpace { .. })) => return made,
            Err(other) => panic!("file {made}: {other}"),
        }
        if made % 500 == 0 {
            fs.flush_all().unwrap();
        }
    }
    unreachable!("a device has an end")
}

// The cleaner and the dedup index took the slots that the next checkpoint needed: it failed, and so did every mount
// after it.
#[test]
fn a_device_full_of_small_files_can_be_emptied_again() {
    let world = World::sized(DEVICE_BYTES, 1 << 20);
    let mut first = 0;
    for round in 0..3 {
        let made = {
            let fs = world.mount();
            let cleaner = CleanerThread::start(Arc::clone(fs.store())).unwrap();
            let directory = fs.make(ROOT, b"many", Kind::Directory, &MakeOptions::default()).unwrap().id;
            let made = fill_with_small_files(&fs, directory, &world.rng);
            fs.sync().unwrap();
            fs.forget(directory, 1);
            drop(cleaner);
            made
        };
        first = first.max(made);
        assert!(made * 100 >= first * 75, "round {round}: {made} files where there were {first}");
        // After a crash, and full.
        let fs = world.mount();
        let directory = fs.peek(ROOT, b"many").unwrap().id;
        for name in (0..made).chain([made]).map(|n| n.to_string()) {
            match fs.unlink(directory, name.as_bytes()) {
                Ok(()) | Err(FsError::NotFound) => {}
                Err(other) => panic!("round {round}: {name}: {other}"),
            }
        }
        fs.rmdir(ROOT, b"many").unwrap();
        fs.sync().unwrap();
        fs.store().reap_all().unwrap();
        fs.store().clean(u64::MAX).unwrap();
        assert_eq!(fs.store().read_only_reason(), None);
        assert_eq!(fs.store().check(true).unwrap().problems, []);
        if round == 1 {
            fs.store().close().unwrap();
        }
    }
}
