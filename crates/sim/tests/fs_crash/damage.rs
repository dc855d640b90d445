//! Bits that flipped while nobody looked: what is read is right or an error, and never anything else.

use crate::history::{self, History, Namespace, Shape, mount, read_all, store_options, walk};
use crate::oracle::sound;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng, SegmentId};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::key::{self, Table};
use aegisfs_format::layout::{DeviceLayout, HEADER_AREA_BYTES};
use aegisfs_format::map::MapOwner;
use aegisfs_format::value::Segment;
use aegisfs_fs::{Fs, FsOptions, Kind, MakeOptions, ROOT};
use aegisfs_pool::{OpenOptions, Pool};
use aegisfs_sim::SimWorld;
use aegisfs_store::{Problem, Seen, Tables, open};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A filesystem that was closed in order, and what it holds.
struct Populated {
    images: Vec<MemoryDevice>,
    names: Namespace,
    contents: BTreeMap<InodeId, Vec<u8>>,
}

impl Populated {
    fn new(devices: usize, seed: u64) -> Self {
        Self::of(&Shape { devices, operations: 50, ..Shape::default() }, seed)
    }

    fn of(shape: &Shape, seed: u64) -> Self {
        let history = History::run(shape, seed);
        let (world, rng) = history::format(shape, seed);
        History::play_in(&world, &rng, shape).expect("nothing fails");
        let names = history.names.last().expect("there is the first").clone();
        let newest = |versions: &Vec<(u64, Vec<u8>)>| versions.last().expect("made once").1.clone();
        let contents = history.contents.iter().map(|(id, versions)| (*id, newest(versions))).collect();
        Self { images: (0..shape.devices).map(|n| world.device(n).image()).collect(), names, contents }
    }

    fn world(&self) -> SimWorld {
        SimWorld::from_images(self.images.iter().map(MemoryDevice::snapshot).collect())
    }

    /// Reads everything; how many things could not be read. Wrong answers are told.
    fn read(&self, fs: &Fs) -> Result<u64, String> {
        let Ok(names) = walk(fs) else { return Ok(1) };
        if names != self.names {
            return Err("names or attributes read wrong".into());
        }
        let mut errors = 0;
        for entry in names.values().filter(|entry| entry.mode & 0o170_000 == 0o100_000) {
            match read_all(fs, entry.inode) {
                Ok(found) if found == self.contents[&entry.inode] => {}
                Ok(found) => {
                    let right = &self.contents[&entry.inode];
                    let at = found.iter().zip(right).position(|(a, b)| a != b);
                    let sizes = (found.len(), right.len());
                    return Err(format!("inode {} reads wrong from {at:?}, lengths {sizes:?}", entry.inode));
                }
                Err(error) if error.errno().0 == 5 => errors += 1,
                Err(error) => return Err(format!("inode {}: {error}, which is no EIO", entry.inode)),
            }
        }
        Ok(errors)
    }
}

pub(crate) fn used_blocks(device: &dyn Device) -> Vec<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    (0..device.bytes() / BLOCK)
        .map(|n| n * BLOCK)
        .filter(|at| {
            device.read_at(*at, &mut block).expect("within the device");
            block.iter().any(|byte| *byte != 0)
        })
        .collect()
}

/// What became of a flipped bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    unharmed: u64,
    refused: u64,
    errors: u64,
}

/// One bit of one block; what can be read then.
fn flip_and_read(populated: &Populated, at: u64, rng: &SeededRng, tally: &mut Tally) -> Result<(), String> {
    let world = populated.world();
    world.device(0).flip(at + rng.below(BLOCK), 1 << rng.below(8));
    let Ok(fs) = mount(world.devices(), rng, OpenOptions::default()) else {
        tally.refused += 1;
        return Ok(());
    };
    let errors = populated.read(&fs)?;
    tally.errors += u64::from(errors > 0);
    tally.unharmed += u64::from(errors == 0);
    if errors > 0 && sound(&fs).is_ok() {
        return Err("what cannot be read is not found by a check".into());
    }
    Ok(())
}

/// Flipped bits in an ordinary run; `AEGISFS_SIM_FLIPS` in the environment replaces it.
const FLIPS: usize = 300;

fn flips() -> usize {
    let told = std::env::var("AEGISFS_SIM_FLIPS").ok();
    told.map_or(FLIPS, |text| text.parse().expect("AEGISFS_SIM_FLIPS is a number"))
}

