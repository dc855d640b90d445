//! What the filesystem has to do when things are made durable, by many at once, and when the daemon dies.

use crate::requirements::{figure, noise, soak_minutes};
use crate::stage::{AEGISFS, Stage, can_mount, must, run};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Makes a file durable, with this content.
fn write_durably(path: &std::path::Path, data: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(data).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_storm_of_flushes_passes_and_is_durable() {
    if !can_mount("a_storm_of_flushes_passes_and_is_durable") {
        return;
    }
    const THREADS: u64 = 8;
    const FILES: u64 = 60;
    let stage = Stage::image("256M");
    stage.mount();
    let start = Instant::now();
    thread::scope(|scope| {
        for writer in 0..THREADS {
            let stage = &stage;
            scope.spawn(move || {
                for n in 0..FILES {
                    let bytes = (n * 137 % 9_000) as usize;
                    write_durably(&stage.at(&format!("{writer} {n}")), &noise(writer << 32 | n, bytes));
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    println!("{} files made durable in {seconds:.1} s", THREADS * FILES);
    assert!(seconds < 60.0, "{seconds} s");
    stage.kill();
    stage.mount();
    for (writer, n) in (0..THREADS).flat_map(|writer| (0..FILES).map(move |n| (writer, n))) {
        let expected = noise(writer << 32 | n, (n * 137 % 9_000) as usize);
        assert!(fs::read(stage.at(&format!("{writer} {n}"))).unwrap() == expected, "{writer} {n}");
    }
}

#[test]
fn a_lone_sync_is_quick() {
    if !can_mount("a_lone_sync_is_quick") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let mut times: Vec<Duration> = (0..15)
        .map(|n| {
            thread::sleep(Duration::from_millis(60));
            let start = Instant::now();
            write_durably(&stage.at(&format!("f{n}")), &noise(n, 4096));
            start.elapsed()
        })
        .collect();
    times.sort();
    let median = times[times.len() / 2];
    println!("write and sync while idle: median {median:?}, longest {:?}", times[times.len() - 1]);
    assert!(median < Duration::from_millis(100), "{times:?}");
}

/// Counts log flushes while `work` runs and for some time after.
fn flushes_of(stage: &Stage, wait: Duration, work: impl FnOnce()) -> u64 {
    let before = figure(stage, "status", "log_flushes");
    work();
    let end = Instant::now() + wait;
    while figure(stage, "status", "log_flushes") == before && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    figure(stage, "status", "log_flushes") - before
}

#[test]
fn the_log_is_flushed_by_time_and_by_number() {
    if !can_mount("the_log_is_flushed_by_time_and_by_number") {
        return;
    }
    let make = |stage: &Stage, from: u32, count: u32| {
        (from..from + count).for_each(|n| fs::create_dir(stage.at(&format!("d{n}"))).unwrap());
    };
    let stage = Stage::image("256M");
    stage.mount();
    let by_time = flushes_of(&stage, Duration::from_secs(5), || make(&stage, 0, 1));
    assert!(by_time >= 1, "nothing was flushed");
    stage.umount();
    let settings = ["--set", "log.sync_interval_ms=60000", "--set", "log.sync_transactions=100"];
    must(AEGISFS, &[&["mount"][..], &settings, &[stage.device(), &stage.mnt()]].concat());
    let few = flushes_of(&stage, Duration::from_millis(1500), || make(&stage, 10, 40));
    assert_eq!(few, 0, "40 changes are fewer than 100");
    let many = flushes_of(&stage, Duration::from_secs(5), || make(&stage, 100, 200));
    assert!(many >= 1, "240 changes are more than 100");
}

#[test]
fn those_who_sync_together_share_flushes() {
    if !can_mount("those_who_sync_together_share_flushes") {
        return;
    }
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 40;
    let stage = Stage::image("256M");
    stage.mount();
    let counts = || ["log_flushes", "log_transactions_flushed"].map(|key| figure(&stage, "status", key));
    let files: Vec<File> = (0..THREADS).map(|n| File::create(stage.at(&format!("f{n}"))).unwrap()).collect();
    stage.sync();
    let before = counts();
    thread::scope(|scope| {
        for (n, mut file) in files.into_iter().enumerate() {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    file.write_all(&noise(round << 8 | n as u64, 4096)).unwrap();
                    file.sync_data().unwrap();
                }
            });
        }
    });
    let after = counts();
    let (flushes, changes) = (after[0] - before[0], after[1] - before[1]);
    println!("{} syncs took {flushes} flushes for {changes} changes", THREADS * ROUNDS);
    assert!(changes > flushes && flushes < THREADS * ROUNDS, "{changes} changes in {flushes} flushes");
}

#[test]
fn writers_of_different_files_do_not_disturb_each_other() {
    if !can_mount("writers_of_different_files_do_not_disturb_each_other") {
        return;
    }
    const WRITERS: u64 = 4;
    const BYTES: usize = 12 << 20;
    let stage = Stage::image("256M");
    stage.mount();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let file = File::create(stage.at(&format!("f{writer}"))).unwrap();
            scope.spawn(move || {
                let data = noise(writer, BYTES);
                // Front and back in turns, in pieces that fit no block.
                let pieces: Vec<_> = data.chunks(77_777).enumerate().collect();
                let (even, odd): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(n, _)| n % 2 == 0);
                for (n, piece) in even.into_iter().chain(odd.into_iter().rev()) {
                    file.write_all_at(piece, n as u64 * 77_777).unwrap();
                }
            });
        }
    });
    let check = || {
        for writer in 0..WRITERS {
            assert!(fs::read(stage.at(&format!("f{writer}"))).unwrap() == noise(writer, BYTES), "{writer}");
        }
    };
    check();
    stage.umount();
    stage.check();
    stage.mount();
    check();
}

