//! Very many files: how fast they are made, how soon a filesystem with them opens after a crash, and how
//! much memory walking over them takes.
//!
//! An ordinary run makes 200,000 files; `AEGISFS_MANY_FILES` in the environment replaces the number, and
//! `cargo xtask soak` sets it to ten million.

use crate::stage::{Stage, can_mount};
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_device::OpenOptions;
use aegisfs_fs::{Flusher, Fs, FsOptions, Kind, MakeOptions, ROOT};
use aegisfs_pool::Pool;
use aegisfs_store::{Intervals, Recovered, Service, Store, StoreOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Files when the environment names no number.
const FILES: u64 = 200_000;
const FILES_PER_DIRECTORY: u64 = 10_000;
/// Files that stand only in the log when the process dies, in an ordinary run; else as many as can.
const FILES_IN_LOG: u64 = 40_000;
/// One file of so many has a few bytes in it; the others are empty.
const FILLED_EVERY: u64 = 10;
const CONTENT: &[u8] = b"a little content, which lies beside the inode";
/// Names the image to the process that fills it.
const IMAGE: &str = "AEGISFS_MANY_IMAGE";
const MANY: &str = "AEGISFS_MANY_FILES";
/// What the filling process says when it waits to be killed.
const FILLED: &str = "filled with ";
/// Memory of a daemon, whatever it holds.
const MEMORY_BYTES: u64 = 512 << 20;
/// Memory for each inode that the kernel holds.
const MEMORY_BYTES_PER_INODE: u64 = 32;
const OPENING_MAX: Duration = Duration::from_secs(1);
/// Seconds that a walk may take.
const WALK_PATIENCE: &str = "1500";

fn files() -> u64 {
    std::env::var(MANY).map_or(FILES, |text| text.parse().expect("a number of files"))
}

fn open(image: &Path) -> (Arc<Store>, Recovered) {
    let device =
        aegisfs_device::open(image, &OpenOptions { wait: Duration::from_secs(30), ..OpenOptions::default() })
            .expect("the image opens");
    let (pool, _) = Pool::open(vec![device], aegisfs_pool::OpenOptions::default()).expect("the pool opens");
    let rng = SystemRng::new().expect("there is randomness");
    let clock = Arc::new(SystemClock::default());
    let (store, recovered) =
        aegisfs_store::open(pool, &StoreOptions::default(), clock, &rng).expect("the store opens");
    (Arc::new(store), recovered)
}

/// A line of a process's status, in bytes.
fn memory(process: &str, line: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = text.lines().find_map(|found| found.strip_prefix(line)).expect("the line is there");
    let kib: u64 = line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// FUSE inodes that the kernel holds, of all mounts.
fn kernel_inodes() -> u64 {
    let text = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("fuse_inode "));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn make(fs: &Fs, directory: aegisfs_base::InodeId, number: u64, filled: bool) {
    let options = MakeOptions { permissions: 0o644, ..MakeOptions::default() };
    let name = format!("file-{number:08}");
    if filled {
        let (made, handle) = fs.create(directory, name.as_bytes(), &options).expect("it can be made");
        fs.write(handle, 0, CONTENT).expect("it can be written");
        fs.release(handle).expect("it can be closed");
        fs.forget(made.id, 1);
    } else {
        let made = fs.make(directory, name.as_bytes(), Kind::File, &options).expect("it can be made");
        fs.forget(made.id, 1);
    }
}

fn make_directory(fs: &Fs, name: &str) -> aegisfs_base::InodeId {
    let options = MakeOptions { permissions: 0o755, ..MakeOptions::default() };
    let made = fs.make(ROOT, name.as_bytes(), Kind::Directory, &options).expect("it can be made");
    fs.forget(made.id, 1);
    made.id
}

fn fill(fs: &Arc<Fs>, files: u64) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(FILES_PER_DIRECTORY, Ordering::Relaxed);
                    if first >= files {
                        break;
                    }
                    let directory =
                        make_directory(fs, &format!("directory-{:06}", first / FILES_PER_DIRECTORY));
                    for number in first..(first + FILES_PER_DIRECTORY).min(files) {
                        make(fs, directory, number, number % FILLED_EVERY == 0);
                    }
                }
            });
        }
    });
}

/// Makes files until the next one would bring a checkpoint about, or in an ordinary run so many; says how
/// many.
fn fill_log(fs: &Fs) -> u64 {
    let checkpoints = || fs.store().counters().checkpoints.load(Ordering::Relaxed);
    let cycle = |name: &str, most: u64| {
        let directory = make_directory(fs, name);
        fs.store().checkpoint().expect("a checkpoint");
        let before = checkpoints();
        let mut made = 0;
        while made < most && checkpoints() == before {
            make(fs, directory, made, false);
            made += 1;
        }
        made
    };
    if std::env::var_os(MANY).is_none() {
        return cycle("directory-of-the-log", FILES_IN_LOG);
    }
    let whole = cycle("directory-of-a-cycle", u64::MAX);
    whole + cycle("directory-of-the-log", whole * 98 / 100)
}

