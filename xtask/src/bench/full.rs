//! Devices that are nearly full, where what was overwritten has to be cleaned up before anything fits.
//!
//! Beside them stands btrfs with the same part of its own room in use. Write amplification is what the loop device was
//! given to write, in parts of what the client wrote; it counts from one run to the next, so that what is cleaned between
//! them is in it. A figure of 0 is that of a filesystem that could not do it; what it said stands above the row, and the row
//! goes on with the others.

use super::clients::{ANYWHERE, fio_number, fio_within};
use super::latency;
use super::measure::{Bound, Quantity, ROUNDS, Report};
use super::targets::{Ground, Kind, Target, run};
use super::verify;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::Duration;

/// As in the long runs of the programs; `soak` sets it.
pub(crate) const LONG: &str = "AEGISFS_LONG";
/// Small enough to be written over more than once.
const POOL_BYTES: u64 = 2 << 30;
const FILE: &str = "overwritten";
/// Seconds of random overwrites in all of a row's runs.
const SECONDS: u32 = 60;
const SECONDS_LONG: u32 = 600;
/// No single call of fio takes longer.
const SECONDS_MAX: u32 = 900;
/// Writes of 4 KiB between two fsyncs.
const SYNC_EVERY: u32 = 32;
/// Of the files that are written over as a whole; an fsync follows each.
const WHOLE_MIB: u64 = 16;
/// Content that neither compresses nor was there before.
const CONTENT: &str = "--refill_buffers --buffer_compress_percentage=0 --fallocate=none --ioengine=psync";
/// Files of 1 MiB for the cleaner: every other one is removed, and the rest is more than it moves while reads are timed.
const DEBRIS_FILES: u64 = 800;
/// What was removed is reaped by then.
const REAPED: Duration = Duration::from_secs(2);
/// Four times the daemon's cache of chunks.
const READ_MIB: u64 = 4 * 96;

