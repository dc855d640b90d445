//! The faces for mount(8), mkfs(8) and fsck(8).

use crate::cli::{FormatArgs, MountArgs};
use crate::commands;
use crate::failure::{Exit, Failure};
use std::path::PathBuf;
use std::process::ExitCode;

/// mount(8) says: 1 for a wrong call, 32 for a failed mount.
const MOUNT_USAGE: u8 = 1;
const MOUNT_FAILED: u8 = 32;
/// fsck(8) says: 4 for errors left, 8 for an operational error, 16 for a wrong call.
const FSCK_LEFT: u8 = 4;
const FSCK_FAILED: u8 = 8;
const FSCK_USAGE: u8 = 16;

/// `mount.aegisfs DEVICE MNT [-sfnv] [-o OPTIONS]`; with `-o remount` the device says nothing.
pub(crate) fn mount() -> ExitCode {
    let mut options = Vec::new();
    let mut places = Vec::new();
    let mut fake = false;
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => options.extend(words.next().map(|list| list.to_string_lossy().into_owned())),
            Some("-f") => fake = true,
            Some("-t") => drop(words.next()),
            Some("-s" | "-n" | "-v" | "-w") => {}
            Some("-r") => options.push("ro".into()),
            Some(unknown) if unknown.starts_with('-') => {
                eprintln!("mount.aegisfs: {unknown} is not known");
                return MOUNT_USAGE.into();
            }
            _ => places.push(PathBuf::from(word)),
        }
    }
    if places.len() < 2 {
        eprintln!("usage: mount.aegisfs DEVICE MNT [-sfnvr] [-o OPTIONS]");
        return MOUNT_USAGE.into();
    }
    if fake {
        return ExitCode::SUCCESS;
    }
    let args = MountArgs { options, foreground: false, config: None, settings: Vec::new(), places };
    match commands::mount::mount(&args) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            failure_line("mount.aegisfs", &failure);
            if failure.exit == Exit::Usage { MOUNT_USAGE.into() } else { MOUNT_FAILED.into() }
        }
    }
}

/// `mkfs.aegisfs [-L LABEL] [-f] DEVICE...`.
pub(crate) fn mkfs() -> ExitCode {
    use clap::Parser;
    #[derive(Parser)]
    #[command(name = "mkfs.aegisfs", version)]
    struct Mkfs {
        #[command(flatten)]
        args: FormatArgs,
    }
    let args = Mkfs::parse().args;
    match commands::format::run(&args, false) {
        Ok(code) => code,
        Err(failure) => {
            failure_line("mkfs.aegisfs", &failure);
            failure.exit.into()
        }
    }
}

/// `fsck.aegisfs [-anpyfv] DEVICE...`. Repairs happen at mount and while reading; this verifies.
pub(crate) fn fsck() -> ExitCode {
    let mut devices = Vec::new();
    for word in std::env::args_os().skip(1) {
        match word.to_str() {
            Some("-a" | "-n" | "-p" | "-y" | "-f" | "-v" | "-C" | "-T" | "-M" | "-r") => {}
            Some(unknown) if unknown.starts_with('-') => {
                eprintln!("fsck.aegisfs: {unknown} is not known");
                return FSCK_USAGE.into();
            }
            _ => devices.push(PathBuf::from(word)),
        }
    }
    if devices.is_empty() {
        eprintln!("usage: fsck.aegisfs [-anpyfv] DEVICE...");
        return FSCK_USAGE.into();
    }
    match commands::check::run(&devices, false, false) {
        Ok(code) if code == ExitCode::SUCCESS => code,
        Ok(_) => FSCK_LEFT.into(),
        Err(failure) => {
            failure_line("fsck.aegisfs", &failure);
            if failure.exit == Exit::Damage { FSCK_LEFT.into() } else { FSCK_FAILED.into() }
        }
    }
}

fn failure_line(program: &str, failure: &Failure) {
    eprintln!("{program}: {failure}");
    if let Some(hint) = &failure.hint {
        eprintln!("  hint: {hint}");
    }
}
