//! A member that was away comes back: it is brought up to date while the pool is in use, and then counts again.
//!
//! 1. From [`Pool::begin_return`] on, what is written to its slots reaches it; nothing is read from it. Segments are still
//!    placed without it.
//! 2. What it missed is written to it: segments by the store, which knows them; pieces of databases by
//!    [`Database::bring_up_to_date`](crate::Database::bring_up_to_date). The log needs nothing but a checkpoint: everything
//!    behind that reaches it.
//! 3. From [`Pool::place_on`] on new segments have a part of it as well, so that what was written without it can be stored
//!    anew. Only then is nothing left that the others hold alone.
//! 4. [`Pool::finish_return`] flushes it and notes on all that it is in.
//!
//! Until then it is out on all devices, itself included, so after a crash or another failure at any time it begins anew. What it
//! held before is gone from the first step on.

use crate::open::own_uuid;
use crate::pool::{MemberState, Pool};
use crate::slots::Placement;
use crate::{PoolError, superblocks};
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{DeviceIndex, SegmentId, SlotIndex};
use aegisfs_device::{AlignedBuffer, Device, DeviceError};
use aegisfs_format::slot::SlotContent;
use aegisfs_format::superblock::{Health, Membership};
use std::sync::atomic::Ordering;

/// It failed again while it was brought up to date.
const fn failed(device: DeviceIndex) -> PoolError {
    PoolError::Absent { device, slot: SlotIndex(0) }
}

impl Pool {
    /// Members that are there, and lack what was written without them. Those that were given up stay that.
    pub fn stale_members(&self) -> Vec<DeviceIndex> {
        let states = self.member_states();
        let is_stale = |state: MemberState| matches!(state, MemberState::Out | MemberState::Returning);
        (0..)
            .map(DeviceIndex)
            .zip(states)
            .filter(|(device, state)| is_stale(*state) && self.health(*device) != Health::Failed)
            .map(|(device, _)| device)
            .collect()
    }

    /// Opens a member that is out anew, and sees whether it is the one it should be and answers everywhere.
    ///
    /// # Errors
    /// When it is not, or does not.
    pub fn revive(&self, device: DeviceIndex) -> Result<(), PoolError> {
        let member = self.member(device)?;
        if member.takes_writes() {
            return Ok(());
        }
        let uuid = self.state.lock().superblock.devices[usize::from(device.0)].uuid;
        let is_it = |device: &dyn Device| {
            superblocks::read_newest(device).is_ok_and(|found| own_uuid(&found.superblock) == uuid)
        };
        member.device.reopen(&is_it)?;
        // Somebody may have written to it meanwhile.
        let found = superblocks::read_newest(&*member.device)?.superblock;
        self.refuse_apart(&self.superblock(), &found, &member.device.describe())?;
        match self.probe(device)?.problem {
            None => Ok(()),
            Some(problem) => {
                Err(PoolError::Impossible { reason: format!("device {device} cannot come back: {problem}") })
            }
        }
    }

    /// Has a stale member get what is written from now on.
    ///
    /// # Errors
    /// When the pool may not be written, or the member is not there.
    pub fn begin_return(&self, device: DeviceIndex) -> Result<(), PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        self.ensure_dirty()?;
        let mut state = self.state.lock();
        if state.superblock.devices[usize::from(device.0)].health == Health::Failed {
            return Err(failed(device));
        }
        self.member(device)?.returning.store(true, Ordering::Release);
        // From here on it is neither what it was nor what it should be. Alone it must not take itself for a member, which its
        // own superblock says until now; twice, so that both of its places say so.
        self.publish(&mut state)?;
        self.publish(&mut state)?;
        if self.is_returning(device) { Ok(()) } else { Err(failed(device)) }
    }

    /// Lets new segments be placed on a member that gets what is written.
    pub fn place_on(&self, device: DeviceIndex) {
        let mut slots = self.slots.lock();
        // Whoever ends its return takes this lock as well.
        slots.set_usable(device, self.is_returning(device));
    }

    /// Whether what is written to a slot reaches it.
    pub fn is_written(&self, (device, _): Placement) -> bool {
        self.member(device).is_ok_and(crate::member::Member::takes_writes)
    }

    /// Whether a member still gets what is written; it does not after a write to it has failed.
    pub fn is_returning(&self, device: DeviceIndex) -> bool {
        self.member(device).is_ok_and(|member| !member.counted() && member.takes_writes())
    }

    pub(crate) fn stop_returning(&self, device: DeviceIndex, error: &DeviceError) {
        if self.abandon_return(device) {
            tracing::error!(%error, device = device.0, "a device that was coming back failed again and stays out");
        }
    }

    /// Gives up bringing a member up to date. Says whether that went on.
    pub fn abandon_return(&self, device: DeviceIndex) -> bool {
        let Ok(member) = self.member(device) else { return false };
        let was_returning = member.returning.swap(false, Ordering::AcqRel);
        if was_returning {
            self.slots.lock().set_usable(device, false);
        }
        was_returning
    }

    /// Reads from a slot of a member that does not count, to see what it has already.
    ///
    /// # Errors
    /// When the device is missing or fails.
    pub fn read_returning(
        &self,
        (device, slot): Placement,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), PoolError> {
        let member = self.member(device)?;
        if slot.0 >= member.layout.slots {
            return Err(PoolError::Absent { device, slot });
        }
        Ok(member.read(member.layout.slot_offset(slot) + offset, out)?)
    }

    /// The header that a slot of a segment should have, if it has not.
    pub fn header_lacking(
        &self,
        place: Placement,
        segment: SegmentId,
        shards: (u8, u8),
        member: u8,
    ) -> Option<Vec<u8>> {
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        if self.read_returning(place, 0, &mut block).is_err() {
            // What a failed read left there says nothing; zeros are no header.
            block.fill(0);
        }
        self.compare_header(place, SlotContent::Segment { segment, shards }, member, &block)
            .map(|(right, _)| right)
    }

    /// Has a member count again that holds everything now. What was written to it is flushed first.
    ///
    /// # Errors
    /// When it failed meanwhile, or a superblock cannot be written.
    pub fn finish_return(&self, device: DeviceIndex) -> Result<(), PoolError> {
        let mut state = self.state.lock();
        let member = self.member(device)?;
        if !self.is_returning(device) {
            return Err(failed(device));
        }
        member.flush().inspect_err(|error| self.stop_returning(device, error))?;
        // What it did before it was away says nothing about what it is now.
        member.activity.forgive();
        state.superblock.devices[usize::from(device.0)].membership = Membership::In;
        // Its copy of the superblock is written with all others.
        member.counted.store(true, Ordering::Release);
        member.returning.store(false, Ordering::Release);
        // Twice, so that both of its places are whole.
        self.publish(&mut state)?;
        self.publish(&mut state)?;
        if !member.counted() {
            return Err(failed(device));
        }
        tracing::info!(device = device.0, "a device that was away holds everything again");
        Ok(())
    }
}
