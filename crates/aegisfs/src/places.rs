//! Where running mounts leave their traces: sockets and logs.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Log files are begun anew when they have grown to this.
const LOG_BYTES_MAX: u64 = 16 << 20;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder that the environment names, if it does so as it should.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The folder of control sockets.
pub(crate) fn run_folder() -> PathBuf {
    if is_root() {
        return "/run/aegisfs".into();
    }
    variable("XDG_RUNTIME_DIR").map_or_else(
        || format!("/tmp/aegisfs-{}", rustix::process::geteuid().as_raw()).into(),
        |folder| folder.join("aegisfs"),
    )
}

/// Where a configuration file may be, the first one counts.
pub(crate) fn configs() -> Vec<PathBuf> {
    let own = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    let own = own.filter(|_| !is_root()).map(|folder| folder.join("aegisfs/aegisfs.toml"));
    own.into_iter().chain([PathBuf::from("/etc/aegisfs/aegisfs.toml")]).collect()
}

/// The list of image files that were seen, so that they are found by label.
pub(crate) fn image_list() -> PathBuf {
    if is_root() {
        return "/var/lib/aegisfs/images".into();
    }
    variable("XDG_STATE_HOME").map_or_else(run_folder, |folder| folder.join("aegisfs")).join("images")
}

/// Makes a folder that nobody else can look into, or makes sure that the one that is there is such.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else: in a folder that all may write to, anybody can take a
/// name first.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_private(folder) {
        return Err(io::Error::other(format!("{} belongs to somebody else", folder.display())));
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// Whether a folder is one, and this user's.
fn is_private(folder: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == own)
}

/// A path without symbolic links. What is mounted there may be dead, or closed to this user.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    if let Ok(path) = std::fs::canonicalize(path) {
        return path;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (std::fs::canonicalize(parent), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// The folder of logs.
pub(crate) fn log_folder() -> PathBuf {
    if is_root() {
        return "/var/log/aegisfs".into();
    }
    variable("XDG_STATE_HOME").map_or_else(run_folder, |home| home.join("aegisfs"))
}

/// The control socket of a pool.
pub(crate) fn socket(pool: &str) -> PathBuf {
    run_folder().join(format!("{pool}.sock"))
}

/// Where a daemon says why its end failed.
pub(crate) fn last_words(pool: &str) -> PathBuf {
    run_folder().join(format!("{pool}.failed"))
}

/// Every control socket there is.
pub(crate) fn sockets() -> Vec<PathBuf> {
    let folder = run_folder();
    // Sockets in somebody else's folder could be anybody's.
    let entries = if is_private(&folder) { std::fs::read_dir(folder) } else { return Vec::new() };
    let Ok(entries) = entries else { return Vec::new() };
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
        make_private(folder)?;
    }
    if std::fs::metadata(path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}
