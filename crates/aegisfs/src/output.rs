//! Answers: one JSON object, or lines for people.

use crate::base64;
use serde_json::Value;
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

/// Puts a path into an answer. What is not UTF-8 is there twice: readable under its name, and exact under its
/// name with `_base64` behind.
pub(crate) fn put_path(answer: &mut Value, name: &str, path: &Path) {
    answer[name] = path.to_string_lossy().into();
    if path.to_str().is_none() {
        answer[format!("{name}_base64")] = base64::encode(path.as_os_str().as_bytes()).into();
    }
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