pub(super) fn overwrite_blocks(ground: &Ground, report: &mut Report) -> Result<()> {
    let name = "full: random overwrites";
    let long = std::env::var(LONG).is_ok_and(|word| !word.is_empty());
    let seconds = if long { SECONDS_LONG } else { SECONDS } / ROUNDS as u32;
    let (mut amplification, mut troubles) = (Amplification::default(), Troubles::default());
    let mut sizes = BTreeMap::new();
    let mut targets = troubles.fill(ground, |target, free| {
        let size = free * 8 / 10 / (1 << 20);
        sizes.insert(target.kind, size);
        let place = target.place.join(FILE);
        let line = format!("--filename={} --size={size}m", place.display());
        write(&format!("{line} --rw=write --bs=1m --randseed=1"))?;
        // Until then the room that is free is used up, and nothing has to be cleaned for it.
        let size_free = free / (1 << 20) - size;
        overwrite(target, size, &format!("--io_size={size_free}m"))?;
        amplification.begin(target)
    })?;
    let quantities = [
        Quantity { name: "random 4 KiB overwrites at 80 %", unit: "1/s" },
        Quantity { name: "the same, p99 of a write", unit: "us" },
        Quantity { name: "the same, p99 of an fsync, every 32", unit: "us" },
        Quantity { name: "the same, write amplification", unit: "times" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, _| {
        let mut work = || {
            let timed = format!("--time_based --runtime={seconds}");
            let answer = overwrite(target, sizes[&target.kind], &timed)?;
            target.sync()?;
            let p99 = |what| Ok::<f64, anyhow::Error>(fio_number(&answer, what)? / latency::NS_PER_US);
            Ok([
                fio_number(&answer, "/jobs/0/write/iops")?,
                p99("/jobs/0/write/clat_ns/percentile/99.000000")?,
                p99("/jobs/0/sync/lat_ns/percentile/99.000000")?,
                amplification.next(target, &answer)?,
            ])
        };
        Ok(troubles.or_zeros(target, work()))
    })?;
    let well = troubles.tell(report, name);
    let times = figures.get(Kind::Aegis, 3).filter(|_| well);
    report.bar("random 4 KiB overwrites at 80 %, write amplification", Bound::AtMost(3.0), times);
    // Much of it is in the kernel's cache yet, as it was written.
    let sum = targets.first().map(sum).transpose()?;
    verify(report, name, &targets, |target| {
        ensure!(!well || Some(self::sum(target)?) == sum, "the file is another after a remount");
        Ok(())
    });
    Ok(())
}

pub(super) fn overwrite_files(ground: &Ground, report: &mut Report) -> Result<()> {
    let name = "full: whole files";
    let (mut amplification, mut troubles) = (Amplification::default(), Troubles::default());
    let (mut counts, mut last_seed) = (BTreeMap::new(), 0);
    let mut targets = troubles.fill(ground, |target, free| {
        let count = free * 9 / 10 / (WHOLE_MIB << 20);
        counts.insert(target.kind, count);
        overwrite_all(target, count, 1, "--do_verify=0")?;
        target.sync()?;
        amplification.begin(target)
    })?;
    let quantities = [
        Quantity { name: "whole files overwritten at 90 %", unit: "MB/s" },
        Quantity { name: "the same, write amplification", unit: "times" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        if target.kind == Kind::Aegis {
            last_seed = seed + 1;
        }
        let mut work = || {
            let answer = overwrite_all(target, counts[&target.kind], seed + 1, "--do_verify=0")?;
            target.sync()?;
            let rate = fio_number(&answer, "/jobs/0/write/bw_bytes")? / 1e6;
            Ok([rate, amplification.next(target, &answer)?])
        };
        Ok(troubles.or_zeros(target, work()))
    })?;
    let well = troubles.tell(report, name);
    let times = figures.get(Kind::Aegis, 1).filter(|_| well);
    report.bar("whole files overwritten at 90 %, write amplification", Bound::AtMost(1.2), times);
    verify(report, name, &targets, |target| {
        if !well {
            return Ok(());
        }
        overwrite_all(target, counts[&target.kind], last_seed, "--verify_only").map(|_| ())
    });
    Ok(())
}

pub(super) fn read_beside_the_cleaner(ground: &Ground, report: &mut Report) -> Result<()> {
    let name = "full: reads beside the cleaner";
    let mut troubles = Troubles::default();
    let mut targets = ground.targets_with_room(&[Kind::Aegis, Kind::Btrfs], POOL_BYTES)?;
    for target in &targets {
        super::streams::write_one(target, 3, "noise", READ_MIB)?;
    }
    let quantities = [
        Quantity { name: "4 KiB read, p99, nothing is cleaned", unit: "us" },
        Quantity { name: "4 KiB read, p99, beside the cleaner", unit: "us" },
    ];
    println!("  the cleaner at medium; of btrfs, a balance of its data");
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        let work = || {
            // Mounting begins with a cleaner that is not paused.
            target.chill()?;
            if target.kind == Kind::Aegis {
                target.clean("pause")?;
            }
            make_debris(target, seed)?;
            let alone = latency::read(target)?;
            let cleaning = Cleaning::start(target)?;
            let beside = latency::read(target)?;
            cleaning.end(target)?;
            fs::remove_dir_all(target.place.join("debris"))?;
            Ok([alone, beside])
        };
        Ok(troubles.or_zeros(target, work()))
    })?;
    let well = troubles.tell(report, name);
    let times = |kind| figures.get(kind, 1).zip(figures.get(kind, 0)).map(|(beside, alone)| beside / alone);
    if let Some(times) = times(Kind::Btrfs) {
        println!("  btrfs: p99 of reads beside a balance is {times:.1} times that alone");
    }
    let text = "4 KiB reads: p99 beside the cleaner at medium, to p99 alone";
    report.bar(text, Bound::AtMost(3.0), times(Kind::Aegis).filter(|_| well));
    verify(report, name, &targets, |target| {
        let arguments = format!("seed=3 kind=noise mib={READ_MIB}");
        super::clients::client("check-stream", &target.place.join("stream"), &arguments).map(|_| ())
    });
    Ok(())
}

/// What targets could not do.
#[derive(Default)]
struct Troubles {
    ours: Option<anyhow::Error>,
}

impl Troubles {
    /// Targets that hold what a row begins with; `work` is told the bytes that were free. Those that cannot are left out.
    fn fill(
        &mut self,
        ground: &Ground,
        mut work: impl FnMut(&Target, u64) -> Result<()>,
    ) -> Result<Vec<Target>> {
        let mut filled = Vec::new();
        for target in ground.targets_with_room(&[Kind::Aegis, Kind::Btrfs], POOL_BYTES)? {
            match target.free_bytes().and_then(|free| work(&target, free)) {
                Ok(()) => filled.push(target),
                Err(error) => self.note(&target, error),
            }
        }
        Ok(filled)
    }

    /// The figures, or nothing but zeros.
    fn or_zeros<const N: usize>(&mut self, target: &Target, outcome: Result<[f64; N]>) -> Vec<f64> {
        let figures = outcome.unwrap_or_else(|error| {
            self.note(target, error);
            [0.0; N]
        });
        figures.to_vec()
    }

    fn note(&mut self, target: &Target, error: anyhow::Error) {
        println!("  {}: {error:#}", target.kind.name());
        if target.kind == Kind::Aegis {
            self.ours.get_or_insert(error);
        }
    }

    /// Ours fails the row, and has no figure then. Says whether there was none.
    fn tell(self, report: &mut Report, row: &str) -> bool {
        match self.ours {
            Some(error) => report.fail(format!("{row}: {error:#}")),
            None => return true,
        }
        false
    }
}

