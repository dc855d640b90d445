//! rename: a name moves, replaces another, or changes places with it, in one change.

use super::Locked;
use super::make::{Kind, MakeOptions};
use super::remove::{check_kind, drop_name, put_orphan};
use crate::fs::{Caller, Fs};
use crate::node::{Node, S_IFCHR};
use crate::{FsError, name};
use aegisfs_base::InodeId;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_format::op::Op;
use aegisfs_format::value::Inode;
use std::sync::Arc;

/// What to do when the new name exists, and with the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// Refuse.
    pub no_replace: bool,
    /// Change places.
    pub exchange: bool,
    /// Leave a whiteout of this caller's under the old name: the character device 0:0, by which the upper layer
    /// of an overlay hides what the lower one has.
    pub whiteout: Option<Caller>,
}

/// One end of a rename.
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: InodeId,
    name: &'a [u8],
}

/// What a name leads to: the inode and its mode.
type Entry = (InodeId, u32);

/// Everything a rename works on, found before the locks are taken.
struct Scene {
    from: Arc<Node>,
    to: Arc<Node>,
    source: Arc<Node>,
    target: Option<Arc<Node>>,
}

impl Fs {
    /// Moves a name.
    ///
    /// # Errors
    /// The POSIX ones of rename(2), or a fault.
    pub fn rename(
        &self,
        parent: InodeId,
        old: &[u8],
        new_parent: InodeId,
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        for name in [old, new] {
            name::check(name)?;
            if matches!(name, b"." | b"..") {
                return Err(FsError::Invalid);
            }
        }
        if flags.exchange && (flags.no_replace || flags.whiteout.is_some()) {
            return Err(FsError::Invalid);
        }
        self.store.check_writable()?;
        if flags.whiteout.is_some() {
            self.admit_new()?;
        }
        let (from, to) = (Place { parent, name: old }, Place { parent: new_parent, name: new });
        let _one = self.renaming.lock();
        loop {
            let scene = self.look(from, to)?;
            // What replaces a file shows after a crash either as before or whole: its bytes go first.
            if scene.target.is_some() && !removed(Edge::RenameFlushesSource) {
                self.flush_node(&scene.source)?;
            }
            if let Some(done) = self.try_rename(from, to, &scene, flags)? {
                if let Some(gone) = done {
                    self.drop_if_unused(&gone);
                }
                self.sync_if_asked(&scene.from)?;
                return self.sync_if_asked(&scene.to);
            }
        }
    }

    fn look(&self, from: Place<'_>, to: Place<'_>) -> Result<Scene, FsError> {
        let source = self.directory(from.parent)?;
        let destination = self.directory(to.parent)?;
        let moved = self.find_entry(from.parent, from.name)?.ok_or(FsError::NotFound)?;
        let target = self.find_entry(to.parent, to.name)?;
        Ok(Scene {
            from: source,
            to: destination,
            source: self.node(moved)?,
            target: target.map(|target| self.node(target)).transpose()?,
        })
    }

