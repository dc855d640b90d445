//! Makes an image of the present format: a bit of everything that the format can hold.

use crate::image;
use crate::listing;
use aegisfs_base::{InodeId, ManualClock, Rng, SeededRng, Timestamp};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{Changes, CopyEnd, Fs, Kind, MakeOptions, ROOT, RenameFlags, XattrMode};
use aegisfs_pool::{CreateOptions, Pool};
use std::sync::Arc;

/// The number of the format that this program writes. A new one comes with a new image.
pub(crate) const FORMAT: u32 = 6;
const DEVICE_BYTES: u64 = 256 << 20;
const SEED: u64 = 20_001;
const DIRECTORIES: u64 = 12;
const FILES: u64 = 25;
/// Some day in 2026, so that no time is zero.
const NOW: i64 = 1_790_000_000_000_000_000;

/// Writes image and manifest to `tests/golden`.
pub(crate) fn image() {
    let device = Arc::new(MemoryDevice::new("golden", DEVICE_BYTES));
    let (clock, rng) = (ManualClock::default(), SeededRng::new(SEED));
    clock.set(Timestamp(NOW));
    let create = CreateOptions { label: "golden".into(), compression: (2, 1), ..CreateOptions::default() };
    let devices = vec![Arc::clone(&device) as Arc<dyn Device>];
    let pool = Pool::create(devices, &create, &clock, &rng).expect("it can be formatted");
    Fs::format(&pool, &clock).expect("it can be formatted");
    let (fs, _) = crate::mount(&device, false);
    populate(&fs, &rng);
    fs.sync().expect("nothing fails");
    fs.store().checkpoint().expect("nothing fails");
    // An opening seals what was open, so that it can be cleaned.
    drop(fs);
    let (fs, _) = crate::mount(&device, false);
    change_behind_the_checkpoint(&fs, &rng);
    fs.sync().expect("nothing fails");
    let listed = listing::list(&fs);
    // As a crash leaves it: the log behind the checkpoint is still to be replayed.
    drop(fs);
    let packed = image::pack(&device);
    let manifest = format!("image {}\n{listed}", blake3::hash(&packed));
    let path = |ending: &str| image::folder().join(format!("format-{FORMAT}.{ending}"));
    std::fs::write(path("image.zst"), &packed).expect("it can be written");
    std::fs::write(path("manifest"), manifest).expect("it can be written");
    println!("format {FORMAT}: {} KiB, {} lines", packed.len() >> 10, listed.lines().count());
}

fn make(fs: &Fs, parent: InodeId, name: &[u8], kind: Kind<'_>, permissions: u32) -> InodeId {
    let options = MakeOptions { permissions, ..MakeOptions::default() };
    fs.make(parent, name, kind, &options).expect("room").id
}

fn put(fs: &Fs, id: InodeId, offset: u64, data: &[u8]) {
    let handle = fs.open(id).expect("it is there");
    fs.write(handle, offset, data).expect("room");
    fs.release(handle).expect("it was open");
}

/// Lines that compress well and are all different.
fn text(rng: &SeededRng, bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 64);
    while text.len() < bytes {
        let line = format!("{:08} and {:04} of the golden lines\n", text.len(), rng.below(10_000));
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(bytes);
    text
}

fn noise(rng: &SeededRng, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rng.fill(&mut data);
    data
}

