//! The sequence of the last change, for whoever asks while no change is under way: nobody waits then.

use aegisfs_base::Sequence;
use std::sync::atomic::{AtomicU64, Ordering};

/// The last change that readers may have seen, and the last one that stands in the log's queue.
///
/// A change is seen before it is queued, and in between nothing can make it durable. Whoever has seen it and
/// wants to know how far to sync must not learn of its sequence until it is queued, nor of an older one.
#[derive(Debug)]
pub(crate) struct Last {
    seen: AtomicU64,
    queued: AtomicU64,
}

impl Last {
    pub(crate) fn new(last: Sequence) -> Self {
        Self { seen: AtomicU64::new(last.0), queued: AtomicU64::new(last.0) }
    }

    /// The change is about to be seen. The sequencer calls this, and then [`Last::queued`].
    pub(crate) fn will_be_seen(&self, sequence: Sequence) {
        self.seen.store(sequence.0, Ordering::Release);
    }

    /// The change stands in the log's queue.
    pub(crate) fn queued(&self, sequence: Sequence) {
        self.queued.store(sequence.0, Ordering::Release);
    }

    /// The last change; nothing while one is under way.
    pub(crate) fn settled(&self) -> Option<Sequence> {
        let seen = self.seen.load(Ordering::Acquire);
        (self.queued.load(Ordering::Acquire) >= seen).then_some(Sequence(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_seen_but_not_queued_has_no_sequence_yet() {
        let last = Last::new(Sequence(4));
        assert_eq!(last.settled(), Some(Sequence(4)));
        last.will_be_seen(Sequence(5));
        assert_eq!(last.settled(), None);
        last.queued(Sequence(5));
        assert_eq!(last.settled(), Some(Sequence(5)));
    }
}
