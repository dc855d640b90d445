//! Files and directories that are stored in another way than the pool stores by itself.

use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::value::Segment;
use aegisfs_fs::{Changes, CopyEnd, Fs, FsOptions, Kind, MakeOptions, PolicyOf, ROOT, RenameFlags};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool, Redundancy};
use aegisfs_store::{StoreOptions, open};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const SINGLE: Redundancy = Redundancy { shards_data: 1, shards_parity: 0 };
const TWICE: Redundancy = Redundancy { shards_data: 1, shards_parity: 1 };
const THRICE: Redundancy = Redundancy { shards_data: 1, shards_parity: 2 };
const CODED: Redundancy = Redundancy { shards_data: 4, shards_parity: 2 };

struct World {
    devices: Vec<Arc<MemoryDevice>>,
    rng: SeededRng,
}

impl World {
    /// Devices of so many MiB each; from four on any two may be lost.
    fn new(sizes: &[u64]) -> Self {
        let device = |(n, size): (usize, &u64)| Arc::new(MemoryDevice::new(format!("disk{n}"), size << 20));
        let world = Self { devices: sizes.iter().enumerate().map(device).collect(), rng: SeededRng::new(4) };
        let create = CreateOptions { slot_bytes: Some(1 << 20), ..CreateOptions::default() };
        let clock = ManualClock::default();
        let pool = Pool::create(world.all(), &create, &clock, &world.rng).unwrap();
        Fs::format(&pool, &clock).unwrap();
        world
    }

    fn all(&self) -> Vec<Arc<dyn Device>> {
        self.devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
    }

    fn mount(&self) -> Fs {
        self.mount_some(self.all())
    }

    fn mount_some(&self, devices: Vec<Arc<dyn Device>>) -> Fs {
        let (pool, _) =
            Pool::open(devices, OpenOptions { degraded: true, ..OpenOptions::default() }).unwrap();
        let options = StoreOptions { workers: 0, ..StoreOptions::default() };
        let (store, _) = open(pool, &options, Arc::new(ManualClock::default()), &self.rng).unwrap();
        Fs::mount(Arc::new(store), FsOptions { background: false, ..FsOptions::default() }).unwrap()
    }

    fn noise(&self, bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        self.rng.fill(&mut noise);
        noise
    }
}

fn make(fs: &Fs, parent: InodeId, name: &[u8], kind: Kind<'_>) -> InodeId {
    fs.make(parent, name, kind, &MakeOptions::default()).unwrap().id
}

fn write(fs: &Fs, parent: InodeId, name: &[u8], data: &[u8]) -> InodeId {
    let id = make(fs, parent, name, Kind::File);
    let handle = fs.open(id).unwrap();
    for (n, part) in data.chunks(1 << 20).enumerate() {
        fs.write(handle, (n << 20) as u64, part).unwrap();
    }
    fs.release(handle).unwrap();
    fs.fsync_inode(id).unwrap();
    fs.sync().unwrap();
    id
}

fn read(fs: &Fs, id: InodeId) -> Result<Vec<u8>, aegisfs_fs::FsError> {
    let handle = fs.open(id)?;
    let mut data = vec![0; fs.getattr(id)?.inode.size as usize];
    let count = fs.read(handle, 0, &mut data);
    fs.release(handle)?;
    assert_eq!(count?, data.len());
    Ok(data)
}

/// Living bytes by the geometry of their segments: whether it is wide, and how much parity it has.
fn living(fs: &Fs) -> BTreeMap<(bool, u8), u64> {
    let mut found = BTreeMap::new();
    let mut note = |_, segment: Segment| {
        if segment.live_bytes > 0 {
            *found.entry((segment.shards.0 > 1, segment.shards.1)).or_default() += segment.live_bytes;
        }
        ControlFlow::Continue(())
    };
    fs.store().each_segment(&mut note).unwrap();
    found
}

fn follow(fs: &Fs) {
    fs.follow_policies(&|| true).unwrap();
    let followed = fs.followed().unwrap();
    assert_eq!(followed.waiting, []);
    assert_eq!(fs.check_tree().unwrap().misplaced_bytes, 0);
}

/// Nothing contradicts anything, and every cell is what it should be.
fn check(fs: &Fs) {
    assert_eq!(fs.check_tree().unwrap().problems, []);
    assert_eq!(fs.store().check(true).unwrap().problems, []);
}

