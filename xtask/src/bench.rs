//! `bench`: AegisFS through its mount beside ext4, both on loop devices of the same disk, in the same run.
//!
//! A null filesystem on the same transport shows what the way through the kernel costs. Every row is run
//! several times; the median, the spread and the ratio to ext4 are printed. Absolute times on a shared
//! machine prove nothing.

mod rows;
mod targets;

use crate::{setup, shell};
use anyhow::{Result, bail};
use rows::ROWS;
use targets::{Target, Targets};

/// Runs of each row.
const ROUNDS: usize = 3;
/// A larger spread than this is measured once more.
const SPREAD_MAX: f64 = 0.25;

/// What a row measured on a target: the median, and how far the runs lie apart in parts of it.
#[derive(Clone, Copy)]
struct Figure {
    median: f64,
    spread: f64,
}

/// Runs every row, or those whose name contains a word.
pub(crate) fn run(word: Option<&str>) -> Result<()> {
    setup::install_packages();
    if !setup::is_root() {
        bail!("the benchmark mounts filesystems and needs root");
    }
    shell::stage("build", || shell::run(&["cargo", "build", "--release", "--package", "aegisfs"]))?;
    say_where()?;
    let targets = Targets::set_up()?;
    println!("{:<34} {:>16} {:>16} {:>16}  ratio to ext4", "row", "aegisfs", "ext4", "null");
    for row in ROWS.iter().filter(|row| word.is_none_or(|word| row.name.contains(word))) {
        let figures =
            targets
                .all()
                .map(|target| {
                    if row.needs_data && !target.keeps_data {
                        Ok(None)
                    } else {
                        measure(row, target).map(Some)
                    }
                })
                .collect::<Result<Vec<_>>>()?;
        print_row(row, &figures);
    }
    targets.verify()
}

fn say_where() -> Result<()> {
    let kernel = shell::output(&["uname", "-srm"])?;
    let cores = std::thread::available_parallelism()?;
    println!(
        "machine: {}, {cores} cores, load {}",
        kernel.trim(),
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    Ok(())
}

fn measure(row: &rows::Row, target: &Target) -> Result<Figure> {
    let once = || -> Result<Figure> {
        let mut runs = Vec::new();
        for round in 0..ROUNDS {
            runs.push((row.run)(target, round)?);
        }
        runs.sort_by(f64::total_cmp);
        let median = runs[ROUNDS / 2];
        Ok(Figure { median, spread: (runs[ROUNDS - 1] - runs[0]) / median })
    };
    let first = once()?;
    if first.spread <= SPREAD_MAX {
        return Ok(first);
    }
    let second = once()?;
    Ok(if second.spread < first.spread { second } else { first })
}

fn print_row(row: &rows::Row, figures: &[Option<Figure>]) {
    let show = |figure: &Option<Figure>| match figure {
        Some(figure) => format!("{:.0} ±{:.0}%", figure.median, figure.spread * 50.0),
        None => "-".into(),
    };
    let ratio = match (figures[0], figures[1]) {
        (Some(ours), Some(ext4)) => format!("{:.2}", ours.median / ext4.median),
        _ => "-".into(),
    };
    println!(
        "{:<34} {:>16} {:>16} {:>16}  {ratio}",
        format!("{} ({})", row.name, row.unit),
        show(&figures[0]),
        show(&figures[1]),
        show(&figures[2])
    );
}
