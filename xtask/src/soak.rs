//! `soak`: what an ordinary run has no time for: the crash tests with many more points, millions of files, and the
//! programs of `tests/programs` for long.

use crate::bench::full::LONG;
use crate::programs;
use crate::shell;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Instant;

/// Points per history when none are given; with the histories there are, more than [`TOTAL_MIN`] in all.
const POINTS: &str = "4400";
/// Points in all that a run without an argument must reach.
const TOTAL_MIN: u64 = 100_000;
/// Single bits flipped, one after the other, all over a filesystem.
const FLIPS: &str = "10000";
/// Files of the test with very many files.
const FILES: &str = "10000000";
/// The ways to mount on which pjdfstest and the programs run, each for itself: transport and cache.
const WAYS: [(&str, &str); 4] = [("on", "on"), ("on", "off"), ("off", "on"), ("off", "off")];
/// Names a built tree of xfstests.
const XFSTESTS: &str = "AEGISFS_XFSTESTS";
/// How a suite begins the line in which it tells its points.
const MARK: &str = "crash points: ";

/// Runs the simulator's tests, optimised, with so many points per history.
pub(crate) fn run(points: Option<&str>) -> Result<()> {
    let wanted = points.unwrap_or(POINTS);
    wanted.parse::<u64>().context("the number of points is not a number")?;
    println!("soak: up to {wanted} points per history");
    let line = ["cargo", "test", "--release", "--package", "aegisfs-sim", "--no-fail-fast"];
    let line = [&line[..], &["--", "--nocapture", "--test-threads", "2"]].concat();
    let start = Instant::now();
    let mut command = shell::command(&line);
    command.env("AEGISFS_SIM_POINTS", wanted).env("AEGISFS_SIM_FLIPS", FLIPS);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let suites = pass_on(child.stdout.take().context("cargo has no output")?)?;
    let status = child.wait()?;
    let total: u64 = suites.iter().map(|(_, points)| points).sum();
    for (suite, points) in &suites {
        println!("{points:>9}  {suite}");
    }
    println!("{total:>9}  crash points in {} suites and {} s", suites.len(), start.elapsed().as_secs());
    ensure!(status.success(), "the simulator's tests failed: {status}");
    ensure!(points.is_some() || total >= TOTAL_MIN, "{total} points are fewer than {TOTAL_MIN}");
    if points.is_none() {
        make_many_files()?;
        WAYS.iter().try_for_each(|way| check_posix(*way))?;
        let options = WAYS.map(|(rings, writeback)| format!("io_uring={rings},writeback={writeback}"));
        programs::soak(&options)?;
        overwrite_when_full()?;
        run_xfstests()?;
    }
    Ok(())
}

/// Fills a filesystem with millions of files, crashes, opens and walks it.
fn make_many_files() -> Result<()> {
    println!("soak: {FILES} files");
    run_mounted("many::many_files", &[("AEGISFS_MANY_FILES", FILES)])
}

/// The rows of the benchmark on devices that are nearly full, for ten minutes instead of one.
fn overwrite_when_full() -> Result<()> {
    println!("soak: the benchmark on devices that are nearly full");
    let status = shell::command(&["cargo", "xtask", "bench", "full:"]).env(LONG, "1").status()?;
    ensure!(status.success(), "the benchmark failed: {status}");
    Ok(())
}

/// Some of the mounted tests, optimised, with variables that say how.
fn run_mounted(which: &str, variables: &[(&str, &str)]) -> Result<()> {
    let line = ["cargo", "test", "--release", "--package", "aegisfs", "--test", "mounted"];
    let mut command = shell::command(&[&line[..], &["--", which, "--nocapture"]].concat());
    let status = command.envs(variables.iter().copied()).status()?;
    ensure!(status.success(), "{which} failed with {variables:?}: {status}");
    Ok(())
}

/// The generic group of xfstests, which no package has: whoever wants it says where a built tree is.
fn run_xfstests() -> Result<()> {
    let Some(tree) = std::env::var_os(XFSTESTS) else {
        println!("soak: xfstests are left out: {XFSTESTS} names no built tree of them");
        return Ok(());
    };
    println!("soak: the generic tests of xfstests");
    programs::build()?;
    let mut command = shell::command(&["bash", "tests/xfstests/run.sh"]);
    let program = shell::target().join("release/aegisfs");
    let status = command.arg(tree).arg("auto").env("AEGISFS", program).status()?;
    ensure!(status.success(), "xfstests failed: {status}");
    Ok(())
}

/// pjdfstest on one way to mount.
fn check_posix((rings, writeback): (&str, &str)) -> Result<()> {
    println!("soak: pjdfstest, io_uring={rings}, writeback={writeback}");
    let ways = [("AEGISFS_MOUNT_IO_URING", rings), ("AEGISFS_MOUNT_WRITEBACK", writeback)];
    run_mounted("suites::", &ways)
}

/// Shows the tests' output, and keeps what the suites tell.
fn pass_on(output: impl Read) -> Result<Vec<(String, u64)>> {
    let mut suites = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        suites.extend(read_count(&line));
    }
    Ok(suites)
}

/// The suite and its points. The runner may have begun the line with the test's name.
fn read_count(line: &str) -> Option<(String, u64)> {
    let (_, told) = line.split_once(MARK)?;
    let (suite, points) = told.rsplit_once(": ")?;
    Some((suite.to_owned(), points.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_wherever_they_stand_in_a_line() {
        let cases = [
            ("crash points: lives on one device: 2000", Some(("lives on one device", 2000))),
            ("test members::x ... crash points: a: b: 7", Some(("a: b", 7))),
            ("crash points: none", None),
            ("test members::x ... ok", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(suite, points)| (suite.to_owned(), points));
            assert_eq!(read_count(line), expected, "{line}");
        }
    }
}
