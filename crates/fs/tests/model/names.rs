//! Verbs on names and attributes.

use crate::bytes::Bytes;
use crate::player::Player;
use crate::tree::{Content, Inode, Touch};
use aegisfs_base::{InodeId, Rng, Timestamp};
use aegisfs_fs::{
    Attributes, Caller, Changes, Errno, INODE_FLAGS, Inode as Flags, Kind, MakeOptions, RenameFlags,
    TimeChange, XattrMode,
};
use std::collections::BTreeMap;

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFCHR: u32 = 0o020_000;
const INHERITED: u32 = Flags::SYNC | Flags::NO_DUMP | Flags::NO_ATIME;

fn text(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if name.len() > 8 { format!("{}.. ({} bytes)", &name[..4], name.len()) } else { name.into_owned() }
}

impl Player {
    fn make_options(&self) -> MakeOptions {
        let set_group = if self.rng.below(8) == 0 { 0o2_000 } else { 0 };
        MakeOptions {
            caller: Caller { uid: self.rng.below(3) as u32, gid: self.rng.below(3) as u32 },
            permissions: 0o600 + self.rng.below(64) as u32 + set_group,
            umask: 0,
        }
    }

    /// The model's view of something just made; its owner and mode follow from the request.
    fn made(&self, parent: InodeId, made: &Attributes, kind: Kind<'_>, options: &MakeOptions) -> Inode {
        let above = &self.tree.inodes[&parent];
        let inherits = above.mode & 0o2_000 != 0;
        let gid = if inherits { above.owner.1 } else { options.caller.gid };
        let (format, content) = match kind {
            Kind::File => (0o100_000 | options.permissions, Content::File(Bytes::default())),
            Kind::Directory => {
                let content = Content::Directory { entries: BTreeMap::new(), parent };
                (0o040_000 | options.permissions | if inherits { 0o2_000 } else { 0 }, content)
            }
            Kind::Symlink(target) => (0o120_777, Content::Symlink(target.to_vec())),
            Kind::Special(format, _) => (format & S_IFMT | options.permissions, Content::Special),
        };
        Inode {
            mode: format,
            owner: (options.caller.uid, gid),
            nlink: if matches!(kind, Kind::Directory) { 2 } else { 1 },
            flags: match kind {
                Kind::File | Kind::Directory => above.flags & INHERITED,
                _ => above.flags & INHERITED & !Flags::SYNC,
            },
            atime: made.inode.atime,
            mtime: made.inode.mtime,
            ctime: made.inode.ctime,
            xattrs: BTreeMap::new(),
            content,
            opens: 0,
            lookups: 1,
        }
    }

    pub(crate) fn make(&mut self) {
        let (parent, name, options) = (self.directory(), self.name(), self.make_options());
        let target = vec![b't'; if self.rng.below(30) == 0 { 4096 } else { 1 + self.rng.below(60) as usize }];
        let kind = match self.rng.below(10) {
            0..6 => Kind::File,
            6..8 => Kind::Directory,
            8 => Kind::Symlink(&target),
            _ => Kind::Special(S_IFSOCK, 0),
        };
        let what = match kind {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink(_) => "symlink",
            Kind::Special(..) => "socket",
        };
        self.tell(format_args!("make {what} {parent}/{}", text(&name)));
        let before = self.now();
        let mut expected = self.tree.may_make(parent, &name);
        if expected.is_ok() && matches!(kind, Kind::Symlink(target) if target.len() > 4095) {
            expected = Err(Errno::ENAMETOOLONG);
        }
        let Some((made, ())) = self.agree(self.fs().make(parent, &name, kind, &options), expected) else {
            return;
        };
        let inode = self.made(parent, &made, kind, &options);
        let touched = self.tree.add(parent, &name, made.id, inode);
        self.tell(format_args!("     = {}", made.id));
        self.compare(&touched, before);
        if self.rng.below(4) > 0 {
            self.fs().forget(made.id, 1);
            self.tree.get_mut(made.id).lookups -= 1;
        }
    }

