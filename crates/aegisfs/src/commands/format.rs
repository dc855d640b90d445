//! format: an empty filesystem.

use crate::cli::FormatArgs;
use crate::failure::{Exit, Failure};
use crate::{devices, output, places};
use aegisfs_base::units::{format_size, parse_size};
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_chunk::Compression;
use aegisfs_device::{Device, ImageOptions, create_image, signature};
use aegisfs_format::key::Table;
use aegisfs_format::value::Inode;
use aegisfs_fs::Fs;
use aegisfs_pool::{CreateOptions, Pool, Redundancy};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Formats devices.
pub(crate) fn run(args: &FormatArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let compression: Compression = args.compression.parse().map_err(|_| {
        Failure::usage(format!("compression '{}' is not known", args.compression))
            .hint("known are none, lz4, and zstd:1 to zstd:19")
    })?;
    let redundancy = args.redundancy.as_deref().map(parse_redundancy).transpose()?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in &args.devices {
        if paths.contains(&places::canonical(path)) {
            return Err(Failure::usage(format!("{} is named twice", path.display())));
        }
        paths.push(places::canonical(path));
    }
    let domains = failure_domains(&args.failure_domains, &paths)?;
    if let Some(size) = &args.size {
        make_images(&paths, size)?;
    }
    let mut members = Vec::new();
    for path in &paths {
        if let Some(user) = devices::in_use(path)? {
            let message = format!("{} {user}", path.display());
            return Err(Failure::new("E_BUSY", Exit::Busy, message).hint("unmount or detach it first"));
        }
        let device = devices::open(path, false)?;
        refuse_foreign(args, path, &*device)?;
        members.push(device);
    }
    for (path, device) in paths.iter().zip(&members) {
        confirm(args, path, device)?;
    }
    let options = CreateOptions {
        label: args.label.clone(),
        compression: stored(compression),
        redundancy,
        failure_domains: domains,
        ..CreateOptions::default()
    };
    let clock = SystemClock::default();
    let bytes: u64 = members.iter().map(|device| device.bytes()).sum();
    let pool = Pool::create(members, &options, &clock, &SystemRng::new()?)?;
    let mut entries = Fs::initial_entries(&clock);
    own_root(&mut entries)?;
    aegisfs_store::create(&pool, &entries)?;
    paths.iter().for_each(|path| devices::remember(path));
    let superblock = pool.superblock();
    let redundancy = describe_redundancy(pool.redundancy());
    let mut answer = json!({
        "pool": superblock.pool.to_string(),
        "label": superblock.label,
        "device_bytes": bytes,
        "slot_bytes": superblock.slot_bytes,
        "redundancy": redundancy,
    });
    output::put_path(&mut answer, "device", &paths[0]);
    output::put_paths(&mut answer, "devices", paths.iter().map(PathBuf::as_path));
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let line = format!(
        "formatted {} ({}, {redundancy}, slots of {}): pool {}",
        names.join(", "),
        format_size(bytes),
        format_size(u64::from(superblock.slot_bytes)),
        superblock.pool
    );
    output::print(as_json, answer, &[line]);
    Ok(ExitCode::SUCCESS)
}

/// The failure domain of each device: what is said of it, or nothing.
fn failure_domains(said: &[String], paths: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut domains = vec![String::new(); paths.len()];
    for words in said {
        let (device, name) =
            words.rsplit_once('=').filter(|(_, name)| !name.is_empty()).ok_or_else(|| {
                Failure::usage(format!("failure domain '{words}' is not of the form DEVICE=NAME"))
            })?;
        let path = places::canonical(Path::new(device));
        let place = paths.iter().position(|known| *known == path);
        let place = place.ok_or_else(|| {
            Failure::usage(format!(
                "{device} has a failure domain, and is none of the devices to be formatted"
            ))
        })?;
        if !std::mem::replace(&mut domains[place], name.to_owned()).is_empty() {
            return Err(Failure::usage(format!("{device} has two failure domains")));
        }
    }
    Ok(domains)
}

