//! scrub: everything is read on every device, and mended.

use crate::cli::ScrubCommand;
use crate::commands::{living, schedule};
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::{format_duration, format_size};
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// How often a command that waits asks how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// How often it tells.
const TELL_EVERY: u32 = 10;

/// Tells the scrubber of a mount something, and shows what it is at.
pub(crate) fn run(command: &ScrubCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (mount, orders) = match command {
        ScrubCommand::Status { mount } => (mount, vec![]),
        ScrubCommand::Start { mount, dry_run, intensity, .. } => {
            let mut orders: Vec<String> =
                intensity.iter().map(|level| format!("intensity/{level}")).collect();
            orders.push(if *dry_run { "start-dry" } else { "start" }.to_owned());
            (mount, orders)
        }
        ScrubCommand::Pause { mount } => (mount, vec!["pause".to_owned()]),
        ScrubCommand::Resume { mount } => (mount, vec!["resume".to_owned()]),
        ScrubCommand::Cancel { mount } => (mount, vec!["cancel".to_owned()]),
        ScrubCommand::Intensity { mount, intensity } => (mount, vec![format!("intensity/{intensity}")]),
        ScrubCommand::Schedule(command) => return schedule::run(command, as_json),
    };
    let daemon = living(mount)?;
    let waits = matches!(command, ScrubCommand::Start { wait: true, .. });
    for order in orders {
        let told = daemon.call("POST", &format!("/v1/scrub/{order}"));
        // One that is under way already is as good to wait for.
        if told.is_err() && waits && daemon.call("GET", "/v1/scrub")?["state"] == "running" {
            continue;
        }
        told?;
    }
    let status = match command {
        ScrubCommand::Start { wait: true, .. } => wait(&daemon)?,
        _ => daemon.call("GET", "/v1/scrub")?,
    };
    let code = exit_of(&status);
    let lines = describe(&status);
    output::print(as_json, status, &lines);
    Ok(code)
}

/// Damage that is left is told by the code.
fn exit_of(status: &Value) -> ExitCode {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let is_left = status["state"] == "done" && (number("lost") > 0 || number("damaged") > number("repaired"));
    if is_left { Exit::Damage.into() } else { ExitCode::SUCCESS }
}

/// Waits until it is done, and tells how far it is.
fn wait(daemon: &Client) -> Result<Value, Failure> {
    for look in 1u32.. {
        let status = daemon.call("GET", "/v1/scrub")?;
        match status["state"].as_str() {
            Some("running") => {}
            Some("paused") => {
                return Err(Failure::new(
                    "E_PAUSED",
                    Exit::Busy,
                    "the scrub waits until it is told to go on",
                )
                .hint("say aegisfs scrub resume"));
            }
            _ => return Ok(status),
        }
        if look.is_multiple_of(TELL_EVERY) {
            let bytes = status["bytes"].as_u64().unwrap_or(0);
            output::tell(&format!("{} read so far", format_size(bytes)));
        }
        std::thread::sleep(LOOK);
    }
    daemon.call("GET", "/v1/scrub")
}

fn describe(status: &Value) -> Vec<String> {
    let Some(state) = status["state"].as_str() else {
        let intensity = status["intensity"].as_str().map(|level| format!("; intensity {level}"));
        return vec![format!("there was no scrub yet{}", intensity.unwrap_or_default())];
    };
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let dry = if status["repairs"] == true { "" } else { ", only looking" };
    let mut lines = vec![
        format!("{:<20} {state}{dry}, intensity {}", "scrub", status["intensity"].as_str().unwrap_or("?")),
        format!(
            "{:<20} {:>12}   in {} cells of {} segments and {} metadata pages, each copy counted",
            "read",
            format_size(number("bytes")),
            number("cells"),
            number("segments"),
            number("pages")
        ),
        format!("{:<20} {:>12}   written anew: {}", "damaged", number("damaged"), number("repaired")),
    ];
    if number("lost") > 0 {
        lines.push(format!(
            "{:<20} {:>12}   of which no copy is sound; aegisfs check names what files lack",
            "LOST",
            number("lost")
        ));
    }
    lines.extend(
        status["advice"]
            .as_str()
            .map(|advice| format!("{:<20} {advice}", status["verdict"].as_str().unwrap_or("?"))),
    );
    if let Some(seconds) = status["seconds"].as_u64() {
        lines.push(format!("{:<20} {:>12}", "took", format_duration(Duration::from_secs(seconds))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_scrub_is_told_in_words() {
        assert_eq!(describe(&json!({ "state": null })), ["there was no scrub yet"]);
        let mut status = json!({
            "state": "done", "repairs": false, "intensity": "low", "bytes": 5 << 20, "cells": 3, "segments": 2,
            "pages": 4, "damaged": 2, "repaired": 0, "lost": 1, "seconds": 61,
        });
        let lines = describe(&status);
        assert!(lines[0].ends_with("done, only looking, intensity low") && lines.len() == 5, "{lines:?}");
        assert!(lines[3].starts_with("LOST") && lines[4].ends_with("1m1s"), "{lines:?}");
        let code = |status: &Value| format!("{:?}", exit_of(status));
        assert_eq!(code(&status), format!("{:?}", ExitCode::from(Exit::Damage)));
        (status["lost"], status["repaired"]) = (0.into(), 2.into());
        assert_eq!(code(&status), format!("{:?}", ExitCode::SUCCESS));
    }
}
