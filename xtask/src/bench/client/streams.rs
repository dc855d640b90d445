//! One large file, in calls of a mebibyte.

use crate::Arguments;
use crate::clock::Clock;
use crate::content::{CALL_BYTES, Kind, Stream};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};

/// Writes a stream and fsyncs it.
pub(crate) fn write(arguments: &Arguments) -> Result<Value> {
    let mut stream = Stream::new(arguments.number("seed")?, Kind::parse(arguments.text("kind")?)?);
    let calls: usize = arguments.number("mib")?;
    let path = arguments.path()?;
    let clock = Clock::start(arguments.number_or("daemon", 0)?)?;
    let mut file = File::create(path)?;
    for call in 0..calls {
        file.write_all(stream.call(call))?;
    }
    file.sync_all()?;
    let mut answer = clock.stop()?;
    answer["bytes"] = json!(calls * CALL_BYTES);
    Ok(answer)
}

/// Reads a file to its end.
pub(crate) fn read(arguments: &Arguments) -> Result<Value> {
    let mut buffer = vec![0; CALL_BYTES];
    let path = arguments.path()?;
    let clock = Clock::start(arguments.number_or("daemon", 0)?)?;
    let mut file = File::open(path)?;
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        total += count;
    }
    let mut answer = clock.stop()?;
    answer["bytes"] = json!(total);
    Ok(answer)
}

/// Compares a file with what was written.
pub(crate) fn check(arguments: &Arguments) -> Result<Value> {
    let mut stream = Stream::new(arguments.number("seed")?, Kind::parse(arguments.text("kind")?)?);
    let calls: usize = arguments.number("mib")?;
    let mut file = File::open(arguments.path()?)?;
    let mut buffer = vec![0; CALL_BYTES];
    for call in 0..calls {
        file.read_exact(&mut buffer)?;
        if buffer != stream.call(call) {
            bail!("mebibyte {call} is not what was written");
        }
    }
    if file.read(&mut buffer)? != 0 {
        bail!("the file is longer than what was written");
    }
    Ok(json!({ "bytes": calls * CALL_BYTES }))
}
