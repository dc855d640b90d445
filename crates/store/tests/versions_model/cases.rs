//! Single cases that once were wrong, or that random histories rarely reach.

use aegisfs_base::sabotage::{Edge, without};
use aegisfs_base::{
    BranchId, ChunkId, EpochId, InodeId, RowIndex, SegmentId, Sequence, SlotIndex, Timestamp,
};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{NewRef, Op, Transaction};
use aegisfs_format::value::{self, Branch, Segment, SegmentState, Volume};
use aegisfs_store::apply::{Effects, apply};
use aegisfs_store::branches::{self, BranchError};
use aegisfs_store::versions::{Head, read_branch, write_branch};
use aegisfs_store::{MapTables, StoreError, Tables, View};
use std::ops::ControlFlow;

const MAIN: BranchId = BranchId(0);
const FILE: InodeId = InodeId(2);

fn pool() -> MapTables {
    let mut tables = MapTables::default();
    let first = EpochId(1);
    write_branch(&mut tables, MAIN, &Branch { origin: None, first, head: first, pinned: None });
    tables
}

fn commit(tables: &mut MapTables, sequence: u64, ops: Vec<Op>) -> Result<Effects, StoreError> {
    let epoch = read_branch(tables, MAIN).unwrap().head;
    apply(tables, &Transaction { sequence: Sequence(sequence), branch: MAIN, epoch, ops })
}

fn open_segment() -> Op {
    open_numbered(1)
}

fn open_numbered(number: u64) -> Op {
    let value = Segment {
        state: SegmentState::Open,
        shards: (1, 0),
        tier: 0,
        policy: aegisfs_base::PolicyId(0),
        key_domain: 0,
        live_bytes: 0,
        written_bytes: 0,
        opened: 0,
        rows: 0,
        forsaken_bytes: 0,
        end: 0,
        placements: vec![(aegisfs_base::DeviceIndex(0), SlotIndex(1))],
    };
    Op::Put { table: Table::Segments, key: key::segment(SegmentId(number)).to_vec(), value: value.encode() }
}

fn new_chunk(chunk: u64) -> Op {
    Op::NewChunk { chunk: ChunkId(chunk), descriptor: descriptor(1, 4096, 10) }
}

fn descriptor(segment: u64, slot_offset: u32, charged_bytes: u32) -> Descriptor {
    let frame = FramePlace {
        segment: SegmentId(segment),
        row: RowIndex(0),
        cell: 0,
        slot_offset,
        stored_bytes: 10,
        plain_bytes: 20,
        codec: 0,
        key_domain: 0,
    };
    Descriptor {
        frame,
        offset_in_frame: 0,
        plain_bytes: 20,
        charged_bytes,
        references: 0,
        referred_bytes: 0,
        damaged: false,
        hash: [7; 32],
    }
}

/// A move to the second segment, where the chunk takes 7 bytes.
fn move_from(chunk: u64, segment: u64) -> Op {
    let descriptor = descriptor(2, 8192, 7);
    Op::MoveChunk { chunk: ChunkId(chunk), from: (SegmentId(segment), 4096), descriptor }
}

fn refer(chunk: u64) -> Op {
    let references = vec![NewRef { offset: 0, length: 20, chunk: ChunkId(chunk), offset_in_chunk: 0 }];
    Op::Replace { inode: FILE, from: 0, to: 20, pending_up_to: Sequence(0), references }
}

fn hole(from: u64, to: u64, up_to: u64) -> Op {
    Op::Replace { inode: FILE, from, to, pending_up_to: Sequence(up_to), references: Vec::new() }
}

fn seal() -> Op {
    Op::SealSegment { segment: SegmentId(1), rows: 1, end: 8192 }
}

fn segment(tables: &MapTables) -> Option<Segment> {
    numbered(tables, 1)
}

fn numbered(tables: &MapTables, number: u64) -> Option<Segment> {
    let stored = tables.get(Table::Segments, &key::segment(SegmentId(number))).unwrap();
    stored.map(|stored| Segment::decode(&stored).unwrap())
}

