//! Recovery: from a pool of devices to a store that takes writes.
//!
//! 1. Choose the superblock; say which members are in, out, missing ([`Pool::open`]).
//! 2. Open the metadata at its checkpoint; load slot and segment state.
//! 3. Replay the intent log; nothing that was acknowledged may be cut.
//! 4. Make the verdict final: seal open segments, new incarnation, checkpoint.
//!
//! Only a dedup index that cannot be read is replaced before step 4, since it is needed by nothing else.
//! A crash during recovery changes nothing that step 1 reads before step 4, and step 4 repeated gives the
//! same result.

mod replay;

use crate::StoreError;
use crate::apply::apply;
use crate::checkpoint::MARK_KEY;
use crate::create::{DEDUP, DEDUP_COPIES, METADATA, OnPool};
use crate::dedup::{Dedup, Renew, Stored};
use crate::log::{Log, LogMark};
use crate::memtable::Scratch;
use crate::metadata::Metadata;
use crate::space::keep_room_for_metadata;
use crate::store::{Ids, Parts, Store, StoreOptions};
use crate::tables::Tables;
use crate::versions;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_base::{BranchId, ChunkId, Clock, Rng, SegmentId, Sequence};
use aegisfs_format::key::Table;
use aegisfs_format::op::{Op, Transaction};
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_kv::{MemoryKv, OrderedKv, RedbKv};
use aegisfs_pool::{Database, Placement, Pool};
use replay::Replay;
pub(crate) use replay::Torn;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Page cache of the dedup index.
const DEDUP_CACHE_BYTES: usize = 16 << 20;

/// What recovery did, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Log records replayed.
    pub records: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Records behind the known durable point that were cut, because they or their rows were not whole.
    pub cut: bool,
    /// Cells and slot headers of the log's tail that did not arrive on some device, though what they belong to
    /// counts. They are written again before anything else, unless nothing may be written.
    pub torn: u64,
    /// Why the store may only be read, if so.
    pub read_only: Option<String>,
}

/// Opens the store in a pool.
///
/// # Errors
/// When the metadata cannot be read or a device fails.
pub fn open(
    pool: Arc<Pool>,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
    rng: &dyn Rng,
) -> Result<(Store, Recovered), StoreError> {
    let mut read_only = options.read_only || pool.read_only();
    keep_room_for_metadata(&pool);
    let copies = pool.superblock().metadata_copies;
    let database = Arc::new(Database::new(Arc::clone(&pool), METADATA, copies));
    let metadata = Metadata::new(open_engine(&database, options.metadata_cache_bytes, read_only)?)?;
    let mark = read_mark(&metadata)?;
    claim_segments(&pool, &metadata)?;

    let mut replay = Replay::new(Arc::clone(&pool), &metadata, mark, read_only);
    let mut recovered = Recovered::default();
    replay.run(&mut recovered)?;
    if recovered.read_only.is_some() {
        read_only = true;
    }
    let (last, end, freed, torn) = (replay.last, replay.end, replay.freed, replay.torn);
    recovered.torn = torn.len() as u64;
    claim_segments(&pool, &metadata)?;
    // What the metadata took of it in an earlier life is not kept from the cleaner now.
    keep_room_for_metadata(&pool);

    let dedup = open_dedup(&pool, read_only)?;
    let ids = Ids::load(&metadata.view())?;
    dedup.begin(ChunkId(ids.chunks.next()));
    let log = Log::new(Arc::clone(&pool), end);
    let parts = Parts { pool, metadata, dedup, log, ids, last, freed, database };
    let options = StoreOptions { read_only, ..options.clone() };
    let store = Store::assemble(parts, &options, clock);
    store.load_policies()?;
    store.load_damage()?;
    if read_only {
        store.note_unmended(&torn);
    } else {
        make_final(&store, &torn, rng)?;
    }
    Ok((store, recovered))
}

pub(crate) fn open_engine(
    database: &Arc<Database>,
    cache_bytes: usize,
    read_only: bool,
) -> Result<Box<dyn OrderedKv>, StoreError> {
    let backing = OnPool(Arc::clone(database));
    let engine = if read_only {
        RedbKv::open_read_only(backing, cache_bytes)?
    } else {
        RedbKv::open(backing, cache_bytes)?
    };
    Ok(Box::new(engine))
}

