//! Open segments: where the next row goes.

use crate::StoreError;
use crate::store::Store;
use aegisfs_base::{BranchId, DeviceIndex, FaultKind, PolicyId, RowIndex, SegmentId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_pool::{Placement, Pool};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Segments of a class and shape that are open at the same time, on different devices.
const LANES_MAX: usize = 4;
/// There is one more of them for so many that can still be opened: the ends of open segments are room that nobody else has.
const SEGMENTS_PER_LANE: u64 = 16;

/// What the rows of an open segment hold. What was moved has proved to live long and is kept apart from what is new, so
/// that segments die as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// What users write.
    Fresh,
    /// What the cleaner moves.
    Moved,
}

/// What lies in one open segment: what is alike in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    /// How it is stored.
    pub(crate) policy: PolicyId,
    pub(crate) purpose: Purpose,
}

/// How the rows of an open segment are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// One cell of data and copies of it: for what is too little for more. The only one where there is no erasure code.
    Narrow,
    /// Several cells of data and some of parity.
    Wide,
}

/// A place for a row, to be written and then given back with [`Store::row_done`].
#[derive(Clone, Debug)]
pub(crate) struct RowPlace {
    pub(crate) segment: SegmentId,
    pub(crate) row: RowIndex,
    pub(crate) slot_offset: u32,
    /// Cells of data and of parity.
    pub(crate) shards: (u8, u8),
    pub(crate) places: Vec<Placement>,
}

struct Open {
    segment: SegmentId,
    policy: PolicyId,
    shards: (u8, u8),
    places: Vec<Placement>,
    next_offset: u32,
    rows: u32,
    /// Where the pool places segments had changed so many times when it was looked at last whether it should be elsewhere.
    changes: u64,
    /// Rows handed out whose transaction has not passed the sequencer yet.
    in_flight: u32,
    /// How many rows had been handed out when it got its last one.
    turn: u64,
}

/// The open segments, and full ones that still wait for rows in flight.
#[derive(Default)]
pub(crate) struct Segments {
    state: Mutex<SegmentsState>,
}

#[derive(Default)]
struct SegmentsState {
    open: BTreeMap<(Class, Shape), Vec<Open>>,
    full: Vec<Open>,
    /// Rows handed out.
    rows: u64,
}

impl SegmentsState {
    fn all(&self) -> impl Iterator<Item = &Open> {
        self.open.values().flatten().chain(&self.full)
    }

    /// The open segments of a class and shape that get rows, by their places: of too many those that are full first.
    fn lanes(&self, at: (Class, Shape), lanes: usize) -> Vec<usize> {
        let open = self.open.get(&at).map_or(&[][..], Vec::as_slice);
        let mut numbers: Vec<usize> = (0..open.len()).collect();
        numbers.sort_by_key(|number| std::cmp::Reverse(open[*number].next_offset));
        numbers.truncate(lanes);
        numbers
    }

    /// Which of them gets the next one: the one that has waited longest for it.
    fn next(&self, at: (Class, Shape), lanes: usize) -> Option<usize> {
        self.lanes(at, lanes).into_iter().min_by_key(|number| self.open[&at][*number].turn)
    }

    /// Devices of open segments of a class and shape, but for one of them.
    fn devices_beside(&self, at: (Class, Shape), number: Option<usize>) -> Vec<DeviceIndex> {
        let open = self.open.get(&at).map_or(&[][..], Vec::as_slice).iter().enumerate();
        let others = open.filter(|(other, _)| Some(*other) != number);
        others.flat_map(|(_, open)| open.places.iter().map(|place| place.0)).collect()
    }
}

impl Segments {
    /// Whether rows may still go to a segment, or are on their way.
    pub(crate) fn holds(&self, segment: SegmentId) -> bool {
        let state = self.state.lock();
        state.all().any(|open| open.segment == segment)
    }

    /// Whether rows may still go to a segment that a device has a part in, or are on their way there.
    pub(crate) fn any_on(&self, device: DeviceIndex) -> bool {
        let state = self.state.lock();
        state.all().any(|open| open.places.iter().any(|place| place.0 == device))
    }

    /// Whether rows may still go to a segment with less parity than it should have, or are on their way there.
    pub(crate) fn any_thin(&self, parity: impl Fn(PolicyId) -> u8) -> bool {
        let state = self.state.lock();
        state.all().any(|open| open.shards.1 < parity(open.policy))
    }

    /// Bytes of the open segments and of full ones still in flight that nothing was written to.
    pub(crate) fn unwritten(&self, pool: &Pool) -> u64 {
        let state = self.state.lock();
        let rest = |open: &Open| (pool.slot_bytes() - u64::from(open.next_offset)) * open.places.len() as u64;
        state.all().map(rest).sum()
    }

