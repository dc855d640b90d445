//! What a history does, step by step: random operations, and what each of them promises.

use crate::history::{Promise, Shape};
use aegisfs_base::{InodeId, Rng, SeededRng};
use aegisfs_fs::{Changes, CopyEnd, Fs, FsError, Kind, MakeOptions, ROOT, RenameFlags, XattrMode};
use aegisfs_store::StoreError;
use std::collections::BTreeMap;

/// Names to play with.
const NAMES: u64 = 6;
/// Files are not written beyond this.
const FILE_BYTES_MAX: u64 = 400 << 10;

pub(crate) struct Player<'a> {
    fs: &'a Fs,
    rng: &'a SeededRng,
    shape: &'a Shape,
    pub(crate) contents: BTreeMap<InodeId, Vec<u8>>,
    touched: BTreeMap<InodeId, u64>,
    /// Blocks that come up again and again, so that dedup finds something.
    stock: Vec<u8>,
}

/// What an operation did.
#[derive(Default)]
pub(crate) struct Deed {
    pub(crate) story: String,
    pub(crate) promise: Promise,
    pub(crate) changed: Vec<InodeId>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(fs: &'a Fs, rng: &'a SeededRng, shape: &'a Shape) -> Self {
        let mut stock = vec![0; 300 << 10];
        rng.fill(&mut stock);
        Self { fs, rng, shape, contents: BTreeMap::new(), touched: BTreeMap::new(), stock }
    }
}

