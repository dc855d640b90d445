//! Single blocks of a large file, made durable after every one or after a batch.

use crate::Arguments;
use crate::content::{BLOCK_BYTES, CALL_BYTES, Kind, Noise, Stream, mix};
use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// Where the writes of a run go and what they hold.
struct Run {
    seed: u64,
    blocks: u64,
    at_random: bool,
}

impl Run {
    fn new(seed: u64, mib: u64, order: &str) -> Result<Self> {
        let at_random = match order {
            "random" => true,
            "sequential" => false,
            _ => bail!("order is random or sequential, not {order}"),
        };
        Ok(Self { seed, blocks: mib * (CALL_BYTES / BLOCK_BYTES) as u64, at_random })
    }

    fn place(&self, number: u64) -> u64 {
        let place = if self.at_random { mix(self.seed ^ mix(number)) } else { number };
        place % self.blocks
    }

    fn fill(&self, number: u64, block: &mut [u8]) {
        Noise::new(mix(self.seed).wrapping_add(number)).fill(block);
    }
}

/// Writes blocks until the time is over.
pub(crate) fn write(arguments: &Arguments) -> Result<Value> {
    let run = Run::new(arguments.number("seed")?, arguments.number("mib")?, arguments.text("order")?)?;
    let batch: u64 = arguments.number("batch")?;
    let limit = Duration::from_secs_f64(arguments.number("seconds")?);
    let is_raw = arguments.number_or("raw", 0)? == 1;
    let flags = if is_raw { OFlags::DIRECT.bits() } else { 0 };
    let file = OpenOptions::new().write(true).custom_flags(flags as i32).open(arguments.path()?)?;
    // A device wants aligned memory.
    let mut memory = vec![0; 2 * BLOCK_BYTES];
    let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = &mut memory[aligned..aligned + BLOCK_BYTES];
    let mut latencies = Vec::new();
    let (start, mut number) = (Instant::now(), 0);
    while start.elapsed() < limit {
        let begin = Instant::now();
        for _ in 0..batch {
            run.fill(number, block);
            file.write_all_at(block, run.place(number) * BLOCK_BYTES as u64)?;
            number += 1;
        }
        if is_raw {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        latencies.push(begin.elapsed());
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort();
    let median = latencies[latencies.len() / 2].as_secs_f64() * 1e6;
    Ok(json!({ "seconds": seconds, "writes": number, "median_us": median }))
}

/// Compares a file with the stream it began as and all the runs over it, as `runs=SEED:WRITES,..`.
pub(crate) fn check(arguments: &Arguments) -> Result<Value> {
    let mib: u64 = arguments.number("mib")?;
    let mut stream = Stream::new(arguments.number("base")?, Kind::Noise);
    let mut runs = Vec::new();
    // For each block the run and the write that came last.
    let mut last = vec![None; mib as usize * (CALL_BYTES / BLOCK_BYTES)];
    for pair in arguments.text("runs")?.split(',').filter(|pair| !pair.is_empty()) {
        let (seed, writes) = pair.split_once(':').context("a run is a seed and a count")?;
        let run = Run::new(seed.parse()?, mib, arguments.text("order")?)?;
        for number in 0..writes.parse()? {
            last[run.place(number) as usize] = Some((runs.len(), number));
        }
        runs.push(run);
    }
    let file = File::open(arguments.path()?)?;
    let (mut found, mut wanted) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    for (place, written) in last.iter().enumerate() {
        file.read_exact_at(&mut found, (place * BLOCK_BYTES) as u64)?;
        match written {
            Some((run, number)) => runs[*run].fill(*number, &mut wanted),
            None => {
                let at = place * BLOCK_BYTES;
                let call = stream.call(at / CALL_BYTES);
                wanted.copy_from_slice(&call[at % CALL_BYTES..at % CALL_BYTES + BLOCK_BYTES]);
            }
        }
        if found != wanted {
            bail!("block {place} is not what was written last");
        }
    }
    Ok(json!({ "blocks": last.len() }))
}
