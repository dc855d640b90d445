//! The whole filesystem on simulated devices: the power is cut at every write of seeded histories.
//!
//! What must hold after each cut (design section 5): it opens; names and attributes are as after some
//! prefix of the operations that reaches at least what was promised; every byte of a file is what was last
//! promised or anything written there later; counts, slots and hashes add up; and it goes on from there.

#![expect(clippy::print_stdout, reason = "a test tells what it did")]

mod damage;
mod degraded;
mod faults;
mod flags;
mod history;
mod mending;
mod nested;
mod old_records;
mod oracle;
mod player;
mod returning;
mod slow;
mod switches;

use aegisfs_pool::{OpenOptions, Redundancy};
use aegisfs_sim::{Plan, explore, tell};
use history::{History, Shape};

/// Points per history in an ordinary run; `AEGISFS_SIM_POINTS` in the environment replaces it.
const POINTS: u64 = 180;

fn survive(suite: &str, shape: Shape, seeds: std::ops::Range<u64>) {
    let mut points = 0;
    for seed in seeds {
        let plan = Plan::from_env(seed, POINTS);
        let history = History::run(&shape, plan.seed);
        let outcome =
            explore(&history.world.trace(), &plan, |world, point| oracle::judge(&history, world, point));
        match outcome {
            Ok(passed) => points += passed,
            Err(failure) => panic!("{shape:?}: {failure}\nhistory:\n{}", history.story()),
        }
    }
    tell(suite, points);
}

#[test]
fn short_histories_on_one_device() {
    survive("short histories on one device", Shape { devices: 1, operations: 25, ..Shape::default() }, 0..8);
}

#[test]
fn long_histories_on_one_device() {
    survive(
        "long histories on one device",
        Shape { devices: 1, operations: 150, ..Shape::default() },
        100..104,
    );
}

#[test]
fn histories_on_two_mirrored_devices() {
    survive(
        "histories on two mirrored devices",
        Shape { devices: 2, operations: 40, ..Shape::default() },
        200..204,
    );
}

#[test]
fn histories_that_wrap_the_log() {
    survive(
        "histories that wrap the log",
        Shape {
            devices: 1,
            operations: 120,
            log_pieces: 2,
            large: true,
            device_bytes: 10 << 20,
            ..Shape::default()
        },
        300..303,
    );
}

#[test]
fn histories_with_streams() {
    survive(
        "histories with streams",
        Shape { operations: 60, large: true, device_bytes: 48 << 20, streams: true, ..Shape::default() },
        400..403,
    );
}

/// A small device, on which slots come back and are taken again; the device is full at times.
const WITH_CLEANING: Shape = Shape {
    devices: 1,
    operations: 150,
    log_pieces: 2,
    large: true,
    device_bytes: 8 << 20,
    mixed: false,
    streams: false,
    flags: false,
    cleaning: true,
    policies: false,
    redundancy: None,
};

#[test]
fn histories_with_cleaning() {
    survive("histories with cleaning", WITH_CLEANING, 500..506);
}

/// Among them what is left of chunks becomes chunks of their own.
#[test]
fn cleaning_takes_what_is_left_of_chunks() {
    let took = |seed| {
        let story = History::run(&WITH_CLEANING, seed).story();
        story.lines().any(|line| line.contains("remains_bytes: ") && !line.contains("remains_bytes: 0,"))
    };
    assert!((500..506).filter(|seed| took(*seed)).count() > 2);
}

#[test]
fn histories_with_cleaning_on_two_mirrored_devices() {
    survive("histories with cleaning, mirrored", Shape { devices: 2, ..WITH_CLEANING }, 520..523);
}

/// Writes large enough for wide rows, and small ones.
const SIX_CODED: Shape = Shape {
    devices: 6,
    operations: 40,
    log_pieces: 4,
    large: true,
    device_bytes: 16 << 20,
    mixed: false,
    streams: true,
    flags: false,
    cleaning: false,
    policies: false,
    redundancy: None,
};

#[test]
fn histories_on_six_coded_devices() {
    survive("histories on six devices, 4+2", SIX_CODED, 540..543);
}

/// How many segments have the geometries that they should have in those histories: cells of data and of parity.
#[test]
fn coded_histories_have_rows_of_both_kinds() {
    for (shape, seed, wide) in [(SIX_CODED, 540, (4, 2)), (CODED_WITH_CLEANING, 560, (3, 2))] {
        let history = History::run(&shape, seed);
        let rng = aegisfs_base::SeededRng::new(seed);
        let fs = history::mount(history.world.devices(), &rng, OpenOptions::default()).expect("it mounts");
        let mut found = std::collections::BTreeMap::new();
        let mut note = |_, segment: aegisfs_format::value::Segment| {
            *found.entry(segment.shards).or_insert(0) += 1;
            std::ops::ControlFlow::Continue(())
        };
        fs.store().each_segment(&mut note).expect("readable");
        assert!(found.contains_key(&wide) && found.contains_key(&(1, 2)), "{found:?}");
    }
}

