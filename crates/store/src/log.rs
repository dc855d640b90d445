//! The intent log: what makes a change durable before the next checkpoint.
//!
//! Transactions queue up in the order of the sequencer. Whoever needs one durable becomes the leader:
//! writes everything queued as one or more records, flushes once, and thereby serves all who wait
//! (group commit). Rows that the transactions mention were written before they were queued, so the same
//! flush covers them.

use crate::StoreError;
use aegisfs_base::limits::{BLOCK_BYTES, LOG_RECORD_BYTES_MAX};
use aegisfs_base::sabotage::{Edge, catch_up, removed};
use aegisfs_base::{Incarnation, Sequence};
use aegisfs_format::Sum128;
use aegisfs_format::log::{self, LogRecordPlace, RowDependency};
use aegisfs_pool::{LogRing, Pool};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the log goes on: the place and the chain of the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogMark {
    /// Everything up to here is in the checkpoint that holds this mark.
    pub(crate) applied: Sequence,
    /// Where the next record begins.
    pub(crate) position: u64,
    /// What the next record names as its predecessor's checksum.
    pub(crate) previous: Sum128,
    /// Who writes the next record.
    pub(crate) incarnation: Incarnation,
}

impl LogMark {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![aegisfs_format::value::ENVELOPE_PLAIN];
        bytes.extend_from_slice(&self.applied.0.to_le_bytes());
        bytes.extend_from_slice(&self.position.to_le_bytes());
        bytes.extend_from_slice(&self.previous);
        bytes.extend_from_slice(&self.incarnation.0.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let bad = || StoreError::Inconsistent { what: "the log's starting mark cannot be read".into() };
        let bytes: &[u8; 40] = aegisfs_format::value::unwrap(value)?.try_into().map_err(|_| bad())?;
        let number =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the length was checked"));
        let mut previous = [0; 16];
        previous.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            applied: Sequence(number(0)),
            position: number(8),
            previous,
            incarnation: Incarnation(number(32)),
        })
    }
}

struct Queued {
    sequence: Sequence,
    body: Vec<u8>,
    rows: Vec<RowDependency>,
}

struct State {
    queue: VecDeque<Queued>,
    queued_bytes: u64,
    /// Where the next record goes and what it continues.
    next: LogMark,
    /// Records before this position are no longer needed.
    tail: u64,
    /// A record must end here, because a checkpoint begins behind it.
    boundary: Option<Sequence>,
    /// Where the log goes on behind the boundary, once that is known.
    at_boundary: Option<LogMark>,
}

/// The intent log.
pub(crate) struct Log {
    ring: LogRing,
    pool: Arc<Pool>,
    state: Mutex<State>,
    /// Held by the leader while it writes and flushes.
    leader: Mutex<()>,
    durable: AtomicU64,
    flushes: AtomicU64,
    flushed_transactions: AtomicU64,
    written_bytes: AtomicU64,
    content_bytes: AtomicU64,
}

/// What the log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Flushes.
    pub flushes: u64,
    /// Transactions that they made durable.
    pub transactions: u64,
    /// Bytes written, in whole blocks.
    pub written_bytes: u64,
    /// The same without what fills the last block of each record.
    pub content_bytes: u64,
}

