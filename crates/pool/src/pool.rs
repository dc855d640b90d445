//! The pool: its members, its superblock, its slots.

use crate::PoolError;
use crate::health::Watch;
use crate::member::Member;
use crate::slots::{Placement, SlotTable, Space};
use crate::superblocks;
use crate::together::together;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{DeviceIndex, Incarnation, SlotIndex, Uuid};
use aegisfs_format::cell::is_geometry;
use aegisfs_format::layout::SUPERBLOCK_BYTES;
use aegisfs_format::map::{self, MAP_ENTRIES_MAX, MapEntry, MapOwner};
use aegisfs_format::sum128;
use aegisfs_format::superblock::{Membership, Superblock};
use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// How many shards a wide segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redundancy {
    /// Data shards.
    pub shards_data: u8,
    /// Parity shards, or further copies where there is one data shard.
    pub shards_parity: u8,
}

/// Whether a device takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It holds everything that it should.
    In,
    /// It is there, and lacks what was written without it.
    Out,
    /// The same, but it is being brought up to date.
    Returning,
    /// It is not there.
    Missing,
}

impl MemberState {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Returning => "returning",
            Self::Missing => "missing",
        }
    }
}

/// What the superblock holds.
pub(crate) struct State {
    pub(crate) superblock: Superblock,
    pub(crate) map: Vec<MapEntry>,
    /// While a pool is being made nothing is published.
    pub(crate) provisional: bool,
}

/// Devices that together hold one store.
///
/// Lock order: `state` before `slots`. `state` is held across superblock writes, which are rare.
pub struct Pool {
    /// One for each entry of the table. One that is missing may come later, and never goes.
    pub(crate) members: Vec<OnceLock<Member>>,
    pub(crate) slots: Mutex<SlotTable>,
    /// Told when slots that were being discarded are free again.
    pub(crate) trimmed: Condvar,
    pub(crate) state: Mutex<State>,
    read_only: AtomicBool,
    /// The last life ended in order, so nothing can have been in flight when the pool was opened.
    ended_in_order: AtomicBool,
    /// The superblock on the devices says that the pool is in use.
    dirty: AtomicBool,
    /// A write or flush failed that no other device made good: this life cannot end in order.
    failed: AtomicBool,
    /// Slots of all devices.
    slots_total: u64,
    /// Slots that hold databases: as many as the map says.
    pub(crate) database_slots: AtomicU64,
    slot_bytes: u64,
    uuid: Uuid,
    redundancy: Redundancy,
    pub(crate) reads_back: crate::read_back::ReadsBack,
    /// How far each device is trusted, as in the superblock.
    pub(crate) healths: Vec<AtomicU8>,
    pub(crate) watches: Mutex<Vec<Watch>>,
}

fn database_slots(map: &[MapEntry]) -> u64 {
    map.iter().filter(|entry| matches!(entry.owner, MapOwner::Database(_))).count() as u64
}

impl Pool {
    pub(crate) fn assemble(members: Vec<Option<Member>>, mut slots: SlotTable, state: State) -> Self {
        let entries = state.superblock.devices.iter();
        slots.set_rules(
            state.superblock.shards_parity,
            entries.map(|entry| (entry.health, entry.failure_domain.as_str())),
        );
        Self {
            members: members.into_iter().map(|m| m.map_or_else(OnceLock::new, OnceLock::from)).collect(),
            slots: Mutex::new(slots),
            trimmed: Condvar::new(),
            read_only: AtomicBool::new(false),
            ended_in_order: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            slots_total: state.superblock.devices.iter().map(|entry| u64::from(entry.slots)).sum(),
            database_slots: AtomicU64::new(database_slots(&state.map)),
            slot_bytes: u64::from(state.superblock.slot_bytes),
            uuid: state.superblock.pool,
            redundancy: Redundancy {
                shards_data: state.superblock.shards_data,
                shards_parity: state.superblock.shards_parity,
            },
            healths: state.superblock.devices.iter().map(|entry| AtomicU8::new(entry.health as u8)).collect(),
            watches: Mutex::new(vec![Watch::default(); state.superblock.devices.len()]),
            state: Mutex::new(state),
            reads_back: Default::default(),
        }
    }

    /// Bytes of one slot.
    pub const fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Slots of all devices, there or not.
    pub const fn slots_total(&self) -> u64 {
        self.slots_total
    }

    /// The pool's name for machines.
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// How many shards a segment has by default.
    pub const fn redundancy(&self) -> Redundancy {
        self.redundancy
    }

