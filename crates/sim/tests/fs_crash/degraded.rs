//! Recovery with one of two mirrors away, which then comes back with what it had.

use crate::history::{History, Shape, mount, read_all};
use crate::oracle::{Known, go_on, judge_mounted, sound};
use aegisfs_base::SeededRng;
use aegisfs_fs::ROOT;
use aegisfs_pool::{OpenOptions, Pool, PoolError};
use aegisfs_sim::{CrashPoint, PowerCutter, crash_points};

/// Cuts per history.
const CUTS: u64 = 20;

#[test]
fn the_mirror_that_is_left_recovers_and_the_other_comes_back_stale() {
    let (mut tries, mut splits) = (0, 0);
    for seed in 700..703 {
        let shape = Shape { devices: 2, operations: 40, ..Shape::default() };
        let history = History::run(&shape, seed);
        let trace = history.world.trace();
        let mut cutter = PowerCutter::new(&trace);
        for point in crash_points(trace.events(), CUTS, seed) {
            for left in 0..2 {
                let world = cutter.cut(point);
                tries += 1;
                match lose_one(&history, &world, point, left) {
                    Ok(split) => splits += u64::from(split),
                    Err(why) => {
                        panic!(
                            "seed {seed}, point {point}, device {left} is left: {why}\n{}",
                            history.story()
                        )
                    }
                }
            }
        }
    }
    println!("{tries} times one was lost; {splits} times it came back with a life of its own");
    assert!(splits * 10 < tries, "a cut between two superblocks is rare");
}

/// Loses one device and takes it back; says whether it was refused for having a life of its own.
fn lose_one(
    history: &History,
    world: &aegisfs_sim::SimWorld,
    point: CrashPoint,
    left: usize,
) -> Result<bool, String> {
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
    let opening = match Pool::open(world.devices(), OpenOptions::default()) {
        Ok((_, opening)) => opening,
        // The other one may have begun a life of its own, of which the power cut left nothing but the name.
        Err(PoolError::Split { .. }) => return Ok(true),
        Err(error) => return Err(error.to_string()),
    };
    if opening.stale.len() != 1 {
        return Err(format!("the one that was away is not noticed: {opening:?}"));
    }
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    let after = fs.peek(ROOT, b"after").map_err(|e| e.to_string())?;
    if read_all(&fs, after.id).map_err(|e| e.to_string())? != vec![b'!'; 3000] {
        return Err("what was written without the other reads wrong".into());
    }
    sound(&fs).map(|()| false)
}