    pub(crate) fn tmpfile(&mut self) {
        let (parent, options) = (self.directory(), self.make_options());
        self.tell(format_args!("tmpfile in {parent}"));
        let alive = self.tree.entries(parent).and_then(|_| match self.tree.get(parent)?.nlink {
            0 => Err(Errno::ENOENT),
            _ => self.tree.get(parent)?.may_grow(),
        });
        let Some((made, ())) = self.agree(self.fs().tmpfile(parent, &options), alive) else { return };
        let inode = Inode { nlink: 0, ..self.made(parent, &made, Kind::File, &options) };
        assert!(self.tree.inodes.insert(made.id, inode).is_none());
        self.tell(format_args!("     = {}", made.id));
        let before = self.now();
        self.compare(&[Touch::nothing(made.id)], before);
    }

    pub(crate) fn remove(&mut self) {
        let (parent, name) = (self.directory(), self.name());
        let found = self.tree.find(parent, &name).ok();
        let is_directory = found.is_some_and(|id| self.tree.inodes[&id].is_directory());
        let directory = is_directory != (self.rng.below(8) == 0);
        let verb = if directory { "rmdir" } else { "unlink" };
        self.tell(format_args!("{verb} {parent}/{} ({found:?})", text(&name)));
        let before = self.now();
        let real = match directory {
            true => self.fs().rmdir(parent, &name),
            false => self.fs().unlink(parent, &name),
        };
        let model = self.tree.remove(parent, &name, directory);
        self.settle(real, model, before);
    }

    pub(crate) fn rename(&mut self) {
        let (parent, old, new_parent, new) = (self.directory(), self.name(), self.directory(), self.name());
        let whiteout = (self.rng.below(5) == 0).then(|| self.make_options().caller);
        let flags =
            RenameFlags { no_replace: self.rng.below(6) == 0, exchange: self.rng.below(5) == 0, whiteout };
        self.tell(format_args!("rename {parent}/{} to {new_parent}/{}, {flags:?}", text(&old), text(&new)));
        let before = self.now();
        let real = self.fs().rename(parent, &old, new_parent, &new, flags);
        let model = self.tree.rename((parent, &old), (new_parent, &new), flags);
        let left = model.as_ref().is_ok_and(|touched| !touched.is_empty()).then_some(whiteout).flatten();
        if let (Ok(()), Some(caller)) = (&real, left) {
            self.leave_whiteout(parent, &old, caller);
        }
        self.settle(real, model, before);
    }

    /// The model takes the whiteout that a rename left as it is there.
    fn leave_whiteout(&mut self, parent: InodeId, name: &[u8], caller: Caller) {
        let made = self.fs().peek(parent, name).expect("a whiteout was asked for");
        assert_eq!((made.inode.mode & !0o7_777, made.inode.rdev), (S_IFCHR, 0));
        let options = MakeOptions { caller, ..MakeOptions::default() };
        let whiteout = Inode { lookups: 0, ..self.made(parent, &made, Kind::Special(S_IFCHR, 0), &options) };
        self.tree.add(parent, name, made.id, whiteout);
    }

    pub(crate) fn link(&mut self) {
        let (id, parent, name) = (self.any_inode(), self.directory(), self.name());
        self.tell(format_args!("link {id} as {parent}/{}", text(&name)));
        let before = self.now();
        let real = self.fs().link(id, parent, &name).map(drop);
        let model = self.tree.link(id, parent, &name);
        self.settle(real, model, before);
    }