    /// A copy of the superblock as it now is.
    pub fn superblock(&self) -> Superblock {
        self.state.lock().superblock.clone()
    }

    /// The incarnation that writes are stamped with.
    pub fn incarnation(&self) -> Incarnation {
        self.state.lock().superblock.incarnations.first().copied().unwrap_or_default()
    }

    /// Whether nothing may be written.
    pub fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Release);
    }

    /// Whether nothing can have been in flight when the pool was opened: what does not verify is damage.
    pub(crate) fn ended_in_order(&self) -> bool {
        self.ended_in_order.load(Ordering::Acquire)
    }

    pub(crate) fn set_ended_in_order(&self, ended: bool) {
        self.ended_in_order.store(ended, Ordering::Release);
    }

    /// Room in the pool.
    pub fn space(&self) -> Space {
        self.slots.lock().space(self.redundancy.shards())
    }

    /// How many segments of the pool's redundancy could be placed if there were none yet, with all devices there.
    pub fn segments_total(&self) -> u64 {
        self.slots.lock().segments_total(self.redundancy.shards())
    }

    /// Data and parity shards of a new wide segment, with the devices that take part now.
    ///
    /// Where those are too few, there are fewer shards of data; with less than full parity only when even a copy of
    /// everything on each of them is not as much.
    pub fn shards_now(&self, redundancy: Redundancy) -> (u8, u8) {
        redundancy.on(self.slots.lock().width_with(usize::from(redundancy.shards_parity)))
    }

    /// How many segments can still be placed, without the slots kept for metadata.
    pub fn segments_placeable(&self, redundancy: Redundancy) -> u64 {
        self.slots.lock().placeable(redundancy.shards(), usize::from(redundancy.shards_parity))
    }

    /// How many segments of so many shards can be written at the same time without sharing a device.
    pub fn segments_side_by_side(&self, shards: usize) -> usize {
        self.slots.lock().count_usable() / shards.max(1)
    }

    /// Whether more shards of a segment with so much parity fail together than may be lost, although it need not be so any
    /// more.
    pub fn is_crowded(&self, places: &[Placement], parity: u8) -> bool {
        self.slots.lock().is_crowded(places, usize::from(parity))
    }

    /// Refuses a redundancy that files of this pool cannot have.
    ///
    /// # Errors
    /// [`PoolError::Impossible`], with the reason.
    pub fn allow(&self, redundancy: Redundancy) -> Result<(), PoolError> {
        let Redundancy { shards_data, shards_parity } = redundancy;
        let copies = self.superblock().metadata_copies;
        let most = self.slots.lock().width_if_all(usize::from(shards_parity));
        let reason = if !is_geometry((shards_data, shards_parity)) {
            format!("there is no redundancy of {shards_data} shards of data and {shards_parity} of parity")
        } else if redundancy.shards() > most {
            format!(
                "it takes {} devices, of which no more fail together than may be lost; this pool has room for {most} shards",
                redundancy.shards()
            )
        } else if shards_parity >= copies {
            format!(
                "the metadata of this pool has {copies} copies: with {shards_parity} devices lost nobody could tell where the \
                 data is"
            )
        } else {
            return Ok(());
        };
        Err(PoolError::Impossible { reason })
    }

    /// Leaves so many free slots to the metadata, an equal number on each device, but not more than a quarter of it.
    pub fn keep_for_metadata(&self, slots: u64) {
        let each = slots.div_ceil(self.members.len().max(1) as u64);
        self.slots.lock().keep(|count| (u64::from(count) / 4).min(each) as u32);
    }

    /// Slots that metadata may still take, or as many as are kept for it, whichever is more.
    pub fn room_for_metadata(&self) -> u64 {
        self.slots.lock().room_for_metadata()
    }

    /// Which devices take part, in the order of the superblock's table.
    pub fn member_states(&self) -> Vec<MemberState> {
        let state = |member: &OnceLock<Member>| match member.get() {
            None => MemberState::Missing,
            Some(member) if member.counted() => MemberState::In,
            Some(member) if member.takes_writes() => MemberState::Returning,
            Some(_) => MemberState::Out,
        };
        self.members.iter().map(state).collect()
    }

    /// The members that are there.
    pub(crate) fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter_map(OnceLock::get)
    }

    /// Bytes that the backings of all members take, where that can be told.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.present().map(|m| m.device.allocated_bytes()).sum()
    }

    /// Bytes of the header areas that were written.
    pub fn header_bytes(&self) -> u64 {
        let map_blocks = u64::from(self.state.lock().superblock.map_blocks);
        let area = 2 * (SUPERBLOCK_BYTES as u64 + map_blocks * aegisfs_base::limits::BLOCK_BYTES as u64);
        self.present().count() as u64 * 2 * area
    }

    /// Slots that hold databases and the log.
    pub fn mapped_slots(&self) -> Vec<MapEntry> {
        self.state.lock().map.clone()
    }

    /// How many of those hold databases.
    pub fn database_slots(&self) -> u64 {
        self.database_slots.load(Ordering::Acquire)
    }

    /// Places of a mapped piece, by copy.
    pub(crate) fn mapped(&self, owner: MapOwner) -> Vec<MapEntry> {
        self.state.lock().map.iter().filter(|e| e.owner == owner).copied().collect()
    }

    /// Takes slots for all copies of something, or none: on as many devices as count, up to one for each copy,
    /// those with the most room first; copies that share a device stand far apart.
    ///
    /// A full device is no reason to put all copies on another one: losing that one would lose them all. Only the
    /// metadata may take the slots that are kept for it.
    pub(crate) fn take_mirror_slots(
        &self,
        copies: u8,
        purpose: &'static str,
        is_metadata: bool,
    ) -> Result<Vec<Placement>, PoolError> {
        self.take_slots(|slots| self.try_mirror_slots(slots, copies, purpose, is_metadata))
    }

    fn try_mirror_slots(
        &self,
        slots: &mut SlotTable,
        copies: u8,
        purpose: &'static str,
        is_metadata: bool,
    ) -> Result<Vec<Placement>, PoolError> {
        let devices = slots.devices_for_copies(usize::from(copies), is_metadata);
        let wanted = devices.len();
        if wanted == 0 {
            return Err(PoolError::NoSpace { purpose });
        }
        let parts = usize::from(copies).div_ceil(wanted) as u64;
        let mut taken = Vec::new();
        for copy in 0..usize::from(copies) {
            let device = devices[copy % wanted];
            let count = u64::from(self.member(device)?.layout.slots);
            let start = count * (copy / wanted) as u64 / parts;
            if let Some(place) = slots.take_mapped(device, start as u32) {
                taken.push(place);
            } else {
                taken.iter().for_each(|place| slots.release(*place));
                return Err(PoolError::NoSpace { purpose });
            }
        }
        Ok(taken)
    }

    /// Takes a slot for a copy of what lies in others, on the device with the most room of those that have none of them.
    ///
    /// One where no more of the `others` fail together with it than may be lost comes first; if `apart`, no other will do.
    pub(crate) fn take_slot_beside(
        &self,
        places: &[Placement],
        others: &[Placement],
        apart: bool,
        is_metadata: bool,
    ) -> Option<Placement> {
        let mut slots = self.slots.lock();
        let is_free = |device: &DeviceIndex| {
            slots.at_hand_on(*device, is_metadata) > 0 && places.iter().all(|place| place.0 != *device)
        };
        let devices = (0..self.members.len()).map(|n| DeviceIndex(n as u16));
        let room = |device: &DeviceIndex| {
            let fits = slots.fits_beside(*device, others);
            (fits, slots.is_usable(*device), slots.at_hand_on(*device, is_metadata))
        };
        let best = devices.filter(is_free).max_by_key(room)?;
        if apart && !slots.fits_beside(best, others) {
            return None;
        }
        slots.take_mapped(best, 0)
    }

    /// Takes slots. Where there are none but some that are being discarded, waits for those.
    pub(crate) fn take_slots<T>(
        &self,
        mut take: impl FnMut(&mut SlotTable) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let mut slots = self.slots.lock();
        loop {
            match take(&mut slots) {
                Err(PoolError::NoSpace { .. }) if slots.is_trimming() => self.trimmed.wait(&mut slots),
                outcome => return outcome,
            }
        }
    }

    pub(crate) fn member(&self, device: DeviceIndex) -> Result<&Member, PoolError> {
        self.members
            .get(usize::from(device.0))
            .and_then(OnceLock::get)
            .ok_or(PoolError::Absent { device, slot: SlotIndex(0) })
    }

    /// Sees to it that the superblock says that the pool is in use, and who is missing, before anything is
    /// written to a slot. Otherwise a crash would look like an orderly end, and a missing member, once it
    /// is back, like one that missed nothing.
    pub(crate) fn ensure_dirty(&self) -> Result<(), PoolError> {
        if self.dirty.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.provisional || self.dirty.load(Ordering::Acquire) {
            return Ok(());
        }
        self.enter(&mut state)
    }

    /// Publishes that the pool is in use.
    pub(crate) fn enter(&self, state: &mut State) -> Result<(), PoolError> {
        let since = state.superblock.generation.next();
        for (entry, member) in state.superblock.devices.iter_mut().zip(&self.members) {
            let counted = member.get().is_some_and(Member::counted);
            if !counted && entry.membership == Membership::In {
                entry.membership = Membership::Out { since };
            }
        }
        state.superblock.dirty = true;
        self.publish(state)?;
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Publishes that everything is in order, unless a failed write may have left something torn.
    pub(crate) fn leave(&self, state: &mut State) -> Result<(), PoolError> {
        if self.failed.load(Ordering::Acquire) {
            tracing::warn!("a device failed during this life; the next one begins as after a crash");
            return Ok(());
        }
        state.superblock.dirty = false;
        self.dirty.store(false, Ordering::Release);
        self.publish(state)
    }

    /// Writes the next generation of superblock and map to every member that is in, and flushes.
    ///
    /// A member that fails is marked out by yet another generation on the others, if they can do without it.
    pub(crate) fn publish(&self, state: &mut State) -> Result<(), PoolError> {
        if state.provisional {
            return Ok(());
        }
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        if state.map.len() > MAP_ENTRIES_MAX {
            return Err(PoolError::NoSpace { purpose: "the slot map" });
        }
        let map_bytes = map::encode(&state.map);
        loop {
            state.superblock.generation = state.superblock.generation.next();
            state.superblock.map_blocks = (map_bytes.len() / aegisfs_base::limits::BLOCK_BYTES) as u32;
            state.superblock.map_sum = sum128(&map_bytes);
            let mut failed = None;
            for (index, member) in self.members.iter().enumerate() {
                let Some(member) = member.get().filter(|m| m.takes_writes()) else { continue };
                state.superblock.device = DeviceIndex(index as u16);
                let outcome = superblocks::write(member, &state.superblock, &map_bytes)
                    .and_then(|()| if removed(Edge::SuperblockFlush) { Ok(()) } else { member.flush() });
                if let Err(error) = outcome {
                    failed = Some((index, error));
                    break;
                }
            }
            match failed {
                None => return Ok(()),
                Some((index, error)) if self.is_returning(DeviceIndex(index as u16)) => {
                    self.stop_returning(DeviceIndex(index as u16), &error);
                }
                Some((index, error)) => self.mark_out(state, index, error)?,
            }
        }
    }

    /// Notes in memory that a member is out; the caller publishes. Fails when it cannot be spared.
    fn mark_out(
        &self,
        state: &mut State,
        index: usize,
        error: aegisfs_device::DeviceError,
    ) -> Result<(), PoolError> {
        // One that is absent counts as lost too, even before the superblock calls it out.
        let lost = self.members.iter().filter(|m| !m.get().is_some_and(Member::counted)).count();
        if lost >= usize::from(self.redundancy.shards_parity) {
            self.failed.store(true, Ordering::Release);
            return Err(error.into());
        }
        tracing::error!(%error, device = index, "a device failed and is left out from now on");
        let since = state.superblock.generation;
        state.superblock.devices[index].membership = Membership::Out { since };
        if let Some(member) = self.members[index].get() {
            member.counted.store(false, Ordering::Release);
        }
        self.slots.lock().set_usable(DeviceIndex(index as u16), false);
        Ok(())
    }

    /// Marks a failed member out, durably on the others, so that work can go on without it. One that was about to return
    /// stays out.
    pub(crate) fn expel(
        &self,
        device: DeviceIndex,
        error: aegisfs_device::DeviceError,
    ) -> Result<(), PoolError> {
        let mut state = self.state.lock();
        let index = usize::from(device.0);
        self.stop_returning(device, &error);
        if state.superblock.devices[index].membership == Membership::In {
            self.mark_out(&mut state, index, error)?;
            self.publish(&mut state)?;
        }
        Ok(())
    }

    /// Makes everything durable that was written to any member and has returned.
    ///
    /// # Errors
    /// When a flush fails on a member that cannot be spared.
    pub fn flush(&self) -> Result<(), PoolError> {
        let dirty: Vec<usize> = (0..self.members.len())
            .filter(|n| self.members[*n].get().is_some_and(|m| m.takes_writes() && m.needs_flush()))
            .collect();
        together(&dirty, |index| {
            let device = DeviceIndex(*index as u16);
            match self.member(device)?.flush() {
                Ok(()) => Ok(()),
                Err(error) => self.expel(device, error),
            }
        })
    }
}
