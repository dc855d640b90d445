//! The power is cut again while recovery is at work.

use crate::history::{self, History, Shape, mount};
use crate::oracle::{Known, judge_known};
use aegisfs_base::SeededRng;
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{CrashPoint, Plan, PowerCutter, crash_points, explore, tell};

/// First cuts per history.
const CUTS: u64 = 12;
/// Second cuts in each recovery.
const POINTS: u64 = 60;

#[test]
fn a_recovery_may_be_cut_at_any_event() {
    let mut points = 0;
    for (devices, seed) in [(1, 600), (1, 601), (2, 602)] {
        let shape = Shape { devices, operations: 40, ..Shape::default() };
        let history = History::run(&shape, seed);
        let trace = history.world.trace();
        let mut cutter = PowerCutter::new(&trace);
        for first in crash_points(trace.events(), CUTS, seed) {
            points += cut_recovery(&history, cutter.cut(first), first, seed);
        }
    }
    tell("cuts within recoveries", points);
}

fn cut_recovery(history: &History, world: aegisfs_sim::SimWorld, first: CrashPoint, seed: u64) -> u64 {
    let known = Known::of(history, first);
    let rng = SeededRng::new(seed ^ first.event);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("the first recovery succeeds");
    drop(fs);
    let plan = Plan { seed: first.event, budget: POINTS, only: None };
    let outcome =
        explore(&world.trace(), &plan, |world, second| judge_known(history, &known, world, second.event));
    outcome.unwrap_or_else(|failure| {
        panic!(
            "seed {seed}, first cut {first}, second {}: {}\nhistory:\n{}",
            failure.point,
            failure.reason,
            history.story()
        )
    })
}

#[test]
fn histories_can_be_played_again() {
    let shape = Shape { operations: 20, ..Shape::default() };
    let history = History::run(&shape, 610);
    let (world, rng) = history::format(&shape, 610);
    History::play_in(&world, &rng, &shape).expect("nothing fails");
    let known = Known::from_marks(&history, world.trace().marks().iter());
    judge_known(&history, &known, &world, 1).expect("the same names and contents");
}
