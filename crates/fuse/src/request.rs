//! Requests: from the kernel's bytes to a value. Any bytes are taken without panicking.

use crate::abi::*;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Why bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too few bytes, or a length that does not fit them.
    #[error("a request of opcode {opcode} is cut short")]
    Short {
        /// The opcode, as far as it was there.
        opcode: u32,
    },
    /// A name without its end.
    #[error("a name in a request of opcode {opcode} has no end")]
    Name {
        /// The opcode.
        opcode: u32,
    },
}

/// A request, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel's number for it.
    pub unique: u64,
    /// The inode it is about.
    pub node: u64,
    /// On whose behalf.
    pub uid: u32,
    /// On whose behalf.
    pub gid: u32,
    /// Its opcode.
    pub opcode: u32,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names and fields are those of the protocol")]
#[expect(private_interfaces, reason = "the kernel's structures stay inside this crate")]
pub enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget {
        entries: &'a [u8],
    },
    Getattr,
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        input: MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        input: MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        new_parent: u64,
        flags: u32,
        old: &'a [u8],
        new: &'a [u8],
    },
    Link {
        source: u64,
        name: &'a [u8],
    },
    Open {
        flags: u32,
    },
    Read(ReadIn),
    Write {
        input: WriteIn,
        data: &'a [u8],
    },
    Statfs,
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
    },
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        drops_setgid: bool,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush,
    Init(InitIn),
    Opendir,
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Fsyncdir,
    Create {
        input: CreateIn,
        name: &'a [u8],
    },
    Tmpfile(CreateIn),
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// Everything written before becomes durable; asked for mounts of block devices only.
    Syncfs,
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    CopyFileRange(CopyFileRangeIn),
    Statx(StatxIn),
    Ioctl {
        input: IoctlIn,
        data: &'a [u8],
    },
    /// Anything else; the opcode stands in the request.
    Other,
}

/// A cursor over a request's body.
struct Body<'a> {
    opcode: u32,
    /// The structure of the opcode, where it lies apart from what follows it.
    head: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, RequestError> {
        let head = self.head.take();
        let (value, rest) = T::read_from_prefix(head.unwrap_or(self.rest))
            .map_err(|_| RequestError::Short { opcode: self.opcode })?;
        if head.is_none() {
            self.rest = rest;
        }
        Ok(value)
    }

    fn name(&mut self) -> Result<&'a [u8], RequestError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or(RequestError::Name { opcode: self.opcode })?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }

    fn bytes(&mut self, count: u32) -> Result<&'a [u8], RequestError> {
        let short = RequestError::Short { opcode: self.opcode };
        let (bytes, rest) = self.rest.split_at_checked(count as usize).ok_or(short)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Request<'a> {
    /// Reads a request.
    ///
    /// # Errors
    /// When the bytes are not one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RequestError> {
        let (header, rest) =
            InHeader::read_from_prefix(bytes).map_err(|_| RequestError::Short { opcode: 0 })?;
        let opcode = header.opcode;
        if (header.len as usize) > bytes.len() || (header.len as usize) < size_of::<InHeader>() {
            return Err(RequestError::Short { opcode });
        }
        let rest = &rest[..header.len as usize - size_of::<InHeader>()];
        Self::new(&header, Body { opcode, head: None, rest })
    }

    /// Reads a request that came in three parts, as rings hand them over: header, the structure of its opcode,
    /// and what follows that.
    ///
    /// # Errors
    /// When they are not one.
    pub(crate) fn decode_parts(header: &[u8], head: &'a [u8], rest: &'a [u8]) -> Result<Self, RequestError> {
        let (header, _) =
            InHeader::read_from_prefix(header).map_err(|_| RequestError::Short { opcode: 0 })?;
        Self::new(&header, Body { opcode: header.opcode, head: Some(head), rest })
    }

    fn new(header: &InHeader, mut body: Body<'a>) -> Result<Self, RequestError> {
        Ok(Self {
            unique: header.unique,
            node: header.nodeid,
            uid: header.uid,
            gid: header.gid,
            opcode: header.opcode,
            operation: decode_operation(header.opcode, &mut body)?,
        })
    }
}

