//! The face of a filesystem: each operation decoded, called, encoded.

use crate::abi::{
    COPY_FILE_RANGE_64, CopyFileRangeIn, CopyFileRangeOut, CreateIn, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE,
    ForgetOne, GetxattrOut, LseekOut, OpenOut, ReadIn, SetattrIn, StatfsOut, WRITE_CACHE, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut, fattr,
};
use crate::ioctl;
use crate::labels::Labels;
use crate::reply::{DirentPlace, Reply, entry_out};
use crate::request::{Operation, Request};
use crate::session::Handler;
use aegisfs_base::{InodeId, Timestamp};
use aegisfs_fs::{
    Caller, Changes, CopyEnd, Errno, Fs, FsError, HandleId, Inode, Kind, MakeOptions, RenameFlags,
    TimeChange, Whence, WriteKind, XattrMode,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::FromBytes;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const RENAME_WHITEOUT: u32 = 4;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
const XATTR_CREATE_AND_REPLACE: u32 = XATTR_CREATE | XATTR_REPLACE;
const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
const O_APPEND: u32 = 0o2_000;
const O_DIRECT: u32 = libc::O_DIRECT as u32;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// The older of two replies tells copied bytes in 32 bits; and nobody waits long for one request.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// Answers requests with a filesystem.
pub struct FsFace {
    fs: Arc<Fs>,
    at_end: Option<Box<dyn Fn() + Send + Sync>>,
    write_back: Option<Box<WriteBack>>,
    labels: Labels,
}

/// Has the kernel write back a file, by inode and generation.
type WriteBack = dyn Fn(u64, u64) -> bool + Send + Sync;

impl FsFace {
    /// The face of a filesystem.
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, at_end: None, write_back: None, labels: Labels::of_kernel() }
    }

    /// How another process has the kernel write back a file, by inode and generation, and whether it could.
    #[must_use]
    pub fn writing_back_with(
        mut self,
        write_back: impl Fn(u64, u64) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.write_back = Some(Box::new(write_back));
        self
    }

    /// Does something when a block device is unmounted, before the kernel lets go of it: what is to be written has to
    /// be written then.
    #[must_use]
    pub fn ending_with(mut self, at_end: impl Fn() + Send + Sync + 'static) -> Self {
        self.at_end = Some(Box::new(at_end));
        self
    }
}

impl Handler for FsFace {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        if let Operation::Ioctl { input, data } = request.operation {
            return ioctl::answer(&self.fs, request, &input, data, reply);
        }
        self.dispatch(request, reply).map_err(|error| number(&error, request))
    }

    /// The kernel asks for holes without a look at the bytes that it holds.
    fn needs_written_back(&self, request: &Request<'_>) -> bool {
        matches!(request.operation, Operation::Lseek(_)) && self.fs.kernel_may_hold(InodeId(request.node))
    }

    /// For devices, for a file to be stored, or for room in memory.
    fn may_wait_long(&self, request: &Request<'_>) -> bool {
        use Operation as O;
        match &request.operation {
            O::Write { .. } => self.fs.holds_writers(),
            O::Setattr(input) => input.valid & fattr::SIZE != 0,
            O::Fsync { .. } | O::Fsyncdir | O::Syncfs | O::Fallocate(_) | O::CopyFileRange(_) => true,
            _ => false,
        }
    }

    fn write_back(&self, node: u64) -> bool {
        let generation = self.fs.getattr(InodeId(node)).map(|found| found.inode.generation);
        let write_back = self.write_back.as_ref().zip(generation.ok());
        write_back.is_some_and(|(write_back, generation)| write_back(node, generation))
    }

    /// Nothing of what the request began may reach the device after what it left half done.
    fn panicked(&self, reason: &str) {
        self.fs.store().stop_writing(reason);
    }
}

