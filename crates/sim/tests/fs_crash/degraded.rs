//! Recovery with one of two mirrors away, which then comes back with what it had.

use crate::history::{History, Shape, mount, read_all};
use crate::oracle::{Known, go_on, judge_mounted, sound};
use crate::returning::without_some;
use aegisfs_base::SeededRng;
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_fs::ROOT;
use aegisfs_pool::{OpenOptions, Pool, PoolError};
use aegisfs_sim::{CrashPoint, PowerCutter, crash_points, tell};

/// Cuts per history.
const CUTS: u64 = 20;

#[test]
fn the_mirror_that_is_left_recovers_and_the_other_comes_back_stale() {
    let mut tries = 0;
    for seed in 700..703 {
        let shape = Shape { devices: 2, operations: 40, ..Shape::default() };
        let history = History::run(&shape, seed);
        let trace = history.world.trace();
        let mut cutter = PowerCutter::new(&trace);
        for point in crash_points(trace.events(), CUTS, seed) {
            for left in 0..2 {
                let world = cutter.cut(point);
                tries += 1;
                lose_one(&history, &world, point, left).unwrap_or_else(|why| {
                    panic!("seed {seed}, point {point}, device {left} is left: {why}\n{}", history.story())
                });
            }
        }
    }
    tell("cuts after which one mirror went on alone", tries);
}

#[test]
fn four_of_six_recover_and_the_others_come_back_stale() {
    let mut tries = 0;
    for seed in 710..712 {
        let history = History::run(&crate::SIX_CODED, seed);
        let trace = history.world.trace();
        let mut cutter = PowerCutter::new(&trace);
        for (n, point) in crash_points(trace.events(), CUTS, seed).into_iter().enumerate() {
            let lost = [n % 6, (n / 6 + n + 1) % 6];
            let world = cutter.cut(point);
            tries += 1;
            lose_two(&history, &world, point, lost).unwrap_or_else(|why| {
                panic!("seed {seed}, point {point}, without {lost:?}: {why}\n{}", history.story())
            });
        }
    }
    tell("cuts after which four of six went on", tries);
}

#[test]
fn the_parity_has_to_be_there() {
    let lose = |seed| {
        let history = History::run(&crate::SIX_CODED, seed);
        let trace = history.world.trace();
        let mut cutter = PowerCutter::new(&trace);
        let point = *crash_points(trace.events(), CUTS, seed).last().expect("there are points");
        lose_two(&history, &cutter.cut(point), point, [0, 3])
    };
    lose(710).unwrap();
    let unnoticed = without(Edge::ParityMade, || (710..716).all(|seed| lose(seed).is_ok()));
    assert!(!unnoticed, "nobody misses the parity");
}

/// Loses two devices of six, takes them back, has them brought up to date, and loses two others.
fn lose_two(
    history: &History,
    world: &aegisfs_sim::SimWorld,
    point: CrashPoint,
    lost: [usize; 2],
) -> Result<(), String> {
    let known = Known::of(history, point);
    let rng = SeededRng::new(point.event);
    let fs = mount(without_some(world, &lost), &rng, OpenOptions::default())?;
    judge_mounted(history, &known, &fs)?;
    go_on(&fs)?;
    drop(fs);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    sound(&fs)?;
    fs.store().bring_back(&|| true).map_err(|e| format!("they cannot be brought back: {e}"))?;
    drop(fs);
    let others = [(lost[0] + 2) % 6, (lost[0] + 3) % 6];
    let fs = mount(without_some(world, &others), &rng, OpenOptions::default())?;
    let after = fs.peek(ROOT, b"after").map_err(|e| e.to_string())?;
    if read_all(&fs, after.id).map_err(|e| e.to_string())? != vec![b'!'; 3000] {
        return Err("what was written without them reads wrong".into());
    }
    sound(&fs)
}

/// Loses one device and takes it back.
fn lose_one(
    history: &History,
    world: &aegisfs_sim::SimWorld,
    point: CrashPoint,
    left: usize,
) -> Result<(), String> {
    let known = Known::of(history, point);
    let rng = SeededRng::new(point.event);
    let one = vec![world.devices()[left].clone()];
    match Pool::open(one.clone(), OpenOptions::default()) {
        Err(PoolError::Missing { .. }) => {}
        other => return Err(format!("it opens alone without being asked to: {:?}", other.map(|(_, o)| o))),
    }
    let fs = mount(one, &rng, OpenOptions { degraded: true, ..OpenOptions::default() })?;
    judge_mounted(history, &known, &fs)?;
    go_on(&fs)?;
    drop(fs);
    let (_, opening) = Pool::open(world.devices(), OpenOptions::default()).map_err(|e| e.to_string())?;
    if opening.stale.len() != 1 {
        return Err(format!("the one that was away is not noticed: {opening:?}"));
    }
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    let after = fs.peek(ROOT, b"after").map_err(|e| e.to_string())?;
    if read_all(&fs, after.id).map_err(|e| e.to_string())? != vec![b'!'; 3000] {
        return Err("what was written without the other reads wrong".into());
    }
    sound(&fs)
}
