//! Branches, versions and reference counts against a naive model in which every snapshot is a full copy.
//!
//! A failure prints its seed and the shortest history found that still fails. `AEGISFS_MODEL_SEED` chooses
//! the first seed, `AEGISFS_MODEL_HISTORIES` how many histories are tried.

#[path = "versions_model/cases.rs"]
mod cases;
#[path = "versions_model/cost.rs"]
mod cost;
#[path = "versions_model/judge.rs"]
mod judge;
#[path = "versions_model/plain.rs"]
mod plain;
#[path = "versions_model/world.rs"]
mod world;

use aegisfs_base::{Rng, SeededRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Act, Step, World};

/// Histories tried unless asked otherwise.
const HISTORIES: u64 = 200;
/// Writes between two looks at everything; whatever changes history is looked at at once.
const WRITES_PER_LOOK: usize = 6;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Plays a history to its end; on a failure says at which step.
fn play(world: &mut World, steps: &[Step], seed: u64) -> Result<(), String> {
    let mut writes = 0;
    for (number, step) in steps.iter().enumerate() {
        let at = |error| format!("step {number}, {step:?}: {error}");
        world.step(*step).map_err(at)?;
        writes += 1;
        if !matches!(step.act, Act::Write | Act::StaleChunk) || writes == WRITES_PER_LOOK {
            writes = 0;
            world.judge().map_err(at)?;
        }
    }
    world.judge()?;
    let rng = SeededRng::new(seed);
    let open: Vec<_> = world.history.open.keys().copied().collect();
    world.clear_but(&rng, open[rng.below(open.len() as u64) as usize])
}

fn outcome(steps: &[Step], seed: u64) -> Result<(), String> {
    let played = catch_unwind(AssertUnwindSafe(|| play(&mut World::new(false), steps, seed)));
    played.unwrap_or_else(|_| Err("panicked".into()))
}

/// Leaves out what can be left out, in ever smaller pieces.
fn shrunk(mut steps: Vec<Step>, seed: u64) -> Vec<Step> {
    let mut piece = steps.len() / 2;
    while piece > 0 {
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + piece).min(steps.len()));
            if outcome(&fewer, seed).is_err() {
                steps = fewer;
            } else {
                start += piece;
            }
        }
        piece /= 2;
    }
    steps
}

fn fail(steps: Vec<Step>, seed: u64) -> ! {
    let steps = shrunk(steps, seed);
    let mut world = World::new(true);
    let played = catch_unwind(AssertUnwindSafe(|| play(&mut world, &steps, seed)));
    let log = world.log.unwrap_or_default();
    panic!("seed {seed}, {} steps:\n{log}{played:?}", steps.len());
}

#[test]
fn every_view_reads_what_was_written_and_nothing_is_left_over() {
    let first = from_environment("AEGISFS_MODEL_SEED", 1);
    let mut done = [0; 8];
    let mut repointed = 0;
    for seed in first..first + from_environment("AEGISFS_MODEL_HISTORIES", HISTORIES) {
        let rng = SeededRng::new(seed);
        let steps: Vec<_> = (0..100 + rng.below(100)).map(|_| Step::random(&rng)).collect();
        let mut world = World::new(false);
        let played = catch_unwind(AssertUnwindSafe(|| play(&mut world, &steps, seed)));
        if !matches!(played, Ok(Ok(()))) {
            fail(steps, seed);
        }
        done.iter_mut().zip(world.done).for_each(|(sum, count)| *sum += count);
        repointed += world.repointed;
    }
    assert!(done.iter().all(|count| *count > 0) && repointed > 0, "{done:?}, {repointed} repointed");
}
