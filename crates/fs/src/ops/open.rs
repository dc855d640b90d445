//! open, create, release: handles.

use super::make::{Kind, MakeOptions};
use crate::FsError;
use crate::fs::{Attributes, Fs, attributes};
use crate::handle::{Access, HandleId};
use crate::node::{Node, NodeState};
use aegisfs_base::InodeId;
use aegisfs_format::value::Inode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long whoever asks about an empty file waits for news that it was closed, and how often it looks.
const CLOSING_MAX: Duration = Duration::from_millis(5);
const CLOSING_LOOK: Duration = Duration::from_micros(100);

impl Fs {
    /// Opens a file or directory.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn open(&self, id: InodeId) -> Result<HandleId, FsError> {
        let node = self.node(id)?;
        if node.state.read().dead {
            return Err(FsError::NotFound);
        }
        Ok(self.handles.open(node, Access::Reads))
    }

    /// Opens a file for somebody who may write to it, or with `appends` only at its end. Says whether its
    /// attributes look otherwise since.
    ///
    /// # Errors
    /// `NotFound`, `NotPermitted` where flags forbid it, or a fault.
    pub fn open_to_write(&self, id: InodeId, appends: bool) -> Result<(HandleId, bool), FsError> {
        self.open_node_to_write(&self.node(id)?, appends)
    }

    fn open_node_to_write(&self, node: &Arc<Node>, appends: bool) -> Result<(HandleId, bool), FsError> {
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        if appends {
            state.refuse_immutable()?;
        } else {
            state.refuse_flagged()?;
        }
        if state.inode.has_any(Inode::APPEND_ONLY) {
            drop(state);
            return Ok((self.handles.open(Arc::clone(node), Access::Appends), false));
        }
        let cached = u32::from(self.options.kernel_caches);
        state.writers += 1;
        let changed = changes_looks(node.id, &mut state, |state| state.cached_writers += cached);
        drop(state);
        Ok((self.handles.open(Arc::clone(node), Access::Writes), changed))
    }

    /// Whether the kernel may hold bytes of a file that have not reached us.
    pub fn kernel_may_hold(&self, id: InodeId) -> bool {
        self.node(id).is_ok_and(|node| node.state.read().cached_writers > 0)
    }

    /// A node's attributes as whoever asks for them has a right to see them: an empty file that was just closed takes no room.
    ///
    /// While it is open for writing it counts a block, since the kernel may hold bytes of it. That it was closed the kernel
    /// tells without waiting for us, in a request that another thread may only just have taken up.
    pub(crate) fn attributes_settled(&self, node: &Node) -> Attributes {
        let may_be_closing = |state: &NodeState| state.cached_writers > 0 && state.inode.size == 0;
        let mut begun = None;
        loop {
            let state = node.state.read();
            // The clock is not asked for the many who do not wait.
            if !may_be_closing(&state) || begun.get_or_insert_with(Instant::now).elapsed() >= CLOSING_MAX {
                return attributes(node.id, &state);
            }
            drop(state);
            std::thread::sleep(CLOSING_LOOK);
        }
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As [`Fs::make`].
    pub fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        options: &MakeOptions,
    ) -> Result<(Attributes, HandleId), FsError> {
        let (_, node) = self.make_node(parent, name, Kind::File, options)?;
        let (handle, _) = self.open_node_to_write(&node, true)?;
        Ok((self.attributes_of(&node), handle))
    }

    /// Closes a handle. Says whether the inode's attributes look otherwise since.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn release(&self, handle: HandleId) -> Result<bool, FsError> {
        let (node, access) = self.handles.close(handle).ok_or(FsError::BadHandle)?;
        let changed = access == Access::Writes && {
            let cached = u32::from(self.options.kernel_caches);
            let mut state = node.state.write();
            state.writers -= 1;
            changes_looks(node.id, &mut state, |state| state.cached_writers -= cached)
        };
        self.drop_if_unused(&node);
        Ok(changed)
    }
}

/// Changes a node; says whether a caller sees that in its attributes.
fn changes_looks(id: InodeId, state: &mut NodeState, change: impl FnOnce(&mut NodeState)) -> bool {
    let before = attributes(id, state);
    change(state);
    attributes(id, state) != before
}

#[cfg(test)]
mod tests {
    use crate::fs::tests::formatted;
    use crate::{Fs, FsOptions, MakeOptions, ROOT};
    use aegisfs_base::{ManualClock, SeededRng};
    use aegisfs_pool::{OpenOptions, Pool};
    use aegisfs_store::StoreOptions;
    use std::sync::Arc;

    /// Of an empty file that is open the kernel may hold bytes; of one that was closed it does not, even when we hear of that
    /// a moment later.
    #[test]
    fn an_empty_file_that_was_just_closed_takes_no_room() {
        let (clock, rng) = (Arc::new(ManualClock::default()), SeededRng::new(2));
        let (pool, _) = Pool::open(vec![formatted()], OpenOptions::default()).unwrap();
        let (store, _) = aegisfs_store::open(pool, &StoreOptions::default(), clock, &rng).unwrap();
        let options = FsOptions { background: false, kernel_caches: true, ..FsOptions::default() };
        let fs = Fs::mount(Arc::new(store), options).unwrap();
        let (made, handle) = fs.create(ROOT, b"file", &MakeOptions::default()).unwrap();
        assert_eq!(made.allocated, 4096);
        assert_eq!(fs.getattr(made.id).unwrap().allocated, 4096);
        std::thread::scope(|scope| {
            let stat = scope.spawn(|| fs.lookup(ROOT, b"file").unwrap().allocated);
            fs.release(handle).unwrap();
            assert_eq!(stat.join().unwrap(), 0);
        });
    }
}
