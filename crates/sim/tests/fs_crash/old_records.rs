//! A record that outlived its predecessor must never be taken for the continuation of a later life.
//!
//! Two records go out with one flush, the power is cut, and only the second arrives. The next life begins where
//! the first record should stand, and writes another one there. If that one ends at the same sequence, position
//! and sequence of the old record fit, and what tells it apart is its incarnation and its predecessor's checksum.
//!
//! Each of the two covers the other, so one alone never shows: the checksum of a record covers its incarnation,
//! and what follows a record of another incarnation names another checksum. Incarnation alone matters where a
//! life ended before its first record, behind a record that could not be read or whose rows did not arrive;
//! there recovery has numbered what it sealed, or refuses.

use crate::history::{self, Namespace, Shape, mount, walk};
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::MemoryDevice;
use aegisfs_fs::{Fs, Kind, MakeOptions, ROOT, XattrMode};
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{Action, CrashPoint, PowerCutter, SimWorld};

const SEED: u64 = 900;
/// Only the last of the unflushed writes arrives.
const ONLY_THE_LAST: u64 = 2;
/// Changes that the next life makes, at most.
const CHANGES_MAX: u64 = 40;

fn make(fs: &Fs, name: String, kind: Kind<'_>) -> aegisfs_base::InodeId {
    fs.make(ROOT, name.as_bytes(), kind, &MakeOptions::default()).expect("room").id
}

/// A device on which the second of two records arrived, and the first did not.
fn only_the_second_arrived() -> MemoryDevice {
    let (world, rng) = history::format(&Shape::default(), SEED);
    let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
    fs.sync().expect("nothing fails");
    world.settle();
    for n in 0..5 {
        let id = make(&fs, format!("f{n}"), Kind::File);
        // Attributes lie in the record itself: four of these fill a piece of the log.
        let mut value = vec![0; 60 << 10];
        rng.fill(&mut value);
        fs.setxattr(id, b"user.long", &value, XattrMode::Any).expect("room");
    }
    fs.sync().expect("nothing fails");
    drop(fs);
    let trace = world.trace();
    let first_flush = trace.records().iter().position(|record| record.action == Action::Flush);
    let event = first_flush.expect("it was synced") as u64;
    assert_eq!(event, 2, "two records, then the flush");
    PowerCutter::new(&trace).cut(CrashPoint { event, subset: ONLY_THE_LAST }).device(0).image()
}

/// A life that makes so many changes, and what the one after it finds beside them.
fn next_life(image: &MemoryDevice, changes: u64) -> Result<(), String> {
    let world = SimWorld::from_images(vec![image.snapshot()]);
    let rng = SeededRng::new(SEED + changes);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    for n in 0..changes {
        make(&fs, format!("d{n}"), Kind::Directory);
    }
    fs.sync().map_err(|e| e.to_string())?;
    let expected: Namespace = walk(&fs).map_err(|e| e.to_string())?;
    drop(fs);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    let found = walk(&fs).map_err(|e| e.to_string())?;
    crate::oracle::sound(&fs)?;
    if found == expected { Ok(()) } else { Err(format!("{} names instead of {changes}", found.len())) }
}

/// The first number of changes after which an old record came back.
fn comes_back(image: &MemoryDevice) -> Option<String> {
    (1..=CHANGES_MAX).find_map(|n| next_life(image, n).err().map(|why| format!("after {n} changes: {why}")))
}

#[test]
fn an_old_record_never_continues_a_new_life() {
    let image = only_the_second_arrived();
    assert_eq!(comes_back(&image), None);
    for edge in [Edge::LogChain, Edge::LogIncarnation] {
        assert_eq!(without(edge, || comes_back(&image)), None, "{edge:?} alone is covered by the other");
    }
    let both = without(Edge::LogChain, || without(Edge::LogIncarnation, || comes_back(&image)));
    println!("LogChain and LogIncarnation: {}", both.expect("without both the old record comes back"));
}
