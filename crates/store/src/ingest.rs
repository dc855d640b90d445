//! From a file's bytes to chunks in rows: cut, hash, look up, compress, write.
//!
//! Batches may run at the same time, but pass the sequencer in the order in which they looked chunks up;
//! so a batch may refer to a chunk that an earlier one is still writing.

mod cutting;
mod frames;

use crate::StoreError;
use crate::dedup::Expected;
use crate::rows::{RowWriter, WrittenRow};
use crate::store::{Committed, Counters, Store};
use crate::tables::Tables;
use aegisfs_base::{BranchId, ChunkId};
use aegisfs_chunk::Compression;
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::log::RowDependency;
use aegisfs_format::op::{NewRef, Op};
use cutting::{Cut, cut};
use frames::NewChunk;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// A contiguous run of a file's bytes.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// Which of the batch's files it belongs to.
    pub file: usize,
    /// Where it begins in the file.
    pub offset: u64,
    /// The bytes, in order.
    pub slices: Vec<&'a [u8]>,
    /// Whether the file goes on behind them: then bytes at their end may be left for later, so that where
    /// a chunk ends depends on the content alone. A file has one such piece at most, its last.
    pub open: bool,
}

/// What is shared between batches.
pub(crate) struct Ingest {
    compression: Compression,
    workers: Option<rayon::ThreadPool>,
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
    /// Tickets below this have passed, or never will.
    passed: u64,
    /// Tickets that gave up out of turn.
    given_up: Vec<u64>,
    /// Chunks being written by batches that have not passed yet.
    in_flight: HashMap<[u8; 32], ChunkId>,
}

impl<'a> Piece<'a> {
    /// Bytes that lie in one place and end here.
    pub fn new(file: usize, offset: u64, data: &'a [u8]) -> Self {
        Self { file, offset, slices: vec![data], open: false }
    }
}

impl Ingest {
    pub(crate) fn new(compression: Compression, workers: usize) -> Self {
        let build = || {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(workers);
            builder.thread_name(|n| format!("compress-{n}")).build().ok()
        };
        Self {
            compression,
            workers: (workers > 1).then(build).flatten(),
            state: Mutex::default(),
            turn: Condvar::new(),
        }
    }
}

/// Data that lies in rows and waits to be referred to. Dropping it leaves the rows dead.
pub struct Ingested<'a> {
    store: &'a Store,
    /// The references, by file of the batch.
    pub references: Vec<Vec<NewRef>>,
    /// Bytes left at the end of an open piece, by file.
    pub left: Vec<u64>,
    rows: Vec<WrittenRow>,
    in_flight: Vec<[u8; 32]>,
    ticket: Option<u64>,
    /// Keeps the dedup index from claiming chunks that it has not heard of.
    expected: Option<Expected<'a>>,
}

impl Store {
    /// Stores the bytes of some files as chunks; what is already stored is found instead.
    ///
    /// `files` is the number of files that the pieces name. With `trusting` off nothing is looked up: for
    /// a second try after a chunk was found and died before it could be referred to.
    ///
    /// # Errors
    /// When there is no room or a device fails.
    pub fn ingest(
        &self,
        files: usize,
        pieces: &[Piece<'_>],
        trusting: bool,
    ) -> Result<Ingested<'_>, StoreError> {
        self.check_writable()?;
        let (mut cuts, left) = cut(files, pieces, self.ingest.workers.as_ref());
        if trusting {
            self.load_dedup()?;
            for cut in &mut cuts {
                cut.chunk = self.find_chunk(&cut.hash)?;
            }
        }
        let mut ingested = Ingested {
            store: self,
            references: vec![Vec::new(); files],
            left,
            rows: Vec::new(),
            in_flight: Vec::new(),
            ticket: None,
            expected: None,
        };
        let new = self.assign(&mut cuts, trusting, &mut ingested)?;
        let new: Vec<NewChunk<'_>> = new
            .into_iter()
            .map(|(at, chunk)| NewChunk { chunk, hash: cuts[at].hash, data: &cuts[at].data })
            .collect();
        for cut in &cuts {
            let chunk = cut.chunk.expect("every cut has a chunk by now");
            ingested.references[cut.file].push(NewRef {
                offset: cut.offset,
                length: cut.data.len() as u32,
                chunk,
                offset_in_chunk: 0,
            });
        }
        Counters::add(&self.counters.chunks_deduplicated, (cuts.len() - new.len()) as u64);
        Counters::add(&self.counters.chunks_new, new.len() as u64);
        if !new.is_empty() {
            let mut rows = RowWriter::new(self, &mut ingested.rows);
            let (compression, workers) = (self.ingest.compression, self.ingest.workers.as_ref());
            frames::compress(&new, compression, workers, |frame| {
                Counters::add(&self.counters.plain_bytes, u64::from(frame.plain_bytes));
                Counters::add(&self.counters.stored_bytes, frame.stored.len() as u64);
                rows.add(frame)
            })?;
            rows.finish()?;
        }
        Ok(ingested)
    }