/// What 99 of 100 reads must not take longer than while another file streams in and is synced.
const READ_BOUND: Duration = Duration::from_millis(100);

/// Reads 4 KiB blocks at random, past the kernel's cache, and says how long each took.
fn read_for(file: &File, blocks: u64, mut go_on: impl FnMut(usize) -> bool) -> Vec<Duration> {
    // O_DIRECT wants memory that begins with a block.
    let mut memory = vec![0; 8192];
    let skip = memory.as_ptr().align_offset(4096);
    let block = &mut memory[skip..skip + 4096];
    let mut times = Vec::new();
    while go_on(times.len()) {
        let number = (times.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) % blocks;
        let start = Instant::now();
        file.read_exact_at(block, number * 4096).unwrap();
        times.push(start.elapsed());
        assert!(block == noise(number, 4096), "block {number}");
    }
    times.sort();
    times
}

#[test]
fn reads_go_on_while_others_are_written_out() {
    if !can_mount("reads_go_on_while_others_are_written_out") {
        return;
    }
    // More than the daemon's cache holds.
    const BLOCKS: u64 = 40_000;
    let stage = Stage::image("2G");
    stage.mount();
    let mut file = File::create(stage.at("read")).unwrap();
    for first in (0..BLOCKS).step_by(200) {
        file.write_all(&(first..first + 200).flat_map(|n| noise(n, 4096)).collect::<Vec<_>>()).unwrap();
    }
    drop(file);
    stage.umount();
    stage.mount();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = File::options().read(true).custom_flags(direct).open(stage.at("read")).unwrap();
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100];
    let idle = read_for(&file, BLOCKS, |count| count < 2000);
    let done = AtomicBool::new(false);
    let (busy, flush) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _end = OnDrop(&done);
            let mut longest = Duration::ZERO;
            for n in 0..8 {
                let mut stream = File::create(stage.at(&format!("stream {n}"))).unwrap();
                for call in 0..64 {
                    stream.write_all(&noise(1 << 40 | n << 8 | call, 1 << 20)).unwrap();
                }
                let start = Instant::now();
                stream.sync_all().unwrap();
                longest = longest.max(start.elapsed());
            }
            longest
        });
        (read_for(&file, BLOCKS, |_| !done.load(Ordering::Acquire)), writer.join().unwrap())
    });
    println!(
        "p99 of {} reads {:?} while idle, of {} reads {:?} beside a stream; longest {:?}, longest sync {flush:?}",
        idle.len(),
        p99(&idle),
        busy.len(),
        p99(&busy),
        busy[busy.len() - 1]
    );
    assert!(busy.len() > 200 && p99(&busy) < READ_BOUND);
    drop(file);
    stage.umount();
    stage.check();
}

/// Blocks of a file that is rewritten in place, each with its version all over.
const BLOCKS: u64 = 64;

