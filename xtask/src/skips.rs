//! Tests that did not run, and said so.
//!
//! Such a test prints a line `SKIPPED: NAME: WHY` and passes. A skip is fine only when its name is
//! in `tests/skips.txt`; any other fails the run, so that no test goes missing unnoticed.

use crate::shell;
use std::fmt;
use std::fs;

const MARK: &str = "SKIPPED: ";

/// A test that did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) name: String,
    pub(crate) why: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}: {}", self.name, self.why)
    }
}

/// The skips that a program's output or a JUnit file tells of.
pub(crate) fn find(text: &str) -> Vec<Skip> {
    text.lines().filter_map(one).collect()
}

fn one(line: &str) -> Option<Skip> {
    // In a JUnit file the first line of an output follows its tag directly.
    let (before, after) = line.split_once(MARK)?;
    if !before.is_empty() && !before.ends_with('>') {
        return None;
    }
    let (name, why) = after.split_once(": ")?;
    Some(Skip { name: unescape(name), why: unescape(why.split('<').next().unwrap_or(why)) })
}

fn unescape(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The names that may be skipped.
pub(crate) fn allowed() -> Vec<String> {
    // Without the file no skip is allowed.
    names(&fs::read_to_string(shell::root().join("tests/skips.txt")).unwrap_or_default())
}

fn names(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Those that may not be.
pub(crate) fn refused<'a>(skips: &'a [Skip], allowed: &[String]) -> Vec<&'a Skip> {
    skips.iter().filter(|skip| !allowed.contains(&skip.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_found_where_they_begin_a_line() {
        let text = "running\nSKIPPED: a::b: no /dev/fuse &amp; no root\n\
            <system-out>SKIPPED: c: not &lt;here&gt;</system-out>\nit says SKIPPED: x: y\nSKIPPED: bad\n";
        let found = find(text);
        let shown: Vec<String> = found.iter().map(Skip::to_string).collect();
        assert_eq!(shown, ["SKIPPED: a::b: no /dev/fuse & no root", "SKIPPED: c: not <here>"]);
    }

    #[test]
    fn only_listed_names_may_be_skipped() {
        let allowed = names("# comment\n\nmounted::xfs  # no loop device\n");
        assert_eq!(allowed, ["mounted::xfs"]);
        let skips = find("SKIPPED: mounted::xfs: x\nSKIPPED: mounted::fsx: y\n");
        let refused = refused(&skips, &allowed);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].name, "mounted::fsx");
    }
}
