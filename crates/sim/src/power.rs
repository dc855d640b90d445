//! What is found on the devices after the power was cut.
//!
//! A device keeps what its last flush covered. Of what came later each write may be lost, may have arrived
//! whole, or in part: the first sectors of it, or any of them. Writes to the same place arrive in order.

use crate::explore::CrashPoint;
use crate::trace::{Action, Trace};
use crate::world::SimWorld;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::{Device, MemoryDevice};

/// What a device writes in one piece, whatever happens.
pub(crate) const SECTOR_BYTES: usize = 512;
const SECTORS_PER_BLOCK: usize = BLOCK_BYTES / SECTOR_BYTES;

/// Cuts the power again and again, at events that only go forward.
///
/// The flushed content is kept and moved along; a cut copies its pointers and lays over it what was not
/// yet flushed, so that its price is that of the unflushed writes.
pub struct PowerCutter<'a> {
    trace: &'a Trace,
    next: usize,
    flushed: Vec<MemoryDevice>,
    /// By device, the places in the trace of what no flush has covered.
    pending: Vec<Vec<usize>>,
}

impl<'a> PowerCutter<'a> {
    /// Stands at the beginning of the trace.
    pub fn new(trace: &'a Trace) -> Self {
        let flushed: Vec<_> = trace.start.iter().map(MemoryDevice::snapshot).collect();
        let pending = vec![Vec::new(); flushed.len()];
        Self { trace, next: 0, flushed, pending }
    }

    /// The world after a cut; its devices begin a trace of their own.
    ///
    /// # Panics
    /// When the point lies before that of an earlier call, or behind the trace.
    pub fn cut(&mut self, point: CrashPoint) -> SimWorld {
        self.advance(usize::try_from(point.event).expect("traces fit in memory"));
        let images = (0..self.flushed.len()).map(|device| self.image(device, point)).collect();
        SimWorld::from_images(images)
    }

    fn advance(&mut self, event: usize) {
        assert!(self.next <= event && event <= self.trace.records.len(), "cuts go forward");
        while self.next < event {
            let record = &self.trace.records[self.next];
            let pending = &mut self.pending[record.device];
            if record.action == Action::Flush {
                for place in pending.drain(..) {
                    apply(&self.flushed[record.device], &self.trace.records[place].action, &|_| true);
                }
            } else {
                pending.push(self.next);
            }
            self.next += 1;
        }
    }

    fn image(&self, device: usize, point: CrashPoint) -> MemoryDevice {
        let image = self.flushed[device].snapshot();
        let pending = &self.pending[device];
        let mut actions = pending.iter().map(|place| &self.trace.records[*place].action);
        match point.subset {
            0 => {}
            1 => actions.for_each(|action| apply(&image, action, &|_| true)),
            2 => actions.next_back().into_iter().for_each(|action| apply(&image, action, &|_| true)),
            seed => {
                let rng = SeededRng::new(mix(&[point.event, seed, device as u64]));
                // Some caches lose nearly everything, some hardly anything.
                let arriving = 1 + rng.below(7);
                actions.for_each(|action| arrive(&image, action, arriving, &rng));
            }
        }
        image
    }
}

/// Lets an unflushed action happen, in part, or not; `arriving` eighths of them happen.
fn arrive(image: &MemoryDevice, action: &Action, arriving: u64, rng: &SeededRng) {
    if rng.below(8) >= arriving {
        return;
    }
    let sectors = match action {
        Action::Write { data, .. } => (data.len() / SECTOR_BYTES) as u64,
        Action::Discard { length, .. } => length / SECTOR_BYTES as u64,
        Action::Flush => return,
    };
    match rng.below(4) {
        0 => {
            let torn_at = rng.below(sectors.max(1));
            apply(image, action, &|sector| (sector as u64) < torn_at);
        }
        1 => {
            let seed = rng.next_u64();
            apply(image, action, &|sector| mix(&[seed, sector as u64]) & 1 == 0);
        }
        _ => apply(image, action, &|_| true),
    }
}

