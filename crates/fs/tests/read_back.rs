//! Reading back what was written: a device that writes something else is found out before anything refers to
//! those bytes.

mod stage;

use aegisfs_base::{ManualClock, SeededRng};
use aegisfs_device::{Device, DeviceError, MemoryDevice};
use aegisfs_fs::{Fs, FsOptions};
use aegisfs_pool::{OpenOptions, Pool, ReadBack};
use aegisfs_store::{StoreOptions, open};
use stage::{World, create};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Changes a byte of every large write while it lies.
struct Liar {
    inner: Arc<MemoryDevice>,
    lies: AtomicBool,
}

impl Device for Liar {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut written = data.to_vec();
        if self.lies.load(Ordering::Acquire) && data.len() > 50_000 {
            written[40_000] ^= 4;
        }
        self.inner.write_at(offset, &written)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.inner.discard(offset, length)
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.inner.allocated_bytes()
    }

    fn describe(&self) -> String {
        "liar".into()
    }

    fn read_only(&self) -> bool {
        false
    }
}

fn mount(device: &Arc<Liar>, read_back: ReadBack) -> Fs {
    let devices: Vec<Arc<dyn Device>> = vec![Arc::clone(device) as Arc<dyn Device>];
    let (pool, _) = Pool::open(devices, OpenOptions::default()).unwrap();
    let options = StoreOptions { workers: 0, read_back, ..StoreOptions::default() };
    let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &SeededRng::new(6)).unwrap();
    Fs::mount(Arc::new(store), FsOptions { background: false, ..FsOptions::default() }).unwrap()
}

#[test]
fn a_write_that_arrived_wrong_is_refused_and_never_published() {
    let world = World::sized(64 << 20, 1 << 20);
    let device = Arc::new(Liar { inner: Arc::clone(&world.devices[0]), lies: AtomicBool::new(false) });
    let mut data = vec![0; 200_000];
    aegisfs_base::Rng::fill(&world.rng, &mut data);
    {
        let fs = mount(&device, ReadBack::Full);
        let (id, handle) = create(&fs, b"file");
        fs.write(handle, 0, &data[..100_000]).unwrap();
        fs.fsync(handle).unwrap();
        device.lies.store(true, Ordering::Release);
        fs.write(handle, 100_000, &data[100_000..]).unwrap();
        let error = fs.fsync(handle).unwrap_err();
        assert!(error.to_string().contains("read back"), "{error}");
        assert!(fs.write(handle, 0, b"more").is_err(), "nothing is written after that");
        // The bytes are still in memory, and what was stored before is as it was.
        let mut found = vec![0; 200_000];
        assert_eq!(fs.read(handle, 0, &mut found).unwrap(), 200_000);
        assert!(found == data);
        assert_eq!(fs.getattr(id).unwrap().inode.size, 200_000);
    }
    device.lies.store(false, Ordering::Release);
    {
        let fs = world.mount();
        assert_eq!(fs.peek(aegisfs_fs::ROOT, b"file").unwrap().inode.size, 100_000);
        assert_eq!(fs.store().check(true).unwrap().problems, []);
    }
    // Without reading back it is found out when it is read.
    let fs = mount(&device, ReadBack::Off);
    device.lies.store(true, Ordering::Release);
    let handle = fs.open(fs.peek(aegisfs_fs::ROOT, b"file").unwrap().id).unwrap();
    fs.write(handle, 0, &data[100_000..]).unwrap();
    fs.fsync(handle).unwrap();
    let mut out = vec![0; 100_000];
    assert!(fs.read(handle, 0, &mut out).is_err());
}
