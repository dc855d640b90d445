//! A small filesystem in memory, for tests at its edges.

use aegisfs_base::{InodeId, ManualClock, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{Fs, FsOptions, HandleId, MakeOptions, ROOT};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool, Redundancy};
use aegisfs_store::{StoreOptions, open};
use std::sync::Arc;

pub(crate) struct World {
    pub(crate) devices: Vec<Arc<MemoryDevice>>,
    pub(crate) rng: SeededRng,
}

impl World {
    pub(crate) fn sized(bytes: u64, slot_bytes: u64) -> Self {
        Self::of(&[bytes], slot_bytes, None)
    }

    /// Several devices; without a redundancy they have the one that is theirs by default.
    pub(crate) fn of(devices: &[u64], slot_bytes: u64, redundancy: Option<Redundancy>) -> Self {
        let device = |(n, bytes): (usize, &u64)| Arc::new(MemoryDevice::new(format!("disk {n}"), *bytes));
        let devices = devices.iter().enumerate().map(device).collect();
        let world = Self { devices, rng: SeededRng::new(4) };
        let clock = ManualClock::default();
        let create = CreateOptions {
            redundancy,
            compression: (2, 1),
            slot_bytes: Some(slot_bytes),
            log_pieces: Some(8),
            ..CreateOptions::default()
        };
        let pool = Pool::create(world.devices(), &create, &clock, &world.rng).unwrap();
        Fs::format(&pool, &clock).unwrap();
        world
    }

    fn devices(&self) -> Vec<Arc<dyn Device>> {
        self.devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
    }

    pub(crate) fn mount(&self) -> Fs {
        self.mount_with(FsOptions { background: false, ..FsOptions::default() })
    }

    pub(crate) fn mount_with(&self, behaviour: FsOptions) -> Fs {
        let (pool, _) = Pool::open(self.devices(), OpenOptions::default()).unwrap();
        let options = StoreOptions { workers: 0, ..StoreOptions::default() };
        let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &self.rng).unwrap();
        Fs::mount(Arc::new(store), behaviour).unwrap()
    }
}

pub(crate) fn create(fs: &Fs, name: &[u8]) -> (InodeId, HandleId) {
    let (made, handle) = fs.create(ROOT, name, &MakeOptions::default()).unwrap();
    (made.id, handle)
}
