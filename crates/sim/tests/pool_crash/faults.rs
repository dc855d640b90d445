//! One device, one failing call: an error, never a panic, and never wrong data afterwards.

use crate::stage::{self, Contents, Stage, check, create, growing_and_shrinking, open};
use aegisfs_base::SeededRng;
use aegisfs_device::{Fault, MemoryDevice, Operation};
use aegisfs_pool::{OpenOptions, Pool, PoolError};
use aegisfs_sim::{CrashPoint, PowerCutter, SimWorld};
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEED: u64 = 41;

fn begun() -> (MemoryDevice, Vec<Contents>) {
    let (world, stage) = create(1, SEED);
    let states = growing_and_shrinking(SEED);
    stage::commit_all(&world, &stage, &states[..3]).expect("nothing fails");
    stage.close().expect("nothing fails");
    (world.device(0).image(), states)
}

/// A short life: opens, reads, commits twice, ends. It ends the same way when something failed, as a careless
/// caller might.
fn short_life(world: &SimWorld, states: &[Contents]) -> Result<(), String> {
    let stage = open(world, 1)?;
    let outcome = work(world, &stage, states);
    let ended = stage.close().map_err(|e| e.to_string());
    outcome.and(ended)
}

fn work(world: &SimWorld, stage: &Stage, states: &[Contents]) -> Result<(), String> {
    check(states, Some(2), &stage.contents()?)?;
    for n in 3..5 {
        stage.commit(&states[n - 1], &states[n])?;
        world.mark(n as u64);
    }
    check(states, Some(4), &stage.contents()?)
}

fn sweep(
    fault: impl Fn(u64) -> Fault,
    after_each: impl Fn(&SimWorld, &[Contents]) -> Result<(), String>,
) -> u64 {
    let (image, states) = begun();
    for after in 0.. {
        let world = SimWorld::from_images(vec![image.snapshot()]);
        let fault = fault(after);
        world.device(0).plan(fault);
        let outcome = catch_unwind(AssertUnwindSafe(|| short_life(&world, &states)));
        let outcome = outcome.unwrap_or_else(|_| panic!("{fault:?}: a panic"));
        let over = outcome.is_ok() && world.device(0).planned() > 0;
        after_each(&world, &states).unwrap_or_else(|e| panic!("{fault:?}, life {outcome:?}: {e}"));
        if over {
            return after;
        }
    }
    unreachable!("a life has an end")
}

/// The next life, and what a power cut at the end of the failed one leaves.
fn holds(world: &SimWorld, states: &[Contents]) -> Result<(), String> {
    let trace = world.trace();
    let promised = trace.promised(trace.events()).or(Some(2));
    for subset in [0, 1, trace.events() + 10] {
        let point = CrashPoint { event: trace.events(), subset };
        let after = PowerCutter::new(&trace).cut(point);
        check(states, promised, &open(&after, 2)?.contents()?).map_err(|e| format!("cut at {point}: {e}"))?;
    }
    world.restart();
    check(states, promised, &open(world, 3)?.contents()?)
}

#[test]
fn any_call_fails_once() {
    let any = |after| Fault { operation: None, after, ..Fault::final_once(Operation::Read, 0) };
    let calls = sweep(any, holds);
    assert!(calls > 100, "{calls}");
}

#[test]
fn all_calls_fail_from_some_call_on() {
    let any = |after| Fault { operation: None, after, ..Fault::lasting(Operation::Read, 0) };
    let calls = sweep(any, holds);
    eprintln!("{calls} calls failed from");
}

/// The process dies, another one goes on without a reboot, and then the power is cut: what the first left
/// unflushed must not be taken for durable by the second.
#[test]
fn the_process_dies_and_then_the_power_fails() {
    let any = |after| Fault { operation: None, after: after * 3, ..Fault::lasting(Operation::Read, 0) };
    sweep(any, |world, states| {
        world.restart();
        let stage = open(world, 4)?;
        let found = stage.contents()?;
        let next = stage::change(&found, &SeededRng::new(world.events()), 12, 6000, 10);
        let later = [found, next];
        let (began, promised) = (world.events(), world.trace().promised(world.events()).or(Some(2)));
        check(states, promised, &later[0])?;
        stage::commit_all(world, &stage, &later)?;
        drop(stage);
        let trace = world.trace();
        let mut cutter = PowerCutter::new(&trace);
        for event in (began..=trace.events()).step_by(5) {
            let point = CrashPoint { event, subset: event % 40 };
            let stage: Stage = open(&cutter.cut(point), 5).map_err(|e| format!("cut at {point}: {e}"))?;
            check(&later, trace.promised(event), &stage.contents()?)
                .map_err(|e| format!("cut at {point}: {e}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_device_that_does_not_answer_is_not_called_unformatted() {
    let (image, _) = begun();
    let world = SimWorld::from_images(vec![image]);
    world.device(0).kill();
    assert!(matches!(Pool::open(world.devices(), OpenOptions::default()), Err(PoolError::Device(_))));
}
