//! The flags of chattr(1) in a history: what they forbid, what they make durable, and what is born with them.
//!
//! They are kept here beside the filesystem, so that it can be wrong.

use crate::history::{History, Shape};
use crate::player::{Deed, Player, told};
use aegisfs_base::{InodeId, Rng};
use aegisfs_fs::{Caller, FsError, INODE_FLAGS, Inode, Kind};
use std::collections::BTreeMap;

const INHERITED: u32 = Inode::SYNC | Inode::NO_DUMP | Inode::NO_ATIME;
/// Neither owns anything nor may set what only the superuser sets.
const STRANGER: Caller = Caller { uid: 7, gid: 7 };
pub(crate) const SUPERUSER: Caller = Caller { uid: 0, gid: 0 };

/// Histories in which flags are set.
pub(crate) const WITH_FLAGS: Shape = Shape {
    devices: 1,
    operations: 120,
    log_pieces: 4,
    large: false,
    device_bytes: 24 << 20,
    mixed: false,
    streams: false,
    flags: true,
    cleaning: false,
    policies: false,
    redundancy: None,
};

/// With so many of them each verb happens in a directory or to a file that is marked sync.
pub(crate) const SEEDS: std::ops::Range<u64> = 450..460;

/// The flags that each inode has to have.
#[derive(Default)]
pub(crate) struct Flags(BTreeMap<InodeId, u32>);

impl Flags {
    pub(crate) fn of(&self, id: InodeId) -> u32 {
        self.0.get(&id).copied().unwrap_or(0)
    }

    fn has_any(&self, id: InodeId, flags: u32) -> bool {
        self.of(id) & flags != 0
    }

    /// Whether it takes neither names nor bytes.
    pub(crate) fn takes_nothing(&self, id: InodeId) -> bool {
        self.has_any(id, Inode::IMMUTABLE)
    }

    /// Whether it keeps its names, its attributes, and what is in it.
    pub(crate) fn loses_nothing(&self, id: InodeId) -> bool {
        self.has_any(id, Inode::IMMUTABLE | Inode::APPEND_ONLY)
    }

    pub(crate) fn is_sync(&self, id: InodeId) -> bool {
        self.has_any(id, Inode::SYNC)
    }

    pub(crate) fn forbid_rename(
        &self,
        from: InodeId,
        moved: InodeId,
        to: InodeId,
        target: Option<InodeId>,
    ) -> bool {
        let gives = self.loses_nothing(from) || self.loses_nothing(moved);
        let takes = match target {
            Some(target) => self.loses_nothing(to) || self.loses_nothing(target),
            None => self.takes_nothing(to),
        };
        gives || takes
    }

    pub(crate) fn are_inherited(&mut self, parent: InodeId, made: InodeId, kind: Kind<'_>) {
        let durable = matches!(kind, Kind::File | Kind::Directory);
        let passed_on = if durable { INHERITED } else { INHERITED & !Inode::SYNC };
        self.0.insert(made, self.of(parent) & passed_on);
    }
}

impl Player<'_> {
    /// Sets flags, sometimes as somebody who may not; sometimes it is synced.
    pub(crate) fn set_flags(&mut self, step: u64) -> Result<Deed, FsError> {
        let id = self.file_or_directory()?;
        let chosen = INODE_FLAGS.iter().filter(|_| self.rng.below(3) == 0);
        let often = if self.rng.below(2) == 0 { Inode::SYNC } else { 0 };
        let flags = chosen.fold(often, |flags, (_, flag)| flags | flag);
        let caller = if self.rng.below(8) == 0 { STRANGER } else { SUPERUSER };
        let before = self.flags.of(id);
        let stays_immutable = before & flags & Inode::IMMUTABLE != 0;
        self.forbidden = caller == STRANGER || stays_immutable && before != flags;
        self.fs.set_flags(id, flags, caller)?;
        let mut deed = told(format!("flags of {id}: {before:x} to {flags:x}"));
        if before == flags {
            return Ok(deed);
        }
        self.flags.0.insert(id, flags);
        if self.contents.contains_key(&id) {
            self.touched.insert(id, step);
        }
        deed.asked.push(id);
        if self.rng.below(3) == 0 {
            self.fs.fsync_inode(id)?;
            deed.promise.file = Some((id, step));
            deed.story += ", synced";
        }
        Ok(deed)
    }
}

#[test]
fn flags_come_into_play() {
    let (mut forbidden, mut durable) = (0, 0);
    for seed in SEEDS {
        let history = History::run(&WITH_FLAGS, seed);
        forbidden += history.forbidden;
        durable += history.durable;
    }
    println!("flags forbade {forbidden} operations and made {durable} durable");
    assert!(forbidden > 100 && durable > 100);
}
