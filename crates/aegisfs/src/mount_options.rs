//! `-o`: what mount(8) and fstab say.

use crate::failure::Failure;
use aegisfs_fuse::MountOptions;

/// Mount options, understood.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What the kernel is told.
    pub(crate) kernel: MountOptions,
    /// Let the kernel keep written data for a while.
    pub(crate) writeback: bool,
    /// Mount without devices that should be there.
    pub(crate) degraded: bool,
    /// Mount over a directory that has entries.
    pub(crate) nonempty: bool,
}

impl Options {
    /// Reads option lists as given with `-o`.
    ///
    /// # Errors
    /// Names the first option that is not known.
    pub(crate) fn parse(lists: &[String], source: &str) -> Result<Self, Failure> {
        let kernel = MountOptions { source: source.to_owned(), ..MountOptions::default() };
        let mut options = Self { kernel, writeback: true, degraded: false, nonempty: false };
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
            ("allow_other", None) => self.kernel.allow_other = true,
            ("default_permissions", None) => self.kernel.default_permissions = true,
            ("noatime", None) => self.kernel.no_atime = true,
            ("fsname", Some(name)) => name.clone_into(&mut self.kernel.source),
            ("writeback", Some("on")) => self.writeback = true,
            ("writeback", Some("off")) => self.writeback = false,
            ("degraded", None) => self.degraded = true,
            ("nonempty", None) => self.nonempty = true,
            // What mount(8) and systemd keep for themselves.
            (
                "defaults" | "relatime" | "auto" | "noauto" | "nofail" | "user" | "users" | "nouser"
                | "owner" | "group" | "_netdev" | "async",
                None,
            ) => {}
            (own, _) if own.starts_with("x-") || own == "comment" || own == "subtype" => {}
            _ => {
                return Err(Failure::usage(format!("mount option '{option}' is not known")).hint(
                    "known are ro, rw, nosuid, nodev, noexec, noatime, writeback=on|off, degraded, nonempty",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_says_is_understood_and_the_rest_is_named() {
        let lists = ["defaults,ro,nofail,x-systemd.automount".into(), "writeback=off,nodev".into()];
        let options = Options::parse(&lists, "/dev/x").unwrap();
        assert!(options.kernel.read_only && !options.kernel.dev && !options.writeback);
        assert_eq!(options.kernel.source, "/dev/x");
        let failure = Options::parse(&["rw,colour=blue".into()], "x").unwrap_err();
        assert!(failure.message.contains("'colour=blue'"));
    }
}
