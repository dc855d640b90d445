//! mount: a daemon of its own, or this very process in the foreground.

use crate::cli::MountArgs;
use crate::failure::{Exit, Failure};
use crate::mount_options::Options;
use crate::settings::{Settings, Wanted};
use crate::{control, daemon, devices, output, places};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The word by which the daemon says that the root answers.
const READY: &str = "ready";
/// Set for the daemon, so that it tells whoever started it.
const TELL: &str = "AEGISFS_TELL_PARENT";

/// What a mount became of.
pub(crate) struct Mounted {
    devices: Vec<PathBuf>,
    mount: PathBuf,
    done: &'static str,
    /// What else has changed on this machine.
    note: Option<&'static str>,
}

/// Mounts, and says so.
pub(crate) fn run(args: &MountArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let Mounted { devices, mount, done, note } = mount(args)?;
    if !args.foreground {
        let names: Vec<String> = devices.iter().map(|path| path.display().to_string()).collect();
        let line = format!("{done} {} on {}", names.join(", "), mount.display());
        let mut answer = json!({ "note": note });
        output::put_path(&mut answer, "device", &devices[0]);
        output::put_path(&mut answer, "mount", &mount);
        let lines: Vec<String> = [line].into_iter().chain(note.map(str::to_owned)).collect();
        output::print(as_json, answer, &lines);
    }
    Ok(ExitCode::SUCCESS)
}

/// Mounts; in the foreground it returns when the mount is gone.
pub(crate) fn mount(args: &MountArgs) -> Result<Mounted, Failure> {
    let (directory, named) = args.places.split_last().expect("the command line asks for one at least");
    let source = named.first().unwrap_or(directory);
    let options = Options::parse(&args.options, &source.to_string_lossy())?;
    if options.remount {
        let mount = places::canonical(directory);
        let device = super::remount::run(&mount, &args.options)?;
        return Ok(Mounted { devices: vec![device], mount, done: "remounted", note: None });
    }
    if named.is_empty() {
        return Err(
            Failure::usage("the directory to mount on is missing").hint("say aegisfs mount DEVICE... MNT")
        );
    }
    let mut settings = Settings::load(args.config.as_deref(), &args.settings)?;
    let (mount, left_behind) = prepare_mount_point(directory, options.nonempty)?;
    let mut members = Vec::new();
    for device in devices::resolve_all(&[named, &options.devices].concat())? {
        if !device.exists() {
            let message = format!("{} is not there", device.display());
            return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message));
        }
        members.push(std::fs::canonicalize(device)?);
    }
    let note = allow_rings(settings.io_uring(options.rings.as_deref())?);
    let mounted = if args.foreground {
        serve(&members, &mount, &options, settings)
    } else {
        let word = &named[0];
        start_daemon(args, word, &members, &mount, settings.file())
            .inspect(|()| members.iter().for_each(|device| devices::remember(device)))
    };
    mounted.map_err(|failure| blame(failure, &left_behind))?;
    Ok(Mounted { devices: members, mount, done: "mounted", note })
}

/// When io_uring is asked for by name, root turns it on in the kernel, and is told so.
fn allow_rings(wanted: Wanted) -> Option<&'static str> {
    let root = rustix::process::geteuid().is_root();
    if wanted == Wanted::On && root && aegisfs_fuse::allow_rings().is_ok_and(|changed| changed) {
        return Some("FUSE over io_uring was off in the kernel and is now on, for all filesystems");
    }
    None
}

/// The log of a mount, named after its mount point.
fn log_path(mount: &Path) -> PathBuf {
    let name = mount.to_string_lossy().trim_matches('/').replace('/', "-");
    places::log_folder().join(format!("{}.log", if name.is_empty() { "root" } else { &name }))
}

fn serve(members: &[PathBuf], mount: &Path, options: &Options, settings: Settings) -> Result<(), Failure> {
    let log = log_path(mount);
    let telling = std::env::var_os(TELL).is_some();
    if telling {
        // Away from the terminal that started it; fails only when it leads a group already.
        let _ = rustix::process::setsid();
    }
    daemon::settle_process(&log)?;
    daemon::run(members, mount, options, settings, &log, || {
        if telling {
            let mut out = std::io::stdout();
            let _ = writeln!(out, "{READY}");
            let _ = out.flush();
        }
    })
}

