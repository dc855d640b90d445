//! Single blocks of a large file, read and written.

use super::clients::{client, fio, fio_number, random_reads, said};
use super::measure::{Bound, Figure, Quantity, Report, number};
use super::streams::write_one;
use super::targets::{Ground, Kind, Target};
use super::{POOL_BYTES, WRITTEN_BYTES, verify};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;

/// Four times the daemon's cache of chunks.
const READ_MIB: u64 = 4 * 96;
const READ_SECONDS: u32 = 3;
const WRITE_MIB: u64 = 256;
const SYNCED_MIB: u64 = 64;
/// The seed of the content that blocks are written over.
const BASE: u64 = 1000;
const BLOCK_BYTES: f64 = 4096.0;

pub(super) fn read(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&[Kind::Aegis, Kind::Ext4, Kind::Null], POOL_BYTES)?;
    for target in &targets {
        write_one(target, BASE, "noise", READ_MIB)?;
    }
    let quantities = [
        Quantity { name: "random 4 KiB reads, cold, depth 1", unit: "1/s" },
        Quantity { name: "random 4 KiB reads, cold, depth 16", unit: "1/s" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        let rate = |depth| {
            target.chill()?;
            random_reads(&path(target), depth, READ_SECONDS, seed)
        };
        Ok(vec![rate(1)?, rate(16)?])
    })?;
    let to_ext4 = |n| figures.against(Kind::Ext4, n);
    report.bar("random 4 KiB reads, depth 1, to ext4", Bound::AtLeast(0.4), to_ext4(0));
    report.bar("random 4 KiB reads, depth 16, to ext4", Bound::AtLeast(0.3), to_ext4(1));
    verify(report, "random reads", &targets, |target| check(target, READ_MIB, "random", &[]));
    Ok(())
}

pub(super) fn write(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets_with_room(&[Kind::Aegis, Kind::Ext4, Kind::Null], WRITTEN_BYTES)?;
    for target in &targets {
        write_one(target, BASE, "noise", WRITE_MIB)?;
    }
    let mut runs = Vec::new();
    let name = "random 4 KiB writes, fsync every 32";
    let figures = report.compare(&mut targets, &[Quantity { name, unit: "1/s" }], |target, seed| {
        target.settle()?;
        let arguments = format!("seed={seed} mib={WRITE_MIB} order=random batch=32 seconds=3");
        let answer = client("blocks", &path(target), &arguments)?;
        if target.kind == Kind::Aegis {
            runs.push((seed, said(&answer, "writes")?));
        }
        Ok(vec![said(&answer, "writes")? / said(&answer, "seconds")?])
    })?;
    report.bar(
        "random 4 KiB writes, fsync every 32, to ext4",
        Bound::AtLeast(0.6),
        figures.against(Kind::Ext4, 0),
    );
    verify(report, name, &targets, |target| check(target, WRITE_MIB, "random", &runs));
    Ok(())
}

/// Writes through a handle that makes each of them durable; fio verifies them afterwards.
pub(super) fn write_synced(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets_with_room(&[Kind::Aegis, Kind::Ext4], WRITTEN_BYTES)?;
    for target in &targets {
        write_one(target, BASE, "noise", SYNCED_MIB)?;
    }
    let name = "4 KiB writes with O_DSYNC, depth 1";
    let quantities =
        [Quantity { name, unit: "1/s" }, Quantity { name: "the same, the median of one", unit: "us" }];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        target.settle()?;
        let answer = fio(&format!(
            "--name=dsync --filename={} --rw=randwrite --bs=4k --sync=dsync --ioengine=psync --time_based \
             --runtime=3 --randseed={seed} --norandommap --size={SYNCED_MIB}m",
            path(target).display()
        ))?;
        let median = fio_number(&answer, "/jobs/0/write/clat_ns/percentile/50.000000")? / 1000.0;
        Ok(vec![fio_number(&answer, "/jobs/0/write/iops")?, median])
    })?;
    report.bar(&format!("{name}, to ext4"), Bound::AtLeast(0.6), figures.against(Kind::Ext4, 0));
    let sealed = |target: &Target| {
        let file = target.place.join("sealed");
        let line = format!(
            "--name=sealed --filename={} --rw=write --bs=4k --sync=dsync --size=8m --verify=crc32c --verify_state_save=0",
            file.display()
        );
        fio(&format!("{line} --do_verify=0"))?;
        target.chill()?;
        fio(&format!("{line} --verify_only")).map(|_| ())
    };
    verify(report, name, &targets, sealed);
    Ok(())
}

