//! The verbs on a filesystem in memory, one story each.

use aegisfs_base::{InodeId, ManualClock, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{
    Changes, CopyEnd, Fs, FsError, FsOptions, Kind, MakeOptions, ROOT, RenameFlags, Whence, XattrMode,
};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{StoreOptions, open};
use std::ops::ControlFlow;
use std::sync::Arc;

struct World {
    device: Arc<MemoryDevice>,
    rng: SeededRng,
}

impl World {
    fn new() -> Self {
        let world = Self { device: Arc::new(MemoryDevice::new("disk", 256 << 20)), rng: SeededRng::new(9) };
        let create = CreateOptions { compression: (2, 1), ..CreateOptions::default() };
        let clock = ManualClock::default();
        let pool = Pool::create(world.devices(), &create, &clock, &world.rng).unwrap();
        Fs::format(&pool, &clock).unwrap();
        world
    }

    fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![self.device.clone()]
    }

    fn mount(&self) -> Fs {
        let (pool, _) = Pool::open(self.devices(), OpenOptions::default()).unwrap();
        let options = StoreOptions {
            chunk_cache_bytes: 4 << 20,
            metadata_cache_bytes: 1 << 20,
            workers: 0,
            ..StoreOptions::default()
        };
        let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &self.rng).unwrap();
        Fs::mount(Arc::new(store), FsOptions { background: false, ..FsOptions::default() }).unwrap()
    }
}

fn assert_sound(fs: &Fs) {
    fs.sync().unwrap();
    assert_eq!(fs.check_tree().unwrap().problems, []);
    assert_eq!(fs.store().check(true).unwrap().problems, []);
}

fn write_file(fs: &Fs, parent: InodeId, name: &[u8], data: &[u8]) -> InodeId {
    let (made, handle) =
        fs.create(parent, name, &MakeOptions { permissions: 0o644, ..MakeOptions::default() }).unwrap();
    for (n, piece) in data.chunks(100_000).enumerate() {
        fs.write(handle, n as u64 * 100_000, piece).unwrap();
    }
    fs.release(handle).unwrap();
    made.id
}

fn read_file(fs: &Fs, id: InodeId) -> Vec<u8> {
    let handle = fs.open(id).unwrap();
    let mut data = vec![0; fs.getattr(id).unwrap().inode.size as usize + 10];
    let count = fs.read(handle, 0, &mut data).unwrap();
    fs.release(handle).unwrap();
    data.truncate(count);
    data
}

fn names(fs: &Fs, id: InodeId) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    fs.readdir(id, 0, &mut |entry| {
        names.push(entry.name);
        ControlFlow::Continue(())
    })
    .unwrap();
    names.sort();
    names
}

fn text(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 7 % 251) as u8).collect()
}

#[test]
fn a_tree_survives_a_crash_after_sync_and_a_remount() {
    let world = World::new();
    let big = text(3_000_000);
    {
        let fs = world.mount();
        let dir = fs
            .make(ROOT, b"dir", Kind::Directory, &MakeOptions { permissions: 0o755, ..Default::default() })
            .unwrap();
        write_file(&fs, dir.id, b"big", &big);
        write_file(&fs, dir.id, b"tiny", b"hello");
        fs.make(ROOT, b"link", Kind::Symlink(b"dir/big"), &MakeOptions::default()).unwrap();
        fs.setxattr(dir.id, b"user.colour", b"blue", XattrMode::Create).unwrap();
        fs.sync().unwrap();
        write_file(&fs, ROOT, b"lost", b"never synced");
    }
    let fs = world.mount();
    assert_eq!(names(&fs, ROOT), [&b"."[..], b"..", b"dir", b"link"]);
    let dir = fs.peek(ROOT, b"dir").unwrap();
    assert_eq!(dir.inode.nlink, 2);
    assert_eq!(read_file(&fs, fs.peek(dir.id, b"big").unwrap().id), big);
    assert_eq!(read_file(&fs, fs.peek(dir.id, b"tiny").unwrap().id), b"hello");
    assert_eq!(fs.readlink(fs.peek(ROOT, b"link").unwrap().id).unwrap(), b"dir/big");
    assert_eq!(fs.getxattr(dir.id, b"user.colour").unwrap(), b"blue");
    assert_sound(&fs);
}

#[test]
fn small_synced_writes_live_in_the_log_and_come_back() {
    let world = World::new();
    {
        let fs = world.mount();
        let id = write_file(&fs, ROOT, b"wal", &text(100_000));
        let handle = fs.open(id).unwrap();
        fs.fsync(handle).unwrap();
        for n in 0..50u64 {
            fs.write(handle, n * 1000, &[n as u8; 700]).unwrap();
            fs.fsync(handle).unwrap();
        }
        fs.write(handle, 99_000, &[99; 2000]).unwrap();
        fs.fsync(handle).unwrap();
    }
    let mut expected = text(100_000);
    for n in 0..50 {
        expected[n * 1000..n * 1000 + 700].fill(n as u8);
    }
    expected.truncate(99_000);
    expected.extend_from_slice(&[99; 2000]);
    for _ in 0..2 {
        let fs = world.mount();
        let id = fs.peek(ROOT, b"wal").unwrap().id;
        assert_eq!(read_file(&fs, id), expected);
        assert_sound(&fs);
        assert_eq!(read_file(&fs, id), expected);
    }
}

