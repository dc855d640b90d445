//! Files at the edges of what fits into one change, beside an inode, or into memory.

mod stage;

use aegisfs_base::InodeId;
use aegisfs_fs::{Changes, CopyEnd, Fs, FsError, FsOptions, HandleId, Kind, MakeOptions, ROOT, Whence};
use stage::{World, create};

/// Small slots, so that there are many.
fn small() -> World {
    World::sized(64 << 20, 256 << 10)
}

fn resize(fs: &Fs, id: InodeId, size: u64) {
    fs.setattr(id, &Changes { size: Some(size), ..Changes::default() }).unwrap();
}

/// Every `step` bytes two that tell where they are.
fn scatter(fs: &Fs, handle: HandleId, count: u64, step: u64) {
    for n in 0..count {
        fs.write(handle, n * step, &[n as u8 | 1, (n >> 8) as u8]).unwrap();
    }
}

fn assert_scattered(fs: &Fs, handle: HandleId, count: u64, step: u64) {
    let mut out = vec![9; (count * step) as usize];
    fs.read(handle, 0, &mut out).unwrap();
    for (n, piece) in out.chunks(step as usize).enumerate() {
        let tail = if n as u64 == count - 1 { 2 } else { piece.len() };
        let right = piece[..2] == [n as u8 | 1, (n >> 8) as u8] && piece[2..tail].iter().all(|b| *b == 0);
        assert!(right, "piece {n}");
    }
}

fn assert_sound(fs: &Fs) {
    fs.sync().unwrap();
    assert_eq!(fs.dirty_bytes(), 0);
    assert_eq!(fs.check_tree().unwrap().problems, []);
    assert_eq!(fs.store().check(true).unwrap().problems, []);
}

// All of a file's runs went into one change, which then did not fit into a record of the log: the file could
// never be written out again, and every sync failed.
#[test]
fn thousands_of_scattered_writes_are_stored_in_several_changes() {
    let world = small();
    {
        let fs = world.mount();
        let (id, handle) = create(&fs, b"scattered");
        scatter(&fs, handle, 9000, 300);
        fs.sync().unwrap();
        assert_eq!(fs.getattr(id).unwrap().inode.size, 8999 * 300 + 2);
        assert_scattered(&fs, handle, 9000, 300);
    }
    let fs = world.mount();
    let handle = fs.open(fs.peek(ROOT, b"scattered").unwrap().id).unwrap();
    assert_scattered(&fs, handle, 9000, 300);
    // A copy of them did not fit either.
    let (_, copy) = create(&fs, b"copy");
    let (from, to) = (CopyEnd { handle, offset: 0 }, CopyEnd { handle: copy, offset: 0 });
    assert_eq!(fs.copy_range(from, to, u64::MAX >> 1).unwrap(), 8999 * 300 + 2);
    assert_scattered(&fs, copy, 9000, 300);
    assert_sound(&fs);
}

// A group of synced writes goes into the log up to 64 KiB, however many writes that are.
#[test]
fn an_fsync_of_very_many_tiny_writes_fits_into_the_log() {
    let world = small();
    {
        let fs = world.mount();
        let (_, handle) = create(&fs, b"tiny");
        scatter(&fs, handle, 12_000, 300);
        fs.fsync(handle).unwrap();
    }
    let fs = world.mount();
    let handle = fs.open(fs.peek(ROOT, b"tiny").unwrap().id).unwrap();
    assert_scattered(&fs, handle, 12_000, 300);
    assert_sound(&fs);
}

