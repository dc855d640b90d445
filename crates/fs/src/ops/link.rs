//! link: another name for an inode.

use super::Locked;
use crate::fs::{Attributes, Fs, attributes};
use crate::{FsError, name};
use aegisfs_base::InodeId;
use aegisfs_base::limits::LINKS_MAX;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;

impl Fs {
    /// Gives an inode another name; one made without a name gets its first. Counts the caller's reference.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for directories and where flags forbid it, `TooManyLinks`, `NotFound`, or a fault.
    pub fn link(&self, id: InodeId, parent: InodeId, name: &[u8]) -> Result<Attributes, FsError> {
        name::check_new(name)?;
        let directory = self.directory(parent)?;
        let node = self.node(id)?;
        self.store.admit_metadata()?;
        let mut locked = Locked::new(&[&directory, &node]);
        if !locked.all_alive() || locked.get(parent).inode.nlink == 0 {
            return Err(FsError::NotFound);
        }
        if locked.get(id).is_directory() {
            return Err(FsError::NotPermitted);
        }
        if locked.get(id).inode.nlink >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        if self.find_entry(parent, name)?.is_some() {
            return Err(FsError::Exists);
        }
        locked.get(parent).refuse_immutable()?;
        locked.get(id).refuse_flagged()?;
        let now = self.now();
        let before = (locked.get(parent).inode, locked.get(id).inode);
        let was_orphan = locked.get(id).orphan;
        let state = locked.get(id);
        state.inode.nlink += 1;
        state.inode.ctime = now;
        let mut ops = vec![self.add_entry(parent, name, id, state.inode.mode)?, Self::put_inode(id, state)];
        let above = locked.get(parent);
        above.inode.size += 1;
        above.inode.mtime = now;
        above.inode.ctime = now;
        ops.push(Self::put_inode(parent, above));
        if was_orphan {
            ops.push(Op::RemoveVersion { table: Table::Orphans, stem: key::inode(id).to_vec() });
        }
        match self.commit(ops) {
            Ok(committed) => locked.note_commit(&committed),
            Err(error) => {
                (locked.get(parent).inode, locked.get(id).inode) = before;
                return Err(error);
            }
        }
        locked.get(id).orphan = false;
        if was_orphan {
            self.store.release_orphan(id);
        }
        self.nodes.looked_up(id);
        let linked = attributes(id, locked.get(id));
        drop(locked);
        self.sync_if_asked(&directory).inspect_err(|_| self.forget(id, 1))?;
        Ok(linked)
    }
}
