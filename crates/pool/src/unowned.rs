//! Slots in use that nothing refers to: all are suspected, and whoever has an owner is acquitted.

use crate::pool::Pool;
use crate::slots::{Placement, UnownedSlot};

impl Pool {
    /// Suspects every slot in use of being referred to by nothing, until it is [acquitted](Pool::acquit_slots), given to
    /// somebody or given back. One bit for each slot is kept meanwhile.
    pub fn suspect_slots(&self) {
        self.slots.lock().suspect_all();
    }

    /// Notes that something refers to slots.
    pub fn acquit_slots(&self, places: &[Placement]) {
        let mut slots = self.slots.lock();
        places.iter().for_each(|place| slots.acquit(*place));
    }

    /// The first so many slots that are still suspected, after those were acquitted that are mapped.
    pub fn suspected_slots(&self, most: usize) -> Vec<UnownedSlot> {
        // A slot that is being mapped is in use before the map says so, never after.
        let state = self.state.lock();
        let mut slots = self.slots.lock();
        state.map.iter().for_each(|entry| slots.acquit((entry.device, entry.slot)));
        slots.suspects(most)
    }

    /// Notes that a slot taken for a segment becomes free with the next checkpoint, if it is suspected to this moment.
    pub fn begin_release_suspect(&self, place: Placement) -> bool {
        let mut slots = self.slots.lock();
        let is_suspect = slots.is_suspect(place);
        if is_suspect {
            slots.begin_release(place);
        }
        is_suspect
    }

    /// Ends what [`Pool::suspect_slots`] began.
    pub fn forget_suspects(&self) {
        self.slots.lock().forget_suspects();
    }
}
