//! disk: how each device of a pool is doing, and how far it is trusted.

use crate::cli::DiskCommand;
use crate::commands::living;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::format_size;
use serde_json::Value;
use std::process::ExitCode;

/// Shows the devices of a mount, asks them, or says how far one is trusted.
pub(crate) fn run(command: &DiskCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (answer, lines, code) = match command {
        DiskCommand::List { mount } => {
            let answer = living(mount)?.call("GET", "/v1/disks")?;
            let lines = disks(&answer).flat_map(describe).collect();
            let code = exit_of(&answer);
            (answer, lines, code)
        }
        DiskCommand::Probe { mount } => {
            let answer = living(mount)?.call("POST", "/v1/disks/probe")?;
            let lines = disks(&answer).map(probed).collect();
            let code = exit_of(&answer);
            (answer, lines, code)
        }
        DiskCommand::SetHealth { disk, health, mount } => {
            let daemon = living(mount)?;
            let index = find(&daemon, disk)?;
            let health = health.to_lowercase();
            let answer = daemon.call("POST", &format!("/v1/disks/{index}/health/{health}"))?;
            let before = answer["before"].as_str().unwrap_or("?");
            (
                answer.clone(),
                vec![format!("device {index} is {health} now; it was {before}")],
                ExitCode::SUCCESS,
            )
        }
    };
    output::print(as_json, answer, &lines);
    Ok(code)
}

fn disks(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["disks"].as_array().into_iter().flatten()
}

/// Something wants looking after if one is not what it should be.
fn exit_of(answer: &Value) -> ExitCode {
    let is_well =
        |disk: &Value| disk["state"] == "in" && disk["health"] == "healthy" && disk["problem"].is_null();
    if disks(answer).all(is_well) { ExitCode::SUCCESS } else { Exit::Degraded.into() }
}

/// The number of a device that was named by its number, path or UUID.
fn find(daemon: &Client, name: &str) -> Result<u64, Failure> {
    let answer = daemon.call("GET", "/v1/disks")?;
    let path = crate::places::canonical(std::path::Path::new(name));
    let is_it = |disk: &&Value| {
        name.parse::<u64>().is_ok_and(|number| disk["index"] == number)
            || disk["uuid"] == name
            || output::names_path(disk, "path", std::path::Path::new(name))
            || output::names_path(disk, "path", &path)
    };
    let found = disks(&answer).find(is_it).and_then(|disk| disk["index"].as_u64());
    found.ok_or_else(|| {
        Failure::new("E_NOT_FOUND", Exit::NotFound, format!("the pool has no device {name}"))
            .hint("aegisfs disk list shows them; a number, a path or a UUID names one")
    })
}

fn describe(disk: &Value) -> Vec<String> {
    let text = |key: &str| disk[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| disk[key].as_u64().unwrap_or(0);
    let count = |key: &str| disk["counts"][key].as_u64().unwrap_or(0);
    let free = number("bytes") / number("slots").max(1) * number("slots_free");
    let domain = match disk["failure_domain"].as_str() {
        Some(name) if !name.is_empty() => format!(", in {name}"),
        _ => String::new(),
    };
    let mut lines = vec![
        format!(
            "{:<3} {:<9} {:<8} {:>10}, {:>10} free  {}{domain}",
            number("index"),
            text("health"),
            text("state"),
            format_size(number("bytes")),
            format_size(free),
            text("path"),
        ),
        format!(
            "    read {} in {} calls, written {} in {}; {} tried again, {} failed, {} slow, {} did not verify",
            format_size(count("read_bytes")),
            count("reads"),
            format_size(count("written_bytes")),
            count("writes"),
            count("retried"),
            count("failed"),
            count("slow"),
            count("damaged"),
        ),
    ];
    let took = |kind: &str| {
        let speed = &disk["latency"][kind];
        let part = |key: &str| speed[key].as_u64().unwrap_or(0);
        format!("{kind} {} us, 99 of 100 within {}", part("average_us"), part("p99_us"))
    };
    lines.push(format!("    {}; {}; {}", took("read"), took("write"), took("flush")));
    lines.extend(disk["smart"]["failing"].as_str().map(|why| format!("    ABOUT TO FAIL: {why}")));
    lines
}

fn probed(disk: &Value) -> String {
    let outcome = match disk["problem"].as_str() {
        Some(problem) => format!("PROBLEM: {problem}"),
        None => format!(
            "{} places read, the slowest in {} us",
            disk["reads"],
            disk["slowest_us"].as_u64().unwrap_or(0)
        ),
    };
    format!(
        "{:<3} {:<9} {:<8} {}: {outcome}",
        disk["index"],
        disk["health"].as_str().unwrap_or("?"),
        disk["state"].as_str().unwrap_or("?"),
        disk["path"].as_str().unwrap_or("?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_are_described_in_words() {
        let mut answer = json!({ "disks": [{
            "index": 2, "health": "suspect", "state": "in", "bytes": 1 << 30, "slots": 64, "slots_free": 32,
            "path": "/dev/sdx", "failure_domain": "shelf", "problem": null,
            "counts": { "reads": 5, "read_bytes": 4096, "failed": 3 },
            "latency": { "read": { "average_us": 70, "p99_us": 256 } },
            "smart": { "failing": "its own overall health test fails" },
        }] });
        let lines: Vec<String> = disks(&answer).flat_map(describe).collect();
        assert!(
            lines[0].starts_with("2   suspect   in") && lines[0].ends_with("/dev/sdx, in shelf"),
            "{lines:?}"
        );
        assert!(lines[1].contains("3 failed") && lines[2].contains("read 70 us"), "{lines:?}");
        assert!(lines[3].contains("ABOUT TO FAIL"), "{lines:?}");
        let code = |answer: &Value| format!("{:?}", exit_of(answer));
        assert_eq!(code(&answer), format!("{:?}", ExitCode::from(Exit::Degraded)));
        answer["disks"][0]["health"] = "healthy".into();
        assert_eq!(code(&answer), format!("{:?}", ExitCode::SUCCESS));
        answer["disks"][0]["problem"] = "it does not answer".into();
        assert_eq!(code(&answer), format!("{:?}", ExitCode::from(Exit::Degraded)));
        assert!(disks(&answer).map(probed).next().unwrap().ends_with("PROBLEM: it does not answer"));
    }
}