#[test]
fn a_segment_that_loses_its_last_chunk_and_gains_one_in_the_same_change_stays() {
    let mut tables = pool();
    commit(&mut tables, 1, vec![open_segment(), new_chunk(1), refer(1)]).unwrap();
    // Once the old chunk's death freed the segment before the new one was charged to it.
    let effects = commit(&mut tables, 2, vec![seal(), new_chunk(2), refer(2)]).unwrap();
    assert!(effects.freed.is_empty());
    let found = segment(&tables).unwrap();
    assert_eq!((found.live_bytes, found.written_bytes, found.state), (10, 20, SegmentState::Sealed));
    let effects = commit(&mut tables, 3, vec![hole(0, 20, 0)]).unwrap();
    assert_eq!((effects.freed.len(), segment(&tables)), (1, None));
}

#[test]
fn a_segment_sealed_with_nothing_but_a_chunk_written_in_vain_is_freed() {
    let mut tables = pool();
    // Once nothing ever looked at it again.
    let effects = commit(&mut tables, 1, vec![open_segment(), new_chunk(1), seal()]).unwrap();
    assert_eq!(effects.freed.len(), 1);
    assert_eq!(effects.freed[0].1.written_bytes, 10);
    assert_eq!(segment(&tables), None);
    assert_eq!((effects.born, effects.died), (vec![], vec![]));
}

/// A sealed segment with a chunk that something refers to, and an open one.
fn before_a_move() -> MapTables {
    let mut tables = pool();
    let ops = vec![open_segment(), new_chunk(1), refer(1), seal(), open_numbered(2)];
    commit(&mut tables, 1, ops).unwrap();
    tables
}

fn chunk(tables: &MapTables) -> Option<Descriptor> {
    let stored = tables.get(Table::Chunks, &key::chunk(ChunkId(1))).unwrap();
    stored.and_then(|stored| Descriptor::decode(&stored).unwrap())
}

#[test]
fn a_chunk_that_moves_takes_its_references_along_and_frees_its_segment() {
    let mut tables = before_a_move();
    let effects = commit(&mut tables, 2, vec![move_from(1, 1)]).unwrap();
    assert_eq!(effects.freed.len(), 1);
    assert_eq!((effects.born, effects.died), (vec![], vec![]));
    assert_eq!(segment(&tables), None);
    assert_eq!(
        chunk(&tables),
        Some(Descriptor { references: 1, referred_bytes: 20, ..descriptor(2, 8192, 7) })
    );
    let found = numbered(&tables, 2).unwrap();
    assert_eq!((found.live_bytes, found.written_bytes), (7, 7));
    // What refers to it can go, or more can come.
    commit(&mut tables, 3, vec![refer(1)]).unwrap();
    let effects = commit(&mut tables, 4, vec![hole(0, 20, 0)]).unwrap();
    assert_eq!(effects.died, vec![(ChunkId(1), [7; 32], aegisfs_base::PolicyId(0))]);
    assert_eq!(numbered(&tables, 2).unwrap().live_bytes, 0);
}

#[test]
fn a_chunk_moves_only_from_where_it_is() {
    let mut tables = before_a_move();
    let before = chunk(&tables);
    commit(&mut tables, 2, vec![move_from(1, 9)]).unwrap();
    assert_eq!(chunk(&tables), before);
    commit(&mut tables, 3, vec![move_from(77, 1)]).unwrap();
    let found = numbered(&tables, 2).unwrap();
    assert_eq!((found.live_bytes, found.written_bytes), (0, 14), "both were written in vain");
    assert_eq!(segment(&tables).unwrap().live_bytes, 10);
    // What would be believed without that look.
    without(Edge::MovedOnlyFromWhereItWas, || commit(&mut tables, 4, vec![move_from(1, 9)]).unwrap());
    assert_ne!(chunk(&tables), before);
}

#[test]
fn a_chunk_that_moves_and_dies_in_the_same_change_is_gone() {
    for dies_first in [false, true] {
        let mut tables = before_a_move();
        let mut ops = vec![move_from(1, 1), hole(0, 20, 0)];
        if dies_first {
            ops.reverse();
        }
        let effects = commit(&mut tables, 2, ops).unwrap();
        assert_eq!((effects.freed.len(), effects.died.len(), chunk(&tables)), (1, 1, None));
        let found = numbered(&tables, 2).unwrap();
        assert_eq!((found.live_bytes, found.written_bytes), (0, 7));
    }
}

/// A run of the file that refers to the first chunk.
fn run(offset: u64, length: u32, offset_in_chunk: u32) -> NewRef {
    NewRef { offset, length, chunk: ChunkId(1), offset_in_chunk }
}

