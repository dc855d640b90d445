//! A filesystem that does nothing: names and sizes in memory, no data. What it costs is the transport.

use crate::abi::{FOPEN_KEEP_CACHE, OpenOut, StatfsOut, WriteOut, fattr};
use crate::reply::Reply;
use crate::request::{Operation, Request};
use crate::session::Handler;
use aegisfs_base::{InodeId, Timestamp};
use aegisfs_fs::{Attributes, Errno};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const ROOT: u64 = 1;
const ENODATA: Errno = Errno(61);
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// Answers requests out of a few maps.
pub struct NullFace {
    names: Mutex<HashMap<(u64, Vec<u8>), u64>>,
    inodes: Mutex<HashMap<u64, (u32, u64)>>,
    next: AtomicU64,
}

impl Default for NullFace {
    fn default() -> Self {
        Self {
            names: Mutex::default(),
            inodes: Mutex::new(HashMap::from([(ROOT, (DIRECTORY, 0))])),
            next: AtomicU64::new(ROOT + 1),
        }
    }
}

impl NullFace {
    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        let inodes = self.inodes.lock().map_err(|_| Errno::EIO)?;
        let (mode, size) = *inodes.get(&node).ok_or(Errno::ENOENT)?;
        let mut inode =
            aegisfs_fs::Attributes { id: InodeId(node), inode: Default::default(), allocated: size };
        inode.inode.mode = mode;
        inode.inode.size = size;
        inode.inode.nlink = 1;
        inode.inode.mtime = Timestamp(0);
        Ok(inode)
    }

    fn make(&self, parent: u64, name: &[u8], mode: u32) -> Result<Attributes, Errno> {
        let node = self.next.fetch_add(1, Ordering::Relaxed);
        self.inodes.lock().map_err(|_| Errno::EIO)?.insert(node, (mode, 0));
        self.names.lock().map_err(|_| Errno::EIO)?.insert((parent, name.to_vec()), node);
        self.attributes(node)
    }

    fn grow(&self, node: u64, size: u64, exactly: bool) -> Result<(), Errno> {
        let mut inodes = self.inodes.lock().map_err(|_| Errno::EIO)?;
        let entry = inodes.get_mut(&node).ok_or(Errno::ENOENT)?;
        entry.1 = if exactly { size } else { entry.1.max(size) };
        Ok(())
    }
}

impl Handler for NullFace {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        use Operation as O;
        let opened = |flags| OpenOut { fh: 1, open_flags: flags, backing_id: 0 };
        match request.operation {
            O::Lookup { name } => {
                let names = self.names.lock().map_err(|_| Errno::EIO)?;
                let found = names.get(&(request.node, name.to_vec())).copied();
                drop(names);
                match found {
                    Some(node) => reply.entry(&self.attributes(node)?),
                    None => reply.negative_entry(),
                }
            }
            O::Getattr => reply.attributes(&self.attributes(request.node)?),
            O::Setattr(input) => {
                if input.valid & fattr::SIZE != 0 {
                    self.grow(request.node, input.size, true)?;
                }
                reply.attributes(&self.attributes(request.node)?);
            }
            O::Mkdir { name, .. } => reply.entry(&self.make(request.node, name, DIRECTORY)?),
            O::Mknod { name, .. } => reply.entry(&self.make(request.node, name, FILE)?),
            O::Create { name, .. } => {
                reply.entry(&self.make(request.node, name, FILE)?);
                reply.push(&opened(FOPEN_KEEP_CACHE));
            }
            O::Unlink { name } | O::Rmdir { name } => {
                let mut names = self.names.lock().map_err(|_| Errno::EIO)?;
                names.remove(&(request.node, name.to_vec())).ok_or(Errno::ENOENT)?;
            }
            O::Open { .. } => reply.push(&opened(FOPEN_KEEP_CACHE)),
            O::Read(input) => {
                let size = self.attributes(request.node)?.inode.size;
                let count = size.saturating_sub(input.offset).min(u64::from(input.size));
                reply.space(count as usize).fill(0);
            }
            O::Write { input, data } => {
                self.grow(request.node, input.offset + data.len() as u64, false)?;
                reply.push(&WriteOut { size: data.len() as u32, padding: 0 });
            }
            O::Statfs => {
                reply.push(&StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..StatfsOut::default() });
            }
            O::Release { .. }
            | O::Fsync { .. }
            | O::Fsyncdir { .. }
            | O::Syncfs
            | O::Destroy
            | O::Forget { .. }
            | O::BatchForget { .. }
            | O::Readdir(_)
            | O::Readdirplus(_) => {}
            // Asked before a file's first write; whoever has attributes has to answer it each time.
            O::Getxattr { .. } => return Err(ENODATA),
            _ => return Err(Errno(38)),
        }
        Ok(())
    }
}
