//! Comparing the real filesystem with the model.

use crate::bytes::Bytes;
use crate::tree::{Content, Inode, Touch, Tree};
use aegisfs_base::{InodeId, Timestamp};
use aegisfs_fs::{Errno, Fs, ROOT};
use std::ops::ControlFlow;

/// Attributes are compared; times that had to move are newer than `before` and noted in the model.
pub(crate) fn compare_touched(fs: &Fs, tree: &mut Tree, touched: &[Touch], before: Timestamp) {
    for touch in touched {
        if !tree.inodes.contains_key(&touch.id) {
            continue;
        }
        let real = fs.getattr(touch.id).unwrap_or_else(|e| panic!("inode {}: {e}", touch.id)).inode;
        let inode = tree.get_mut(touch.id);
        if touch.modified {
            assert!(real.mtime > before, "inode {} keeps its mtime", touch.id);
            inode.mtime = real.mtime;
        }
        if touch.changed {
            assert!(real.ctime > before, "inode {} keeps its ctime", touch.id);
            inode.ctime = real.ctime;
        }
        compare_attributes(fs, touch.id, inode);
    }
}

pub(crate) fn compare_attributes(fs: &Fs, id: InodeId, model: &Inode) {
    let found = fs.getattr(id).unwrap_or_else(|e| panic!("inode {id}: {e}"));
    let real = found.inode;
    let of_real = (real.mode, (real.uid, real.gid), real.nlink, real.size, real.flags);
    let of_model = (model.mode, model.owner, model.nlink, model.size(), model.flags);
    assert_eq!(of_real, of_model, "mode, owner, links, size and flags of inode {id}");
    let times = (real.atime, real.mtime, real.ctime);
    assert_eq!(times, (model.atime, model.mtime, model.ctime), "times of inode {id}");
    if model.file().is_some_and(Bytes::is_hole) {
        assert_eq!(found.allocated, 0, "inode {id} is one hole");
    }
}

/// Compares everything.
pub(crate) fn compare_all(fs: &Fs, tree: &Tree) {
    for (id, model) in &tree.inodes {
        compare_attributes(fs, *id, model);
        let mut names = fs.listxattr(*id).expect("attributes can be listed");
        names.sort();
        assert!(names.iter().eq(model.xattrs.keys()), "attribute names of inode {id}");
        for (name, value) in &model.xattrs {
            assert_eq!(fs.getxattr(*id, name).expect("it is listed"), *value, "an attribute of inode {id}");
        }
        match &model.content {
            Content::File(bytes) => compare_content(fs, *id, bytes),
            Content::Directory { parent, .. } => compare_directory(fs, tree, *id, *parent),
            Content::Symlink(target) => assert_eq!(fs.readlink(*id).expect("a symlink"), *target),
            Content::Special => {
                assert_eq!(fs.readlink(*id).map_err(|e| e.errno()), Err(Errno::EINVAL));
            }
        }
    }
}

fn compare_directory(fs: &Fs, tree: &Tree, id: InodeId, parent: InodeId) {
    let entries = tree.entries(id).expect("a directory");
    let mut found = Vec::new();
    let mut cookie = 0;
    // Three at a time, so that going on from a cookie is tried everywhere.
    loop {
        let before = found.len();
        fs.readdir(id, cookie, &mut |entry| {
            cookie = entry.cookie;
            found.push((entry.name, entry.id, entry.kind));
            if found.len() == before + 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("a directory can be read");
        if found.len() == before {
            break;
        }
    }
    assert_eq!((&found[0].0[..], found[0].1), (&b"."[..], id));
    assert_eq!((&found[1].0[..], found[1].1), (&b".."[..], if id == ROOT { ROOT } else { parent }));
    let mut rest: Vec<_> = found.split_off(2);
    rest.sort();
    let kind = |id: &InodeId| (tree.inodes[id].mode >> 12) as u8;
    let expected: Vec<_> = entries.iter().map(|(name, id)| (name.clone(), *id, kind(id))).collect();
    assert_eq!(rest, expected, "entries of directory {id}");
}

/// Reads what the model knows of, and a little beyond.
fn compare_content(fs: &Fs, id: InodeId, bytes: &Bytes) {
    let handle = fs.open(id).expect("a file can be opened");
    let mut at = 0;
    let mut run = 0..0;
    let mut runs = Vec::new();
    for stretch in bytes.stretches() {
        if stretch.start > run.end + 8192 {
            runs.push(std::mem::replace(&mut run, stretch.clone()));
        }
        run.end = stretch.end;
    }
    runs.push(run);
    for run in runs {
        let from = run.start.saturating_sub(100).max(at);
        compare_read(fs, handle, bytes, from, (run.end + 200 - from) as usize);
        at = run.end;
    }
    compare_read(fs, handle, bytes, bytes.size.saturating_sub(50), 100);
    fs.release(handle).expect("it is open");
}

/// Reads a range on both sides.
pub(crate) fn compare_read(fs: &Fs, handle: aegisfs_fs::HandleId, bytes: &Bytes, offset: u64, length: usize) {
    let mut out = vec![0xA5; length];
    let count = fs.read(handle, offset, &mut out).unwrap_or_else(|e| panic!("reading at {offset}: {e}"));
    let expected = bytes.read(offset, length as u64);
    assert_eq!(count, expected.len(), "bytes read at {offset}");
    let wrong = (0..count).find(|n| out[*n] != expected[*n].0);
    if let Some(n) = wrong {
        panic!("byte {} reads as {} and was {:?}", offset + n as u64, out[n], expected[n]);
    }
}

/// Everything adds up inside, too.
pub(crate) fn assert_sound(fs: &Fs) {
    assert_eq!(fs.check_tree().expect("a tree that can be read").problems, []);
    assert_eq!(fs.store().check(true).expect("a store that can be read").problems, []);
}
