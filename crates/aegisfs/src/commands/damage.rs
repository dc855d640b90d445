//! damage: what cannot be read, and bytes from elsewhere that mend it.

use crate::cli::DamageCommand;
use crate::commands::living;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::format_size;
use serde_json::Value;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often it is looked whether a search is done, and how often it is told how far it is.
const LOOK: Duration = Duration::from_millis(50);
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Shows the damage of a mount, or looks for what mends it.
pub(crate) fn run(command: &DamageCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (answer, lines, is_left) = match command {
        DamageCommand::List { healed: true, mount } => {
            let answer = living(mount)?.call("GET", "/v1/damage/mended")?;
            let lines = mended(&answer);
            (answer, lines, false)
        }
        DamageCommand::List { healed: false, mount } => {
            let answer = living(mount)?.call("GET", "/v1/damage")?;
            let lines = list(&answer);
            let is_left = answer["count"].as_u64() != Some(0);
            (answer, lines, is_left)
        }
        DamageCommand::Heal { from, mount } => {
            let answer = heal(&living(mount)?, &digits(from)?)?;
            let number = |key: &str| answer[key].as_u64().unwrap_or(0);
            let found = format!(
                "{} of {} lost chunks are there again; {} files with {} were looked through",
                number("healed"),
                number("lost"),
                number("files"),
                format_size(number("bytes"))
            );
            let unread = Some(number("unreadable")).filter(|count| *count > 0);
            let unread = unread.map(|count| format!("{count} could not be read"));
            let lines = std::iter::once(found).chain(unread).collect();
            let is_left = number("healed") < number("lost");
            (answer, lines, is_left)
        }
    };
    output::print(as_json, answer, &lines);
    Ok(if is_left { Exit::Damage.into() } else { ExitCode::SUCCESS })
}

/// Has the daemon look, and tells how far it is meanwhile.
fn heal(daemon: &Client, digits: &str) -> Result<Value, Failure> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| daemon.call_long("POST", &format!("/v1/damage/heal/{digits}")));
        let mut told = Instant::now();
        while !looking.is_finished() {
            std::thread::sleep(LOOK);
            if told.elapsed() < TELL_EVERY {
                continue;
            }
            told = Instant::now();
            if let Ok(now) = daemon.call("GET", "/v1/damage/heal")
                && let (Some(files), Some(bytes)) = (now["files"].as_u64(), now["bytes"].as_u64())
            {
                let (healed, lost) = (&now["healed"], &now["lost"]);
                let looked = format_size(bytes);
                output::tell(&format!(
                    "{files} files looked through, {looked}; {healed} of {lost} chunks found"
                ));
            }
        }
        looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A path as the daemon finds it, wherever it runs.
fn digits(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path)
        .and_then(|path| path.symlink_metadata().map(|_| path))
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let mut digits = String::new();
    for byte in path.as_os_str().as_bytes() {
        write!(digits, "{byte:02x}").expect("there is room");
    }
    Ok(digits)
}

fn mended(answer: &Value) -> Vec<String> {
    let one = |mended: &Value| {
        let number = |key: &str| mended[key].as_u64().unwrap_or(0);
        let what = match mended["chunk"].as_u64() {
            Some(chunk) => format!("chunk {chunk}"),
            None => format!("cell {}", number("cell")),
        };
        let paths: Vec<&str> =
            mended["paths"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let files = if paths.is_empty() { String::new() } else { format!(", in {}", paths.join(", ")) };
        format!(
            "{} seconds after 1970: {what} on device {}, segment {} at {}{files}",
            number("found_unix_seconds"),
            number("device"),
            number("segment"),
            number("slot_offset")
        )
    };
    let mut lines: Vec<String> = answer["mended"].as_array().into_iter().flatten().map(one).collect();
    if lines.is_empty() {
        lines.push("nothing was mended".into());
    }
    lines
}

fn list(answer: &Value) -> Vec<String> {
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or(0);
    let parts: Vec<&Value> = answer["parts"].as_array().into_iter().flatten().collect();
    let mut lines: Vec<String> = parts
        .iter()
        .map(|part| {
            let name = part["path"].as_str().map_or_else(
                || format!("(only in a snapshot: inode {})", number(part, "inode")),
                str::to_owned,
            );
            format!(
                "{name}: {} bytes from {} on (device {}, segment {})",
                number(part, "bytes"),
                number(part, "offset"),
                number(part, "device"),
                number(part, "segment")
            )
        })
        .collect();
    let count = number(answer, "count");
    match count {
        0 => lines.push("no damage is known; aegisfs scrub start looks for it".into()),
        _ => lines
            .push(format!("{count} parts of files cannot be read, {}", format_size(number(answer, "bytes")))),
    }
    if count > parts.len() as u64 {
        lines.push(format!("{} are not named here", count - parts.len() as u64));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn damage_is_told_by_name() {
        let part =
            json!({ "path": "/a b", "inode": 7, "offset": 4096, "bytes": 10, "device": 2, "segment": 9 });
        let nameless = json!({ "inode": 8, "offset": 0, "bytes": 5, "device": 2, "segment": 9 });
        let lines = list(&json!({ "count": 3, "bytes": 20, "parts": [part, nameless] }));
        assert_eq!(lines[0], "/a b: 10 bytes from 4096 on (device 2, segment 9)");
        assert!(
            lines[1].contains("inode 8")
                && lines[2].starts_with("3 parts")
                && lines[3].starts_with("1 are not")
        );
        let one = json!({ "chunk": 5, "device": 1, "segment": 9, "slot_offset": 4096, "paths": ["/a", "/b"],
            "found_unix_seconds": 77 });
        let lines = mended(&json!({ "count": 1, "mended": [one] }));
        assert_eq!(lines, ["77 seconds after 1970: chunk 5 on device 1, segment 9 at 4096, in /a, /b"]);
        assert_eq!(mended(&json!({ "mended": [] })), ["nothing was mended"]);
        assert!(list(&json!({ "count": 0, "bytes": 0, "parts": [] }))[0].starts_with("no damage"));
    }
}
