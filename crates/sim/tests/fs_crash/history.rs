//! Seeded histories: random operations on a real filesystem, with what each one promised.

use crate::player::Player;
use aegisfs_base::sabotage::{catch_up, forget_late};
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::Device;
use aegisfs_fs::{Fs, FsError, FsOptions, ROOT};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool, Redundancy};
use aegisfs_sim::SimWorld;
use aegisfs_store::{StoreOptions, open};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What kind of history.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Devices; two are mirrored, from four on any two may be lost.
    pub(crate) devices: usize,
    /// Operations.
    pub(crate) operations: u64,
    /// Pieces of the intent log, of 256 KiB each.
    pub(crate) log_pieces: u32,
    /// Whether writes are large.
    pub(crate) large: bool,
    /// Bytes of each device.
    pub(crate) device_bytes: u64,
    /// Whether every other one has twice that.
    pub(crate) mixed: bool,
    /// Whether files are written in stretches so long that they leave as a stream, its end held back.
    pub(crate) streams: bool,
    /// Whether flags are set, which forbid some of the operations and make others durable.
    pub(crate) flags: bool,
    /// Whether the cleaner runs in between.
    pub(crate) cleaning: bool,
    /// Whether somebody says how files and directories are stored.
    pub(crate) policies: bool,
    /// What it is if it is not what so many devices have by default.
    pub(crate) redundancy: Option<Redundancy>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            devices: 1,
            operations: 30,
            log_pieces: 4,
            large: false,
            device_bytes: 24 << 20,
            mixed: false,
            streams: false,
            flags: false,
            cleaning: false,
            policies: false,
            redundancy: None,
        }
    }
}

/// Bytes of each slot; the largest chunks need more than the smallest slots have.
fn slot_bytes(shape: &Shape) -> u64 {
    if shape.streams { 1 << 20 } else { 256 << 10 }
}

/// What a walk finds under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) inode: InodeId,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) flags: u32,
    /// What was said of it.
    pub(crate) policy: Option<Redundancy>,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) type Namespace = BTreeMap<Vec<u8>, Entry>;

/// What an operation promised when it returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Everything acknowledged before it is durable.
    pub(crate) everything: bool,
    /// This file's content, and the names and attributes up to the operation that last touched it, are durable.
    /// Of a directory there are only those.
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
    /// Whether a write may arrive in parts, the first of them durable alone.
    pub(crate) streams: bool,
    /// Whether somebody said how something is stored.
    pub(crate) policies: bool,
    /// Operations that flags forbade, and those that they made durable.
    pub(crate) forbidden: u64,
    pub(crate) durable: u64,
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
    // What a missing safeguard put off died with the process that would have done it.
    forget_late();
    let (pool, _) = Pool::open(devices, options).map_err(|e| format!("the pool does not open: {e}"))?;
    let (store, recovered) = open(pool, &store_options(), Arc::new(ManualClock::default()), rng)
        .map_err(|e| format!("the store does not open: {e}"))?;
    if let Some(reason) = recovered.read_only {
        return Err(format!("it opens for reading only: {reason}"));
    }
    let fs_options = FsOptions {
        background: false,
        dirty_bytes_max: 600 << 10,
        stream_bytes: 260 << 10,
        ..FsOptions::default()
    };
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
            let flags = fs.flags(entry.id)?;
            let policy = fs.policy(entry.id).ok().filter(|policy| policy.own);
            let policy = policy.map(|policy| policy.redundancy);
            let (mode, nlink) = (inode.mode, inode.nlink);
            found.insert(below, Entry { inode: entry.id, mode, nlink, flags, policy, target, xattrs });
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

/// How a history ended early.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With an error, which is fine when a device failed.
    Refused(String),
    /// With a wrong answer, which never is.
    Wrong(String),
}

impl Outcome {
    fn at(self, step: u64) -> Self {
        match self {
            Self::Refused(why) => Self::Refused(format!("step {step}: {why}")),
            Self::Wrong(why) => Self::Wrong(format!("step {step}: {why}")),
        }
    }
}

