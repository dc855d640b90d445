//! A device that takes its time: others are asked instead, and what they say is right, before and after the power was cut.

use crate::history::{History, Shape, mount};
use crate::oracle::{Known, go_on, judge_contents, sound};
use aegisfs_base::SeededRng;
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{CrashPoint, Plan, SimWorld, explore, tell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Cuts per history in an ordinary run.
const CUTS: u64 = 30;
/// There are so many times fewer than in suites in which nobody waits.
const FEWER: u64 = 10;
/// Longer than anybody waits who can have the bytes elsewhere.
const READ_TAKES: Duration = Duration::from_millis(120);

/// What came of the cuts of a suite.
#[derive(Default)]
struct Seen {
    /// Reads that the slow device was asked for.
    asked: AtomicU64,
    /// Frames that were made from other cells.
    decoded: AtomicU64,
}

#[test]
fn one_of_two_mirrors_takes_its_time() {
    let shape =
        Shape { devices: 2, operations: 150, large: true, device_bytes: 64 << 20, ..Shape::default() };
    let seen = survive("cuts with one of two mirrors slow", &shape, 830..832);
    assert!(seen.asked.into_inner() > 0, "the slow one was never asked");
}

#[test]
fn one_of_six_coded_devices_takes_its_time() {
    let shape = Shape { operations: 120, device_bytes: 32 << 20, ..crate::SIX_CODED };
    let seen = survive("cuts with one of six coded devices slow", &shape, 832..834);
    assert!(seen.asked.into_inner() > 0, "the slow one was never asked");
    assert!(seen.decoded.into_inner() > 0, "nothing was had from the others");
}

fn survive(suite: &str, shape: &Shape, seeds: std::ops::Range<u64>) -> Seen {
    let (seen, mut points) = (Seen::default(), 0);
    for seed in seeds {
        let mut plan = Plan::from_env(seed, CUTS * FEWER);
        plan.budget = (plan.budget / FEWER).max(1);
        let slow = (plan.seed % shape.devices as u64) as usize;
        let history = History::run_after(shape, plan.seed, |world| world.device(slow).slow_down(READ_TAKES));
        let outcome = explore(&history.world.trace(), &plan, |world, point| {
            let slow = (point.event % shape.devices as u64) as usize;
            judge(&history, world, point, slow, &seen)
        });
        match outcome {
            Ok(passed) => points += passed,
            Err(failure) => panic!("{shape:?}: {failure}\nhistory:\n{}", history.story()),
        }
    }
    tell(suite, points);
    // A few of them may be ones before anything was written.
    if points < CUTS {
        seen.asked.fetch_add(1, Ordering::Relaxed);
        seen.decoded.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

fn judge(
    history: &History,
    world: &SimWorld,
    point: CrashPoint,
    slow: usize,
    seen: &Seen,
) -> Result<(), String> {
    let rng = SeededRng::new(point.event * 31 + point.subset);
    // So that what was only in the log is in rows.
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    fs.flush_all().and_then(|()| Ok(fs.store().close()?)).map_err(|error| error.to_string())?;
    drop(fs);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    let device = world.device(slow);
    device.slow_down(READ_TAKES);
    judge_contents(history, &Known::of(history, point), &fs)?;
    go_on(&fs)?;
    let counters = fs.store().counters();
    seen.asked.fetch_add(device.slow_reads(), Ordering::Relaxed);
    seen.decoded.fetch_add(counters.frames_decoded.load(Ordering::Relaxed), Ordering::Relaxed);
    // An answer that nobody waits for any more may still come.
    device.slow_down(Duration::ZERO);
    if let Some(report) = fs.store().pool().device_reports().iter().find(|report| report.counts.failed > 0) {
        return Err(format!("slow is not broken: {report:?}"));
    }
    sound(&fs)
}
