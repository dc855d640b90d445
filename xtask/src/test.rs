//! `test`: everything that CI runs, in stages with a budget of time each.
//!
//! The unit stage comes last, so that the closing lines of its runner are the last lines printed.

use crate::programs;
use crate::setup::{self, FSX, NEXTEST, PJDFSTEST, Tool};
use crate::shell;
use crate::skips::{self, Skip};
use crate::unit;
use anyhow::{Result, bail};
use std::time::Instant;

/// One part of the run.
struct Stage {
    name: &'static str,
    /// How long it should take at most; a longer run is reported, not failed, because machines differ.
    minutes: u64,
    tools: &'static [Tool],
    /// Runs, and returns which tests skipped themselves.
    work: fn() -> Result<Vec<Skip>>,
}

const BEFORE_UNIT: [Stage; 3] = [
    Stage { name: "build", minutes: 8, tools: &[], work: build },
    Stage { name: "mounted", minutes: 8, tools: &[NEXTEST, PJDFSTEST], work: unit::run_mounted },
    Stage { name: "programs", minutes: 5, tools: &[FSX], work: programs::run },
];
const UNIT: Stage = Stage { name: "unit and simulator", minutes: 6, tools: &[NEXTEST], work: unit::run };

/// What is known when the last stage ends.
#[derive(Default)]
struct Report {
    skips: Vec<Skip>,
    failures: Vec<String>,
}

/// Runs every stage, even after one failed, unless the build did.
pub(crate) fn run() -> Result<()> {
    prepare()?;
    let mut report = Report::default();
    for stage in &BEFORE_UNIT {
        report.run(stage);
        if stage.name == "build" && !report.failures.is_empty() {
            bail!("{}", report.failures.join("; "));
        }
    }
    report.run(&UNIT);
    report.judge_skips(&skips::allowed());
    for skip in &report.skips {
        println!("{skip}");
    }
    let outcome = if report.failures.is_empty() {
        Ok(())
    } else {
        println!("test: FAILED: {}", report.failures.join("; "));
        Err(anyhow::anyhow!("see above"))
    };
    unit::print_closing_lines();
    // The closing lines end the output; the failure was printed before them.
    if outcome.is_err() {
        std::process::exit(1);
    }
    outcome
}

fn prepare() -> Result<()> {
    let tools = BEFORE_UNIT.iter().chain([&UNIT]).flat_map(|stage| stage.tools);
    setup::install_packages();
    setup::install_program_packages();
    tools.into_iter().try_for_each(setup::install_tool)
}

impl Report {
    fn run(&mut self, stage: &Stage) {
        println!("-- {}: budget {} min", stage.name, stage.minutes);
        let start = Instant::now();
        let outcome = (stage.work)();
        let seconds = start.elapsed().as_secs();
        match outcome {
            Ok(skips) => {
                println!("-- {}: ok, {seconds} s", stage.name);
                self.skips.extend(skips);
            }
            Err(error) => self.failures.push(format!("{}: {error:#}", stage.name)),
        }
        if seconds > stage.minutes * 60 {
            println!("-- {}: took longer than its budget of {} min", stage.name, stage.minutes);
        }
    }

    fn judge_skips(&mut self, allowed: &[String]) {
        for skip in skips::refused(&self.skips, allowed) {
            self.failures.push(format!("{} was skipped and is not in tests/skips.txt", skip.name));
        }
    }
}

fn build() -> Result<Vec<Skip>> {
    shell::run(&["cargo", "build", "--workspace", "--all-targets"])?;
    programs::build()?;
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_that_is_not_listed_fails_the_run() {
        let skips = skips::find("SKIPPED: a: why\nSKIPPED: b: why\n");
        let mut report = Report { skips, failures: Vec::new() };
        report.judge_skips(&["a".to_owned()]);
        assert_eq!(report.failures, ["b was skipped and is not in tests/skips.txt"]);
    }

    #[test]
    fn a_failed_stage_is_reported_and_the_next_runs() {
        let mut report = Report::default();
        let fails = Stage { name: "fails", minutes: 1, tools: &[], work: || bail!("broken") };
        let skips =
            Stage { name: "skips", minutes: 1, tools: &[], work: || Ok(skips::find("SKIPPED: a: b\n")) };
        report.run(&fails);
        report.run(&skips);
        assert_eq!(report.failures, ["fails: broken"]);
        assert_eq!(report.skips.len(), 1);
    }
}
