//! Many small files.

use crate::Arguments;
use crate::content::{BLOCK_BYTES, Noise, mix};
use anyhow::{Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files in one folder.
const FOLDER_FILES: usize = 1000;

/// Does one thing to every file of a set. Says when it began and ended, so that several of us can be timed
/// together.
pub(crate) fn run(verb: &str, arguments: &Arguments) -> Result<Value> {
    let top = arguments.path()?;
    let (count, seed) = (arguments.number("count")?, arguments.number("seed")?);
    if let Ok(cpu) = arguments.number("cpu") {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set)?;
    }
    let folders = count / FOLDER_FILES;
    if verb == "create" {
        for folder in 0..=folders {
            fs::create_dir_all(top.join(folder.to_string()))?;
        }
    }
    let begin = wait_for(arguments.number_or("start", 0.0)?)?;
    let mut buffer = vec![0; BLOCK_BYTES];
    for number in 0..count {
        let path = file(&top, number);
        match verb {
            "create" => {
                fill(seed, number, &mut buffer);
                File::create(path)?.write_all(&buffer)?;
            }
            "stat" => {
                fs::metadata(path)?;
            }
            "read-files" => drop(fs::read(path)?),
            "unlink" => fs::remove_file(path)?,
            _ => {
                fill(seed, number, &mut buffer);
                if fs::read(&path)? != buffer {
                    bail!("file {number} is not what was written");
                }
            }
        }
    }
    Ok(json!({ "begin": begin, "end": now()?, "files": count }))
}

fn file(top: &Path, number: usize) -> PathBuf {
    top.join((number / FOLDER_FILES).to_string()).join(number.to_string())
}

fn fill(seed: u64, number: usize, buffer: &mut [u8]) {
    Noise::new(mix(seed).wrapping_add(number as u64)).fill(buffer);
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64())
}

/// Sleeps until a moment that all clients were told, and says when it is.
fn wait_for(start: f64) -> Result<f64> {
    let left = start - now()?;
    if left > 0.0 {
        std::thread::sleep(Duration::from_secs_f64(left));
    }
    now()
}
