//! The programs that the benchmark times, each in a process of its own.
//!
//! ```text
//! bench-client VERB KEY=VALUE..
//! ```
//!
//! Every verb prints one JSON object. Content follows from a seed, so that what was written can be compared
//! afterwards with what should be there. None needs more memory for more data.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the benchmark reads what this prints")]

mod blocks;
mod clock;
mod content;
mod erasure;
mod files;
mod metadata;
mod pipeline;
mod streams;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

/// The daemon's own, since two verbs run parts of it in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What stands behind the verb.
struct Arguments(HashMap<String, String>);

impl Arguments {
    fn text(&self, key: &str) -> Result<&str> {
        self.0.get(key).map(String::as_str).with_context(|| format!("{key}= is missing"))
    }

    fn path(&self) -> Result<PathBuf> {
        Ok(self.text("path")?.into())
    }

    fn number<T: FromStr>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.parse().ok().with_context(|| format!("{key}={text} is no number"))
    }

    fn number_or<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        if self.0.contains_key(key) { self.number(key) } else { Ok(default) }
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let verb = words.next().context("a verb is missing")?;
    let pairs = words.filter_map(|word| word.split_once('=').map(|(key, value)| (key.into(), value.into())));
    let arguments = Arguments(pairs.collect());
    println!("{}", run(&verb, &arguments)?);
    Ok(())
}

fn run(verb: &str, arguments: &Arguments) -> Result<Value> {
    match verb {
        "write" => streams::write(arguments),
        "read" => streams::read(arguments),
        "check-stream" => streams::check(arguments),
        "blocks" => blocks::write(arguments),
        "check-blocks" => blocks::check(arguments),
        "create" | "stat" | "read-files" | "unlink" | "check-files" => files::run(verb, arguments),
        "metadata" => metadata::run(arguments),
        "pipeline" => pipeline::run(arguments),
        "erasure" => erasure::run(arguments),
        _ => bail!("there is no verb {verb}"),
    }
}
