//! Licences of what we depend on, by an allow list that `deny.toml` repeats.

use crate::metadata::{self, Package};
use anyhow::{Result, bail};

/// Licences that ask for no more than their text to be passed on.
const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Refuses every dependency whose licence cannot be met from the allow list.
pub(crate) fn run() -> Result<()> {
    let refused = refused(&metadata::all()?);
    if refused.is_empty() {
        return Ok(());
    }
    bail!("licences not on the allow list: {}", refused.join("; "));
}

fn refused(packages: &[Package]) -> Vec<String> {
    let foreign = packages.iter().filter(|package| !package.is_ours);
    foreign
        .filter(|package| !package.licence.as_deref().is_some_and(is_allowed))
        .map(|package| {
            let licence = package.licence.as_deref().unwrap_or("no licence");
            format!("{} {}: {licence}", package.name, package.version)
        })
        .collect()
}

/// Whether an SPDX expression can be met: `OR` and `/` leave the choice, `AND` does not.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = Words { words: spaced.split_whitespace().collect(), next: 0, depth: 0 };
    words.any_of() == Some(true) && words.next == words.words.len()
}

struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
    depth: usize,
}

impl<'a> Words<'a> {
    fn take(&mut self, word: &str) -> bool {
        let taken = self.words.get(self.next) == Some(&word);
        self.next += usize::from(taken);
        taken
    }

    fn word(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.next).copied();
        self.next += usize::from(word.is_some());
        word
    }

    fn any_of(&mut self) -> Option<bool> {
        let mut allowed = self.all_of()?;
        while self.take("OR") {
            allowed |= self.all_of()?;
        }
        Some(allowed)
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        const DEPTH_MAX: usize = 16;
        if self.take("(") {
            self.depth += 1;
            let inner = if self.depth > DEPTH_MAX { None } else { self.any_of() };
            self.depth -= 1;
            return inner.filter(|_| self.take(")"));
        }
        let licence = self.word().filter(|word| !matches!(*word, "OR" | "AND" | "WITH" | ")"))?;
        if self.take("WITH") {
            let whole = format!("{licence} WITH {}", self.word()?);
            return Some(ALLOWED.contains(&whole.as_str()));
        }
        Some(ALLOWED.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MIT AND (Zlib OR GPL-2.0-only)",
            "CC0-1.0 OR MIT-0 OR Apache-2.0",
        ];
        for expression in allowed {
            assert!(is_allowed(expression), "{expression}");
        }
        let refused = [
            "",
            "GPL-3.0",
            "MIT AND GPL-2.0",
            "MIT OR",
            "OR MIT",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "Apache-2.0 WITH Something-else",
            "MIT WITH",
            "(MIT OR Apache-2.0) AND OpenSSL",
        ];
        for expression in refused {
            assert!(!is_allowed(expression), "{expression}");
        }
        assert!(!is_allowed(&"(".repeat(100_000)));
    }

    #[test]
    fn deny_toml_repeats_the_list() {
        let text = include_str!("../../deny.toml");
        let listed: Vec<&str> = text
            .lines()
            .skip_while(|line| line.trim() != "allow = [")
            .skip(1)
            .take_while(|line| line.trim() != "]")
            .filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","))
            .collect();
        assert_eq!(listed, ALLOWED);
    }
}