/// Reads what people call a redundancy.
pub(crate) fn parse_redundancy(word: &str) -> Result<Redundancy, Failure> {
    let number = |text: &str| text.parse::<u8>().ok().filter(|number| *number > 0);
    let shards = match word.split_once(':') {
        None if word == "single" => Some((1, 0)),
        Some(("mirror", copies)) => number(copies).map(|copies| (1, copies - 1)),
        Some(("ec", geometry)) => {
            geometry.split_once('+').and_then(|(data, parity)| Some((number(data)?, number(parity)?)))
        }
        _ => None,
    };
    let (shards_data, shards_parity) = shards.ok_or_else(|| {
        Failure::usage(format!("redundancy '{word}' is not known"))
            .hint("known are single, mirror:COPIES and ec:DATA+PARITY, as in ec:4+2")
    })?;
    Ok(Redundancy { shards_data, shards_parity })
}

/// The same the other way round.
pub(crate) fn describe_redundancy(redundancy: Redundancy) -> String {
    match (redundancy.shards_data, redundancy.shards_parity) {
        (1, 0) => "single".into(),
        (1, parity) => format!("mirror:{}", u16::from(parity) + 1),
        (data, parity) => format!("ec:{data}+{parity}"),
    }
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

fn make_images(paths: &[PathBuf], size: &str) -> Result<(), Failure> {
    let bytes = parse_size(size)
        .ok_or_else(|| Failure::usage(format!("size '{size}' is not a size")).hint("say 2G or 500M"))?;
    let minimum = aegisfs_base::limits::DEVICE_BYTES_MIN;
    if bytes < minimum {
        let message =
            format!("{} is too small; at least {} are needed", format_size(bytes), format_size(minimum));
        return Err(Failure::usage(message));
    }
    if let Some(path) = paths.iter().find(|path| path.exists()) {
        let message = format!("{} exists already", path.display());
        return Err(Failure::new("E_EXISTS", Exit::Failed, message)
            .hint("leave --size away to format it as it is, or remove it first"));
    }
    for path in paths {
        create_image(path, &ImageOptions { bytes, reuse: false })?;
    }
    Ok(())
}

fn refuse_foreign(args: &FormatArgs, path: &Path, device: &dyn Device) -> Result<(), Failure> {
    if args.force {
        return Ok(());
    }
    match signature::probe(device)? {
        None => Ok(()),
        Some(found) => {
            let message = format!("{} holds {}", path.display(), found.name);
            Err(Failure::new("E_FOREIGN", Exit::Failed, message).hint("give --force to destroy it"))
        }
    }
}

/// Asks before a filesystem of ours is destroyed.
fn confirm(args: &FormatArgs, path: &Path, device: &Arc<dyn Device>) -> Result<(), Failure> {
    if args.yes || args.force || !Pool::is_member(&**device) {
        return Ok(());
    }
    let message = format!("{} holds an AegisFS filesystem", path.display());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_domains_are_those_of_the_devices() {
        let paths = ["/x/a", "/x/b=c"].map(PathBuf::from);
        let read = |words: &[&str]| {
            failure_domains(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), &paths)
        };
        assert_eq!(read(&[]).unwrap(), ["", ""]);
        assert_eq!(read(&["/x/b=c=shelf 2", "/x/a=shelf 1"]).unwrap(), ["shelf 1", "shelf 2"]);
        for wrong in [&["/x/a"][..], &["/x/a="], &["/x/d=e"], &["/x/a=1", "/x/a=2"]] {
            assert_eq!(read(wrong).unwrap_err().exit, Exit::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn redundancies_have_names() {
        for name in ["single", "mirror:2", "mirror:9", "ec:4+2", "ec:16+1"] {
            assert_eq!(describe_redundancy(parse_redundancy(name).unwrap()), name);
        }
        for nonsense in [
            "",
            "mirror",
            "mirror:",
            "mirror:0",
            "mirror:x",
            "ec:4",
            "ec:0+2",
            "ec:4+0",
            "ec:4+2+1",
            "raid5",
            "mirror:300",
        ] {
            let failure = parse_redundancy(nonsense).unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.hint.is_some(), "{nonsense}");
        }
    }
}
