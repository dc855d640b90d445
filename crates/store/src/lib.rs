//! The log-structured object store on a pool.
//!
//! A change takes one way: data becomes chunks in rows ([`ingest`]), then one transaction passes the
//! sequencer ([`Store::commit`]), which applies it to the metadata in memory and appends it to the intent
//! log; a checkpoint moves it into the metadata database. Opening replays the log through the same
//! apply function ([`apply`]). There is no second path.

#![forbid(unsafe_code)]

pub mod apply;
pub mod branches;
mod check;
mod checkpoint;
mod clean;
mod create;
mod damage;
mod dedup;
mod devices;
mod error;
pub mod ingest;
mod inspect;
mod log;
mod memtable;
mod mend;
mod metadata;
mod orphans;
mod policies;
mod read;
pub mod reap;
mod recovery;
mod reencode;
mod returning;
mod rows;
mod scrub;
mod segments;
mod service;
mod sound_row;
mod space;
mod stop;
mod store;
mod tables;
mod trim;
mod upkeep;
pub mod versions;

pub use apply::Effects;
pub use check::{CheckReport, Depth, Problem, Progress};
pub use clean::{Candidate, Cleaned, CleanerThread, CleaningStatus, Intensity};
pub use create::create;
pub use damage::{LostChunk, LostRange};
pub use error::StoreError;
pub use ingest::{Ingested, Piece};
pub use inspect::{CellSeen, ChunkSeen, GapSeen, KeySpace, Seen, ShardSeen};
pub use log::LogCounts;
pub use memtable::MapTables;
pub use metadata::MetaView;
pub use orphans::{Orphan, OrphanFound, OrphanKind, OrphanReport, OrphansCleaned};
pub use recovery::{Recovered, open};
pub use reencode::{Reencoded, Reencoder};
pub use returning::{ReturnProgress, ReturnThread};
pub use scrub::{ReferencesCounted, ScrubThread};
pub use service::{Intervals, Service};
pub use space::{Reservation, SpaceReport};
pub use store::{Committed, Counters, Store, StoreOptions};
pub use tables::{Tables, TablesMut, Visit};
pub use trim::{TrimOptions, TrimThread};
pub use upkeep::{Upkeep, UpkeepDone, UpkeepOptions, UpkeepThread};
pub use versions::View;
