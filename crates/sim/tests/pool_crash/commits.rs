//! Commits: after any cut the database holds the last one that was promised, or the one on its way.

use crate::stage::{self, Contents, check, history, open};
use aegisfs_base::SeededRng;
use aegisfs_sim::{CrashPoint, Failure, Plan, PowerCutter, SimWorld, Trace, crash_points, explore, tell};

const SEED: u64 = 11;

/// After a cut: everything opens, holds what it must, takes another commit, and survives a second cut.
pub(crate) fn survives(
    world: &SimWorld,
    point: CrashPoint,
    trace: &Trace,
    states: &[Contents],
) -> Result<(), String> {
    let stage = open(world, point.event)?;
    let found = stage.contents()?;
    check(states, trace.promised(point.event), &found)?;
    let next = stage::change(&found, &SeededRng::new(point.subset), 12, 6000, 10);
    let states = [found, next];
    stage::commit_all(world, &stage, &states).map_err(|e| format!("after reopening: {e}"))?;
    drop(stage);
    second_cut(world, point, &states)
}

fn second_cut(world: &SimWorld, point: CrashPoint, states: &[Contents]) -> Result<(), String> {
    let trace = world.trace();
    let choice = point.event.wrapping_mul(31).wrapping_add(point.subset);
    let again = CrashPoint { event: choice % (trace.events() + 1), subset: choice % 50 };
    let world = PowerCutter::new(&trace).cut(again);
    let in_second = |e| format!("second cut at {again} of {}: {e}", trace.events());
    let stage = open(&world, again.event).map_err(in_second)?;
    let found = stage.contents().map_err(in_second)?;
    check(states, trace.promised(again.event), &found).map_err(in_second)
}

/// Cuts the power all over a history of commits.
pub(crate) fn explore_commits(devices: usize, plan: &Plan) -> Result<u64, Failure> {
    let (trace, states) = history(devices, plan.seed);
    let started = std::time::Instant::now();
    let passed = explore(&trace, plan, |world, point| survives(world, point, &trace, &states))?;
    let speed = passed as f64 / started.elapsed().as_secs_f64();
    eprintln!("commits on {devices} devices: {} events, {passed} cuts, {speed:.0}/s", trace.events());
    Ok(passed)
}

#[test]
fn commits_on_one_device() {
    let passed = explore_commits(1, &Plan::from_env(SEED, 900));
    tell("commits on one device", passed.unwrap_or_else(|failure| panic!("{failure}")));
}

#[test]
fn commits_on_two_mirrored_devices() {
    let passed = explore_commits(2, &Plan::from_env(SEED, 700));
    tell("commits on two mirrored devices", passed.unwrap_or_else(|failure| panic!("{failure}")));
}

#[test]
fn equal_seeds_give_equal_histories() {
    let ((first, _), (second, _)) = (history(1, SEED), history(1, SEED));
    assert_eq!(first.events(), second.events());
    assert!(first.records() == second.records(), "a printed point could not be run again");
    assert_eq!(first.marks(), second.marks());
}

#[test]
fn histories_grow_over_several_pieces_and_cuts_are_cheap() {
    let (world, stage) = stage::create(1, SEED);
    let states = stage::growing_and_shrinking(SEED);
    let slots_before = stage.database_slots();
    stage::commit_all(&world, &stage, &states).expect("nothing fails");
    let pieces = stage.database_slots() / 2;
    assert!(pieces >= 4, "{pieces} pieces, before {slots_before} slots");
    let trace = world.trace();
    let points = crash_points(trace.events(), 5_000, SEED);
    let (mut cutter, started) = (PowerCutter::new(&trace), std::time::Instant::now());
    points.iter().for_each(|point| drop(cutter.cut(*point)));
    let speed = points.len() as f64 / started.elapsed().as_secs_f64();
    eprintln!("{} cuts of {} events, {speed:.0}/s, {pieces} pieces", points.len(), trace.events());
}
