//! How files are stored: what is said of a file or directory holds for what is made in it, and for what is there already.
//!
//! An inode carries its policy. What is made in a directory begins with the directory's; a policy that somebody gave an inode
//! is its own, and stays when that of the directory changes. Whoever gives a directory a policy leaves a note beside it, and
//! a thread then goes through everything below: inodes without one of their own follow, and what files hold already is
//! stored anew. It begins again with the next mount if it is interrupted, and looks again until it finds nothing to do, since
//! names may have moved meanwhile.

use crate::FsError;
use crate::fs::{Fs, HEAD, ROOT};
use crate::node::{Node, NodeState};
use aegisfs_base::{FaultKind, InodeId, PolicyId};
use aegisfs_format::extent::ExtentRef;
use aegisfs_format::key::{Table, prefix_end};
use aegisfs_format::op::{NewRef, Op};
use aegisfs_format::value::{Inode, wrap};
use aegisfs_pool::Redundancy;
use aegisfs_store::{Reencoder, Reservation, Store, StoreError, Tables};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How the keys of notes begin, in the configuration; the inode follows, big-endian.
const NOTE: &[u8] = b"policy-below/";
/// References of a file that are looked at in one go.
const REFERENCES_AT_ONCE: usize = 4096;
/// Names of a directory that are looked at in one go.
const NAMES_AT_ONCE: usize = 1024;
/// How often a tree is gone through at most for one note; whoever moves names in it all the time does so in vain.
const PASSES_MAX: u32 = 8;
/// Room that is kept for what somebody writes while a file's policy changes.
const SPARE_BYTES: u64 = 4 << 20;
/// How long it waits before it tries again what failed: at first, and at most where that keeps failing.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_MAX: Duration = Duration::from_secs(86_400);
const DIRECTORY: u8 = 4;
const REGULAR: u8 = 8;

/// How an inode is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyOf {
    /// How many devices may be lost.
    pub redundancy: Redundancy,
    /// Whether somebody said so of it; otherwise it follows the directory that it was made in.
    pub own: bool,
}

/// A file or directory at or below which something may not be stored as its policy says yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The inode.
    pub inode: InodeId,
    /// Whether it is gone through now.
    pub running: bool,
    /// Why it did not get on the last time it was gone through, if so.
    pub trouble: Option<String>,
}

/// How far what is there already has come to follow its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// What does not follow yet.
    pub waiting: Vec<Waiting>,
    /// Inodes that were looked at since the mount.
    pub inodes: u64,
    /// Bytes that were stored anew since the mount.
    pub bytes: u64,
}

/// What was seen since the mount.
#[derive(Default)]
struct Seen {
    running: Option<InodeId>,
    inodes: u64,
    bytes: u64,
    /// Bytes that could not be read in this pass.
    unreadable_bytes: u64,
    /// Why inodes did not get on.
    trouble: HashMap<InodeId, String>,
}

/// What came of it for one inode.
enum Follows {
    /// It has a policy of its own, and does not.
    Not,
    /// It does, and may not have before.
    Is { changed: bool },
    /// It was told to stop.
    Stopped,
}

/// What the thread that follows shares with others.
#[derive(Default)]
pub(crate) struct Following {
    seen: Mutex<Seen>,
    /// Held by whoever writes a note, or takes one away.
    notes: Mutex<()>,
    /// Something new was said.
    wanted: Mutex<bool>,
    called: Condvar,
    /// One at a time.
    turn: Mutex<()>,
}

fn note_of(id: InodeId) -> Vec<u8> {
    [NOTE, &id.0.to_be_bytes()].concat()
}

impl Fs {
    /// How an inode is stored.
    ///
    /// # Errors
    /// `NotFound`, `NotSupported` for what has no content of its own, or a fault.
    pub fn policy(&self, id: InodeId) -> Result<PolicyOf, FsError> {
        let node = self.node(id)?;
        let state = node.state.read();
        has_policy(&state)?;
        let redundancy = self.store.redundancy_of(state.inode.policy);
        Ok(PolicyOf { redundancy, own: state.inode.own_policy })
    }