    pub(crate) fn attributes(&mut self) {
        let id = self.any_inode();
        let some = |one_in| self.rng.below(one_in) == 0;
        let time = |n: u64| TimeChange::To(Timestamp(n as i64 * 1_000_000_007));
        let changes = Changes {
            permissions: some(2).then(|| self.rng.below(0o10_000) as u32),
            uid: some(3).then(|| self.rng.below(4) as u32),
            gid: some(3).then(|| self.rng.below(4) as u32),
            atime: some(3).then(|| time(self.rng.below(1000))),
            mtime: some(3).then(|| time(self.rng.below(1000))),
            ..Changes::default()
        };
        self.tell(format_args!("setattr {id} {changes:?}"));
        let before = self.now();
        let expected = self.tree.get(id).and_then(|inode| match changes == Changes::default() {
            true => Ok(()),
            false => inode.may_change(),
        });
        let Some((_, ())) = self.agree(self.fs().setattr(id, &changes), expected) else { return };
        if changes == Changes::default() {
            return self.compare(&[Touch::nothing(id)], before);
        }
        let inode = self.tree.get_mut(id);
        inode.mode = changes.permissions.map_or(inode.mode, |p| inode.mode & S_IFMT | p);
        inode.owner = (changes.uid.unwrap_or(inode.owner.0), changes.gid.unwrap_or(inode.owner.1));
        let time = |change: Option<TimeChange>, old| match change {
            Some(TimeChange::To(time)) => time,
            _ => old,
        };
        inode.atime = time(changes.atime, inode.atime);
        inode.mtime = time(changes.mtime, inode.mtime);
        self.compare(&[Touch::attributes(id)], before);
    }

    /// Flags; mostly none, or nothing would go on.
    pub(crate) fn flags(&mut self) {
        let id = self.any_inode();
        let some = |flags, (_, flag)| if self.rng.below(3) == 0 { flags | flag } else { flags };
        let flags = if self.rng.below(2) == 0 { INODE_FLAGS.into_iter().fold(0, some) } else { 0 };
        self.tell(format_args!("flags {id} {flags:#x}"));
        let before = self.now();
        let old = self.tree.get(id).map(|inode| inode.flags);
        let expected = match old {
            Ok(old) if old & flags & Flags::IMMUTABLE != 0 && old != flags => Err(Errno::EPERM),
            old => old.map(drop),
        };
        if self.agree(self.fs().set_flags(id, flags, Caller::default()), expected).is_some() {
            self.tree.get_mut(id).flags = flags;
            let touch = if old == Ok(flags) { Touch::nothing(id) } else { Touch::attributes(id) };
            self.compare(&[touch], before);
        }
    }

    pub(crate) fn xattr(&mut self) {
        let id = self.any_inode();
        let name = match self.rng.below(30) {
            0 => vec![b'u'; 256],
            1 => Vec::new(),
            _ => format!("user.x{}", self.rng.below(3)).into_bytes(),
        };
        let valid = match name.len() {
            0 => Err(Errno::EINVAL),
            256.. => Err(Errno::ERANGE),
            _ => Ok(()),
        };
        let there =
            self.tree.get(id).and_then(|inode| inode.may_change().map(|()| inode.xattrs.contains_key(&name)));
        let there = valid.and(there);
        let before = self.now();
        if self.rng.below(3) == 0 {
            self.tell(format_args!("removexattr {id} {}", text(&name)));
            let expected = there.and_then(|there| if there { Ok(()) } else { Err(Errno::ENODATA) });
            if self.agree(self.fs().removexattr(id, &name), expected).is_some() {
                self.tree.get_mut(id).xattrs.remove(&name);
                self.compare(&[Touch::attributes(id)], before);
            }
            return;
        }
        let length = if self.rng.below(10) == 0 { 66_000 } else { self.rng.below(900) };
        let value = self.bytes(length as usize);
        let modes = [XattrMode::Any, XattrMode::Any, XattrMode::Create, XattrMode::Replace];
        let mode = modes[self.rng.below(4) as usize];
        self.tell(format_args!("setxattr {id} {} {mode:?}, {length} bytes", text(&name)));
        let expected = match (valid, mode) {
            (Err(error), _) => Err(error),
            _ if length > 65_536 => Err(Errno::EFBIG),
            (_, mode) => match (there, mode) {
                (Err(error), _) => Err(error),
                (Ok(true), XattrMode::Create) => Err(Errno::EEXIST),
                (Ok(false), XattrMode::Replace) => Err(Errno::ENODATA),
                _ => Ok(()),
            },
        };
        if self.agree(self.fs().setxattr(id, &name, &value, mode), expected).is_some() {
            self.tree.get_mut(id).xattrs.insert(name, value);
            self.compare(&[Touch::attributes(id)], before);
        }
    }
}