/// What a block of the first device is there for.
fn area(fs: &Fs, at: u64) -> &'static str {
    let pool = fs.store().pool();
    let bytes = pool.superblock().devices[0].bytes;
    if at < HEADER_AREA_BYTES || at >= bytes - HEADER_AREA_BYTES {
        return "headers";
    }
    let slot = (at - HEADER_AREA_BYTES) / pool.slot_bytes();
    let mapped = pool.mapped_slots().into_iter();
    let owner = mapped.filter(|entry| entry.device.0 == 0).find(|entry| u64::from(entry.slot.0) == slot);
    match owner.map(|entry| entry.owner) {
        Some(MapOwner::Log) => "log",
        Some(MapOwner::Database(0)) => "metadata",
        Some(MapOwner::Database(_)) => "dedup index",
        None => "segments",
    }
}

#[test]
fn a_flipped_bit_is_never_read() {
    let populated = Populated::of(&Shape { operations: 50, large: true, ..Shape::default() }, 800);
    let rng = SeededRng::new(800);
    let whole = mount(populated.world().devices(), &rng, OpenOptions::default()).expect("nothing is damaged");
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let blocks = used_blocks(&populated.images[0]);
    let flips = flips();
    for n in 0..flips {
        // All over the device, be they fewer than the blocks or more.
        let at = blocks[n * blocks.len() / flips];
        let tally = tallies.entry(area(&whole, at)).or_default();
        let outcome = catch_unwind(AssertUnwindSafe(|| flip_and_read(&populated, at, &rng, tally)));
        outcome
            .unwrap_or_else(|_| Err("a panic".into()))
            .unwrap_or_else(|why| panic!("block at {at}: {why}"));
    }
    println!("{flips} flipped bits in {} blocks: {tallies:#?}", blocks.len());
    let sum = |part: fn(&Tally) -> u64| tallies.values().map(part).sum::<u64>();
    let (refused, errors, unharmed) = (sum(|t| t.refused), sum(|t| t.errors), sum(|t| t.unharmed));
    println!("{refused} refused, {errors} read as errors and named by a check, {unharmed} did no harm");
    assert_eq!(refused + errors + unharmed, flips as u64);
    assert!(errors > 0 && unharmed > 0);
}

/// What a walk through all segments finds.
#[derive(Default)]
struct Walked {
    /// Chunks in use, by shard.
    used: [u64; 2],
    damaged: u64,
    /// Cells with chunks in use: device, where they begin on it, and their bytes without padding.
    cells: Vec<(usize, u64, u64)>,
}

fn walk_segments(fs: &Fs) -> Walked {
    let store = fs.store();
    let mut segments = Vec::new();
    let listed = store.each_segment(&mut |id, segment| {
        segments.push((id, segment));
        ControlFlow::Continue(())
    });
    listed.expect("readable");
    let mut walked = Walked::default();
    for (id, segment) in segments {
        let (mut shard, mut device, mut start) = (0, 0, 0);
        let outcome = store.walk_segment(id, &segment, &mut |seen| {
            walked.damaged += u64::from(seen.is_damage());
            match seen {
                Seen::Shard(found) => {
                    (shard, device) = (usize::from(found.number), usize::from(found.place.0.0));
                    start = HEADER_AREA_BYTES + u64::from(found.place.1.0) * store.pool().slot_bytes();
                }
                Seen::Cell(cell) => {
                    let used = cell.chunks.iter().filter(|chunk| chunk.references > 0).count() as u64;
                    walked.used[shard] += used;
                    let bytes = u64::from(cell.payload_start + cell.payload_bytes);
                    if used > 0 {
                        walked.cells.push((device, start + u64::from(cell.slot_offset), bytes));
                    }
                }
                Seen::Gap(_) | Seen::Missing { .. } => {}
            }
            ControlFlow::Continue(())
        });
        outcome.expect("readable");
    }
    walked
}

#[test]
fn a_walk_through_the_segments_names_every_bit_that_flipped_in_a_cell() {
    let populated = Populated::new(2, 811);
    let rng = SeededRng::new(811);
    let world = populated.world();
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("nothing is damaged");
    let chunks = fs.store().check(false).expect("readable").chunks;
    let whole = walk_segments(&fs);
    assert_eq!((whole.used, whole.damaged), ([chunks; 2], 0));
    assert!(whole.cells.len() > 4);
    for (device, start, bytes) in whole.cells.iter().flat_map(|cell| [*cell; 3]) {
        // Every third one in the header or the directory.
        let at = start + rng.below(if rng.below(3) == 0 { bytes.min(328) } else { bytes });
        let mask = 1 << rng.below(8);
        world.device(device).flip(at, mask);
        let place = format!("device {device}, cell at {start}, byte at {at}");
        assert!(walk_segments(&fs).damaged > 0, "{place}: not a word");
        let problems = fs.store().check(true).expect("readable").problems;
        assert!(!problems.is_empty(), "{place}: not a word of a check");
        for problem in problems {
            match problem {
                Problem::DamagedRow { device: found, .. }
                | Problem::DamagedChunk { device: found, healable: true, .. } => {
                    assert_eq!(usize::from(found), device, "{place}");
                }
                other => panic!("{place}: {other}"),
            }
        }
        world.device(device).flip(at, mask);
    }
    println!("{} chunks in {} cells on two devices", chunks, whole.cells.len());
}

