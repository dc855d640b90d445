//! What every room shares: typed ids, units and limits, the sources of time and randomness, and
//! the few classes into which every fault falls.
//!
//! Nothing here does I/O, and nothing here knows a byte layout.

#![forbid(unsafe_code)]

mod clock;
mod fault;
mod id;
pub mod limits;
mod rng;
pub mod sabotage;
mod share;
mod tally;
pub mod units;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use fault::FaultKind;
pub use id::{
    BranchId, ChunkId, DeviceIndex, EpochId, Generation, Incarnation, InodeId, PolicyId, RowIndex, SegmentId,
    Sequence, SlotIndex, Uuid,
};
pub use rng::{Rng, SeededRng, SystemRng};
pub use share::Share;
pub use tally::Tally;
