//! How long small work waits for large work of others. Figures against ext4 come from `cargo xtask bench latency`.

use crate::requirements::noise;
use crate::stage::{Stage, can_mount};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// No fsync of 4 KiB but one in a hundred may take longer beside a stream, with which it shares the disk and the
/// processors: 9 to 26 ms were measured. When it waited behind the writes that wait for room in memory, it took 91 to 310 ms.
const SYNC_BOUND: Duration = Duration::from_millis(120);
/// The same of making an empty file in another directory, which waits for no device.
const CREATE_BOUND: Duration = Duration::from_millis(40);

/// How long each call takes, in order, while they are to go on.
fn times(goes_on: impl Fn(usize) -> bool, mut call: impl FnMut(usize)) -> Vec<Duration> {
    let mut times = Vec::new();
    while goes_on(times.len()) {
        let start = Instant::now();
        call(times.len());
        times.push(start.elapsed());
    }
    times.sort();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

#[test]
fn small_syncs_and_creates_do_not_wait_for_a_stream() {
    if !can_mount("small_syncs_and_creates_do_not_wait_for_a_stream") {
        return;
    }
    for ways in ["io_uring=on", "io_uring=off"] {
        let stage = Stage::image("2G");
        stage.mount_with(ways);
        std::fs::create_dir(stage.at("apart")).unwrap();
        let small = File::create(stage.at("small")).unwrap();
        let sync = |n: usize| {
            small.write_all_at(&noise(n as u64, 4096), (n % 64) as u64 * 4096).unwrap();
            small.sync_all().unwrap();
        };
        let create = |n: usize| drop(File::create(stage.at(&format!("apart/{n}"))).unwrap());
        let (idle, idle_creates) = (times(|n| n < 300, sync), times(|n| n < 300, create));
        let done = AtomicBool::new(false);
        let (busy, creates) = thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = File::create(stage.at("stream")).unwrap();
                // 1 GiB of bytes that are neither equal nor to be compressed.
                for n in 0..64 {
                    let mut piece = noise(7, 16 << 20);
                    piece.iter_mut().step_by(64).for_each(|byte| *byte ^= n);
                    stream.write_all(&piece).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            let making = scope.spawn(|| times(|_| !done.load(Ordering::Acquire), |n| create(1000 + n)));
            (times(|_| !done.load(Ordering::Acquire), sync), making.join().unwrap())
        });
        println!(
            "{ways}: p99 of fsync {:?} alone, {:?} beside a stream ({} of them); of making a file {:?} and {:?} ({})",
            p99(&idle),
            p99(&busy),
            busy.len(),
            p99(&idle_creates),
            p99(&creates),
            creates.len()
        );
        assert!(busy.len() > 50 && p99(&busy) < SYNC_BOUND, "{ways}: fsync {:?}", p99(&busy));
        assert!(creates.len() > 50 && p99(&creates) < CREATE_BOUND, "{ways}: create {:?}", p99(&creates));
        drop(small);
        stage.umount();
        stage.check();
    }
}
