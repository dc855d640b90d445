//! Many small files: created, looked at, read, removed.

use super::clients::{client, files};
use super::measure::{Bound, Figure, Quantity, Report, number};
use super::targets::{Ground, Kind, Target};
use super::{POOL_BYTES, verify};
use anyhow::{Context, Result};

/// Files of each client.
const EACH: u64 = 10_000;
const READ_FILES: u64 = 20_000;
const KINDS: [Kind; 3] = [Kind::Aegis, Kind::Ext4, Kind::Null];

pub(super) fn create_stat_unlink(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&KINDS, POOL_BYTES)?;
    let quantities = [
        Quantity { name: "create 4 KiB files and sync, one client", unit: "1/s" },
        Quantity { name: "stat them, one client", unit: "1/s" },
        Quantity { name: "unlink them and sync, one client", unit: "1/s" },
        Quantity { name: "create 4 KiB files and sync, two clients", unit: "1/s" },
        Quantity { name: "stat them, two clients", unit: "1/s" },
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
            values.push(files(target, "unlink", clients, EACH, 0, true)?);
        }
        Ok(values)
    })?;
    for (n, quantity) in quantities.iter().enumerate() {
        let bar = if n < 3 { 0.8 } else { 0.5 };
        let text = format!("{}, to null", quantity.name);
        report.bar(&text, Bound::AtLeast(bar), figures.against(Kind::Null, n));
    }
    let null = |n, notes: f64| figures.get(Kind::Null, n).map(|rate| rate / notes);
    report.bar("null: create, one client, to 4.0k of the notes", Bound::AtLeast(0.7), null(0, 4000.0));
    report.bar("null: create, two clients, to 52k of the notes", Bound::AtLeast(0.7), null(3, 52_000.0));
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
    report.bar("read 20,000 small files, cold, to null", Bound::AtLeast(0.7), figures.against(Kind::Null, 0));
    report.bar("device reads per small file", Bound::AtMost(0.1), Some(device_reads));
    verify(report, name, &targets, |target| check(target, 1, READ_FILES, 5));
    Ok(())
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
