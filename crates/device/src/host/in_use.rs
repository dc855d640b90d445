//! Does the system use a device or image already? Asked before anything is written to it.
//!
//! The answer comes from `/proc` and `/sys`. It is for people: what keeps two writers apart is the
//! exclusive opening, which has no gap between the question and the answer.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{describe, file_type, image_path, open_error};
use crate::error::DeviceError;

/// Who uses a device or image, to be read as "it ...".
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InUse {
    /// A mounted filesystem is on it.
    Mounted {
        /// Where.
        at: String,
        /// The kernel's name of the filesystem.
        filesystem: String,
    },
    /// The system swaps to it.
    Swap,
    /// It belongs to another device, such as an md array or a volume group.
    Member {
        /// The other device's name.
        of: String,
    },
    /// A file that a loop device is attached to.
    LoopBacking {
        /// The loop device.
        device: String,
        /// Who uses the loop device in turn.
        by: Option<Box<InUse>>,
    },
    /// A disk with a partition that is in use.
    Partition {
        /// The partition's name.
        name: String,
        /// Who uses it.
        by: Box<InUse>,
    },
    /// Somebody has it open exclusively.
    Held,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { at, filesystem } => write!(f, "is mounted at {at} ({filesystem})"),
            Self::Swap => f.write_str("is used as swap"),
            Self::Member { of } => write!(f, "is part of {of}"),
            Self::LoopBacking { device, by: None } => write!(f, "is attached to {device}"),
            Self::LoopBacking { device, by: Some(by) } => write!(f, "is attached to {device}, which {by}"),
            Self::Partition { name, by } => write!(f, "has a partition {name}, which {by}"),
            Self::Held => f.write_str("is held open by another program"),
        }
    }
}

/// Who uses the device or image at this path, if anybody.
///
/// Another process that has an image open with our own lock is not looked for: opening tells.
///
/// # Errors
/// When there is nothing at the path, or it cannot be looked at.
pub fn in_use(path: &Path) -> Result<Option<InUse>, DeviceError> {
    let path = image_path(path)?;
    let stat = rustix::fs::stat(&path).map_err(|errno| open_error(&path, errno))?;
    let Some(identity) = Identity::of(&stat) else {
        return Err(DeviceError::NotADevice { device: describe(&path) });
    };
    if let Some(by) = mounted_or_swap(identity) {
        return Ok(Some(by));
    }
    match identity {
        Identity::File { .. } => Ok(loop_device_over(&stat)),
        Identity::Block { number } => Ok(member_or_partition(number).or_else(|| held(&path))),
    }
}

/// The loop device attached to a file, if any.
pub(super) fn loop_device_over(stat: &Stat) -> Option<InUse> {
    let wanted = Identity::of(stat)?;
    let over = Loop::all().find(|it| it.file == wanted)?;
    let device = format!("/dev/{}", over.name);
    let by = Identity::at(&device).and_then(mounted_or_swap).map(Box::new);
    Some(InUse::LoopBacking { device, by })
}

/// A file that somebody uses through another loop device, of those that a file is attached to.
pub(super) fn used_through_loop(stat: &Stat) -> Option<InUse> {
    let file = Identity::of(stat)?;
    Loop::all().filter(|it| it.file == file).find_map(|it| it.used())
}

/// The file behind a loop device or a partition of one.
pub fn behind(path: &Path) -> Option<PathBuf> {
    match Identity::of(&rustix::fs::stat(path).ok()?)? {
        Identity::Block { number } => Some(Loop::under(number)?.path),
        Identity::File { .. } => None,
    }
}

/// The file behind a loop device or a partition of one, unless it was deleted, and who else uses the part of it
/// to which that gives access.
pub(super) fn behind_loop(number: u64) -> Option<(PathBuf, Option<InUse>)> {
    let ours = Loop::under(number)?;
    let is_rival = |other: &Loop| other.name != ours.name && other.file == ours.file && other.overlaps(&ours);
    let rival = Loop::all().filter(is_rival).find_map(|other| other.used());
    Some((ours.path, rival))
}

/// A loop device that is attached.
struct Loop {
    name: String,
    path: PathBuf,
    file: Identity,
    /// The part of the file that it shows.
    span: Range<u64>,
}

impl Loop {
    fn all() -> impl Iterator<Item = Self> {
        names_in(Path::new("/sys/block")).filter_map(|name| Self::read(&Path::new("/sys/block").join(name)))
    }

    /// The one with this number, or with a partition of this number.
    fn under(number: u64) -> Option<Self> {
        let folder = fs::canonicalize(sys_folder(number)).ok()?;
        Self::read(&folder).or_else(|| Self::read(folder.parent()?))
    }

    fn read(folder: &Path) -> Option<Self> {
        let text = |name: &str| fs::read_to_string(folder.join("loop").join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let path = text("backing_file")?.trim_end_matches('\n').to_owned();
        let (start, limit) = (number("offset")?, number("sizelimit")?);
        Some(Self {
            name: folder.file_name()?.to_str()?.to_owned(),
            file: Identity::at(&path)?,
            path: path.into(),
            span: start..if limit == 0 { u64::MAX } else { start.saturating_add(limit) },
        })
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.span.start < other.span.end && other.span.start < self.span.end
    }

    /// The loop device as somebody's, if it or a partition of it is.
    fn used(&self) -> Option<InUse> {
        let device = format!("/dev/{}", self.name);
        let by = Identity::at(&device).and_then(mounted_or_swap).or_else(|| held(Path::new(&device)))?;
        Some(InUse::LoopBacking { device, by: Some(Box::new(by)) })
    }
}

/// What stays the same whatever path leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Block { number: u64 },
    File { device: u64, inode: u64 },
}

