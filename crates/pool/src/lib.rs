//! Devices as members of a pool: who is in, which slots are whose, and how bytes reach them.
//!
//! - [`Pool`] is made by [`Pool::create`] and opened by [`Pool::open`]; it owns the members and the slots
//! - [`Database`] is a metadata database on mirrored slots, every page checksummed, behind the engine's
//!   own storage trait
//! - [`LogRing`] is the intent log's endless address space on mirrored, preallocated slots
//!
//! - [`Pool::trim_step`] has the devices forget what free slots held
//!
//! What a segment or a record means is not known here.

#![forbid(unsafe_code)]

mod activity;
mod create;
mod database;
mod erasure;
mod error;
mod health;
mod log_ring;
mod member;
mod open;
mod pool;
mod read_back;
mod readers;
mod returning;
mod shard;
mod slots;
mod superblocks;
mod together;
mod trim;
mod unowned;

pub use activity::DeviceSpeed;
pub use create::CreateOptions;
pub use database::{Database, OnPool, Scrubbed};
pub use erasure::Erasure;
pub use error::PoolError;
pub use health::{DeviceReport, HealthChange, Probe, ReadPlan};
pub use log_ring::LogRing;
pub use open::{OpenOptions, Opening};
pub use pool::{MemberState, Pool, Redundancy};
pub use read_back::ReadBack;
pub use slots::{Placement, Space, UnownedSlot};
pub use together::{side_by_side, together};
pub use trim::{DeviceTrim, TrimPass, Trimmed};
