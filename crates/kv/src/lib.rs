//! Ordered key-value storage: where checkpoints put the metadata.
//!
//! [`OrderedKv`] is the whole interface: many readers, each on a [`KvSnapshot`] that never changes,
//! and one writer at a time, whose [`KvTransaction`] is durable when `commit` returns and leaves no
//! trace when it is dropped. Two engines stand behind it: [`RedbKv`], on any [`Backing`], for real
//! pools, and [`MemoryKv`] for tests and models. Both pass the same [`conformance`] suite.
//!
//! What an author of a [`Backing`] has to know about redb stands in [`backing`].

#![forbid(unsafe_code)]

pub mod backing;
pub mod conformance;
mod contain;
mod error;
mod memory_engine;
mod ordered;
mod redb_engine;

pub use backing::{Backing, MemoryBacking};
pub use error::KvError;
pub use memory_engine::MemoryKv;
pub use ordered::{
    KEY_BYTES_MAX, KvSnapshot, KvTransaction, OrderedKv, TABLES_MAX, TableId, TableUsage, VALUE_BYTES_MAX,
    Visitor,
};
pub use redb_engine::RedbKv;
