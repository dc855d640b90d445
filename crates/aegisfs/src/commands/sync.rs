//! sync: everything written through a mount becomes durable.
//!
//! The kernel keeps written data of files that are open for writing or mapped. Of a mount from a block device it
//! hands over everything when told to sync the whole, and waits. On any other sync(2) starts writing but does not
//! wait: there every file that some process has open is fsynced first, and then the daemon makes durable all that
//! has reached it.

use crate::commands::living;
use crate::failure::Failure;
use crate::output;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Syncs a mount.
pub(crate) fn run(mount: &Path, as_json: bool) -> Result<ExitCode, Failure> {
    let daemon = living(mount)?;
    let mut files = 0u64;
    if daemon.status["fuseblk"] == true {
        rustix::fs::syncfs(std::fs::File::open(mount)?).map_err(std::io::Error::from)?;
    } else {
        let device = std::fs::metadata(mount)?.dev();
        for path in open_files() {
            let here = std::fs::metadata(&path).is_ok_and(|found| found.dev() == device && found.is_file());
            if here && let Ok(file) = std::fs::File::open(&path) {
                file.sync_all()?;
                files += 1;
            }
        }
    }
    daemon.call("POST", "/v1/sync")?;
    let line = format!("synced {}", mount.display());
    let mut answer = json!({ "open_files": files });
    output::put_path(&mut answer, "mount", mount);
    output::print(as_json, answer, &[line]);
    Ok(ExitCode::SUCCESS)
}

/// What processes have open or mapped, as paths that open it again.
fn open_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if process.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        for folder in ["fd", "map_files"] {
            let entries = std::fs::read_dir(process.path().join(folder));
            found.extend(entries.into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    found
}
