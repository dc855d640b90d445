//! check: verifies everything on a device that is not mounted. Nothing is written.

use crate::failure::{Exit, Failure};
use crate::{devices, output};
use aegisfs_base::units::format_size;
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_fs::{Fs, FsOptions};
use aegisfs_store::{Depth, StoreOptions};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a long check says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Checks a pool.
pub(crate) fn run(named: &[PathBuf], shallow: bool, as_json: bool) -> Result<ExitCode, Failure> {
    let depth = if shallow { Depth::Directories } else { Depth::Data };
    let found = verify(&devices::resolve_all(named)?, depth)?;
    let clean = found["clean"].as_bool().unwrap_or(false);
    let mut lines: Vec<String> = found["problems"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|problem| format!("damage: {}", problem.as_str().unwrap_or_default()))
        .collect();
    lines.extend(
        found["notes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|n| format!("note: {}", n.as_str().unwrap_or_default())),
    );
    lines.push(format!(
        "{}: {} inodes, {} names, {} chunks, {} references; {} bytes of data verified",
        if clean { "clean" } else { "DAMAGED" },
        found["inodes"],
        found["names"],
        found["chunks"],
        found["references"],
        found["bytes_verified"]
    ));
    output::print(as_json, found, &lines);
    Ok(if clean { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

/// Verifies everything and says what was found.
pub(crate) fn verify(named: &[PathBuf], depth: Depth) -> Result<Value, Failure> {
    let members = devices::open_members(named, true)?;
    let (pool, opening) = devices::open_pool_on(&members, true, true)?;
    let device = &members[0].path;
    let mut notes = Vec::new();
    let away = [&opening.missing[..], &opening.absent].concat();
    if !away.is_empty() {
        notes.push(format!("not there, and not looked at: {}", away.join(", ")));
    }
    if !opening.stale.is_empty() {
        notes.push(format!("left out, since others went on without them: {}", opening.stale.join(", ")));
    }
    if opening.superblocks_damaged > 0 {
        let count = opening.superblocks_damaged;
        notes.push(format!("{count} of its superblocks do not verify; the next mount writes them anew"));
    }
    if opening.dirty {
        notes.push("it was not unmounted the last time; the log was replayed in memory".to_owned());
    }
    let options = StoreOptions { read_only: true, ..StoreOptions::default() };
    let clock = Arc::new(SystemClock::default());
    let (store, recovered) = aegisfs_store::open(pool, &options, clock, &SystemRng::new()?)?;
    if recovered.torn > 0 {
        let count = recovered.torn;
        notes.push(format!("{count} cells and headers did not arrive everywhere before it stopped; the next mount writes them again"));
    }
    if recovered.cut {
        notes.push(
            "the end of the log is not whole and was left out: changes that nobody was told were durable, unless \
             it was damaged since"
                .to_owned(),
        );
    }
    let mut problems: Vec<String> = recovered.read_only.into_iter().collect();
    let mut told = Instant::now();
    let report = store.check_and_tell(depth, &mut |done, total| {
        if told.elapsed() >= TELL_EVERY && done < total {
            told = Instant::now();
            output::tell(&format!("{}: read {done} of {total} segments", device.display()));
        }
    })?;
    problems.extend(report.problems.iter().map(ToString::to_string));
    let fs = Fs::mount(Arc::new(store), FsOptions { background: false, ..FsOptions::default() })?;
    let tree = fs.check_tree()?;
    problems.extend(tree.problems.iter().map(|p| format!("inode {}: {}", p.inode, p.what)));
    if tree.misplaced_bytes > 0 {
        let bytes = format_size(tree.misplaced_bytes);
        notes.push(format!(
            "{bytes} are not stored as their policy says yet; the next mount goes on with that"
        ));
    }
    let mut found = json!({
        "misplaced_bytes": tree.misplaced_bytes,
        "clean": problems.is_empty(),
        "problems": problems,
        "notes": notes,
        "inodes": tree.inodes,
        "names": tree.names,
        "chunks": report.chunks,
        "references": report.references,
        "segments": report.segments,
        "entries": report.entries,
        "bytes_verified": report.bytes_verified,
        "log_records_replayed": recovered.records,
    });
    output::put_path(&mut found, "device", device);
    output::put_paths(&mut found, "devices", members.iter().map(|member| &*member.path));
    Ok(found)
}
