//! Random operations on a filesystem and on a plain tree in memory must agree, errors included.
//!
//! A failure prints its seed and everything that was done; `AEGISFS_MODEL_SEED` in the environment runs
//! that seed alone, `AEGISFS_MODEL_SEEDS` that many of them.

mod bytes;
mod contents;
mod judge;
mod names;
mod player;
mod tree;

use player::Player;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds in an ordinary run.
const SEEDS: u64 = 200;
/// Operations of each.
const STEPS: u64 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn run(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut player = Player::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| player.run(STEPS)));
        if let Err(panic) = outcome {
            eprintln!("history of seed {seed}:\n{}", player.story());
            eprintln!("rerun with AEGISFS_MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn real_and_model_agree() {
    match number("AEGISFS_MODEL_SEED") {
        Some(seed) => run(seed..seed + 1),
        None => run(0..number("AEGISFS_MODEL_SEEDS").unwrap_or(SEEDS)),
    }
}
