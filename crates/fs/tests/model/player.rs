//! Plays on both sides.

use crate::judge;
use crate::tree::{Answer, Content, Inode, Touch, Tree};
use aegisfs_base::{Clock, InodeId, ManualClock, Rng, SeededRng, Timestamp};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{Errno, Fs, FsError, FsOptions, HandleId, ROOT};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{StoreOptions, open};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// Names to play with.
const NAMES: u64 = 8;
/// Handles open at a time.
const HANDLES_MAX: usize = 5;

/// A filesystem, its model, and what was done to both.
pub(crate) struct Player {
    device: Arc<MemoryDevice>,
    clock: Arc<ManualClock>,
    pub(crate) rng: SeededRng,
    fs: Option<Fs>,
    pub(crate) tree: Tree,
    pub(crate) handles: Vec<(HandleId, InodeId)>,
    /// Bytes that come up again and again, so that dedup finds something.
    pub(crate) stock: Vec<u8>,
    story: String,
}

impl Player {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = SeededRng::new(seed);
        let device = Arc::new(MemoryDevice::new("disk", 48 << 20));
        let create = CreateOptions {
            compression: (2, 1),
            slot_bytes: Some(256 << 10),
            log_pieces: Some(4),
            ..CreateOptions::default()
        };
        let clock = Arc::new(ManualClock::default());
        let devices: Vec<Arc<dyn Device>> = vec![device.clone()];
        let pool = Pool::create(devices, &create, &*clock, &rng).expect("it can be formatted");
        Fs::format(&pool, &*clock).expect("it can be formatted");
        let mut stock = vec![0; 200 << 10];
        rng.fill(&mut stock);
        let tree = Tree { inodes: BTreeMap::new() };
        let story = String::new();
        let mut player = Self { device, clock, rng, fs: None, tree, handles: Vec::new(), stock, story };
        player.mount();
        let found = player.fs().getattr(ROOT).expect("there is a root").inode;
        let root = Inode {
            mode: found.mode,
            owner: (0, 0),
            nlink: 2,
            flags: 0,
            atime: found.atime,
            mtime: found.mtime,
            ctime: found.ctime,
            xattrs: BTreeMap::new(),
            content: Content::Directory { entries: BTreeMap::new(), parent: ROOT },
            opens: 0,
            lookups: 1,
        };
        player.tree.inodes.insert(ROOT, root);
        player
    }

    pub(crate) fn fs(&self) -> &Fs {
        self.fs.as_ref().expect("it is mounted")
    }

    fn mount(&mut self) {
        let devices: Vec<Arc<dyn Device>> = vec![self.device.clone()];
        let (pool, _) = Pool::open(devices, OpenOptions::default()).expect("the pool opens");
        let options = StoreOptions {
            chunk_cache_bytes: 1 << 20,
            metadata_cache_bytes: 256 << 10,
            workers: 0,
            ..StoreOptions::default()
        };
        let clock: Arc<ManualClock> = Arc::clone(&self.clock);
        let (store, recovered) = open(pool, &options, clock, &self.rng).expect("the store opens");
        assert_eq!(recovered.read_only, None);
        let options = FsOptions {
            background: false,
            dirty_bytes_max: 600 << 10,
            stream_bytes: 260 << 10,
            ..FsOptions::default()
        };
        self.fs = Some(Fs::mount(Arc::new(store), options).expect("it mounts"));
    }

    pub(crate) fn story(&self) -> &str {
        &self.story
    }

    pub(crate) fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.story, "{line}").expect("memory takes it");
    }

    pub(crate) fn run(&mut self, steps: u64) {
        for step in 1..=steps {
            write!(self.story, "{step:4} ").expect("memory takes it");
            self.step();
            if step.is_multiple_of(30) {
                judge::compare_all(self.fs(), &self.tree);
            }
        }
        self.remount(true);
        judge::compare_all(self.fs(), &self.tree);
        judge::assert_sound(self.fs());
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..10 => self.make(),
            10..13 => self.remove(),
            13..20 => self.rename(),
            20..23 => self.link(),
            23..25 => self.tmpfile(),
            25..27 => self.attributes(),
            27 => self.flags(),
            28..32 => self.xattr(),
            32..36 => self.open(),
            36..39 => self.close(),
            39..41 => self.forget(),
            41..60 => self.write(),
            60..67 => self.read(),
            67..73 => self.truncate(),
            73..78 => self.allocate(),
            78..82 => self.seek(),
            82..86 => self.copy(),
            86..93 => self.fsync(),
            93..95 => self.sync(),
            95..97 => self.checkpoint(),
            _ => {
                let clean = self.rng.below(2) == 0;
                self.remount(clean);
            }
        }
    }

    fn fsync(&mut self) {
        let id = self.any_inode();
        self.tell(format_args!("fsync {id}"));
        self.agree(self.fs().fsync_inode(id), self.tree.get(id).map(drop));
    }

    fn sync(&mut self) {
        self.tell(format_args!("sync"));
        self.fs().sync().expect("it syncs");
        assert_eq!(self.fs().dirty_bytes(), 0, "bytes wait after a sync");
    }

    fn checkpoint(&mut self) {
        self.tell(format_args!("checkpoint"));
        self.fs().store().checkpoint().expect("a checkpoint");
    }

    /// Another process takes over: handles and lookups are gone, and with them what had no name.
    fn remount(&mut self, clean: bool) {
        self.tell(format_args!("remount, {}", if clean { "closed" } else { "not closed" }));
        let fs = self.fs.take().expect("it is mounted");
        fs.sync().expect("it syncs");
        if clean {
            fs.store().close().expect("it closes");
        }
        drop(fs);
        self.handles.clear();
        self.mount();
        self.fs().store().reap_all().expect("orphans can be reaped");
        for inode in self.tree.inodes.values_mut() {
            (inode.opens, inode.lookups) = (0, 0);
        }
        self.tree.inodes.retain(|id, inode| *id == ROOT || inode.nlink > 0);
    }

    /// Both sides answered the same; says whether it was success.
    pub(crate) fn agree<T, U>(&self, real: Result<T, FsError>, model: Answer<U>) -> Option<(T, U)> {
        let real = real.map_err(|error| (error.errno(), error.to_string()));
        match (real, model) {
            (Ok(real), Ok(model)) => Some((real, model)),
            (Err((real, _)), Err(model)) if real == model => None,
            (Ok(_), Err(model)) => panic!("the model refuses with {model:?}, the filesystem does it"),
            (Err((real, text)), Ok(_)) => panic!("the filesystem refuses with {real:?} ({text})"),
            (Err((real, text)), Err(model)) => panic!("the model says {model:?}, not {real:?} ({text})"),
        }
    }

    /// A verb with its touches: the answers are compared, then attributes and times.
    pub(crate) fn settle(&mut self, real: Result<(), FsError>, model: Answer<Vec<Touch>>, before: Timestamp) {
        if let Some(((), touched)) = self.agree(real, model) {
            self.compare(&touched, before);
        }
    }

    pub(crate) fn compare(&mut self, touched: &[Touch], before: Timestamp) {
        for touch in touched {
            if self.tree.bury(touch.id) {
                let gone = self.fs().getattr(touch.id).map_err(|e| e.errno());
                assert_eq!(gone.err(), Some(Errno::ENOENT), "inode {} is gone", touch.id);
            }
        }
        let fs = self.fs.as_ref().expect("it is mounted");
        judge::compare_touched(fs, &mut self.tree, touched, before);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        match self.rng.below(80) {
            0 => vec![b'x'; 256],
            1 => b"a/b".to_vec(),
            2 => Vec::new(),
            3 => vec![b'y'; 255],
            _ => format!("n{}", self.rng.below(NAMES)).into_bytes(),
        }
    }

    /// Some inode; once in a while one that does not exist.
    pub(crate) fn any_inode(&self) -> InodeId {
        if self.rng.below(60) == 0 {
            return InodeId(1 << 39);
        }
        let which = self.rng.below(self.tree.inodes.len() as u64) as usize;
        *self.tree.inodes.keys().nth(which).expect("there is the root")
    }

    /// A directory, mostly.
    pub(crate) fn directory(&self) -> InodeId {
        match self.rng.below(8) {
            0..3 => ROOT,
            3 if self.rng.below(4) == 0 => self.any_inode(),
            _ => {
                let all: Vec<_> = self.tree.inodes.iter().filter(|(_, i)| i.is_directory()).collect();
                *all[self.rng.below(all.len() as u64) as usize].0
            }
        }
    }

    /// A regular file that exists, if there is any.
    pub(crate) fn file(&self) -> Option<InodeId> {
        let all: Vec<_> = self.tree.inodes.iter().filter(|(_, i)| i.file().is_some()).collect();
        (!all.is_empty()).then(|| *all[self.rng.below(all.len() as u64) as usize].0)
    }

    fn open(&mut self) {
        if self.handles.len() == HANDLES_MAX {
            return self.close();
        }
        let id = self.any_inode();
        self.tell(format_args!("open {id}"));
        if let Some((handle, _)) = self.agree(self.fs().open(id), self.tree.get(id).map(drop)) {
            self.tree.get_mut(id).opens += 1;
            self.handles.push((handle, id));
        }
    }

    fn close(&mut self) {
        if self.handles.is_empty() {
            return self.tell(format_args!("nothing to close"));
        }
        let which = self.rng.below(self.handles.len() as u64) as usize;
        let (handle, id) = self.handles.swap_remove(which);
        self.tell(format_args!("close {id}"));
        self.fs().release(handle).expect("it is open");
        assert_eq!(self.fs().release(handle).map_err(|e| e.errno()), Err(Errno::EBADF));
        self.tree.get_mut(id).opens -= 1;
        let before = self.now();
        self.compare(&[Touch::nothing(id)], before);
    }

    fn forget(&mut self) {
        let id = self.any_inode();
        let Some(inode) = self.tree.inodes.get_mut(&id).filter(|i| i.lookups > 0 && id != ROOT) else {
            return self.tell(format_args!("nothing to forget"));
        };
        let count = 1 + self.rng.below(inode.lookups);
        inode.lookups -= count;
        self.tell(format_args!("forget {id} {count} times"));
        self.fs().forget(id, count);
        let before = self.now();
        self.compare(&[Touch::nothing(id)], before);
    }
}
