//! What no file may say, and how long a source file should be.

use crate::shell;
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;

/// Folders that exist on somebody's machine and mean nothing on another.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")];
/// Longer source files deserve a second look.
const SOURCE_LINES_MAX: usize = 500;

/// Refuses machine paths in any text that is or would be committed; warns of long source files.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let listed = shell::output(&["git", "ls-files", "--cached", "--others", "--exclude-standard"])?;
    let mut found = Vec::new();
    for name in listed.lines() {
        // What is not text, or was deleted but not committed, says nothing.
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        found.extend(machine_paths(&text).into_iter().map(|line| format!("{name}:{line}")));
        if is_source(name) && text.lines().count() > SOURCE_LINES_MAX {
            println!("warning: {name} has {} lines, more than {SOURCE_LINES_MAX}", text.lines().count());
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("these lines name a folder of one machine: {}", found.join(", "));
}

fn is_source(name: &str) -> bool {
    let path = Path::new(name);
    name.starts_with("crates/") && name.contains("/src/") && path.extension().is_some_and(|e| e == "rs")
}

/// The numbers of the lines that name a machine's folder, but not those that name one below another.
fn machine_paths(text: &str) -> Vec<usize> {
    let names_one = |line: &str| {
        MACHINE_FOLDERS.iter().any(|folder| {
            line.match_indices(folder).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '/'))
            })
        })
    };
    text.lines().enumerate().filter(|(_, line)| names_one(line)).map(|(at, _)| at + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_found_and_others_are_not() {
        let home = MACHINE_FOLDERS[2];
        let text =
            format!("first\nsee {home}someone/x\n`{home}x`\nhttps://example.org{home}page\nmnt{home}x\n");
        assert_eq!(machine_paths(&text), [2, 3]);
        assert!(machine_paths("the home directory, a/work/b").is_empty());
    }

    #[test]
    fn only_sources_have_a_length() {
        assert!(is_source("crates/kv/src/lib.rs"));
        assert!(!is_source("crates/kv/tests/lib.rs") && !is_source("xtask/src/main.rs"));
    }
}
