//! The project's own commands, called as `cargo xtask NAME`.
//!
//! `check` is quick and runs before every commit; `test` is everything that CI runs; `demo` shows what
//! there is. They need Rust and a shell; what else they want they install, where they may, and say so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "commands talk to the person who runs them")]

mod bench;
mod check;
mod demo;
mod layers;
mod licences;
mod metadata;
mod programs;
mod setup;
mod shell;
mod skips;
mod soak;
mod test;
mod texts;
mod unit;

use anyhow::Result;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  check         format, lints, layers, docs, licences, texts: before every commit
  layers        only the question whether a crate looks to its right
  test          everything CI runs; installs the tools that are missing
  programs [NAME]  the programs of tests/programs on a mount, or one of them
  demo          makes a filesystem in an image file, shows it at work, leaves it mounted
  soak          the crash tests with many more points, programs for hours: soak [POINTS]
  bench [ROW]   speed through the mount beside ext4, in one run; rows whose names contain ROW
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["check"] => report("check", check::run()),
        ["layers"] => report("layers", layers::run()),
        ["test"] => report("test", test::run()),
        ["programs"] => report("programs", programs::run_alone(None)),
        ["programs", name] => report("programs", programs::run_alone(Some(name))),
        ["demo"] => report("demo", demo::run()),
        ["soak"] => report("soak", soak::run(None)),
        ["soak", points] => report("soak", soak::run(Some(points))),
        ["bench"] => report("bench", bench::run(None)),
        ["bench", word] => report("bench", bench::run(Some(word))),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            print!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn report(command: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{command}: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
