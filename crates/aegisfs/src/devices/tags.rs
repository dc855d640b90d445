//! LABEL= and UUID=: the device that holds what a superblock says.

use crate::failure::{Exit, Failure};
use crate::places;
use aegisfs_device::IMAGE_FILE_NAME;
use aegisfs_format::layout::{HEADER_AREA_BYTES, SUPERBLOCK_BYTES, superblock_offset};
use aegisfs_format::superblock::Superblock;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

/// Before a tag it keeps mount(8) from looking itself, which it does in vain: it does not know our superblocks.
const FOR_HELPER: &str = "aegisfs:";

/// How a device is asked for.
enum Tag<'a> {
    Label(&'a str),
    Uuid(String),
}

impl<'a> Tag<'a> {
    fn parse(word: &'a Path) -> Option<Self> {
        let word = word.to_str()?;
        let (kind, value) = word.strip_prefix(FOR_HELPER).unwrap_or(word).split_once('=')?;
        let value = value.trim_matches('"');
        match kind {
            "LABEL" => Some(Self::Label(value)),
            "UUID" => Some(Self::Uuid(plain(value))),
            _ => None,
        }
    }

    fn fits(&self, superblock: &Superblock) -> bool {
        match self {
            Self::Label(label) => superblock.label == *label,
            Self::Uuid(uuid) => plain(&superblock.pool.to_string()) == *uuid,
        }
    }
}

/// A number without what people write differently.
fn plain(uuid: &str) -> String {
    uuid.to_lowercase().replace('-', "")
}

/// Whether a word names a device by what it holds.
pub(crate) fn is_tag(word: &Path) -> bool {
    Tag::parse(word).is_some()
}

/// The path of what the command line names: a path as it is, or the device with a label or number.
///
/// # Errors
/// When no device fits, or more than one.
pub(crate) fn resolve(word: &Path) -> Result<PathBuf, Failure> {
    let Some(tag) = Tag::parse(word) else { return Ok(word.to_owned()) };
    let fitting = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
        paths.into_iter().filter(|path| read_superblock(path).is_some_and(|found| tag.fits(&found))).collect()
    };
    // An image that a loop device is attached to would be found twice: block devices come first.
    let mut found = fitting(block_devices());
    if found.is_empty() {
        found = fitting(images());
    }
    let pools: BTreeSet<_> =
        found.iter().filter_map(|path| read_superblock(path)).map(|block| block.pool.0).collect();
    match &found[..] {
        // The members of one pool lead to each other.
        [device, ..] if pools.len() == 1 => Ok(device.clone()),
        [] => {
            let message = format!("no device has {}", word.display());
            Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message)
                .hint("image files are found this way once they were formatted or mounted here"))
        }
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let message = format!("{} is on {}", word.display(), names.join(" and "));
            Err(Failure::new("E_AMBIGUOUS", Exit::Usage, message).hint("name the device itself"))
        }
    }
}

/// Every block device and partition that the kernel knows.
pub(super) fn block_devices() -> Vec<PathBuf> {
    let list = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    list.lines().filter_map(|line| line.split_whitespace().nth(3)).filter_map(device_node).collect()
}

/// The kernel's names have an exclamation mark where the folder below /dev has a slash; the heading is none.
fn device_node(name: &str) -> Option<PathBuf> {
    let path = Path::new("/dev").join(name.replace('!', "/"));
    path.exists().then_some(path)
}

pub(super) fn images() -> Vec<PathBuf> {
    let list = std::fs::read(places::image_list()).unwrap_or_default();
    let lines = list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).filter(|path| path.is_file()).collect()
}

/// Notes an image file, so that it is found by its label later; one that is gone is forgotten.
pub(crate) fn remember(device: &Path) {
    let path = places::canonical(device);
    if !path.is_file() || path.as_os_str().as_bytes().contains(&b'\n') {
        return;
    }
    let mut known = images();
    if known.contains(&path) {
        return;
    }
    known.push(path);
    if let Err(error) = write_list(&known) {
        tracing::warn!(%error, "the list of images cannot be written; this one is found by its path only");
    }
}

fn write_list(known: &[PathBuf]) -> std::io::Result<()> {
    let list = places::image_list();
    if let Some(folder) = list.parent() {
        places::make_private(folder)?;
    }
    let mut bytes = Vec::new();
    for path in known {
        bytes.extend(path.clone().into_os_string().into_vec());
        bytes.push(b'\n');
    }
    // Another command may read it at the same time, and must find the old list or the new one.
    let new = list.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, list)
}

/// The newest superblock of a device, whoever has it open.
pub(crate) fn read_superblock(path: &Path) -> Option<Superblock> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    let inside = path.join(IMAGE_FILE_NAME);
    let path = if kind.is_dir() { &inside } else { path };
    // Whoever opens a pipe waits.
    if !kind.is_dir() && !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let bytes = file.seek(SeekFrom::End(0)).ok()?;
    let last_area = bytes / 4096 * 4096;
    let last_area = last_area.checked_sub(HEADER_AREA_BYTES)?;
    let mut block = vec![0u8; SUPERBLOCK_BYTES];
    let mut newest: Option<Superblock> = None;
    for place in [0, last_area].into_iter().flat_map(|area| [0, 1].map(|slot| area + superblock_offset(slot)))
    {
        let read = file.read_exact_at(&mut block, place);
        if read.is_ok()
            && let Ok(found) = Superblock::decode(&block)
            && newest.as_ref().is_none_or(|newest| newest.generation < found.generation)
        {
            newest = Some(found);
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_from_paths() {
        assert_eq!(resolve(Path::new("/dev/x=y")).unwrap(), Path::new("/dev/x=y"));
        assert!(matches!(Tag::parse(Path::new("LABEL=\"a b\"")), Some(Tag::Label("a b"))));
        assert!(matches!(Tag::parse(Path::new("aegisfs:LABEL=a")), Some(Tag::Label("a"))));
        let Some(Tag::Uuid(uuid)) = Tag::parse(Path::new("UUID=AB-CD")) else { panic!() };
        assert_eq!(uuid, "abcd");
        let failure = resolve(Path::new("LABEL=nobody has this one")).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
    }
}
