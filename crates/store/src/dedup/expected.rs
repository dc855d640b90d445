//! Chunks that have a number but are not inserted yet: what the index may not claim to be past.

use aegisfs_base::ChunkId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Which numbers are on their way.
#[derive(Debug)]
pub(super) struct Expecting {
    /// Batches by the lowest number they may have, and how many have that one.
    batches: BTreeMap<u64, u32>,
    /// Behind the highest number that a batch took.
    next: u64,
}

impl Expecting {
    pub(super) fn from(marker: ChunkId) -> Self {
        Self { batches: BTreeMap::new(), next: marker.0 }
    }

    /// Numbers below this one were given out earlier.
    pub(super) fn begin(&mut self, next: ChunkId) {
        self.next = self.next.max(next.0);
    }

    /// Every chunk with a lower number was inserted or never will be.
    pub(super) fn marker(&self) -> ChunkId {
        let lowest = self.batches.first_key_value().map_or(self.next, |(from, _)| *from);
        ChunkId(lowest.min(self.next))
    }
}

/// A batch of chunks that is on its way.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    expecting: &'a Mutex<Expecting>,
    from: u64,
}

impl<'a> Expected<'a> {
    pub(super) fn new(expecting: &'a Mutex<Expecting>, from: u64) -> Self {
        *expecting.lock().batches.entry(from).or_default() += 1;
        Self { expecting, from }
    }

    /// The batch has taken numbers up to before this one.
    pub(crate) fn took(&self, end: u64) {
        let mut expecting = self.expecting.lock();
        expecting.next = expecting.next.max(end);
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let mut expecting = self.expecting.lock();
        if let Some(count) = expecting.batches.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                expecting.batches.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_waits_for_the_lowest_batch() {
        let expecting = Mutex::new(Expecting::from(ChunkId(5)));
        let marker = || expecting.lock().marker().0;
        assert_eq!(marker(), 5);
        let first = Expected::new(&expecting, 7);
        assert_eq!(marker(), 5, "it took nothing yet");
        first.took(10);
        let (second, third) = (Expected::new(&expecting, 10), Expected::new(&expecting, 10));
        third.took(30);
        second.took(20);
        assert_eq!(marker(), 7);
        drop(first);
        assert_eq!(marker(), 10);
        drop(second);
        assert_eq!(marker(), 10, "the other one began there too");
        drop(third);
        assert_eq!(marker(), 30);
    }
}
