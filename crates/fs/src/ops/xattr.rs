//! Extended attributes.

use crate::FsError;
use crate::fs::{Fs, HEAD, note_commit};
use aegisfs_base::InodeId;
use aegisfs_base::limits::{NAME_BYTES_MAX, XATTR_BYTES_MAX};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value;
use aegisfs_store::versions;
use std::ops::ControlFlow;

/// Lists of who may do what. Nothing evaluates them here, and whoever is told so (as by a filesystem without
/// them) sets the mode instead; taking them would leave a copy with the mode it was made with.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Whether an attribute must or must not be there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Either way.
    #[default]
    Any,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

impl Fs {
    /// Sets an attribute.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute`, `Range` for long names, `TooLarge` for values over 64 KiB, `NotSupported` for
    /// an ACL, or a fault.
    pub fn setxattr(&self, id: InodeId, name: &[u8], content: &[u8], mode: XattrMode) -> Result<(), FsError> {
        check_name(name)?;
        if content.len() > XATTR_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        self.store.check_writable()?;
        self.store.admit_metadata()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        let there = self.stored_xattr(id, name)?.is_some();
        match mode {
            XattrMode::Create if there => return Err(FsError::Exists),
            XattrMode::Replace if !there => return Err(FsError::NoAttribute),
            _ => {}
        }
        let before = state.inode;
        state.inode.xattrs = true;
        state.powerless = false;
        state.inode.ctime = self.now();
        let put =
            Op::PutVersion { table: Table::Xattr, stem: key::xattr(id, name), value: value::wrap(content) };
        match self.commit(vec![put, Self::put_inode(id, &state)]) {
            Ok(committed) => note_commit(id, &mut state, &committed),
            Err(error) => {
                state.inode = before;
                return Err(error);
            }
        }
        Ok(())
    }

    /// An attribute's value.
    ///
    /// # Errors
    /// `NoAttribute`, or a fault.
    pub fn getxattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        check_name(name)?;
        if !self.node(id)?.state.read().inode.xattrs {
            return Err(FsError::NoAttribute);
        }
        self.stored_xattr(id, name)?.ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn listxattr(&self, id: InodeId) -> Result<Vec<Vec<u8>>, FsError> {
        let mut names = Vec::new();
        if !self.node(id)?.state.read().inode.xattrs {
            return Ok(names);
        }
        let view = self.store.head_view(HEAD)?;
        let (start, end) = (key::inode(id), key::inode(id.next()));
        versions::scan_visible(
            &self.store.view(),
            Table::Xattr,
            &start,
            Some(&end),
            &view,
            &mut |stem, _| {
                names.extend(key::xattr_name(stem).map(<[u8]>::to_vec));
                ControlFlow::Continue(())
            },
        )?;
        Ok(names)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, or a fault.
    pub fn removexattr(&self, id: InodeId, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        self.store.check_writable()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if self.stored_xattr(id, name)?.is_none() {
            return Err(FsError::NoAttribute);
        }
        let before = state.inode;
        state.inode.ctime = self.now();
        let remove = Op::RemoveVersion { table: Table::Xattr, stem: key::xattr(id, name) };
        match self.commit(vec![remove, Self::put_inode(id, &state)]) {
            Ok(committed) => note_commit(id, &mut state, &committed),
            Err(error) => {
                state.inode = before;
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn stored_xattr(&self, id: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let stored = versions::visible(&self.store.view(), Table::Xattr, &key::xattr(id, name), &view)?;
        Ok(stored.map(|stored| value::unwrap(&stored).map(<[u8]>::to_vec)).transpose()?)
    }
}

fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::Range);
    }
    if name.is_empty() || name.contains(&0) {
        return Err(FsError::Invalid);
    }
    if name.starts_with(ACL_PREFIX) {
        return Err(FsError::NotSupported);
    }
    Ok(())
}
