//! Two mirrored devices: one is missing, stale, split off, or fails while it is written to.

use crate::stage::{self, Contents, Stage, check, create, growing_and_shrinking, open, open_with};
use aegisfs_device::{Device, Fault, Operation};
use aegisfs_format::superblock::Membership;
use aegisfs_pool::{OpenOptions, Pool, PoolError};
use aegisfs_sim::{CrashPoint, Plan, PowerCutter, SimWorld, explore, tell};
use std::sync::Arc;

const SEED: u64 = 31;
const DEGRADED: OpenOptions = OpenOptions { read_only: false, degraded: true };

/// A closed pool on two devices that holds the first states, and all states.
fn mirrored() -> (SimWorld, Vec<Contents>) {
    let (world, stage) = create(2, SEED);
    let states = growing_and_shrinking(SEED);
    stage::commit_all(&world, &stage, &states[..4]).expect("nothing fails");
    stage.close().expect("nothing fails");
    world.settle();
    (world, states)
}

fn alone(world: &SimWorld, index: usize) -> Vec<Arc<dyn Device>> {
    vec![world.device(index)]
}

/// Opens what is left of a mirror and commits the next state.
fn goes_on_alone(world: &SimWorld, index: usize, from: &Contents, to: &Contents) -> Stage {
    let stage =
        open_with(alone(world, index), DEGRADED, 100 + index as u64).expect("the other copy is there");
    assert_eq!(&stage.contents().expect("the other copy is there"), from);
    stage.commit(from, to).expect("the other copy is there");
    stage
}

#[test]
fn a_missing_member_needs_degraded_and_is_stale_when_it_returns() {
    for gone in 0..2 {
        let (world, states) = mirrored();
        let left = 1 - gone;
        let refused = Pool::open(alone(&world, left), OpenOptions::default());
        assert!(matches!(refused, Err(PoolError::Missing { missing: 1, total: 2, .. })));
        drop(goes_on_alone(&world, left, &states[3], &states[4]));
        // Known to be out by now, so nobody has to be asked again.
        drop(open_with(alone(&world, left), OpenOptions::default(), 5).expect("it is known to be out"));

        let stage = open(&world, 6).expect("a stale member does no harm");
        assert_eq!(stage.opening.stale, [format!("sim{gone}")]);
        assert_eq!(stage.contents().expect("read from the other"), states[4]);
        stage.commit(&states[4], &states[5]).expect("written to the other");
        drop(stage);
        assert_eq!(open(&world, 7).unwrap().contents().unwrap(), states[5]);
    }
}

#[test]
fn a_member_away_for_many_lives_is_stale_and_no_split() {
    let (world, states) = mirrored();
    for seed in 0..40 {
        let stage = open_with(alone(&world, 0), DEGRADED, 1000 + seed).unwrap();
        stage.close().unwrap();
    }
    let stage = open(&world, 6).expect("it wrote nothing of its own");
    assert_eq!(stage.opening.stale, ["sim1"]);
    assert_eq!(stage.contents().unwrap(), states[3]);
}

#[test]
fn the_power_is_cut_while_one_goes_on_alone() {
    let plan = Plan::from_env(SEED, 150);
    let (world, states) = mirrored();
    let stage = open_with(alone(&world, 0), DEGRADED, 3).expect("the other copy is there");
    world.mark(3);
    stage.commit(&states[3], &states[4]).expect("the other copy is there");
    world.mark(4);
    stage.commit(&states[4], &states[5]).expect("the other copy is there");
    world.mark(5);
    drop(stage);
    let trace = world.trace();
    let passed = explore(&trace, &plan, |world, point| {
        let promised = trace.promised(point.event).or(Some(3));
        let stage = open(world, 9)?;
        check(&states, promised, &stage.contents()?)?;
        drop(stage);
        check(&states, promised, &open(world, 10)?.contents()?)
    });
    tell("one of two mirrors goes on alone", passed.unwrap_or_else(|failure| panic!("{failure}")));
}

/// A life of both that is cut off while it begins, then one of a single member that is cut off as well: it opens
/// with both, and the single one's word counts.
#[test]
fn a_beginning_that_was_cut_off_is_no_split() {
    let (world, states) = mirrored();
    drop(open(&world, 2).expect("both are there"));
    let beginning = world.trace();
    let mut cutter = PowerCutter::new(&beginning);
    let mut cuts = 0;
    for first in aegisfs_sim::crash_points(beginning.events(), 30, SEED) {
        for left in 0..2 {
            let world = cutter.cut(first);
            drop(goes_on_alone(&world, left, &states[3], &states[4]));
            let alone = world.trace();
            let plan = Plan { seed: SEED, budget: 25, only: None };
            let passed = explore(&alone, &plan, |world, _| {
                let reversed = world.devices().into_iter().rev().collect();
                let (_, opening) = Pool::open(reversed, OpenOptions::default()).map_err(|e| e.to_string())?;
                let stage = open(world, 9)?;
                if stage.opening.stale != opening.stale {
                    return Err(format!("{:?}; in another order {opening:?}", stage.opening));
                }
                let found = stage.contents()?;
                check(&states, Some(3), &found)
            });
            cuts += passed.unwrap_or_else(|e| panic!("first cut {first}, {left} is left: {e}"));
            let stage = open(&world, 9).unwrap_or_else(|e| panic!("first cut {first}, {left} is left: {e}"));
            assert_eq!(stage.opening.stale, [format!("sim{}", 1 - left)], "first cut {first}");
            assert_eq!(stage.contents().unwrap(), states[4]);
        }
    }
    tell("a beginning that was cut off", cuts);
}