#[test]
fn rename_replaces_and_exchanges() {
    let world = World::new();
    let fs = world.mount();
    let make = |name: &[u8]| fs.make(ROOT, name, Kind::Directory, &MakeOptions::default()).unwrap().id;
    let (a, b) = (make(b"a"), make(b"b"));
    write_file(&fs, a, b"f", b"from a");
    write_file(&fs, b, b"f", b"from b");
    fs.rename(a, b"f", b, b"f", RenameFlags::default()).unwrap();
    assert_eq!(read_file(&fs, fs.peek(b, b"f").unwrap().id), b"from a");
    assert!(matches!(fs.peek(a, b"f"), Err(FsError::NotFound)));
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    fs.rename(ROOT, b"a", b, b"f", exchange).unwrap();
    assert_eq!(fs.peek(b, b"f").unwrap().id, a);
    assert_eq!(fs.peek(a, b"..").unwrap().id, b);
    assert_eq!((fs.getattr(ROOT).unwrap().inode.nlink, fs.getattr(b).unwrap().inode.nlink), (3, 3));
    let refused = [
        fs.rename(ROOT, b"b", a, b"loop", RenameFlags::default()),
        fs.rename(ROOT, b"a", ROOT, b"b", RenameFlags { no_replace: true, ..RenameFlags::default() }),
        fs.rename(ROOT, b"b", ROOT, b"a", RenameFlags::default()),
        fs.rename(ROOT, b"none", ROOT, b"x", RenameFlags::default()),
    ];
    let refused: Vec<_> = refused.into_iter().map(|r| r.unwrap_err().errno().0).collect();
    assert_eq!(refused, [22, 17, 20, 2]);
    assert_sound(&fs);
}

/// What an overlay wants of its upper layer: the name moves, and something that hides the lower file stays.
#[test]
fn rename_leaves_a_whiteout() {
    let world = World::new();
    let fs = world.mount();
    let id = write_file(&fs, ROOT, b"lower", b"bytes");
    fs.setattr(ROOT, &Changes { permissions: Some(0o2_755), gid: Some(7), ..Changes::default() }).unwrap();
    let before = fs.getattr(ROOT).unwrap().inode;
    let whiteout = Some(aegisfs_fs::Caller { uid: 5, gid: 6 });
    let leaving = RenameFlags { whiteout, ..RenameFlags::default() };
    fs.rename(ROOT, b"lower", ROOT, b"upper", leaving).unwrap();
    assert_eq!(fs.peek(ROOT, b"upper").unwrap().id, id);
    let left = fs.peek(ROOT, b"lower").unwrap();
    assert_eq!((left.inode.mode, left.inode.rdev, left.inode.nlink), (0o020_000, 0, 1));
    assert_eq!((left.inode.uid, left.inode.gid), (5, 7));
    let after = fs.getattr(ROOT).unwrap().inode;
    assert_eq!((after.size, after.nlink), (before.size + 1, before.nlink));
    // Over what is there already; and two names of one file stay as they are.
    fs.rename(ROOT, b"upper", ROOT, b"lower", leaving).unwrap();
    assert_eq!(fs.peek(ROOT, b"lower").unwrap().id, id);
    assert_eq!(fs.peek(ROOT, b"upper").unwrap().inode.mode, 0o020_000);
    fs.link(id, ROOT, b"twin").unwrap();
    fs.rename(ROOT, b"twin", ROOT, b"lower", leaving).unwrap();
    assert_eq!(fs.peek(ROOT, b"twin").unwrap().id, id);
    let both = RenameFlags { exchange: true, ..leaving };
    assert!(matches!(fs.rename(ROOT, b"twin", ROOT, b"upper", both), Err(FsError::Invalid)));
    assert_sound(&fs);
}

#[test]
fn an_open_file_outlives_its_name() {
    let world = World::new();
    let fs = world.mount();
    let id = write_file(&fs, ROOT, b"f", &text(500_000));
    let handle = fs.open(id).unwrap();
    fs.unlink(ROOT, b"f").unwrap();
    fs.write(handle, 500_000, b"more").unwrap();
    fs.sync().unwrap();
    let mut end = [0; 4];
    fs.read(handle, 500_000, &mut end).unwrap();
    assert_eq!(&end, b"more");
    fs.forget(id, 1);
    fs.release(handle).unwrap();
    assert!(matches!(fs.getattr(id), Err(FsError::NotFound)));
    assert_eq!(fs.store().space_report().unwrap().chunks, 0);
    assert_sound(&fs);
    let made = fs.tmpfile(ROOT, &MakeOptions::default()).unwrap();
    fs.link(made.id, ROOT, b"named").unwrap();
    assert_eq!(fs.peek(ROOT, b"named").unwrap().inode.nlink, 1);
    assert_sound(&fs);
}

