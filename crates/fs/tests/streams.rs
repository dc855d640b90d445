//! Streams, whose parts are cut, compressed and written by several threads at once.

mod stage;

use aegisfs_base::{ManualClock, Rng, SeededRng};
use aegisfs_device::{Device, Fault, FaultyDevice, MemoryDevice, Operation};
use aegisfs_fs::{Fs, FsOptions, HandleId, ROOT};
use aegisfs_pool::{OpenOptions, Pool};
use aegisfs_store::{StoreOptions, open};
use stage::{World, create};
use std::collections::BTreeSet;
use std::sync::Arc;

const STREAM_BYTES: usize = 10 << 20;
const CALL_BYTES: usize = 128 << 10;

type Faulty = FaultyDevice<Arc<MemoryDevice>>;

fn mount(device: &Arc<Faulty>, workers: usize) -> Fs {
    let devices: Vec<Arc<dyn Device>> = vec![Arc::clone(device) as Arc<dyn Device>];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let options = StoreOptions { workers, ..StoreOptions::default() };
    let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &SeededRng::new(6)).unwrap();
    // Without threads of its own the filesystem writes out when memory is short.
    let options = FsOptions { background: false, dirty_bytes_max: 6 << 20, ..FsOptions::default() };
    Fs::mount(Arc::new(store), options).unwrap()
}

/// Some of it random, some of it text, some of it twice.
fn content(seed: u64) -> Vec<u8> {
    let rng = SeededRng::new(seed);
    let mut data = vec![0; STREAM_BYTES];
    rng.fill(&mut data);
    for part in data.chunks_mut(300_000).step_by(2) {
        part.iter_mut().zip(b"all work and no play ".iter().cycle()).for_each(|(to, from)| *to ^= from & 8);
        part.iter_mut().for_each(|byte| *byte &= 0x18);
    }
    data.copy_within(0..STREAM_BYTES / 4, STREAM_BYTES / 2);
    data
}

fn stream(fs: &Fs, handle: HandleId, data: &[u8]) -> Result<(), aegisfs_fs::FsError> {
    for (number, call) in data.chunks(CALL_BYTES).enumerate() {
        fs.write(handle, (number * CALL_BYTES) as u64, call)?;
    }
    fs.fsync(handle)
}

fn read(fs: &Fs, name: &[u8]) -> Result<Vec<u8>, aegisfs_fs::FsError> {
    let handle = fs.open(fs.peek(ROOT, name)?.id)?;
    let mut out = vec![0; STREAM_BYTES];
    let count = fs.read(handle, 0, &mut out);
    fs.release(handle)?;
    out.truncate(count?);
    Ok(out)
}

fn assert_sound(fs: &Fs) {
    assert_eq!(fs.check_tree().unwrap().problems, []);
    assert_eq!(fs.store().check(true).unwrap().problems, []);
}

#[test]
fn several_threads_store_what_one_does() {
    let data = content(1);
    let mut stored = BTreeSet::new();
    for workers in [0, 2, 5] {
        let world = World::sized(128 << 20, 1 << 20);
        let device = Arc::new(FaultyDevice::new(Arc::clone(&world.devices[0])));
        {
            let fs = mount(&device, workers);
            let (_, handle) = create(&fs, b"stream");
            stream(&fs, handle, &data).unwrap();
            assert!(read(&fs, b"stream").unwrap() == data, "{workers} workers");
            fs.sync().unwrap();
        }
        let fs = world.mount();
        assert!(read(&fs, b"stream").unwrap() == data, "{workers} workers, mounted again");
        assert_sound(&fs);
        let report = fs.store().check(false).unwrap();
        let usage = fs.store().space_report().unwrap();
        stored.insert((report.chunks, report.references, usage.unique_bytes));
    }
    assert_eq!(stored.len(), 1, "the same chunks, whoever cuts them: {stored:?}");
}

// A thread that fails must not leave the others waiting, nor its rows taken, nor the bytes lost that were promised.
#[test]
fn a_device_that_fails_under_a_stream_fails_it_and_nothing_before() {
    let old = content(2);
    let new = content(3);
    for (n, after) in (0..24).enumerate() {
        let world = World::sized(128 << 20, 1 << 20);
        let device = Arc::new(FaultyDevice::new(Arc::clone(&world.devices[0])));
        let outcome = {
            let fs = mount(&device, 3);
            let (_, handle) = create(&fs, b"old");
            stream(&fs, handle, &old).unwrap();
            fs.sync().unwrap();
            let (_, handle) = create(&fs, b"new");
            // Failures of other kinds at other places.
            let fault = match n % 3 {
                0 => Fault::lasting(Operation::Write, after),
                1 => Fault::once(Operation::Write, after),
                _ => Fault::once(Operation::Flush, after / 12),
            };
            device.plan(fault);
            let outcome = stream(&fs, handle, &new);
            assert!(read(&fs, b"old").unwrap() == old, "write {after}: what was synced");
            outcome
        };
        device.clear();
        let fs = mount(&device, 3);
        assert!(read(&fs, b"old").unwrap() == old, "write {after}: what was synced, mounted again");
        if outcome.is_ok() {
            assert!(read(&fs, b"new").unwrap() == new, "write {after}: what was acknowledged");
        } else if let Ok(found) = read(&fs, b"new") {
            assert!(new.starts_with(&found), "write {after}: a part of what was written, and nothing else");
        }
        assert_sound(&fs);
        let (_, handle) = create(&fs, b"again");
        stream(&fs, handle, &new).unwrap();
        assert!(read(&fs, b"again").unwrap() == new);
    }
}