#[test]
fn what_is_left_of_a_chunk_is_forsaken_but_for_what_something_refers_to() {
    const K: u64 = 10_000;
    let large = |chunk| {
        let mut descriptor = descriptor(1, 4096, 10 * K as u32);
        (descriptor.plain_bytes, descriptor.frame.plain_bytes) = (20 * K as u32, 20 * K as u32);
        Op::NewChunk { chunk: ChunkId(chunk), descriptor }
    };
    let run = |offset, length, in_chunk| run(offset * K, length * K as u32, in_chunk * K as u32);
    let put = |from, references| {
        let (from, to) = (from * K, (from + 20) * K);
        Op::Replace { inode: FILE, from, to, pending_up_to: Sequence(0), references }
    };
    let hole = |from, to| hole(from * K, to * K, 0);
    let mut tables = pool();
    commit(&mut tables, 1, vec![open_segment(), large(1), put(0, vec![run(0, 20, 0)])]).unwrap();
    let forsaken = |tables: &MapTables| segment(tables).map(|found| (found.live_bytes, found.forsaken_bytes));
    assert_eq!(forsaken(&tables), Some((10 * K, 0)));
    // Two of twenty parts are not worth counting.
    commit(&mut tables, 2, vec![hole(4, 6)]).unwrap();
    assert_eq!((forsaken(&tables), chunk(&tables).unwrap().referred_bytes), (Some((10 * K, 0)), 18 * K));
    // Two new chunks cost something.
    commit(&mut tables, 3, vec![hole(4, 14)]).unwrap();
    let half = Some((10 * K, 5 * K - 2048));
    assert_eq!((forsaken(&tables), chunk(&tables).unwrap().references), (half, 2));
    // Another reference may be to the same bytes again.
    commit(&mut tables, 4, vec![put(40, vec![run(40, 20, 0)])]).unwrap();
    assert_eq!((forsaken(&tables), chunk(&tables).unwrap().referred_bytes), (Some((10 * K, 0)), 30 * K));
    commit(&mut tables, 5, vec![put(40, vec![])]).unwrap();
    assert_eq!(forsaken(&tables), half);
    // The parts become chunks of their own, and nothing is left of the first.
    let to = |from: NewRef, chunk| NewRef { chunk: ChunkId(chunk), offset_in_chunk: 0, ..from };
    let repoint = |from, chunk| Op::Repoint { inode: FILE, from, references: vec![to(from, chunk)] };
    let ops = vec![large(2), large(3), repoint(run(0, 4, 0), 2), repoint(run(14, 6, 14), 3)];
    let effects = commit(&mut tables, 6, ops).unwrap();
    assert_eq!((effects.born.len(), effects.died.len(), chunk(&tables)), (2, 1, None));
    // The new ones were said to be as large as the old one.
    assert_eq!(forsaken(&tables), Some((20 * K, 8 * K - 1024 + 7 * K - 1024)));
    // Many small parts cost more than they give back.
    let holes = (0..100).map(|n| hole_at(140_000 + n * 600)).collect();
    commit(&mut tables, 7, holes).unwrap();
    assert_eq!(forsaken(&tables), Some((20 * K, 8 * K - 1024)));
}

/// A hole of 300 bytes.
fn hole_at(from: u64) -> Op {
    hole(from, from + 300, 0)
}