pub(super) fn write_and_sync(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets =
        ground.targets_with_room(&[Kind::Aegis, Kind::Ext4, Kind::Null, Kind::Raw], WRITTEN_BYTES)?;
    for target in &targets {
        write_one(target, BASE, "noise", SYNCED_MIB)?;
    }
    let (mut runs, mut written, mut content) = (Vec::new(), Vec::new(), Vec::new());
    let quantities = [
        Quantity { name: "4 KiB write and fsync, mean", unit: "us" },
        Quantity { name: "4 KiB write and fsync, median", unit: "us" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        target.settle()?;
        let raw = u8::from(target.kind == Kind::Raw);
        let before = log_bytes(target)?;
        let arguments = format!("seed={seed} mib={SYNCED_MIB} order=sequential batch=1 seconds=2 raw={raw}");
        let answer = client("blocks", &path(target), &arguments)?;
        let writes = said(&answer, "writes")?;
        if target.kind == Kind::Aegis {
            let after = log_bytes(target)?;
            written.push((after.0 - before.0) / writes);
            content.push((after.1 - before.1) / writes);
            runs.push((seed, writes));
        }
        Ok(vec![said(&answer, "seconds")? * 1e6 / writes, said(&answer, "median_us")?])
    })?;
    let beside = |figures| Figure::of(figures).median - BLOCK_BYTES;
    let (written, content) = (beside(written), beside(content));
    println!(
        "  log bytes per write beside the payload: {}; in whole blocks {}",
        number(content),
        number(written)
    );
    let to_raw = |n| figures.against(Kind::Raw, n);
    report.bar("4 KiB write and fsync, mean, to a raw write and flush", Bound::AtMost(1.3), to_raw(0));
    report.bar("4 KiB write and fsync, median, to a raw write and flush", Bound::AtMost(1.3), to_raw(1));
    report.bar(
        "log bytes beside the payload of a 4 KiB write and fsync",
        Bound::AtMost(1536.0),
        Some(content),
    );
    report.bar("the same in whole blocks (decision 006)", Bound::AtMost(1536.0), Some(written));
    verify(report, "write and fsync", &targets, |target| check(target, SYNCED_MIB, "sequential", &runs));
    Ok(())
}

pub(super) fn path(target: &Target) -> PathBuf {
    if target.kind == Kind::Raw { target.place.clone() } else { target.place.join("stream") }
}

/// Bytes that the log wrote, and how many of them say something.
fn log_bytes(target: &Target) -> Result<(f64, f64)> {
    if target.kind != Kind::Aegis {
        return Ok((0.0, 0.0));
    }
    let status: Value = target.status()?;
    let count = |key: &str| status[key].as_f64().context("the daemon counts the bytes of its log");
    Ok((count("log_bytes_written")?, count("log_bytes_content")?))
}

/// Compares the file with what it began as and every write since.
fn check(target: &Target, mib: u64, order: &str, runs: &[(u64, f64)]) -> Result<()> {
    let runs: Vec<String> = runs.iter().map(|(seed, writes)| format!("{seed}:{writes}")).collect();
    let arguments = format!("mib={mib} base={BASE} order={order} runs={}", runs.join(","));
    client("check-blocks", &path(target), &arguments).map(|_| ())
}
