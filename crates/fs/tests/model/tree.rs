//! The model: a tree in memory that says what each verb should answer.

use crate::bytes::Bytes;
use aegisfs_base::{InodeId, Timestamp};
use aegisfs_fs::{Errno, Inode as Flags, ROOT, RenameFlags};
use std::collections::BTreeMap;

/// What a verb answers: something, or an error number.
pub(crate) type Answer<T> = Result<T, Errno>;

pub(crate) enum Content {
    File(Bytes),
    Directory { entries: BTreeMap<Vec<u8>, InodeId>, parent: InodeId },
    Symlink(Vec<u8>),
    Special,
}

pub(crate) struct Inode {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) nlink: u32,
    pub(crate) flags: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Content,
    pub(crate) opens: u64,
    pub(crate) lookups: u64,
}

/// What times of an inode a verb must have moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) id: InodeId,
    pub(crate) modified: bool,
    pub(crate) changed: bool,
}

impl Touch {
    pub(crate) fn content(id: InodeId) -> Self {
        Self { id, modified: true, changed: true }
    }

    pub(crate) fn attributes(id: InodeId) -> Self {
        Self { id, modified: false, changed: true }
    }

    pub(crate) fn nothing(id: InodeId) -> Self {
        Self { id, modified: false, changed: false }
    }
}

pub(crate) struct Tree {
    pub(crate) inodes: BTreeMap<InodeId, Inode>,
}