    /// Bytes left in the cells of data of the open segments of a class and shape, less so many in each cell.
    pub(crate) fn room(&self, pool: &Pool, class: Class, shape: Shape, lost: u64) -> u64 {
        let state = self.state.lock();
        let room = |open: &Open| {
            let cell = pool.slot_bytes() - u64::from(open.next_offset);
            cell.saturating_sub(lost) * u64::from(open.shards.0)
        };
        state.open.get(&(class, shape)).map_or(0, |open| open.iter().map(room).sum())
    }
}

impl Store {
    /// Largest cell that fits into an empty slot.
    pub(crate) fn cell_bytes_max(&self) -> usize {
        let slot = self.pool.slot_bytes() - SLOT_HEADER_BYTES;
        aegisfs_base::limits::CELL_BYTES_MAX.min(slot as usize)
    }

    /// A place for a row. `choose` is told how much room each cell has and how many of data there are, and says how large the
    /// row's cells are, or nothing when all it has is larger; the row then goes into a new segment.
    pub(crate) fn place_row(
        &self,
        class: Class,
        shape: Shape,
        mut choose: impl FnMut(usize, u8) -> Option<usize>,
    ) -> Result<RowPlace, StoreError> {
        let mut state = self.segments.state.lock();
        let at = (class, shape);
        let mut ask = |open: &Open| {
            choose((self.pool.slot_bytes() - u64::from(open.next_offset)) as usize, open.shards.0)
        };
        let lanes = self.lanes(class, shape);
        let (number, chosen) = loop {
            let others = state.devices_beside(at, None);
            let redundancy = self.redundancy_of(class.policy);
            let is_new = state.open.get(&at).is_none_or(|open| {
                open.len() < lanes && self.pool.has_room_apart(redundancy, shape == Shape::Wide, &others)
            });
            let opened = is_new.then(|| self.open_segment(class.policy, shape, &others)).transpose();
            match opened {
                Ok(Some(open)) => state.open.entry(at).or_default().push(open),
                // Those that there are take what they can.
                Err(error) if error.kind() == FaultKind::NoSpace && state.open.contains_key(&at) => {}
                Err(error) => return Err(error),
                Ok(None) => {}
            }
            let number = state.next(at, lanes).expect("it is there or was just opened");
            self.settle_elsewhere(&mut state, at, number)?;
            let open = &state.open[&at][number];
            if let Some(chosen) = ask(open) {
                break (number, chosen);
            }
            assert!(open.rows > 0, "a frame fits into a slot");
            self.retire_open(&mut state, at, number)?;
        };
        let cell_bytes = u32::try_from(chosen).expect("a cell is smaller than a slot");
        state.rows += 1;
        let turn = state.rows;
        let open = &mut state.open.get_mut(&at).expect("it was just chosen")[number];
        open.turn = turn;
        let place = RowPlace {
            segment: open.segment,
            row: RowIndex(open.rows),
            slot_offset: open.next_offset,
            shards: open.shards,
            places: open.places.clone(),
        };
        open.next_offset += cell_bytes;
        open.rows += 1;
        open.in_flight += 1;
        Ok(place)
    }

    /// How many segments of a class and shape are open at the same time, so that several devices write: as many as share none
    /// where one does not take all of them. What is moved, and what is too little for wide rows, goes to one; and so does what
    /// has no redundancy: files that lie on one device survive the loss of another.
    pub(crate) fn lanes(&self, class: Class, shape: Shape) -> usize {
        let redundancy = self.redundancy_of(class.policy);
        let (data, parity) = self.shards_now(class.policy);
        if class.purpose == Purpose::Moved || shape == Shape::Narrow && data > 1 || parity == 0 {
            return 1;
        }
        let most = self.pool.segments_side_by_side(usize::from(data) + usize::from(parity)).min(LANES_MAX);
        if most <= 1 {
            return 1;
        }
        let rest = self.pool.segments_placeable(redundancy) / SEGMENTS_PER_LANE;
        most.min(usize::try_from(rest).unwrap_or(most)).max(1)
    }

