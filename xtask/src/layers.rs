//! The order of the rooms: a crate may depend only on crates to its left.
//!
//! `sim` is for tests and may look everywhere, but nothing may depend on it outside of tests.
//! Development dependencies are free.

use crate::metadata::{self, Package};
use anyhow::{Result, bail};

/// The rooms from left to right. A new room is added here and in the design page.
const ORDER: [&str; 12] = [
    "base", "format", "device", "chunk", "kv", "pool", "store", "fs", "fuse", "cluster", "control", "aegisfs",
];
/// The room that may look everywhere and that nobody may look into.
const SIMULATOR: &str = "sim";

/// Refuses every arrow that runs the wrong way.
pub(crate) fn run() -> Result<()> {
    let wrong = wrong_arrows(&metadata::workspace()?);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("; "));
}

fn room(package: &str) -> &str {
    package.strip_prefix("aegisfs-").unwrap_or(package)
}

fn place(room: &str) -> Option<usize> {
    ORDER.iter().position(|name| *name == room)
}

fn wrong_arrows(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|package| package.is_room) {
        let from = room(&package.name);
        if from == SIMULATOR {
            continue;
        }
        let Some(from_place) = place(from) else {
            wrong.push(format!("{from} has no place in the order of rooms"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.is_dev) {
            let to = room(&dependency.name);
            if to == SIMULATOR && dependency.name.starts_with("aegisfs-") {
                wrong.push(format!("{from} depends on {SIMULATOR}, which is for tests only"));
            }
            let is_room = dependency.name.starts_with("aegisfs");
            if is_room && place(to).is_some_and(|to_place| to_place >= from_place) {
                wrong.push(format!("{from} looks into {to}, which stands to its right"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            licence: None,
            is_ours: true,
            is_room: name.starts_with("aegisfs"),
            dependencies: dependencies
                .iter()
                .map(|(name, is_dev)| Dependency { name: (*name).to_owned(), is_dev: *is_dev })
                .collect(),
        }
    }

    #[test]
    fn arrows_to_the_left_are_fine() {
        let packages = [
            package("aegisfs-base", &[]),
            package("aegisfs-kv", &[("aegisfs-base", false), ("redb", false), ("aegisfs-sim", true)]),
            package("aegisfs", &[("aegisfs-fuse", false), ("aegisfs-base", false), ("clap", false)]),
            package("aegisfs-sim", &[("aegisfs-fs", false), ("aegisfs", false)]),
            package("xtask", &[("aegisfs", false)]),
        ];
        assert_eq!(wrong_arrows(&packages), Vec::<String>::new());
    }

    #[test]
    fn arrows_to_the_right_are_refused() {
        let cases = [
            (package("aegisfs-base", &[("aegisfs-format", false)]), "base looks into format"),
            (package("aegisfs-kv", &[("aegisfs-pool", false)]), "kv looks into pool"),
            (package("aegisfs-fuse", &[("aegisfs", false)]), "fuse looks into aegisfs"),
            (package("aegisfs-fs", &[("aegisfs-sim", false)]), "fs depends on sim"),
            (package("aegisfs-util", &[]), "util has no place"),
        ];
        for (package, expected) in cases {
            let wrong = wrong_arrows(&[package]);
            assert!(wrong.len() == 1 && wrong[0].starts_with(expected), "{wrong:?}");
        }
    }

    #[test]
    fn a_crate_of_another_project_may_share_a_name() {
        assert!(wrong_arrows(&[package("aegisfs-base", &[("format", false), ("sim", false)])]).is_empty());
    }
}
