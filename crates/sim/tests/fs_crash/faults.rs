//! One device call fails, whichever: errors are told, nothing promised is lost, nothing reads wrong.

use crate::history::{self, History, Outcome, Shape, mount};
use crate::oracle::{Known, judge_known, judge_mounted};
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::{Fault, Operation};
use aegisfs_fs::{Kind, MakeOptions, ROOT};
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{CrashPoint, PowerCutter, SimWorld};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the power cut after the failed life leaves of what was not flushed.
const SUBSETS: [u64; 3] = [0, 1, 77];

/// The first life with the fault, then two ends of it: another process opens the devices, or the power goes.
fn survive_fault(history: &History, shape: &Shape, seed: u64, fault: Fault) -> Result<bool, String> {
    let (world, rng) = history::format(shape, seed);
    world.device(0).plan(fault);
    let outcome = catch_unwind(AssertUnwindSafe(|| History::play_in(&world, &rng, shape)))
        .map_err(|_| "it panics".to_owned())?;
    let ended = match outcome {
        Err(Outcome::Wrong(what)) => return Err(what),
        Err(Outcome::Refused(why)) => why,
        Ok(()) => String::new(),
    };
    let over = ended.is_empty() && world.device(0).planned() > 0;
    if over && !fault.lasting {
        return Ok(false);
    }
    let trace = world.trace();
    let known = Known::from_marks(history, trace.marks().iter());
    let mut cutter = PowerCutter::new(&trace);
    for subset in SUBSETS {
        let cut = cutter.cut(CrashPoint { event: trace.events(), subset });
        judge(history, &known, &cut, subset).map_err(|e| format!("refused: {ended:?}; cut {subset}: {e}"))?;
    }
    world.restart();
    judge(history, &known, &world, 9).map_err(|e| format!("refused: {ended:?}; opened again: {e}"))?;
    Ok(!over)
}

fn judge(history: &History, known: &Known, world: &SimWorld, seed: u64) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| judge_known(history, known, world, seed)))
        .unwrap_or_else(|_| Err("a panic".into()))
}

/// Every n until a life needs fewer calls; says how many there were.
fn sweep(shape: &Shape, seed: u64, fault: impl Fn(u64) -> Fault) -> u64 {
    let history = History::run(shape, seed);
    for n in 0.. {
        let fault = fault(n);
        match survive_fault(&history, shape, seed, fault) {
            Ok(true) => {}
            Ok(false) => return n,
            Err(why) => panic!("seed {seed}, {fault:?}: {why}\nhistory:\n{}", history.story()),
        }
    }
    unreachable!("a life has an end")
}

const SHORT: Shape = Shape {
    devices: 1,
    operations: 14,
    log_pieces: 4,
    large: false,
    device_bytes: 24 << 20,
    mixed: false,
    streams: false,
    flags: false,
    cleaning: false,
    policies: false,
    redundancy: None,
};

#[test]
fn any_call_may_fail_once() {
    for seed in 500..503 {
        let calls =
            sweep(&SHORT, seed, |n| Fault { operation: None, ..Fault::final_once(Operation::Read, n) });
        println!("seed {seed}: each of {calls} calls failed once");
    }
}

/// What may pass is tried again: nobody is told, and nothing is left out for it.
#[test]
fn reads_and_writes_may_fail_now_and_then() {
    let history = History::run(&SHORT, 512);
    for operation in [Operation::Read, Operation::Write] {
        for n in 0.. {
            let (world, rng) = history::format(&SHORT, 512);
            // Twice in a row, the third time it works.
            (0..2).for_each(|again| world.device(0).plan(Fault::once(operation, n + again)));
            match History::play_in(&world, &rng, &SHORT) {
                Ok(()) => {}
                Err(Outcome::Wrong(why) | Outcome::Refused(why)) => {
                    panic!("{operation:?} {n} failed twice, and somebody was told: {why}")
                }
            }
            if world.device(0).planned() > 0 {
                println!("{operation:?}: each of {n} calls failed twice");
                break;
            }
            let known = Known::from_marks(&history, world.trace().marks().iter());
            world.restart();
            judge(&history, &known, &world, n).unwrap_or_else(|why| panic!("{operation:?} {n}: {why}"));
        }
    }
}

#[test]
fn the_device_may_fail_for_good_at_any_call() {
    for seed in 503..505 {
        let calls = sweep(&SHORT, seed, |n| Fault { operation: None, ..Fault::lasting(Operation::Read, n) });
        println!("seed {seed}: from each of {calls} calls on all failed");
    }
}

