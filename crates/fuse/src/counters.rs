//! How often each opcode came.

use std::sync::atomic::{AtomicU64, Ordering};

/// Opcodes are small numbers.
const OPCODES: usize = 64;
/// All but this one, which is not for filesystems.
const CUSE_INIT: u32 = 4096;

/// How often an opcode came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpcodeCount {
    /// The opcode's name.
    pub name: &'static str,
    /// How often it came.
    pub count: u64,
}

/// Running totals.
#[derive(Debug)]
pub(crate) struct Counters {
    counts: [AtomicU64; OPCODES],
}

impl Default for Counters {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; OPCODES] }
    }
}

impl Counters {
    pub(crate) fn note(&self, opcode: u32) {
        let place = (opcode as usize).min(OPCODES - 1);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn all(&self) -> Vec<OpcodeCount> {
        let counts = self.counts.iter().enumerate().map(|(n, count)| (n, count.load(Ordering::Relaxed)));
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(n, count)| OpcodeCount { name: opcode_name(n as u32), count })
            .collect()
    }
}

/// The protocol's name for an opcode.
pub fn opcode_name(opcode: u32) -> &'static str {
    const NAMES: [&str; 54] = [
        "none",
        "lookup",
        "forget",
        "getattr",
        "setattr",
        "readlink",
        "symlink",
        "none",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "open",
        "read",
        "write",
        "statfs",
        "release",
        "none",
        "fsync",
        "setxattr",
        "getxattr",
        "listxattr",
        "removexattr",
        "flush",
        "init",
        "opendir",
        "readdir",
        "releasedir",
        "fsyncdir",
        "getlk",
        "setlk",
        "setlkw",
        "access",
        "create",
        "interrupt",
        "bmap",
        "destroy",
        "ioctl",
        "poll",
        "notify_reply",
        "batch_forget",
        "fallocate",
        "readdirplus",
        "rename2",
        "lseek",
        "copy_file_range",
        "setupmapping",
        "removemapping",
        "syncfs",
        "tmpfile",
        "statx",
        "copy_file_range_64",
    ];
    let name = NAMES.get(opcode as usize).copied();
    name.unwrap_or(if opcode == CUSE_INIT { "cuse_init" } else { "other" })
}