impl FsFace {
    fn dispatch(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), FsError> {
        use Operation as O;
        let fs = &*self.fs;
        let node = InodeId(request.node);
        match request.operation {
            O::Lookup { name } => match fs.lookup(node, name) {
                Ok(found) => reply.entry(&found),
                Err(FsError::NotFound) if fs.getattr(node).is_ok() => reply.negative_entry(),
                Err(error) => return Err(error),
            },
            O::Forget { count } => fs.forget(node, count),
            O::BatchForget { entries } => {
                for entry in entries.chunks_exact(size_of::<ForgetOne>()) {
                    if let Ok(entry) = ForgetOne::read_from_bytes(entry) {
                        fs.forget(InodeId(entry.nodeid), entry.nlookup);
                    }
                }
            }
            O::Getattr => reply.attributes(&fs.getattr(node)?),
            O::Statx(_) => reply.statx(&fs.getattr(node)?),
            O::Setattr(input) => reply.attributes(&fs.setattr(node, &changes(&input))?),
            O::Readlink => reply.push_bytes(&fs.readlink(node)?),
            O::Symlink { name, target } => {
                reply.entry(&fs.make(node, name, Kind::Symlink(target), &options(request, (0o777, 0)))?);
            }
            O::Mknod { input, name } => {
                let kind = match input.mode & S_IFMT {
                    0 | S_IFREG => Kind::File,
                    format => Kind::Special(format, input.rdev),
                };
                reply.entry(&fs.make(node, name, kind, &options(request, (input.mode, input.umask)))?);
            }
            O::Mkdir { input, name } => {
                let options = options(request, (input.mode, input.umask));
                reply.entry(&fs.make(node, name, Kind::Directory, &options)?);
            }
            O::Unlink { name } => fs.unlink(node, name)?,
            O::Rmdir { name } => fs.rmdir(node, name)?,
            O::Rename { new_parent, flags, old, new } => {
                fs.rename(node, old, InodeId(new_parent), new, rename_flags(request, flags)?)?;
            }
            O::Link { source, name } => reply.entry(&fs.link(InodeId(source), node, name)?),
            _ => return self.dispatch_handles(request, reply),
        }
        Ok(())
    }

    /// Operations on open files and directories, and the rest.
    fn dispatch_handles(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), FsError> {
        use Operation as O;
        let fs = &*self.fs;
        let node = InodeId(request.node);
        match request.operation {
            O::Open { flags } if flags & O_ACCMODE == O_RDONLY => {
                open(fs.open(node)?, self.caching(node), reply);
            }
            O::Open { flags } => {
                let (handle, changed) = fs.open_to_write(node, flags & O_APPEND != 0)?;
                open(handle, self.caching_for_writer(node), reply);
                reply.outdated = changed.then_some(request.node);
            }
            O::Create { input, name } => {
                let options = options(request, (input.mode, input.umask));
                let (made, handle) = fs.create(node, name, &options)?;
                reply.entry(&made);
                open(handle, self.caching_for_writer(made.id), reply);
            }
            O::Tmpfile(CreateIn { mode, umask, .. }) => {
                let made = fs.tmpfile(node, &options(request, (mode, umask)))?;
                let (handle, _) = fs.open_to_write(made.id, true)?;
                reply.entry(&fs.getattr(made.id)?);
                open(handle, self.caching_for_writer(made.id), reply);
            }
            O::Read(input) => {
                let count = fs.read(HandleId(input.fh), input.offset, reply.space(input.size as usize))?;
                reply.truncate(count);
            }
            O::Write { input, data } => self.write(request.node, &input, data, reply)?,
            O::Release { handle } => {
                reply.outdated = fs.release(HandleId(handle))?.then_some(request.node);
            }
            O::Fsync { handle } => fs.fsync(HandleId(handle))?,
            // Directories have no handles.
            O::Fsyncdir => fs.fsync_inode(node)?,
            O::Syncfs => fs.sync()?,
            O::Destroy => {
                if let Some(at_end) = &self.at_end {
                    at_end();
                }
            }
            O::Readdir(input) => self.readdir(node, &input, false, reply)?,
            O::Readdirplus(input) => self.readdir(node, &input, true, reply)?,
            O::Fallocate(input) => {
                // The kernel does not tell whether the caller may keep them; root may.
                if request.uid != 0 && fs.drop_privileges(node, request.gid)? {
                    reply.outdated = Some(request.node);
                }
                fs.fallocate(HandleId(input.fh), input.offset, input.length, input.mode)?;
            }
            O::Lseek(input) => {
                let whence = match input.whence {
                    SEEK_DATA => Whence::Data,
                    SEEK_HOLE => Whence::Hole,
                    _ => return Err(FsError::Invalid),
                };
                reply.push(&LseekOut { offset: fs.lseek(HandleId(input.fh), input.offset, whence)? });
            }
            O::CopyFileRange(input) => self.copy_range(&input, request.opcode, reply)?,
            O::Statfs => self.statfs(reply)?,
            _ => return self.dispatch_xattrs(request, reply),
        }
        Ok(())
    }