#[test]
fn histories_with_streams_on_coded_devices_of_mixed_sizes() {
    let shape = Shape {
        devices: 5,
        operations: 40,
        large: true,
        device_bytes: 32 << 20,
        mixed: true,
        streams: true,
        ..Shape::default()
    };
    survive("histories with streams on devices of mixed sizes, 3+2", shape, 550..552);
}

#[test]
fn histories_on_three_mirrored_and_on_eight_coded_devices() {
    let three = Shape { devices: 3, mixed: true, device_bytes: 16 << 20, ..SIX_CODED };
    survive("histories on three devices of mixed sizes, mirrored", three, 544..545);
    survive("histories on eight devices, 6+2", Shape { devices: 8, ..SIX_CODED }, 545..546);
}

/// Two segments are open at the same time, on two devices each.
const TWO_PAIRS: Shape = Shape {
    devices: 4,
    redundancy: Some(Redundancy { shards_data: 1, shards_parity: 1 }),
    device_bytes: 48 << 20,
    ..SIX_CODED
};

#[test]
fn histories_on_two_pairs_of_mirrors() {
    survive("histories on two pairs of mirrors", TWO_PAIRS, 570..573);
    let cleaning = Shape { cleaning: true, operations: 90, device_bytes: 24 << 20, ..TWO_PAIRS };
    survive("histories with cleaning on two pairs of mirrors", cleaning, 573..574);
}

/// Rows that are written one after the other go to different devices.
#[test]
fn both_pairs_of_mirrors_are_written_to() {
    let history = History::run(&TWO_PAIRS, 570);
    let rng = aegisfs_base::SeededRng::new(570);
    let fs = history::mount(history.world.devices(), &rng, OpenOptions::default()).expect("it mounts");
    let mut live = std::collections::BTreeMap::new();
    let mut note = |_, segment: aegisfs_format::value::Segment| {
        let mut devices: Vec<u16> = segment.placements.iter().map(|place| place.0.0).collect();
        devices.sort_unstable();
        *live.entry(devices).or_insert(0) += segment.live_bytes;
        std::ops::ControlFlow::Continue(())
    };
    fs.store().each_segment(&mut note).expect("readable");
    live.retain(|_, bytes| *bytes > 0);
    let taken: std::collections::BTreeSet<u16> = live.keys().flatten().copied().collect();
    assert!(live.len() > 1 && taken.len() == 4, "{live:?}");
}

const CODED_WITH_CLEANING: Shape = Shape {
    devices: 5,
    mixed: true,
    device_bytes: 12 << 20,
    streams: true,
    operations: 100,
    ..WITH_CLEANING
};

#[test]
fn histories_with_cleaning_on_coded_devices() {
    survive("histories with cleaning, 3+2", CODED_WITH_CLEANING, 560..562);
}

/// Files and directories are stored in different ways, and what is there already follows what is said.
const WITH_POLICIES: Shape = Shape { policies: true, operations: 140, ..SIX_CODED };

#[test]
fn histories_with_policies() {
    survive("histories with policies", WITH_POLICIES, 580..583);
}

#[test]
fn histories_with_policies_and_cleaning() {
    let shape = Shape { policies: true, operations: 120, ..CODED_WITH_CLEANING };
    survive("histories with policies and cleaning", shape, 590..592);
}

/// In those histories something is stored anew, and lies in segments of several kinds.
#[test]
fn policies_come_into_play() {
    let (mut bytes, mut kinds) = (0, std::collections::BTreeSet::new());
    for seed in 580..583 {
        let history = History::run(&WITH_POLICIES, seed);
        bytes += history
            .story()
            .lines()
            .filter(|line| line.contains("stored anew: ") && !line.ends_with(": 0"))
            .count();
        let rng = aegisfs_base::SeededRng::new(seed);
        let fs = history::mount(history.world.devices(), &rng, OpenOptions::default()).expect("it mounts");
        let mut note = |_, segment: aegisfs_format::value::Segment| {
            kinds.insert((segment.policy, segment.shards));
            std::ops::ControlFlow::Continue(())
        };
        fs.store().each_segment(&mut note).expect("readable");
    }
    println!("{bytes} times something was stored anew; segments are {kinds:?}");
    assert!(bytes > 5 && kinds.len() > 5);
}

#[test]
fn histories_with_flags() {
    survive("histories with flags", flags::WITH_FLAGS, flags::SEEDS);
}