    /// Refers to ingested data: its chunks and `ops` take effect in one change.
    ///
    /// # Errors
    /// [`StoreError::StaleChunk`] when a chunk that was found has died meanwhile: ingest again without
    /// trusting. Otherwise as [`Store::commit`].
    pub fn commit_ingested(
        &self,
        branch: BranchId,
        ingested: Ingested<'_>,
        ops: Vec<Op>,
    ) -> Result<Committed, StoreError> {
        ingested.wait_turn();
        let mut all: Vec<Op> = Vec::with_capacity(ops.len() + ingested.references.len());
        let mut rows: Vec<RowDependency> = Vec::new();
        for row in &ingested.rows {
            rows.push(row.dependency);
            all.extend(
                row.chunks
                    .iter()
                    .map(|(chunk, descriptor)| Op::NewChunk { chunk: *chunk, descriptor: *descriptor }),
            );
        }
        all.extend(ops);
        self.commit(branch, all, rows)
    }

    /// Without a thread for it, writers load what the dedup index lacks.
    fn load_dedup(&self) -> Result<(), StoreError> {
        if !self.served.load(Ordering::Acquire) {
            while self.dedup.load_step(&self.view())? {}
        }
        Ok(())
    }

    /// Whether every chunk can be found by its hash; after opening it takes a while.
    pub fn dedup_is_loaded(&self) -> bool {
        !self.dedup.is_loading()
    }

    /// A living, sound chunk with this hash.
    fn find_chunk(&self, hash: &[u8; 32]) -> Result<Option<ChunkId>, StoreError> {
        let Some(chunk) = self.dedup.find(hash)? else { return Ok(None) };
        let Some(stored) = self.view().get(Table::Chunks, &key::chunk(chunk))? else { return Ok(None) };
        let sound = Descriptor::decode(&stored)?.is_some_and(|d| d.hash == *hash && !d.damaged);
        Ok(sound.then_some(chunk))
    }

    /// Gives every cut that was not found a chunk: one in flight, one of this batch, or a new one. Returns
    /// the new ones and which cuts they are.
    fn assign<'s>(
        &'s self,
        cuts: &mut [Cut<'_>],
        trusting: bool,
        ingested: &mut Ingested<'s>,
    ) -> Result<Vec<(usize, ChunkId)>, StoreError> {
        let missing = cuts.iter().filter(|cut| cut.chunk.is_none()).count() as u64;
        let mut next = 0;
        if missing > 0 {
            let expected = self.dedup.expect(self.ids.chunks.next());
            next = self.ids.chunks.take_many(self, missing)?;
            expected.took(next + missing);
            ingested.expected = Some(expected);
        }
        let mut state = self.ingest.state.lock();
        ingested.ticket = Some(state.next_ticket);
        state.next_ticket += 1;
        let mut own: HashMap<[u8; 32], ChunkId> = HashMap::new();
        let mut new = Vec::new();
        for (at, cut) in cuts.iter_mut().enumerate().filter(|(_, cut)| cut.chunk.is_none()) {
            let known = own.get(&cut.hash).or_else(|| {
                let flying = state.in_flight.get(&cut.hash);
                flying.filter(|_| trusting)
            });
            let chunk = match known {
                Some(chunk) => *chunk,
                None => {
                    let chunk = ChunkId(next);
                    next += 1;
                    own.insert(cut.hash, chunk);
                    new.push((at, chunk));
                    chunk
                }
            };
            cut.chunk = Some(chunk);
        }
        for (hash, chunk) in own {
            state.in_flight.insert(hash, chunk);
            ingested.in_flight.push(hash);
        }
        Ok(new)
    }
}

impl Ingested<'_> {
    /// Waits until every batch that looked chunks up before this one has passed. Whoever takes locks for
    /// the change waits before: an earlier batch may need them.
    pub fn wait_turn(&self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.store.ingest.state.lock();
        while state.passed < ticket {
            self.store.ingest.turn.wait(&mut state);
        }
    }
}

impl Drop for Ingested<'_> {
    fn drop(&mut self) {
        for row in &self.rows {
            if let Err(error) = self.store.row_done(row.dependency.segment) {
                tracing::warn!(%error, "a full segment could not be sealed; recovery will do it");
            }
        }
        let Some(ticket) = self.ticket else { return };
        let mut state = self.store.ingest.state.lock();
        for hash in &self.in_flight {
            state.in_flight.remove(hash);
        }
        state.given_up.push(ticket);
        loop {
            let passed = state.passed;
            let Some(index) = state.given_up.iter().position(|ticket| *ticket == passed) else { break };
            state.given_up.swap_remove(index);
            state.passed += 1;
        }
        drop(state);
        self.store.ingest.turn.notify_all();
    }
}