fn own(fs: &Fs, id: InodeId) -> PolicyOf {
    fs.policy(id).unwrap()
}

#[test]
fn what_is_made_in_a_directory_is_stored_as_the_directory_says() {
    let world = World::new(&[40; 6]);
    let fs = world.mount();
    let plain = make(&fs, ROOT, b"plain", Kind::Directory);
    let thrice = make(&fs, ROOT, b"thrice", Kind::Directory);
    fs.set_policy(thrice, Some(THRICE), ROOT).unwrap();
    let below = make(&fs, thrice, b"below", Kind::Directory);
    let data = world.noise(3 << 20);
    let first = write(&fs, below, b"first", &data);
    assert_eq!(own(&fs, below), PolicyOf { redundancy: THRICE, own: false });
    assert_eq!(own(&fs, thrice), PolicyOf { redundancy: THRICE, own: true });
    assert_eq!(own(&fs, plain), PolicyOf { redundancy: CODED, own: false });
    let found = living(&fs);
    assert!(found[&(false, 2)] >= 3 << 20 && !found.contains_key(&(true, 2)), "{found:?}");
    // Equal bytes are stored for each policy, and once for each.
    let second = write(&fs, plain, b"second", &data);
    let third = write(&fs, plain, b"third", &data);
    let found = living(&fs);
    assert!(found[&(true, 2)] >= 3 << 20 && found.values().sum::<u64>() < 7 << 20, "{found:?}");
    for id in [first, second, third] {
        assert!(read(&fs, id).unwrap() == data);
    }
    check(&fs);
    fs.store().close().unwrap();
    drop(fs);
    let fs = world.mount();
    assert_eq!(own(&fs, first), PolicyOf { redundancy: THRICE, own: false });
    // The index knows after opening which chunk is whose.
    let before = living(&fs);
    write(&fs, below, b"fourth", &data);
    write(&fs, plain, b"fifth", &data);
    assert_eq!(living(&fs), before);
    check(&fs);
}

#[test]
fn what_is_there_already_follows() {
    let world = World::new(&[40; 6]);
    let fs = world.mount();
    let top = make(&fs, ROOT, b"top", Kind::Directory);
    let deep = make(&fs, top, b"deep", Kind::Directory);
    let apart = make(&fs, top, b"apart", Kind::Directory);
    let contents: Vec<Vec<u8>> = (0..4).map(|n| world.noise(300_000 * (n + 1))).collect();
    let files = [
        write(&fs, top, b"one", &contents[0]),
        write(&fs, deep, b"two", &contents[1]),
        write(&fs, apart, b"three", &contents[2]),
        write(&fs, ROOT, b"four", &contents[3]),
    ];
    // Shared with a file outside, which stays as it is.
    let copy = write(&fs, ROOT, b"copy", &contents[1]);
    make(&fs, top, b"link", Kind::Symlink(b"target"));
    fs.set_policy(apart, Some(SINGLE), top).unwrap();
    fs.set_policy(top, Some(TWICE), ROOT).unwrap();
    assert_eq!(fs.followed().unwrap().waiting.len(), 2);
    follow(&fs);
    let seen = fs.followed().unwrap();
    assert_eq!(seen.bytes, (contents[0].len() + contents[1].len() + contents[2].len()) as u64);
    for (id, redundancy, is_own) in [(top, TWICE, true), (deep, TWICE, false), (apart, SINGLE, true)] {
        assert_eq!(own(&fs, id), PolicyOf { redundancy, own: is_own });
    }
    let expected = [TWICE, TWICE, SINGLE, CODED];
    for ((id, content), redundancy) in files.iter().zip(&contents).zip(expected) {
        assert_eq!(own(&fs, *id).redundancy, redundancy);
        assert!(read(&fs, *id).unwrap() == *content);
    }
    assert!(read(&fs, copy).unwrap() == contents[1]);
    let found = living(&fs);
    assert!(found[&(false, 1)] >= 900_000 && found[&(false, 0)] >= 900_000, "{found:?}");
    // A second time there is nothing to do.
    fs.set_policy(top, Some(TWICE), ROOT).unwrap();
    follow(&fs);
    assert_eq!(fs.followed().unwrap().bytes, seen.bytes);
    // Without one of its own it is as the directory above again, and that as the pool.
    fs.set_policy(apart, None, top).unwrap();
    follow(&fs);
    assert_eq!(own(&fs, files[2]), PolicyOf { redundancy: TWICE, own: false });
    fs.set_policy(top, None, ROOT).unwrap();
    follow(&fs);
    assert_eq!(own(&fs, files[1]), PolicyOf { redundancy: CODED, own: false });
    assert!(living(&fs).keys().all(|(_, parity)| *parity == 2), "{:?}", living(&fs));
    check(&fs);
    // What died of the other policies comes back.
    fs.store().clean(u64::MAX).unwrap();
    check(&fs);
}

