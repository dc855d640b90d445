//! Pools with an erasure code: what may be missing or rotten, and what fits.

use super::scrubbing::{rot, scrub};
use super::{noise, options, read, write};
use aegisfs_base::sabotage::{self, Edge};
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{AlignedBuffer, Device, MemoryDevice};
use aegisfs_pool::{CreateOptions, MemberState, OpenOptions, Pool, Redundancy};
use aegisfs_store::{Depth, Store, StoreError, create, open};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

type Devices = Vec<Arc<MemoryDevice>>;
type Contents = Vec<(InodeId, Vec<u8>)>;

const SLOT_BYTES: usize = 1 << 20;
const FOUR_AND_TWO: Redundancy = Redundancy { shards_data: 4, shards_parity: 2 };

fn format(mib: &[u64], redundancy: Redundancy, rng: &dyn Rng) -> Devices {
    let names = ["a", "b", "c", "d", "e", "f"];
    let devices: Devices =
        mib.iter().zip(names).map(|(mib, name)| Arc::new(MemoryDevice::new(name, mib << 20))).collect();
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let create_options = CreateOptions {
        redundancy: Some(redundancy),
        slot_bytes: Some(SLOT_BYTES as u64),
        log_pieces: Some(4),
        ..CreateOptions::default()
    };
    let pool = Pool::create(all, &create_options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    devices
}

fn mount(devices: &[Arc<MemoryDevice>], rng: &dyn Rng) -> Store {
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let (pool, _) = Pool::open(all, OpenOptions::default()).unwrap();
    open(pool, &options(), Arc::new(ManualClock::default()), rng).unwrap().0
}

/// Files of a few bytes to a few megabytes, some of them alike.
fn fill(store: &Store, first: u64, rng: &dyn Rng) -> Contents {
    let sizes = [700, 5000, 70_000, 300_000, 3_000_000, 9_000_000];
    let contents: Contents =
        (first..).map(InodeId).zip(sizes).map(|(id, size)| (id, noise(rng, size))).collect();
    for (id, data) in &contents {
        write(store, *id, data).unwrap();
    }
    store.sync().unwrap();
    contents
}

fn assert_holds(store: &Store, contents: &Contents) {
    for (id, data) in contents {
        assert!(read(store, *id) == *data, "inode {id} reads wrong");
    }
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// Which geometries the segments have.
fn geometries(store: &Store) -> BTreeSet<(u8, u8)> {
    let mut found = BTreeSet::new();
    let mut note = |_, segment: aegisfs_format::value::Segment| {
        found.insert(segment.shards);
        ControlFlow::Continue(())
    };
    store.each_segment(&mut note).unwrap();
    found
}

/// All but some of the devices.
fn without(devices: &Devices, missing: &[usize]) -> Devices {
    let is_there = |n: &usize| !missing.contains(n);
    (0..devices.len()).filter(is_there).map(|n| Arc::clone(&devices[n])).collect()
}

#[test]
fn any_two_of_six_may_be_missing() {
    let rng = SeededRng::new(81);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, 10, &rng);
    assert_eq!(geometries(&store), BTreeSet::from([(1, 2), (4, 2)]), "the small are copied, the large coded");
    assert_holds(&store, &contents);
    store.close().unwrap();
    drop(store);
    for one in 0..6 {
        for other in 0..one {
            // What is written to it meanwhile goes to copies of these.
            let copies: Devices = devices.iter().map(|device| Arc::new(device.snapshot())).collect();
            let store = mount(&without(&copies, &[one, other]), &rng);
            assert_holds(&store, &contents);
            let later = fill(&store, 30, &rng);
            assert_holds(&store, &later);
            assert!(geometries(&store).contains(&(2, 2)), "full parity with fewer data");
            store.close().unwrap();
            drop(store);
            // They come back, others go.
            let store = mount(&copies, &rng);
            assert_eq!(store.bring_back(&|| true).unwrap().len(), 2);
            assert!(store.pool().member_states().iter().all(|state| *state == MemberState::In));
            store.close().unwrap();
            drop(store);
            let gone = [(one + 1) % 6, (other + 2) % 6];
            let store = mount(&without(&copies, &gone), &rng);
            assert_holds(&store, &contents);
            assert_holds(&store, &later);
        }
    }
}

#[test]
fn what_rotted_on_two_of_six_is_read_right_and_mended() {
    let rng = SeededRng::new(82);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, 10, &rng);
    store.close().unwrap();
    drop(store);
    for rotten in [1, 4] {
        rot(&devices[rotten], 10, &rng);
    }
    let store = mount(&devices, &rng);
    for (id, data) in &contents {
        assert!(read(&store, *id) == *data, "inode {id} reads wrong");
    }
    let first = scrub(&store, true).counts;
    assert!(first.damaged > 10 && first.damaged == first.repaired && first.lost == 0, "{first:?}");
    let second = scrub(&store, true).counts;
    assert_eq!((second.damaged, second.lost), (0, 0), "{second:?}");
    store.close().unwrap();
    drop(store);
    // Those that had rotted are needed now.
    assert_holds(&mount(&without(&devices, &[0, 2]), &rng), &contents);
}

