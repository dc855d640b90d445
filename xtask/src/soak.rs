//! `soak`: the crash tests with many more points than an ordinary run has time for.

use crate::shell;
use anyhow::{Context, Result};

/// Points per history when none are given; with the histories there are, some 100,000 in all.
const POINTS: &str = "4000";

/// Runs the simulator's tests, optimised, with so many points per history.
pub(crate) fn run(points: Option<&str>) -> Result<()> {
    let points = points.unwrap_or(POINTS);
    points.parse::<u64>().context("the number of points is not a number")?;
    println!("soak: {points} points per history");
    let status = shell::command(&[
        "cargo",
        "test",
        "--release",
        "--package",
        "aegisfs-sim",
        "--",
        "--nocapture",
        "--test-threads",
        "2",
    ])
    .env("AEGISFS_SIM_POINTS", points)
    .status()?;
    anyhow::ensure!(status.success(), "the simulator's tests failed: {status}");
    Ok(())
}
