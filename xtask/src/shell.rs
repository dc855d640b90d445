//! Running other programs from the root of the repository.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The root of the repository: the folder above this package.
pub(crate) fn root() -> PathBuf {
    // Cargo sets this for what it runs, so nothing is compiled in.
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .and_then(|package| package.parent().map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("."))
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program to be run at the root; `cargo` is the one that runs us.
pub(crate) fn command(line: &[&str]) -> Command {
    let (program, arguments) = line.split_first().expect("a command has a program");
    let mut command = if *program == "cargo" { Command::new(cargo()) } else { Command::new(program) };
    command.args(arguments).current_dir(root());
    command
}

/// Runs a program and shows its output.
pub(crate) fn run(line: &[&str]) -> Result<()> {
    let status = command(line).status().with_context(|| format!("cannot run `{}`", line.join(" ")))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line.join(" "));
    }
    Ok(())
}

/// Runs a program and returns what it printed.
pub(crate) fn output(line: &[&str]) -> Result<String> {
    let output = command(line)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", line.join(" ")))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program can be found on the search path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' programs are often not on the path of others, yet can be run.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|folder| folder.join(program).is_file())
}

/// Runs one part of a command and prints how long it took.
pub(crate) fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("-- {name}");
    let start = Instant::now();
    let outcome = work();
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => println!("-- {name}: ok, {seconds:.1} s"),
        Err(_) => println!("-- {name}: FAILED after {seconds:.1} s"),
    }
    outcome.with_context(|| name.to_owned())
}
