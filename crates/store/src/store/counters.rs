//! What the store counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// Running totals since the store was opened.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$doc])* pub $name: AtomicU64, )*
        }

        impl Counters {
            /// Every total by name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![ $( (stringify!($name), self.$name.load(Ordering::Relaxed)), )* ]
            }
        }
    };
}

counters! {
    /// Changes that passed the sequencer.
    transactions,
    /// How often somebody had to wait for the sequencer.
    sequencer_waits,
    /// Rows written.
    rows,
    /// Bytes of those rows, headers and padding included.
    row_bytes,
    /// Chunks that had to be stored.
    chunks_new,
    /// Chunks found to be stored already.
    chunks_deduplicated,
    /// Plain bytes of new chunks.
    plain_bytes,
    /// Stored bytes of new chunks.
    stored_bytes,
    /// Frames read from a device.
    frames_read,
    /// Device reads that brought them.
    device_reads,
    /// Frames that did not verify on some copy.
    frames_damaged,
    /// Frames healed from another copy.
    frames_healed,
    /// Spans that had to be made from the other cells of their rows.
    frames_decoded,
    /// Segments that the cleaner emptied.
    segments_cleaned,
    /// Stored bytes that it moved.
    moved_bytes,
    /// Of those, bytes of what was left of chunks and became chunks of their own.
    remains_bytes,
    /// Bytes of the rows to which it moved them.
    moved_row_bytes,
    /// Checkpoints made.
    checkpoints,
}

impl Counters {
    pub(crate) fn committed(&self) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rows_written(&self, bytes: u64) {
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.row_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