#[test]
fn holes_are_holes() {
    let world = World::new();
    let fs = world.mount();
    let id = write_file(&fs, ROOT, b"sparse", &text(200_000));
    let handle = fs.open(id).unwrap();
    fs.write(handle, 1 << 40, b"far").unwrap();
    for synced in [false, true] {
        assert_eq!(fs.lseek(handle, 0, Whence::Hole).unwrap(), 200_000);
        assert_eq!(fs.lseek(handle, 200_001, Whence::Data).unwrap(), 1 << 40);
        assert_eq!(fs.lseek(handle, 1 << 40, Whence::Hole).unwrap(), (1 << 40) + 3);
        assert!(matches!(fs.lseek(handle, (1 << 40) + 3, Whence::Data), Err(FsError::NoData)));
        if !synced {
            fs.sync().unwrap();
        }
    }
    fs.fallocate(handle, 50_000, 100_000, 3).unwrap();
    let mut expected = text(200_000);
    expected[50_000..150_000].fill(0);
    let mut data = vec![1; 200_000];
    fs.read(handle, 0, &mut data).unwrap();
    assert!(data == expected);
    assert_eq!(fs.lseek(handle, 0, Whence::Hole).unwrap(), 50_000);
    fs.setattr(id, &Changes { size: Some(60_000), ..Changes::default() }).unwrap();
    fs.setattr(id, &Changes { size: Some(200_000), ..Changes::default() }).unwrap();
    expected[60_000..].fill(0);
    fs.read(handle, 0, &mut data).unwrap();
    assert!(data == expected);
    assert_sound(&fs);
}

#[test]
fn a_copied_range_shares_its_chunks() {
    let world = World::new();
    let fs = world.mount();
    let mut data = vec![0; 5_000_000];
    aegisfs_base::Rng::fill(&world.rng, &mut data);
    let from = write_file(&fs, ROOT, b"from", &data);
    let to = write_file(&fs, ROOT, b"to", b"x");
    let (source, target) = (fs.open(from).unwrap(), fs.open(to).unwrap());
    let before = {
        fs.sync().unwrap();
        fs.store().space_report().unwrap().unique_bytes
    };
    let copied = fs
        .copy_range(
            CopyEnd { handle: source, offset: 1000 },
            CopyEnd { handle: target, offset: 500_000 },
            1 << 40,
        )
        .unwrap();
    assert_eq!(copied, data.len() as u64 - 1000);
    let found = read_file(&fs, to);
    assert!(found[500_000..] == data[1000..] && found[1..500_000].iter().all(|b| *b == 0));
    fs.sync().unwrap();
    assert!(fs.store().space_report().unwrap().unique_bytes <= before + 4096);
    assert_sound(&fs);
}

#[test]
fn a_large_truncation_is_done_in_steps() {
    let world = World::new();
    let fs = world.mount();
    let mut data = vec![0; 30 << 20];
    aegisfs_base::Rng::fill(&world.rng, &mut data);
    let id = write_file(&fs, ROOT, b"f", &data);
    fs.sync().unwrap();
    fs.setattr(id, &Changes { size: Some(100), ..Changes::default() }).unwrap();
    fs.setattr(id, &Changes { size: Some(1 << 20), ..Changes::default() }).unwrap();
    let found = read_file(&fs, id);
    assert!(found[..100] == data[..100] && found[100..].iter().all(|b| *b == 0));
    assert_eq!(fs.getattr(id).unwrap().allocated, 100);
    assert_sound(&fs);
}

/// A server for NFS finds a file again by its number, under the name of itself; files answered that they are no
/// directories.
#[test]
fn every_inode_is_found_again_by_its_number() {
    let world = World::new();
    let (dir, file) = {
        let fs = world.mount();
        let dir = fs.make(ROOT, b"dir", Kind::Directory, &MakeOptions::default()).unwrap().id;
        let file = write_file(&fs, dir, b"file", b"content");
        fs.sync().unwrap();
        (dir, file)
    };
    let fs = world.mount();
    for id in [file, dir, ROOT] {
        assert_eq!(fs.lookup(id, b".").unwrap().id, id);
        fs.forget(id, 1);
    }
    assert_eq!(fs.lookup(dir, b"..").unwrap().id, ROOT);
    assert_eq!(fs.lookup(ROOT, b"..").unwrap().id, ROOT);
    assert!(matches!(fs.lookup(file, b".."), Err(FsError::NotDirectory)));
    fs.unlink(dir, b"file").unwrap();
    fs.forget(ROOT, 2);
    assert!(matches!(fs.lookup(file, b"."), Err(FsError::NotFound)));
}
