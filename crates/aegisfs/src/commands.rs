//! The verbs of the command line.

pub(crate) mod check;
mod clean;
mod damage;
mod disk;
pub(crate) mod format;
mod inspect;
pub(crate) mod mount;
mod orphans;
mod policy;
mod remount;
mod scan;
mod schedule;
mod scrub;
mod status;
mod sync;
mod trim;
mod umount;
mod usage;

use crate::cli::{Cli, Command, DiskCommand, OrphansCommand, ScheduleCommand};
use crate::failure::{Exit, Failure};
use crate::{control, output, places};
use std::process::ExitCode;

/// The daemon of what is mounted at a path now. One that was detached from there may live on, and is another's.
pub(crate) fn attached(mount: &std::path::Path) -> Option<control::Client> {
    let wanted = places::canonical(mount);
    let serves = |client: &control::Client| {
        client.status["attached"] == true && output::names_path(&client.status, "mount", &wanted)
    };
    control::find(Some(mount)).into_iter().find(serves)
}

/// Leads to the daemon of a mount.
pub(crate) fn living(mount: &std::path::Path) -> Result<control::Client, Failure> {
    attached(mount).ok_or_else(|| {
        let message = format!("{} is not an AegisFS mount with a living daemon", mount.display());
        Failure::new("E_NOT_FOUND", Exit::NotFound, message)
    })
}

/// Serves the null filesystem until it is unmounted.
fn null_mount(mount: &std::path::Path, rings: bool) -> Result<ExitCode, Failure> {
    let options = aegisfs_fuse::MountOptions { source: "null".into(), ..Default::default() };
    let (_mounted, connection) = aegisfs_fuse::Mount::new(mount, &options)?;
    let face = aegisfs_fuse::NullFace::default();
    let session = aegisfs_fuse::SessionOptions { rings, ..Default::default() };
    aegisfs_fuse::Session::start(connection, face, session)?.wait();
    Ok(ExitCode::SUCCESS)
}

/// Runs a command; the code is what the process ends with.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.json;
    match cli.command {
        Command::Format(args) => format::run(&args, json),
        Command::Mount(args) => mount::run(&args, json),
        Command::Umount(args) => umount::run(&args, json),
        Command::Sync { mount } => sync::run(&mount, json),
        Command::Status { target } => status::run(target.as_deref(), json),
        Command::Usage { mount } => usage::run(&mount, json),
        Command::WriteBack { mount, node, generation } => {
            aegisfs_fuse::write_back(&mount, node, generation)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::NullMount { mount, io_uring } => null_mount(&mount, io_uring),
        Command::Clean(command) => clean::run(&command, json),
        Command::Scrub(command) => scrub::run(&command, json),
        Command::ScrubSchedule { frequency, intensity, mount } => {
            let (every, at) = schedule::frequency(&frequency)?;
            schedule::run(&ScheduleCommand::Set { every, at, intensity, dry_run: false, mount }, json)
        }
        Command::Damage(command) => damage::run(&command, json),
        Command::Policy(command) => policy::run(&command, json),
        Command::Disk(command) => disk::run(&command, json),
        Command::Health { mount } => disk::run(&DiskCommand::List { mount }, json),
        Command::ProbeDisks { mount } => disk::run(&DiskCommand::Probe { mount }, json),
        Command::SetDiskHealth { disk, health, mount } => {
            disk::run(&DiskCommand::SetHealth { disk, health, mount }, json)
        }
        Command::Trim(command) => trim::run(&command, json),
        Command::Orphans(command) => orphans::run(&command, json),
        Command::DetectOrphans { mount } => orphans::run(&OrphansCommand::List { mount }, json),
        Command::CleanupOrphans(args) => orphans::run(&OrphansCommand::Clean(args), json),
        Command::OrphanStats { mount } => orphans::run(&OrphansCommand::Stats { mount }, json),
        Command::Check { shallow, devices } => check::run(&devices, shallow, json),
        Command::Scan { folders } => scan::run(&folders, json),
        Command::Inspect(args) => inspect::run(&args, json),
    }
}
