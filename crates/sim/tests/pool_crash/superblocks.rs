//! Superblocks: lives begin and end, areas are destroyed, bits rot.

use crate::stage::{self, create, open_with};
use aegisfs_base::{Incarnation, Rng, SeededRng};
use aegisfs_device::Device;
use aegisfs_format::layout::{
    HEADER_AREA_BYTES, MAP_ZONE_BYTES, SUPERBLOCK_BYTES, map_zone_offset, superblock_offset,
};
use aegisfs_pool::{OpenOptions, Pool};
use aegisfs_sim::{CrashPoint, Failure, Plan, SimWorld, Trace, explore, tell};
use std::sync::Arc;

const SEED: u64 = 21;
const LIVES: u64 = 6;

/// What a superblock says of its life: the newest incarnation, and whether it has not ended.
type Life = (Option<Incarnation>, bool);

fn life(pool: &Pool) -> Life {
    let superblock = pool.superblock();
    (superblock.incarnations.first().copied(), superblock.dirty)
}

fn open(world: &SimWorld) -> Result<(Arc<Pool>, u32), String> {
    let opened = Pool::open(world.devices(), OpenOptions::default());
    let (pool, opening) = opened.map_err(|e| format!("opening the pool: {e}"))?;
    Ok((pool, opening.superblocks_damaged))
}

/// Lives that begin and end, each promised when it is durable.
fn lives(devices: usize, seed: u64) -> Result<(Trace, Vec<Life>), String> {
    let (world, stage) = create(devices, seed);
    drop(stage);
    let mut states = Vec::new();
    for n in 0..LIVES {
        let (pool, _) = open(&world)?;
        if n == 0 {
            states.push(life(&pool));
            world.mark(0);
        }
        pool.begin_incarnation(&SeededRng::new(seed + n)).map_err(|e| e.to_string())?;
        states.push(life(&pool));
        world.mark(states.len() as u64 - 1);
        pool.end_incarnation().map_err(|e| e.to_string())?;
        states.push(life(&pool));
        world.mark(states.len() as u64 - 1);
    }
    Ok((world.trace(), states))
}

/// Cuts the power while lives begin and end.
pub(crate) fn explore_lives(devices: usize, plan: &Plan) -> Result<u64, Failure> {
    let point = CrashPoint { event: 0, subset: 0 };
    let (trace, states) =
        lives(devices, plan.seed).map_err(|reason| Failure { seed: plan.seed, point, passed: 0, reason })?;
    explore(&trace, plan, |world, point| {
        let (pool, _) = open(world)?;
        let promised = usize::try_from(trace.promised(point.event).unwrap_or(0)).expect("small");
        let allowed = &states[promised..states.len().min(promised + 2)];
        if !allowed.contains(&life(&pool)) {
            return Err(format!("found {:?}, but {:?} was promised", life(&pool), states[promised]));
        }
        pool.begin_incarnation(&SeededRng::new(point.event)).map_err(|e| e.to_string())?;
        let after = life(&pool);
        let found = life(&open(world)?.0);
        if found == after { Ok(()) } else { Err(format!("{found:?} where {after:?} began")) }
    })
}

#[test]
fn lives_begin_and_end_on_one_device() {
    let passed = explore_lives(1, &Plan::from_env(SEED, 2_000)).unwrap_or_else(|failure| panic!("{failure}"));
    tell("lives on one device", passed);
}

#[test]
fn lives_begin_and_end_on_two_devices() {
    let passed = explore_lives(2, &Plan::from_env(SEED, 2_000)).unwrap_or_else(|failure| panic!("{failure}"));
    tell("lives on two devices", passed);
}

fn destroy(device: &dyn Device, offset: u64, bytes: usize, rng: &SeededRng) {
    let mut garbage = vec![0; bytes];
    rng.fill(&mut garbage);
    device.write_at(offset, &garbage).expect("inside the device");
}

#[test]
fn destroyed_areas_are_found_and_repaired() {
    let (world, stage) = create(1, SEED);
    let states = stage::growing_and_shrinking(SEED);
    stage::commit_all(&world, &stage, &states).expect("nothing fails");
    stage.close().expect("nothing fails");
    let image = world.device(0).image();
    let areas = [0, image.bytes() - HEADER_AREA_BYTES];
    let whole = |area: u64| vec![(area, HEADER_AREA_BYTES as usize)];
    let mut cases = vec![(whole(areas[0]), 2), (whole(areas[1]), 2)];
    for front in 0..2 {
        for back in 0..2 {
            let slots = [(areas[0], front), (areas[1], back)];
            let blocks = slots.map(|(area, parity)| (area + superblock_offset(parity), SUPERBLOCK_BYTES));
            let maps = slots.map(|(area, parity)| (area + map_zone_offset(parity), MAP_ZONE_BYTES));
            cases.push((blocks.to_vec(), 2));
            cases.push((maps.to_vec(), 2));
        }
    }
    for (n, (ranges, damaged)) in cases.into_iter().enumerate() {
        let world = SimWorld::from_images(vec![image.snapshot()]);
        let rng = SeededRng::new(n as u64);
        for (offset, bytes) in &ranges {
            destroy(&*world.device(0), *offset, *bytes, &rng);
        }
        let (_, found) = open(&world).expect("two places are whole");
        assert_eq!(found, damaged, "{ranges:?}");
        let stage = stage::open(&world, 1).expect("two places are whole");
        assert_eq!(&stage.contents().expect("nothing fails"), states.last().expect("not empty"));
        assert_eq!(open(&world).expect("whole again").1, 0, "{ranges:?}");
    }
    let world = SimWorld::from_images(vec![image.snapshot()]);
    for area in areas {
        destroy(&*world.device(0), area, HEADER_AREA_BYTES as usize, &SeededRng::new(1));
    }
    assert!(Pool::open(world.devices(), OpenOptions::default()).is_err());
}

/// Flips bits in superblocks that a running pool relies on: what is found is the newest whole one, or nothing.
pub(crate) fn explore_superblock_bits(seed: u64, flips: u64) -> Result<u64, String> {
    let (world, stage) = create(1, seed);
    let states = stage::growing_and_shrinking(seed);
    stage::commit_all(&world, &stage, &states[..3]).expect("nothing fails");
    stage.close().expect("nothing fails");
    let expected = open(&world)?.0.superblock();
    let rng = SeededRng::new(seed);
    let areas = [0, world.device(0).bytes() - HEADER_AREA_BYTES];
    for n in 0..flips {
        let slot = superblock_offset(expected.generation.0);
        let offset = areas[rng.below(2) as usize] + slot + rng.below(1024);
        let bit = rng.below(8);
        world.device(0).flip(offset, 1 << bit);
        let at = |e: String| format!("flip {n}, byte {offset}, bit {bit}: {e}");
        // A flipped version says that a newer program was here: refused, which is an error and no harm.
        match open(&world) {
            Ok((pool, _)) if pool.superblock() != expected => return Err(at("another superblock".into())),
            Err(error) if !error.contains("version") => return Err(at(error)),
            Ok(_) | Err(_) => {}
        }
        world.device(0).unflip();
    }
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let found = open_with(world.devices(), options, 0)?.contents()?;
    if found == states[2] { Ok(flips) } else { Err("flips were not undone".into()) }
}

#[test]
fn a_flipped_bit_in_a_superblock_changes_nothing() {
    explore_superblock_bits(SEED, 500).expect("the other area is whole");
}