#[test]
fn only_what_still_refers_to_the_same_bytes_is_pointed_elsewhere() {
    let mut tables = pool();
    commit(&mut tables, 1, vec![open_segment(), new_chunk(1), new_chunk(9), refer(1)]).unwrap();
    let other = NewRef { offset: 5, length: 5, chunk: ChunkId(9), offset_in_chunk: 5 };
    let op =
        Op::Replace { inode: FILE, from: 5, to: 10, pending_up_to: Sequence(0), references: vec![other] };
    commit(&mut tables, 2, vec![new_chunk(9), op]).unwrap();
    let repoint = |from: NewRef| {
        let to = NewRef { chunk: ChunkId(2), offset_in_chunk: 0, ..from };
        vec![new_chunk(2), Op::Repoint { inode: FILE, from, references: vec![to] }]
    };
    let before = tables.clone();
    // Other bytes of the chunk, other places, a part of a run; a file and a window that are not there.
    for (number, from) in
        [run(0, 5, 1), run(1, 4, 0), run(0, 3, 0), run(30, 5, 0), run(1 << 20, 20, 0)].into_iter().enumerate()
    {
        commit(&mut tables, 3 + number as u64, repoint(from)).unwrap();
        assert_eq!(chunk(&tables), chunk(&before), "{from:?}");
    }
    let effects = commit(&mut tables, 10, repoint(run(0, 20, 0))).unwrap();
    assert_eq!(
        effects.died,
        vec![(ChunkId(1), [7; 32], aegisfs_base::PolicyId(0))],
        "both sides, but not what lies between"
    );
    let stored = tables.get(Table::Chunks, &key::chunk(ChunkId(9))).unwrap().unwrap();
    assert_eq!(Descriptor::decode(&stored).unwrap().unwrap().referred_bytes, 5);
    let stored = tables.get(Table::Chunks, &key::chunk(ChunkId(2))).unwrap().unwrap();
    let found = Descriptor::decode(&stored).unwrap().unwrap();
    assert_eq!((found.references, found.referred_bytes), (2, 15));
}

#[test]
fn what_a_snapshot_sees_is_not_pointed_elsewhere() {
    let mut tables = pool();
    commit(&mut tables, 1, vec![open_segment(), new_chunk(1), refer(1)]).unwrap();
    branches::create_snapshot(&mut tables, MAIN, b"s", Timestamp(0)).unwrap();
    let to = NewRef { offset: 0, length: 20, chunk: ChunkId(2), offset_in_chunk: 0 };
    let repoint = Op::Repoint { inode: FILE, from: run(0, 20, 0), references: vec![to] };
    let effects = commit(&mut tables, 2, vec![new_chunk(2), repoint]).unwrap();
    assert_eq!((effects.born, effects.died), (vec![], vec![]), "the new one was written in vain");
    assert_eq!(chunk(&tables).unwrap().references, 1);
}

fn pending(tables: &MapTables) -> Vec<u8> {
    let mut bytes = vec![b'.'; 30];
    tables
        .scan_prefix(Table::Pending, &[], &mut |_, stored| {
            let (offset, found) = value::decode_pending(stored).unwrap();
            bytes[offset as usize..offset as usize + found.len()].copy_from_slice(found);
            ControlFlow::Continue(())
        })
        .unwrap();
    bytes
}

fn write(offset: u64, bytes: &[u8]) -> Op {
    Op::Pending { inode: FILE, offset, bytes: bytes.to_vec() }
}

#[test]
fn what_is_left_behind_a_hole_in_pending_bytes_stays_under_what_came_later() {
    let mut tables = pool();
    commit(&mut tables, 5, vec![write(0, &[b'a'; 20]), write(10, b"bbb")]).unwrap();
    // Once the tail of the first piece sorted behind the second and hid it.
    commit(&mut tables, 6, vec![hole(4, 6, 5)]).unwrap();
    assert_eq!(pending(&tables), b"aaaa..aaaabbbaaaaaaa..........");
    commit(&mut tables, 7, vec![hole(7, 8, 5), hole(2, 3, 5)]).unwrap();
    assert_eq!(pending(&tables), b"aa.a..a.aabbbaaaaaaa..........");
}

/// One look serves them all; what is between them stays, in its order.
#[test]
fn several_holes_of_one_change_are_cut_out_of_the_same_pieces() {
    let mut tables = pool();
    commit(&mut tables, 5, vec![write(0, &[b'a'; 20]), write(10, b"bbb"), write(25, b"ccc")]).unwrap();
    let holes = [(0, 1), (3, 4), (4, 6), (8, 8), (11, 12), (15, 30)];
    let mut alone = tables.clone();
    for (number, (from, to)) in holes.into_iter().enumerate() {
        commit(&mut alone, 6 + number as u64, vec![hole(from, to, 5)]).unwrap();
    }
    commit(&mut tables, 6, holes.into_iter().map(|(from, to)| hole(from, to, 5)).collect()).unwrap();
    assert_eq!(pending(&tables), b".aa...aaaab.baa...............");
    assert_eq!(pending(&tables), pending(&alone));
    // Newer bytes are left, and so are those of a hole that says so.
    commit(&mut tables, 7, vec![write(1, b"dd")]).unwrap();
    commit(&mut tables, 8, vec![hole(0, 2, 6), hole(6, 7, 6), hole(9, 10, 4)]).unwrap();
    assert_eq!(pending(&tables), b".dd....aaab.baa...............");
}

