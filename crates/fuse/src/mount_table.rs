//! The kernel's list of mounts, as far as it is about ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem's type as the kernel lists it.
pub(crate) const FS_TYPE: &str = "fuse.aegisfs";
/// The same, mounted from a block device.
pub(crate) const BLOCK_FS_TYPE: &str = "fuseblk.aegisfs";

/// A mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The device number that files on it have, as `major:minor`.
    pub number: String,
    /// Where it is.
    pub point: PathBuf,
    /// Options of the mount point, separated by commas.
    pub options: String,
    /// What the kernel shows as its source.
    pub source: OsString,
    /// Options of the filesystem, separated by commas.
    pub super_options: String,
}

impl MountEntry {
    /// Reads a line of mountinfo: id, parent, number, root, mount point, options, any number of tags, a dash,
    /// type, source, options.
    fn parse(line: &[u8]) -> Option<(Self, bool)> {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = text(fields.nth(2)?);
        let point = PathBuf::from(unescape(fields.nth(1)?));
        let options = text(fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = fields.next()?;
        let ours = [FS_TYPE, BLOCK_FS_TYPE].iter().any(|own| fs_type == own.as_bytes());
        let source = unescape(fields.next()?);
        let super_options = text(fields.next()?);
        Some((Self { number, point, options, source, super_options }, ours))
    }

    /// Whether nothing can be written through it.
    pub fn read_only(&self) -> bool {
        [&self.options, &self.super_options].iter().any(|list| list.split(',').any(|word| word == "ro"))
    }
}

/// The mount of ours that a path is the mount point of, if nothing else is mounted over it.
pub fn find_mount(path: &Path) -> Option<MountEntry> {
    find_in(&std::fs::read("/proc/self/mountinfo").ok()?, path)
}

/// Whether a path is one of our mounts.
pub fn is_fuse_mount(path: &Path) -> bool {
    find_mount(path).is_some()
}

fn find_in(list: &[u8], path: &Path) -> Option<MountEntry> {
    let mut lines = list.split(|byte| *byte == b'\n').filter_map(MountEntry::parse);
    // What is mounted over another mount stands behind it.
    let (entry, ours) = lines.rfind(|(entry, _)| entry.point == path)?;
    ours.then_some(entry)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The kernel writes blanks and the like as a backslash and three octal digits.
fn unescape(bytes: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let octal = digits.filter(|d| d.iter().all(u8::is_ascii_digit)).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        out.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"22 1 0:20 / / rw - ext4 /dev/root rw\n\
        36 22 0:43 / /mnt/a\\040b ro,nosuid,noatime shared:2 - fuse.aegisfs /im\\134g rw,user_id=0\n\
        37 22 0:44 / /mnt/over rw - fuse.aegisfs /dev/x rw\n\
        39 22 7:1 / /mnt/block rw - fuseblk.aegisfs /dev/loop1 rw,blksize=4096\n\
        38 37 0:45 / /mnt/over rw - tmpfs none rw\nnonsense\n1 2 3\n";

    #[test]
    fn mounts_are_found_unless_covered() {
        let entry = find_in(LIST, Path::new("/mnt/a b")).unwrap();
        assert_eq!((entry.number.as_str(), entry.source.to_str()), ("0:43", Some(r"/im\g")));
        assert!(entry.read_only() && entry.options == "ro,nosuid,noatime");
        assert_eq!(find_in(LIST, Path::new("/mnt/block")).unwrap().number, "7:1");
        assert_eq!(find_in(LIST, Path::new("/mnt/over")), None);
        assert_eq!(find_in(LIST, Path::new("/")), None);
    }

    #[test]
    fn escapes() {
        for (text, plain) in
            [(r"/a\040b\134c", r"/a b\c"), (r"/\9", r"/\9"), (r"\", r"\"), (r"\777", r"\777")]
        {
            assert_eq!(unescape(text.as_bytes()), plain);
        }
    }
}
