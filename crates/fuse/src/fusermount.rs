//! Mounting for users other than root: through the setuid program that comes with FUSE.
//!
//! It mounts, and hands the connection over as a file descriptor on a socket.

use crate::mount::{MountError, MountOptions};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = "fusermount3";
/// Tells the program on which descriptor the socket is.
const SOCKET: &str = "_FUSE_COMMFD";
const EBUSY: i32 = 16;

/// Mounts and returns the connection.
pub(crate) fn mount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let refused = |source: io::Error| MountError::Mount { path: path.into(), source };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| refused(error.into()))?;
    let mut command = Command::new(PROGRAM);
    command.arg("-o").arg(option_list(options)).arg("--").arg(path);
    // As its standard input the socket is passed on without a descriptor that others could inherit.
    command.env(SOCKET, "0").stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(missing)?;
    // Closes this process's copy of its end, so that the end of the program ends the wait below.
    drop(command);
    let connection = receive(&ours);
    let out = child.wait_with_output().map_err(refused)?;
    match connection {
        Ok(Some(connection)) if out.status.success() => Ok(connection),
        Err(error) => Err(refused(error)),
        Ok(_) => Err(refused(io::Error::other(told(&out.stderr)))),
    }
}

/// Takes a mount away.
pub(crate) fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy { "-uz" } else { "-u" };
    let out = Command::new(PROGRAM).args([flags, "--"]).arg(path).stdin(Stdio::null()).output();
    let out = out.map_err(missing)?;
    if out.status.success() {
        return Ok(());
    }
    let told = told(&out.stderr);
    let busy = told.contains("busy");
    let source = if busy { io::Error::from_raw_os_error(EBUSY) } else { io::Error::other(told) };
    Err(MountError::Unmount { path: path.into(), source })
}

fn missing(error: io::Error) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => MountError::HelperMissing,
        _ => MountError::Helper(error),
    }
}

/// What the program said, without its own name in front.
fn told(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix(PROGRAM).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(line);
    if line.is_empty() { format!("{PROGRAM} gave no reason") } else { line.to_owned() }
}

/// The options as the program takes them; it adds nosuid and nodev itself.
fn option_list(options: &MountOptions) -> String {
    let source = options.source.replace('\\', r"\\").replace(',', r"\,");
    let mut list = format!("fsname={source},subtype=aegisfs,max_read={}", 1 << 20);
    let words = [
        (options.read_only, "ro"),
        (!options.exec, "noexec"),
        (options.no_atime, "noatime"),
        (options.allow_other, "allow_other"),
        (options.default_permissions, "default_permissions"),
    ];
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        list.push(',');
        list.push_str(word);
    }
    list
}

fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_is_told_and_tells() {
        let options = MountOptions {
            source: r"a,b\c".into(),
            read_only: true,
            allow_other: false,
            ..MountOptions::default()
        };
        let list = option_list(&options);
        assert_eq!(list, r"fsname=a\,b\\c,subtype=aegisfs,max_read=1048576,ro,default_permissions");
        assert_eq!(told(b"fusermount3: it is busy\nmore"), "it is busy");
        assert_eq!(told(b""), "fusermount3 gave no reason");
    }

    #[test]
    fn a_descriptor_comes_through_and_silence_is_noticed() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::io::IoSlice;
        use std::os::fd::AsFd;
        let pair =
            || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let (ours, theirs) = pair();
        let descriptors = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&theirs, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert!(receive(&ours).unwrap().is_some());
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(receive(&ours).unwrap().is_none());
    }
}
