//! The verbs, one file each.

pub mod copy;
mod fallocate;
mod flags;
mod forget;
mod fsync;
mod getattr;
mod link;
mod lookup;
pub mod lseek;
pub mod make;
mod open;
mod read;
pub mod readdir;
mod readlink;
mod remove;
pub mod rename;
pub mod setattr;
pub mod statfs;
pub mod write;
pub mod xattr;

use crate::FsError;
use crate::fs::Fs;
use crate::node::{Node, NodeState};
use aegisfs_base::InodeId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{Dirent, encode_dirents};
use parking_lot::RwLockWriteGuard;
use std::sync::Arc;

/// Directory entries that may share a hash: the ordinal has eight bits.
const BUCKET_ENTRIES_MAX: usize = 256;

/// Several nodes locked in ascending order of their numbers.
pub(crate) struct Locked<'n> {
    guards: Vec<(InodeId, RwLockWriteGuard<'n, NodeState>)>,
}

impl<'n> Locked<'n> {
    /// Locks nodes; one that is named twice is locked once.
    pub(crate) fn new(nodes: &[&'n Arc<Node>]) -> Self {
        let mut sorted: Vec<&'n Arc<Node>> = nodes.to_vec();
        sorted.sort_by_key(|node| node.id);
        sorted.dedup_by_key(|node| node.id);
        Self { guards: sorted.into_iter().map(|node| (node.id, node.state.write())).collect() }
    }

    /// The state of one of them.
    pub(crate) fn get(&mut self, id: InodeId) -> &mut NodeState {
        let found = self.guards.iter_mut().find(|(number, _)| *number == id);
        &mut found.expect("it was locked").1
    }

    /// The state of a node, if it is one of them.
    pub(crate) fn try_get(&mut self, id: InodeId) -> Option<&mut NodeState> {
        let found = self.guards.iter_mut().find(|(number, _)| *number == id);
        found.map(|(_, state)| &mut **state)
    }

    /// Whether all of them are still what they were.
    pub(crate) fn all_alive(&self) -> bool {
        self.guards.iter().all(|(_, state)| !state.dead)
    }

    /// Notes what a change did to all of them.
    pub(crate) fn note_commit(&mut self, committed: &aegisfs_store::Committed) {
        for (id, state) in &mut self.guards {
            crate::fs::note_commit(*id, state, committed);
        }
    }
}

impl Fs {
    /// The operation that adds a name to a directory.
    pub(crate) fn add_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        inode: InodeId,
        mode: u32,
    ) -> Result<Op, FsError> {
        let hash = self.hasher.hash(name);
        let bucket = self.bucket(parent, hash)?;
        add_to_bucket(parent, hash, bucket, name, (inode, mode))
    }

    /// The operation that takes a name out of a directory.
    pub(crate) fn remove_entry(&self, parent: InodeId, name: &[u8]) -> Result<Op, FsError> {
        let hash = self.hasher.hash(name);
        Ok(remove_from_bucket(parent, hash, self.bucket(parent, hash)?, name))
    }

    /// The operation that lets a name lead to another inode.
    pub(crate) fn replace_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        inode: InodeId,
        mode: u32,
    ) -> Result<Op, FsError> {
        let hash = self.hasher.hash(name);
        let mut bucket = self.bucket(parent, hash)?;
        let entry = bucket.iter_mut().find(|entry| entry.name == name).ok_or(FsError::NotFound)?;
        entry.inode = inode;
        entry.kind = (mode >> 12) as u8;
        Ok(put_bucket(parent, hash, &bucket))
    }
}

/// The operation that adds a name to the entries that share its hash.
pub(crate) fn add_to_bucket(
    parent: InodeId,
    hash: u64,
    mut bucket: Vec<Dirent>,
    name: &[u8],
    (inode, mode): (InodeId, u32),
) -> Result<Op, FsError> {
    if bucket.len() == BUCKET_ENTRIES_MAX {
        return Err(FsError::Collisions);
    }
    let free = (0..=u8::MAX).find(|n| bucket.iter().all(|entry| entry.ordinal != *n));
    let ordinal = free.ok_or(FsError::Collisions)?;
    bucket.push(Dirent { ordinal, kind: (mode >> 12) as u8, inode, name: name.to_vec() });
    bucket.sort_by_key(|entry| entry.ordinal);
    Ok(put_bucket(parent, hash, &bucket))
}

/// The operation that takes a name out of the entries that share its hash.
pub(crate) fn remove_from_bucket(parent: InodeId, hash: u64, mut bucket: Vec<Dirent>, name: &[u8]) -> Op {
    bucket.retain(|entry| entry.name != name);
    put_bucket(parent, hash, &bucket)
}

fn put_bucket(parent: InodeId, hash: u64, bucket: &[Dirent]) -> Op {
    let stem = key::dirent(parent, hash).to_vec();
    if bucket.is_empty() {
        return Op::RemoveVersion { table: Table::Dirent, stem };
    }
    Op::PutVersion { table: Table::Dirent, stem, value: encode_dirents(bucket) }
}