/// What devices had been given to write at the end of the last run.
#[derive(Default)]
struct Amplification {
    written: BTreeMap<Kind, u64>,
}

impl Amplification {
    fn begin(&mut self, target: &Target) -> Result<()> {
        target.sync()?;
        self.written.insert(target.kind, target.device_written_bytes()?);
        Ok(())
    }

    /// Device bytes since then, in parts of what fio says it wrote.
    fn next(&mut self, target: &Target, answer: &Value) -> Result<f64> {
        let now = target.device_written_bytes()?;
        let before = self.written.insert(target.kind, now).context("it has begun")?;
        Ok((now - before) as f64 / fio_number(answer, "/jobs/0/write/io_bytes")?)
    }
}

fn write(arguments: &str) -> Result<Value> {
    fio_within(SECONDS_MAX, &format!("--name=write {CONTENT} {arguments}"))
}

/// Blocks anywhere in the file, others each time.
fn overwrite(target: &Target, mib: u64, arguments: &str) -> Result<Value> {
    let file = target.place.join(FILE);
    write(&format!(
        "--filename={} --size={mib}m --rw=randwrite --bs=4k --fsync={SYNC_EVERY} --norandommap \
         {ANYWHERE} {arguments}",
        file.display()
    ))
}

/// Every file from its beginning to its end, in an order of the seed's, each block with a checksum in it.
fn overwrite_all(target: &Target, count: u64, seed: u64, how: &str) -> Result<Value> {
    let mut numbers: Vec<u64> = (0..count).collect();
    // Any order that is another for another seed does.
    numbers.sort_by_key(|n| (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(seed as u32));
    let names: Vec<String> = numbers.iter().map(|n| format!("whole{n}")).collect();
    write(&format!(
        "--directory={} --filename={} --nrfiles={count} --openfiles=1 --file_service_type=sequential --size={}m \
         --rw=write --bs=1m --fsync={WHOLE_MIB} --randseed={seed} --verify=crc32c --verify_state_save=0 {how}",
        target.place.display(),
        names.join(":"),
        count * WHOLE_MIB
    ))
}

/// What the file of random overwrites holds.
fn sum(target: &Target) -> Result<String> {
    run(SECONDS_MAX, &["sha256sum", &target.place.join(FILE).to_string_lossy()])
}

/// Segments of which half is dead.
fn make_debris(target: &Target, seed: u64) -> Result<()> {
    let folder = target.place.join("debris");
    fs::create_dir_all(&folder)?;
    fio_within(
        SECONDS_MAX,
        &format!(
            "--name=debris --directory={} --nrfiles={DEBRIS_FILES} --openfiles=1 --file_service_type=sequential \
             --filename_format=$filenum --size={DEBRIS_FILES}m --rw=write --bs=1m --ioengine=psync --refill_buffers \
             --buffer_compress_percentage=0 --fallocate=none --randseed={seed} --end_fsync=1",
            folder.display()
        ),
    )?;
    target.settle()?;
    for n in (0..DEBRIS_FILES).step_by(2) {
        fs::remove_file(folder.join(n.to_string()))?;
    }
    target.settle()?;
    std::thread::sleep(REAPED);
    Ok(())
}

/// A cleaner at work, or what btrfs has.
struct Cleaning {
    child: Child,
    cleaned_before: u64,
}

impl Cleaning {
    fn start(target: &Target) -> Result<Self> {
        let cleaned_before = if target.kind == Kind::Aegis { cleaned(target)? } else { 0 };
        let child = match target.kind {
            Kind::Aegis => target.start_cleaning("medium")?,
            _ => {
                let mnt = target.place.to_string_lossy().into_owned();
                crate::shell::command(&["timeout", "120", "btrfs", "--quiet", "balance", "start", "-d", &mnt])
                    .spawn()?
            }
        };
        Ok(Self { child, cleaned_before })
    }

    /// Says so if it was done before the reads were, and waits until it is.
    fn end(mut self, target: &Target) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            println!("  {}: cleaning ended before the reads did", target.kind.name());
        }
        if target.kind == Kind::Aegis {
            ensure!(cleaned(target)? > self.cleaned_before, "nothing was cleaned beside the reads");
        } else {
            // It may be done by now, which is said as a failure.
            let mnt = target.place.to_string_lossy().into_owned();
            let _ = run(60, &["btrfs", "--quiet", "balance", "cancel", &mnt]);
        }
        let status = self.child.wait()?;
        if target.kind == Kind::Aegis && !status.success() {
            bail!("cleaning failed: {status}");
        }
        Ok(())
    }
}

/// Segments that were cleaned since the mount.
fn cleaned(target: &Target) -> Result<u64> {
    target.clean("status")?["segments_cleaned"].as_u64().context("the cleaner counts segments")
}