// The hole behind a tiny file was filled with zeros in memory, a terabyte of them; and a length between the
// content and the old end became inline content of that length.
#[test]
fn a_tiny_file_that_was_made_long_keeps_its_hole() {
    let world = small();
    {
        let fs = world.mount();
        let (id, handle) = create(&fs, b"tiny");
        fs.write(handle, 0, b"tiny").unwrap();
        fs.sync().unwrap();
        resize(&fs, id, 1 << 40);
        fs.fallocate(handle, 2, 1 << 39, 3).unwrap();
        fs.fallocate(handle, 1 << 20, 1 << 39, 3).unwrap();
        resize(&fs, id, 1 << 39);
        resize(&fs, id, 5 << 20);
        assert!(matches!(fs.lseek(handle, 512, Whence::Data), Err(FsError::NoData)));
        fs.fsync(handle).unwrap();
    }
    let fs = world.mount();
    let found = fs.peek(ROOT, b"tiny").unwrap();
    assert_eq!(found.inode.size, 5 << 20);
    let handle = fs.open(found.id).unwrap();
    let mut out = vec![9; 5 << 20];
    fs.read(handle, 0, &mut out).unwrap();
    assert!(out[..2] == *b"ti" && out[2..].iter().all(|b| *b == 0));
    assert_sound(&fs);
}

// Bytes beside an inode counted as written out when they were replaced, though they had never been counted as
// waiting: with every rewrite of a tiny file the bound on waiting bytes moved away.
#[test]
fn rewritten_tiny_files_are_counted_once() {
    let world = small();
    let fs = world.mount();
    let (_, big) = create(&fs, b"big");
    let (_, tiny) = create(&fs, b"tiny");
    fs.write(tiny, 0, &[1; 400]).unwrap();
    assert_eq!(fs.dirty_bytes(), 400);
    fs.fsync(tiny).unwrap();
    fs.flush_all().unwrap();
    assert_eq!(fs.dirty_bytes(), 0);
    fs.write(big, 0, &[2; 100_000]).unwrap();
    for n in 0..20 {
        fs.write(tiny, 0, &[n; 400]).unwrap();
        assert_eq!(fs.dirty_bytes(), 100_400);
        fs.fsync(tiny).unwrap();
    }
    assert_eq!(fs.dirty_bytes(), 100_400, "they are in the log, and still have to be written out");
    assert_sound(&fs);
}

#[test]
fn a_removed_directory_takes_nothing_new() {
    let world = small();
    let fs = world.mount();
    let options = MakeOptions::default();
    let made = fs.make(ROOT, b"gone", Kind::Directory, &options).unwrap();
    fs.rmdir(ROOT, b"gone").unwrap();
    let (_, handle) = create(&fs, b"file");
    let id = fs.peek(ROOT, b"file").unwrap().id;
    fs.release(handle).unwrap();
    let refused = [
        fs.make(made.id, b"x", Kind::File, &options).map(drop),
        fs.tmpfile(made.id, &options).map(drop),
        fs.link(id, made.id, b"x").map(drop),
        fs.rename(ROOT, b"file", made.id, b"x", Default::default()),
    ];
    assert!(refused.iter().all(|refusal| matches!(refusal, Err(FsError::NotFound))), "{refused:?}");
    assert_sound(&fs);
}

// The change that stored a stream claimed less than the file's length, and nothing was left that would store it.
#[test]
fn a_file_made_longer_while_its_bytes_stream_keeps_its_length() {
    let world = World::sized(64 << 20, 1 << 20);
    let options = FsOptions { background: false, stream_bytes: 512 << 10, ..FsOptions::default() };
    {
        let fs = world.mount_with(options);
        let (id, handle) = create(&fs, b"long");
        fs.write(handle, 0, &[0; 300 << 10]).unwrap();
        resize(&fs, id, 10 << 20);
        // All alike, it is cut at the largest size and nothing is held back.
        fs.write(handle, 300 << 10, &[0; 212 << 10]).unwrap();
        fs.fsync(handle).unwrap();
        assert_eq!(fs.dirty_bytes(), 0);
    }
    let fs = world.mount();
    assert_eq!(fs.peek(ROOT, b"long").unwrap().inode.size, 10 << 20);
    assert_sound(&fs);
}

