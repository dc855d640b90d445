//! From a file's bytes to chunks in rows: cut, hash, look up, compress, write.
//!
//! Batches may run at the same time, but pass the sequencer in the order in which they looked chunks up;
//! so a batch may refer to a chunk that an earlier one is still writing.

mod cutting;
pub(crate) mod frames;

use crate::StoreError;
use crate::dedup::Expected;
use crate::rows::{Frame, RowBuffers, RowWriter, WrittenRow};
use crate::segments::{Class, Purpose};
use crate::store::{Committed, Counters, Store};
use crate::tables::Tables;
use aegisfs_base::{BranchId, ChunkId, PolicyId};
use aegisfs_chunk::Compression;
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::key::{self, Table};
use aegisfs_format::log::RowDependency;
use aegisfs_format::op::{NewRef, Op};
use cutting::{Cut, cut};
use frames::NewChunk;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

/// Batches of so many bytes are cut, compressed and written in steps that overlap.
const PIPELINE_BYTES_MIN: usize = 3 << 20;
/// Bytes of such a step.
const STEP_BYTES: usize = 2 << 20;
/// Frames, of 1 MiB at most, that wait for the row before them to be written.
const FRAMES_WAITING_MAX: usize = 16;

thread_local! {
    /// What this thread's rows are put together in.
    static BUFFERS: Cell<RowBuffers> = const { Cell::new(RowBuffers::new()) };
}

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
    pub(crate) compression: Compression,
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
    /// Chunks being written by batches that have not passed yet, and the ticket of each.
    in_flight: HashMap<(PolicyId, [u8; 32]), (ChunkId, u64)>,
}

impl<'a> Piece<'a> {
    /// Bytes that lie in one place and end here.
    pub fn new(file: usize, offset: u64, data: &'a [u8]) -> Self {
        Self { file, offset, slices: vec![data], open: false }
    }
}

impl Ingest {
    /// Whether work may be done by several threads.
    pub(crate) fn has_workers(&self) -> bool {
        self.workers.is_some()
    }

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
    /// How the data is stored.
    policy: PolicyId,
    /// The references, by file of the batch.
    pub references: Vec<Vec<NewRef>>,
    /// Bytes left at the end of an open piece, by file.
    pub left: Vec<u64>,
    rows: Vec<WrittenRow>,
    in_flight: Vec<[u8; 32]>,
    ticket: Option<u64>,
    /// Keeps the dedup index from claiming chunks that it has not heard of.
    expected: Vec<Expected<'a>>,
}

impl Store {
    /// Stores the bytes of some files as chunks; what is already stored is found instead.
    ///
    /// `files` is the number of files that the pieces name, which follow the same policy. With `trusting` off nothing is
    /// looked up: for a second try after a chunk was found and died before it could be referred to.
    ///
    /// # Errors
    /// When there is no room or a device fails.
    pub fn ingest(
        &self,
        files: usize,
        pieces: &[Piece<'_>],
        policy: PolicyId,
        trusting: bool,
    ) -> Result<Ingested<'_>, StoreError> {
        self.check_writable()?;
        if trusting {
            self.load_dedup()?;
        }
        let mut ingested = Ingested {
            store: self,
            policy,
            references: vec![Vec::new(); files],
            left: Vec::new(),
            rows: Vec::new(),
            in_flight: Vec::new(),
            ticket: None,
            expected: Vec::new(),
        };
        let mut rows = Vec::new();
        let total: usize = pieces.iter().flat_map(|piece| &piece.slices).map(|slice| slice.len()).sum();
        let outcome = if total < PIPELINE_BYTES_MIN || self.ingest.workers.is_none() {
            self.ingest_at_once(pieces, trusting, &mut ingested, &mut rows)
        } else {
            self.ingest_in_steps(pieces, trusting, &mut ingested, &mut rows)
        };
        // Those written before an error too: they have to be given back.
        ingested.rows = rows;
        outcome?;
        Ok(ingested)
    }

    /// One step after the other, on this thread.
    fn ingest_at_once<'s>(
        &'s self,
        pieces: &[Piece<'_>],
        trusting: bool,
        ingested: &mut Ingested<'s>,
        rows: &mut Vec<WrittenRow>,
    ) -> Result<(), StoreError> {
        let files = ingested.references.len();
        let mut new = Vec::new();
        ingested.left = cut(files, pieces, self.ingest.workers.as_ref(), usize::MAX, |cuts| {
            new = self.identify(cuts, trusting, ingested)?;
            Ok::<(), StoreError>(())
        })?;
        let mut rows = RowWriter::new(self, ingested.class(), rows, BUFFERS.take());
        self.compress(&new, |frame| rows.add(frame))?;
        BUFFERS.set(rows.finish()?);
        Ok(())
    }