/// Wherever it ends, with or without the last life's last words.
#[test]
fn what_was_interrupted_goes_on() {
    let world = World::new(&[48; 4]);
    let mut fs = world.mount();
    let top = make(&fs, ROOT, b"top", Kind::Directory);
    let mut files = Vec::new();
    for n in 0..4u8 {
        let below = make(&fs, top, &[b'd', b'0' + n], Kind::Directory);
        for m in 0..3u8 {
            let content = world.noise(50_000 * (1 + usize::from(m)));
            files.push((write(&fs, below, &[b'f', b'0' + m], &content), content));
        }
    }
    let mut interrupted = 0;
    for (round, most) in (1..).zip([1, 2, 3, 5, 8, 13, 21, 34]) {
        let redundancy = if round % 2 == 0 { THRICE } else { TWICE };
        fs.set_policy(top, Some(redundancy), ROOT).unwrap();
        let calls = AtomicU32::new(0);
        fs.follow_policies(&|| calls.fetch_add(1, Ordering::Relaxed) < most).unwrap();
        interrupted += u32::from(!fs.followed().unwrap().waiting.is_empty());
        if round % 3 == 0 {
            fs.store().close().unwrap();
        } else {
            fs.store().sync().unwrap();
        }
        drop(fs);
        fs = world.mount();
        follow(&fs);
        for (id, content) in &files {
            assert_eq!(own(&fs, *id).redundancy, redundancy, "{most}");
            assert!(read(&fs, *id).unwrap() == *content, "{most}");
        }
        check(&fs);
        fs.store().clean(u64::MAX).unwrap();
    }
    assert!(interrupted > 4);
}

#[test]
fn who_has_a_name_elsewhere_by_then_follows_as_well() {
    let world = World::new(&[40; 4]);
    let fs = world.mount();
    let top = make(&fs, ROOT, b"top", Kind::Directory);
    let names: Vec<Vec<u8>> = (0..40u8).map(|n| vec![b'a' + n % 26, b'0' + n / 26]).collect();
    let made: Vec<InodeId> = names.iter().map(|name| make(&fs, top, name, Kind::Directory)).collect();
    let file = write(&fs, made[0], b"file", &world.noise(200_000));
    let outside = write(&fs, ROOT, b"outside", &world.noise(200_000));
    fs.set_policy(top, Some(TWICE), ROOT).unwrap();
    // Every time somebody looks whether to go on, the file is somewhere else.
    let (at, calls) = (AtomicU32::new(0), AtomicU32::new(0));
    let moved = || {
        if calls.fetch_add(1, Ordering::Relaxed) < 60 {
            let from = at.load(Ordering::Relaxed) as usize;
            let to = (from * 7 + 11) % made.len();
            let _ = fs.rename(made[from], b"file", made[to], b"file", RenameFlags::default());
            at.store(to as u32, Ordering::Relaxed);
        }
        true
    };
    fs.follow_policies(&moved).unwrap();
    follow(&fs);
    assert_eq!(own(&fs, file).redundancy, TWICE);
    assert_eq!(own(&fs, outside).redundancy, Redundancy { shards_data: 2, shards_parity: 2 });
    check(&fs);
}

