//! Open handles.

use crate::FsError;
use crate::fs::Fs;
use crate::node::Node;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// Every open handle.
#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: Mutex<HashMap<HandleId, Open>>,
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
        self.open.lock().insert(handle, Open { node, access });
        handle
    }

    /// Returns the node and what the handle was for.
    pub(crate) fn close(&self, handle: HandleId) -> Option<(Arc<Node>, Access)> {
        let Open { node, access } = self.open.lock().remove(&handle)?;
        node.opens.fetch_sub(1, Ordering::AcqRel);
        Some((node, access))
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

impl Fs {
    pub(crate) fn handle_node(&self, handle: HandleId) -> Result<Arc<Node>, FsError> {
        Ok(self.handle_access(handle)?.0)
    }

    pub(crate) fn handle_access(&self, handle: HandleId) -> Result<(Arc<Node>, Access), FsError> {
        let open = self.handles.open.lock();
        open.get(&handle).map(|open| (Arc::clone(&open.node), open.access)).ok_or(FsError::BadHandle)
    }
}
