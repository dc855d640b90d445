//! Open handles.

use crate::FsError;
use crate::fs::Fs;
use crate::locks::{self, CountedMutex};
use crate::node::Node;
use foldhash::{HashMap, HashMapExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// Shards, so that threads seldom meet: every read and write looks its handle up.
const SHARDS: usize = 32;

/// Every open handle.
pub(crate) struct Handles {
    next: AtomicU64,
    open: Vec<CountedMutex<HashMap<HandleId, Open>>>,
}

impl Default for Handles {
    fn default() -> Self {
        let shard = || CountedMutex::new(&locks::HANDLES, HashMap::new());
        Self { next: AtomicU64::new(0), open: std::iter::repeat_with(shard).take(SHARDS).collect() }
    }
}

struct Open {
    node: Arc<Node>,
    access: Access,
}

/// What a handle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading, or something of our own.
    Reads,
    /// Writing anywhere; it counts among the node's `writers`.
    Writes,
    /// Writing at the end of an append-only file.
    Appends,
}

impl Handles {
    pub(crate) fn open(&self, node: Arc<Node>, access: Access) -> HandleId {
        let handle = HandleId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        node.opens.fetch_add(1, Ordering::AcqRel);
        self.shard(handle).lock().insert(handle, Open { node, access });
        handle
    }

    /// Returns the node and what the handle was for.
    pub(crate) fn close(&self, handle: HandleId) -> Option<(Arc<Node>, Access)> {
        let Open { node, access } = self.shard(handle).lock().remove(&handle)?;
        node.opens.fetch_sub(1, Ordering::AcqRel);
        Some((node, access))
    }

    pub(crate) fn count(&self) -> usize {
        self.open.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, handle: HandleId) -> &CountedMutex<HashMap<HandleId, Open>> {
        &self.open[(handle.0 % SHARDS as u64) as usize]
    }
}

impl Fs {
    pub(crate) fn handle_node(&self, handle: HandleId) -> Result<Arc<Node>, FsError> {
        Ok(self.handle_access(handle)?.0)
    }

    pub(crate) fn handle_access(&self, handle: HandleId) -> Result<(Arc<Node>, Access), FsError> {
        let open = self.handles.shard(handle).lock();
        let (node, access) =
            open.get(&handle).map(|open| (Arc::clone(&open.node), open.access)).ok_or(FsError::BadHandle)?;
        drop(open);
        self.heat.note(node.id, || self.clock.elapsed());
        Ok((node, access))
    }
}
