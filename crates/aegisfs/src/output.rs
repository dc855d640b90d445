//! Answers: one JSON object, or lines for people.

use serde_json::Value;

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