/// Writes those sectors of an action that arrive. A discard works on whole blocks.
fn apply(image: &MemoryDevice, action: &Action, arrives: &dyn Fn(usize) -> bool) {
    match action {
        Action::Write { offset, data } => {
            for (n, block) in data.chunks_exact(BLOCK_BYTES).enumerate() {
                let at = offset + (n * BLOCK_BYTES) as u64;
                write_sectors(image, at, block, &|sector| arrives(n * SECTORS_PER_BLOCK + sector));
            }
        }
        Action::Discard { offset, length } => {
            let blocks = usize::try_from(*length).expect("devices fit in memory") / BLOCK_BYTES;
            for n in (0..blocks).filter(|n| arrives(n * SECTORS_PER_BLOCK)) {
                let at = offset + (n * BLOCK_BYTES) as u64;
                image.discard(at, BLOCK_BYTES as u64).expect("the trace stays within the device");
            }
        }
        Action::Flush => {}
    }
}

fn write_sectors(image: &MemoryDevice, at: u64, block: &[u8], arrives: &dyn Fn(usize) -> bool) {
    let arriving = (0..SECTORS_PER_BLOCK).filter(|sector| arrives(*sector)).count();
    if arriving == 0 {
        return;
    }
    let mut mixed = [0u8; BLOCK_BYTES];
    if arriving < SECTORS_PER_BLOCK {
        image.read_at(at, &mut mixed).expect("the trace stays within the device");
    }
    for sector in (0..SECTORS_PER_BLOCK).filter(|sector| arrives(*sector)) {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        mixed[range.clone()].copy_from_slice(&block[range]);
    }
    image.write_at(at, &mixed).expect("the trace stays within the device");
}

/// One number from several; near ones give far ones.
pub(crate) fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x5eed, |so_far, part| {
        let mut z = (so_far ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(device: &dyn Device, at: u64) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        device.read_at(at, &mut bytes).unwrap();
        bytes
    }

    /// Flushed 1 at 0; then unflushed 2 at 0 and 3 at 4096; then nothing more.
    fn sample() -> Trace {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        device.write_at(0, &[1; BLOCK_BYTES]).unwrap();
        device.flush().unwrap();
        device.write_at(0, &[2; BLOCK_BYTES]).unwrap();
        device.write_at(4096, &[3; BLOCK_BYTES]).unwrap();
        world.trace()
    }

    fn found(trace: &Trace, event: u64, subset: u64) -> (u8, u8) {
        let world = PowerCutter::new(trace).cut(CrashPoint { event, subset });
        let device = world.device(0);
        (block(&*device, 0)[0], block(&*device, 4096)[0])
    }

    #[test]
    fn flushed_writes_stay_and_fixed_subsets_are_what_they_say() {
        let trace = sample();
        for subset in 0..20 {
            assert!(matches!(found(&trace, 2, subset), (1, 0)), "nothing is pending right after the flush");
        }
        assert_eq!(found(&trace, 1, 0), (0, 0));
        assert_eq!(found(&trace, 1, 1), (1, 0));
        assert_eq!(found(&trace, 4, 0), (1, 0));
        assert_eq!(found(&trace, 4, 1), (2, 3));
        assert_eq!(found(&trace, 4, 2), (1, 3));
    }

    #[test]
    fn random_subsets_lose_tear_and_keep_writes_and_repeat() {
        let trace = sample();
        let mut cutter = PowerCutter::new(&trace);
        let (mut lost, mut whole, mut torn) = (0, 0, 0);
        for subset in 3..300 {
            let first = block(&*cutter.cut(CrashPoint { event: 4, subset }).device(0), 0);
            let again = block(&*cutter.cut(CrashPoint { event: 4, subset }).device(0), 0);
            assert_eq!(first, again);
            match first.iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                BLOCK_BYTES => whole += 1,
                part => {
                    assert_eq!(part % SECTOR_BYTES, 0);
                    torn += 1;
                }
            }
        }
        assert!(lost > 30 && whole > 30 && torn > 30, "{lost} lost, {whole} whole, {torn} torn");
    }

    #[test]
    fn a_discard_may_or_may_not_have_happened() {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        device.write_at(0, &[1; 2 * BLOCK_BYTES]).unwrap();
        device.flush().unwrap();
        device.discard(0, 2 * BLOCK_BYTES as u64).unwrap();
        let trace = world.trace();
        assert_eq!(found(&trace, 3, 0), (1, 1));
        assert_eq!(found(&trace, 3, 1), (0, 0));
    }
}
