//! The verbs on metadata in memory, without the kernel: what each costs, and what a second thread brings.

use super::clients::client;
use super::measure::{Figure, ROUNDS, Report, number};
use super::targets::Ground;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Files of all threads together; as many inodes as stay in memory.
const FILES: u64 = 20_000;
/// What the client says, and how it is called here.
const VERBS: [(&str, &str); 7] = [
    ("lookup", "lookup"),
    ("lookup_new", "lookup of a changed inode that left memory"),
    ("lookup_cold", "lookup of a stored inode that left memory"),
    ("getattr", "getattr"),
    ("read", "read of 4 KiB, warm"),
    ("create", "lookup, create and release"),
    ("unlink", "lookup, unlink and forget"),
];

/// The medians of one verb with some number of threads.
struct Cost {
    rate: f64,
    cpu_us: f64,
    switches: f64,
}

pub(super) fn in_memory(_: &Ground, _: &mut Report) -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    // In turn, so that what else the machine does falls on both.
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(run(1)?);
        together.push(run(threads)?);
    }
    println!(
        "{:<44} {:>14} {:>14} {:>9} {:>9} {:>19}",
        "metadata in memory",
        "1 thread",
        format!("{threads} threads"),
        "ratio",
        "CPU",
        "switches per 1000"
    );
    for (verb, text) in VERBS {
        let (one, all) = (cost(&alone, verb)?, cost(&together, verb)?);
        println!(
            "{:<44} {:>14} {:>14} {:>9} {:>9} {:>19}",
            format!("{text} (1/s)"),
            number(one.rate),
            number(all.rate),
            number(all.rate / one.rate),
            format!("{} us", number(one.cpu_us)),
            format!("{} {}", number(one.switches * 1e3), number(all.switches * 1e3)),
        );
    }
    Ok(())
}

fn run(threads: usize) -> Result<Value> {
    client("metadata", Path::new("-"), &format!("threads={threads} files={FILES}"))
}

fn cost(runs: &[Value], verb: &str) -> Result<Cost> {
    let median = |key: &str| -> Result<f64> {
        let values = runs.iter().map(|run| run[verb][key].as_f64()).collect::<Option<Vec<_>>>();
        let values = values.with_context(|| format!("the client tells {key} of {verb}"))?;
        Ok(Figure::of(values).median)
    };
    Ok(Cost { rate: median("rate")?, cpu_us: median("cpu_us")?, switches: median("switches")? })
}
