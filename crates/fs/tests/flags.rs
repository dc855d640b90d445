//! What the flags of chattr(1) forbid, verb by verb, and that they are kept.

mod stage;

use aegisfs_base::{InodeId, Timestamp};
use aegisfs_format::value::INODE_FLAGS;
use aegisfs_fs::{
    Caller, Changes, CopyEnd, Errno, Fs, FsError, HandleId, Inode, Kind, MakeOptions, ROOT, RenameFlags,
    TimeChange, WriteKind, XattrMode,
};
use stage::{World, create};

const SUPERUSER: Caller = Caller { uid: 0, gid: 0 };
const OWNER: Caller = Caller { uid: 7, gid: 7 };
const STRANGER: Caller = Caller { uid: 8, gid: 7 };

fn world() -> World {
    World::sized(64 << 20, 256 << 10)
}

fn made(fs: &Fs, parent: InodeId, name: &str, kind: Kind<'_>) -> InodeId {
    let options = MakeOptions { caller: OWNER, permissions: 0o644, umask: 0 };
    fs.make(parent, name.as_bytes(), kind, &options).unwrap().id
}

fn refused<T>(what: &str, outcome: Result<T, FsError>, expected: bool) {
    match (outcome.map_err(|error| error.errno()), expected) {
        (Err(Errno::EPERM), true) | (Ok(_), false) => {}
        (Err(other), _) => panic!("{what}: {other:?}"),
        (Ok(_), true) => panic!("{what} is done"),
    }
}

fn swap(fs: &Fs, one: &[u8], other: &[u8]) -> Result<(), FsError> {
    fs.rename(ROOT, one, ROOT, other, RenameFlags { exchange: true, ..RenameFlags::default() })
}

/// Everything that changes a file, with whether an immutable and whether an append-only one refuses it.
fn try_file(fs: &Fs, id: InodeId, open: HandleId, other: HandleId, append_only: bool) {
    let strictly = true;
    let appending = !append_only;
    let set = |changes: Changes| fs.setattr(id, &changes);
    let none = Changes::default();
    let at = |ns| Some(TimeChange::To(Timestamp(ns)));
    let now = Some(TimeChange::Now);
    refused("reading", fs.open(id).map(|handle| fs.release(handle)), false);
    refused("opening to write", fs.open_to_write(id, false), strictly);
    refused("opening to append", fs.open_to_write(id, true).map(|(h, _)| fs.release(h)), appending);
    refused("writing", fs.write(open, 0, b"x"), appending);
    let cached = WriteKind { cached: true, drops_privileges: false, ..WriteKind::default() };
    refused("a late write", fs.write_with(open, 1, b"y", cached), false);
    for (mode, expected) in [(0, appending), (1, appending), (3, strictly), (16, strictly), (17, strictly)] {
        refused(&format!("allocating {mode}"), fs.fallocate(open, 0, 9, mode), expected);
    }
    let copied =
        |to| fs.copy_range(CopyEnd { handle: other, offset: 0 }, CopyEnd { handle: to, offset: 0 }, 5);
    refused("copying", copied(open), appending);
    refused("shortening", set(Changes { size: Some(1), ..none }), strictly);
    refused("lengthening", set(Changes { size: Some(1000), ..none }), strictly);
    refused("chmod", set(Changes { permissions: Some(0o600), ..none }), strictly);
    refused("chown", set(Changes { uid: Some(9), ..none }), strictly);
    refused("chgrp", set(Changes { gid: Some(9), ..none }), strictly);
    refused("touching", set(Changes { atime: now, mtime: now, ..none }), appending);
    let ctime = Some(Timestamp(5));
    refused("touching beside a cache", set(Changes { atime: now, mtime: at(5), ctime, ..none }), appending);
    refused("setting one time to now", set(Changes { mtime: now, ..none }), strictly);
    refused("setting a time", set(Changes { mtime: at(6), ctime, ..none }), strictly);
    refused("setting both times", set(Changes { atime: at(1), mtime: at(1), ctime, ..none }), strictly);
    refused("touching and chmod", set(Changes { atime: now, mtime: now, uid: Some(1), ..none }), strictly);
    refused("times handed over", set(Changes { mtime: at(7), ctime, handed_over: true, ..none }), false);
    refused("a time that stays", set(Changes { mtime: at(7), ctime: Some(Timestamp(8)), ..none }), false);
    refused("setting an attribute", fs.setxattr(id, b"user.new", b"", XattrMode::Any), strictly);
    refused("replacing an attribute", fs.setxattr(id, b"user.old", b"", XattrMode::Replace), strictly);
    refused("removing an attribute", fs.removexattr(id, b"user.old"), strictly);
    refused("linking", fs.link(id, ROOT, b"link"), strictly);
    refused("unlinking", fs.unlink(ROOT, b"file"), strictly);
    refused("renaming", fs.rename(ROOT, b"file", ROOT, b"x", RenameFlags::default()), strictly);
    refused("renaming over it", fs.rename(ROOT, b"other", ROOT, b"file", RenameFlags::default()), strictly);
    refused("swapping", swap(fs, b"file", b"other"), strictly);
    refused("swapping the other way", swap(fs, b"other", b"file"), strictly);
}

