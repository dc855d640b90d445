//! What the daemon answers about the devices of its pool.

use crate::output;
use aegisfs_format::superblock::Membership;
use aegisfs_pool::MemberState;
use aegisfs_store::Store;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where devices are that came after the mount.
pub(super) fn joined(store: &Store, mounted: &[PathBuf]) -> Vec<PathBuf> {
    let pool = store.pool();
    let devices = pool.superblock().devices;
    let there = devices.iter().zip(pool.member_states()).filter(|(_, state)| *state != MemberState::Missing);
    let paths = there.map(|(entry, _)| Path::new(OsStr::from_bytes(&entry.path)).to_owned());
    paths.filter(|path| !mounted.contains(path)).collect()
}

/// Puts the members and whether any of them does not take part into an answer.
pub(super) fn describe(store: &Store, answer: &mut Value) {
    let pool = store.pool();
    let states = pool.member_states();
    let entries = pool.superblock().devices;
    let one = |(index, (entry, state)): (usize, (&aegisfs_format::superblock::DeviceEntry, &MemberState))| {
        let out_since = match entry.membership {
            Membership::Out { since } => Some(since.0),
            Membership::In => None,
        };
        let mut member = json!({
            "index": index,
            "uuid": entry.uuid.to_string(),
            "state": state.name(),
            "health": entry.health.name(),
            "out_since": out_since,
            "bytes": entry.bytes,
            "slots": entry.slots,
            "failure_domain": entry.failure_domain,
        });
        output::put_path(&mut member, "path", Path::new(OsStr::from_bytes(&entry.path)));
        member
    };
    answer["returning"] = store.return_progress().map_or(Value::Null, |progress| {
        json!({
            "index": progress.device.0,
            "segments": progress.segments,
            "segments_total": progress.segments_total,
            "data_bytes": progress.data_bytes,
            "metadata_bytes": progress.metadata_bytes,
        })
    });
    answer["degraded"] = states.iter().any(|state| *state != MemberState::In).into();
    answer["members"] = entries.iter().zip(&states).enumerate().map(one).collect();
}