fn decode_operation<'a>(opcode: u32, body: &mut Body<'a>) -> Result<Operation<'a>, RequestError> {
    use Operation as O;
    Ok(match opcode {
        1 => O::Lookup { name: body.name()? },
        2 => O::Forget { count: body.take::<ForgetIn>()?.nlookup },
        3 => O::Getattr,
        4 => O::Setattr(body.take()?),
        5 => O::Readlink,
        6 => O::Symlink { name: body.name()?, target: body.name()? },
        8 => O::Mknod { input: body.take()?, name: body.name()? },
        9 => O::Mkdir { input: body.take()?, name: body.name()? },
        10 => O::Unlink { name: body.name()? },
        11 => O::Rmdir { name: body.name()? },
        12 => {
            let input: RenameIn = body.take()?;
            O::Rename { new_parent: input.newdir, flags: 0, old: body.name()?, new: body.name()? }
        }
        13 => O::Link { source: body.take::<LinkIn>()?.oldnodeid, name: body.name()? },
        14 => O::Open { flags: body.take::<OpenIn>()?.flags },
        15 => O::Read(body.take()?),
        16 => {
            let input: WriteIn = body.take()?;
            O::Write { input, data: body.bytes(input.size)? }
        }
        17 => O::Statfs,
        18 => O::Release { handle: body.take::<ReleaseIn>()?.fh },
        20 => O::Fsync { handle: body.take::<FsyncIn>()?.fh },
        21 => {
            let input: SetxattrIn = body.take()?;
            O::Setxattr {
                name: body.name()?,
                value: body.bytes(input.size)?,
                flags: input.flags,
                drops_setgid: input.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0,
            }
        }
        22 => {
            let input: GetxattrIn = body.take()?;
            O::Getxattr { name: body.name()?, size: input.size }
        }
        23 => O::Listxattr { size: body.take::<GetxattrIn>()?.size },
        24 => O::Removexattr { name: body.name()? },
        25 => O::Flush,
        26 => O::Init(body.take()?),
        27 => O::Opendir,
        28 => O::Readdir(body.take()?),
        44 => O::Readdirplus(body.take()?),
        _ => decode_later(opcode, body)?,
    })
}

fn decode_later<'a>(opcode: u32, body: &mut Body<'a>) -> Result<Operation<'a>, RequestError> {
    use Operation as O;
    Ok(match opcode {
        30 => O::Fsyncdir,
        35 => O::Create { input: body.take()?, name: body.name()? },
        36 => O::Interrupt { unique: body.take::<InterruptIn>()?.unique },
        38 => O::Destroy,
        39 => {
            let input: IoctlIn = body.take()?;
            O::Ioctl { input, data: body.bytes(input.in_size)? }
        }
        42 => {
            let input: BatchForgetIn = body.take()?;
            let bytes = input.count.checked_mul(size_of::<ForgetOne>() as u32);
            O::BatchForget { entries: body.bytes(bytes.ok_or(RequestError::Short { opcode })?)? }
        }
        43 => O::Fallocate(body.take()?),
        45 => {
            let input: Rename2In = body.take()?;
            let (old, new) = (body.name()?, body.name()?);
            O::Rename { new_parent: input.newdir, flags: input.flags, old, new }
        }
        46 => O::Lseek(body.take()?),
        47 | COPY_FILE_RANGE_64 => O::CopyFileRange(body.take()?),
        50 => O::Syncfs,
        51 => O::Tmpfile(body.take()?),
        52 => O::Statx(body.take()?),
        _ => O::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique: 7, nodeid: 1, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn names_end_and_lengths_fit() {
        let bytes = request(1, b"name\0");
        let Operation::Lookup { name } = Request::decode(&bytes).unwrap().operation else { panic!() };
        assert_eq!(name, b"name");
        assert_eq!(Request::decode(&request(1, b"name")).unwrap_err(), RequestError::Name { opcode: 1 });
        let write = WriteIn { size: 10, ..WriteIn::default() };
        let short = request(16, &[write.as_bytes(), b"123"].concat());
        assert_eq!(Request::decode(&short).unwrap_err(), RequestError::Short { opcode: 16 });
        let batch = BatchForgetIn { count: u32::MAX, dummy: 0 };
        assert!(Request::decode(&request(42, batch.as_bytes())).is_err());
    }

    /// Both transports bring the same request.
    #[test]
    fn parts_are_read_like_one_piece() {
        let write = WriteIn { fh: 3, offset: 5, size: 4, ..WriteIn::default() };
        let rename = Rename2In { newdir: 9, flags: 1, padding: 0 };
        let cases: [(u32, &[u8], &[u8]); 4] = [
            (16, write.as_bytes(), b"data"),
            (45, rename.as_bytes(), b"old\0new\0"),
            (1, &[], b"name\0"),
            (17, &[], &[]),
        ];
        for (opcode, head, rest) in cases {
            let bytes = request(opcode, &[head, rest].concat());
            let mut room = [0u8; 128];
            room[..head.len()].copy_from_slice(head);
            let parts = Request::decode_parts(&bytes[..40], &room, rest).unwrap();
            assert_eq!(format!("{parts:?}"), format!("{:?}", Request::decode(&bytes).unwrap()));
        }
        assert!(Request::decode_parts(&request(16, &[])[..40], write.as_bytes(), b"dat").is_err());
        assert!(Request::decode_parts(&[1; 39], &[0; 128], &[]).is_err());
    }

    #[test]
    fn any_cut_of_any_opcode_is_refused_or_read() {
        for opcode in 0..60 {
            let bytes = request(opcode, &[b'a'; 120]);
            for length in 0..bytes.len() {
                let mut cut = bytes[..length].to_vec();
                let _ = Request::decode(&cut);
                if length >= 4 {
                    cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                    let _ = Request::decode(&cut);
                }
            }
        }
    }
}
