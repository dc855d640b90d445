//! The real functions and the model, driven side by side.

use crate::judge::{Reported, Verdict, judge};
use crate::plain::{History, Kept, Line, cuts};
use aegisfs_base::limits::{CHUNK_BYTES_MAX, WINDOW_BYTES};
use aegisfs_base::{
    BranchId, ChunkId, EpochId, InodeId, Rng, RowIndex, SeededRng, SegmentId, Sequence, Timestamp,
};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{NewRef, Op, Transaction};
use aegisfs_format::value::{self, Branch, Inode, Segment, SegmentState, Volume, branch_of};
use aegisfs_store::apply::{Effects, apply};
use aegisfs_store::branches::{self, BranchError};
use aegisfs_store::versions::{Head, read_branch, scan_visible, write_branch};
use aegisfs_store::{MapTables, StoreError, Tables as _};
use std::fmt::Write;
use std::ops::ControlFlow;

const BRANCHES_MAX: usize = 5;
const KEPT_MAX: usize = 9;
/// Pending bytes are put near these, so that they often overlap and are cut.
const PENDING_NEAR: [u64; 2] = [WINDOW_BYTES / 4, WINDOW_BYTES];

/// One thing to do. What exactly follows from `seed` and from what is there, so that any selection of the
/// steps of a history is a history as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) act: Act,
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Write,
    Repoint,
    StaleChunk,
    Snapshot,
    DeleteSnapshot,
    Fork,
    Rollback,
    DeleteBranch,
}

impl Step {
    pub(crate) fn random(rng: &dyn Rng) -> Self {
        let act = match rng.below(100) {
            0..50 => Act::Write,
            50..60 => Act::Repoint,
            60..64 => Act::StaleChunk,
            64..76 => Act::Snapshot,
            76..88 => Act::DeleteSnapshot,
            88..92 => Act::Fork,
            92..96 => Act::Rollback,
            _ => Act::DeleteBranch,
        };
        Self { act, seed: rng.next_u64() }
    }
}

pub(crate) struct World {
    pub(crate) tables: MapTables,
    pub(crate) history: History,
    pub(crate) reported: Reported,
    pub(crate) log: Option<String>,
    /// How often each act was tried; without anything to act upon it does nothing.
    pub(crate) done: [usize; 8],
    /// References that were pointed elsewhere.
    pub(crate) repointed: usize,
    sequence: Sequence,
    next_chunk: u64,
    segment: SegmentId,
    segment_is_open: bool,
}