#[test]
fn each_was_mounted_alone() {
    let (world, states) = mirrored();
    drop(goes_on_alone(&world, 0, &states[3], &states[4]));
    drop(goes_on_alone(&world, 1, &states[3], &states[5]));
    assert!(matches!(Pool::open(world.devices(), DEGRADED), Err(PoolError::Split { .. })));
    for index in 0..2 {
        let found = open_with(alone(&world, index), DEGRADED, 8).unwrap().contents().unwrap();
        assert_eq!(found, states[4 + index]);
    }
}

#[test]
fn one_was_expelled_and_then_mounted_alone() {
    let (world, states) = mirrored();
    let stage = open(&world, 2).unwrap();
    world.device(1).kill();
    stage.commit(&states[3], &states[4]).expect("one of two is enough");
    drop(stage);
    world.restart();
    // The second one knows nothing of what happened, and both went on within the same life.
    drop(goes_on_alone(&world, 1, &states[3], &states[5]));
    assert!(matches!(Pool::open(world.devices(), DEGRADED), Err(PoolError::Split { .. })));
}

/// A member fails from some call on: the commits go on, and the other holds them.
fn fails_from(bad: usize, fault: Fault, cuts: u64) -> Result<(), String> {
    let (world, states) = mirrored();
    let world = SimWorld::from_images((0..2).map(|n| world.device(n).image()).collect());
    let stage = open(&world, 4)?;
    world.device(bad).plan(fault);
    world.mark(3);
    for n in 4..6 {
        stage.commit(&states[n - 1], &states[n])?;
        world.mark(n as u64);
    }
    let out = stage.pool.superblock().devices[bad].membership != Membership::In;
    drop(stage);
    world.restart();
    let trace = world.trace();
    for cut in 0..cuts {
        let event = trace.events() - cut * 7 % trace.events();
        let point = CrashPoint { event, subset: cut };
        let after = PowerCutter::new(&trace).cut(point);
        let at = |e| format!("{fault:?} on {bad}, cut at {point}: {e}");
        let promised = trace.promised(event).or(Some(3));
        if cut == 0 && out {
            let left = open_with(alone(&after, 1 - bad), OpenOptions::default(), 5).map_err(at)?;
            check(&states, promised, &left.contents().map_err(at)?).map_err(at)?;
        }
        let stage = open(&after, 6).map_err(at)?;
        if cut == 0 && out && stage.opening.stale.is_empty() {
            return Err(at("the expelled member counts again".into()));
        }
        check(&states, promised, &stage.contents().map_err(at)?).map_err(at)?;
    }
    Ok(())
}

#[test]
fn a_member_that_fails_is_expelled_and_the_commit_survives() {
    for bad in 0..2 {
        for after in (0..40).step_by(3) {
            for operation in [Operation::Write, Operation::Flush] {
                fails_from(bad, Fault::lasting(operation, after), 4).unwrap();
            }
            fails_from(bad, Fault::final_once(Operation::Write, after), 4).unwrap();
        }
        for after in 0..8 {
            fails_from(bad, Fault::final_once(Operation::Flush, after), 4).unwrap();
        }
    }
}

/// When one device is full the other must not take both copies: losing it would then lose the metadata.
#[test]
fn a_full_device_is_no_reason_to_put_both_copies_on_the_other() {
    let (world, stage) = stage::create_on(&[16 << 20, 5 << 20], SEED);
    let states = growing_and_shrinking(SEED);
    while stage.pool.space().segments_placeable > 1 {
        stage
            .pool
            .open_segment(aegisfs_base::SegmentId(1), stage.pool.redundancy(), true)
            .expect("there is room");
    }
    let mut last = 0;
    let refused = (1..states.len()).find_map(|n| {
        let outcome = stage.commit(&states[n - 1], &states[n]);
        last = if outcome.is_ok() { n } else { last };
        outcome.err()
    });
    let refused = refused.expect("the small device is full");
    assert!(refused.contains("no free slot"), "{refused}");
    let mapped = stage.pool.mapped_slots();
    for pair in mapped.chunks_exact(2) {
        assert_eq!((pair[0].owner, pair[0].piece), (pair[1].owner, pair[1].piece));
        assert_ne!(pair[0].device, pair[1].device);
    }
    drop(stage);
    check(&states, Some(last as u64), &open(&world, 5).unwrap().contents().unwrap()).unwrap();
}

#[test]
fn a_member_that_only_cannot_be_read_stays_in() {
    let (world, states) = mirrored();
    let stage = open(&world, 4).unwrap();
    world.device(0).plan(Fault::lasting(Operation::Read, 0));
    assert_eq!(stage.contents().unwrap(), states[3]);
    assert_eq!(stage.pool.superblock().devices[0].membership, Membership::In);
}

#[test]
fn the_last_member_is_never_expelled() {
    let (world, states) = mirrored();
    let stage = open_with(alone(&world, 0), DEGRADED, 4).unwrap();
    world.device(0).plan(Fault::lasting(Operation::Flush, 0));
    stage.commit(&states[3], &states[4]).expect_err("nobody is left to hold it");
    drop(stage);
    world.restart();
    let found = open(&world, 5).unwrap().contents().unwrap();
    assert!(found == states[3] || found == states[4]);
}
