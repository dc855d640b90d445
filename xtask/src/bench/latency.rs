//! How long small requests wait while somebody else writes a long stream.

use super::clients::{ANYWHERE, fio, fio_number};
use super::measure::{Bound, Quantity, Report};
use super::streams::write_one;
use super::targets::{Ground, Kind, Target};
use super::{WRITTEN_BYTES, verify};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Child;

/// Four times the daemon's cache of chunks, so that reads go to the device.
const READ_MIB: u64 = 4 * 96;
const SECONDS: u32 = 4;
/// fio tells percentiles in nanoseconds, the table microseconds.
pub(super) const NS_PER_US: f64 = 1000.0;

pub(super) fn beside_a_stream(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets_with_room(&[Kind::Aegis, Kind::Ext4], WRITTEN_BYTES)?;
    for target in &targets {
        write_one(target, 3, "noise", READ_MIB)?;
    }
    let quantities = [
        Quantity { name: "4 KiB read, p99, alone", unit: "us" },
        Quantity { name: "4 KiB read, p99, beside a stream", unit: "us" },
        Quantity { name: "4 KiB write and fsync, p99, alone", unit: "us" },
        Quantity { name: "4 KiB write and fsync, p99, beside one", unit: "us" },
    ];
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        let mut values = Vec::new();
        for measure in [|target: &Target, _| read(target), write_and_sync] {
            target.chill()?;
            values.push(measure(target, seed)?);
            let stream = Stream::start(target)?;
            values.push(measure(target, seed + 100)?);
            stream.end()?;
        }
        Ok(values)
    })?;
    for (name, alone, beside) in [("reads", 0, 1), ("write and fsync", 2, 3)] {
        for kind in [Kind::Aegis, Kind::Ext4] {
            let times = figures.get(kind, beside).zip(figures.get(kind, alone)).map(|(b, a)| b / a);
            if kind == Kind::Aegis {
                let text = format!("4 KiB {name}: p99 beside a stream, to p99 alone");
                report.bar(&text, Bound::AtMost(5.0), times);
            } else if let Some(times) = times {
                println!("  {}: p99 of {name} beside a stream is {times:.1} times that alone", kind.name());
            }
        }
    }
    verify(report, "beside a stream", &targets, |target| {
        fs::metadata(target.place.join("stream")).map(|_| ()).context("what was read is there")
    });
    Ok(())
}

/// The longest of all but one in a hundred random reads past the kernel's cache, in microseconds.
pub(super) fn read(target: &Target) -> Result<f64> {
    let answer = fio(&format!(
        "--name=reads --filename={} --readonly --rw=randread --bs=4k --direct=1 --time_based \
         --runtime={SECONDS} {ANYWHERE} --norandommap",
        target.place.join("stream").display()
    ))?;
    Ok(fio_number(&answer, "/jobs/0/read/clat_ns/percentile/99.000000")? / NS_PER_US)
}

/// The same of writes, each with an fsync.
fn write_and_sync(target: &Target, seed: u64) -> Result<f64> {
    let answer = fio(&format!(
        "--name=syncs --filename={} --rw=randwrite --bs=4k --size=16m --fsync=1 --time_based \
         --runtime={SECONDS} --randseed={seed} --norandommap",
        target.place.join("synced").display()
    ))?;
    Ok(fio_number(&answer, "/jobs/0/sync/lat_ns/percentile/99.000000")? / NS_PER_US)
}

/// Somebody who writes streams of 1 GiB, one after the other.
struct Stream {
    writer: Child,
}

impl Stream {
    fn start(target: &Target) -> Result<Self> {
        let file = target.place.join("neighbour");
        let line = format!(
            "trap 'kill $client; wait $client; exit 0' TERM; for n in 1 2 3 4 5 6 7 8; do {1} write path={0} seed=$n \
             kind=noise mib=1024 daemon=0 > /dev/null & client=$!; wait $client || exit 1; done",
            file.display(),
            super::clients::program(),
        );
        let writer = shell::command(&["timeout", "120", "bash", "-c", &line]).spawn()?;
        // It begins by making its content.
        std::thread::sleep(std::time::Duration::from_millis(700));
        Ok(Self { writer })
    }

    fn end(mut self) -> Result<()> {
        if let Some(status) = self.writer.try_wait()?
            && !status.success()
        {
            bail!("the stream beside it failed: {status}");
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // timeout(1) passes it on, and its child waits for the client, which may have much to write back.
        let _ = shell::output(&["kill", &self.writer.id().to_string()]);
        let _ = self.writer.wait();
    }
}
