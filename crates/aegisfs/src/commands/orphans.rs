//! orphans: what takes room although nothing refers to it.

use crate::cli::OrphansCommand;
use crate::commands::living;
use crate::failure::Failure;
use crate::output;
use aegisfs_base::units::{format_duration, format_size};
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// Shows the orphans of a mount, or has them cleaned.
pub(crate) fn run(command: &OrphansCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (answer, lines) = match command {
        OrphansCommand::List { mount } => {
            let answer = living(mount)?.call("GET", "/v1/orphans")?;
            let lines = list(&answer);
            (answer, lines)
        }
        OrphansCommand::Stats { mount } => {
            let mut answer = living(mount)?.call("GET", "/v1/orphans")?;
            let lines = stats(&answer);
            // Only the sums.
            if let Value::Object(fields) = &mut answer {
                fields.remove("orphans");
            }
            (answer, lines)
        }
        OrphansCommand::Clean(args) => {
            let what = if args.dry_run { "try" } else { "clean" };
            let path = format!("/v1/orphans/{what}/{}", args.older_than.as_secs());
            let answer = living(&args.mount)?.call("POST", &path)?;
            let lines = cleaned(&answer, args.older_than);
            (answer, lines)
        }
    };
    output::print(as_json, answer, &lines);
    Ok(ExitCode::SUCCESS)
}

fn one(orphan: &Value) -> String {
    let age = Duration::from_secs(orphan["age_seconds"].as_u64().unwrap_or(0));
    let kept = orphan["kept_because"].as_str().map(|why| format!("; {why}")).unwrap_or_default();
    format!(
        "{:<12} {:<24} {:>12}   seen first {} ago{kept}",
        orphan["kind"].as_str().unwrap_or("?"),
        orphan["place"].as_str().unwrap_or("?"),
        format_size(orphan["bytes"].as_u64().unwrap_or(0)),
        format_duration(age)
    )
}

fn each(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["orphans"].as_array().into_iter().flatten()
}

fn list(answer: &Value) -> Vec<String> {
    let mut lines: Vec<String> = each(answer).map(one).collect();
    if lines.is_empty() {
        lines.push("no orphans".into());
    }
    if answer["more"] == true {
        lines.push("and more, which are shown when these are gone".into());
    }
    lines
}

fn stats(answer: &Value) -> Vec<String> {
    let kinds = answer["kinds"].as_object().into_iter().flatten();
    let mut lines: Vec<String> = kinds
        .map(|(kind, sums)| {
            let number = |key: &str| sums[key].as_u64().unwrap_or(0);
            format!("{kind:<12} {:>8}   {:>12}", number("count"), format_size(number("bytes")))
        })
        .collect();
    if answer["more"] == true {
        lines.push("at least; there are more than one look counts".into());
    }
    lines
}

fn cleaned(answer: &Value, older_than: Duration) -> Vec<String> {
    let mut lines: Vec<String> = each(answer).map(one).collect();
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let done = if answer["dry_run"] == true { "would be cleaned" } else { "cleaned" };
    lines.push(format!("{} {done}, {}", number("cleaned"), format_size(number("cleaned_bytes"))));
    let reasons = [
        ("young", format!("not seen for {} yet", format_duration(older_than))),
        ("kept", "left alone; orphans list says why".to_owned()),
        ("spared", "in use after all".to_owned()),
    ];
    for (key, reason) in reasons {
        if number(key) > 0 {
            lines.push(format!("{} {reason}", number(key)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn orphans_are_told_in_words() {
        assert_eq!(list(&json!({ "orphans": [], "more": false })), ["no orphans"]);
        let orphans = json!([
            { "kind": "slot", "place": "7 of device 0", "bytes": 4 << 20, "age_seconds": 3700, "kept_because": null },
            { "kind": "chunk", "place": "12", "bytes": 100, "age_seconds": 1, "kept_because": "this is damage" },
        ]);
        let lines = list(&json!({ "orphans": orphans, "more": true }));
        assert!(lines[0].contains("7 of device 0") && lines[0].ends_with("first 1h1m ago"), "{lines:?}");
        assert!(lines[1].ends_with("; this is damage") && lines.len() == 3, "{lines:?}");
        let answer = json!({
            "orphans": orphans, "dry_run": false, "cleaned": 2, "cleaned_bytes": 5, "young": 3, "kept": 0, "spared": 1,
        });
        let lines = cleaned(&answer, Duration::from_secs(86_400));
        assert_eq!(lines[2..], ["2 cleaned, 5 B", "3 not seen for 1d yet", "1 in use after all"]);
        let lines = stats(&json!({ "kinds": { "slot": { "count": 2, "bytes": 8 << 20 } }, "more": false }));
        assert!(lines[0].contains("8.0 MiB") && lines.len() == 1, "{lines:?}");
    }
}
