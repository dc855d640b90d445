//! readdir: the names of a directory, in the order of their hashes, so that a cookie stays right whatever
//! is made or removed meanwhile.

use crate::FsError;
use crate::fs::{Attributes, Fs, HEAD};
use aegisfs_base::InodeId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::decode_dirents;
use aegisfs_store::versions;
use std::ops::ControlFlow;

/// Cookie after `.`.
const COOKIE_SELF: u64 = 1;
/// Cookie after `..`.
const COOKIE_PARENT: u64 = 2;

/// A name with what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The inode.
    pub id: InodeId,
    /// File type, as the upper bits of `st_mode` shifted down by 12.
    pub kind: u8,
    /// Where to go on behind it.
    pub cookie: u64,
    /// The name.
    pub name: Vec<u8>,
}

impl Fs {
    /// Visits the entries behind a cookie (0 for all) until `visit` says that it has enough.
    ///
    /// # Errors
    /// `NotDirectory`, `NotFound`, or a fault.
    pub fn readdir(
        &self,
        id: InodeId,
        cookie: u64,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        const DIRECTORY: u8 = 4;
        let node = self.directory(id)?;
        let parent = node.state.read().inode.parent;
        for (at, name, target) in [(COOKIE_SELF, &b"."[..], id), (COOKIE_PARENT, b"..", parent)] {
            let entry = DirectoryEntry { id: target, kind: DIRECTORY, cookie: at, name: name.to_vec() };
            if cookie < at && visit(entry).is_break() {
                return Ok(());
            }
        }
        let view = self.store.head_view(HEAD)?;
        let start = key::dirent(id, cookie >> 8);
        let end = key::prefix_end(&key::inode(id));
        let mut problem = None;
        versions::scan_visible(
            &self.store.view(),
            Table::Dirent,
            &start,
            end.as_deref(),
            &view,
            &mut |stem, stored| {
                let (hash, bucket) = match (key::dirent_hash(stem), decode_dirents(stored)) {
                    (Ok(hash), Ok(bucket)) => (hash, bucket),
                    (Err(error), _) | (_, Err(error)) => {
                        problem = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                for entry in bucket {
                    let at = hash << 8 | u64::from(entry.ordinal);
                    let found =
                        DirectoryEntry { id: entry.inode, kind: entry.kind, cookie: at, name: entry.name };
                    if at > cookie && visit(found).is_break() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            },
        )?;
        problem.map_or(Ok(()), |error| Err(error.into()))
    }

    /// An entry's attributes, for readdirplus; counts the caller's reference when `counted`.
    ///
    /// # Errors
    /// `NotFound` when the entry has gone meanwhile, or a fault.
    pub fn entry_attributes(&self, id: InodeId, counted: bool) -> Result<Attributes, FsError> {
        let attributes = self.attributes_of(&*self.node(id)?);
        if counted {
            self.nodes.looked_up(id);
        }
        Ok(attributes)
    }
}