/// The dedup index is derived data on a single copy: where it cannot be read it is made anew from the chunks'
/// descriptors, in the background. When nothing may be written it is not needed.
fn open_dedup(pool: &Arc<Pool>, read_only: bool) -> Result<Dedup, StoreError> {
    let stored = Arc::new(Database::new(Arc::clone(pool), DEDUP, DEDUP_COPIES));
    if read_only {
        return Dedup::open(Box::new(MemoryKv::new()), Some(stored), None);
    }
    let renew = |pool: &Arc<Pool>| {
        pool.forget_database(DEDUP)?;
        let empty = Arc::new(Database::new(Arc::clone(pool), DEDUP, DEDUP_COPIES));
        let engine = RedbKv::create(OnPool(Arc::clone(&empty)), DEDUP_CACHE_BYTES)?;
        Ok::<Stored, StoreError>((Box::new(engine), empty))
    };
    let again = || -> Option<Renew> {
        let pool = Arc::clone(pool);
        Some(Box::new(move || renew(&pool)))
    };
    let opened = open_engine(&stored, DEDUP_CACHE_BYTES, false)
        .and_then(|engine| Dedup::open(engine, Some(stored), again()));
    opened.or_else(|error| {
        tracing::warn!(%error, "the dedup index cannot be read and is made anew");
        let (engine, database) = renew(pool)?;
        Dedup::open(engine, Some(database), again())
    })
}

fn read_mark(metadata: &Metadata) -> Result<LogMark, StoreError> {
    let stored = metadata.view().get(Table::Config, MARK_KEY)?;
    let stored = stored
        .ok_or_else(|| StoreError::Inconsistent { what: "the log's starting mark is missing".into() })?;
    LogMark::decode(&stored)
}

/// Notes the slots of every segment as used. Slots claimed before stay so.
fn claim_segments(pool: &Pool, metadata: &Metadata) -> Result<(), StoreError> {
    let mut problem = None;
    let mut seen = std::collections::HashSet::new();
    metadata.view().scan(Table::Segments, &[], None, &mut |_, stored| {
        match Segment::decode(stored) {
            Ok(segment) => {
                for place in &segment.placements {
                    if !pool.claim_slot(*place) || !seen.insert(*place) {
                        let what =
                            format!("slot {} of device {} has two owners, or is not there", place.1, place.0);
                        problem = Some(StoreError::Inconsistent { what });
                    }
                }
            }
            Err(error) => problem = Some(error.into()),
        }
        if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    problem.map_or(Ok(()), Err)
}

/// Step 4. Everything before this only read.
fn make_final(store: &Store, torn: &[Torn], rng: &dyn Rng) -> Result<(), StoreError> {
    for torn in torn {
        store.pool.write_slot(torn.place, u64::from(torn.slot_offset), &torn.bytes)?;
    }
    let (mut last, freed) = store.with_sequencer(|last, freed| (last, freed));
    let mut freed: Vec<Placement> = freed;
    if !removed(Edge::SealAtRecovery) {
        seal_open_segments(store, &mut last, &mut freed)?;
    }
    let incarnation = store.pool.begin_incarnation(rng)?;
    let mark = LogMark { applied: last, incarnation, ..store.log.next_mark() };
    let frozen = store.metadata.freeze();
    store.commit_metadata(&frozen, &mark)?;
    store.metadata.thaw()?;
    store.log.restart(mark);
    store.set_last(last);
    store.pool.finish_release(&freed);
    Ok(())
}

/// Segments that were open are closed for good: where their last row ends is not known.
fn seal_open_segments(
    store: &Store,
    last: &mut Sequence,
    freed: &mut Vec<Placement>,
) -> Result<(), StoreError> {
    let mut open = Vec::new();
    store.view().scan(Table::Segments, &[], None, &mut |key, stored| {
        let id = key.first_chunk::<8>().map(|bytes| SegmentId(u64::from_be_bytes(*bytes)));
        if let (Some(id), Ok(segment)) = (id, Segment::decode(stored))
            && segment.state == SegmentState::Open
        {
            open.push((id, segment.rows));
        }
        ControlFlow::Continue(())
    })?;
    let branch = BranchId(0);
    let epoch = versions::read_branch(&store.view(), branch)?.head;
    for (segment, rows) in open {
        *last = last.next();
        let ops = vec![Op::SealSegment { segment, rows, end: 0 }];
        let transaction = Transaction { sequence: *last, branch, epoch, ops };
        let view = store.view();
        let mut scratch = Scratch::new(&view);
        let effects = apply(&mut scratch, &transaction)?;
        let changes = scratch.changes;
        store.metadata.absorb(changes);
        for (_, segment) in effects.freed {
            store.pool.begin_release(&segment.placements);
            freed.extend_from_slice(&segment.placements);
        }
    }
    Ok(())
}
