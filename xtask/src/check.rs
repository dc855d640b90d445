//! `check`: what is looked at before every commit.

use crate::shell::{self, stage};
use crate::{layers, licences, texts};
use anyhow::Result;
use std::fs;

/// Runs every stage; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    stage("format", || shell::run(&["cargo", "fmt", "--all", "--check"]))?;
    stage("layers", layers::run)?;
    stage("texts", texts::run)?;
    stage("licences", licences)?;
    stage("lints", || {
        let line = ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--all-features"];
        shell::run(&[line.as_slice(), &["--", "-D", "warnings"]].concat())
    })?;
    stage("docs against format", docs_against_format)
}

fn licences() -> Result<()> {
    licences::run()?;
    if shell::is_installed("cargo-deny") {
        return shell::run(&[
            "cargo",
            "deny",
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]);
    }
    println!("cargo-deny is not installed; our own list was checked");
    Ok(())
}

/// The page that draws the format and the code that declares it are compared by a test in `format`.
fn docs_against_format() -> Result<()> {
    let folder = shell::root().join("crates/format/tests");
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    if names.into_iter().any(|name| name.to_string_lossy().starts_with("docs")) {
        return shell::run(&["cargo", "test", "--quiet", "-p", "aegisfs-format", "docs"]);
    }
    println!("there is no test that compares them yet");
    Ok(())
}
