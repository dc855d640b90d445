//! Many small files: created, looked at, read, removed.

use super::clients::{client, files};
use super::measure::{Bound, Figure, Quantity, Report, number};
use super::targets::{Ground, Kind, Target, has_rings, run};
use super::{POOL_BYTES, verify};
use anyhow::{Context, Result};
use std::time::Instant;

/// Files of each client.
const EACH: u64 = 10_000;
const READ_FILES: u64 = 20_000;
const KINDS: [Kind; 3] = [Kind::Aegis, Kind::Ext4, Kind::Null];

pub(super) fn create_stat_unlink(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&KINDS, POOL_BYTES)?;
    // Where clients are bound to a processor each, so is the only one.
    let quantities = [
        Quantity { name: "create 4 KiB files and sync, one client", unit: "1/s" },
        Quantity { name: "stat them, one client", unit: "1/s" },
        Quantity { name: "ls -l, the second time, one client", unit: "1/s" },
        Quantity { name: "unlink them and sync, one client", unit: "1/s" },
        Quantity { name: "create 4 KiB files and sync, two clients", unit: "1/s" },
        Quantity { name: "stat them, two clients", unit: "1/s" },
        Quantity { name: "ls -l, the second time, two clients", unit: "1/s" },
        Quantity { name: "unlink them and sync, two clients", unit: "1/s" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        let mut values = Vec::new();
        for clients in [1, 2] {
            target.settle()?;
            values.push(files(target, "create", clients, EACH, seed * 2 + clients, true)?);
            // What the kernel knows of them goes, so that the filesystem is asked.
            target.settle()?;
            values.push(files(target, "stat", clients, EACH, 0, false)?);
            list(target, clients)?;
            let seconds = list(target, clients)?;
            values.push((clients * EACH) as f64 / seconds);
            values.push(files(target, "unlink", clients, EACH, 0, true)?);
        }
        Ok(values)
    })?;
    let bars = [
        (0, Kind::Null, 0.8),
        (1, Kind::Ext4, 0.5),
        (2, Kind::Ext4, 0.8),
        (3, Kind::Ext4, 0.4),
        (4, Kind::Null, 0.5),
        (5, Kind::Ext4, 0.5),
        (6, Kind::Ext4, 0.8),
        (7, Kind::Ext4, 0.25),
    ];
    for (n, to, bar) in bars {
        let text = format!("{}, to {}", quantities[n].name, to.name());
        report.bar(&text, Bound::AtLeast(bar), figures.against(to, n));
    }
    let null = |n, notes: f64| figures.get(Kind::Null, n).map(|rate| rate / notes);
    let (one, two) = if has_rings() { (51_000.0, 80_000.0) } else { (4000.0, 52_000.0) };
    report.bar("null: create, one client, to that of the notes", Bound::AtLeast(0.7), null(0, one));
    report.bar("null: create, two clients, to that of the notes", Bound::AtLeast(0.7), null(4, two));
    let last = &targets[0];
    files(last, "create", 2, EACH, 77, true)?;
    verify(report, "create, stat, unlink", &targets, |target| check(target, 2, EACH, 77));
    Ok(())
}

pub(super) fn read_cold(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&KINDS, POOL_BYTES)?;
    for target in &targets {
        files(target, "create", 1, READ_FILES, 5, true)?;
    }
    let mut device_reads = Vec::new();
    let name = "read 20,000 small files, cold";
    let figures = report.compare(&mut targets, &[Quantity { name, unit: "1/s" }], |target, _| {
        target.chill()?;
        let before = reads(target)?;
        let rate = files(target, "read-files", 1, READ_FILES, 0, false)?;
        if target.kind == Kind::Aegis {
            device_reads.push((reads(target)? - before) / READ_FILES as f64);
        }
        Ok(vec![rate])
    })?;
    let device_reads = Figure::of(device_reads).median;
    println!("  device reads per file {}", number(device_reads));
    let to_ext4 = figures.against(Kind::Ext4, 0);
    report.bar("read 20,000 small files, cold, to ext4", Bound::AtLeast(2.0), to_ext4);
    report.bar("device reads per small file", Bound::AtMost(0.1), Some(device_reads));
    verify(report, name, &targets, |target| check(target, 1, READ_FILES, 5));
    Ok(())
}

/// Lists every client's folder with all attributes, at once; returns the seconds that it took.
fn list(target: &Target, clients: u64) -> Result<f64> {
    let folders = (0..clients).map(|n| target.place.join(format!("files{n}")).display().to_string());
    let each = folders.map(|folder| format!("ls -lR {folder} > /dev/null & "));
    let line = format!("{}wait", each.collect::<String>());
    let start = Instant::now();
    run(120, &["bash", "-c", &line])?;
    Ok(start.elapsed().as_secs_f64())
}

/// Reads of the device by the daemon of AegisFS.
fn reads(target: &Target) -> Result<f64> {
    if target.kind != Kind::Aegis {
        return Ok(0.0);
    }
    target.status()?["store"]["device_reads"].as_f64().context("the daemon counts its reads")
}

fn check(target: &Target, clients: u64, each: u64, seed: u64) -> Result<()> {
    for n in 0..clients {
        let path = target.place.join(format!("files{n}"));
        client("check-files", &path, &format!("count={each} seed={}", seed * 16 + n))?;
    }
    Ok(())
}