    /// Says how a file, or a directory and what is in it, is stored from now on; what is there already follows in the
    /// background. None takes a policy of its own away: it follows `above` then, the directory that it is in.
    ///
    /// Durable when it returns.
    ///
    /// # Errors
    /// `NotFound`, `NotSupported` for what has no content of its own, `NotPermitted` while it is immutable; where the pool has
    /// no room for such a redundancy; or a fault.
    pub fn set_policy(
        &self,
        id: InodeId,
        redundancy: Option<Redundancy>,
        above: InodeId,
    ) -> Result<(), FsError> {
        self.store.check_writable()?;
        let policy = match redundancy {
            Some(redundancy) => self.store.policy_with(redundancy)?,
            None if id == ROOT => PolicyId::default(),
            None => self.directory(above)?.state.read().inode.policy,
        };
        let node = self.node(id)?;
        let state = node.state.read();
        has_policy(&state)?;
        state.refuse_immutable()?;
        drop(state);
        {
            let _notes = self.following.notes.lock();
            // None looks like the one before, which somebody may be about to take away.
            let value = wrap(&self.store.last_sequence().0.to_le_bytes());
            let note = Op::Put { table: Table::Config, key: note_of(id), value };
            self.give_policy(&node, policy, Some(redundancy.is_some()), vec![note])?;
        }
        self.sync_node(&node)?;
        self.following.seen.lock().trouble.remove(&id);
        self.following.call();
        Ok(())
    }

    /// Gives an inode a policy. Says whether it had another.
    fn give_policy(
        &self,
        node: &Arc<Node>,
        policy: PolicyId,
        own: Option<bool>,
        mut ops: Vec<Op>,
    ) -> Result<bool, FsError> {
        // Who has one of its own follows nobody.
        let changes = |inode: &Inode| match own {
            None => !inode.own_policy && inode.policy != policy,
            Some(own) => (inode.policy, inode.own_policy) != (policy, own),
        };
        // Something to spare for who writes meanwhile, once that has happened.
        let mut spare = 0;
        loop {
            let mut room = None;
            if changes(&node.state.read().inode) {
                // What was promised room by the old one takes it.
                self.flush_node(node)?;
                let wanted = node.state.read().worst_case_bytes_with(&self.store, policy) + spare;
                if wanted > 0 {
                    room = Some(self.reserve_stored(wanted, 0, policy)?);
                }
            }
            // Nothing is on its way to the store by the old one any more once this returns.
            let _flushing = node.flushing.lock();
            let mut state = node.state.write();
            if state.dead {
                return Err(FsError::NotFound);
            }
            let before = state.inode;
            let has_changed = changes(&before);
            if has_changed {
                let wanted = state.worst_case_bytes_with(&self.store, policy);
                if room.as_ref().map_or(0, Reservation::bytes) < wanted {
                    spare = self.store.worst_case_bytes(SPARE_BYTES, 1, policy);
                    continue;
                }
                (state.inode.policy, state.inode.own_policy) = (policy, own.unwrap_or(false));
                state.inode.ctime = self.now();
                state.fit_promise(&self.store, room);
            } else if ops.is_empty() {
                return Ok(false);
            }
            ops.push(Self::put_inode(node.id, &state));
            self.commit_node(node.id, &mut state, before, ops)?;
            return Ok(has_changed);
        }
    }

