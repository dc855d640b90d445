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
    /// Whether it counts among the node's `cached_writers`.
    writes_cached: bool,
}

impl Handles {
    pub(crate) fn open(&self, node: Arc<Node>, writes_cached: bool) -> HandleId {
        let handle = HandleId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        node.opens.fetch_add(1, Ordering::AcqRel);
        self.open.lock().insert(handle, Open { node, writes_cached });
        handle
    }

    /// Returns the node and whether the handle could write through a cache.
    pub(crate) fn close(&self, handle: HandleId) -> Option<(Arc<Node>, bool)> {
        let Open { node, writes_cached } = self.open.lock().remove(&handle)?;
        node.opens.fetch_sub(1, Ordering::AcqRel);
        Some((node, writes_cached))
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

impl Fs {
    pub(crate) fn handle_node(&self, handle: HandleId) -> Result<Arc<Node>, FsError> {
        let open = self.handles.open.lock();
        open.get(&handle).map(|open| Arc::clone(&open.node)).ok_or(FsError::BadHandle)
    }
}
