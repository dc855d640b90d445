//! scan: which pools there are, and which of their devices.

use crate::failure::Failure;
use crate::{devices, output};
use aegisfs_format::superblock::{Membership, Superblock};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Looks for pools, and remembers the image files of the folders that were named.
pub(crate) fn run(folders: &[PathBuf], as_json: bool) -> Result<ExitCode, Failure> {
    let mut paths = devices::known();
    for folder in folders {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|error| Failure::from(error).hint(format!("{} cannot be read", folder.display())))?
            .flatten()
            .map(|entry| crate::places::canonical(&entry.path()))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files.retain(|path| !paths.contains(path));
        paths.extend(files);
    }
    let mut pools: BTreeMap<[u8; 16], Vec<(PathBuf, Superblock)>> = BTreeMap::new();
    for path in paths {
        if let Some(block) = devices::read_superblock(&path) {
            devices::remember(&path);
            pools.entry(block.pool.0).or_default().push((path, block));
        }
    }
    let (mut lines, mut answer) = (Vec::new(), Vec::new());
    for found in pools.values() {
        let (one, text) = describe(found);
        answer.push(one);
        lines.extend(text);
    }
    if lines.is_empty() {
        lines.push("no pool was found".into());
    }
    output::print(as_json, json!({ "pools": answer }), &lines);
    Ok(ExitCode::SUCCESS)
}

/// A pool by the newest of its superblocks that were found.
fn describe(found: &[(PathBuf, Superblock)]) -> (Value, Vec<String>) {
    let newest =
        found.iter().map(|(_, block)| block).max_by_key(|block| block.generation).expect("there is one");
    let mut lines = vec![format!("pool {} {}", newest.pool, newest.label).trim_end().to_owned()];
    let mut members = Vec::new();
    for entry in &newest.devices {
        let places: Vec<&Path> = found
            .iter()
            .filter(|(_, block)| devices::own_uuid(block) == entry.uuid)
            .map(|(path, _)| path.as_path())
            .collect();
        let state = match (entry.membership, places.is_empty()) {
            (_, true) => "missing",
            (Membership::In, _) => "in",
            (Membership::Out { .. }, _) => "out",
        };
        let last = String::from_utf8_lossy(&entry.path).into_owned();
        let names: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        let seen = if names.is_empty() { format!("last seen as {last}") } else { names.join(" and ") };
        lines.push(format!("  {:<8} {}  {seen}", state, entry.uuid));
        let mut member = json!({ "uuid": entry.uuid.to_string(), "state": state, "bytes": entry.bytes, "last_seen": last });
        output::put_paths(&mut member, "found", places.into_iter());
        members.push(member);
    }
    let answer = json!({ "pool": newest.pool.to_string(), "label": newest.label, "members": members });
    (answer, lines)
}