#[test]
fn files_that_are_flagged_change_as_far_as_they_may() {
    for flag in [Inode::IMMUTABLE, Inode::APPEND_ONLY] {
        let fs = world().mount();
        let id = made(&fs, ROOT, "file", Kind::File);
        let other = made(&fs, ROOT, "other", Kind::File);
        fs.setxattr(id, b"user.old", b"1", XattrMode::Any).unwrap();
        let (open, _) = fs.open_to_write(id, false).unwrap();
        let (source, _) = fs.open_to_write(other, false).unwrap();
        fs.write(open, 0, b"content").unwrap();
        fs.write(source, 0, b"others").unwrap();
        fs.set_flags(id, flag, SUPERUSER).unwrap();
        try_file(&fs, id, open, source, flag == Inode::APPEND_ONLY);
        fs.set_flags(id, 0, SUPERUSER).unwrap();
        refused("unlinking", fs.unlink(ROOT, b"file"), false);
        fs.sync().unwrap();
        assert_eq!(fs.check_tree().unwrap().problems, []);
    }
}

#[test]
fn directories_that_are_flagged_keep_their_names() {
    for (flag, grows) in [(Inode::IMMUTABLE, false), (Inode::APPEND_ONLY, true)] {
        let fs = world().mount();
        let dir = made(&fs, ROOT, "dir", Kind::Directory);
        let inside = made(&fs, dir, "in", Kind::File);
        made(&fs, dir, "sub", Kind::Directory);
        let out = made(&fs, ROOT, "out", Kind::File);
        made(&fs, ROOT, "out2", Kind::File);
        fs.set_flags(dir, flag, SUPERUSER).unwrap();
        let make = |name: &str, kind| fs.make(dir, name.as_bytes(), kind, &MakeOptions::default());
        let rename = |from, old: &str, to, new: &str| {
            fs.rename(from, old.as_bytes(), to, new.as_bytes(), RenameFlags::default())
        };
        for (name, kind) in [
            ("f", Kind::File),
            ("d", Kind::Directory),
            ("s", Kind::Symlink(b"t")),
            ("p", Kind::Special(0o010_000, 0)),
        ] {
            refused(&format!("making {name}"), make(name, kind), !grows);
        }
        refused("a file without a name", fs.tmpfile(dir, &MakeOptions::default()), !grows);
        refused("linking", fs.link(out, dir, b"l"), !grows);
        refused("moving in", rename(ROOT, "out", dir, "moved"), !grows);
        refused("moving over", rename(ROOT, "out2", dir, "in"), true);
        refused("moving out", rename(dir, "in", ROOT, "in"), true);
        refused("renaming within", rename(dir, "in", dir, "in2"), true);
        refused("unlinking", fs.unlink(dir, b"in"), true);
        refused("rmdir", fs.rmdir(dir, b"sub"), true);
        refused("renaming the directory", rename(ROOT, "dir", ROOT, "dir2"), true);
        refused("writing what is in it", fs.open_to_write(inside, false), false);
        assert_eq!(fs.unlink(dir, b"none").map_err(|e| e.errno()), Err(Errno::ENOENT));
        fs.sync().unwrap();
        assert_eq!(fs.check_tree().unwrap().problems, []);
    }
}

