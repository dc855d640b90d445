//! ioctl(2): the few that tools and databases ask any filesystem for.

use crate::abi::{IoctlIn, IoctlOut};
use crate::face::number;
use crate::reply::Reply;
use crate::request::Request;
use aegisfs_base::InodeId;
use aegisfs_fs::{Caller, Errno, Fs, Inode};

/// Asks for and sets the flags of chattr(1).
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// The same in the form of XFS, with a project number.
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
/// Bytes of what XFS's form hands over: the flags, and numbers that have to be zero.
const FSXATTR_BYTES: usize = 28;
/// The calls that 32-bit programs make differ in the size.
const FS_IOC32_GETFLAGS: u32 = 0x8004_6601;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const ENOTTY: Errno = Errno(25);

/// Flags as chattr(1) has them, which are those that are stored, and as XFS has them.
const FLAGS: [(u32, u32); 5] = [
    (Inode::SYNC, 0x20),
    (Inode::IMMUTABLE, 0x08),
    (Inode::APPEND_ONLY, 0x10),
    (Inode::NO_DUMP, 0x80),
    (Inode::NO_ATIME, 0x40),
];

/// Answers an ioctl.
pub(crate) fn answer(
    fs: &Fs,
    request: &Request<'_>,
    input: &IoctlIn,
    data: &[u8],
    reply: &mut Reply,
) -> Result<(), Errno> {
    let id = InodeId(request.node);
    let flags = || fs.flags(id).map_err(|error| number(&error, request));
    let mut out = [0; FSXATTR_BYTES];
    let bytes = match input.cmd {
        FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS => {
            out[..4].copy_from_slice(&flags()?.to_ne_bytes());
            size_of::<u32>()
        }
        FS_IOC_FSGETXATTR => {
            out[..4].copy_from_slice(&to_xfs(flags()?).to_ne_bytes());
            FSXATTR_BYTES
        }
        FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS | FS_IOC_FSSETXATTR => {
            let wanted = wanted(input.cmd, data)?;
            let caller = Caller { uid: request.uid, gid: request.gid };
            fs.set_flags(id, wanted, caller).map_err(|error| number(&error, request))?;
            // The kernel does not know that the time of the inode's change is another one.
            reply.outdated = Some(request.node);
            0
        }
        _ => return Err(ENOTTY),
    };
    reply.push(&IoctlOut::default());
    reply.push_bytes(&out[..bytes.min(input.out_size as usize)]);
    Ok(())
}

/// The flags that a caller wants to have set.
fn wanted(cmd: u32, data: &[u8]) -> Result<u32, Errno> {
    let (word, rest) = data.split_first_chunk().ok_or(Errno::EINVAL)?;
    let word = u32::from_ne_bytes(*word);
    if cmd != FS_IOC_FSSETXATTR {
        // Programs for 64 bits hand over four bytes more than they mean.
        return Ok(word);
    }
    // There are no projects and no sizes of extents to be hinted at; how many extents there are is not for setting.
    let numbers = rest.chunks(4).enumerate().filter(|(place, _)| *place != 1);
    if numbers.flat_map(|(_, bytes)| bytes).any(|byte| *byte != 0) {
        return Err(Errno::EOPNOTSUPP);
    }
    from_xfs(word).ok_or(Errno::EOPNOTSUPP)
}

fn to_xfs(flags: u32) -> u32 {
    FLAGS.iter().filter(|(own, _)| flags & own != 0).fold(0, |all, (_, xfs)| all | xfs)
}

/// Nothing if there is a flag among them that is not known.
fn from_xfs(flags: u32) -> Option<u32> {
    let own = FLAGS.iter().filter(|(_, xfs)| flags & xfs != 0).fold(0, |all, (own, _)| all | own);
    (to_xfs(own) == flags).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_fs::INODE_FLAGS;

    #[test]
    fn both_forms_say_the_same() {
        for (_, flag) in INODE_FLAGS {
            assert_eq!(wanted(FS_IOC_SETFLAGS, &u64::from(flag).to_ne_bytes()), Ok(flag));
            assert_eq!(wanted(FS_IOC32_SETFLAGS, &flag.to_ne_bytes()), Ok(flag));
            let mut long = [0; FSXATTR_BYTES];
            long[..4].copy_from_slice(&to_xfs(flag).to_ne_bytes());
            // How many extents there are.
            long[8] = 7;
            assert_eq!(wanted(FS_IOC_FSSETXATTR, &long), Ok(flag));
        }
        assert_eq!(from_xfs(to_xfs(0xf8)), Some(0xf8));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (at, byte) in [(0, 1), (1, 8), (3, 0x80), (4, 1), (12, 1), (16, 1), (20, 1)] {
            let mut long = [0; FSXATTR_BYTES];
            long[at] = byte;
            assert_eq!(wanted(FS_IOC_FSSETXATTR, &long), Err(Errno::EOPNOTSUPP), "byte {at}");
        }
        assert_eq!(wanted(FS_IOC_SETFLAGS, &[1, 2, 3]), Err(Errno::EINVAL));
    }
}