    /// How far what is there already has come to follow its policy.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn followed(&self) -> Result<Followed, FsError> {
        let notes = self.notes()?;
        let seen = self.following.seen.lock();
        let waiting = |(inode, _): (InodeId, Vec<u8>)| {
            let (running, trouble) = (seen.running == Some(inode), seen.trouble.get(&inode).cloned());
            Waiting { inode, running, trouble }
        };
        let waiting = notes.into_iter().map(waiting).collect();
        Ok(Followed { waiting, inodes: seen.inodes, bytes: seen.bytes })
    }

    /// A name of each of some inodes, where they have one. Reads all directories, once for each level that they lie deep.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn names_of(&self, inodes: &[InodeId]) -> Result<HashMap<InodeId, Vec<u8>>, FsError> {
        if inodes.is_empty() { Ok(HashMap::new()) } else { self.paths_of(inodes.iter().copied().collect()) }
    }

    /// The notes that there are, with what they say.
    fn notes(&self) -> Result<Vec<(InodeId, Vec<u8>)>, FsError> {
        let mut found = Vec::new();
        self.store.view().scan(Table::Config, NOTE, prefix_end(NOTE).as_deref(), &mut |key, note| {
            let id = key[NOTE.len()..].try_into().map(u64::from_be_bytes);
            found.extend(id.map(|id| (InodeId(id), note.to_vec())));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Takes a note away, unless somebody has said something new since it was read.
    fn take_note(&self, id: InodeId, note: &[u8]) -> Result<(), FsError> {
        let _notes = self.following.notes.lock();
        let now = self.store.view().get(Table::Config, &note_of(id))?;
        if now.as_deref() == Some(note) {
            self.commit(vec![Op::Delete { table: Table::Config, key: note_of(id) }])?;
        }
        Ok(())
    }

    /// Has everything that is there already follow its policy. `goes_on` is asked between the steps.
    ///
    /// # Errors
    /// The first failure; what comes after that was tried all the same. What is left over follows another time.
    pub fn follow_policies(&self, goes_on: &dyn Fn() -> bool) -> Result<(), FsError> {
        let _turn = self.following.turn.lock();
        let mut outcome = Ok(());
        for (id, note) in self.notes()? {
            {
                let mut seen = self.following.seen.lock();
                (seen.running, _) = (Some(id), seen.trouble.remove(&id));
            }
            let done = self.follow_below(id, goes_on);
            let unreadable_bytes = {
                let mut seen = self.following.seen.lock();
                seen.running = None;
                seen.unreadable_bytes
            };
            let done = match done {
                // What cannot be read now may be there again one day.
                Ok(true) if unreadable_bytes > 0 => {
                    let trouble = format!("{unreadable_bytes} bytes cannot be read");
                    self.following.seen.lock().trouble.insert(id, trouble);
                    Ok(())
                }
                Ok(true) => self.take_note(id, &note),
                Ok(false) => Ok(()),
                Err(error) => {
                    self.following.seen.lock().trouble.insert(id, error.to_string());
                    Err(error)
                }
            };
            if !goes_on() {
                return Ok(());
            }
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Has an inode and all below it follow. Says whether nothing is left to do.
    fn follow_below(&self, id: InodeId, goes_on: &dyn Fn() -> bool) -> Result<bool, FsError> {
        let mut reencoder = Reencoder::new(&self.store);
        for _ in 0..PASSES_MAX {
            self.following.seen.lock().unreadable_bytes = 0;
            match self.follow_once(id, &mut reencoder, goes_on) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(true),
                Ok(None) => return Ok(false),
                // It is gone, and needs nothing.
                Err(FsError::NotFound) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Goes through an inode and all below it once. Says whether anything had to follow; nothing when it was told to stop.
    fn follow_once(
        &self,
        id: InodeId,
        reencoder: &mut Reencoder<'_>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<bool>, FsError> {
        let node = self.node(id)?;
        if !node.state.read().is_directory() {
            return self.reencode(&node, reencoder, goes_on);
        }
        let mut has_changed = false;
        // What cannot be done here keeps nobody from what comes after it.
        let mut outcome = Ok(());
        // Directories from the first to the one that is looked at, and how far it was.
        let mut way = vec![(id, 0)];
        while let Some((directory, cookie)) = way.pop() {
            let (found, is_all) = match self.names_behind(directory, cookie) {
                // Somebody removed it.
                Err(FsError::NotFound | FsError::NotDirectory) => continue,
                found => found?,
            };
            let policy = match self.node(directory) {
                Err(FsError::NotFound) => continue,
                node => node?.state.read().inode.policy,
            };
            let last = found.last().map_or(cookie, |(.., cookie)| *cookie);
            let mut behind = (!is_all).then_some((directory, last));
            for (child, kind, cookie) in found {
                if !goes_on() {
                    return Ok(None);
                }
                self.following.seen.lock().inodes += 1;
                let is_followed = match self.follow_one(child, kind, policy, reencoder, goes_on) {
                    Err(FsError::NotFound) | Ok(Follows::Not) => false,
                    Err(error) if self.is_hopeless(&error) => return Err(error),
                    Err(error) => {
                        outcome = outcome.and(Err(error));
                        false
                    }
                    Ok(Follows::Stopped) => return Ok(None),
                    Ok(Follows::Is { changed }) => {
                        has_changed |= changed;
                        true
                    }
                };
                if kind == DIRECTORY && is_followed {
                    // What is in it comes first, so that no more than the way there is to be kept in mind.
                    way.push((directory, cookie));
                    way.push((child, 0));
                    behind = None;
                    break;
                }
            }
            way.extend(behind);
        }
        outcome.map(|()| Some(has_changed))
    }

    /// Gives what is in a directory the directory's policy, and has the content of a file follow it.
    fn follow_one(
        &self,
        id: InodeId,
        kind: u8,
        policy: PolicyId,
        reencoder: &mut Reencoder<'_>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Follows, FsError> {
        let node = self.node(id)?;
        let changed = self.give_policy(&node, policy, None, Vec::new())?;
        if node.state.read().inode.own_policy {
            return Ok(Follows::Not);
        }
        if kind != REGULAR {
            return Ok(Follows::Is { changed });
        }
        let reencoded = self.reencode(&node, reencoder, goes_on)?;
        Ok(reencoded.map_or(Follows::Stopped, |again| Follows::Is { changed: changed || again }))
    }

    /// Whether an error is the same for whatever comes next.
    fn is_hopeless(&self, error: &FsError) -> bool {
        let is_full = matches!(error, FsError::Store(error) if error.kind() == FaultKind::NoSpace);
        is_full || self.store.check_writable().is_err()
    }

    /// Files and directories in a directory behind a cookie, and whether those are all.
    #[expect(clippy::type_complexity, reason = "an inode, its kind and its cookie")]
    fn names_behind(&self, id: InodeId, cookie: u64) -> Result<(Vec<(InodeId, u8, u64)>, bool), FsError> {
        let mut found = Vec::new();
        let mut is_all = true;
        self.readdir(id, cookie, &mut |entry| {
            let is_self = matches!(&entry.name[..], b"." | b"..");
            if !is_self && matches!(entry.kind, DIRECTORY | REGULAR) {
                found.push((entry.id, entry.kind, entry.cookie));
            }
            is_all = found.len() < NAMES_AT_ONCE;
            if is_all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok((found, is_all))
    }

    /// Stores what a file has of another policy anew. Says whether there was anything; nothing when it was told to stop.
    fn reencode(
        &self,
        node: &Arc<Node>,
        reencoder: &mut Reencoder<'_>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<bool>, FsError> {
        let policy = {
            let state = node.state.read();
            if !state.is_regular() || state.dead || state.inode.nlink == 0 {
                return Ok(Some(false));
            }
            state.inode.policy
        };
        let mut has_changed = false;
        let mut from = 0;
        // What a snapshot sees stays as it is.
        let head = self.store.view().head(HEAD)?;
        loop {
            let mut references = Vec::new();
            let mut end = from;
            self.visit_extents(node.id, from, u64::MAX, &mut |offset, reference| {
                let ExtentRef { length, chunk, offset_in_chunk, birth, .. } = reference;
                end = offset + u64::from(length);
                if !head.is_pinned(birth) {
                    references.push(NewRef { offset, length, chunk, offset_in_chunk });
                }
                let is_enough = references.len() == REFERENCES_AT_ONCE;
                if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if end == from {
                return Ok(Some(has_changed));
            }
            from = end;
            let leave = self.soft_reserve_bytes();
            let done = match reencoder.reencode(node.id, &references, policy, leave, goes_on) {
                Err(StoreError::Stopped) => return Ok(None),
                done => done?,
            };
            has_changed |= done.bytes > 0 || done.is_outdated;
            let mut seen = self.following.seen.lock();
            seen.bytes += done.bytes;
            seen.unreadable_bytes += done.unreadable_bytes;
        }
    }
}

fn has_policy(state: &NodeState) -> Result<(), FsError> {
    if state.dead {
        return Err(FsError::NotFound);
    }
    if state.is_regular() || state.is_directory() { Ok(()) } else { Err(FsError::NotSupported) }
}

impl Following {
    fn call(&self) {
        *self.wanted.lock() = true;
        self.called.notify_all();
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct FollowThread {
    fs: Arc<Fs>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FollowThread {
    /// Has what is there already follow its policy, now and whenever somebody says something new.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(fs: Arc<Fs>) -> std::io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (worker, stopping) = (Arc::clone(&fs), Arc::clone(&stop));
        let work = move || run(&worker, &stopping);
        let thread = std::thread::Builder::new().name("policies".into()).spawn(work)?;
        Ok(Self { fs, stop, thread: Some(thread) })
    }
}

impl Drop for FollowThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fs.following.call();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("what has files follow their policies died; the next mount goes on");
        }
    }
}

fn run(fs: &Fs, stop: &AtomicBool) {
    let store: &Store = &fs.store;
    let goes_on = || !stop.load(Ordering::Acquire) && store.check_writable().is_ok();
    let mut told = String::new();
    let mut again = AGAIN;
    while goes_on() {
        let outcome = fs.follow_policies(&goes_on);
        let is_left = fs.notes().is_ok_and(|notes| !notes.is_empty());
        match &outcome {
            Ok(()) => told = String::new(),
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::error!(
                        error,
                        "files could not be stored as their policy says; it is tried again"
                    );
                    told = error;
                }
            }
        }
        let mut wanted = fs.following.wanted.lock();
        if goes_on() && !*wanted {
            if is_left || outcome.is_err() {
                fs.following.called.wait_for(&mut wanted, again);
                again = (again * 2).min(AGAIN_MAX);
            } else {
                fs.following.called.wait(&mut wanted);
            }
        }
        if std::mem::take(&mut *wanted) {
            again = AGAIN;
        }
    }
}