impl Identity {
    fn of(stat: &Stat) -> Option<Self> {
        match file_type(stat) {
            FileType::BlockDevice => Some(Self::Block { number: stat.st_rdev }),
            FileType::RegularFile => Some(Self::File { device: stat.st_dev, inode: stat.st_ino }),
            _ => None,
        }
    }

    fn at(path: &str) -> Option<Self> {
        // Only absolute paths: a mount's source may as well be "tmpfs" or "server:/folder".
        if !path.starts_with('/') {
            return None;
        }
        Self::of(&rustix::fs::stat(path).ok()?)
    }
}

fn mounted_or_swap(identity: Identity) -> Option<InUse> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines().filter_map(Mount::parse) {
        // btrfs and other volumes over several devices have a number of their own; their source
        // still names one of the devices. Filesystems directly on a file name the file.
        let by_number = matches!(identity, Identity::Block { number } if number == mount.number);
        if by_number || Identity::at(&mount.source) == Some(identity) {
            return Some(InUse::Mounted { at: mount.at, filesystem: mount.filesystem });
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swap_paths(&swaps).any(|path| Identity::at(&path) == Some(identity)).then_some(InUse::Swap)
}

fn member_or_partition(number: u64) -> Option<InUse> {
    let folder = sys_folder(number);
    if let Some(of) = names_in(&folder.join("holders")).next() {
        return Some(InUse::Member { of });
    }
    for name in names_in(&folder).filter(|name| folder.join(name).join("partition").exists()) {
        let text = fs::read_to_string(folder.join(&name).join("dev")).unwrap_or_default();
        let Some(number) = parse_number(text.trim()) else { continue };
        let by = mounted_or_swap(Identity::Block { number }).or_else(|| {
            let of = names_in(&sys_folder(number).join("holders")).next()?;
            Some(InUse::Member { of })
        });
        if let Some(by) = by {
            return Some(InUse::Partition { name, by: Box::new(by) });
        }
    }
    None
}

fn held(path: &Path) -> Option<InUse> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    (rustix::fs::open(path, flags, Mode::empty()).err() == Some(Errno::BUSY)).then_some(InUse::Held)
}

fn sys_folder(number: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn names_in(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: u64,
    at: String,
    filesystem: String,
    source: String,
}

impl Mount {
    /// Reads one line of mountinfo: id, parent, major:minor, root, mount point, options, any
    /// number of tags, a dash, type, source, options.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let number = parse_number(left.next()?)?;
        let at = unescape(left.nth(1)?);
        let mut right = right.split(' ');
        let filesystem = right.next()?.to_owned();
        Some(Self { number, at, filesystem, source: unescape(right.next()?) })
    }
}

/// The paths in `/proc/swaps`, whose first line is a heading.
fn swap_paths(text: &str) -> impl Iterator<Item = String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape)
}

fn parse_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel writes white space and backslashes as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            // A number may have a sign, which is no octal digit.
            digits.iter().all(u8::is_ascii_digit).then_some(())?;
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read_and_bad_ones_skipped() {
        let line = r"36 35 98:0 /root /mnt/a\040b rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot rw";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.number, rustix::fs::makedev(98, 0));
        assert_eq!((mount.at.as_str(), mount.source.as_str()), ("/mnt/a b", r"/dev/ro\ot"));
        assert_eq!(mount.filesystem, "ext3");
        for bad in ["", "36 35", "36 35 98 / /mnt rw - ext3 /dev/x rw", "36 35 98:0 / - ext3", "a b c d e"] {
            assert_eq!(Mount::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn swap_lines_and_escapes() {
        let text = "Filename\tType\tSize\tUsed\tPriority\n/swap\\040file file\t1\t0\t-2\n/dev/sdb2 partition 1 0 1\n";
        assert_eq!(swap_paths(text).collect::<Vec<_>>(), ["/swap file", "/dev/sdb2"]);
        for (text, plain) in
            [(r"a\", r"a\"), (r"\04", r"\04"), (r"\999", r"\999"), (r"\777x", r"\777x"), (r"\+12", r"\+12")]
        {
            assert_eq!(unescape(text), plain);
        }
    }

    #[test]
    fn a_plain_file_is_not_in_use_and_a_pipe_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(in_use(file.path()), Ok(None));
        assert!(matches!(in_use(Path::new("/dev/null")), Err(DeviceError::NotADevice { .. })));
        assert!(matches!(in_use(Path::new("/no/such")), Err(DeviceError::NotFound { .. })));
    }

    #[test]
    fn sentences() {
        let mounted = InUse::Mounted { at: "/mnt".into(), filesystem: "xfs".into() };
        let by = InUse::LoopBacking { device: "/dev/loop3".into(), by: Some(Box::new(mounted)) };
        assert_eq!(by.to_string(), "is attached to /dev/loop3, which is mounted at /mnt (xfs)");
    }
}
