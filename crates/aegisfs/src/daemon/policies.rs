//! What the daemon answers about how files are stored.

use crate::commands::format::{describe_redundancy, parse_redundancy};
use crate::output;
use aegisfs_base::InodeId;
use aegisfs_fs::{Fs, FsError, Waiting};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How an order begins that takes a policy of its own from an inode; the directory that it is in follows.
const CLEAR: &str = "clear/";

/// How far what is there already has come to follow its policy.
pub(super) fn describe(fs: &Fs) -> Result<Value, FsError> {
    let followed = fs.followed()?;
    let inodes: Vec<InodeId> = followed.waiting.iter().map(|waiting| waiting.inode).collect();
    let names = fs.names_of(&inodes)?;
    let waiting = followed.waiting.iter().map(|waiting| {
        let mut one = one(waiting);
        if let Some(path) = names.get(&waiting.inode) {
            output::put_path(&mut one, "path", Path::new(OsStr::from_bytes(path)));
        }
        one
    });
    let waiting: Vec<Value> = waiting.collect();
    Ok(json!({ "waiting": waiting, "inodes": followed.inodes, "bytes": followed.bytes }))
}

fn one(waiting: &Waiting) -> Value {
    json!({ "inode": waiting.inode.0, "running": waiting.running, "trouble": waiting.trouble })
}

/// How an inode is stored, and whether that is so for all that is there already.
pub(super) fn of(fs: &Fs, inode: &str) -> Result<Value, String> {
    let id = number(inode)?;
    let policy = fs.policy(id).map_err(|error| error.to_string())?;
    let followed = fs.followed().map_err(|error| error.to_string())?;
    let waiting = followed.waiting.iter().find(|waiting| waiting.inode == id);
    Ok(json!({
        "redundancy": describe_redundancy(policy.redundancy),
        "own": policy.own,
        "waiting": waiting.map(one),
        "bytes": followed.bytes,
    }))
}

/// Says how an inode is stored from now on.
pub(super) fn set(fs: &Fs, inode: &str, order: &str) -> Result<Value, String> {
    let id = number(inode)?;
    let (redundancy, above) = match order.strip_prefix(CLEAR) {
        Some(above) => (None, number(above)?),
        None => (Some(parse_redundancy(order).map_err(|failure| failure.message)?), id),
    };
    fs.set_policy(id, redundancy, above).map_err(|error| error.to_string())?;
    of(fs, inode)
}

fn number(text: &str) -> Result<InodeId, String> {
    text.parse().map(InodeId).map_err(|_| format!("'{text}' is not the number of an inode"))
}
