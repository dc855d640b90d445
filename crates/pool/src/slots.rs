//! Which slots are free, and where new segments go.

use crate::PoolError;
use aegisfs_base::{DeviceIndex, SlotIndex};

/// A slot of a device.
pub type Placement = (DeviceIndex, SlotIndex);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Used,
    /// Nothing refers to it any more, but the checkpoint that says so is not yet durable.
    Freeing,
}

#[derive(Debug)]
struct DeviceSlots {
    states: Vec<SlotState>,
    free: u32,
    /// Those that will be free, counted so that nobody has to walk over all.
    freeing: u32,
    /// Where the last search ended; searching on from there keeps a log sequential.
    cursor: u32,
    /// Whether new segments may be placed here.
    usable: bool,
}

/// Room in the pool, in slots of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Slots of all members.
    pub slots: u64,
    /// Slots that nothing uses.
    pub free: u64,
    /// Slots that will be free after the next checkpoint.
    pub freeing: u64,
    /// Segments of the default geometry that can still be placed.
    pub segments_placeable: u64,
}

/// The state of every slot.
#[derive(Debug)]
pub(crate) struct SlotTable {
    devices: Vec<DeviceSlots>,
}

impl SlotTable {
    pub(crate) fn new(slots: impl Iterator<Item = (u32, bool)>) -> Self {
        let devices = slots
            .map(|(count, usable)| DeviceSlots {
                states: vec![SlotState::Free; count as usize],
                free: count,
                freeing: 0,
                cursor: 0,
                usable,
            })
            .collect();
        Self { devices }
    }

    /// Notes that a slot is used. Says whether it was free before.
    pub(crate) fn claim(&mut self, (device, slot): Placement) -> bool {
        let Some(slots) = self.devices.get_mut(usize::from(device.0)) else { return false };
        let Some(state) = slots.states.get_mut(slot.0 as usize) else { return false };
        if *state != SlotState::Free {
            return false;
        }
        *state = SlotState::Used;
        slots.free -= 1;
        true
    }

    pub(crate) fn set_usable(&mut self, device: DeviceIndex, usable: bool) {
        self.devices[usize::from(device.0)].usable = usable;
    }

    /// Takes a free slot of a device, searching from where the last search ended, or from `start`.
    pub(crate) fn take(&mut self, device: DeviceIndex, start: Option<u32>) -> Option<Placement> {
        let slots = &mut self.devices[usize::from(device.0)];
        if slots.free == 0 {
            return None;
        }
        let count = slots.states.len() as u32;
        let from = start.unwrap_or(slots.cursor) % count;
        let found = (from..count).chain(0..from).find(|n| slots.states[*n as usize] == SlotState::Free)?;
        slots.states[found as usize] = SlotState::Used;
        slots.free -= 1;
        if start.is_none() {
            slots.cursor = found + 1;
        }
        Some((device, SlotIndex(found)))
    }

    /// Gives a slot back at once: nothing durable refers to it.
    ///
    /// # Panics
    /// When it was not in use.
    pub(crate) fn release(&mut self, (device, slot): Placement) {
        let slots = &mut self.devices[usize::from(device.0)];
        let state = &mut slots.states[slot.0 as usize];
        assert_ne!(*state, SlotState::Free, "slot {slot} of device {device} freed twice");
        slots.freeing -= u32::from(*state == SlotState::Freeing);
        *state = SlotState::Free;
        slots.free += 1;
    }

    /// Notes that a slot will be free once the next checkpoint is durable.
    ///
    /// # Panics
    /// When it was not in use.
    pub(crate) fn begin_release(&mut self, (device, slot): Placement) {
        let slots = &mut self.devices[usize::from(device.0)];
        let state = &mut slots.states[slot.0 as usize];
        assert_eq!(*state, SlotState::Used, "slot {slot} of device {device} freed twice");
        *state = SlotState::Freeing;
        slots.freeing += 1;
    }

    /// Slots for a segment: on different devices, those with the most room first.
    pub(crate) fn place(&mut self, members: usize) -> Result<Vec<Placement>, PoolError> {
        let mut order: Vec<usize> = (0..self.devices.len())
            .filter(|d| self.devices[*d].usable && self.devices[*d].free > 0)
            .collect();
        if order.len() < members {
            return Err(PoolError::NoSpace { purpose: "a segment" });
        }
        order.sort_by_key(|d| std::cmp::Reverse(self.devices[*d].free));
        let placed = order[..members]
            .iter()
            .map(|d| self.take(DeviceIndex(*d as u16), None).expect("it has a free slot"))
            .collect();
        Ok(placed)
    }

    pub(crate) fn free_on(&self, device: DeviceIndex) -> u32 {
        let slots = &self.devices[usize::from(device.0)];
        if slots.usable { slots.free } else { 0 }
    }

    /// What room there is for segments of so many members.
    pub(crate) fn space(&self, members: usize) -> Space {
        let free: Vec<u64> = self.devices.iter().filter(|d| d.usable).map(|d| u64::from(d.free)).collect();
        // With members missing, segments have fewer shards rather than no place.
        let members = members.min(free.len()).max(1);
        Space {
            slots: self.devices.iter().map(|d| d.states.len() as u64).sum(),
            free: self.devices.iter().map(|d| u64::from(d.free)).sum(),
            freeing: self.devices.iter().map(|d| u64::from(d.freeing)).sum(),
            segments_placeable: segments_placeable(&free, members as u64),
        }
    }
}

/// The largest S with sum(min(free, S)) >= S * members: each segment takes at most one slot per device.
fn segments_placeable(free: &[u64], members: u64) -> u64 {
    let fits = |s: u64| free.iter().map(|f| (*f).min(s)).sum::<u64>() >= s * members;
    let (mut low, mut high) = (0, free.iter().sum::<u64>() / members.max(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_sizes_hold_what_the_geometry_allows() {
        assert_eq!(segments_placeable(&[10], 1), 10);
        assert_eq!(segments_placeable(&[10, 4], 2), 4);
        assert_eq!(segments_placeable(&[4, 2, 2, 1, 1, 1], 2), 5);
        assert_eq!(segments_placeable(&[8, 2, 2, 1, 1, 1], 2), 7);
        assert_eq!(segments_placeable(&[3, 3, 3], 2), 4);
        assert_eq!(segments_placeable(&[], 1), 0);
        assert_eq!(segments_placeable(&[5], 2), 0);
    }

    #[test]
    fn slots_are_taken_once_and_come_back() {
        let mut table = SlotTable::new([(3, true), (2, true)].into_iter());
        let first = table.place(2).unwrap();
        assert_eq!(first.len(), 2);
        assert_ne!(first[0].0, first[1].0);
        table.place(2).unwrap();
        assert!(matches!(table.place(2), Err(PoolError::NoSpace { .. })));
        assert_eq!(table.space(1).free, 1);
        table.begin_release(first[0]);
        assert_eq!((table.space(1).free, table.space(1).freeing), (1, 1));
        table.release(first[0]);
        assert_eq!((table.space(1).free, table.space(1).freeing), (2, 0));
        assert!(table.claim(first[0]));
        assert!(!table.claim(first[0]));
        assert!(!table.claim((DeviceIndex(9), SlotIndex(0))));
    }
}