#[test]
fn who_may_set_which_flags() {
    let fs = world().mount();
    let id = made(&fs, ROOT, "file", Kind::File);
    let set = |flags, caller| fs.set_flags(id, flags, caller).map_err(|error| error.errno());
    assert_eq!(set(Inode::NO_DUMP | Inode::SYNC, OWNER), Ok(()));
    assert_eq!(set(Inode::NO_ATIME, STRANGER), Err(Errno::EPERM));
    for guarded in [Inode::IMMUTABLE, Inode::APPEND_ONLY] {
        assert_eq!(set(guarded, OWNER), Err(Errno::EPERM));
        assert_eq!(set(guarded, SUPERUSER), Ok(()));
        // What only the superuser set stays, whatever else is asked for.
        assert_eq!(set(0, OWNER), Err(Errno::EPERM));
        assert_eq!(set(guarded, OWNER), Ok(()));
        let more = if guarded == Inode::IMMUTABLE { Err(Errno::EPERM) } else { Ok(()) };
        assert_eq!(set(guarded | Inode::NO_DUMP, SUPERUSER), more);
        assert_eq!(set(0, SUPERUSER), Ok(()));
    }
    for unknown in [1, 0x100, 0x80000, 1 << 31] {
        assert_eq!(set(unknown, SUPERUSER), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(fs.flags(id).unwrap(), 0);
}

#[test]
fn flags_are_inherited_and_survive_a_crash_after_a_sync() {
    let stage = world();
    let all = INODE_FLAGS.iter().fold(0, |all, (_, flag)| all | flag);
    let (dir, passed_on) = {
        let fs = stage.mount();
        let dir = made(&fs, ROOT, "dir", Kind::Directory);
        let passed_on = Inode::SYNC | Inode::NO_DUMP | Inode::NO_ATIME;
        fs.set_flags(dir, passed_on, OWNER).unwrap();
        let children = [("f", Kind::File), ("d", Kind::Directory), ("s", Kind::Symlink(b"t"))];
        let children = children.map(|(name, kind)| fs.flags(made(&fs, dir, name, kind)).unwrap());
        assert_eq!(children, [passed_on, passed_on, passed_on & !Inode::SYNC]);
        fs.set_flags(dir, all, SUPERUSER).unwrap();
        (dir, passed_on)
    };
    // Nothing was closed. The directory is marked sync, so what it was told is there.
    let fs = stage.mount();
    assert_eq!(fs.flags(dir).unwrap(), all);
    assert_eq!(fs.flags(fs.peek(dir, b"f").unwrap().id).unwrap(), passed_on);
    refused("unlinking", fs.unlink(dir, b"f"), true);
}

#[test]
fn what_is_marked_sync_is_durable_when_the_verb_returns() {
    let stage = world();
    {
        let fs = stage.mount();
        let id = made(&fs, ROOT, "file", Kind::File);
        let dir = made(&fs, ROOT, "dir", Kind::Directory);
        fs.set_flags(id, Inode::SYNC, OWNER).unwrap();
        fs.set_flags(dir, Inode::SYNC, OWNER).unwrap();
        let (handle, _) = fs.open_to_write(id, false).unwrap();
        let durable = |what: &str| {
            let (last, durable) = (fs.store().last_sequence(), fs.store().durable_sequence());
            assert!(durable >= last, "{what}: {durable:?} of {last:?}");
        };
        fs.write(handle, 0, b"bytes").unwrap();
        durable("write");
        fs.setattr(id, &Changes { size: Some(3), ..Changes::default() }).unwrap();
        durable("truncate");
        fs.setxattr(id, b"user.a", b"1", XattrMode::Any).unwrap();
        durable("setxattr");
        fs.make(dir, b"new", Kind::File, &MakeOptions::default()).unwrap();
        durable("make");
        fs.link(id, dir, b"link").unwrap();
        durable("link");
        fs.rename(dir, b"link", ROOT, b"moved", RenameFlags::default()).unwrap();
        durable("rename");
        fs.unlink(dir, b"new").unwrap();
        durable("unlink");
    }
    let fs = stage.mount();
    let id = fs.peek(ROOT, b"moved").unwrap().id;
    let mut bytes = [0; 9];
    assert_eq!(fs.read(fs.open(id).unwrap(), 0, &mut bytes).unwrap(), 3);
    assert_eq!(&bytes[..3], b"byt");
}

/// A handle that was opened on an append-only file only appends, whatever the kernel lets its holder do with it.
#[test]
fn what_is_opened_to_append_only_appends() {
    let fs = world().mount();
    let (id, before) = create(&fs, b"log");
    let source = fs.open(made(&fs, ROOT, "source", Kind::File)).unwrap();
    fs.write(before, 0, b"first").unwrap();
    fs.set_flags(id, Inode::APPEND_ONLY, SUPERUSER).unwrap();
    let (log, _) = fs.open_to_write(id, true).unwrap();
    let kind =
        |cached, appends| WriteKind { cached, drops_privileges: false, appends, ..WriteKind::default() };
    refused("appending", fs.write_with(log, 5, b"second", kind(false, true)), false);
    refused("overwriting", fs.write_with(log, 0, b"x", kind(false, false)), true);
    // Of what a kernel hands over it may not know whose it was.
    refused("a late write", fs.write_with(log, 0, b"F", kind(true, false)), false);
    fs.release(before).unwrap();
    refused("writing a mapping", fs.write_with(log, 0, b"x", kind(true, false)), true);
    let end = |handle| CopyEnd { handle, offset: 0 };
    refused("copying", fs.copy_range(end(source), end(log), 1), true);
    fs.set_flags(id, 0, SUPERUSER).unwrap();
    refused("writing without the flag", fs.write_with(log, 1, b"I", kind(false, false)), false);
    let mut bytes = [0; 20];
    assert_eq!(fs.read(log, 0, &mut bytes).unwrap(), 11);
    assert_eq!(&bytes[..11], b"FIrstsecond");
}