    fn write(&self, node: u64, input: &WriteIn, data: &[u8], reply: &mut Reply) -> Result<(), FsError> {
        let has = |flag: u32| input.write_flags & flag != 0;
        let kind = WriteKind {
            cached: has(WRITE_CACHE),
            drops_privileges: has(WRITE_KILL_SUIDGID),
            appends: input.flags & O_APPEND != 0,
            past_cache: input.flags & O_DIRECT != 0 && !has(WRITE_CACHE),
        };
        let lost_powers = self.fs.write_with(HandleId(input.fh), input.offset, data, kind)?;
        reply.push(&WriteOut { size: data.len() as u32, padding: 0 });
        reply.outdated = lost_powers.then_some(node);
        Ok(())
    }

    /// With little room left a writer has to hear of it at once, which the kernel's cache would not let it.
    ///
    /// The cache may also hold bytes that are older than what was written past it: the kernel forgets a range when such a
    /// write begins, and after it only when the writer waited for it. So it is to forget the file at each opening; not
    /// only at the next one, which may still be under way when others are done.
    fn caching(&self, node: InodeId) -> u32 {
        if self.fs.nearly_full() {
            FOPEN_DIRECT_IO
        } else if self.fs.went_past_cache(node) {
            0
        } else {
            FOPEN_KEEP_CACHE
        }
    }

    /// The same for writers. What is written to a file that is marked sync is not to wait either, and of one that
    /// is append-only we have to know that it is appended.
    fn caching_for_writer(&self, node: InodeId) -> u32 {
        const DIRECT: u32 = Inode::SYNC | Inode::APPEND_ONLY;
        let direct = self.fs.flags(node).is_ok_and(|flags| flags & DIRECT != 0);
        if direct { FOPEN_DIRECT_IO } else { self.caching(node) }
    }