// A tiny file cut to nothing counted as lying beside its inode still; chunks copied into it were then hidden by
// zeros from there.
#[test]
fn a_copy_into_a_tiny_file_that_was_emptied_is_read_from_its_chunks() {
    let world = World::sized(64 << 20, 1 << 20);
    let data: Vec<u8> = (0..300_000u32).map(|n| (n / 7 % 251) as u8 + 1).collect();
    {
        let fs = world.mount();
        let (_, from) = create(&fs, b"from");
        fs.write(from, 0, &data).unwrap();
        let (id, to) = create(&fs, b"tiny");
        fs.write(to, 0, b"tiny").unwrap();
        fs.sync().unwrap();
        resize(&fs, id, 0);
        let (source, target) = (CopyEnd { handle: from, offset: 0 }, CopyEnd { handle: to, offset: 0 });
        assert_eq!(fs.copy_range(source, target, 300_000).unwrap(), 300_000);
        resize(&fs, id, 250_000);
        assert!(!fs.getattr(id).unwrap().inode.inline);
        fs.sync().unwrap();
    }
    let fs = world.mount();
    let handle = fs.open(fs.peek(ROOT, b"tiny").unwrap().id).unwrap();
    let mut found = vec![0; 250_000];
    assert_eq!(fs.read(handle, 0, &mut found).unwrap(), 250_000);
    assert!(found == data[..250_000]);
    assert_sound(&fs);
}

// An orphan that was given a name was let go; when it lost that name again it was reaped under its user.
#[test]
fn a_file_that_gets_a_name_and_loses_it_stays_for_who_has_it_open() {
    let world = small();
    let fs = world.mount();
    let made = fs.tmpfile(ROOT, &MakeOptions::default()).unwrap();
    let handle = fs.open(made.id).unwrap();
    fs.write(handle, 0, &[7; 50_000]).unwrap();
    fs.fsync(handle).unwrap();
    fs.link(made.id, ROOT, b"named").unwrap();
    fs.unlink(ROOT, b"named").unwrap();
    fs.store().reap_released().unwrap();
    fs.flush_all().unwrap();
    let mut found = vec![0; 50_000];
    assert_eq!(fs.read(handle, 0, &mut found).unwrap(), 50_000);
    assert!(found.iter().all(|byte| *byte == 7));
    fs.release(handle).unwrap();
    fs.forget(made.id, 9);
    fs.store().reap_released().unwrap();
    assert!(matches!(fs.getattr(made.id), Err(FsError::NotFound)));
    assert_sound(&fs);
}

// They were loaded at mount for the bytes that stood in the log, reaped behind that, and stored once more by the
// flusher: inodes without a name that nobody would ever reap.
#[test]
fn orphans_whose_bytes_stand_in_the_log_stay_gone_after_a_crash() {
    for reaps_first in [true, false] {
        let world = small();
        {
            let fs = world.mount();
            let handles: Vec<_> = (0..5u8).map(|n| (n, create(&fs, &[b'a' + n]).1)).collect();
            for (n, handle) in &handles {
                fs.write(*handle, 0, &[*n; 30_000]).unwrap();
                fs.fsync(*handle).unwrap();
                fs.unlink(ROOT, &[b'a' + *n]).unwrap();
            }
            fs.fsync_inode(ROOT).unwrap();
            // The power is cut while they are open.
        }
        let fs = world.mount();
        assert_eq!(fs.dirty_bytes(), 0, "their bytes are not taken up again");
        if reaps_first {
            fs.store().reap_all().unwrap();
        }
        let (_, handle) = create(&fs, b"new");
        fs.write(handle, 0, &[7; 30_000]).unwrap();
        assert_sound(&fs);
        fs.store().reap_all().unwrap();
        assert_sound(&fs);
        let report = fs.store().check(false).unwrap();
        assert_eq!((report.chunks, fs.check_tree().unwrap().inodes), (1, 2));
    }
}
