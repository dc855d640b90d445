//! Nodes in memory, by number, and how often the kernel knows each.

use crate::locks::{self, CountedMutex};
use crate::node::Node;
use aegisfs_base::InodeId;
use foldhash::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Clean nodes kept in memory before some are dropped.
const NODES_KEPT: usize = 32 << 10;
/// Shards, so that threads seldom meet, and so that one that grows takes little.
const SHARDS: usize = 64;

/// Nodes and lookup counts.
pub(crate) struct Table {
    shards: Vec<CountedMutex<Shard>>,
    /// Nodes that became dirty and were not seen clean since.
    dirty: Mutex<Vec<Arc<Node>>>,
    scanning: Mutex<()>,
}

/// Numbers are given out by us, so nobody chooses them to collide, and a quick hash does.
#[derive(Default)]
struct Shard {
    nodes: HashMap<InodeId, Arc<Node>>,
    /// How often nodes have left: whoever loaded one meanwhile may have an old one.
    left: u64,
    /// Nodes at which some are dropped, when that is more than there may be anyway.
    crowded_at: usize,
    lookups: Lookups,
}

/// How often the kernel knows each inode: nine bytes for an entry, which with the room that a table keeps are
/// 10 to 21 for each inode that the kernel holds.
#[derive(Default)]
struct Lookups {
    /// Counts of inodes with numbers that fit.
    counts: HashMap<ShortId, u16>,
    /// Of the others all, of those what did not fit.
    rest: HashMap<InodeId, u64>,
}

/// The lower 48 bits of an inode's number, packed without padding.
type ShortId = [u16; 3];

impl Lookups {
    fn short(id: InodeId) -> Option<ShortId> {
        let [a, b, c, d] = [id.0 as u16, (id.0 >> 16) as u16, (id.0 >> 32) as u16, (id.0 >> 48) as u16];
        (d == 0).then_some([a, b, c])
    }

    fn add(&mut self, id: InodeId) {
        if let Some(short) = Self::short(id) {
            let count = self.counts.entry(short).or_default();
            if let Some(more) = count.checked_add(1) {
                *count = more;
                return;
            }
        }
        *self.rest.entry(id).or_default() += 1;
    }

    /// Takes some away; says whether none are left.
    fn take(&mut self, id: InodeId, mut count: u64) -> bool {
        if let Some(rest) = self.rest.get_mut(&id) {
            let taken = count.min(*rest);
            *rest -= taken;
            count -= taken;
            if *rest == 0 {
                self.rest.remove(&id);
            }
        }
        if let Some(short) = Self::short(id)
            && let Some(known) = self.counts.get_mut(&short)
        {
            *known = u16::try_from(u64::from(*known).saturating_sub(count)).unwrap_or(u16::MAX);
            if *known == 0 {
                self.counts.remove(&short);
                // Room for what the kernel has let go of is given back.
                if self.counts.len() < self.counts.capacity() / 8 {
                    self.counts.shrink_to(self.counts.len() * 2);
                }
            }
        }
        !self.contains(id)
    }

    fn contains(&self, id: InodeId) -> bool {
        Self::short(id).is_some_and(|short| self.counts.contains_key(&short)) || self.rest.contains_key(&id)
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| CountedMutex::new(&locks::TABLE, Shard::default())).collect(),
            dirty: Mutex::default(),
            scanning: Mutex::default(),
        }
    }
}

impl Shard {
    /// Puts a node in, unless somebody was faster, and makes room for it; returns the one that counts.
    fn insert(&mut self, node: Arc<Node>) -> Arc<Node> {
        if self.nodes.len() > self.crowded_at.max(NODES_KEPT / SHARDS) {
            // Whoever holds a node has its Arc, so a count of one means that nobody does.
            let mut spare = self.nodes.len() / 4;
            self.nodes.retain(|_, node| {
                let idle = spare > 0
                    && Arc::strong_count(node) == 1
                    // What its overlay may still hold stands beside the inode as well.
                    && node.state.try_read().is_some_and(|s| !s.is_dirty() && !s.orphan);
                spare -= usize::from(idle);
                !idle
            });
            // Where most are in use, not every newcomer looks through all of them again.
            self.crowded_at = self.nodes.len() + NODES_KEPT / SHARDS / 4;
            self.left += 1;
        }
        Arc::clone(self.nodes.entry(node.id).or_insert(node))
    }
}

impl Table {
    fn shard(&self, id: InodeId) -> &CountedMutex<Shard> {
        &self.shards[(id.0 % SHARDS as u64) as usize]
    }

    pub(crate) fn get(&self, id: InodeId) -> Option<Arc<Node>> {
        self.shard(id).lock().nodes.get(&id).cloned()
    }

