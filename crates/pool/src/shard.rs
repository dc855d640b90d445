//! Bytes to and from slots.

use crate::PoolError;
use crate::pool::{Pool, Redundancy};
use crate::slots::Placement;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{DeviceIndex, SegmentId};
use aegisfs_device::AlignedBuffer;
use aegisfs_format::map::{MapEntry, MapOwner};
use aegisfs_format::slot::{SlotContent, SlotHeader};

impl Pool {
    /// Whether a slot's device is there and its content counts.
    pub fn readable(&self, (device, _): Placement) -> bool {
        self.member(device).is_ok_and(crate::member::Member::counted)
    }

    /// Reads from a slot.
    ///
    /// # Errors
    /// When the device is missing or fails. Nothing is verified here: the caller knows what it expects.
    pub fn read_slot(&self, (device, slot): Placement, offset: u64, out: &mut [u8]) -> Result<(), PoolError> {
        let member = self.member(device)?;
        if !member.counted() || slot.0 >= member.layout.slots {
            return Err(PoolError::Absent { device, slot });
        }
        Ok(member.read(member.layout.slot_offset(slot) + offset, out)?)
    }

    /// The same of a device that hesitates, if the bytes can be had elsewhere: nobody waits long for it.
    ///
    /// # Errors
    /// As [`Pool::read_slot`], and [`PoolError::Slow`] when it took too long.
    pub fn read_slot_soon(
        &self,
        (device, slot): Placement,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), PoolError> {
        let Some(patience) = self.patience_with(device, out.len()) else {
            return self.read_slot((device, slot), offset, out);
        };
        let member = self.member(device)?;
        if !member.counted() || slot.0 >= member.layout.slots {
            return Err(PoolError::Absent { device, slot });
        }
        let outcome = member.read_within(member.layout.slot_offset(slot) + offset, out, patience);
        Ok(outcome.ok_or(PoolError::Slow { device })??)
    }

