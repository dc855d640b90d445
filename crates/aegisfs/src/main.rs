//! AegisFS: one filesystem from many devices.
//!
//! One program; the name it is called by decides which face it shows: `aegisfs`, or `mount.aegisfs`
//! (`mount.fuse.aegisfs` and `mount.fuseblk.aegisfs` for remounting), `mkfs.aegisfs` and `fsck.aegisfs` for the tools that look for those.

#![forbid(unsafe_code)]

mod base64;
mod cli;
mod commands;
mod control;
mod daemon;
mod devices;
mod failure;
mod helpers;
mod mount_options;
mod output;
mod panics;
mod places;
mod settings;

use clap::Parser;
use std::process::ExitCode;

/// Buffers of megabytes come and go with every request; the usual allocator gives each back to the kernel,
/// which then clears the same pages again and again (a fifth of the time of a streaming write).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.as_str() {
        "mount.aegisfs" | "mount.fuse.aegisfs" | "mount.fuseblk.aegisfs" => helpers::mount(),
        "mkfs.aegisfs" => helpers::mkfs(),
        "fsck.aegisfs" => helpers::fsck(),
        _ => {
            let cli = cli::Cli::parse();
            let json = cli.json;
            match commands::run(cli) {
                Ok(code) => code,
                Err(failure) => failure.report(json),
            }
        }
    }
}