/// Three of six are more than the code carries: what cannot be read says so, and nothing reads wrong.
#[test]
fn what_is_lost_is_told_and_the_rest_is_there() {
    let rng = SeededRng::new(83);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, 10, &rng);
    let mut slots = Vec::new();
    store
        .each_segment(&mut |_, segment| {
            if segment.shards.0 == 4 {
                slots.extend(segment.placements[1..4].to_vec());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let zeros = AlignedBuffer::zeroed(SLOT_BYTES - 4096);
    for slot in slots {
        store.pool().write_slot(slot, 4096, &zeros).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    let (mut whole, mut lost) = (0, 0);
    for (id, data) in &contents {
        match super::try_read(&store, *id) {
            Ok(found) => {
                assert!(found == *data, "inode {id} reads wrong");
                whole += 1;
            }
            Err(StoreError::Damaged { .. }) => lost += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(whole > 0 && lost > 0, "{whole} are whole, {lost} are lost");
    assert_ne!(store.check(true).unwrap().problems, []);
}

/// The geometry allows what it allows, whatever the sizes; and what is full can be emptied and filled again.
#[test]
fn devices_of_mixed_sizes_are_filled() {
    let rng = SeededRng::new(84);
    for redundancy in
        [Redundancy { shards_data: 1, shards_parity: 1 }, Redundancy { shards_data: 3, shards_parity: 2 }]
    {
        let devices = format(&[256, 128, 128, 64, 64, 64], redundancy, &rng);
        let store = mount(&devices, &rng);
        let (total, free) = store.capacity();
        assert!(free * 100 >= total * 99, "{free} of {total}");
        let mut stored = Contents::new();
        let mut bytes = 0;
        let mut sizes = vec![200_000, 3 << 20];
        for id in (10..).map(InodeId) {
            let Some(size) = sizes.last() else { break };
            let Ok(_room) = store.reserve(*size, 0, aegisfs_base::PolicyId(0)) else {
                sizes.pop();
                continue;
            };
            let data = noise(&rng, *size as usize);
            bytes += data.len() as u64;
            write(&store, id, &data).unwrap();
            stored.push((id, data));
        }
        assert!(bytes * 100 >= free * 95, "{bytes} of {free} fit with {redundancy:?}");
        assert_holds(&store, &stored);
        store.close().unwrap();
        drop(store);
        let smallest = without(&devices, &[5]);
        assert_holds(&mount(&smallest, &rng), &stored);
    }
}

/// What is too little for a wide row is copied, and coded when it is moved.
#[test]
fn cleaning_turns_copies_into_code() {
    let rng = SeededRng::new(85);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents: Contents = (10..80).map(|id| (InodeId(id), noise(&rng, 60_000))).collect();
    for (id, data) in &contents {
        write(&store, *id, data).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    assert_eq!(geometries(&store), BTreeSet::from([(1, 2)]));
    let before = store.capacity().1;
    let done = store.clean(u64::MAX).unwrap();
    assert!(done.segments > 0, "{done:?}");
    assert!(geometries(&store).contains(&(4, 2)), "{:?}", geometries(&store));
    assert_holds(&store, &contents);
    assert!(store.capacity().1 * 101 >= before * 100, "{} of {before} are free", store.capacity().1);
}

/// With devices missing new rows have fewer cells of data. That is no reason to clean them: there is nothing to be had.
#[test]
fn a_cleaner_comes_to_rest_with_devices_missing() {
    let rng = SeededRng::new(86);
    for (redundancy, missing) in
        [(FOUR_AND_TWO, &[0, 3][..]), (Redundancy { shards_data: 2, shards_parity: 1 }, &[1])]
    {
        let count = usize::from(redundancy.shards_data + redundancy.shards_parity);
        let devices = format(&vec![64; count], redundancy, &rng);
        drop(mount(&devices, &rng));
        let store = mount(&without(&devices, missing), &rng);
        let mut contents = fill(&store, 10, &rng);
        contents.extend(fill(&store, 30, &rng));
        store.close().unwrap();
        drop(store);
        let store = mount(&without(&devices, missing), &rng);
        // What is too little for a wide row is brought together, and then it is good.
        for _ in 0..4 {
            store.clean(u64::MAX).unwrap();
        }
        let (candidates, dead) = store.cleaning_candidates().unwrap();
        let done = store.clean(u64::MAX).unwrap();
        assert_eq!(
            (candidates.len(), dead, done.segments),
            (0, 0, 0),
            "{redundancy:?}: {candidates:?} {done:?}"
        );
        assert_holds(&store, &contents);
    }
}

/// What is bad in more cells than the code carries, though not at the same place of them, is read, and stored anew.
#[test]
fn a_scrub_mends_what_is_bad_here_and_there_in_many_cells() {
    let rng = SeededRng::new(87);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, 10, &rng);
    store.close().unwrap();
    // Data alone: with bad blocks in each of its three copies metadata could not be whole.
    let mut slots = Vec::new();
    let mut note = |_, segment: aegisfs_format::value::Segment| {
        if segment.shards.0 == 4 {
            slots.extend(segment.placements[..3].to_vec());
        }
        ControlFlow::Continue(())
    };
    store.each_segment(&mut note).unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    let mut block = AlignedBuffer::zeroed(4096);
    for (n, slot) in slots.iter().enumerate() {
        rng.fill(&mut block);
        store.pool().write_slot(*slot, 4096 * (40 + 60 * (n as u64 % 3)), &block).unwrap();
    }
    let first = scrub(&store, true).counts;
    assert_eq!(first.lost, 0, "{first:?}");
    store.checkpoint().unwrap();
    let second = scrub(&store, true).counts;
    assert_eq!((second.damaged, second.lost), (0, 0), "{second:?}");
    assert_holds(&store, &contents);
}

/// Every cell verifies by itself, and yet the parity is not that of the data.
#[test]
fn a_check_compares_parity_with_the_data_that_it_is_of() {
    let rng = SeededRng::new(89);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    fill(&store, 10, &rng);
    store.close().unwrap();
    drop(store);
    let store = mount(&devices, &rng);
    assert_eq!(store.check(true).unwrap().problems, []);
    sabotage::without(Edge::ParityMade, || {
        fill(&store, 100, &rng);
        store.close().unwrap();
    });
    let problems = store.check(true).unwrap().problems;
    assert!(
        !problems.is_empty() && problems.iter().all(|problem| problem.to_string().contains("parity")),
        "{problems:?}"
    );
    assert_eq!(store.check(false).unwrap().problems, []);
}

/// What was on its way in a crash, and nobody was told of, is no damage, whatever of it has arrived.
#[test]
fn a_row_that_was_on_its_way_in_a_crash_is_no_damage() {
    let rng = SeededRng::new(91);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    fill(&store, 10, &rng);
    let data = noise(&rng, 400_000);
    let pieces = [aegisfs_store::Piece::new(0, 0, &data)];
    // Without parity, and without anybody who refers to it.
    sabotage::without(Edge::ParityMade, || {
        drop(store.ingest(1, &pieces, aegisfs_base::PolicyId(0), true).unwrap());
    });
    fill(&store, 100, &rng);
    drop(store);
    let store = mount(&devices, &rng);
    assert_eq!(store.check(true).unwrap().problems, []);
    store.close().unwrap();
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// Headers and directories tell what is there; what they tell of is not read.
#[test]
fn a_shallow_check_finds_what_is_gone_and_reads_little() {
    let rng = SeededRng::new(90);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    fill(&store, 10, &rng);
    store.close().unwrap();
    let shallow = || store.check_and_tell(Depth::Directories, &mut |_, _| {}).unwrap();
    let read = || store.pool().device_reports().iter().map(|report| report.counts.read_bytes).sum::<u64>();
    let before = read();
    assert_eq!(shallow().problems, []);
    let light = read() - before;
    assert_eq!(store.check(true).unwrap().problems, []);
    let deep = read() - before - light;
    assert!(light * 5 < deep, "{light} and {deep} bytes");
    let mut coded = Vec::new();
    let mut note = |_, segment: aegisfs_format::value::Segment| {
        coded.extend((segment.shards.0 == 4).then(|| segment.placements[1]));
        ControlFlow::Continue(())
    };
    store.each_segment(&mut note).unwrap();
    // Rotten payload is for a deeper one; cells that are gone are not.
    let noise = AlignedBuffer::zeroed(4096);
    store.pool().write_slot(coded[0], 4096 + 8192, &noise).unwrap();
    assert_eq!(shallow().problems, []);
    assert_ne!(store.check(true).unwrap().problems, []);
    let gone = AlignedBuffer::zeroed(store.pool().slot_bytes() as usize);
    store.pool().write_slot(coded[0], 0, &gone).unwrap();
    assert_ne!(shallow().problems, []);
}

#[test]
fn a_check_names_rotten_parity() {
    let rng = SeededRng::new(88);
    let devices = format(&[64; 6], FOUR_AND_TWO, &rng);
    let store = mount(&devices, &rng);
    let contents = fill(&store, 10, &rng);
    let mut parity = Vec::new();
    let mut note = |_, segment: aegisfs_format::value::Segment| {
        if segment.shards.0 == 4 {
            parity.push(segment.placements[5]);
        }
        ControlFlow::Continue(())
    };
    store.each_segment(&mut note).unwrap();
    for (offset, what) in [(4096 + 8192, "payload"), (4096, "header")] {
        let mut block = AlignedBuffer::zeroed(4096);
        rng.fill(&mut block);
        store.pool().write_slot(parity[0], offset, &block).unwrap();
        let problems = store.check(true).unwrap().problems;
        let names = |problem: &aegisfs_store::Problem| matches!(problem, aegisfs_store::Problem::DamagedRow { device, .. } if *device == parity[0].0.0);
        assert!(problems.iter().any(names), "{what}: {problems:?}");
    }
    assert!(contents.iter().all(|(id, data)| read(&store, *id) == *data));
}
