//! remount: a mount's options change while it is used.

use super::umount::holders;
use crate::commands::living;
use crate::failure::{Exit, Failure};
use crate::mount_options::Options;
use std::path::{Path, PathBuf};

/// Changes a mount as the options say; returns its device.
///
/// Going read-only, the kernel refuses while something is open for writing, and otherwise hands over what it
/// holds; then the daemon makes a checkpoint. So what was written before is on the device, whatever comes.
pub(super) fn run(mount: &Path, lists: &[String]) -> Result<PathBuf, Failure> {
    let Some(entry) = aegisfs_fuse::find_mount(mount) else {
        let message = format!("{} is not an AegisFS mount", mount.display());
        return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message));
    };
    let daemon = living(mount)?;
    let options = Options::parse_over(&entry, lists)?;
    let writeback = daemon.status["settings"]["mount"]["writeback"]["value"].as_bool();
    let discard = daemon.status["settings"]["trim"]["background"]["value"].as_bool();
    let differs = |name: &str, asked: &Option<String>| {
        let value = &daemon.status["settings"]["mount"][name]["value"];
        asked.as_ref().is_some_and(|asked| *value != **asked)
    };
    let fixed = [
        ("writeback", options.writeback.is_some() && options.writeback != writeback),
        ("verify", differs("verify", &options.verify)),
        ("discard", options.discard.is_some() && options.discard != discard),
        ("io_uring", differs("io_uring", &options.rings)),
        ("fuseblk", differs("fuseblk", &options.fuseblk)),
    ];
    if let Some((name, _)) = fixed.iter().find(|(_, changes)| *changes) {
        let message = format!("{name} cannot be changed while it is mounted");
        return Err(Failure::usage(message).hint("unmount it first"));
    }
    if !options.kernel.read_only {
        refuse_writing(mount, &daemon.status)?;
    }
    let becomes_read_only = options.kernel.read_only && !entry.read_only();
    aegisfs_fuse::remount(mount, &options.kernel).map_err(|error| {
        let failure = Failure::from(error);
        if failure.exit == Exit::Busy { failure.hint(holders(mount)) } else { failure }
    })?;
    if becomes_read_only && daemon.status["poisoned"].is_null() {
        daemon.call("POST", "/v1/checkpoint")?;
    }
    Ok(entry.source.into())
}

fn refuse_writing(mount: &Path, status: &serde_json::Value) -> Result<(), Failure> {
    let mount = mount.display();
    let message = match status["poisoned"].as_str() {
        Some(reason) => format!("{mount} takes no more writes until it is mounted again: {reason}"),
        None if status["opened_read_only"] == true => {
            format!("{mount} was mounted for reading only; unmount it and mount it again to write")
        }
        None => return Ok(()),
    };
    Err(Failure::new("E_READ_ONLY", Exit::Failed, message))
}
