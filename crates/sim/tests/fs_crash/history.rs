//! Seeded histories: random operations on a real filesystem, with what each one promised.

use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::Device;
use aegisfs_fs::{Changes, CopyEnd, Fs, FsError, FsOptions, Kind, MakeOptions, ROOT, RenameFlags, XattrMode};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_sim::SimWorld;
use aegisfs_store::{StoreError, StoreOptions, open};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What kind of history.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Devices; two are mirrored.
    pub(crate) devices: usize,
    /// Operations.
    pub(crate) operations: u64,
    /// Pieces of the intent log, of 256 KiB each.
    pub(crate) log_pieces: u32,
    /// Whether writes are large.
    pub(crate) large: bool,
    /// Bytes of each device.
    pub(crate) device_bytes: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { devices: 1, operations: 30, log_pieces: 4, large: false, device_bytes: 24 << 20 }
    }
}

/// Bytes of each slot.
const SLOT_BYTES: u64 = 256 << 10;
/// Names to play with.
const NAMES: u64 = 6;
/// Files are not written beyond this.
const FILE_BYTES_MAX: u64 = 400 << 10;

/// What a walk finds under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) inode: InodeId,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) type Namespace = BTreeMap<Vec<u8>, Entry>;

/// What an operation promised when it returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Everything acknowledged before it is durable.
    pub(crate) everything: bool,
    /// This file's content, and the names up to the operation that last touched it, are durable.
    pub(crate) file: Option<(InodeId, u64)>,
    /// Whoever sees this operation sees at least this file's content of then.
    pub(crate) ordered: Option<InodeId>,
}

/// A history that was run to its end.
pub(crate) struct History {
    pub(crate) world: SimWorld,
    /// The namespace after each operation; the first is that of the empty filesystem.
    pub(crate) names: Vec<Namespace>,
    /// Contents by inode, by the operation that made them so.
    pub(crate) contents: BTreeMap<InodeId, Vec<(u64, Vec<u8>)>>,
    pub(crate) promises: Vec<Promise>,
    story: Vec<String>,
}

/// A mark for the beginning of an operation, and one for its promise.
pub(crate) const BEGUN: u64 = 0;
pub(crate) const KEPT: u64 = 1;

pub(crate) fn store_options() -> StoreOptions {
    StoreOptions {
        chunk_cache_bytes: 1 << 20,
        metadata_cache_bytes: 256 << 10,
        workers: 0,
        ..StoreOptions::default()
    }
}

pub(crate) fn mount(
    devices: Vec<Arc<dyn Device>>,
    rng: &dyn Rng,
    options: OpenOptions,
) -> Result<Fs, String> {
    let (pool, _) = Pool::open(devices, options).map_err(|e| format!("the pool does not open: {e}"))?;
    let (store, recovered) = open(pool, &store_options(), Arc::new(ManualClock::default()), rng)
        .map_err(|e| format!("the store does not open: {e}"))?;
    if let Some(reason) = recovered.read_only {
        return Err(format!("it opens for reading only: {reason}"));
    }
    let fs_options = FsOptions { background: false, dirty_bytes_max: 600 << 10, ..FsOptions::default() };
    Fs::mount(Arc::new(store), fs_options).map_err(|e| format!("it does not mount: {e}"))
}

/// Everything that a walk from the root finds.
pub(crate) fn walk(fs: &Fs) -> Result<Namespace, FsError> {
    let mut found = Namespace::new();
    let mut todo = vec![(Vec::new(), ROOT)];
    while let Some((path, directory)) = todo.pop() {
        let mut entries = Vec::new();
        fs.readdir(directory, 2, &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        for entry in entries {
            let mut below = path.clone();
            below.push(b'/');
            below.extend_from_slice(&entry.name);
            let attributes = fs.getattr(entry.id)?;
            let target = if entry.kind == 10 { fs.readlink(entry.id)? } else { Vec::new() };
            let names = fs.listxattr(entry.id)?;
            let xattrs = names
                .into_iter()
                .map(|name| fs.getxattr(entry.id, &name).map(|value| (name, value)))
                .collect::<Result<_, _>>()?;
            if entry.kind == 4 {
                todo.push((below.clone(), entry.id));
            }
            let inode = attributes.inode;
            found.insert(
                below,
                Entry { inode: entry.id, mode: inode.mode, nlink: inode.nlink, target, xattrs },
            );
        }
    }
    Ok(found)
}

pub(crate) fn read_all(fs: &Fs, id: InodeId) -> Result<Vec<u8>, FsError> {
    let handle = fs.open(id)?;
    let mut data = vec![0xAA; fs.getattr(id)?.inode.size as usize];
    let count = fs.read(handle, 0, &mut data)?;
    assert_eq!(count, data.len());
    fs.release(handle)?;
    Ok(data)
}

struct Player<'a> {
    fs: &'a Fs,
    rng: &'a SeededRng,
    shape: &'a Shape,
    contents: BTreeMap<InodeId, Vec<u8>>,
    touched: BTreeMap<InodeId, u64>,
    /// Blocks that come up again and again, so that dedup finds something.
    stock: Vec<u8>,
}

/// What an operation did.
#[derive(Default)]
struct Deed {
    story: String,
    promise: Promise,
    changed: Vec<InodeId>,
}

impl History {
    /// Runs a history from a seed.
    pub(crate) fn run(shape: &Shape, seed: u64) -> Self {
        let rng = SeededRng::new(seed);
        let mut world = SimWorld::new();
        for n in 0..shape.devices {
            world.add(&format!("disk{n}"), shape.device_bytes);
        }
        let create = CreateOptions {
            compression: (2, 1),
            slot_bytes: Some(SLOT_BYTES),
            log_pieces: Some(shape.log_pieces),
            ..CreateOptions::default()
        };
        let clock = ManualClock::default();
        let pool = Pool::create(world.devices(), &create, &clock, &rng).expect("it can be formatted");
        Fs::format(&pool, &clock).expect("it can be formatted");
        world.settle();
        let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
        let mut stock = vec![0; 300 << 10];
        rng.fill(&mut stock);
        let mut player =
            Player { fs: &fs, rng: &rng, shape, contents: BTreeMap::new(), touched: BTreeMap::new(), stock };
        let mut history = Self {
            names: vec![walk(&fs).expect("an empty root")],
            contents: BTreeMap::new(),
            promises: vec![Promise { everything: true, ..Promise::default() }],
            story: vec!["mount".into()],
            world: SimWorld::new(),
        };
        for step in 1..=shape.operations {
            world.mark(step << 1 | BEGUN);
            let deed = player.play(step).unwrap_or_else(|error| panic!("step {step}: {error}"));
            world.mark(step << 1 | KEPT);
            history.names.push(walk(&fs).expect("a readable tree"));
            for id in deed.changed {
                let content = player.contents[&id].clone();
                history.contents.entry(id).or_default().push((step, content));
            }
            history.promises.push(deed.promise);
            history.story.push(deed.story);
        }
        for (id, content) in &player.contents {
            if fs.getattr(*id).is_ok() {
                assert!(
                    read_all(&fs, *id).expect("readable") == *content,
                    "inode {id} reads wrong while mounted"
                );
            }
        }
        drop(fs);
        history.world = world;
        history
    }

    /// What was done, line by line.
    pub(crate) fn story(&self) -> String {
        self.story.iter().enumerate().map(|(n, line)| format!("{n:4} {line}\n")).collect()
    }
}

impl Player<'_> {
    fn play(&mut self, step: u64) -> Result<Deed, FsError> {
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
