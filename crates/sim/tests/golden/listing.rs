//! All that a filesystem holds, as lines of text in the order of paths.

use aegisfs_base::InodeId;
use aegisfs_fs::{Fs, ROOT};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::ControlFlow;

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
/// Bytes that are read in one go.
const READ_BYTES: usize = 1 << 20;

/// One line for each path: mode, links, owner, group, size, time of modification, device number, inode, content.
/// A line for each extended attribute follows.
pub(crate) fn list(fs: &Fs) -> String {
    let mut lines = BTreeMap::from([(Vec::new(), describe(fs, ROOT))]);
    let mut todo = vec![(Vec::new(), ROOT)];
    while let Some((path, directory)) = todo.pop() {
        let mut entries = Vec::new();
        fs.readdir(directory, 2, &mut |entry| {
            entries.push((entry.id, entry.name));
            ControlFlow::Continue(())
        })
        .expect("readable");
        for (id, name) in entries {
            let below = [&path[..], b"/", &name].concat();
            lines.insert(below.clone(), describe(fs, id));
            if fs.getattr(id).expect("it has a name").inode.mode & TYPE == DIRECTORY {
                todo.push((below, id));
            }
        }
    }
    let mut text = String::new();
    for (path, (line, attributes)) in lines {
        let path = path.escape_ascii();
        writeln!(text, "{path} {line}").expect("a string takes all");
        for attribute in attributes {
            writeln!(text, "{path} {attribute}").expect("a string takes all");
        }
    }
    text
}

fn describe(fs: &Fs, id: InodeId) -> (String, Vec<String>) {
    let inode = fs.getattr(id).expect("it has a name").inode;
    let content = match inode.mode & TYPE {
        FILE => digest(fs, id, inode.size),
        SYMLINK => blake3::hash(&fs.readlink(id).expect("readable")).to_hex().to_string(),
        _ => "-".to_owned(),
    };
    let line = format!(
        "{:o} {} {} {} {} {} {} {id} {content}",
        inode.mode, inode.nlink, inode.uid, inode.gid, inode.size, inode.mtime.0, inode.rdev
    );
    let names = fs.listxattr(id).expect("readable");
    let attribute = |name: Vec<u8>| {
        let value = fs.getxattr(id, &name).expect("it was listed");
        format!("[{}] {} {}", name.escape_ascii(), value.len(), blake3::hash(&value))
    };
    (line, names.into_iter().map(attribute).collect::<BTreeSet<_>>().into_iter().collect())
}

fn digest(fs: &Fs, id: InodeId, size: u64) -> String {
    let handle = fs.open(id).expect("it has a name");
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < size {
        let count = fs.read(handle, at, &mut buffer).expect("readable");
        assert!(count > 0, "inode {id} ends at {at} of {size} bytes");
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    fs.release(handle).expect("it was open");
    hasher.finalize().to_hex().to_string()
}

/// Fails at the first line that differs.
pub(crate) fn assert_same(expected: &str, found: &str) {
    for (n, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "line {n}");
    }
    assert_eq!(expected.lines().count(), found.lines().count());
}
