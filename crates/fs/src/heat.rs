//! Which files are used most just now, as far as the kernel's cache lets us see.
//!
//! One operation in sixteen is counted, in a table of fixed size: a newcomer takes the place of the coolest and
//! inherits its count, so that what is used often is never lost (Metwally, Agrawal, El Abbadi: "Efficient
//! Computation of Frequent and Top-k Elements in Data Streams", 2005). Counts halve every minute.

use aegisfs_base::InodeId;
use parking_lot::Mutex;
use std::cell::Cell;
use std::time::Duration;

/// Files that are counted at a time.
const PLACES: usize = 64;
/// One operation in so many is counted.
const SAMPLE: u32 = 16;
/// Counts halve in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);

thread_local! {
    static TICK: Cell<u32> = const { Cell::new(0) };
}

/// How often files are used.
#[derive(Default)]
pub(crate) struct Heat {
    table: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    counts: Vec<(InodeId, u64)>,
    halved: Duration,
}

impl Heat {
    /// Counts an operation on a file, if it is its turn.
    pub(crate) fn note(&self, id: InodeId, now: impl FnOnce() -> Duration) {
        let tick = TICK.get().wrapping_add(1);
        TICK.set(tick);
        if !tick.is_multiple_of(SAMPLE) {
            return;
        }
        // Whoever would have to wait leaves it: it is a sample anyway.
        if let Some(mut places) = self.table.try_lock() {
            places.note(id, now());
        }
    }

    /// The files that are used most, the hottest first, and about how often in the last minutes.
    pub(crate) fn hottest(&self, count: usize, now: Duration) -> Vec<(InodeId, u64)> {
        let mut places = self.table.lock();
        places.cool(now);
        let mut all = places.counts.clone();
        all.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        all.truncate(count);
        all.iter().map(|(id, count)| (*id, count * u64::from(SAMPLE))).collect()
    }
}

impl Places {
    fn note(&mut self, id: InodeId, now: Duration) {
        self.cool(now);
        if let Some((_, count)) = self.counts.iter_mut().find(|(known, _)| *known == id) {
            *count += 1;
        } else if self.counts.len() < PLACES {
            self.counts.push((id, 1));
        } else if let Some(coolest) = self.counts.iter_mut().min_by_key(|(_, count)| *count) {
            *coolest = (id, coolest.1 + 1);
        }
    }

    fn cool(&mut self, now: Duration) {
        let times = now.saturating_sub(self.halved).as_secs() / HALF_LIFE.as_secs();
        if times > 0 {
            self.halved += HALF_LIFE * u32::try_from(times).unwrap_or(u32::MAX);
            self.counts.iter_mut().for_each(|(_, count)| *count >>= times.min(63));
            self.counts.retain(|(_, count)| *count > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_often_stays_and_cools_down() {
        let heat = Heat::default();
        let second = Duration::from_secs(1);
        for n in 0..64_000 {
            // One file in four operations; the others are thousands.
            let id = if n % 4 == 0 { 7 } else { 1000 + n };
            heat.table.lock().note(InodeId(id), second);
        }
        let hottest = heat.hottest(3, second);
        assert!(hottest[0].0 == InodeId(7) && hottest[0].1 >= 16_000 * 16, "{hottest:?}");
        assert!(heat.table.lock().counts.len() <= PLACES);
        let later = heat.hottest(1, second * 121);
        assert_eq!(later[0].1, hottest[0].1 / 16 / 4 * 16);
        assert_eq!(heat.hottest(1, second * 100_000), []);
    }

    #[test]
    fn one_operation_in_sixteen_is_counted() {
        let heat = Heat::default();
        (0..160).for_each(|_| heat.note(InodeId(1), || Duration::ZERO));
        assert_eq!(heat.hottest(5, Duration::ZERO), [(InodeId(1), 160)]);
    }
}
