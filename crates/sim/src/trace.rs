//! What happened to the devices of a world, in the order in which it happened.

use aegisfs_device::MemoryDevice;
use std::sync::Arc;

/// What was done to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bytes were written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// A range was given back.
    Discard {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// A flush returned, and covers everything that came before it.
    Flush,
}

/// One action; its place in the trace is its event number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which of the world's devices.
    pub device: usize,
    /// What was done.
    pub action: Action,
}

/// A promise: made when so many events had happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How many events had happened.
    pub events: u64,
    /// What was promised, in the history's own numbering.
    pub value: u64,
}

/// The history of a world's devices from when it was made.
pub struct Trace {
    pub(crate) start: Vec<MemoryDevice>,
    pub(crate) records: Vec<Record>,
    pub(crate) marks: Vec<Mark>,
}

impl Trace {
    /// How many events happened; a cut before this one loses only what was not flushed at the end.
    pub fn events(&self) -> u64 {
        self.records.len() as u64
    }

    /// The events in their order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The promises in their order.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The last promise made before the power was cut just before `event`.
    pub fn promised(&self, event: u64) -> Option<u64> {
        let made = self.marks.partition_point(|mark| mark.events <= event);
        made.checked_sub(1).map(|last| self.marks[last].value)
    }

    /// How many events had happened when a value was promised first.
    pub fn promised_at(&self, value: u64) -> Option<u64> {
        self.marks.iter().find(|mark| mark.value == value).map(|mark| mark.events)
    }
}
