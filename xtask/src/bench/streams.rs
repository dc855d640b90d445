//! One large file written and read from its beginning to its end.

use super::clients::{client, said};
use super::measure::{Bound, Figure, Quantity, ROUNDS, Report, number};
use super::targets::{Ground, Kind, Target};
use super::{POOL_BYTES, verify};
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::Path;
use std::thread;

const STREAM_MIB: u64 = 2048;
const STREAM: &str = "stream";
/// Enough for a steady rate.
const PIPELINE_MIB: u64 = 1024;
/// Of the machine that the limits hold for.
const PROCESSORS: f64 = 2.0;

/// One writing of a stream to AegisFS, for the limit that follows from it.
struct Writing {
    rate: f64,
    /// CPU seconds per second that the pipeline could not have: client and daemon in the kernel.
    lost_to_daemon: f64,
    /// The same with everything that the kernel does, its own threads included.
    lost_to_kernel: f64,
}

impl Writing {
    fn of(answer: &Value) -> Result<Self> {
        let seconds = said(answer, "seconds")?;
        let part = |key: &str| Ok::<f64, anyhow::Error>(said(answer, key)? / seconds);
        let client = part("client_cpu")?;
        Ok(Self {
            rate: rate(answer)?,
            lost_to_daemon: client + part("daemon_kernel_cpu")?,
            // The kernel's time holds the client's part in it; what the client does by itself is next to nothing.
            lost_to_kernel: client.max(part("kernel_cpu")?),
        })
    }
}

pub(super) fn write_half(ground: &Ground, report: &mut Report) -> Result<()> {
    let kinds = [Kind::Aegis, Kind::Ext4, Kind::Btrfs, Kind::Null];
    let mut writings = Vec::new();
    let figures = write(ground, report, &kinds, "half", &mut writings)?;
    let (mut pipeline, mut at_once) = (Vec::new(), Vec::new());
    for seed in 0..ROUNDS {
        pipeline.push(run_pipeline(seed)?);
        at_once.push(run_pipelines(seed)?);
    }
    let (pipeline, at_once) = (Figure::of(pipeline).median, Figure::of(at_once).median);
    // Processors that share a core, or a host that is busy, give less together than each gives alone.
    let per_processor = at_once / PROCESSORS;
    let limit = |lost: fn(&Writing) -> f64| {
        let limits = writings.iter().map(|writing| per_processor * (PROCESSORS - lost(writing))).collect();
        Figure::of(limits).median
    };
    let part_of = |each: f64| {
        let parts = writings.iter().map(|w| w.rate / (each * (PROCESSORS - w.lost_to_daemon))).collect();
        Figure::of(parts).median
    };
    let part = part_of(per_processor);
    println!(
        "  pipeline {} MB/s alone, {} MB/s in all on both processors at once; limit {} MB/s (with the kernel's own \
         threads {}); ratio to it {}, and {} to what twice the first would give",
        number(pipeline),
        number(at_once),
        number(limit(|writing| writing.lost_to_daemon)),
        number(limit(|writing| writing.lost_to_kernel)),
        number(part),
        number(part_of(pipeline))
    );
    report.bar("write, half compressible, to its limit", Bound::AtLeast(0.85), Some(part));
    let bar = "write, half compressible, to btrfs zstd:1";
    report.bar(bar, Bound::AtLeast(0.7), figures.against(Kind::Btrfs, 0));
    report.bar(
        "null: write, to 1410 MB/s of the notes",
        Bound::AtLeast(0.7),
        figures.get(Kind::Null, 0).map(|r| r / 1410.0),
    );
    Ok(())
}

/// What chunking, hashing and compressing does by itself, in MB/s.
fn run_pipeline(seed: usize) -> Result<f64> {
    rate(&client("pipeline", Path::new("-"), &format!("kind=half seed={seed} mib={PIPELINE_MIB}"))?)
}

/// The same on every processor at a time, in all.
fn run_pipelines(seed: usize) -> Result<f64> {
    thread::scope(|scope| {
        let other = scope.spawn(|| run_pipeline(seed + ROUNDS));
        let own = run_pipeline(seed)?;
        Ok(own + other.join().expect("it does not panic")?)
    })
}