    /// A node, or what [`Table::insert_loaded`] wants to know of whoever loads it.
    pub(crate) fn find(&self, id: InodeId) -> Result<Arc<Node>, u64> {
        let shard = self.shard(id).lock();
        shard.nodes.get(&id).cloned().ok_or(shard.left)
    }

    /// Puts a new inode's node in, unless somebody was faster; returns the one that counts.
    pub(crate) fn insert(&self, node: Arc<Node>) -> Arc<Node> {
        self.shard(node.id).lock().insert(node)
    }

    /// The same for a node that was loaded since [`Table::find`] did not find it. Nothing if a node left meanwhile: it
    /// may have been this one, changed by somebody else, and it has to be loaded anew.
    pub(crate) fn insert_loaded(&self, node: Arc<Node>, left: u64) -> Option<Arc<Node>> {
        let mut shard = self.shard(node.id).lock();
        (shard.left == left).then(|| shard.insert(node))
    }

    pub(crate) fn remove(&self, id: InodeId) {
        let mut shard = self.shard(id).lock();
        shard.left += u64::from(shard.nodes.remove(&id).is_some());
    }

    /// Notes that a node may have something that the store lacks; says whether that is news.
    pub(crate) fn note_dirty(&self, node: &Arc<Node>) -> bool {
        let is_news = !node.listed.swap(true, Ordering::AcqRel);
        if is_news {
            self.dirty.lock().push(Arc::clone(node));
        }
        is_news
    }

    /// Whether there may be such nodes.
    pub(crate) fn may_be_dirty(&self) -> bool {
        !self.dirty.lock().is_empty()
    }

    /// Nodes with something that the store lacks, by ascending number.
    pub(crate) fn dirty(&self) -> Vec<Arc<Node>> {
        // One at a time: to a second one the list would look empty while the first goes through it.
        let _one = self.scanning.lock();
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
        self.shard(id).lock().lookups.add(id);
    }

    /// The kernel gives back some of its references; says whether it has none left.
    pub(crate) fn forget(&self, id: InodeId, count: u64) -> bool {
        self.shard(id).lock().lookups.take(id, count)
    }

    pub(crate) fn is_known(&self, id: InodeId) -> bool {
        self.shard(id).lock().lookups.contains(id)
    }

    pub(crate) fn nodes_in_memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().nodes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_the_kernel_are_counted_however_many_there_are() {
        for id in [InodeId(1), InodeId(0x1234_5678_9abc), InodeId(1 << 48), InodeId(u64::MAX)] {
            let mut lookups = Lookups::default();
            assert!(lookups.take(id, 3), "{id}: it was not known");
            for _ in 0..70_000 {
                lookups.add(id);
            }
            lookups.add(InodeId(77));
            assert!(!lookups.take(id, 69_000), "{id}");
            assert!(!lookups.take(id, 999), "{id}");
            assert!(lookups.contains(id), "{id}");
            assert!(lookups.take(id, 1), "{id}");
            assert!(!lookups.contains(id) && lookups.contains(InodeId(77)), "{id}");
        }
    }

    #[test]
    fn a_node_that_was_loaded_while_one_left_is_loaded_anew() {
        let table = Table::default();
        let node = || Arc::new(Node::new(InodeId(5), crate::node::NodeState::default()));
        let left = table.find(InodeId(5)).err().expect("it is not there");
        // Somebody else loads it, changes it, and lets go of it.
        assert!(table.insert_loaded(node(), left).is_some());
        table.remove(InodeId(5));
        assert!(table.insert_loaded(node(), left).is_none(), "it may be as it was before the change");
        let left = table.find(InodeId(5)).err().expect("it is not there");
        assert!(table.insert_loaded(node(), left).is_some());
        // The same where it made room for others of its shard.
        let left = table.find(InodeId(5 + SHARDS as u64)).err().expect("it is not there");
        for n in 2..2 + 2 * NODES_KEPT as u64 / SHARDS as u64 {
            table.insert(Arc::new(Node::new(InodeId(5 + n * SHARDS as u64), Default::default())));
        }
        assert!(table.find(InodeId(5)).is_err() || table.nodes_in_memory() <= 2 * NODES_KEPT / SHARDS);
        assert!(table.insert_loaded(node(), left).is_none());
    }

    #[test]
    fn an_entry_takes_eight_bytes_and_room_is_given_back() {
        assert_eq!(size_of::<(ShortId, u16)>(), 8);
        let mut lookups = Lookups::default();
        (0..100_000).for_each(|id| lookups.add(InodeId(id)));
        assert!((0..100_000).all(|id| lookups.take(InodeId(id), 1)));
        assert!(lookups.counts.capacity() < 1_000);
    }
}
