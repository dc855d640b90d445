//! status: what is mounted, and how it is doing.

use crate::failure::{Exit, Failure};
use crate::{control, devices, output};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Shows one mount, or all.
pub(crate) fn run(target: Option<&Path>, as_json: bool) -> Result<ExitCode, Failure> {
    let target = target.map(devices::resolve).transpose()?;
    let target = target.as_deref();
    let found = control::find(target);
    if let Some(target) = target {
        let Some(client) = found.first() else {
            let message = format!("no living daemon serves {}", target.display());
            return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message));
        };
        output::print(as_json, client.status.clone(), &lines(&client.status));
        return Ok(exit_of(&found[..1]));
    }
    let all: Vec<Value> = found.iter().map(|client| client.status.clone()).collect();
    let text: Vec<String> = match all.is_empty() {
        true => vec!["nothing is mounted".into()],
        false => all.iter().flat_map(lines).collect(),
    };
    output::print(as_json, json!({ "mounts": all }), &text);
    Ok(exit_of(&found))
}

/// Scripts learn from the code that something wants looking after.
fn exit_of(clients: &[control::Client]) -> ExitCode {
    let is_degraded = clients.iter().any(|client| client.status["degraded"] == true);
    if is_degraded { Exit::Degraded.into() } else { ExitCode::SUCCESS }
}

/// The devices, if there is more than one or something is wrong with one.
fn members(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    if members.len() < 2 && status["degraded"] != true {
        return Vec::new();
    }
    let mut lines = vec![format!("  devices  {}", status["redundancy"].as_str().unwrap_or("?"))];
    lines.extend(members.iter().map(|member| {
        let state = member["state"].as_str().unwrap_or("?");
        format!("    {state:<8} {}", member["path"].as_str().unwrap_or("?"))
    }));
    if status["degraded"] == true {
        lines.push(
            "  DEGRADED: not every device takes part; what is lost with another one may be lost for good"
                .into(),
        );
    }
    lines
}

fn state(status: &Value) -> &'static str {
    match (status["attached"].as_bool(), status["read_only"].as_bool()) {
        (Some(false), _) => "detached, still in use",
        (_, Some(true)) => "read-only",
        _ => "read-write",
    }
}

fn lines(status: &Value) -> Vec<String> {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let mut lines = vec![
        format!("{} on {} ({})", text("device"), text("mount"), state(status)),
        format!("  pool     {}", text("pool")),
        format!("  daemon   process {}, log {}", status["pid"], text("log")),
        format!("  kernel   through {}", text("transport")),
        format!("  unsaved  {} bytes", status["dirty_bytes"]),
    ];
    lines.extend(members(status));
    if let Some(reason) = status["poisoned"].as_str() {
        lines.push(format!("  READ-ONLY: {reason}"));
    }
    if let Some(opcodes) = status["opcodes"].as_object() {
        let counts: Vec<String> = opcodes.iter().map(|(name, count)| format!("{name} {count}")).collect();
        lines.push(format!("  requests {}", counts.join(", ")));
    }
    lines
}
