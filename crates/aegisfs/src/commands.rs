//! The verbs of the command line.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod mount;
mod status;
mod sync;
mod umount;
mod usage;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use std::process::ExitCode;

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
        Command::Check { device } => check::run(&device, json),
    }
}
