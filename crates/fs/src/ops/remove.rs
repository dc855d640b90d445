//! unlink and rmdir: a name goes, and with the last one the inode, once nobody has it open.

use super::{Locked, remove_from_bucket};
use crate::FsError;
use crate::fs::Fs;
use crate::name;
use crate::node::{Node, NodeState};
use aegisfs_base::InodeId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_store::reap::orphan_inode_value;
use std::sync::Arc;

impl Fs {
    /// Removes a name that does not lead to a directory.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `NotPermitted` where flags forbid it, or a fault.
    pub fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), FsError> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `NotPermitted` where flags forbid it, or a fault.
    pub fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), FsError> {
        if name == b"." {
            return Err(FsError::Invalid);
        }
        if name == b".." {
            return Err(FsError::NotEmpty);
        }
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: InodeId, name: &[u8], directory: bool) -> Result<(), FsError> {
        name::check(name)?;
        let above = self.directory(parent)?;
        self.store.check_writable()?;
        let hash = self.hasher.hash(name);
        loop {
            let inode = self.find_hashed(parent, name, hash)?.ok_or(FsError::NotFound)?;
            let node = self.node(inode)?;
            let mut locked = Locked::new(&[&above, &node]);
            // Between the look and the locks the name may have come to lead elsewhere.
            let bucket = self.bucket(parent, hash)?;
            let now = bucket.iter().find(|entry| entry.name == name);
            let still = now.is_some_and(|entry| entry.inode == inode);
            if !still || !locked.all_alive() {
                continue;
            }
            locked.get(parent).refuse_flagged()?;
            locked.get(inode).refuse_flagged()?;
            check_kind(locked.get(inode), directory)?;
            let without = remove_from_bucket(parent, hash, bucket, name);
            self.remove_locked(&mut locked, parent, without, &node)?;
            drop(locked);
            self.drop_if_unused(&node);
            return self.sync_if_asked(&above);
        }
    }

    fn remove_locked(
        &self,
        locked: &mut Locked<'_>,
        parent: InodeId,
        without: Op,
        node: &Arc<Node>,
    ) -> Result<(), FsError> {
        let now = self.now();
        let before = (locked.get(parent).inode, locked.get(node.id).inode);
        let mut ops = vec![without];
        let child = locked.get(node.id);
        let was_directory = child.is_directory();
        let orphaned = drop_name(child, now);
        ops.push(Self::put_inode(node.id, child));
        if orphaned {
            ops.push(put_orphan(node.id));
            self.store.hold_orphan(node.id);
        }
        let above = locked.get(parent);
        above.inode.size -= 1;
        above.inode.nlink -= u32::from(was_directory);
        above.inode.mtime = now;
        above.inode.ctime = now;
        ops.push(Self::put_inode(parent, above));
        match self.commit(ops) {
            Ok(committed) => locked.note_commit(&committed),
            Err(error) => {
                (locked.get(parent).inode, locked.get(node.id).inode) = before;
                if orphaned {
                    self.store.release_orphan(node.id);
                }
                return Err(error);
            }
        }
        locked.get(node.id).orphan = orphaned;
        Ok(())
    }
}

/// Takes one name off an inode; says whether it was the last.
pub(crate) fn drop_name(child: &mut NodeState, now: aegisfs_base::Timestamp) -> bool {
    child.inode.ctime = now;
    if child.is_directory() {
        child.inode.nlink = 0;
    } else {
        child.inode.nlink -= 1;
    }
    child.inode.nlink == 0
}

/// The operation that notes an inode without a name.
pub(crate) fn put_orphan(id: InodeId) -> Op {
    Op::PutVersion { table: Table::Orphans, stem: key::inode(id).to_vec(), value: orphan_inode_value() }
}

/// Refuses what the verb is not for.
pub(crate) fn check_kind(child: &NodeState, directory: bool) -> Result<(), FsError> {
    match (child.is_directory(), directory) {
        (true, false) => Err(FsError::IsDirectory),
        (false, true) => Err(FsError::NotDirectory),
        // A directory's size is the number of its entries.
        (true, true) if child.inode.size > 0 => Err(FsError::NotEmpty),
        _ => Ok(()),
    }
}