#[test]
fn a_copy_is_stored_as_its_own_policy_says() {
    let world = World::new(&[40; 6]);
    let fs = world.mount();
    let data = world.noise(500_000);
    let source = write(&fs, ROOT, b"source", &data);
    let twice = make(&fs, ROOT, b"twice", Kind::Directory);
    fs.set_policy(twice, Some(TWICE), ROOT).unwrap();
    let target = make(&fs, twice, b"target", Kind::File);
    let (from, to) = (fs.open(source).unwrap(), fs.open(target).unwrap());
    let end = |handle| CopyEnd { handle, offset: 0 };
    assert_eq!(fs.copy_range(end(from), end(to), 500_000).unwrap(), 500_000);
    fs.release(from).unwrap();
    fs.release(to).unwrap();
    fs.sync().unwrap();
    assert!(read(&fs, target).unwrap() == data);
    assert_eq!(fs.check_tree().unwrap().misplaced_bytes, 0);
    assert!(living(&fs)[&(false, 1)] >= 500_000);
    // A file that moves keeps its policy until somebody says something.
    fs.rename(twice, b"target", ROOT, b"target", RenameFlags::default()).unwrap();
    assert_eq!(own(&fs, target), PolicyOf { redundancy: TWICE, own: false });
    fs.set_policy(target, None, ROOT).unwrap();
    follow(&fs);
    assert_eq!(own(&fs, target), PolicyOf { redundancy: CODED, own: false });
    check(&fs);
}

/// An inode's policy holds at once, that of its chunks comes later: a copy made in between does not share them.
#[test]
fn a_copy_made_before_the_source_follows_is_stored_as_its_own_policy_says() {
    let world = World::new(&[40; 6]);
    let fs = world.mount();
    let data = world.noise(500_000);
    let twice = make(&fs, ROOT, b"twice", Kind::Directory);
    fs.set_policy(twice, Some(TWICE), ROOT).unwrap();
    follow(&fs);
    let source = write(&fs, ROOT, b"source", &data);
    fs.set_policy(source, Some(TWICE), ROOT).unwrap();
    let target = make(&fs, twice, b"target", Kind::File);
    let (from, to) = (fs.open(source).unwrap(), fs.open(target).unwrap());
    let end = |handle| CopyEnd { handle, offset: 0 };
    assert_eq!(fs.copy_range(end(from), end(to), 500_000).unwrap(), 500_000);
    fs.release(from).unwrap();
    fs.release(to).unwrap();
    fs.sync().unwrap();
    follow(&fs);
    assert!(read(&fs, target).unwrap() == data && read(&fs, source).unwrap() == data);
    check(&fs);
}

/// What somebody says while the last word is being followed is not taken for done with it.
#[test]
fn a_word_that_comes_late_is_followed_as_well() {
    for late in 0..12 {
        let world = World::new(&[40; 4]);
        let fs = world.mount();
        let file = write(&fs, ROOT, b"file", &world.noise(300_000));
        fs.set_policy(file, Some(TWICE), ROOT).unwrap();
        let calls = AtomicU32::new(0);
        fs.follow_policies(&|| {
            if calls.fetch_add(1, Ordering::Relaxed) == late {
                fs.set_policy(file, Some(THRICE), ROOT).unwrap();
            }
            true
        })
        .unwrap();
        if calls.load(Ordering::Relaxed) > late {
            follow(&fs);
            assert_eq!(own(&fs, file).redundancy, THRICE);
            assert!(living(&fs).keys().all(|kind| *kind == (false, 2)), "{late}: {:?}", living(&fs));
        }
    }
}

/// Attributes that only memory has are stored with it, whether or not the policy is another.
#[test]
fn saying_the_same_again_loses_nothing() {
    let world = World::new(&[40; 4]);
    let fs = world.mount();
    let file = write(&fs, ROOT, b"file", b"few");
    let mode = Changes { permissions: Some(0o4755), ..Changes::default() };
    fs.setattr(file, &mode).unwrap();
    fs.set_policy(file, Some(TWICE), ROOT).unwrap();
    fs.sync().unwrap();
    assert!(fs.drop_privileges(file, 0).unwrap());
    fs.set_policy(file, Some(TWICE), ROOT).unwrap();
    drop(fs);
    let fs = world.mount();
    assert_eq!(fs.getattr(file).unwrap().inode.mode & 0o7777, 0o755);
    check(&fs);
}

