//! ioctl(2): the few that tools and databases ask any filesystem for.

use crate::abi::{IoctlIn, IoctlOut};
use crate::reply::Reply;
use aegisfs_fs::Errno;

/// Asks for and sets the flags of chattr(1).
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// The same in the form of XFS, with a project number.
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
/// Bytes of what XFS's form hands over.
const FSXATTR_BYTES: usize = 28;
/// The calls that 32-bit programs make differ in the size.
const FS_IOC32_GETFLAGS: u32 = 0x8004_6601;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const ENOTTY: Errno = Errno(25);

/// Answers an ioctl. No flags are stored, so none are set and none can be.
pub(crate) fn answer(input: &IoctlIn, data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    let zeros = match input.cmd {
        FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS => size_of::<u32>(),
        FS_IOC_FSGETXATTR => FSXATTR_BYTES,
        FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS | FS_IOC_FSSETXATTR => {
            if data.iter().any(|byte| *byte != 0) {
                return Err(Errno::EOPNOTSUPP);
            }
            0
        }
        _ => return Err(ENOTTY),
    };
    reply.push(&IoctlOut::default());
    reply.push_bytes(&[0; FSXATTR_BYTES][..zeros.min(input.out_size as usize)]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_none_and_the_rest_is_no_terminal() {
        let mut reply = Reply::default();
        let mut ask = |cmd: u32, out_size: u32, data: &[u8]| {
            reply.clear();
            let input = IoctlIn { cmd, out_size, in_size: data.len() as u32, ..IoctlIn::default() };
            answer(&input, data, &mut reply).map(|()| reply.body_bytes())
        };
        assert_eq!(ask(FS_IOC_GETFLAGS, 4, &[]), Ok(20));
        assert_eq!(ask(FS_IOC_FSGETXATTR, 28, &[]), Ok(44));
        assert_eq!(ask(FS_IOC_SETFLAGS, 0, &[0; 4]), Ok(16));
        assert_eq!(ask(FS_IOC_SETFLAGS, 0, &[0x10, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        for unknown in [0x5401, 0, u32::MAX] {
            assert_eq!(ask(unknown, 60, &[]), Err(ENOTTY));
        }
    }
}