    /// Renames if everything still is as it was found. The inner value is an inode that lost a name.
    fn try_rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        scene: &Scene,
        flags: RenameFlags,
    ) -> Result<Option<Option<Arc<Node>>>, FsError> {
        let mut nodes = vec![&scene.from, &scene.to, &scene.source];
        nodes.extend(&scene.target);
        let mut locked = Locked::new(&nodes);
        let found = |place: Place<'_>| self.find_entry(place.parent, place.name);
        let same = found(from)? == Some(scene.source.id)
            && found(to)? == scene.target.as_ref().map(|target| target.id)
            && locked.all_alive();
        if !same {
            return Ok(None);
        }
        if locked.get(to.parent).inode.nlink == 0 {
            return Err(FsError::NotFound);
        }
        match &scene.target {
            Some(_) if flags.no_replace => return Err(FsError::Exists),
            None if flags.exchange => return Err(FsError::NotFound),
            // Two names of one inode stay as they are.
            Some(target) if target.id == scene.source.id => return Ok(Some(None)),
            _ => {}
        }
        refuse_flagged(from, to, scene, &mut locked)?;
        self.refuse_loops(from, to, scene, &mut locked, flags)?;
        let before: Vec<(InodeId, Inode)> =
            nodes.iter().map(|node| (node.id, locked.get(node.id).inode)).collect();
        let outcome = if flags.exchange {
            self.exchange(from, to, scene, &mut locked).map(|()| None)
        } else {
            self.replace(from, to, scene, &mut locked, flags.whiteout)
        };
        if outcome.is_err() {
            for (id, inode) in before {
                locked.get(id).inode = inode;
            }
        }
        outcome.map(Some)
    }

    /// A directory never moves into itself or below.
    fn refuse_loops(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        scene: &Scene,
        locked: &mut Locked<'_>,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        if locked.get(scene.source.id).is_directory() {
            self.refuse_below(scene.source.id, to.parent, locked)?;
        }
        if let Some(target) = scene.target.as_ref().filter(|_| flags.exchange)
            && locked.get(target.id).is_directory()
        {
            self.refuse_below(target.id, from.parent, locked)?;
        }
        Ok(())
    }

    fn refuse_below(
        &self,
        moved: InodeId,
        mut place: InodeId,
        locked: &mut Locked<'_>,
    ) -> Result<(), FsError> {
        loop {
            if place == moved {
                return Err(FsError::Invalid);
            }
            let parent = match locked.try_get(place) {
                Some(state) => state.inode.parent,
                // A directory's parent changes only in a rename, and only one rename runs at a time.
                None => self.stored_parent(place)?,
            };
            if parent == place {
                return Ok(());
            }
            place = parent;
        }
    }

    fn stored_parent(&self, id: InodeId) -> Result<InodeId, FsError> {
        let view = self.store.head_view(crate::fs::HEAD)?;
        let stem = aegisfs_format::key::inode(id);
        let table = aegisfs_format::key::Table::Inode;
        let stored = aegisfs_store::versions::visible(&self.store.view(), table, &stem, &view)?;
        Ok(Inode::decode(&stored.ok_or(FsError::NotFound)?)?.parent)
    }

    fn replace(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        scene: &Scene,
        locked: &mut Locked<'_>,
        whiteout: Option<Caller>,
    ) -> Result<Option<Arc<Node>>, FsError> {
        let now = self.now();
        let moved = scene.source.id;
        let directory = locked.get(moved).is_directory();
        let mode = locked.get(moved).inode.mode;
        let mut ops = Vec::new();
        let mut orphaned = false;
        if let Some(target) = &scene.target {
            check_kind(locked.get(target.id), directory)?;
            let victim = locked.get(target.id);
            let victim_directory = victim.is_directory();
            orphaned = drop_name(victim, now);
            ops.push(Self::put_inode(target.id, victim));
            if orphaned {
                ops.push(put_orphan(target.id));
            }
            locked.get(to.parent).inode.nlink -= u32::from(victim_directory);
        }
        let left = match whiteout {
            Some(caller) => Some(self.new_whiteout(from.parent, locked, caller, &mut ops)?),
            None => None,
        };
        ops.extend(self.move_entry(from, to, (moved, mode), left, scene.target.is_some())?);
        let above = locked.get(from.parent);
        above.inode.size -= u64::from(left.is_none());
        above.inode.nlink -= u32::from(directory);
        let below = locked.get(to.parent);
        below.inode.size += u64::from(scene.target.is_none());
        below.inode.nlink += u32::from(directory);
        if directory {
            locked.get(moved).inode.parent = to.parent;
        }
        self.touch(&[from.parent, to.parent], moved, locked, now);
        ops.extend(put_all(&[from.parent, to.parent, moved], locked));
        if let Some(target) = scene.target.as_ref().filter(|_| orphaned) {
            self.store.hold_orphan(target.id);
        }
        match self.commit(ops) {
            Ok(committed) => locked.note_commit(&committed),
            Err(error) => {
                if let Some(target) = scene.target.as_ref().filter(|_| orphaned) {
                    self.store.release_orphan(target.id);
                }
                return Err(error);
            }
        }
        let gone = scene.target.clone().filter(|_| orphaned);
        if let Some(target) = &gone {
            locked.get(target.id).orphan = true;
        }
        Ok(gone)
    }

    /// Whether both names stand in one bucket, so that one operation has to change both.
    fn share_bucket(&self, from: Place<'_>, to: Place<'_>) -> bool {
        from.parent == to.parent && self.hasher.hash(from.name) == self.hasher.hash(to.name)
    }

    /// Makes a whiteout, which is still to be given a name.
    fn new_whiteout(
        &self,
        parent: InodeId,
        locked: &mut Locked<'_>,
        caller: Caller,
        ops: &mut Vec<Op>,
    ) -> Result<Entry, FsError> {
        let id = self.store.new_inode_id()?;
        let options = MakeOptions { caller, ..MakeOptions::default() };
        let above = locked.get(parent).inode;
        let (made, attached) = self.new_inode((id, Kind::Special(S_IFCHR, 0)), &options, (parent, &above))?;
        ops.push(Self::put_inode(id, &made));
        ops.extend(attached);
        Ok((id, made.inode.mode))
    }

    /// The operations on the directories' entries: what moves, and what stays under its old name. Both names may
    /// share a bucket.
    fn move_entry(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        moved: Entry,
        left: Option<Entry>,
        replaces: bool,
    ) -> Result<Vec<Op>, FsError> {
        if self.share_bucket(from, to) {
            return self.move_within_bucket(from, to, moved, left);
        }
        let added = if replaces {
            self.replace_entry(to.parent, to.name, moved.0, moved.1)?
        } else {
            self.add_entry(to.parent, to.name, moved.0, moved.1)?
        };
        let old = match left {
            Some((id, mode)) => self.replace_entry(from.parent, from.name, id, mode)?,
            None => self.remove_entry(from.parent, from.name)?,
        };
        Ok(vec![old, added])
    }

    fn move_within_bucket(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        (moved, mode): Entry,
        left: Option<Entry>,
    ) -> Result<Vec<Op>, FsError> {
        let hash = self.hasher.hash(from.name);
        let mut bucket = self.bucket(from.parent, hash)?;
        bucket.retain(|entry| entry.name != to.name);
        for entry in bucket.iter_mut().filter(|entry| entry.name == from.name) {
            entry.name = to.name.to_vec();
            entry.inode = moved;
            entry.kind = (mode >> 12) as u8;
        }
        Ok(vec![match left {
            Some(left) => super::add_to_bucket(from.parent, hash, bucket, from.name, left)?,
            None => super::put_bucket(from.parent, hash, &bucket),
        }])
    }

    fn exchange(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        scene: &Scene,
        locked: &mut Locked<'_>,
    ) -> Result<(), FsError> {
        let target = scene.target.as_ref().ok_or(FsError::NotFound)?;
        let now = self.now();
        let (one, other) = (scene.source.id, target.id);
        let (one_mode, other_mode) = (locked.get(one).inode.mode, locked.get(other).inode.mode);
        let mut ops = if self.share_bucket(from, to) {
            vec![self.exchange_within_bucket(from, to)?]
        } else {
            vec![
                self.replace_entry(from.parent, from.name, other, other_mode)?,
                self.replace_entry(to.parent, to.name, one, one_mode)?,
            ]
        };
        let directories = (locked.get(one).is_directory(), locked.get(other).is_directory());
        if directories.0 != directories.1 {
            let (gains, loses) =
                if directories.0 { (to.parent, from.parent) } else { (from.parent, to.parent) };
            locked.get(loses).inode.nlink -= 1;
            locked.get(gains).inode.nlink += 1;
        }
        if directories.0 {
            locked.get(one).inode.parent = to.parent;
        }
        if directories.1 {
            locked.get(other).inode.parent = from.parent;
        }
        locked.get(other).inode.ctime = now;
        self.touch(&[from.parent, to.parent], one, locked, now);
        ops.extend(put_all(&[from.parent, to.parent, one, other], locked));
        let committed = self.commit(ops)?;
        locked.note_commit(&committed);
        Ok(())
    }

    fn exchange_within_bucket(&self, from: Place<'_>, to: Place<'_>) -> Result<Op, FsError> {
        let hash = self.hasher.hash(from.name);
        let mut bucket = self.bucket(from.parent, hash)?;
        for entry in &mut bucket {
            if entry.name == from.name {
                entry.name = to.name.to_vec();
            } else if entry.name == to.name {
                entry.name = from.name.to_vec();
            }
        }
        Ok(super::put_bucket(from.parent, hash, &bucket))
    }

    fn touch(
        &self,
        parents: &[InodeId],
        moved: InodeId,
        locked: &mut Locked<'_>,
        now: aegisfs_base::Timestamp,
    ) {
        for parent in parents {
            let state = locked.get(*parent);
            state.inode.mtime = now;
            state.inode.ctime = now;
        }
        locked.get(moved).inode.ctime = now;
    }
}

/// What keeps its names is not renamed, nor replaced; and where names stay none goes.
fn refuse_flagged(
    from: Place<'_>,
    to: Place<'_>,
    scene: &Scene,
    locked: &mut Locked<'_>,
) -> Result<(), FsError> {
    locked.get(from.parent).refuse_flagged()?;
    locked.get(scene.source.id).refuse_flagged()?;
    match &scene.target {
        None => locked.get(to.parent).refuse_immutable(),
        Some(target) => {
            locked.get(to.parent).refuse_flagged()?;
            locked.get(target.id).refuse_flagged()
        }
    }
}

/// Stores the attributes of several nodes, each once.
fn put_all(ids: &[InodeId], locked: &mut Locked<'_>) -> Vec<Op> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.into_iter().map(|id| Fs::put_inode(id, locked.get(id))).collect()
}
