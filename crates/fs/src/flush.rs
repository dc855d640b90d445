//! From a file's bytes in memory to the store, and what makes them durable.

mod threads;

use crate::FsError;
use crate::fs::{Fs, HEAD, note_commit};
use crate::node::{Node, NodeState};
use crate::overlay::Overlay;
use aegisfs_base::limits::{INLINE_BYTES_MAX, LOG_PAYLOAD_BYTES_MAX};
use aegisfs_base::{InodeId, PolicyId, Sequence, Share};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value;
use aegisfs_format::value::Inode;
use aegisfs_store::{Committed, Ingested, Piece, Reservation, StoreError};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
pub use threads::Flusher;

/// Most files in one change; bounds the log record.
const BATCH_FILES_MAX: usize = 256;
/// Most stretches of bytes in one change, for the same reason.
const BATCH_STRETCHES_MAX: usize = 1000;
/// A single file is taken along into a batch up to this size.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// Most bytes of one file in one change: their chunks are described in it.
const LEAVING_BYTES_MAX: u64 = 32 << 20;
/// Bytes in the log that a file may have overwritten however few it holds.
const LOGGED_SLACK: u64 = 1 << 20;

/// What of a file is to leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Portion {
    /// All of it.
    Whole,
    /// A long stretch and what lies before it, but for its end: more is expected there, and chunks end where
    /// the content says. What lies before goes along because the file's length is about to cover it.
    Stream,
}

/// A file whose bytes are leaving; its `flushing` lock is held.
struct Leaving<'n> {
    node: &'n Node,
    bytes: Arc<Overlay>,
    portion: Portion,
    /// Whether more of the file waits for the next change.
    more: bool,
    /// The length that the metadata has, as far as it still holds.
    size_before: u64,
    /// The file's length when the bytes are stored.
    size: u64,
    /// When it was taken.
    taken: Duration,
    /// Whether the file is so small that its content goes beside its inode: all of it is here.
    inline: bool,
    /// How the bytes are stored: that of the file when they were taken.
    policy: PolicyId,
    /// The last change that put bytes of this file into the log before they left.
    pending: Sequence,
    /// What the log holds of them, and of what they took the place of; until they lie in rows.
    logged: Option<Share>,
    /// Room for the bytes; theirs until they lie in rows.
    promised: Option<Reservation>,
    _flushing: MutexGuard<'n, ()>,
}

impl Fs {
    /// Moves everything of a file into rows, or beside its inode if it is tiny; not durable yet.
    pub(crate) fn flush_node(&self, node: &Node) -> Result<(), FsError> {
        let flushing = node.flushing.lock();
        self.flush_locked(node, flushing)
    }

