//! clean: what the cleaner is at, and what it is told.

use crate::cli::CleanCommand;
use crate::commands::living;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::format_size;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// How often `run` asks how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Tells the cleaner of a mount something, and shows what it is at.
pub(crate) fn run(command: &CleanCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (mount, orders) = match command {
        CleanCommand::Status { mount } => (mount, vec![]),
        CleanCommand::Run { mount, intensity } => {
            let mut orders: Vec<String> =
                intensity.iter().map(|level| format!("intensity/{level}")).collect();
            orders.extend(["resume".to_owned(), "run".to_owned()]);
            (mount, orders)
        }
        CleanCommand::Pause { mount } => (mount, vec!["pause".to_owned()]),
        CleanCommand::Resume { mount } => (mount, vec!["resume".to_owned()]),
        CleanCommand::Intensity { mount, intensity } => (mount, vec![format!("intensity/{intensity}")]),
    };
    let daemon = living(mount)?;
    for order in orders {
        daemon.call("POST", &format!("/v1/clean/{order}"))?;
    }
    if matches!(command, CleanCommand::Run { .. }) {
        wait(&daemon)?;
    }
    let status = daemon.call("GET", "/v1/clean")?;
    let lines = describe(&status);
    output::print(as_json, status, &lines);
    Ok(ExitCode::SUCCESS)
}

/// Waits until everything is cleaned, and tells how far it is.
fn wait(daemon: &Client) -> Result<(), Failure> {
    let mut told = None;
    loop {
        let status = daemon.call("GET", "/v1/clean")?;
        if status["requested"] != true {
            return Ok(());
        }
        if status["paused"] == true {
            return Err(Failure::new(
                "E_PAUSED",
                Exit::Busy,
                "somebody paused the cleaner; what is left is cleaned when it is resumed",
            ));
        }
        let left = status["reclaimable_bytes"].as_u64();
        if left != told {
            told = left;
            output::tell(&format!("{} still to be had", format_size(left.unwrap_or(0))));
        }
        std::thread::sleep(LOOK);
    }
}

fn describe(status: &Value) -> Vec<String> {
    let size = |key: &str| format_size(status[key].as_u64().unwrap_or(0));
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let state = match (status["paused"] == true, status["running"] == true) {
        (true, _) => "paused",
        (false, true) => "running",
        (false, false) => "idle",
    };
    let mut lines = vec![
        format!("{:<20} {state}, intensity {}", "cleaner", status["intensity"].as_str().unwrap_or("?")),
        format!(
            "{:<20} {:>12}   in {} segments",
            "can be given back",
            size("reclaimable_bytes"),
            number("candidates")
        ),
        format!("{:<20} {:>12}   since the mount", "segments cleaned", number("segments_cleaned")),
        format!("{:<20} {:>12}   for that", "moved", size("moved_bytes")),
    ];
    if let Some(times) = status["row_amplification"].as_f64() {
        lines.push(format!(
            "{:<20} {times:>12.2}   rows written, to those of new data",
            "write amplification"
        ));
    }
    if number("stuck") > 0 {
        lines.push(format!(
            "{:<20} {:>12}   hold something that cannot be read",
            "segments stuck",
            number("stuck")
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_told_in_words() {
        let status = json!({
            "intensity": "low", "paused": false, "running": true, "reclaimable_bytes": 3 << 20, "candidates": 2,
            "segments_cleaned": 7, "moved_bytes": 1 << 20, "row_amplification": 1.25, "stuck": 1,
        });
        let lines = describe(&status);
        assert!(lines[0].ends_with("running, intensity low"), "{lines:?}");
        assert!(
            lines[1].contains("3.00 MiB") || lines[1].contains("3 MiB") || lines[1].contains("3.0 MiB"),
            "{lines:?}"
        );
        assert!(lines.iter().any(|line| line.contains("1.25")) && lines.len() == 6, "{lines:?}");
    }
}
