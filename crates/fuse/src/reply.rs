//! Replies: bytes for the kernel.

use crate::abi::*;
use aegisfs_base::Timestamp;
use aegisfs_fs::{Attributes, Errno, Inode};
use zerocopy::{Immutable, IntoBytes};

/// How long the kernel may rely on what it was told. Only this daemon changes the data.
const VALID_SECONDS: u64 = 3600;
const HEADER_BYTES: usize = size_of::<OutHeader>();

/// A reply being put together; one buffer serves a reader thread for all its requests.
#[derive(Debug, Default)]
pub struct Reply {
    /// As long as the longest reply so far.
    bytes: Vec<u8>,
    /// Bytes of this reply, its header included.
    length: usize,
    /// The kernel knows where the bytes lie: they never move.
    bound: bool,
    /// The inode whose attributes the kernel is told to forget first.
    pub(crate) outdated: Option<u64>,
}

impl Reply {
    /// A reply whose body has room for so many bytes and never moves, so that the kernel may read and write it.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { bytes: vec![0; HEADER_BYTES + bytes], length: HEADER_BYTES, bound: true, outdated: None }
    }

    /// The room for the body. It holds what was left there.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER_BYTES..]
    }

    /// Starts over.
    pub(crate) fn clear(&mut self) {
        self.length = 0;
        self.outdated = None;
        self.push_bytes(&[0; HEADER_BYTES]);
    }

    /// Bytes of the body so far.
    pub(crate) fn body_bytes(&self) -> usize {
        self.length - HEADER_BYTES
    }

    /// Appends a structure.
    pub(crate) fn push<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.push_bytes(value.as_bytes());
    }

    /// Appends bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Bytes added at the end. They hold what an earlier reply left there.
    fn grow(&mut self, count: usize) -> &mut [u8] {
        let start = self.length;
        self.length += count;
        if self.bytes.len() < self.length {
            assert!(!self.bound, "a reply of {} bytes outgrows its place", self.length);
            self.bytes.resize(self.length, 0);
        }
        &mut self.bytes[start..self.length]
    }

    /// Room for so many bytes, all of them to be written to and then cut to what was used.
    pub(crate) fn space(&mut self, count: usize) -> &mut [u8] {
        self.length = HEADER_BYTES;
        self.grow(count)
    }

    /// Cuts the body.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.length = self.length.min(HEADER_BYTES + count);
    }

    /// Puts the header in front; an error has no body.
    pub(crate) fn finish(&mut self, unique: u64, outcome: Result<(), Errno>) -> &[u8] {
        let header = self.header(unique, outcome);
        self.bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        &self.bytes[..self.length]
    }

    /// The header, for whoever hands it over by itself; an error has no body.
    pub(crate) fn header(&mut self, unique: u64, outcome: Result<(), Errno>) -> OutHeader {
        if outcome.is_err() {
            self.length = HEADER_BYTES;
        }
        let error = outcome.err().map_or(0, |errno| -errno.0);
        OutHeader { len: self.length as u32, error, unique }
    }

    /// The body so far.
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..self.length]
    }

    pub(crate) fn entry(&mut self, attributes: &Attributes) {
        self.push(&entry_out(attributes));
    }

    /// Says that there is no such name, which the kernel may remember too.
    pub(crate) fn negative_entry(&mut self) {
        self.push(&EntryOut { entry_valid: VALID_SECONDS, ..EntryOut::default() });
    }

    pub(crate) fn attributes(&mut self, attributes: &Attributes) {
        let attr = attr(attributes);
        self.push(&AttrOut { attr_valid: VALID_SECONDS, attr_valid_nsec: 0, dummy: 0, attr });
    }

    pub(crate) fn statx(&mut self, attributes: &Attributes) {
        self.push(&statx_out(attributes));
    }

    /// Appends a directory entry if there is room; says whether there was.
    pub(crate) fn dirent(&mut self, room: usize, place: &DirentPlace<'_>, entry: Option<&EntryOut>) -> bool {
        let plus = if entry.is_some() { size_of::<EntryOut>() } else { 0 };
        let bytes = plus + (size_of::<Dirent>() + place.name.len()).next_multiple_of(8);
        if self.body_bytes() + bytes > room {
            return false;
        }
        let end = self.length + bytes;
        if let Some(entry) = entry {
            self.push(entry);
        }
        self.push(&Dirent {
            ino: place.node,
            off: place.cookie,
            namelen: place.name.len() as u32,
            kind: u32::from(place.kind),
        });
        self.push_bytes(place.name);
        self.grow(end - self.length).fill(0);
        true
    }
}

/// A directory entry as the kernel wants it.
pub(crate) struct DirentPlace<'a> {
    pub(crate) node: u64,
    pub(crate) cookie: u64,
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
}

pub(crate) fn entry_out(attributes: &Attributes) -> EntryOut {
    EntryOut {
        nodeid: attributes.id.0,
        generation: attributes.inode.generation,
        entry_valid: VALID_SECONDS,
        attr_valid: VALID_SECONDS,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr(attributes),
    }
}

fn attr(attributes: &Attributes) -> Attr {
    let inode = &attributes.inode;
    let seconds = |time: Timestamp| time.seconds() as u64;
    Attr {
        ino: attributes.id.0,
        size: inode.size,
        blocks: attributes.allocated.div_ceil(512),
        atime: seconds(inode.atime),
        mtime: seconds(inode.mtime),
        ctime: seconds(inode.ctime),
        atimensec: inode.atime.nanoseconds(),
        mtimensec: inode.mtime.nanoseconds(),
        ctimensec: inode.ctime.nanoseconds(),
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn statx_out(attributes: &Attributes) -> StatxOut {
    /// Everything of the basic set, and the birth time.
    const BASIC_AND_BIRTH: u32 = 0xfff;
    /// Flags that statx(2) shows, under the same numbers.
    const ATTRIBUTES: u64 = (Inode::IMMUTABLE | Inode::APPEND_ONLY | Inode::NO_DUMP) as u64;
    let inode = &attributes.inode;
    let time =
        |time: Timestamp| StatxTime { tv_sec: time.seconds(), tv_nsec: time.nanoseconds(), reserved: 0 };
    let stat = Statx {
        mask: BASIC_AND_BIRTH,
        attributes: u64::from(inode.flags) & ATTRIBUTES,
        attributes_mask: ATTRIBUTES,
        blksize: 4096,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        mode: inode.mode as u16,
        ino: attributes.id.0,
        size: inode.size,
        blocks: attributes.allocated.div_ceil(512),
        atime: time(inode.atime),
        btime: time(inode.btime),
        ctime: time(inode.ctime),
        mtime: time(inode.mtime),
        // The kernel packs device numbers as 12 bits of major around 20 bits of minor.
        rdev_major: (inode.rdev >> 8) & 0xfff,
        rdev_minor: (inode.rdev & 0xff) | ((inode.rdev >> 12) & 0xf_ff00),
        ..Statx::default()
    };
    StatxOut { attr_valid: VALID_SECONDS, attr_valid_nsec: 0, flags: 0, spare: [0; 2], stat }
}