    /// One part is written while the next is being compressed and the one after that is being cut: neither
    /// the cores nor the device wait for the other.
    fn ingest_in_steps<'s>(
        &'s self,
        pieces: &[Piece<'_>],
        trusting: bool,
        ingested: &mut Ingested<'s>,
        rows: &mut Vec<WrittenRow>,
    ) -> Result<(), StoreError> {
        let files = ingested.references.len();
        let (buffers, class) = (BUFFERS.take(), ingested.class());
        let (cut_sender, to_compress) = sync_channel::<Vec<NewChunk<'_>>>(1);
        let (frame_sender, to_write) = sync_channel::<Frame<'_>>(FRAMES_WAITING_MAX);
        let (left, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut rows = RowWriter::new(self, class, rows, buffers);
                to_write.into_iter().try_for_each(|frame| rows.add(frame))?;
                rows.finish()
            });
            // Whoever comes later stops listening when it fails, and says why itself.
            scope.spawn(move || {
                for new in to_compress {
                    if self.compress(&new, |frame| frame_sender.send(frame)).is_err() {
                        break;
                    }
                }
            });
            let left = cut(files, pieces, self.ingest.workers.as_ref(), STEP_BYTES, |cuts| {
                let new = self.identify(cuts, trusting, ingested)?;
                let _ = cut_sender.send(new);
                Ok::<(), StoreError>(())
            });
            drop(cut_sender);
            (left, writer.join())
        });
        let written = written.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        BUFFERS.set(written?);
        ingested.left = left?;
        Ok(())
    }

    /// Gives chunks their numbers and notes the references to them; returns those that have to be stored.
    fn identify<'s, 'd>(
        &'s self,
        mut cuts: Vec<Cut<'d>>,
        trusting: bool,
        ingested: &mut Ingested<'s>,
    ) -> Result<Vec<NewChunk<'d>>, StoreError> {
        if trusting {
            for cut in &mut cuts {
                cut.chunk = self.find_chunk(ingested.policy, &cut.hash)?;
            }
        }
        let is_new = self.assign(&mut cuts, trusting, ingested)?;
        let mut new = Vec::new();
        for (cut, is_new) in cuts.into_iter().zip(is_new) {
            let chunk = cut.chunk.expect("every cut has a chunk by now");
            ingested.references[cut.file].push(NewRef {
                offset: cut.offset,
                length: cut.data.len() as u32,
                chunk,
                offset_in_chunk: 0,
            });
            if is_new {
                new.push(NewChunk { chunk, hash: cut.hash, data: cut.data });
                Counters::add(&self.counters.chunks_new, 1);
            } else {
                Counters::add(&self.counters.chunks_deduplicated, 1);
            }
        }
        Ok(new)
    }

    /// Compresses chunks and hands them on as they become ready.
    fn compress<'d, E: Send>(
        &self,
        new: &[NewChunk<'d>],
        mut take: impl FnMut(Frame<'d>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (compression, workers) = (self.ingest.compression, self.ingest.workers.as_ref());
        frames::compress(new, compression, workers, |frame| {
            Counters::add(&self.counters.plain_bytes, u64::from(frame.plain_bytes));
            Counters::add(&self.counters.stored_bytes, frame.stored.len() as u64);
            take(frame)
        })
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
    fn find_chunk(&self, policy: PolicyId, hash: &[u8; 32]) -> Result<Option<ChunkId>, StoreError> {
        let Some(chunk) = self.dedup.find(policy, hash)? else { return Ok(None) };
        let Some(stored) = self.view().get(Table::Chunks, &key::chunk(chunk))? else { return Ok(None) };
        let sound = Descriptor::decode(&stored)?.is_some_and(|d| d.hash == *hash && !d.damaged);
        let is_alike = !self.has_policies() || self.policy_of_chunk(chunk)? == Some(policy);
        Ok((sound && is_alike && !self.is_recorded(chunk)).then_some(chunk))
    }

    /// Numbers for so many chunks in a row, which the dedup index expects until the answer is dropped.
    pub(crate) fn take_chunk_ids(&self, count: u64) -> Result<(u64, Expected<'_>), StoreError> {
        let expected = self.dedup.expect(self.ids.chunks.next());
        let first = self.ids.chunks.take_many(self, count)?;
        expected.took(first + count);
        Ok((first, expected))
    }

    /// Gives every cut that was not found a chunk: one in flight, one of this batch, or a new one. Says of
    /// each whether it is new.
    fn assign<'s>(
        &'s self,
        cuts: &mut [Cut<'_>],
        trusting: bool,
        ingested: &mut Ingested<'s>,
    ) -> Result<Vec<bool>, StoreError> {
        let missing = cuts.iter().filter(|cut| cut.chunk.is_none()).count() as u64;
        let mut next = 0;
        if missing > 0 {
            let (first, expected) = self.take_chunk_ids(missing)?;
            next = first;
            ingested.expected.push(expected);
        }
        let mut state = self.ingest.state.lock();
        let ticket = match ingested.ticket {
            Some(ticket) => ticket,
            None => {
                state.next_ticket += 1;
                *ingested.ticket.insert(state.next_ticket - 1)
            }
        };
        let mut is_new = vec![false; cuts.len()];
        for (cut, is_new) in cuts.iter_mut().zip(&mut is_new).filter(|(cut, _)| cut.chunk.is_none()) {
            // What a later batch is writing passes after this one.
            let known = state.in_flight.get(&(ingested.policy, cut.hash));
            let known = known.filter(|(_, of)| *of == ticket || (trusting && *of < ticket));
            let chunk = match known {
                Some((chunk, _)) => *chunk,
                None => {
                    let chunk = ChunkId(next);
                    next += 1;
                    state.in_flight.insert((ingested.policy, cut.hash), (chunk, ticket));
                    ingested.in_flight.push(cut.hash);
                    *is_new = true;
                    chunk
                }
            };
            cut.chunk = Some(chunk);
        }
        Ok(is_new)
    }
}

impl Ingested<'_> {
    fn class(&self) -> Class {
        Class { policy: self.policy, purpose: Purpose::Fresh }
    }

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
            let key = (self.policy, *hash);
            if state.in_flight.get(&key).is_some_and(|(_, of)| *of == ticket) {
                state.in_flight.remove(&key);
            }
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