/// Formatted devices, and the dice of a seed.
pub(crate) fn format(shape: &Shape, seed: u64) -> (SimWorld, SeededRng) {
    let rng = SeededRng::new(seed);
    let mut world = SimWorld::new();
    for n in 0..shape.devices {
        let times = if shape.mixed { 1 + n as u64 % 2 } else { 1 };
        world.add(&format!("disk{n}"), shape.device_bytes * times);
    }
    let create = CreateOptions {
        redundancy: shape.redundancy,
        compression: (2, 1),
        slot_bytes: Some(slot_bytes(shape)),
        log_pieces: Some(shape.log_pieces),
        ..CreateOptions::default()
    };
    let clock = ManualClock::default();
    let pool = Pool::create(world.devices(), &create, &clock, &rng).expect("it can be formatted");
    Fs::format(&pool, &clock).expect("it can be formatted");
    world.settle();
    (world, rng)
}

impl History {
    /// Runs a history from a seed.
    pub(crate) fn run(shape: &Shape, seed: u64) -> Self {
        Self::run_after(shape, seed, |_| {})
    }

    /// The same where something is done to the devices as soon as they are mounted.
    pub(crate) fn run_after(shape: &Shape, seed: u64, prepare: impl FnOnce(&SimWorld)) -> Self {
        let (world, rng) = format(shape, seed);
        let fs = mount(world.devices(), &rng, OpenOptions::default()).expect("it mounts");
        prepare(&world);
        let mut player = Player::new(&fs, &rng, shape);
        let mut history = Self {
            names: vec![walk(&fs).expect("an empty root")],
            contents: BTreeMap::new(),
            promises: vec![Promise { everything: true, ..Promise::default() }],
            // Where there is little room checkpoints come often, also between the parts of a write.
            streams: shape.streams || shape.cleaning,
            policies: shape.policies,
            forbidden: 0,
            durable: 0,
            story: vec!["mount".into()],
            world: SimWorld::new(),
        };
        for step in 1..=shape.operations {
            world.mark(step << 1 | BEGUN);
            let wrong = |why: &dyn std::fmt::Debug| -> ! {
                panic!("seed {seed}, step {step}: {why:?}\nhistory:\n{}", history.story())
            };
            let deed = player.play(step).unwrap_or_else(|outcome| wrong(&outcome));
            world.mark(step << 1 | KEPT);
            let names = walk(&fs).expect("a readable tree");
            player.check_flags(&names).unwrap_or_else(|why| wrong(&why));
            if deed.forbidden && history.names.last() != Some(&names) {
                wrong(&"what was forbidden changed something");
            }
            history.names.push(names);
            history.forbidden += u64::from(deed.forbidden);
            history.durable += u64::from(deed.durable);
            for id in deed.changed {
                let content = player.contents[&id].clone();
                history.contents.entry(id).or_default().push((step, content));
            }
            history.promises.push(deed.promise);
            history.story.push(deed.story);
        }
        catch_up();
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

    /// Plays the history of a seed in a world whose devices may fail. `Err` says what was refused, and what
    /// was wrong with what was not: a read that succeeds must be right.
    pub(crate) fn play_in(world: &SimWorld, rng: &SeededRng, shape: &Shape) -> Result<(), Outcome> {
        let fs = mount(world.devices(), rng, OpenOptions::default()).map_err(Outcome::Refused)?;
        let mut player = Player::new(&fs, rng, shape);
        for step in 1..=shape.operations {
            world.mark(step << 1 | BEGUN);
            player.play(step).map_err(|outcome| outcome.at(step))?;
            world.mark(step << 1 | KEPT);
        }
        for (id, content) in &player.contents {
            match fs.getattr(*id).and_then(|_| read_all(&fs, *id)) {
                Ok(found) if found != *content => {
                    return Err(Outcome::Wrong(format!("inode {id} reads wrong")));
                }
                Ok(_) | Err(FsError::NotFound) => {}
                Err(error) => return Err(Outcome::Refused(format!("inode {id}: {error}"))),
            }
        }
        let closed = fs.sync().and_then(|()| Ok(fs.store().close()?));
        closed.map_err(|error| Outcome::Refused(format!("the end: {error}")))
    }

    /// What was done, line by line.
    pub(crate) fn story(&self) -> String {
        self.story.iter().enumerate().map(|(n, line)| format!("{n:4} {line}\n")).collect()
    }
}
