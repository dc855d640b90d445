//! One device call fails, whichever: errors are told, nothing promised is lost, nothing reads wrong.

use crate::history::{self, History, Outcome, Shape};
use crate::oracle::{Known, judge_known};
use aegisfs_device::{Fault, Operation};
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

const SHORT: Shape =
    Shape { devices: 1, operations: 14, log_pieces: 4, large: false, device_bytes: 24 << 20 };

#[test]
fn any_call_may_fail_once() {
    for seed in 500..503 {
        let calls = sweep(&SHORT, seed, |n| Fault { operation: None, ..Fault::once(Operation::Read, n) });
        println!("seed {seed}: each of {calls} calls failed once");
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
        let calls = sweep(&shape, seed, |n| Fault { operation: None, ..Fault::once(Operation::Read, n) });
        println!("mirrored, seed {seed}: each of {calls} calls failed once");
    }
}