/// One bit of one block of a mirror; how many bad copies of chunks are left when everything was read.
fn flip_and_heal(populated: &Populated, device: usize, at: u64, rng: &SeededRng) -> Result<u64, String> {
    let world = populated.world();
    world.device(device).flip(at + rng.below(BLOCK), 1 << rng.below(8));
    let fs = mount(world.devices(), rng, OpenOptions::default())?;
    if populated.read(&fs)? != 0 {
        return Err("something could not be read".into());
    }
    let mut left = 0;
    for problem in fs.store().check(true).map_err(|e| e.to_string())?.problems {
        // Reading looks at the second copy of data only where the first is bad; a check looks at both.
        match &problem {
            Problem::DamagedChunk { segment, device, healable: true, .. }
                if *device != first_copy(&fs, *segment) =>
            {
                left += 1;
            }
            // Reading needs no headers.
            Problem::DamagedRow { .. } => left += 1,
            _ => return Err(problem.to_string()),
        }
    }
    if left > 0 && world.device(device).flipped() == 0 {
        return Err("what was written anew is still bad".into());
    }
    Ok(left)
}

#[test]
fn a_mirror_heals_whatever_bit_flipped() {
    let populated = Populated::new(2, 801);
    let rng = SeededRng::new(801);
    let (mut healed, mut unread) = (0, 0);
    for device in 0..2 {
        for at in used_blocks(&populated.images[device]) {
            match flip_and_heal(&populated, device, at, &rng) {
                Ok(0) => healed += 1,
                Ok(_) => unread += 1,
                Err(why) => panic!("device {device}, block at {at}: {why}"),
            }
        }
    }
    println!("in {healed} blocks nothing bad was left, {unread} were second copies and not read");
    assert!(healed > unread && unread > 0);
}

/// Bits that flip all over any two of six devices: everything reads right, and a scrub leaves nothing bad.
fn flip_on_two(populated: &Populated, rng: &SeededRng) -> Result<u64, String> {
    let world = populated.world();
    let first = rng.below(6) as usize;
    let second = (first + 1 + rng.below(5) as usize) % 6;
    for device in [first, second] {
        let blocks = used_blocks(&populated.images[device]);
        for _ in 0..blocks.len() / 10 {
            let block = blocks[rng.below(blocks.len() as u64) as usize];
            world.device(device).flip(block + rng.below(BLOCK), 1 << rng.below(8));
        }
    }
    let fs = mount(world.devices(), rng, OpenOptions::default())?;
    if populated.read(&fs)? != 0 {
        return Err("something could not be read".into());
    }
    let mut damaged = 0;
    for again in [false, true] {
        fs.store().start_scrub(true).map_err(|e| e.to_string())?;
        fs.store().scrub(&|| true).map_err(|e| e.to_string())?;
        let counts = fs.store().scrub_status().map_err(|e| e.to_string())?.expect("it was started").counts;
        if counts.lost > 0 || counts.damaged != counts.repaired || again && counts.damaged > 0 {
            return Err(format!("{counts:?}"));
        }
        damaged += counts.damaged;
    }
    sound(&fs).map(|()| damaged)
}

#[test]
fn six_coded_devices_heal_whatever_flipped_on_two() {
    let populated = Populated::of(&crate::SIX_CODED, 803);
    let rng = SeededRng::new(803);
    let tries = flips() / 10;
    let mended =
        (0..tries).map(|n| flip_on_two(&populated, &rng).unwrap_or_else(|why| panic!("try {n}: {why}")));
    println!("{} were mended by scrubs after {tries} times", mended.sum::<u64>());
}

/// Which device holds the first copy of a segment.
fn first_copy(fs: &Fs, segment: SegmentId) -> u16 {
    let stored = fs.store().view().get(Table::Segments, &key::segment(segment)).expect("readable");
    Segment::decode(&stored.expect("it holds chunks")).expect("a segment").placements[0].0.0
}

/// Files that were made and synced one by one, the power cut behind the last; and where the log is.
fn synced_files(devices: usize) -> (SimWorld, Vec<u64>) {
    let shape = Shape { devices, ..Shape::default() };
    let (world, rng) = history::format(&shape, 802);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
    for n in 0..FILES {
        let made = fs.make(ROOT, &[b'a' + n], Kind::File, &MakeOptions::default()).expect("room");
        let handle = fs.open(made.id).expect("it is there");
        fs.write(handle, 0, &content(n)).expect("room");
        fs.fsync(handle).expect("it syncs");
    }
    let layout = DeviceLayout::new(shape.device_bytes, fs.store().pool().slot_bytes()).expect("large enough");
    let log = fs.store().pool().mapped_slots().into_iter();
    let log = log.filter(|entry| entry.owner == MapOwner::Log && entry.device.0 == 0);
    let mut places = Vec::new();
    for slot in log.map(|entry| layout.slot_offset(entry.slot)) {
        places.extend(
            used_blocks(&world.device(0).image())
                .into_iter()
                .filter(|at| (slot + BLOCK..slot + layout.slot_bytes).contains(at)),
        );
    }
    drop(fs);
    (world, places)
}