fn populate(fs: &Fs, rng: &SeededRng) {
    for n in 0..DIRECTORIES {
        let directory = make(fs, ROOT, format!("directory {n}").as_bytes(), Kind::Directory, 0o755);
        for file in 0..FILES {
            let id = make(fs, directory, format!("file {file}").as_bytes(), Kind::File, 0o600 + file as u32);
            let bytes = rng.below([1, 512, 3_000, 20_000][(file % 4) as usize]) as usize;
            put(fs, id, 0, &text(rng, bytes));
        }
    }
    let large = make(fs, ROOT, b"large", Kind::File, 0o644);
    put(fs, large, 0, &text(rng, 3 << 20));
    let mixed = make(fs, ROOT, b"noise", Kind::File, 0o644);
    put(fs, mixed, 0, &noise(rng, 200_000));
    let sparse = make(fs, ROOT, b"sparse", Kind::File, 0o644);
    for at in [0, 5 << 20, (40 << 20) + 123] {
        put(fs, sparse, at, &text(rng, 100_000));
    }
    fs.setattr(sparse, &Changes { size: Some((60 << 20) + 5), ..Changes::default() }).expect("room");
    odd_ones(fs, rng);
    let copy = make(fs, ROOT, b"copy of large", Kind::File, 0o644);
    let (from, to) = (fs.open(large).expect("it is there"), fs.open(copy).expect("it is there"));
    let (from, to) = (CopyEnd { handle: from, offset: 1000 }, CopyEnd { handle: to, offset: 77 });
    fs.copy_range(from, to, 2 << 20).expect("room");
    fs.release(from.handle).expect("it was open");
    fs.release(to.handle).expect("it was open");
}

/// Links, special files, attributes, owners, and long or strange names.
fn odd_ones(fs: &Fs, rng: &SeededRng) {
    make(fs, ROOT, b"short link", Kind::Symlink(b"directory 3/file 1"), 0o777);
    make(fs, ROOT, b"long link", Kind::Symlink(&[b'l'; 4095]), 0o777);
    make(fs, ROOT, b"fifo", Kind::Special(0o010_000, 0), 0o600);
    make(fs, ROOT, b"device", Kind::Special(0o020_000, 0x0103), 0o666);
    make(fs, ROOT, &[0xFF; 255], Kind::File, 0o400);
    make(fs, ROOT, "unicode \u{1F980}\n".as_bytes(), Kind::File, 0o400);
    let linked = make(fs, ROOT, b"first name", Kind::File, 0o640);
    put(fs, linked, 0, &text(rng, 900));
    for n in 0..9 {
        fs.link(linked, ROOT, format!("name {n}").as_bytes()).expect("room");
    }
    let owner = Changes { uid: Some(1000), gid: Some(70_000), ..Changes::default() };
    fs.setattr(linked, &owner).expect("room");
    for (name, bytes) in [(&b"user.short"[..], 10), (b"user.empty", 0), (b"trusted.long", 60_000)] {
        fs.setxattr(linked, name, &text(rng, bytes), XattrMode::Any).expect("room");
    }
    fs.setxattr(ROOT, b"user.of the root", b"value", XattrMode::Any).expect("room");
}

/// What only the log knows: names, attributes, bytes in the log itself, new rows, a hole, an orphan, chunks that moved.
fn change_behind_the_checkpoint(fs: &Fs, rng: &SeededRng) {
    let late = make(fs, ROOT, b"late", Kind::File, 0o644);
    put(fs, late, 0, &text(rng, 30_000));
    fs.fsync_inode(late).expect("room");
    put(fs, late, 10_000, &noise(rng, 5_000));
    fs.fsync_inode(late).expect("room");
    let rows = make(fs, ROOT, b"late and large", Kind::File, 0o644);
    put(fs, rows, 0, &text(rng, 700_000));
    fs.fsync_inode(rows).expect("room");
    let large = fs.peek(ROOT, b"large").expect("it is there").id;
    let handle = fs.open(large).expect("it is there");
    fs.fallocate(handle, 1_000_000, 500_000, 3).expect("room");
    fs.release(handle).expect("it was open");
    fs.rename(ROOT, b"noise", ROOT, b"file that was renamed", RenameFlags::default()).expect("room");
    let directory = fs.peek(ROOT, b"directory 5").expect("it is there").id;
    for n in 0..FILES {
        fs.unlink(directory, format!("file {n}").as_bytes()).expect("it is there");
    }
    fs.rmdir(ROOT, b"directory 5").expect("it is empty");
    let done = fs.store().empty_segments(1).expect("room");
    assert!(done.moved_bytes > 0, "chunks moved: {done:?}");
    // Open when the crash comes, and without a name.
    let orphan = make(fs, ROOT, b"orphan", Kind::File, 0o600);
    put(fs, orphan, 0, &text(rng, 100_000));
    let _open = fs.open(orphan).expect("it is there");
    fs.unlink(ROOT, b"orphan").expect("it is there");
}