    fn dispatch_xattrs(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), FsError> {
        use Operation as O;
        let node = InodeId(request.node);
        match request.operation {
            O::Setxattr { name, value, drops_setgid: true, .. } => self.fs.set_acl(node, name, value, true),
            O::Setxattr { name, value, flags, .. } => {
                let mode = match flags {
                    0 => XattrMode::Any,
                    XATTR_CREATE => XattrMode::Create,
                    XATTR_REPLACE => XattrMode::Replace,
                    XATTR_CREATE_AND_REPLACE => XattrMode::Never,
                    _ => return Err(FsError::Invalid),
                };
                self.fs.setxattr(node, name, value, mode)
            }
            O::Getxattr { name, size } => {
                let value = self.fs.getxattr(node, name);
                sized(&value.map_err(|error| self.labels.explain(name, error))?, size, reply)
            }
            O::Listxattr { size } => {
                let mut list = Vec::new();
                let caller = Caller { uid: request.uid, gid: request.gid };
                for name in self.fs.listxattr_for(node, caller)? {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(&list, size, reply)
            }
            O::Removexattr { name } => self.fs.removexattr(node, name),
            _ => Err(FsError::NotSupported),
        }
    }

    fn readdir(&self, node: InodeId, input: &ReadIn, plus: bool, reply: &mut Reply) -> Result<(), FsError> {
        let room = input.size as usize;
        self.fs.readdir(node, input.offset, &mut |entry| {
            let place =
                DirentPlace { node: entry.id.0, cookie: entry.cookie, kind: entry.kind, name: &entry.name };
            let fits = if plus {
                // The kernel takes no reference from "." and "..", nor from what went meanwhile.
                let own = matches!(&entry.name[..], b"." | b"..");
                let found = if own { None } else { self.fs.entry_attributes(entry.id, false).ok() };
                let out = found.as_ref().map(entry_out).unwrap_or_default();
                let fits = reply.dirent(room, &place, Some(&out));
                if fits && found.is_some() {
                    let _ = self.fs.entry_attributes(entry.id, true);
                }
                fits
            } else {
                reply.dirent(room, &place, None)
            };
            if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    fn copy_range(&self, input: &CopyFileRangeIn, opcode: u32, reply: &mut Reply) -> Result<(), FsError> {
        let from = CopyEnd { handle: HandleId(input.fh_in), offset: input.off_in };
        let to = CopyEnd { handle: HandleId(input.fh_out), offset: input.off_out };
        let copied = self.fs.copy_range(from, to, input.len.min(COPY_BYTES_MAX))?;
        match opcode {
            COPY_FILE_RANGE_64 => reply.push(&CopyFileRangeOut { bytes_copied: copied }),
            _ => reply.push(&WriteOut { size: copied as u32, padding: 0 }),
        }
        Ok(())
    }

    fn statfs(&self, reply: &mut Reply) -> Result<(), FsError> {
        let room = self.fs.statfs()?;
        reply.push(&StatfsOut {
            blocks: room.blocks,
            bfree: room.blocks_free,
            bavail: room.blocks_free,
            files: room.inodes,
            ffree: room.inodes_free,
            bsize: room.block_bytes,
            namelen: room.name_bytes_max,
            frsize: room.block_bytes,
            padding: 0,
            spare: [0; 6],
        });
        Ok(())
    }
}

/// An error as the kernel's number. What is a fault, and no answer, stands in the log as well.
pub(crate) fn number(error: &FsError, request: &Request<'_>) -> Errno {
    if let FsError::Store(fault) = error {
        tracing::error!(%fault, opcode = request.opcode, inode = request.node, "an operation failed");
    }
    error.errno()
}

fn open(handle: HandleId, open_flags: u32, reply: &mut Reply) {
    reply.push(&OpenOut { fh: handle.0, open_flags, backing_id: 0 });
}

/// What a new inode gets, by the mode and the umask of a request.
fn options(request: &Request<'_>, (mode, umask): (u32, u32)) -> MakeOptions {
    let caller = Caller { uid: request.uid, gid: request.gid };
    MakeOptions { caller, permissions: mode & 0o7_777, umask: umask & 0o777 }
}

fn rename_flags(request: &Request<'_>, flags: u32) -> Result<RenameFlags, FsError> {
    if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) != 0 {
        return Err(FsError::Invalid);
    }
    Ok(RenameFlags {
        no_replace: flags & RENAME_NOREPLACE != 0,
        exchange: flags & RENAME_EXCHANGE != 0,
        whiteout: (flags & RENAME_WHITEOUT != 0).then_some(Caller { uid: request.uid, gid: request.gid }),
    })
}

fn changes(input: &SetattrIn) -> Changes {
    let has = |bit: u32| input.valid & bit != 0;
    let time = |bit: u32, now: u32, seconds: u64, nanoseconds: u32| {
        if has(now) {
            return Some(TimeChange::Now);
        }
        has(bit).then(|| TimeChange::To(Timestamp::from_parts(seconds as i64, nanoseconds)))
    };
    Changes {
        permissions: has(fattr::MODE).then_some(input.mode & 0o7_777),
        uid: has(fattr::UID).then_some(input.uid),
        gid: has(fattr::GID).then_some(input.gid),
        size: has(fattr::SIZE).then_some(input.size),
        drops_privileges: has(fattr::KILL_SUIDGID) || has(fattr::UID) || has(fattr::GID),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, input.atime, input.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, input.mtime, input.mtimensec),
        ctime: has(fattr::CTIME).then(|| Timestamp::from_parts(input.ctime as i64, input.ctimensec)),
        // When the kernel hands over times it names the open file that they are from. Of those who ask for
        // something only ftruncate(2) does that, and utimensat(2) never, whatever it is called with.
        handed_over: has(fattr::FH) && !has(fattr::SIZE),
    }
}

/// Answers with bytes, or with their number when the kernel only asks for that.
fn sized(bytes: &[u8], size: u32, reply: &mut Reply) -> Result<(), FsError> {
    if size == 0 {
        reply.push(&GetxattrOut { size: bytes.len() as u32, padding: 0 });
        return Ok(());
    }
    if bytes.len() > size as usize {
        return Err(FsError::Range);
    }
    reply.push_bytes(bytes);
    Ok(())
}