    /// Writes to a slot; durable after the next [`Pool::flush`]. A member that is out is skipped, and one
    /// that fails and can be spared is marked out first.
    ///
    /// # Errors
    /// When the pool is read-only, or a device fails that cannot be spared.
    pub fn write_slot(&self, (device, slot): Placement, offset: u64, data: &[u8]) -> Result<(), PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        let Ok(member) = self.member(device) else { return Ok(()) };
        if !member.takes_writes() {
            return Ok(());
        }
        assert!(offset + data.len() as u64 <= self.slot_bytes(), "a write stays within its slot");
        self.ensure_dirty()?;
        match self.write_checked(member, member.layout.slot_offset(slot) + offset, data) {
            Ok(()) => Ok(()),
            Err(error) => self.expel(device, error),
        }
    }

    /// Writes the same to every copy's slot. One copy on a member that counts is enough.
    ///
    /// # Errors
    /// As [`Pool::write_slot`], and when none of the copies is on a member that counts.
    pub(crate) fn write_copies(
        &self,
        places: &[Placement],
        offset: u64,
        data: &[u8],
    ) -> Result<(), PoolError> {
        for place in places {
            self.write_slot(*place, offset, data)?;
        }
        if places.iter().any(|place| self.readable(*place)) {
            return Ok(());
        }
        let (device, slot) = places.first().copied().unwrap_or_default();
        Err(PoolError::Absent { device, slot })
    }

    /// Takes slots for a segment and writes their headers; one that is not wide has one shard of data, and parity as the others.
    /// Returns how many there are of data and of parity, and where.
    ///
    /// # Errors
    /// When there is no room, or a device fails.
    pub fn open_segment(
        &self,
        segment: SegmentId,
        redundancy: Redundancy,
        wide: bool,
    ) -> Result<((u8, u8), Vec<Placement>), PoolError> {
        self.open_segment_apart(segment, redundancy, wide, &[])
    }

    /// The same on none of some devices, if there is room elsewhere that is as good.
    ///
    /// # Errors
    /// As [`Pool::open_segment`].
    pub fn open_segment_apart(
        &self,
        segment: SegmentId,
        redundancy: Redundancy,
        wide: bool,
        others: &[DeviceIndex],
    ) -> Result<((u8, u8), Vec<Placement>), PoolError> {
        let (shards, places) = self.take_slots(|slots| {
            // Asked with the slots held: a device may be left out at any time.
            let (data, parity) = slots.shards_of(redundancy, wide);
            let places = slots.place(usize::from(data) + usize::from(parity), usize::from(parity), others)?;
            Ok(((data, parity), places))
        })?;
        for (member, place) in places.iter().enumerate() {
            let content = SlotContent::Segment { segment, shards };
            if let Err(error) = self.write_header(*place, content, member as u8) {
                self.abandon(&places);
                return Err(error);
            }
        }
        Ok((shards, places))
    }

    /// Whether there is room for such a segment on none of some devices.
    pub fn has_room_apart(&self, redundancy: Redundancy, wide: bool, others: &[DeviceIndex]) -> bool {
        let slots = self.slots.lock();
        let (data, parity) = slots.shards_of(redundancy, wide);
        slots.choose_apart(usize::from(data) + usize::from(parity), usize::from(parity), others).is_some()
    }

    pub(crate) fn write_mapped_header(&self, entry: &MapEntry) -> Result<(), PoolError> {
        let content = match entry.owner {
            MapOwner::Database(number) => SlotContent::Database { number, piece: entry.piece },
            MapOwner::Log => SlotContent::Log { piece: entry.piece },
        };
        self.write_header((entry.device, entry.slot), content, entry.copy)
    }

    fn write_header(&self, place: Placement, content: SlotContent, member: u8) -> Result<(), PoolError> {
        self.write_slot(place, 0, &self.header(place, content, member).encode())
    }

    fn header(&self, (device, slot): Placement, content: SlotContent, member: u8) -> SlotHeader {
        let state = self.state.lock();
        let incarnation = state.superblock.incarnations.first().copied().unwrap_or_default();
        let device_uuid = state.superblock.devices[usize::from(device.0)].uuid;
        SlotHeader { content, member, device, slot, incarnation, pool: state.superblock.pool, device_uuid }
    }

    /// Reads the header of a segment's slot. Returns what it should be and what is wrong with it, if anything is.
    ///
    /// # Errors
    /// When the device is missing or fails.
    pub fn wrong_header(
        &self,
        place: Placement,
        segment: SegmentId,
        shards: (u8, u8),
        member: u8,
    ) -> Result<Option<(Vec<u8>, String)>, PoolError> {
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        self.read_slot(place, 0, &mut block)?;
        Ok(self.compare_header(place, SlotContent::Segment { segment, shards }, member, &block))
    }

    /// What a header should be and what is wrong with the one that was read, if anything is.
    pub(crate) fn compare_header(
        &self,
        place: Placement,
        content: SlotContent,
        member: u8,
        block: &[u8],
    ) -> Option<(Vec<u8>, String)> {
        let right = self.header(place, content, member);
        let problem = match SlotHeader::decode(block) {
            // Somebody before may have written it.
            Ok(found) if (SlotHeader { incarnation: found.incarnation, ..right }) == found => return None,
            Ok(_) => "slot header: it names another segment or place".to_owned(),
            Err(error) => error.to_string(),
        };
        Some((right.encode(), problem))
    }

    /// Notes that a slot is used by a segment, while the metadata is read at opening.
    ///
    /// Says whether it is a segment's now; if not, the metadata or the log has it, or there is no such slot.
    pub fn claim_slot(&self, place: Placement) -> bool {
        let mut slots = self.slots.lock();
        slots.claim(place, false) || slots.is_used(place)
    }

    /// Notes that a segment's slots become free with the next checkpoint.
    pub fn begin_release(&self, places: &[Placement]) {
        if removed(Edge::SlotsTrimmedAfterCheckpoint) {
            self.forget_too_early(places);
        }
        let mut slots = self.slots.lock();
        for place in places {
            if removed(Edge::SlotsFreedAfterCheckpoint) {
                slots.release(*place);
            } else {
                slots.begin_release(*place);
            }
        }
    }

    /// Frees slots after the checkpoint that says so is durable. The devices forget them
    /// [later](Pool::trim_step), unless somebody takes them before.
    pub fn finish_release(&self, places: &[Placement]) {
        if removed(Edge::SlotsFreedAfterCheckpoint) {
            return;
        }
        let mut slots = self.slots.lock();
        for place in places {
            slots.release(*place);
        }
    }

    /// Gives back slots of a segment that nothing durable mentions.
    pub fn abandon(&self, places: &[Placement]) {
        let mut slots = self.slots.lock();
        for place in places {
            slots.release(*place);
        }
    }
}