    pub(crate) fn flush_locked<'n>(
        &self,
        node: &'n Node,
        mut flushing: MutexGuard<'n, ()>,
    ) -> Result<(), FsError> {
        loop {
            let Some(leaving) = self.take_leaving(node, flushing, Portion::Whole) else {
                return self.commit_attributes(node);
            };
            let more = leaving.more;
            self.store_leaving(vec![leaving])?;
            if !more {
                return Ok(());
            }
            flushing = node.flushing.lock();
        }
    }

    /// Stores attributes that only memory has.
    fn commit_attributes(&self, node: &Node) -> Result<(), FsError> {
        let mut state = node.state.write();
        if !state.attributes_dirty || state.dead {
            return Ok(());
        }
        self.commit_inode(node.id, &mut state)
    }

    fn commit_inode(&self, id: InodeId, state: &mut NodeState) -> Result<(), FsError> {
        let committed = self.commit(vec![Self::put_inode(id, state)])?;
        note_commit(id, state, &committed);
        Ok(())
    }

    fn take_leaving<'n>(
        &self,
        node: &'n Node,
        flushing: MutexGuard<'n, ()>,
        portion: Portion,
    ) -> Option<Leaving<'n>> {
        let mut state = node.state.write();
        if !state.overlay.needs_flush() || state.dead {
            return None;
        }
        let stretch = match portion {
            Portion::Whole => None,
            Portion::Stream => state.overlay.long_stretch(self.options.stream_bytes),
        };
        let few = |from: u64| state.overlay.few_before(from, BATCH_STRETCHES_MAX / 2, LEAVING_BYTES_MAX / 2);
        let stretch = stretch.filter(|(from, _)| few(*from));
        let (bytes, portion) = match stretch {
            None => (state.overlay.take_first(BATCH_STRETCHES_MAX, LEAVING_BYTES_MAX), Portion::Whole),
            Some((from, to)) => {
                (state.overlay.take_before(to.min(from + LEAVING_BYTES_MAX)), Portion::Stream)
            }
        };
        let bytes = Arc::new(bytes);
        state.leaving = Some(Arc::clone(&bytes));
        let more = portion == Portion::Stream || state.overlay.needs_flush();
        // The size waits for the bytes that have to wait themselves.
        let size = match more {
            true => state.committed_size.max(bytes.end()).min(state.inode.size),
            false => state.inode.size,
        };
        let logged = if more { None } else { state.logged.take() };
        let whole = !more && bytes.ranges().gaps(0, size).is_empty();
        let staying = state.worst_case_bytes(&self.store);
        let mut promised = state.promised.take();
        state.promised = promised.as_mut().filter(|_| more).map(|all| all.split_off(staying));
        Some(Leaving {
            node,
            bytes,
            portion,
            more,
            size_before: state.committed_size.min(state.inode.size),
            size,
            taken: self.clock.elapsed(),
            inline: size <= INLINE_BYTES_MAX as u64 && whole && state.inode.allocated == 0 && !state.outlined,
            policy: state.inode.policy,
            pending: state.last_pending,
            logged,
            promised,
            _flushing: flushing,
        })
    }

    /// Stores the bytes of several files, which follow the same policy, in one change.
    fn store_leaving(&self, mut files: Vec<Leaving<'_>>) -> Result<(), FsError> {
        let mut outcome = self.try_store(&mut files, true);
        if matches!(outcome, Err(FsError::Store(StoreError::StaleChunk { .. }))) {
            outcome = self.try_store(&mut files, false);
        }
        if outcome.is_err() {
            for file in &mut files {
                let mut state = file.node.state.write();
                if state.dead {
                    self.forget_leaving(file, &mut state);
                    continue;
                }
                let older = state.leaving.take().unwrap_or_default();
                let waiting = older.waiting_bytes() + state.overlay.waiting_bytes();
                state.overlay.put_under((*older).clone());
                Share::join(&mut state.logged, file.logged.take());
                self.count_waiting(waiting, state.overlay.waiting_bytes());
                state.fit_promise(&self.store, file.promised.take());
            }
        }
        drop(files);
        self.gate.call();
        outcome
    }

    fn try_store(&self, files: &mut [Leaving<'_>], trusting: bool) -> Result<(), FsError> {
        let bytes: Vec<_> = files.iter().map(|file| Arc::clone(&file.bytes)).collect();
        let policy = files.first().map_or(PolicyId::default(), |file| file.policy);
        let mut pieces = Vec::new();
        for (number, (file, bytes)) in files.iter().zip(&bytes).enumerate().filter(|(_, (f, _))| !f.inline) {
            let stretches = bytes.stretches().into_iter();
            pieces.extend(stretches.map(|(offset, slices)| Piece {
                file: number,
                offset,
                slices,
                open: false,
            }));
            if let Some(last) = pieces.last_mut().filter(|_| file.portion == Portion::Stream) {
                last.open = true;
            }
        }
        let mut ingested = self.store.ingest(files.len(), &pieces, policy, trusting)?;
        // Before any lock is taken: an earlier batch may be waiting for one of them.
        ingested.wait_turn();
        // The locks are taken in ascending order, as everywhere.
        let mut states: Vec<_> = files.iter().map(|file| file.node.state.write()).collect();
        let mut ops = Vec::new();
        // Where the bytes end that are stored now.
        let ends: Vec<u64> = files.iter().zip(&ingested.left).map(|(f, left)| f.bytes.end() - left).collect();
        for (number, file) in files.iter_mut().enumerate() {
            if states[number].dead {
                continue;
            }
            let state = &states[number];
            file.keep_logged_size(state);
            if file.inline {
                ops.extend(inline_ops(file, state));
            } else {
                ops.extend(extent_ops(file, state, &mut ingested, number, ends[number]));
            }
        }
        let committed = self.store.commit_ingested(HEAD, ingested, ops)?;
        for ((file, state), end) in files.iter_mut().zip(&mut states).zip(ends) {
            self.settle(file, state, &committed, end);
        }
        Ok(())
    }

    /// Lets go of the bytes of a file that went while they were leaving.
    fn forget_leaving(&self, file: &mut Leaving<'_>, state: &mut NodeState) {
        let gone = state.leaving.take().unwrap_or_default();
        self.count_waiting(gone.waiting_bytes(), 0);
        file.promised = None;
    }

    /// After the change: the bytes up to `end` are in the store now.
    fn settle(&self, file: &mut Leaving<'_>, state: &mut NodeState, committed: &Committed, end: u64) {
        if state.dead {
            self.forget_leaving(file, state);
            return;
        }
        state.inode.inline = file.inline;
        let bytes = state.leaving.take().unwrap_or_default();
        let waiting = bytes.waiting_bytes() + state.overlay.waiting_bytes();
        if end < bytes.end() {
            // What is behind a stream is younger than what has left.
            if state.overlay.start().is_none_or(|start| start >= end) {
                state.dirty_since = file.taken;
            }
            state.overlay.put_under(bytes.tail(end));
        }
        let stored = file.size_with(end);
        state.committed_size = stored;
        note_commit(file.node.id, state, committed);
        if stored != state.inode.size {
            // The file was made longer meanwhile, or before; the change did not say so yet.
            state.committed_size = stored.min(state.inode.size);
            state.attributes_dirty = true;
        }
        if file.inline {
            // Tiny files are kept whole in memory, since every write stores them whole.
            let mut kept = Overlay::default();
            for (offset, slices) in bytes.stretches() {
                kept.write(offset, &slices.concat(), crate::overlay::Origin::Inline);
            }
            state.overlay.put_under(kept);
        }
        self.count_waiting(waiting, state.overlay.waiting_bytes());
        state.fit_promise(&self.store, file.promised.take());
    }

    /// Makes a file durable: its bytes, its attributes, and every name that led to it before.
    pub(crate) fn sync_node(&self, node: &Node) -> Result<(), FsError> {
        if !self.log_beside_flush(node)? {
            self.log_or_flush(node)?;
        }
        let last = node.state.read().last;
        Ok(self.store.sync_to(last)?)
    }

    /// Puts new bytes into the log while older ones, which it has already, are on their way to the store. Says whether
    /// that was possible.
    fn log_beside_flush(&self, node: &Node) -> Result<bool, FsError> {
        let mut state = node.state.write();
        // Whoever took them holds `flushing`, so nothing is truncated or replaced meanwhile.
        if state.dead || state.leaving().is_empty() || state.leaving().new_bytes() > 0 {
            return Ok(false);
        }
        if state.overlay.new_bytes() == 0 {
            if state.attributes_dirty || state.committed_size != state.inode.size {
                self.commit_inode(node.id, &mut state)?;
            }
            return Ok(true);
        }
        let fits = self.fits_log(&state);
        if fits {
            self.log_bytes(node.id, &mut state)?;
        }
        Ok(fits)
    }

    fn log_or_flush(&self, node: &Node) -> Result<(), FsError> {
        let flushing = node.flushing.lock();
        let mut state = node.state.write();
        if self.fits_log(&state) {
            return self.log_bytes(node.id, &mut state);
        }
        drop(state);
        self.flush_unless_logged(node, flushing)
    }

    /// Flushes what is new; bytes that the log has need no row to be durable.
    fn flush_unless_logged(&self, node: &Node, flushing: MutexGuard<'_, ()>) -> Result<(), FsError> {
        if node.state.read().overlay.new_bytes() > 0 {
            return self.flush_locked(node, flushing);
        }
        self.commit_attributes(node)
    }

    /// Puts a file's new bytes into the log itself.
    fn log_bytes(&self, id: InodeId, state: &mut NodeState) -> Result<(), FsError> {
        let value = Inode { ..state.inode }.encode();
        let mut ops = vec![Op::PutVersion { table: Table::Inode, stem: key::inode(id).to_vec(), value }];
        for (offset, bytes) in state.overlay.new_runs() {
            ops.push(Op::Pending { inode: id, offset, bytes: bytes.to_vec() });
        }
        let committed = self.commit(ops)?;
        note_commit(id, state, &committed);
        Share::join(&mut state.logged, Some(Share::new(state.overlay.new_bytes(), &self.logged_bytes)));
        state.last_pending = committed.sequence;
        state.overlay.mark_logged();
        // What is on its way to the store was in the log before.
        state.committed_size = state.inode.size;
        Ok(())
    }

    /// Whether a file's new bytes are few enough for the log. What stands there and was overwritten since is given back
    /// only with the rest of the file, and until then takes room among the metadata.
    fn fits_log(&self, state: &NodeState) -> bool {
        let new = state.overlay.new_bytes();
        let few = || state.overlay.new_runs().count() <= BATCH_STRETCHES_MAX;
        let with_dead = state.logged.as_ref().map_or(0, Share::bytes) + new;
        let is_live = with_dead <= LOGGED_SLACK.max(2 * state.overlay.waiting_bytes());
        let is_room = || self.logged_bytes.load(Ordering::Acquire) + new <= self.logged_bytes_max;
        new > 0 && new <= LOG_PAYLOAD_BYTES_MAX as u64 && !state.dead && is_live && is_room() && few()
    }

    /// Writes out every dirty file, in batches, and makes everything durable.
    ///
    /// # Errors
    /// When something could not be stored; the rest was tried all the same.
    pub fn sync(&self) -> Result<(), FsError> {
        let flushed = self.flush_all();
        if self.store.check_writable().is_err() {
            flushed?;
            return Ok(self.store.check_writable()?);
        }
        self.store.sync()?;
        flushed
    }

    /// Writes out every dirty file, in batches.
    ///
    /// # Errors
    /// The first failure; the rest was tried all the same.
    pub fn flush_all(&self) -> Result<(), FsError> {
        let dirty = self.nodes.dirty();
        self.flush_nodes(dirty.iter().map(|node| (&**node, Portion::Whole)))
    }

    /// Writes out nodes, which come in ascending order of their numbers.
    pub(crate) fn flush_nodes<'n>(
        &self,
        nodes: impl Iterator<Item = (&'n Node, Portion)>,
    ) -> Result<(), FsError> {
        let mut outcome = Ok(());
        let mut batch: Vec<Leaving<'_>> = Vec::new();
        let (mut bytes, mut stretches) = (0, 0);
        for (node, portion) in nodes {
            let mut more = false;
            let flushing = node.flushing.try_lock().unwrap_or_else(|| {
                // Those taken before do not wait until somebody else has stored this one.
                if !batch.is_empty() {
                    let stored = self.store_leaving(std::mem::take(&mut batch));
                    outcome = std::mem::replace(&mut outcome, Ok(())).and(stored);
                    (bytes, stretches) = (0, 0);
                }
                node.flushing.lock()
            });
            match self.take_leaving(node, flushing, portion) {
                Some(leaving) => {
                    let count = leaving.bytes.bounds().count();
                    // A small file does not wait until a large one is stored.
                    let is_large = leaving.bytes.bytes() >= BATCH_BYTES_MAX;
                    let differs = batch.first().is_some_and(|first| first.policy != leaving.policy);
                    let too_many = stretches + count > BATCH_STRETCHES_MAX;
                    if !batch.is_empty() && (is_large || too_many || differs) {
                        outcome = outcome.and(self.store_leaving(std::mem::take(&mut batch)));
                        (bytes, stretches) = (0, 0);
                    }
                    bytes += leaving.bytes.bytes();
                    stretches += count;
                    more = leaving.more && leaving.portion == Portion::Whole;
                    batch.push(leaving);
                }
                None => outcome = outcome.and(self.commit_attributes(node)),
            }
            let full = bytes >= BATCH_BYTES_MAX || stretches >= BATCH_STRETCHES_MAX;
            if full || more || batch.len() == BATCH_FILES_MAX {
                outcome = outcome.and(self.store_leaving(std::mem::take(&mut batch)));
                (bytes, stretches) = (0, 0);
            }
            if more {
                outcome = outcome.and(self.flush_node(node));
            }
        }
        if !batch.is_empty() {
            outcome = outcome.and(self.store_leaving(batch));
        }
        outcome
    }
}

