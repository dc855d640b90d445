//! Several devices are faster than one, and a slow one does not hold back the others for long.

use super::{noise, options, read, references_of, write};
use aegisfs_base::{DeviceIndex, InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{Device, Fault, FaultyDevice, MemoryDevice, Operation, Throttle, ThrottledDevice};
use aegisfs_format::superblock::Health;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool, Redundancy};
use aegisfs_store::{Store, StoreOptions, create, open};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FILE: InodeId = InodeId(10);
const FILE_BYTES: usize = 16 << 20;
/// Threads that write at the same time where that is tried.
const WRITERS: u64 = 3;
/// Rows that one of them has written at the same time at most.
const ROWS_AT_ONCE: u32 = 2;

/// A pool of devices that are as slow as said.
fn mount(throttles: &[Throttle], redundancy: (u8, u8), rng: &dyn Rng) -> Store {
    let slow = |(device, throttle): (Arc<MemoryDevice>, &Throttle)| {
        Arc::new(ThrottledDevice::new(device.snapshot(), *throttle)) as Arc<dyn Device>
    };
    let devices = format(throttles.len(), redundancy, rng);
    open_on(devices.into_iter().zip(throttles).map(slow).collect(), rng)
}

fn format(count: usize, redundancy: (u8, u8), rng: &dyn Rng) -> Vec<Arc<MemoryDevice>> {
    let memory = |n: usize| Arc::new(MemoryDevice::new(format!("device {n}"), 192 << 20));
    let devices: Vec<_> = (0..count).map(memory).collect();
    let create_options = CreateOptions {
        redundancy: Some(Redundancy { shards_data: redundancy.0, shards_parity: redundancy.1 }),
        slot_bytes: Some(2 << 20),
        log_pieces: Some(4),
        ..CreateOptions::default()
    };
    let dynamic = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let pool = Pool::create(dynamic, &create_options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    devices
}

fn open_on(devices: Vec<Arc<dyn Device>>, rng: &dyn Rng) -> Store {
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    // More than one file is not kept.
    let options = StoreOptions { chunk_cache_bytes: 1 << 20, workers: 2, ..options() };
    open(pool, &options, Arc::new(ManualClock::default()), rng).unwrap().0
}

/// Devices that move so many MiB in a second.
fn narrow(count: usize, mib: u64) -> Vec<Throttle> {
    vec![Throttle { latency: Duration::ZERO, bytes_per_second: Some(mib << 20) }; count]
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// How long it takes to write a file, and to read it.
fn write_and_read(devices: usize, redundancy: (u8, u8)) -> (Duration, Duration) {
    let rng = SeededRng::new(120);
    let store = mount(&narrow(devices, 16), redundancy, &rng);
    let data = noise(&rng, FILE_BYTES);
    let written = timed(|| {
        write(&store, FILE, &data).unwrap();
        store.sync().unwrap();
    });
    let fetch = |file: InodeId| {
        let chunks: Vec<_> =
            references_of(&store, file).into_iter().map(|(_, reference)| reference.chunk).collect();
        store.prefetch(&chunks).unwrap();
    };
    // So that it is known how long a read takes.
    for file in [InodeId(11), InodeId(12)] {
        write(&store, file, &noise(&rng, FILE_BYTES / 2)).unwrap();
        fetch(file);
    }
    let fetched = timed(|| fetch(FILE));
    assert!(read(&store, FILE) == data);
    (written, fetched)
}

/// What one writer writes goes to all disks at the same time, and so does what one reader reads.
#[test]
fn twice_as_many_devices_are_about_twice_as_fast() {
    for (few, many, redundancy) in [(2, 4, (1, 1)), (3, 6, (2, 1))] {
        let faster = |one: Duration, two: Duration| two < one * 7 / 10;
        // A busy machine may be slower at any time.
        let mut tries = Vec::new();
        let is_faster = (0..3).any(|_| {
            let (one, two) = (write_and_read(few, redundancy), write_and_read(many, redundancy));
            tries.push((one, two));
            faster(one.0, two.0) && faster(one.1, two.1)
        });
        assert!(is_faster, "{redundancy:?}: {many} devices are not faster than {few}: {tries:?}");
    }
}

/// One disk of four is slow. What waits for it is bounded, and once it is trusted less the others are as fast as without it.
#[test]
fn a_slow_device_holds_back_the_others_only_until_it_is_known() {
    let rng = SeededRng::new(121);
    let time = |slow: bool, known: bool| {
        let mut throttles = vec![Throttle::default(); 4];
        if slow {
            throttles[1].latency = Duration::from_millis(150);
        }
        let store = mount(&throttles, (1, 1), &rng);
        if known {
            store.pool().set_health(DeviceIndex(1), Health::Degraded).unwrap();
        }
        let took = timed(|| {
            std::thread::scope(|scope| {
                for writer in 0..WRITERS {
                    let (store, data) = (&store, noise(&SeededRng::new(writer), FILE_BYTES));
                    scope.spawn(move || write(store, InodeId(20 + writer), &data).unwrap());
                }
            });
        });
        // Each writer waits for its own rows, and whoever writes the log waits as well.
        let report = &store.pool().device_reports()[1];
        let most = WRITERS as u32 * ROWS_AT_ONCE + 2;
        assert!(report.in_flight_most <= most, "{} calls wait for one device", report.in_flight_most);
        assert_eq!(report.in_flight, 0);
        took
    };
    let (even, unknown, known) = (time(false, false), time(true, false), time(true, true));
    let told = format!("{even:?} with none that is slow, {unknown:?} with one, {known:?} when it is known");
    assert!(unknown > even + Duration::from_secs(1), "it is not slow at all: {told}");
    assert!(known < (even + unknown) / 2 && known < even * 2 + Duration::from_millis(500), "{told}");
}

/// Of several rows that are written at the same time one fails, whichever, on one device or on all: it is written without that
/// device or refused, what was there before still is, and nothing is left over.
#[test]
fn one_of_the_rows_that_go_out_together_may_fail() {
    let rng = SeededRng::new(122);
    let images = format(4, (1, 1), &rng);
    let store = open_on(images.iter().map(|image| Arc::clone(image) as Arc<dyn Device>).collect(), &rng);
    let (before, after) = (noise(&rng, 3 << 20), noise(&rng, 9 << 20));
    write(&store, FILE, &before).unwrap();
    store.close().unwrap();
    drop(store);
    for all in [false, true] {
        let mut refused = 0;
        for n in 0.. {
            let devices: Vec<_> =
                images.iter().map(|image| Arc::new(FaultyDevice::new(image.snapshot()))).collect();
            let dynamic = || devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
            let store = open_on(dynamic(), &rng);
            let calls = devices[1].calls(Operation::Write);
            let failing = if all { &devices[..] } else { &devices[1..2] };
            failing.iter().for_each(|device| device.plan(Fault::lasting(Operation::Write, n)));
            let outcome = write(&store, InodeId(11), &after).and_then(|sequence| store.sync_to(sequence));
            let is_over = outcome.is_ok() && devices[1].calls(Operation::Write) - calls <= n;
            drop(store);
            devices.iter().for_each(|device| device.clear());
            let store = open_on(dynamic(), &rng);
            assert!(read(&store, FILE) == before, "write {n} failed");
            match outcome {
                Ok(()) => assert!(read(&store, InodeId(11)) == after, "write {n} failed"),
                Err(_) => refused += 1,
            }
            super::assert_sound(&store);
            if is_over {
                break;
            }
        }
        assert!(if all { refused > 3 } else { refused == 0 }, "{refused} writes were refused, all: {all}");
    }
}
