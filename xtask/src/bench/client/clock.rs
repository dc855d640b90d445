//! Wall and CPU time of a stretch of work: our own, a daemon's in the kernel, and the whole kernel's.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::time::Instant;

/// Linux counts CPU time in hundredths of a second towards programs, whatever it does inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU times at one moment, in ticks.
struct Ticks {
    own: f64,
    daemon_in_kernel: f64,
    kernel: f64,
}

/// A stretch of work that has begun.
pub(crate) struct Clock {
    start: Instant,
    ticks: Ticks,
    daemon: u32,
}

impl Clock {
    /// Begins; a daemon of number 0 is none.
    pub(crate) fn start(daemon: u32) -> Result<Self> {
        Ok(Self { ticks: Ticks::now(daemon)?, daemon, start: Instant::now() })
    }

    /// What has passed.
    pub(crate) fn stop(&self) -> Result<Value> {
        let seconds = self.start.elapsed().as_secs_f64();
        let now = Ticks::now(self.daemon)?;
        Ok(json!({
            "seconds": seconds,
            "client_cpu": (now.own - self.ticks.own) / TICKS_PER_SECOND,
            "daemon_kernel_cpu": (now.daemon_in_kernel - self.ticks.daemon_in_kernel) / TICKS_PER_SECOND,
            "kernel_cpu": (now.kernel - self.ticks.kernel) / TICKS_PER_SECOND,
        }))
    }
}

impl Ticks {
    fn now(daemon: u32) -> Result<Self> {
        let (user, system) = process("self")?;
        let daemon_in_kernel = if daemon == 0 { 0.0 } else { process(&daemon.to_string())?.1 };
        // user, nice, system, idle, iowait, irq, softirq
        let all = fs::read_to_string("/proc/stat")?;
        let fields = numbers(all.lines().next().unwrap_or_default());
        let kernel = [2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum();
        Ok(Self { own: user + system, daemon_in_kernel, kernel })
    }
}

fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect()
}

/// User and system ticks of a process.
fn process(id: &str) -> Result<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name stands in parentheses and may hold anything.
    let (_, rest) = text.rsplit_once(')').context("a process has a name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let tick = |at: usize| fields.get(at).and_then(|field| field.parse().ok()).context("a process has times");
    Ok((tick(11)?, tick(12)?))
}
