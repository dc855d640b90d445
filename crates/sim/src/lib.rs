//! Simulated devices and crash tests: the power is cut at every write, and the store must not notice.
//!
//! - [`SimWorld`] makes [`SimDevice`]s and writes down, under one numbering, every write, flush and
//!   discard that reaches any of them, and every promise that a history [marks](SimWorld::mark)
//! - [`Trace`] is what was written down; a [`PowerCutter`] makes of it the devices as they could be found
//!   after a cut at any event: what was flushed is there, of the rest any part, torn at sectors
//! - [`explore`] cuts at all events, or at a seeded choice of them, and hands each outcome to an oracle
//!
//! A failure prints what reruns exactly it. A simulator that cannot fail proves nothing: the tests take
//! each safeguard out in turn (`aegisfs_base::sabotage`) and require that the same oracles notice.

#![forbid(unsafe_code)]

mod explore;
mod power;
mod trace;
mod world;

pub use explore::{CrashPoint, Failure, Plan, SUBSETS_FIXED, crash_points, explore, tell};
pub use power::PowerCutter;
pub use trace::{Action, Mark, Record, Trace};
pub use world::{SimDevice, SimWorld};