pub(super) fn write_noise(ground: &Ground, report: &mut Report) -> Result<()> {
    let kinds = [Kind::Aegis, Kind::Ext4, Kind::Null];
    let figures = write(ground, report, &kinds, "noise", &mut Vec::new())?;
    report.bar("write, incompressible, to ext4", Bound::AtLeast(0.6), figures.against(Kind::Ext4, 0));
    Ok(())
}

fn write(
    ground: &Ground,
    report: &mut Report,
    kinds: &[Kind],
    content: &'static str,
    writings: &mut Vec<Writing>,
) -> Result<super::measure::Figures> {
    let mut targets = ground.targets(kinds, POOL_BYTES)?;
    let name = if content == "half" { "write, half compressible" } else { "write, incompressible" };
    let mut last_seed = 0;
    let figures = report.compare(&mut targets, &[Quantity { name, unit: "MB/s" }], |target, seed| {
        ground.renew(target, POOL_BYTES)?;
        let answer = write_one(target, seed, content, STREAM_MIB)?;
        if target.kind == Kind::Aegis {
            writings.push(Writing::of(&answer)?);
            last_seed = seed;
        }
        Ok(vec![rate(&answer)?])
    })?;
    verify(report, name, &targets, |target| check(target, last_seed, content, STREAM_MIB));
    Ok(figures)
}

pub(super) fn read(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&[Kind::Aegis, Kind::Ext4, Kind::Null], POOL_BYTES)?;
    for target in &targets {
        write_one(target, 1, "half", STREAM_MIB)?;
    }
    let quantities =
        [Quantity { name: "read, cold", unit: "MB/s" }, Quantity { name: "read, warm", unit: "MB/s" }];
    let figures = report.compare(&mut targets, &quantities, |target, _| {
        target.chill()?;
        let path = target.place.join(STREAM);
        let cold = rate(&client("read", &path, "")?)?;
        client("read", &path, "")?;
        let before = reads(target)?;
        let warm = rate(&client("read", &path, "")?)?;
        let asked = reads(target)? - before;
        if asked > 0 {
            bail!("{asked} reads of cached data reached the daemon");
        }
        Ok(vec![cold, warm])
    })?;
    report.bar("read, cold, to ext4", Bound::AtLeast(0.7), figures.against(Kind::Ext4, 0));
    report.bar(
        "read, warm and without the daemon, to ext4",
        Bound::AtLeast(0.75),
        figures.against(Kind::Ext4, 1),
    );
    report.bar(
        "null: read, cold, to 2800 MB/s of the notes",
        Bound::AtLeast(0.7),
        figures.get(Kind::Null, 0).map(|r| r / 2800.0),
    );
    verify(report, "read", &targets, |target| check(target, 1, "half", STREAM_MIB));
    Ok(())
}

/// How often the daemon of AegisFS was asked to read.
fn reads(target: &Target) -> Result<u64> {
    match target.kind {
        Kind::Aegis => Ok(target.status()?["opcodes"]["read"].as_u64().unwrap_or(0)),
        _ => Ok(0),
    }
}

/// Writes a stream after everything before is durable and out of the kernel's cache.
pub(super) fn write_one(target: &Target, seed: u64, content: &str, mib: u64) -> Result<Value> {
    target.settle()?;
    let path = if target.kind == Kind::Raw { target.place.clone() } else { target.place.join(STREAM) };
    let daemon = target.daemon()?;
    client("write", &path, &format!("seed={seed} kind={content} mib={mib} daemon={daemon}"))
}

/// Compares the stream with what was written.
fn check(target: &Target, seed: u64, content: &str, mib: u64) -> Result<()> {
    client("check-stream", &target.place.join(STREAM), &format!("seed={seed} kind={content} mib={mib}"))
        .map(|_| ())
}

pub(super) fn rate(answer: &Value) -> Result<f64> {
    Ok(said(answer, "bytes")? / 1e6 / said(answer, "seconds")?)
}
