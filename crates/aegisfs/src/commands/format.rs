//! format: an empty filesystem.

use crate::cli::FormatArgs;
use crate::failure::{Exit, Failure};
use crate::{devices, output};
use aegisfs_base::units::{format_size, parse_size};
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_chunk::Compression;
use aegisfs_device::{Device, ImageOptions, create_image, signature};
use aegisfs_format::key::Table;
use aegisfs_format::value::Inode;
use aegisfs_fs::Fs;
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

/// Formats a device.
pub(crate) fn run(args: &FormatArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let compression: Compression = args.compression.parse().map_err(|_| {
        Failure::usage(format!("compression '{}' is not known", args.compression))
            .hint("known are none, lz4, and zstd:1 to zstd:19")
    })?;
    if let Some(size) = &args.size {
        make_image(args, size)?;
    }
    if let Some(user) = devices::in_use(&args.device)? {
        let message = format!("{} {user}", args.device.display());
        return Err(Failure::new("E_BUSY", Exit::Busy, message).hint("unmount or detach it first"));
    }
    let device = devices::open(&args.device, false)?;
    refuse_foreign(args, &*device)?;
    confirm(args, &device)?;
    let options = CreateOptions {
        label: args.label.clone(),
        compression: stored(compression),
        ..CreateOptions::default()
    };
    let clock = SystemClock::default();
    let bytes = device.bytes();
    let pool = Pool::create(vec![device], &options, &clock, &SystemRng::new()?)?;
    let mut entries = Fs::initial_entries(&clock);
    own_root(&mut entries)?;
    aegisfs_store::create(&pool, &entries)?;
    devices::remember(&args.device);
    let superblock = pool.superblock();
    let mut answer = json!({
        "pool": superblock.pool.to_string(),
        "label": superblock.label,
        "device_bytes": bytes,
        "slot_bytes": superblock.slot_bytes,
    });
    output::put_path(&mut answer, "device", &args.device);
    let line = format!(
        "formatted {} ({}, slots of {}): pool {}",
        args.device.display(),
        format_size(bytes),
        format_size(u64::from(superblock.slot_bytes)),
        superblock.pool
    );
    output::print(as_json, answer, &[line]);
    Ok(ExitCode::SUCCESS)
}

/// Gives the root directory to whoever formats, who could not write to it otherwise.
fn own_root(entries: &mut [(Table, Vec<u8>, Vec<u8>)]) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for (_, _, value) in entries.iter_mut().filter(|(table, _, _)| *table == Table::Inode) {
        let inode =
            Inode::decode(value).map_err(|e| Failure::new("E_FORMAT", Exit::Failed, e.to_string()))?;
        *value = Inode { uid, gid, ..inode }.encode();
    }
    Ok(())
}

fn make_image(args: &FormatArgs, size: &str) -> Result<(), Failure> {
    let bytes = parse_size(size)
        .ok_or_else(|| Failure::usage(format!("size '{size}' is not a size")).hint("say 2G or 500M"))?;
    let minimum = aegisfs_base::limits::DEVICE_BYTES_MIN;
    if bytes < minimum {
        let message =
            format!("{} is too small; at least {} are needed", format_size(bytes), format_size(minimum));
        return Err(Failure::usage(message));
    }
    if args.device.exists() {
        let message = format!("{} exists already", args.device.display());
        return Err(Failure::new("E_EXISTS", Exit::Failed, message)
            .hint("leave --size away to format it as it is, or remove it first"));
    }
    Ok(create_image(&args.device, &ImageOptions { bytes, reuse: false })?)
}

fn refuse_foreign(args: &FormatArgs, device: &dyn Device) -> Result<(), Failure> {
    if args.force {
        return Ok(());
    }
    match signature::probe(device)? {
        None => Ok(()),
        Some(found) => {
            let message = format!("{} holds {}", args.device.display(), found.name);
            Err(Failure::new("E_FOREIGN", Exit::Failed, message).hint("give --force to destroy it"))
        }
    }
}

/// Asks before a filesystem of ours is destroyed.
fn confirm(args: &FormatArgs, device: &Arc<dyn Device>) -> Result<(), Failure> {
    let ours = Pool::open(vec![Arc::clone(device)], OpenOptions { read_only: true, degraded: true }).is_ok();
    if !ours || args.yes || args.force {
        return Ok(());
    }
    let message = format!("{} holds an AegisFS filesystem", args.device.display());
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new("E_EXISTS", Exit::Failed, message).hint("give --yes to destroy it"));
    }
    eprint!("{message}. Destroy it? Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new("E_CANCELLED", Exit::Failed, "nothing was changed"))
}

fn stored(compression: Compression) -> (u8, u8) {
    match compression {
        Compression::None => (0, 0),
        Compression::Lz4 => (1, 0),
        Compression::Zstd(level) => (2, u8::try_from(level).unwrap_or(1)),
    }
}