impl Log {
    pub(crate) fn new(pool: Arc<Pool>, mark: LogMark) -> Self {
        let ring = LogRing::new(Arc::clone(&pool));
        Self {
            ring,
            pool,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_bytes: 0,
                next: mark,
                tail: mark.position,
                boundary: None,
                at_boundary: None,
            }),
            leader: Mutex::new(()),
            durable: AtomicU64::new(mark.applied.0),
            flushes: AtomicU64::new(0),
            flushed_transactions: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            content_bytes: AtomicU64::new(0),
        }
    }

    /// The largest record this log takes.
    pub(crate) fn record_bytes_max(&self) -> usize {
        LOG_RECORD_BYTES_MAX.min(self.ring.piece_bytes() as usize)
    }

    /// The largest transaction, encoded, that fits into a record.
    pub(crate) fn body_bytes_max(&self) -> usize {
        self.record_bytes_max() - 2 * BLOCK_BYTES
    }

    /// Appends a transaction to the queue; says how many there are. The sequencer calls this in order.
    pub(crate) fn append(&self, sequence: Sequence, body: Vec<u8>, rows: Vec<RowDependency>) -> usize {
        let mut state = self.state.lock();
        state.queued_bytes += body.len() as u64;
        state.queue.push_back(Queued { sequence, body, rows });
        state.queue.len()
    }

    pub(crate) fn counts(&self) -> LogCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogCounts {
            flushes: load(&self.flushes),
            transactions: load(&self.flushed_transactions),
            written_bytes: load(&self.written_bytes),
            content_bytes: load(&self.content_bytes),
        }
    }

    /// The highest sequence known to be on stable storage.
    pub(crate) fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// Which part of the ring is taken, in thousandths, queued transactions counted.
    pub(crate) fn fullness(&self) -> u64 {
        self.usage().0
    }

    /// The same, and the bytes of the log that the next checkpoint would let go.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        let used = state.next.position - state.tail + state.queued_bytes;
        ((used + state.queued_bytes / 4) * 1000 / self.ring.capacity(), used)
    }

    pub(crate) fn queued_transactions(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Makes everything up to a sequence durable.
    pub(crate) fn sync_to(&self, sequence: Sequence) -> Result<(), StoreError> {
        if self.durable() >= sequence {
            return Ok(());
        }
        let _leading = self.leader.lock();
        // Whoever led before may have done it for us.
        if self.durable() >= sequence {
            return Ok(());
        }
        let (last, count) = self.write_queued()?;
        if !removed(Edge::LogFlush) {
            self.pool.flush()?;
        }
        catch_up();
        self.durable.fetch_max(last.0, Ordering::AcqRel);
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flushed_transactions.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Writes what is queued; returns the last sequence written and how many there were.
    fn write_queued(&self) -> Result<(Sequence, u64), StoreError> {
        let mut count = 0;
        let mut last = self.durable();
        // What is queued while records are written waits for the next leader.
        let upto = self.state.lock().queue.back().map(|q| q.sequence);
        while let Some((bytes, place, transactions)) = self.next_record(upto) {
            self.ring.write(place.position, &bytes)?;
            self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            last = place.sequences.1;
            count += transactions;
        }
        Ok((last, count))
    }

    /// Takes from the queue what fits into one record.
    fn next_record(&self, upto: Option<Sequence>) -> Option<(Vec<u8>, LogRecordPlace, u64)> {
        let mut state = self.state.lock();
        let first = state.queue.front().filter(|q| Some(q.sequence) <= upto)?;
        let least = log::record_bytes(first.rows.len(), first.body.len()) as u64;
        let room = self.ring.room_in_piece(state.next.position);
        let room = if least > room {
            // The rest of the piece stays unused; recovery looks at the next piece too.
            state.next.position += room;
            self.ring.piece_bytes()
        } else {
            room
        };
        let limit = room.min(self.record_bytes_max() as u64) as usize;
        let mut body = Vec::new();
        let mut rows = Vec::new();
        let mut sequences = None;
        let mut count = 0;
        while let Some(queued) = state.queue.front() {
            let total = log::record_bytes(rows.len() + queued.rows.len(), body.len() + queued.body.len());
            if total > limit || Some(queued.sequence) > upto {
                break;
            }
            let queued = state.queue.pop_front().expect("there is a first");
            state.queued_bytes -= queued.body.len() as u64;
            body.extend_from_slice(&queued.body);
            rows.extend_from_slice(&queued.rows);
            let first = sequences.map_or(queued.sequence, |(first, _)| first);
            sequences = Some((first, queued.sequence));
            count += 1;
            if state.boundary == Some(queued.sequence) {
                break;
            }
        }
        let sequences = sequences?;
        let place = LogRecordPlace {
            incarnation: state.next.incarnation,
            position: state.next.position,
            sequences,
            flushed: self.durable(),
            previous: state.next.previous,
        };
        let (bytes, sum) = log::encode(&place, &rows, &body);
        let content = log::content_bytes(rows.len(), body.len()) as u64;
        self.content_bytes.fetch_add(content, Ordering::Relaxed);
        state.next.position += bytes.len() as u64;
        state.next.previous = sum;
        state.next.applied = sequences.1;
        assert!(
            state.next.position - state.tail <= self.ring.capacity(),
            "writers are held back long before the log is full"
        );
        if state.boundary == Some(sequences.1) {
            state.at_boundary = Some(state.next);
        }
        Some((bytes, place, count))
    }

    /// Asks for a record to end at a sequence, behind which a checkpoint will let the log begin.
    pub(crate) fn set_boundary(&self, sequence: Sequence) {
        let mut state = self.state.lock();
        state.boundary = Some(sequence);
        state.at_boundary = (state.next.applied == sequence).then_some(state.next);
    }

    /// Where the log goes on behind the boundary, after everything up to it was synced.
    pub(crate) fn mark_at_boundary(&self) -> Result<LogMark, StoreError> {
        let mut state = self.state.lock();
        state.boundary = None;
        state
            .at_boundary
            .take()
            .ok_or_else(|| StoreError::Inconsistent { what: "the log has no record boundary".into() })
    }

    /// Lets go of everything before a mark.
    pub(crate) fn trim(&self, mark: &LogMark) {
        self.state.lock().tail = mark.position;
    }

    /// Where the next record goes.
    pub(crate) fn next_mark(&self) -> LogMark {
        self.state.lock().next
    }

    /// Starts anew behind what recovery found.
    pub(crate) fn restart(&self, mark: LogMark) {
        let mut state = self.state.lock();
        assert!(state.queue.is_empty(), "nothing is queued before recovery is over");
        state.next = mark;
        state.tail = mark.position;
        self.durable.store(mark.applied.0, Ordering::Release);
    }
}