/// The process that fills the image and waits to be killed; nothing in an ordinary run.
#[test]
fn the_process_that_makes_many_files() {
    let Some(image) = std::env::var_os(IMAGE) else { return };
    let (store, _) = open(Path::new(&image));
    let fs = Arc::new(Fs::mount(Arc::clone(&store), FsOptions::default()).expect("it mounts"));
    let service = Service::start(Arc::clone(&store), Intervals::default()).expect("a thread");
    let flusher = Flusher::start(Arc::clone(&fs), 2).expect("threads");
    let files = files();
    let start = Instant::now();
    fill(&fs, files);
    let rate = files as f64 / start.elapsed().as_secs_f64();
    let peak = memory("self", "VmHWM");
    println!("{files} files made, {rate:.0}/s, at most {} MiB", peak >> 20);
    let written = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = written.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<u64>().ok());
    println!("{} bytes written per file", written.unwrap_or(0) / files);
    drop(flusher);
    fs.sync().expect("it syncs");
    drop(service);
    let more = fill_log(&fs);
    store.sync().expect("it syncs");
    println!("{FILLED}{}", files + more);
    std::thread::sleep(Duration::from_secs(600));
}

/// Ends its process as a crash would.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fills the image in a process of its own, which dies of it; says how many files there are.
fn fill_and_die(image: &str) -> u64 {
    let program = std::env::current_exe().expect("this test");
    let mut child = Command::new(program);
    child.args(["many::the_process_that_makes_many_files", "--exact", "--nocapture"]).env(IMAGE, image);
    let mut child = Killed(child.stdout(Stdio::piped()).spawn().expect("it starts"));
    let out = child.0.stdout.take().expect("it was asked for");
    for line in BufReader::new(out).lines() {
        let line = line.expect("text");
        println!("{line}");
        if let Some((_, count)) = line.split_once(FILLED) {
            return count.trim().parse().expect("a number");
        }
    }
    panic!("the process that makes files ended early");
}

fn walk(line: &str) -> (String, Duration) {
    let start = Instant::now();
    let out = Command::new("timeout").args([WALK_PATIENCE, "bash", "-c", line]).output().expect("it runs");
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    (String::from_utf8_lossy(&out.stdout).trim().to_owned(), start.elapsed())
}

/// Opens what a crash left, in this process, and leaves it as it is but for what recovery writes.
fn time_opening(image: &Path) -> Duration {
    let start = Instant::now();
    let (store, recovered) = open(image);
    let fs = Fs::mount(store, FsOptions::default()).expect("it mounts");
    let took = start.elapsed();
    fs.peek(ROOT, b"directory-000000").expect("it is there");
    println!("opened in {} ms: {recovered:?}", took.as_millis());
    took
}

#[test]
fn many_files_open_at_once_and_are_walked_in_little_memory() {
    if !can_mount("many_files_open_at_once_and_are_walked_in_little_memory") {
        return;
    }
    let stage = Stage::image("64G");
    let files = fill_and_die(stage.device());
    let crashed = stage.path("crashed.img");
    // What the copy left in the kernel's memory is not to be written while the opening is timed.
    walk(&format!("cp --sparse=always {} {crashed} && sync {crashed}", stage.device()));
    let after_crash = time_opening(Path::new(&crashed));
    let again = time_opening(Path::new(&crashed));
    std::fs::remove_file(&crashed).expect("it was a copy");

    let of_others = kernel_inodes();
    let start = Instant::now();
    stage.mount();
    let mounting = start.elapsed();
    println!("mounted after a crash in {} ms", mounting.as_millis());
    let daemon = stage.pid().to_string();
    println!("memory after mounting: {} MiB", memory(&daemon, "VmHWM") >> 20);
    let (count, took) = walk(&format!("find {} -type f | wc -l", stage.mnt()));
    println!("find: {count} files in {} s", took.as_secs());
    assert_eq!(count, files.to_string());
    let (bytes, took) = walk(&format!(
        "find {} -type f -printf '%s\\n' | awk '{{ s += $1 }} END {{ print s }}'",
        stage.mnt()
    ));
    println!("stat: {bytes} bytes in {} s", took.as_secs());
    let held = kernel_inodes().saturating_sub(of_others);
    let peak = memory(&daemon, "VmHWM");
    println!("memory: at most {} MiB; the kernel holds {held} inodes", peak >> 20);
    let usage = stage.json("usage");
    let metadata = usage["metadata_bytes"].as_u64().expect("a number");
    println!("metadata: {} MiB on the devices, {} bytes per file", metadata >> 20, metadata / files);
    stage.umount();
    let start = Instant::now();
    stage.mount();
    println!("mounted after a clean end in {} ms", start.elapsed().as_millis());
    stage.umount();
    assert!(peak <= MEMORY_BYTES + MEMORY_BYTES_PER_INODE * held, "{peak} bytes for {held} inodes");
    // Optimised or not makes a great difference, so an ordinary debug run only tells.
    if !cfg!(debug_assertions) {
        assert!(after_crash <= OPENING_MAX, "opening after a crash took {after_crash:?}");
        assert!(again <= OPENING_MAX, "opening took {again:?}");
        assert!(mounting <= OPENING_MAX, "mounting after a crash took {mounting:?}");
    }
}