impl Leaving<'_> {
    /// What was logged while it was on its way keeps the length that it has there.
    fn keep_logged_size(&mut self, state: &NodeState) {
        let logged = state.committed_size.min(state.inode.size);
        self.size_before = self.size_before.max(logged);
        self.size = self.size.max(logged);
    }

    /// The file's length when its bytes up to `end` are stored: what was left of a stream is not.
    fn size_with(&self, end: u64) -> u64 {
        if end < self.bytes.end() { self.size_before.max(end) } else { self.size }
    }
}

fn inode_op(file: &Leaving<'_>, state: &NodeState, size: u64, inline: bool) -> Op {
    let value = Inode { size, inline, ..state.inode }.encode();
    Op::PutVersion { table: Table::Inode, stem: key::inode(file.node.id).to_vec(), value }
}

fn inline_ops(file: &Leaving<'_>, state: &NodeState) -> Vec<Op> {
    let content = file.bytes.stretches().first().map_or(Vec::new(), |(_, slices)| slices.concat());
    // What was logged meanwhile may have made the file longer, and lies over this.
    let content = &content[..content.len().min(file.size as usize)];
    let stem = key::inode(file.node.id).to_vec();
    vec![
        inode_op(file, state, file.size, true),
        Op::PutVersion { table: Table::Inline, stem, value: value::wrap(content) },
        Op::Replace {
            inode: file.node.id,
            from: 0,
            to: u64::MAX,
            pending_up_to: file.pending,
            references: Vec::new(),
        },
    ]
}

