//! umount: the mount goes, and the command returns once everything is on the device.

use crate::cli::UmountArgs;
use crate::failure::{Exit, Failure};
use crate::{control, output};
use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the daemon may take for its last checkpoint.
const PATIENCE: Duration = Duration::from_secs(600);

/// Unmounts.
pub(crate) fn run(args: &UmountArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let path = &args.mount;
    let daemon = control::find(Some(path)).pop();
    let canonical = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    if !aegisfs_fuse::is_fuse_mount(&canonical) {
        let message = format!("{} is not an AegisFS mount", path.display());
        return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message));
    }
    // Without a daemon nobody will ever answer: the mount can only be detached.
    let lazy = args.lazy || daemon.is_none();
    if let Err(error) = aegisfs_fuse::unmount(&canonical, lazy) {
        let failure = Failure::from(error);
        if failure.exit == Exit::Busy {
            return Err(failure.hint(holders(&canonical)));
        }
        return Err(failure);
    }
    let pid =
        daemon.as_ref().and_then(|d| d.status["pid"].as_i64()).and_then(|pid| Pid::from_raw(pid as i32));
    if let Some(pid) = pid.filter(|_| !args.lazy) {
        wait_for(pid)?;
    }
    let line = format!("unmounted {}", path.display());
    output::print(as_json, json!({ "mount": path }), &[line]);
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

/// Who has something open below a mount point.
fn holders(mount: &Path) -> String {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let folder = process.path();
        let links = ["cwd", "root", "exe"].map(|name| folder.join(name)).into_iter();
        let open = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let holds =
            links.chain(open).any(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(mount)));
        if holds {
            let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim()));
        }
    }
    if found.is_empty() {
        return "something below it is in use; --lazy detaches it at once".into();
    }
    format!("in use by {}; --lazy detaches it at once", found.join(", "))
}