/// Starts the daemon and waits for its word.
fn start_daemon(
    args: &MountArgs,
    source: &Path,
    members: &[PathBuf],
    mount: &Path,
    config: Option<&Path>,
) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--json").arg("mount").arg("--foreground");
    let word = source.to_string_lossy();
    if devices::is_tag(source) && !word.contains(',') {
        // The kernel lists the word itself, so that mount -a finds its line of fstab mounted.
        command.arg("-o").arg(format!("fsname={word}"));
    }
    for options in &args.options {
        command.arg("-o").arg(options);
    }
    for setting in &args.settings {
        command.arg("--set").arg(setting);
    }
    // The daemon reads the same file, wherever it runs.
    if let Some(config) = config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    command.args(members).arg(mount).env(TELL, "1").current_dir("/");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let out = child.stdout.take().expect("it was asked for");
    let mut word = String::new();
    BufReader::new(out).read_line(&mut word)?;
    if word.trim() == READY {
        return Ok(());
    }
    let status = child.wait()?;
    let told: serde_json::Value = serde_json::from_str(&word).unwrap_or_default();
    let error = &told["error"];
    let fallback =
        format!("the daemon ended before it was ready ({status}); its log is {}", log_path(mount).display());
    let exit = match status.code() {
        Some(2) => Exit::Usage,
        Some(4) => Exit::Damage,
        Some(5) => Exit::NotFound,
        Some(6) => Exit::Busy,
        Some(7) => Exit::Permission,
        _ => Exit::Failed,
    };
    let failure = Failure::new("E_MOUNT", exit, error["message"].as_str().unwrap_or(&fallback));
    Err(match error["hint"].as_str() {
        Some(hint) => failure.hint(hint),
        None => failure,
    })
}

/// Says who keeps a device busy whose daemon was killed: the kernel holds a block device until all have let go of
/// what they have open on the dead mount.
fn blame(failure: Failure, left_behind: &[String]) -> Failure {
    if failure.exit != Exit::Busy || left_behind.is_empty() {
        return failure;
    }
    let users = left_behind.join(", ");
    failure
        .hint(format!("files of the mount whose daemon was killed are still used by {users}; end them first"))
}

/// A mount point is an empty directory; what a killed daemon left mounted there is taken away first. Says who still
/// uses that.
fn prepare_mount_point(path: &Path, nonempty: bool) -> Result<(PathBuf, Vec<String>), Failure> {
    let mut left_behind = Vec::new();
    // Attributes may come from the kernel's memory long after the daemon died; this question never does.
    match rustix::fs::statfs(path) {
        Err(rustix::io::Errno::NOTCONN) => {
            let dead = places::canonical(path);
            // Once it is detached nobody can tell any more whose files they are.
            left_behind = super::umount::users(&dead);
            aegisfs_fuse::unmount(&dead, true)?;
        }
        Err(rustix::io::Errno::NOENT) => {
            let message = format!("mount point {} is not there", path.display());
            return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message).hint("make it with mkdir"));
        }
        _ => {}
    }
    let path = std::fs::canonicalize(path)?;
    if !path.is_dir() {
        return Err(Failure::usage(format!("mount point {} is not a directory", path.display())));
    }
    if aegisfs_fuse::is_fuse_mount(&path) {
        let who = control::find(Some(&path)).first().map_or_else(String::new, |client| {
            format!(" (of {})", client.status["device"].as_str().unwrap_or("?"))
        });
        let message = format!("{} is a mount already{who}", path.display());
        return Err(Failure::new("E_BUSY", Exit::Busy, message).hint("unmount it first"));
    }
    if !nonempty && std::fs::read_dir(&path)?.next().is_some() {
        let message = format!("mount point {} is not empty", path.display());
        return Err(Failure::usage(message).hint("choose an empty directory, or give -o nonempty"));
    }
    Ok((path, left_behind))
}
