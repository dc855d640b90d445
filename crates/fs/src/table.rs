//! Nodes in memory, by number, and how often the kernel knows each.

use crate::node::Node;
use aegisfs_base::InodeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Clean nodes kept in memory before some are dropped.
const NODES_KEPT: usize = 32 << 10;
/// Shards, so that threads seldom meet.
const SHARDS: usize = 16;

/// Nodes and lookup counts.
pub(crate) struct Table {
    shards: Vec<Mutex<Shard>>,
    /// Nodes that became dirty and were not seen clean since.
    dirty: Mutex<Vec<Arc<Node>>>,
}

#[derive(Default)]
struct Shard {
    nodes: HashMap<InodeId, Arc<Node>>,
    /// Sixteen bytes for each inode that the kernel holds.
    lookups: HashMap<InodeId, u64>,
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), dirty: Mutex::default() }
    }
}

impl Table {
    fn shard(&self, id: InodeId) -> &Mutex<Shard> {
        &self.shards[(id.0 % SHARDS as u64) as usize]
    }

    pub(crate) fn get(&self, id: InodeId) -> Option<Arc<Node>> {
        self.shard(id).lock().nodes.get(&id).cloned()
    }

    /// Puts a node in, unless somebody was faster; returns the one that counts.
    pub(crate) fn insert(&self, node: Arc<Node>) -> Arc<Node> {
        let mut shard = self.shard(node.id).lock();
        if shard.nodes.len() > NODES_KEPT / SHARDS {
            // Whoever holds a node has its Arc, so a count of one means that nobody does.
            let mut spare = shard.nodes.len() / 4;
            shard.nodes.retain(|_, node| {
                let idle = spare > 0
                    && Arc::strong_count(node) == 1
                    && node
                        .state
                        .try_read()
                        .is_some_and(|s| !s.is_dirty() && !s.orphan && s.overlay.is_empty());
                spare -= usize::from(idle);
                !idle
            });
        }
        Arc::clone(shard.nodes.entry(node.id).or_insert(node))
    }

    pub(crate) fn remove(&self, id: InodeId) {
        self.shard(id).lock().nodes.remove(&id);
    }

    /// Notes that a node may have something that the store lacks.
    pub(crate) fn note_dirty(&self, node: &Arc<Node>) {
        if !node.listed.swap(true, Ordering::AcqRel) {
            self.dirty.lock().push(Arc::clone(node));
        }
    }

    /// Nodes with something that the store lacks, by ascending number.
    pub(crate) fn dirty(&self) -> Vec<Arc<Node>> {
        let listed = std::mem::take(&mut *self.dirty.lock());
        let mut dirty = Vec::with_capacity(listed.len());
        for node in listed {
            // Taken off before it is looked at: whoever changes it from now on lists it again.
            node.listed.store(false, Ordering::Release);
            if node.state.read().is_dirty() {
                self.note_dirty(&node);
                dirty.push(node);
            }
        }
        dirty.sort_by_key(|node| node.id);
        dirty
    }

    /// The kernel has learnt of an inode once more.
    pub(crate) fn looked_up(&self, id: InodeId) {
        *self.shard(id).lock().lookups.entry(id).or_default() += 1;
    }

    /// The kernel gives back some of its references; says whether it has none left.
    pub(crate) fn forget(&self, id: InodeId, count: u64) -> bool {
        let mut shard = self.shard(id).lock();
        let Some(known) = shard.lookups.get_mut(&id) else { return true };
        *known = known.saturating_sub(count);
        if *known > 0 {
            return false;
        }
        shard.lookups.remove(&id);
        true
    }

    pub(crate) fn is_known(&self, id: InodeId) -> bool {
        self.shard(id).lock().lookups.contains_key(&id)
    }

    pub(crate) fn nodes_in_memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().nodes.len()).sum()
    }
}
