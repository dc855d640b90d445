//! What redundancy costs: the same work on one device, on two mirrors and on six devices with an erasure code.

use super::blocks::path;
use super::clients::{client, random_reads, read_p99, said};
use super::measure::{Bound, Figure, ROUNDS, Report, number};
use super::streams::{rate, write_one};
use super::targets::{Ground, POOLS, Target};
use anyhow::Result;
use std::time::Instant;

const STREAM_MIB: u64 = 1024;
const READ_SECONDS: u32 = 3;
/// Of each device.
const DEVICE_BYTES: u64 = 8 << 30;
const SHAPES: [(&str, usize); 3] = [("single", 1), ("mirror:2", 2), ("ec:4+2", 6)];

/// What is measured on each of them.
const QUANTITIES: [&str; 5] = [
    "write, incompressible (MB/s)",
    "read, cold (MB/s)",
    "random 4 KiB reads, cold, depth 1 (1/s)",
    "random 4 KiB reads, cold, depth 16 (1/s)",
    "scrub at high (MB/s, all devices)",
];

pub(super) fn compared(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = Vec::new();
    for (name, (redundancy, count)) in POOLS.into_iter().zip(SHAPES) {
        targets.push(ground.pool(name, redundancy, count, DEVICE_BYTES)?);
    }
    let mut runs = vec![vec![Vec::new(); QUANTITIES.len()]; targets.len()];
    for round in 0..ROUNDS as u64 {
        for (target, runs) in targets.iter_mut().zip(&mut runs) {
            ground.renew(target, DEVICE_BYTES)?;
            for (runs, value) in runs.iter_mut().zip(measure(target, round)?) {
                runs.push(value);
            }
        }
    }
    println!("{:<44} {:>14} {:>14} {:>14}", "redundancy", SHAPES[0].0, SHAPES[1].0, SHAPES[2].0);
    let medians: Vec<Vec<f64>> =
        runs.into_iter().map(|of| of.into_iter().map(|of| Figure::of(of).median).collect()).collect();
    for (n, name) in QUANTITIES.iter().enumerate() {
        let [single, mirror, coded] = [0, 1, 2].map(|target| number(medians[target][n]));
        println!("{name:<44} {single:>14} {mirror:>14} {coded:>14}");
    }
    let coded = |n: usize| Some(medians[2][n] / medians[0][n]);
    report.bar("write, ec:4+2 to single", Bound::AtLeast(0.6), coded(0));
    report.bar("read cold, ec:4+2 to single", Bound::AtLeast(0.9), coded(1));

    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let answer = client("erasure", &path(&targets[2]), "data=4 parity=2")?;
        for (rates, key) in rates.iter_mut().zip(["encode", "decode"]) {
            rates.push(said(&answer, key)? / 1e9);
        }
    }
    let [encode, decode] = rates.map(|rates| Figure::of(rates).median);
    println!(
        "  the code alone, 4+2, 256 KiB columns, one core: {encode:.1} GB/s made parity of, {decode:.1} decoded with two lost"
    );
    report.bar("erasure code 4+2, encode, GB/s of one core", Bound::AtLeast(10.0), Some(encode));
    report.bar("erasure code 4+2, decode, GB/s of one core", Bound::AtLeast(10.0), Some(decode));

    let target = &mut targets[2];
    let (streams, blocks) = beside_low_scrub(target)?;
    println!(
        "  ec:4+2 beside a scrub at low: read, cold {streams:.2} of idle, random 4 KiB reads {blocks:.2}"
    );
    report.bar("read cold beside a scrub at low, to idle", Bound::AtLeast(0.9), Some(streams));
    report.bar("random reads beside a scrub at low, to idle", Bound::AtLeast(0.9), Some(blocks));
    let idle = read_p99(&path(target), READ_SECONDS)?;
    target.start_scrub("medium")?;
    let beside = read_p99(&path(target), READ_SECONDS)?;
    println!("  ec:4+2, p99 of 4 KiB reads: {} us, and {} us beside a scrub", number(idle), number(beside));
    report.bar("p99 of reads beside a scrub, to idle", Bound::AtMost(3.0), Some(beside / idle));
    target.lose_first()?;
    target.chill()?;
    let degraded = read(target)?;
    println!("  ec:4+2 with a device missing: read, cold {} MB/s", number(degraded));
    report.bar("read cold, a device missing, to single", Bound::AtLeast(0.5), Some(degraded / medians[0][1]));
    client("check-stream", &path(target), &format!("seed={} kind=noise mib={STREAM_MIB}", ROUNDS - 1))?;
    Ok(())
}

fn measure(target: &Target, seed: u64) -> Result<[f64; QUANTITIES.len()]> {
    let written = rate(&write_one(target, seed, "noise", STREAM_MIB)?)?;
    target.chill()?;
    let read = read(target)?;
    let blocks = |depth| {
        target.chill()?;
        random_reads(&path(target), depth, READ_SECONDS, seed)
    };
    let (one, sixteen) = (blocks(1)?, blocks(16)?);
    let begun = Instant::now();
    let scrubbed = target.scrub()? / 1e6 / begun.elapsed().as_secs_f64();
    Ok([written, read, one, sixteen, scrubbed])
}

/// What is left of reading, in one stream and all over, while a scrub goes on at its lowest intensity.
fn beside_low_scrub(target: &Target) -> Result<(f64, f64)> {
    let mut runs = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    // A difference so small is seen in more rounds only.
    for round in 0..2 * ROUNDS as u64 + 1 {
        for (runs, scrubs) in runs.iter_mut().zip([false, true]) {
            target.chill()?;
            if scrubs {
                target.start_scrub("low")?;
            }
            runs[0].push(read(target)?);
            runs[1].push(random_reads(&path(target), 16, READ_SECONDS, round)?);
            if scrubs {
                target.end_scrub()?;
            }
        }
    }
    let [idle, beside] = runs.map(|of| of.map(|runs| Figure::of(runs).median));
    Ok((beside[0] / idle[0], beside[1] / idle[1]))
}

fn read(target: &Target) -> Result<f64> {
    rate(&client("read", &path(target), "")?)
}