fn extent_ops(
    file: &Leaving<'_>,
    state: &NodeState,
    ingested: &mut Ingested<'_>,
    number: usize,
    end: u64,
) -> Vec<Op> {
    let mut ops = vec![inode_op(file, state, file.size_with(end), false)];
    if state.inode.inline {
        ops.push(Op::RemoveVersion { table: Table::Inline, stem: key::inode(file.node.id).to_vec() });
    }
    let mut references = std::mem::take(&mut ingested.references[number]).into_iter().peekable();
    for (from, to) in file.bytes.bounds() {
        let to = to.min(end);
        let mut within = Vec::new();
        while let Some(reference) = references.next_if(|r| r.offset < to) {
            within.push(reference);
        }
        ops.push(Op::Replace {
            inode: file.node.id,
            from,
            to,
            pending_up_to: file.pending,
            references: within,
        });
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::{formatted, mount_again};
    use crate::{Changes, HandleId, MakeOptions, ROOT};

    /// A file of `'a'` that is in the log, and from `from` on the same number of `'b'` that are not.
    struct Scene {
        fs: Fs,
        node: Arc<Node>,
        handle: HandleId,
        bytes: usize,
        from: u64,
    }

    impl Scene {
        fn new(fs: Fs, bytes: usize, from: u64) -> Self {
            let (made, handle) = fs.create(ROOT, b"file", &MakeOptions::default()).unwrap();
            let node = fs.node(made.id).unwrap();
            Self { fs, node, handle, bytes, from }
        }

        fn write(&self, from: u64, what: u8) {
            self.fs.write(self.handle, from, &vec![what; self.bytes]).unwrap();
        }

        fn take(&self) -> Leaving<'_> {
            let flushing = self.node.flushing.try_lock().expect("nobody has it");
            self.fs.take_leaving(&self.node, flushing, Portion::Whole).expect("there is something to take")
        }

        fn expected(&self) -> Vec<u8> {
            let from = self.from as usize;
            let mut bytes = vec![b'a'; self.bytes];
            bytes.resize(self.bytes.max(from + self.bytes), 0);
            bytes[from..from + self.bytes].fill(b'b');
            bytes
        }
    }

    fn content(fs: &Fs) -> Vec<u8> {
        assert_eq!(fs.check_tree().unwrap().problems, []);
        let id = fs.lookup(ROOT, b"file").unwrap().id;
        let mut bytes = vec![0; 1 << 20];
        let count = fs.read_node(&fs.node(id).unwrap(), 0, &mut bytes).unwrap();
        bytes.truncate(count);
        bytes
    }

    /// A sync does not wait until what was synced before is stored, and loses none of it, whenever the crash comes.
    #[test]
    fn what_is_synced_while_older_bytes_are_on_their_way_survives() {
        for (bytes, from) in [(100, 50), (100, 2_000), (100, 70_000), (9_000, 5_000), (9_000, 100_000)] {
            for crashes_late in [false, true] {
                let device = formatted();
                let scene = Scene::new(mount_again(Arc::clone(&device)), bytes, from);
                scene.write(0, b'a');
                scene.fs.sync_node(&scene.node).unwrap();
                let leaving = scene.take();
                scene.write(from, b'b');
                // With the flusher at it, this would wait for ever if it waited for the flusher.
                scene.fs.sync_node(&scene.node).unwrap();
                if crashes_late {
                    scene.fs.store_leaving(vec![leaving]).unwrap();
                    assert_eq!(content(&scene.fs), scene.expected(), "{bytes} bytes, then from {from}");
                    // The log goes to the device with it, as with a sync of anything else.
                    scene.fs.store.sync().unwrap();
                } else {
                    drop(leaving);
                }
                let again = mount_again(device);
                assert_eq!(
                    content(&again),
                    scene.expected(),
                    "{bytes} bytes, then from {from}, {crashes_late}"
                );
                again.sync().unwrap();
                assert_eq!(
                    content(&again),
                    scene.expected(),
                    "{bytes} bytes, then from {from}, {crashes_late}"
                );
            }
        }
    }

    /// Bytes that nobody has logged have to be stored before a sync returns.
    #[test]
    fn a_sync_waits_for_bytes_on_their_way_that_the_log_has_not() {
        let scene = Scene::new(mount_again(formatted()), 9_000, 20_000);
        scene.write(0, b'a');
        let leaving = scene.take();
        scene.write(scene.from, b'b');
        assert!(!scene.fs.log_beside_flush(&scene.node).unwrap());
        scene.fs.store_leaving(vec![leaving]).unwrap();
        assert!(!scene.fs.log_beside_flush(&scene.node).unwrap(), "nothing is on its way any more");
        scene.fs.sync_node(&scene.node).unwrap();
        assert_eq!(content(&scene.fs), scene.expected());
    }

    /// A length that only memory has is synced too. Once what was logged alone was taken for what the metadata says.
    #[test]
    fn a_length_is_synced_while_logged_bytes_are_on_their_way() {
        const LENGTH: u64 = 1 << 30;
        for chmod in [false, true] {
            let device = formatted();
            let scene = Scene::new(mount_again(Arc::clone(&device)), 2 << 20, 0);
            let few = Scene { bytes: 4096, ..scene };
            few.write(64 << 20, b'a');
            few.fs.sync_node(&few.node).unwrap();
            let scene = Scene { bytes: 2 << 20, ..few };
            // Equal bytes are cut at the same length everywhere: nothing is left of the stream that they make.
            scene.write(0, b'x');
            let longer = Changes { size: Some(LENGTH), ..Changes::default() };
            scene.fs.setattr(scene.node.id, &longer).unwrap();
            scene.write(2 << 20, b'x');
            let leaving = scene.take();
            assert_eq!(leaving.bytes.new_bytes(), 0, "only the first bytes are left, which were logged");
            if chmod {
                let mode = Changes { permissions: Some(0o600), ..Changes::default() };
                scene.fs.setattr(scene.node.id, &mode).unwrap();
            }
            scene.fs.sync_node(&scene.node).unwrap();
            drop(leaving);
            let again = mount_again(device);
            assert_eq!(again.lookup(ROOT, b"file").unwrap().inode.size, LENGTH, "chmod: {chmod}");
            assert_eq!(again.check_tree().unwrap().problems, []);
        }
    }

    /// Attributes alone are synced beside a flush, too.
    #[test]
    fn attributes_are_synced_while_bytes_are_on_their_way() {
        let device = formatted();
        let scene = Scene::new(mount_again(Arc::clone(&device)), 9_000, 0);
        scene.write(0, b'b');
        scene.fs.sync_node(&scene.node).unwrap();
        let leaving = scene.take();
        {
            let mut state = scene.node.state.write();
            state.inode.uid = 77;
            scene.fs.keep_for_later(&scene.node, &mut state);
        }
        scene.fs.sync_node(&scene.node).unwrap();
        drop(leaving);
        let again = mount_again(device);
        assert_eq!(again.lookup(ROOT, b"file").unwrap().inode.uid, 77);
        assert_eq!(content(&again), scene.expected());
    }

    /// However the bytes go; or every sync would take the long way one day.
    #[test]
    fn the_log_is_not_taken_for_fuller_than_it_is() {
        let device = formatted();
        let fs = mount_again(device);
        let scene = Scene::new(fs, 50_000, 0);
        let Scene { fs, node, handle, .. } = &scene;
        let log = |times: u64| {
            for _ in 0..times {
                scene.write(0, b'a');
                fs.sync_node(node).unwrap();
            }
            assert_eq!(fs.logged_bytes.load(Ordering::Acquire), times * 50_000);
        };
        let is_empty = |how: &str| assert_eq!(fs.logged_bytes.load(Ordering::Acquire), 0, "{how}");
        log(3);
        fs.setattr(node.id, &Changes { size: Some(0), ..Changes::default() }).unwrap();
        is_empty("cut off");
        log(2);
        // As fallocate(2) has it: a hole, and the length stays.
        fs.fallocate(*handle, 0, 1 << 20, 3).unwrap();
        is_empty("a hole");
        log(2);
        fs.flush_node(node).unwrap();
        is_empty("stored");
        log(1);
        scene.write(0, b'b');
        let leaving = scene.take();
        assert_eq!(fs.logged_bytes.load(Ordering::Acquire), 50_000, "on its way");
        fs.store_leaving(vec![leaving]).unwrap();
        is_empty("stored at last");
        // What is overwritten leaves in time, however often it is synced.
        for _ in 0..100 {
            scene.write(0, b'c');
            fs.sync_node(node).unwrap();
            assert!(fs.logged_bytes.load(Ordering::Acquire) <= LOGGED_SLACK);
        }
        fs.release(*handle).unwrap();
        fs.unlink(ROOT, b"file").unwrap();
        fs.forget(node.id, 1);
        is_empty("removed");
    }
}
