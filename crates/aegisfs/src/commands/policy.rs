//! policy: how files and directories are stored.

use crate::cli::PolicyCommand;
use crate::commands::format::{describe_redundancy, parse_redundancy};
use crate::commands::living;
use crate::control::Client;
use crate::failure::{Exit, Failure};
use crate::output;
use aegisfs_base::units::format_size;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(300);

/// Says how something is stored, or shows it.
pub(crate) fn run(command: &PolicyCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (answer, lines, code) = match command {
        PolicyCommand::Set { setting, wait, path } => {
            let redundancy = describe_redundancy(parse(setting)?);
            let found = find(path)?;
            let answer = found.order(&redundancy, *wait)?;
            let lines = vec![found.describe(&answer)];
            (answer, lines, ExitCode::SUCCESS)
        }
        PolicyCommand::Get { path } => {
            let found = find(path)?;
            let answer = found.ask()?;
            let lines = vec![found.describe(&answer)];
            (answer, lines, ExitCode::SUCCESS)
        }
        PolicyCommand::Clear { wait, path } => {
            let found = find(path)?;
            // The root is in none but itself.
            let above = match found.path.parent().filter(|_| found.path != found.mount) {
                Some(above) => above.metadata()?.ino(),
                None => found.inode,
            };
            let answer = found.order(&format!("clear/{above}"), *wait)?;
            let lines = vec![found.describe(&answer)];
            (answer, lines, ExitCode::SUCCESS)
        }
        PolicyCommand::Status { mount } => {
            let answer = living(mount)?.call("GET", "/v1/policy")?;
            let lines = status(&answer);
            let is_stuck = waiting(&answer).any(|one| !one["trouble"].is_null());
            let code = if is_stuck { Exit::Degraded.into() } else { ExitCode::SUCCESS };
            (answer, lines, code)
        }
    };
    output::print(as_json, answer, &lines);
    Ok(code)
}

/// Reads what is said of a policy.
fn parse(setting: &str) -> Result<aegisfs_pool::Redundancy, Failure> {
    let value = setting.strip_prefix("redundancy=").ok_or_else(|| {
        Failure::usage(format!("'{setting}' says nothing that a policy knows"))
            .hint("say redundancy=single, redundancy=mirror:COPIES or redundancy=ec:DATA+PARITY")
    })?;
    parse_redundancy(value)
}

/// A file or directory of a mount.
struct Found {
    daemon: Client,
    mount: PathBuf,
    path: PathBuf,
    inode: u64,
}

fn find(path: &Path) -> Result<Found, Failure> {
    let found =
        path.canonicalize().and_then(|path| path.metadata().map(|metadata| (path, metadata))).map_err(
            |error| Failure::new("E_NOT_FOUND", Exit::NotFound, format!("{}: {error}", path.display())),
        )?;
    let (path, metadata) = found;
    let is_here = |above: &&Path| above.metadata().is_ok_and(|found| found.dev() == metadata.dev());
    let mount = path.ancestors().take_while(is_here).last().unwrap_or(&path).to_owned();
    Ok(Found { daemon: living(&mount)?, mount, inode: metadata.ino(), path })
}

impl Found {
    fn ask(&self) -> Result<Value, Failure> {
        self.daemon.call("GET", &format!("/v1/policy/{}", self.inode))
    }

    fn order(&self, order: &str, wait: bool) -> Result<Value, Failure> {
        let answer = self.daemon.call("POST", &format!("/v1/policy/{}/{order}", self.inode))?;
        if wait {
            self.wait()?;
        }
        Ok(answer)
    }

    /// Waits until everything follows, and tells how far it is.
    fn wait(&self) -> Result<(), Failure> {
        let mut told = None;
        loop {
            let status = self.ask()?;
            if status["waiting"].is_null() {
                return Ok(());
            }
            if let Some(trouble) = status["waiting"]["trouble"].as_str() {
                let message = format!("not everything can be stored so: {trouble}");
                return Err(Failure::new("E_WAITING", Exit::Failed, message)
                    .hint("it is tried again by itself; aegisfs policy status shows how far it is"));
            }
            let bytes = status["bytes"].as_u64();
            if bytes != told {
                told = bytes;
                output::tell(&format!("{} stored anew", format_size(bytes.unwrap_or(0))));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn describe(&self, answer: &Value) -> String {
        let own = if answer["own"] == true { "" } else { ", as the directory that it is in" };
        let redundancy = answer["redundancy"].as_str().unwrap_or("?");
        format!("{}: {redundancy}{own}", self.path.display())
    }
}

fn waiting(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["waiting"].as_array().into_iter().flatten()
}

fn status(answer: &Value) -> Vec<String> {
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let name = |one: &Value| {
        let nameless = || format!("inode {}", one["inode"].as_u64().unwrap_or(0));
        let name = one["path"].as_str().filter(|path| !path.is_empty()).map_or_else(nameless, str::to_owned);
        let state = if one["running"] == true { "is gone through" } else { "waits" };
        let trouble = one["trouble"].as_str().map(|trouble| format!("; it did not get on: {trouble}"));
        format!("{name} {state}{}", trouble.unwrap_or_default())
    };
    let mut lines: Vec<String> = waiting(answer).map(name).collect();
    if lines.is_empty() {
        lines.push("everything is stored as its policy says".into());
    }
    lines.push(format!(
        "{} stored anew since the mount, {} files and directories looked at",
        format_size(number("bytes")),
        number("inodes")
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_of_a_policy_is_read() {
        assert_eq!(describe_redundancy(parse("redundancy=ec:4+2").unwrap()), "ec:4+2");
        for nonsense in ["", "mirror:2", "redundancy", "redundancy=", "colour=blue", "redundancy=raid5"] {
            let failure = parse(nonsense).err().unwrap();
            assert!(failure.exit == Exit::Usage && failure.hint.is_some(), "{nonsense}");
        }
    }

    #[test]
    fn a_status_is_told_in_words() {
        let stuck = json!({ "inode": 6, "running": false, "trouble": "no room" });
        let waiting = json!([{ "inode": 5, "running": true, "path": "/a" }, stuck]);
        let lines = status(&json!({ "waiting": waiting, "inodes": 7, "bytes": 4096 }));
        assert_eq!(lines[..2], ["/a is gone through", "inode 6 waits; it did not get on: no room"]);
        assert!(lines.len() == 3 && lines[2].contains("7 files"), "{lines:?}");
        assert!(status(&json!({ "waiting": [] }))[0].starts_with("everything"));
    }
}