#[test]
fn every_kind_of_call_may_fail_for_good() {
    for operation in [Operation::Write, Operation::Flush, Operation::Discard] {
        let calls = sweep(&SHORT, 506, |n| Fault::lasting(operation, n));
        println!("{operation:?}: failed from each of {calls} calls on");
    }
}

#[test]
fn one_of_two_mirrors_may_fail_at_any_call() {
    let shape = Shape { devices: 2, ..SHORT };
    for seed in 507..508 {
        let calls =
            sweep(&shape, seed, |n| Fault { operation: None, ..Fault::final_once(Operation::Read, n) });
        println!("mirrored, seed {seed}: each of {calls} calls failed once");
    }
}

#[test]
fn one_of_six_coded_devices_may_fail_at_any_call() {
    let shape = Shape { operations: 8, ..crate::SIX_CODED };
    let calls = sweep(&shape, 508, |n| Fault { operation: None, ..Fault::final_once(Operation::Read, n) });
    println!("coded: each of {calls} calls failed once");
    // Whoever goes on without it does not notice that it would fail further on.
    let history = History::run(&shape, 508);
    for n in 0..calls {
        let fault = Fault { operation: None, ..Fault::lasting(Operation::Read, n) };
        if let Err(why) = survive_fault(&history, &shape, 508, fault) {
            panic!("{fault:?}: {why}\nhistory:\n{}", history.story());
        }
    }
    println!("coded: failed from each of {calls} calls on");
}

/// Where several rows are on their way at the same time one of them may fail.
#[test]
fn one_of_two_pairs_of_mirrors_may_fail_at_any_call() {
    let shape = Shape { operations: 14, device_bytes: 48 << 20, ..crate::TWO_PAIRS };
    let calls = sweep(&shape, 509, |n| Fault { operation: None, ..Fault::final_once(Operation::Read, n) });
    println!("two pairs: each of {calls} calls failed once");
}

/// The power is cut, and while the log is replayed one read fails: it is refused, or nothing is missing.
#[test]
fn any_read_may_fail_while_it_opens() {
    let shape = Shape { devices: 1, operations: 40, ..Shape::default() };
    let history = History::run(&shape, 510);
    let trace = history.world.trace();
    let mut cutter = PowerCutter::new(&trace);
    let (mut opened, mut refused) = (0, 0);
    for point in aegisfs_sim::crash_points(trace.events(), 6, 510) {
        let known = Known::of(&history, point);
        for n in 0.. {
            let world = cutter.cut(point);
            world.device(0).plan(Fault::final_once(Operation::Read, n));
            let mounted = mount(world.devices(), &SeededRng::new(n), OpenOptions::default());
            if world.device(0).planned() > 0 {
                break;
            }
            let told = |why| {
                panic!("point {point}, read {n} failed: {why}\nhistory:\n{}", history.story());
            };
            match mounted {
                Ok(fs) => {
                    judge_mounted(&history, &known, &fs).unwrap_or_else(told);
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
            world.restart();
            judge(&history, &known, &world, n).unwrap_or_else(told);
        }
    }
    println!("{opened} times it opened, {refused} times it was refused");
    assert!(opened > 0 && refused > 0);
}

/// The same where the last thing synced is a row: it is no longer in the log itself.
#[test]
fn any_read_of_a_synced_row_may_fail_while_it_opens() {
    let (world, rng) = history::format(&SHORT, 511);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
    let made = fs.make(ROOT, b"synced", Kind::File, &MakeOptions::default()).expect("room");
    let handle = fs.open(made.id).expect("it is there");
    let mut data = vec![0; 150 << 10];
    rng.fill(&mut data);
    fs.write(handle, 0, &data).expect("room");
    fs.fsync(handle).expect("it syncs");
    drop(fs);
    for n in 0.. {
        let world = SimWorld::from_images(vec![world.device(0).image()]);
        world.device(0).plan(Fault::final_once(Operation::Read, n));
        let mounted = mount(world.devices(), &rng, OpenOptions::default());
        if world.device(0).planned() > 0 {
            assert!(n > 10, "{n} reads are too few");
            break;
        }
        let Ok(fs) = mounted else { continue };
        let found = fs.peek(ROOT, b"synced").unwrap_or_else(|e| panic!("read {n} failed, and then: {e}"));
        assert!(history::read_all(&fs, found.id).is_ok_and(|found| found == data), "read {n} failed");
    }
}
