//! Copies of a database's pieces on a member that comes back, and copies that share a device although they need not.

use super::{Database, FIRST};
use crate::PoolError;
use crate::slots::Placement;
use aegisfs_base::DeviceIndex;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_device::AlignedBuffer;
use aegisfs_format::map::{MapEntry, MapOwner};

impl Database {
    /// Pieces that have slots.
    pub fn pieces(&self) -> u32 {
        self.pieces.read().len() as u32
    }

    /// Writes a piece to its copies on a returning member, from the others. Returns the bytes written. Nobody writes the
    /// database meanwhile; readers go on.
    ///
    /// # Errors
    /// When no copy of a page verifies, or a device fails.
    pub fn bring_up_to_date(&self, piece: u32, device: DeviceIndex) -> Result<u64, PoolError> {
        let _writing = self.sync.lock();
        let (stale, sound): (Vec<Placement>, Vec<Placement>) =
            self.places(piece).into_iter().partition(|place| place.0 == device);
        if stale.is_empty() || !sound.iter().any(|place| self.pool.readable(*place)) {
            return Ok(0);
        }
        self.copy_piece(piece, &sound, &stale)
    }

    /// Writes everything that a piece holds to other slots. The caller holds `sync`.
    pub(super) fn copy_piece(
        &self,
        piece: u32,
        from: &[Placement],
        to: &[Placement],
    ) -> Result<u64, PoolError> {
        let mut bytes = 0;
        let mut write = |offset: u64, data: &[u8]| -> Result<(), PoolError> {
            for place in to {
                self.pool.write_slot(*place, offset, data)?;
                bytes += data.len() as u64;
            }
            Ok(())
        };
        for entry in self.pool.mapped(MapOwner::Database(self.number)) {
            if entry.piece == piece && to.contains(&(entry.device, entry.slot)) {
                self.pool.write_mapped_header(&entry)?;
            }
        }
        // Checksum blocks as they are, in both of their places: which one counts depends on what a crash leaves.
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        for group in 0..self.layout.groups {
            for copy in 0..2 {
                let offset = self.layout.sum_block_offset(group, copy);
                if self.read_sum_block(piece, group, copy, from, &mut block) {
                    write(offset, &block)?;
                }
            }
        }
        if piece == 0 {
            // The first page stands in two places as well. The one that does not count may be torn, and is copied so.
            for offset in [self.layout.page_offset(0), self.layout.first_page_twin_offset()] {
                if from.iter().any(|place| self.pool.read_slot(*place, offset, &mut block).is_ok()) {
                    write(offset, &block)?;
                }
            }
        }
        for number in 0..self.layout.pages {
            let (entry, generation) = self.page_entry(piece, number)?;
            if entry.counter == 0 {
                continue;
            }
            // What waits in memory has no checksum there yet.
            let page = u64::from(piece) * u64::from(self.layout.pages) + u64::from(number);
            self.read_stored(page, &mut block)?;
            write(self.page_place(piece, number, generation), &block)?;
        }
        Ok(bytes)
    }

    /// Gives copies of a piece that share a device places of their own, if there are devices for that. Returns the bytes
    /// written.
    ///
    /// # Errors
    /// When there is no room, no copy of a page verifies, or a device fails.
    pub fn spread(&self, piece: u32) -> Result<u64, PoolError> {
        let _writing = self.sync.lock();
        let places = self.places(piece);
        let mut bytes = 0;
        if !places.iter().any(|place| self.pool.readable(*place)) {
            // There is nothing to copy from.
            return Ok(0);
        }
        for copy in 0..places.len() {
            let places = self.places(piece);
            let shares = places[..copy].iter().any(|other| other.0 == places[copy].0);
            // Devices that fail together are as bad as one, where there are others.
            let crowds = !self.pool.slots.lock().fits_beside(places[copy].0, &places[..copy]);
            let must = shares || !self.pool.is_written(places[copy]);
            if !must && !crowds {
                continue;
            }
            let others: Vec<Placement> =
                places.iter().copied().filter(|place| *place != places[copy]).collect();
            let taken = self.pool.take_slot_beside(&places, &others, !must, self.number == FIRST);
            if let Some(place) = taken {
                bytes += self.move_copy(piece, copy, &places, place)?;
            }
        }
        Ok(bytes)
    }

    /// Whether copies of a piece share a device although there are devices for all of them.
    pub fn is_crowded(&self, piece: u32) -> bool {
        let places = self.places(piece);
        let kept: Vec<Placement> =
            places.iter().copied().filter(|place| self.pool.is_written(*place)).collect();
        let mut devices: Vec<_> = kept.iter().map(|place| place.0).collect();
        devices.sort_unstable();
        devices.dedup();
        let slots = self.pool.slots.lock();
        let possible = places.len().min(slots.width());
        let crowds = devices.len() < possible || slots.is_crowded(&kept, slots.parity);
        drop(slots);
        crowds && kept.iter().any(|place| self.pool.readable(*place))
    }

    /// Moves one copy of a piece to a slot that was taken for it. The caller holds `sync`.
    fn move_copy(
        &self,
        piece: u32,
        copy: usize,
        places: &[Placement],
        place: Placement,
    ) -> Result<u64, PoolError> {
        let owner = MapOwner::Database(self.number);
        let entry = MapEntry { owner, piece, copy: copy as u8, device: place.0, slot: place.1 };
        let written = self.copy_piece(piece, places, &[place]).and_then(|bytes| {
            self.pool.write_mapped_header(&entry)?;
            // The map must never lead to what is not there yet.
            self.pool.flush()?;
            Ok(bytes)
        });
        let bytes = written.inspect_err(|_| self.pool.abandon(&[place]))?;
        let old = places[copy];
        let is_old = |entry: &MapEntry| entry.owner == owner && (entry.device, entry.slot) == old;
        let mut state = self.pool.state.lock();
        let before = state.map.clone();
        let Some(found) = state.map.iter_mut().find(|entry| is_old(entry)) else {
            drop(state);
            // It is not in use any more.
            self.pool.abandon(&[place]);
            return Ok(0);
        };
        *found = entry;
        if let Err(error) = self.pool.publish(&mut state) {
            // Some device may have the new map all the same, so both slots stay taken until the pool is opened again.
            state.map = before;
            return Err(error);
        }
        drop(state);
        self.pieces.write()[piece as usize][copy] = place;
        self.pool.abandon(&[old]);
        Ok(bytes)
    }
}
