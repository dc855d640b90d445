//! A mirror that was away is brought up to date, and then holds everything alone; or the power is cut meanwhile.

use crate::history::{History, Namespace, Shape, mount, read_all, walk};
use crate::oracle::{go_on, sound};
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{InodeId, SeededRng};
use aegisfs_device::Device;
use aegisfs_fs::{Fs, Kind, MakeOptions, ROOT};
use aegisfs_pool::{MemberState, OpenOptions};
use aegisfs_sim::{Failure, Plan, SimWorld, explore, tell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Points per history.
const POINTS: u64 = 150;
const ALONE: OpenOptions = OpenOptions { read_only: false, degraded: true };

/// Everything that can be seen.
pub(crate) type Seen = (Namespace, BTreeMap<InodeId, Vec<u8>>);

pub(crate) fn see(fs: &Fs) -> Result<Seen, String> {
    let names = walk(fs).map_err(|e| e.to_string())?;
    let mut contents = BTreeMap::new();
    for entry in names.values().filter(|entry| entry.mode & 0o170_000 == 0o100_000) {
        let content = read_all(fs, entry.inode).map_err(|e| format!("inode {}: {e}", entry.inode))?;
        contents.insert(entry.inode, content);
    }
    Ok((names, contents))
}

fn compare(fs: &Fs, expected: &Seen) -> Result<(), String> {
    let found = see(fs)?;
    if found.0 != expected.0 {
        return Err("names differ".into());
    }
    match expected.1.iter().find(|(id, content)| found.1.get(id) != Some(content)) {
        Some((id, _)) => Err(format!("inode {id} reads otherwise")),
        None => sound(fs),
    }
}

/// A file of bytes that look like nothing else.
fn put(fs: &Fs, name: &[u8], seed: u64, bytes: usize) -> Result<(), String> {
    let rng = SeededRng::new(seed);
    let mut data = vec![0; bytes];
    aegisfs_base::Rng::fill(&rng, &mut data);
    let work = || -> Result<(), aegisfs_fs::FsError> {
        let made = fs.make(ROOT, name, Kind::File, &MakeOptions::default())?;
        let handle = fs.open(made.id)?;
        fs.write(handle, 0, &data)?;
        fs.fsync(handle)?;
        fs.release(handle)?;
        fs.forget(made.id, 1);
        fs.sync()
    };
    work().map_err(|e| e.to_string())
}

/// Two devices of which the second one lacks what was done since it was left out; and what should be seen.
fn left_behind(seed: u64) -> (SimWorld, Seen) {
    let shape = Shape { devices: 2, operations: 40, device_bytes: 32 << 20, ..Shape::default() };
    let history = History::run(&shape, seed);
    let world = SimWorld::from_images((0..2).map(|n| history.world.device(n).image()).collect());
    let rng = SeededRng::new(seed);
    let first: Vec<Arc<dyn Device>> = vec![world.devices()[0].clone()];
    let fs = mount(first, &rng, ALONE).expect("one of two is enough");
    for n in 0..12 {
        put(&fs, format!("alone-{n}").as_bytes(), seed * 100 + n, 40_000 * (1 + n as usize % 4)).unwrap();
    }
    go_on(&fs).unwrap();
    // Metadata as well, beyond what the log holds.
    fs.store().checkpoint().unwrap();
    put(&fs, b"alone-in-the-log", seed, 3000).unwrap();
    let seen = see(&fs).unwrap();
    drop(fs);
    world.settle();
    (world, seen)
}

fn bring_back(world: &SimWorld, seed: u64) -> Result<(), String> {
    let rng = SeededRng::new(seed);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    fs.store().bring_back(&|| true).map_err(|e| format!("it cannot be brought back: {e}"))?;
    Ok(())
}

fn is_whole(fs: &Fs) -> bool {
    fs.store().pool().member_states().iter().all(|state| *state == MemberState::In)
}

/// Both see what they should; and if the second one counts as a member, it does so alone.
fn judge(world: &SimWorld, expected: &Seen, seed: u64) -> Result<(), String> {
    judge_without(world, expected, seed, &[&[0], &[1]], ALONE)
}

/// All see what they should; and if everybody counts as a member, so do those that are left when some are gone.
fn judge_without(
    world: &SimWorld,
    expected: &Seen,
    seed: u64,
    missing: &[&[usize]],
    options: OpenOptions,
) -> Result<(), String> {
    let rng = SeededRng::new(seed);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    compare(&fs, expected).map_err(|e| format!("all: {e}"))?;
    let whole = is_whole(&fs);
    drop(fs);
    if !whole {
        bring_back(world, seed + 1)?;
    }
    for gone in missing {
        // The others are asked next, and must not be left behind by this.
        let count = world.devices().len();
        let world = SimWorld::from_images((0..count).map(|n| world.device(n).image()).collect());
        let fs = mount(without_some(&world, gone), &rng, options)?;
        compare(&fs, expected).map_err(|e| format!("without {gone:?}: {e}"))?;
        go_on_elsewhere(&fs)?;
        sound(&fs)?;
    }
    Ok(())
}

fn go_on_elsewhere(fs: &Fs) -> Result<(), String> {
    put(fs, b"and-on", 1, 5000)
}

#[test]
fn who_was_away_holds_everything_again() {
    for seed in 720..724 {
        let (world, expected) = left_behind(seed);
        bring_back(&world, seed).unwrap();
        let fs = mount(world.devices(), &SeededRng::new(seed), OpenOptions::default()).unwrap();
        assert!(is_whole(&fs), "{:?}", fs.store().pool().member_states());
        // What was written with one shard has two now.
        let thin = fs.store().check(true).unwrap();
        assert_eq!(thin.problems, []);
        drop(fs);
        judge(&world, &expected, seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn only_what_was_missed_is_written() {
    let (world, _) = left_behind(730);
    let rng = SeededRng::new(730);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).unwrap();
    let done = fs.store().bring_back(&|| true).unwrap();
    assert_eq!(done.len(), 1);
    // Segments that were opened without it are moved; of those that it has a part in, it lacked hardly anything.
    assert!(done[0].segments > 0 && done[0].data_bytes < 2 << 20, "{done:?}");
    assert_eq!(fs.store().bring_back(&|| true).unwrap(), []);
}

fn explore_return(seed: u64, budget: u64) -> Result<u64, Failure> {
    let (world, expected) = left_behind(seed);
    bring_back(&world, seed).expect("nothing fails");
    let plan = Plan { seed, budget, only: None };
    explore(&world.trace(), &plan, |world, point| judge(world, &expected, seed + point.event))
}

#[test]
fn the_power_may_go_at_any_time_of_a_return() {
    let mut points = 0;
    for seed in 740..742 {
        points += explore_return(seed, POINTS)
            .unwrap_or_else(|failure| panic!("seed {seed}, point {}: {}", failure.point, failure.reason));
    }
    tell("cuts while a device came back", points);
}

#[test]
fn a_return_needs_all_of_its_steps() {
    let edge = Edge::ReturnComplete;
    let shows = without(edge, || (750..754).any(|seed| explore_return(seed, 60).is_err()));
    assert!(shows, "taken out, {edge:?} did not show");
}

/// Others write at every step of it.
#[test]
fn what_is_written_meanwhile_is_there_as_well() {
    for seed in 780..783 {
        let (world, _) = left_behind(seed);
        let fs = mount(world.devices(), &SeededRng::new(seed), OpenOptions::default()).unwrap();
        let calls = std::cell::Cell::new(0);
        let busy = || {
            calls.set(calls.get() + 1);
            if calls.get() < 100 {
                put(&fs, format!("meanwhile-{}", calls.get()).as_bytes(), seed + calls.get(), 20_000)
                    .unwrap();
            }
            if calls.get().is_multiple_of(5) {
                fs.store().checkpoint().unwrap();
            }
            true
        };
        fs.store().bring_back(&busy).unwrap();
        assert!(calls.get() > 10 && is_whole(&fs), "{} steps", calls.get());
        let expected = see(&fs).unwrap();
        drop(fs);
        judge(&world, &expected, seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// The other device fails while one comes back: nothing can be acknowledged any more, and nothing is lost.
#[test]
fn who_is_needed_fails_meanwhile() {
    let (world, expected) = left_behind(760);
    let rng = SeededRng::new(760);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).unwrap();
    let calls = std::cell::Cell::new(0);
    let outcome = fs.store().bring_back(&|| {
        calls.set(calls.get() + 1);
        if calls.get() == 3 {
            world.device(0).kill();
        }
        true
    });
    assert!(outcome.is_err());
    drop(fs);
    world.restart();
    judge(&world, &expected, 760).unwrap();
}

/// The one that comes back fails again: it stays out, and the other one goes on.
#[test]
fn who_comes_back_fails_again() {
    let (world, expected) = left_behind(770);
    let rng = SeededRng::new(770);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).unwrap();
    let calls = std::cell::Cell::new(0);
    let outcome = fs.store().bring_back(&|| {
        calls.set(calls.get() + 1);
        if calls.get() == 3 {
            world.device(1).kill();
        }
        true
    });
    assert!(outcome.is_err(), "{outcome:?}");
    compare(&fs, &expected).unwrap();
    assert_eq!(fs.store().pool().member_states(), [MemberState::In, MemberState::Out]);
    put(&fs, b"on", 5, 5000).unwrap();
    drop(fs);
    world.restart();
    let fs = mount(world.devices(), &rng, OpenOptions::default()).unwrap();
    fs.store().bring_back(&|| true).unwrap();
    let expected = see(&fs).unwrap();
    assert!(expected.0.contains_key(&b"/on"[..]) || expected.0.contains_key(&b"on"[..]));
    drop(fs);
    judge(&world, &expected, 770).unwrap();
}

/// The devices of a world without some of them.
pub(crate) fn without_some(world: &SimWorld, missing: &[usize]) -> Vec<Arc<dyn Device>> {
    let all = world.devices();
    (0..all.len()).filter(|n| !missing.contains(n)).map(|n| Arc::clone(&all[n]) as Arc<dyn Device>).collect()
}

const AWAY: [usize; 2] = [1, 4];

/// Six devices with an erasure code, of which two lack what was done since they were left out; and what should be seen.
fn two_left_behind(seed: u64) -> (SimWorld, Seen) {
    let history = History::run(&Shape { device_bytes: 32 << 20, ..crate::SIX_CODED }, seed);
    let world = SimWorld::from_images((0..6).map(|n| history.world.device(n).image()).collect());
    let fs =
        mount(without_some(&world, &AWAY), &SeededRng::new(seed), OpenOptions::default()).expect("enough");
    for n in 0..6 {
        put(&fs, format!("alone-{n}").as_bytes(), seed * 100 + n, [5000, 60_000, 700_000][n as usize % 3])
            .unwrap();
    }
    go_on(&fs).unwrap();
    fs.store().checkpoint().unwrap();
    put(&fs, b"alone-in-the-log", seed, 300_000).unwrap();
    let seen = see(&fs).unwrap();
    drop(fs);
    world.settle();
    (world, seen)
}

/// Once those two count as members any two others may go.
fn judge_two(world: &SimWorld, expected: &Seen, seed: u64) -> Result<(), String> {
    judge_without(world, expected, seed, &[&[0, 2], &[3, 5], &AWAY], OpenOptions::default())
}

#[test]
fn the_power_may_go_at_any_time_while_two_of_six_return() {
    let mut points = 0;
    for seed in 790..792 {
        let (world, expected) = two_left_behind(seed);
        bring_back(&world, seed).expect("nothing fails");
        let plan = Plan { seed, budget: POINTS / 3, only: None };
        let outcome =
            explore(&world.trace(), &plan, |world, point| judge_two(world, &expected, seed + point.event));
        points += outcome
            .unwrap_or_else(|failure| panic!("seed {seed}, point {}: {}", failure.point, failure.reason));
    }
    tell("cuts while two of six came back", points);
}
