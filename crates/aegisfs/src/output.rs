//! Answers: one JSON object, or lines for people.

use crate::base64;
use serde_json::{Map, Value};
use std::io::{self, BufWriter, ErrorKind, Stdout, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Prints an answer.
#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(as_json: bool, mut answer: Value, lines: &[String]) {
    if as_json {
        answer["schema_version"] = 1.into();
        println!("{answer}");
    } else {
        for line in lines {
            println!("{line}");
        }
    }
}

/// Tells how long work goes on, beside its answer.
#[expect(clippy::print_stderr, reason = "the answer goes to the other stream")]
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
}

/// An answer with a list that may be too long for memory: it goes out item by item.
pub(crate) struct Listing<W: Write = BufWriter<Stdout>> {
    as_json: bool,
    out: W,
    items: u64,
    /// Nobody reads on, as with `| head`.
    closed: bool,
}

impl Listing {
    /// Begins with what stands before the list.
    pub(crate) fn begin(as_json: bool, answer: Value, lines: &[String], name: &str) -> io::Result<Self> {
        Self::begin_in(BufWriter::new(io::stdout()), as_json, answer, lines, name)
    }
}

impl<W: Write> Listing<W> {
    fn begin_in(out: W, as_json: bool, mut answer: Value, lines: &[String], name: &str) -> io::Result<Self> {
        answer["schema_version"] = 1.into();
        let mut listing = Self { as_json, out, items: 0, closed: false };
        let head = answer.to_string();
        let head = head.strip_suffix('}').expect("it is an object");
        listing.write(&format!("{head},\"{name}\":["), lines)?;
        Ok(listing)
    }

    /// Adds to the list; says whether somebody still reads.
    pub(crate) fn item(&mut self, item: &Value, lines: &[String]) -> io::Result<ControlFlow<()>> {
        let comma = if self.items > 0 { "," } else { "" };
        self.items += 1;
        self.write(&format!("{comma}{item}"), lines)?;
        Ok(if self.closed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Ends with what is known only now.
    pub(crate) fn end(mut self, more: &Map<String, Value>, lines: &[String]) -> io::Result<()> {
        let mut text = "]".to_owned();
        for (name, value) in more {
            text += &format!(",\"{name}\":{value}");
        }
        self.write(&(text + "}\n"), lines)?;
        let flushed = self.out.flush();
        self.unless_closed(flushed)
    }

    fn write(&mut self, json: &str, lines: &[String]) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let written = match self.as_json {
            true => self.out.write_all(json.as_bytes()),
            false => lines.iter().try_for_each(|line| writeln!(self.out, "{line}")),
        };
        self.unless_closed(written)
    }

    fn unless_closed(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        match outcome {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// Puts a path into an answer. What is not UTF-8 is there twice: readable under its name, and exact under its
/// name with `_base64` behind.
pub(crate) fn put_path(answer: &mut Value, name: &str, path: &Path) {
    answer[name] = path.to_string_lossy().into();
    if path.to_str().is_none() {
        answer[format!("{name}_base64")] = base64::encode(path.as_os_str().as_bytes()).into();
    }
}

/// Puts a list of paths into an answer, each as [`put_path`] does in an object of its own.
pub(crate) fn put_paths<'p>(answer: &mut Value, name: &str, paths: impl Iterator<Item = &'p Path>) {
    let one = |path: &Path| {
        let mut one = Value::Object(Map::new());
        put_path(&mut one, "path", path);
        one
    };
    answer[name] = paths.map(one).collect();
}

/// Whether an answer names this path.
pub(crate) fn names_path(answer: &Value, name: &str, path: &Path) -> bool {
    match answer[format!("{name}_base64")].as_str() {
        Some(exact) => exact == base64::encode(path.as_os_str().as_bytes()),
        None => path.to_str().is_some_and(|path| answer[name].as_str() == Some(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::ffi::OsStr;

    #[test]
    fn a_listing_is_one_object() {
        for items in [0, 1, 3] {
            let mut text = Vec::new();
            let head = json!({ "last": { "inner": {} } });
            let mut listing = Listing::begin_in(&mut text, true, head, &[], "items").unwrap();
            for n in 0..items {
                assert!(listing.item(&json!({ "n": n }), &[]).unwrap().is_continue());
            }
            let more = json!({ "damaged": false });
            listing.end(more.as_object().unwrap(), &[]).unwrap();
            let read: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(read["items"].as_array().unwrap().len(), items);
            assert_eq!(read["last"]["inner"], json!({}));
            assert_eq!((&read["damaged"], &read["schema_version"]), (&json!(false), &json!(1)));
        }
    }

    #[test]
    fn paths_that_are_no_text_are_told_apart() {
        let paths =
            [&b"/mnt/a"[..], b"/mnt/\xff", b"/mnt/\xfe"].map(|bytes| Path::new(OsStr::from_bytes(bytes)));
        let mut answer = json!({});
        for path in paths {
            answer = json!({});
            put_path(&mut answer, "mount", path);
            let found: Vec<_> = paths.iter().filter(|path| names_path(&answer, "mount", path)).collect();
            assert_eq!(found, [&path]);
        }
        assert_eq!(answer["mount"], "/mnt/\u{fffd}");
        assert_eq!(answer["mount_base64"], "L21udC/+");
    }
}
