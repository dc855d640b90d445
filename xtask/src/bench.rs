//! `bench`: AegisFS through its mount beside other filesystems, all on loop devices of the same disk, in the
//! same run.
//!
//! A null filesystem on the same transport shows what the way through the kernel costs. Every row is run
//! several times on all of them in turn; medians, half the spread and the ratio to ext4 are printed. Every row
//! ends with a remount, a comparison with what was written, and `check`. At the end stand the bars that the
//! filesystem is held to. Absolute times on a shared machine prove nothing.

mod blocks;
mod clients;
mod databases;
mod files;
pub(crate) mod full;
mod latency;
mod measure;
mod metadata;
mod programs;
mod redundancy;
mod space;
mod streams;
mod targets;

use crate::{setup, shell};
use anyhow::{Context, Result, bail};
use measure::Report;
use std::fs::File;
use targets::{Ground, Kind, Target};

/// The size of each filesystem; images are sparse.
const POOL_BYTES: u64 = 16 << 30;
/// Of images that are written once before they are used.
const WRITTEN_BYTES: u64 = 6 << 30;

/// Some kind of work on all targets.
struct Row {
    /// What a word of the command line is looked for in.
    name: &'static str,
    run: fn(&Ground, &mut Report) -> Result<()>,
}

const ROWS: [Row; 21] = [
    Row { name: "write, half compressible", run: streams::write_half },
    Row { name: "write, incompressible", run: streams::write_noise },
    Row { name: "read, cold and warm", run: streams::read },
    Row { name: "random reads", run: blocks::read },
    Row { name: "random writes", run: blocks::write },
    Row { name: "one fsync", run: blocks::write_and_sync },
    Row { name: "synced writes", run: blocks::write_synced },
    Row { name: "latency beside a stream", run: latency::beside_a_stream },
    Row { name: "files: create, stat, unlink", run: files::create_stat_unlink },
    Row { name: "files: read, cold", run: files::read_cold },
    Row { name: "metadata in memory", run: metadata::in_memory },
    Row { name: "git and tar", run: programs::git_and_tar },
    Row { name: "cargo build", run: programs::cargo_build },
    Row { name: "sqlite", run: databases::sqlite },
    Row { name: "pgbench", run: databases::pgbench },
    Row { name: "space", run: space::stored },
    Row { name: "tree copied again", run: space::copied_again },
    Row { name: "redundancy", run: redundancy::compared },
    Row { name: "full: random overwrites", run: full::overwrite_blocks },
    Row { name: "full: whole files overwritten", run: full::overwrite_files },
    Row { name: "full: reads beside the cleaner", run: full::read_beside_the_cleaner },
];

/// Runs every row, or those whose name contains a word.
pub(crate) fn run(word: Option<&str>) -> Result<()> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| word.is_none_or(|word| row.name.contains(word))).collect();
    if rows.is_empty() {
        bail!("no row has this in its name; there are {}", ROWS.map(|row| row.name).join("; "));
    }
    setup::install_packages();
    setup::install_bench_packages();
    if !setup::is_root() {
        bail!("the benchmark mounts filesystems and needs root");
    }
    shell::stage("build", build)?;
    // Two at once would measure each other, and take each other's mounts down.
    let lock = File::create(std::env::temp_dir().join("aegisfs-bench.lock"))?;
    lock.try_lock().context("another benchmark is running")?;
    say_where()?;
    let ground = Ground::prepare()?;
    let mut report = Report::new();
    for row in rows {
        if !report.has_time() {
            report.fail(format!("{}: no time is left", row.name));
            continue;
        }
        if let Err(error) = (row.run)(&ground, &mut report) {
            report.fail(format!("{}: {error:#}", row.name));
        }
    }
    report.print();
    if !report.failures.is_empty() {
        bail!("{}", report.failures.join("; "));
    }
    Ok(())
}

fn build() -> Result<()> {
    shell::run(&["cargo", "build", "--release", "--package", "aegisfs"])?;
    shell::run(&["cargo", "build", "--release", "--package", "xtask", "--example", "bench-client"])
}

fn say_where() -> Result<()> {
    let kernel = shell::output(&["uname", "-srm"])?;
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("machine: {}, {cores} cores, load {}", kernel.trim(), load.trim());
    println!("in each row the median of {} runs, and how far they lie from it", measure::ROUNDS);
    println!("through {}", if targets::has_rings() { "io_uring" } else { "/dev/fuse" });
    for (kind, why) in Kind::ALL.iter().filter_map(|kind| Some((kind, kind.missing()?))) {
        println!("without {}: {why}", kind.name());
    }
    measure::print_heads();
    Ok(())
}

/// The end of every row: AegisFS is mounted again, gives back what was written, and its device verifies.
fn verify(report: &mut Report, row: &str, targets: &[Target], same: impl FnOnce(&Target) -> Result<()>) {
    let Some(target) = targets.iter().find(|target| target.kind == Kind::Aegis) else { return };
    let outcome = target.chill().and_then(|()| same(target)).and_then(|()| target.check());
    match outcome {
        Ok(()) => println!("  verified: contents after a remount, and check"),
        Err(error) => report.fail(format!("{row}: {error:#}")),
    }
}
