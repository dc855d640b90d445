//! What a history does, step by step: random operations, and what each of them promises.

use crate::flags::{Flags, SUPERUSER};
use crate::history::{Namespace, Outcome, Promise, Shape};
use aegisfs_base::{InodeId, Rng, SeededRng};
use aegisfs_fs::{Changes, CopyEnd, Fs, FsError, Kind, MakeOptions, ROOT, RenameFlags, WriteKind, XattrMode};
use aegisfs_pool::Redundancy;
use aegisfs_store::StoreError;
use std::collections::BTreeMap;

/// Names to play with.
const NAMES: u64 = 6;
/// Files are not written beyond this.
const FILE_BYTES_MAX: u64 = 400 << 10;
/// Sides of the dice that choose a verb; those beyond have to do with flags.
const SIDES: u64 = 100;
const SIDES_WITH_FLAGS: u64 = 135;
/// How often the cleaner runs, where it does.
const CLEANING_ONE_IN: u64 = 7;
/// How often something has to do with policies, where there are any.
const POLICIES_ONE_IN: u64 = 4;
const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;

pub(crate) struct Player<'a> {
    pub(crate) fs: &'a Fs,
    pub(crate) rng: &'a SeededRng,
    shape: &'a Shape,
    pub(crate) contents: BTreeMap<InodeId, Vec<u8>>,
    pub(crate) touched: BTreeMap<InodeId, u64>,
    /// As they have to be.
    pub(crate) flags: Flags,
    /// Whether flags forbid what is being done.
    pub(crate) forbidden: bool,
    /// Blocks that come up again and again, so that dedup finds something.
    stock: Vec<u8>,
}

/// What an operation did.
#[derive(Default)]
pub(crate) struct Deed {
    pub(crate) story: String,
    pub(crate) promise: Promise,
    pub(crate) changed: Vec<InodeId>,
    /// Those whose flag makes it durable.
    pub(crate) asked: Vec<InodeId>,
    /// It was refused because of flags.
    pub(crate) forbidden: bool,
    /// It is durable because of flags.
    pub(crate) durable: bool,
}

impl<'a> Player<'a> {
    pub(crate) fn new(fs: &'a Fs, rng: &'a SeededRng, shape: &'a Shape) -> Self {
        let mut stock = vec![0; 300 << 10];
        rng.fill(&mut stock);
        let (contents, touched, flags) = (BTreeMap::new(), BTreeMap::new(), Flags::default());
        Self { fs, rng, shape, contents, touched, flags, forbidden: false, stock }
    }
}