#[test]
fn pending_bytes_put_after_a_trim_in_the_same_change_take_nobodys_place() {
    let mut tables = pool();
    // Once the number of pieces left gave the next its place, and it took that of the second.
    let ops = vec![write(0, b"aaa"), write(10, b"bbb"), hole(0, 5, 9), write(20, b"ccc")];
    commit(&mut tables, 9, ops).unwrap();
    assert_eq!(pending(&tables), b"..........bbb.......ccc.......");
}

#[test]
fn a_window_that_a_hole_does_not_touch_is_not_written_again() {
    let mut tables = pool();
    commit(&mut tables, 1, vec![open_segment(), new_chunk(1), refer(1)]).unwrap();
    branches::create_snapshot(&mut tables, MAIN, b"s", Timestamp(0)).unwrap();
    let before = tables.clone();
    commit(&mut tables, 2, vec![hole(20, 1 << 20, 0)]).unwrap();
    assert!(tables == before);
}

#[test]
fn a_branch_does_not_see_what_forks_write_meanwhile() {
    let mut tables = pool();
    let at = branches::create_snapshot(&mut tables, MAIN, b"s", Timestamp(0)).unwrap();
    let clone = branches::fork(&mut tables, at).unwrap();
    branches::create_snapshot(&mut tables, MAIN, b"t", Timestamp(0)).unwrap();
    let (main, clone) = (Head::of_branch(&tables, MAIN).unwrap(), Head::of_branch(&tables, clone).unwrap());
    assert!(!main.view.contains(clone.epoch) && !clone.view.contains(main.epoch));
    assert!(clone.view.contains(at) && clone.is_pinned(at) && !clone.is_pinned(clone.epoch));
}

#[test]
fn refusals_name_their_reason_and_change_nothing() {
    let mut tables = pool();
    let at = branches::create_snapshot(&mut tables, MAIN, b"s", Timestamp(0)).unwrap();
    branches::write_volume(&mut tables, b"main", &Volume { head: MAIN });
    commit(&mut tables, 1, vec![write(0, b"x")]).unwrap();
    let before = tables.clone();
    let snapshot = |tables: &mut MapTables, branch, name: &[u8]| {
        branches::create_snapshot(tables, branch, name, Timestamp(0)).unwrap_err()
    };
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(matches!(snapshot(&mut tables, MAIN, name), BranchError::Name), "{name:?}");
    }
    assert!(matches!(snapshot(&mut tables, MAIN, b"s"), BranchError::Exists));
    assert!(matches!(snapshot(&mut tables, MAIN, b"t"), BranchError::Unflushed));
    assert!(matches!(snapshot(&mut tables, BranchId(9), b"t"), BranchError::Missing));
    let missing = [
        branches::delete_snapshot(&mut tables, MAIN, b"t").unwrap_err(),
        branches::fork(&mut tables, at.next()).unwrap_err(),
        branches::rollback(&mut tables, b"other", at).unwrap_err(),
        branches::rollback(&mut tables, b"main", at.next()).unwrap_err(),
        branches::delete_branch(&mut tables, BranchId(9)).unwrap_err(),
    ];
    assert!(missing.iter().all(|error| matches!(error, BranchError::Missing)), "{missing:?}");
    assert!(matches!(branches::delete_branch(&mut tables, MAIN), Err(BranchError::InUse)));
    assert!(View::of_branch(&tables, MAIN, EpochId(0)).is_err());
    assert!(tables == before);
}

#[test]
fn nothing_is_written_to_a_closed_branch() {
    let mut tables = pool();
    branches::create_snapshot(&mut tables, MAIN, b"s", Timestamp(0)).unwrap();
    branches::delete_branch(&mut tables, MAIN).unwrap();
    let epoch = EpochId(2);
    let transaction = Transaction { sequence: Sequence(3), branch: MAIN, epoch, ops: Vec::new() };
    assert!(matches!(apply(&mut tables, &transaction), Err(StoreError::Inconsistent { .. })));
    branches::delete_snapshot(&mut tables, MAIN, b"s").unwrap();
    assert_eq!(tables.iter().count(), 0, "with its last snapshot the branch goes");
}