    /// Goes on in a new segment where that is better off: it has more parity than is left of the open one, or as much on devices
    /// that are trusted more. Where there is no room for one the open one is good enough.
    fn settle_elsewhere(
        &self,
        state: &mut SegmentsState,
        at: (Class, Shape),
        number: usize,
    ) -> Result<(), StoreError> {
        let changes = self.pool.placement_changes();
        let others = state.devices_beside(at, Some(number));
        let open = &mut state.open.get_mut(&at).expect("it is one of them")[number];
        if open.changes == changes {
            return Ok(());
        }
        open.changes = changes;
        let written = open.places.iter().filter(|place| self.pool.is_written(**place)).count();
        let left = written.saturating_sub(usize::from(open.shards.0));
        let new = usize::from(self.shards_now(open.policy).1);
        let is_trusted = open.places.iter().all(|place| self.pool.is_placed_on(place.0))
            && !self.pool.is_crowded(&open.places, open.shards.1);
        let is_whole = written == open.places.len();
        if new < left || new == left && (is_trusted || !is_whole) {
            return Ok(());
        }
        match self.open_segment(at.0.policy, at.1, &others) {
            Ok(better) => {
                let open = std::mem::replace(open, better);
                self.retire_segment(state, open)
            }
            Err(error) if error.kind() == FaultKind::NoSpace => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that a row's transaction has passed the sequencer, or never will.
    pub(crate) fn row_done(&self, segment: SegmentId) -> Result<(), StoreError> {
        let mut state = self.segments.state.lock();
        if let Some(open) = state.open.values_mut().flatten().find(|open| open.segment == segment) {
            open.in_flight -= 1;
            return Ok(());
        }
        let Some(index) = state.full.iter().position(|full| full.segment == segment) else { return Ok(()) };
        state.full[index].in_flight -= 1;
        if state.full[index].in_flight == 0 {
            let full = state.full.swap_remove(index);
            self.seal(&full)?;
        }
        Ok(())
    }

    /// Runs `work` while no segment can be opened, appended to or sealed.
    pub(crate) fn without_opening<T>(&self, work: impl FnOnce() -> T) -> T {
        let _state = self.segments.state.lock();
        work()
    }

    /// Runs `work` unless rows may still go to a segment, or are on their way. Once that is so it stays so.
    pub(crate) fn unless_held<T>(&self, segment: SegmentId, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.segments.state.lock();
        let is_held = state.all().any(|open| open.segment == segment);
        (!is_held).then(work)
    }

    /// Seals the open segments so that nothing is left open at a clean end.
    pub(crate) fn seal_open_segments(&self) -> Result<(), StoreError> {
        let mut state = self.segments.state.lock();
        self.seal_some(&mut state, |_| true)
    }

    /// Seals the open segments that have less parity than they should, so that what comes goes to new ones.
    pub(crate) fn seal_thin_segments(&self, parity: impl Fn(PolicyId) -> u8) -> Result<(), StoreError> {
        let mut state = self.segments.state.lock();
        self.seal_some(&mut state, |open| open.shards.1 < parity(open.policy))
    }

    /// Seals the open segments that follow other policies than this one. Their rest can be given back then.
    pub(crate) fn seal_segments_of_others(&self, policy: PolicyId) -> Result<(), StoreError> {
        let mut state = self.segments.state.lock();
        self.seal_some(&mut state, |open| open.policy != policy)
    }

    fn seal_some(&self, state: &mut SegmentsState, is_one: impl Fn(&Open) -> bool) -> Result<(), StoreError> {
        let all: Vec<_> = state.open.keys().copied().collect();
        for at in all {
            while let Some(number) = state.open.get(&at).and_then(|open| open.iter().position(&is_one)) {
                self.retire_open(state, at, number)?;
            }
        }
        Ok(())
    }

    /// Has no row go to one of the open segments any more.
    fn retire_open(
        &self,
        state: &mut SegmentsState,
        at: (Class, Shape),
        number: usize,
    ) -> Result<(), StoreError> {
        let open = state.open.get_mut(&at).expect("it is one of them");
        let full = open.swap_remove(number);
        if open.is_empty() {
            state.open.remove(&at);
        }
        self.retire_segment(state, full)
    }

    /// A full segment is sealed once no row in flight can still refer to it.
    fn retire_segment(&self, state: &mut SegmentsState, full: Open) -> Result<(), StoreError> {
        if full.in_flight > 0 {
            state.full.push(full);
            return Ok(());
        }
        self.seal(&full)
    }

    fn seal(&self, full: &Open) -> Result<(), StoreError> {
        let ops = vec![Op::SealSegment { segment: full.segment, rows: full.rows, end: full.next_offset }];
        self.commit(BranchId(0), ops, Vec::new())?;
        Ok(())
    }

    /// Opens a segment, on none of some devices where that is as good.
    fn open_segment(
        &self,
        policy: PolicyId,
        shape: Shape,
        others: &[DeviceIndex],
    ) -> Result<Open, StoreError> {
        let segment = SegmentId(self.ids.segments.take(self)?);
        let changes = self.pool.placement_changes();
        let (redundancy, wide) = (self.redundancy_of(policy), shape == Shape::Wide);
        let (shards, places) = self.pool.open_segment_apart(segment, redundancy, wide, others)?;
        let value = Segment {
            state: SegmentState::Open,
            shards,
            tier: 0,
            policy,
            key_domain: 0,
            live_bytes: 0,
            written_bytes: 0,
            opened: self.last_sequence().0,
            rows: 0,
            forsaken_bytes: 0,
            end: 0,
            placements: places.clone(),
        };
        let key = key::segment(segment).to_vec();
        let ops = vec![Op::Put { table: Table::Segments, key, value: value.encode() }];
        if let Err(error) = self.commit(BranchId(0), ops, Vec::new()) {
            self.pool.abandon(&places);
            return Err(error);
        }
        let next_offset = SLOT_HEADER_BYTES as u32;
        Ok(Open { segment, policy, shards, places, next_offset, rows: 0, changes, in_flight: 0, turn: 0 })
    }
}