fn one_of<T: Copy>(rng: &dyn Rng, items: &[T]) -> T {
    items[rng.below(items.len() as u64) as usize]
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl World {
    pub(crate) fn new(log: bool) -> Self {
        let (branch, epoch) = (BranchId(0), EpochId(1));
        let mut tables = MapTables::default();
        write_branch(&mut tables, branch, &Branch { origin: None, first: epoch, head: epoch, pinned: None });
        branches::write_volume(&mut tables, b"main", &Volume { head: branch });
        let mut history = History::default();
        history.open.insert(branch, Line::default());
        history.origins.insert(branch, None);
        history.volumes.insert(b"main".to_vec(), branch);
        Self {
            tables,
            history,
            reported: Reported::default(),
            log: log.then(String::new),
            done: [0; 8],
            repointed: 0,
            sequence: Sequence(0),
            next_chunk: 1,
            segment: SegmentId(1),
            segment_is_open: false,
        }
    }

    /// Does a step, or as much of it as makes sense.
    pub(crate) fn step(&mut self, step: Step) -> Verdict {
        let rng = &SeededRng::new(step.seed);
        let branch = self.some_branch(rng);
        match step.act {
            Act::Write => self.write(rng, branch)?,
            Act::Repoint => self.repoint(rng, branch)?,
            Act::StaleChunk => self.stale_chunk(rng, branch)?,
            Act::Snapshot if self.history.kept.len() < KEPT_MAX => self.snapshot(rng, branch)?,
            Act::Snapshot | Act::DeleteSnapshot => self.delete_snapshot(rng)?,
            Act::Fork if self.history.open.len() < BRANCHES_MAX => self.fork(rng)?,
            Act::Rollback if self.history.open.len() < BRANCHES_MAX => self.rollback(rng)?,
            Act::Fork | Act::Rollback | Act::DeleteBranch => self.delete_branch(rng)?,
        }
        self.done[step.act as usize] += 1;
        Ok(())
    }

    pub(crate) fn judge(&self) -> Verdict {
        judge(&self.tables, &self.history, &self.reported)
    }

    /// Deletes everything but one branch, in random order, judging all the way.
    pub(crate) fn clear_but(&mut self, rng: &dyn Rng, survivor: BranchId) -> Verdict {
        self.note(|| format!("clear all but branch {survivor}"));
        for name in std::mem::take(&mut self.history.volumes).into_keys() {
            aegisfs_store::TablesMut::delete(&mut self.tables, Table::Volumes, &name);
        }
        loop {
            let branches: Vec<_> = self.history.open.keys().copied().filter(|b| *b != survivor).collect();
            let named = self.history.named(None);
            if branches.is_empty() && named.is_empty() {
                return Ok(());
            }
            let pick = rng.below((branches.len() + named.len()) as u64) as usize;
            match branches.get(pick) {
                Some(branch) => self.close(*branch)?,
                None => self.delete(named[pick - branches.len()])?,
            }
            self.judge()?;
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            writeln!(log, "{}", what()).unwrap();
        }
    }

    fn some_branch(&self, rng: &dyn Rng) -> BranchId {
        one_of(rng, &self.history.open.keys().copied().collect::<Vec<_>>())
    }

    fn report(&mut self, effects: Effects) -> Verdict {
        for (chunk, ..) in effects.born {
            if !self.reported.alive.insert(chunk) {
                return Err(format!("chunk {chunk} was born twice"));
            }
        }
        for (chunk, ..) in effects.died {
            if !self.reported.alive.remove(&chunk) {
                return Err(format!("chunk {chunk} died twice"));
            }
        }
        for (segment, _) in effects.freed {
            if self.reported.written.remove(&segment).is_none() {
                return Err(format!("segment {segment} was freed twice"));
            }
        }
        Ok(())
    }

    fn transaction(&mut self, branch: BranchId, ops: Vec<Op>) -> Transaction {
        self.sequence = self.sequence.next();
        let epoch = read_branch(&self.tables, branch).unwrap().head;
        Transaction { sequence: self.sequence, branch, epoch, ops }
    }

    fn commit(&mut self, branch: BranchId, ops: Vec<Op>) -> Verdict {
        let transaction = self.transaction(branch, ops);
        self.note(|| format!("{transaction:?}"));
        for op in &transaction.ops {
            match op {
                Op::NewChunk { descriptor, .. } => {
                    let written = self.reported.written.entry(descriptor.frame.segment).or_default();
                    *written += u64::from(descriptor.charged_bytes);
                }
                Op::MoveChunk { descriptor, .. } => {
                    let written = self.reported.written.entry(descriptor.frame.segment).or_default();
                    *written += u64::from(descriptor.charged_bytes);
                }
                Op::Put { table: Table::Segments, .. } => {
                    self.reported.written.entry(self.segment).or_default();
                }
                _ => {}
            }
            let line = self.history.open.get_mut(&branch).unwrap();
            line.apply(op, transaction.sequence);
        }
        let effects = apply(&mut self.tables, &transaction).map_err(text)?;
        self.report(effects)
    }

    fn write(&mut self, rng: &dyn Rng, branch: BranchId) -> Verdict {
        let mut ops = Vec::new();
        let mut chunks: Vec<ChunkId> = self.reported.alive.iter().copied().collect();
        for _ in 0..=rng.below(4) {
            match rng.below(10) {
                0..4 => ops.push(random_stem(rng)),
                4..9 => self.random_replace(rng, &mut ops, &mut chunks),
                _ => ops.extend((0..=rng.below(3)).map(|_| random_pending(rng))),
            }
        }
        if rng.below(3) == 0 {
            let at = ops.len();
            self.random_move(rng, &mut ops);
            let place = rng.below(at as u64 + 1) as usize;
            let moves = usize::from(ops.len() > at);
            ops[place..].rotate_right(moves);
        }
        if self.segment_is_open && rng.below(8) == 0 {
            // Sealing may stand anywhere in the change.
            let place = rng.below(ops.len() as u64 + 1) as usize;
            let opened = ops.iter().position(|op| matches!(op, Op::Put { .. })).map_or(0, |at| at + 1);
            ops.insert(place.max(opened), Op::SealSegment { segment: self.segment, rows: 3, end: 8192 });
            self.commit(branch, ops)?;
            self.segment_is_open = false;
            self.segment = self.segment.next();
            return Ok(());
        }
        self.commit(branch, ops)
    }

    /// Points a run elsewhere, sometimes one that is larger or smaller than what is there, or that is not there.
    fn repoint(&mut self, rng: &dyn Rng, branch: BranchId) -> Verdict {
        let head = Head::of_branch(&self.tables, branch).map_err(text)?;
        let mut all = Vec::new();
        scan_visible(&self.tables, Table::Extents, &[], None, &head.view, &mut |stem, value| {
            let (inode, window) = (key::stem_inode(stem).unwrap(), key::extents_window(stem).unwrap());
            all.extend(decode_window(value).unwrap().into_iter().map(|reference| (inode, window, reference)));
            ControlFlow::Continue(())
        })
        .map_err(text)?;
        if all.is_empty() {
            return Ok(());
        }
        let (inode, window, one) = one_of(rng, &all);
        let start = window * WINDOW_BYTES;
        let (mut from, mut to) = (start + u64::from(one.offset), start + u64::from(one.end()));
        let mut chunk = one.chunk;
        let mut offset_in_chunk = one.offset_in_chunk;
        match rng.below(6) {
            0 => chunk = one_of(rng, &all).2.chunk,
            1 => offset_in_chunk += 1,
            2 => {
                let inside: Vec<u64> =
                    cuts().iter().copied().filter(|cut| from < *cut && *cut < to).collect();
                to = inside.first().copied().unwrap_or(to);
            }
            3 if one.offset_in_chunk >= one.offset => {
                (from, to) = (start, start + WINDOW_BYTES);
                offset_in_chunk -= one.offset;
            }
            _ => {}
        }
        let run = NewRef { offset: from, length: (to - from) as u32, chunk, offset_in_chunk };
        let mut ops = Vec::new();
        let mut references = Vec::new();
        while from < to {
            let most = (to - from).min(CHUNK_BYTES_MAX as u64);
            let inside = cuts().iter().copied().filter(|cut| from < *cut && *cut < from + most);
            let ends: Vec<u64> = inside.chain([from + most]).collect();
            let end = if rng.below(3) == 0 { one_of(rng, &ends) } else { from + most };
            let chunk = self.new_chunk(rng, &mut ops);
            references.push(NewRef { offset: from, length: (end - from) as u32, chunk, offset_in_chunk: 0 });
            from = end;
        }
        for (_, _, reference) in all.iter().filter(|(of, at, _)| (*of, *at) == (inode, window)) {
            let (at, end) = (start + u64::from(reference.offset), start + u64::from(reference.end()));
            let is_there = run.offset <= at && end <= run.offset + u64::from(run.length);
            let is_same = reference.chunk == run.chunk
                && u64::from(reference.offset_in_chunk) + run.offset == u64::from(run.offset_in_chunk) + at;
            if is_there && is_same && !head.is_pinned(reference.birth) {
                let line = self.history.open.get_mut(&branch).unwrap();
                line.now.refer(inode, at, end, &references);
                self.repointed += 1;
            }
        }
        ops.push(Op::Repoint { inode, from: run, references });
        self.commit(branch, ops)
    }

    /// Moves a chunk to the open segment, sometimes from where it is not.
    fn random_move(&self, rng: &dyn Rng, ops: &mut Vec<Op>) {
        let chunks: Vec<ChunkId> = self.reported.alive.iter().copied().collect();
        if !self.segment_is_open || chunks.is_empty() {
            return;
        }
        let chunk = one_of(rng, &chunks);
        let stored = self.tables.get(Table::Chunks, &key::chunk(chunk)).unwrap().expect("it is alive");
        let now = Descriptor::decode(&stored).unwrap().expect("it is alive");
        let frame = FramePlace { segment: self.segment, ..now.frame };
        let charged_bytes = 1 + rng.below(200_000) as u32;
        let slot_offset = now.frame.slot_offset + u32::from(rng.below(5) == 0);
        let descriptor = Descriptor { frame, charged_bytes, references: 0, ..now };
        ops.push(Op::MoveChunk { chunk, from: (now.frame.segment, slot_offset), descriptor });
    }

    /// Replaces a range by new chunks, chunks that are there already, and holes.
    fn random_replace(&mut self, rng: &dyn Rng, ops: &mut Vec<Op>, chunks: &mut Vec<ChunkId>) {
        let cuts = cuts();
        let mut ends = [one_of(rng, cuts), one_of(rng, cuts)];
        ends.sort_unstable();
        let [from, to] = match rng.below(6) {
            0 => [ends[0], *cuts.last().unwrap()],
            // A byte or two, where pending bytes often are.
            1 => {
                let at = one_of(rng, &PENDING_NEAR);
                [at - rng.below(2), at + 1]
            }
            _ => ends,
        };
        let truncate = rng.below(4) == 0;
        let mut references = Vec::new();
        let mut at = from;
        while at < to && !truncate {
            let fitting: Vec<u64> = cuts
                .iter()
                .copied()
                .filter(|cut| *cut > at && *cut <= to && *cut - at <= CHUNK_BYTES_MAX as u64)
                .collect();
            let end = one_of(rng, &fitting);
            if rng.below(4) > 0 {
                let chunk = if chunks.is_empty() || rng.below(3) == 0 {
                    self.new_chunk(rng, ops)
                } else {
                    one_of(rng, chunks)
                };
                chunks.push(chunk);
                let length = (end - at) as u32;
                let offset_in_chunk = rng.below(CHUNK_BYTES_MAX as u64 - u64::from(length) + 1) as u32;
                references.push(NewRef { offset: at, length, chunk, offset_in_chunk });
            }
            at = end;
        }
        if rng.below(10) == 0 {
            self.new_chunk(rng, ops);
        }
        let behind = rng.below(self.sequence.0 + 2);
        let pending_up_to = one_of(rng, &[Sequence(behind), Sequence(u64::MAX)]);
        ops.push(Op::Replace { inode: InodeId(1 + rng.below(3)), from, to, pending_up_to, references });
    }

    fn new_chunk(&mut self, rng: &dyn Rng, ops: &mut Vec<Op>) -> ChunkId {
        if !self.segment_is_open {
            let segment = Segment {
                state: SegmentState::Open,
                shards: (1, 0),
                tier: 0,
                policy: aegisfs_base::PolicyId(0),
                key_domain: 0,
                live_bytes: 0,
                written_bytes: 0,
                opened: self.sequence.0,
                rows: 0,
                forsaken_bytes: 0,
                end: 0,
                placements: vec![Default::default()],
            };
            let key = key::segment(self.segment).to_vec();
            ops.push(Op::Put { table: Table::Segments, key, value: segment.encode() });
            self.segment_is_open = true;
        }
        let chunk = ChunkId(self.next_chunk);
        self.next_chunk += 1;
        let frame = FramePlace {
            segment: self.segment,
            row: RowIndex(0),
            cell: 0,
            slot_offset: 4096,
            stored_bytes: 100,
            plain_bytes: CHUNK_BYTES_MAX as u32,
            codec: 0,
            key_domain: 0,
        };
        let descriptor = Descriptor {
            frame,
            offset_in_frame: 0,
            plain_bytes: CHUNK_BYTES_MAX as u32,
            charged_bytes: 1 + rng.below(200_000) as u32,
            references: 0,
            referred_bytes: 0,
            damaged: false,
            hash: [chunk.0 as u8; 32],
        };
        ops.push(Op::NewChunk { chunk, descriptor });
        chunk
    }

    /// A reference to a chunk that is gone is refused as such, after whatever came before it in the change.
    fn stale_chunk(&mut self, rng: &dyn Rng, branch: BranchId) -> Verdict {
        let gone = (1..=self.next_chunk).map(ChunkId).filter(|chunk| !self.reported.alive.contains(chunk));
        let gone = one_of(rng, &gone.collect::<Vec<_>>());
        let reference = NewRef { offset: 0, length: 1, chunk: gone, offset_in_chunk: 0 };
        let refused = Op::Replace {
            inode: InodeId(1),
            from: 0,
            to: 1,
            pending_up_to: Sequence(0),
            references: vec![reference],
        };
        let transaction = self.transaction(branch, vec![random_stem(rng), refused]);
        match apply(&mut self.tables.clone(), &transaction) {
            Err(StoreError::StaleChunk { chunk }) if chunk == gone => Ok(()),
            other => Err(format!("chunk {gone} is gone, but: {other:?}")),
        }
    }

    fn snapshot(&mut self, rng: &dyn Rng, branch: BranchId) -> Verdict {
        let name = format!("s{}", rng.below(12)).into_bytes();
        let before = self.tables.clone();
        let line = &self.history.open[&branch];
        let expected_error = if self
            .history
            .kept
            .iter()
            .any(|(epoch, kept)| branch_of(*epoch) == branch && kept.name.as_deref() == Some(&name[..]))
        {
            Some("exists")
        } else if line.pending.is_empty() {
            None
        } else {
            Some("not flushed")
        };
        let then = line.now.clone();
        let outcome = branches::create_snapshot(&mut self.tables, branch, &name, Timestamp(7));
        self.note(|| format!("snapshot {name:?} of branch {branch}: {outcome:?}"));
        match (outcome, expected_error) {
            (Ok(epoch), None) => {
                self.history.kept.insert(epoch, Kept { name: Some(name), then });
                let changed = entries_changed(&before, &self.tables);
                if changed > 3 { Err(format!("a snapshot changed {changed} entries")) } else { Ok(()) }
            }
            (Err(error), Some(expected)) if text(&error).contains(expected) && self.tables == before => {
                let cuts = cuts();
                let flush = |inode| Op::Replace {
                    inode: InodeId(inode),
                    from: 0,
                    to: cuts[cuts.len() - 2],
                    pending_up_to: Sequence(u64::MAX),
                    references: Vec::new(),
                };
                self.commit(branch, vec![flush(1), flush(2)])
            }
            (outcome, expected) => Err(format!("snapshot: {outcome:?}, but {expected:?} was expected")),
        }
    }

    fn delete_snapshot(&mut self, rng: &dyn Rng) -> Verdict {
        let all = self.history.named(None);
        if all.is_empty() {
            return Ok(());
        }
        let of_branch = self.history.named(Some(branch_of(one_of(rng, &all))));
        let epoch = match rng.below(4) {
            0 => of_branch[0],
            1 => of_branch[of_branch.len() - 1],
            2 => of_branch[of_branch.len() / 2],
            _ => one_of(rng, &of_branch),
        };
        self.delete(epoch)
    }

    fn delete(&mut self, epoch: EpochId) -> Verdict {
        let name = self.history.kept.get_mut(&epoch).and_then(|kept| kept.name.take()).unwrap();
        self.note(|| format!("delete snapshot at {epoch}"));
        let effects = branches::delete_snapshot(&mut self.tables, branch_of(epoch), &name).map_err(text)?;
        self.history.forget_unheld();
        self.report(effects)?;
        match branches::delete_snapshot(&mut self.tables, branch_of(epoch), &name) {
            Err(BranchError::Missing) => Ok(()),
            other => Err(format!("deleted again: {other:?}")),
        }
    }

    /// Forks where something is pinned, by name or not.
    fn fork(&mut self, rng: &dyn Rng) -> Verdict {
        let kept: Vec<_> = self.history.kept.keys().copied().collect();
        if kept.is_empty() {
            return Ok(());
        }
        let at = one_of(rng, &kept);
        let branch = branches::fork(&mut self.tables, at).map_err(text)?;
        self.note(|| format!("fork branch {branch} at {at}"));
        self.begin(branch, at)
    }

    fn begin(&mut self, branch: BranchId, at: EpochId) -> Verdict {
        let line = Line { now: self.history.kept[&at].then.clone(), ..Line::default() };
        self.history.origins.insert(branch, Some(at));
        match self.history.open.insert(branch, line) {
            None => Ok(()),
            Some(_) => Err(format!("branch {branch} was there already")),
        }
    }

    fn rollback(&mut self, rng: &dyn Rng) -> Verdict {
        let named = self.history.named(None);
        if named.is_empty() {
            return Ok(());
        }
        let at = one_of(rng, &named);
        let done = branches::rollback(&mut self.tables, b"main", at).map_err(text)?;
        self.note(|| format!("roll back to {at}: {done:?}"));
        self.begin(done.now, at)?;
        let before = self.history.volumes.insert(b"main".to_vec(), done.now);
        if before != Some(done.before) {
            return Err(format!("the volume showed {before:?}, not {}", done.before));
        }
        // Mostly the head that was left is of no use any more.
        if rng.below(3) > 0 { self.close(done.before) } else { Ok(()) }
    }

    fn delete_branch(&mut self, rng: &dyn Rng) -> Verdict {
        let branch = self.some_branch(rng);
        if self.history.volumes.values().any(|head| *head == branch) {
            return match branches::delete_branch(&mut self.tables, branch) {
                Err(BranchError::InUse) => Ok(()),
                other => Err(format!("deleted a branch that a volume shows: {other:?}")),
            };
        }
        self.close(branch)
    }

    fn close(&mut self, branch: BranchId) -> Verdict {
        self.note(|| format!("delete branch {branch}"));
        let effects = branches::delete_branch(&mut self.tables, branch).map_err(text)?;
        self.history.open.remove(&branch);
        self.history.forget_unheld();
        self.report(effects)?;
        match branches::delete_branch(&mut self.tables, branch) {
            Err(BranchError::Missing) => Ok(()),
            other => Err(format!("deleted again: {other:?}")),
        }
    }
}

/// A few bytes near one of a few cuts.
fn random_pending(rng: &dyn Rng) -> Op {
    let offset = one_of(rng, &PENDING_NEAR) - rng.below(20);
    let bytes = (0..=rng.below(40)).map(|_| rng.below(256) as u8).collect();
    Op::Pending { inode: InodeId(1 + rng.below(2)), offset, bytes }
}

/// Stems of which some begin like others.
fn random_stem(rng: &dyn Rng) -> Op {
    let inode = InodeId(1 + rng.below(3));
    let (table, stem) = match rng.below(10) {
        0..4 => (Table::Inode, key::inode(inode).to_vec()),
        4..7 => (Table::Dirent, key::dirent(inode, rng.below(3)).to_vec()),
        7 | 8 => (Table::Xattr, key::xattr(inode, one_of(rng, &[&b"a"[..], b"ab"]))),
        _ => (one_of(rng, &[Table::Inline, Table::Orphans]), key::inode(inode).to_vec()),
    };
    if rng.below(3) == 0 {
        return Op::RemoveVersion { table, stem };
    }
    let value = if table == Table::Inode {
        Inode { size: rng.below(1000), allocated: 1 << 40, ..Inode::default() }.encode()
    } else {
        value::wrap(&rng.next_u64().to_le_bytes())
    };
    Op::PutVersion { table, stem, value }
}

/// Entries that are in one of the tables only, or differ.
fn entries_changed(before: &MapTables, after: &MapTables) -> usize {
    let (before, after): (Vec<_>, Vec<_>) = (before.iter().collect(), after.iter().collect());
    let before: std::collections::BTreeSet<_> = before.into_iter().collect();
    after.iter().filter(|entry| !before.contains(entry)).count()
}
