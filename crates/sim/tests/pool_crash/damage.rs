//! Bits rot in a populated database: one copy heals from the other, two rotten copies are an error.

use crate::stage::{self, Contents, SLOT_BYTES, create, growing_and_shrinking, open_with};
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::layout::DeviceLayout;
use aegisfs_format::map::MapOwner;
use aegisfs_pool::OpenOptions;
use aegisfs_sim::SimWorld;

const SEED: u64 = 51;
const BLOCK_BYTES: u64 = 4096;

/// What was closed in order before the damage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The engine, and then the pool.
    Engine,
    /// Only the pool: the engine's last root but one then misses the last commit.
    Pool,
    /// Nothing: as after a crash, though everything was flushed.
    Nothing,
}

/// A populated device, what it holds, and where the pieces of its database begin, by copy.
struct Populated {
    image: MemoryDevice,
    contents: Contents,
    copies: [Vec<u64>; 2],
}

fn populated(seed: u64, end: End) -> Populated {
    let (world, stage) = create(1, seed);
    let states = growing_and_shrinking(seed);
    let states = &states[..6];
    stage::commit_all(&world, &stage, states).expect("nothing fails");
    let layout = DeviceLayout::new(world.device(0).bytes(), SLOT_BYTES).expect("large enough");
    let mut copies = [Vec::new(), Vec::new()];
    let entries = stage.pool.mapped_slots();
    for entry in entries.iter().filter(|e| e.owner == MapOwner::Database(0)) {
        copies[usize::from(entry.copy)].push(layout.slot_offset(entry.slot));
    }
    match end {
        End::Engine => stage.close().expect("nothing fails"),
        // The engine goes as in a crash, but everything it promised is durable, so the pool may end in order.
        End::Pool => stage.pool.end_incarnation().expect("nothing fails"),
        End::Nothing => drop(stage),
    }
    Populated { image: world.device(0).image(), contents: states[5].clone(), copies }
}

impl Populated {
    /// Flips one bit in each of these copies' block and reads everything: how many pages were healed, or why
    /// nothing could be read. Wrong contents are what must not happen.
    fn read_with_flips(
        &self,
        copies: &[usize],
        block: u64,
        rng: &SeededRng,
    ) -> Result<Result<u64, String>, String> {
        let world = SimWorld::from_images(vec![self.image.snapshot()]);
        let device = world.device(0);
        let (piece, within) = (block / (SLOT_BYTES / BLOCK_BYTES), block % (SLOT_BYTES / BLOCK_BYTES));
        for copy in copies {
            let start = self.copies[*copy][piece as usize] + within * BLOCK_BYTES;
            device.flip(start + rng.below(BLOCK_BYTES), 1 << rng.below(8));
        }
        let stage = match open_with(world.devices(), OpenOptions::default(), 1) {
            Ok(stage) => stage,
            Err(error) => return Ok(Err(error)),
        };
        match stage.contents() {
            Ok(found) if found == self.contents => Ok(Ok(stage.database.healed())),
            Ok(_) => Err(format!("block {block} flipped in copies {copies:?}: wrong bytes were read")),
            Err(error) => Ok(Err(error)),
        }
    }

    fn blocks(&self) -> u64 {
        self.copies[0].len() as u64 * (SLOT_BYTES / BLOCK_BYTES)
    }
}

/// Flips bits all over one copy, then over both; says how many times each was healed, and how many failed.
pub(crate) fn explore_damage(seed: u64, end: End) -> Result<(u64, u64), String> {
    let populated = populated(seed, end);
    let rng = SeededRng::new(seed);
    let (mut healed, mut errors) = (0, 0);
    for block in 0..populated.blocks() {
        let copy = (block % 2) as usize;
        let outcome = populated.read_with_flips(&[copy], block, &rng)?;
        healed += outcome.map_err(|e| format!("block {block} of copy {copy}: {e}"))?;
        errors += u64::from(populated.read_with_flips(&[0, 1], block, &rng)?.is_err());
    }
    Ok((healed, errors))
}

#[test]
fn one_rotten_copy_heals_and_two_are_an_error() {
    for end in [End::Engine, End::Pool] {
        let (healed, errors) = explore_damage(SEED, end).unwrap();
        eprintln!("{end:?}: {healed} pages healed, {errors} double damages told");
        assert!(healed > 50 && errors > 50, "{healed} {errors}");
    }
}

#[test]
fn one_rotten_copy_heals_after_a_crash_too() {
    let populated = populated(SEED, End::Nothing);
    let rng = SeededRng::new(SEED);
    for block in 0..populated.blocks() {
        let outcome = populated.read_with_flips(&[(block % 2) as usize], block, &rng).unwrap();
        outcome.unwrap_or_else(|e| panic!("block {block}: {e}"));
    }
}

#[test]
fn a_healed_page_stays_healed() {
    let populated = populated(SEED, End::Engine);
    let world = SimWorld::from_images(vec![populated.image.snapshot()]);
    let device = world.device(0);
    for start in &populated.copies[0] {
        for block in 3..SLOT_BYTES / BLOCK_BYTES {
            device.flip(start + block * BLOCK_BYTES + 99, 4);
        }
    }
    let stage = open_with(world.devices(), OpenOptions::default(), 1).unwrap();
    assert_eq!(stage.contents().unwrap(), populated.contents);
    let healed = stage.database.healed();
    assert!(healed > 50, "{healed}");
    drop(stage);
    let stage = open_with(world.devices(), OpenOptions::default(), 2).unwrap();
    assert_eq!(stage.contents().unwrap(), populated.contents);
    assert!(
        stage.database.healed() < healed / 4,
        "{} of {healed} were healed again",
        stage.database.healed()
    );
}
