//! The unit and simulator stage: doc tests, then everything else under nextest.

use crate::shell;
use crate::skips::{self, Skip};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::Stdio;
use std::sync::Mutex;

/// The runner's summary and what follows it, held back until everything else was said.
static CLOSING_LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Lines about failed tests that are said again at the end of the whole run, which may be all that is kept of it.
const FAILURE_LINES_MAX: usize = 100;

/// Runs the tests and returns those that skipped themselves.
pub(crate) fn run() -> Result<Vec<Skip>> {
    shell::run(&["cargo", "test", "--quiet", "--doc", "--workspace"])?;
    // Every decoder over its corpus and some thousand mutations of it; a workspace of its own.
    let fuzz =
        ["cargo", "test", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"];
    shell::run(&fuzz)?;
    run_selected("not binary(mounted)", &[])
}

/// Runs the tests on real mounts, and returns those that skipped themselves.
pub(crate) fn run_mounted() -> Result<Vec<Skip>> {
    // Through /dev/fuse, which every kernel has, but for the tests that ask for io_uring; the programs go that way.
    let way = std::env::var("AEGISFS_MOUNT_IO_URING").unwrap_or_else(|_| "off".into());
    let skips = run_selected("binary(mounted)", &[("AEGISFS_MOUNT_IO_URING", &way)]);
    print_closing_lines();
    skips
}

fn run_selected(which: &str, variables: &[(&str, &str)]) -> Result<Vec<Skip>> {
    // Nextest keeps its results below the root, wherever cargo builds.
    let results = shell::root().join("target/nextest/ci/junit.xml");
    // An old file would tell of an old run.
    let _ = fs::remove_file(&results);
    run_nextest(which, variables)?;
    let text =
        fs::read_to_string(&results).with_context(|| format!("no results in {}", results.display()))?;
    Ok(skips::find(&text))
}

fn run_nextest(which: &str, variables: &[(&str, &str)]) -> Result<()> {
    let color = if std::io::stderr().is_terminal() { "always" } else { "never" };
    let line = ["cargo", "nextest", "run", "--workspace", "--profile", "ci", "--color", color, "-E", which];
    let mut command = shell::command(&line);
    command.envs(variables.iter().copied()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run nextest")?;
    let stderr = child.stderr.take().context("nextest has no output")?;
    hold_closing_lines(stderr)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("nextest failed: {status}\n{}", failed_tests(&CLOSING_LINES.lock().expect("no holder panics")));
    }
    Ok(())
}

/// Passes the runner's lines on, but for those from its summary on.
fn hold_closing_lines(output: impl Read) -> Result<()> {
    let mut lines = BufReader::new(output);
    let mut bytes = Vec::new();
    let mut held = Vec::new();
    while lines.read_until(b'\n', &mut bytes)? > 0 {
        let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        bytes.clear();
        if !held.is_empty() || is_summary(&line) {
            held.push(line);
        } else {
            eprintln!("{line}");
        }
    }
    *CLOSING_LINES.lock().expect("no holder panics") = held;
    Ok(())
}

/// What the runner says of the tests that failed, behind its summary.
fn failed_tests(closing_lines: &[String]) -> String {
    closing_lines.iter().skip(1).take(FAILURE_LINES_MAX).map(|line| format!("{line}\n")).collect()
}

fn is_summary(line: &str) -> bool {
    line.contains("Summary") && (line.contains(" tests run:") || line.contains(" test run:"))
}

/// Prints what was held back.
pub(crate) fn print_closing_lines() {
    for line in CLOSING_LINES.lock().expect("no holder panics").drain(..) {
        eprintln!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_told_from_other_lines() {
        assert!(is_summary("     Summary [   4.003s] 14 tests run: 14 passed, 0 skipped"));
        assert!(is_summary("     Summary [   0.010s] 1 test run: 1 passed"));
        assert!(!is_summary("        PASS [   0.010s] aegisfs-kv Summary"));
    }
}
