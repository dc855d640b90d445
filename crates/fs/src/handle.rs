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
    open: Mutex<HashMap<HandleId, Arc<Node>>>,
}

impl Handles {
    pub(crate) fn open(&self, node: Arc<Node>) -> HandleId {
        let handle = HandleId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        node.opens.fetch_add(1, Ordering::AcqRel);
        self.open.lock().insert(handle, node);
        handle
    }

    pub(crate) fn close(&self, handle: HandleId) -> Option<Arc<Node>> {
        let node = self.open.lock().remove(&handle)?;
        node.opens.fetch_sub(1, Ordering::AcqRel);
        Some(node)
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

impl Fs {
    pub(crate) fn handle_node(&self, handle: HandleId) -> Result<Arc<Node>, FsError> {
        self.handles.open.lock().get(&handle).cloned().ok_or(FsError::BadHandle)
    }
}
