//! umount: the mount goes, and the command returns once everything is on the device.

use crate::cli::UmountArgs;
use crate::commands::attached;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::{output, places};
use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the daemon may take for its last checkpoint.
const PATIENCE: Duration = Duration::from_secs(600);

/// Unmounts.
pub(crate) fn run(args: &UmountArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let path = &args.mount;
    let daemon = attached(path);
    let canonical = places::canonical(path);
    if !aegisfs_fuse::is_fuse_mount(&canonical) {
        let message = format!("{} is not an AegisFS mount", path.display());
        return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message));
    }
    // Without its daemon a mount can only be detached. Attributes may come from the kernel's memory long after
    // the daemon died; this question never does.
    let dead = rustix::fs::statfs(&canonical).is_err_and(|error| error == rustix::io::Errno::NOTCONN);
    let lazy = args.lazy || dead;
    if let Err(error) = aegisfs_fuse::unmount(&canonical, lazy) {
        let failure = Failure::from(error);
        if failure.exit == Exit::Busy {
            return Err(failure.hint(format!("{}; --lazy detaches it at once", holders(&canonical))));
        }
        return Err(failure);
    }
    let pid =
        daemon.as_ref().and_then(|d| d.status["pid"].as_i64()).and_then(|pid| Pid::from_raw(pid as i32));
    if let Some(pid) = pid.filter(|_| !args.lazy) {
        wait_for(pid)?;
        told_of_failure(daemon.as_ref())?;
    }
    let line = format!("unmounted {}", path.display());
    let mut answer = json!({ "lazy": lazy });
    output::put_path(&mut answer, "mount", path);
    output::print(as_json, answer, &[line]);
    Ok(ExitCode::SUCCESS)
}

fn wait_for(pid: Pid) -> Result<(), Failure> {
    let started = Instant::now();
    while test_kill_process(pid).is_ok() {
        if started.elapsed() > PATIENCE {
            let message = format!("the daemon (process {}) is still writing", pid.as_raw_nonzero());
            return Err(Failure::new("E_BUSY", Exit::Busy, message).hint("wait for it to end"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What the daemon left behind when its end failed: not everything is on the device then.
fn told_of_failure(daemon: Option<&Client>) -> Result<(), Failure> {
    let Some(pool) = daemon.and_then(|daemon| daemon.status["pool"].as_str()) else { return Ok(()) };
    let Ok(reason) = std::fs::read_to_string(places::last_words(pool)) else { return Ok(()) };
    let message = format!("it is unmounted, but not everything could be written out: {}", reason.trim());
    Err(Failure::new("E_WRITE_OUT", Exit::Failed, message).hint("the log of the mount says more"))
}

/// Who has something open or mapped below a mount point, or stands in it, as a sentence.
pub(super) fn holders(mount: &Path) -> String {
    let found = users(mount);
    if found.is_empty() {
        return "something below it is in use".into();
    }
    format!("in use by {}", found.join(", "))
}

/// The same as a list of processes; of those of others only root sees what they use.
pub(super) fn users(mount: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid == std::process::id() {
            continue;
        }
        let folder = process.path();
        let links = ["cwd", "root", "exe"].map(|name| folder.join(name)).into_iter();
        let open = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let mut holds =
            links.chain(open).any(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(mount)));
        holds |= maps(&folder.join("maps"), mount);
        if holds {
            let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim()));
        }
    }
    found
}

/// Whether a list of mappings has a file below a mount point; the path follows five other fields.
fn maps(list: &Path, mount: &Path) -> bool {
    let list = std::fs::read(list).unwrap_or_default();
    list.split(|byte| *byte == b'\n').any(|line| {
        let start = line.iter().position(|byte| *byte == b'/');
        start.is_some_and(|start| Path::new(OsStr::from_bytes(&line[start..])).starts_with(mount))
    })
}
