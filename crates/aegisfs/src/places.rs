//! Where running mounts leave their traces: sockets and logs.

use std::path::{Path, PathBuf};

/// Log files are begun anew when they have grown to this.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The folder of control sockets.
pub(crate) fn run_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/aegisfs".into();
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .map_or_else(|| format!("/tmp/aegisfs-{}", rustix::process::getuid().as_raw()).into(), PathBuf::from)
        .join("aegisfs")
}

/// The folder of logs.
pub(crate) fn log_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/log/aegisfs".into();
    }
    std::env::var_os("XDG_STATE_HOME").map_or_else(run_folder, |home| PathBuf::from(home).join("aegisfs"))
}

/// The control socket of a pool.
pub(crate) fn socket(pool: &str) -> PathBuf {
    run_folder().join(format!("{pool}.sock"))
}

/// Every control socket there is.
pub(crate) fn sockets() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(run_folder()) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "sock"))
        .collect();
    found.sort();
    found
}

/// Opens a mount's log; an overlong one is kept beside it once.
pub(crate) fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::metadata(path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}