const FILES: u8 = 12;

fn content(n: u8) -> Vec<u8> {
    vec![n + 1; 300 + 900 * usize::from(n)]
}

/// Files whose content is right; wrong ones are told. The last was synced last: no later record says so.
fn files_found(fs: &Fs) -> Result<usize, String> {
    let mut found = 0;
    for n in 0..FILES {
        let Ok(entry) = fs.peek(ROOT, &[b'a' + n]) else { continue };
        let read = read_all(fs, entry.id).map_err(|e| e.to_string())?;
        if read != content(n) {
            return Err(format!("file {n} has {} bytes and reads wrong", read.len()));
        }
        found += 1;
    }
    Ok(found)
}

/// Opens a world with a flipped bit in its log; the files found, and why it is read-only, if so.
fn open_damaged(world: &SimWorld, at: u64, rng: &SeededRng) -> Result<(usize, Option<String>), String> {
    let images = (0..world.devices().len()).map(|n| world.device(n).image()).collect();
    let world = SimWorld::from_images(images);
    world.device(0).flip(at + rng.below(BLOCK), 1 << rng.below(8));
    let (pool, _) = Pool::open(world.devices(), OpenOptions::default()).map_err(|e| e.to_string())?;
    let clock = Arc::new(ManualClock::default());
    let (store, recovered) = open(pool, &store_options(), clock, rng).map_err(|e| e.to_string())?;
    let options = FsOptions { background: false, ..FsOptions::default() };
    let fs = Fs::mount(Arc::new(store), options).map_err(|e| e.to_string())?;
    let refused = fs.make(ROOT, b"new", Kind::File, &MakeOptions::default()).is_err();
    if refused != recovered.read_only.is_some() {
        return Err(format!("writing is refused: {refused}, but it says {:?}", recovered.read_only));
    }
    Ok((files_found(&fs)?, recovered.read_only))
}

#[test]
fn damage_in_the_log_is_told_and_not_taken_for_its_end() {
    let (world, places) = synced_files(1);
    let rng = SeededRng::new(803);
    let (mut told, mut whole) = (0, 0);
    for at in places.iter().flat_map(|at| [*at; 3]) {
        match open_damaged(&world, at, &rng).unwrap_or_else(|why| panic!("block at {at}: {why}")) {
            (_, Some(reason)) => {
                assert!(reason.contains("the intent log is damaged"), "{reason}");
                told += 1;
            }
            (found, None) => {
                assert!(found + 1 >= usize::from(FILES), "block at {at}: only {found} files, and not a word");
                whole += 1;
            }
        }
    }
    println!("{} blocks of the log: {told} times told, {whole} times nothing was missing", places.len());
    assert!(told > 20);
}

#[test]
fn a_damaged_log_record_is_read_from_its_mirror() {
    let (world, places) = synced_files(2);
    let rng = SeededRng::new(804);
    for at in places.iter().flat_map(|at| [*at; 2]) {
        let outcome = open_damaged(&world, at, &rng).unwrap_or_else(|why| panic!("block at {at}: {why}"));
        assert_eq!(outcome, (usize::from(FILES), None), "block at {at}");
    }
    assert!(places.len() > 20);
}

#[test]
fn without_verification_wrong_bytes_are_read() {
    let populated = Populated::new(1, 800);
    let rng = SeededRng::new(805);
    let wrong = used_blocks(&populated.images[0]).into_iter().flat_map(|at| [at; 8]).find_map(|at| {
        without(Edge::ChunkVerify, || flip_and_read(&populated, at, &rng, &mut Tally::default()))
            .err()
            .map(|why| format!("block at {at}: {why}"))
    });
    println!("ChunkVerify: {}", wrong.expect("a hash that is not tested lets wrong bytes pass"));
}

#[test]
fn damage_taken_for_the_end_of_the_log_loses_what_was_synced() {
    let (world, places) = synced_files(1);
    let rng = SeededRng::new(806);
    let lost = places.into_iter().flat_map(|at| [at; 3]).find_map(|at| {
        match without(Edge::LogDamageIsNotTail, || open_damaged(&world, at, &rng)) {
            Ok((found, None)) if found + 1 >= usize::from(FILES) => None,
            other => Some(format!("block at {at}: {other:?}")),
        }
    });
    println!("LogDamageIsNotTail: {}", lost.expect("synced files go without a word"));
}
