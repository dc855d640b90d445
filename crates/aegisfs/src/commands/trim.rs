//! trim: what the device was told to forget, and what not yet.

use crate::cli::TrimCommand;
use crate::commands::living;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::format_size;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// How often `now` asks how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// How often it tells.
const TELL_EVERY: u32 = 25;

/// Shows how discarding goes on a mount, or has everything discarded that is free.
pub(crate) fn run(command: &TrimCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (TrimCommand::Status { mount } | TrimCommand::Now { mount }) = command;
    let daemon = living(mount)?;
    let mut status = daemon.call("GET", "/v1/trim")?;
    let mut lines = Vec::new();
    if matches!(command, TrimCommand::Now { .. }) {
        let before = status["discarded_bytes"].as_u64().unwrap_or(0);
        daemon.call("POST", "/v1/trim")?;
        status = wait(&daemon)?;
        if let Some(problem) = status["problem"].as_str() {
            let message = format!("nothing could be discarded: {problem}");
            return Err(Failure::new("E_TRIM", Exit::Failed, message));
        }
        let bytes = status["discarded_bytes"].as_u64().unwrap_or(0).saturating_sub(before);
        status["discarded_now_bytes"] = bytes.into();
        lines.push(format!("{:<20} {:>12}   just now", "discarded", format_size(bytes)));
    }
    lines.extend(describe(&status));
    output::print(as_json, status, &lines);
    Ok(ExitCode::SUCCESS)
}

/// Waits until everything is discarded, and tells how far it is.
fn wait(daemon: &Client) -> Result<Value, Failure> {
    for look in 1.. {
        let status = daemon.call("GET", "/v1/trim")?;
        if status["requested"] != true {
            return Ok(status);
        }
        if look % TELL_EVERY == 0 {
            let left = ["waiting_bytes", "unknown_bytes"].iter().filter_map(|key| status[key].as_u64()).sum();
            output::tell(&format!("{} still to be looked at", format_size(left)));
        }
        std::thread::sleep(LOOK);
    }
    daemon.call("GET", "/v1/trim")
}

fn describe(status: &Value) -> Vec<String> {
    let state = if status["background"] == true { "by itself" } else { "only when told to" };
    let mut lines = vec![format!("{:<20} {state}", "freed slots go")];
    for device in status["devices"].as_array().into_iter().flatten() {
        let size = |key: &str| format_size(device[key].as_u64().unwrap_or(0));
        let number = |key: &str| device[key].as_u64().unwrap_or(0);
        let able = match device["supported"] == true {
            true => format!("discards, in units of {}", size("granularity")),
            false => "cannot discard".to_owned(),
        };
        lines.push(format!("{:<20} {able}", device["device"].as_str().unwrap_or("?")));
        lines.push(format!(
            "{:<20} {:>12}   since the mount, in {} calls",
            "discarded",
            size("discarded_bytes"),
            number("calls")
        ));
        lines.push(format!("{:<20} {:>12}   freed and not discarded yet", "waiting", size("waiting_bytes")));
        lines.push(format!(
            "{:<20} {:>12}   free since before the mount; trim now discards it",
            "not known",
            size("unknown_bytes")
        ));
        if number("failures") > 0 {
            let last = device["last_failure"].as_str().unwrap_or("?");
            lines.push(format!("{:<20} {:>12}   the last one: {last}", "failures", number("failures")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_told_in_words() {
        let mut device = json!({
            "device": "/dev/x", "supported": true, "granularity": 4096, "discarded_bytes": 3 << 20, "calls": 2,
            "waiting_bytes": 1 << 20, "unknown_bytes": 0, "failures": 0, "last_failure": null,
        });
        let lines = describe(&json!({ "background": true, "devices": [device] }));
        assert!(lines[0].ends_with("by itself") && lines[1].ends_with("units of 4.0 KiB"), "{lines:?}");
        assert!(
            lines[2].contains("3.0 MiB") && lines[2].contains("2 calls") && lines.len() == 5,
            "{lines:?}"
        );
        (device["supported"], device["failures"], device["last_failure"]) =
            (false.into(), 1.into(), "no".into());
        let lines = describe(&json!({ "background": false, "devices": [device] }));
        assert!(lines[1].ends_with("cannot discard") && lines[5].ends_with("the last one: no"), "{lines:?}");
    }
}
