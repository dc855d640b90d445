//! The scheduling class of threads that serve io_uring, seen from outside.

use crate::stage::{Stage, can_mount};
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing but one call in a hundred may take longer while every processor has more to do than it can. In the idle
/// class an answer would take a second.
const BOUND: Duration = Duration::from_millis(100);

/// The usual policy's number.
const SCHED_OTHER: i32 = 0;
/// The bit of the right to change the class of threads back.
const CAP_SYS_NICE: u64 = 1 << 23;

/// Whether the daemon may change classes here; says so if not.
fn can_change_class(test: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let can = u64::from_str_radix(rights.trim(), 16).unwrap() & CAP_SYS_NICE != 0;
    if !can {
        println!("SKIPPED: {test}: needs CAP_SYS_NICE");
    }
    can
}

/// The scheduling policies of a process's threads.
fn policies(pid: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let policy = |stat: String| -> Option<i32> {
        // The 41st field; the state behind the name is the third.
        stat.rsplit(')').next()?.split_whitespace().nth(38)?.parse().ok()
    };
    tasks.filter_map(|task| policy(fs::read_to_string(task.ok()?.path().join("stat")).ok()?)).collect()
}

fn changes(stage: &Stage) -> u64 {
    stage.json("status")["idle_class_changes"].as_u64().expect("a number")
}

#[test]
fn a_busy_machine_does_not_starve_whoever_answers() {
    const NAME: &str = "a_busy_machine_does_not_starve_whoever_answers";
    if !can_mount(NAME) || !can_change_class(NAME) {
        return;
    }
    let stage = Stage::image("1G");
    stage.mount_with("io_uring=on");
    let make = |n: usize| {
        let path = stage.at(&format!("file{}", n % 1000));
        File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
    };
    let start = Instant::now();
    let mut count = 0;
    while changes(&stage) == 0 {
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(200) {
            make(count);
            count += 1;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{count} files did not bring the idle class");
    }

    let done = AtomicBool::new(false);
    let processors = thread::available_parallelism().map_or(2, usize::from);
    let mut times: Vec<Duration> = thread::scope(|scope| {
        for _ in 0..2 * processors {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let begin = Instant::now();
        let mut times = Vec::new();
        // In turn much to do and little, so that the class would change if anything did not hold it.
        while begin.elapsed() < Duration::from_secs(4) {
            let start = Instant::now();
            make(times.len());
            times.push(start.elapsed());
            if times.len() % 200 == 0 {
                thread::sleep(Duration::from_millis(20));
            }
        }
        done.store(true, Ordering::Relaxed);
        times
    });
    times.sort();
    let (p99, max) = (times[times.len() * 99 / 100], times[times.len() - 1]);
    println!(
        "{} files made and removed beside {} busy threads: p99 {p99:?}, at most {max:?}",
        times.len(),
        2 * processors
    );
    assert!(p99 < BOUND, "{p99:?}");

    thread::sleep(Duration::from_millis(200));
    let left = policies(stage.pid());
    assert!(left.len() > 5 && left.iter().all(|policy| *policy == SCHED_OTHER), "{left:?}");
    stage.umount();
    stage.check();
}

#[test]
fn the_idle_class_can_be_forbidden() {
    if !can_mount("the_idle_class_can_be_forbidden") {
        return;
    }
    let stage = Stage::image("256M");
    let line =
        ["mount", "-o", "io_uring=on", "--set", "mount.idle_class=false", stage.device(), &stage.mnt()];
    crate::stage::must(crate::stage::AEGISFS, &line);
    for n in 0..5000 {
        File::create(stage.at(&format!("file{n}"))).unwrap();
    }
    assert_eq!(changes(&stage), 0);
    stage.umount();
}
