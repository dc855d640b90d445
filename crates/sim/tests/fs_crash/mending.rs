//! The power is cut at every write of a scrub that mends what rotted on any two of six devices, and of reads that heal.
//!
//! Whatever was mended by then, everything reads as it did; what is left is mended by the next scrub, and the one after that
//! finds nothing.

use crate::damage::used_blocks;
use crate::history::{History, mount};
use crate::oracle::sound;
use crate::returning::{Seen, see};
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::layout::HEADER_AREA_BYTES;
use aegisfs_fs::Fs;
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{Plan, SimWorld, explore, tell};
use aegisfs_store::Intensity;

/// Points per history.
const POINTS: u64 = 60;
const BLOCK: usize = 4096;
/// Of the blocks in use one in so many rots.
const ROTTEN_ONE_IN: u64 = 8;

/// Six devices of which two rotted in places, and what is to be seen all the same.
fn rotten(seed: u64) -> (Vec<MemoryDevice>, Seen) {
    let history = History::run(&crate::SIX_CODED, seed);
    let world = SimWorld::from_images((0..6).map(|n| history.world.device(n).image()).collect());
    let rng = SeededRng::new(seed);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
    fs.sync().expect("nothing fails");
    fs.store().close().expect("nothing fails");
    let seen = see(&fs).expect("readable");
    drop(fs);
    world.settle();
    let images: Vec<MemoryDevice> = (0..6).map(|n| world.device(n).image()).collect();
    let first = rng.below(6) as usize;
    for device in [first, (first + 1 + rng.below(5) as usize) % 6] {
        let mut blocks = used_blocks(&images[device]);
        blocks.retain(|at| (HEADER_AREA_BYTES..images[device].bytes() - HEADER_AREA_BYTES).contains(at));
        for _ in 0..blocks.len() as u64 / ROTTEN_ONE_IN {
            let at = blocks[rng.below(blocks.len() as u64) as usize];
            let mut block = vec![0; BLOCK];
            images[device].read_at(at, &mut block).expect("within the device");
            let from = rng.below(8) as usize * 512;
            rng.fill(&mut block[from..from + 512]);
            images[device].write_at(at, &block).expect("within the device");
        }
    }
    (images, seen)
}

/// Runs a scrub to its end; how much it found.
///
/// A checkpoint may have been writing pages of the metadata when the power went, which verify nowhere then. Nothing refers to
/// those, and so they are none.
fn scrub(fs: &Fs) -> Result<u64, String> {
    let store = fs.store();
    store.set_scrub_intensity(Intensity::High).map_err(|e| e.to_string())?;
    let done =
        store.start_scrub(true).and_then(|_| store.scrub(&|| true)).and_then(|()| store.scrub_status());
    let counts = done.map_err(|e| e.to_string())?.ok_or("there was no scrub")?.counts;
    if counts.lost > 0 || counts.damaged != counts.repaired {
        return Err(format!("{counts:?}"));
    }
    Ok(counts.repaired)
}

/// Everything reads as it should, whatever is rotten.
fn compare(fs: &Fs, expected: &Seen) -> Result<(), String> {
    if see(fs)? == *expected { Ok(()) } else { Err("something reads otherwise".into()) }
}

fn judge(world: &SimWorld, expected: &Seen, seed: u64) -> Result<(), String> {
    let fs = mount(world.devices(), &SeededRng::new(seed), OpenOptions::default())?;
    compare(&fs, expected)?;
    scrub(&fs)?;
    match scrub(&fs)? {
        0 => compare(&fs, expected).and_then(|()| sound(&fs)),
        left => Err(format!("{left} were left by a scrub")),
    }
}

#[test]
fn the_power_may_go_at_any_write_of_a_scrub() {
    let (mut points, mut mended) = (0, 0);
    for seed in 821..823 {
        let (images, expected) = rotten(seed);
        let world = SimWorld::from_images(images);
        let fs = mount(world.devices(), &SeededRng::new(seed), OpenOptions::default()).expect("it mounts");
        mended += scrub(&fs).expect("it mends");
        drop(fs);
        let plan = Plan::from_env(seed, POINTS);
        let outcome =
            explore(&world.trace(), &plan, |world, point| judge(world, &expected, seed + point.event));
        points += outcome.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    assert!(mended > 5, "{mended}");
    tell("cuts while a scrub mended", points);
}

#[test]
fn the_power_may_go_while_reads_heal() {
    let mut points = 0;
    for seed in 823..825 {
        let (images, expected) = rotten(seed);
        let world = SimWorld::from_images(images);
        let fs = mount(world.devices(), &SeededRng::new(seed), OpenOptions::default()).expect("it mounts");
        compare(&fs, &expected).expect("everything can be read");
        drop(fs);
        let plan = Plan::from_env(seed, POINTS);
        let outcome =
            explore(&world.trace(), &plan, |world, point| judge(world, &expected, seed + point.event));
        points += outcome.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    tell("cuts while reads healed", points);
}
