//! create, mkdir, mknod, symlink and tmpfile: new inodes.

use super::{Locked, add_to_bucket, flags};
use crate::acl::{self, Acl};
use crate::fs::{Attributes, Caller, Fs, attributes, note_commit};
use crate::node::{Node, NodeState, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID};
use crate::{FsError, name};
use aegisfs_base::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use aegisfs_base::{InodeId, PolicyId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{self, Inode};
use std::sync::Arc;

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A device, FIFO or socket: its type bits and device number.
    Special(u32, u32),
}

/// Whose it is and what others may do with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MakeOptions {
    /// Owner.
    pub caller: Caller,
    /// Permission bits.
    pub permissions: u32,
    /// Of those, bits that the caller does not want to give; a directory with a default ACL decides by itself.
    pub umask: u32,
}

impl Fs {
    /// Makes something new under a name, and counts the caller's reference to it.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `NotDirectory`, `NameTooLong`, `NotPermitted` in an immutable directory, or a fault.
    pub fn make(
        &self,
        parent: InodeId,
        name: &[u8],
        kind: Kind<'_>,
        options: &MakeOptions,
    ) -> Result<Attributes, FsError> {
        Ok(self.make_node(parent, name, kind, options)?.0)
    }

    /// The same for whoever goes on with the node.
    pub(super) fn make_node(
        &self,
        parent: InodeId,
        name: &[u8],
        kind: Kind<'_>,
        options: &MakeOptions,
    ) -> Result<(Attributes, Arc<Node>), FsError> {
        name::check_new(name)?;
        let directory = self.directory(parent)?;
        self.store.check_writable()?;
        self.admit_new()?;
        let id = self.store.new_inode_id()?;
        let mut locked = Locked::new(&[&directory]);
        // A directory that was removed meanwhile takes no new names.
        if !locked.all_alive() || locked.get(parent).inode.nlink == 0 {
            return Err(FsError::NotFound);
        }
        let hash = self.hasher.hash(name);
        let bucket = self.bucket(parent, hash)?;
        if bucket.iter().any(|entry| entry.name == name) {
            return Err(FsError::Exists);
        }
        let now = self.now();
        let state = locked.get(parent);
        state.refuse_immutable()?;
        let (mut child, attached) = self.new_inode((id, kind), options, (parent, &state.inode))?;
        if child.is_directory() {
            child.inode.parent = parent;
            if state.inode.nlink >= LINKS_MAX {
                return Err(FsError::TooManyLinks);
            }
        }
        let before = state.inode;
        state.inode.size += 1;
        state.inode.nlink += u32::from(child.is_directory());
        state.inode.mtime = now;
        state.inode.ctime = now;
        let mut ops = vec![
            add_to_bucket(parent, hash, bucket, name, (id, child.inode.mode))?,
            Self::put_inode(id, &child),
            Self::put_inode(parent, state),
        ];
        ops.extend(attached);
        let committed = match self.commit(ops) {
            Ok(committed) => committed,
            Err(error) => {
                locked.get(parent).inode = before;
                return Err(error);
            }
        };
        locked.note_commit(&committed);
        note_commit(id, &mut child, &committed);
        let made = attributes(id, &child);
        self.nodes.looked_up(id);
        let node = self.nodes.insert(Arc::new(Node::new(id, child)));
        drop(locked);
        self.sync_if_asked(&directory).inspect_err(|_| self.forget(id, 1))?;
        Ok((made, node))
    }

