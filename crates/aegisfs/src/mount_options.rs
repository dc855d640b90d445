//! `-o`: what mount(8) and fstab say.

use crate::failure::{Exit, Failure};
use aegisfs_fuse::{MountEntry, MountOptions};
use std::path::PathBuf;

/// Mount options, understood.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What the kernel is told.
    pub(crate) kernel: MountOptions,
    /// Let the kernel keep written data for a while; as the settings say when not given.
    pub(crate) writeback: Option<bool>,
    /// Which writes are read back; as the settings say when not given.
    pub(crate) verify: Option<String>,
    /// Whether freed slots are discarded by themselves; as the settings say when not given.
    pub(crate) discard: Option<bool>,
    /// Whether requests come through io_uring; as the settings say when not given.
    pub(crate) rings: Option<String>,
    /// Whether a block device is mounted as one; as the settings say when not given.
    pub(crate) fuseblk: Option<String>,
    /// Further devices of the pool, for fstab, which has room for one.
    pub(crate) devices: Vec<PathBuf>,
    /// Mount without devices that may have gone on without these.
    pub(crate) degraded: bool,
    /// Mount over a directory that has entries.
    pub(crate) nonempty: bool,
    /// Change a mount that is there.
    pub(crate) remount: bool,
}

/// What the administrator allows other users.
const FUSE_CONF: &str = "/etc/fuse.conf";

impl Options {
    /// Reads option lists as given with `-o`.
    ///
    /// # Errors
    /// Names the first option that is not known.
    pub(crate) fn parse(lists: &[String], source: &str) -> Result<Self, Failure> {
        let root = rustix::process::geteuid().is_root();
        // What another user mounts has no power over others, and is nobody else's unless asked for.
        let kernel = MountOptions {
            source: source.to_owned(),
            suid: root,
            dev: root,
            allow_other: root,
            ..MountOptions::default()
        };
        Self::over(kernel, lists)
    }

    /// Reads option lists that change what a mount has.
    ///
    /// # Errors
    /// As [`Options::parse`].
    pub(crate) fn parse_over(entry: &MountEntry, lists: &[String]) -> Result<Self, Failure> {
        let has = |wanted: &str| entry.options.split(',').any(|word| word == wanted);
        let kernel = MountOptions {
            source: entry.source.to_string_lossy().into_owned(),
            read_only: entry.read_only(),
            suid: !has("nosuid"),
            dev: !has("nodev"),
            exec: !has("noexec"),
            no_atime: has("noatime"),
            ..MountOptions::default()
        };
        Self::over(kernel, lists)
    }

    fn over(kernel: MountOptions, lists: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            kernel,
            writeback: None,
            verify: None,
            discard: None,
            rings: None,
            fuseblk: None,
            devices: Vec::new(),
            degraded: false,
            nonempty: false,
            remount: false,
        };
        for option in lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
            options.take(option)?;
        }
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Result<(), Failure> {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        match (name, value) {
            ("ro", None) => self.kernel.read_only = true,
            ("rw", None) => self.kernel.read_only = false,
            ("suid", None) => self.kernel.suid = true,
            ("nosuid", None) => self.kernel.suid = false,
            ("dev", None) => self.kernel.dev = true,
            ("nodev", None) => self.kernel.dev = false,
            ("exec", None) => self.kernel.exec = true,
            ("noexec", None) => self.kernel.exec = false,
            ("allow_other", None) => self.kernel.allow_other = allowed_for_others()?,
            ("default_permissions", None) => self.kernel.default_permissions = true,
            ("noatime", None) => self.kernel.no_atime = true,
            ("fsname", Some(name)) => name.clone_into(&mut self.kernel.source),
            ("writeback", Some("on")) => self.writeback = Some(true),
            ("writeback", Some("off")) => self.writeback = Some(false),
            ("remount", None) => self.remount = true,
            ("verify", Some(mode)) => self.verify = Some(mode.to_owned()),
            ("discard", None) => self.discard = Some(true),
            ("nodiscard", None) => self.discard = Some(false),
            ("io_uring", Some(mode)) => self.rings = Some(mode.to_owned()),
            ("fuseblk", Some(mode)) => self.fuseblk = Some(mode.to_owned()),
            ("device", Some(path)) => self.devices.push(path.into()),
            ("degraded", None) => self.degraded = true,
            ("nonempty", None) => self.nonempty = true,
            // What mount(8) and systemd keep for themselves.
            (
                "defaults" | "relatime" | "nodiratime" | "diratime" | "auto" | "noauto" | "nofail" | "user"
                | "users" | "nouser" | "owner" | "group" | "_netdev" | "async",
                None,
            ) => {}
            (own, _) if own.starts_with("x-") || own == "comment" || own == "subtype" => {}
            // When mount(8) changes a mount it repeats what the kernel lists.
            ("user_id" | "group_id" | "max_read" | "blksize", Some(_)) => {}
            _ => {
                return Err(Failure::usage(format!("mount option '{option}' is not known")).hint(
                    "known are ro, rw, nosuid, nodev, noexec, noatime, writeback=on|off, verify=off|sample|full, discard, nodiscard, io_uring=on|off|auto, fuseblk=on|off|auto, device=PATH, degraded, nonempty",
                ));
            }
        }
        Ok(())
    }
}

/// Whether others may be let in; other users than root need the administrator's word.
fn allowed_for_others() -> Result<bool, Failure> {
    let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
    if rustix::process::geteuid().is_root() || lets_users_allow_others(&conf) {
        return Ok(true);
    }
    let message = "allow_other is not allowed to users here";
    Err(Failure::new("E_ALLOW_OTHER", Exit::Permission, message)
        .hint(format!("the administrator allows it by a line user_allow_other in {FUSE_CONF}")))
}

fn lets_users_allow_others(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_says_is_understood_and_the_rest_is_named() {
        let lists = ["defaults,ro,nofail,x-systemd.automount".into(), "writeback=off,nodev".into()];
        let options = Options::parse(&lists, "/dev/x").unwrap();
        assert!(options.kernel.read_only && !options.kernel.dev && options.writeback == Some(false));
        assert_eq!(options.kernel.source, "/dev/x");
        let failure = Options::parse(&["rw,colour=blue".into()], "x").unwrap_err();
        assert!(failure.message.contains("'colour=blue'"));
    }

    #[test]
    fn a_remount_begins_with_what_is_there() {
        let entry = MountEntry {
            number: "0:43".into(),
            point: "/mnt".into(),
            options: "rw,nosuid,noatime".into(),
            source: "/dev/x".into(),
            super_options: "rw,user_id=0".into(),
        };
        let lists = ["remount,ro,user_id=0,group_id=0,max_read=1048576".into()];
        let options = Options::parse_over(&entry, &lists).unwrap();
        assert!(options.remount && options.kernel.read_only && options.kernel.no_atime);
        assert!(!options.kernel.suid && options.kernel.dev && options.writeback.is_none());
    }

    #[test]
    fn the_administrators_word_is_a_line_of_its_own() {
        assert!(lets_users_allow_others("a\n user_allow_other \n"));
        assert!(!lets_users_allow_others("#user_allow_other\nuser_allow_other = 1\n"));
    }
}
