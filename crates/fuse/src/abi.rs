//! The kernel's structures, as in its `fuse.h`. Numbers are in the machine's own order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version spoken.
pub(crate) const VERSION: (u32, u32) = (7, 45);
/// The oldest kernel protocol that the structures here fit.
pub(crate) const MINOR_MIN: u32 = 31;

macro_rules! wire {
    ($( $(#[$doc:meta])* $name:ident [$size:expr] { $( $field:ident: $kind:ty, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
            #[repr(C)]
            pub(crate) struct $name { $( pub(crate) $field: $kind, )* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

wire! {
    /// Begins every request.
    InHeader [40] {
        len: u32, opcode: u32, unique: u64, nodeid: u64,
        uid: u32, gid: u32, pid: u32, extension_len: u16, padding: u16,
    }
    /// Begins every reply.
    OutHeader [16] { len: u32, error: i32, unique: u64, }
    Attr [88] {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32,
        uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut [128] {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut [104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    OpenOut [16] { fh: u64, open_flags: u32, backing_id: i32, }
    InitIn [64] {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    InitOut [64] {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11],
    }
    ForgetIn [8] { nlookup: u64, }
    BatchForgetIn [8] { count: u32, dummy: u32, }
    ForgetOne [16] { nodeid: u64, nlookup: u64, }
    GetattrIn [16] { getattr_flags: u32, dummy: u32, fh: u64, }
    SetattrIn [88] {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32,
    }
    NotifyInvalInodeOut [24] { ino: u64, off: i64, len: i64, }
    MknodIn [16] { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkdirIn [8] { mode: u32, umask: u32, }
    RenameIn [8] { newdir: u64, }
    Rename2In [16] { newdir: u64, flags: u32, padding: u32, }
    LinkIn [8] { oldnodeid: u64, }
    OpenIn [8] { flags: u32, open_flags: u32, }
    CreateIn [16] { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    ReleaseIn [24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    FlushIn [24] { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    ReadIn [40] {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn [40] {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteOut [8] { size: u32, padding: u32, }
    StatfsOut [80] {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    FsyncIn [16] { fh: u64, fsync_flags: u32, padding: u32, }
    SetxattrIn [16] { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    GetxattrIn [8] { size: u32, padding: u32, }
    GetxattrOut [8] { size: u32, padding: u32, }
    InterruptIn [8] { unique: u64, }
    FallocateIn [32] { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    LseekIn [24] { fh: u64, offset: u64, whence: u32, padding: u32, }
    LseekOut [8] { offset: u64, }
    IoctlIn [32] { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    IoctlOut [16] { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    CopyFileRangeIn [56] {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    CopyFileRangeOut [8] { bytes_copied: u64, }
    StatxIn [24] { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    StatxTime [16] { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    Statx [256] {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: StatxTime, btime: StatxTime, ctime: StatxTime, mtime: StatxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut [288] { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
    Dirent [24] { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// What a ring hands over beside names and data: the header of the request or of the reply, the structure
    /// of the opcode, and what belongs to the place in the ring.
    RingHeaders [288] { in_out: [u64; 16], op_in: [u64; 16], place: RingPlace, }
    RingPlace [32] { flags: u64, commit_id: u64, payload_bytes: u32, padding: u32, reserved: u64, }
    /// Goes with each command of a ring.
    RingCommand [24] { flags: u64, commit_id: u64, queue: u16, padding: [u8; 6], }
}

/// What a session may ask for; 64 bits over the two flag words.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// Commands of a ring: offer a place for a request, and answer one and wait for the next.
pub(crate) mod ring {
    pub(crate) const REGISTER: u32 = 1;
    pub(crate) const COMMIT_AND_FETCH: u32 = 2;
}

/// Bits of `SetattrIn::valid`.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const CTIME: u32 = 1 << 10;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// The opcode of a copy_file_range whose answer tells bytes in 64 bits.
pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
/// Bit of `WriteIn::write_flags`: the kernel writes back what it cached.
pub(crate) const WRITE_CACHE: u32 = 1;
/// Bit of `WriteIn::write_flags`: the writer may not keep setuid and setgid bits.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Notice that what the kernel keeps of an inode no longer holds, in place of an error number.
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
/// Bit of `SetxattrIn::setxattr_flags`: whoever sets an ACL may not keep the setgid bit.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Open flag of a reply: the kernel caches nothing of what is written through this handle.
pub(crate) const FOPEN_DIRECT_IO: u32 = 1;
/// Open flag of a reply: what the kernel has cached of the file is still right.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
