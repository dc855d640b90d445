//! forget: the caller lets go of references that lookups counted.

use crate::fs::Fs;
use crate::node::Node;
use aegisfs_base::InodeId;

impl Fs {
    /// Lets go of some references. An inode without a name goes with the last one.
    pub fn forget(&self, id: InodeId, count: u64) {
        if self.nodes.forget(id, count)
            && let Some(node) = self.nodes.get(id)
        {
            self.drop_if_unused(&node);
        }
    }

    /// Lets an orphan be reaped once nobody can reach it any more.
    pub(crate) fn drop_if_unused(&self, node: &Node) {
        let mut state = node.state.write();
        if !state.orphan || state.dead || node.is_open() || self.nodes.is_known(node.id) {
            return;
        }
        state.dead = true;
        let gone = state.overlay.waiting_bytes();
        state.overlay = Default::default();
        state.logged = None;
        state.promised = None;
        drop(state);
        self.count_waiting(gone, 0);
        self.nodes.remove(node.id);
        self.store.release_orphan(node.id);
        if !self.options.background
            && let Err(error) = self.store.reap_released()
        {
            tracing::warn!(%error, inode = node.id.0, "an orphan could not be reaped; it will be later");
        }
    }
}