impl Inode {
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    /// Refuses what an immutable inode does not take.
    pub(crate) fn may_grow(&self) -> Answer<()> {
        if self.flags & Flags::IMMUTABLE != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Refuses what an append-only one does not take either.
    pub(crate) fn may_change(&self) -> Answer<()> {
        if self.flags & (Flags::IMMUTABLE | Flags::APPEND_ONLY) != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    pub(crate) fn file(&self) -> Option<&Bytes> {
        match &self.content {
            Content::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn file_mut(&mut self) -> Option<&mut Bytes> {
        match &mut self.content {
            Content::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.content {
            Content::File(bytes) => bytes.size,
            Content::Directory { entries, .. } => entries.len() as u64,
            Content::Symlink(target) => target.len() as u64,
            Content::Special => 0,
        }
    }
}

/// Refuses what cannot be a name.
fn check_name(name: &[u8]) -> Answer<()> {
    if name.len() > 255 {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn check_new(name: &[u8]) -> Answer<()> {
    check_name(name)?;
    if matches!(name, b"." | b"..") { Err(Errno::EEXIST) } else { Ok(()) }
}

impl Tree {
    pub(crate) fn get(&self, id: InodeId) -> Answer<&Inode> {
        self.inodes.get(&id).ok_or(Errno::ENOENT)
    }

    pub(crate) fn get_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("the model knows it")
    }

    pub(crate) fn entries(&self, id: InodeId) -> Answer<&BTreeMap<Vec<u8>, InodeId>> {
        match &self.get(id)?.content {
            Content::Directory { entries, .. } => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, id: InodeId) -> &mut BTreeMap<Vec<u8>, InodeId> {
        match &mut self.get_mut(id).content {
            Content::Directory { entries, .. } => entries,
            _ => unreachable!("it was checked to be a directory"),
        }
    }

    pub(crate) fn find(&self, parent: InodeId, name: &[u8]) -> Answer<InodeId> {
        check_name(name)?;
        self.entries(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Whether something can be made there.
    pub(crate) fn may_make(&self, parent: InodeId, name: &[u8]) -> Answer<()> {
        check_new(name)?;
        let taken = self.entries(parent)?.contains_key(name);
        if self.get(parent)?.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if taken { Err(Errno::EEXIST) } else { self.get(parent)?.may_grow() }
    }

    /// Puts something new under a name.
    pub(crate) fn add(&mut self, parent: InodeId, name: &[u8], id: InodeId, inode: Inode) -> Vec<Touch> {
        let directory = inode.is_directory();
        assert!(self.inodes.insert(id, inode).is_none(), "inode number {id} is given out twice");
        self.entries_mut(parent).insert(name.to_vec(), id);
        self.get_mut(parent).nlink += u32::from(directory);
        vec![Touch::content(parent), Touch::content(id)]
    }

    pub(crate) fn link(&mut self, id: InodeId, parent: InodeId, name: &[u8]) -> Answer<Vec<Touch>> {
        check_new(name)?;
        let taken = self.entries(parent)?.contains_key(name);
        let directory = self.get(id)?.is_directory();
        if self.get(parent)?.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if directory {
            return Err(Errno::EPERM);
        }
        if taken {
            return Err(Errno::EEXIST);
        }
        self.get(parent)?.may_grow()?;
        self.get(id)?.may_change()?;
        self.entries_mut(parent).insert(name.to_vec(), id);
        let inode = self.get_mut(id);
        inode.nlink += 1;
        inode.lookups += 1;
        Ok(vec![Touch::content(parent), Touch::attributes(id)])
    }

    pub(crate) fn remove(&mut self, parent: InodeId, name: &[u8], directory: bool) -> Answer<Vec<Touch>> {
        let id = self.find(parent, name)?;
        self.get(parent)?.may_change()?;
        self.get(id)?.may_change()?;
        self.may_go(id, directory)?;
        self.entries_mut(parent).remove(name);
        self.get_mut(parent).nlink -= u32::from(directory);
        self.drop_name(id);
        Ok(vec![Touch::content(parent), Touch::attributes(id)])
    }

    fn may_go(&self, id: InodeId, directory: bool) -> Answer<()> {
        match (&self.get(id)?.content, directory) {
            (Content::Directory { .. }, false) => Err(Errno::EISDIR),
            (Content::Directory { entries, .. }, true) if !entries.is_empty() => Err(Errno::ENOTEMPTY),
            (Content::Directory { .. }, true) | (_, false) => Ok(()),
            (_, true) => Err(Errno::ENOTDIR),
        }
    }

    fn drop_name(&mut self, id: InodeId) {
        let inode = self.get_mut(id);
        inode.nlink = if inode.is_directory() { 0 } else { inode.nlink - 1 };
    }

    pub(crate) fn rename(
        &mut self,
        (parent, old): (InodeId, &[u8]),
        (new_parent, new): (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Answer<Vec<Touch>> {
        check_name(old)?;
        check_name(new)?;
        if flags.exchange && (flags.no_replace || flags.whiteout.is_some()) {
            return Err(Errno::EINVAL);
        }
        self.entries(parent)?;
        self.entries(new_parent)?;
        let moved = self.find(parent, old)?;
        let target = self.find(new_parent, new).ok();
        if self.get(new_parent)?.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        match target {
            Some(_) if flags.no_replace => return Err(Errno::EEXIST),
            None if flags.exchange => return Err(Errno::ENOENT),
            Some(target) if target == moved => return Ok(Vec::new()),
            _ => {}
        }
        self.get(parent)?.may_change()?;
        self.get(moved)?.may_change()?;
        match target {
            None => self.get(new_parent)?.may_grow()?,
            Some(target) => {
                self.get(new_parent)?.may_change()?;
                self.get(target)?.may_change()?;
            }
        }
        let loops = self.is_below(new_parent, moved)
            || flags.exchange && target.is_some_and(|target| self.is_below(parent, target));
        if loops {
            return Err(Errno::EINVAL);
        }
        let mut touched = vec![Touch::content(parent), Touch::content(new_parent), Touch::attributes(moved)];
        touched.extend(target.map(Touch::attributes));
        if let Some(target) = target.filter(|_| !flags.exchange) {
            let directory = self.get(moved)?.is_directory();
            self.may_go(target, directory)?;
            self.get_mut(new_parent).nlink -= u32::from(directory);
            self.drop_name(target);
        }
        self.detach(parent, old, moved);
        if let Some(target) = target.filter(|_| flags.exchange) {
            self.detach(new_parent, new, target);
            self.attach(parent, old, target);
        }
        self.attach(new_parent, new, moved);
        Ok(touched)
    }

    fn detach(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        self.entries_mut(parent).remove(name);
        let directory = self.get_mut(id).is_directory();
        self.get_mut(parent).nlink -= u32::from(directory);
    }

    fn attach(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        self.entries_mut(parent).insert(name.to_vec(), id);
        let mut directory = false;
        if let Content::Directory { parent: above, .. } = &mut self.get_mut(id).content {
            *above = parent;
            directory = true;
        }
        self.get_mut(parent).nlink += u32::from(directory);
    }

    /// Whether a directory is another one or lies below it.
    fn is_below(&self, id: InodeId, above: InodeId) -> bool {
        let mut at = id;
        loop {
            if at == above {
                return true;
            }
            match &self.inodes[&at].content {
                Content::Directory { parent, .. } if at != ROOT => at = *parent,
                _ => return false,
            }
        }
    }

    /// Whether nobody can reach an inode any more; it goes then.
    pub(crate) fn bury(&mut self, id: InodeId) -> bool {
        let unused = |inode: &Inode| inode.nlink == 0 && inode.opens == 0 && inode.lookups == 0;
        let gone = self.inodes.get(&id).is_some_and(unused);
        if gone {
            self.inodes.remove(&id);
        }
        gone
    }
}
