//! Starting the programs that are timed; they are built with the benchmark.

use super::targets::{Target, run};
use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

/// No client takes longer.
const SECONDS_MAX: u32 = 180;
/// From starting clients to the moment at which all begin.
const LEAD: Duration = Duration::from_millis(60);

/// Has fio choose other offsets in each run: its seed only changes the content.
pub(super) const ANYWHERE: &str = "--randrepeat=0 --allrandrepeat=0";

/// Runs one client and returns what it says.
pub(super) fn client(verb: &str, path: &Path, arguments: &str) -> Result<Value> {
    let (program, path) = (program(), format!("path={}", path.display()));
    let line = [[program.as_str(), verb, &path].as_slice(), &words(arguments)].concat();
    Ok(serde_json::from_str(&run(SECONDS_MAX, &line)?)?)
}

/// A number that a client said.
pub(super) fn said(answer: &Value, key: &str) -> Result<f64> {
    answer[key].as_f64().with_context(|| format!("the client says {key}"))
}

/// Runs clients, each bound to a CPU, over sets of files of their own, and then `sync` where
/// asked. Returns files per second, from the first beginning to the end of the sync.
pub(super) fn files(
    target: &Target,
    verb: &str,
    clients: u64,
    each: u64,
    seed: u64,
    sync: bool,
) -> Result<f64> {
    let begin = SystemTime::now() + LEAD;
    let begin = begin.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let mut children = Vec::new();
    for n in 0..clients {
        let path = format!("path={}", target.place.join(format!("files{n}")).display());
        let mut arguments = format!("count={each} seed={} start={begin}", seed * 16 + n);
        arguments += &format!(" cpu={n}");
        let limit = SECONDS_MAX.to_string();
        let program = program();
        let line = [["timeout", &limit, &program, verb, &path].as_slice(), &words(&arguments)].concat();
        children.push(shell::command(&line).stdout(Stdio::piped()).spawn()?);
    }
    let (mut first, mut last) = (f64::MAX, 0.0f64);
    for child in children {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("a client that should {verb} files failed: {}", output.status);
        }
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        first = first.min(said(&answer, "begin")?);
        last = last.max(said(&answer, "end")?);
    }
    let syncing = Instant::now();
    if sync {
        target.sync()?;
    }
    let seconds = last - first + if sync { syncing.elapsed().as_secs_f64() } else { 0.0 };
    Ok((clients * each) as f64 / seconds)
}

/// Random reads of 4 KiB past the kernel's cache, per second.
pub(super) fn random_reads(path: &Path, depth: u32, seconds: u32, seed: u64) -> Result<f64> {
    let arguments = format!(
        "--name=reads --filename={} --readonly --rw=randread --bs=4k --direct=1 --ioengine=libaio \
         --iodepth={depth} --time_based --runtime={seconds} --randseed={seed} --norandommap",
        path.display()
    );
    fio_number(&fio(&arguments)?, "/jobs/0/read/iops")
}

/// The 99th percentile of how long one of them takes that comes alone, in microseconds.
pub(super) fn read_p99(path: &Path, seconds: u32) -> Result<f64> {
    let arguments = format!(
        "--name=reads --filename={} --readonly --rw=randread --bs=4k --direct=1 --ioengine=psync --time_based \
         --runtime={seconds} --norandommap",
        path.display()
    );
    Ok(fio_number(&fio(&arguments)?, "/jobs/0/read/clat_ns/percentile/99.000000")?
        / super::latency::NS_PER_US)
}

/// Runs fio and returns what it says.
pub(super) fn fio(arguments: &str) -> Result<Value> {
    fio_within(SECONDS_MAX, arguments)
}

/// The same for so many seconds at most.
pub(super) fn fio_within(seconds: u32, arguments: &str) -> Result<Value> {
    let arguments = format!("{arguments} --output-format=json");
    let answer = run(seconds, &[["fio"].as_slice(), &words(&arguments)].concat())?;
    // It may say something before the object.
    let object = answer.find('{').map_or("", |at| &answer[at..]);
    Ok(serde_json::from_str(object)?)
}

/// A number that fio said, by its path.
pub(super) fn fio_number(answer: &Value, path: &str) -> Result<f64> {
    answer.pointer(path).and_then(Value::as_f64).with_context(|| format!("fio tells {path}"))
}

pub(super) fn program() -> String {
    shell::target().join("release/examples/bench-client").to_string_lossy().into_owned()
}

fn words(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}