impl Player<'_> {
    /// Does something; `Err` says what failed, or what flags forbid and was done, or the other way about.
    pub(crate) fn play(&mut self, step: u64) -> Result<Deed, Outcome> {
        self.forbidden = false;
        match self.choose(step) {
            Ok(deed) if self.forbidden => Err(Outcome::Wrong(format!("flags forbid it: {}", deed.story))),
            Ok(deed) => Ok(self.promised_by_flags(step, deed)),
            Err(FsError::Store(StoreError::NoSpace { .. })) => Ok(told("no space".into())),
            Err(FsError::Store(error)) => Err(Outcome::Refused(error.to_string())),
            Err(FsError::NotPermitted) if !self.forbidden => Err(Outcome::Wrong("no flag forbids it".into())),
            Err(FsError::NotPermitted) => Ok(Deed { forbidden: true, ..told("forbidden by flags".into()) }),
            // Names that are taken, missing, or of the wrong kind are part of the game.
            Err(error) => Ok(Deed { forbidden: self.forbidden, ..told(format!("refused: {error}")) }),
        }
    }

    fn choose(&mut self, step: u64) -> Result<Deed, FsError> {
        if self.shape.cleaning && self.rng.below(CLEANING_ONE_IN) == 0 {
            return self.clean();
        }
        if self.shape.policies && self.rng.below(POLICIES_ONE_IN) == 0 {
            return if self.rng.below(2) == 0 { self.set_policy(step) } else { self.follow() };
        }
        let sides = if self.shape.flags { SIDES_WITH_FLAGS } else { SIDES };
        match self.rng.below(sides) {
            0..12 => self.create(step),
            12..40 => self.write(),
            40..52 => self.fsync(),
            52..56 => self.sync(),
            56..64 => self.rename(step),
            64..70 => self.unlink(),
            70..76 => self.truncate(step),
            76..79 => self.punch(step),
            79..82 => self.link(step),
            82..85 => self.mkdir(),
            85..87 => self.symlink(),
            87..90 => self.xattr(step),
            90..92 => self.chmod(step),
            92..95 => self.copy(step),
            95..SIDES => self.checkpoint(),
            SIDES..108 => self.mkdir(),
            _ => self.set_flags(step),
        }
    }

    /// What is marked sync is durable by now, as if it had been synced.
    fn promised_by_flags(&self, step: u64, mut deed: Deed) -> Deed {
        if let Some(id) = deed.asked.iter().find(|id| self.flags.is_sync(**id)) {
            deed.promise.file = Some((*id, self.touched.get(id).copied().unwrap_or(step)));
            deed.story += ", durable by a flag";
            deed.durable = true;
        }
        deed
    }

    /// Whether everything has the flags that it has to have.
    pub(crate) fn check_flags(&self, names: &Namespace) -> Result<(), String> {
        for (path, entry) in names {
            let expected = self.flags.of(entry.inode);
            if entry.flags != expected {
                return Err(format!("{} has flags {:x}, not {expected:x}", text(path), entry.flags));
            }
        }
        Ok(())
    }

    fn name(&self) -> Vec<u8> {
        format!("n{}", self.rng.below(NAMES)).into_bytes()
    }

    fn directory(&self) -> Result<InodeId, FsError> {
        if self.shape.flags {
            return Ok(self.flagged_directory());
        }
        if self.rng.below(3) > 0 {
            return Ok(ROOT);
        }
        let found = self.fs.peek(ROOT, &self.name())?;
        if found.inode.mode & S_IFMT == S_IFDIR { Ok(found.id) } else { Ok(ROOT) }
    }

    /// Where flags are set, more happens in directories other than the root, which has none.
    fn flagged_directory(&self) -> InodeId {
        let tries = self.rng.below(5);
        let mut found = (0..tries).filter_map(|_| self.fs.peek(ROOT, &self.name()).ok());
        let directory = found.find(|found| found.inode.mode & S_IFMT == S_IFDIR);
        directory.map_or(ROOT, |found| found.id)
    }

    fn file(&self) -> Result<InodeId, FsError> {
        self.found(S_IFREG)
    }

    /// A file or a directory other than the root, if the dice find one.
    pub(crate) fn file_or_directory(&self) -> Result<InodeId, FsError> {
        self.found(if self.rng.below(2) == 0 { S_IFREG } else { S_IFDIR })
    }

    /// Something of a kind, if the dice find it.
    fn found(&self, format: u32) -> Result<InodeId, FsError> {
        for _ in 0..6 {
            let Ok(parent) = self.directory() else { continue };
            if let Ok(found) = self.fs.peek(parent, &self.name())
                && found.inode.mode & S_IFMT == format
            {
                return Ok(found.id);
            }
        }
        Err(FsError::NotFound)
    }

    fn bytes(&self) -> Vec<u8> {
        if self.shape.streams && self.rng.below(3) == 0 {
            let mut data = self.stock[..(270 + self.rng.below(30) as usize) << 10].to_vec();
            let (from, length) = (self.rng.below(200 << 10) as usize, self.rng.below(70 << 10) as usize);
            self.rng.fill(&mut data[from..from + length]);
            return data;
        }
        let most = match self.rng.below(if self.shape.large { 3 } else { 8 }) {
            0 => 200 << 10,
            1 => 70 << 10,
            2 | 3 => 10 << 10,
            _ => 600,
        };
        let length = 1 + self.rng.below(most) as usize;
        match self.rng.below(3) {
            0 => vec![self.rng.below(256) as u8; length],
            1 => {
                let start = self.rng.below(4) as usize * 20_000;
                self.stock[start..start + length].to_vec()
            }
            _ => {
                let mut data = vec![0; length];
                self.rng.fill(&mut data);
                data
            }
        }
    }

    fn create(&mut self, step: u64) -> Result<Deed, FsError> {
        let (parent, name) = (self.directory()?, self.name());
        let made = self.make(parent, &name, Kind::File, 0o644)?;
        self.contents.insert(made, Vec::new());
        self.touched.insert(made, step);
        let story = format!("create {parent}/{} = {made}", text(&name));
        Ok(Deed { changed: vec![made], asked: vec![parent], ..told(story) })
    }

    fn make(
        &mut self,
        parent: InodeId,
        name: &[u8],
        kind: Kind<'_>,
        permissions: u32,
    ) -> Result<InodeId, FsError> {
        self.forbidden = self.flags.takes_nothing(parent);
        let options = MakeOptions { permissions, ..MakeOptions::default() };
        let made = self.fs.make(parent, name, kind, &options)?.id;
        self.fs.forget(made, 1);
        self.flags.are_inherited(parent, made, kind);
        Ok(made)
    }

    fn write(&mut self) -> Result<Deed, FsError> {
        let (id, data) = (self.file()?, self.bytes());
        let length = self.contents[&id].len() as u64;
        let offset = match self.rng.below(4) {
            0 => 0,
            1 => length,
            _ => self.rng.below(length + 5000),
        };
        let offset = offset.min(FILE_BYTES_MAX);
        let kind = WriteKind { appends: offset == length, ..WriteKind::default() };
        self.forbidden =
            if kind.appends { self.flags.takes_nothing(id) } else { self.flags.loses_nothing(id) };
        let (handle, _) = self.fs.open_to_write(id, kind.appends)?;
        let outcome = self.fs.write_with(handle, offset, &data, kind);
        self.fs.release(handle)?;
        outcome?;
        let content = self.contents.get_mut(&id).expect("files are known");
        let end = offset as usize + data.len();
        content.resize(content.len().max(end), 0);
        content[offset as usize..end].copy_from_slice(&data);
        let story = format!("write {id} at {offset}, {} bytes", data.len());
        Ok(Deed { changed: vec![id], asked: vec![id], ..told(story) })
    }

    fn fsync(&mut self) -> Result<Deed, FsError> {
        let id = self.file()?;
        self.fs.fsync_inode(id)?;
        let promise = Promise { file: Some((id, self.touched[&id])), ..Promise::default() };
        Ok(Deed { promise, ..told(format!("fsync {id}")) })
    }

    fn sync(&mut self) -> Result<Deed, FsError> {
        self.fs.sync()?;
        Ok(Deed { promise: Promise { everything: true, ..Promise::default() }, ..told("sync".into()) })
    }

    fn checkpoint(&mut self) -> Result<Deed, FsError> {
        self.fs.store().checkpoint()?;
        Ok(told("checkpoint".into()))
    }

    /// Sometimes without the checkpoint that frees the slots.
    fn clean(&mut self) -> Result<Deed, FsError> {
        let (store, all) = (self.fs.store(), self.rng.below(2) == 0);
        // All free slots at once, those as well that the last life left.
        if self.rng.below(4) == 0 {
            store.request_trim()?;
            return Ok(told("trim".into()));
        }
        let done = if all { store.clean(u64::MAX)? } else { store.empty_segments(1)? };
        Ok(told(format!("clean{}: {done:?}", if all { " all" } else { "" })))
    }

    /// Says how something is stored.
    fn set_policy(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = if self.rng.below(4) == 0 { self.file_or_directory()? } else { self.file()? };
        let known = [(1, 0), (1, 1), (1, 2), (2, 1), (3, 2)]
            .map(|(shards_data, shards_parity)| Redundancy { shards_data, shards_parity });
        let redundancy = known.get(self.rng.below(known.len() as u64 + 1) as usize).copied();
        self.fs.set_policy(id, redundancy, ROOT)?;
        self.touched.insert(id, step);
        let mut deed = told(format!("policy of {id}: {redundancy:?}"));
        deed.promise.file = Some((id, step));
        Ok(deed)
    }

    /// Has what is there already follow; sometimes only for a few steps.
    fn follow(&mut self) -> Result<Deed, FsError> {
        let steps = if self.rng.below(3) == 0 { self.rng.below(5) } else { u64::MAX };
        let taken = std::cell::Cell::new(0);
        let before = self.fs.followed()?.bytes;
        self.fs.follow_policies(&|| taken.replace(taken.get() + 1) < steps)?;
        Ok(told(format!("follow; stored anew: {}", self.fs.followed()?.bytes - before)))
    }

    fn rename(&mut self, step: u64) -> Result<Deed, FsError> {
        let (parent, old, new_parent, new) = (self.directory()?, self.name(), self.directory()?, self.name());
        let exchange = self.rng.below(5) == 0;
        let whiteout = (!exchange && self.rng.below(4) == 0).then_some(SUPERUSER);
        let flags = RenameFlags { exchange, whiteout, ..RenameFlags::default() };
        let moved = self.fs.peek(parent, &old)?.id;
        let target = self.fs.peek(new_parent, &new).ok().map(|found| found.id);
        // Two names of one inode stay as they are.
        let stays = target == Some(moved);
        self.forbidden = !stays && self.flags.forbid_rename(parent, moved, new_parent, target);
        self.fs.rename(parent, &old, new_parent, &new, flags)?;
        if whiteout.is_some() && !stays {
            let left = self.fs.peek(parent, &old)?.id;
            self.flags.are_inherited(parent, left, Kind::Special(S_IFCHR, 0));
        }
        let ordered = (target.is_some() && self.contents.contains_key(&moved)).then_some(moved);
        let story = format!(
            "rename {parent}/{} to {new_parent}/{} ({moved}, exchange {exchange}, whiteout {})",
            text(&old),
            text(&new),
            whiteout.is_some()
        );
        let mut deed = Deed { promise: Promise { ordered, ..Promise::default() }, ..told(story) };
        if !stays {
            self.touched.insert(moved, step);
            deed.asked = vec![parent, new_parent];
        }
        Ok(deed)
    }

    fn unlink(&mut self) -> Result<Deed, FsError> {
        let (parent, name) = (self.directory()?, self.name());
        let found = self.fs.peek(parent, &name)?;
        self.forbidden = self.flags.loses_nothing(parent) || self.flags.loses_nothing(found.id);
        if found.inode.mode & S_IFMT == S_IFDIR {
            self.fs.rmdir(parent, &name)?;
        } else {
            self.fs.unlink(parent, &name)?;
        }
        let story = format!("remove {parent}/{} ({})", text(&name), found.id);
        Ok(Deed { asked: vec![parent], ..told(story) })
    }

    fn truncate(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let length = self.contents[&id].len() as u64;
        let size = self.rng.below(length + length / 2 + 10).min(FILE_BYTES_MAX);
        self.forbidden = self.flags.loses_nothing(id);
        self.fs.setattr(id, &Changes { size: Some(size), ..Changes::default() })?;
        self.contents.get_mut(&id).expect("files are known").resize(size as usize, 0);
        self.touched.insert(id, step);
        Ok(Deed { changed: vec![id], asked: vec![id], ..told(format!("truncate {id} to {size}")) })
    }

    fn punch(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let length = self.contents[&id].len() as u64;
        let from = self.rng.below(length + 1);
        let bytes = 1 + self.rng.below(50_000);
        self.forbidden = self.flags.loses_nothing(id);
        let handle = self.fs.open(id)?;
        let outcome = self.fs.fallocate(handle, from, bytes, 3);
        self.fs.release(handle)?;
        outcome?;
        let content = self.contents.get_mut(&id).expect("files are known");
        let to = (from + bytes).min(length) as usize;
        content[from as usize..to].fill(0);
        self.touched.insert(id, step);
        let story = format!("punch {id} at {from}, {bytes} bytes");
        Ok(Deed { changed: vec![id], asked: vec![id], ..told(story) })
    }

    fn link(&mut self, step: u64) -> Result<Deed, FsError> {
        let (id, parent, name) = (self.file()?, self.directory()?, self.name());
        self.forbidden = self.flags.takes_nothing(parent) || self.flags.loses_nothing(id);
        self.fs.link(id, parent, &name)?;
        self.fs.forget(id, 1);
        self.touched.insert(id, step);
        let story = format!("link {id} as {parent}/{}", text(&name));
        Ok(Deed { asked: vec![parent], ..told(story) })
    }

    fn mkdir(&mut self) -> Result<Deed, FsError> {
        let parent = if self.shape.flags { self.directory()? } else { ROOT };
        let name = self.name();
        let made = self.make(parent, &name, Kind::Directory, 0)?;
        let story = format!("mkdir {parent}/{} = {made}", text(&name));
        Ok(Deed { asked: vec![parent], ..told(story) })
    }

    fn symlink(&mut self) -> Result<Deed, FsError> {
        let (parent, name) = (self.directory()?, self.name());
        let made = self.make(parent, &name, Kind::Symlink(b"some/where"), 0)?;
        let story = format!("symlink {parent}/{} = {made}", text(&name));
        Ok(Deed { asked: vec![parent], ..told(story) })
    }

    fn xattr(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let name = format!("user.x{}", self.rng.below(2));
        self.forbidden = self.flags.loses_nothing(id);
        if self.rng.below(3) == 0 {
            self.fs.removexattr(id, name.as_bytes())?;
        } else {
            let value = self.bytes();
            let value = &value[..value.len().min(3000)];
            self.fs.setxattr(id, name.as_bytes(), value, XattrMode::Any)?;
        }
        self.touched.insert(id, step);
        Ok(Deed { asked: vec![id], ..told(format!("xattr {name} of {id}")) })
    }

    fn chmod(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let permissions = 0o600 + self.rng.below(64) as u32;
        self.forbidden = self.flags.loses_nothing(id);
        self.fs.setattr(id, &Changes { permissions: Some(permissions), ..Changes::default() })?;
        self.touched.insert(id, step);
        Ok(Deed { asked: vec![id], ..told(format!("chmod {id} {permissions:o}")) })
    }

    fn copy(&mut self, step: u64) -> Result<Deed, FsError> {
        let (from, to) = (self.file()?, self.file()?);
        if from == to {
            return Err(FsError::Invalid);
        }
        let length = self.contents[&from].len() as u64;
        let (offset, at) = (self.rng.below(length + 1), self.rng.below(20_000));
        let bytes = self.rng.below(length + 1);
        self.forbidden = self.flags.loses_nothing(to);
        let (target, _) = self.fs.open_to_write(to, false)?;
        let source = self.fs.open(from)?;
        let copied = self.fs.copy_range(
            CopyEnd { handle: source, offset },
            CopyEnd { handle: target, offset: at },
            bytes,
        );
        self.fs.release(source)?;
        self.fs.release(target)?;
        let copied = copied? as usize;
        let piece = self.contents[&from][offset as usize..offset as usize + copied].to_vec();
        if copied > 0 {
            let content = self.contents.get_mut(&to).expect("files are known");
            let end = at as usize + copied;
            content.resize(content.len().max(end), 0);
            content[at as usize..end].copy_from_slice(&piece);
            self.touched.insert(to, step);
        }
        let asked = if copied > 0 { vec![to] } else { vec![] };
        let story = format!("copy {from}+{offset} to {to}+{at}, {copied} bytes");
        Ok(Deed { changed: vec![to], asked, ..told(story) })
    }
}

pub(crate) fn told(story: String) -> Deed {
    Deed { story, ..Deed::default() }
}

fn text(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}