impl Player<'_> {
    pub(crate) fn play(&mut self, step: u64) -> Result<Deed, FsError> {
        let outcome = match self.rng.below(100) {
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
            _ => self.checkpoint(),
        };
        match outcome {
            Ok(deed) => Ok(deed),
            Err(FsError::Store(StoreError::NoSpace { .. })) => Ok(told("no space".into())),
            Err(FsError::Store(error)) => Err(FsError::Store(error)),
            // Names that are taken, missing, or of the wrong kind are part of the game.
            Err(error) => Ok(told(format!("refused: {error}"))),
        }
    }

    fn name(&self) -> Vec<u8> {
        format!("n{}", self.rng.below(NAMES)).into_bytes()
    }

    fn directory(&self) -> Result<InodeId, FsError> {
        if self.rng.below(3) > 0 {
            return Ok(ROOT);
        }
        let found = self.fs.peek(ROOT, &self.name())?;
        if found.inode.mode & 0o170_000 == 0o040_000 { Ok(found.id) } else { Ok(ROOT) }
    }

    /// A regular file, if the dice find one.
    fn file(&self) -> Result<InodeId, FsError> {
        for _ in 0..6 {
            let Ok(parent) = self.directory() else { continue };
            if let Ok(found) = self.fs.peek(parent, &self.name())
                && found.inode.mode & 0o170_000 == 0o100_000
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
        let options = MakeOptions { permissions: 0o644, ..MakeOptions::default() };
        let made = self.fs.make(parent, &name, Kind::File, &options)?;
        self.fs.forget(made.id, 1);
        self.contents.insert(made.id, Vec::new());
        self.touched.insert(made.id, step);
        let story = format!("create {parent}/{} = {}", text(&name), made.id);
        Ok(Deed { changed: vec![made.id], ..told(story) })
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
        let handle = self.fs.open(id)?;
        let outcome = self.fs.write(handle, offset, &data);
        self.fs.release(handle)?;
        outcome?;
        let content = self.contents.get_mut(&id).expect("files are known");
        let end = offset as usize + data.len();
        content.resize(content.len().max(end), 0);
        content[offset as usize..end].copy_from_slice(&data);
        Ok(Deed { changed: vec![id], ..told(format!("write {id} at {offset}, {} bytes", data.len())) })
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

    fn rename(&mut self, step: u64) -> Result<Deed, FsError> {
        let (parent, old, new_parent, new) = (self.directory()?, self.name(), self.directory()?, self.name());
        let exchange = self.rng.below(5) == 0;
        let flags = RenameFlags { exchange, ..RenameFlags::default() };
        let moved = self.fs.peek(parent, &old)?.id;
        let replaces = self.fs.peek(new_parent, &new).is_ok();
        self.fs.rename(parent, &old, new_parent, &new, flags)?;
        self.touched.insert(moved, step);
        let ordered = (replaces && self.contents.contains_key(&moved)).then_some(moved);
        let story = format!(
            "rename {parent}/{} to {new_parent}/{} ({moved}, exchange {exchange})",
            text(&old),
            text(&new)
        );
        Ok(Deed { promise: Promise { ordered, ..Promise::default() }, ..told(story) })
    }

    fn unlink(&mut self) -> Result<Deed, FsError> {
        let (parent, name) = (self.directory()?, self.name());
        let found = self.fs.peek(parent, &name)?;
        if found.inode.mode & 0o170_000 == 0o040_000 {
            self.fs.rmdir(parent, &name)?;
        } else {
            self.fs.unlink(parent, &name)?;
        }
        Ok(told(format!("remove {parent}/{} ({})", text(&name), found.id)))
    }

    fn truncate(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let length = self.contents[&id].len() as u64;
        let size = self.rng.below(length + length / 2 + 10).min(FILE_BYTES_MAX);
        self.fs.setattr(id, &Changes { size: Some(size), ..Changes::default() })?;
        self.contents.get_mut(&id).expect("files are known").resize(size as usize, 0);
        self.touched.insert(id, step);
        Ok(Deed { changed: vec![id], ..told(format!("truncate {id} to {size}")) })
    }

    fn punch(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let length = self.contents[&id].len() as u64;
        let from = self.rng.below(length + 1);
        let bytes = 1 + self.rng.below(50_000);
        let handle = self.fs.open(id)?;
        let outcome = self.fs.fallocate(handle, from, bytes, 3);
        self.fs.release(handle)?;
        outcome?;
        let content = self.contents.get_mut(&id).expect("files are known");
        let to = (from + bytes).min(length) as usize;
        content[from as usize..to].fill(0);
        self.touched.insert(id, step);
        Ok(Deed { changed: vec![id], ..told(format!("punch {id} at {from}, {bytes} bytes")) })
    }

    fn link(&mut self, step: u64) -> Result<Deed, FsError> {
        let (id, parent, name) = (self.file()?, self.directory()?, self.name());
        self.fs.link(id, parent, &name)?;
        self.fs.forget(id, 1);
        self.touched.insert(id, step);
        Ok(told(format!("link {id} as {parent}/{}", text(&name))))
    }

    fn mkdir(&mut self) -> Result<Deed, FsError> {
        let name = self.name();
        let made = self.fs.make(ROOT, &name, Kind::Directory, &MakeOptions::default())?;
        self.fs.forget(made.id, 1);
        Ok(told(format!("mkdir {} = {}", text(&name), made.id)))
    }

    fn symlink(&mut self) -> Result<Deed, FsError> {
        let (parent, name) = (self.directory()?, self.name());
        let made = self.fs.make(parent, &name, Kind::Symlink(b"some/where"), &MakeOptions::default())?;
        self.fs.forget(made.id, 1);
        Ok(told(format!("symlink {parent}/{} = {}", text(&name), made.id)))
    }

    fn xattr(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let name = format!("user.x{}", self.rng.below(2));
        if self.rng.below(3) == 0 {
            self.fs.removexattr(id, name.as_bytes())?;
        } else {
            let value = self.bytes();
            let value = &value[..value.len().min(3000)];
            self.fs.setxattr(id, name.as_bytes(), value, XattrMode::Any)?;
        }
        self.touched.insert(id, step);
        Ok(told(format!("xattr {name} of {id}")))
    }

    fn chmod(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file()?;
        let permissions = 0o600 + self.rng.below(64) as u32;
        self.fs.setattr(id, &Changes { permissions: Some(permissions), ..Changes::default() })?;
        self.touched.insert(id, step);
        Ok(told(format!("chmod {id} {permissions:o}")))
    }

    fn copy(&mut self, step: u64) -> Result<Deed, FsError> {
        let (from, to) = (self.file()?, self.file()?);
        if from == to {
            return Err(FsError::Invalid);
        }
        let length = self.contents[&from].len() as u64;
        let (offset, at) = (self.rng.below(length + 1), self.rng.below(20_000));
        let bytes = self.rng.below(length + 1);
        let (source, target) = (self.fs.open(from)?, self.fs.open(to)?);
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
        }
        self.touched.insert(to, step);
        Ok(Deed { changed: vec![to], ..told(format!("copy {from}+{offset} to {to}+{at}, {copied} bytes")) })
    }
}

fn told(story: String) -> Deed {
    Deed { story, ..Deed::default() }
}

fn text(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}
