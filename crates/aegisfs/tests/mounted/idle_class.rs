//! The scheduling class of threads that serve io_uring, seen from outside.

use crate::stage::{AEGISFS, Stage, can_mount, must, run};
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing but one call in a hundred may take longer while every processor has more to do than it can. In the idle
/// class an answer would take a second.
const BOUND: Duration = Duration::from_millis(100);

/// The usual policy's number.
const SCHED_OTHER: i32 = 0;

/// Whether the daemon changes classes here; says so if not.
fn can_change_class(test: &str) -> bool {
    let back = run("chrt", &["--idle", "0", "chrt", "--other", "0", "true"]).status.success();
    let several = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    if !back || !several {
        println!("SKIPPED: {test}: needs CAP_SYS_NICE and several processors");
    }
    back && several
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
    let forbids =
        ["mount", "-o", "io_uring=on", "--set", "mount.idle_class=false", stage.device(), &stage.mnt()];
    must(AEGISFS, &forbids);
    let make = |n: usize| {
        let path = stage.at(&format!("file{}", n % 1000));
        File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
    };
    let work = |time: Duration| {
        let since = Instant::now();
        (0..).take_while(|_| since.elapsed() < time).for_each(make);
    };
    work(Duration::from_secs(1));
    assert_eq!(changes(&stage), 0, "it was forbidden");
    stage.umount();

    stage.mount_with("io_uring=on");
    let start = Instant::now();
    while changes(&stage) == 0 {
        work(Duration::from_millis(200));
        assert!(start.elapsed() < Duration::from_secs(60), "short requests did not bring the idle class");
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