    /// Makes a file without a name, which goes unless it is given one.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotPermitted` in an immutable directory, or a fault.
    pub fn tmpfile(&self, parent: InodeId, options: &MakeOptions) -> Result<Attributes, FsError> {
        let directory = self.directory(parent)?;
        self.store.check_writable()?;
        self.admit_new()?;
        let id = self.store.new_inode_id()?;
        let above = {
            let state = directory.state.read();
            // A directory that was removed takes nothing new.
            if state.inode.nlink == 0 {
                return Err(FsError::NotFound);
            }
            state.refuse_immutable()?;
            state.inode
        };
        let (mut child, attached) = self.new_inode((id, Kind::File), options, (parent, &above))?;
        child.inode.nlink = 0;
        child.orphan = true;
        self.store.hold_orphan(id);
        let mut ops = vec![
            Self::put_inode(id, &child),
            Op::PutVersion {
                table: Table::Orphans,
                stem: key::inode(id).to_vec(),
                value: aegisfs_store::reap::orphan_inode_value(),
            },
        ];
        ops.extend(attached);
        let committed = self.commit(ops).inspect_err(|_| self.store.release_orphan(id))?;
        note_commit(id, &mut child, &committed);
        let made = attributes(id, &child);
        self.nodes.looked_up(id);
        self.nodes.insert(Arc::new(Node::new(id, child)));
        Ok(made)
    }

    /// Refuses new files when the room that is left is kept for bytes on their way.
    pub(super) fn admit_new(&self) -> Result<(), FsError> {
        self.store.admit_metadata()?;
        if self.nearly_full() {
            drop(self.reserve(0, self.soft_reserve_bytes(), PolicyId::default())?);
        }
        Ok(())
    }

    /// A new inode and what is stored beside it.
    pub(super) fn new_inode(
        &self,
        (id, kind): (InodeId, Kind<'_>),
        options: &MakeOptions,
        (parent_id, parent): (InodeId, &Inode),
    ) -> Result<(NodeState, Vec<Op>), FsError> {
        let is_link = matches!(kind, Kind::Symlink(_));
        let default = if is_link { None } else { self.stored_acl(parent_id, parent, acl::DEFAULT)? };
        let wanted = options.permissions & 0o7_777;
        let mut attached = Vec::new();
        let put = |name, acl: &Acl| {
            let value = value::wrap(&acl.encode());
            Op::PutVersion { table: Table::Xattr, stem: key::xattr(id, name), value }
        };
        let permissions = match default {
            None => wanted & !options.umask,
            Some(default) => {
                attached.extend((kind == Kind::Directory).then(|| put(acl::DEFAULT, &default)));
                let (access, permissions) = default.inherited(wanted);
                attached.extend(access.says_more().then(|| put(acl::ACCESS, &access)));
                permissions
            }
        };
        let now = self.now();
        let mut inode = Inode {
            mode: S_IFREG | permissions,
            uid: options.caller.uid,
            gid: options.caller.gid,
            nlink: 1,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            xattrs: !attached.is_empty(),
            flags: flags::inherited(parent, matches!(kind, Kind::File | Kind::Directory)),
            policy: if is_link { PolicyId::default() } else { parent.policy },
            ..Inode::default()
        };
        match kind {
            Kind::File => {}
            Kind::Directory => {
                inode.mode = S_IFDIR | permissions;
                inode.nlink = 2;
            }
            Kind::Symlink(target) => {
                if target.is_empty() {
                    return Err(FsError::NotFound);
                }
                if target.len() > SYMLINK_BYTES_MAX {
                    return Err(FsError::NameTooLong);
                }
                inode.mode = S_IFLNK | 0o777;
                inode.size = target.len() as u64;
                inode.inline = true;
                attached.push(put_inline(id, target));
            }
            Kind::Special(format, device) => {
                inode.mode = (format & S_IFMT) | permissions;
                inode.rdev = device;
            }
        }
        // In a directory with the setgid bit the group is the directory's, and directories pass the bit on.
        if parent.mode & S_ISGID != 0 {
            inode.gid = parent.gid;
            if matches!(kind, Kind::Directory) {
                inode.mode |= S_ISGID;
            }
        }
        let committed_size = inode.size;
        Ok((NodeState { inode, committed_size, ..NodeState::default() }, attached))
    }
}

fn put_inline(id: InodeId, content: &[u8]) -> Op {
    Op::PutVersion { table: Table::Inline, stem: key::inode(id).to_vec(), value: value::wrap(content) }
}
