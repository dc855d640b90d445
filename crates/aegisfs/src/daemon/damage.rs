//! What the daemon answers about damage.

use crate::output;
use aegisfs_format::value::Mended;
use aegisfs_fs::{Fs, FsError, Healed, LostPart, Paths};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of an answer in which parts of files are named; of more only the number is told. A name may be there twice, and what
/// is said beside it takes so much.
const NAMED_BYTES_MAX: usize = 700 << 10;
const BESIDE_NAME_BYTES: usize = 256;
/// Files that are named of those which share a chunk.
const FILES_NAMED_MAX: usize = 4;

/// Which parts of which files cannot be read.
pub(super) fn describe(fs: &Fs) -> Result<Value, FsError> {
    let parts = fs.lost_parts()?;
    let mut room = NAMED_BYTES_MAX;
    let fits = |part: &&LostPart| {
        let needed = BESIDE_NAME_BYTES + 3 * part.path.as_ref().map_or(0, Vec::len);
        let left = room.checked_sub(needed);
        room = left.unwrap_or(0);
        left.is_some()
    };
    let named = parts.iter().take_while(fits).map(|part| {
        let damage = part.chunk.damage;
        let mut named = json!({
            "inode": part.range.inode.0,
            "offset": part.range.offset,
            "bytes": part.range.length,
            "chunk": part.range.chunk.0,
            "segment": damage.segment.0,
            "device": damage.device.0,
            "found_unix_seconds": damage.found.seconds(),
            "healed": false,
        });
        if let Some(path) = &part.path {
            output::put_path(&mut named, "path", Path::new(OsStr::from_bytes(path)));
        }
        named
    });
    let bytes: u64 = parts.iter().map(|part| part.range.length).sum();
    Ok(json!({ "count": parts.len(), "bytes": bytes, "parts": named.collect::<Vec<_>>() }))
}

/// What was damaged and is mended.
pub(super) fn mended(fs: &Fs) -> Result<Value, FsError> {
    let one = |(mended, files): (Mended, Paths)| {
        let mut one = json!({
            "chunk": mended.chunk.map(|chunk| chunk.0),
            "segment": mended.damage.segment.0,
            "slot_offset": mended.damage.slot_offset,
            "cell": mended.damage.cell,
            "device": mended.damage.device.0,
            "found_unix_seconds": mended.damage.found.seconds(),
            "healed": true,
        });
        let files = files.iter().take(FILES_NAMED_MAX).map(|path| Path::new(OsStr::from_bytes(path)));
        output::put_paths(&mut one, "paths", files);
        one
    };
    let mended: Vec<Value> = fs.mended()?.into_iter().map(one).collect();
    Ok(json!({ "count": mended.len(), "mended": mended }))
}

/// Looks for the lost bytes elsewhere.
pub(super) fn heal(fs: &Fs, path: &Path) -> std::io::Result<Value> {
    let done = fs.heal_from(path)?;
    fs.sync().map_err(std::io::Error::other)?;
    Ok(healed(&done))
}

/// What came of that, or has so far.
pub(super) fn healed(done: &Healed) -> Value {
    json!({
        "lost": done.lost,
        "healed": done.healed,
        "files": done.files,
        "bytes": done.bytes,
        "unreadable": done.unreadable,
    })
}
