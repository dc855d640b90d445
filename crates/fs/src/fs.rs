//! The filesystem: what the verbs have in common.

use crate::FsError;
use crate::damage::Healed;
use crate::gate::Gate;
use crate::handle::Handles;
use crate::heat::Heat;
use crate::name::NameHasher;
use crate::node::{Node, NodeState, S_IFDIR};
use crate::overlay::{Origin, Overlay};
use crate::policy::Following;
use crate::table::Table as Nodes;
use aegisfs_base::{BranchId, Clock, InodeId, Share, Timestamp};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{self, Dirent, Inode, decode_dirents, find_dirent};
use aegisfs_pool::Pool;
use aegisfs_store::{Committed, Effects, Store, StoreError, versions};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The root directory's inode number.
pub const ROOT: InodeId = InodeId(1);
/// Windows of the branch that a mount shows.
pub(crate) const HEAD: BranchId = BranchId(0);
/// The part of a filesystem that bytes in the log may take, and its bounds.
const LOGGED_PART: u64 = 64;
const LOGGED_BYTES_MIN: u64 = 2 << 20;
const LOGGED_BYTES_MAX: u64 = 96 << 20;
/// A file with fewer bytes in memory than these is not what fills it.
pub(crate) const SMALL_BYTES: u64 = 1 << 20;

/// How a filesystem behaves.
#[derive(Clone, Copy, Debug)]
pub struct FsOptions {
    /// Bytes that may wait in memory before writers have to.
    pub dirty_bytes_max: u64,
    /// A file's bytes are written out when it has not grown for so long.
    pub settle: Duration,
    /// Or when it has waited for so long, growing or not.
    pub age_max: Duration,
    /// A contiguous stretch of this size leaves without waiting for more. More than one chunk at least.
    pub stream_bytes: u64,
    /// Whether threads of its own write files out; without them, writers do.
    pub background: bool,
    /// Room kept for bytes that a kernel's writeback cache took before we heard of them. A small filesystem
    /// keeps an eighth of itself at most.
    pub soft_reserve_bytes: u64,
    /// Whether a kernel holds written bytes for a while before we hear of them.
    pub kernel_caches: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            dirty_bytes_max: 64 << 20,
            settle: Duration::from_millis(500),
            age_max: Duration::from_secs(5),
            stream_bytes: 4 << 20,
            background: true,
            soft_reserve_bytes: 0,
            kernel_caches: false,
        }
    }
}

/// On whose behalf something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An inode as a caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub id: InodeId,
    /// Everything that is stored of it, with the size of the moment.
    pub inode: Inode,
    /// Bytes that it takes, before dedup and compression.
    pub allocated: u64,
}

/// One mounted head.
///
/// Nodes are locked in ascending order of their numbers; a name found before is looked up again under the
/// locks. No node's `state` is held across a wait for another's.
pub struct Fs {
    pub(crate) store: Arc<Store>,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    pub(crate) heat: Heat,
    pub(crate) hasher: NameHasher,
    pub(crate) options: FsOptions,
    pub(crate) clock: Arc<dyn Clock>,
    /// One rename at a time: the way from a directory to the root must not change while it is walked.
    pub(crate) renaming: Mutex<()>,
    /// Bytes in overlays.
    pub(crate) dirty_bytes: AtomicU64,
    /// Bytes of files that stand in the log, and so among the metadata, until their files are stored.
    pub(crate) logged_bytes: Arc<AtomicU64>,
    /// So many of them at most.
    pub(crate) logged_bytes_max: u64,
    /// Where writers wait while too many bytes are in memory.
    pub(crate) gate: Gate,
    /// Signalled when there may be something to write out.
    pub(crate) work: (Mutex<bool>, Condvar),
    /// How far what is there already follows its policy.
    pub(crate) following: Following,
    /// How far whoever looks for lost bytes has come.
    pub(crate) healing: Mutex<Option<Healed>>,
}

