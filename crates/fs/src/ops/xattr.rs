//! Extended attributes.

use crate::FsError;
use crate::acl::{self, Acl};
use crate::fs::{Caller, Fs, HEAD};
use crate::node::{S_IFLNK, S_IFMT, S_ISGID};
use aegisfs_base::InodeId;
use aegisfs_base::limits::{NAME_BYTES_MAX, XATTR_BYTES_MAX};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{self, Inode};
use aegisfs_store::versions;
use std::ops::ControlFlow;

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
    /// It must, and must not.
    Never,
}

impl Fs {
    /// Sets an attribute.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute`, `Range` for long names, `TooLarge` for values over 64 KiB, `NotPermitted` where flags
    /// forbid it, `NotSupported` for other namespaces than `user`, `trusted` and `security`, or a fault.
    pub fn setxattr(&self, id: InodeId, name: &[u8], content: &[u8], mode: XattrMode) -> Result<(), FsError> {
        check_name(name)?;
        if content.len() > XATTR_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        if acl::is_acl(name) {
            return self.set_acl(id, name, content, false);
        }
        self.store.check_writable()?;
        self.store.admit_metadata()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        state.refuse_flagged()?;
        let there = self.stored_xattr(id, name)?.is_some();
        match mode {
            XattrMode::Create if there => return Err(FsError::Exists),
            XattrMode::Never if there => return Err(FsError::Exists),
            XattrMode::Replace | XattrMode::Never if !there => return Err(FsError::NoAttribute),
            _ => {}
        }
        let before = state.inode;
        state.inode.xattrs = true;
        state.powerless = false;
        state.inode.ctime = self.now();
        let put =
            Op::PutVersion { table: Table::Xattr, stem: key::xattr(id, name), value: value::wrap(content) };
        let ops = vec![put, Self::put_inode(id, &state)];
        self.commit_node(id, &mut state, before, ops)?;
        drop(state);
        self.sync_if_asked(&node)
    }

    /// Sets an ACL, and with it the mode. One that the mode says as well is not kept. With `drops_setgid` the
    /// setgid bit goes: the caller may not keep it.
    ///
    /// # Errors
    /// `Invalid` for what is no ACL or cannot have it, `NotSupported` on symbolic links, `NotPermitted` where flags
    /// forbid it, or a fault.
    pub fn set_acl(
        &self,
        id: InodeId,
        name: &[u8],
        content: &[u8],
        drops_setgid: bool,
    ) -> Result<(), FsError> {
        let mut acl = Acl::decode(content)?;
        self.store.check_writable()?;
        self.store.admit_metadata()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        state.refuse_flagged()?;
        if state.inode.mode & S_IFMT == S_IFLNK {
            return Err(FsError::NotSupported);
        }
        let is_access = name == acl::ACCESS;
        if !is_access && !state.is_directory() {
            return Err(FsError::Invalid);
        }
        let before = state.inode;
        let stem = key::xattr(id, name);
        let mut ops = Vec::new();
        if is_access {
            state.inode.mode = acl.applied(before.mode);
            if drops_setgid {
                state.inode.mode &= !S_ISGID;
            }
        }
        if !is_access || acl.says_more() {
            state.inode.xattrs = true;
            ops.push(Op::PutVersion { table: Table::Xattr, stem, value: value::wrap(&acl.encode()) });
        } else if self.stored_xattr(id, name)?.is_some() {
            ops.push(Op::RemoveVersion { table: Table::Xattr, stem });
        }
        state.inode.ctime = self.now();
        ops.push(Self::put_inode(id, &state));
        self.commit_node(id, &mut state, before, ops)?;
        drop(state);
        self.sync_if_asked(&node)
    }

    /// An ACL of an inode, if it has one that says more than its mode.
    pub(super) fn stored_acl(&self, id: InodeId, inode: &Inode, name: &[u8]) -> Result<Option<Acl>, FsError> {
        if !inode.xattrs {
            return Ok(None);
        }
        self.stored_xattr(id, name)?.map(|stored| Acl::decode(&stored)).transpose()
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

    /// The names of the attributes that a caller may see.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn listxattr_for(&self, id: InodeId, caller: Caller) -> Result<Vec<Vec<u8>>, FsError> {
        let mut names = self.listxattr(id)?;
        names.retain(|name| caller.uid == 0 || !name.starts_with(TRUSTED));
        Ok(names)
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
    /// `NoAttribute`, `NotPermitted` where flags forbid it, or a fault.
    pub fn removexattr(&self, id: InodeId, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        self.store.check_writable()?;
        let node = self.node(id)?;
        let mut state = node.state.write();
        if state.dead {
            return Err(FsError::NotFound);
        }
        state.refuse_flagged()?;
        if self.stored_xattr(id, name)?.is_none() {
            return Err(FsError::NoAttribute);
        }
        let before = state.inode;
        state.inode.ctime = self.now();
        let remove = Op::RemoveVersion { table: Table::Xattr, stem: key::xattr(id, name) };
        let ops = vec![remove, Self::put_inode(id, &state)];
        self.commit_node(id, &mut state, before, ops)?;
        drop(state);
        self.sync_if_asked(&node)
    }

    pub(super) fn stored_xattr(&self, id: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let stored = versions::visible(&self.store.view(), Table::Xattr, &key::xattr(id, name), &view)?;
        Ok(stored.map(|stored| value::unwrap(&stored).map(<[u8]>::to_vec)).transpose()?)
    }
}

/// Namespaces of attributes that are kept as they come.
const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];
/// That of those which only the superuser sees.
const TRUSTED: &[u8] = b"trusted.";

/// Refuses what is no name, and names of attributes that mean something that is not there. The kernel leaves it to
/// the filesystem who may set what in the namespace `system.`.
fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::Range);
    }
    if name.is_empty() || name.contains(&0) || NAMESPACES.contains(&name) {
        return Err(FsError::Invalid);
    }
    let known = acl::is_acl(name) || NAMESPACES.iter().any(|namespace| name.starts_with(namespace));
    if known { Ok(()) } else { Err(FsError::NotSupported) }
}