#[test]
fn a_stronger_policy_outlives_more_and_a_weaker_one_less() {
    let world = World::new(&[40; 4]);
    let fs = world.mount();
    let data: Vec<Vec<u8>> = (0..3).map(|_| world.noise(2 << 20)).collect();
    let single = make(&fs, ROOT, b"single", Kind::Directory);
    fs.set_policy(single, Some(SINGLE), ROOT).unwrap();
    let twice = make(&fs, ROOT, b"twice", Kind::Directory);
    fs.set_policy(twice, Some(TWICE), ROOT).unwrap();
    let files = [
        write(&fs, single, b"f", &data[0]),
        write(&fs, twice, b"f", &data[1]),
        write(&fs, ROOT, b"f", &data[2]),
    ];
    fs.store().close().unwrap();
    drop(fs);
    // Whichever device is gone, of what is there once some is gone, and nothing else.
    let mut lost = 0;
    for gone in 0..4 {
        let mut left = world.all();
        left.remove(gone);
        let fs = world.mount_some(left);
        lost += u32::from(read(&fs, files[0]).is_err());
        assert!(read(&fs, files[1]).unwrap() == data[1] && read(&fs, files[2]).unwrap() == data[2], "{gone}");
        // What is written meanwhile has what its policy says.
        let name = format!("new{gone}").into_bytes();
        let new = write(&fs, twice, &name, &data[0]);
        assert!(read(&fs, new).unwrap() == data[0]);
        fs.store().close().unwrap();
        drop(fs);
        let fs = world.mount();
        fs.store().bring_back(&|| true).unwrap();
        assert!(read(&fs, files[0]).unwrap() == data[0], "{gone}");
        check(&fs);
        fs.store().close().unwrap();
    }
    assert!(lost > 0);
}

#[test]
fn what_cannot_be_had_is_refused() {
    let world = World::new(&[40; 3]);
    let fs = world.mount();
    let file = write(&fs, ROOT, b"file", b"few");
    let link = make(&fs, ROOT, b"link", Kind::Symlink(b"target"));
    let refused =
        |redundancy: Redundancy| fs.set_policy(file, Some(redundancy), ROOT).unwrap_err().to_string();
    let of = |shards_data, shards_parity| Redundancy { shards_data, shards_parity };
    assert!(refused(of(3, 1)).contains("4 devices"), "{}", refused(of(3, 1)));
    assert!(refused(of(1, 2)).contains("copies"), "{}", refused(of(1, 2)));
    assert!(refused(of(0, 1)).contains("no redundancy") && refused(of(17, 1)).contains("no redundancy"));
    assert!(fs.set_policy(link, Some(SINGLE), ROOT).is_err());
    assert!(fs.set_policy(InodeId(77), Some(SINGLE), ROOT).is_err());
    assert!(fs.policy(link).is_err());
    assert_eq!(own(&fs, file).redundancy, TWICE);
    fs.set_policy(file, Some(of(2, 1)), ROOT).unwrap();
    follow(&fs);
    assert_eq!(fs.followed().unwrap().bytes, 0, "it lies beside its inode");
}

/// What is promised to a policy has to be there when it is written, whatever others took meanwhile.
#[test]
fn a_full_pool_refuses_before_it_takes_something_in() {
    for sizes in [&[40u64, 40, 40, 40][..], &[100, 30, 30], &[64, 32, 32, 16, 16, 16]] {
        let world = World::new(sizes);
        let fs = world.mount();
        let policies = [SINGLE, TWICE, Redundancy { shards_data: 2, shards_parity: 1 }];
        let mut handles = Vec::new();
        for (n, redundancy) in policies.into_iter().enumerate() {
            let id = make(&fs, ROOT, format!("f{n}").as_bytes(), Kind::File);
            fs.set_policy(id, Some(redundancy), ROOT).unwrap();
            handles.push((id, fs.open(id).unwrap(), 0u64));
        }
        let mut full = [false; 3];
        while full.contains(&false) {
            for (n, (_, handle, end)) in
                handles.iter_mut().enumerate().filter(|(n, _)| !full[*n]).collect::<Vec<_>>()
            {
                match fs.write(*handle, *end, &world.noise(100_000)) {
                    Ok(count) => *end += count as u64,
                    Err(error) => {
                        assert_eq!(error.errno(), aegisfs_fs::Errno::ENOSPC, "{error}");
                        full[n] = true;
                    }
                }
            }
        }
        // Everything that was taken in finds its room.
        fs.sync().unwrap();
        let written: u64 = handles.iter().map(|(.., end)| end).sum();
        assert!(written > sizes.iter().sum::<u64>() << 18, "{sizes:?}: {written}");
        for (id, handle, end) in handles {
            fs.release(handle).unwrap();
            assert_eq!(read(&fs, id).unwrap().len() as u64, end);
        }
        assert_eq!(fs.check_tree().unwrap().misplaced_bytes, 0);
        check(&fs);
    }
}