impl Fs {
    /// The entries that an empty filesystem has in the metadata: its root directory.
    pub fn initial_entries(clock: &dyn Clock) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        let now = clock.now();
        let root = Inode {
            mode: S_IFDIR | 0o755,
            nlink: 2,
            parent: ROOT,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..Inode::default()
        };
        let key = key::versioned(&key::inode(ROOT), aegisfs_base::EpochId(1));
        vec![(Table::Inode, key, root.encode())]
    }

    /// Formats a pool that [`Pool::create`] made.
    ///
    /// # Errors
    /// When a device fails.
    pub fn format(pool: &Arc<Pool>, clock: &dyn Clock) -> Result<(), StoreError> {
        aegisfs_store::create(pool, &Self::initial_entries(clock))
    }

    /// Mounts the head of a store. Truncations that a crash interrupted are finished first.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn mount(store: Arc<Store>, options: FsOptions) -> Result<Self, FsError> {
        let hasher = NameHasher::new(store.pool().superblock().name_key);
        let clock = Arc::clone(store.clock());
        let soft_reserve_bytes = options.soft_reserve_bytes.min(store.capacity().0 / 8);
        let logged_bytes_max = (store.capacity().0 / LOGGED_PART).clamp(LOGGED_BYTES_MIN, LOGGED_BYTES_MAX);
        let options = FsOptions { soft_reserve_bytes, ..options };
        let fs = Self {
            store,
            nodes: Nodes::default(),
            handles: Handles::default(),
            heat: Heat::default(),
            hasher,
            options,
            clock,
            renaming: Mutex::default(),
            dirty_bytes: AtomicU64::new(0),
            logged_bytes: Arc::default(),
            logged_bytes_max,
            gate: Gate::default(),
            work: Default::default(),
            following: Following::default(),
            healing: Mutex::default(),
        };
        if fs.store.check_writable().is_ok() {
            fs.store.finish_truncations()?;
        }
        fs.node(ROOT)?;
        fs.load_pending()?;
        Ok(fs)
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Bytes that are only in memory or in the log so far.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Acquire)
    }

    /// The files that are read and written most just now, the hottest first, and about how often.
    pub fn hottest(&self, count: usize) -> Vec<(InodeId, u64)> {
        self.heat.hottest(count, self.clock.elapsed())
    }

    /// Open handles, and inodes in memory.
    pub fn open_counts(&self) -> (usize, usize) {
        (self.handles.count(), self.nodes.nodes_in_memory())
    }

    /// Counts bytes that came to wait in memory or in the log. The flusher looks around by itself while there
    /// are any; it is told of the first, and when half of what may wait does.
    pub(crate) fn count_waiting(&self, before: u64, after: u64) {
        if after >= before {
            let more = after - before;
            let waited = self.dirty_bytes.fetch_add(more, Ordering::AcqRel);
            let half = self.options.dirty_bytes_max / 2;
            if more > 0 && (waited == 0 || (waited <= half && waited + more > half)) {
                self.wake_flusher();
            }
            return;
        }
        // Never below nothing: a count that wraps around would hold every writer for good.
        let less = |count: u64| Some(count.saturating_sub(before - after));
        let _ = self.dirty_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        self.gate.call();
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Brings the bytes back into memory that stand only in the log, so that they are written out.
    fn load_pending(&self) -> Result<(), FsError> {
        use aegisfs_store::Tables;
        let mut inodes = Vec::new();
        self.store.view().scan(Table::Pending, &[], None, &mut |key, _| {
            if let Ok((inode, _, _)) = key::split_pending(key)
                && inodes.last() != Some(&inode)
            {
                inodes.push(inode);
            }
            std::ops::ControlFlow::Continue(())
        })?;
        for inode in inodes {
            match self.node(inode) {
                Ok(_) | Err(FsError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The node of an inode, from memory or from the store.
    pub(crate) fn node(&self, id: InodeId) -> Result<Arc<Node>, FsError> {
        loop {
            let left = match self.nodes.find(id) {
                Ok(node) => return Ok(node),
                Err(left) => left,
            };
            if let Some(node) = self.load(id, left)? {
                return Ok(node);
            }
        }
    }

    /// Loads a node from the store; nothing if it may have changed meanwhile.
    fn load(&self, id: InodeId, left: u64) -> Result<Option<Arc<Node>>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let (tables, stem) = (self.store.view(), key::inode(id));
        let stored = versions::visible_with(&tables, Table::Inode, &stem, &view, Inode::decode)?;
        let inode = stored.ok_or(FsError::NotFound)??;
        // Orphans with users stay in memory. Others only wait to be reaped, with what the log has of them.
        if inode.nlink == 0 {
            return Err(FsError::NotFound);
        }
        // Which change was the inode's last is known no more; it was one of those up to now, and an fsync
        // has to make it durable.
        let last = self.store.last_sequence();
        let mut state = NodeState { inode, committed_size: inode.size, last, ..NodeState::default() };
        if inode.inline && state.is_regular() {
            let stored = versions::visible(&self.store.view(), Table::Inline, &key::inode(id), &view)?;
            let content =
                stored.ok_or_else(|| inconsistent(format!("inode {id} lacks its inline content")))?;
            state.overlay.write(0, value::unwrap(&content)?, Origin::Inline);
        }
        self.overlay_pending(id, &mut state)?;
        let waiting = state.overlay.waiting_bytes();
        if waiting > 0 {
            // The room was promised in an earlier life, or before the node left memory.
            state.promised = Some(self.store.promise(state.worst_case_bytes(&self.store)));
        }
        let new = Arc::new(Node::new(id, state));
        let Some(node) = self.nodes.insert_loaded(Arc::clone(&new), left) else { return Ok(None) };
        if Arc::ptr_eq(&node, &new) && waiting > 0 {
            self.count_waiting(0, waiting);
            self.nodes.note_dirty(&node);
        }
        Ok(Some(node))
    }

    fn overlay_pending(&self, id: InodeId, state: &mut NodeState) -> Result<(), FsError> {
        use aegisfs_store::Tables;
        let prefix = key::pending(HEAD, id, aegisfs_base::Sequence(0), 0);
        let mut problem = None;
        let overlay: &mut Overlay = &mut state.overlay;
        let last = &mut state.last_pending;
        self.store.view().scan_prefix(Table::Pending, &prefix[..12], &mut |key, stored| {
            match (key::split_pending(key), value::decode_pending(stored)) {
                (Ok((_, sequence, _)), Ok((offset, bytes))) => {
                    overlay.write(offset, bytes, Origin::Logged);
                    *last = (*last).max(sequence);
                }
                (Err(error), _) | (_, Err(error)) => problem = Some(error),
            }
            std::ops::ControlFlow::Continue(())
        })?;
        match problem {
            Some(error) => Err(error.into()),
            None => {
                // Most have none; the total is everybody's.
                let bytes = state.overlay.waiting_bytes();
                state.logged = (bytes > 0).then(|| Share::new(bytes, &self.logged_bytes));
                Ok(())
            }
        }
    }

    /// A node that is a directory.
    pub(crate) fn directory(&self, id: InodeId) -> Result<Arc<Node>, FsError> {
        let node = self.node(id)?;
        if node.state.read().is_directory() { Ok(node) } else { Err(FsError::NotDirectory) }
    }

    /// The entries of a directory that share a name's hash.
    pub(crate) fn bucket(&self, parent: InodeId, hash: u64) -> Result<Vec<Dirent>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let stored = versions::visible(&self.store.view(), Table::Dirent, &key::dirent(parent, hash), &view)?;
        Ok(stored.map_or(Ok(Vec::new()), |stored| decode_dirents(&stored))?)
    }

    /// What a name leads to.
    pub(crate) fn find_entry(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, FsError> {
        self.find_hashed(parent, name, self.hasher.hash(name))
    }

    /// The same for whoever knows the name's hash.
    pub(crate) fn find_hashed(
        &self,
        parent: InodeId,
        name: &[u8],
        hash: u64,
    ) -> Result<Option<InodeId>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let (tables, stem) = (self.store.view(), key::dirent(parent, hash));
        let find = |stored: &[u8]| find_dirent(stored, name);
        let found = versions::visible_with(&tables, Table::Dirent, &stem, &view, find)?;
        Ok(found.transpose()?.flatten())
    }

    /// What a caller sees of a node.
    pub(crate) fn attributes_of(&self, node: &Node) -> Attributes {
        let state = node.state.read();
        attributes(node.id, &state)
    }

    /// Passes a change through the sequencer.
    pub(crate) fn commit(&self, ops: Vec<Op>) -> Result<Committed, FsError> {
        let committed = self.store.commit(HEAD, ops, Vec::new())?;
        Ok(committed)
    }

    /// The same for changes of one node whose attributes are in memory already: if it fails they are again what
    /// they were.
    pub(crate) fn commit_node(
        &self,
        id: InodeId,
        state: &mut NodeState,
        before: Inode,
        ops: Vec<Op>,
    ) -> Result<(), FsError> {
        let committed = self.commit(ops).inspect_err(|_| state.inode = before)?;
        note_commit(id, state, &committed);
        Ok(())
    }

    /// The operation that stores a node's attributes as they may be claimed now.
    pub(crate) fn put_inode(id: InodeId, state: &NodeState) -> Op {
        Op::PutVersion { table: Table::Inode, stem: key::inode(id).to_vec(), value: state.encode_committed() }
    }
}

/// Notes what a change did to a node whose attributes it stored.
pub(crate) fn note_commit(id: InodeId, state: &mut NodeState, committed: &Committed) {
    state.last = committed.sequence;
    state.committed_size = state.claimable_size();
    state.attributes_dirty = false;
    note_allocated(id, state, &committed.effects);
}

/// Keeps a node's account of covered bytes in step with the store's.
pub(crate) fn note_allocated(id: InodeId, state: &mut NodeState, effects: &Effects) {
    if let Some(by) = effects.allocated.get(&id) {
        state.inode.allocated = state.inode.allocated.saturating_add_signed(*by);
    }
}

pub(crate) fn attributes(id: InodeId, state: &NodeState) -> Attributes {
    // Bytes on their way may lie over stored ones; a file never takes more than it is long, though.
    let waiting = state.overlay.bytes() + state.leaving().bytes();
    let length = state.inode.size.next_multiple_of(4096);
    let allocated =
        if waiting > 0 { (state.inode.allocated + waiting).min(length) } else { state.inode.allocated };
    // Bytes that the kernel holds are not counted here, but nobody is to take the file for one great hole.
    let allocated = if state.cached_writers > 0 { allocated.max(4096) } else { allocated };
    Attributes { id, inode: state.inode, allocated }
}

pub(crate) fn inconsistent(what: String) -> FsError {
    FsError::Store(StoreError::Inconsistent { what })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{MakeOptions, RenameFlags};
    use aegisfs_base::{ManualClock, SeededRng};
    use aegisfs_device::{Device, MemoryDevice};
    use aegisfs_pool::{CreateOptions, OpenOptions};
    use aegisfs_store::StoreOptions;

    pub(crate) fn mounted() -> Fs {
        mount_again(formatted())
    }

    pub(crate) fn formatted() -> Arc<dyn Device> {
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::new("disk", 256 << 20));
        let (clock, rng) = (ManualClock::default(), SeededRng::new(1));
        let pool = Pool::create(vec![Arc::clone(&device)], &CreateOptions::default(), &clock, &rng).unwrap();
        Fs::format(&pool, &clock).unwrap();
        device
    }

    /// Whatever was mounted of the device before.
    pub(crate) fn mount_again(device: Arc<dyn Device>) -> Fs {
        let (clock, rng) = (Arc::new(ManualClock::default()), SeededRng::new(2));
        let (pool, _) = Pool::open(vec![device], OpenOptions::default()).unwrap();
        let options = StoreOptions { workers: 0, ..StoreOptions::default() };
        let (store, _) = aegisfs_store::open(pool, &options, clock, &rng).unwrap();
        Fs::mount(Arc::new(store), FsOptions { background: false, ..FsOptions::default() }).unwrap()
    }

    /// A directory that had left memory was taken for one without changes, and its fsync synced nothing.
    #[test]
    fn fsync_of_an_inode_that_left_memory_syncs_its_changes() {
        let fs = mounted();
        fs.create(ROOT, b"old", &MakeOptions::default()).unwrap();
        fs.rename(ROOT, b"old", ROOT, b"new", RenameFlags::default()).unwrap();
        let renamed = fs.store.last_sequence();
        assert!(fs.store.durable_sequence() < renamed);
        fs.nodes.remove(ROOT);
        fs.fsync_inode(ROOT).unwrap();
        assert!(fs.store.durable_sequence() >= renamed);
    }
}