#[test]
fn readers_beside_writers_see_what_was_written() {
    if !can_mount("readers_beside_writers_see_what_was_written") {
        return;
    }
    let seconds = soak_minutes().map_or(10, |minutes| minutes * 60);
    let stage = Stage::image("512M");
    stage.mount();
    fs::write(stage.at("in place"), vec![0; (BLOCKS * 4096) as usize]).unwrap();
    fs::write(stage.at("replaced"), replacement(0)).unwrap();
    let (done, latest, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..2 {
            let (stage, done, latest, reads) = (&stage, &done, &latest, &reads);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    if reader == 0 {
                        read_in_place(stage);
                    } else {
                        read_replaced(stage, latest);
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _end = OnDrop(&done);
        let end = Instant::now() + Duration::from_secs(seconds);
        let file = File::options().write(true).open(stage.at("in place")).unwrap();
        let mut version = 0;
        while Instant::now() < end {
            version += 1;
            file.write_all_at(&[version as u8; 4096], version % BLOCKS * 4096).unwrap();
            fs::write(stage.at("new"), replacement(version)).unwrap();
            fs::rename(stage.at("new"), stage.at("replaced")).unwrap();
            latest.store(version, Ordering::Release);
            if version.is_multiple_of(50) {
                file.sync_all().unwrap();
            }
        }
        println!("{version} versions written, {} times read", reads.load(Ordering::Relaxed));
    });
    stage.umount();
    stage.check();
}

/// Ends the readers also when the writer fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A whole file that says which version it is.
fn replacement(version: u64) -> Vec<u8> {
    let mut data = version.to_le_bytes().to_vec();
    data.extend(noise(version, 2_000 + (version % 50) as usize * 1_000));
    data
}

fn read_in_place(stage: &Stage) {
    let mut file = File::open(stage.at("in place")).unwrap();
    let mut block = [0; 4096];
    for _ in 0..BLOCKS {
        file.read_exact(&mut block).unwrap();
        // The kernel copies out of a page while another copies into it, here as on any filesystem: a block
        // may be of two versions that followed one another, but of no others.
        let other = block.iter().copied().find(|byte| *byte != block[0]).unwrap_or(block[0]);
        let only_two = block.iter().all(|byte| [block[0], other].contains(byte));
        let apart = [block[0].wrapping_sub(other), other.wrapping_sub(block[0])];
        let neighbours = apart.contains(&0) || apart.contains(&(BLOCKS as u8)) || other == 0 || block[0] == 0;
        assert!(only_two && neighbours, "a block of versions {} and {other}", block[0]);
    }
    file.seek(SeekFrom::Start(0)).unwrap();
}

fn read_replaced(stage: &Stage, latest: &AtomicU64) {
    let before = latest.load(Ordering::Acquire);
    let data = fs::read(stage.at("replaced")).unwrap();
    let version = u64::from_le_bytes(*data.first_chunk().expect("a whole file"));
    assert!(data == replacement(version), "version {version} is not whole");
    assert!(version >= before, "version {version} after {before}");
}

#[test]
fn a_small_file_is_read_from_the_device_once() {
    if !can_mount("a_small_file_is_read_from_the_device_once") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    for bytes in [100, 4000, 4096] {
        fs::write(stage.at(&format!("f{bytes}")), noise(bytes, bytes as usize)).unwrap();
    }
    stage.umount();
    stage.mount();
    let counts = || {
        let status = stage.json("status");
        let reads = status["opcodes"]["read"].as_u64().unwrap_or(0);
        (reads, status["store"]["device_reads"].as_u64().expect("it is told"))
    };
    let read = || {
        for bytes in [100, 4000, 4096] {
            let content = fs::read(stage.at(&format!("f{bytes}"))).unwrap();
            assert!(content == noise(bytes, bytes as usize));
        }
    };
    read();
    let first = counts();
    assert!(first.0 > 0, "the first time the daemon is asked: {}", stage.json("status")["opcodes"]);
    read();
    assert_eq!(counts(), first, "the second time it is not");
}

#[test]
fn a_name_is_there_two_seconds_later_whatever_happens() {
    if !can_mount("a_name_is_there_two_seconds_later_whatever_happens") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    assert!(run("touch", &[&stage.path("mnt/touched")]).status.success());
    thread::sleep(Duration::from_secs(2));
    stage.kill();
    stage.mount();
    assert_eq!(fs::metadata(stage.at("touched")).unwrap().len(), 0);
}

/// Old bytes may be lost with a daemon that dies, but not for as long as a file does not settle.
#[test]
fn a_file_that_never_settles_is_written_out_all_the_same() {
    if !can_mount("a_file_that_never_settles_is_written_out_all_the_same") {
        return;
    }
    let stage = Stage::image("256M");
    // The kernel keeps nothing back, so that all delays are the daemon's.
    stage.mount_with("writeback=off");
    let file = File::create(stage.at("busy")).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        let now = start.elapsed().as_millis() as u64;
        file.write_all_at(&[&now.to_le_bytes()[..], &[b'x'; 4088]].concat(), 0).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let end = start.elapsed().as_millis() as u64;
    stage.kill();
    drop(file);
    stage.mount();
    let found = fs::read(stage.at("busy")).unwrap();
    assert_eq!(found.len(), 4096, "its content is missing");
    let age = end - u64::from_le_bytes(*found.first_chunk().expect("4096 bytes"));
    println!("what is found is {age} ms old");
    assert!(age <= 6_500, "{age} ms old");
}
